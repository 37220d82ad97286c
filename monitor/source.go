package monitor

import (
	"cmp"
	"context"
	"log/slog"
	"math"
	"slices"
	"sync"
	"time"

	"github.com/reservoir-cloud/reservoir/internal/fault"
)

// Timings and bounds of a Source.
const (
	flushEvery   = time.Second           // what was measured waits no longer
	breath       = 20 * time.Millisecond // between reports when there is more
	aliveEvery   = 5 * time.Second       // a report goes out, for the orders in its answer
	tellEvery    = time.Minute           // a probe is told though only its counts have changed
	maxTold      = 500                   // probes in one report
	retryMost    = 15 * time.Second      // between two attempts at a report
	collectMost  = 10 * time.Second      // a collection may take
	maxCollects  = 16                    // at once
	maxReport    = 5000                  // measurements in one report
	maxBytes     = 2 << 20               // about, and what one measurement more has
	maxBuffered  = 100_000               // values that wait for a site that is away; then the oldest go
	reportWithin = 30 * time.Second
)

// MaxProbes of one source: six for each VEE, on a host with three thousand.
const MaxProbes = 20_000

// SourceConfig of a Source.
type SourceConfig struct {
	Uplink      Uplink
	MaxProbes   int    // 0: as many as a site remembers
	Incarnation string // drawn at each start
	Limits      Limits // of its regulator
	// Load of this machine, runnable tasks for each CPU; nil: not looked at.
	Load func() float64
	Now  func() time.Time
	Log  *slog.Logger
}

// Source is a data source: it owns probes, runs them, and reports what they measure.
// Nothing that a person has set is kept here: the answer to the first report brings it.
type Source struct {
	cfg  SourceConfig
	wake chan struct{} // of size one: something may be due earlier than thought

	mu        sync.Mutex
	probes    map[Ref]*loaded
	orders    string // version of those in effect
	ordered   map[Ref]Settings
	bySite    Regulation
	bySelf    Regulation
	regulator Regulator
	looked    time.Time // by the regulator
	collected int       // values since
	buffer    []Reported
	buffered  int // values in buffer
	lost      map[Reason]int
	gone      []Ref // probes that were removed, since that was told
	full      bool  // it was said that there are too many probes
}

// loaded is a probe of a source.
type loaded struct {
	status  Status // what it is, and counts
	core    ran
	collect Collect
	due     time.Time
	told    time.Time // to the site; zero: never, or not as it is now
	busy    bool
	late    bool               // it was due while it was busy
	pending map[fieldKey]Value // that was pushed and waits until due
	at      time.Time          // of pending
}

// NewSource without probes.
func NewSource(cfg SourceConfig) *Source {
	cfg.MaxProbes = cmp.Or(cfg.MaxProbes, MaxProbes)
	return &Source{cfg: cfg, wake: make(chan struct{}, 1), probes: map[Ref]*loaded{}, ordered: map[Ref]Settings{},
		lost: map[Reason]int{}, regulator: Regulator{Limits: cfg.Limits}, looked: cfg.Now()}
}

// Add loads a probe, also while the source runs; one of the same Ref is replaced. Collect
// may be nil for a probe that lives on events alone. It is called by one goroutine at a
// time, with a context that ends when it takes too long. It reports false when there are too
// many: whoever wants the probe adds it again once others are gone.
func (s *Source) Add(p Probe, collect Collect) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, there := s.probes[p.Ref]; !there && len(s.probes) >= s.cfg.MaxProbes {
		if !s.full {
			s.cfg.Log.Warn("a source has too many probes: the first that waits for room is named", "probe", p.String(), "most", s.cfg.MaxProbes)
		}
		s.full = true
		return false
	}
	l := &loaded{status: Status{Probe: p}, collect: collect, due: s.cfg.Now()}
	s.set(l)
	s.probes[p.Ref] = l
	s.signal()
	return true
}

// Remove unloads a probe.
func (s *Source) Remove(r Ref) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, there := s.probes[r]; there {
		delete(s.probes, r)
		s.gone, s.full = append(s.gone, r), false
	}
}

// Event hands a probe values that were measured elsewhere, such as by a guest. They are
// passed over while the probe is off or not there.
func (s *Source) Event(r Ref, at time.Time, values ...Value) {
	s.mu.Lock()
	defer s.mu.Unlock()
	l := s.probes[r]
	if l == nil || !l.core.settings.On {
		return
	}
	if s.every(l) == 0 {
		s.take(l, at, values)
	} else {
		if len(l.pending) == 0 {
			l.pending = map[fieldKey]Value{}
			s.signal() // one that waits is awaited already
		}
		for _, v := range values {
			if _, there := l.pending[v.key()]; !there || !at.Before(l.at) {
				l.pending[v.key()] = v
			}
		}
		if at.After(l.at) {
			l.at = at
		}
	}
}

