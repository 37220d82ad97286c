package vet

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/reservoir-cloud/reservoir/hypervisor"
	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/vee"
	"github.com/reservoir-cloud/reservoir/vhi"
	"github.com/reservoir-cloud/reservoir/vhi/peer"
)

// Cold migration: a VEE goes over stopped or suspended, as one stream that the driver packs
// (hypervisor.Packer). Who may have it is settled as in a live one (move.go): offer, gift, the
// destination's decision. Only what goes over differs, and that nobody waits for it: so the
// destination says that all of it is on its disk before the source gives it.

// coldStream is the name of the stream.
const coldStream = "guest"

// whole is the destination's word on the stream that it has everything.
const whole = 'w'

// travels are the conditions in which a VEE goes over cold.
var travels = map[vhi.Power]hypervisor.Condition{vhi.Stopped: hypervisor.Stopped, vhi.Suspended: hypervisor.Suspended}

// cold reports whether a is to go over cold.
func cold(a vhi.Assignment) bool { return a.Move != nil && a.Move.Cold != "" }

// errNoPacker is of a host whose driver cannot.
var errNoPacker = fault.New(fault.Unsupported, "the hypervisor of this host cannot hand a VEE over that does not run")

// carryTo sends a VEE that does not run, up to the gift.
func (v *tracked) carryTo(ctx context.Context, to peer.Host, a vhi.Assignment) error {
	p, can := v.t.cfg.Driver.(hypervisor.Packer)
	if !can {
		return errNoPacker
	}
	m := a.Move
	o, err := v.t.cfg.Driver.Inspect(ctx, a.VEE)
	switch {
	case errors.Is(err, hypervisor.ErrNotFound):
		return fault.New(fault.WrongState, "it has no disks here yet: there is nothing to move")
	case err == nil && o.Condition != travels[m.Cold]:
		err = fault.New(fault.WrongState, "it is %s here, and cannot go over %s", o.Condition, m.Cold)
	}
	if err != nil {
		return err
	}
	begun := time.Now()
	v.stage(m.ID, func(r *vhi.MoveReport) { r.Stage = vhi.MovePreparing })
	if err := to.Open(ctx, peer.Offer{Move: m.ID, Ticket: m.Ticket, VEE: a.VEE, Epoch: a.Epoch}); err != nil {
		return fmt.Errorf("host %s makes no room: %w", m.To, err)
	}
	opened := time.Now()
	if err := v.offer(a); err != nil {
		return err
	}
	c, err := to.Stream(ctx, m.ID, a.VEE, coldStream)
	if err != nil {
		return fmt.Errorf("reach the other host: %w", err)
	}
	defer c.Close()
	stop := context.AfterFunc(ctx, func() { c.Close() })
	defer stop()
	w := &paced{ctx: ctx, w: c, limit: func() vee.Bytes { return v.bandwidth(m.ID) }, told: func(n vee.Bytes) {
		v.stage(m.ID, func(r *vhi.MoveReport) {
			r.Stage, r.Total, r.Left = vhi.MoveDisks, max(o.DiskUsed, n), max(o.DiskUsed-n, 0)
		})
	}}
	if err := p.Pack(ctx, a.VEE, "", w); err != nil {
		return err
	}
	var word [1]byte
	if _, err := io.ReadFull(c, word[:]); err != nil || word[0] != whole {
		return fmt.Errorf("host %s has not got all of it: %w", m.To, errors.Join(err, context.Cause(ctx)))
	}
	return v.letGo(ctx, a, vhi.MoveFigures{DiskBytes: w.n, PrepareMS: vhi.Milliseconds(opened.Sub(begun)), DisksMS: vhi.Milliseconds(time.Since(opened))}, time.Time{})
}

// paced writes no more per second than the limit of the moment; 0: as fast as it goes.
type paced struct {
	ctx   context.Context
	w     io.Writer
	limit func() vee.Bytes
	told  func(vee.Bytes) // how much has been written
	n     vee.Bytes
	due   time.Time // when the next bytes may go
}

func (p *paced) Write(b []byte) (int, error) {
	n, err := p.w.Write(b)
	p.n += vee.Bytes(n)
	p.told(p.n)
	limit := p.limit()
	if err != nil || limit <= 0 {
		return n, err
	}
	if now := time.Now(); p.due.Before(now) {
		p.due = now
	}
	p.due = p.due.Add(time.Duration(float64(n) / float64(limit) * float64(time.Second)))
	t := time.NewTimer(time.Until(p.due))
	defer t.Stop()
	select {
	case <-t.C:
	case <-p.ctx.Done():
		return n, context.Cause(p.ctx)
	}
	return n, nil
}

// takeIn opens the stream that a VEE comes by which does not run. What comes is made a guest
// of, which stays as it came until it is decided that it is this host's.
func (t *Tracker) takeIn(v *tracked, a vhi.Assignment) (net.Conn, error) {
	p, can := t.cfg.Driver.(hypervisor.Packer)
	if !can {
		return nil, errNoPacker
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	ctx := t.ctx
	if ctx == nil || ctx.Err() != nil {
		return nil, fault.New(fault.Unavailable, "this host's agent is stopping")
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.move.id != a.Move.ID || v.move.over || v.move.load != nil {
		return nil, fault.New(fault.WrongState, "VEE %s: it comes already, or not any more", a.VEE)
	}
	near, far := net.Pipe()
	ctx, cancel := context.WithCancel(ctx)
	l := &load{done: make(chan struct{}), cancel: cancel}
	v.move.load = l
	t.wg.Go(func() {
		defer close(l.done)
		defer cancel()
		defer near.Close()
		stop := context.AfterFunc(ctx, func() { near.Close() })
		defer stop()
		if l.err = v.unpackFrom(ctx, p, a, near); l.err == nil {
			_, l.err = v.observe(ctx) // what is reported once it is taken is how it came
		}
		if l.err != nil {
			v.failMove(a.Move.ID, vhi.MoveFailed, l.err)
			return
		}
		t.wg.Go(func() { _, _ = io.Copy(io.Discard, near) }) // what is behind the end
		_, _ = near.Write([]byte{whole})                     // or the source finds that it is not said
	})
	return far, nil
}

func (v *tracked) unpackFrom(ctx context.Context, p hypervisor.Packer, a vhi.Assignment, r io.Reader) error {
	g, err := v.guest(ctx, a)
	if err != nil {
		return err
	}
	return p.Unpack(ctx, g, r)
}
