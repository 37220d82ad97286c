// Package veem is the VEE Manager of a site: it implements the VMI (vmi.Service), places
// VEEs on hosts, tells the hosts over the VHI what to run, and keeps what it asked for and
// what it saw in the site's record of truth. It knows VEEs, hosts and access points; no
// service, no component, no manifest.
//
// How it works, from the inside out:
//
//   - decide.go is the pure core: a VEE's record and what its host says of it in, the record
//     as it should be and the one thing to do out.
//   - ledger.go holds all records in memory as they are in the store. Changes are functions
//     that run one after the other; those that wait together are written together.
//   - hosts.go holds what hosts say. It is never written: renewals cost the store nothing.
//   - reconcile.go wakes the VEEs whose record, host or hour has come, and does what the
//     core says. It is level-triggered: nothing depends on an event being seen.
//
// Lock order: a function that runs in the ledger may take hosts.mu; nobody who holds
// hosts.mu waits for the ledger.
package veem

import (
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/ownership"
	"github.com/reservoir-cloud/reservoir/placement"
	"github.com/reservoir-cloud/reservoir/placement/overbook"
	"github.com/reservoir-cloud/reservoir/van/plan"
	"github.com/reservoir-cloud/reservoir/vee"
	"github.com/reservoir-cloud/reservoir/vhi"
	"github.com/reservoir-cloud/reservoir/vmi"
)

// Placer decides where VEEs go; placement.Policy is one. It is called with every host of
// the site, does no I/O and returns a choice for each request.
type Placer interface {
	Place(hosts []placement.Host, requests []placement.Request, rules []placement.Rule) []placement.Choice
}

// Images tells of the site's images.
type Images interface {
	// VirtualSize of the image with this manifest digest: 0 for one without a disk;
	// fault.NotFound.
	VirtualSize(ctx context.Context, digest string) (vee.Bytes, error)
}

// Balancer spreads the connections of access points over backends.
type Balancer interface {
	// Set makes or changes an access point; the answer is the address that it has. It does
	// not block for long.
	Set(ctx context.Context, p plan.Point) (string, error)
	// Remove of one that is not there does nothing.
	Remove(key string) error
	// Show what is known of the backends of access points, by key.
	Show(keys ...string) map[string][]plan.BackendState
	// Sweep removes what an earlier process left of access points that are no more.
	Sweep() error
}

// Event is something that happened, for people.
type Event struct {
	Warning  bool
	Reason   string // one CamelCase word: "Placed"
	Object   string // "vee/alpha.k3…", "host/h1"
	Customer string
	GroupID  string
	Message  string
}

// Recorder keeps events. Record does not block.
type Recorder interface{ Record(Event) }

// Network that NICs may name.
type Network struct {
	Subnet  netip.Prefix // VEEs get addresses of it
	Gateway netip.Addr   // of the VEEs; never given to one. Zero: none
	// First and Last bound the addresses that VEEs get; zero: the whole subnet.
	First, Last netip.Addr
}

// Timing of a manager; zero fields get the defaults. A test or --ha-scale divides them all.
type Timing struct {
	Hold          time.Duration // a TWOPHASE reservation without a wish of its own: 10 min
	KeepDestroyed time.Duration // the record of a destroyed VEE: 1 h
	KeepReceipts  time.Duration // what an Idempotency-Key remembers: 24 h
	HostLost      time.Duration // without a renewal: 15 s
	Call          time.Duration // one call to a host: 10 s
	Grace         time.Duration // for a guest to shut down by itself: 30 s
	Retry         time.Duration // first pause after a failure, doubled up to 64 times itself: 200 ms
	Look          time.Duration // until a plan, or a host that is to be left, is looked at again at the latest: 15 s
	Rest          time.Duration // that a VEE has from a policy after it has moved: 10 min
}

func (t Timing) withDefaults() Timing {
	for _, d := range []struct {
		field *time.Duration
		value time.Duration
	}{
		{&t.Hold, 10 * time.Minute}, {&t.KeepDestroyed, time.Hour}, {&t.KeepReceipts, 24 * time.Hour},
		{&t.HostLost, 15 * time.Second}, {&t.Call, 10 * time.Second}, {&t.Grace, 30 * time.Second}, {&t.Retry, 200 * time.Millisecond},
		{&t.Look, 15 * time.Second}, {&t.Rest, 10 * time.Minute},
	} {
		if *d.field == 0 {
			*d.field = d.value
		}
	}
	return t
}

