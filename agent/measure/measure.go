// Package measure is what a host's agent measures (Clayman et al., section on producers): the
// probes of the machine itself, those of each VEE that runs on it as the hypervisor and the
// network see it, and the KPIs that programs in guests tell, by the guest's agent, by a push
// to the proxy in their network, or asked for by a scrape. It is a host's one data source
// (monitor.Source) with its probes; how they are stored is the site's business.
//
// Whose a measurement is, nobody is asked: a VEE's probe names the VEE on whose line, address
// or endpoint it came. A VEE is measured while its vCPUs are this host's to let run, so that
// of the two hosts of a migration one measures it at any time.
package measure

import (
	"context"
	"maps"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/reservoir-cloud/reservoir/agent/lrt"
	"github.com/reservoir-cloud/reservoir/hypervisor"
	"github.com/reservoir-cloud/reservoir/monitor"
	"github.com/reservoir-cloud/reservoir/monitor/intake"
	"github.com/reservoir-cloud/reservoir/van"
	"github.com/reservoir-cloud/reservoir/vee"
	"github.com/reservoir-cloud/reservoir/vhi/guest"
)

// VEE that runs on this host.
type VEE struct {
	ID         vee.ID
	Descriptor vee.Descriptor
}

// Config of a Measurer.
type Config struct {
	Source  *monitor.Source
	Machine *lrt.Machine
	// Own says of a network device that it was made for VEEs, and does not lead out.
	Own     func(device string) bool
	Running func() []VEE
	Runs    func(id vee.ID) bool // whether Running has it
	Meter   hypervisor.Meter     // nil: the driver tells nothing of its guests
	Traffic func(id vee.ID, nics int) (van.Traffic, error)
	// Dial a port of a VEE that is here, from inside its network.
	Dial func(ctx context.Context, id vee.ID, port uint16) (net.Conn, error)
	Now  func() time.Time
}

const (
	// lookEvery so often VEEs are looked for though nobody has said that there are others.
	lookEvery = 5 * time.Second
	// mostSeries of KPIs that one VEE may have, and how long one that is not heard of any
	// more takes its place.
	mostSeries = 1000
	keepSeries = time.Hour
)

// Measurer loads the probes of a host into its source, and those of VEEs as they come and go.
type Measurer struct {
	cfg  Config
	news chan struct{} // holds at most one: VEEs may have come or gone

	mu     sync.Mutex
	guests map[vee.ID]*measured
}

// measured VEE.
type measured struct {
	descriptor vee.Descriptor
	probes     []monitor.Ref
	waiting    []probe // that the source has no room for yet

	mu    sync.Mutex
	quota intake.Quota
}

// New loads the host's own probes.
func New(cfg Config) *Measurer {
	m := &Measurer{cfg: cfg, news: make(chan struct{}, 1), guests: map[vee.ID]*measured{}}
	for _, p := range hostProbes(cfg) {
		cfg.Source.Add(p.Probe, p.collect)
	}
	return m
}

// Poke says that VEEs may have come or gone. It never blocks.
func (m *Measurer) Poke() {
	select {
	case m.news <- struct{}{}:
	default:
	}
}

// Run follows the VEEs until ctx ends.
func (m *Measurer) Run(ctx context.Context) {
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		m.look()
		select {
		case <-ctx.Done():
			return
		case <-m.news:
		case <-tick.C:
		}
	}
}

// look who is here: VEEs that have come get their probes, and those of others go.
func (m *Measurer) look() {
	m.mu.Lock()
	defer m.mu.Unlock()
	running := m.cfg.Running()
	here := make(map[vee.ID]bool, len(running))
	for _, v := range running {
		here[v.ID] = true
	}
	for id, g := range m.guests { // who has gone makes room for who has come
		if !here[id] {
			m.unload(g, nil)
			delete(m.guests, id)
		}
	}
	for _, v := range running {
		old := m.guests[v.ID]
		if old != nil && len(old.waiting) > 0 {
			m.load(old, old.waiting)
		}
		if old != nil && old.descriptor.Metrics == v.Descriptor.Metrics && len(old.descriptor.NICs) == len(v.Descriptor.NICs) {
			continue
		}
		g := &measured{descriptor: v.Descriptor, quota: intake.Quota{Most: mostSeries, Keep: keepSeries}}
		m.load(g, m.guestProbes(v, g))
		if old != nil {
			m.unload(old, g.probes)
		}
		m.guests[v.ID] = g
	}
}

// load probes of g, as far as the source has room.
func (m *Measurer) load(g *measured, probes []probe) {
	g.waiting = nil
	for _, p := range probes {
		if m.cfg.Source.Add(p.Probe, p.collect) {
			g.probes = append(g.probes, p.Ref)
		} else {
			g.waiting = append(g.waiting, p)
		}
	}
}

// unload the probes of g, but for those that stay.
func (m *Measurer) unload(g *measured, stay []monitor.Ref) {
	for _, r := range g.probes {
		if !slices.Contains(stay, r) {
			m.cfg.Source.Remove(r)
		}
	}
}

// guest that is measured; nil where there is none of that name.
func (m *Measurer) guest(id vee.ID) *measured {
	m.mu.Lock()
	g := m.guests[id]
	m.mu.Unlock()
	if g == nil { // it may have come just now
		m.look()
		m.mu.Lock()
		g = m.guests[id]
		m.mu.Unlock()
	}
	return g
}

// Said takes the KPIs of a word of a guest's agent.
func (m *Measurer) Said(id vee.ID, s guest.Status) {
	if len(s.KPIs) == 0 {
		return
	}
	at := map[string]int{} // fields: two names may come to the same
	var values []monitor.Value
	bad := 0
	for _, name := range slices.Sorted(maps.Keys(s.KPIs)) {
		field := monitor.FieldOf(name)
		if !monitor.ValidField(monitor.KPIKind, field) {
			bad++
			continue
		}
		i, twice := at[field]
		if !twice {
			i = len(values)
			at[field], values = i, append(values, monitor.Value{Field: field})
		}
		values[i].Value = s.KPIs[name]
	}
	m.cfg.Source.Refuse(monitor.BadName, bad)
	m.tell(monitor.Ref{Name: byAgent, VEE: id}, values)
}

// Pushed takes what programs of a VEE have pushed to the proxy in its network. It reports
// whether the VEE is measured here, and how many values were refused because it has too many
// series.
func (m *Measurer) Pushed(id vee.ID, values []monitor.Value, dropped intake.Dropped) (here bool, refused int) {
	if m.guest(id) == nil {
		return false, 0
	}
	for why, n := range dropped {
		m.cfg.Source.Refuse(why, n)
	}
	return true, m.tell(monitor.Ref{Name: byPush, VEE: id}, values)
}

// tell the source what came for an event probe.
func (m *Measurer) tell(r monitor.Ref, values []monitor.Value) (refused int) {
	g := m.guest(r.VEE)
	if g == nil || len(values) == 0 {
		return 0
	}
	values, refused = m.admit(g, values)
	if len(values) > 0 {
		m.cfg.Source.Event(r, m.cfg.Now(), values...)
	}
	return refused
}

// admit those values of a VEE whose series it may have.
func (m *Measurer) admit(g *measured, values []monitor.Value) (admitted []monitor.Value, refused int) {
	g.mu.Lock()
	admitted, refused = g.quota.Admit(values, m.cfg.Now())
	g.mu.Unlock()
	m.cfg.Source.Refuse(monitor.TooWide, refused)
	return admitted, refused
}
