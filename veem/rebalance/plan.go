package rebalance

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/reservoir-cloud/reservoir/placement/check"
	"github.com/reservoir-cloud/reservoir/placement/model"
	"github.com/reservoir-cloud/reservoir/placement/solve"
	"github.com/reservoir-cloud/reservoir/vee"
)

// Options of a plan.
type Options struct {
	Policy Policy
	// PerMove is what a single move must gain, and Gain the part of the score that all must
	// gain together, for the policy to move anything: what keeps a site from churning.
	PerMove, Gain float64
	Slots         int           // migrations at a host at once
	Bandwidth     vee.Bytes     // of a host's link, per second
	Shared        bool          // migrations share the link as the plan says, and have no slots of it
	Least         time.Duration // that a migration takes
	Stop          func() bool   // tells that the time for planning is over; nil: never
}

// Step of a plan: a live migration.
type Step struct {
	VEE        vee.ID
	Name       string
	From, To   string
	Start, End time.Duration // estimated, since the plan's beginning
	After      []int         // steps that must have ended before
	Bandwidth  vee.Bytes     // it is held to, per second; 0: to none
}

// Stay is a VEE that does not leave a host that is to be left.
type Stay struct {
	VEE  vee.ID
	Name string
	Host string
	Why  string
}

// Plan for a site.
type Plan struct {
	Steps         []Step
	Stays         []Stay
	Before, After float64 // score by the policy; the less the better
}

// objective of a policy.
func (o Options) objective() solve.Objective {
	w := solve.Objective{Migrations: o.PerMove}
	switch o.Policy {
	case Balance:
		w.Balance = 1
	case Consolidate:
		w.Consolidate = 1
	case Cost:
		w.Cost = 1
	}
	return w
}

// Make a plan for s. VEEs that find no place stay, and Stays says why; everything else is
// planned without them. An error means that no plan was found at all.
func Make(s Site, o Options) (Plan, error) {
	stay := map[int]string{}
	for i, v := range s.VEEs {
		if v.Stuck != "" || v.To != "" {
			stay[i] = v.Stuck
		}
	}
	p, err := s.plan(o, stay)
	if err != nil {
		return Plan{}, fmt.Errorf("plan how VEEs should move: %w", err)
	}
	return p, nil
}

// plan with ever less that is only wished for and ever more VEEs that stay, until there is
// one.
func (s Site) plan(o Options, stay map[int]string) (Plan, error) {
	relaxed := map[int]bool{}
	for {
		p := s.build(o, stay, relaxed)
		target, err := solve.Repair(p.m, solve.Options{Seed: 1, Stop: o.Stop})
		if err != nil {
			i, why := p.whoStays(err)
			switch {
			case i < 0:
				return Plan{}, err
			case !relaxed[i]:
				relaxed[i] = true
			default:
				stay[i] = why
			}
			continue
		}
		target = p.better(o, target)
		actions, err := solve.Schedule(p.m, target)
		if err == nil {
			err = check.Plan(p.m, actions)
		}
		if err != nil {
			if o.Policy != None { // the moves that must be are worth a plan of their own
				o.Policy = None
				continue
			}
			return Plan{}, err
		}
		if i := p.asleep(actions); i >= 0 {
			stay[i] = "it could only go while it is suspended: others on their way wait for its place"
			continue
		}
		return p.result(o, target, actions), nil
	}
}

// whoStays when there is no placement: the VEE that found none, or, where that is not said,
// the largest of those that are to leave.
func (p *problem) whoStays(err error) (int, string) {
	var none *solve.NoPlace
	if errors.As(err, &none) && int(none.Conflict.VEE) < len(p.site.VEEs) {
		if i := int(none.Conflict.VEE); p.movable(i) {
			return i, noPlace(p.site.VEEs[i], err)
		}
	}
	if errors.Is(err, solve.ErrStopped) {
		return -1, ""
	}
	best := -1
	for i, v := range p.site.VEEs {
		if p.movable(i) && p.site.Hosts[p.m.VEEs[i].Host].Leave && (best < 0 || v.Uses.Memory > p.site.VEEs[best].Uses.Memory) {
			best = i
		}
	}
	if best < 0 {
		return -1, ""
	}
	return best, noPlace(p.site.VEEs[best], err)
}

