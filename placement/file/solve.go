package file

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/reservoir-cloud/reservoir/placement/check"
	"github.com/reservoir-cloud/reservoir/placement/model"
	"github.com/reservoir-cloud/reservoir/placement/solve"
)

// Solution of a problem: a plan that the independent checker has passed, or why there is
// none.
type Solution struct {
	Feasible bool `json:"feasible"`
	// Actions of the plan, in the order of their beginnings.
	Actions []Action `json:"actions"`
	// SecondsInAll until the last has ended; Migrations live and not.
	SecondsInAll float64 `json:"secondsInAll"`
	Migrations   int     `json:"migrations"`
	// Before and After are the objective's scores, without what moves cost; the less the
	// better.
	Before float64 `json:"scoreBefore"`
	After  float64 `json:"scoreAfter"`
	// NotKept are the soft rules that do not hold in the end.
	NotKept []string `json:"notKept,omitempty"`
	// Why there is no plan, and for a VEE that has no place the smallest conflict.
	Why      string    `json:"why,omitempty"`
	Conflict *Conflict `json:"conflict,omitempty"`
	// Contradiction is a smallest set of rules that no placement keeps: without any one of
	// them there is one.
	Contradiction []string `json:"contradiction,omitempty"`

	plan   model.Plan
	target solve.Target
}

// Action of a plan, in names. Times are seconds since its beginning.
type Action struct {
	Action string  `json:"action"`
	VEE    string  `json:"vee,omitempty"`
	From   string  `json:"from,omitempty"`
	To     string  `json:"to,omitempty"`
	Begin  float64 `json:"beginSeconds"`
	End    float64 `json:"endSeconds"`
	After  []int   `json:"after,omitempty"` // actions that it comes after, from 0
	// MiBPerSecond that a migration is to have, where migrations share links.
	MiBPerSecond float64 `json:"mibPerSecond,omitempty"`
}

// Conflict is why a VEE has no place: drop one of its reasons, and there is a host again.
type Conflict struct {
	VEE     string   `json:"vee"`
	Reasons []Reason `json:"reasons"`
	// Nearest is the host with the least against it, and what would have to change there.
	Nearest string   `json:"nearestHost"`
	Needed  []string `json:"needed"`
}

// Reason that excludes hosts.
type Reason struct {
	What  string `json:"what"`
	Hosts int    `json:"hosts"`
}

// Solve p: repair what is broken, and with an objective go on until Stop or for the given
// iterations. Whatever the problem, there is a Solution.
func (p *Problem) Solve(o solve.Options) *Solution {
	target, plan, err := p.search(o)
	if err != nil {
		s := p.failed(err)
		p.contradiction(s, o)
		return s
	}
	if err := check.Plan(p.Model, plan); err != nil {
		return p.failed(fmt.Errorf("the plan that was found does not hold: %w", err))
	}
	s := &Solution{Feasible: true, Actions: []Action{}, SecondsInAll: plan.Makespan().Seconds(), Migrations: plan.Migrations(), plan: plan, target: target}
	w := p.Objective
	w.Migrations, w.Time = 0, 0
	s.Before, s.After = w.Score(p.Model, p.now()), w.Score(p.Model, target)
	for _, a := range plan.Actions {
		s.Actions = append(s.Actions, p.action(a))
	}
	broken, err := check.Broken(p.Model, plan)
	if err != nil {
		return p.failed(err)
	}
	for _, i := range broken {
		s.NotKept = append(s.NotKept, p.rules[i].String())
	}
	return s
}

// search first with soft rules as if they were hard, which is how they are kept; where that
// has no solution without the lightest, and so on.
func (p *Problem) search(o solve.Options) (target solve.Target, plan model.Plan, err error) {
	kept := make([]int, len(p.Model.Rules))
	for i := range kept {
		kept[i] = i
	}
	for {
		m := *p.Model
		m.Rules = nil
		for _, i := range kept {
			m.Require(p.Model.Rules[i].Constraint)
		}
		if w := p.Objective; w.Balance+w.Consolidate+w.Cost+w.Energy+w.Distance > 0 || w.SwitchOff {
			target, err = solve.Optimise(&m, w, o)
		} else {
			target, err = solve.Repair(&m, o)
		}
		if err == nil {
			plan, err = solve.Schedule(&m, target) // the way there may be what a rule forbids
		}
		k := p.lightest(kept)
		if err == nil || k < 0 || errors.Is(err, solve.ErrStopped) {
			return target, plan, p.named(err, kept)
		}
		kept = slices.Delete(kept, k, k+1)
	}
}

// lightest of the soft rules in kept, as an index there; -1: there is none.
func (p *Problem) lightest(kept []int) int {
	best := -1
	for k, i := range kept {
		if w := p.Model.Rules[i].Weight; w > 0 && (best < 0 || w < p.Model.Rules[kept[best]].Weight) {
			best = k
		}
	}
	return best
}

// named is err with the indices of the problem's rules instead of those that were kept.
func (p *Problem) named(err error, kept []int) error {
	var none *solve.NoPlace
	if !errors.As(err, &none) {
		return err
	}
	at := func(i *int) {
		if *i >= 0 {
			*i = kept[*i]
		}
	}
	for k := range none.Conflict.Reasons {
		at(&none.Conflict.Reasons[k].Rule)
	}
	at(&none.Conflict.Nearest.Rule)
	return none
}

