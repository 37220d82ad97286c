package lrt

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/reservoir-cloud/reservoir/agent/vet"
	"github.com/reservoir-cloud/reservoir/dvms"
	"github.com/reservoir-cloud/reservoir/internal/durable"
	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/internal/identity"
	"github.com/reservoir-cloud/reservoir/van/plan"
	"github.com/reservoir-cloud/reservoir/vee"
	"github.com/reservoir-cloud/reservoir/vhi"
	"github.com/reservoir-cloud/reservoir/vhi/peer"
)

// The scheduling layer: the shell around this host's dvms.Node. Steps are taken one after the
// other under one lock; what they ask for is done outside of it and comes back as a step.

// Guests of the host; a vet.Tracker.
type Guests interface {
	Standings() []vet.Standing
	Moves() (bySite, byHosts bool)
	Depart(id vee.ID, e vee.Epoch, m vhi.Move) error
	Expect(a vhi.Assignment) error
	Moving(move string, id vee.ID) (vhi.MoveReport, error)
	Arrivals() []vet.Arrival
	Forsake(a vet.Arrival)
}

// Config of a Reliever. All fields are needed.
type Config struct {
	Dir, Host string
	Protocol  dvms.Protocol
	Every     time.Duration // between two looks
	Guests    Guests
	// CPUUse of a guest's process since it started.
	CPUUse func(ctx context.Context, id vee.ID) (time.Duration, error)
	// Self is the host as it is apart from its VEEs and what it goes by.
	Self func() peer.Load
	// Overlay of the others as they are now, and how to speak to one of them.
	Overlay func() dvms.Overlay
	Peer    func(host string) (peer.Relief, error)
	// Whereabouts of another host: where its agent listens, and its underlay address.
	Whereabouts func(host string) (address string, underlay netip.Addr, known bool)
	// Segments that a VEE has ports in, and Wire those that come with one that is expected.
	Segments func(id vee.ID) []plan.Segment
	Wire     func([]plan.Segment) error
	// Handed over: the other host runs the VEE. It may block for a while.
	Handed func(ctx context.Context, id vee.ID, to string)
	// Changed: what Peering says has. It must not block.
	Changed func()
	Log     *slog.Logger
}

const (
	// pollMove so often a leader asks how far a move is, and patience is for how long it may
	// hear nothing of it.
	pollMove = 500 * time.Millisecond
	patience = 30 * time.Second
	// askTimeout of one question to another host.
	askTimeout = 3 * time.Second
	// together so many moves of one plan go on at the same time.
	together = 4
	// keepPast partitions, for people.
	keepPast = 8
	// siteSilent for so many looks, a host goes on with what the site has begun.
	siteSilent = 6
	// askArrivals so often the source of a VEE that does not come is asked about it.
	askArrivals = time.Minute
)

// Reliever is a host's part in the relief of its site's hosts.
type Reliever struct {
	cfg   Config
	start time.Time
	wake  chan struct{} // of size one: the deadline may have changed

	mu      sync.Mutex
	ctx     context.Context // of Run; nil before and after
	wg      sync.WaitGroup
	company vhi.Company
	heard   dvms.Time // of it, last
	watch   Watch
	meter   meter
	node    dvms.Node
	plans   map[dvms.ID][]Move
	part    *vhi.Partition // as it is shown
	began   vhi.PastPartition
	past    []vhi.PastPartition
}

// disk is what a host remembers of it.
type disk struct {
	Number  uint64      `json:"number"` // of the last partition that it began
	Company vhi.Company `json:"company"`
}

// Open reads what was kept.
func Open(cfg Config) (*Reliever, error) {
	r := &Reliever{cfg: cfg, start: time.Now(), wake: make(chan struct{}, 1), plans: map[dvms.ID][]Move{}, meter: meter{}}
	var d disk
	if err := durable.ReadJSON(r.file(), &d); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fault.New(fault.Internal, "read what this host remembers of the others: %w", err).Try("remove %s: the site will tell again", r.file())
	}
	r.node, r.company = dvms.Node{Host: cfg.Host, Number: d.Number}, d.Company
	return r, nil
}

