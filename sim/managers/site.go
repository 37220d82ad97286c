// Package managers runs the managers of a site in virtual time: the Service Manager and the
// VEE Manager as they are in a site's process, over a store in memory and hosts that are
// simulated. Nothing in it waits or starts a goroutine; all that happens is an event of
// package sim, so that a run follows from its seed, the managers' own code included.
//
// What makes that possible is that both managers are level-triggered. In a site's process
// goroutines look at what has changed; here their Step does the same when something has
// happened or its time has come. A crash is the end of a step at any write to the store or
// call to a host, before or after it: what was in memory is gone, and managers that are new
// go on from the store and the hosts.
package managers

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"slices"
	"time"

	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/internal/identity"
	"github.com/reservoir-cloud/reservoir/internal/store"
	"github.com/reservoir-cloud/reservoir/placement"
	"github.com/reservoir-cloud/reservoir/sim"
	"github.com/reservoir-cloud/reservoir/sm"
	"github.com/reservoir-cloud/reservoir/smi"
	"github.com/reservoir-cloud/reservoir/van/plan"
	"github.com/reservoir-cloud/reservoir/vee"
	"github.com/reservoir-cloud/reservoir/veem"
	"github.com/reservoir-cloud/reservoir/vhi"
)

// Name of the site.
const Name = "alpha"

// Config of a Site.
type Config struct {
	Sim      *sim.Sim
	Hosts    int
	Capacity vee.Resources // of each
	Guests   Guests        // nil: nothing runs inside
	Times    Times
	// Managers may change what the managers are made with.
	Managers func(*sm.Config, *veem.Config)
	Log      *slog.Logger // nil: nothing is logged
}

// Times that things take; nil: none.
type Times struct {
	Fetch func() time.Duration // of an image, by a host that has not got it
	Boot  func() time.Duration // from then on until a guest says that it serves
	Stop  func() time.Duration // of a guest that nothing runs in any more
}

// Guests are what runs inside VEEs.
type Guests interface {
	// Serves is called when a guest says that it does.
	Serves(g Guest)
	// Stops is called when a guest has been asked to shut down; it calls done when what runs
	// in it has come to an end.
	Stops(g Guest, done func())
	// Gone is called when a guest that served is there no more, however that came.
	Gone(g Guest)
	// Idle reports whether a guest has nothing to do.
	Idle(g Guest) bool
}

// Guest that runs. A VEE that is started again is another one.
type Guest struct {
	VEE        vee.ID
	Name, Host string
	Start      int // of the VEE on this host, from 1
}

// Site that is simulated.
type Site struct {
	cfg    Config
	sim    *sim.Sim
	random io.Reader
	store  *store.Store
	hosts  []*host

	sm     *sm.Manager
	veem   *veem.Manager
	ctx    context.Context // of the managers; done: they have crashed
	stop   context.CancelFunc
	poked  *sim.Event
	next   *sim.Event
	events []smi.Event
	broken []error

	// Chance of a crash, asked at each write and each call to a host.
	chance  func() bool
	outage  func() time.Duration
	Crashes int // so far
}

// reader of random bytes.
type reader struct{ r *rand.Rand }

func (r reader) Read(b []byte) (int, error) {
	for i := range b {
		b[i] = byte(r.r.Uint32())
	}
	return len(b), nil
}

// New site that has begun to work.
func New(cfg Config) (*Site, error) {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	s := &Site{cfg: cfg, sim: cfg.Sim, random: reader{cfg.Sim.Stream("identifiers")}}
	s.store = store.InMemory(cfg.Log, func(bool) error { return s.hazard() })
	if err := s.start(); err != nil {
		return nil, err
	}
	for i := range cfg.Hosts {
		h := newHost(s, fmt.Sprintf("h%d", i+1), i)
		s.hosts = append(s.hosts, h)
		if err := s.veem.HostJoined(s.ctx, h.name); err != nil {
			return nil, err
		}
		h.beat()
	}
	return s, nil
}

// Close what is left of the managers.
func (s *Site) Close() error {
	s.stop()
	return s.store.Close()
}

// start managers on what the store has.
func (s *Site) start() (err error) {
	s.ctx, s.stop = context.WithCancel(context.Background())
	v := veem.Config{
		Site: Name, Store: veem.OnStore(s.store), Dial: func(name, _ string) vhi.Host { return s.host(name) }, Placer: placement.Balance,
		Images: images{}, Balancer: balancer{}, Recorder: recorder{s}, Networks: map[string]veem.Network{network: {Subnet: netip.MustParsePrefix("10.0.0.0/16")}},
		Log: s.cfg.Log, Now: s.sim.Now, Random: s.random, Stepped: true,
	}
	m := sm.Config{Site: Name, Store: s.store, Images: images{}, Events: (*log)(s), Network: network, Now: s.sim.Now, Random: s.random, Log: s.cfg.Log}
	if s.cfg.Managers != nil {
		s.cfg.Managers(&m, &v)
	}
	if s.veem, err = veem.New(s.ctx, v); err != nil {
		return err
	}
	m.VMI = s.veem
	s.sm = sm.New(m)
	s.veem.Attach(s.sm.Identity(), s.sm)
	s.Poke()
	return nil
}

// network of the site that VEEs with a public NIC are on.
const network = "site"

// Manager of services, or nil while the site is down.
func (s *Site) Manager() *sm.Manager { return s.sm }

// Poke the managers: something may have happened.
func (s *Site) Poke() {
	if s.sm == nil || s.poked != nil {
		return
	}
	s.poked = s.sim.After(0, "site steps", func() {
		s.poked = nil
		s.step()
	})
}

