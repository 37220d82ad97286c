package rendering

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"unicode/utf8"
)

// jsonRendering is GFD.226. Members that its schema does not have are refused, as the
// schema wants it: a misspelt one would otherwise be passed over in silence.
type jsonRendering struct{}

type jsonCategory struct {
	Term       string                   `json:"term"`
	Scheme     string                   `json:"scheme"`
	Title      string                   `json:"title,omitempty"`
	Attributes map[string]jsonAttribute `json:"attributes,omitempty"`
	Actions    []TypeID                 `json:"actions,omitempty"`
	Parent     TypeID                   `json:"parent,omitempty"`
	Depends    []TypeID                 `json:"depends,omitempty"`
	Applies    []TypeID                 `json:"applies,omitempty"`
	Location   string                   `json:"location,omitempty"`
}

type jsonAttribute struct {
	Mutable     bool           `json:"mutable"`
	Required    bool           `json:"required"`
	Type        string         `json:"type,omitempty"`
	Pattern     map[string]any `json:"pattern,omitempty"`
	Default     any            `json:"default,omitempty"`
	Description string         `json:"description,omitempty"`
}

type jsonEnd struct {
	Location string `json:"location"`
	Kind     TypeID `json:"kind,omitempty"`
}

type jsonEntity struct {
	Kind       TypeID       `json:"kind"`
	Mixins     []TypeID     `json:"mixins,omitempty"`
	Attributes Attributes   `json:"attributes,omitempty"`
	Actions    []TypeID     `json:"actions,omitempty"`
	ID         string       `json:"id,omitempty"`
	Links      []jsonEntity `json:"links,omitempty"`
	Summary    string       `json:"summary,omitempty"`
	Title      string       `json:"title,omitempty"`
	Source     *jsonEnd     `json:"source,omitempty"`
	Target     *jsonEnd     `json:"target,omitempty"`
}

type jsonInvocation struct {
	Action     TypeID     `json:"action"`
	Attributes Attributes `json:"attributes,omitempty"`
}

// jsonModel is a collection of anything.
type jsonModel struct {
	Kinds     []jsonCategory `json:"kinds,omitempty"`
	Mixins    []jsonCategory `json:"mixins,omitempty"`
	Actions   []jsonCategory `json:"actions,omitempty"`
	Resources []jsonEntity   `json:"resources,omitempty"`
	Links     []jsonEntity   `json:"links,omitempty"`
}

func encode(v any) Payload {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	_ = e.Encode(v) // the model has nothing that could not be encoded
	return Payload{Body: b.Bytes()}
}

func (jsonRendering) Categories(cs []Category) Payload {
	var m jsonModel
	for _, c := range cs {
		scheme, term := c.Type.Split()
		j := jsonCategory{Term: term, Scheme: scheme, Title: c.Title, Actions: c.Actions, Parent: c.Parent, Depends: c.Depends, Applies: c.Applies, Location: c.Location}
		for _, a := range c.Attributes {
			if j.Attributes == nil {
				j.Attributes = map[string]jsonAttribute{}
			}
			j.Attributes[a.Name] = jsonAttribute{a.Mutable, a.Required, a.Type, a.Pattern, a.Default, a.Description}
		}
		switch c.Class {
		case Kind:
			m.Kinds = append(m.Kinds, j)
		case Mixin:
			m.Mixins = append(m.Mixins, j)
		case Action:
			m.Actions = append(m.Actions, j)
		}
	}
	return encode(m)
}

func toJSON(e Entity) jsonEntity {
	j := jsonEntity{Kind: e.Kind, Mixins: e.Mixins, Attributes: e.Attributes, Actions: e.Actions, ID: e.ID, Summary: e.Summary, Title: e.Title}
	if e.Source != (End{}) {
		j.Source = &jsonEnd{e.Source.Location, e.Source.Kind}
	}
	if e.Target != (End{}) {
		j.Target = &jsonEnd{e.Target.Location, e.Target.Kind}
	}
	for _, l := range e.Links {
		j.Links = append(j.Links, toJSON(l))
	}
	return j
}

func (jsonRendering) Entity(e Entity) Payload { return encode(toJSON(e)) }

func (jsonRendering) Collection(es []Entity, _ string) Payload {
	m := map[string][]jsonEntity{}
	for _, e := range es {
		key := "resources"
		if e.IsLink() {
			key = "links"
		}
		m[key] = append(m[key], toJSON(e))
	}
	if len(m) == 0 {
		m["resources"] = []jsonEntity{}
	}
	return encode(m)
}

// maxDepth of a document, in brackets: far more than a message needs.
const maxDepth = 64

func decode(p Payload, v any) error {
	if !utf8.Valid(p.Body) {
		return errors.New("the body is not UTF-8")
	}
	if err := depth(p.Body); err != nil {
		return err
	}
	d := json.NewDecoder(bytes.NewReader(p.Body))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return fmt.Errorf("the body: %w", err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return errors.New("the body: something follows the JSON object")
	}
	return nil
}

func depth(b []byte) error {
	d := json.NewDecoder(bytes.NewReader(b))
	for n := 0; ; {
		t, err := d.Token()
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return fmt.Errorf("the body: %w", err)
		case t == json.Delim('{') || t == json.Delim('['):
			if n++; n > maxDepth {
				return fmt.Errorf("the body: more than %d brackets deep", maxDepth)
			}
		case t == json.Delim('}') || t == json.Delim(']'):
			n--
		}
	}
}

