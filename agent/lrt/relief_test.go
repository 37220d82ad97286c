package lrt

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/reservoir-cloud/reservoir/agent/vet"
	"github.com/reservoir-cloud/reservoir/dvms"
	"github.com/reservoir-cloud/reservoir/hypervisor"
	"github.com/reservoir-cloud/reservoir/hypervisor/sim"
	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/internal/identity"
	"github.com/reservoir-cloud/reservoir/van/plan"
	"github.com/reservoir-cloud/reservoir/vee"
	"github.com/reservoir-cloud/reservoir/vhi"
	"github.com/reservoir-cloud/reservoir/vhi/peer"
)

// world of hosts: each with the real shells (vet, lrt) over a simulated hypervisor, and what
// they say to each other may be lost. Nobody else is there: no site.
type world struct {
	t     *testing.T
	hosts map[string]*station
	names []string
	loads map[vee.ID]int64 // CPU that a VEE takes, in thousandths, wherever it is

	mu   sync.Mutex
	dice *rand.Rand
	loss float64
	cut  map[string]bool // off the network
}

type station struct {
	w      *world
	name   string
	dir    string
	driver *sim.Driver
	guests *vet.Tracker
	relief *Reliever
	stop   func()

	mu     sync.Mutex
	up     bool
	calls  sync.WaitGroup // of others, under way
	closed string
	handed []string
}

func newWorld(t *testing.T, seed uint64, names ...string) *world {
	w := &world{t: t, hosts: map[string]*station{}, names: names, loads: map[vee.ID]int64{}, dice: rand.New(rand.NewPCG(seed, 8)), cut: map[string]bool{}}
	for _, n := range names {
		w.hosts[n] = &station{w: w, name: n, dir: t.TempDir()}
		w.hosts[n].start()
	}
	return w
}

func (w *world) stop() {
	for _, s := range w.hosts {
		s.stop()
	}
}

// others as the membership would know them; nothing is known of distances.
func (w *world) others() (all dvms.Nearest) {
	for _, n := range w.names {
		all = append(all, dvms.Place{Node: n, Unknown: true})
	}
	return all
}

// lost tells whether a message between two hosts is.
func (w *world) lost(a, b string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return a != b && (w.cut[a] || w.cut[b] || w.dice.Float64() < w.loss)
}

// protocol with times for a world in which nothing takes long.
var protocol = dvms.DefaultProtocol(true)

