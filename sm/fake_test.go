package sm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/reservoir-cloud/reservoir/internal/event"
	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/internal/identity"
	"github.com/reservoir-cloud/reservoir/internal/store"
	"github.com/reservoir-cloud/reservoir/smi"
	"github.com/reservoir-cloud/reservoir/vee"
	"github.com/reservoir-cloud/reservoir/vmi"
)

// fakeVMI is a VEE Manager in memory. Its VEEs take their time, and while faults is set it
// fails calls, loses answers of calls that it has obeyed, and breaks watches.
type fakeVMI struct {
	vmi.Service // methods that the SM must not need: nil

	mu       sync.Mutex
	rnd      *rand.Rand
	faults   bool
	room     int // VEEs that may be placed at once
	seq      uint64
	vees     map[vee.ID]vmi.VEE
	receipts map[string][]vee.ID
	points   map[string]vmi.AccessPoint // GROUP/NAME
	networks map[string]vmi.Network     // GROUP/NAME
	watchers map[*fakeWatch]bool
	listened map[vee.ID]int // how often the SM has registered for the usage of each VEE
	deaf     int            // registrations that are still to fail
	// monitored takes the watches of monitoring events, if a test wants them.
	monitored chan chan<- vmi.MonitoringEvent
	rigid     bool     // no VEE changes while it runs
	broken    []string // what must never happen and did
}

type fakeWatch struct {
	queue []vmi.Change
	news  chan struct{}
	ended bool
}

func newFake(seed uint64) *fakeVMI {
	return &fakeVMI{
		rnd: rand.New(rand.NewPCG(seed, 1)), room: 100,
		vees: map[vee.ID]vmi.VEE{}, receipts: map[string][]vee.ID{}, points: map[string]vmi.AccessPoint{}, networks: map[string]vmi.Network{}, watchers: map[*fakeWatch]bool{},
		listened: map[vee.ID]int{},
	}
}

// luck decides on a call: an error before it does anything, or one instead of its answer.
// The caller holds mu.
func (f *fakeVMI) luck() (before, after error) {
	if !f.faults {
		return nil, nil
	}
	switch n := f.rnd.IntN(10); {
	case n == 0:
		return fault.New(fault.Unavailable, "connection refused"), nil
	case n == 1:
		return fault.New(fault.Internal, "disk of the VEEM is slow"), nil
	case n <= 3:
		return nil, fault.New(fault.Timeout, "no answer")
	}
	return nil, nil
}

// set stores a changed VEE and tells the watchers. The caller holds mu.
func (f *fakeVMI) set(v vmi.VEE) {
	f.seq++
	v.Version = f.seq
	f.vees[v.ID] = v
	for w := range f.watchers {
		w.send(vmi.Change{VEE: &v})
	}
}

func (w *fakeWatch) send(c vmi.Change) {
	w.queue = append(w.queue, c)
	select {
	case w.news <- struct{}{}:
	default:
	}
}

func (f *fakeVMI) placed() (n int) {
	for _, v := range f.vees {
		if v.Host != "" && v.State != vee.Destroyed {
			n++
		}
	}
	return n
}

func (f *fakeVMI) InitializeVEEs(_ context.Context, r vmi.Initialize) (vmi.Initialized, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	before, after := f.luck()
	if before != nil {
		return vmi.Initialized{}, before
	}
	ids, again := f.receipts[r.IdempotencyKey]
	if !again {
		if r.Model == vmi.TwoPhase && f.placed()+len(r.VEEs) > f.room {
			return vmi.Initialized{}, fault.New(fault.NoResources, "no room for %d VEEs", len(r.VEEs))
		}
		for _, x := range r.VEEs {
			d := x.Descriptor
			for _, n := range d.NICs {
				if _, made := f.networks[d.GroupID+"/"+n.Network]; !made && !n.Public {
					return vmi.Initialized{}, fault.New(fault.Malformed, "there is no network %s", n.Network)
				}
			}
			for _, o := range f.vees {
				if o.State != vee.Destroyed && o.Descriptor.GroupID == d.GroupID && o.Descriptor.Name == d.Name {
					f.broken = append(f.broken, "twice: "+d.GroupID+" "+d.Name)
				}
			}
			f.seq++
			v := vmi.VEE{ID: vee.ID(fmt.Sprintf("fake.%010d", f.seq)), Descriptor: d, Rules: r.Rules, State: vee.Initial, Target: vee.Defined, Phase: vee.PhasePending}
			if r.Model == vmi.TwoPhase {
				v.State, v.Host = vee.Defined, "h1"
			}
			f.set(v)
			ids = append(ids, v.ID)
		}
		f.receipts[r.IdempotencyKey] = ids
	}
	var out vmi.Initialized
	for _, id := range ids {
		out.VEEs = append(out.VEEs, f.vees[id])
	}
	return out, after
}

