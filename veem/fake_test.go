package veem

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/internal/identity"
	"github.com/reservoir-cloud/reservoir/placement"
	"github.com/reservoir-cloud/reservoir/van/plan"
	"github.com/reservoir-cloud/reservoir/vee"
	"github.com/reservoir-cloud/reservoir/vhi"
	"github.com/reservoir-cloud/reservoir/vhi/guest"
	"github.com/reservoir-cloud/reservoir/vmi"
)

// memRecords is a Records in memory, which outlives managers.
type memRecords struct {
	mu     sync.Mutex
	rows   map[string]Row
	rev    uint64
	gen    uint64
	writes map[string]int // by kind/key
	fault  func(ops []Op) (before, after error)
}

func newMemRecords() *memRecords {
	return &memRecords{rows: map[string]Row{}, gen: 1, writes: map[string]int{}}
}

func (s *memRecords) Load(context.Context) ([]Row, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Collect(maps.Values(s.rows)), nil
}

func (s *memRecords) Write(_ context.Context, ops []Op) (uint64, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var before, after error
	if s.fault != nil {
		before, after = s.fault(ops)
	}
	if before != nil {
		return 0, before
	}
	if len(ops) > MaxOps {
		return 0, fault.New(fault.TooLarge, "%d operations", len(ops))
	}
	for _, o := range ops {
		switch old, exists := s.rows[o.Kind+"/"+o.Key]; {
		case !exists && o.Version != 0:
			return 0, fault.New(fault.NotFound, "%s %q does not exist", o.Kind, o.Key)
		case exists && o.Version == 0:
			return 0, fault.New(fault.Exists, "%s %q exists", o.Kind, o.Key)
		case exists && old.Version != o.Version:
			return 0, fault.New(fault.Conflict, "%s %q has changed", o.Kind, o.Key)
		}
	}
	s.rev++
	for _, o := range ops {
		key := o.Kind + "/" + o.Key
		s.writes[key]++
		if o.Value == nil {
			delete(s.rows, key)
		} else {
			s.rows[key] = Row{o.Kind, o.Key, slices.Clone(o.Value), s.rev}
		}
	}
	return s.rev, after
}

func (s *memRecords) Version(_ context.Context, kind, key string) (uint64, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.rows[kind+"/"+key].Version, nil
}
func (s *memRecords) Generation() uint64 { return s.gen }

// fakeGuest is one VEE on a fakeHost. What is assigned is durable.
type fakeGuest struct {
	want     vhi.Assignment
	now      vhi.Power // Running, Paused, Suspended, Stopped, Absent; Failed: it has crashed
	phase    vee.Phase
	err      string
	restarts int
	ready    bool
	fitted   uint64         // Seq of the assignment that it was changed to while it ran
	nextBoot []string       // what waits
	unready  bool           // it says that it is not
	moved    vhi.MoveReport // of its last migration
	movesTo  *fakeHost
}

// fakeHost converges as an agent does, in virtual time, and can be made to misbehave.
type fakeHost struct {
	vhi.Storage // nil: no test comes here
	s           *fakeSite
	name        string
	capacity    vee.Resources
	rng         *rand.Rand

	mu          *sync.Mutex // one for all hosts, since invariants are about all of them
	guests      map[vee.ID]*fakeGuest
	segments    map[string]plan.Segment
	puts        int
	incarnation int
	seq         uint64
	generation  uint64
	down        bool          // cut off from the site
	chaos       float64       // probability that a call is lost, or its answer
	slow        time.Duration // of each step
	failSave    bool
	noReady     bool
	live        []string // operations that its driver declares
	nextBoot    []string // what it says of every change
	failFit     string   // why no change is made
	assigns     int
	changed     chan struct{}
	failMoves   string // why migrations to it fail
	movesTo     int    // migrations under way
	atMost      int    // of movesTo so far
	powerOffs   int
	guard       *fakeGuard // nil: it runs no VEE under lease
	unguarded   bool       // it does not speak of its guard yet
}

var errNet = fault.New(fault.Unavailable, "connection reset")

func (h *fakeHost) lock() func() { h.mu.Lock(); return h.mu.Unlock }

