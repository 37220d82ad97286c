// Package rules reads the elasticity of a manifest: its elastic arrays, its rules of a
// trigger and an action, its cool-downs and schedules become policies of package elastic,
// and its KPIs become queries. Conditions are expressions in CEL, compiled here: whatever is
// wrong with one is said before anything is deployed. It does no I/O.
package rules

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
	_ "time/tzdata" // schedules are the same on every machine

	"github.com/reservoir-cloud/reservoir/elastic"
	"github.com/reservoir-cloud/reservoir/manifest"
	"github.com/reservoir-cloud/reservoir/monitor"
)

// Cool-downs of a component that does not say its own.
const (
	DefaultUp   = time.Minute
	DefaultDown = 5 * time.Minute
)

// Set is the elasticity of one manifest.
type Set struct {
	Policies []elastic.Policy // of the components that change their size, in the manifest's order
	KPIs     []KPI            // that they read, each once, in the manifest's order; then those of hosts
}

// KPI is a name for a query.
type KPI struct {
	Name  string
	Query string // PromQL, within the service's own measurements; one number is its value
}

// Policy of a component.
func (s *Set) Policy(component string) (elastic.Policy, bool) {
	i := slices.IndexFunc(s.Policies, func(p elastic.Policy) bool { return p.Component == component })
	if i < 0 {
		return elastic.Policy{}, false
	}
	return s.Policies[i], true
}

// Query of a KPI that the policies read.
func (s *Set) Query(kpi string) string {
	for _, k := range s.KPIs {
		if k.Name == kpi {
			return k.Query
		}
	}
	return ""
}

// Every how often a KPI is looked at; 0: never.
func (s *Set) Every(kpi string) (every time.Duration) {
	sooner := func(d time.Duration) {
		if every == 0 || d < every {
			every = d
		}
	}
	for _, p := range s.Policies {
		for _, a := range p.Arrays {
			if a.KPI == kpi {
				sooner(a.Every)
			}
		}
		for _, r := range p.Rules {
			if slices.Contains(r.KPIs, kpi) {
				sooner(r.Every)
			}
		}
	}
	return every
}

// Compile a manifest that is valid. The error names every rule that makes no sense, and why.
func Compile(m *manifest.Service) (*Set, error) {
	c := compiler{m: m}
	if len(m.Rules) > 0 { // most manifests have no condition to compile
		if err := c.declare(); err != nil {
			return nil, err
		}
	}
	set := &Set{}
	var problems []error
	for i := range m.Components {
		p, err := c.policy(&m.Components[i])
		if err == nil && c.changes(p) {
			err = p.Check()
			set.Policies = append(set.Policies, p)
		}
		problems = append(problems, err)
	}
	if err := errors.Join(problems...); err != nil {
		return nil, err
	}
	set.KPIs = c.queries(set)
	return set, nil
}

func (c *compiler) changes(p elastic.Policy) bool {
	return len(p.Arrays)+len(p.Rules)+len(p.Schedules) > 0
}

