// Package scale simulates how many hosts keep up with the changing loads of their VEEs: by
// DVMS along a ring, by DVMS by locality, or by one central scheduler in the style of
// Entropy, on the same trace of loads. The hosts run the real package dvms and solve with the
// real placement engine, in virtual time. Nothing fails here (that is package site); a run of
// 10,000 hosts with 100,000 VEEs takes seconds.
//
// The load model is that of the published experiments (VMPlaceS: Lèbre, Pastor, Südholt,
// "VMPlaceS: A Generic Tool to Investigate and Compare VM Placement Algorithms", Euro-Par
// 2015): VEEs are spread round-robin and idle at first; at the rate of VEEs ÷ Period one of
// them, at random, draws a new load from a normal distribution, in Levels steps.
package scale

import (
	"fmt"
	"math"
	"math/rand/v2"
	"time"

	"github.com/reservoir-cloud/reservoir/dvms"
	"github.com/reservoir-cloud/reservoir/placement/model"
	"github.com/reservoir-cloud/reservoir/sim"
)

// Algorithm that schedules.
type Algorithm string

// Algorithms.
const (
	Ring     Algorithm = "ring"     // DVMS, hosts on a ring by a hash of their names
	Locality Algorithm = "locality" // DVMS, nearest hosts first, own site before others
	Central  Algorithm = "central"  // one scheduler that looks at all hosts, again and again
)

// Config of an experiment. CPU is in per cent of one.
type Config struct {
	Algorithm Algorithm     `yaml:"algorithm"`
	Hosts     int           `yaml:"hosts"`
	VEEs      int           `yaml:"vees"`
	Sites     int           `yaml:"sites"`
	Duration  time.Duration `yaml:"duration"`
	Seed      uint64        `yaml:"seed"`

	HostCPU       int   `yaml:"hostCPU"`
	HostMemoryMiB int64 `yaml:"hostMemoryMiB"`
	VEECPU        int   `yaml:"veeCPU"` // at most
	VEEMemoryMiB  int64 `yaml:"veeMemoryMiB"`

	Mean   float64       `yaml:"mean"` // of a VEE's load, in per cent of VEECPU
	Std    float64       `yaml:"std"`
	Levels int           `yaml:"levels"`
	Period time.Duration `yaml:"period"` // between two changes of a VEE's load, on average

	// Pace at which a problem is solved: Base + PerVEE for each VEE in it.
	Base   time.Duration `yaml:"base"`
	PerVEE time.Duration `yaml:"perVEE"`
	// Every is how often the central scheduler begins; Monitor how often a host looks at its
	// own load.
	Every   time.Duration `yaml:"every"`
	Monitor time.Duration `yaml:"monitor"`
}

// Published is VMPlaceS's setting: 8 cores and 32 GiB a host, VEEs of one core and 1 GiB with
// loads from N(60, 20), half an hour. Entropy needs 2.6 ms for each VEE that it looks at: that
// is what its computations took there at 1,024 hosts.
func Published(a Algorithm, hosts int) Config {
	return Config{Algorithm: a, Hosts: hosts, VEEs: 10 * hosts, Sites: 1, Duration: 30 * time.Minute, Seed: 1,
		HostCPU: 800, HostMemoryMiB: 32 << 10, VEECPU: 100, VEEMemoryMiB: 1 << 10,
		Mean: 60, Std: 20, Levels: 10, Period: 5 * time.Minute,
		Base: 100 * time.Millisecond, PerVEE: 2600 * time.Microsecond, Every: 30 * time.Second, Monitor: time.Second}
}

// Dense is a harder setting: 4 cores and 16 GB a host, VEEs of up to 2 GB with loads from
// N(60, 30). Five VEEs a host: ten would need half as much again as there is.
func Dense(a Algorithm, hosts int) Config {
	c := Published(a, hosts)
	c.VEEs, c.HostCPU, c.HostMemoryMiB, c.VEEMemoryMiB, c.Std = 5*hosts, 400, 16<<10, 2<<10, 30
	return c
}

