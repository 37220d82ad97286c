package vet

import (
	"context"
	"crypto/subtle"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/reservoir-cloud/reservoir/agent/handover"
	"github.com/reservoir-cloud/reservoir/hypervisor"
	"github.com/reservoir-cloud/reservoir/internal/durable"
	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/internal/identity"
	"github.com/reservoir-cloud/reservoir/vee"
	"github.com/reservoir-cloud/reservoir/vhi"
	"github.com/reservoir-cloud/reservoir/vhi/peer"
)

// Live migration. The source carries everything out: it opens the door at the destination
// by the site's ticket, writes down that it may give the VEE away (offer), sends disks and
// memory, and gives it (give). The commit point is the destination's write that it takes it
// (decide), the only one while the guest stands still: before it every failure leaves the
// VEE with the source, after it the VEE is the destination's. A source that has sent the
// gift, or cannot know whether it did, does nothing but repeat it until it has the
// destination's answer (package handover).

// kept is what is on disk of a VEE: its assignment as it stands after handovers.
type kept struct {
	vhi.Assignment
	Handover handover.Part `json:"handover,omitzero"`
	// Moved is the report of a move whose gift was sent or taken, and Stopped since when the
	// guest stands still for it, by this host's clock.
	Moved   *vhi.MoveReport `json:"moved,omitempty"`
	Stopped time.Time       `json:"stopped,omitzero"`
	// Origin of the newest move from another site, for it may ask again what became of it.
	Origin *vhi.Origin `json:"origin,omitempty"`
}

// moving is how far this host's part in the newest move is; lost with the agent, and then
// an attempt under way has failed.
type moving struct {
	id     string
	report vhi.MoveReport
	opened bool   // destination: the ticket was used
	source string // destination: who used it, by SPIFFE ID
	plugs  bool   // destination: TAPs may be there, also when no guest is
	load   *load  // destination: of its memory; nil before that is on its way
	taking bool   // destination: its guest is being let run
	over   bool   // it failed; nothing more is done for it
	told   time.Time
	// stopped is since when the vCPUs stand still, by this host's clock; zero before the gift.
	stopped time.Time
}

// keep what is to outlive the agent.
func (m moving) keep(k *kept) {
	if m.report.Took != (vhi.MoveFigures{}) {
		k.Moved, k.Stopped = &m.report, m.stopped
	}
}

// Limits of what one host waits for at another.
const (
	giveTimeout    = 20 * time.Second
	loadTimeout    = 10 * time.Second
	abandonTimeout = 3 * time.Second
	tellMoveEvery  = 500 * time.Millisecond
)

func moveID(a vhi.Assignment) string {
	if a.Move == nil {
		return ""
	}
	return a.Move.ID
}

// nextOf is next, for a VEE that may be moving.
func nextOf(a vhi.Assignment, part handover.State, m moving, now hypervisor.Condition) step {
	switch {
	case part == handover.Given:
		return give
	case m.plugs && now == hypervisor.Absent && (a.Power == vhi.Absent || a.Power == vhi.Incoming && (m.over || !m.opened)):
		return destroy
	case a.Power == vhi.Incoming:
		if now != hypervisor.Absent && (!m.opened || m.over || now == hypervisor.Crashed) {
			return destroy // what is left of an attempt
		}
		return rest
	case a.Power == vhi.Running && a.Move != nil && now == hypervisor.Running && !m.over:
		return send
	case cold(a) && !m.over:
		s := next(a.Power, now, a.Descriptor.Restart) // it comes to rest first
		if s == rest || s == failed {
			s = send
		}
		return s
	}
	return next(a.Power, now, a.Descriptor.Restart)
}

// keep a, with what is to be remembered of handovers. v.mu is held.
func (v *tracked) keep(a vhi.Assignment, p handover.Part) error {
	k := kept{Assignment: a, Handover: p, Origin: v.origin}
	if a.Move != nil {
		k.Origin = a.Move.Origin
	}
	v.move.keep(&k)
	if err := durable.WriteJSON(v.t.file(a.VEE), k, 0o600); err != nil {
		return coded(fmt.Errorf("keep the assignment of VEE %s: %w", a.VEE, err))
	}
	v.want, v.part, v.origin = a, p, k.Origin
	return nil
}

// expects hosts of another site.
func (v *tracked) expects() *vhi.Origin {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.origin
}

