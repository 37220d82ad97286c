package rendering

import (
	"fmt"
	"net/url"
	"strings"
)

// The four fields of the text renderings (GFD.229, "ABNF Definitions").
const (
	fieldCategory  = "Category"
	fieldLink      = "Link"
	fieldAttribute = "X-OCCI-Attribute"
	fieldLocation  = "X-OCCI-Location"
)

var fieldNames = []string{fieldCategory, fieldLink, fieldAttribute, fieldLocation}

// field is one value of one of the four; what a text rendering is made of, whether its
// fields stand in a body or in a header.
type field struct{ name, value string }

func categoryFields(cs []Category) (fs []field) {
	for _, c := range cs {
		fs = append(fs, field{fieldCategory, categoryValue(c)})
	}
	return fs
}

func categoryValue(c Category) string {
	scheme, term := c.Type.Split()
	var b strings.Builder
	fmt.Fprintf(&b, `%s; scheme="%s"; class="%s"`, term, scheme, c.Class)
	param := func(name, value string) {
		if value != "" {
			fmt.Fprintf(&b, "; %s=%s", name, quote(value))
		}
	}
	param("title", c.Title)
	rel := c.Parent
	if c.Class == Mixin && len(c.Depends) > 0 {
		rel = c.Depends[0] // GFD.229, "Mixin Instance Attribute Rendering Specifics"
	}
	param("rel", string(rel))
	param("location", c.Location)
	var defs []string
	for _, a := range c.Attributes {
		defs = append(defs, a.Name+properties(a))
	}
	param("attributes", strings.Join(defs, " "))
	param("actions", join(c.Actions))
	return b.String()
}

func properties(a Attribute) string {
	var words []string
	if !a.Mutable {
		words = append(words, "immutable")
	}
	if a.Required {
		words = append(words, "required")
	}
	if words == nil {
		return ""
	}
	return "{" + strings.Join(words, " ") + "}"
}

func join(ts []TypeID) string {
	words := make([]string, len(ts))
	for i, t := range ts {
		words[i] = string(t)
	}
	return strings.Join(words, " ")
}

// typeIDs reads identifiers separated by spaces.
func typeIDs(s string) (ts []TypeID, err error) {
	for w := range strings.FieldsSeq(s) {
		t := TypeID(w)
		if err := t.valid(); err != nil {
			return nil, err
		}
		ts = append(ts, t)
	}
	return ts, nil
}

// entityFields renders a resource or a link.
func entityFields(e Entity) []field {
	cs := []Category{{Class: Kind, Type: e.Kind}}
	for _, m := range e.Mixins {
		cs = append(cs, Category{Class: Mixin, Type: m})
	}
	fs := categoryFields(cs)
	for _, l := range e.Links {
		fs = append(fs, field{fieldLink, linkValue(l)})
	}
	for _, a := range e.Actions {
		fs = append(fs, field{fieldLink, fmt.Sprintf(`<%s?action=%s>; rel="%s"`, e.Location, url.QueryEscape(a.Term()), a)})
	}
	return append(fs, attributeFields(coreAttributes(e), e.Attributes)...)
}

// pair keeps the core attributes in the order in which they are shown.
type pair struct{ name, value string }

func coreAttributes(e Entity) (ps []pair) {
	for _, p := range []pair{
		{"occi.core.id", e.ID}, {"occi.core.title", e.Title}, {"occi.core.summary", e.Summary},
		{"occi.core.source", e.Source.Location}, {"occi.core.source.kind", string(e.Source.Kind)},
		{"occi.core.target", e.Target.Location}, {"occi.core.target.kind", string(e.Target.Kind)},
	} {
		if p.value != "" {
			ps = append(ps, p)
		}
	}
	return ps
}

func attributeFields(core []pair, as Attributes) (fs []field) {
	for _, p := range core {
		fs = append(fs, field{fieldAttribute, p.name + "=" + quote(p.value)})
	}
	for _, name := range sortedNames(as) {
		if text, ok := literal(as[name]); ok {
			fs = append(fs, field{fieldAttribute, name + "=" + text})
		}
	}
	return fs
}

