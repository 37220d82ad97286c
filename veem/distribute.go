package veem

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/reservoir-cloud/reservoir/van/plan"
)

// Distribution of segments to hosts: a job for each pair of them compares what the host
// should hold with what it holds, and puts or removes. It runs when a segment's version
// changes and when a host's report differs from what it should be.

func segmentJobOf(host, id string) job { return job{segmentJob, host + "\x00" + id} }

// networkLane of a host is apart from its others: a host that is slow to start guests is
// told at once where the others' are.
func networkLane(host string) string { return "network/" + host }

// wakeSegment looks at a segment at every host that holds it or should.
func (m *Manager) wakeSegment(id string) {
	if m.cfg.Rewired != nil {
		m.cfg.Rewired()
	}
	for _, h := range m.whereabouts(id) {
		m.queue.add(segmentJobOf(h, id), networkLane(h))
	}
}

// whereabouts of a segment: the hosts that hold it or should.
func (m *Manager) whereabouts(id string) (hosts []string) {
	m.ledger.read(func(s *state) { hosts = at(s, id) })
	for h := range m.hosts.holding(id) {
		if i, there := slices.BinarySearch(hosts, h); !there {
			hosts = slices.Insert(hosts, i, h)
		}
	}
	return hosts
}

// rewire wakes the segments that a change of a VEE's record concerns.
func (m *Manager) rewire(c change) {
	if !rewired(c.before, c.after) {
		return
	}
	for _, r := range []*record{c.before, c.after} {
		for id := range segmentsOf(r) {
			m.wakeSegment(id)
		}
	}
}

// wakeSegmentsAt looks at every segment of a host.
func (m *Manager) wakeSegmentsAt(host string) {
	ids := map[string]bool{}
	m.ledger.read(func(s *state) {
		for _, r := range s.vees.rows {
			if slices.Contains(hostsOf(r), host) {
				for id := range segmentsOf(r) {
					ids[id] = true
				}
			}
		}
	})
	for id := range ids {
		m.wakeSegment(id)
	}
}

// lookAtSegment puts a segment to a host that should hold it and has another version, and
// removes it from one that should not.
func (m *Manager) lookAtSegment(ctx context.Context, name string) result {
	host, id, _ := strings.Cut(name, "\x00")
	var g plan.Segment
	wanted := false
	m.ledger.read(func(s *state) {
		if slices.Contains(at(s, id), host) {
			g, wanted = m.segment(s, id)
		}
	})
	held, holds := m.hosts.holding(id)[host]
	switch {
	case !m.hosts.alive(host), wanted && holds && held == g.Version, !wanted && !holds:
		return result{}
	case wanted && held > g.Version: // the clock was set back since
		m.ledger.overtake(id, held)
		m.wakeSegment(id)
		return result{}
	}
	c, err := m.client(host)
	if err == nil {
		ctx, cancel := context.WithTimeout(ctx, m.cfg.Timing.Call)
		defer cancel()
		if to, away := c.(Sharing); away {
			err = m.shareAt(ctx, to, host, id, wanted)
		} else if wanted {
			err = c.PutSegment(ctx, g)
		} else {
			err = c.RemoveSegment(ctx, id)
		}
	}
	if err != nil {
		return m.attempt(fmt.Sprintf("tell host %s of network %s", host, id), networkLane(host), err)
	}
	m.hosts.holds(host, id, g.Version, wanted)
	if !wanted {
		m.queue.add(job{networkJob, id}, placeLane)
	}
	return result{}
}

// holding are the hosts that hold a segment, as far as is known, and in which version.
func (h *hosts) holding(id string) map[string]uint64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	at := map[string]uint64{}
	for name, v := range h.known {
		if version, holds := v.segments[id]; holds {
			at[name] = version
		}
	}
	return at
}

// holds notes what a host has confirmed.
func (h *hosts) holds(host, id string, version uint64, there bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	v := h.get(host)
	v.segments = maps.Clone(v.segments) // it may be the report's
	if v.segments == nil {
		v.segments = map[string]uint64{}
	}
	if there {
		v.segments[id] = version
	} else {
		delete(v.segments, id)
	}
}

// differing are the segments that a host holds in another version than it should, or should
// not hold, or should and does not.
func differing(held, wanted map[string]uint64) (ids []string) {
	for id, version := range wanted {
		if v, holds := held[id]; !holds || v != version {
			ids = append(ids, id)
		}
	}
	for id := range held {
		if _, should := wanted[id]; !should {
			ids = append(ids, id)
		}
	}
	return ids
}

// lookAtNetwork drops the record of a network that was deleted when no host can hold
// anything of it: each has said so since, a while after the last call that it may have got.
func (m *Manager) lookAtNetwork(ctx context.Context, id string) result {
	settle := m.cfg.Timing.HostLost
	again := result{}
	err := m.ledger.do(ctx, func(t *tx) error {
		again = result{}
		r := t.networks.get(id)
		if r == nil || r.Deleted == nil {
			return nil
		}
		if left := r.Deleted.Add(settle).Sub(t.now); left > 0 || !m.hosts.allWithout(id, t.hosts.all()) {
			again = result{after: max(left, settle/4, time.Millisecond), lane: placeLane}
			return nil
		}
		put(t, &t.networks, id, nil)
		return nil
	})
	if err != nil {
		return m.attempt("drop network "+id, placeLane, err)
	}
	return again
}

// allWithout reports whether every one of the hosts is current and does not hold a segment.
func (h *hosts) allWithout(id string, all func(yield func(string, *hostRecord) bool)) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	for name := range all {
		v := h.known[name]
		if v == nil || !v.alive {
			return false
		}
		if _, holds := v.segments[id]; holds {
			return false
		}
	}
	return true
}