func (p *problem) movable(i int) bool { _, stays := p.stay[i]; return !stays }

// better target by the policy, if there is one that gains enough.
func (p *problem) better(o Options, repaired solve.Target) solve.Target {
	if o.Policy == None {
		return repaired
	}
	var resting []int32
	for i, v := range p.site.VEEs {
		if v.Resting && p.movable(i) && repaired.At[i] == p.m.VEEs[i].Host {
			resting = append(resting, int32(i))
		}
	}
	m := *p.m
	m.Rules = slices.Clone(m.Rules)
	if len(resting) > 0 {
		m.Require(model.Root{VEEs: resting})
	}
	w := o.objective()
	found, err := solve.Optimise(&m, w, solve.Options{Seed: 1, Stop: o.Stop, Iterations: 50 * (len(m.VEEs) + 100)})
	if err != nil {
		return repaired
	}
	p.prune(w, repaired, &found)
	w.Migrations = 0
	before, after := w.Score(p.m, repaired), w.Score(p.m, found)
	if before-after <= o.Gain*before+1e-9 {
		return repaired
	}
	return found
}

// prune moves that gain less than they cost by themselves: a search leaves such behind.
func (p *problem) prune(w solve.Objective, repaired solve.Target, t *solve.Target) {
	m := *p.m
	m.VEEs = slices.Clone(m.VEEs)
	var moved []int
	for i := range m.VEEs {
		if t.At[i] != repaired.At[i] {
			moved = append(moved, i)
		}
		m.VEEs[i].Host = t.At[i]
	}
	score := w.Score(p.m, *t)
	for _, i := range moved[:min(len(moved), 500)] {
		to := t.At[i]
		t.At[i], m.VEEs[i].Host = repaired.At[i], repaired.At[i]
		if s := w.Score(p.m, *t); s <= score+1e-9 && check.Placement(&m) == nil {
			score = s
		} else {
			t.At[i], m.VEEs[i].Host = to, to
		}
	}
}

// asleep is a VEE that a plan suspends on its way, or -1: hosts keep the memory of what
// sleeps there.
func (p *problem) asleep(plan model.Plan) int {
	for _, a := range plan.Actions {
		if a.Kind != model.Migrate {
			return int(a.VEE)
		}
	}
	return -1
}

func (p *problem) result(o Options, t solve.Target, actions model.Plan) Plan {
	out := Plan{}
	for _, a := range actions.Actions {
		v := p.site.VEEs[a.VEE]
		s := Step{VEE: v.ID, Name: v.Name, From: p.site.Hosts[a.From].Name, To: p.site.Hosts[a.To].Name, Start: a.Start, End: a.End,
			Bandwidth: vee.Bytes(a.MiBs * float64(vee.MiB))}
		for _, i := range a.After {
			s.After = append(s.After, int(i))
		}
		out.Steps = append(out.Steps, s)
	}
	for i, v := range p.site.VEEs {
		if h := p.m.VEEs[i].Host; p.site.Hosts[h].Leave && t.At[i] == h && v.To == "" {
			out.Stays = append(out.Stays, Stay{VEE: v.ID, Name: v.Name, Host: v.Host, Why: p.stay[i]})
		}
	}
	slices.SortFunc(out.Stays, func(a, b Stay) int { return cmp.Compare(a.VEE, b.VEE) })
	if o.Policy != None {
		w := o.objective()
		w.Migrations = 0
		now := solve.Target{At: make([]int32, len(p.m.VEEs))}
		for i := range now.At {
			now.At[i] = p.m.VEEs[i].Host
		}
		out.Before, out.After = w.Score(p.m, now), w.Score(p.m, t)
	}
	return out
}
