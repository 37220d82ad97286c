package model

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// Fence keeps VEEs on these hosts (BtrPlace).
type Fence struct{ VEEs, Hosts []int32 }

func (c Fence) About() About                      { return About{VEEs: c.VEEs, Hosts: c.Hosts} }
func (c Fence) String() string                    { return fmt.Sprintf("fence %s in %s", vees(c.VEEs), hosts(c.Hosts)) }
func (c Fence) Allows(_ *Model, _, h int32) bool  { return slices.Contains(c.Hosts, h) }
func (c Fence) Check(m *Model, s *Snapshot) error { return checkUnary(m, s, c) }

// Ban keeps VEEs off these hosts (BtrPlace).
type Ban struct {
	VEEs, Hosts []int32
	Always
}

func (c Ban) About() About { return About{VEEs: c.VEEs, Hosts: c.Hosts} }
func (c Ban) String() string {
	return throughout(c.Always, fmt.Sprintf("ban %s from %s", vees(c.VEEs), hosts(c.Hosts)))
}
func (c Ban) Allows(_ *Model, _, h int32) bool  { return !slices.Contains(c.Hosts, h) }
func (c Ban) Check(m *Model, s *Snapshot) error { return checkUnary(m, s, c) }

// Located keeps VEEs at sites or under laws (RESERVOIR's location constraints); an empty
// list does not matter.
type Located struct {
	VEEs                 []int32
	Sites, Jurisdictions []string
}

func (c Located) About() About { return About{VEEs: c.VEEs} }
func (c Located) String() string {
	return fmt.Sprintf("%s only at %s", vees(c.VEEs), strings.Join(append(slices.Clone(c.Sites), c.Jurisdictions...), ", "))
}
func (c Located) Allows(m *Model, _, h int32) bool {
	return (len(c.Sites) == 0 || slices.Contains(c.Sites, m.Hosts[h].Site)) &&
		(len(c.Jurisdictions) == 0 || slices.Contains(c.Jurisdictions, m.Hosts[h].Jurisdiction))
}
func (c Located) Check(m *Model, s *Snapshot) error { return checkUnary(m, s, c) }

// Labelled keeps VEEs on hosts with a label, such as a security clearance (RESERVOIR).
type Labelled struct {
	VEEs  []int32
	Label string
}

func (c Labelled) About() About { return About{VEEs: c.VEEs} }
func (c Labelled) String() string {
	return fmt.Sprintf("%s only on hosts labelled %q", vees(c.VEEs), c.Label)
}
func (c Labelled) Allows(m *Model, _, h int32) bool {
	return slices.Contains(m.Hosts[h].Labels, c.Label)
}
func (c Labelled) Check(m *Model, s *Snapshot) error { return checkUnary(m, s, c) }

// Hypervised keeps VEEs on hosts with a hypervisor (RESERVOIR).
type Hypervised struct {
	VEEs       []int32
	Hypervisor string
}

func (c Hypervised) About() About { return About{VEEs: c.VEEs} }
func (c Hypervised) String() string {
	return fmt.Sprintf("%s only under %s", vees(c.VEEs), c.Hypervisor)
}
func (c Hypervised) Allows(m *Model, _, h int32) bool {
	return slices.Contains(m.Hosts[h].Hypervisors, c.Hypervisor)
}
func (c Hypervised) Check(m *Model, s *Snapshot) error { return checkUnary(m, s, c) }

// CostCeiling keeps VEEs off hosts that cost more per hour (RESERVOIR).
type CostCeiling struct {
	VEEs []int32
	Max  float64
}

func (c CostCeiling) About() About { return About{VEEs: c.VEEs} }
func (c CostCeiling) String() string {
	return fmt.Sprintf("%s on hosts of at most %g an hour", vees(c.VEEs), c.Max)
}
func (c CostCeiling) Allows(m *Model, _, h int32) bool  { return m.Hosts[h].Price <= c.Max }
func (c CostCeiling) Check(m *Model, s *Snapshot) error { return checkUnary(m, s, c) }