func (r *Reliever) file() string { return filepath.Join(r.cfg.Dir, "relief.json") }

// save what is to outlive the agent. r.mu is held.
func (r *Reliever) save(d disk) error {
	if err := durable.WriteJSON(r.file(), d, 0o600); err != nil {
		return fmt.Errorf("keep what this host remembers of the others: %w", err)
	}
	return nil
}

// Company is the site's word, to go by until the next.
func (r *Reliever) Company(c vhi.Company) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.company.Relief != c.Relief || r.company.Draining != c.Draining {
		if err := r.save(disk{Number: r.node.Number, Company: c}); err != nil {
			return err
		}
	}
	r.company, r.heard = c, r.now()
	return nil
}

// leaving: VEEs are to leave this host, and the site, which would see to it, is silent. r.mu is
// held.
func (r *Reliever) leaving() bool {
	return r.company.Draining && r.now()-r.heard > siteSilent*r.cfg.Every
}

// now on this agent's clock.
func (r *Reliever) now() dvms.Time { return time.Since(r.start) }

// Run takes part until ctx is done, and waits for all that it began; moves under way go on.
func (r *Reliever) Run(ctx context.Context) error {
	r.mu.Lock()
	r.ctx = ctx
	r.mu.Unlock()
	defer r.wg.Wait()
	look, asked := time.NewTimer(0), r.now()
	defer look.Stop()
	due := time.NewTimer(time.Hour)
	defer due.Stop()
	for {
		r.mu.Lock()
		if at, is := r.node.Deadline(r.cfg.Protocol); is {
			due.Reset(max(0, at-r.now()))
		}
		r.mu.Unlock()
		select {
		case <-ctx.Done():
			r.mu.Lock()
			r.ctx = nil
			r.mu.Unlock()
			return nil
		case <-r.wake:
		case <-due.C:
			r.Step(dvms.Tick{})
		case <-look.C:
			r.look(ctx)
			if r.now()-asked >= askArrivals {
				asked = r.now()
				r.askArrivals(ctx)
			}
			look.Reset(r.cfg.Every)
		}
	}
}

// look at the host, and tell the node.
func (r *Reliever) look(ctx context.Context) {
	standings := r.cfg.Guests.Standings()
	now := r.now()
	l := Look{}
	rates := meter{}
	total, movable := int64(0), false
	for _, s := range standings {
		if s.Power != vhi.Running {
			continue
		}
		l.Guests++
		movable = movable || s.Stays == ""
		used, err := r.cfg.CPUUse(ctx, s.VEE)
		if err != nil {
			continue // it has no process just now
		}
		r.mu.Lock()
		rates[s.VEE] = r.meter[s.VEE].read(used, now)
		r.mu.Unlock()
		total += rates[s.VEE].milli()
	}
	if cpus := r.cfg.Self().CPUs; cpus > 0 {
		l.CPU = float64(total) / 1000 / float64(cpus)
	}
	bySite, byHosts := r.cfg.Guests.Moves()
	r.mu.Lock()
	l.Leaving = r.leaving()
	r.meter = rates
	was := r.watch.Trouble
	r.watch = r.watch.Look(r.company.Relief, l, now)
	w := r.watch
	r.mu.Unlock()
	r.Step(dvms.Reserved{By: bySite || byHosts})
	switch {
	case w.Says(now) && movable:
		r.Step(dvms.Violated{Reason: w.Trouble})
	case w.Trouble == "":
		r.Step(dvms.Calm{})
	}
	if w.Trouble != was {
		r.cfg.Log.Info("load of this host", "of its CPUs", fmt.Sprintf("%.2f", w.Load), "trouble", w.Trouble, "guests", l.Guests)
		r.cfg.Changed()
	}
}

// meter of guests' CPU time.
type meter map[vee.ID]reading

type reading struct {
	used time.Duration
	at   dvms.Time
	rate float64 // CPUs, smoothed
	n    int     // readings
}

