// Package agent is the LUC-OS agent: the one process of Reservoir on each host (seed 4).
// It joins the host to a site, keeps it current there, and runs what the site assigns.
// Its parts carry the seed's names: vet tracks virtual environments, lrt local resources.
//
// The agent may crash, restart and be upgraded at any time without touching a guest.
package agent

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/reservoir-cloud/reservoir/agent/lease"
	"github.com/reservoir-cloud/reservoir/agent/lrt"
	"github.com/reservoir-cloud/reservoir/agent/measure"
	"github.com/reservoir-cloud/reservoir/agent/ve"
	"github.com/reservoir-cloud/reservoir/agent/vet"
	"github.com/reservoir-cloud/reservoir/hypervisor"
	"github.com/reservoir-cloud/reservoir/image"
	"github.com/reservoir-cloud/reservoir/internal/durable"
	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/internal/footprint"
	"github.com/reservoir-cloud/reservoir/internal/httpapi"
	"github.com/reservoir-cloud/reservoir/internal/identity"
	"github.com/reservoir-cloud/reservoir/monitor"
	"github.com/reservoir-cloud/reservoir/monitor/export"
	"github.com/reservoir-cloud/reservoir/monitor/wire"
	"github.com/reservoir-cloud/reservoir/ownership"
	"github.com/reservoir-cloud/reservoir/van/plan"
	"github.com/reservoir-cloud/reservoir/vee"
	"github.com/reservoir-cloud/reservoir/vhi"
	"github.com/reservoir-cloud/reservoir/vhi/guest"
	"github.com/reservoir-cloud/reservoir/vhi/peer"
)

// Config of a host's agent.
type Config struct {
	Dir       string   // all that the agent keeps; mode 0700 inside
	Name      string   // of the host
	Sites     []string // addresses of the site, host:port: of its members, all or some
	JoinToken string   // one time; not needed once the host has joined
	Listen    string   // where the VHI listens, host:port
	Advertise string   // the address that the site calls; empty: Listen
	Bridge    string   // that VEEs on public networks are plugged into; made if it is not there
	// Underlay address, which the traffic of private networks goes from and to; zero: the one
	// that is advertised, or by which the site is reached.
	Underlay netip.Addr
	Driver   string // "qemu", "libvirt", "libvirt:URI" or "sim"
	Offer    lrt.Offer
	Price    float64 // per hour while the host has VEEs
	// Overload is the part of this host's CPUs above which its guests take too much; 0: as the
	// site says, negative: never.
	Overload float64
	PowerOff string  // shell command that switches the machine off; empty: only the agent ends
	HAScale  float64 // scales every timing together; 0: 1
	Version  string
	Log      *slog.Logger
}

func (c *Config) check() error {
	if !vee.ValidName(c.Name) {
		return fault.New(fault.Malformed, "host name %q: want a DNS label such as \"h1\"", c.Name).Try("name the host: reservoir host --name h1")
	}
	if c.Dir == "" || len(c.Sites) == 0 || c.Listen == "" {
		return fault.New(fault.Malformed, "a host needs a directory, the address of its site and an address to listen on").Try("reservoir host --help")
	}
	if !(c.Price >= 0) || math.IsInf(c.Price, 0) {
		return fault.New(fault.Malformed, "price %v: want a number from 0 on", c.Price).Try("reservoir host --price 0.25")
	}
	if c.Advertise == "" {
		c.Advertise = c.Listen
	}
	if c.HAScale == 0 {
		c.HAScale = 1
	}
	if err := c.timings().Check(); err != nil {
		return fault.New(fault.Malformed, "%w", err).Try("reservoir host --ha-scale 1")
	}
	return nil
}

func (c *Config) timings() ownership.Timings { return ownership.DefaultTimings().Scale(c.HAScale) }

// agent is a running one.
type agent struct {
	cfg         Config
	keys        *identity.Keypair
	members     *httpapi.Members // of the site
	tracker     *vet.Tracker
	networks    *networks
	driver      hypervisor.Driver
	info        vhi.DriverInfo
	capacity    vee.Resources
	cpus        int
	incarnation string
	seq         atomic.Uint64
	generation  atomic.Uint64
	renewer     renewer
	measuring   atomic.Pointer[measure.Measurer] // nil until the agent is open
	leases      *lease.Keeper                    // nil: its guests are simulated
	company     company
	ves         *ve.Tracker
	off         chan struct{} // has a word in it when the agent is to end for good

	peersMu sync.Mutex
	peers   map[string]*httpapi.Client // by name and address
	doors   map[string]*httpapi.Client // of other sites, by route
	trust   *identity.Trust            // in hosts of other sites
}