// Spread keeps VEEs on distinct hosts (BtrPlace), or racks, rooms, sites (RESERVOIR's
// anti-affinity).
type Spread struct {
	VEEs  []int32
	Scope Scope
	Always
}

func (c Spread) About() About { return About{VEEs: c.VEEs} }
func (c Spread) String() string {
	return throughout(c.Always, fmt.Sprintf("%s on distinct %ss", vees(c.VEEs), c.Scope))
}
func (c Spread) Check(m *Model, s *Snapshot) error {
	taken := map[string]int32{}
	for _, v := range c.VEEs {
		for _, h := range s.hosts(v) {
			if other, ok := taken[m.Where(h, c.Scope)]; ok && other != v {
				return fmt.Errorf("%v: %s and %s share %s %s", c, m.vee(other), m.vee(v), c.Scope, m.Where(h, c.Scope))
			}
			taken[m.Where(h, c.Scope)] = v
		}
	}
	return nil
}

// Gather keeps VEEs on one host (BtrPlace), or in one rack, room, site (RESERVOIR's
// affinity).
type Gather struct {
	VEEs  []int32
	Scope Scope
	Always
}

func (c Gather) About() About { return About{VEEs: c.VEEs} }
func (c Gather) String() string {
	return throughout(c.Always, fmt.Sprintf("%s in one %s", vees(c.VEEs), c.Scope))
}
func (c Gather) Check(m *Model, s *Snapshot) error {
	first := None
	for _, v := range c.VEEs {
		for _, h := range s.hosts(v) {
			if first != None && m.Where(h, c.Scope) != m.Where(first, c.Scope) {
				return fmt.Errorf("%v: one is on %s and %s on %s", c, m.host(first), m.vee(v), m.host(h))
			}
			first = h
		}
	}
	return nil
}

// Lonely keeps strangers off the hosts of VEEs (BtrPlace).
type Lonely struct {
	VEEs []int32
	Always
}

func (c Lonely) About() About   { return About{VEEs: c.VEEs} }
func (c Lonely) String() string { return throughout(c.Always, vees(c.VEEs)+" without strangers") }
func (c Lonely) Check(m *Model, s *Snapshot) error {
	member, home := map[int32]bool{}, map[int32]int32{}
	for _, v := range c.VEEs {
		member[v] = true
		for _, h := range s.hosts(v) {
			home[h] = v
		}
	}
	for v := range s.Places {
		for _, h := range s.hosts(int32(v)) {
			if mate, ok := home[h]; ok && !member[int32(v)] {
				return fmt.Errorf("%v: %s shares %s with %s", c, m.vee(mate), m.host(h), m.vee(int32(v)))
			}
		}
	}
	return nil
}

// Split keeps the VEEs of distinct groups on distinct hosts (BtrPlace).
type Split struct {
	Groups [][]int32
	Always
}

func (c Split) About() About { return About{VEEs: slices.Concat(c.Groups...)} }
func (c Split) String() string {
	return throughout(c.Always, fmt.Sprintf("%d groups share no host", len(c.Groups)))
}
func (c Split) Check(m *Model, s *Snapshot) error {
	owner := map[int32]int{}
	for g, group := range c.Groups {
		for _, v := range group {
			for _, h := range s.hosts(v) {
				if other, ok := owner[h]; ok && other != g {
					return fmt.Errorf("%v: groups %d and %d are on %s", c, other, g, m.host(h))
				}
				owner[h] = g
			}
		}
	}
	return nil
}

// Among keeps VEEs together in one of some groups of hosts (BtrPlace).
type Among struct {
	VEEs   []int32
	Groups [][]int32
	Always
}

func (c Among) About() About { return About{VEEs: c.VEEs, Hosts: slices.Concat(c.Groups...)} }
func (c Among) String() string {
	return throughout(c.Always, fmt.Sprintf("%s together in one of %d groups of hosts", vees(c.VEEs), len(c.Groups)))
}
func (c Among) Check(m *Model, s *Snapshot) error {
	_, err := among(m, s, c, c.VEEs, groupOf(c.Groups))
	return err
}