// Config of a Manager. Fields without a word about their zero value are needed.
type Config struct {
	Site string
	// Store has one manager that runs on it; OnStore(s) for the site's own.
	Store Records
	// Dial returns the client of a host; it does not connect.
	Dial     func(name, address string) vhi.Host
	Placer   Placer
	Images   Images
	Balancer Balancer
	Recorder Recorder
	Networks map[string]Network
	// VANs is the pool that networks of groups get their IPv4 subnets from; zero:
	// 10.128.0.0/9. What of it is in Networks is left out.
	VANs netip.Prefix
	// RawDrivers lists the drivers that descriptors may hand raw data to; nil: none.
	RawDrivers []string
	// Listener makes the client of a URL that accounting information may be sent to, without
	// connecting; an error for any other URL. nil: none may.
	Listener    func(url string) (vmi.AccountingListener, error)
	Rebalancing Rebalancing
	// Partnership with other sites; nil: there is none.
	Partnership Partnership
	// Partnering is when VEEs go to partners that do not say so themselves; empty: overflow.
	Partnering vee.Partnering
	// Partnerings that VEEs may choose themselves; nil: all.
	Partnerings []vee.Partnering
	// Import an image of a partner's VEE from its own site: nil when it is here; else it is
	// begun, where it is not under way, and Unavailable says how far it is. It does not wait
	// for long. nil: what is not here is refused.
	Import  func(ctx context.Context, site, digest string) error
	Country string // of the site, ISO 3166; empty: not said
	// Jurisdiction of the site, as it names it; empty: not said.
	Jurisdiction string
	// Forward opens a door for access points, and says where it is; it does not wait for long.
	// nil: they serve from the site's public networks alone.
	Forward func(d Door) (netip.AddrPort, error)
	// Border is the underlay address of the site's VAN proxy; nil, or the zero address: it has
	// none now.
	Border func() netip.Addr
	// Rewired is called when what Manager.Border answers may have changed. It does not block.
	// nil: nobody asks.
	Rewired func()
	// Crossing of the border by VEEs that run; nil: none does.
	Crossing Crossing
	// Fencer switches hosts off that do not answer; nil: nobody does.
	Fencer Fencer
	// Booking says what of a host's CPU may be promised; nil: what the host declares. It is
	// called amid changes, and does not wait for anything.
	Booking func(overbook.Machine) (milliCPU int64)
	Timing  Timing
	// Relief is how hosts relieve each other; zero: they do not.
	Relief vhi.Relief
	// Ownership is how long hosts may run VEEs without being vouched for, and the like; zero:
	// ownership.DefaultTimings.
	Ownership ownership.Timings
	// Boottime is this machine's CLOCK_BOOTTIME; nil: since the manager was made.
	Boottime func() time.Duration
	Log      *slog.Logger
	Now      func() time.Time // nil: time.Now
	Random   io.Reader        // nil: crypto/rand
	// Stepped: the manager is not Run; it works while Step is called, and what waits for
	// hosts elsewhere does not wait. It is for simulations.
	Stepped bool
}

// Manager is a site's VEE Manager. It implements vmi.Service and the renewals of
// vhi.Manager. Everything that changes something waits for Run to be running.
type Manager struct {
	cfg       Config
	ledger    *ledger
	hosts     hosts
	queue     *queue
	hub       hub
	access    access
	elsewhere elsewhere
	events    eventHub
	// accountant sends out what VEEs have used.
	accountant    accountant
	reconfiguring reconfiguring
	owners        *owners

	start time.Time
	gen   uint64
	asked chan struct{} // closed when every host has been asked once

	randomMu sync.Mutex // cfg.Random may not be safe for concurrent use
}

