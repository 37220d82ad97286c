package veem

import (
	"context"
	"io"
	"regexp"

	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/internal/identity"
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