// Run joins if need be, and then serves until ctx is done. Guests go on.
func Run(ctx context.Context, cfg Config) error {
	if err := cfg.check(); err != nil {
		return err
	}
	unlock, err := lockDir(cfg.Dir)
	if err != nil {
		return err
	}
	defer unlock()
	keys, err := joined(ctx, cfg)
	if err != nil {
		return err
	}
	a := &agent{cfg: cfg, keys: keys, incarnation: rand.Text()[:12], peers: map[string]*httpapi.Client{}, doors: map[string]*httpapi.Client{},
		trust: identity.NewTrust(time.Now), off: make(chan struct{}, 1)}
	seen, err := readGeneration(cfg.Dir)
	if err != nil {
		return err
	}
	a.generation.Store(seen)
	return a.run(ctx)
}

func (a *agent) run(ctx context.Context) error {
	if a.cfg.Driver != "sim" {
		if err := a.openLeases(); err != nil {
			return err
		}
	}
	driver, err := openDriver(ctx, a.cfg, a.guardGuest)
	if err != nil {
		return err
	}
	defer driver.Close()
	a.driver = driver
	caps, err := driver.Capabilities(ctx)
	if err != nil {
		return fmt.Errorf("what can driver %s do here: %w", a.cfg.Driver, err)
	}
	a.info = vhi.DriverInfo{Name: caps.Driver, Version: caps.Version, Accelerator: caps.Accelerator, Why: caps.Why, Operations: caps.Operations, Simulated: caps.Simulated}
	if a.capacity, a.cpus, err = lrt.Capacity(a.cfg.Offer, a.cfg.Dir); err != nil {
		return fault.New(fault.Malformed, "%w", err).Try("offer less: reservoir host --memory --disk --cpu-overbook")
	}
	if a.members, err = toSite(a.cfg, a.keys); err != nil {
		return err
	}
	toSite := &httpapi.Client{Base: "https://" + a.cfg.Sites[0], HTTP: &http.Client{Transport: a.members.Transport()}}
	manager := vhi.NewManagerClient(toSite)
	a.renewer = renewer{site: manager, report: a.renewal, heed: a.heed, scale: a.cfg.HAScale, log: a.cfg.Log, changed: make(chan struct{}, 1)}

	images, err := image.OpenCache(filepath.Join(a.cfg.Dir, "images"), image.Remote{Base: toSite.Base, HTTP: &http.Client{Transport: &borrowing{site: toSite.HTTP.Transport, a: a}}}, image.CacheOptions{
		InUse: func() []string { return a.tracker.InUse() }, KeepFree: keepFree,
	})
	if err != nil {
		return err
	}
	defer images.Close()
	if !a.cfg.Underlay.IsValid() && a.cfg.Driver != "sim" {
		if a.cfg.Underlay, err = underlayOf(ctx, a.cfg.Advertise, a.cfg.Sites[0]); err != nil {
			return err
		}
	}
	path, answers, err := openDatapath(a.cfg, a.pushed)
	if err != nil {
		return err
	}
	if a.networks, err = openNetworks(a.cfg.Dir, a.cfg.Name, path, answers, a.renewer.poke, a.cfg.Log); err != nil {
		return errors.Join(err, path.Close())
	}
	defer func() {
		if err := a.networks.close(); err != nil {
			a.cfg.Log.Warn("close the networks of this host", "err", err)
		}
	}()
	a.tracker, err = vet.Open(ctx, vet.Config{Dir: a.cfg.Dir, Driver: driver, Images: images, Plugs: a.networks, NameServers: nameServers(a.cfg), Changed: a.changed, Said: a.said, Peer: a.peer, Leases: a.rights(), Checkpoints: newest{a}, Seeds: seeds{images}, Log: a.cfg.Log})
	if err != nil {
		return err
	}
	if err := a.guardAdopted(ctx); err != nil {
		return err
	}
	if err := a.openCompany(); err != nil {
		return err
	}
	if err := a.openVEs(); err != nil {
		return err
	}
	source := a.measures(wire.NewClient(toSite))
	if err := a.networks.Sweep(a.tracker.Here()); err != nil {
		a.cfg.Log.Warn("TAP devices of VEEs that are gone", "err", err)
	}

	ln, err := net.Listen("tcp", a.cfg.Listen)
	if err != nil {
		return fault.New(fault.Unavailable, "listen on %s: %w", a.cfg.Listen, err).Try("choose another address: reservoir host --listen HOST:PORT, or see who has it: ss -ltnp")
	}
	api := httpapi.NewServer("Reservoir VHI of host "+a.cfg.Name, a.cfg.Version, a.cfg.Log)
	vhi.RegisterHost(api, a)
	peer.Register(api, a.tracker)
	peer.RegisterWitness(api, a)
	peer.RegisterTrackers(api, a.ves)
	peer.RegisterGossip(api, a.company.others.Accept)
	peer.RegisterRelief(api, neighbourly{a.company.relief, a})
	lend(api, images)
	a.exportTo(api, source)
	a.letIn()
	auth := &identity.Authenticator{Site: a.keys.Site(), Trust: a.trust}
	server := &httpapi.Listener{Handler: api.Handler(auth.Caller), TLS: a.keys.MeetingTLS(a.trust), Log: a.cfg.Log}

	if err := footprint.Trim(); err != nil { // of what it took to come so far
		a.cfg.Log.Debug("this process stays larger than it need be", "err", err)
	}
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	var wg sync.WaitGroup
	for _, f := range []func(context.Context) error{
		a.tracker.Run,
		func(ctx context.Context) error { a.renewer.run(ctx); return nil },
		func(ctx context.Context) error { a.measuring.Load().Run(ctx); return nil },
		source.Run,
		a.company.run,
		a.ves.Run,
		func(ctx context.Context) error { return server.Serve(ctx, ln) },
		func(ctx context.Context) error {
			a.keys.KeepFresh(ctx, a.cfg.Log, func(ctx context.Context, csr []byte) (chain, bundle []byte, err error) {
				r, err := manager.RenewCertificate(ctx, csr)
				return r.Certificate, r.Bundle, err
			})
			return nil
		},
		func(ctx context.Context) error { a.collect(ctx, images); return nil },
		func(ctx context.Context) error { a.networks.mend(ctx); return nil },
		func(ctx context.Context) error { a.keepLeases(ctx); return nil },
		a.awaitOff,
	} {
		wg.Add(1)
		go func() {
			defer wg.Done()
			if err := f(ctx); err != nil {
				stop(err)
			}
		}()
	}
	a.cfg.Log.Info("host is up", "host", a.cfg.Name, "site", a.keys.Site(), "listen", ln.Addr().String(),
		"driver", caps.Driver, "accelerator", caps.Accelerator, "why", caps.Why, "capacity", a.capacity)
	wg.Wait()
	switch err := context.Cause(ctx); {
	case errors.Is(err, errOff):
		return a.powerOff(context.WithoutCancel(ctx))
	case !errors.Is(err, context.Canceled):
		return err
	}
	return nil
}