func (f *fakeVMI) Plan(_ context.Context, r vmi.Initialize) (list []vmi.Placement, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	free := f.room - f.placed()
	for i, x := range r.VEEs {
		p := vmi.Placement{Name: x.Descriptor.Name, Host: "h1", Why: "it is the emptiest"}
		if i >= free {
			p.Host, p.Why = "", "h1: memory is taken"
		}
		list = append(list, p)
	}
	return list, nil
}

func (f *fakeVMI) SubmitVEEs(_ context.Context, ids []vee.ID) ([]vmi.Outcome, error) {
	return f.update(ids, func(v *vmi.VEE) error {
		if v.State != vee.Defined && v.State != vee.Initial || v.Submitted {
			return fmt.Errorf("is %s", v.State)
		}
		if v.Descriptor.Context["meta-data"] == "" {
			f.broken = append(f.broken, "submitted without a context: "+v.Descriptor.Name)
		}
		v.Submitted, v.Target = true, vee.Active
		return nil
	})
}

func (f *fakeVMI) UpdateVEEs(_ context.Context, us []vmi.VEEUpdate) (list []vmi.Outcome, err error) {
	ids := make([]vee.ID, len(us))
	told := map[vee.ID]vmi.VEEUpdate{}
	for i, u := range us {
		ids[i], told[u.ID] = u.ID, u
	}
	outcomes, err := f.update(ids, func(v *vmi.VEE) error {
		u, d := told[v.ID], &v.Descriptor
		if u.Context != nil {
			if v.Submitted && !maps.Equal(d.Context, u.Context) {
				return errors.New("was submitted")
			}
			d.Context = u.Context
		}
		if u.Memory != nil {
			d.Memory, d.VCPUs, d.Firewall = *u.Memory, *u.VCPUs, *u.Firewall
		}
		return nil
	})
	for i := range outcomes {
		if u := us[i]; f.rigid && u.Memory != nil && outcomes[i].OK {
			outcomes[i].Detail = vmi.AtNextBoot + ": its host cannot"
		}
	}
	return outcomes, err
}

func (f *fakeVMI) UpdateState(_ context.Context, r vmi.UpdateState) ([]vmi.Outcome, error) {
	return f.update(r.IDs, func(v *vmi.VEE) error {
		to, err := v.State.After(r.Action)
		if err == nil {
			v.Target = to
		}
		return err
	})
}

func (f *fakeVMI) update(ids []vee.ID, change func(*vmi.VEE) error) (list []vmi.Outcome, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	before, after := f.luck()
	if before != nil {
		return nil, before
	}
	for _, id := range ids {
		v, there := f.vees[id]
		o := vmi.Outcome{ID: id, OK: true}
		if err := change(&v); err != nil || !there {
			o = vmi.Outcome{ID: id, Code: string(fault.WrongState), Detail: fmt.Sprint(err)}
		} else {
			f.set(v)
		}
		list = append(list, o)
	}
	return list, after
}

func (f *fakeVMI) ListVEEs(_ context.Context, q vmi.Filter) (list []vmi.VEE, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if before, _ := f.luck(); before != nil {
		return nil, before
	}
	for _, v := range f.vees {
		if (q.GroupID == "" || v.Descriptor.GroupID == q.GroupID) && (q.Destroyed || v.State != vee.Destroyed) {
			list = append(list, v)
		}
	}
	return list, nil
}

func (f *fakeVMI) WatchVEEs(ctx context.Context, _ vmi.Filter) (<-chan vmi.Change, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if before, _ := f.luck(); before != nil {
		return nil, before
	}
	w := &fakeWatch{news: make(chan struct{}, 1)}
	for _, v := range f.vees {
		w.send(vmi.Change{VEE: &v})
	}
	w.send(vmi.Change{Synced: true})
	f.watchers[w] = true
	out := make(chan vmi.Change)
	go func() {
		defer close(out)
		for {
			select {
			case <-ctx.Done():
				return
			case <-w.news:
			}
			f.mu.Lock()
			queue, ended := w.queue, w.ended
			w.queue = nil
			f.mu.Unlock()
			for _, c := range queue {
				select {
				case out <- c:
				case <-ctx.Done():
					return
				}
			}
			if ended {
				return
			}
		}
	}()
	return out, nil
}

