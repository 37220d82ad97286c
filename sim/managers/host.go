package managers

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/internal/identity"
	"github.com/reservoir-cloud/reservoir/sim"
	"github.com/reservoir-cloud/reservoir/van/plan"
	"github.com/reservoir-cloud/reservoir/vee"
	"github.com/reservoir-cloud/reservoir/veem"
	"github.com/reservoir-cloud/reservoir/vhi"
)

// renewal is how often a host renews when nothing has happened.
const renewal = 5 * time.Second

// host that converges to its assignments as an agent does. What it was assigned outlives
// crashes of the site.
type host struct {
	vhi.Host // nil: what a simulation has no use for
	s        *Site
	name     string
	guests   map[vee.ID]*guest
	segments map[string]uint64
	images   map[string]bool
	seq      uint64
	renewing *sim.Event
	cut      bool          // off the network
	news     bool          // since the last renewal
	heard    *veem.Manager // by whom, last
}

// guest of a VEE on a host.
type guest struct {
	want    vhi.Assignment
	power   vhi.Power // Absent, Stopped, Running
	phase   vee.Phase
	ready   bool
	starts  int
	towards vhi.Power // that something is under way to
	event   *sim.Event
}

func newHost(s *Site, name string, number int) *host {
	h := &host{s: s, name: name, guests: map[vee.ID]*guest{}, segments: map[string]uint64{}, images: map[string]bool{}}
	// Not all at once.
	s.sim.After(time.Duration(number)*renewal/time.Duration(max(1, s.cfg.Hosts)), name+" begins to renew", func() {
		s.sim.Every(renewal, name+" renews", func() bool { h.renew(); return true })
	})
	return h
}

// beat renews soon.
func (h *host) beat() {
	h.news = true
	if h.renewing == nil {
		h.renewing = h.s.sim.After(time.Millisecond, h.name+" has news", func() {
			h.renewing = nil
			h.renew()
		})
	}
}

func (h *host) renew() {
	if h.s.sm == nil {
		return
	}
	if h.cut {
		h.heard = nil
		return
	}
	ctx := identity.With(h.s.ctx, identity.Caller{ID: h.name, Role: identity.HostRole, Host: h.name})
	if _, err := h.s.veem.Renew(ctx, vhi.Renewal{Report: h.report()}); err != nil && h.s.ctx.Err() == nil {
		h.s.breaks(fmt.Errorf("host %s renews: %w", h.name, err))
	}
	if h.s.ctx.Err() != nil {
		h.s.down()
		return
	}
	if h.news || h.heard != h.s.veem { // what nobody has to act upon costs no step
		h.news, h.heard = false, h.s.veem
		h.s.Poke()
	}
}

func (h *host) report() vhi.HostReport {
	h.seq++
	r := vhi.HostReport{Host: h.name, Incarnation: "1", Seq: h.seq, Address: h.name + ":1", Capacity: h.s.cfg.Capacity, CPUs: int(h.s.cfg.Capacity.MilliCPU / 1000),
		Drivers: []vhi.DriverInfo{{Name: "sim", Simulated: true}}, Segments: maps.Clone(h.segments), Generation: 1}
	for _, id := range slices.Sorted(maps.Keys(h.guests)) {
		r.VEEs = append(r.VEEs, h.reportOf(h.guests[id]))
	}
	return r
}

func (h *host) reportOf(g *guest) vhi.Report {
	p := vhi.Report{VEE: g.want.VEE, Epoch: g.want.Epoch, Seq: g.want.Seq, Power: g.power, Phase: g.phase, Fitted: true,
		GuestSeen: g.ready, GuestReady: g.ready, Since: h.s.sim.Now()}
	if g.ready && h.s.cfg.Guests != nil {
		p.GuestIdle = h.s.cfg.Guests.Idle(h.guestOf(g))
	}
	if g.power == vhi.Absent && g.want.Power != vhi.Absent {
		p.Power = vhi.Unprepared
	}
	if p.Phase == "" {
		p.Phase = map[vhi.Power]vee.Phase{vhi.Running: vee.PhaseRunning, vhi.Stopped: vee.PhaseStopped, vhi.Absent: vee.PhaseDone, vhi.Unprepared: vee.PhaseProlog}[p.Power]
		if p.Power == vhi.Unprepared && g.want.Power == vhi.Stopped {
			p.Phase = vee.PhaseStopped
		}
	}
	return p
}