// exportTo api what this process says of itself, for the site, which passes it on.
func (a *agent) exportTo(api *httpapi.Server, source *monitor.Source) {
	x := export.New("host", a.cfg.Version)
	x.Gauge("reservoir_host_vees", "VEEs that are assigned to this host.", nil, func() float64 { return float64(len(a.tracker.Here())) })
	x.Gauge("reservoir_host_probes", "Probes that this host has.", nil, func() float64 { return float64(len(source.Probes())) })
	x.Counters("reservoir_host_values_total", "Values that its probes have collected, and those that were sent.", "what", func() map[string]float64 {
		n := map[string]float64{}
		for _, p := range source.Probes() {
			n["collected"] += float64(p.Collected)
			n["sent"] += float64(p.Sent)
		}
		return n
	})
	api.HandleStock(export.Path, x.Handler(identity.SiteRole))
}

// Images that no VEE needs are dropped now and then; keepFree of the disk is left for what
// guests write.
const (
	collectEvery = 10 * time.Minute
	keepFree     = 64 * vee.MiB
)

func (a *agent) collect(ctx context.Context, images *image.Cache) {
	tick := time.NewTicker(collectEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		freed, err := images.Collect(ctx)
		if err != nil {
			a.cfg.Log.Warn("collect unused images", "err", err)
		} else if freed > 0 {
			a.cfg.Log.Info("dropped unused images", "freed", freed)
		}
	}
}

// Assign implements vhi.Host.
func (a *agent) Assign(ctx context.Context, as vhi.Assignment) (vhi.Report, error) {
	if g := cmp.Or(as.Generation, as.Epoch.Generation); g < a.generation.Load() {
		return vhi.Report{}, fault.New(fault.StaleEpoch, "VEE %s: generation %d is older than %d, which this host has seen", as.VEE, g, a.generation.Load())
	}
	if err := a.reserved(as); err != nil {
		return vhi.Report{}, err
	}
	r, err := a.tracker.Assign(ctx, as)
	if err == nil && as.Move != nil && as.Move.Origin != nil {
		a.letIn()
	}
	return r, err
}

// PutSegment implements vhi.Host.
func (a *agent) PutSegment(_ context.Context, s plan.Segment) error { return a.networks.put(s) }

