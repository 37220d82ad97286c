package main

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/reservoir-cloud/reservoir/bench/figure"
	"github.com/reservoir-cloud/reservoir/placement/check"
	"github.com/reservoir-cloud/reservoir/placement/model"
	"github.com/reservoir-cloud/reservoir/placement/solve"
)

// instances that are proven.
const instances = 240

// small instance: VEEs to place on hosts in two dimensions, so that the hosts in use cost
// least. Some VEEs must be apart, some together, some are kept off hosts.
type small struct {
	capacity [][2]int
	price    []int
	demand   [][2]int
	apart    [][]int
	together [][2]int
	banned   [][2]int // VEE, host
}

func drawSmall(r *rand.Rand) small {
	var s small
	hosts, vees := 3+r.IntN(5), 5+r.IntN(10)
	for range hosts {
		s.capacity = append(s.capacity, [2]int{8 + 4*r.IntN(4), 16 + 8*r.IntN(4)})
		s.price = append(s.price, 5+r.IntN(20))
	}
	for range vees {
		s.demand = append(s.demand, [2]int{1 + r.IntN(6), 1 + r.IntN(12)})
	}
	for range r.IntN(3) {
		group := r.Perm(vees)[:2+r.IntN(min(3, hosts-1))]
		s.apart = append(s.apart, group)
	}
	if r.IntN(3) == 0 {
		p := r.Perm(vees)
		s.together = append(s.together, [2]int{p[0], p[1]})
	}
	for range r.IntN(4) {
		s.banned = append(s.banned, [2]int{r.IntN(vees), r.IntN(hosts)})
	}
	return s
}

// optima compares with what MiniZinc (Gecode) and CBC prove.
func optima() error {
	for _, tool := range []string{"minizinc", "cbc"} {
		if _, err := exec.LookPath(tool); err != nil {
			return fmt.Errorf("%s is missing: apt-get install minizinc coinor-cbc", tool)
		}
	}
	dir, err := os.MkdirTemp("", "reservoir-optima")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	r := rand.New(rand.NewPCG(2012, 6))
	var worst, sum, searchWorst, searchSum float64
	var ours, searches, theirs time.Duration
	feasible, wrong, best := 0, 0, 0
	for n := range instances {
		s := drawSmall(r)
		begin := time.Now()
		optimum, possible, err := s.proven(dir)
		theirs += time.Since(begin)
		if err != nil {
			return fmt.Errorf("instance %d: %w", n, err)
		}
		begin = time.Now()
		cost, found, err := s.solve(solve.Exact)
		ours += time.Since(begin)
		if err != nil {
			return fmt.Errorf("instance %d: %w", n, err)
		}
		begin = time.Now()
		searched, _, err := s.solve(solve.Optimise)
		searches += time.Since(begin)
		if err != nil {
			return fmt.Errorf("instance %d: %w", n, err)
		}
		switch {
		case found != possible:
			wrong++
			fmt.Printf("instance %d: possible %v, found %v\n", n, possible, found)
		case found:
			feasible++
			gap := 100 * float64(cost-optimum) / float64(optimum)
			worst, sum = max(worst, gap), sum+gap
			if gap == 0 {
				best++
			}
			gap = 100 * float64(searched-optimum) / float64(optimum)
			searchWorst, searchSum = max(searchWorst, gap), searchSum+gap
		}
	}
	fmt.Printf("%d instances, %d feasible: %d solved to the proven optimum, mean gap %.3f %%, worst %.2f %%; feasibility wrong %d times; ours took %v, the proofs %v\n",
		instances, feasible, best, sum/float64(max(1, feasible)), worst, wrong, ours.Round(time.Millisecond), theirs.Round(time.Millisecond))
	fmt.Printf("search alone, which proves nothing: mean gap %.3f %%, worst %.2f %%, in %v\n", searchSum/float64(max(1, feasible)), searchWorst, searches.Round(time.Millisecond))
	figure.Line("optimum_gap_worst", worst, "%", "<=", 1)
	figure.Line("optimum_feasibility_wrong", float64(wrong), "times", "==", 0)
	return nil
}

func (s *small) model() *model.Model {
	m := model.New("cpu", "memory")
	for h, c := range s.capacity {
		m.AddHost(model.Host{Name: fmt.Sprint("h", h), Price: float64(s.price[h])}, int64(c[0]), int64(c[1]))
	}
	var all []int32
	for v, d := range s.demand {
		all = append(all, m.AddVEE(model.VEE{Name: fmt.Sprint("v", v)}, int64(d[0]), int64(d[1])))
	}
	m.Require(model.InState{VEEs: all, State: model.Running})
	for _, g := range s.apart {
		var vees []int32
		for _, v := range g {
			vees = append(vees, int32(v))
		}
		m.Require(model.Spread{VEEs: vees})
	}
	for _, p := range s.together {
		m.Require(model.Gather{VEEs: []int32{int32(p[0]), int32(p[1])}})
	}
	for _, b := range s.banned {
		m.Require(model.Ban{VEEs: []int32{int32(b[0])}, Hosts: []int32{int32(b[1])}})
	}
	return m
}

