// Package model holds what a placement is about: hosts and VEEs with their amounts, the
// constraints on where and how VEEs are, and the plan that leads from one placement to
// another. It is data and what the data means; it neither searches (package solve) nor
// replays plans (package check).
//
// Hosts, VEEs and dimensions are named by their index in the model.
package model

import (
	"errors"
	"fmt"
	"math"
	"time"
)

// None is where a VEE is that has no host.
const None int32 = -1

// MaxAmount that a host or VEE has of anything: small enough that a million VEEs add up.
const MaxAmount = 1 << 42

// Dimension of what hosts have and VEEs need: processors, memory, public addresses,
// licences. Its unit is the model's own; a name such as "memory_mib" carries it.
type Dimension string

// Host of VEEs.
type Host struct {
	Name     string
	Off      bool
	Draining bool // is to be emptied, and takes nothing new

	Rack, Room, Site string
	Jurisdiction     string // the law that holds there, such as "EU"
	Labels           []string
	Hypervisors      []string

	Price    float64       // per hour while it is on
	Distance float64       // to the users of the services, in ms
	Watts    float64       // that it draws while it has VEEs
	Heat     float64       // part of them that somebody there wants as heat, 0 to 1
	Boot     time.Duration // switching it on
	Shutdown time.Duration // switching it off

	LinkMiBs float64 // MiB that its link sends migrations in a second, and receives; 0: Migration.MiBs
}

// State of a VEE, with BtrPlace's names.
type State uint8

// States: not yet begun; on a host; on a host's disk; gone for ever.
const (
	Ready State = iota
	Running
	Sleeping
	Killed
)

func (s State) String() string {
	return [...]string{"ready", "running", "sleeping", "killed"}[min(s, Killed)]
}

// VEE is a virtual machine.
type VEE struct {
	Name     string
	Customer string
	Tags     []string
	State    State
	Host     int32 // None unless running or sleeping

	MemoryMiB int64   // what a migration copies
	DirtyMiBs float64 // MiB of memory written in a second
	HotMiB    int64   // of its memory: what it writes to, again and again; 0: to all of it

	Start, Stop, Suspend, Resume time.Duration
	Clonable                     bool // may move by starting it there and stopping it here
}

// Model of hosts, VEEs and rules. Hosts and VEEs are added before it is used; amounts are
// kept flat, eight bytes for each host or VEE and dimension.
type Model struct {
	Dimensions []Dimension
	Hosts      []Host
	VEEs       []VEE
	Rules      []Rule
	Migration  Migration

	capacity []int64
	demand   []int64
	promised []int64 // empty: as the demand
}

// Rule is a constraint that must hold, or one that costs Weight where it does not.
type Rule struct {
	Constraint Constraint
	Weight     float64 // 0: it must hold
}

// Hard tells whether the rule must hold.
func (r Rule) Hard() bool { return r.Weight == 0 }

// New model with these dimensions.
func New(dimensions ...Dimension) *Model { return &Model{Dimensions: dimensions} }

// AddHost with its capacity by dimension; what is missing is 0. It returns its index.
func (m *Model) AddHost(h Host, capacity ...int64) int32 {
	m.Hosts = append(m.Hosts, h)
	m.capacity = appendRow(m.capacity, capacity, len(m.Dimensions))
	return int32(len(m.Hosts) - 1)
}

// AddVEE with its demand by dimension; what is missing is 0. It returns its index.
func (m *Model) AddVEE(v VEE, demand ...int64) int32 {
	if v.State != Running && v.State != Sleeping {
		v.Host = None
	}
	m.VEEs = append(m.VEEs, v)
	m.demand = appendRow(m.demand, demand, len(m.Dimensions))
	if m.promised != nil {
		m.promised = appendRow(m.promised, demand, len(m.Dimensions))
	}
	return int32(len(m.VEEs) - 1)
}

func appendRow(to, row []int64, n int) []int64 {
	for i := range n {
		if i < len(row) {
			to = append(to, row[i])
		} else {
			to = append(to, 0)
		}
	}
	return to
}

// Promise VEE v these amounts, of which its demand is what it uses now. Only Overbook
// looks at promises.
func (m *Model) Promise(v int32, amounts ...int64) {
	if m.promised == nil {
		m.promised = append([]int64(nil), m.demand...)
	}
	copy(m.promised[int(v)*len(m.Dimensions):(int(v)+1)*len(m.Dimensions)], amounts)
}

// Require adds rules that must hold.
func (m *Model) Require(constraints ...Constraint) {
	for _, c := range constraints {
		m.Rules = append(m.Rules, Rule{Constraint: c})
	}
}

// Prefer adds a rule that costs weight where it does not hold.
func (m *Model) Prefer(weight float64, c Constraint) {
	m.Rules = append(m.Rules, Rule{Constraint: c, Weight: weight})
}

// Capacity of host h by dimension; the slice is the model's own.
func (m *Model) Capacity(h int32) []int64 { return row(m.capacity, h, len(m.Dimensions)) }

// Demand of VEE v by dimension; the slice is the model's own.
func (m *Model) Demand(v int32) []int64 { return row(m.demand, v, len(m.Dimensions)) }

// Demands of all VEEs, VEE × dimension, and Capacities of all hosts, host × dimension; the
// slices are the model's own.
func (m *Model) Demands() []int64 { return m.demand }

// Capacities of all hosts: see Demands.
func (m *Model) Capacities() []int64 { return m.capacity }

// Promised to VEE v by dimension; the slice is the model's own.
func (m *Model) Promised(v int32) []int64 {
	if m.promised == nil {
		return m.Demand(v)
	}
	return row(m.promised, v, len(m.Dimensions))
}