func groupOf(groups [][]int32) map[int32]int {
	of := map[int32]int{}
	for g, hosts := range groups {
		for _, h := range hosts {
			of[h] = g
		}
	}
	return of
}

// among which group the VEEs are; -1: nowhere yet.
func among(m *Model, s *Snapshot, c Constraint, vees []int32, groups map[int32]int) (int, error) {
	in := -1
	for _, v := range vees {
		for _, h := range s.hosts(v) {
			g, ok := groups[h]
			if !ok {
				return in, fmt.Errorf("%v: %s is on %s, in none of the groups", c, m.vee(v), m.host(h))
			}
			if in >= 0 && in != g {
				return in, fmt.Errorf("%v: %s on %s is apart from the others", c, m.vee(v), m.host(h))
			}
			in = g
		}
	}
	return in, nil
}

// SplitAmong keeps each set of VEEs within one group of hosts, distinct sets in distinct
// groups (BtrPlace).
type SplitAmong struct {
	Sets   [][]int32
	Groups [][]int32
	Always
}

func (c SplitAmong) About() About {
	return About{VEEs: slices.Concat(c.Sets...), Hosts: slices.Concat(c.Groups...)}
}
func (c SplitAmong) String() string {
	return throughout(c.Always, fmt.Sprintf("%d sets of VEEs in distinct groups of hosts", len(c.Sets)))
}
func (c SplitAmong) Check(m *Model, s *Snapshot) error {
	groups, taken := groupOf(c.Groups), map[int]int{}
	for i, set := range c.Sets {
		g, err := among(m, s, c, set, groups)
		if err != nil {
			return err
		}
		if other, ok := taken[g]; ok && g >= 0 {
			return fmt.Errorf("%v: sets %d and %d share group %d", c, other, i, g)
		}
		taken[g] = i
	}
	return nil
}

// Preserve allocates at least Amount of a dimension to each of the VEEs that run
// (BtrPlace).
type Preserve struct {
	VEEs      []int32
	Dimension int
	Amount    int64
}

func (c Preserve) About() About { return About{VEEs: c.VEEs, Dimension: c.Dimension} }
func (c Preserve) String() string {
	return fmt.Sprintf("%s have at least %d of dimension %d", vees(c.VEEs), c.Amount, c.Dimension)
}
func (c Preserve) Check(m *Model, s *Snapshot) error {
	for _, v := range c.VEEs {
		if got := s.Allocated[int(v)*len(m.Dimensions)+c.Dimension]; s.State[v] == Running && got < c.Amount {
			return fmt.Errorf("%v: %s has %d", c, m.vee(v), got)
		}
	}
	return nil
}

// Overbook bounds what is promised on each of the hosts to Ratio times what it has
// (BtrPlace's virtual to physical ratio).
type Overbook struct {
	Hosts     []int32
	Dimension int
	Ratio     float64
	Always
}

func (c Overbook) About() About { return About{Hosts: c.Hosts, Dimension: c.Dimension} }
func (c Overbook) String() string {
	return throughout(c.Always, fmt.Sprintf("at most %g of dimension %d promised for each one there is on %s", c.Ratio, c.Dimension, hosts(c.Hosts)))
}

// Limit on what is promised at host h.
func (c Overbook) Limit(m *Model, h int32) int64 {
	return int64(min(max(0, c.Ratio)*float64(m.Capacity(h)[c.Dimension]), 1<<62))
}
func (c Overbook) Check(m *Model, s *Snapshot) error {
	promised := map[int32]int64{}
	for v := range s.Places {
		for _, h := range s.hosts(int32(v)) {
			promised[h] += m.Promised(int32(v))[c.Dimension]
		}
	}
	for _, h := range c.Hosts {
		if promised[h] > c.Limit(m, h) {
			return fmt.Errorf("%v: %d on %s", c, promised[h], m.host(h))
		}
	}
	return nil
}

