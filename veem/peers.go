package veem

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/reservoir-cloud/reservoir/ownership"
	"github.com/reservoir-cloud/reservoir/placement"
	"github.com/reservoir-cloud/reservoir/vee"
	"github.com/reservoir-cloud/reservoir/vhi"
	"github.com/reservoir-cloud/reservoir/vmi"
)

// Hosts relieve each other by moves that this manager has not ordered (docs/dvms.md), also
// while it is not there. Where a VEE is, is observed: such a move is taken over as soon as a
// host tells of it, and then is as any other, but that nobody here decides about it.

// byHosts is the move of r that its host's report tells of and that is not on record: one that
// is under way, or one by which it has left.
func byHosts(r *record, p *vhi.Report, now time.Time) (*migration, bool) {
	m := p.Move
	if m == nil || m.By == "" || m.From != r.Host || r.Move != nil && r.Move.ID == m.ID {
		return nil, false
	}
	if left(r, p) || p.Epoch == r.Epoch && p.Seq == r.Seq && !m.Over() {
		return r.moveByHosts(m, now), true
	}
	return nil, false
}

// left reports whether p's epoch is one that only a planned hand-over leads to from r's.
func left(r *record, p *vhi.Report) bool {
	return p.Epoch.Generation == r.Epoch.Generation && p.Epoch.Term == r.Epoch.Term && p.Epoch.Hop > r.Epoch.Hop
}

func (r *record) moveByHosts(m *vhi.MoveReport, now time.Time) *migration {
	return &migration{Migration: vmi.Migration{ID: m.ID, VEE: r.ID, Name: r.Descriptor.Name, From: m.From, To: m.To, By: m.By,
		State: vmi.MigrationRunning, Started: now}}
}

// came reports whether p, of a host that r is not at, says that r runs there by the hosts' own
// doing.
func came(r *record, host string, p *vhi.Report) bool {
	return r.Assigned && r.State != vee.Destroyed && left(r, p) && p.Power != vhi.Absent && p.Power != vhi.Incoming &&
		p.Move != nil && p.Move.By != "" && p.Move.To == host && p.Move.Stage == vhi.MoveTaken
}

// follow r to the host that says it has it.
func (r *record) follow(p *vhi.Report, now time.Time) {
	r.Move = r.moveByHosts(p.Move, now)
	r.arrive(p, now)
	r.Settled = false
}

// followToHost notes that a VEE is at a host, which says so.
func (m *Manager) followToHost(ctx context.Context, host string, id vee.ID, p *vhi.Report) result {
	return m.attempt(fmt.Sprintf("note that VEE %s has come to host %s", id, host), hostLane(host), m.ledger.do(ctx, func(t *tx) error {
		if r, ok := t.vee(id); ok && !r.leased() && came(&r, host, p) {
			r.follow(p, t.now)
			t.putVEE(r)
		}
		return nil
	}))
}

// neighbours so many a host is told of. Each tells of those that it knows.
const neighbours = 5

// company that a host is told of: those that follow it by name, so that together they lead
// from every host to every other.
func (m *Manager) company(name string) vhi.Company {
	c := vhi.Company{Relief: m.cfg.Relief}
	m.ledger.read(func(s *state) {
		var names []string
		for n, h := range s.hosts.rows {
			if n != name && h.Address != "" && m.hosts.alive(n) {
				names = append(names, n)
			}
		}
		slices.Sort(names)
		first, _ := slices.BinarySearch(names, name)
		for i := range min(neighbours, len(names)) {
			n := names[(first+i)%len(names)]
			c.Neighbours = append(c.Neighbours, vhi.Neighbour{Host: n, Address: s.hosts.rows[n].Address})
		}
		h := s.hosts.rows[name]
		c.Draining = h != nil && h.Drain != nil && !h.Drain.Done
	})
	return c
}

// helpless notes that the hosts could not relieve one of them, when its report tells so first.
func (m *Manager) helpless(r vhi.HostReport) {
	if r.Peering == nil || len(r.Peering.Past) == 0 {
		return
	}
	last := r.Peering.Past[len(r.Peering.Past)-1]
	if !last.Helpless {
		return
	}
	m.hosts.mu.Lock()
	v := m.hosts.get(r.Host)
	news := v.helpless != last.ID
	v.helpless = last.ID
	m.hosts.mu.Unlock()
	if news {
		m.record(Event{Warning: true, Reason: "NoRelief", Object: "host/" + r.Host,
			Message: fmt.Sprintf("host %s is %s, and the hosts that it asked (%d) could not relieve it: reservoir host partitions", r.Host, last.Reason, max(0, len(last.Members)-1))})
	}
}

// bonds of a VEE by its placement rules, for hosts that move it by themselves. What is soft is
// kept as if it were not: they do not know what else there is.
func (r *record) bonds() (apart, together []string) {
	for _, rule := range r.Rules {
		if !slices.Contains(r.Descriptor.Tags, rule.Tag) {
			continue
		}
		name := r.Scope + "/" + rule.Tag
		if placement.Kind(rule.Kind) == placement.AntiAffinity {
			apart = append(apart, name)
		} else {
			together = append(together, name)
		}
	}
	return apart, together
}

// cameByHosts reports whether the log of ownership has found r at a host that it came to by
// the hosts' own doing.
func (m *Manager) cameByHosts(r *record, n ownership.Record) bool {
	p := m.hosts.view(n.Host, r.ID).report
	return n.Host != r.Host && p != nil && p.Epoch == n.Epoch && p.Move != nil && p.Move.By != "" && p.Move.To == n.Host
}