// net is one crossing of the network.
func (h *fakeHost) net() error {
	h.mu.Lock()
	var pause time.Duration
	if h.chaos > 0 {
		pause = time.Duration(h.rng.IntN(40)) * time.Millisecond
		if h.rng.IntN(20) == 0 {
			pause *= 100 // reordered with much of what comes later
		}
	}
	lost := h.down || h.rng.Float64() < h.chaos
	h.mu.Unlock()
	time.Sleep(pause)
	if lost {
		return errNet
	}
	return nil
}

func (h *fakeHost) Assign(_ context.Context, a vhi.Assignment) (vhi.Report, error) {
	if err := h.net(); err != nil {
		return vhi.Report{}, err
	}
	h.mu.Lock()
	h.assigns++
	g := h.guests[a.VEE]
	if g == nil {
		g = &fakeGuest{now: vhi.Absent}
		h.guests[a.VEE] = g
	}
	c := a.Epoch.Compare(g.want.Epoch)
	switch {
	case a.Epoch.Generation < h.generation || c < 0 || c == 0 && a.Seq < g.want.Seq:
		h.mu.Unlock()
		return vhi.Report{}, fault.New(fault.StaleEpoch, "VEE %s: %s/%d is older than %s/%d", a.VEE, a.Epoch, a.Seq, g.want.Epoch, g.want.Seq)
	case c > 0 || a.Seq > g.want.Seq:
		g.want, g.err, g.phase = a, "", ""
		h.guarded(a.VEE, g)
	}
	h.nudge()
	p := g.report()
	h.mu.Unlock()
	return p, h.net()
}

func (h *fakeHost) nudge() {
	select {
	case h.changed <- struct{}{}:
	default:
	}
}

func (g *fakeGuest) report() vhi.Report {
	p := vhi.Report{VEE: g.want.VEE, Epoch: g.want.Epoch, Seq: g.want.Seq, Power: g.now, Phase: g.phase, Error: g.err, Restarts: g.restarts,
		GuestSeen: g.ready || g.unready, GuestReady: g.ready, Fitted: g.fitted == g.want.Seq, NextBoot: g.nextBoot}
	if g.now == vhi.Absent && g.want.Power != vhi.Absent {
		p.Power = vhi.Unprepared
	}
	if g.now == vhi.Failed && (g.want.Descriptor.Restart == vee.RestartNever || g.want.Power == vhi.Suspended) {
		p.Phase = vee.PhaseFailed
	} else if g.now == vhi.Failed {
		p.Power, p.Phase = vhi.Stopped, vee.PhaseBoot
	}
	g.reportMove(&p)
	if p.Phase == "" {
		p.Phase = map[vhi.Power]vee.Phase{vhi.Running: vee.PhaseRunning, vhi.Paused: vee.PhaseHold, vhi.Suspended: vee.PhaseSuspended,
			vhi.Stopped: vee.PhaseStopped, vhi.Absent: vee.PhaseDone, vhi.Unprepared: vee.PhaseProlog}[p.Power]
		if p.Power == vhi.Unprepared && g.want.Power == vhi.Stopped {
			p.Phase = vee.PhaseStopped
		}
	}
	return p
}

func (h *fakeHost) report() vhi.HostReport {
	defer h.lock()()
	h.seq++
	r := vhi.HostReport{Host: h.name, Incarnation: fmt.Sprint(h.incarnation), Seq: h.seq, Address: h.name + ":1", Capacity: h.capacity, CPUs: 4,
		Drivers: []vhi.DriverInfo{{Name: "sim", Simulated: true, Operations: append([]string{opMigrate}, h.live...)}}, Generation: h.generation,
		Underlay: netip.MustParseAddr("192.0.2." + h.name[1:]), Segments: map[string]uint64{}}
	if h.guard != nil && !h.unguarded {
		r.Lease = vhi.LeaseStatus{Guarded: true, Degraded: "its guests are simulated"}
	}
	for id, g := range h.segments {
		r.Segments[id] = g.Version
	}
	for _, id := range slices.Sorted(maps.Keys(h.guests)) {
		p := h.guests[id].report()
		p.Guarded = h.guarded(id, h.guests[id])
		r.VEEs = append(r.VEEs, p)
	}
	return r
}

func (h *fakeHost) Report(context.Context) (vhi.HostReport, error) {
	if err := h.net(); err != nil {
		return vhi.HostReport{}, err
	}
	return h.report(), h.net()
}

