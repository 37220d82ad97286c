package agent

import (
	"fmt"
	"slices"

	"github.com/reservoir-cloud/reservoir/internal/durable"
	"github.com/reservoir-cloud/reservoir/van/plan"
	"github.com/reservoir-cloud/reservoir/vhi/peer"
)

// VEEs that hosts move by themselves take their networks along: who gets one is told of the
// segments that it is in, and those that share one with it of its new place. The next word of
// the site, whose versions are times, stands above all that.

// wire segments that come with a VEE and are not here yet. One that is here is not replaced:
// it is the site's word.
func (n *networks) wire(segments []plan.Segment) error {
	for _, s := range segments {
		n.mu.Lock()
		_, here := n.kept[s.ID]
		n.mu.Unlock()
		if here {
			continue
		}
		if err := n.put(s); err != nil {
			return err
		}
	}
	return nil
}

// moved: the host from, which has a VEE's ports, says that they are another's now.
func (n *networks) moved(from string, m peer.Moved) error {
	n.mu.Lock()
	changed := false
	for id, s := range n.kept {
		his := func(p plan.Port) bool { return p.VEE == m.VEE && p.Host == from }
		if !slices.ContainsFunc(s.Ports, his) {
			continue
		}
		s.Ports = slices.Clone(s.Ports)
		for i, p := range s.Ports {
			if his(p) {
				s.Ports[i].Host, s.Ports[i].Underlay = m.To, m.Underlay
			}
		}
		s.Version++
		if err := durable.WriteJSON(n.file(id), s, 0o600); err != nil {
			n.mu.Unlock()
			return fmt.Errorf("keep network %s: %w", id, err)
		}
		n.kept[id] = s
		n.puts++
		changed = true
	}
	n.mu.Unlock()
	if !changed {
		return nil // it is not wired here, or the site has told already
	}
	return n.apply()
}
