// Package site simulates one site in virtual time: hosts with agents, guards and guests, the
// control plane with its store, and the network between them, all of which may fail. What
// decides is the product's own code: package ownership says who may run a VEE, package dvms
// how hosts relieve each other, package placement where VEEs go, package account what was
// used. What is simulated is what those stand on: processes, disks, clocks, messages.
//
// After every event the site is checked (check.go): no VEE runs twice, none answers from a
// state older than what it has acknowledged, no two plans move VEEs at one host, nobody is
// billed for what did not run. Commands (command.go) do harm to it and mend it.
package site

import (
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/reservoir-cloud/reservoir/account"
	"github.com/reservoir-cloud/reservoir/dvms"
	"github.com/reservoir-cloud/reservoir/ownership"
	"github.com/reservoir-cloud/reservoir/sim"
	"github.com/reservoir-cloud/reservoir/vee"
)

// Config of a site.
type Config struct {
	Hosts    int `yaml:"hosts"`    // h1, h2, …; 0: 3
	Machines int `yaml:"machines"` // w1, w2, …: without guests, witnesses only
	VEEs     int `yaml:"vees"`     // v1, v2, …, placed round-robin; 0: 1
	// Room of a host and Load of each VEE, in per cent of a CPU; 0: 400 and 60.
	Room int `yaml:"room"`
	Load int `yaml:"load"`
	// Ring: the hosts relieve each other along a ring, rather than by locality.
	Ring bool `yaml:"ring"`
	// Watchdog: the machines have one, which resets them when the guard is silent.
	Watchdog bool   `yaml:"watchdog"`
	Seed     uint64 `yaml:"seed"`
}

func (c Config) defaults() Config {
	set := func(n *int, usual int) {
		if *n == 0 {
			*n = usual
		}
	}
	set(&c.Hosts, 3)
	set(&c.VEEs, 1)
	set(&c.Room, 400)
	set(&c.Load, 60)
	return c
}

// bug that a mutant has; none outside the tests.
type bug string

// Site in virtual time.
type Site struct {
	Config
	sim   *sim.Sim
	net   *sim.Network
	p     ownership.Protocol
	peers dvms.Protocol
	over  dvms.Overlay
	begin time.Time
	out   io.Writer // nil: nobody reads
	bug   bug

	hosts []*host // in the order of their names; those without guests last
	vees  []*guest
	store store
	boss  *leader // the newest
	wrong []string
	twice vee.ID          // runs twice, as has been said
	parts map[string]part // of each host: the partition that it is in, and since when
	dice  *rand.Rand
	// loseTickets: what hosts say to each other about a gift does not arrive.
	loseTickets bool
	spans       []Span
	marks       []Mark
}

// guest is a VEE as the world sees it.
type guest struct {
	id    vee.ID
	load  int
	acked int // writes that it has acknowledged to its users
	disk  int // of those, on the disk that all hosts see
	ran   map[string]time.Duration
	data  map[vee.Epoch]int // memory that went along with a ticket
}

// part that a host has in a partition.
type part struct {
	id    dvms.ID
	since time.Time
}

var epoch = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

// warm is how long a site runs before its story begins: everybody is current by then, and the
// witnesses are steady.
const warm = 90 * time.Second

// usual network of a site: a LAN.
var usual = sim.Link{Delay: time.Millisecond, Jitter: 4 * time.Millisecond}

// New site, warmed up. What happens in it is written to out, a line each; nil: it is not.
func New(c Config, out io.Writer) (*Site, error) { return build(c, out, "") }

func build(c Config, out io.Writer, b bug) (*Site, error) {
	c = c.defaults()
	if c.Hosts < 1 || c.Hosts > 64 || c.Machines < 0 || c.Machines > 7 || c.VEEs < 0 || c.VEEs > 512 || c.Room < 1 || c.Load < 0 {
		return nil, fmt.Errorf("a site of %d hosts, %d machines and %d VEEs of %d %% on hosts of %d %%: want 1 to 64 hosts, up to 7 machines, up to 512 VEEs", c.Hosts, c.Machines, c.VEEs, c.Load, c.Room)
	}
	s := &Site{Config: c, p: ownership.Protocol{Timings: ownership.DefaultTimings()}, peers: dvms.DefaultProtocol(!c.Ring), bug: b, parts: map[string]part{}}
	s.begin = epoch.Add(warm)
	s.sim = sim.New(c.Seed, epoch)
	s.sim.ShuffleTies()
	s.net = sim.NewNetwork(s.sim, usual)
	s.dice = s.sim.Stream("site")
	s.populate()
	s.sim.Trace = func(time.Time, string) { s.check() }
	if err := s.sim.Run(s.begin); err != nil {
		return nil, err
	}
	s.out = out
	return s, nil
}