func (h *fakeHost) PutSegment(_ context.Context, g plan.Segment) error {
	if err := h.net(); err != nil {
		return err
	}
	h.mu.Lock()
	if h.puts++; h.segments[g.ID].Version < g.Version {
		h.segments[g.ID] = g
	}
	h.mu.Unlock()
	return h.net()
}

func (h *fakeHost) RemoveSegment(_ context.Context, id string) error {
	if err := h.net(); err != nil {
		return err
	}
	h.mu.Lock()
	delete(h.segments, id)
	h.mu.Unlock()
	return h.net()
}

func (h *fakeHost) NetworkPlan(_ context.Context, id string) (vhi.NetworkPlan, error) {
	defer h.lock()()
	return vhi.NetworkPlan{Version: h.segments[id].Version, Entries: []string{"bridge of " + id}}, nil
}

func (h *fakeHost) Console(_ context.Context, id vee.ID) (io.ReadWriteCloser, error) {
	return nopCloser{bytes.NewBufferString("console of " + string(id))}, nil
}

func (h *fakeHost) Connect(_ context.Context, id vee.ID, port uint16) (io.ReadWriteCloser, error) {
	return nopCloser{bytes.NewBufferString(fmt.Sprintf("port %d of %s", port, id))}, nil
}

func (h *fakeHost) Capture(_ context.Context, id vee.ID, nic int) (io.ReadWriteCloser, error) {
	return nopCloser{bytes.NewBufferString(fmt.Sprintf("NIC %d of %s", nic, id))}, nil
}

type nopCloser struct{ io.ReadWriter }

func (nopCloser) Close() error { return nil }

func (h *fakeHost) Tell(_ context.Context, _ vee.ID, c guest.Command) (guest.Reply, error) {
	return guest.Reply{ID: c.ID, OK: true}, nil
}

// run the host: its guests converge one step at a time, and it renews when something has
// changed, at the latest after five seconds.
func (h *fakeHost) run(ctx context.Context) {
	var wg sync.WaitGroup
	defer wg.Wait()
	beat := time.NewTicker(5 * time.Second)
	defer beat.Stop()
	for {
		for h.step() {
			wg.Go(func() { h.renew(ctx) })
			h.mu.Lock()
			slow := h.slow
			h.mu.Unlock()
			time.Sleep(slow)
		}
		wg.Go(func() { h.renew(ctx) })
		select {
		case <-ctx.Done():
			return
		case <-beat.C:
		case <-h.changed:
		}
	}
}

// step does one step of one guest; each has two halves, so that PROLOG, BOOT, SAVE and
// EPILOG are seen.
func (h *fakeHost) step() bool {
	defer h.lock()()
	for _, id := range slices.Sorted(maps.Keys(h.guests)) {
		g := h.guests[id]
		if h.stepMove(id, g) {
			return true
		}
		if g.now == vhi.Running && !h.lives(id, g) {
			g.now, g.ready = vhi.Failed, false
			return true
		}
		to, during := g.next()
		if to == "" && g.now == vhi.Running && len(h.live) > 0 && g.fitted != g.want.Seq && g.err == "" {
			if g.err = h.failFit; g.err == "" {
				g.fitted, g.nextBoot = g.want.Seq, h.nextBoot
			}
			return true
		}
		if to == "" || g.err != "" {
			continue
		}
		if g.phase != during {
			g.phase = during
			return true
		}
		if to == vhi.Running && !h.mayRun(id, g) {
			continue
		}
		g.phase = ""
		if to == vhi.Suspended && h.failSave {
			g.err, g.phase = "save: no space left on device", vee.PhaseRunning
			return true
		}
		if g.now == vhi.Failed && to == vhi.Running {
			g.restarts++
		}
		g.now = to
		g.ready = to == vhi.Running && !h.noReady
		h.s.check(h, id, g)
		return true
	}
	return false
}

