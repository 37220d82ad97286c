package sm

import (
	"cmp"
	"context"
	"slices"

	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/manifest"
	"github.com/reservoir-cloud/reservoir/sm/deploy"
	"github.com/reservoir-cloud/reservoir/vee"
	"github.com/reservoir-cloud/reservoir/vmi"
)

// contextualise tells VEEs that are to be submitted what their guests will read at boot.
// It is done then and no earlier: by now every VEE of the start groups before, and of
// their own, has its addresses. The outcomes are those of the VMI; an error may be one of
// a macro that cannot be resolved yet.
func (w *worker) contextualise(ctx context.Context, rec record, slots []deploy.Slot) ([]vmi.Outcome, error) {
	vees, _ := w.m.group(rec.ID)
	var updates []vmi.VEEUpdate
	for _, l := range slots {
		d := w.design
		if l.Revision != d.number {
			var err error
			if d, err = w.m.loadDesign(ctx, rec.ID, l.Revision); err != nil {
				return nil, err
			}
		}
		around := d.around(rec, vees)
		around.Channel = vees[l.VEE].Descriptor.MonitoringChannel()
		files, err := d.manifest.Context(d.replica(l, vees[l.VEE]), around)
		if err != nil {
			return nil, fault.New(fault.Malformed, "%s: %w", l.Name(), err).Try("correct the property: reservoir service plan FILE")
		}
		updates = append(updates, vmi.VEEUpdate{ID: l.VEE, Context: files})
	}
	return w.m.cfg.VMI.UpdateVEEs(ctx, updates)
}

// around is the service as a guest is told of it: the replicas that stay, the one by which
// a component is reached before its others.
func (d *design) around(rec record, vees map[vee.ID]vmi.VEE) manifest.Around {
	a := manifest.Around{ServiceID: rec.ID}
	slots := slices.Clone(rec.State.Slots)
	slices.SortStableFunc(slots, func(a, b deploy.Slot) int {
		return cmp.Or(cmp.Compare(d.groups[a.Component], d.groups[b.Component]), cmp.Compare(a.Component, b.Component), cmp.Compare(a.Number, b.Number))
	})
	for _, l := range slots {
		v, known := vees[l.VEE]
		if !known || !l.Retiring.IsZero() || v.State == vee.Destroyed {
			continue
		}
		a.Domain = cmp.Or(a.Domain, v.Descriptor.Naming.Domain)
		a.Replicas = append(a.Replicas, d.replica(l, v))
	}
	return a
}

// replica as the manifest speaks of it: NICs by the names of its networks, in whose order
// they are.
func (d *design) replica(l deploy.Slot, v vmi.VEE) manifest.Replica {
	r := manifest.Replica{Component: l.Component, Number: l.Number, ID: v.ID, NICs: slices.Clone(v.Descriptor.NICs)}
	if c := d.manifest.Component(l.Component); c != nil {
		for i := range min(len(r.NICs), len(c.NICs)) {
			r.NICs[i].Network = c.NICs[i].Network
		}
	}
	return r
}

// allOK reports whether no outcome is a refusal.
func allOK(outcomes []vmi.Outcome) bool {
	return !slices.ContainsFunc(outcomes, func(o vmi.Outcome) bool { return !o.OK })
}