// ResourceCapacity caps what VEEs have of a dimension on all of the hosts together
// (BtrPlace).
type ResourceCapacity struct {
	Hosts     []int32
	Dimension int
	Max       int64
	Always
}

func (c ResourceCapacity) About() About { return About{Hosts: c.Hosts, Dimension: c.Dimension} }
func (c ResourceCapacity) String() string {
	return throughout(c.Always, fmt.Sprintf("at most %d of dimension %d on %s", c.Max, c.Dimension, hosts(c.Hosts)))
}
func (c ResourceCapacity) Check(m *Model, s *Snapshot) error {
	in, sum := set(c.Hosts), int64(0)
	for v := range s.Places {
		for _, h := range s.hosts(int32(v)) {
			if in[h] {
				sum += s.Allocated[v*len(m.Dimensions)+c.Dimension]
			}
		}
	}
	if sum > c.Max {
		return fmt.Errorf("%v: %d", c, sum)
	}
	return nil
}

func set(of []int32) map[int32]bool {
	s := make(map[int32]bool, len(of))
	for _, x := range of {
		s[x] = true
	}
	return s
}

// RunningCapacity caps the number of VEEs on all of the hosts together (BtrPlace).
type RunningCapacity struct {
	Hosts []int32
	Max   int
	Always
}

func (c RunningCapacity) About() About { return About{Hosts: c.Hosts} }
func (c RunningCapacity) String() string {
	return throughout(c.Always, fmt.Sprintf("at most %d VEEs on %s", c.Max, hosts(c.Hosts)))
}
func (c RunningCapacity) Check(_ *Model, s *Snapshot) error {
	in, n := set(c.Hosts), 0
	for v := range s.Places {
		if slices.ContainsFunc(s.hosts(int32(v)), func(h int32) bool { return in[h] }) {
			n++
		}
	}
	if n > c.Max {
		return fmt.Errorf("%v: %d", c, n)
	}
	return nil
}

// InState has VEEs running, ready, sleeping or killed (BtrPlace's Running, Ready, Sleeping,
// Killed).
type InState struct {
	VEEs  []int32
	State State
}

func (c InState) About() About   { return About{VEEs: c.VEEs} }
func (c InState) String() string { return fmt.Sprintf("%s %v", vees(c.VEEs), c.State) }
func (c InState) Check(m *Model, s *Snapshot) error {
	for _, v := range c.VEEs {
		if s.State[v] != c.State {
			return fmt.Errorf("%v: %s is %v", c, m.vee(v), s.State[v])
		}
	}
	return nil
}

// Power has hosts on or off (BtrPlace's Online, Offline).
type Power struct {
	Hosts []int32
	On    bool
}

func (c Power) About() About { return About{Hosts: c.Hosts} }
func (c Power) String() string {
	return fmt.Sprintf("%s %s", hosts(c.Hosts), map[bool]string{true: "on", false: "off"}[c.On])
}
func (c Power) Check(m *Model, s *Snapshot) error {
	for _, h := range c.Hosts {
		if s.On[h] != c.On {
			return fmt.Errorf("%v: %s is not", c, m.host(h))
		}
	}
	return nil
}

// MaxOnline has at most Max of the hosts on (BtrPlace).
type MaxOnline struct {
	Hosts []int32
	Max   int
	Always
}

func (c MaxOnline) About() About { return About{Hosts: c.Hosts} }
func (c MaxOnline) String() string {
	return throughout(c.Always, fmt.Sprintf("at most %d of %s on", c.Max, hosts(c.Hosts)))
}
func (c MaxOnline) Check(_ *Model, s *Snapshot) error {
	n := 0
	for _, h := range c.Hosts {
		if s.On[h] {
			n++
		}
	}
	if n > c.Max {
		return fmt.Errorf("%v: %d", c, n)
	}
	return nil
}