func (g *fakeGuest) next() (to vhi.Power, during vee.Phase) {
	if g.now == g.want.Power || g.moved.Stage == vhi.MoveGiven && g.want.Power != vhi.Absent {
		return "", ""
	}
	if g.now == vhi.Failed && g.want.Power != vhi.Absent && g.want.Power != vhi.Stopped && g.want.Descriptor.Restart == vee.RestartNever {
		return "", ""
	}
	switch g.want.Power {
	case vhi.Running, vhi.Paused:
		switch g.now {
		case vhi.Absent:
			return vhi.Stopped, vee.PhaseProlog
		case vhi.Running:
			return vhi.Paused, vee.PhaseRunning
		default:
			return vhi.Running, vee.PhaseBoot
		}
	case vhi.Suspended:
		if g.now == vhi.Running || g.now == vhi.Paused {
			return vhi.Suspended, vee.PhaseSave
		}
	case vhi.Stopped:
		if g.now != vhi.Absent {
			return vhi.Stopped, vee.PhaseEpilog
		}
	case vhi.Absent:
		return vhi.Absent, vee.PhaseEpilog
	}
	return "", ""
}

// renew once; with chaos also twice.
func (h *fakeHost) renew(ctx context.Context) {
	r := vhi.Renewal{Report: h.report()}
	if h.guard != nil {
		r.Lease = h.guard.keeper.Renewal(ctx)
	}
	times := 1
	h.mu.Lock()
	if h.chaos > 0 && h.rng.IntN(5) == 0 {
		times = 2
	}
	h.mu.Unlock()
	for range times {
		m := h.s.manager()
		if m == nil || h.net() != nil {
			continue
		}
		out, err := m.Renew(identity.With(ctx, identity.Caller{Role: identity.HostRole, Host: h.name}), r)
		if err == nil && h.net() == nil {
			h.mu.Lock()
			h.generation = max(h.generation, out.Generation)
			h.mu.Unlock()
			h.guard.heed(ctx, out)
		}
	}
}

func (h *fakeHost) set(f func()) { h.mu.Lock(); f(); h.nudge(); h.mu.Unlock() }

// power of a VEE here.
func (h *fakeHost) power(id vee.ID) vhi.Power {
	defer h.lock()()
	if g := h.guests[id]; g != nil {
		return g.now
	}
	return vhi.Absent
}

// fakeSite is a manager among fake hosts, in a synctest bubble.
type fakeSite struct {
	t     *testing.T
	store *memRecords
	hosts []*fakeHost
	// elsewhere are the hosts of another site, where none of its VEEs may run beside here.
	elsewhere []*fakeHost
	cfg       Config
	events    eventLog
	points    pointLog

	mu     sync.Mutex
	m      *Manager
	cancel context.CancelFunc
	done   chan struct{}
	broken []string // invariants

	attached vmi.AccountingListener // of the caller clerk
	more     map[identity.Caller]vmi.AccountingListener
}

type eventLog struct {
	mu  sync.Mutex
	all []Event
}

func (l *eventLog) Record(e Event) { l.mu.Lock(); defer l.mu.Unlock(); l.all = append(l.all, e) }

func (l *eventLog) count(reason string) (n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, e := range l.all {
		if e.Reason == reason {
			n++
		}
	}
	return n
}

type pointLog struct {
	mu    sync.Mutex
	now   map[string]plan.Point
	n     int
	swept []int
}

func (b *pointLog) Set(_ context.Context, p plan.Point) (string, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.now[p.Key] = p
	if p.Address == "" {
		b.n++
		p.Address = fmt.Sprintf("192.0.2.1:%d", 20000+b.n)
	}
	return p.Address, nil
}

func (b *pointLog) Remove(key string) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.now, key)
	return nil
}

// Show: every backend is well, and has one connection.
func (b *pointLog) Show(keys ...string) map[string][]plan.BackendState {
	b.mu.Lock()
	defer b.mu.Unlock()
	all := map[string][]plan.BackendState{}
	for _, key := range keys {
		for _, k := range b.now[key].Backends {
			all[key] = append(all[key], plan.BackendState{Backend: k, Healthy: true, Connections: 1})
		}
	}
	return all
}

// Sweep notes how many points it was told of before.
func (b *pointLog) Sweep() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.swept = append(b.swept, len(b.now))
	return nil
}

// get the addresses of the backends that get new connections.
func (b *pointLog) get(key string) (to []netip.AddrPort) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, k := range b.now[key].Backends {
		if !k.Draining {
			to = append(to, k.Address)
		}
	}
	return to
}

type fakeImages struct{}

func (fakeImages) VirtualSize(_ context.Context, digest string) (vee.Bytes, error) {
	if !strings.HasPrefix(digest, "sha256:") {
		return 0, fault.New(fault.NotFound, "image %s does not exist", digest)
	}
	return vee.GiB, nil
}

