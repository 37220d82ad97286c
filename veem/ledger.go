package veem

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/vee"
)

// maxValue bounds one record, maxWrite the values of one write: an etcd cluster takes
// requests of 1.5 MiB unless it was told otherwise.
const (
	maxValue = 256 << 10
	maxWrite = 1 << 20
)

// ledger holds the manager's records in memory, exactly as they are in the store. A change
// is a function on a transaction (tx); changes run one after the other in the ledger's own
// goroutine, those that wait at the same time are written together, and memory shows them
// when the store has them. So a change may decide on everything that it sees, such as free
// capacity and free addresses, without a lock of its own.
type ledger struct {
	store   Records
	gen     uint64
	now     func() time.Time
	log     *slog.Logger
	changed func([]change) // after each write, in order; must not block

	queue chan *request // nil when stepped: whoever calls do writes
	turn  sync.Mutex    // who writes, when stepped
	done  chan struct{} // closed when run has ended
	stale bool          // memory may not be what the store has; the goroutine's own

	mu sync.RWMutex // guards rows and versions of the shelves for readers
	state
}

// state is all records, each kind on its shelf.
type state struct {
	vees     shelf[record]
	hosts    shelf[hostRecord]
	points   shelf[pointRecord]
	receipts shelf[receipt]
	accounts shelf[registration]
	quotas   shelf[quotaRecord]
	runs     shelf[runRecord]
	networks shelf[networkRecord]
	logs     shelf[logRecord]
	switches shelf[contextSwitch]
	// reservations of capacity for a later time.
	reservations shelf[reservation]

	segments segments // an index of the rows
}

// change of a VEE, or of anything else (both nil). before is nil for a new one, after for
// one that was dropped.
type change struct {
	kind, key     string
	before, after *record
}

type request struct {
	f    func(*tx) error
	done chan error
}

func newLedger(s Records, gen uint64, now func() time.Time, log *slog.Logger, changed func([]change), stepped bool) *ledger {
	l := &ledger{store: s, gen: gen, now: now, log: log, changed: changed, done: make(chan struct{})}
	if !stepped {
		l.queue = make(chan *request)
	}
	l.vees.kind, l.hosts.kind, l.points.kind, l.receipts.kind = kindVEE, kindHost, kindPoint, kindReceipt
	l.accounts.kind, l.quotas.kind, l.networks.kind, l.runs.kind, l.logs.kind, l.switches.kind = kindAccount, kindQuota, kindNetwork, kindRun, kindLog, kindSwitch
	l.reservations.kind = kindReservation
	l.segments = newSegments()
	for _, s := range l.shelves() {
		s.clear()
	}
	return l
}

func (s *state) shelves() []anyShelf {
	return []anyShelf{&s.vees, &s.hosts, &s.points, &s.receipts, &s.accounts, &s.quotas, &s.networks, &s.runs, &s.logs, &s.switches, &s.reservations}
}

// read lets f look at the records as they are in the store. f must not keep the maps, and
// not wait for anything.
func (l *ledger) read(f func(*state)) {
	l.mu.RLock()
	defer l.mu.RUnlock()
	f(&l.state)
}

func (l *ledger) vee(id vee.ID) (r record, ok bool) {
	l.read(func(s *state) {
		if p := s.vees.rows[string(id)]; p != nil {
			r, ok = *p, true
		}
	})
	return r, ok
}

func (l *ledger) host(name string) (h hostRecord, ok bool) {
	l.read(func(s *state) {
		if p := s.hosts.rows[name]; p != nil {
			h, ok = *p, true
		}
	})
	return h, ok
}

// do runs f as a change and returns when it is in the store. An error of f drops what f
// has changed and is returned as it is. f may run more than once.
func (l *ledger) do(ctx context.Context, f func(*tx) error) error {
	r := &request{f: f, done: make(chan error, 1)}
	if l.queue == nil {
		return l.doNow(ctx, r)
	}
	select {
	case l.queue <- r:
	case <-l.done:
		return errStopped()
	case <-ctx.Done():
		return fmt.Errorf("wait for the record of truth: %w", ctx.Err())
	}
	select {
	case err := <-r.done:
		return err
	case <-ctx.Done():
		return fmt.Errorf("wait for the record of truth: %w", ctx.Err())
	}
}

// doNow does a change in the goroutine of its caller.
func (l *ledger) doNow(ctx context.Context, r *request) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("wait for the record of truth: %w", err)
	}
	l.turn.Lock()
	defer l.turn.Unlock()
	l.commit(context.WithoutCancel(ctx), []*request{r})
	return <-r.done
}