// RemoveSegment implements vhi.Host.
func (a *agent) RemoveSegment(_ context.Context, id string) error { return a.networks.remove(id) }

// NetworkPlan implements vhi.Host.
func (a *agent) NetworkPlan(_ context.Context, id string) (vhi.NetworkPlan, error) {
	return a.networks.show(id, a.cfg.Underlay, a.cfg.Bridge)
}

// Report implements vhi.Host.
func (a *agent) Report(context.Context) (vhi.HostReport, error) { return a.report(), nil }

// Console implements vhi.Host.
func (a *agent) Console(ctx context.Context, id vee.ID) (io.ReadWriteCloser, error) {
	return a.tracker.Console(ctx, id)
}

// Tell implements vhi.Host.
func (a *agent) Tell(ctx context.Context, id vee.ID, c guest.Command) (guest.Reply, error) {
	return a.tracker.Tell(ctx, id, c)
}

// peer is the client of a move's destination: of the host with that name, and nobody else
// who answers at its address.
func (a *agent) peer(m vhi.Move) peer.Host {
	if m.Door != nil {
		return peer.NewClient(a.throughDoor(*m.Door))
	}
	return peer.NewClient(a.toPeer(m.To, m.Address))
}

func (a *agent) toPeer(host, address string) *httpapi.Client {
	a.peersMu.Lock()
	defer a.peersMu.Unlock()
	if c := a.peers[host+" "+address]; c != nil {
		return c
	}
	t := &http.Transport{ForceAttemptHTTP2: true, IdleConnTimeout: time.Minute, DialContext: (&net.Dialer{Timeout: 10 * time.Second}).DialContext}
	id, err := identity.HostID(a.keys.Site(), host)
	if err != nil {
		t.DialTLSContext = func(context.Context, string, string) (net.Conn, error) { return nil, err }
	} else {
		t.TLSClientConfig = a.keys.ClientTLS(id)
	}
	c := &httpapi.Client{Base: "https://" + address, HTTP: &http.Client{Transport: t}}
	a.peers[host+" "+address] = c
	return c
}

func (a *agent) report() vhi.HostReport {
	free, err := lrt.DiskFree(a.cfg.Dir)
	if err != nil {
		a.cfg.Log.Warn("free disk space", "err", err)
	}
	return vhi.HostReport{
		Host: a.cfg.Name, Incarnation: a.incarnation, Seq: a.seq.Add(1), Address: a.cfg.Advertise, Version: a.cfg.Version,
		Capacity: a.capacity, DiskFree: free, Drivers: []vhi.DriverInfo{a.info}, CPUs: a.cpus, Price: a.cfg.Price,
		VEEs: a.lastCheckpoints(a.tracker.Reports()), Generation: a.generation.Load(), Segments: a.networks.versions(), Underlay: a.cfg.Underlay, Lease: a.leaseStatus(), Peering: a.peering(),
	}
}

// renewal is the report, and what the host asks the site to vouch for.
func (a *agent) renewal(ctx context.Context) vhi.Renewal {
	r := vhi.Renewal{Report: a.report()}
	if a.leases != nil {
		r.Lease = a.leases.Renewal(ctx)
	}
	return r
}

// heed remembers the newest generation, since assignments of an older one come from a
// control plane that was restored past, and takes what the site vouches for.
func (a *agent) heed(ctx context.Context, r vhi.RenewalReply) (again bool) {
	a.moved(r.Members)
	if r.Generation > a.generation.Load() {
		if err := writeGeneration(a.cfg.Dir, r.Generation); err != nil {
			a.cfg.Log.Error("keep the site's generation", "err", err)
			return false
		}
		a.generation.Store(r.Generation)
	}
	a.hear(r.Company)
	if a.leases == nil || r.Lease == nil {
		return false
	}
	again, err := a.leases.Heed(ctx, *r.Lease)
	if err != nil {
		a.cfg.Log.Error("this host's lease is not renewed", "err", err)
	}
	return again
}

// lockDir keeps a second agent off the directory.
func lockDir(dir string) (unlock func(), err error) {
	if err := os.MkdirAll(dir, 0o711); err != nil {
		return nil, fmt.Errorf("make the host's directory: %w", err)
	}
	f, err := durable.Lock(filepath.Join(dir, "lock"))
	if errors.Is(err, durable.ErrLocked) {
		return nil, fault.New(fault.InUse, "directory %s: another agent works on it", dir).Try("stop the other process, or give this one a directory of its own: reservoir host --dir")
	}
	if err != nil {
		return nil, fmt.Errorf("lock the host's directory: %w", err)
	}
	return func() { f.Close() }, nil
}