// solve the instance with a solver, and have the checker judge the plan.
func (s *small) solve(with func(*model.Model, solve.Objective, solve.Options) (solve.Target, error)) (cost int, found bool, err error) {
	m := s.model()
	t, err := with(m, solve.Objective{Cost: 1}, solve.Options{Seed: 1})
	if err != nil && !errors.Is(err, solve.ErrNotProven) {
		return 0, false, nil
	}
	p, err := solve.Schedule(m, t)
	if err != nil {
		return 0, false, err
	}
	if err := check.Plan(m, p); err != nil {
		return 0, false, fmt.Errorf("the checker rejects the plan: %w", err)
	}
	return int(solve.Objective{Cost: 1}.Score(m, t) + .5), true, nil
}

// proven optimum, on which both must agree.
func (s *small) proven(dir string) (optimum int, possible bool, err error) {
	a, okA, err := s.minizinc(dir)
	if err != nil {
		return 0, false, err
	}
	b, okB, err := s.cbc(dir)
	if err != nil {
		return 0, false, err
	}
	if okA != okB || a != b {
		return 0, false, fmt.Errorf("MiniZinc says %d (%v), CBC %d (%v)", a, okA, b, okB)
	}
	return a, okA, nil
}

func (s *small) minizinc(dir string) (int, bool, error) {
	var b strings.Builder
	hosts, vees := len(s.capacity), len(s.demand)
	fmt.Fprintf(&b, "array[0..%d] of var 0..%d: at;\narray[0..%d] of var bool: used;\n", vees-1, hosts-1, hosts-1)
	for h, c := range s.capacity {
		for d := range 2 {
			var terms []string
			for v := range s.demand {
				terms = append(terms, fmt.Sprintf("%d*bool2int(at[%d]=%d)", s.demand[v][d], v, h))
			}
			fmt.Fprintf(&b, "constraint %s <= %d;\n", strings.Join(terms, "+"), c[d])
		}
		fmt.Fprintf(&b, "constraint used[%d] <-> exists(v in 0..%d)(at[v]=%d);\n", h, vees-1, h)
	}
	for _, g := range s.apart {
		for i, v := range g {
			for _, w := range g[i+1:] {
				fmt.Fprintf(&b, "constraint at[%d] != at[%d];\n", v, w)
			}
		}
	}
	for _, p := range s.together {
		fmt.Fprintf(&b, "constraint at[%d] = at[%d];\n", p[0], p[1])
	}
	for _, x := range s.banned {
		fmt.Fprintf(&b, "constraint at[%d] != %d;\n", x[0], x[1])
	}
	var cost []string
	for h, p := range s.price {
		cost = append(cost, fmt.Sprintf("%d*bool2int(used[%d])", p, h))
	}
	fmt.Fprintf(&b, "var int: cost = %s;\nsolve minimize cost;\noutput [\"cost \\(cost)\\n\"];\n", strings.Join(cost, "+"))
	path := filepath.Join(dir, "small.mzn")
	if err := os.WriteFile(path, []byte(b.String()), 0o600); err != nil {
		return 0, false, err
	}
	out, err := run1("minizinc", "--solver", "gecode", path)
	if err != nil {
		return 0, false, err
	}
	if strings.Contains(out, "UNSATISFIABLE") {
		return 0, false, nil
	}
	if !strings.Contains(out, "==========") {
		return 0, false, fmt.Errorf("MiniZinc proved nothing: %s", out)
	}
	found, err := number(out[strings.LastIndex(out, "cost"):], `cost ([0-9]+)`)
	return int(found), true, err
}

func (s *small) cbc(dir string) (int, bool, error) {
	var b strings.Builder
	b.WriteString("Minimize\n cost: ")
	for h, p := range s.price {
		fmt.Fprintf(&b, "+ %d y%d\n", p, h)
	}
	b.WriteString("\nSubject To\n")
	for v := range s.demand {
		for h := range s.capacity {
			fmt.Fprintf(&b, "+ x%d_%d\n", v, h)
		}
		b.WriteString("= 1\n")
	}
	for h, c := range s.capacity {
		for d := range 2 {
			for v := range s.demand {
				fmt.Fprintf(&b, "+ %d x%d_%d\n", s.demand[v][d], v, h)
			}
			fmt.Fprintf(&b, "- %d y%d <= 0\n", c[d], h)
		}
		for _, g := range s.apart {
			for _, v := range g {
				fmt.Fprintf(&b, "+ x%d_%d\n", v, h)
			}
			b.WriteString("<= 1\n")
		}
		for _, p := range s.together {
			fmt.Fprintf(&b, "+ x%d_%d - x%d_%d = 0\n", p[0], h, p[1], h)
		}
	}
	for _, x := range s.banned {
		fmt.Fprintf(&b, "+ x%d_%d = 0\n", x[0], x[1])
	}
	b.WriteString("Binaries\n")
	for h := range s.capacity {
		fmt.Fprintf(&b, "y%d\n", h)
		for v := range s.demand {
			fmt.Fprintf(&b, "x%d_%d\n", v, h)
		}
	}
	b.WriteString("\nEnd\n")
	path := filepath.Join(dir, "small.lp")
	if err := os.WriteFile(path, []byte(b.String()), 0o600); err != nil {
		return 0, false, err
	}
	out, err := run1("cbc", path, "solve", "quit")
	if err != nil {
		return 0, false, err
	}
	if !strings.Contains(out, "Optimal solution found") {
		if !strings.Contains(out, "infeasible") {
			return 0, false, fmt.Errorf("CBC proved nothing: %s", out)
		}
		return 0, false, nil
	}
	found, err := number(out, `Objective value:\s+([0-9.]+)`)
	return int(found + .5), true, err
}