// policy of a component, with those of the manifest's rules whose action is on it.
func (c *compiler) policy(of *manifest.Component) (elastic.Policy, error) {
	p := elastic.Policy{Component: of.Name, Min: of.Replicas.Min, Max: of.Replicas.Max, Up: DefaultUp, Down: DefaultDown}
	if of.Cooldown != nil {
		p.Up, p.Down = time.Duration(of.Cooldown.Up), time.Duration(of.Cooldown.Down)
	}
	for _, e := range of.Elastic {
		kpi := e.KPI
		if e.Type == "VEEHW" && !c.declared(kpi) {
			kpi = c.hardware(kpi, of.Name)
		}
		p.Arrays = append(p.Arrays, elastic.Array{KPI: kpi, Window: time.Duration(e.Window), Every: time.Duration(e.Frequency), Quota: e.Quota, Tolerance: e.Tolerance})
	}
	var problems []error
	for _, r := range c.m.Rules {
		if r.Do.Component != of.Name {
			continue
		}
		holds, kpis, err := c.condition(r.Condition)
		if err != nil {
			problems = append(problems, fmt.Errorf("rule %s: condition %q: %w", r.Name, r.Condition, err))
			continue
		}
		p.Rules = append(p.Rules, elastic.Rule{Name: r.Name, Every: time.Duration(r.Every), Condition: strings.Join(strings.Fields(r.Condition), " "), KPIs: kpis, Holds: holds,
			Do: elastic.Action{Kind: elastic.Kind(r.Do.Kind), By: r.Do.By, VCPUs: r.Do.CPU, Memory: r.Do.Memory}})
	}
	for _, s := range of.Schedules {
		zone, err := time.LoadLocation(s.Timezone)
		if err != nil {
			problems = append(problems, fmt.Errorf("component %s: schedule %s: there is no time zone %q: want a name such as Europe/Rome", of.Name, s.Name, s.Timezone))
			continue
		}
		x := elastic.Schedule{Name: s.Name, From: time.Duration(s.From), To: time.Duration(s.To), Location: zone, Min: s.Min, Max: s.Max}
		for _, d := range s.Days {
			x.Days = append(x.Days, weekdays[d])
		}
		p.Schedules = append(p.Schedules, x)
	}
	return p, errors.Join(problems...)
}

var weekdays = map[string]time.Weekday{
	"sun": time.Sunday, "mon": time.Monday, "tue": time.Tuesday, "wed": time.Wednesday, "thu": time.Thursday, "fri": time.Friday, "sat": time.Saturday,
}

// queries of the KPIs that the policies read.
func (c *compiler) queries(set *Set) (list []KPI) {
	read := map[string]bool{}
	for _, p := range set.Policies {
		for _, a := range p.Arrays {
			read[a.KPI] = true
		}
		for _, r := range p.Rules {
			for _, k := range r.KPIs {
				read[k] = true
			}
		}
	}
	for _, k := range c.m.KPIs {
		if read[k.Name] {
			list = append(list, KPI{k.Name, QueryOf(k)})
		}
	}
	for _, k := range c.ofHosts {
		if read[k.Name] {
			list = append(list, k)
		}
	}
	return list
}

// measured is how old a measurement may be that a KPI without a query of its own is made
// of: one that is sent only when it changes comes once in a heartbeat.
const measured = monitor.Heartbeat + 30*time.Second

// QueryOf a KPI: its own, or the sum of the measure of its name over the replicas, or over
// those of its component, that have measured it lately.
func QueryOf(k manifest.KPI) string {
	switch {
	case k.Query != "":
		return k.Query
	case k.Type == "VEEHW":
		return ofHost(k.Name, k.Component)
	}
	return fmt.Sprintf("sum(last_over_time(%s%s[%s]))", monitor.FieldOf(k.Name), selector(k.Component), seconds(measured))
}

// ofHost is the sum over replicas of what their hosts measure of them; of what counts up,
// how much it does in a second.
func ofHost(measure, component string) string {
	field := monitor.FieldOf(measure)
	if !strings.HasPrefix(field, "vee_") {
		field = "vee_" + field
	}
	if strings.HasSuffix(field, "_total") {
		return fmt.Sprintf("sum(rate(%s%s[%s]))", field, selector(component), seconds(measured))
	}
	return fmt.Sprintf("sum(last_over_time(%s%s[%s]))", field, selector(component), seconds(measured))
}

func selector(component string) string {
	if component == "" {
		return ""
	}
	return fmt.Sprintf("{%s=%q}", monitor.LabelComponent, component)
}

func seconds(d time.Duration) string { return fmt.Sprintf("%ds", d/time.Second) }

// hardware makes a KPI of what hosts measure of a component's replicas.
func (c *compiler) hardware(measure, component string) (name string) {
	name = component + " " + measure
	if !slices.ContainsFunc(c.ofHosts, func(k KPI) bool { return k.Name == name }) {
		c.ofHosts = append(c.ofHosts, KPI{name, ofHost(measure, component)})
	}
	return name
}

func (c *compiler) declared(kpi string) bool {
	return slices.ContainsFunc(c.m.KPIs, func(k manifest.KPI) bool { return k.Name == kpi })
}