func (s *station) start() {
	s.w.t.Helper()
	quiet := slog.New(slog.NewTextHandler(io.Discard, nil))
	var err error
	s.driver, err = sim.New(sim.Config{Dir: s.dir + "/sim", Latency: func(sim.Op, vee.ID) time.Duration { return 100 * time.Millisecond }})
	must(s.w.t, err)
	s.guests, err = vet.Open(s.w.t.Context(), vet.Config{Dir: s.dir, Driver: s.driver, Images: none{}, Plugs: none{}, Changed: func() {}, Log: quiet,
		Peer: func(m vhi.Move) peer.Host { return wire{s, s.w.hosts[m.To]} }})
	must(s.w.t, err)
	s.relief, err = Open(Config{Dir: s.dir, Host: s.name, Protocol: protocol, Every: 5 * time.Second, Guests: s.guests, Log: quiet, Changed: func() {},
		CPUUse: func(_ context.Context, id vee.ID) (time.Duration, error) {
			o, err := s.driver.Inspect(s.w.t.Context(), id)
			if err != nil || o.Condition != hypervisor.Running {
				return 0, errors.New("it does not run")
			}
			s.w.mu.Lock()
			defer s.w.mu.Unlock()
			return time.Duration(int64(time.Since(o.Since)) / 1000 * s.w.loads[id]), nil
		},
		Self: func() peer.Load {
			s.mu.Lock()
			defer s.mu.Unlock()
			return peer.Load{Driver: "sim", CPUs: 2, Capacity: vee.Resources{MilliCPU: 8000, Memory: vee.GiB, Disk: vee.GiB}, Closed: s.closed}
		},
		Overlay: func() dvms.Overlay { return s.w.others() },
		Peer:    func(host string) (peer.Relief, error) { return wire{s, s.w.hosts[host]}, nil },
		Whereabouts: func(host string) (string, netip.Addr, bool) {
			return host + ":1", netip.MustParseAddr("192.0.2.1"), true
		},
		Segments: func(vee.ID) []plan.Segment { return nil }, Wire: func([]plan.Segment) error { return nil },
		Handed: func(_ context.Context, id vee.ID, to string) {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.handed = append(s.handed, string(id)+" to "+to)
		},
	})
	must(s.w.t, err)
	must(s.w.t, s.relief.Company(vhi.Company{Relief: policy}))
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { _ = s.guests.Run(ctx) })
	wg.Go(func() { _ = s.relief.Run(ctx) })
	s.mu.Lock()
	s.up = true
	s.mu.Unlock()
	s.stop = func() {
		s.mu.Lock()
		s.up = false
		s.mu.Unlock()
		cancel()
		wg.Wait()
		s.calls.Wait()
		_ = s.driver.Close()
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// none are a host's images and networks.
type none struct{}

func (none) Fetch(context.Context, string, func(vee.Progress)) (hypervisor.LocalImage, error) {
	return hypervisor.LocalImage{}, nil
}
func (none) Plug(context.Context, vee.ID, int) (string, error) { return "", nil }
func (none) Unplug(vee.ID) error                               { return nil }
func (none) Release(vee.ID, netip.Addr) error                  { return nil }
func (none) Announce(vee.ID) error                             { return nil }

// wire between two hosts.
type wire struct{ from, to *station }

func (w wire) call(ctx context.Context, f func(context.Context, *station) error) error {
	gone := fault.New(fault.Unavailable, "connection refused")
	if w.from.w.lost(w.from.name, w.to.name) {
		return gone
	}
	w.to.mu.Lock()
	if !w.to.up {
		w.to.mu.Unlock()
		return gone
	}
	w.to.calls.Add(1)
	w.to.mu.Unlock()
	defer w.to.calls.Done()
	err := f(identity.With(ctx, identity.Caller{Role: identity.HostRole, Host: w.from.name}), w.to)
	if w.from.w.lost(w.from.name, w.to.name) {
		return gone
	}
	return err
}

func (w wire) Open(ctx context.Context, o peer.Offer) error {
	return w.call(ctx, func(ctx context.Context, s *station) error { return s.guests.Open(ctx, o) })
}

func (w wire) Stream(ctx context.Context, move string, id vee.ID, name string) (c io.ReadWriteCloser, err error) {
	err = w.call(ctx, func(ctx context.Context, s *station) error {
		c, err = s.guests.Stream(ctx, move, id, name)
		return err
	})
	return c, err
}

func (w wire) Give(ctx context.Context, g peer.Gift) (a peer.Answer, err error) {
	err = w.call(ctx, func(ctx context.Context, s *station) error {
		a, err = s.guests.Give(ctx, g)
		return err
	})
	return a, err
}

func (w wire) Abandon(ctx context.Context, move string, id vee.ID) error {
	return w.call(ctx, func(ctx context.Context, s *station) error { return s.guests.Abandon(ctx, move, id) })
}

func (w wire) Tell(ctx context.Context, m dvms.Message) error {
	return w.call(ctx, func(ctx context.Context, s *station) error { return s.relief.Tell(ctx, m) })
}

func (w wire) Load(ctx context.Context) (l peer.Load, err error) {
	err = w.call(ctx, func(ctx context.Context, s *station) error {
		l, err = s.relief.Load(ctx)
		return err
	})
	return l, err
}

func (w wire) Relieve(ctx context.Context, q peer.Relieve) (id string, err error) {
	err = w.call(ctx, func(ctx context.Context, s *station) error {
		id, err = s.relief.Relieve(ctx, q)
		return err
	})
	return id, err
}

func (w wire) Moving(ctx context.Context, move string, id vee.ID) (p vhi.MoveReport, err error) {
	err = w.call(ctx, func(ctx context.Context, s *station) error {
		p, err = s.relief.Moving(ctx, move, id)
		return err
	})
	return p, err
}

func (w wire) Expect(ctx context.Context, e peer.Expected) error {
	return w.call(ctx, func(ctx context.Context, s *station) error { return s.relief.Expect(ctx, e) })
}

func (w wire) Moved(context.Context, peer.Moved) error { return nil }

// place a VEE that takes so much on a host, as a site would.
func (w *world) place(host, name string, milli int64) vee.ID {
	w.t.Helper()
	w.mu.Lock()
	id := vee.ID("alpha.aaaaaaaaa" + string(rune('a'+len(w.loads))))
	w.loads[id] = milli
	w.mu.Unlock()
	_, err := w.hosts[host].guests.Assign(w.t.Context(), vhi.Assignment{VEE: id, Epoch: vee.Epoch{Generation: 1, Term: 1}, Seq: 1, Power: vhi.Running,
		Descriptor: vee.Descriptor{Name: name, VCPUs: 1, Memory: 128 * vee.MiB}})
	must(w.t, err)
	return id
}

// running VEEs of a host.
func (s *station) running() (ids []vee.ID) {
	seen, err := s.driver.Observe(s.w.t.Context())
	must(s.w.t, err)
	for _, o := range seen {
		if o.Condition == hypervisor.Running || o.Condition == hypervisor.Paused {
			ids = append(ids, o.ID)
		}
	}
	slices.Sort(ids)
	return ids
}

// load of a host, in thousandths of a CPU.
func (s *station) load() (sum int64) {
	for _, id := range s.running() {
		sum += s.w.loads[id]
	}
	return sum
}

// once: every VEE runs at one host.
func (w *world) once() {
	w.t.Helper()
	at := map[vee.ID]string{}
	for _, n := range w.names {
		for _, id := range w.hosts[n].running() {
			if other, twice := at[id]; twice {
				w.t.Fatalf("VEE %s runs on %s and on %s", id, other, n)
			}
			at[id] = n
		}
	}
	for id := range w.loads {
		if at[id] == "" {
			w.t.Errorf("VEE %s runs nowhere", id)
		}
	}
}

func wait(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

func TestHostsRelieveEachOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 1, "h1", "h2", "h3")
		defer w.stop()
		for i := range 3 {
			w.place("h1", fmt.Sprint("burner", i), 700)
		}
		w.place("h2", "other", 100)
		wait(30 * time.Second)
		if n := len(w.hosts["h1"].running()); n != 3 {
			t.Fatalf("%d on h1 before it has lasted", n)
		}
		wait(2 * time.Minute)
		w.once()
		if got := w.hosts["h1"].load(); got > 1500 {
			t.Errorf("h1 still has %d", got)
		}
		p := w.hosts["h1"].relief.Peering()
		if p.Trouble != "" || p.In != nil || len(p.Past) != 1 || p.Past[0].Helpless || len(p.Past[0].Members) != 2 {
			t.Errorf("h1 says %+v", p)
		}
		if h := w.hosts["h1"].handed; len(h) != 1 {
			t.Errorf("handed over: %v", h)
		}
		wait(10 * time.Minute)
		if p := w.hosts["h1"].relief.Peering(); len(p.Past) != 1 {
			t.Errorf("there was another partition: %+v", p.Past)
		}
	})
}