// read the counter again. One that runs backwards is another process's.
func (m reading) read(used time.Duration, at dvms.Time) reading {
	next := reading{used: used, at: at, n: 1}
	if m.n == 0 || used < m.used || at <= m.at {
		return next
	}
	rate := float64(used-m.used) / float64(at-m.at)
	next.rate, next.n = rate, m.n+1
	if m.n > 1 {
		next.rate = m.rate + smoothing*(rate-m.rate)
	}
	return next
}

func (m reading) milli() int64 { return int64(m.rate * 1000) }

// Step of the node, and what follows from it.
func (r *Reliever) Step(e dvms.Event) {
	r.mu.Lock()
	defer r.mu.Unlock()
	was := r.node
	node, actions := was.Step(r.cfg.Protocol, r.cfg.Overlay(), r.now(), e)
	if node.Number != was.Number {
		// The number is never used again, so that nobody takes this partition for another.
		if err := r.save(disk{Number: node.Number, Company: r.company}); err != nil {
			r.cfg.Log.Error("no partition is begun", "err", err)
			return
		}
	}
	r.node = node
	r.show(was)
	for _, a := range actions {
		r.act(a)
	}
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// Doubted host: its part in partitions ends.
func (r *Reliever) Doubted(host string) { r.Step(dvms.Suspect{Node: host}) }

// begin f beside, if the agent is not ending. r.mu is held.
func (r *Reliever) begin(f func(ctx context.Context)) {
	if ctx := r.ctx; ctx != nil && ctx.Err() == nil {
		r.wg.Go(func() { f(ctx) })
	}
}

// act as a step asks. r.mu is held.
func (r *Reliever) act(a dvms.Action) {
	switch a := a.(type) {
	case dvms.Send:
		r.begin(func(ctx context.Context) { r.tell(ctx, a.To, a.Message) })
	case dvms.Solve:
		r.begin(func(ctx context.Context) { r.solve(ctx, a.Partition) })
	case dvms.Apply:
		moves := r.plans[a.Partition.ID]
		delete(r.plans, a.Partition.ID)
		r.begin(func(ctx context.Context) { r.apply(ctx, a.Partition, moves) })
	case dvms.Escalate:
		r.cfg.Log.Warn("the hosts cannot help each other; the site is asked", "partition", a.Partition.ID, "reason", a.Partition.Reason, "members", a.Partition.Members)
		if a.Partition.ID.Initiator == r.cfg.Host {
			r.watch = r.watch.Helpless(r.now())
			r.began.Helpless = true
			if n := len(r.past); n > 0 && r.past[n-1].ID == a.Partition.ID.String() {
				r.past[n-1].Helpless = true // show was called already
			}
		}
	}
}

func (r *Reliever) tell(ctx context.Context, to string, m dvms.Message) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	p, err := r.cfg.Peer(to)
	if err == nil {
		err = p.Tell(ctx, m)
	}
	if err != nil { // lost; the protocol knows what to do
		r.cfg.Log.Debug("tell another host", "host", to, "what", fmt.Sprintf("%T", m), "err", err)
	}
}

// show the partition that the node is in, and remember what it began.
func (r *Reliever) show(was dvms.Node) {
	is := r.node
	if !is.In() && !was.In() || is.In() && was.In() && is.Part.ID == was.Part.ID && is.Part.Version == was.Part.Version && is.Pledged == was.Pledged {
		return
	}
	now := time.Now()
	if was.In() && was.Part.ID != is.Part.ID && was.Part.ID.Initiator == r.cfg.Host {
		r.began.Ended = now
		r.past = append(r.past, r.began)
		r.past = r.past[max(0, len(r.past)-keepPast):]
	}
	if was.Part.ID != is.Part.ID {
		r.part = nil
		if is.Part.ID.Initiator == r.cfg.Host {
			r.began = vhi.PastPartition{ID: is.Part.ID.String(), Reason: string(is.Part.Reason), Began: now}
		}
	}
	if is.In() {
		since := now
		if r.part != nil {
			since = r.part.Since
		}
		r.part = &vhi.Partition{ID: is.Part.ID.String(), Reason: string(is.Part.Reason), State: string(is.Part.State), Leader: is.Part.Leader, Members: is.Part.Members, Since: since}
		if is.Part.ID.Initiator == r.cfg.Host && len(is.Part.Members) >= len(r.began.Members) {
			r.began.Members = is.Part.Members
		}
	}
	if is.Leads() && (!was.Leads() || was.Part.State != is.Part.State) {
		r.cfg.Log.Info("leads a partition of hosts", "partition", is.Part.ID, "reason", is.Part.Reason, "state", is.Part.State, "members", is.Part.Members)
	}
	r.cfg.Changed()
}