// mayGive reports whether c may be the source of a move: the host that was named, or one of
// the site that was.
func mayGive(o *vhi.Origin, from string, c identity.Caller) bool {
	if o != nil {
		return c.Is(identity.PartnerHost) && c.Site == o.Site
	}
	return c.Is(identity.HostRole) && c.Host == from
}

// resume what was kept, after a start of the agent that found the guest as v.seen: a move
// under way has failed, unless the VEE may have been given away.
func (v *tracked) resume(k kept) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.part, v.origin = k.Handover, k.Origin
	if k.Moved != nil {
		v.move = moving{id: k.Moved.ID, over: true, report: *k.Moved, stopped: k.Stopped}
	}
	if k.Move == nil {
		return nil
	}
	if v.part.State == handover.Offered {
		switch v.seen.Condition {
		case hypervisor.Sent, hypervisor.Crashed, hypervisor.Absent, hypervisor.Stopped, hypervisor.Suspended:
			v.part = v.part.Recall(false)
			v.want.Epoch = v.part.Epoch
			if v.move.id == "" {
				v.move = moving{id: k.Move.ID, report: k.Move.Report("")}
			}
			v.move.report.Stage = vhi.MoveGiven
			return nil
		}
		v.move = moving{}
		if err := v.keep(v.want, v.part.Recall(true)); err != nil {
			return err
		}
	}
	v.move = moving{id: k.Move.ID, over: true, plugs: k.Power == vhi.Incoming, report: k.Move.Report(vhi.MoveFailed)}
	v.move.report.Error, v.move.report.Code = "the host's agent was restarted", string(fault.Unavailable)
	if v.part.State == handover.Back && v.part.Move == k.Move.ID {
		v.move.report.Stage = vhi.MoveVoid
	}
	return nil
}

// stage notes how far a move is.
func (v *tracked) stage(id string, change func(*vhi.MoveReport)) {
	v.mu.Lock()
	tell := false
	if v.move.id == id {
		before := v.move.report.Stage
		change(&v.move.report)
		news := before != v.move.report.Stage || time.Since(v.move.told) > tellMoveEvery
		// While the guest stands still nothing else is done; the end of it is told soon.
		if tell = news && v.move.report.Stage != vhi.MoveSwitchover; tell {
			v.move.told = time.Now()
		}
	}
	v.mu.Unlock()
	if tell {
		v.t.cfg.Changed()
	}
}

// failMove ends a move that did not take place.
func (v *tracked) failMove(id string, stage vhi.MoveStage, err error) {
	v.mu.Lock()
	if v.move.id == id && !v.move.over {
		f := fault.From(coded(err))
		v.move.over = true
		v.move.load.giveUp()
		v.move.report.Stage, v.move.report.Error, v.move.report.Code = stage, f.Message, string(f.Code)
	}
	v.mu.Unlock()
	v.nudge()
	v.t.cfg.Changed()
}

// send is the source's step: all of a move up to the commit point and the first gift.
func (v *tracked) send(ctx context.Context, a vhi.Assignment) error {
	to := v.t.cfg.Peer(*a.Move)
	way := v.sendTo
	if cold(a) {
		way = v.carryTo
	}
	if err := way(ctx, to, a); err != nil {
		if ctx.Err() != nil {
			err = fault.New(fault.Conflict, "the migration was cancelled: %w", err)
		}
		v.t.cfg.Log.Warn("a migration failed; the VEE stays", "vee", a.VEE, "to", a.Move.To, "err", err)
		v.failMove(a.Move.ID, vhi.MoveFailed, err)
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), abandonTimeout)
		defer cancel()
		_ = to.Abandon(ctx, a.Move.ID, a.VEE) // or the site tells it
		return nil                            // the move has failed, not the VEE
	}
	return v.give(ctx)
}

