package model

import (
	"fmt"
	"slices"
)

// Constraint on placements or plans. Those of BtrPlace's catalogue have its names (Fabien
// Hermenier, Julia Lawall, Gilles Muller: "BtrPlace: A Flexible Consolidation Manager for
// Highly Available Applications", IEEE TDSC 2013). Each is also OnPlacement or OnPlan.
//
// What is written with a constraint is its plain meaning, for checking. The search knows
// it in another form, that it can count up and down.
type Constraint interface {
	About() About
	String() string
}

// About says what a constraint names. A constraint without VEEs is about whatever is on
// the hosts.
type About struct {
	VEEs, Hosts []int32
	Dimension   int
}

// OnPlacement is a constraint on where VEEs are at one instant. Check says how it is
// broken.
type OnPlacement interface {
	Constraint
	Check(m *Model, s *Snapshot) error
}

// OnPlan is a constraint on the plan that leads to a placement.
type OnPlan interface {
	Constraint
	CheckPlan(m *Model, p Plan) error
}

// Always is part of the constraints that may be continuous: kept at every instant of the
// plan, not only in the end.
type Always struct{ Continuous bool }

// Throughout tells whether the constraint holds at every instant.
func (a Always) Throughout() bool { return a.Continuous }

// Continuous tells whether c must hold at every instant of a plan.
func Continuous(c Constraint) bool {
	a, ok := c.(interface{ Throughout() bool })
	return ok && a.Throughout()
}

// Snapshot of a model at one instant of a plan.
type Snapshot struct {
	State  []State    // of each VEE; one that is being started or resumed runs
	Places [][2]int32 // hosts that each VEE takes room on, None otherwise: two while it moves
	On     []bool     // by host; one that boots or shuts down is not on
	// Allocated to each VEE, VEE × dimension.
	Allocated []int64
}

// Begin is the snapshot of m before any plan.
func Begin(m *Model) *Snapshot {
	s := &Snapshot{State: make([]State, len(m.VEEs)), Places: make([][2]int32, len(m.VEEs)), On: make([]bool, len(m.Hosts)), Allocated: slices.Clone(m.demand)}
	for i := range m.VEEs {
		v := &m.VEEs[i]
		s.State[i], s.Places[i] = v.State, [2]int32{None, None}
		if v.State == Running {
			s.Places[i][0] = v.Host
		}
	}
	for i := range m.Hosts {
		s.On[i] = !m.Hosts[i].Off
	}
	return s
}

// hosts that v takes room on.
func (s *Snapshot) hosts(v int32) []int32 {
	p := &s.Places[v]
	switch {
	case p[0] == None && p[1] == None:
		return nil
	case p[0] == None:
		return p[1:]
	case p[1] == None:
		return p[:1]
	}
	return p[:]
}

func (m *Model) vee(v int32) string  { return m.VEEs[v].Name }
func (m *Model) host(h int32) string { return m.Hosts[h].Name }

func some(kind string, of []int32) string {
	if len(of) > 6 {
		return fmt.Sprintf("%s %v and %d more", kind, of[:5], len(of)-5)
	}
	return fmt.Sprintf("%s %v", kind, of)
}

func vees(of []int32) string  { return some("VEEs", of) }
func hosts(of []int32) string { return some("hosts", of) }

func throughout(a Always, text string) string {
	if a.Continuous {
		return text + ", at every instant"
	}
	return text
}

// Unary constraints allow a VEE some hosts, whatever else is there.
type Unary interface {
	OnPlacement
	// Allows VEE v, which the constraint names, on host h.
	Allows(m *Model, v, h int32) bool
}

func checkUnary(m *Model, s *Snapshot, c Unary) error {
	for _, v := range c.About().VEEs {
		for _, h := range s.hosts(v) {
			if !c.Allows(m, v, h) {
				return fmt.Errorf("%v: %s is on %s", c, m.vee(v), m.host(h))
			}
		}
	}
	return nil
}
