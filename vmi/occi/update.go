package occi

import (
	"context"
	"maps"
	"math"
	"reflect"
	"slices"

	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/internal/httpapi"
	"github.com/reservoir-cloud/reservoir/vee"
	"github.com/reservoir-cloud/reservoir/vmi"
	"github.com/reservoir-cloud/reservoir/vmi/occi/rendering"
)

// news is what a representation says that is not so already. What a client has read and
// sends back with a few changes is taken as these changes: the attributes that only the site
// sets may stand in it, as long as they are as they were. Links are left as they are
// (GFD.223, "Replace").
func news(is, wanted rendering.Entity) (rendering.Entity, error) {
	if wanted.Kind != "" && wanted.Kind != is.Kind || wanted.ID != "" && wanted.ID != is.ID {
		return rendering.Entity{}, fault.New(fault.Malformed, "%s is a %s: its kind and its identifier stay", is.ID, is.Kind.Term())
	}
	for _, l := range wanted.Links {
		if !slices.ContainsFunc(is.Links, func(have rendering.Entity) bool {
			return have.Kind == l.Kind && have.Target.Location == l.Target.Location
		}) {
			return rendering.Entity{}, fault.New(fault.Unsupported, "link to %s: links are made with their compute", l.Target.Location)
		}
	}
	n := rendering.Entity{Kind: is.Kind, Attributes: maps.Clone(wanted.Attributes), Mixins: slices.Clone(wanted.Mixins)}
	if wanted.Title != is.Title {
		n.Title = wanted.Title
	}
	if wanted.Summary != is.Summary {
		n.Summary = wanted.Summary
	}
	maps.DeleteFunc(n.Attributes, func(name string, value any) bool { return reflect.DeepEqual(is.Attributes[name], value) })
	n.Mixins = slices.DeleteFunc(n.Mixins, func(m rendering.TypeID) bool { return slices.Contains(is.Mixins, m) })
	return n, nil
}

// change a compute as a full or a partial representation says.
func (h *handler) change(ctx context.Context, c *catalogue, v vmi.VEE, wanted rendering.Entity) error {
	n, err := news(c.compute(v), wanted)
	if err != nil {
		return err
	}
	w, err := c.wishOf(n)
	if err != nil {
		return err
	}
	u := vmi.VEEUpdate{ID: v.ID}
	cores, memory := w.cores, w.memory
	if cores > 0 {
		u.VCPUs = &cores
	}
	if memory > 0 {
		u.Memory = &memory
	}
	if w.share > 0 {
		share := v.Descriptor.CPU
		share.Weight = w.share
		u.CPU = &share
	}
	if len(w.tags) > 0 {
		tags := slices.Clone(v.Descriptor.Tags)
		for _, t := range w.tags {
			tags = append(tags, word(t))
		}
		u.Tags, u.Version = &tags, v.Version
	}
	w.size, w.cores, w.memory, w.share, w.tags = nil, 0, 0, 0, nil
	if !reflect.DeepEqual(w, wish{}) {
		return fault.New(fault.Unsupported, "compute %s: cores, memory, share and tags can be changed, the rest stays as it was made", v.ID).
			Try("delete it and create another one")
	}
	return h.apply(ctx, u)
}

// grow a disk: its size is all that can be changed of a storage.
func (h *handler) grow(ctx context.Context, v vmi.VEE, is, wanted rendering.Entity) error {
	n, err := news(is, wanted)
	if err != nil {
		return err
	}
	u := vmi.VEEUpdate{ID: v.ID}
	for _, name := range slices.Sorted(maps.Keys(n.Attributes)) {
		size, isNumber := n.Attributes[name].(float64)
		switch {
		case name != "occi.storage.size":
			return fault.New(fault.Malformed, "attribute %s of a storage is set by the site", name).Try("leave it out")
		case !isNumber || size <= 0 || size > 1<<18:
			return fault.New(fault.Malformed, "attribute %s: want a number of GiB", name)
		}
		u.Disks = map[string]vee.Bytes{diskOf(is): vee.Bytes(math.Round(size*1024)) * vee.MiB}
	}
	if n.Title != "" || n.Summary != "" || len(n.Mixins) > 0 {
		return fault.New(fault.Unsupported, "storage %s: it can grow, the rest stays as it was made", is.ID)
	}
	return h.apply(ctx, u)
}

// apply what there is to apply.
func (h *handler) apply(ctx context.Context, u vmi.VEEUpdate) error {
	httpapi.Concerns(ctx, string(u.ID))
	if reflect.DeepEqual(u, vmi.VEEUpdate{ID: u.ID}) {
		return nil
	}
	outs, err := h.Service.UpdateVEEs(ctx, []vmi.VEEUpdate{u})
	if err != nil {
		return err
	}
	return failed(outs)
}
