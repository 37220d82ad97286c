package model

import (
	"fmt"
	"time"
)

// Kind of an action.
type Kind uint8

// Kinds of action. Relocate is a migration by stopping here and starting there, for VEEs
// that can be instantiated again; Allocate changes what a VEE may use where it is.
const (
	BootHost Kind = iota
	ShutdownHost
	StartVEE
	StopVEE
	KillVEE
	Suspend
	Resume
	Migrate
	Relocate
	Allocate
)

func (k Kind) String() string {
	return [...]string{"boot host", "shut down host", "start", "stop", "kill", "suspend", "resume", "migrate", "relocate", "allocate"}[min(k, Allocate)]
}

// Action of a plan. VEE is None for actions on hosts; From is None for what was nowhere,
// To for what goes nowhere.
type Action struct {
	Kind       Kind
	VEE        int32
	From, To   int32
	Start, End time.Duration // since the plan's beginning
	After      []int32       // actions that must have ended before, whatever the clock says
	// MiBs in a second that a migration may send, where the model's migrations share links.
	MiBs float64
}

// Plan of actions, in the order of their starts. An executor may begin an action as soon
// as those in its After have ended.
type Plan struct{ Actions []Action }

// Makespan is when the last action ends.
func (p Plan) Makespan() (end time.Duration) {
	for _, a := range p.Actions {
		end = max(end, a.End)
	}
	return end
}

// SumOfEnds of all actions: BtrPlace's MinMTTR.
func (p Plan) SumOfEnds() (sum time.Duration) {
	for _, a := range p.Actions {
		sum += a.End
	}
	return sum
}

// Migrations in the plan, live or not.
func (p Plan) Migrations() (n int) {
	for _, a := range p.Actions {
		if a.Kind == Migrate || a.Kind == Relocate {
			n++
		}
	}
	return n
}

// String of an action, with indices: "migrate VEE 4 from host 1 to host 2".
func (a Action) String() string {
	switch {
	case a.VEE == None:
		return fmt.Sprintf("%v %d", a.Kind, max(a.From, a.To))
	case a.From == None || a.From == a.To:
		return fmt.Sprintf("%v VEE %d on host %d", a.Kind, a.VEE, a.To)
	case a.To == None:
		return fmt.Sprintf("%v VEE %d on host %d", a.Kind, a.VEE, a.From)
	}
	return fmt.Sprintf("%v VEE %d from host %d to host %d", a.Kind, a.VEE, a.From, a.To)
}

// Describe a with the model's names: "migrate web from h1 to h2".
func (m *Model) Describe(a Action) string {
	text := a.Kind.String()
	if a.VEE != None {
		text += " " + m.VEEs[a.VEE].Name
	}
	if a.From != None && a.From != a.To {
		text += " from " + m.Hosts[a.From].Name
	}
	if a.To != None {
		text += " to " + m.Hosts[a.To].Name
	}
	return text
}

// Duration of action a in model m.
func (m *Model) Duration(a Action) time.Duration {
	if a.VEE == None {
		if a.Kind == BootHost {
			return m.Hosts[a.To].Boot
		}
		return m.Hosts[a.From].Shutdown
	}
	switch v := &m.VEEs[a.VEE]; a.Kind {
	case StartVEE:
		return v.Start
	case StopVEE, KillVEE:
		return v.Stop
	case Suspend:
		return v.Suspend
	case Resume:
		return v.Resume
	case Relocate:
		return v.Stop + v.Start
	case Allocate:
		return m.Migration.Allocation
	default:
		if m.Migration.Shared {
			return m.Migration.At(v, a.MiBs)
		}
		return m.Migration.Duration(v)
	}
}