func (v *tracked) sendTo(ctx context.Context, to peer.Host, a vhi.Assignment) error {
	d, ok := v.t.cfg.Driver.(hypervisor.Migrator)
	if !ok {
		return fmt.Errorf("live migration: %w", hypervisor.ErrUnsupported)
	}
	m := a.Move
	begun := time.Now()
	v.stage(m.ID, func(r *vhi.MoveReport) { r.Stage = vhi.MovePreparing })
	shape, err := d.Shape(ctx, a.VEE)
	if err != nil {
		return err
	}
	if err := to.Open(ctx, peer.Offer{Move: m.ID, Ticket: m.Ticket, VEE: a.VEE, Epoch: a.Epoch, Shape: shape}); err != nil {
		return fmt.Errorf("host %s makes no room: %w", m.To, err)
	}
	prepared := time.Since(begun)
	if err := v.offer(a); err != nil {
		return err
	}
	took, err := d.Send(ctx, a.VEE, a.Epoch, hypervisor.Sending{
		Dial: func(ctx context.Context, stream string) (io.ReadWriteCloser, error) {
			return to.Stream(ctx, m.ID, a.VEE, stream)
		},
		Bandwidth: func() vee.Bytes { return v.bandwidth(m.ID) }, AutoConverge: m.AutoConverge,
		Progress: func(t hypervisor.Transfer) {
			v.stage(m.ID, func(r *vhi.MoveReport) {
				r.Stage = map[string]vhi.MoveStage{"disks": vhi.MoveDisks, "memory": vhi.MoveMemory}[t.What]
				if r.Stage == "" {
					r.Stage = vhi.MoveSwitchover
				}
				r.Total, r.Left, r.DirtyRate, r.DowntimeMS = t.Total, t.Left, t.DirtyRate, t.Downtime.Milliseconds()
			})
		},
	})
	if err != nil {
		return err
	}
	figures := vhi.MoveFigures{
		DiskBytes: took.Disks, MemoryBytes: took.Memory,
		PrepareMS: vhi.Milliseconds(prepared), DisksMS: vhi.Milliseconds(took.DisksTook), MemoryMS: vhi.Milliseconds(took.MemoryTook),
	}
	if err := v.letGo(ctx, a, figures, took.Stopped); err != nil {
		return errors.Join(err, v.t.cfg.Driver.Resume(context.WithoutCancel(ctx), a.VEE, a.Epoch))
	}
	return nil
}

// wants reports whether the site still wants the move of a. v.mu is held.
func (v *tracked) wants(a vhi.Assignment) bool {
	return v.want.Epoch == a.Epoch && v.want.Power == a.Power && moveID(v.want) == a.Move.ID
}

// bandwidth that the site allows the move now.
func (v *tracked) bandwidth(id string) vee.Bytes {
	v.mu.Lock()
	defer v.mu.Unlock()
	if moveID(v.want) != id {
		return 0 // it is being cancelled
	}
	return v.want.Move.Bandwidth
}

// offer writes down that the VEE may be given away from now on.
func (v *tracked) offer(a vhi.Assignment) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	if !v.wants(a) {
		return fault.New(fault.Conflict, "it was cancelled")
	}
	return v.keep(v.want, v.part.Offer(a.Move.ID, a.Epoch))
}

// letGo is the moment from which the site cannot cancel: the gift is sent next. stopped is
// since when the vCPUs stand still for it; zero: they did not run.
func (v *tracked) letGo(ctx context.Context, a vhi.Assignment, took vhi.MoveFigures, stopped time.Time) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	if ctx.Err() != nil || !v.wants(a) || v.part.State != handover.Offered {
		return fault.New(fault.Conflict, "it was cancelled at the last moment")
	}
	v.part = v.part.Give()
	v.want.Epoch = v.part.Epoch
	v.move.stopped = stopped
	v.move.report.Stage, v.move.report.Took = vhi.MoveGiven, took
	return nil
}

// noteGift has the figures of a gift outlive the agent, beside the offer.
func (v *tracked) noteGift() {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.part.State != handover.Given {
		return // answered meanwhile
	}
	k := kept{Assignment: v.want, Handover: v.part.Ungiven()}
	k.Epoch = k.Handover.Epoch
	v.move.keep(&k)
	if err := durable.WriteJSON(v.t.file(k.VEE), k, 0o600); err != nil {
		v.t.cfg.Log.Warn("note how a migration goes", "vee", k.VEE, "err", err)
	}
}