// linkValue is a link as it stands within its resource: its source is the resource itself.
func linkValue(l Entity) string {
	var b strings.Builder
	fmt.Fprintf(&b, `<%s>; rel="%s"`, l.Target.Location, l.Target.Kind)
	if l.Location != "" {
		fmt.Fprintf(&b, `; self="%s"`, l.Location)
	}
	fmt.Fprintf(&b, `; category="%s"`, join(append([]TypeID{l.Kind}, l.Mixins...)))
	l.Source, l.Target = End{}, End{}
	for _, f := range attributeFields(coreAttributes(l), l.Attributes) {
		b.WriteString("; " + f.value)
	}
	return b.String()
}

func locationFields(locations []string) (fs []field) {
	for _, l := range locations {
		fs = append(fs, field{fieldLocation, l})
	}
	return fs
}

// text is what the fields of one message say.
type text struct {
	categories []Category
	entity     Entity // its attributes, links and actions; its kind and mixins are categories
	locations  []string
}

func parseFields(fs []field) (text, error) {
	var t text
	for _, f := range fs {
		var one func(*scanner) error
		switch f.name {
		case fieldCategory:
			one = t.category
		case fieldLink:
			one = t.link
		case fieldAttribute:
			one = func(p *scanner) error { return attribute(p, &t.entity) }
		case fieldLocation:
			one = t.location
		}
		if err := list(f.value, one); err != nil {
			return text{}, fmt.Errorf("%s: %w", f.name, err)
		}
	}
	return t, nil
}

func (t *text) category(p *scanner) error {
	var c Category
	var scheme, rel string
	term := p.token()
	err := p.params(func(name string, p *scanner) error {
		v, err := p.text()
		if err != nil {
			return err
		}
		switch name {
		case "scheme":
			scheme = v
		case "class":
			c.Class = Class(v)
		case "title":
			c.Title = v
		case "rel":
			rel = v
		case "location":
			c.Location = v
		case "attributes":
			c.Attributes, err = attributeDefs(v)
		case "actions":
			c.Actions, err = typeIDs(v)
		}
		return err // other parameters are of no meaning here
	})
	if err != nil {
		return err
	}
	c.Type = TypeID(scheme + term)
	if !isTerm(term) || !isScheme(scheme) {
		return fmt.Errorf("category %.80q with scheme %.200q: want TERM; scheme=\"URI#\"; class=\"kind\"", term, scheme)
	}
	if c.Class != Kind && c.Class != Mixin && c.Class != Action {
		return fmt.Errorf("category %s: class %.40q: want kind, mixin or action", c.Type, c.Class)
	}
	if rel != "" {
		id := TypeID(rel)
		if err := id.valid(); err != nil {
			return fmt.Errorf("category %s: rel: %w", c.Type, err)
		}
		switch c.Class {
		case Kind:
			c.Parent = id
		case Mixin:
			c.Depends = []TypeID{id}
		}
	}
	t.categories = append(t.categories, c)
	return nil
}

// attributeDefs reads `name{immutable required} name …`.
func attributeDefs(s string) (as []Attribute, err error) {
	for s = strings.TrimSpace(s); s != ""; s = strings.TrimSpace(s) {
		n := strings.IndexAny(s, " {")
		if n < 0 {
			n = len(s)
		}
		a := Attribute{Name: s[:n], Mutable: true}
		s = s[n:]
		if strings.HasPrefix(s, "{") {
			words, rest, closed := strings.Cut(s[1:], "}")
			if !closed {
				return nil, fmt.Errorf("attribute %.80s: its properties have no closing brace", a.Name)
			}
			s = rest
			for w := range strings.FieldsSeq(words) {
				switch w {
				case "immutable":
					a.Mutable = false
				case "required":
					a.Required = true
				default:
					return nil, fmt.Errorf("attribute %.80s: property %.40q: want immutable or required", a.Name, w)
				}
			}
		}
		if !isTerm(a.Name) {
			return nil, fmt.Errorf("attribute name %.80q: want letters, digits, '.', '-' and '_'", a.Name)
		}
		as = append(as, a)
	}
	return as, nil
}