// populate the site: hosts, witnesses, VEEs, and the log that says so.
func (s *Site) populate() {
	var names []string
	var near dvms.Nearest
	for i := range s.Hosts {
		n := fmt.Sprintf("h%d", i+1)
		names = append(names, n)
		near = append(near, dvms.Place{Node: n, Site: "a", At: dvms.Coordinate{X: float64(i) / 1000}})
	}
	s.over = near
	if s.Ring {
		s.over = dvms.NewRing(names)
	}
	for i := range s.Machines {
		names = append(names, fmt.Sprintf("w%d", i+1))
	}
	set := ownership.WitnessSet{Config: 1}
	for _, n := range slices.Backward(names) { // machines without guests first
		if len(set.Members) < 7 {
			set.Members = append(set.Members, n)
		}
	}
	slices.Sort(set.Members)
	log := ownership.Log{Site: "a", Generation: 1, Leader: 1, Witnesses: []ownership.WitnessSet{set}}
	for i, n := range names {
		log.Members = append(log.Members, ownership.Member{Host: n, Witnesses: 1})
		h := &host{s: s, name: n, guestless: i >= s.Hosts, disk: ownership.Disk{Generation: 1, Witnesses: set}, rate: 1, since: epoch,
			procs: map[vee.ID]*proc{}, meters: map[vee.ID]*meter{}, kept: map[vee.ID]meter{}, room: s.Room}
		s.hosts = append(s.hosts, h)
	}
	for i := range s.VEEs {
		v := &guest{id: vee.ID(fmt.Sprintf("v%d", i+1)), load: s.Load, ran: map[string]time.Duration{}, data: map[vee.Epoch]int{}}
		s.vees = append(s.vees, v)
		e := vee.Epoch{Generation: 1, Term: 1}
		log.Records = append(log.Records, ownership.Record{VEE: v.id, Epoch: e, Host: names[i%s.Hosts], Taken: e, Next: e})
	}
	s.store = store{log: log, used: map[stint]account.Series{}}
	s.mutate()
	s.boss = s.lead()
	for _, h := range s.hosts {
		h.powerOn()
	}
	s.sim.Every(time.Second, "", func() bool { s.serve(); return true })
}

// serve: every guest that runs writes once a second and acknowledges it.
func (s *Site) serve() {
	for _, h := range s.hosts {
		for _, v := range s.vees {
			p := h.procs[v.id]
			if p == nil || !p.running || h.frozen {
				continue
			}
			if p.data < v.acked {
				s.fail("%s on %s answers from write %d, and had acknowledged %d", v.id, h.name, p.data, v.acked)
			}
			p.data++
			v.acked, v.disk = p.data, max(v.disk, p.data)
		}
	}
}

// Run for some time.
func (s *Site) Run(d time.Duration) error { return s.sim.Run(s.sim.Now().Add(d)) }

// say what happens, for people.
func (s *Site) say(format string, args ...any) {
	if s.out != nil {
		fmt.Fprintf(s.out, "%7.1fs  %s\n", s.sim.Now().Sub(s.begin).Seconds(), fmt.Sprintf(format, args...))
	}
}

func (s *Site) host(name string) *host {
	i := slices.IndexFunc(s.hosts, func(h *host) bool { return h.name == name })
	if i < 0 {
		return nil
	}
	return s.hosts[i]
}

func (s *Site) guest(id vee.ID) *guest {
	i := slices.IndexFunc(s.vees, func(v *guest) bool { return v.id == id })
	if i < 0 {
		return nil
	}
	return s.vees[i]
}

// on is the host where a VEE runs, or nil; the first one if there are two.
func (s *Site) on(id vee.ID) *host {
	for _, h := range s.hosts {
		if p := h.procs[id]; p != nil && p.running {
			return h
		}
	}
	return nil
}