// New reads what the store has.
func New(ctx context.Context, cfg Config) (*Manager, error) {
	if !vee.ValidName(cfg.Site) {
		return nil, fmt.Errorf("site name %q: want a DNS label such as \"alpha\"", cfg.Site)
	}
	for name, n := range cfg.Networks {
		if err := n.check(); err != nil {
			return nil, fmt.Errorf("network %q: %w", name, err)
		}
	}
	if !cfg.VANs.IsValid() {
		cfg.VANs = netip.MustParsePrefix("10.128.0.0/9")
	}
	if !cfg.VANs.Addr().Is4() || cfg.VANs.Bits() > subnetBits {
		return nil, fmt.Errorf("pool of subnets %v: want an IPv4 prefix of at most /%d", cfg.VANs, subnetBits)
	}
	cfg.Timing = cfg.Timing.withDefaults()
	cfg.Rebalancing = cfg.Rebalancing.withDefaults()
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Random == nil {
		cfg.Random = rand.Reader
	}
	m := &Manager{cfg: cfg, gen: cfg.Store.Generation(), start: cfg.Now(), asked: make(chan struct{})}
	m.queue = newQueue(m.reconcile, cfg.Timing.Retry, cfg.Now, cfg.Stepped)
	m.hosts.known = map[string]*hostView{}
	m.hub.watchers, m.hub.closed = map[*watcher]struct{}{}, make(chan struct{})
	m.access.set = map[string]string{}
	m.events.readers = map[*eventReader]struct{}{}
	m.accountant = newAccountant()
	if cfg.Ownership == (ownership.Timings{}) {
		cfg.Ownership = ownership.DefaultTimings()
	}
	if err := cfg.Ownership.Check(); err != nil {
		return nil, err
	}
	if cfg.Boottime == nil {
		cfg.Boottime = func() time.Duration { return cfg.Now().Sub(m.start) }
	}
	m.cfg = cfg
	m.owners = newOwners(cfg.Ownership, cfg.Boottime)
	m.reconfiguring.planned = m.start
	m.ledger = newLedger(cfg.Store, m.gen, cfg.Now, cfg.Log, m.changed, cfg.Stepped)
	if err := m.ledger.load(ctx); err != nil {
		return nil, fmt.Errorf("read the VEE Manager's records: %w", err)
	}
	return m, nil
}

// Run works until ctx is done and returns when everything that it started has ended. VEEs
// and access points stay as they are.
func (m *Manager) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	wg.Go(func() { m.ledger.run(ctx) })
	m.takeOver(ctx) // before anything is decided about who runs what
	wg.Go(func() { m.askAll(ctx) })
	wg.Go(func() { m.account(ctx) })
	m.wakeAll()
	m.queue.run(ctx)
	m.hub.close()
	wg.Wait()
	return nil
}

// askAll hosts what they have and run, instead of waiting for their renewals. What places
// VEEs waits for this, but not for long.
func (m *Manager) askAll(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, m.cfg.Timing.Call/5)
	defer cancel()
	defer close(m.asked)
	var names []string
	m.ledger.read(func(s *state) { names = slices.Sorted(maps.Keys(s.hosts.rows)) })
	m.each(len(names), func(i int) { m.ask(ctx, names[i]) })
}

// ready waits until the hosts have been asked.
func (m *Manager) ready(ctx context.Context) error {
	if m.cfg.Stepped {
		m.begin(ctx)
	}
	select {
	case <-m.asked:
		return nil
	case <-ctx.Done():
		return fault.New(fault.Timeout, "the site's VEE Manager has only just started: %w", ctx.Err())
	}
}

// wakeAll looks at everything once: what a manager does that has just started.
func (m *Manager) wakeAll() {
	m.ledger.read(func(s *state) {
		for name := range s.hosts.rows {
			m.queue.add(job{hostJob, name}, controlLane(name))
		}
		for id, r := range s.vees.rows {
			m.queue.add(job{veeJob, id}, hostLane(r.Host))
		}
		for key := range s.points.rows {
			m.queue.add(job{pointJob, key}, accessLane)
		}
		for key := range s.networks.rows {
			m.queue.add(job{networkJob, key}, placeLane)
		}
		for key := range s.switches.rows {
			m.queue.add(job{switchJob, key}, placeLane)
		}
	})
	m.queue.add(job{placeJob, ""}, placeLane)
	m.queue.add(job{sweepJob, ""}, sweepLane)
	m.queue.add(job{planJob, ""}, planLane)
	m.queue.add(job{leaseJob, ""}, leaseLane)
	m.queue.add(job{noticeJob, ""}, noticeLane)
	m.queue.add(job{reserveJob, ""}, noticeLane)
}
