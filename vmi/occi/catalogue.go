package occi

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/reservoir-cloud/reservoir/image"
	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/internal/identity"
	"github.com/reservoir-cloud/reservoir/vee"
	"github.com/reservoir-cloud/reservoir/vmi/occi/rendering"
)

// Schemes of OCCI, and ours.
const (
	schemaCore  = "http://schemas.ogf.org/occi/core#"
	schemaInfra = "http://schemas.ogf.org/occi/infrastructure#"
	schemaOcci  = "http://schemas.ogf.org/occi/infrastructure/"
	schemaOurs  = "https://github.com/reservoir-cloud/reservoir/occi/"
)

// The categories that the code names.
const (
	kindResource = schemaCore + "resource"
	kindLink     = schemaCore + "link"
	kindCompute  = schemaInfra + "compute"
	kindStorage  = schemaInfra + "storage"
	kindNetwork  = schemaInfra + "network"
	kindDiskLink = schemaInfra + "storagelink"
	kindNIC      = schemaInfra + "networkinterface"

	mixinOS       = schemaInfra + "os_tpl"
	mixinSize     = schemaInfra + "resource_tpl"
	mixinIP       = schemaOcci + "network#ipnetwork"
	mixinIPNIC    = schemaOcci + "networkinterface#ipnetworkinterface"
	mixinSSHKey   = schemaOcci + "credentials#ssh_key"
	mixinUserData = schemaOcci + "compute#user_data"

	actions = "/action#" // after the kind's own scheme and term: schemaOcci + "compute/action#start"
)

func actionType(kind, term string) rendering.TypeID {
	return rendering.TypeID(schemaOcci + kind + actions + term)
}

// size is a resource template.
type size struct {
	term   string
	cores  int
	memory vee.Bytes
}

// sizes that a compute can be asked for in; usual is what it gets without a wish.
var sizes = []size{
	{"tiny", 1, 128 * vee.MiB},
	{"small", 1, 512 * vee.MiB},
	{"medium", 2, 2 * vee.GiB},
	{"large", 4, 4 * vee.GiB},
}

var usual = sizes[1]

func (s size) mixin() rendering.TypeID {
	return rendering.TypeID(schemaOurs + "resource_tpl#" + s.term)
}

func sizeOf(t rendering.TypeID) (size, bool) {
	i := slices.IndexFunc(sizes, func(s size) bool { return s.mixin() == t })
	if i < 0 {
		return size{}, false
	}
	return sizes[i], true
}

// template is an image of the site as an OS template.
type template struct {
	image.Info
	term string
}

func (t template) mixin() rendering.TypeID { return rendering.TypeID(schemaOurs + "os_tpl#" + t.term) }

// source is what people call the image.
func (t template) source() string {
	if t.Name == "" {
		return t.Digest
	}
	return t.Name + ":" + t.Tag
}

// templates of the images that can be used, by term. A term is the image's name, with its
// tag where that is not "latest", in the letters that a term may have; of images that would
// get the same, the later ones carry the start of their digest.
func templates(list []image.Info) []template {
	var ts []template
	taken := map[string]bool{}
	for _, i := range list {
		if i.Problem != "" {
			continue
		}
		short := strings.TrimPrefix(i.Digest, "sha256:")
		short = short[:min(12, len(short))]
		term := strings.ReplaceAll(i.Name, "/", ".")
		switch {
		case i.Name == "":
			term = "sha256-" + short
		case i.Tag != "latest":
			term += "_" + i.Tag
		}
		if taken[term] {
			term += "_" + short
		}
		taken[term] = true
		ts = append(ts, template{i, term})
	}
	slices.SortFunc(ts, func(a, b template) int { return cmp.Compare(a.term, b.term) })
	return ts
}

// catalogue is all categories at one moment.
type catalogue struct {
	list      []rendering.Category
	byType    map[rendering.TypeID]*rendering.Category
	templates []template
	tags      map[rendering.TypeID]bool // mixins that the caller's side has defined
}

func (h *handler) catalogue(ctx context.Context) (*catalogue, error) {
	list, err := h.Images.List(ctx)
	if err != nil {
		return nil, fmt.Errorf("list the site's images: %w", err)
	}
	tags, err := h.Tags.Values(ctx, identity.From(ctx).Scope()+"/")
	if err != nil {
		return nil, fmt.Errorf("list the mixins that clients have defined: %w", err)
	}
	return newCatalogue(list, tags), nil
}

