package occi

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/internal/httpapi"
	"github.com/reservoir-cloud/reservoir/internal/identity"
	"github.com/reservoir-cloud/reservoir/vee"
	"github.com/reservoir-cloud/reservoir/vmi"
	"github.com/reservoir-cloud/reservoir/vmi/occi/rendering"
)

// Tag is a mixin that a client has defined at the query interface (GFD.221, "Mixin"; GFD.223,
// "HTTP Methods Applied to Query Interface"): a name under which it finds some of its computes
// again, without attributes or actions.
type Tag struct {
	Type     rendering.TypeID `json:"type"`
	Title    string           `json:"title,omitempty"`
	Location string           `json:"location"` // path of its collection
}

// Tags keeps what clients define; a store.Collection[Tag] is one. That a compute has a tag is
// not kept here: it is a tag of the VEE.
type Tags interface {
	Values(ctx context.Context, prefix string) ([]Tag, error)
	Create(ctx context.Context, key string, t Tag) (uint64, error) // fault.Exists
	Delete(ctx context.Context, key string, version uint64) error  // fault.NotFound
}

// Bounds of tags: of one scope, and of a type identifier, which has to go into a VEE's tag.
const (
	maxTags    = 256
	maxTagType = 200
)

// word among a VEE's tags that says that it has mixin t.
func word(t rendering.TypeID) string { return "occi:" + string(t) }

// tagKey of the caller's tags: those of a customer's callers are one scope.
func tagKey(ctx context.Context, t rendering.TypeID) string {
	return identity.From(ctx).Scope() + "/" + string(t)
}

func (t Tag) category() rendering.Category {
	return rendering.Category{Class: rendering.Mixin, Type: t.Type, Title: t.Title, Location: t.Location, Applies: []rendering.TypeID{kindCompute}}
}

// onQuery adds and removes mixins.
func (q *request) onQuery() (answer, error) {
	if q.Method != http.MethodPost && q.Method != http.MethodDelete {
		return answer{}, notAllowed(q.Request, "GET, HEAD, POST, DELETE", "mixins are added with POST and removed with DELETE")
	}
	r, p, err := q.input()
	if err != nil {
		return answer{}, err
	}
	cs, err := r.ReadCategories(p)
	if err != nil {
		return answer{}, fault.New(fault.Malformed, "the mixin in the request: %w", err)
	}
	if len(cs) == 0 {
		return answer{}, fault.New(fault.Malformed, "the request names no mixin")
	}
	for _, c := range cs {
		httpapi.Concerns(q.Context(), "mixin/"+string(c.Type))
	}
	if q.Method == http.MethodDelete {
		for _, c := range cs {
			if err := q.undefine(c.Type); err != nil {
				return answer{}, err
			}
		}
		return answer{status: http.StatusOK, Payload: rendering.Of(q.media).Categories(nil)}, nil
	}
	var made []rendering.Category
	for _, c := range cs {
		t, err := q.c.tagOf(c)
		if err != nil {
			return answer{}, err
		}
		if _, err := q.h.Tags.Create(q.Context(), tagKey(q.Context(), t.Type), t); err != nil {
			return answer{}, fmt.Errorf("add mixin %s: %w", t.Type, err)
		}
		made = append(made, t.category())
	}
	return answer{status: http.StatusOK, Payload: rendering.Of(q.media).Categories(made)}, nil
}

// tagOf checks what a client defines.
func (c *catalogue) tagOf(k rendering.Category) (Tag, error) {
	bad := func(format string, args ...any) (Tag, error) {
		return Tag{}, fault.New(fault.Malformed, "mixin %s: %s", k.Type, fmt.Sprintf(format, args...))
	}
	t := Tag{Type: k.Type, Title: k.Title, Location: k.Location}
	if t.Location == "" {
		t.Location = Base + "/mixin/tag/" + k.Type.Term() + "/"
	}
	_, t.Location = cutHost(t.Location)
	switch {
	case k.Class != "" && k.Class != rendering.Mixin:
		return bad("its class is %s: clients define mixins alone", k.Class)
	case len(k.Type) > maxTagType:
		return bad("%d bytes: at most %d", len(k.Type), maxTagType)
	case len(k.Attributes)+len(k.Actions)+len(k.Depends) > 0:
		return bad("what clients define is a tag: it has no attributes and no actions, and depends on nothing")
	case slices.ContainsFunc(k.Applies, func(a rendering.TypeID) bool { return a != kindCompute }):
		return bad("it would apply to %v: tags are for computes", k.Applies)
	case len(t.Title) > 1024:
		return bad("a title of %d bytes: at most 1024", len(t.Title))
	case !strings.HasPrefix(t.Location, Base+"/mixin/") || !strings.HasSuffix(t.Location, "/") || strings.Contains(t.Location, "//") || strings.Contains(t.Location, ".."):
		_, err := bad("its location %s: want a path such as %s/mixin/tag/%s/", t.Location, Base, k.Type.Term())
		return Tag{}, fault.From(err).Try("leave the location out")
	case c.byType[t.Type] != nil:
		return Tag{}, fault.New(fault.Exists, "mixin %s: there is one", t.Type)
	case c.at(t.Location) != nil:
		return Tag{}, fault.New(fault.Exists, "mixin %s: its location %s is that of %s", t.Type, t.Location, c.at(t.Location).Type).
			Try("choose another location, or leave it out")
	case len(c.tags) >= maxTags:
		return Tag{}, fault.New(fault.QuotaExceeded, "mixin %s: there are %d already, which is all that are kept", t.Type, maxTags)
	}
	return t, nil
}

