package rebalance

import (
	"fmt"
	"time"

	"github.com/reservoir-cloud/reservoir/vee"
)

// StepState is what became of a step.
type StepState string

// States of a step.
const (
	Waiting StepState = "waiting"
	Running StepState = "running"
	Done    StepState = "done"
	Failed  StepState = "failed"
)

// Progress of a plan.
type Progress struct {
	States []StepState // of each step
	Begin  []int       // steps to begin now
	Done   bool        // nothing is left to do
	// Stop says why the plan is not to be gone on with: the world is another than it was made
	// for. Then nothing is to be begun; what runs comes to its end by itself.
	Stop string
}

// Next says how far the steps of a plan made at began are on a site, and what to begin. It
// depends on nothing else, and may be asked as often as one likes.
func Next(steps []Step, s Site, began time.Time) Progress {
	p := Progress{States: make([]StepState, len(steps)), Done: true}
	vees := map[vee.ID]*VEE{}
	for i := range s.VEEs {
		vees[s.VEEs[i].ID] = &s.VEEs[i]
	}
	chains, order := map[vee.ID][]int{}, []vee.ID{}
	for i, step := range steps {
		if chains[step.VEE] == nil {
			order = append(order, step.VEE)
		}
		chains[step.VEE] = append(chains[step.VEE], i)
	}
	for _, id := range order {
		if why := p.follow(steps, chains[id], vees[id], s, began); why != "" && p.Stop == "" {
			p.Stop = why
		}
	}
	for i, step := range steps {
		if p.States[i] == Done {
			continue
		}
		p.Done = false
		ready := p.States[i] == Waiting && p.Stop == ""
		for _, j := range step.After {
			ready = ready && p.States[j] == Done
		}
		if ready {
			p.Begin = append(p.Begin, i)
		}
	}
	return p
}

// follow a VEE along its steps, and say what is not as planned.
func (p *Progress) follow(steps []Step, chain []int, v *VEE, s Site, began time.Time) string {
	done := len(chain)
	if v != nil {
		for done > 0 && steps[chain[done-1]].To != v.Host {
			done--
		}
	}
	for k, i := range chain {
		p.States[i] = Waiting
		if k < done {
			p.States[i] = Done
		}
	}
	if v == nil || done == len(chain) {
		return "" // it is gone, or there
	}
	i := chain[done]
	step := steps[i]
	switch {
	case v.Host != step.From:
		return fmt.Sprintf("VEE %s is on host %s and not on %s", v.Name, v.Host, step.From)
	case v.To != "" && v.To != step.To:
		return fmt.Sprintf("VEE %s is on its way to host %s and not to %s", v.Name, v.To, step.To)
	case v.To != "":
		p.States[i] = Running
		return p.lookAhead(steps, chain[done+1:], s)
	case v.FailedTo == step.To && !v.FailedBegan.Before(began):
		p.States[i] = Failed
		return fmt.Sprintf("VEE %s did not come to host %s: %s", v.Name, step.To, v.Failed)
	case v.Stuck != "":
		return fmt.Sprintf("VEE %s cannot be moved: %s", v.Name, v.Stuck)
	}
	return p.lookAhead(steps, chain[done:], s)
}

// lookAhead says which host that steps lead to is there no more.
func (p *Progress) lookAhead(steps []Step, ahead []int, s Site) string {
	for _, i := range ahead {
		h := s.host(steps[i].To)
		if h < 0 {
			return fmt.Sprintf("host %s is no part of the site any more", steps[i].To)
		}
		if why := s.Hosts[h].Closed; why != "" {
			return fmt.Sprintf("host %s takes no VEE: %s", steps[i].To, why)
		}
	}
	return ""
}
