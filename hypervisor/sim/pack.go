package sim

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"slices"

	"github.com/reservoir-cloud/reservoir/hypervisor"
	"github.com/reservoir-cloud/reservoir/vee"
)

var _ hypervisor.Packer = (*Driver)(nil)

// Pack implements hypervisor.Packer: what a simulated guest was then, as JSON.
func (d *Driver) Pack(_ context.Context, id vee.ID, snapshot string, w io.Writer) error {
	g := d.find(id)
	if g == nil {
		return fmt.Errorf("pack snapshot %q of %s: %w", snapshot, id, hypervisor.ErrNotFound)
	}
	if snapshot == "" {
		f, err := g.itself()
		if err != nil {
			return fmt.Errorf("pack %s: %w", id, err)
		}
		return json.NewEncoder(w).Encode(f)
	}
	list := g.state().Snapshots
	i := slices.IndexFunc(list, func(f frozen) bool { return f.Name == snapshot })
	if i < 0 {
		return fmt.Errorf("pack snapshot %q of %s: %w", snapshot, id, hypervisor.ErrNotFound)
	}
	return json.NewEncoder(w).Encode(list[i])
}

// itself as a snapshot of it would be.
func (g *guest) itself() (f frozen, err error) {
	c, err := g.in("pack", hypervisor.Stopped, hypervisor.Suspended)
	if err != nil {
		return f, err
	}
	f.Name, f.Memory, f.Of = "itself", c == hypervisor.Suspended, g.state()
	return f, hypervisor.SnapshotsStay(len(f.Of.Snapshots))
}

// Unpack implements hypervisor.Packer.
func (d *Driver) Unpack(ctx context.Context, gs hypervisor.Guest, r io.Reader) error {
	return d.fromPack(ctx, gs, r, false)
}

// Seed implements hypervisor.Packer: what a simulated guest's disk remembers is how often it
// was started.
func (d *Driver) Seed(ctx context.Context, gs hypervisor.Guest, r io.Reader) error {
	return d.fromPack(ctx, gs, r, true)
}

func (d *Driver) fromPack(ctx context.Context, gs hypervisor.Guest, r io.Reader, disksAlone bool) error {
	return d.command(ctx, Unpack, gs.ID, gs.Epoch, func(g *guest) error {
		if g != nil {
			return fmt.Errorf("it is %s: %w", g.observe().Condition, hypervisor.ErrWrongState)
		}
		var f frozen
		if err := json.NewDecoder(r).Decode(&f); err != nil || f.Name == "" {
			return fmt.Errorf("this is no packed snapshot of a simulated guest: %w", err)
		}
		to := hypervisor.Stopped
		if f.Memory && !disksAlone {
			to = hypervisor.Suspended
		}
		g = &guest{d: d, s: f.Of}
		if disksAlone {
			g.s = state{Guest: gs, Boots: f.Of.Boots}
		}
		g.s.Guest.ID, g.s.Guest.Epoch, g.s.Guest.Images, g.s.Guest.NICs = gs.ID, gs.Epoch, gs.Images, gs.NICs
		g.s.Condition, g.s.Snapshots = hypervisor.Absent, nil
		if err := g.become(to, "", nil); err != nil {
			return err
		}
		d.mu.Lock()
		d.guests[gs.ID] = g
		d.mu.Unlock()
		return nil
	})
}