// MinPlaces has VEEs in at least Min distinct places (ROADEF/EURO 2012: spread of a service
// over locations). VEEs that have no host do not count against it.
type MinPlaces struct {
	VEEs  []int32
	Scope Scope
	Min   int
}

func (c MinPlaces) About() About { return About{VEEs: c.VEEs} }
func (c MinPlaces) String() string {
	return fmt.Sprintf("%s in at least %d %ss", vees(c.VEEs), c.Min, c.Scope)
}
func (c MinPlaces) Check(m *Model, s *Snapshot) error {
	in, waiting := map[string]bool{}, 0
	for _, v := range c.VEEs {
		at := s.hosts(v)
		if len(at) == 0 {
			waiting++
			continue
		}
		in[m.Where(at[len(at)-1], c.Scope)] = true
	}
	if len(in)+waiting < c.Min {
		return fmt.Errorf("%v: %d", c, len(in))
	}
	return nil
}

// Near has one of the VEEs of On in each place where one of VEEs is (ROADEF/EURO 2012: a
// service depends on another within its neighbourhood).
type Near struct {
	VEEs, On []int32
	Scope    Scope
}

func (c Near) About() About { return About{VEEs: slices.Concat(c.VEEs, c.On)} }
func (c Near) String() string {
	return fmt.Sprintf("%s in a %s with one of %s", vees(c.VEEs), c.Scope, vees(c.On))
}
func (c Near) Check(m *Model, s *Snapshot) error {
	there := map[string]bool{}
	for _, v := range c.On {
		for _, h := range s.hosts(v) {
			there[m.Where(h, c.Scope)] = true
		}
	}
	for _, v := range c.VEEs {
		for _, h := range s.hosts(v) {
			if !there[m.Where(h, c.Scope)] {
				return fmt.Errorf("%v: %s is in %s without them", c, m.vee(v), m.Where(h, c.Scope))
			}
		}
	}
	return nil
}

// Root keeps VEEs where they are (BtrPlace).
type Root struct{ VEEs []int32 }

func (c Root) About() About   { return About{VEEs: c.VEEs} }
func (c Root) String() string { return vees(c.VEEs) + " do not move" }
func (c Root) CheckPlan(m *Model, p Plan) error {
	in := set(c.VEEs)
	for _, a := range p.Actions {
		if a.VEE != None && in[a.VEE] && m.VEEs[a.VEE].Host != None && a.To != None && a.To != m.VEEs[a.VEE].Host {
			return fmt.Errorf("%v: %v", c, a)
		}
	}
	return nil
}

// Quarantine lets no VEE leave the hosts for another, and none come (BtrPlace).
type Quarantine struct{ Hosts []int32 }

func (c Quarantine) About() About   { return About{Hosts: c.Hosts} }
func (c Quarantine) String() string { return hosts(c.Hosts) + " in quarantine" }
func (c Quarantine) CheckPlan(_ *Model, p Plan) error {
	in := set(c.Hosts)
	for _, a := range p.Actions {
		if a.VEE != None && a.From != a.To && a.To != None && (in[a.To] || a.From != None && in[a.From]) {
			return fmt.Errorf("%v: %v", c, a)
		}
	}
	return nil
}

// times are when the actions on each of the VEEs begin and end; no action: not there.
func times(p Plan, vees []int32) map[int32][2]time.Duration {
	in, t := set(vees), map[int32][2]time.Duration{}
	for _, a := range p.Actions {
		if a.VEE == None || !in[a.VEE] {
			continue
		}
		if was, ok := t[a.VEE]; ok {
			t[a.VEE] = [2]time.Duration{min(was[0], a.Start), max(was[1], a.End)}
		} else {
			t[a.VEE] = [2]time.Duration{a.Start, a.End}
		}
	}
	return t
}

// Seq has the actions on VEEs one after the other in this order (BtrPlace).
type Seq struct{ VEEs []int32 }