func (f *fakeVMI) PutAccessPoint(_ context.Context, a vmi.AccessPoint) (vmi.AccessPoint, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	before, after := f.luck()
	if before == nil {
		a.Address, a.Backends = fmt.Sprintf("192.0.2.1:%d", 20000+len(f.points)), 1
		f.points[a.GroupID+"/"+a.Name] = a
	}
	return a, either(before, after)
}

func (f *fakeVMI) PutNetwork(_ context.Context, n vmi.Network) (vmi.Network, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	before, after := f.luck()
	if before == nil {
		f.networks[n.GroupID+"/"+n.Name] = n
	}
	return n, either(before, after)
}

func (f *fakeVMI) DeleteNetwork(_ context.Context, group, name string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	before, after := f.luck()
	if before == nil {
		if _, there := f.networks[group+"/"+name]; !there {
			return fault.New(fault.NotFound, "no network %s", name)
		}
		for _, v := range f.vees {
			if v.State != vee.Destroyed && v.Descriptor.GroupID == group && slices.ContainsFunc(v.Descriptor.NICs, func(n vee.NIC) bool { return n.Network == name }) {
				f.broken = append(f.broken, "network "+name+" deleted while "+v.Descriptor.Name+" is on it")
			}
		}
		delete(f.networks, group+"/"+name)
	}
	return either(before, after)
}

func (f *fakeVMI) ListNetworks(_ context.Context, group string) ([]vmi.Network, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	list := []vmi.Network{{Name: "site", Public: true}}
	for _, k := range slices.Sorted(maps.Keys(f.networks)) {
		if n := f.networks[k]; n.GroupID == group {
			list = append(list, n)
		}
	}
	return list, nil
}

func either(a, b error) error {
	if a != nil {
		return a
	}
	return b
}

func (f *fakeVMI) DeleteAccessPoint(_ context.Context, group, name string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	before, after := f.luck()
	if before == nil {
		if _, there := f.points[group+"/"+name]; !there {
			return fault.New(fault.NotFound, "no access point %s", name)
		}
		delete(f.points, group+"/"+name)
	}
	return either(before, after)
}

func (f *fakeVMI) ListAccessPoints(_ context.Context, group string) (list []vmi.AccessPoint, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, k := range slices.Sorted(maps.Keys(f.points)) {
		if a := f.points[k]; a.GroupID == group {
			list = append(list, a)
		}
	}
	return list, nil
}

// live moves VEEs on towards their targets, one small step at a time, until ctx ends.
func (f *fakeVMI) live(ctx context.Context) {
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			f.mu.Lock()
			for _, id := range slices.Sorted(maps.Keys(f.vees)) {
				if f.rnd.IntN(3) == 0 {
					f.advance(f.vees[id])
				}
			}
			if f.faults && f.rnd.IntN(50) == 0 {
				f.breakWatches()
			}
			f.mu.Unlock()
		}
	}
}

func (f *fakeVMI) breakWatches() {
	for w := range f.watchers {
		w.ended = true
		w.send(vmi.Change{Synced: true}) // wakes it; harmless
	}
	clear(f.watchers)
}

func (f *fakeVMI) advance(v vmi.VEE) {
	switch {
	case v.State == vee.Destroyed:
		return
	case v.Target == vee.Destroyed:
		v.State, v.Phase, v.Host, v.GuestReady = vee.Destroyed, vee.PhaseDone, "", false
	case v.State == vee.Initial && f.placed() < f.room:
		v.State, v.Host = vee.Defined, "h1"
	case v.Target == vee.Active && v.State == vee.Defined:
		v.State, v.Phase = vee.Active, vee.PhaseBoot
	case v.Target == vee.Active && v.State == vee.Active && !v.GuestReady:
		v.Phase, v.GuestReady, v.GuestSeen = vee.PhaseRunning, true, true
	case v.Target == vee.Defined && v.State == vee.Active:
		v.State, v.Phase, v.GuestReady = vee.Defined, vee.PhaseStopped, false
	default:
		return
	}
	f.set(v)
}

// with does something to the fake's state.
func (f *fakeVMI) with(do func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	do()
}

// fakeImages has every image but those named "missing".
type fakeImages struct{}

