package occi

import (
	"cmp"
	"context"
	"net/http"
	"net/url"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/vee"
	"github.com/reservoir-cloud/reservoir/vmi"
	"github.com/reservoir-cloud/reservoir/vmi/occi/rendering"
)

// maxPage is how many entities one page may have; more are refused (GFD.223, "Pagination").
const maxPage = 1000

// selection is the part of a collection that a request asks for.
type selection struct {
	types      []rendering.TypeID
	attributes rendering.Attributes
	page, size int // size 0: all
}

func selectionOf(r *http.Request) (s selection, err error) {
	if s.types, s.attributes, err = rendering.ReadFilter(r.Header); err != nil {
		return s, fault.New(fault.Malformed, "the filter in the request's header: %w", err)
	}
	q, err := url.ParseQuery(strings.ReplaceAll(r.URL.RawQuery, ";", "&"))
	if err != nil {
		return s, fault.New(fault.Malformed, "the query %q: %w", r.URL.RawQuery, err)
	}
	if !q.Has("page") && !q.Has("number") {
		return s, nil
	}
	page, err1 := strconv.Atoi(q.Get("page"))
	size, err2 := strconv.Atoi(q.Get("number"))
	switch {
	case err1 != nil || err2 != nil || page < 1 || size < 1:
		return s, fault.New(fault.Malformed, "page %q and number %q: want both, from 1 on", q.Get("page"), q.Get("number"))
	case size > maxPage:
		return s, fault.New(fault.TooLarge, "number %d: a page has at most %d entities", size, maxPage)
	}
	s.page, s.size = page, size
	return s, nil
}

// matches: of every type that is named, with every attribute that is named.
func (s selection) matches(c *catalogue, e rendering.Entity) bool {
	for _, t := range s.types {
		if !c.member(e, t) {
			return false
		}
	}
	core := rendering.Attributes{"occi.core.id": e.ID, "occi.core.title": e.Title, "occi.core.summary": e.Summary,
		"occi.core.source": e.Source.Location, "occi.core.target": e.Target.Location,
		"occi.core.source.kind": string(e.Source.Kind), "occi.core.target.kind": string(e.Target.Kind)}
	for name, want := range s.attributes {
		got, isCore := core[name]
		if !isCore {
			got = e.Attributes[name]
		}
		if !reflect.DeepEqual(got, want) {
			return false
		}
	}
	return true
}

// member of the collection of t: by its kind, or by a mixin.
func (c *catalogue) member(e rendering.Entity, t rendering.TypeID) bool {
	return c.is(e.Kind, t) || slices.ContainsFunc(e.Mixins, func(m rendering.TypeID) bool { return c.is(m, t) })
}

// cut the page out of the whole. A page behind the end is empty.
func (s selection) cut(es []rendering.Entity) []rendering.Entity {
	if s.size == 0 {
		return es
	}
	from := len(es)
	if s.page-1 <= len(es)/s.size {
		from = min(len(es), (s.page-1)*s.size)
	}
	return es[from:min(len(es), from+s.size)]
}

// vees that the caller sees, by identifier.
func (h *handler) vees(ctx context.Context) ([]vmi.VEE, error) {
	all, err := h.Service.ListVEEs(ctx, vmi.Filter{})
	if err != nil {
		return nil, err
	}
	all = slices.DeleteFunc(all, gone)
	slices.SortFunc(all, func(a, b vmi.VEE) int { return cmp.Compare(a.ID, b.ID) })
	return all, nil
}

// collection of a category, or of everything where it is nil.
func (h *handler) collection(ctx context.Context, c *catalogue, of *rendering.Category, s selection) ([]rendering.Entity, error) {
	// Only the kinds that can be in it are worked out.
	var wanted []rendering.TypeID
	for _, k := range append(veeKinds, kindNetwork) {
		if of == nil || c.is(k, of.Type) || slices.Contains(of.Applies, k) {
			wanted = append(wanted, k)
		}
	}
	var es []rendering.Entity
	keep := func(list []rendering.Entity) {
		for _, e := range list {
			if (of == nil || c.member(e, of.Type)) && s.matches(c, e) {
				es = append(es, e)
			}
		}
	}
	for _, k := range wanted {
		if k == kindNetwork {
			networks, err := h.networks(ctx)
			if err != nil {
				return nil, err
			}
			for _, n := range networks {
				keep([]rendering.Entity{n.entity()})
			}
		}
	}
	if !slices.ContainsFunc(wanted, func(k rendering.TypeID) bool { return k != kindNetwork }) {
		return s.cut(es), nil
	}
	vees, err := h.vees(ctx)
	if err != nil {
		return nil, err
	}
	for _, v := range vees {
		for _, k := range wanted {
			keep(c.of(k, v))
		}
	}
	return s.cut(es), nil
}

// entity at a path of a kind. The VEE is that which it is a part of, if any.
func (h *handler) entity(ctx context.Context, c *catalogue, kind rendering.TypeID, name string) (rendering.Entity, vmi.VEE, error) {
	name = strings.TrimPrefix(name, urn+kind.Term()+":")
	missing := fault.New(fault.NotFound, "there is no %s %q", kind.Term(), name).Try("list what there is: GET %s/%s/", Base, kind.Term())
	if kind == kindNetwork {
		networks, err := h.networks(ctx)
		if err != nil {
			return rendering.Entity{}, vmi.VEE{}, err
		}
		for _, n := range networks {
			if n.Name == name {
				return n.entity(), vmi.VEE{}, nil
			}
		}
		return rendering.Entity{}, vmi.VEE{}, missing
	}
	var id vee.ID
	id, err := veeOf(name)
	if err != nil {
		return rendering.Entity{}, vmi.VEE{}, missing
	}
	v, err := h.Service.GetVEE(ctx, id)
	if fault.Has(err, fault.NotFound) || err == nil && gone(v) {
		return rendering.Entity{}, vmi.VEE{}, missing
	} else if err != nil {
		return rendering.Entity{}, vmi.VEE{}, err
	}
	if e, ok := named(c.of(kind, v), path(kind.Term(), name)); ok {
		return e, v, nil
	}
	return rendering.Entity{}, vmi.VEE{}, missing
}
