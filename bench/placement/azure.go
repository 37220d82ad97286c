package main

import (
	"bufio"
	"compress/gzip"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sort"
	"strconv"
	"strings"

	"github.com/reservoir-cloud/reservoir/bench/figure"
	"github.com/reservoir-cloud/reservoir/placement/model"
	"github.com/reservoir-cloud/reservoir/placement/solve"
)

// Hosts of 64 vCPUs and 448 GiB: four of the trace's largest VMs.
const (
	hostVCPU = 64
	hostMB   = 448 * 1024
)

// arrival of a VM in the trace: when, for how long (in intervals of 300 s; 0: to the end),
// what it needs, and whether it comes in one batch with the one before.
type arrival struct {
	at, leaves int
	need       [2]int64 // vCPUs, MB
	same       bool
}

// azure replays the arrivals and lifetimes of Azure's 2017 trace on clusters of equal hosts:
// how full one is when a VM finds no place for the first time, and the smallest one on which
// none is ever refused (Borg's compaction).
func azure(data string) error {
	trace, err := readAzure(filepath.Join(data, "azure2017"))
	if err != nil {
		return err
	}
	const hosts = 400
	fmt.Printf("%d VMs in %d intervals of 300 s\n%-16s %28s %10s\n", len(trace), trace[len(trace)-1].at+1, "", "full at the first refusal", "hosts")
	var ours, least, oursFull, bestFull float64
	least = math.Inf(1)
	for _, p := range []struct {
		name string
		make func(hosts int) packer
	}{
		{"ours", newOurs}, {"first fit", newScan(func(_, _ *[2]int64) float64 { return 0 })}, {"best fit", newScan(bestFit)}, {"Nomad's packing", newScan(nomadFit())},
	} {
		full, _ := replay(trace, p.make(hosts), hosts)
		smallest := sort.Search(4*hosts, func(n int) bool {
			_, fits := replay(trace, p.make(n+1), n+1)
			return fits
		}) + 1
		fmt.Printf("%-16s %26.1f %% %10d\n", p.name, 100*full, smallest)
		if p.name == "ours" {
			ours, oursFull = float64(smallest), full
		} else {
			least, bestFull = min(least, float64(smallest)), max(bestFull, full)
		}
	}
	figure.Line("azure_first_refusal_full", 100*oursFull, "%", ">=", 100*bestFull)
	figure.Line("azure_compaction_ratio", ours/least, "x", "<=", 1)
	return nil
}

// readAzure joins the trace's two files: what arrives, and how long it stays. A lifetime is
// drawn within its bin; who had not ended when the trace did stays.
func readAzure(dir string) ([]arrival, error) {
	flavours, err := readFlavours(filepath.Join(dir, "flav_map.txt"))
	if err != nil {
		return nil, err
	}
	bins, err := readBins(filepath.Join(dir, "v1.interval_map.txt"))
	if err != nil {
		return nil, err
	}
	types, err := readLines(filepath.Join(dir, "v1.dev.txt.gz"))
	if err != nil {
		return nil, err
	}
	lives, err := readLines(filepath.Join(dir, "v1.dev.c2100000.txt.gz"))
	if err != nil {
		return nil, err
	}
	r := rand.New(rand.NewPCG(2017, 1))
	var all []arrival
	for i := range types {
		t, l := strings.Split(types[i], ","), strings.Split(lives[i], ",")
		if len(t) != len(l) {
			return nil, fmt.Errorf("line %d of Azure's trace: %d arrivals and %d lifetimes", i+1, len(t), len(l))
		}
		same := false
		for k, f := range t {
			need, known := flavours[f]
			if !known {
				same = false
				continue // the end of a batch
			}
			a := arrival{at: i, need: need, same: same}
			bin, err := strconv.Atoi(l[k][1:])
			if err != nil || bin >= len(bins) {
				return nil, fmt.Errorf("line %d of Azure's trace: lifetime %q", i+1, l[k])
			}
			if l[k][0] == 'U' {
				a.leaves = i + 1 + bins[bin][0] + r.IntN(max(1, bins[bin][1]-bins[bin][0]))
			}
			all = append(all, a)
			same = true
		}
	}
	return all, nil
}

// readLines of a packed file, without the time that each begins with.
func readLines(path string) (lines []string, err error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	z, err := gzip.NewReader(f)
	if err != nil {
		return nil, fmt.Errorf("unpack %s: %w", path, err)
	}
	s := bufio.NewScanner(z)
	s.Buffer(nil, 1<<20)
	for s.Scan() {
		_, rest, _ := strings.Cut(s.Text(), " ")
		lines = append(lines, rest)
	}
	return lines, s.Err()
}

func readFlavours(path string) (map[string][2]int64, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	flavours := map[string][2]int64{}
	for line := range strings.Lines(string(text)) {
		var vcpu int64
		var gb float64
		var name string
		if _, err := fmt.Sscanf(strings.Replace(line, ",", " ", 1), "%d %f %s", &vcpu, &gb, &name); err != nil {
			return nil, fmt.Errorf("%s: %q: %w", path, line, err)
		}
		flavours[name] = [2]int64{vcpu, int64(gb * 1024)}
	}
	return flavours, nil
}

