package vet

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/reservoir-cloud/reservoir/hypervisor"
	"github.com/reservoir-cloud/reservoir/hypervisor/sim"
	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/internal/identity"
	"github.com/reservoir-cloud/reservoir/vee"
	"github.com/reservoir-cloud/reservoir/vhi"
	"github.com/reservoir-cloud/reservoir/vhi/peer"
)

// machine is a host with simulated guests. Its agent can be killed and started again.
type machine struct {
	t    *testing.T
	name string
	dir  string
	net  map[string]*machine
	cut  func(call string) error // consulted before and after each call of a peer
	hit  chan struct{}           // the command of its driver that is hard has begun

	mu    sync.Mutex
	tr    *Tracker
	up    bool
	calls sync.WaitGroup // of other hosts, under way
	slow  sim.Op         // the one that is hard: it takes a second
	fault error          // what that ends with

	d      *sim.Driver
	bridge *host
	stop   func()
}

func (m *machine) start() {
	m.t.Helper()
	d, err := sim.New(sim.Config{Dir: m.dir + "/sim",
		Latency: func(op sim.Op, _ vee.ID) time.Duration {
			if slow, _ := m.trouble(); op != slow {
				return 0
			}
			select {
			case m.hit <- struct{}{}:
			default:
			}
			return time.Second
		},
		Fault: func(op sim.Op, _ vee.ID) error {
			if slow, err := m.trouble(); op == slow {
				return err
			}
			return nil
		}})
	if err != nil {
		m.t.Fatal(err)
	}
	m.d = d
	h := newHost() // its images and bridge
	if m.bridge == nil {
		m.bridge = h
	}
	h = m.bridge
	tr, err := Open(m.t.Context(), Config{Dir: m.dir, Driver: d, Images: h, Plugs: h, Changed: func() {},
		Peer: func(mv vhi.Move) peer.Host { return wire{from: m, to: m.net[mv.To]} }, Log: slog.New(slog.NewTextHandler(io.Discard, nil))})
	if err != nil {
		m.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	m.mu.Lock()
	m.tr, m.up = tr, true
	m.mu.Unlock()
	go func() { defer close(done); _ = tr.Run(ctx) }()
	m.stop = func() {
		m.mu.Lock()
		m.up = false
		m.mu.Unlock()
		cancel()
		<-done
		m.calls.Wait() // an agent that is dead writes nothing
		_ = d.Close()
	}
}

// answer has the agent that answers now, if there is one, do what another host asks.
func (m *machine) answer(do func(*Tracker) error) error {
	m.mu.Lock()
	if !m.up {
		m.mu.Unlock()
		return errors.New("connection refused")
	}
	m.calls.Add(1)
	defer m.calls.Done()
	tr := m.tr
	m.mu.Unlock()
	return do(tr)
}

func (m *machine) trouble() (sim.Op, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.slow, m.fault
}

// hard makes a command of its driver take a second and end with err.
func (m *machine) hard(op sim.Op, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.slow, m.fault = op, err
}

func (m *machine) restart() { m.stop(); m.start() }

func (m *machine) condition() hypervisor.Condition {
	o, err := m.d.Inspect(m.t.Context(), web)
	if err != nil {
		return hypervisor.Absent
	}
	return o.Condition
}

// wire is what lies between two hosts.
type wire struct{ from, to *machine }

func (w wire) call(ctx context.Context, what string, f func(context.Context, *Tracker) error) error {
	if err := w.from.cut("before " + what); err != nil {
		return err
	}
	ctx = identity.With(ctx, identity.Caller{Role: identity.HostRole, Host: w.from.name})
	err := w.to.answer(func(tr *Tracker) error { return f(ctx, tr) })
	if lost := w.from.cut("after " + what); lost != nil {
		return lost
	}
	return err
}

func (w wire) Open(ctx context.Context, o peer.Offer) error {
	return w.call(ctx, "open", func(ctx context.Context, tr *Tracker) error { return tr.Open(ctx, o) })
}

func (w wire) Stream(ctx context.Context, move string, id vee.ID, name string) (c io.ReadWriteCloser, err error) {
	err = w.call(ctx, "stream", func(ctx context.Context, tr *Tracker) error {
		c, err = tr.Stream(ctx, move, id, name)
		return err
	})
	return c, err
}

func (w wire) Give(ctx context.Context, g peer.Gift) (a peer.Answer, err error) {
	err = w.call(ctx, "give", func(ctx context.Context, tr *Tracker) error {
		a, err = tr.Give(ctx, g)
		return err
	})
	return a, err
}

func (w wire) Abandon(ctx context.Context, move string, id vee.ID) error {
	return w.call(ctx, "abandon", func(ctx context.Context, tr *Tracker) error { return tr.Abandon(ctx, move, id) })
}

func mover(seq uint64, p vhi.Power) vhi.Assignment {
	a := assignment(seq, p)
	a.Descriptor = vee.Descriptor{Name: "web-1", VCPUs: 1, Memory: 64 * vee.MiB, NICs: []vee.NIC{{Network: "n", MAC: "52:54:00:00:00:01"}}}
	return a
}

var theMove = vhi.Move{ID: "m1", From: "a", To: "b", Ticket: "secret"}

// twoHosts with a VEE that runs on a and is expected on b.
func twoHosts(t *testing.T) (a, b *machine) {
	t.Helper()
	net := map[string]*machine{}
	for _, name := range []string{"a", "b"} {
		net[name] = &machine{t: t, name: name, dir: t.TempDir(), net: net, cut: func(string) error { return nil }, hit: make(chan struct{}, 1)}
		net[name].start()
	}
	a, b = net["a"], net["b"]
	assign(t, a.tr, mover(1, vhi.Running))
	time.Sleep(time.Second)
	synctest.Wait()
	if c := a.condition(); c != hypervisor.Running {
		t.Fatalf("it is %s", c)
	}
	expected := mover(3, vhi.Incoming)
	expected.Move = &theMove
	assign(t, b.tr, expected)
	return a, b
}

func (m *machine) send() {
	m.t.Helper()
	leaving := mover(3, vhi.Running)
	leaving.Move = &theMove
	assign(m.t, m.tr, leaving)
}

// atOnePlace: after a while the VEE runs at exactly one host, and the other has nothing.
func atOnePlace(t *testing.T, a, b *machine) *machine {
	t.Helper()
	time.Sleep(3 * time.Minute)
	synctest.Wait()
	at, other := a, b
	if b.condition() == hypervisor.Running {
		at, other = b, a
	}
	if at.condition() != hypervisor.Running {
		t.Fatalf("it is %s on a and %s on b", a.condition(), b.condition())
	}
	if c := other.condition(); c != hypervisor.Absent {
		t.Errorf("it runs on %s, and is %s on %s", at.name, c, other.name)
	}
	if len(at.bridge.taps) != 1 || len(other.bridge.taps) != 0 {
		t.Errorf("TAPs %v where it is, %v at the other host", at.bridge.taps, other.bridge.taps)
	}
	if r := report(t, at.tr); r.Restarts != 0 {
		t.Errorf("%d restarts", r.Restarts)
	}
	return at
}

func TestMove(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := twoHosts(t)
		defer func() { a.stop(); b.stop() }()
		a.send()
		if at := atOnePlace(t, a, b); at != b {
			t.Fatalf("it is on %s", at.name)
		}
		for range 2 { // the second from what was on disk
			r := report(t, b.tr)
			if r.Epoch.Hop != 1 || r.Move == nil || r.Move.Stage != vhi.MoveTaken {
				t.Fatalf("report %+v, move %+v", r, r.Move)
			}
			if f := r.Move.Took; f.MemoryBytes != 64*vee.MiB || f.PrepareMS == 0 || f.DisksMS == 0 || f.MemoryMS == 0 || f.DowntimeMS == 0 {
				t.Errorf("what it took: %+v", f)
			}
			b.restart()
		}
		if _, err := a.tr.Assign(t.Context(), mover(9, vhi.Running)); err == nil {
			t.Error("the source obeys an epoch from before the handover")
		}
	})
}