func TestNobodyHasRoom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 1, "h1", "h2")
		defer w.stop()
		for _, h := range w.names {
			for i := range 3 {
				w.place(h, fmt.Sprint("burner", h, i), 650)
			}
		}
		wait(20 * time.Minute)
		w.once()
		for _, h := range w.names {
			p := w.hosts[h].relief.Peering()
			if n := len(p.Past); n == 0 || n > keepPast || !p.Past[n-1].Helpless || p.Trouble != string(dvms.Overloaded) {
				t.Errorf("%s says %+v", h, p)
			}
			if at := p.Past[len(p.Past)-1].Began; time.Since(at) > 15*time.Minute {
				t.Errorf("%s has given up at %v", h, at)
			}
		}
	})
}

func TestADrainGoesOnWithoutTheSite(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 1, "h1", "h2", "h3")
		defer w.stop()
		w.place("h1", "a", 100)
		w.place("h1", "b", 100)
		must(t, w.hosts["h1"].relief.Company(vhi.Company{Relief: policy, Draining: true}))
		w.hosts["h1"].stop() // what it was told outlives the agent
		w.hosts["h1"].start()
		must(t, w.hosts["h1"].relief.Company(vhi.Company{Relief: policy, Draining: true}))
		wait(20 * time.Second)
		if n := len(w.hosts["h1"].running()); n != 2 {
			t.Fatalf("%d on h1 while the site sees to it", n)
		}
		wait(2 * time.Minute)
		w.once()
		if got := w.hosts["h1"].running(); len(got) != 0 {
			t.Errorf("on h1 there still are %v", got)
		}
	})
}

const arrives = vee.ID("alpha.zzzzzzzzzz")

