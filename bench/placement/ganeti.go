package main

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/reservoir-cloud/reservoir/bench/figure"
	"github.com/reservoir-cloud/reservoir/placement/ganeti"
	"github.com/reservoir-cloud/reservoir/placement/model"
	"github.com/reservoir-cloud/reservoir/placement/solve"
)

// sizes of the clusters, and how many migrations both may make (0: any number). Without a
// bound hbal looks at every instance on every node for each of thousands of moves, at up to
// a tenth of a millisecond each.
var sizes = []struct{ nodes, instances, most int }{
	{10, 80, 0}, {12, 96, 0}, {15, 120, 0}, {18, 144, 0}, {20, 160, 0}, {25, 200, 16}, {30, 240, 10}, {35, 280, 8}, {40, 320, 5}, {50, 200, 6},
	{60, 200, 5}, {80, 200, 4}, {100, 200, 3}, {120, 200, 3}, {150, 200, 2}, {200, 200, 2}, {300, 200, 1}, {400, 100, 1}, {700, 40, 1}, {1000, 20, 1},
}

// spacious is up to how many nodes hspace and hail are asked: they take minutes for more.
const spacious = 25

// clusters balances clusters beside hbal, and counts what still goes in beside hspace. The
// score of either result is what hbal itself says of it.
func clusters() error {
	for _, tool := range []string{"hbal", "hspace", hail} {
		if _, err := exec.LookPath(tool); err != nil {
			return fmt.Errorf("%s is missing: apt-get install ganeti-htools", tool)
		}
	}
	dir, err := os.MkdirTemp("", "reservoir-ganeti")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	fmt.Printf("%6s %9s %9s | %9s %6s %9s | %9s %6s %9s | %9s %8s %9s %8s | %8s %9s %8s %9s\n", "nodes", "instances", "score", "hbal", "moves", "seconds", "ours", "moves", "seconds", "hail", "seconds", "ours", "seconds", "hspace", "seconds", "ours", "seconds")
	var worst, slowest, worstPlaced, slowestPlaced, fewest, slowestSpace float64
	fewest = math.Inf(1)
	for i, s := range sizes {
		c, err := oneCluster(dir, rand.New(rand.NewPCG(uint64(i), 7)), s.nodes, s.instances, s.most)
		if err != nil {
			return fmt.Errorf("a cluster of %d nodes: %w", s.nodes, err)
		}
		worst, slowest = max(worst, c.ours/c.hbal), max(slowest, c.oursSeconds/c.hbalSeconds)
		if s.nodes > spacious {
			continue
		}
		worstPlaced, slowestPlaced = max(worstPlaced, c.placed/c.hail), max(slowestPlaced, c.placeSeconds/c.hailSeconds)
		fewest, slowestSpace = min(fewest, float64(c.oursFit)/float64(c.hspaceFit)), max(slowestSpace, c.oursFitSeconds/c.hspaceSeconds)
	}
	figure.Line("hbal_score_ratio_worst", worst, "x", "<=", 1)
	figure.Line("hbal_time_ratio", slowest, "x", "<", 1)
	figure.Line("hail_score_ratio_worst", worstPlaced, "x", "<=", 1)
	figure.Line("hail_time_ratio", slowestPlaced, "x", "<", 1)
	figure.Line("hspace_count_ratio_worst", fewest, "x", ">=", 1)
	figure.Line("hspace_time_ratio", slowestSpace, "x", "<", 1)
	return nil
}

type clusterResult struct {
	hbal, ours                    float64
	hbalSeconds, oursSeconds      float64
	hail, placed                  float64
	hailSeconds, placeSeconds     float64
	hspaceFit, oursFit            int
	hspaceSeconds, oursFitSeconds float64
}