func (h *host) guestOf(g *guest) Guest {
	return Guest{VEE: g.want.VEE, Name: g.want.Descriptor.Name, Host: h.name, Start: g.starts}
}

// reached reports whether a call of the site arrives, and its answer.
func (h *host) reached() error {
	if h.cut {
		return fault.New(fault.Unavailable, "no route to host %s", h.name)
	}
	return h.s.hazard()
}

// Assign: vhi.Host.
func (h *host) Assign(_ context.Context, a vhi.Assignment) (vhi.Report, error) {
	if err := h.reached(); err != nil {
		return vhi.Report{}, err
	}
	g := h.guests[a.VEE]
	if g == nil {
		g = &guest{power: vhi.Absent}
		h.guests[a.VEE] = g
	}
	c := a.Epoch.Compare(g.want.Epoch)
	switch {
	case c < 0 || c == 0 && a.Seq < g.want.Seq:
		return vhi.Report{}, fault.New(fault.StaleEpoch, "VEE %s: %s/%d is older than %s/%d", a.VEE, a.Epoch, a.Seq, g.want.Epoch, g.want.Seq)
	case c > 0 || a.Seq > g.want.Seq:
		g.want = a
		h.look(g)
		h.beat()
	}
	return h.reportOf(g), h.reached()
}

// Report: vhi.Host.
func (h *host) Report(context.Context) (vhi.HostReport, error) {
	if err := h.reached(); err != nil {
		return vhi.HostReport{}, err
	}
	return h.report(), h.reached()
}

// PutSegment: vhi.Host.
func (h *host) PutSegment(_ context.Context, g plan.Segment) error {
	if err := h.reached(); err != nil {
		return err
	}
	h.segments[g.ID] = max(h.segments[g.ID], g.Version)
	return h.reached()
}

// RemoveSegment: vhi.Host.
func (h *host) RemoveSegment(_ context.Context, id string) error {
	if err := h.reached(); err != nil {
		return err
	}
	delete(h.segments, id)
	return h.reached()
}

// look what is to be done about a guest, unless it is under way.
func (h *host) look(g *guest) {
	to, during := g.power, vee.Phase("")
	switch g.want.Power {
	case vhi.Running:
		switch g.power {
		case vhi.Absent:
			to, during = vhi.Stopped, vee.PhaseProlog
		case vhi.Stopped:
			to, during = vhi.Running, vee.PhaseBoot
		}
	case vhi.Stopped:
		if g.power == vhi.Running {
			to, during = vhi.Stopped, vee.PhaseEpilog
		}
	case vhi.Absent:
		to, during = vhi.Absent, vee.PhaseEpilog
	}
	booting := g.power == vhi.Running && !g.ready
	if g.event != nil && (g.towards == to || booting && to == vhi.Running) {
		return
	}
	if g.event != nil {
		g.event.Cancel()
		g.event = nil
	}
	if to == g.power && !booting {
		g.phase = ""
		return
	}
	g.phase, g.towards = during, to
	switch {
	case booting && to == vhi.Running:
		h.boot(g)
	case to == vhi.Running:
		g.starts++
		h.become(g, vhi.Running)
		h.boot(g)
	case to == vhi.Stopped && g.power == vhi.Absent:
		fetch := time.Duration(0)
		for _, d := range g.want.Descriptor.Disks {
			if d.Image != "" && !h.images[d.Image] {
				fetch += took(h.s.cfg.Times.Fetch)
				h.images[d.Image] = true
			}
		}
		h.after(g, fetch, "is prepared", func() { h.become(g, vhi.Stopped) })
	case to == vhi.Stopped && g.ready && h.s.cfg.Guests != nil:
		grace := h.after(g, time.Duration(g.want.GraceMS)*time.Millisecond, "is out of time to stop", func() { h.become(g, vhi.Stopped) })
		h.s.cfg.Guests.Stops(h.guestOf(g), func() {
			if g.event == grace {
				grace.Cancel()
				h.after(g, took(h.s.cfg.Times.Stop), "has stopped", func() { h.become(g, vhi.Stopped) })
			}
		})
	case to == vhi.Stopped:
		h.after(g, took(h.s.cfg.Times.Stop), "has stopped", func() { h.become(g, vhi.Stopped) })
	default:
		h.after(g, 0, "is removed", func() { h.become(g, vhi.Absent) })
	}
}