// Check that an experiment makes sense.
func (c Config) Check() error {
	switch {
	case c.Algorithm != Ring && c.Algorithm != Locality && c.Algorithm != Central:
		return fmt.Errorf("algorithm %q: want ring, locality or central", c.Algorithm)
	case c.Hosts < 2 || c.Hosts > 1_000_000 || c.VEEs < 1 || c.VEEs > 10_000_000 || c.Sites < 1 || c.Sites > c.Hosts:
		return fmt.Errorf("%d hosts at %d sites with %d VEEs: want 2 to 1,000,000 hosts, no more sites than hosts, 1 to 10,000,000 VEEs", c.Hosts, c.Sites, c.VEEs)
	case c.Duration <= 0 || c.Period <= 0 || c.Every <= 0 || c.Monitor <= 0 || c.Base < 0 || c.PerVEE < 0:
		return fmt.Errorf("durations must be positive")
	case c.HostCPU < 1 || c.VEECPU < 1 || c.Levels < 1 || c.HostMemoryMiB < 1 || c.VEEMemoryMiB < 1:
		return fmt.Errorf("hosts of %d %% and %d MiB, VEEs of %d %% in %d levels and %d MiB: want more than nothing", c.HostCPU, c.HostMemoryMiB, c.VEECPU, c.Levels, c.VEEMemoryMiB)
	case math.IsNaN(c.Mean) || math.IsNaN(c.Std) || c.Std < 0 || c.Mean < 0 || c.Mean > 100:
		return fmt.Errorf("loads of N(%g, %g) per cent", c.Mean, c.Std)
	case int64((c.VEEs+c.Hosts-1)/c.Hosts)*c.VEEMemoryMiB > c.HostMemoryMiB:
		return fmt.Errorf("%d VEEs of %d MiB do not fit on %d hosts of %d MiB", c.VEEs, c.VEEMemoryMiB, c.Hosts, c.HostMemoryMiB)
	}
	return nil
}

// Result of an experiment.
type Result struct {
	Config Config

	Violations Sample  // how long hosts had more load than CPU, seconds, each time
	Open       int     // hosts that still have at the end; their time so far counts
	Share      float64 // of all host time spent in violation
	Partitions Sample  // members of those that solved their problem
	NoPlan     int     // rounds of the central scheduler that found no placement
	Help       int     // asked by partitions: twice round and nobody has room
	Solves     int
	Migrations int
	Inter      int // of them between sites
	Messages   int
	Most       int   // hosts in violation at once
	Curve      []int // of them, a hundred times in the duration
}

// InterSite share of all migrations.
func (r Result) InterSite() float64 {
	if r.Migrations == 0 {
		return 0
	}
	return float64(r.Inter) / float64(r.Migrations)
}

// world of an experiment. Hosts and VEEs are numbers; names are for dvms alone.
type world struct {
	Config
	sim    *sim.Sim
	draw   *rand.Rand
	result Result
	move   model.Migration

	at    []int32 // by VEE: its host
	load  []int16 // by VEE, per cent of a CPU
	used  []int32 // by host
	on    [][]int32
	since []time.Duration // by host: begin of its violation; -1: none
	bad   int             // hosts in violation

	site   []int16
	x, y   []float32 // Vivaldi, in seconds
	name   []string
	number map[string]int32
	peers  *peers // nil: central
}

// Run an experiment.
func Run(c Config) (Result, error) {
	r, _, err := play(c)
	return r, err
}

func play(c Config) (Result, *world, error) {
	if err := c.Check(); err != nil {
		return Result{}, nil, err
	}
	w := &world{Config: c, sim: sim.New(c.Seed, time.Unix(0, 0)), result: Result{Config: c}}
	w.draw = w.sim.Stream("loads")
	// The published reconfigurations took 10 s for 1 GiB over 125 MB/s: a seventh is dirtied
	// again meanwhile.
	w.move = model.Migration{MiBs: 119.2, Slots: 1}
	w.populate()
	switch c.Algorithm {
	case Central:
		w.central()
	default:
		w.gather()
	}
	w.nextLoad()
	w.sim.Every(max(1, c.Duration/100), "", func() bool {
		w.result.Curve = append(w.result.Curve, w.bad)
		return true
	})
	if err := w.sim.Run(time.Unix(0, 0).Add(c.Duration)); err != nil {
		return Result{}, nil, err
	}
	w.close()
	return w.result, w, nil
}

// dirty is what a VEE writes of its memory, MiB/s.
const dirty = 16.8

func (w *world) now() time.Duration { return w.sim.Now().Sub(time.Unix(0, 0)) }

