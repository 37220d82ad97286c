package vet

import (
	"context"
	"crypto/subtle"
	"errors"
	"fmt"
	"io"
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
// by the site's ticket, sends disks and memory, and hands over. The commit point is the
// source's write of the gift (give): before it every failure, also the death of either
// agent, leaves the VEE with the source; after it the source does nothing but repeat the
// gift until it has the destination's answer (package handover).

// kept is what is on disk of a VEE: its assignment as it stands after handovers.
type kept struct {
	vhi.Assignment
	Handover handover.Part `json:"handover,omitzero"`
}

// moving is how far this host's part in the newest move is; lost with the agent, and then
// an attempt under way has failed.
type moving struct {
	id     string
	report vhi.MoveReport
	opened bool // destination: the ticket was used
	plugs  bool // destination: TAPs may be there, also when no guest is
	over   bool // it failed; nothing more is done for it
	told   time.Time
	sent   time.Time // source: when all of it was there
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
	}
	return next(a.Power, now, a.Descriptor.Restart)
}

// keep a, with what is to be remembered of handovers. v.mu is held.
func (v *tracked) keep(a vhi.Assignment, p handover.Part) error {
	if err := durable.WriteJSON(v.t.file(a.VEE), kept{a, p}, 0o600); err != nil {
		return coded(fmt.Errorf("keep the assignment of VEE %s: %w", a.VEE, err))
	}
	v.want, v.part = a, p
	return nil
}

// resume what was kept, after a start of the agent: a move under way has failed, unless
// it is past its commit point.
func (v *tracked) resume(k kept) {
	v.part = k.Handover
	if k.Move == nil {
		return
	}
	v.move = moving{id: k.Move.ID, over: true, plugs: k.Power == vhi.Incoming, report: vhi.MoveReport{ID: k.Move.ID, Stage: vhi.MoveFailed, Error: "the host's agent was restarted", Code: string(fault.Unavailable)}}
	switch {
	case v.part.State == handover.Given:
		v.move.report = vhi.MoveReport{ID: k.Move.ID, Stage: vhi.MoveGiven}
	case v.part.State == handover.Back && v.part.Move == k.Move.ID:
		v.move.report.Stage = vhi.MoveVoid
	}
}