// inSite runs f beside a manager and hosts of 4 vCPUs and 4 GiB each; virtual time.
func inSite(t *testing.T, hosts int, f func(s *fakeSite)) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		s := newFakeSite(t, "alpha")
		defer s.open(hosts, &mu)()
		synctest.Wait()
		f(s)
	})
}

func newFakeSite(t *testing.T, name string) *fakeSite {
	s := &fakeSite{t: t, store: newMemRecords(), points: pointLog{now: map[string]plan.Point{}}}
	s.cfg = Config{
		Site: name, Store: s.store, Placer: placement.Balance, Images: fakeImages{}, Balancer: &s.points, Recorder: &s.events,
		Dial: func(name, _ string) vhi.Host { return s.host(name) },
		Networks: map[string]Network{"net": {Subnet: netip.MustParsePrefix("10.80.0.0/16"), Gateway: netip.MustParseAddr("10.80.0.1"),
			First: netip.MustParseAddr("10.80.128.1")}},
		Log: slog.New(slog.NewTextHandler(testLog{t}, &slog.HandlerOptions{Level: slog.LevelError})),
	}
	return s
}

// open the site with so many hosts. mu is one for all hosts that invariants are about.
func (s *fakeSite) open(hosts int, mu *sync.Mutex) (shut func()) {
	s.start()
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	for i := range hosts {
		h := &fakeHost{s: s, mu: mu, name: fmt.Sprintf("h%d", i+1), capacity: vee.Resources{MilliCPU: 4000, Memory: 4 * vee.GiB, Disk: 100 * vee.GiB},
			guests: map[vee.ID]*fakeGuest{}, segments: map[string]plan.Segment{}, changed: make(chan struct{}, 1), slow: 100 * time.Millisecond, rng: rand.New(rand.NewPCG(1, uint64(i)))}
		s.hosts = append(s.hosts, h)
		if err := s.m.HostJoined(context.Background(), h.name); err != nil {
			s.t.Fatal(err)
		}
	}
	for _, h := range s.hosts {
		wg.Go(func() { h.run(ctx) })
	}
	return func() {
		s.stop()
		cancel()
		wg.Wait()
		for _, b := range s.broken {
			s.t.Error(b)
		}
	}
}

type testLog struct{ t *testing.T }

func (l testLog) Write(b []byte) (int, error) { l.t.Logf("%s", bytes.TrimSpace(b)); return len(b), nil }