// Each call between the hosts is lost, before it arrives or after it took effect, once or
// for good; or one of the agents is killed at that moment.
func TestMoveCutAtEachPhase(t *testing.T) {
	for _, call := range []string{"before open", "after open", "before stream", "after stream", "before give", "after give", "before abandon"} {
		for _, what := range []string{"lost", "source killed", "destination killed", "both killed"} {
			t.Run(call+", "+what, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					a, b := twoHosts(t)
					defer func() { a.stop(); b.stop() }()
					hit := make(chan struct{}, 1)
					once := true
					a.cut = func(c string) error {
						if call == "before abandon" && c == "before stream" {
							return errors.New("no stream, so that it has to be abandoned")
						}
						if c != call || !once {
							return nil
						}
						once = false
						hit <- struct{}{}
						if what != "lost" {
							time.Sleep(100 * time.Millisecond) // the killing
						}
						return fmt.Errorf("cut %s", c)
					}
					a.send()
					<-hit
					if what == "source killed" || what == "both killed" {
						a.restart()
					}
					if what == "destination killed" || what == "both killed" {
						b.restart()
					}
					siteEnds(t, a, b)
					atOnePlace(t, a, b)
				})
			})
		}
	}
}

// siteEnds what has failed, by the source's word, as veem's decideMoving does.
func siteEnds(t *testing.T, a, b *machine) {
	t.Helper()
	time.Sleep(10 * time.Second)
	synctest.Wait()
	if r := report(t, a.tr); r.Move != nil && (r.Move.Stage == vhi.MoveFailed || r.Move.Stage == vhi.MoveVoid) {
		after := mover(4, vhi.Running)
		after.Epoch = r.Epoch
		assign(t, a.tr, after)
		gone := after
		gone.Seq, gone.Power = 5, vhi.Absent
		if _, err := b.tr.Assign(t.Context(), gone); err != nil {
			t.Fatal(err)
		}
	}
}