func errStopped() error {
	return fault.New(fault.Unavailable, "the site's VEE Manager is stopping")
}

// run writes changes until ctx is done. A write under way is finished.
func (l *ledger) run(ctx context.Context) {
	defer close(l.done)
	for {
		select {
		case <-ctx.Done():
			return
		case r := <-l.queue:
			l.commit(context.WithoutCancel(ctx), l.gather(r))
		}
	}
}

// gather what is waiting already.
func (l *ledger) gather(first *request) []*request {
	batch := []*request{first}
	for len(batch) < MaxOps {
		select {
		case r := <-l.queue:
			batch = append(batch, r)
		default:
			return batch
		}
	}
	return batch
}

// commit a batch, in as few writes as possible.
func (l *ledger) commit(ctx context.Context, batch []*request) {
	for tries := 0; len(batch) > 0; tries++ {
		n, ops, errs := l.draft(ctx, batch)
		err := l.write(ctx, ops)
		if overtaken(err) && tries < 3 {
			// Somebody else wrote, or a write whose outcome was not known has happened.
			l.log.Warn("records changed behind the manager's back: read again", "err", err)
			continue
		}
		for i, r := range batch[:n] {
			if errs[i] == nil {
				errs[i] = err
			}
			r.done <- errs[i]
		}
		batch, tries = batch[n:], 0
	}
}

// draft runs as many of the batch as go into one write, at least one.
func (l *ledger) draft(ctx context.Context, batch []*request) (n int, ops []Op, errs []error) {
	if l.stale {
		if err := l.load(ctx); err != nil {
			return len(batch), nil, slices.Repeat([]error{err}, len(batch))
		}
	}
	t := &tx{state: &l.state, now: l.now()}
	for n < len(batch) {
		mark := len(t.undo)
		err := batch[n].f(t)
		if err != nil {
			t.rollback(mark)
		}
		more := t.ops()
		if n > 0 && (len(more) > MaxOps || size(more) > maxWrite) {
			t.rollback(mark) // it goes into the next write
			break
		}
		ops, errs = more, append(errs, err)
		n++
	}
	return n, ops, errs
}

// write ops, show them, or forget them.
func (l *ledger) write(ctx context.Context, ops []Op) error {
	if len(ops) == 0 {
		return nil
	}
	versions, err := l.persist(ctx, ops)
	if err != nil {
		for _, s := range l.shelves() {
			s.forget()
		}
		l.stale = l.stale || overtaken(err) || fault.Has(err, fault.Unavailable) || fault.Has(err, fault.Timeout)
		return err
	}
	var changes []change
	l.mu.Lock()
	for i, o := range ops {
		for _, s := range l.shelves() {
			if s.name() == o.Kind {
				changes = append(changes, s.publish(o.Key, versions[i]))
			}
		}
	}
	for _, c := range changes {
		l.index(c)
	}
	l.mu.Unlock()
	l.changed(changes)
	return nil
}

// overtake a version of a segment that a host has from another time.
func (l *ledger) overtake(id string, version uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.segments.last = max(l.segments.last, version)
	l.segments.touch(id, l.now())
}

// index keeps the segments in line with the rows. l.mu is held.
func (l *ledger) index(c change) {
	now := l.now()
	switch c.kind {
	case kindVEE:
		l.segments.moved(c.before, c.after, now)
	case kindNetwork:
		l.segments.touch(c.key, now)
	case kindHost: // its underlay address may be another
		for _, r := range l.vees.rows {
			if r.Host == c.key {
				for id := range segmentsOf(r) {
					l.segments.touch(id, now)
				}
			}
		}
	}
}