func (jsonRendering) ReadCategories(p Payload) (cs []Category, err error) {
	var m jsonModel
	if err := decode(p, &m); err != nil {
		return nil, err
	}
	for _, part := range []struct {
		class Class
		list  []jsonCategory
	}{{Kind, m.Kinds}, {Mixin, m.Mixins}, {Action, m.Actions}} {
		for _, j := range part.list {
			c, err := j.category(part.class)
			if err != nil {
				return nil, err
			}
			cs = append(cs, c)
		}
	}
	return cs, nil
}

func (j jsonCategory) category(class Class) (Category, error) {
	c := Category{Class: class, Type: TypeID(j.Scheme + j.Term), Title: j.Title, Parent: j.Parent, Depends: j.Depends, Applies: j.Applies, Actions: j.Actions, Location: j.Location}
	if !isScheme(j.Scheme) || !isTerm(j.Term) {
		return Category{}, fmt.Errorf("category %.80q with scheme %.200q: want a word, and a URI that ends in #", j.Term, j.Scheme)
	}
	if err := validAll(c.Depends, c.Applies, c.Actions); err != nil {
		return Category{}, fmt.Errorf("category %s: %w", c.Type, err)
	}
	if c.Parent != "" {
		if err := c.Parent.valid(); err != nil {
			return Category{}, fmt.Errorf("category %s: %w", c.Type, err)
		}
	}
	for _, name := range sortedNames(j.Attributes) {
		if !isTerm(name) {
			return Category{}, fmt.Errorf("category %s: attribute name %.80q", c.Type, name)
		}
		a := j.Attributes[name]
		c.Attributes = append(c.Attributes, Attribute{name, a.Mutable, a.Required, a.Type, a.Default, a.Description, a.Pattern})
	}
	return c, nil
}

func validAll(lists ...[]TypeID) error {
	for _, l := range lists {
		for _, t := range l {
			if err := t.valid(); err != nil {
				return err
			}
		}
	}
	return nil
}

func (jsonRendering) ReadEntities(p Payload) ([]Entity, error) {
	var either struct {
		jsonEntity
		Resources []jsonEntity `json:"resources"`
	}
	if err := decode(p, &either); err != nil {
		return nil, err
	}
	list := either.Resources
	if list == nil {
		list = []jsonEntity{either.jsonEntity}
	} else if either.Kind != "" || either.Links != nil {
		return nil, errors.New("the body is a collection of resources and something else at once")
	}
	var es []Entity
	for i, j := range list {
		e, err := j.entity()
		if err != nil && len(list) > 1 {
			err = fmt.Errorf("resources[%d]: %w", i, err)
		}
		if err != nil {
			return nil, err
		}
		es = append(es, e)
	}
	return es, nil
}

func (j jsonEntity) entity() (Entity, error) {
	e := Entity{Kind: j.Kind, Mixins: j.Mixins, Actions: j.Actions, ID: j.ID, Title: j.Title, Summary: j.Summary}
	if j.Kind != "" {
		if err := j.Kind.valid(); err != nil {
			return Entity{}, fmt.Errorf("kind: %w", err)
		}
	}
	if err := validAll(j.Mixins, j.Actions); err != nil {
		return Entity{}, err
	}
	if j.Source != nil {
		e.Source = End{j.Source.Location, j.Source.Kind}
	}
	if j.Target != nil {
		e.Target = End{j.Target.Location, j.Target.Kind}
	}
	if err := e.setAll(j.Attributes); err != nil {
		return Entity{}, err
	}
	if err := ends(e); err != nil {
		return Entity{}, err
	}
	for i, l := range j.Links {
		link, err := l.entity()
		if err != nil {
			return Entity{}, fmt.Errorf("links[%d]: %w", i, err)
		}
		e.Links = append(e.Links, link)
	}
	return e, nil
}

func (e *Entity) setAll(as Attributes) error {
	for _, name := range sortedNames(as) {
		if !isTerm(name) {
			return fmt.Errorf("attribute name %.80q: want letters, digits, '.', '-' and '_'", name)
		}
		if as[name] == nil {
			return fmt.Errorf("attribute %s is null: leave it out", name)
		}
		if err := e.set(name, as[name]); err != nil {
			return err
		}
	}
	return nil
}

func (jsonRendering) ReadInvocation(p Payload) (Invocation, error) {
	var j jsonInvocation
	if err := decode(p, &j); err != nil {
		return Invocation{}, err
	}
	if err := j.Action.valid(); err != nil {
		return Invocation{}, fmt.Errorf("action: %w", err)
	}
	return Invocation(j), nil
}

// ReadLocations reads the identifiers of a collection's entities, or of one entity.
func (r jsonRendering) ReadLocations(p Payload) (ids []string, err error) {
	es, err := r.ReadEntities(p)
	if err != nil {
		return nil, err
	}
	for _, e := range es {
		if e.ID == "" {
			return nil, fmt.Errorf("an entity without an id")
		}
		ids = append(ids, e.ID)
	}
	return ids, nil
}