func newCatalogue(images []image.Info, tags []Tag) *catalogue {
	c := &catalogue{templates: templates(images), byType: map[rendering.TypeID]*rendering.Category{}, tags: map[rendering.TypeID]bool{}}
	c.list = append(c.list, kinds...)
	c.list = append(c.list, mixins...)
	for _, s := range sizes {
		c.list = append(c.list, rendering.Category{
			Class: rendering.Mixin, Type: s.mixin(), Location: Base + "/mixin/resource_tpl/" + s.term + "/",
			Title:   fmt.Sprintf("%s: %d vCPU, %v", s.term, s.cores, s.memory),
			Depends: []rendering.TypeID{mixinSize}, Applies: []rendering.TypeID{kindCompute},
			Attributes: []rendering.Attribute{
				{Name: "occi.compute.cores", Type: "number", Default: float64(s.cores)},
				{Name: "occi.compute.memory", Type: "number", Default: gibibytes(s.memory), Description: "GiB"},
			},
		})
	}
	for _, t := range c.templates {
		c.list = append(c.list, rendering.Category{
			Class: rendering.Mixin, Type: t.mixin(), Title: "image " + t.source(), Location: Base + "/mixin/os_tpl/" + t.term + "/",
			Depends: []rendering.TypeID{mixinOS}, Applies: []rendering.TypeID{kindCompute},
		})
	}
	c.list = append(c.list, actionCategories...)
	for _, t := range tags {
		c.list, c.tags[t.Type] = append(c.list, t.category()), true
	}
	for i := range c.list {
		c.byType[c.list[i].Type] = &c.list[i]
	}
	return c
}

// at is the category whose collection is at a path.
func (c *catalogue) at(path string) *rendering.Category {
	for i := range c.list {
		if c.list[i].Location == path && path != "" {
			return &c.list[i]
		}
	}
	return nil
}

func (c *catalogue) template(t rendering.TypeID) (template, bool) {
	i := slices.IndexFunc(c.templates, func(x template) bool { return x.mixin() == t })
	if i < 0 {
		return template{}, false
	}
	return c.templates[i], true
}

// madeOf is the template of a disk: the one that it was made under, else any of the same
// image.
func (c *catalogue) madeOf(d vee.Disk) (template, bool) {
	best := -1
	for i, t := range c.templates {
		if t.Digest == d.Image && (best < 0 || t.source() == d.Source || "image://"+t.source() == d.Source) {
			best = i
		}
	}
	if best < 0 {
		return template{}, false
	}
	return c.templates[best], true
}

// is reports whether something of type t also is of type want: the same, or one of its
// ancestors or of what it depends on.
func (c *catalogue) is(t, want rendering.TypeID) bool {
	if t == want {
		return true
	}
	k := c.byType[t]
	if k == nil {
		return false
	}
	return k.Parent != "" && c.is(k.Parent, want) || slices.ContainsFunc(k.Depends, func(d rendering.TypeID) bool { return c.is(d, want) })
}

// related is what a filter of the query interface leaves over (GFD.223, "Query Interface"):
// the category itself, what descends from or depends on it, mixins that apply to it and
// actions that belong to it.
func (c *catalogue) related(want rendering.TypeID) []rendering.Category {
	var out []rendering.Category
	root := c.byType[want]
	for _, k := range c.list {
		if c.is(k.Type, want) || slices.Contains(k.Applies, want) || root != nil && slices.Contains(root.Actions, k.Type) {
			out = append(out, k)
		}
	}
	return out
}

// settable finds the definition of an attribute that a client names for an entity of a kind
// with mixins, and refuses one that is not defined or that only the site may set.
func (c *catalogue) settable(name string, types ...rendering.TypeID) error {
	for _, t := range types {
		k := c.byType[t]
		if k == nil {
			continue
		}
		if i := slices.IndexFunc(k.Attributes, func(a rendering.Attribute) bool { return a.Name == name }); i >= 0 {
			if k.Attributes[i].Mutable {
				return nil
			}
			return fault.New(fault.Malformed, "attribute %s is set by the site", name).Try("leave it out")
		}
	}
	return fault.New(fault.Malformed, "attribute %s is not defined by the categories that the request names", name).
		Try("see what there is: GET %s/-/", Base)
}

func gibibytes(b vee.Bytes) float64 { return float64(b) / float64(vee.GiB) }
