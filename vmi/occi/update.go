package occi

import (
	"context"
	"maps"
	"reflect"
	"slices"

	"github.com/reservoir-cloud/reservoir/internal/fault"
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
	if reflect.DeepEqual(w, wish{}) {
		return nil
	}
	return fault.New(fault.Unsupported, "compute %s: its size and its descriptor stay as they were made", v.ID).
		Try("delete it and create another one, or use the VMI")
}