// readBins of lifetimes: from and to, in intervals.
func readBins(path string) (bins [][2]int, err error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	for line := range strings.Lines(string(text)) {
		var seconds, bin int
		if _, err := fmt.Sscanf(line, "%d %d", &seconds, &bin); err != nil {
			return nil, fmt.Errorf("%s: %q: %w", path, line, err)
		}
		for bin >= len(bins) {
			bins = append(bins, [2]int{seconds / 300, seconds / 300})
		}
		bins[bin][1] = seconds/300 + 1
	}
	return bins, nil
}

// packer places a batch of VMs; who finds no place is at -1.
type packer interface {
	place(needs [][2]int64) []int
	remove(vm int) // the vm-th that was placed
}

// replay the trace until the first refusal: how full the hosts' scarcer dimension is then.
func replay(trace []arrival, p packer, hosts int) (full float64, fits bool) {
	leaving := map[int][]int{}
	var used [2]int64
	now, placed := 0, 0
	for i := 0; i < len(trace); {
		for ; now < trace[i].at; now++ {
			for _, vm := range leaving[now+1] {
				p.remove(vm)
				used[0], used[1] = used[0]-trace[vm].need[0], used[1]-trace[vm].need[1]
			}
			delete(leaving, now+1)
		}
		n := i + 1
		for n < len(trace) && trace[n].same {
			n++
		}
		var needs [][2]int64
		for _, a := range trace[i:n] {
			needs = append(needs, a.need)
		}
		for k, h := range p.place(needs) {
			if h < 0 {
				return max(float64(used[0])/float64(hosts*hostVCPU), float64(used[1])/float64(hosts*hostMB)), false
			}
			a := trace[i+k]
			used[0], used[1] = used[0]+a.need[0], used[1]+a.need[1]
			if a.leaves > 0 {
				leaving[a.leaves] = append(leaving[a.leaves], placed)
			}
			placed++
		}
		i = n
	}
	return 1, true
}

// ours is the engine's placement, a batch at a time.
type ours struct {
	m *model.Model
	p *solve.Placer
}

func newOurs(hosts int) packer {
	m := model.New("vcpu", "memory_mb")
	for h := range hosts {
		m.AddHost(model.Host{Name: fmt.Sprint("h", h)}, hostVCPU, hostMB)
	}
	return &ours{m, solve.NewPlacer(m, solve.Pack)}
}

func (o *ours) place(needs [][2]int64) (at []int) {
	var vees []int32
	for _, n := range needs {
		vees = append(vees, o.m.AddVEE(model.VEE{}, n[0], n[1]))
	}
	for _, h := range o.p.Batch(vees) {
		at = append(at, int(h))
	}
	return at
}

func (o *ours) remove(vm int) { o.p.Remove(int32(vm)) }

// scan looks at every host and takes the one with the least score, of equals the first.
type scan struct {
	free  [][2]int64
	score func(free, need *[2]int64) float64
	at    []int
	needs [][2]int64
}

func newScan(score func(free, need *[2]int64) float64) func(int) packer {
	return func(hosts int) packer {
		s := &scan{score: score}
		for range hosts {
			s.free = append(s.free, [2]int64{hostVCPU, hostMB})
		}
		return s
	}
}

func (s *scan) place(needs [][2]int64) (at []int) {
	for _, n := range needs {
		best, least := -1, math.Inf(1)
		for h := range s.free {
			if f := &s.free[h]; f[0] >= n[0] && f[1] >= n[1] {
				if x := s.score(f, &n); x < least {
					best, least = h, x
					if x == 0 {
						break // no host is better
					}
				}
			}
		}
		if best >= 0 {
			s.free[best][0] -= n[0]
			s.free[best][1] -= n[1]
			s.at, s.needs = append(s.at, best), append(s.needs, n)
		}
		at = append(at, best)
	}
	return at
}

func (s *scan) remove(vm int) {
	s.free[s.at[vm]][0] += s.needs[vm][0]
	s.free[s.at[vm]][1] += s.needs[vm][1]
}

// bestFit leaves least of the scarcer dimension.
func bestFit(free, need *[2]int64) float64 {
	return 1e-9 + min(float64(free[0]-need[0])/hostVCPU, float64(free[1]-need[1])/hostMB)
}

// nomadFit is Nomad's score of bin packing (after Google's BestFit v3), turned round: the
// sum of ten to the free parts. It is asked for every host here; Nomad asks for some.
func nomadFit() func(free, need *[2]int64) float64 {
	const unit = 256 // MB: every VM of the trace has a multiple of it
	tens := func(n int) (table []float64) {
		for i := range n + 1 {
			table = append(table, math.Pow(10, float64(i)/float64(n)))
		}
		return table
	}
	vcpu, mb := tens(hostVCPU), tens(hostMB/unit)
	return func(free, need *[2]int64) float64 { return vcpu[free[0]-need[0]] + mb[(free[1]-need[1])/unit] }
}