// Peering as it is shown; who else there is, others know.
func (r *Reliever) Peering() vhi.Peering {
	r.mu.Lock()
	defer r.mu.Unlock()
	return vhi.Peering{Load: r.watch.Load, Trouble: string(r.watch.Trouble), In: r.part, Past: slices.Clone(r.past)}
}

// solve a partition's problem: ask the members what they have, and compute.
func (r *Reliever) solve(ctx context.Context, p dvms.Partition) {
	loads := make([]peer.Load, len(p.Members))
	answered := make([]bool, len(p.Members))
	var wg sync.WaitGroup
	for i, m := range p.Members {
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(ctx, askTimeout)
			defer cancel()
			from, err := r.peer(m)
			if err == nil {
				loads[i], err = from.Load(identity.With(ctx, r.caller()))
			}
			if answered[i] = err == nil && loads[i].Host == m; !answered[i] {
				r.cfg.Log.Info("a host does not say what it has", "host", m, "err", err)
			}
		})
	}
	wg.Wait()
	var heard []peer.Load
	for i, l := range loads {
		if answered[i] {
			heard = append(heard, l)
		}
	}
	moves, outcome := Plan(p, heard)
	r.cfg.Log.Info("solved a partition's problem", "partition", p.ID, "outcome", outcome, "moves", len(moves))
	r.mu.Lock()
	if outcome == dvms.Planned {
		r.plans[p.ID] = moves
	}
	r.mu.Unlock()
	r.Step(dvms.Solved{ID: p.ID, Version: p.Version, Outcome: outcome})
	r.mu.Lock()
	if r.node.Part.ID != p.ID {
		delete(r.plans, p.ID) // it is over
	}
	r.mu.Unlock()
}

// caller is this host to itself.
func (r *Reliever) caller() identity.Caller {
	return identity.Caller{ID: r.cfg.Host, Role: identity.HostRole, Host: r.cfg.Host}
}

// peer to speak to: this host too, to itself.
func (r *Reliever) peer(host string) (peer.Relief, error) {
	if host == r.cfg.Host {
		return own{r}, nil
	}
	return r.cfg.Peer(host)
}

// own is this host as one of its partition.
type own struct{ *Reliever }

func (own) Moved(context.Context, peer.Moved) error { return nil }