func attribute(p *scanner, e *Entity) error {
	name := p.token()
	if !isTerm(name) || !p.take('=') {
		return p.errorf("attribute %.80q: want name=value", name)
	}
	v, err := p.value()
	if err != nil {
		return fmt.Errorf("attribute %s: %w", name, err)
	}
	return e.set(name, v)
}

// link of a resource, or the offer of an action.
func (t *text) link(p *scanner) error {
	if !p.take('<') {
		return p.errorf("want <URI>")
	}
	n := strings.IndexByte(p.s[p.pos:], '>')
	if n < 0 {
		return p.errorf("a URI without its closing >")
	}
	target := p.s[p.pos : p.pos+n]
	p.pos += n + 1
	if !isURI(target) {
		return fmt.Errorf("%.200q is no URI", target)
	}
	var l Entity
	var rel, types []TypeID
	err := p.params(func(name string, p *scanner) (err error) {
		if name != "rel" && name != "self" && name != "category" {
			if !isTerm(name) {
				return fmt.Errorf("attribute name %.80q", name)
			}
			v, err := p.value()
			if err != nil {
				return err
			}
			return l.set(name, v)
		}
		v, err := p.text()
		switch {
		case err != nil:
			return err
		case name == "rel":
			rel, err = typeIDs(v)
		case name == "category":
			types, err = typeIDs(v)
		case !isURI(v):
			return fmt.Errorf("self: %.200q is no URI", v)
		default:
			l.Location = v
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("link to %s: %w", target, err)
	}
	if len(rel) == 0 {
		return fmt.Errorf("link to %s: want rel=\"TYPE\"", target)
	}
	if len(types) == 0 {
		if !strings.Contains(target, "?action=") {
			return fmt.Errorf("link to %s: want category=\"TYPE\", the link's kind", target)
		}
		t.entity.Actions = append(t.entity.Actions, rel[0])
		return nil
	}
	l.Kind, l.Source = types[0], End{}
	if len(types) > 1 {
		l.Mixins = types[1:]
	}
	l.Target = End{target, rel[0]}
	t.entity.Links = append(t.entity.Links, l)
	return nil
}

func (t *text) location(p *scanner) error {
	p.space()
	n := strings.IndexAny(p.s[p.pos:], ", \t")
	if n < 0 {
		n = len(p.s) - p.pos
	}
	uri := p.s[p.pos : p.pos+n]
	p.pos += n
	if !isURI(uri) {
		return fmt.Errorf("%.200q is no URI", uri)
	}
	t.locations = append(t.locations, uri)
	return nil
}

// entityOf the message: exactly one kind, and mixins.
func (t text) entityOf() (Entity, error) {
	e := t.entity
	for _, c := range t.categories {
		switch {
		case c.Class == Mixin:
			e.Mixins = append(e.Mixins, c.Type)
		case c.Class == Kind && e.Kind == "":
			e.Kind = c.Type
		default:
			return Entity{}, fmt.Errorf("category %s (class %s): want one kind and any number of mixins", c.Type, c.Class)
		}
	}
	return e, ends(e)
}

// ends of a link are identifiers where they are told.
func ends(e Entity) error {
	for _, end := range []End{e.Source, e.Target} {
		if end.Location != "" && !isURI(end.Location) {
			return fmt.Errorf("%.200q is no URI", end.Location)
		}
		if end.Kind != "" {
			if err := end.Kind.valid(); err != nil {
				return err
			}
		}
	}
	return nil
}

func (t text) invocation() (Invocation, error) {
	if len(t.categories) != 1 || t.categories[0].Class != Action {
		return Invocation{}, fmt.Errorf("%d categories: want exactly one, of class action", len(t.categories))
	}
	return Invocation{Action: t.categories[0].Type, Attributes: t.entity.Attributes}, nil
}
