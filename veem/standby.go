package veem

import (
	"context"
	"io"
	"regexp"
	"slices"

	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/internal/identity"
	"github.com/reservoir-cloud/reservoir/van/border"
	"github.com/reservoir-cloud/reservoir/vee"
)

// What the cooperation of sites needs of the VEE Manager (veem/federation/standby): checkpoints
// given out at the primary, and VEEs that begin with one at the site that was promoted.

// ReadCheckpoint gives the packed checkpoint n of a VEE out, from a byte on, as its host keeps it.
func (m *Manager) ReadCheckpoint(ctx context.Context, id vee.ID, n int, from int64) (io.ReadWriteCloser, error) {
	_, h, err := m.holder(ctx, id, "checkpoint", false)
	if err != nil {
		return nil, err
	}
	return h.Checkpoint(ctx, id, n, from)
}

// TakeOver what is here of a partner's service that this site goes on with: its VEEs, its access
// points and its networks are this site's, of that customer, and the partner sees and commands them no more.
// The VEEs run on, and keep their identifiers and addresses; the networks end at this site. One
// that is on its way between the two sites just now stays the partner's. It may be called again,
// and answers the same.
func (m *Manager) TakeOver(ctx context.Context, site, service, customer string) (group string, lodgers []vee.ID, err error) {
	group = foreign(site, service)
	err = m.ledger.do(ctx, func(t *tx) error {
		var taken []networkRecord
		for _, n := range t.networks.all() {
			if n.GroupID == group && n.Shared != nil {
				taken = append(taken, *n)
			}
		}
		var points []pointRecord
		for _, p := range t.points.all() {
			if p.GroupID == group && p.Customer != customer {
				points = append(points, *p)
			}
		}
		for _, p := range points { // they stay where they are
			p.Customer = customer
			put(t, &t.points, pointKey(p.GroupID, p.Name), &p)
		}
		for _, r := range taken {
			r.Shared, r.Tunnel, r.Customer, r.Taken = nil, 0, customer, true
			r.Version++
			put(t, &t.networks, r.ID, &r)
		}
		return nil
	})
	if err != nil {
		return group, nil, err
	}
	var theirs []vee.ID
	m.ledger.read(func(s *state) {
		for _, r := range s.vees.rows {
			if r.Descriptor.GroupID == group && r.ID.Site() == site && r.State != vee.Destroyed {
				theirs = append(theirs, r.ID)
			}
		}
	})
	slices.Sort(theirs)
	for _, id := range theirs {
		ours := false
		err := m.ledger.do(ctx, func(t *tx) error {
			r, ok := t.vee(id)
			if ours = false; !ok || r.moving() || r.State == vee.Destroyed || r.Target == vee.Destroyed || r.State == vee.Initial || !r.Assigned {
				return nil
			}
			if r.lodges() {
				r.Custody = nil
				r.Descriptor.Customer = customer
				t.putVEE(r)
			}
			ours = true
			return nil
		})
		if err != nil {
			return group, nil, err
		}
		if ours {
			lodgers = append(lodgers, id)
		}
	}
	return group, lodgers, nil
}

// GiveUp the VEEs of a service that are at a partner which goes on with it: they are the
// partner's. What of it is here is not touched. It may be called again.
func (m *Manager) GiveUp(ctx context.Context, service, site string) error {
	var there []vee.ID
	m.ledger.read(func(s *state) {
		for _, r := range s.vees.rows {
			if r.Descriptor.GroupID == service && r.Host == border.SiteHost(site) && r.State != vee.Destroyed && !r.moving() {
				there = append(there, r.ID)
			}
		}
	})
	slices.Sort(there)
	for _, id := range there {
		err := m.ledger.do(ctx, func(t *tx) error {
			if r, ok := t.vee(id); ok && r.Host == border.SiteHost(site) && r.State != vee.Destroyed && !r.moving() {
				r.Seq++
				r.finish()
				t.putVEE(r)
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// Lodging is the disk that a partner's VEEs have here.
func (m *Manager) Lodging(site string) (disk vee.Bytes) {
	m.ledger.read(func(s *state) {
		for _, r := range s.vees.rows {
			if r.lodges() && r.ID.Site() == site && r.State != vee.Destroyed {
				disk += r.Descriptor.Resources().Disk
			}
		}
	})
	return disk
}

var blobDigest = regexp.MustCompile(`^sha256:[0-9a-f]{64}$`)

// checkSeed of a VEE: only the site itself knows which checkpoints are whose.
func checkSeed(c identity.Caller, where string, s *vee.Seed) error {
	switch {
	case s == nil:
		return nil
	case !c.Is(identity.SiteRole):
		return fault.New(fault.Denied, "%sseed: only the site itself lets VEEs begin with checkpoints", where)
	case !blobDigest.MatchString(s.Digest) || s.Size <= 0:
		return malformed(where+"seed", "%q of %d bytes: want a digest and a size", s.Digest, s.Size)
	}
	return nil
}