// stage notes how far a move is.
func (v *tracked) stage(id string, change func(*vhi.MoveReport)) {
	v.mu.Lock()
	tell := false
	if v.move.id == id {
		before := v.move.report.Stage
		change(&v.move.report)
		if tell = before != v.move.report.Stage || time.Since(v.move.told) > tellMoveEvery; tell {
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
		v.move.report.Stage, v.move.report.Error, v.move.report.Code = stage, f.Message, string(f.Code)
	}
	v.mu.Unlock()
	v.nudge()
	v.t.cfg.Changed()
}

// send is the source's step: all of a move up to the commit point and the first gift.
func (v *tracked) send(ctx context.Context, a vhi.Assignment) error {
	to := v.t.cfg.Peer(a.Move.To, a.Move.Address)
	if err := v.sendTo(ctx, to, a); err != nil {
		if ctx.Err() != nil {
			err = fault.New(fault.Conflict, "the migration was cancelled: %w", err)
		}
		v.t.cfg.Log.Warn("a live migration failed; the VEE stays", "vee", a.VEE, "to", a.Move.To, "err", err)
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
	v.stage(m.ID, func(r *vhi.MoveReport) { r.Stage = vhi.MovePreparing })
	shape, err := d.Shape(ctx, a.VEE)
	if err != nil {
		return err
	}
	if err := to.Open(ctx, peer.Offer{Move: m.ID, Ticket: m.Ticket, VEE: a.VEE, Epoch: a.Epoch, Shape: shape}); err != nil {
		return fmt.Errorf("host %s makes no room: %w", m.To, err)
	}
	err = d.Send(ctx, a.VEE, a.Epoch, hypervisor.Sending{
		Dial: func(ctx context.Context, stream string) (io.ReadWriteCloser, error) {
			return to.Stream(ctx, m.ID, a.VEE, stream)
		},
		Bandwidth: m.Bandwidth, AutoConverge: m.AutoConverge,
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
	sent := time.Now()
	if err := v.commit(ctx, a, sent); err != nil {
		return errors.Join(err, v.t.cfg.Driver.Resume(context.WithoutCancel(ctx), a.VEE, a.Epoch))
	}
	if err := v.t.cfg.Plugs.Release(a.VEE, m.Underlay); err != nil { // the site's segments will say so too
		v.t.cfg.Log.Warn("stop owning the addresses of a VEE that was given away", "vee", a.VEE, "err", err)
	}
	return nil
}

// commit writes down that the VEE is given away, if that is still wanted.
func (v *tracked) commit(ctx context.Context, a vhi.Assignment, sent time.Time) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	if ctx.Err() != nil || v.want.Epoch != a.Epoch || v.want.Power != a.Power || moveID(v.want) != a.Move.ID {
		return fault.New(fault.Conflict, "it was cancelled at the last moment")
	}
	part := v.part.Give(a.Move.ID, a.Epoch)
	given := v.want
	given.Epoch = part.Epoch
	if err := v.keep(given, part); err != nil {
		return err
	}
	v.move.sent, v.move.report.Stage = sent, vhi.MoveGiven
	return nil
}

// give repeats the gift and obeys the answer.
func (v *tracked) give(ctx context.Context) error {
	v.mu.Lock()
	a, part := v.want, v.part
	gift := peer.Gift{Move: part.Move, VEE: a.VEE, Epoch: part.Asked}
	if !v.move.sent.IsZero() {
		gift.DowntimeMS = v.move.report.DowntimeMS + time.Since(v.move.sent).Milliseconds()
	}
	v.mu.Unlock()
	if part.State != handover.Given || a.Move == nil {
		return nil
	}
	call, cancel := context.WithTimeout(ctx, giveTimeout)
	defer cancel()
	answer, err := v.t.cfg.Peer(a.Move.To, a.Move.Address).Give(call, gift)
	if err != nil {
		return fmt.Errorf("given to host %s, whose answer is not known: it runs here again, or there, when that host answers: %w", a.Move.To, err)
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
	if now.State == handover.Back {
		if err := v.t.cfg.Plugs.Announce(a.VEE); err != nil {
			v.t.cfg.Log.Warn("own the addresses of a VEE again", "vee", a.VEE, "err", err)
		}
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
	if c := identity.From(ctx); c.Host != a.Move.From {
		return nil, a, fault.New(fault.Denied, "VEE %s is expected from host %s, not from %s", id, a.Move.From, c.Host)
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
	switch {
	case !ok:
		return fault.New(fault.Unsupported, "the hypervisor of this host cannot receive VEE %s", o.VEE)
	case subtle.ConstantTimeCompare([]byte(o.Ticket), []byte(a.Move.Ticket)) != 1 || a.Move.Ticket == "":
		return fault.New(fault.Denied, "VEE %s: the ticket is not the one that the site gave out", o.VEE)
	case o.Epoch != a.Epoch:
		return fault.New(fault.StaleEpoch, "VEE %s is expected under epoch %s, not %s", o.VEE, a.Epoch, o.Epoch)
	}
	v.mu.Lock()
	used := v.move.opened || v.move.over || v.move.id != o.Move
	v.move.opened, v.move.plugs = true, true
	v.mu.Unlock()
	if used {
		return fault.New(fault.Conflict, "VEE %s: the ticket of move %s was used", o.VEE, o.Move)
	}
	v.stage(o.Move, func(r *vhi.MoveReport) { r.Stage = vhi.MoveReceiving })
	g, err := v.guest(ctx, a)
	if err == nil {
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
	v, _, err := t.door(ctx, move, id)
	if err != nil {
		return nil, err
	}
	v.mu.Lock()
	open := v.move.id == move && v.move.opened && !v.move.over
	v.mu.Unlock()
	d, ok := t.cfg.Driver.(hypervisor.Migrator)
	if !open || !ok {
		return nil, fault.New(fault.WrongState, "VEE %s: move %s is not open", id, move)
	}
	c, err := d.Inlet(ctx, id, name)
	if err != nil {
		return nil, coded(err)
	}
	return c, nil
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
	waits := d != nil && v.want.Power == vhi.Incoming && v.move.id == g.Move && v.move.opened && !v.move.over
	v.mu.Unlock()
	if waits {
		load, cancel := context.WithTimeout(ctx, loadTimeout)
		err := d.Loaded(load, g.VEE)
		cancel()
		if complete = err == nil; !complete {
			t.cfg.Log.Warn("a VEE that was handed over is not complete", "vee", g.VEE, "err", err)
		}
	}
	word, err := v.decide(g, complete)
	if err != nil || word != handover.Yes {
		v.nudge()
		return peer.Answer{}, err
	}
	// The decision stands whatever comes now; what does not succeed here the loop repeats.
	if complete {
		if err := t.cfg.Plugs.Announce(g.VEE); err != nil { // the site's segments will say so too
			t.cfg.Log.Warn("own the addresses of a VEE that was taken", "vee", g.VEE, "err", err)
		}
		if err := d.Take(context.WithoutCancel(ctx), g.VEE, g.Epoch); err != nil {
			t.cfg.Log.Error("run a VEE that was taken", "vee", g.VEE, "err", err)
		}
	}
	v.stage(g.Move, func(r *vhi.MoveReport) {
		if complete && g.DowntimeMS > 0 {
			r.DowntimeMS = g.DowntimeMS + time.Since(came).Milliseconds()
		}
		r.Stage = vhi.MoveTaken
	})
	v.nudge()
	t.cfg.Changed()
	return peer.Answer{Taken: true}, nil
}

// recipient of a gift. One that this host has no memory of is not answered: a void could be
// wrong, and the site knows better.
func (t *Tracker) recipient(ctx context.Context, g peer.Gift) (*tracked, error) {
	v := t.find(g.VEE)
	if v == nil {
		return nil, fault.New(fault.NotFound, "VEE %s is not known on this host", g.VEE)
	}
	if c, a := identity.From(ctx), v.assigned(); a.Move != nil && a.Move.ID == g.Move && a.Move.From != c.Host {
		return nil, fault.New(fault.Denied, "VEE %s is expected from host %s, not from %s", g.VEE, a.Move.From, c.Host)
	}
	return v, nil
}

// decide about a gift, durably.
func (v *tracked) decide(g peer.Gift, complete bool) (handover.Word, error) {
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
	a.Epoch, a.Power, a.Move = part.Epoch, vhi.Running, nil
	if word == handover.No {
		a.Power = vhi.Absent
	}
	if err := v.keep(a, part); err != nil {
		return handover.Silence, err
	}
	if v.move.id == g.Move {
		if v.move.over = true; word == handover.No {
			v.move.report.Stage = vhi.MoveFailed
		}
	}
	return word, nil
}