func row(table []int64, i int32, n int) []int64 {
	return table[int(i)*n : (int(i)+1)*n : (int(i)+1)*n]
}

// Tagged VEEs.
func (m *Model) Tagged(tag string) (vees []int32) {
	for i := range m.VEEs {
		for _, t := range m.VEEs[i].Tags {
			if t == tag {
				vees = append(vees, int32(i))
				break
			}
		}
	}
	return vees
}

// Validate says what no placement can be computed from: amounts that are negative or
// enormous, numbers that are none, indices of nothing.
func (m *Model) Validate() error {
	var errs []error
	bad := func(format string, args ...any) {
		if len(errs) < 10 { // a broken model is broken everywhere
			errs = append(errs, fmt.Errorf(format, args...))
		}
	}
	amounts := func(kind, name string, of []int64) {
		for d, a := range of {
			if a < 0 || a > MaxAmount {
				bad("%s %s has %d of %s, not within 0 to %d: use a larger unit", kind, name, a, m.Dimensions[d], int64(MaxAmount))
			}
		}
	}
	number := func(kind, name, what string, x float64) {
		if math.IsNaN(x) || math.IsInf(x, 0) || x < 0 {
			bad("%s %s has the %s %v: a number from 0 on is needed", kind, name, what, x)
		}
	}
	for i := range m.Hosts {
		h := &m.Hosts[i]
		amounts("host", h.Name, m.Capacity(int32(i)))
		number("host", h.Name, "price", h.Price)
		number("host", h.Name, "distance", h.Distance)
		number("host", h.Name, "power", h.Watts)
		if !(h.Heat >= 0 && h.Heat <= 1) {
			bad("host %s has %v of its heat wanted: a part, from 0 to 1, is needed", h.Name, h.Heat)
		}
		number("host", h.Name, "link bandwidth", h.LinkMiBs)
		if min(h.Boot, h.Shutdown) < 0 {
			bad("host %s boots or shuts down in a negative time", h.Name)
		}
	}
	for i := range m.VEEs {
		v := &m.VEEs[i]
		amounts("VEE", v.Name, m.Demand(int32(i)))
		amounts("VEE", v.Name, m.Promised(int32(i)))
		number("VEE", v.Name, "dirty rate", v.DirtyMiBs)
		if min(v.MemoryMiB, v.HotMiB) < 0 || max(v.MemoryMiB, v.HotMiB) > MaxAmount {
			bad("VEE %s has %d MiB of memory, %d of them hot", v.Name, v.MemoryMiB, v.HotMiB)
		}
		if min(v.Start, v.Stop, v.Suspend, v.Resume) < 0 {
			bad("VEE %s has an action of negative length", v.Name)
		}
		placed := v.State == Running || v.State == Sleeping
		if v.State > Killed || placed != (v.Host != None) || v.Host < None || int(v.Host) >= len(m.Hosts) {
			bad("VEE %s is %s on host %d of %d", v.Name, v.State, v.Host, len(m.Hosts))
		} else if v.State == Running && m.Hosts[v.Host].Off {
			bad("VEE %s is running on host %s, which is off", v.Name, m.Hosts[v.Host].Name)
		}
	}
	number("the model's", "migration", "bandwidth", m.Migration.MiBs)
	for i, l := range m.Migration.Links {
		number("link", fmt.Sprint(i), "bandwidth", l.MiBs)
		for _, h := range l.Hosts {
			if h < 0 || int(h) >= len(m.Hosts) {
				bad("link %d is of host %d of %d", i, h, len(m.Hosts))
			}
		}
	}
	for i, r := range m.Rules {
		number("rule", fmt.Sprint(i), "weight", r.Weight)
		if r.Constraint == nil {
			bad("rule %d has no constraint", i)
			continue
		}
		about := r.Constraint.About()
		for _, v := range about.VEEs {
			if v < 0 || int(v) >= len(m.VEEs) {
				bad("rule %d (%v) names VEE %d of %d", i, r.Constraint, v, len(m.VEEs))
			}
		}
		for _, h := range about.Hosts {
			if h < 0 || int(h) >= len(m.Hosts) {
				bad("rule %d (%v) names host %d of %d", i, r.Constraint, h, len(m.Hosts))
			}
		}
		if about.Dimension < 0 || about.Dimension > 0 && about.Dimension >= len(m.Dimensions) {
			bad("rule %d (%v) names dimension %d of %d", i, r.Constraint, about.Dimension, len(m.Dimensions))
		}
		if v, twice := inTwo(r.Constraint); twice {
			bad("rule %d (%v) has VEE %d in two groups that are to be apart", i, r.Constraint, v)
		}
	}
	return errors.Join(errs...)
}

// inTwo is a VEE that is in two groups of c, if c keeps groups apart.
func inTwo(c Constraint) (v int32, twice bool) {
	var groups [][]int32
	switch c := c.(type) {
	case Split:
		groups = c.Groups
	case SplitAmong:
		groups = c.Sets
	}
	in := map[int32]int{}
	for g, vees := range groups {
		for _, v := range vees {
			if other, ok := in[v]; ok && other != g {
				return v, true
			}
			in[v] = g
		}
	}
	return 0, false
}

// Scope of a constraint between VEEs: what counts as one place.
type Scope uint8

// Scopes.
const (
	OnHost Scope = iota
	InRack
	InRoom
	InSite
)

func (s Scope) String() string { return [...]string{"host", "rack", "room", "site"}[min(s, InSite)] }

// Where host h is, within scope: equal for two hosts exactly if they are in one place.
func (m *Model) Where(h int32, s Scope) string {
	switch host := &m.Hosts[h]; s {
	case InRack:
		return host.Rack
	case InRoom:
		return host.Room
	case InSite:
		return host.Site
	default:
		return host.Name
	}
}