func (s *fakeSite) start() {
	m, err := New(context.Background(), s.cfg)
	if err != nil {
		s.t.Fatal(err)
	}
	if s.attached != nil {
		m.Attach(clerk, s.attached)
	}
	for c, l := range s.more {
		m.Attach(c, l)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	s.mu.Lock()
	s.m, s.cancel, s.done = m, cancel, done
	s.mu.Unlock()
	go func() {
		defer close(done)
		if err := m.Run(ctx); err != nil {
			s.t.Error(err)
		}
	}()
}

func (s *fakeSite) stop() {
	s.mu.Lock()
	s.m = nil
	s.mu.Unlock()
	s.cancel()
	<-s.done
}

func (s *fakeSite) manager() *Manager { s.mu.Lock(); defer s.mu.Unlock(); return s.m }

func (s *fakeSite) host(name string) *fakeHost {
	i := slices.IndexFunc(s.hosts, func(h *fakeHost) bool { return h.name == name })
	return s.hosts[i]
}

// check what must hold at every instant, after guest g of h has changed. h.mu is held.
func (s *fakeSite) check(h *fakeHost, id vee.ID, g *fakeGuest) {
	var used vee.Resources
	for _, o := range h.guests {
		if o.now == vhi.Running || o.now == vhi.Paused {
			used = used.Plus(vee.Resources{MilliCPU: int64(o.want.Descriptor.VCPUs) * 1000, Memory: o.want.Descriptor.Memory})
		}
	}
	if !used.Fits(h.capacity) {
		s.breaks("%v: host %s runs %+v of %+v", time.Now(), h.name, used, h.capacity)
	}
	if g.now != vhi.Running {
		return
	}
	for _, other := range s.elsewhere {
		if o := other.guests[id]; o != nil && (o.now == vhi.Running || o.now == vhi.Paused) {
			s.breaks("VEE %s runs on %s of %s and %s of %s", id, h.name, s.cfg.Site, other.name, other.s.cfg.Site)
		}
	}
	for _, other := range s.hosts {
		for oid, o := range other.guests {
			if (other != h || oid != id) && (o.now == vhi.Running || o.now == vhi.Paused) && other.lives(oid, o) {
				if oid == id {
					s.breaks("VEE %s runs on %s and %s", id, h.name, other.name)
				}
				for _, a := range o.want.Descriptor.NICs {
					for _, b := range g.want.Descriptor.NICs {
						if a.Address == b.Address {
							s.breaks("VEEs %s on %s and %s on %s have address %s", id, h.name, oid, other.name, a.Address)
						}
					}
				}
			}
		}
	}
}

func (s *fakeSite) breaks(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.broken = append(s.broken, fmt.Sprintf(format, args...))
}

// Callers.
func (s *fakeSite) operator() context.Context {
	return identity.With(context.Background(), identity.Caller{ID: "op", Role: identity.Operator})
}

func (s *fakeSite) provider(customer string) context.Context {
	return identity.With(context.Background(), identity.Caller{ID: customer, Role: identity.Provider, Customer: customer})
}

func web(n int) vee.Descriptor {
	return vee.Descriptor{Name: fmt.Sprintf("web-%d", n), Customer: "acme", GroupID: "shop", VCPUs: 1, Memory: vee.GiB, Tags: []string{"web"},
		NICs: []vee.NIC{{Network: "net"}}, Disks: []vee.Disk{{Name: "root", Image: "sha256:web"}}}
}

func initialize(model vmi.Model, ds ...vee.Descriptor) vmi.Initialize {
	in := vmi.Initialize{Model: model}
	for _, d := range ds {
		in.VEEs = append(in.VEEs, vmi.InitializeVEE{Descriptor: d})
	}
	return in
}

func ids(vs []vmi.VEE) (out []vee.ID) {
	for _, v := range vs {
		out = append(out, v.ID)
	}
	return out
}

// deploy n VEEs and wait until they run.
func (s *fakeSite) deploy(n int) []vee.ID {
	s.t.Helper()
	in := initialize(vmi.TwoPhase)
	for i := range n {
		in.VEEs = append(in.VEEs, vmi.InitializeVEE{Descriptor: web(i + 1)})
	}
	out, err := s.m.InitializeVEEs(s.operator(), in)
	if err != nil {
		s.t.Fatal(err)
	}
	s.submit(ids(out.VEEs)...)
	for _, id := range ids(out.VEEs) {
		s.until(id, vee.Active)
	}
	return ids(out.VEEs)
}

func (s *fakeSite) submit(ids ...vee.ID) {
	s.t.Helper()
	outs, err := s.manager().SubmitVEEs(s.operator(), ids)
	if err != nil {
		s.t.Fatal(err)
	}
	for _, o := range outs {
		if !o.OK {
			s.t.Fatalf("submit: %+v", o)
		}
	}
}

func (s *fakeSite) get(id vee.ID) vmi.VEE {
	s.t.Helper()
	v, err := s.manager().GetVEE(s.operator(), id)
	if err != nil {
		s.t.Fatal(err)
	}
	return v
}

// until a VEE has reached a state, which it must within two minutes.
func (s *fakeSite) until(id vee.ID, want vee.State) vmi.VEE {
	s.t.Helper()
	return s.untilThat(id, string(want), func(v vmi.VEE) bool { return v.State == want })
}

func (s *fakeSite) untilThat(id vee.ID, what string, ok func(vmi.VEE) bool) vmi.VEE {
	s.t.Helper()
	for range 1200 {
		if v := s.get(id); ok(v) {
			return v
		}
		time.Sleep(100 * time.Millisecond)
	}
	s.t.Fatalf("VEE %s is not %s: %+v", id, what, s.get(id))
	return vmi.VEE{}
}

func (s *fakeSite) act(a vee.Action, ids ...vee.ID) []vmi.Outcome {
	s.t.Helper()
	outs, err := s.manager().UpdateState(s.operator(), vmi.UpdateState{Collection: vmi.Collection{IDs: ids}, Action: a, Wait: true})
	if err != nil {
		s.t.Fatal(err)
	}
	return outs
}