// apply a plan: what waits for another move begins when that has ended; after one that failed
// nothing begins any more.
func (r *Reliever) apply(ctx context.Context, p dvms.Partition, moves []Move) {
	ended := make([]chan struct{}, len(moves))
	for i := range ended {
		ended[i] = make(chan struct{})
	}
	var mu sync.Mutex
	failed := len(moves) == 0
	slots := make(chan struct{}, together)
	var wg sync.WaitGroup
	for i, m := range moves {
		wg.Go(func() {
			defer close(ended[i])
			for _, j := range m.After {
				<-ended[j]
			}
			slots <- struct{}{}
			defer func() { <-slots }()
			mu.Lock()
			stop := failed
			mu.Unlock()
			if stop {
				return
			}
			if err := r.carryOut(identity.With(ctx, r.caller()), p, m); err != nil {
				r.cfg.Log.Warn("a move of a plan has failed", "partition", p.ID, "vee", m.VEE, "from", m.From, "to", m.To, "err", err)
				mu.Lock()
				failed = true
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	r.Step(dvms.Applied{ID: p.ID, Failed: failed})
}

// carryOut one move of a plan, and wait for its end.
func (r *Reliever) carryOut(ctx context.Context, p dvms.Partition, m Move) error {
	from, err := r.peer(m.From)
	if err != nil {
		return err
	}
	why := map[dvms.Reason]string{dvms.Overloaded: "overload of ", dvms.Idle: "too little on ", dvms.Draining: "drain of "}[p.Reason] + p.ID.Initiator
	call, cancel := context.WithTimeout(ctx, 2*askTimeout) // it asks another
	move, err := from.Relieve(call, peer.Relieve{Agreed: peer.Agreed{Partition: p.ID, Plan: p.Plan}, VEE: m.VEE, Epoch: m.Epoch, To: m.To, Why: why})
	cancel()
	if err != nil {
		return err
	}
	heard := r.now()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pollMove):
		}
		call, cancel := context.WithTimeout(ctx, askTimeout)
		is, err := from.Moving(call, move, m.VEE)
		cancel()
		switch {
		case fault.Has(err, fault.NotFound):
			return err
		case err != nil && r.now()-heard > patience:
			return fmt.Errorf("host %s does not say what became of it: %w", m.From, err)
		case err != nil:
			continue
		case is.Stage == vhi.MoveTaken:
			return nil
		case is.Over():
			return fault.New(fault.Code(is.Code), "it stays on host %s: %s", m.From, is.Error)
		}
		heard = r.now()
	}
}

// Tell implements peer.Relief.
func (r *Reliever) Tell(_ context.Context, m dvms.Message) error { r.Step(m); return nil }

// Load implements peer.Relief.
func (r *Reliever) Load(context.Context) (peer.Load, error) {
	l := r.cfg.Self()
	standings := r.cfg.Guests.Standings()
	r.mu.Lock()
	defer r.mu.Unlock()
	l.Host, l.Relief, l.Leaving, l.VEEs = r.cfg.Host, r.company.Relief, r.leaving(), []peer.Taken{}
	if r.company.Draining && l.Closed == "" {
		l.Closed = "its VEEs are to leave it"
	}
	for _, s := range standings {
		d := s.Descriptor
		l.VEEs = append(l.VEEs, peer.Taken{VEE: s.VEE, Name: d.Name, Epoch: s.Epoch, Needs: promised(s), CPU: r.meter[s.VEE].milli(), Stays: s.Stays,
			Copy: d.Memory, Leased: s.Leased, Apart: s.Apart, Together: s.Together})
	}
	return l, nil
}

// promised to a VEE of this host; to one that does not run, its disk alone.
func promised(s vet.Standing) vee.Resources {
	all := s.Descriptor.Resources()
	switch s.Power {
	case vhi.Stopped, vhi.Absent:
		return vee.Resources{Disk: all.Disk}
	case vhi.Suspended:
		return vee.Resources{Disk: all.Disk + s.Descriptor.Memory}
	}
	return all
}

// Applying is the plan by which VEEs move to or from this host now, if there is one: nobody
// else begins to move any meanwhile.
func (r *Reliever) Applying() (partition string, is bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.node.Part.ID.String(), r.node.In() && !r.node.Pledged && r.node.Part.State == dvms.Applying
}

// agreed: this host knows of the plan, and nobody else moves VEEs of it.
func (r *Reliever) agreed(a peer.Agreed) error {
	bySite, _ := r.cfg.Guests.Moves()
	r.mu.Lock()
	defer r.mu.Unlock()
	if bySite || !r.node.Allows(a.Partition, a.Plan) {
		return fault.New(fault.Conflict, "host %s does not move VEEs by plan %v of partition %s now", r.cfg.Host, a.Plan, a.Partition)
	}
	return nil
}

// Relieve implements peer.Relief: the leader has this host hand a VEE over.
func (r *Reliever) Relieve(ctx context.Context, q peer.Relieve) (string, error) {
	if err := r.agreed(q.Agreed); err != nil {
		return "", err
	}
	r.mu.Lock()
	leader := r.node.Part.Leader
	r.mu.Unlock()
	if c := identity.From(ctx); c.Host != leader {
		return "", fault.New(fault.Denied, "host %q does not lead partition %s", c.Host, q.Partition)
	}
	standings := r.cfg.Guests.Standings()
	i := slices.IndexFunc(standings, func(s vet.Standing) bool { return s.VEE == q.VEE && s.Epoch == q.Epoch && s.Stays == "" })
	address, underlay, known := r.cfg.Whereabouts(q.To)
	switch {
	case i < 0:
		return "", fault.New(fault.Conflict, "VEE %s is not as it was planned for", q.VEE)
	case !known:
		return "", fault.New(fault.Unavailable, "host %s is not known here", q.To)
	}
	m := vhi.Move{ID: rand.Text()[:12], From: r.cfg.Host, To: q.To, Address: address, Underlay: underlay, Ticket: rand.Text(), By: q.Why}
	invited := standings[i].Assignment
	invited.Power, invited.Move = vhi.Incoming, &m
	to, err := r.cfg.Peer(q.To)
	if err == nil {
		err = to.Expect(ctx, peer.Expected{Agreed: q.Agreed, Assignment: invited, Segments: r.cfg.Segments(q.VEE)})
	}
	if err != nil {
		return "", fmt.Errorf("host %s does not expect VEE %s: %w", q.To, q.VEE, err)
	}
	if err := r.cfg.Guests.Depart(q.VEE, q.Epoch, m); err != nil {
		return "", err // the other host will ask, and be told
	}
	r.cfg.Log.Info("hands a VEE over by itself", "vee", q.VEE, "to", q.To, "why", q.Why, "move", m.ID)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.begin(func(ctx context.Context) { r.follow(ctx, q.VEE, m) })
	return m.ID, nil
}

// follow a hand-over to its end, and have it known where the VEE is.
func (r *Reliever) follow(ctx context.Context, id vee.ID, m vhi.Move) {
	for {
		p, err := r.cfg.Guests.Moving(m.ID, id)
		switch {
		case err == nil && p.Stage == vhi.MoveTaken:
			r.cfg.Handed(ctx, id, m.To)
			return
		case err != nil || p.Over():
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(pollMove):
		}
	}
}

// Moving implements peer.Relief.
func (r *Reliever) Moving(_ context.Context, move string, id vee.ID) (vhi.MoveReport, error) {
	return r.cfg.Guests.Moving(move, id)
}

// Expect implements peer.Relief.
func (r *Reliever) Expect(ctx context.Context, e peer.Expected) error {
	a := e.Assignment
	c := identity.From(ctx)
	switch {
	case a.Move == nil || a.Move.From != c.Host || a.Move.To != r.cfg.Host:
		return fault.New(fault.Denied, "host %q may announce what it sends to host %s, and nothing else", c.Host, r.cfg.Host)
	case a.Move.By == "":
		return fault.New(fault.Malformed, "VEE %s: nobody says why it moves", a.VEE)
	}
	if err := r.agreed(e.Agreed); err != nil {
		return err
	}
	self := r.cfg.Self()
	free := self.Capacity
	for _, s := range r.cfg.Guests.Standings() {
		if s.VEE != a.VEE {
			free = free.Minus(promised(s))
		}
	}
	switch needs := a.Descriptor.Resources(); {
	case self.Closed != "":
		return fault.New(fault.Conflict, "host %s takes no VEE: %s", r.cfg.Host, self.Closed)
	case a.Leased && !self.Guarded:
		return fault.New(fault.Unsupported, "host %s has no guard, which the restart policy of VEE %s needs", r.cfg.Host, a.VEE)
	case !needs.Fits(free):
		return fault.New(fault.NoResources, "host %s has no room for VEE %s any more", r.cfg.Host, a.VEE)
	}
	if err := r.cfg.Wire(e.Segments); err != nil {
		return err
	}
	return r.cfg.Guests.Expect(a)
}

// askArrivals asks for VEEs that were expected and do not come whether they still will.
func (r *Reliever) askArrivals(ctx context.Context) {
	for _, a := range r.cfg.Guests.Arrivals() {
		from, err := r.cfg.Peer(a.Move.From)
		if err != nil {
			continue
		}
		call, cancel := context.WithTimeout(ctx, askTimeout)
		p, err := from.Moving(call, a.Move.ID, a.VEE)
		cancel()
		if fault.Has(err, fault.NotFound) || err == nil && p.Over() && p.Stage != vhi.MoveTaken {
			r.cfg.Guests.Forsake(a)
		}
	}
}