// undefine a tag: no compute has it any more, and then it is gone.
func (q *request) undefine(t rendering.TypeID) error {
	if !q.c.tags[t] {
		return fault.New(fault.NotFound, "there is no mixin %s that you have defined", t).Try("see what there is: GET %s/-/", Base)
	}
	vees, err := q.tagged(t)
	if err != nil {
		return err
	}
	if err := q.h.retag(q.Context(), t, nil, vees); err != nil {
		return err
	}
	return q.h.Tags.Delete(q.Context(), tagKey(q.Context(), t), 0)
}

// tagged are the VEEs of the caller's scope that have the tag.
func (q *request) tagged(t rendering.TypeID) ([]vmi.VEE, error) {
	vees, err := q.h.vees(q.Context())
	if err != nil {
		return nil, err
	}
	customer := identity.From(q.Context()).Customer
	return slices.DeleteFunc(vees, func(v vmi.VEE) bool {
		return !slices.Contains(v.Descriptor.Tags, word(t)) || v.Descriptor.Customer != customer
	}), nil
}

// associate a tag with computes: POST adds those that are named, PUT gives it to them and to
// no others, DELETE takes it from those that are named, or from all where none is.
func (q *request) associate(of *rendering.Category) (answer, error) {
	named, err := q.named()
	if err != nil {
		return answer{}, err
	}
	var add, remove []vmi.VEE
	has := func(v vmi.VEE) bool { return slices.Contains(v.Descriptor.Tags, word(of.Type)) }
	switch q.Method {
	case http.MethodPost, http.MethodPut:
		if len(named) == 0 && q.Method == http.MethodPost {
			return answer{}, fault.New(fault.Malformed, "name the computes that get mixin %s", of.Type).Try("X-OCCI-Location: %s/compute/ID", Base)
		}
		add = slices.DeleteFunc(slices.Clone(named), has)
		if q.Method == http.MethodPost {
			break
		}
		if remove, err = q.tagged(of.Type); err != nil {
			return answer{}, err
		}
		remove = slices.DeleteFunc(remove, func(v vmi.VEE) bool {
			return slices.ContainsFunc(named, func(n vmi.VEE) bool { return n.ID == v.ID })
		})
	case http.MethodDelete:
		if remove = slices.DeleteFunc(slices.Clone(named), func(v vmi.VEE) bool { return !has(v) }); len(named) > 0 {
			break
		}
		if remove, err = q.tagged(of.Type); err != nil {
			return answer{}, err
		}
	default:
		return answer{}, notAllowed(q.Request, "GET, HEAD, POST, PUT, DELETE", "no such method on a mixin")
	}
	if err := q.h.retag(q.Context(), of.Type, add, remove); err != nil {
		return answer{}, err
	}
	es, err := q.h.collection(q.Context(), q.c, of, selection{})
	return answer{status: http.StatusOK, Payload: rendering.Of(q.media).Collection(es, q.base())}, err
}

// named are the computes whose locations or identifiers are in the request.
func (q *request) named() ([]vmi.VEE, error) {
	r, p, err := q.input()
	if err != nil {
		return nil, err
	}
	locations, err := r.ReadLocations(p)
	if err != nil {
		return nil, fault.New(fault.Malformed, "the locations in the request: %w", err)
	}
	var vees []vmi.VEE
	for _, l := range locations {
		_, at := cutHost(l)
		name := strings.TrimPrefix(at, Base+"/compute/")
		if strings.Contains(name, "/") {
			return nil, fault.New(fault.Malformed, "location %s: tags are for computes, %s/compute/ID", l, Base)
		}
		_, v, err := q.h.entity(q.Context(), q.c, kindCompute, name)
		if err != nil {
			return nil, err
		}
		vees = append(vees, v)
	}
	return vees, nil
}

// retag gives a tag to some VEEs and takes it from others, each under its version.
func (h *handler) retag(ctx context.Context, t rendering.TypeID, add, remove []vmi.VEE) error {
	var us []vmi.VEEUpdate
	change := func(v vmi.VEE, tags []string) {
		httpapi.Concerns(ctx, string(v.ID))
		us = append(us, vmi.VEEUpdate{ID: v.ID, Version: v.Version, Tags: &tags})
	}
	for _, v := range add {
		change(v, append(slices.Clone(v.Descriptor.Tags), word(t)))
	}
	for _, v := range remove {
		change(v, slices.DeleteFunc(append([]string{}, v.Descriptor.Tags...), func(s string) bool { return s == word(t) }))
	}
	for part := range slices.Chunk(us, maxPage) {
		outs, err := h.Service.UpdateVEEs(ctx, part)
		if err == nil {
			err = failed(outs)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// tagsOf a VEE, as far as the caller knows them.
func (c *catalogue) tagsOf(d vee.Descriptor) (ts []rendering.TypeID) {
	for _, w := range d.Tags {
		if t, ok := strings.CutPrefix(w, "occi:"); ok && c.tags[rendering.TypeID(t)] {
			ts = append(ts, rendering.TypeID(t))
		}
	}
	return ts
}