// An agent is killed while a driver is at work for the move, at either host: only once the
// destination has decided does the VEE go there.
func TestMoveKilledAtWork(t *testing.T) {
	for _, c := range []struct {
		at      string
		op      sim.Op
		arrives bool
	}{{"b", sim.Receive, false}, {"a", sim.Send, false}, {"a", sim.Copy, false}, {"b", sim.Take, true}} {
		for _, what := range []string{"source", "destination", "both"} {
			t.Run(fmt.Sprintf("%s, %s killed", c.op, what), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					a, b := twoHosts(t)
					defer func() { a.stop(); b.stop() }()
					busy := a.net[c.at]
					busy.hard(c.op, nil)
					a.send()
					<-busy.hit
					if what != "destination" {
						a.restart()
					}
					if what != "source" {
						b.restart()
					}
					siteEnds(t, a, b)
					if at := atOnePlace(t, a, b); (at == b) != c.arrives {
						t.Errorf("it is on %s", at.name)
					}
				})
			})
		}
	}
}

// What a driver cannot do ends the move, and the VEE's host says why.
func TestMoveFails(t *testing.T) {
	for _, c := range []struct {
		at   string
		op   sim.Op
		err  error
		code fault.Code
	}{
		{"b", sim.Receive, hypervisor.ErrNoSpace, fault.DiskFull},
		{"b", sim.Receive, hypervisor.ErrUnsupported, fault.Unsupported},
		{"a", sim.Copy, hypervisor.ErrNoSpace, fault.DiskFull}, // the mirror's, at the destination
		{"a", sim.Copy, hypervisor.ErrWrongState, fault.WrongState},
	} {
		t.Run(fmt.Sprint(c.op, " ", c.code), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a, b := twoHosts(t)
				defer func() { a.stop(); b.stop() }()
				busy := a.net[c.at]
				busy.hard(c.op, fmt.Errorf("the test has it fail: %w", c.err))
				a.send()
				time.Sleep(5 * time.Second)
				synctest.Wait()
				if m := report(t, a.tr).Move; m == nil || m.Stage != vhi.MoveFailed || fault.Code(m.Code) != c.code || !strings.Contains(m.Error, "the test has it fail") {
					t.Errorf("the source says %+v", m)
				}
				siteEnds(t, a, b)
				if at := atOnePlace(t, a, b); at != a {
					t.Errorf("it is on %s", at.name)
				}
			})
		})
	}
}