// A site that is there is not fought with.
func TestWhatTheSiteMovesIsReserved(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 1, "h1", "h2")
		defer w.stop()
		for i := range 3 {
			w.place("h1", fmt.Sprint("burner", i), 700)
		}
		// The site expects something on h2 for a long time.
		_, err := w.hosts["h2"].guests.Assign(t.Context(), vhi.Assignment{VEE: arrives, Epoch: vee.Epoch{Generation: 1, Term: 1}, Seq: 1, Power: vhi.Incoming,
			Descriptor: vee.Descriptor{Name: "arrives", VCPUs: 1, Memory: vee.MiB}, Move: &vhi.Move{ID: "m", From: "h9", To: "h2", Ticket: "x"}})
		must(t, err)
		wait(5 * time.Minute)
		if n := len(w.hosts["h1"].running()); n != 3 {
			t.Fatalf("%d on h1 while the site has h2", n)
		}
		_, err = w.hosts["h2"].guests.Assign(t.Context(), vhi.Assignment{VEE: arrives, Epoch: vee.Epoch{Generation: 1, Term: 1}, Seq: 2, Power: vhi.Absent})
		must(t, err)
		wait(10 * time.Minute)
		w.once()
		if got := w.hosts["h1"].load(); got > 1500 {
			t.Errorf("h1 still has %d", got)
		}
	})
}

func TestWhoMaySay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 1, "h1", "h2")
		defer w.stop()
		id := w.place("h1", "a", 100)
		wait(time.Second)
		ctx := identity.With(t.Context(), identity.Caller{Role: identity.HostRole, Host: "h2"})
		_, err := w.hosts["h1"].relief.Relieve(ctx, peer.Relieve{VEE: id, To: "h2"})
		if !fault.Has(err, fault.Conflict) {
			t.Errorf("a plan that nobody has made: %v", err)
		}
		m := vhi.Move{ID: "m", From: "h3", To: "h1", Ticket: "x", By: "overload of h3"}
		if err := w.hosts["h1"].relief.Expect(ctx, peer.Expected{Assignment: vhi.Assignment{VEE: arrives, Power: vhi.Incoming, Move: &m}}); !fault.Has(err, fault.Denied) {
			t.Errorf("h2 announces what h3 sends: %v", err)
		}
		m.From = "h2"
		if err := w.hosts["h1"].relief.Expect(ctx, peer.Expected{Assignment: vhi.Assignment{VEE: arrives, Power: vhi.Incoming, Move: &m}}); !fault.Has(err, fault.Conflict) {
			t.Errorf("h2 announces without a plan: %v", err)
		}
	})
}

// TestReliefUnderFaults: with messages lost in both directions, hosts cut off and agents killed
// for a while, no VEE ever runs twice; after the faults, what can be relieved is.
func TestReliefUnderFaults(t *testing.T) {
	for seed := range uint64(15) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, seed, "h1", "h2", "h3", "h4")
				defer w.stop()
				for i := range 3 {
					w.place("h1", fmt.Sprint("burner", i), 700)
					w.place("h3", fmt.Sprint("baker", i), 650)
				}
				w.place("h2", "other", 300)
				wait(5 * time.Second)
				dice := rand.New(rand.NewPCG(seed, 9))
				w.mu.Lock()
				w.loss = 0.15
				w.mu.Unlock()
				for range 60 {
					h := w.names[dice.IntN(len(w.names))]
					switch dice.IntN(6) {
					case 0:
						w.mu.Lock()
						w.cut[h] = !w.cut[h]
						w.mu.Unlock()
					case 1:
						w.hosts[h].stop()
						wait(time.Duration(dice.IntN(5000)) * time.Millisecond)
						w.hosts[h].start()
					}
					wait(time.Duration(dice.IntN(6000)) * time.Millisecond)
					w.nowhereTwice()
				}
				w.mu.Lock()
				w.loss, w.cut = 0, map[string]bool{}
				w.mu.Unlock()
				wait(90 * time.Minute)
				w.once()
				for _, n := range w.names {
					if got := w.hosts[n].load(); got > 1800 {
						t.Errorf("%s still has %d: %+v", n, got, w.hosts[n].relief.Peering())
					}
				}
			})
		})
	}
}

// nowhereTwice is once while some may be on their way.
func (w *world) nowhereTwice() {
	w.t.Helper()
	at := map[vee.ID]string{}
	for _, n := range w.names {
		for _, id := range w.hosts[n].running() {
			if other, twice := at[id]; twice {
				w.t.Fatalf("VEE %s runs on %s and on %s", id, other, n)
			}
			at[id] = n
		}
	}
}