func oneCluster(dir string, random *rand.Rand, nodes, n, most int) (r clusterResult, err error) {
	path := filepath.Join(dir, "cluster")
	if err := os.WriteFile(path, cluster(random, nodes, n), 0o600); err != nil {
		return r, err
	}
	args := []string{"-t", path, "-v"}
	if most > 0 {
		args = append(args, "-l", strconv.Itoa(most))
	}
	begin := time.Now()
	out, err := run1("hbal", args...)
	r.hbalSeconds = time.Since(begin).Seconds()
	if err != nil {
		return r, err
	}
	before, err := number(out, `Initial score: ([0-9.]+)`)
	if err != nil {
		return r, err
	}
	moves := 0.
	r.hbal = before
	if !strings.Contains(out, "No solution found") && !strings.Contains(out, "Cluster is already well balanced") {
		if r.hbal, err = number(out, `Cluster score improved from [0-9.]+ to ([0-9.]+)`); err != nil {
			return r, err
		}
		if moves, err = number(out, `Solution length=([0-9]+)`); err != nil {
			return r, err
		}
	}
	begin = time.Now()
	c, err := readCluster(path)
	if err != nil {
		return r, err
	}
	if own := c.Score(); math.Abs(own-before) > 1e-6 {
		return r, fmt.Errorf("hbal scores it %v, we %v: the formula is not the same", before, own)
	}
	own := c.Balance(int(moves), 1)
	balanced := path + ".ours"
	if err := writeCluster(balanced, c); err != nil {
		return r, err
	}
	r.oursSeconds = time.Since(begin).Seconds() // with reading and writing, as hbal's
	if out, err = run1("hbal", "-t", balanced, "-v", "-l", "0"); err != nil {
		return r, err
	}
	if r.ours, err = number(out, `Initial score: ([0-9.]+)`); err != nil {
		return r, err
	}
	if float64(own) > moves {
		return r, fmt.Errorf("ours makes %d migrations, hbal %v", own, moves)
	}
	fmt.Printf("%6d %9d %9.4f | %9.5f %6.0f %9.3f | %9.5f %6d %9.3f |", nodes, n, before, r.hbal, moves, r.hbalSeconds, r.ours, own, r.oursSeconds)
	if nodes <= spacious {
		if err := r.place(dir, path); err != nil {
			return r, err
		}
		fmt.Printf(" %9.5f %8.3f %9.5f %8.3f |", r.hail, r.hailSeconds, r.placed, r.placeSeconds)
		if err := r.space(path); err != nil {
			return r, err
		}
		fmt.Printf(" %8d %9.3f %8d %9.3f", r.hspaceFit, r.hspaceSeconds, r.oursFit, r.oursFitSeconds)
	}
	fmt.Println()
	return r, nil
}

// space counts how many instances of one size go into the cluster beside what it has.
func (r *clusterResult) space(path string) error {
	const disk, memory, cpus = 10240, 2048, 2
	begin := time.Now()
	// That every node may fail at any time is no rule here.
	out, err := run1("hspace", "-t", path, "--machine-readable", "--no-capacity-checks", "--disk-template", "ext", "--standard-alloc", fmt.Sprintf("%d,%d,%d", disk, memory, cpus))
	if err != nil {
		return err
	}
	r.hspaceSeconds = time.Since(begin).Seconds()
	fit, err := number(out, `HTS_ALLOC_INSTANCES="?([0-9]+)`)
	if err != nil {
		return err
	}
	r.hspaceFit = int(fit)
	begin = time.Now()
	c, err := readCluster(path)
	if err != nil {
		return err
	}
	m := c.Model(4)
	p := solve.NewPlacer(m, solve.Balance)
	for p.Place(m.AddVEE(model.VEE{Name: "new"}, memory, disk, cpus)) != model.None {
		r.oursFit++
	}
	r.oursFitSeconds = time.Since(begin).Seconds()
	return nil
}

// cluster file of nodes of two sizes and n instances, more of them on the first nodes.
func cluster(r *rand.Rand, nodes, n int) []byte {
	var b, instances bytes.Buffer
	type node struct{ mem, free, disk, cpus int }
	all := make([]node, nodes)
	const own, disk = 1024, 1 << 20
	for k := range all {
		size := 1 + k%2
		all[k] = node{mem: 65536 * size, free: 65536*size - own, disk: disk, cpus: 24 * size}
	}
	for i := range n {
		mem, d, cpus := 1024<<r.IntN(3), 10240*(1+r.IntN(4)), 1+r.IntN(4)
		k := int(math.Pow(r.Float64(), 1.3) * float64(nodes))
		for all[k].free < mem || all[k].disk < d {
			k = r.IntN(nodes)
		}
		all[k].free -= mem
		all[k].disk -= d
		fmt.Fprintf(&instances, "instance%d|%d|%d|%d|running|Y|node%d||ext||1\n", i, mem, d, cpus, k)
	}
	fmt.Fprintf(&b, "group|00000000-0000-0000-0000-000000000001|preferred||\n\n")
	for k, n := range all {
		fmt.Fprintf(&b, "node%d|%d|%d|%d|%d|%d|%d|N|00000000-0000-0000-0000-000000000001|1||N|0|1|1.0\n", k, n.mem, own, n.free, disk, n.disk, n.cpus)
	}
	fmt.Fprintf(&b, "\n%s\n\n", instances.String())
	return b.Bytes()
}

func readCluster(path string) (*ganeti.Cluster, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	return ganeti.Read(f)
}

func writeCluster(path string, c *ganeti.Cluster) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	return cmp.Or(c.Write(f), f.Close())
}

func run1(name string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	defer cancel()
	out, err := exec.CommandContext(ctx, name, args...).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, slices.Concat(out[:min(len(out), 300)]))
	}
	return string(out), nil
}

func number(text, pattern string) (float64, error) {
	m := regexp.MustCompile(pattern).FindStringSubmatch(text)
	if m == nil {
		return 0, fmt.Errorf("%q is not in %q", pattern, text[max(0, len(text)-300):])
	}
	return strconv.ParseFloat(m[1], 64)
}