// Refuse counts n values that were passed over before they came here; the site is told.
func (s *Source) Refuse(why Reason, n int) {
	if n <= 0 {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lost[why] += n
}

// Probes that there are, by Ref.
func (s *Source) Probes() []Status {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := make([]Status, 0, len(s.probes))
	for _, l := range s.probes {
		all = append(all, l.status)
	}
	slices.SortFunc(all, func(a, b Status) int { return cmp.Or(cmp.Compare(a.VEE, b.VEE), cmp.Compare(a.Name, b.Name)) })
	return all
}

// Run collects and reports until ctx ends; once it does, what is buffered is lost.
func (s *Source) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() { s.report(ctx) })
	slots := make(chan struct{}, maxCollects)
	for ctx.Err() == nil {
		ready, next := s.due()
		for _, l := range ready {
			select {
			case slots <- struct{}{}:
			case <-ctx.Done():
				return nil
			}
			wg.Go(func() {
				defer func() { <-slots }()
				s.run(ctx, l)
			})
		}
		s.sleep(ctx, next)
	}
	return nil
}

// signal that something may be due.
func (s *Source) signal() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

func (s *Source) sleep(ctx context.Context, d time.Duration) {
	t := time.NewTimer(max(d, 0))
	defer t.Stop()
	select {
	case <-t.C:
	case <-s.wake:
	case <-ctx.Done():
	}
}

// every is a probe's interval after regulation.
func (s *Source) every(l *loaded) time.Duration {
	return time.Duration(float64(l.core.settings.Every()) * s.bySite.harder(s.bySelf).Of(l.status.Kind))
}

// set a probe to what is ordered, or what it came with, and as far as it is regulated.
func (s *Source) set(l *loaded) {
	want, ordered := s.ordered[l.status.Ref]
	if !ordered {
		want = l.status.Settings
	}
	if l.core.settings != want {
		l.core = ran{settings: want} // what was sent under other settings says nothing
		l.due = s.cfg.Now()
		if !want.On {
			l.pending, l.status.LastError = nil, ""
		}
	}
	before := l.status
	l.status.Now, l.status.Slowed = want, ""
	if every := s.every(l); want.On && every != want.Every() {
		r := s.bySite.harder(s.bySelf)
		l.status.Now.EveryMS, l.status.Slowed = every.Milliseconds(), r.Why
	}
	if before.Now != l.status.Now || before.Slowed != l.status.Slowed {
		l.told = time.Time{}
	}
}

// due probes, and how long until the next one is. Those that are due are marked busy.
func (s *Source) due() (ready []*loaded, next time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.cfg.Now()
	s.regulate(now)
	next = time.Minute
	for _, l := range s.probes {
		every := s.every(l)
		if !l.core.settings.On || every == 0 {
			continue
		}
		if l.collect == nil && len(l.pending) == 0 {
			continue // the next push wakes
		}
		if wait := l.due.Sub(now); wait > every { // the clock was set back
			l.due = now.Add(every)
		} else if wait <= 0 {
			if l.late = l.busy; l.late {
				continue // its end wakes
			}
			l.due = after(l.due, now, every)
			if l.collect == nil {
				s.flushPending(l)
				continue
			}
			l.busy = true
			ready = append(ready, l)
		}
		next = min(next, l.due.Sub(now))
	}
	return ready, next
}

// flushPending takes what was pushed.
func (s *Source) flushPending(l *loaded) {
	values := make([]Value, 0, len(l.pending))
	for _, v := range l.pending {
		values = append(values, v)
	}
	slices.SortFunc(values, func(a, b Value) int { return cmp.Or(cmp.Compare(a.Field, b.Field), cmp.Compare(a.Labels, b.Labels)) })
	s.take(l, l.at, values)
	l.pending = nil
}

// regulate by what was collected since the last look, ten seconds ago or more.
func (s *Source) regulate(now time.Time) {
	elapsed := now.Sub(s.looked)
	if elapsed >= 0 && elapsed < 10*time.Second {
		return
	}
	seen := Seen{Values: s.collected, Elapsed: elapsed}
	if s.cfg.Load != nil {
		seen.Load = s.cfg.Load()
	}
	s.looked, s.collected = now, 0
	if r := s.regulator.Step(seen); r != s.bySelf {
		s.regulated(&s.bySelf, r, "this host")
	}
}

// regulated: a regulation has changed.
func (s *Source) regulated(which *Regulation, to Regulation, by string) {
	s.cfg.Log.Warn("probes are regulated", "by", by, "intervals times", to.Of(VEEKind), "because", to.Why)
	*which = to
	for _, l := range s.probes {
		s.set(l)
	}
}

// run a collection.
func (s *Source) run(ctx context.Context, l *loaded) {
	ctx, cancel := context.WithTimeout(ctx, collectMost)
	defer cancel()
	values, err := l.collect(ctx)
	s.mu.Lock()
	defer s.mu.Unlock()
	l.busy = false
	told := l.status.LastError
	l.status.LastError = ""
	if err != nil {
		l.status.LastError = err.Error()
	}
	if told != l.status.LastError {
		l.told = time.Time{}
	}
	if s.probes[l.status.Ref] == l && l.core.settings.On {
		s.take(l, s.cfg.Now(), values)
	}
	if l.late {
		l.late = false
		s.signal()
	}
}

