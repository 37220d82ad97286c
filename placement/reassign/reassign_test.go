package reassign

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// drawProblem that is feasible as it begins.
func drawProblem(t *rapid.T) *Problem {
	n := func(label string, low, high int) int { return rapid.IntRange(low, high).Draw(t, label) }
	p := &Problem{Resources: n("resources", 1, 3), Hosts: n("hosts", 1, 6), VEEs: n("VEEs", 0, 12), Locations: 3, Neighbourhoods: 2,
		MoveWeight: int64(n("weight", 0, 3)), ServiceWeight: int64(n("weight", 0, 3)), DistanceWeight: int64(n("weight", 0, 3))}
	p.Services = p.VEEs + 1
	r := rand.New(rand.NewPCG(uint64(n("seed", 0, 1<<20)), 1)) // bulk that is not worth shrinking
	for range p.Resources {
		p.Transient, p.LoadWeight = append(p.Transient, r.IntN(2) == 0), append(p.LoadWeight, r.Int64N(20))
	}
	for range p.Hosts {
		p.Location, p.Nearby = append(p.Location, r.Int32N(3)), append(p.Nearby, r.Int32N(2))
		for range p.Hosts {
			p.Distance = append(p.Distance, r.Int64N(5))
		}
	}
	use := make([]int64, p.Hosts*p.Resources)
	type pair struct{ s, h int32 }
	taken, services := map[pair]bool{}, int32(0)
	for v := range p.VEEs {
		h, s := r.Int32N(int32(p.Hosts)), r.Int32N(services+1)
		if taken[pair{s, h}] || s == services {
			s = services
			services++
		}
		taken[pair{s, h}] = true
		p.Initial, p.Service, p.MoveCost = append(p.Initial, h), append(p.Service, s), append(p.MoveCost, r.Int64N(9))
		for k := range p.Resources {
			d := r.Int64N(10)
			p.Demand = append(p.Demand, d)
			use[int(h)*p.Resources+k] += p.Demand[v*p.Resources+k]
		}
	}
	for _, u := range use {
		c := u + r.Int64N(12)
		p.Capacity, p.Safety = append(p.Capacity, c), append(p.Safety, r.Int64N(c+1))
	}
	p.SpreadMin, p.DependsOn = make([]int32, p.Services), make([][]int32, p.Services)
	in := func(s int, of []int32) (places []int32) {
		for v, h := range p.Initial {
			if p.Service[v] == int32(s) && !slices.Contains(places, of[h]) {
				places = append(places, of[h])
			}
		}
		return places
	}
	for s := range p.Services {
		p.SpreadMin[s] = r.Int32N(int32(len(in(s, p.Location)) + 1))
		d := r.IntN(p.Services)
		needed, given := in(s, p.Nearby), in(d, p.Nearby)
		if !slices.ContainsFunc(needed, func(x int32) bool { return !slices.Contains(given, x) }) {
			p.DependsOn[s] = append(p.DependsOn[s], int32(d))
		}
	}
	if p.Resources > 1 && r.IntN(2) == 0 {
		p.Balances = append(p.Balances, Balance{A: 0, B: 1, Target: 1 + r.Int64N(3), Weight: r.Int64N(5)})
	}
	return p
}

// TestStateCounts: after any moves at any prices the state's cost is what counting from
// nothing says, its placement is feasible exactly if nothing is overdrawn, and a limit holds
// back the moves that cost more and no others.
func TestStateCounts(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := drawProblem(t)
		if err := p.Validate(); err != nil {
			t.Fatal(err)
		}
		cost, err := p.Cost(p.Initial)
		if err != nil {
			t.Fatalf("drew an infeasible problem: %v", err)
		}
		s := newState(p, p.Initial, cost)
		if p.VEEs == 0 {
			return
		}
		r := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "moves"), 1))
		for range 60 {
			v, w, c := r.IntN(p.VEEs), r.IntN(p.VEEs), r.IntN(p.Hosts)
			propose := func(limit int64) (move, bool) { return s.shift(v, c, limit) }
			switch r.IntN(4) {
			case 0:
				s.adapt(1.5, .7, low)
			case 1, 2:
				if r.IntN(2) == 0 {
					c = int(s.at[v])
				}
				propose = func(limit int64) (move, bool) { return s.replace(v, w, c, limit) }
			}
			m, ok := propose(math.MaxInt64 / 4)
			if !ok {
				continue
			}
			limit := r.Int64N(200) - 100
			if _, within := propose(limit); within != (m.cost+m.price <= limit) {
				t.Fatalf("a move that costs %d and %d is proposed under limit %d: %v", m.cost, m.price, limit, within)
			}
			s.make(m)
			cost, err := p.Cost(s.at)
			if (err == nil) != (s.overdrawn == 0) {
				t.Fatalf("overdrawn by %d, but %v", s.overdrawn, err)
			}
			if err == nil && cost != s.cost {
				t.Fatalf("counted %d, costs %d", s.cost, cost)
			}
			for h := range p.Hosts {
				if e := s.alone(h); e != s.load[h] {
					t.Fatalf("host %d counted with %v, has %v", h, s.load[h], e)
				}
			}
			for v, h := range s.at {
				if s.overdrawn == 0 && !newTerrain(p).reaches(v, int(h)) {
					t.Fatalf("VEE %d may not be on host %d, but is", v, h)
				}
			}
		}
	})
}

