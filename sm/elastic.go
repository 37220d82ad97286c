package sm

import (
	"context"
	"fmt"
	"maps"
	"math"
	"strings"
	"time"

	"github.com/reservoir-cloud/reservoir/elastic"
	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/smi"
)

var _ smi.Elasticity = (*Manager)(nil)

// finite is the number, or nil where JSON has none for it.
func finite(v float64) *float64 {
	if math.IsNaN(v) || math.IsInf(v, 0) {
		return nil
	}
	return &v
}

// Rules of a service, and what its scaler says of them.
func (m *Manager) Rules(ctx context.Context, customer, name string) (smi.Rules, error) {
	rec, _, err := m.find(ctx, customer, name)
	if err != nil {
		return smi.Rules{}, err
	}
	d, err := m.loadDesign(ctx, rec.ID, rec.Revision)
	if err != nil {
		return smi.Rules{}, err
	}
	return m.rulesOf(rec, d), nil
}

func (m *Manager) rulesOf(rec record, d *design) smi.Rules {
	out := smi.Rules{Service: rec.Name, Customer: rec.Customer, KPIs: []smi.KPI{}, Components: []smi.ElasticComponent{}}
	why, kpis := m.explanations(rec)
	for _, k := range d.elastic.KPIs {
		r := kpis[k.Name]
		out.KPIs = append(out.KPIs, smi.KPI{Name: k.Name, Query: k.Query, Value: r.value, At: r.at, Problem: r.problem})
	}
	vees, _ := m.group(rec.ID)
	for _, p := range d.elastic.Policies {
		c := smi.ElasticComponent{Name: p.Component, Desired: rec.Desired[p.Component], Ready: d.observe(rec, p.Component, vees).Sizes[p.Component],
			Paused: rec.Paused[p.Component], Rules: ruleTexts(p), Now: why[p.Component].why, Looked: why[p.Component].at}
		c.Min, c.Max, c.By = p.Bounds(m.cfg.Now())
		if s, ok := rec.Scaled[p.Component]; ok {
			c.Last = &smi.ElasticDecision{At: s.At, Component: p.Component, Kind: kindOf(s), Rule: s.Rule, Replicas: s.To, VCPUs: s.VCPUs, Memory: s.Memory, Why: s.Why}
		}
		out.Components = append(out.Components, c)
	}
	return out
}

// kindOf a change: one by hand is what it amounts to.
func kindOf(s scaled) string {
	if s.Rule != "" {
		return s.Kind
	}
	return "byHand"
}

// explanations of a service's scaler; none where it has not looked yet.
func (m *Manager) explanations(rec record) (map[string]explained, map[string]kpiReading) {
	m.mu.Lock()
	w := m.workers[rec.key()]
	m.mu.Unlock()
	if w == nil {
		return nil, nil
	}
	x := &w.scaler.explanation
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.id != rec.ID {
		return nil, nil
	}
	return maps.Clone(x.why), maps.Clone(x.kpis)
}

// ruleTexts of a policy, for people.
func ruleTexts(p elastic.Policy) []smi.ElasticRule {
	list := []smi.ElasticRule{}
	for _, a := range p.Arrays {
		list = append(list, smi.ElasticRule{Name: a.String(), Kind: "array", EveryMS: a.Every.Milliseconds(),
			Text: fmt.Sprintf("keep %s per replica, averaged over %s, near %g ± %g%%", a.KPI, a.Window, a.Quota, a.Tolerance)})
	}
	for _, r := range p.Rules {
		list = append(list, smi.ElasticRule{Name: r.Name, Kind: "rule", EveryMS: r.Every.Milliseconds(),
			Text: fmt.Sprintf("when %s: %s", r.Condition, actionText(r.Do))})
	}
	for _, s := range p.Schedules {
		var days []string
		for _, d := range s.Days {
			days = append(days, d.String()[:3])
		}
		on := strings.Join(days, " ")
		if on == "" {
			on = "every day"
		}
		list = append(list, smi.ElasticRule{Name: s.Name, Kind: "schedule",
			Text: fmt.Sprintf("%s %s to %s (%s): %d to %d replicas", on, clock(s.From), clock(s.To), s.Location, s.Min, s.Max)})
	}
	return list
}

func clock(d time.Duration) string {
	return fmt.Sprintf("%02d:%02d", d/time.Hour, d%time.Hour/time.Minute)
}

func actionText(a elastic.Action) string {
	switch a.Kind {
	case elastic.ScaleUp:
		return fmt.Sprintf("%d more", max(1, a.By))
	case elastic.ScaleDown:
		return fmt.Sprintf("%d less", max(1, a.By))
	}
	var to []string
	if a.VCPUs > 0 {
		to = append(to, fmt.Sprintf("%d vCPUs", a.VCPUs))
	}
	if a.Memory > 0 {
		to = append(to, a.Memory.String())
	}
	return strings.Join(to, " and ") + " each"
}

// SetRules pauses a component's rules, or lets them decide again.
func (m *Manager) SetRules(ctx context.Context, customer, name, component string, on bool) (smi.Rules, error) {
	if err := mayChange(ctx); err != nil {
		return smi.Rules{}, err
	}
	rec, _, err := m.find(ctx, customer, name)
	if err != nil {
		return smi.Rules{}, err
	}
	d, err := m.loadDesign(ctx, rec.ID, rec.Revision)
	if err != nil {
		return smi.Rules{}, err
	}
	if _, ok := d.elastic.Policy(component); !ok {
		return smi.Rules{}, fault.New(fault.NotFound, "component %s of service %s has no rules that change its size", component, name).
			Try("see which there are: reservoir service rules list %s", name)
	}
	id, changed := rec.ID, false
	rec, _, err = m.records.Modify(ctx, rec.key(), func(r *record) error {
		if r.Deleting || r.ID != id {
			return fault.New(fault.WrongState, "service %s is being deleted", name)
		}
		if changed = r.Paused[component] == on; !changed {
			return nil
		}
		paused := maps.Clone(r.Paused)
		if paused == nil {
			paused = map[string]bool{}
		}
		if delete(paused, component); !on {
			paused[component] = true
		}
		r.Paused = paused
		return nil
	})
	if err != nil {
		return smi.Rules{}, err
	}
	if changed {
		m.said(rec, map[bool]string{true: "RulesResumed", false: "RulesPaused"}[on], "rules of %s %s at %d replicas", component,
			map[bool]string{true: "decide again, from where it is,", false: "are paused"}[on], rec.Desired[component])
	}
	return m.rulesOf(rec, d), nil
}
