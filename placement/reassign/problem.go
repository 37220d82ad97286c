// Package reassign improves where VEEs are by local search over flat arrays. Its problem
// is the machine reassignment problem of the Google ROADEF/EURO challenge 2012, whose costs
// and constraints are those of a large site: capacities with a part that a move holds at
// both ends, VEEs of one service on distinct hosts, services spread over locations and near
// the services that they depend on, load, balance and the price of moving.
//
// It knows hosts and VEEs as indices and nothing of names, states or plans; package
// placement/roadef reads the challenge's files into a Problem.
package reassign

import (
	"errors"
	"fmt"
)

// Problem of reassigning VEEs to hosts. Two-dimensional tables are flat: the row of host h
// in a table of resources is [h*Resources : (h+1)*Resources]. Amounts and weights are not
// negative, and small enough that the sum of all of them fits an int64.
type Problem struct {
	Resources, Hosts, VEEs, Services int
	Locations, Neighbourhoods        int

	Transient  []bool  // by resource: a VEE that moves holds it at both ends
	LoadWeight []int64 // by resource: cost of a unit used above Safety
	Capacity   []int64 // host × resource
	Safety     []int64 // host × resource
	Location   []int32 // of each host
	Nearby     []int32 // the neighbourhood of each host
	Distance   []int64 // host × host: cost of moving a VEE from the first to the second

	SpreadMin []int32   // by service: locations that it must be in at least
	DependsOn [][]int32 // by service: services that must be in each of its neighbourhoods

	Service  []int32 // of each VEE
	Demand   []int64 // VEE × resource
	MoveCost []int64 // of each VEE

	Balances []Balance

	MoveWeight, ServiceWeight, DistanceWeight int64

	Initial []int32 // host of each VEE before
}

// Balance costs Weight for every unit by which what is free of B at a host falls short of
// Target times what is free of A.
type Balance struct {
	A, B           int
	Target, Weight int64
}

// Validate says what is wrong with the tables of p, if anything; not whether the initial
// placement is feasible: see Cost.
func (p *Problem) Validate() error {
	for _, t := range []struct {
		name      string
		got, want int
	}{
		{"Transient", len(p.Transient), p.Resources}, {"LoadWeight", len(p.LoadWeight), p.Resources},
		{"Capacity", len(p.Capacity), p.Hosts * p.Resources}, {"Safety", len(p.Safety), p.Hosts * p.Resources},
		{"Location", len(p.Location), p.Hosts}, {"Nearby", len(p.Nearby), p.Hosts}, {"Distance", len(p.Distance), p.Hosts * p.Hosts},
		{"SpreadMin", len(p.SpreadMin), p.Services}, {"DependsOn", len(p.DependsOn), p.Services},
		{"Service", len(p.Service), p.VEEs}, {"Demand", len(p.Demand), p.VEEs * p.Resources}, {"MoveCost", len(p.MoveCost), p.VEEs},
		{"Initial", len(p.Initial), p.VEEs},
	} {
		if t.got != t.want {
			return fmt.Errorf("problem has %d entries in %s, %d expected", t.got, t.name, t.want)
		}
	}
	within := func(name string, of []int32, n int) error {
		for i, x := range of {
			if x < 0 || int(x) >= n {
				return fmt.Errorf("%s[%d] is %d, not within 0 to %d", name, i, x, n-1)
			}
		}
		return nil
	}
	err := errors.Join(within("Location", p.Location, p.Locations), within("Nearby", p.Nearby, p.Neighbourhoods),
		within("Service", p.Service, p.Services), within("Initial", p.Initial, p.Hosts))
	for s, d := range p.DependsOn {
		err = errors.Join(err, within(fmt.Sprintf("DependsOn[%d]", s), d, p.Services))
	}
	for i, b := range p.Balances {
		if min(b.A, b.B) < 0 || max(b.A, b.B) >= p.Resources {
			err = errors.Join(err, fmt.Errorf("balance %d is about resources %d and %d of %d", i, b.A, b.B, p.Resources))
		}
	}
	return err
}

// Cost of the placement at (the host of each VEE), or an error with the first constraint
// that it breaks. It is the plain reading of the problem, counted from nothing, and shares
// no code with the search.
func (p *Problem) Cost(at []int32) (int64, error) {
	if len(at) != p.VEEs {
		return 0, fmt.Errorf("%d VEEs have a host, %d expected", len(at), p.VEEs)
	}
	use, held := make([]int64, p.Hosts*p.Resources), make([]int64, p.Hosts*p.Resources)
	type pair struct{ service, where int32 }
	on, locations, nearby := map[pair]int{}, map[pair]bool{}, map[pair]bool{}
	spread, moved := make([]int32, p.Services), make([]int64, p.Services)
	var cost, most int64
	for v, h := range at {
		s, from := p.Service[v], p.Initial[v]
		if h < 0 || int(h) >= p.Hosts {
			return 0, fmt.Errorf("VEE %d is on host %d of %d", v, h, p.Hosts)
		}
		if other, taken := on[pair{s, h}]; taken {
			return 0, fmt.Errorf("VEEs %d and %d of service %d are both on host %d", other, v, s, h)
		}
		on[pair{s, h}] = v
		if l := (pair{s, p.Location[h]}); !locations[l] {
			locations[l] = true
			spread[s]++
		}
		nearby[pair{s, p.Nearby[h]}] = true
		for r := range p.Resources {
			d := p.Demand[v*p.Resources+r]
			use[int(h)*p.Resources+r] += d
			if p.Transient[r] && from != h {
				held[int(from)*p.Resources+r] += d
			}
		}
		if from != h {
			moved[s]++
			most = max(most, moved[s])
			cost += p.MoveWeight * p.MoveCost[v]
		}
		cost += p.DistanceWeight * p.Distance[int(from)*p.Hosts+int(h)]
	}
	for i, u := range use {
		if u+held[i] > p.Capacity[i] {
			return 0, fmt.Errorf("host %d has %d of resource %d: %d used and %d held", i/p.Resources, p.Capacity[i], i%p.Resources, u, held[i])
		}
		cost += p.LoadWeight[i%p.Resources] * max(0, u-p.Safety[i])
	}
	for s := range p.Services {
		if spread[s] < p.SpreadMin[s] {
			return 0, fmt.Errorf("service %d is in %d locations, %d needed", s, spread[s], p.SpreadMin[s])
		}
		for _, d := range p.DependsOn[s] {
			for n := range int32(p.Neighbourhoods) {
				if nearby[pair{int32(s), n}] && !nearby[pair{d, n}] {
					return 0, fmt.Errorf("service %d is in neighbourhood %d without service %d, which it depends on", s, n, d)
				}
			}
		}
	}
	for h := range p.Hosts {
		free := func(r int) int64 { return p.Capacity[h*p.Resources+r] - use[h*p.Resources+r] }
		for _, b := range p.Balances {
			cost += b.Weight * max(0, b.Target*free(b.A)-free(b.B))
		}
	}
	return cost + p.ServiceWeight*most, nil
}
