package store

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/value"
	"github.com/prometheus/prometheus/storage"

	"github.com/reservoir-cloud/reservoir/monitor"
)

const (
	maxOfSubject = 2000             // series of one subject
	maxLabels    = 16               // that a program has given its value
	maxLabel     = 256              // bytes of one of these
	idle         = time.Hour        // a subject that sent nothing for so long is looked up anew
	sweepEvery   = 10 * time.Minute // for these
	burst        = 10               // seconds of its rate that a service may send at once
)

// subject that has sent something lately: its series, in the order of their first sample,
// which is that in which the next ones are likely to come.
type subject struct {
	of     monitor.Subject
	rate   *bucket // of its service; nil: it is of none
	base   labels.Labels
	series []series
	index  map[key]int // of the series, once there are many; else nil
	last   time.Time
	gone   bool     // forgotten
	next   *subject // that came after it the last time: hosts report their VEEs in a steady order
}

// few series of a subject are looked through one by one: an index costs more memory than they do.
const few = 16

type series struct {
	key    *key // shared by all subjects that have it
	ref    storage.SeriesRef
	labels labels.Labels // shares its memory with the database's
}

// key of a series of a subject.
type key struct{ field, labels string }

// bucket of a service: samples that it may send now.
type bucket struct {
	left float64
	at   time.Time
}

// Append implements monitor.Sink. When it returns an error some of the measurements may
// have been stored; append them again.
func (s *Store) Append(ctx context.Context, ms []monitor.Measurement) (monitor.Receipt, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.cfg.Now()
	s.sweep(now)
	var r monitor.Receipt
	app := s.db.AppenderV2(ctx)
	var before subject
	at := &before
	for i := range ms {
		m := &ms[i]
		if m.At.After(now.Add(s.cfg.Ahead)) {
			r.Refuse(monitor.Future, len(m.Values))
			continue
		}
		if at.next == nil || at.next.gone || at.next.of != m.Subject {
			at.next = s.subject(&m.Subject, now)
		}
		at = at.next
		at.last = now
		if err := s.append(app, now, at, m, &r); err != nil {
			return monitor.Receipt{}, errors.Join(err, app.Rollback())
		}
	}
	if err := app.Commit(); err != nil {
		return monitor.Receipt{}, fmt.Errorf("store %d measurements: %w", len(ms), err)
	}
	s.total.Add(r)
	return r, nil
}

// append a measurement of sub.
func (s *Store) append(app storage.AppenderV2, now time.Time, sub *subject, m *monitor.Measurement, r *monitor.Receipt) error {
	n := len(m.Values)
	if sub.rate != nil && !s.may(sub.rate, n, now) {
		r.Refuse(monitor.TooMany, n)
		return nil
	}
	at := m.At.UnixMilli()
	for i := range m.Values {
		v := &m.Values[i]
		if math.IsNaN(v.Value) || math.IsInf(v.Value, 0) {
			r.Refuse(monitor.NotFinite, 1)
			continue
		}
		x, why := s.find(sub, m.Kind, v, i)
		if why != "" {
			r.Refuse(why, 1)
			continue
		}
		ref, err := app.Append(x.ref, x.labels, 0, at, v.Value, nil, nil, storage.AOptions{})
		switch {
		case err == nil:
			x.ref = ref
			r.Stored++
		case errors.Is(err, errTooWide):
			r.Refuse(monitor.TooWide, 1)
		case errors.Is(err, storage.ErrDuplicateSampleForTimestamp):
			r.Refuse(monitor.Duplicate, 1)
		case errors.Is(err, storage.ErrOutOfBounds), errors.Is(err, storage.ErrTooOldSample), errors.Is(err, storage.ErrOutOfOrderSample):
			r.Refuse(monitor.Late, 1)
		default:
			return fmt.Errorf("store %s of %s: %w", v.Field, m.Subject.FQN(), err)
		}
	}
	return nil
}

// subject of that name, from its first sample or after an hour without one. A VEE's is found
// by its identifier alone, which is cheaper, as long as nothing else about it has changed.
func (s *Store) subject(of *monitor.Subject, now time.Time) *subject {
	sub := s.vees[of.VEE]
	if of.VEE == "" || sub == nil || sub.of != *of {
		sub = s.subjects[*of]
	}
	if sub == nil {
		sub = &subject{of: *of, base: labels.FromMap(of.Labels())}
		if by := (service{of.Customer, of.Service}); by != (service{}) {
			sub.rate = s.rates[by]
			if sub.rate == nil {
				sub.rate = &bucket{left: burst * s.cfg.ServiceRate, at: now}
				s.rates[by] = sub.rate
			}
		}
		s.subjects[*of] = sub
		if of.VEE != "" {
			s.vees[of.VEE] = sub
		}
	}
	return sub
}

