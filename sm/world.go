package sm

import (
	"context"
	"maps"
	"time"

	"github.com/reservoir-cloud/reservoir/vee"
	"github.com/reservoir-cloud/reservoir/vmi"
)

// watchAgain after the VMI's watch has ended.
const watchAgain = 200 * time.Millisecond

// world is what the VMI has told of VEES, by group. Manager.mu guards it.
type world struct {
	groups map[string]map[vee.ID]seen
	round  uint64 // of watching: entries of an older round may be gone
	synced bool   // everything there is has been told since the first round began
}

// seen is what the manager reads of a VEE: a site has thousands of them, and a whole
// record of each would be the larger part of its memory.
type seen struct {
	version, round       uint64
	name, group, domain  string
	nics                 []vee.NIC
	state, target        vee.State
	phase                vee.Phase
	progress             *vee.Progress
	host, err            string
	nextBoot             []string
	failure              string // of its guest
	submitted            bool
	queue                int  // its place among those that wait for room
	ready, answers, idle bool // of its guest
}

func seenOf(v *vmi.VEE, round uint64) seen {
	return seen{
		version: v.Version, round: round, name: v.Descriptor.Name, group: v.Descriptor.GroupID, domain: v.Descriptor.Naming.Domain, nics: v.Descriptor.NICs,
		state: v.State, target: v.Target, phase: v.Phase, progress: v.Progress, host: v.Host, err: v.Error,
		nextBoot: v.NextBoot, failure: v.GuestFailure, submitted: v.Submitted, queue: v.Queue, ready: v.GuestReady, answers: v.GuestSeen, idle: v.GuestIdle,
	}
}

func (s *seen) vee(id vee.ID) vmi.VEE {
	return vmi.VEE{
		ID: id, Version: s.version, Descriptor: vee.Descriptor{Name: s.name, GroupID: s.group, NICs: s.nics, Naming: vee.Naming{Domain: s.domain}},
		State: s.state, Target: s.target, Phase: s.phase, Progress: s.progress, Host: s.host, Error: s.err,
		NextBoot: s.nextBoot, GuestFailure: s.failure, Submitted: s.submitted, Queue: s.queue, GuestReady: s.ready, GuestSeen: s.answers, GuestIdle: s.idle,
	}
}

func newWorld() world { return world{groups: map[string]map[vee.ID]seen{}} }

// put keeps v unless something newer is known, and reports whether it took the place of a
// VEE that has now freed its room.
func (w *world) put(v *vmi.VEE) (freed bool) {
	group := v.Descriptor.GroupID
	if group == "" {
		return false
	}
	g := w.groups[group]
	if g == nil {
		g = map[vee.ID]seen{}
		w.groups[group] = g
	}
	old, known := g[v.ID]
	now := seenOf(v, w.round)
	if known && old.version > now.version {
		now = old
		now.round = w.round
	}
	g[v.ID] = now
	return known && old.state != vee.Destroyed && now.state == vee.Destroyed
}

// drop what match says.
func (w *world) drop(match func(vee.ID, seen) bool) {
	for id, g := range w.groups {
		maps.DeleteFunc(g, match)
		if len(g) == 0 {
			delete(w.groups, id)
		}
	}
}

// group is what is known of one, as far as the manager reads it.
func (m *Manager) group(id string) (vees map[vee.ID]vmi.VEE, synced bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	vees = make(map[vee.ID]vmi.VEE, len(m.world.groups[id]))
	for id, s := range m.world.groups[id] {
		vees[id] = s.vee(id)
	}
	return vees, m.world.synced
}

// learn keeps answers of the VMI, which may come before the watch tells the same.
func (m *Manager) learn(list []vmi.VEE) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for i := range list {
		m.world.put(&list[i])
	}
}

// followVEEs watches the VMI until ctx ends, and anew whenever the watch does.
func (m *Manager) followVEEs(ctx context.Context) {
	for ctx.Err() == nil {
		// Before the call: what an answer tells while the watch begins may not be in the
		// list that it begins with.
		m.mu.Lock()
		m.world.round++
		m.mu.Unlock()
		changes, err := m.cfg.VMI.WatchVEEs(ctx, vmi.Filter{Destroyed: true})
		if err != nil {
			m.cfg.Log.Warn("cannot watch VEEs, will try again", "error", err)
			pause(ctx, watchAgain)
			continue
		}
		for c := range changes {
			m.apply(c)
		}
		pause(ctx, watchAgain)
	}
}

func (m *Manager) apply(c vmi.Change) {
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case c.Synced:
		m.world.drop(func(_ vee.ID, s seen) bool { return s.round < m.world.round })
		m.world.synced = true
		for _, w := range m.workers {
			w.poke()
		}
	case c.Purged != "":
		m.world.drop(func(id vee.ID, _ seen) bool { return id == c.Purged })
	case c.VEE != nil:
		freed := m.world.put(c.VEE)
		for _, w := range m.workers {
			if freed {
				w.roomFreed.Store(true)
			}
			if w.group.Load() == c.VEE.Descriptor.GroupID || freed {
				w.poke()
			}
		}
	}
}