func took(d func() time.Duration) time.Duration {
	if d == nil {
		return 0
	}
	return d()
}

// after d, unless something else is to be done by then.
func (h *host) after(g *guest, d time.Duration, what string, do func()) *sim.Event {
	g.event = h.s.sim.After(d, fmt.Sprintf("%s on %s %s", g.want.Descriptor.Name, h.name, what), func() {
		g.event = nil
		do()
		h.look(g)
		h.beat()
	})
	return g.event
}

func (h *host) boot(g *guest) {
	g.towards, g.phase = vhi.Running, vee.PhaseBoot
	h.after(g, took(h.s.cfg.Times.Boot), "serves", func() {
		g.ready, g.phase = true, ""
		if h.s.cfg.Guests != nil {
			h.s.cfg.Guests.Serves(h.guestOf(g))
		}
	})
}

// become is what the guest does now. What must hold at every instant is checked.
func (h *host) become(g *guest, p vhi.Power) {
	if g.ready && p != vhi.Running {
		g.ready = false
		if h.s.cfg.Guests != nil {
			h.s.cfg.Guests.Gone(h.guestOf(g))
		}
	}
	g.power, g.phase = p, ""
	if p == vhi.Absent && g.want.Power == vhi.Absent {
		g.want.Descriptor = vee.Descriptor{}
	}
	if p == vhi.Running {
		h.check(g)
	}
}

// check that a VEE runs once, and its host has room for all that run.
func (h *host) check(started *guest) {
	var used vee.Resources
	for _, o := range h.s.hosts {
		for _, g := range o.guests {
			switch {
			case g.power != vhi.Running:
			case o == h:
				used = used.Plus(vee.Resources{MilliCPU: int64(g.want.Descriptor.VCPUs) * 1000, Memory: g.want.Descriptor.Memory})
			case g.want.VEE == started.want.VEE:
				h.s.breaks(fmt.Errorf("VEE %s runs on %s and %s", g.want.VEE, h.name, o.name))
			}
		}
	}
	if !used.Fits(h.s.cfg.Capacity) {
		h.s.breaks(fmt.Errorf("host %s runs %+v of %+v", h.name, used, h.s.cfg.Capacity))
	}
}

// Cut a host off the network, or connect it.
func (s *Site) Cut(host string, cut bool) { s.host(host).cut = cut }

// Kill the guest of a VEE, as a crash of it would: it is started again in its place.
func (s *Site) Kill(id vee.ID) bool {
	for _, h := range s.hosts {
		if g := h.guests[id]; g != nil && g.power == vhi.Running {
			h.kill(g)
			return true
		}
	}
	return false
}

// KillOne of the guests that there are.
func (s *Site) KillOne(r *rand.Rand) {
	var ids []vee.ID
	for _, h := range s.hosts {
		for _, id := range slices.Sorted(maps.Keys(h.guests)) {
			if h.guests[id].power == vhi.Running {
				ids = append(ids, id)
			}
		}
	}
	if len(ids) > 0 {
		s.Kill(ids[r.IntN(len(ids))])
	}
}

func (h *host) kill(g *guest) {
	if g.event != nil {
		g.event.Cancel()
		g.event = nil
	}
	h.become(g, vhi.Stopped)
	h.look(g)
	h.beat()
}