// find the series of a value, which is likely the i-th; or say why there can be none.
func (s *Store) find(sub *subject, kind monitor.Kind, v *monitor.Value, i int) (*series, monitor.Reason) {
	if i < len(sub.series) {
		if x := &sub.series[i]; x.key.field == v.Field && x.key.labels == v.Labels {
			return x, ""
		}
	}
	if i := sub.find(key{v.Field, v.Labels}); i >= 0 {
		return &sub.series[i], ""
	}
	if !monitor.ValidField(kind, v.Field) {
		return nil, monitor.BadName
	}
	if len(sub.series) >= maxOfSubject {
		return nil, monitor.TooWide
	}
	l, ok := s.labels(sub.base, v)
	if !ok {
		return nil, monitor.BadName
	}
	shared := s.keys[key{v.Field, v.Labels}]
	if shared == nil {
		shared = &key{strings.Clone(v.Field), strings.Clone(v.Labels)}
		s.keys[*shared] = shared
	}
	return sub.add(series{key: shared, labels: l}), ""
}

// find a series by its key; -1: there is none.
func (sub *subject) find(k key) int {
	if sub.index == nil {
		return slices.IndexFunc(sub.series, func(x series) bool { return *x.key == k })
	}
	if i, ok := sub.index[k]; ok {
		return i
	}
	return -1
}

func (sub *subject) add(x series) *series {
	sub.series = append(sub.series, x)
	switch n := len(sub.series); {
	case n == few:
		sub.index = map[key]int{}
		for i, x := range sub.series {
			sub.index[*x.key] = i
		}
	case n > few:
		sub.index[*x.key] = n - 1
	}
	return &sub.series[len(sub.series)-1]
}

// labels of a series: the subject's, the field as the name, and those that a program has
// given it, which may not pretend to be the subject's.
func (s *Store) labels(base labels.Labels, v *monitor.Value) (labels.Labels, bool) {
	b := labels.NewBuilder(base)
	if v.Labels != "" {
		own, err := s.parser.ParseMetric("{" + v.Labels + "}")
		if err != nil || own.Len() > maxLabels {
			return labels.EmptyLabels(), false
		}
		ok := true
		own.Range(func(l labels.Label) {
			ok = ok && len(l.Name) <= maxLabel && len(l.Value) <= maxLabel && !strings.HasPrefix(l.Name, "__")
			if _, taken := subjectLabels[l.Name]; taken {
				l.Name = "exported_" + l.Name
			}
			b.Set(l.Name, l.Value)
		})
		if !ok {
			return labels.EmptyLabels(), false
		}
	}
	b.Set(monitor.LabelName, v.Field)
	return b.Labels(), true
}

var subjectLabels = map[string]struct{}{
	monitor.LabelSite: {}, monitor.LabelHost: {}, monitor.LabelCustomer: {}, monitor.LabelService: {},
	monitor.LabelComponent: {}, monitor.LabelReplica: {}, monitor.LabelVEE: {},
}

// may a service send n samples now?
func (s *Store) may(b *bucket, n int, now time.Time) bool {
	if d := now.Sub(b.at); d > 0 {
		b.left = min(b.left+d.Seconds()*s.cfg.ServiceRate, burst*s.cfg.ServiceRate)
	}
	b.at = now
	if b.left < float64(n) {
		return false
	}
	b.left -= float64(n)
	return true
}

// forget a subject; its series are the database's.
func (s *Store) forget(sub *subject) {
	sub.gone, sub.next = true, nil // who came before it may still know it
	delete(s.subjects, sub.of)
	if s.vees[sub.of.VEE] == sub {
		delete(s.vees, sub.of.VEE)
	}
}

// sweep forgets subjects and services that have not sent for a while.
func (s *Store) sweep(now time.Time) {
	if d := now.Sub(s.swept); d >= 0 && d < sweepEvery {
		return
	}
	s.swept = now
	for _, sub := range s.subjects {
		if now.Sub(sub.last) > idle {
			s.forget(sub)
		}
	}
	// A service's last use is that of its subjects: none of them has a bucket that is dropped.
	for of, b := range s.rates {
		if now.Sub(b.at) > idle {
			delete(s.rates, of)
		}
	}
	clear(s.keys) // those that no subject has any more; the others are shared anew
}

// End all series of a subject that is gone: queries of a later time do not see them, though
// their last samples are recent.
func (s *Store) End(ctx context.Context, of monitor.Subject, at time.Time) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	sub := s.subjects[of]
	if sub == nil {
		return nil
	}
	s.forget(sub)
	app := s.db.AppenderV2(ctx)
	for _, x := range sub.series {
		// A sample of that very time, or a later one, stays the last one.
		_, err := app.Append(x.ref, x.labels, 0, at.UnixMilli(), math.Float64frombits(value.StaleNaN), nil, nil, storage.AOptions{RejectOutOfOrder: true})
		if err != nil && !errors.Is(err, storage.ErrDuplicateSampleForTimestamp) && !errors.Is(err, storage.ErrOutOfOrderSample) && !errors.Is(err, errTooWide) {
			return errors.Join(fmt.Errorf("end the series of %s: %w", of.FQN(), err), app.Rollback())
		}
	}
	if err := app.Commit(); err != nil {
		return fmt.Errorf("end the series of %s: %w", of.FQN(), err)
	}
	return nil
}

// Stats of a store.
type Stats struct {
	Series int             // in memory
	Total  monitor.Receipt // since it was opened
}

// Stats now.
func (s *Store) Stats() Stats {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := Stats{Series: s.census.series()}
	st.Total.Add(s.total)
	return st
}