// The destination cannot let run what it has taken: it is not taken back for that, and
// runs there when it can.
func TestMoveTakenAndNotRunning(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := twoHosts(t)
		defer func() { a.stop(); b.stop() }()
		b.hard(sim.Take, errors.New("not now"))
		a.send()
		<-b.hit
		time.Sleep(10 * time.Second)
		synctest.Wait()
		if r := report(t, b.tr); r.Move == nil || r.Move.Stage == vhi.MoveTaken {
			t.Errorf("it does not run, and the destination says %+v", r.Move)
		}
		b.hard("", nil)
		if at := atOnePlace(t, a, b); at != b {
			t.Errorf("it is on %s", at.name)
		}
		if m := report(t, b.tr).Move; m.Stage != vhi.MoveTaken || m.Took.DowntimeMS < 10_000 {
			t.Errorf("the destination says %+v", m)
		}
	})
}

// Cancelled while a driver is at work it stays where it was.
func TestMoveCancelledAtWork(t *testing.T) {
	for at, op := range map[string]sim.Op{"a": sim.Copy, "b": sim.Receive} {
		t.Run(string(op), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a, b := twoHosts(t)
				defer func() { a.stop(); b.stop() }()
				a.net[at].hard(op, nil)
				a.send()
				<-a.net[at].hit
				assign(t, a.tr, mover(4, vhi.Running))
				gone := mover(5, vhi.Absent)
				assign(t, b.tr, gone)
				if at := atOnePlace(t, a, b); at != a {
					t.Errorf("it is on %s", at.name)
				}
			})
		})
	}
}

// Cancelled before the gift it stays; from then on the source refuses.
func TestMoveCancelled(t *testing.T) {
	for _, when := range []string{"before open", "after open", "before stream", "after stream", "before give", "after give"} {
		t.Run(when, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a, b := twoHosts(t)
				defer func() { a.stop(); b.stop() }()
				var refused error
				a.cut = func(c string) error {
					if c == when {
						_, refused = a.tr.Assign(t.Context(), mover(4, vhi.Running))
					}
					return nil
				}
				a.send()
				time.Sleep(5 * time.Second)
				synctest.Wait()
				if late := strings.HasSuffix(when, "give"); (refused != nil) != late {
					t.Errorf("the cancellation was answered with %v", refused)
				} else if at := atOnePlace(t, a, b); (at == b) != late {
					t.Errorf("it is on %s", at.name)
				}
			})
		})
	}
}

// Whoever comes to the door must be who is expected, with the ticket, once.
func TestDoor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := twoHosts(t)
		defer func() { a.stop(); b.stop() }()
		good := peer.Offer{Move: "m1", Ticket: "secret", VEE: web, Epoch: mover(1, "").Epoch}
		as := func(host string) context.Context {
			return identity.With(t.Context(), identity.Caller{Role: identity.HostRole, Host: host})
		}
		for name, c := range map[string]struct {
			host   string
			change func(*peer.Offer)
		}{
			"another host":  {"c", func(*peer.Offer) {}},
			"another move":  {"a", func(o *peer.Offer) { o.Move = "m2" }},
			"no ticket":     {"a", func(o *peer.Offer) { o.Ticket = "" }},
			"wrong ticket":  {"a", func(o *peer.Offer) { o.Ticket = "Secret" }},
			"another epoch": {"a", func(o *peer.Offer) { o.Epoch.Term++ }},
			"another VEE":   {"a", func(o *peer.Offer) { o.VEE = "alpha.bbbbbbbbbb" }},
		} {
			o := good
			c.change(&o)
			if err := b.tr.Open(as(c.host), o); err == nil {
				t.Errorf("%s: the door was opened", name)
			}
		}
		if err := b.tr.Open(as("a"), good); err != nil {
			t.Fatal(err)
		}
		if err := b.tr.Open(as("a"), good); err == nil {
			t.Error("the ticket was taken twice")
		}
		if _, err := b.tr.Stream(as("c"), "m1", web, hypervisor.MemoryStream); err == nil {
			t.Error("another host opens a stream")
		}
		if _, err := b.tr.Give(as("c"), peer.Gift{Move: "m1", VEE: web, Epoch: vee.Epoch{Generation: 1, Term: 1, Hop: 1}}); err == nil {
			t.Error("another host gives the VEE")
		}
	})
}

