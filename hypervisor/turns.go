package hypervisor

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/reservoir-cloud/reservoir/vee"
)

// ErrClosed says that the driver was closed before or during a command.
var ErrClosed = errors.New("the driver is closed")

// Turns is how drivers keep the promises that all commands share: those about one guest
// go one after the other, each passes the fence when its turn comes (so that an old one
// that had to wait is refused too), and none goes on after the driver is closed.
type Turns struct {
	fence *Fence
	ctx   context.Context
	end   context.CancelCauseFunc
	calls sync.WaitGroup

	mu    sync.Mutex
	turns map[vee.ID]*turn
}

// turn of one guest's commands: who has put the token in has it.
type turn struct {
	token chan struct{}
	users int // who have it or wait for it
}

// NewTurns takes over the fence.
func NewTurns(f *Fence) *Turns {
	t := &Turns{fence: f, turns: map[vee.ID]*turn{}}
	t.ctx, t.end = context.WithCancelCause(context.Background())
	return t
}

// Take waits for the command's turn. The context that it returns ends with the caller's
// and with the driver; done gives the turn back and must be called. Errors: ErrStaleEpoch,
// ErrClosed, the context's, an identifier of the wrong shape.
func (t *Turns) Take(ctx context.Context, id vee.ID, e vee.Epoch) (_ context.Context, done func(), err error) {
	ctx, obey, done, err := t.TakeQuick(ctx, id, e)
	if err != nil {
		return nil, nil, err
	}
	if err := obey(); err != nil {
		done()
		return nil, nil, err
	}
	return ctx, done, nil
}

// TakeQuick is Take for a command that cannot wait for the disk: older epochs are refused as
// ever, a newer one is on disk when obey returns, which the command calls at its end. Its
// caller has the epoch on disk already.
func (t *Turns) TakeQuick(ctx context.Context, id vee.ID, e vee.Epoch) (_ context.Context, obey func() error, done func(), err error) {
	if _, err := vee.ParseID(string(id)); err != nil { // drivers make paths of it
		return nil, nil, nil, err
	}
	t.mu.Lock()
	if t.ctx.Err() != nil {
		t.mu.Unlock()
		return nil, nil, nil, ErrClosed
	}
	t.calls.Add(1)
	mine := t.turns[id]
	if mine == nil {
		mine = &turn{token: make(chan struct{}, 1)}
		t.turns[id] = mine
	}
	mine.users++
	t.mu.Unlock()

	ctx, cancel := context.WithCancelCause(ctx)
	stop := context.AfterFunc(t.ctx, func() { cancel(ErrClosed) })
	leave := func() {
		stop()
		cancel(nil)
		t.mu.Lock()
		if mine.users--; mine.users == 0 {
			delete(t.turns, id)
		}
		t.mu.Unlock()
		t.calls.Done()
	}
	select {
	case mine.token <- struct{}{}:
	case <-ctx.Done():
		leave()
		return nil, nil, nil, fmt.Errorf("wait for the command before: %w", context.Cause(ctx))
	}
	done = func() {
		<-mine.token
		leave()
	}
	if err := t.fence.Check(id, e); err != nil {
		done()
		return nil, nil, nil, err
	}
	return ctx, func() error { return t.fence.Obey(id, e) }, done, nil
}

// Obeyed is the newest epoch obeyed for id.
func (t *Turns) Obeyed(id vee.ID) vee.Epoch { return t.fence.Obeyed(id) }

// Close cuts the commands under way short, waits for them and closes the fence. It may be
// called twice.
func (t *Turns) Close() error {
	t.mu.Lock()
	closed := t.ctx.Err() != nil
	t.end(ErrClosed)
	t.mu.Unlock()
	t.calls.Wait()
	if closed {
		return nil //nolint:nilerr // the context has ended: that is what closed means
	}
	return t.fence.Close()
}
