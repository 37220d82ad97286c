package site

import (
	"context"
	"net"
	"net/http"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"

	"github.com/reservoir-cloud/reservoir/image"
	"github.com/reservoir-cloud/reservoir/internal/httpapi"
	"github.com/reservoir-cloud/reservoir/internal/identity"
	"github.com/reservoir-cloud/reservoir/internal/store"
	"github.com/reservoir-cloud/reservoir/placement"
	"github.com/reservoir-cloud/reservoir/sm"
	"github.com/reservoir-cloud/reservoir/sm/trade"
	"github.com/reservoir-cloud/reservoir/smi"
	"github.com/reservoir-cloud/reservoir/vee"
	"github.com/reservoir-cloud/reservoir/veem"
	"github.com/reservoir-cloud/reservoir/vhi"
	"github.com/reservoir-cloud/reservoir/vmi/occi"
)

// openVEEM gives the VEE Manager its surroundings.
func (s *site) openVEEM(ctx context.Context) (*veem.Manager, error) {
	c := s.cfg
	fence, err := fencer(c.FenceDir)
	if err != nil {
		return nil, err
	}
	return veem.New(ctx, veem.Config{
		Site: c.Name, Store: veem.OnStore(s.store), Dial: s.dial, Placer: placement.Policy(c.Placement),
		Images: sizes{s}, Balancer: s.balancer, Recorder: recorder{s},
		Networks: map[string]veem.Network{flat: network(c)}, VANs: c.VANs,
		Listener: s.listener(), Rebalancing: c.Rebalance, Booking: s.booking(), Timing: scaled(c.HAScale), Log: c.Log,
		Fencer: fence, Relief: c.relief(),
		Ownership: c.ownership(), Boottime: boottime,
		Partnership: s.abroad, Import: s.abroad.images.Import, Crossing: crossing{s.gate, s.partners},
		Partnering: c.Federation.Partnering, Partnerings: c.Federation.Partnerings,
		Country: c.Federation.Location.Country, Jurisdiction: c.Federation.Location.Jurisdiction, Border: s.gate.Underlay, Forward: s.abroad.ways.Forward, Rewired: s.gate.Poke,
	})
}

// boottime is CLOCK_BOOTTIME: it goes on while the machine sleeps and knows no wall clock.
func boottime() time.Duration {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &t); err != nil {
		panic("CLOCK_BOOTTIME: " + err.Error()) // every Linux since 2.6.39 has it
	}
	return time.Duration(t.Nano())
}

// flat is the name of the one network that a site has in this version.
const flat = "site"

// network of the VEEs: one flat subnet, of which VEEs get the part that is theirs.
func network(c Config) veem.Network {
	n := veem.Network{Subnet: netip.PrefixFrom(c.VEENetwork.Addr(), c.VEEBits).Masked(), Gateway: c.VEEGateway}
	if c.VEEBits != c.VEENetwork.Bits() {
		n.First, n.Last = c.VEENetwork.Masked().Addr().Next(), last(c.VEENetwork)
	}
	return n
}

// last address of p.
func last(p netip.Prefix) netip.Addr {
	b := p.Masked().Addr().AsSlice()
	for i := p.Bits(); i < 8*len(b); i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}

// registerOCCI serves the VEE Manager's second face.
func (s *site) registerOCCI(api *httpapi.Server) {
	n := network(s.cfg)
	h := occi.Handler(occi.Config{Service: s.veem, Images: s.images, Tags: store.NewCollection[occi.Tag](s.store, "occi-tag"), Version: s.cfg.Version, Log: s.cfg.Log,
		Networks: []occi.Network{{Name: flat, Subnet: n.Subnet, Gateway: n.Gateway}}})
	for _, path := range []string{occi.Base + "/", occi.QueryPath, occi.WellKnown} {
		api.HandleStock(path, h)
	}
}

// scaled shortens every timing of the VEE Manager together.
func scaled(by float64) veem.Timing {
	if by == 1 {
		return veem.Timing{}
	}
	t := func(d time.Duration) time.Duration { return time.Duration(float64(d) * by) }
	return veem.Timing{HostLost: t(15 * time.Second), Grace: t(30 * time.Second), Look: t(15 * time.Second), Rest: t(10 * time.Minute)}
}

// dial makes the client of a host's agent.
func (s *site) dial(name, address string) vhi.Host {
	if partner, is := s.abroad.places.Dial(name); is {
		return partner
	}
	return vhi.NewHostClient(s.toHost(name, address))
}

// toHost speaks to a host's agent: mutual TLS, and nobody but the host of that name is taken
// for it.
func (s *site) toHost(name, address string) *httpapi.Client {
	id, err := identity.HostID(s.cfg.Name, name)
	if err != nil { // names are checked when a host joins
		panic("host " + name + ": " + err.Error())
	}
	return &httpapi.Client{Base: "https://" + address, HTTP: &http.Client{Transport: &http.Transport{
		TLSClientConfig: s.keys.ClientTLS(id), ForceAttemptHTTP2: true, IdleConnTimeout: time.Minute,
		DialContext: (&net.Dialer{Timeout: 3 * time.Second}).DialContext,
	}}}
}

// sizes tells the VEE Manager what a disk of an image takes.
type sizes struct{ s *site }

func (z sizes) VirtualSize(ctx context.Context, digest string) (vee.Bytes, error) {
	img, err := z.s.images.Resolve(ctx, digest)
	return img.Config.VirtualSize, err
}

// recorder puts the VEE Manager's events into the site's log, under the service's name.
type recorder struct{ s *site }

func (r recorder) Record(e veem.Event) {
	kind := "normal"
	if e.Warning {
		kind = "warning"
	}
	r.s.events.Record(smi.Event{Type: kind, Reason: e.Reason, Object: e.Object, Customer: e.Customer, Service: r.s.sm.ServiceName(e.GroupID), Message: e.Message})
}

// openSM gives the Service Manager its surroundings. It holds the VEE Manager as nothing
// but a vmi.Service.
func (s *site) openSM() *sm.Manager {
	s.desk = trade.New(trade.Config{Site: s.cfg.Name, Store: s.store, Record: s.events.Record,
		Every: max(leastLook, time.Duration(s.cfg.HAScale*float64(5*time.Second))), Now: time.Now, Log: s.cfg.Log})
	m := sm.New(sm.Config{
		Trade: s.desk,
		Site:  s.cfg.Name, Store: s.store, VMI: s.veem, Images: references{s.images}, Events: s.events, Network: flat, Monitor: s.metering.repository, Sink: s.metering.store,
		AccountingInterval: s.cfg.AccountingInterval, Standings: s.standingOf, Now: time.Now, Log: s.cfg.Log,
	})
	s.veem.Attach(m.Identity(), m)
	s.desk.Attach(m)
	return m
}

// leastLook is the shortest time between two looks at what services were promised.
const leastLook = 500 * time.Millisecond

// references resolves what manifests call their images.
type references struct{ images *image.Store }

func (r references) Resolve(ctx context.Context, reference string) (digest string, virtualSize vee.Bytes, err error) {
	img, err := r.images.Resolve(ctx, reference)
	return img.Digest, img.Config.VirtualSize, err
}