// mostTurns of the managers at one moment are taken for a loop without end.
const mostTurns = 10_000

// step lets the managers do what is due, one after the other until neither finds more.
func (s *Site) step() {
	if s.sm == nil {
		return
	}
	if s.next != nil {
		s.next.Cancel()
		s.next = nil
	}
	var next time.Time
	for turns := 0; ; turns++ {
		below := s.veem.Step(s.ctx)
		above, busy, err := s.sm.Step(s.ctx)
		switch {
		case s.ctx.Err() != nil:
			s.down()
			return
		case err != nil:
			s.breaks(fmt.Errorf("step of the Service Manager: %w", err))
			return
		case turns > mostTurns:
			s.breaks(errors.New("the managers do not come to an end while no time passes"))
			return
		case busy:
			continue
		}
		next = below
		if next.IsZero() || !above.IsZero() && above.Before(next) {
			next = above
		}
		break
	}
	if next.IsZero() {
		return
	}
	s.next = s.sim.At(later(next, s.sim.Now()), "site's hour has come", func() {
		s.next = nil
		s.step()
	})
}

// later than now, if only by so much that time passes.
func later(t, now time.Time) time.Time {
	if least := now.Add(time.Millisecond); t.Before(least) {
		return least
	}
	return t
}

// Chances of a crash at each write and each call to a host from now on, after which the site
// is started again when the outage is over; nil: none.
func (s *Site) Chances(crash func() bool, outage func() time.Duration) {
	s.chance, s.outage = crash, outage
}

// Crash the managers, as a loss of their machine's power would, until the outage is over.
func (s *Site) Crash(outage time.Duration) {
	s.outage = func() time.Duration { return outage }
	s.stop()
	s.down()
}

// hazard at a write or a call. After a crash nothing is done any more.
func (s *Site) hazard() error {
	if s.ctx.Err() == nil && s.chance != nil && s.chance() {
		s.stop()
	}
	if s.ctx.Err() != nil {
		return fault.New(fault.Unavailable, "the site has crashed")
	}
	return nil
}

// down is the site until its outage is over.
func (s *Site) down() {
	if s.sm == nil {
		return
	}
	s.sm, s.veem = nil, nil
	s.Crashes++
	if s.next != nil {
		s.next.Cancel()
		s.next = nil
	}
	s.sim.After(s.outage(), "site starts again", s.again)
}

func (s *Site) again() {
	for range 100 {
		if err := s.start(); err == nil {
			return
		} else if s.ctx.Err() == nil {
			s.breaks(fmt.Errorf("start again: %w", err))
			return
		} // it crashed while it started
		s.sm, s.veem = nil, nil
		s.Crashes++
	}
	s.breaks(errors.New("the site crashes whenever it starts"))
}

func (s *Site) breaks(err error) {
	s.broken = append(s.broken, fmt.Errorf("%s: %w", s.sim.Now().Format(time.TimeOnly), err))
}

// Err is what must never happen and did.
func (s *Site) Err() error { return errors.Join(s.broken...) }

// Events of the service manager and the VEE Manager so far.
func (s *Site) Events() []smi.Event { return s.events }

// As a customer, for calls of the Service Manager; Poke after each.
func (s *Site) As(customer string) context.Context {
	return identity.With(s.ctx, identity.Caller{ID: customer, Role: identity.Provider, Customer: customer})
}

func (s *Site) host(name string) *host {
	return s.hosts[slices.IndexFunc(s.hosts, func(h *host) bool { return h.name == name })]
}

// Running is how many guests of a component serve, on all hosts, and how many take room
// there beside them: they are being prepared, boot, or stop. Empty: of all components.
func (s *Site) Running(component string) (serving, others int) {
	for _, h := range s.hosts {
		for _, g := range h.guests {
			if component != "" && !slices.Contains(g.want.Descriptor.Tags, component) {
				continue
			}
			switch {
			case g.power == vhi.Running && g.ready:
				serving++
			case g.power == vhi.Running || g.want.Power == vhi.Running:
				others++
			}
		}
	}
	return serving, others
}

// images: every reference is one of a GiB.
type images struct{}

func (images) Resolve(_ context.Context, reference string) (string, vee.Bytes, error) {
	sum := sha256.Sum256([]byte(reference))
	return "sha256:" + hex.EncodeToString(sum[:]), vee.GiB, nil
}

func (images) VirtualSize(context.Context, string) (vee.Bytes, error) { return vee.GiB, nil }

// balancer of connections that nobody opens.
type balancer struct{}

func (balancer) Set(_ context.Context, p plan.Point) (string, error) {
	return "192.0.2.1:" + fmt.Sprint(p.Port), nil
}
func (balancer) Remove(string) error                           { return nil }
func (balancer) Show(...string) map[string][]plan.BackendState { return nil }
func (balancer) Sweep() error                                  { return nil }

// log of events.
type log Site

func (l *log) Record(e smi.Event) {
	e.At, e.Seq = l.sim.Now(), uint64(len(l.events)+1)
	l.events = append(l.events, e)
}
func (l *log) List(smi.EventFilter) []smi.Event { return l.events }
func (l *log) Watch(context.Context, smi.EventFilter) <-chan smi.Event {
	closed := make(chan smi.Event)
	close(closed)
	return closed
}

// recorder of the VEE Manager's events.
type recorder struct{ s *Site }

func (r recorder) Record(e veem.Event) {
	kind := "normal"
	if e.Warning {
		kind = "warning"
	}
	(*log)(r.s).Record(smi.Event{Type: kind, Reason: e.Reason, Object: e.Object, Customer: e.Customer, Message: e.Message})
}