// give repeats the gift and obeys the answer.
func (v *tracked) give(ctx context.Context) error {
	v.mu.Lock()
	a, part := v.want, v.part
	gift := peer.Gift{Move: part.Move, VEE: a.VEE, Epoch: part.Asked, Took: v.move.report.Took}
	if !v.move.stopped.IsZero() {
		gift.StillUS = time.Since(v.move.stopped).Microseconds()
	}
	v.mu.Unlock()
	if part.State != handover.Given || a.Move == nil {
		return nil
	}
	call, cancel := context.WithTimeout(ctx, giveTimeout)
	defer cancel()
	var answer peer.Answer
	err := v.giveLease(call, a)
	if err == nil {
		answer, err = v.t.cfg.Peer(*a.Move).Give(call, gift)
	} else if errors.Is(err, errNotGiven) {
		err = nil // as if it had been refused
	}
	if err != nil {
		v.noteGift()
		return fmt.Errorf("given to host %s, whose answer is not known: it runs here again, or there, when that host answers: %w", a.Move.To, err)
	}
	if answer.Taken {
		if err := v.t.cfg.Plugs.Release(a.VEE, a.Move.Underlay); err != nil { // the site's segments will say so too
			v.t.cfg.Log.Warn("stop owning the addresses of a VEE that was given away", "vee", a.VEE, "err", err)
		}
	}
	if a.Leased && !answer.Taken {
		if err := v.t.cfg.Leases.Void(ctx, a.VEE, part.Asked); err != nil {
			return err
		}
	}
	v.mu.Lock()
	defer v.nudge()
	defer v.mu.Unlock()
	now := v.part.Answer(part.Move, part.Asked, answer.Taken)
	if now == v.part {
		return nil
	}
	a = v.want
	if a.Epoch = now.Epoch; now.State == handover.Gone {
		a.Power, a.Move = vhi.Absent, nil
	}
	if err := v.keep(a, now); err != nil {
		return err
	}
	if now.State == handover.Back && v.move.id == part.Move {
		v.move.over = true
		v.move.report.Stage, v.move.report.Code = vhi.MoveVoid, string(fault.Unavailable)
		v.move.report.Error = "host " + a.Move.To + " could not take it; it runs where it was"
	}
	return nil
}