// now is the placement before the plan.
func (p *Problem) now() solve.Target {
	t := solve.Target{}
	for v := range p.Model.VEEs {
		x := &p.Model.VEEs[v]
		at := x.Host
		if x.State != model.Running {
			at = model.None
		}
		t.State, t.At = append(t.State, x.State), append(t.At, at)
	}
	for h := range p.Model.Hosts {
		t.On = append(t.On, !p.Model.Hosts[h].Off)
	}
	return t
}

func (p *Problem) action(a model.Action) Action {
	out := Action{Action: a.Kind.String(), Begin: a.Start.Seconds(), End: a.End.Seconds(), MiBPerSecond: a.MiBs}
	if a.VEE != model.None {
		out.VEE = p.Model.VEEs[a.VEE].Name
	}
	if a.From != model.None {
		out.From = p.Model.Hosts[a.From].Name
	}
	if a.To != model.None {
		out.To = p.Model.Hosts[a.To].Name
	}
	for _, i := range a.After {
		out.After = append(out.After, int(i))
	}
	return out
}

// contradiction between rules, where these are to blame. It goes before what else is said,
// unless a VEE's conflict names the rules already.
func (p *Problem) contradiction(s *Solution, o solve.Options) {
	rules, err := solve.Contradiction(p.Model, o)
	if err != nil {
		return
	}
	known := s.Conflict != nil
	for _, i := range rules {
		s.Contradiction = append(s.Contradiction, p.rules[i].String())
		_, state := p.Model.Rules[i].Constraint.(model.InState) // that it is to run is no news
		known = known && (state || slices.ContainsFunc(s.Conflict.Reasons, func(r Reason) bool { return r.What == p.rule(i) }))
	}
	switch {
	case known:
	case len(rules) == 1:
		s.Why = fmt.Sprintf("no placement keeps the rule %s: drop it (%s)", s.Contradiction[0], s.Why)
	case len(rules) > 1:
		s.Why = fmt.Sprintf("no placement keeps these %d rules together: %s: drop one of them (%s)", len(rules), strings.Join(s.Contradiction, "; "), s.Why)
	}
}

// inNames is a text about the model's rules with the document's names.
func (p *Problem) inNames(text string) string {
	for i, r := range p.Model.Rules {
		text = strings.ReplaceAll(text, r.Constraint.String(), p.rules[i].String())
	}
	return text
}

func (p *Problem) failed(err error) *Solution {
	s := &Solution{Actions: []Action{}, Why: p.inNames(err.Error())}
	var none *solve.NoPlace
	if !errors.As(err, &none) {
		return s
	}
	c := none.Conflict
	x := &Conflict{VEE: p.Model.VEEs[c.VEE].Name, Nearest: p.Model.Hosts[c.Nearest.Host].Name, Needed: p.against(c.Nearest)}
	var because []string
	for _, r := range c.Reasons {
		what := "they are off, or being left"
		switch {
		case r.Rule >= 0:
			what = p.rule(r.Rule)
		case r.Dimension >= 0:
			what = "too little " + string(p.Model.Dimensions[r.Dimension])
		}
		x.Reasons = append(x.Reasons, Reason{what, r.Hosts})
		because = append(because, fmt.Sprintf("%d of %d hosts: %s", r.Hosts, len(p.Model.Hosts), what))
	}
	s.Conflict = x
	s.Why = fmt.Sprintf("no host takes VEE %s: %s. The nearest is %s: %s", x.VEE, strings.Join(because, "; "), x.Nearest, strings.Join(x.Needed, "; "))
	return s
}

func (p *Problem) rule(i int) string { return "rule " + p.rules[i].String() }

// against a host: what speaks against it, in words.
func (p *Problem) against(w solve.Verdict) (all []string) {
	switch h := &p.Model.Hosts[w.Host]; {
	case h.Draining:
		all = append(all, "it is draining")
	case w.Closed:
		all = append(all, "it is off")
	}
	if w.Rule >= 0 {
		all = append(all, p.rule(w.Rule))
	}
	for d, name := range p.Model.Dimensions {
		if n := w.Short[d]; n > 0 {
			all = append(all, fmt.Sprintf("it lacks %d of %s", n, name))
		}
	}
	return all
}

// Verdict on a host for a VEE.
type Verdict struct {
	Host string `json:"host"`
	OK   bool   `json:"ok"`
	// Full is the used share of its scarcest dimension without the VEE: the score by which a
	// first placement chooses.
	Full    float64  `json:"full"`
	Against []string `json:"against,omitempty"`
	Here    bool     `json:"here,omitempty"` // the VEE is there before the plan
}

// WhyHosts says for each host (or one, by name) whether it would take a VEE as things are
// before the plan. Errors: there is no such VEE or host.
func (p *Problem) WhyHosts(vee, host string) ([]Verdict, error) {
	v := int32(slices.IndexFunc(p.Model.VEEs, func(v model.VEE) bool { return v.Name == vee }))
	if v < 0 {
		return nil, fmt.Errorf("there is no VEE %q in the model", vee)
	}
	if host != "" && !slices.ContainsFunc(p.Model.Hosts, func(h model.Host) bool { return h.Name == host }) {
		return nil, fmt.Errorf("there is no host %q in the model", host)
	}
	placer := solve.NewPlacer(p.Model, solve.Balance)
	at := placer.At(v)
	placer.Remove(v)
	var all []Verdict
	for h := range p.Model.Hosts {
		if name := p.Model.Hosts[h].Name; host == "" || name == host {
			w := placer.Why(v, int32(h))
			all = append(all, Verdict{Host: name, OK: w.Fits(), Full: w.Full, Against: p.against(w), Here: int32(h) == at})
		}
	}
	return all, nil
}