// take values of a probe into the buffer, those that its strategy sends.
func (s *Source) take(l *loaded, at time.Time, values []Value) {
	finite := slices.DeleteFunc(slices.Clone(values), func(v Value) bool { return math.IsNaN(v.Value) || math.IsInf(v.Value, 0) })
	if n := len(values) - len(finite); n > 0 {
		s.lost[NotFinite] += n
	}
	sent := l.core.filter(at, finite)
	l.status.Collected += uint64(len(values))
	l.status.Sent += uint64(len(sent))
	l.status.LastMS = s.cfg.Now().UnixMilli()
	s.collected += len(values)
	if len(sent) == 0 {
		return
	}
	s.buffer = append(s.buffer, Reported{VEE: l.status.VEE, Kind: l.status.Kind, AtMS: at.UnixMilli(), Values: sent})
	s.buffered += len(sent)
	drop := 0
	for s.buffered > maxBuffered {
		n := len(s.buffer[drop].Values)
		s.buffered -= n
		s.lost[Lost] += n
		drop++
	}
	s.buffer = slices.Delete(s.buffer, 0, drop)
}

// report until ctx ends: each second what there is, and after a while that there is nothing.
func (s *Source) report(ctx context.Context) {
	var sent time.Time
	wait := flushEvery
	for {
		t := time.NewTimer(wait)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return
		}
		wait = max(wait, flushEvery)
		now := s.cfg.Now()
		r, more := s.next(now)
		if len(r.Measurements)+len(r.Probes)+len(r.Gone) == 0 && now.Sub(sent) < aliveEvery && !now.Before(sent) {
			continue
		}
		within, cancel := context.WithTimeout(ctx, reportWithin)
		orders, err := s.cfg.Uplink.Report(within, r)
		cancel()
		switch {
		case err == nil:
			sent = now
			s.heed(orders)
			if wait = flushEvery; more {
				wait = breath
			}
		case fault.Has(err, fault.Malformed) || fault.Has(err, fault.TooLarge):
			// It would be refused again and again, and what comes after it would wait.
			s.cfg.Log.Warn("the site refuses measurements: they are dropped", "measurements", len(r.Measurements), "err", err)
			for _, m := range r.Measurements {
				s.Refuse(Lost, len(m.Values))
			}
			r.Measurements = nil
			s.back(r)
			wait = flushEvery
		default:
			waiting := s.back(r)
			s.cfg.Log.Debug("measurements wait: the site does not take them", "values", waiting, "err", err)
			wait = min(2*wait, retryMost)
		}
	}
}

// next report, and whether there is more to report at once.
func (s *Source) next(now time.Time) (r Report, more bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	n, size := 0, 0
	for n < min(len(s.buffer), maxReport) && size < maxBytes {
		for _, v := range s.buffer[n].Values {
			size += len(v.Field) + len(v.Labels) + 50
		}
		n++
	}
	r = Report{Incarnation: s.cfg.Incarnation, Orders: s.orders, Measurements: slices.Clone(s.buffer[:n]), Lost: s.lost, Gone: s.gone}
	for _, m := range r.Measurements {
		s.buffered -= len(m.Values)
	}
	s.buffer = slices.Delete(s.buffer, 0, n)
	s.lost, s.gone = map[Reason]int{}, nil
	more = len(s.buffer) > 0
	for _, l := range s.probes {
		if age := now.Sub(l.told); age >= 0 && age < tellEvery {
			continue
		}
		if len(r.Probes) == maxTold {
			return r, true
		}
		l.told = now
		r.Probes = append(r.Probes, l.status)
	}
	return r, more
}

// back puts a report that did not arrive into the buffer again, before what came since; it
// returns how many values wait.
func (s *Source) back(r Report) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range r.Probes {
		if l := s.probes[p.Ref]; l != nil {
			l.told = time.Time{}
		}
	}
	s.gone = append(r.Gone, s.gone...)
	s.gone = s.gone[max(0, len(s.gone)-MaxProbes):]
	for why, n := range r.Lost {
		s.lost[why] += n
	}
	from := len(r.Measurements)
	for ; from > 0; from-- {
		n := len(r.Measurements[from-1].Values)
		if s.buffered+n > maxBuffered {
			break
		}
		s.buffered += n
	}
	for _, m := range r.Measurements[:from] {
		s.lost[Lost] += len(m.Values)
	}
	s.buffer = slices.Concat(r.Measurements[from:], s.buffer)
	return s.buffered
}

// heed the orders that came back.
func (s *Source) heed(o Orders) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if o.Tell {
		for _, l := range s.probes {
			l.told = time.Time{}
		}
	}
	if !o.Same && o.Version != s.orders {
		s.orders, s.ordered = o.Version, map[Ref]Settings{}
		for _, x := range o.Orders {
			if err := x.Settings.check(); err != nil {
				s.cfg.Log.Warn("an order for a probe is refused", "probe", x.String(), "err", err)
				continue
			}
			s.ordered[x.Ref] = x.Settings
		}
		for _, l := range s.probes {
			s.set(l)
		}
		s.signal()
	}
	if o.Regulation != s.bySite {
		s.regulated(&s.bySite, o.Regulation, "the site")
		s.signal()
	}
}