// door finds the VEE that a peer speaks of. from proves to be the source of its move.
func (t *Tracker) door(ctx context.Context, move string, id vee.ID) (*tracked, vhi.Assignment, error) {
	v := t.find(id)
	if v == nil {
		return nil, vhi.Assignment{}, fault.New(fault.NotFound, "VEE %s is not expected on this host", id)
	}
	a := v.assigned()
	if a.Power != vhi.Incoming || moveID(a) != move {
		return nil, a, fault.New(fault.NotFound, "VEE %s is not expected on this host by move %s", id, move)
	}
	c := identity.From(ctx)
	if !mayGive(a.Move.Origin, a.Move.From, c) {
		return nil, a, fault.New(fault.Denied, "VEE %s is expected from host %s, not from %s", id, a.Move.From, c.ID)
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if a.Move.Origin != nil && v.move.opened && v.move.source != c.ID {
		return nil, a, fault.New(fault.Denied, "VEE %s comes from %s, not from %s", id, v.move.source, c.ID)
	}
	return v, a, nil
}

// Open implements peer.Host: disks are made and a process waits when it returns.
func (t *Tracker) Open(ctx context.Context, o peer.Offer) error {
	v, a, err := t.door(ctx, o.Move, o.VEE)
	if err != nil {
		return err
	}
	d, ok := t.cfg.Driver.(hypervisor.Migrator)
	if cold(a) {
		_, ok = t.cfg.Driver.(hypervisor.Packer)
	}
	switch {
	case !ok:
		return fault.New(fault.Unsupported, "the hypervisor of this host cannot receive VEE %s", o.VEE)
	case subtle.ConstantTimeCompare([]byte(o.Ticket), []byte(a.Move.Ticket)) != 1 || a.Move.Ticket == "":
		return fault.New(fault.Denied, "VEE %s: the ticket is not the one that the site gave out", o.VEE)
	case o.Epoch != a.Epoch && (a.Move.Origin == nil || o.Epoch.Compare(a.Epoch) < 0): // another site may have gone on with it
		return fault.New(fault.StaleEpoch, "VEE %s is expected under epoch %s, not %s", o.VEE, a.Epoch, o.Epoch)
	}
	v.mu.Lock()
	used := v.move.opened || v.move.over || v.move.id != o.Move
	v.move.opened, v.move.plugs = true, true
	if !used {
		v.move.source = identity.From(ctx).ID
	}
	v.mu.Unlock()
	if used {
		return fault.New(fault.Conflict, "VEE %s: the ticket of move %s was used", o.VEE, o.Move)
	}
	v.stage(o.Move, func(r *vhi.MoveReport) { r.Stage = vhi.MoveReceiving })
	g, err := v.guest(ctx, a)
	if err == nil && !cold(a) {
		err = d.Receive(ctx, g, o.Shape)
	}
	if err != nil {
		err = coded(fmt.Errorf("make room for VEE %s: %w", o.VEE, err))
		v.failMove(o.Move, vhi.MoveFailed, err)
	}
	return err
}

// Stream implements peer.Host.
func (t *Tracker) Stream(ctx context.Context, move string, id vee.ID, name string) (io.ReadWriteCloser, error) {
	v, a, err := t.door(ctx, move, id)
	if err != nil {
		return nil, err
	}
	v.mu.Lock()
	open := v.move.id == move && v.move.opened && !v.move.over
	v.mu.Unlock()
	d, ok := t.cfg.Driver.(hypervisor.Migrator)
	switch {
	case !open, !ok && !cold(a), cold(a) != (name == coldStream):
		return nil, fault.New(fault.WrongState, "VEE %s: move %s is not open", id, move)
	case cold(a):
		return t.takeIn(v, a)
	}
	c, err := d.Inlet(ctx, id, name)
	if err != nil {
		return nil, coded(err)
	}
	if name == hypervisor.MemoryStream {
		t.awaitLoad(v, d, move)
	}
	return c, nil
}

// awaitLoad of a VEE's memory, from before the gift.
func (t *Tracker) awaitLoad(v *tracked, d hypervisor.Migrator, move string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	ctx := t.ctx
	if ctx == nil || ctx.Err() != nil {
		return
	}
	l := &load{done: make(chan struct{})}
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.move.id != move {
		return
	}
	v.move.load = l
	id := v.want.VEE
	t.wg.Go(func() { defer close(l.done); l.err = d.Loaded(ctx, id) })
}

// load of a VEE's memory, or of all of it. err is nil, once done is closed, if everything is
// here.
type load struct {
	done   chan struct{}
	err    error
	cancel context.CancelFunc // nil: whoever carries it sees to its end
}

// giveUp what nobody waits for any more. l may be nil.
func (l *load) giveUp() {
	if l != nil && l.cancel != nil {
		l.cancel()
	}
}

func (l *load) wait(ctx context.Context) error {
	if l == nil {
		return errors.New("no memory has come")
	}
	t := time.NewTimer(loadTimeout)
	defer t.Stop()
	select {
	case <-l.done:
		return l.err
	case <-t.C:
		return fmt.Errorf("its memory is not all here after %s", loadTimeout)
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// Abandon implements peer.Host.
func (t *Tracker) Abandon(ctx context.Context, move string, id vee.ID) error {
	v, _, err := t.door(ctx, move, id)
	if err != nil {
		return err
	}
	v.failMove(move, vhi.MoveFailed, fault.New(fault.Conflict, "the source gave it up"))
	return nil
}

// Give implements peer.Host: the decision is on disk, and the guest runs if it was taken,
// when it returns.
func (t *Tracker) Give(ctx context.Context, g peer.Gift) (peer.Answer, error) {
	came := time.Now()
	v, err := t.recipient(ctx, g)
	if err != nil {
		return peer.Answer{}, err
	}
	d, _ := t.cfg.Driver.(hypervisor.Migrator)
	complete := false
	v.mu.Lock()
	still := cold(v.want)
	waits := (d != nil || still) && v.want.Power == vhi.Incoming && v.move.id == g.Move && v.move.opened && !v.move.over
	l, leased := v.move.load, v.want.Leased
	v.mu.Unlock()
	if waits {
		err := l.wait(ctx)
		if err == nil && leased {
			err = t.cfg.Leases.Open(ctx, g.VEE, g.Epoch)
		}
		if complete = err == nil; !complete {
			t.cfg.Log.Warn("a VEE that was handed over is not complete", "vee", g.VEE, "err", err)
		}
	}
	word, err := v.decide(g, complete, came)
	if err != nil || word != handover.Yes {
		v.nudge()
		return peer.Answer{}, err
	}
	// The decision stands whatever comes now; what does not succeed here the loop repeats.
	if complete && leased {
		if err := t.cfg.Leases.Take(ctx, g.VEE, identity.From(ctx).Host, g.Epoch); err != nil {
			complete = false // its lease ended just now; the site will know, and give it away
			t.cfg.Log.Error("run a VEE that was taken", "vee", g.VEE, "err", err)
		}
	}
	if complete {
		// It need not wait for the kernel's networks, nor they for it.
		var announcing sync.WaitGroup
		announcing.Go(func() {
			if err := t.cfg.Plugs.Announce(g.VEE); err != nil { // the site's segments will say so too
				t.cfg.Log.Warn("own the addresses of a VEE that was taken", "vee", g.VEE, "err", err)
			}
		})
		defer announcing.Wait()
		if !still { // else it is there as it came
			err = v.take(context.WithoutCancel(ctx), d, g.Epoch)
		}
		if err != nil {
			t.cfg.Log.Error("run a VEE that was taken", "vee", g.VEE, "err", err)
		}
	}
	v.nudge()
	t.cfg.Changed()
	return peer.Answer{Taken: true}, nil
}

// take lets a VEE run that was decided to be taken, and completes the report of its move.
func (v *tracked) take(ctx context.Context, d hypervisor.Migrator, e vee.Epoch) error {
	v.mu.Lock()
	v.move.taking = true
	v.mu.Unlock()
	ran, err := d.Take(ctx, v.assigned().VEE, e)
	defer v.t.cfg.Changed()
	v.mu.Lock()
	defer v.mu.Unlock()
	v.move.taking = false
	if !ran.IsZero() {
		v.arrived(ran)
	}
	return err
}

// arrived completes the report of a move that was taken, by when the VEE ran. v.mu is held.
func (v *tracked) arrived(ran time.Time) {
	r := &v.move.report
	if v.part.State != handover.Taken || v.move.id != v.part.Move || r.Stage == vhi.MoveTaken {
		return
	}
	r.Stage, r.Took.DowntimeMS = vhi.MoveTaken, vhi.Milliseconds(ran.Sub(v.move.stopped))
	// It runs whether or not this can be written; the next agent would work it out again.
	if err := v.keep(v.want, v.part); err != nil {
		v.t.cfg.Log.Warn("note how a migration went", "vee", v.want.VEE, "err", err)
	}
}

// recipient of a gift. One that this host has no memory of is not answered: a void could be
// wrong, and the site knows better.
func (t *Tracker) recipient(ctx context.Context, g peer.Gift) (*tracked, error) {
	v := t.find(g.VEE)
	if v == nil {
		return nil, fault.New(fault.NotFound, "VEE %s is not known on this host", g.VEE)
	}
	c := identity.From(ctx)
	v.mu.Lock()
	defer v.mu.Unlock()
	if m := v.want.Move; m != nil && m.ID == g.Move && !mayGive(m.Origin, m.From, c) {
		return nil, fault.New(fault.Denied, "VEE %s is expected from host %s, not from %s", g.VEE, m.From, c.ID)
	}
	// Of what was decided only the source's host asks again, or one of the source's site.
	if c.Is(identity.PartnerHost) && (v.origin == nil || v.origin.Site != c.Site || v.move.id == g.Move && v.move.source != "" && v.move.source != c.ID) {
		return nil, fault.New(fault.Denied, "VEE %s is not expected from %s", g.VEE, c.ID)
	}
	return v, nil
}

// decide about a gift, durably.
func (v *tracked) decide(g peer.Gift, complete bool, came time.Time) (handover.Word, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	complete = complete && v.want.Power == vhi.Incoming && v.move.id == g.Move && !v.move.over
	part, word := v.part.Take(g.Move, g.Epoch, v.want.Epoch, complete)
	if word == handover.Silence {
		return word, fault.New(fault.Conflict, "VEE %s: the gift of epoch %s is too old to be answered", g.VEE, g.Epoch)
	}
	if part == v.part {
		return word, nil
	}
	a := v.want
	report, as := vhi.MoveReport{ID: g.Move}, vhi.Running
	if a.Move != nil {
		report = a.Move.Report("")
	}
	still := cold(a)
	if still {
		as = a.Move.Cold
	}
	a.Epoch, a.Power, a.Move = part.Epoch, as, nil
	if word == handover.No {
		a.Power = vhi.Absent
	}
	before := v.move
	switch {
	case v.move.id != g.Move:
	case word == handover.Yes:
		report.Stage, report.Took = vhi.MoveReceiving, g.Took
		if v.move.over = true; still {
			report.Stage = vhi.MoveTaken
		} else {
			v.move.stopped = came.Add(-time.Duration(g.StillUS) * time.Microsecond)
		}
		v.move.report = report
	default:
		v.move.over, v.move.report.Stage = true, vhi.MoveFailed
	}
	if err := v.keep(a, part); err != nil {
		v.move = before
		return handover.Silence, err
	}
	return word, nil
}