// persist writes ops and returns the version of each. What does not go into one transaction
// is made of new rows for the most part: they are announced by an intent, written bit by
// bit, and the last transaction, which drops the intent, is the commit point. A load that
// finds an intent removes what it names.
func (l *ledger) persist(ctx context.Context, ops []Op) (versions []uint64, err error) {
	versions = make([]uint64, len(ops)+1) // and the intent's
	for _, o := range ops {
		if len(o.Value) > maxValue {
			return nil, fault.New(fault.TooLarge, "%s %q takes %v in the record of truth: at most %v", o.Kind, o.Key, vee.Bytes(len(o.Value)), vee.Bytes(maxValue))
		}
	}
	if len(ops) <= MaxOps && size(ops) <= maxWrite {
		v, err := l.store.Write(ctx, ops)
		return slices.Repeat([]uint64{v}, len(ops)), err
	}
	var fresh, rest []int
	var keys []string
	for i, o := range ops {
		if o.Kind == kindVEE && o.Version == 0 {
			fresh, keys = append(fresh, i), append(keys, o.Key)
		} else {
			rest = append(rest, i)
		}
	}
	intent := Op{Kind: kindIntent, Key: "create"}
	if intent.Value, err = json.Marshal(keys); err != nil {
		return nil, fmt.Errorf("encode an intent: %w", err)
	}
	if intent.Version, err = l.store.Write(ctx, []Op{intent}); err != nil {
		return nil, err
	}
	l.stale = true // until the commit point is reached
	for len(fresh) > 0 {
		n := 0
		for bytes := 0; n < len(fresh) && n < MaxOps && bytes+len(ops[fresh[n]].Value) <= maxWrite; n++ {
			bytes += len(ops[fresh[n]].Value)
		}
		if err := l.storePart(ctx, ops, fresh[:n], versions); err != nil {
			return nil, err
		}
		fresh = fresh[n:]
	}
	intent.Value = nil
	if err := l.storePart(ctx, append(slices.Clip(ops), intent), append(rest, len(ops)), versions); err != nil {
		return nil, err
	}
	l.stale = false
	return versions[:len(ops)], nil
}

func (l *ledger) storePart(ctx context.Context, ops []Op, which []int, versions []uint64) error {
	part := make([]Op, len(which))
	for k, i := range which {
		part[k] = ops[i]
	}
	v, err := l.store.Write(ctx, part)
	for _, i := range which {
		versions[i] = v
	}
	return err
}

// load all records, undoing a large write that was cut off.
func (l *ledger) load(ctx context.Context) error {
	rows, err := l.store.Load(ctx)
	if err != nil {
		return err
	}
	if rows, err = l.undoIntents(ctx, rows); err != nil {
		return err
	}
	l.mu.Lock()
	before := maps.Clone(l.vees.rows)
	for _, s := range l.shelves() {
		s.clear()
	}
	for _, row := range rows {
		for _, s := range l.shelves() {
			if s.name() == row.Kind {
				err = errors.Join(err, s.load(row))
			}
		}
	}
	for _, r := range l.vees.rows {
		if r.State != vee.Destroyed && r.Lease == nil { // else by the log of ownership
			r.Epoch.Generation = max(r.Epoch.Generation, l.gen) // hosts refuse older ones
		}
	}
	l.segments.members = map[string]map[vee.ID]struct{}{}
	for _, r := range l.vees.rows {
		l.segments.moved(nil, r, l.now())
	}
	var changes []change
	for key, r := range l.vees.rows {
		if old := before[key]; old == nil || old.Version != r.Version {
			changes = append(changes, change{kindVEE, key, old, r})
		}
	}
	for key, old := range before {
		if l.vees.rows[key] == nil {
			changes = append(changes, change{kindVEE, key, old, nil})
		}
	}
	for key := range l.networks.rows {
		changes = append(changes, change{kind: kindNetwork, key: key})
	}
	again := l.stale
	l.stale = err != nil
	l.mu.Unlock()
	if err == nil && again {
		l.changed(changes)
	}
	return err
}

func (l *ledger) undoIntents(ctx context.Context, rows []Row) ([]Row, error) {
	doomed := map[string]bool{}
	for _, row := range rows {
		var keys []string
		if row.Kind != kindIntent {
			continue
		}
		if err := json.Unmarshal(row.Value, &keys); err != nil {
			return nil, fmt.Errorf("decode intent %q as stored: %w", row.Key, err)
		}
		for _, k := range keys {
			doomed[k] = true
		}
	}
	var ops, intents []Op
	rows = slices.DeleteFunc(rows, func(row Row) bool {
		switch {
		case row.Kind == kindIntent:
			intents = append(intents, Op{Kind: row.Kind, Key: row.Key, Version: row.Version})
		case row.Kind == kindVEE && doomed[row.Key]:
			ops = append(ops, Op{Kind: row.Kind, Key: row.Key, Version: row.Version})
		default:
			return false
		}
		return true
	})
	for part := range slices.Chunk(append(ops, intents...), MaxOps) {
		if _, err := l.store.Write(ctx, part); err != nil {
			return nil, fmt.Errorf("undo a write that was cut off: %w", err)
		}
	}
	return rows, nil
}

func size(ops []Op) (n int) {
	for _, o := range ops {
		n += len(o.Value)
	}
	return n
}