// TestPrices: what is overdrawn becomes dear, the rest cheap, both within bounds, and no sum
// overflows however large the amounts are.
func TestPrices(t *testing.T) {
	p := &Problem{Resources: 2, Hosts: 2, VEEs: 2, Services: 2, Locations: 1, Neighbourhoods: 1, Transient: []bool{false, false}, LoadWeight: []int64{1, 1},
		Capacity: []int64{1 << 40, 4, 1 << 40, 4}, Safety: []int64{1 << 40, 4, 1 << 40, 4}, Location: []int32{0, 0}, Nearby: []int32{0, 0}, Distance: make([]int64, 4),
		SpreadMin: []int32{0, 0}, DependsOn: make([][]int32, 2), Service: []int32{0, 1}, Demand: []int64{1 << 40, 1, 1 << 40, 1}, MoveCost: []int64{0, 0}, Initial: []int32{0, 1}}
	s := newState(p, p.Initial, 0)
	if m, ok := s.shift(0, 1, math.MaxInt64/4); !ok || m.price <= 0 {
		t.Fatalf("a host may be overdrawn at a price: %+v, %v", m, ok)
	} else {
		s.make(m)
	}
	for range 200 {
		s.adapt(2, .5, low)
		if s.overdrawn <= 0 {
			t.Fatalf("overdrawn by a price of %d", s.overdrawn)
		}
	}
	if s.markup[0] != low || s.markup[2] != forbidden || s.markup[3] != low {
		t.Errorf("markups %v, want the overdrawn resource of host 1 alone to be dear", s.markup)
	}
}

// TestTerrain: where a resource is transient, a host has room for those who began there and
// for what is left beside all of them.
func TestTerrain(t *testing.T) {
	p := &Problem{Resources: 1, Hosts: 2, VEEs: 4, Services: 4, Locations: 1, Neighbourhoods: 1, Transient: []bool{true}, LoadWeight: []int64{1},
		Capacity: []int64{10, 10}, Safety: []int64{10, 10}, Location: []int32{0, 0}, Nearby: []int32{0, 0}, Distance: make([]int64, 4),
		SpreadMin: make([]int32, 4), DependsOn: make([][]int32, 4), Service: []int32{0, 1, 2, 3}, Demand: []int64{6, 1, 7, 1}, MoveCost: make([]int64, 4), Initial: []int32{0, 0, 1, 1}}
	g := newTerrain(p)
	if g.reaches(0, 1) || !g.reaches(0, 0) || !g.reaches(1, 1) || !slices.Equal(g.movable, []int{1, 3}) {
		t.Errorf("movable: %v", g.movable)
	}
	got, err := Improve(p, Options{Iterations: 2 * look})
	if err != nil || got.At[0] != 0 || got.At[2] != 1 {
		t.Errorf("got %+v, %v", got, err)
	}
}

// TestImprove: never worse, always feasible, the same again.
func TestImprove(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := drawProblem(t)
		before, err := p.Cost(p.Initial)
		if err != nil {
			t.Fatal(err)
		}
		o := Options{Seed: 1, Workers: 2, Iterations: 3 * look}
		got, err := Improve(p, o)
		if err != nil {
			t.Fatal(err)
		}
		cost, err := p.Cost(got.At)
		if err != nil || cost != got.Cost || cost > before {
			t.Fatalf("improved %d to %d, which costs %d: %v", before, got.Cost, cost, err)
		}
		again, _ := Improve(p, o)
		if !slices.Equal(got.At, again.At) {
			t.Fatal("not reproducible")
		}
	})
}

func TestImproveStops(t *testing.T) {
	p := &Problem{Resources: 1, Hosts: 2, VEEs: 2, Services: 2, Locations: 1, Neighbourhoods: 1, Transient: []bool{false}, LoadWeight: []int64{1},
		Capacity: []int64{4, 4}, Safety: []int64{1, 1}, Location: []int32{0, 0}, Nearby: []int32{0, 0}, Distance: make([]int64, 4),
		SpreadMin: []int32{0, 0}, DependsOn: make([][]int32, 2), Service: []int32{0, 1}, Demand: []int64{1, 1}, MoveCost: []int64{0, 0}, Initial: []int32{0, 0}}
	looks := 0
	got, err := Improve(p, Options{Elapsed: func() float64 { looks++; return float64(looks) / 10 }})
	if err != nil || got.Cost != 0 {
		t.Errorf("got %+v, %v, want one on each host", got, err)
	}
	if looks > 20 {
		t.Errorf("looked %d times at a clock that was over after 10", looks)
	}
	if got, err := Improve(p, Options{Elapsed: func() float64 { return 1 }}); err != nil || got.Cost != 1 {
		t.Errorf("with no time: %+v, %v, want the placement as it was", got, err)
	}
	p.Capacity[0] = 1
	if _, err := Improve(p, Options{Iterations: 1}); err == nil {
		t.Error("improved what is not feasible")
	}
}