func (c Seq) About() About   { return About{VEEs: c.VEEs} }
func (c Seq) String() string { return vees(c.VEEs) + " in this order" }
func (c Seq) CheckPlan(m *Model, p Plan) error {
	t, end, last := times(p, c.VEEs), time.Duration(0), None
	for _, v := range c.VEEs {
		if x, ok := t[v]; ok {
			if x[0] < end {
				return fmt.Errorf("%v: %s begins before %s has ended", c, m.vee(v), m.vee(last))
			}
			end, last = x[1], v
		}
	}
	return nil
}

// NoDelay has the actions on VEEs begin at once (BtrPlace).
type NoDelay struct{ VEEs []int32 }

func (c NoDelay) About() About   { return About{VEEs: c.VEEs} }
func (c NoDelay) String() string { return vees(c.VEEs) + " at once" }
func (c NoDelay) CheckPlan(m *Model, p Plan) error {
	t := times(p, c.VEEs)
	for _, v := range c.VEEs {
		if x, ok := t[v]; ok && x[0] > 0 {
			return fmt.Errorf("%v: %s begins after %v", c, m.vee(v), x[0])
		}
	}
	return nil
}

// Deadline has the actions on VEEs ended by a time since the plan's beginning (BtrPlace, by mVM).
type Deadline struct {
	VEEs []int32
	By   time.Duration
}

func (c Deadline) About() About   { return About{VEEs: c.VEEs} }
func (c Deadline) String() string { return fmt.Sprintf("%s by %v", vees(c.VEEs), c.By) }
func (c Deadline) CheckPlan(m *Model, p Plan) error {
	t := times(p, c.VEEs)
	for _, v := range c.VEEs {
		if x, ok := t[v]; ok && x[1] > c.By {
			return fmt.Errorf("%v: %s ends after %v", c, m.vee(v), x[1])
		}
	}
	return nil
}

// Precedence has the actions on Before ended when those on After begin (BtrPlace, by mVM).
type Precedence struct{ Before, After []int32 }

func (c Precedence) About() About { return About{VEEs: slices.Concat(c.Before, c.After)} }
func (c Precedence) String() string {
	return fmt.Sprintf("%s before %s", vees(c.Before), vees(c.After))
}
func (c Precedence) CheckPlan(m *Model, p Plan) error {
	before, after := times(p, c.Before), times(p, c.After)
	for _, v := range c.Before {
		for _, w := range c.After {
			x, one := before[v]
			y, other := after[w]
			if one && other && y[0] < x[1] {
				return fmt.Errorf("%v: %s begins before %s has ended", c, m.vee(w), m.vee(v))
			}
		}
	}
	return nil
}

// Serialize has the actions on VEEs not overlap (BtrPlace, by mVM).
type Serialize struct{ VEEs []int32 }

func (c Serialize) About() About   { return About{VEEs: c.VEEs} }
func (c Serialize) String() string { return vees(c.VEEs) + " one at a time" }
func (c Serialize) CheckPlan(_ *Model, p Plan) error {
	in, last := set(c.VEEs), Action{}
	actions := slices.Clone(p.Actions)
	slices.SortStableFunc(actions, func(a, b Action) int { return int(min(max(a.Start-b.Start, -1), 1)) })
	for _, a := range actions {
		if a.VEE == None || !in[a.VEE] {
			continue
		}
		if a.Start < last.End {
			return fmt.Errorf("%v: %v begins before %v has ended", c, a, last)
		}
		last = a
	}
	return nil
}

// Sync has the actions on VEEs begin together (BtrPlace, by mVM).
type Sync struct{ VEEs []int32 }

func (c Sync) About() About   { return About{VEEs: c.VEEs} }
func (c Sync) String() string { return vees(c.VEEs) + " together" }
func (c Sync) CheckPlan(m *Model, p Plan) error {
	t := times(p, c.VEEs)
	first := None
	for _, v := range c.VEEs {
		x, ok := t[v]
		if !ok {
			continue
		}
		if first != None && x[0] != t[first][0] {
			return fmt.Errorf("%v: %s and %s begin apart", c, m.vee(first), m.vee(v))
		}
		first = v
	}
	return nil
}
