package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/reservoir-cloud/reservoir/internal/fault"
)

// Term is the time for which one of several processes leads: a Store whose writes are refused
// as soon as it is over, whatever the process believes. So two that both think they lead
// cannot both change anything. It is closed before the Store that it is of.
//
// Who leads is one row under a lease of etcd's. The lease decides when another may follow, and
// nothing else depends on it.
type Term struct {
	*Store
	done   chan struct{}
	ctx    context.Context
	end    context.CancelFunc
	keeper sync.WaitGroup
	lease  clientv3.LeaseID // 0: nobody else can lead

	mu    sync.Mutex
	until time.Time
}

// electionName is the collection of leaders: one row for each thing that is led.
const electionName = "leader"

// Leaders are the rows of elections, for who wants to know: each under the key that it was
// called by in Lead.
func Leaders[T any](s *Store) Collection[T] { return NewCollection[T](s, electionName) }

// Lead waits until this process leads what key names, and says so by value. When it is gone
// another leads after ttl (whole seconds); at once after Resign. A record that no other
// process can have open is led at once and for ever.
func (s *Store) Lead(ctx context.Context, key string, value any, ttl time.Duration) (*Term, error) {
	if s.client == nil || s.embedded != nil && !s.embedded.shared {
		return s.term(nil), nil
	}
	text, err := json.Marshal(value)
	if err != nil {
		return nil, fmt.Errorf("encode who leads: %w", err)
	}
	path := s.prefix + electionName + "/" + key
	for {
		t, err := s.campaign(ctx, path, string(text), ttl)
		switch {
		case t != nil:
			return t, nil
		case ctx.Err() != nil:
			return nil, fault.New(fault.Unavailable, "lead the site: %w", ctx.Err())
		case err != nil:
			s.log.Info("election: will try again", "error", err)
			pause(ctx, retryAfter)
		}
	}
}

// campaign once: nil when another leads that was there, and is gone now.
func (s *Store) campaign(ctx context.Context, path, value string, ttl time.Duration) (*Term, error) {
	began := time.Now()
	octx, cancel := context.WithTimeout(ctx, opTimeout)
	defer cancel()
	r, err := s.client.Get(octx, path)
	if err != nil {
		return nil, err
	}
	if len(r.Kvs) > 0 {
		s.awaitGone(ctx, path, r.Header.Revision)
		return nil, nil
	}
	lease, err := s.client.Grant(octx, int64(ttl/time.Second))
	if err != nil {
		return nil, err
	}
	w, err := s.client.Txn(octx).If(clientv3.Compare(clientv3.ModRevision(path), "=", 0)).
		Then(clientv3.OpPut(path, value, clientv3.WithLease(lease.ID))).Commit()
	if err != nil || !w.Succeeded {
		// An answer that was lost may have been yes: nobody leads until the lease is over.
		_, rerr := s.client.Revoke(context.WithoutCancel(octx), lease.ID)
		return nil, errors.Join(err, rerr)
	}
	t := s.term(&Op{verb: expect, what: "who leads the site", key: path, guard: uint64(w.Header.Revision)})
	t.lease, t.until = lease.ID, began.Add(ttl)
	t.keeper.Go(func() { t.keep(ttl) })
	return t, nil
}

// awaitGone returns when the row is deleted, or the watch breaks.
func (s *Store) awaitGone(ctx context.Context, path string, after int64) {
	ctx, cancel := context.WithCancel(clientv3.WithRequireLeader(ctx))
	defer cancel()
	for r := range s.client.Watch(ctx, path, clientv3.WithRev(after+1)) {
		if r.Err() != nil {
			return
		}
		for _, ev := range r.Events {
			if ev.Type == clientv3.EventTypeDelete {
				return
			}
		}
	}
}

func (s *Store) term(fence *Op) *Term {
	inner := &Store{records: s.records, client: s.client, members: s.members, prefix: s.prefix, log: s.log,
		generation: s.generation, embedded: s.embedded, borrowed: true}
	if fence != nil {
		inner.records = fenced{s.records, *fence}
	}
	inner.ctx, inner.cancel = context.WithCancel(s.ctx)
	t := &Term{Store: inner, done: make(chan struct{})}
	t.ctx, t.end = context.WithCancel(s.ctx)
	return t
}

// keep the lease until it is lost or given up.
func (t *Term) keep(ttl time.Duration) {
	defer close(t.done)
	for t.ctx.Err() == nil {
		left := time.Until(t.Until())
		if left <= 0 {
			return
		}
		sent := time.Now()
		ctx, cancel := context.WithTimeout(t.ctx, min(left, ttl/2))
		r, err := t.client.KeepAliveOnce(ctx, t.lease)
		cancel()
		switch {
		case err == nil && r.TTL > 0:
			t.mu.Lock()
			t.until = sent.Add(ttl)
			t.mu.Unlock()
			pause(t.ctx, ttl/4)
		case err == nil, isAny(err, rpctypes.ErrLeaseNotFound):
			return
		default:
			pause(t.ctx, retryAfter)
		}
	}
}

// Done is closed when another may lead.
func (t *Term) Done() <-chan struct{} { return t.done }

// Until when, at least, nobody else leads; the zero time: for ever.
func (t *Term) Until() time.Time {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.until
}

// Resign ends the term, so that another need not wait for the lease to run out. The Store of
// the term is closed.
func (t *Term) Resign(ctx context.Context) error {
	t.end()
	t.keeper.Wait()
	err := t.Close()
	if t.lease == 0 {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	if _, rerr := t.client.Revoke(ctx, t.lease); rerr != nil && !isAny(rerr, rpctypes.ErrLeaseNotFound) {
		err = errors.Join(err, fmt.Errorf("say that this process leads no more: %w", rerr)) // it runs out by itself
	}
	return err
}

// fenced are records that are written only while the fence, of verb expect, holds.
type fenced struct {
	records
	fence Op
}

var errDeposed = errors.New("another member of the site leads now")

func (f fenced) write(ctx context.Context, ops []Op) (version uint64, found []uint64, err error) {
	all := append(append(make([]Op, 0, len(ops)+1), ops...), f.fence)
	version, found, err = f.records.write(ctx, all)
	if err != nil || found == nil {
		return version, nil, err
	}
	if found[len(ops)] != f.fence.guard {
		return 0, nil, errDeposed
	}
	return 0, found[:len(ops)], nil
}

func (f fenced) deleteRange(ctx context.Context, from, to string, _ *Op) (done bool, err error) {
	done, err = f.records.deleteRange(ctx, from, to, &f.fence)
	if err == nil && !done {
		err = errDeposed
	}
	return done, err
}