func (fakeImages) Resolve(_ context.Context, ref string) (string, vee.Bytes, error) {
	switch ref {
	case "missing":
		return "", 0, fault.New(fault.NotFound, "image %s does not exist", ref)
	case "web:2":
		return "sha256:2222222222222222222222222222222222222222222222222222222222222222", vee.GiB, nil
	}
	return "sha256:1111111111111111111111111111111111111111111111111111111111111111", vee.GiB, nil
}

// bench is a manager on a real store over a fake VMI.
type bench struct {
	t      *testing.T
	vmi    *fakeVMI
	store  *store.Store
	events *event.Log
	m      *Manager
	trade  Trade
	stop   func() // the manager, as a crash would: nothing is finished
}

func newBench(t *testing.T, seed uint64) *bench {
	t.Helper()
	log := slog.New(slog.NewTextHandler(io.Discard, nil))
	s, err := store.Open(t.Context(), store.Config{Dir: t.TempDir(), Logger: log})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	events, err := event.Open(t.Context(), event.Config{Sink: store.NewCollection[smi.Event](s, "event"), Now: time.Now, Logger: log})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(events.Close)
	b := &bench{t: t, vmi: newFake(seed), store: s, events: events}
	ctx, cancel := context.WithCancel(context.Background())
	var living sync.WaitGroup
	living.Go(func() { b.vmi.live(ctx) })
	t.Cleanup(func() { cancel(); living.Wait() })
	b.start()
	t.Cleanup(func() { b.stop() })
	return b
}

func (b *bench) start() {
	b.m = New(Config{
		Site: "alpha", Store: b.store, VMI: b.vmi, Images: fakeImages{}, Events: b.events, Network: "site", Now: time.Now, Trade: b.trade,
		Log: slog.New(slog.NewTextHandler(io.Discard, nil)),
	})
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	m := b.m
	running.Go(func() { m.Run(ctx) })
	b.stop = func() { cancel(); running.Wait() }
}

// as the context of a caller.
func as(ctx context.Context, role identity.Role, customer string) context.Context {
	return identity.With(ctx, identity.Caller{ID: "test", Role: role, Customer: customer})
}

func (b *bench) acme() context.Context { return as(b.t.Context(), identity.Provider, "acme") }

// reach waits until the service is as ok wants it.
func (b *bench) reach(name, what string, ok func(smi.Service) bool) smi.Service {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.acme(), 2*time.Minute) // of a machine that does other things too
	defer cancel()
	changes, err := b.m.Watch(ctx, "", name)
	if err != nil {
		b.t.Fatal(err)
	}
	var last smi.Service
	for last = range changes {
		if ok(last) {
			return last
		}
	}
	b.t.Fatalf("service %s was never %s; last: %+v", name, what, last)
	return last
}

func (b *bench) ready(name string) smi.Service {
	b.t.Helper()
	version := b.get(name).Version
	return b.reach(name, "ready", func(s smi.Service) bool { return s.Phase == smi.Ready && s.Version >= version })
}

func (b *bench) get(name string) smi.Service {
	b.t.Helper()
	s, err := b.m.Get(b.acme(), "", name)
	if err != nil {
		b.t.Fatal(err)
	}
	return s
}

// reasons of the events of a service, in order.
func (b *bench) reasons(name string) (list []string) {
	for _, e := range b.events.List(smi.EventFilter{Service: name}) {
		list = append(list, e.Reason)
	}
	return list
}

// yaml of a service of one or two components.
func yaml(name, image string, replicas int) string {
	return fmt.Sprintf(`service: %s
components:
  - name: db
    image: db:1
    memory: 128MiB
    replicas: 1
    networks: [back]
    startup: {order: 1, waitingForGuest: true}
  - name: web
    image: %s
    memory: 128MiB
    replicas: {initial: %d, min: 1, max: 6}
    networks: [public, back]
    ports: [http:80]
    startup: {order: 2}
networks:
  - {name: public, public: true}
  - {name: back}
`, name, image, replicas)
}

// WatchMonitoring hands its begin to the test, if that wants it, and ends when the test closes
// it or when ctx does.
func (f *fakeVMI) WatchMonitoring(ctx context.Context, _ vmi.EventFilter) (<-chan vmi.MonitoringEvent, error) {
	in, out := make(chan vmi.MonitoringEvent), make(chan vmi.MonitoringEvent)
	f.with(func() {
		select {
		case f.monitored <- in:
		default:
		}
	})
	go func() {
		defer close(out)
		for {
			select {
			case e, more := <-in:
				if !more {
					return
				}
				out <- e
			case <-ctx.Done():
				return
			}
		}
	}()
	return out, nil
}