func (w *world) populate() {
	w.at, w.load = make([]int32, w.VEEs), make([]int16, w.VEEs)
	w.used, w.on, w.since = make([]int32, w.Hosts), make([][]int32, w.Hosts), make([]time.Duration, w.Hosts)
	w.site, w.x, w.y = make([]int16, w.Hosts), make([]float32, w.Hosts), make([]float32, w.Hosts)
	place := w.sim.Stream("places")
	for h := range w.Hosts {
		w.since[h] = -1
		w.site[h] = int16(h % w.Sites)
		around := 2 * math.Pi * float64(w.site[h]) / float64(w.Sites) // sites lie on a circle, 10 ms from its centre
		w.x[h] = float32(.010*math.Cos(around) + .0002*place.Float64())
		w.y[h] = float32(.010*math.Sin(around) + .0002*place.Float64())
	}
	for v := range w.VEEs {
		h := int32(v % w.Hosts)
		w.at[v] = h
		w.on[h] = append(w.on[h], int32(v))
	}
}

// nextLoad schedules the next change of some VEE's load: a Poisson process for all of them.
func (w *world) nextLoad() {
	d := time.Duration(w.draw.ExpFloat64() * float64(w.Period) / float64(w.VEEs))
	w.sim.After(max(1, d), "", func() {
		v := int32(w.draw.IntN(w.VEEs))
		level := math.Round((w.Mean + w.Std*w.draw.NormFloat64()) / 100 * float64(w.Levels))
		level = min(max(level, 0), float64(w.Levels))
		load := int16(level * float64(w.VEECPU) / float64(w.Levels))
		h := w.at[v]
		w.used[h] += int32(load - w.load[v])
		w.load[v] = load
		w.judge(h)
		w.nextLoad()
	})
}

func (w *world) over(h int32) bool { return int(w.used[h]) > w.HostCPU }

// judge whether a host's violation begins or ends.
func (w *world) judge(h int32) {
	switch over := w.over(h); {
	case over && w.since[h] < 0:
		w.since[h] = w.now()
		w.bad++
		w.result.Most = max(w.result.Most, w.bad)
		if w.peers != nil {
			w.peers.alarm(h)
		}
	case !over && w.since[h] >= 0:
		w.ended(h)
		if w.peers != nil {
			w.peers.step(h, dvms.Calm{})
		}
	}
}

func (w *world) ended(h int32) {
	d := (w.now() - w.since[h]).Seconds()
	w.result.Violations.Add(d)
	w.result.Share += d / (w.Duration.Seconds() * float64(w.Hosts))
	w.since[h] = -1
	w.bad--
}

// close the books.
func (w *world) close() {
	for h := range int32(w.Hosts) {
		if w.since[h] >= 0 {
			w.result.Open++
			w.ended(h)
		}
	}
}

// migrated: VEE v is at another host from now on.
func (w *world) migrated(v, to int32) {
	from := w.at[v]
	if from == to {
		return
	}
	guests := w.on[from]
	for i, g := range guests {
		if g == v {
			guests[i] = guests[len(guests)-1]
			w.on[from] = guests[:len(guests)-1]
			break
		}
	}
	w.on[to] = append(w.on[to], v)
	w.at[v] = to
	w.used[from] -= int32(w.load[v])
	w.used[to] += int32(w.load[v])
	w.result.Migrations++
	if w.site[from] != w.site[to] {
		w.result.Inter++
	}
	w.judge(from)
	w.judge(to)
}

// Sample of numbers: how many, their mean, deviation and maximum.
type Sample struct {
	N           int
	Max         float64
	sum, square float64
}

// Add a number.
func (s *Sample) Add(x float64) {
	s.N++
	s.sum += x
	s.square += x * x
	s.Max = max(s.Max, x)
}

// Sum of all.
func (s Sample) Sum() float64 { return s.sum }

// Mean of all; 0 of none.
func (s Sample) Mean() float64 {
	if s.N == 0 {
		return 0
	}
	return s.sum / float64(s.N)
}

// Std is the standard deviation.
func (s Sample) Std() float64 {
	if s.N == 0 {
		return 0
	}
	return math.Sqrt(max(0, s.square/float64(s.N)-s.Mean()*s.Mean()))
}

// Join the numbers of another sample.
func (s *Sample) Join(o Sample) {
	s.N += o.N
	s.sum += o.sum
	s.square += o.square
	s.Max = max(s.Max, o.Max)
}