// A VEE from another site: only hosts of that site are let in, and only the one that opened
// the door comes through; it may ask again what became of its gift, also after a crash here.
func TestDoorForAnotherSite(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := twoHosts(t)
		defer func() { a.stop(); b.stop() }()
		expected := mover(4, vhi.Incoming)
		expected.Move = &vhi.Move{ID: "m2", From: "@beta", To: "b", Ticket: "secret", Origin: &vhi.Origin{Site: "beta", Bundle: []byte("jwks")}}
		assign(t, b.tr, expected)
		if o := b.tr.Origins(); len(o) != 1 || o[0].Site != "beta" {
			t.Fatalf("it expects %+v", o)
		}
		as := func(site, host string) context.Context {
			c := identity.Caller{ID: "spiffe://" + site + "/host/" + host, Role: identity.PartnerHost, Host: host, Site: site}
			if site == "" {
				c = identity.Caller{ID: "spiffe://alpha/host/" + host, Role: identity.HostRole, Host: host}
			}
			return identity.With(t.Context(), c)
		}
		now := mover(1, "").Epoch
		offer := peer.Offer{Move: "m2", Ticket: "secret", VEE: web, Epoch: now, Shape: []byte("{}")}
		for name, ctx := range map[string]context.Context{"another site's": as("gamma", "h1"), "one of this site": as("", "a"), "one of this site with the other's name": as("", "@beta")} {
			if err := b.tr.Open(ctx, offer); !fault.Has(err, fault.Denied) {
				t.Errorf("%s host: %v", name, err)
			}
		}
		late := offer
		late.Epoch.Term--
		if err := b.tr.Open(as("beta", "h1"), late); !fault.Has(err, fault.StaleEpoch) {
			t.Errorf("an epoch from before: %v", err)
		}
		offer.Epoch.Term++ // that site has gone through a term of its own
		if err := b.tr.Open(as("beta", "h1"), offer); err != nil {
			t.Fatal(err)
		}
		if _, err := b.tr.Stream(as("beta", "h2"), "m2", web, hypervisor.MemoryStream); !fault.Has(err, fault.Denied) {
			t.Errorf("another host of that site opens a stream: %v", err)
		}
		gift := peer.Gift{Move: "m2", VEE: web, Epoch: offer.Epoch}
		gift.Epoch.Hop++
		if _, err := b.tr.Give(as("beta", "h2"), gift); !fault.Has(err, fault.Denied) {
			t.Errorf("another host of that site gives it: %v", err)
		}
		for range 2 { // no memory has come: void, and so it stays
			if answer, err := b.tr.Give(as("beta", "h1"), gift); err != nil || answer.Taken {
				t.Errorf("%+v, %v", answer, err)
			}
			b.restart()
		}
		if o := b.tr.Origins(); len(o) != 1 {
			t.Errorf("who may ask again is forgotten: %+v", o)
		}
		if _, err := b.tr.Give(as("gamma", "h1"), gift); !fault.Has(err, fault.Denied) {
			t.Errorf("another site asks: %v", err)
		}
	})
}
