package sm

import (
	"cmp"
	"context"
	"fmt"
	"time"

	"github.com/reservoir-cloud/reservoir/elastic"
	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/smi"
)

// Bounds of a replay.
const (
	mostSamples = 100_000
	mostMoments = 2_000
	longestSpan = 31 * 24 * time.Hour
)

// What a replay assumes that replicas take to come and go.
const (
	replayBoot  = 30 * time.Second
	replayLeave = 10 * time.Second
)

// Replay says what rules would have decided on measurements. It changes nothing.
func (m *Manager) Replay(ctx context.Context, customer, name string, r smi.Replay) (smi.Replayed, error) {
	rec, _, err := m.find(ctx, customer, name)
	if err != nil {
		return smi.Replayed{}, err
	}
	d, err := m.loadDesign(ctx, rec.ID, rec.Revision)
	if err == nil && r.Manifest != "" {
		d, err = newDesign(revision{Text: r.Manifest, File: r.File}, rec.Revision)
	}
	if err != nil {
		return smi.Replayed{}, err
	}
	if len(d.elastic.Policies) == 0 {
		return smi.Replayed{}, fault.New(fault.WrongState, "service %s has no rules that change its size", name).
			Try("try those of another manifest: reservoir service rules replay %s --manifest FILE", name)
	}
	t := elastic.Trial{Policies: d.elastic.Policies, Sizes: map[string]elastic.Size{}, From: r.From, To: r.To,
		Boot:  cmp.Or(time.Duration(r.BootMS)*time.Millisecond, replayBoot),
		Leave: cmp.Or(time.Duration(r.LeaveMS)*time.Millisecond, replayLeave)}
	for _, c := range d.manifest.Components {
		s := d.sizeOf(rec, c.Name)
		s.Replicas = c.Replicas.Initial
		t.Sizes[c.Name] = s
	}
	samples := samplesOf(r.Samples)
	if len(samples) > 0 {
		first, last := samples[0].At, samples[0].At
		for _, s := range samples {
			if s.At.Before(first) {
				first = s.At
			}
			if s.At.After(last) {
				last = s.At
			}
		}
		if t.From.IsZero() {
			t.From = first
		}
		if t.To.IsZero() {
			t.To = last
		}
	}
	if !t.From.Before(t.To) || t.To.Sub(t.From) > longestSpan {
		return smi.Replayed{}, fault.New(fault.Malformed, "from %s to %s: want a time of at most 31 days that begins before it ends", at(t.From), at(t.To)).
			Try("reservoir service rules replay %s --from 1h", name)
	}
	if len(samples) == 0 {
		if samples, err = m.recorded(ctx, rec, d, t.From, t.To); err != nil {
			return smi.Replayed{}, err
		}
	}
	moments, more := t.Replay(samples, mostMoments)
	out := smi.Replayed{From: t.From, To: t.To, Samples: len(samples), More: more, Decisions: []smi.ElasticDecision{}}
	for _, x := range moments {
		out.Decisions = append(out.Decisions, smi.ElasticDecision{At: x.At, Component: x.Component, Kind: string(x.Kind), Rule: x.Rule,
			Replicas: x.Size.Replicas, VCPUs: x.Size.VCPUs, Memory: x.Size.Memory, Ready: x.Ready, Why: x.Why})
	}
	return out, nil
}

// at a time, for people.
func at(t time.Time) string {
	if t.IsZero() {
		return "nothing"
	}
	return t.UTC().Format(time.RFC3339)
}

func samplesOf(list []smi.Sample) []elastic.Sample {
	samples := make([]elastic.Sample, len(list))
	for i, s := range list {
		samples[i] = elastic.Sample{KPI: s.KPI, At: time.UnixMilli(s.AtMS), Value: s.Value}
	}
	return samples
}

// recorded measurements of the KPIs that a design's rules read, as often as they look.
func (m *Manager) recorded(ctx context.Context, rec record, d *design, from, to time.Time) ([]elastic.Sample, error) {
	if m.cfg.Monitor == nil {
		return nil, fault.New(fault.Unavailable, "nothing is measured at site %s", m.cfg.Site).Try("replay a file: reservoir service rules replay %s FILE", rec.Name)
	}
	querier := m.cfg.Monitor.Querier(scopeOf(rec))
	var samples []elastic.Sample
	for _, k := range d.elastic.KPIs {
		every := max(d.elastic.Every(k.Name), to.Sub(from)*time.Duration(len(d.elastic.KPIs))/mostSamples, time.Second)
		series, err := querier.QueryRange(ctx, k.Query, from, to, every)
		if err != nil {
			return nil, fmt.Errorf("measurements of KPI %s: %w", k.Name, err)
		}
		points, err := only(series)
		if err != nil {
			return nil, fmt.Errorf("KPI %s: %w", k.Name, err)
		}
		for _, p := range points {
			samples = append(samples, elastic.Sample{KPI: k.Name, At: p.At, Value: p.Value})
		}
	}
	if len(samples) == 0 {
		return nil, fault.New(fault.NotFound, "service %s: from %s to %s none of its KPIs was measured", rec.Name, at(from), at(to)).
			Try("see what they are: reservoir service rules list %s", rec.Name)
	}
	return samples, nil
}
