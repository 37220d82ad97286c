package conformance

import (
	"context"
	"errors"
	"io"
	"sync"
	"time"

	"github.com/reservoir-cloud/reservoir/hypervisor"
	"github.com/reservoir-cloud/reservoir/vee"
)

// pair is two drivers, as of two hosts, with a guest that is to move from one to the other.
type pair struct {
	*bench
	from, to hypervisor.Migrator
	there    *bench
	g        hypervisor.Guest
	cut      context.Context // ends every stream when it ends
}

// migrating has a running guest here and one that waits for it there; nil when the driver
// does not declare that it can.
func migrating(b *bench) *pair {
	b.Helper()
	from, ok := b.d.(hypervisor.Migrator)
	if can := b.can(hypervisor.OpMigrate); can != ok {
		b.Errorf("declares %q: %v, implements hypervisor.Migrator: %v", hypervisor.OpMigrate, can, ok)
		return nil
	} else if !ok {
		b.notDeclared = true
		return nil
	}
	there := &bench{T: b.T, f: b.f, dir: b.TempDir()}
	there.open()
	p := &pair{bench: b, from: from, to: there.d.(hypervisor.Migrator), there: there, g: b.running(one), cut: b.Context()}
	p.receive()
	return p
}

func (p *pair) receive() {
	p.Helper()
	shape, err := p.from.Shape(p.Context(), one)
	p.must("shape", err)
	p.must("receive", p.to.Receive(p.Context(), p.g, shape))
	p.there.is(one, hypervisor.Incoming)
}

// streams counts what travels, so that a test can cut it.
func (p *pair) dial(ctx context.Context, stream string) (io.ReadWriteCloser, error) {
	conn, err := p.to.Inlet(ctx, one, stream)
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(p.cut, func() { conn.Close() })
	p.Cleanup(func() { stop() })
	return conn, nil
}

func (p *pair) send(ctx context.Context, progress func(hypervisor.Transfer)) error {
	_, err := p.from.Send(ctx, one, p.g.Epoch, hypervisor.Sending{Dial: p.dial, Progress: progress})
	return err
}

func (p *pair) take() {
	p.Helper()
	_, err := p.to.Take(p.Context(), one, next(p.g.Epoch))
	p.must("take", err)
}

func next(e vee.Epoch) vee.Epoch { e.Hop++; return e }

// migrates: memory and disk arrive, and the guest goes on there alone.
func migrates(b *bench) {
	p := migrating(b)
	if p == nil {
		return
	}
	ctx := b.Context()
	t := b.terminal(one)
	t.await("B")
	t.count(1)
	var last hypervisor.Transfer
	begun := time.Now()
	took, err := p.from.Send(ctx, one, p.g.Epoch, hypervisor.Sending{Dial: p.dial, Progress: func(t hypervisor.Transfer) { last = t }})
	b.must("send", err)
	b.is(one, hypervisor.Sent)
	b.must("send once more", p.send(ctx, nil))
	if last.What != "switchover" || last.Total == 0 {
		b.Errorf("the last that was told of progress: %+v", last)
	}
	if took.Memory == 0 || took.Stopped.Before(begun) || took.Stopped.After(time.Now()) {
		b.Errorf("what it took: %+v", took)
	}
	b.must("loaded", p.to.Loaded(ctx, one))
	ran, err := p.to.Take(ctx, one, next(p.g.Epoch))
	b.must("take", err)
	if ran.Before(took.Stopped) || ran.After(time.Now()) {
		b.Errorf("stopped %s, runs since %s", took.Stopped, ran)
	}
	p.take() // once more
	p.there.is(one, hypervisor.Running)
	b.refused("a command of the epoch before", p.there.d.Pause(ctx, one, p.g.Epoch), hypervisor.ErrStaleEpoch)
	b.must("destroy the one that was sent", b.d.Destroy(ctx, one, next(p.g.Epoch)))
	b.is(one, hypervisor.Absent)
	p.there.terminal(one).count(2) // counted in memory
	p.there.reopen()
	p.there.is(one, hypervisor.Running)
	g := p.g
	g.Epoch = next(g.Epoch)
	b.must("stop", p.there.d.Stop(ctx, one, g.Epoch, 0))
	b.must("start", p.there.d.Start(ctx, g))
	if n := p.there.terminal(one).await("B"); n != 2 { // counted on disk
		b.Errorf("its disk remembers %d boots, want 2", n)
	}
}

// migrationTakenBack: what was sent and not taken runs on here, also after a restart of
// the agent, and can be sent again.
func migrationTakenBack(b *bench) {
	p := migrating(b)
	if p == nil {
		return
	}
	ctx := b.Context()
	t := b.terminal(one)
	t.await("B")
	t.count(1)
	b.must("send", p.send(ctx, nil))
	b.must("destroy the incoming", p.there.d.Destroy(ctx, one, p.g.Epoch))
	b.reopen()
	p.from = b.d.(hypervisor.Migrator)
	b.is(one, hypervisor.Sent)
	b.must("resume", b.d.Resume(ctx, one, p.g.Epoch))
	b.is(one, hypervisor.Running)
	b.terminal(one).count(2)
	p.receive()
	b.must("send again", p.send(ctx, nil))
	b.must("loaded", p.to.Loaded(ctx, one))
	p.take()
	p.there.terminal(one).count(3)
}

// migrationCut: whatever is cut, and whenever, the guest runs on here.
func migrationCut(b *bench) {
	p := migrating(b)
	if p == nil {
		return
	}
	t := b.terminal(one)
	t.await("B")
	t.count(1)
	lost := errors.New("the test cut it")
	for i, what := range []string{"disks", "memory", "switchover", "context"} {
		if i > 0 {
			p.receive()
		}
		cut, end := context.WithCancelCause(b.Context())
		p.cut = cut
		ctx, cancel := context.WithCancelCause(b.Context())
		var once sync.Once
		err := p.send(ctx, func(t hypervisor.Transfer) {
			if t.What == what || what == "context" {
				once.Do(func() {
					if what == "context" {
						cancel(lost)
					} else {
						end(lost)
					}
				})
			}
		})
		cancel(nil)
		if err == nil { // it was over before the cut was felt
			b.must("resume", b.d.Resume(b.Context(), one, p.g.Epoch))
		}
		b.is(one, hypervisor.Running)
		b.terminal(one).count(i + 2)
		b.must("destroy the incoming", p.there.d.Destroy(b.Context(), one, p.g.Epoch))
		end(nil)
	}
}

// migrationForgotten: an agent that dies while its guest is incoming or being sent leaves
// nothing but the guest as it was.
func migrationForgotten(b *bench) {
	p := migrating(b)
	if p == nil {
		return
	}
	p.there.reopen()
	if o := p.there.is(one, hypervisor.Crashed); o.PID != 0 {
		b.Errorf("process %d waits for streams that are gone", o.PID)
	}
	p.to = p.there.d.(hypervisor.Migrator)
	b.must("destroy the incoming", p.there.d.Destroy(b.Context(), one, p.g.Epoch))
	p.receive()
	b.must("send", p.send(b.Context(), nil))
	b.must("loaded", p.to.Loaded(b.Context(), one))
	p.there.reopen()
	p.to = p.there.d.(hypervisor.Migrator)
	p.there.is(one, hypervisor.Incoming) // complete: for the agents to agree on
	p.take()
	p.there.is(one, hypervisor.Running)
}
