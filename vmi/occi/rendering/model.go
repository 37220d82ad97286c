// Package rendering is the model of OCCI 1.2 (GFD.221) as a message carries it — categories,
// entities, invocations of actions — and its renderings: text/plain, text/occi and
// text/uri-list (GFD.229) and application/occi+json (GFD.226). It is pure: what the
// categories mean, which there are, and HTTP itself live in the package above.
//
// A rendering carries what its document says it can: the text ones know no type, default
// or description of an attribute, and no source of a link that stands within its resource;
// JSON knows no location of an entity. What both can carry comes back the same.
package rendering

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// TypeID identifies a category: its scheme and its term, put together (GFD.221, "Category").
type TypeID string

// Split a type identifier; the scheme keeps its "#".
func (t TypeID) Split() (scheme, term string) {
	i := strings.LastIndexByte(string(t), '#') + 1
	return string(t[:i]), string(t[i:])
}

// Term is the last part.
func (t TypeID) Term() string { _, term := t.Split(); return term }

// valid: a scheme that ends in "#", and a term (GFD.229, "Category ABNF").
func (t TypeID) valid() error {
	scheme, term := t.Split()
	if !isScheme(scheme) || !isTerm(term) {
		return fmt.Errorf("type identifier %.200q: want SCHEME#TERM, such as http://schemas.ogf.org/occi/infrastructure#compute", string(t))
	}
	return nil
}

func isTerm(s string) bool {
	for i := range len(s) {
		c := s[i]
		letter := 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9'
		if !letter && (i == 0 || c != '-' && c != '_' && c != '.') {
			return false
		}
	}
	return s != ""
}

// isScheme is less strict than RFC 3986: no more than what would break a rendering.
func isScheme(s string) bool {
	return len(s) > 1 && strings.IndexByte(s, '#') == len(s)-1 && isURI(s)
}

func isURI(s string) bool {
	for i := range len(s) {
		if c := s[i]; c <= ' ' || c >= 0x7f || strings.IndexByte(`"\<>^{|}`+"`", c) >= 0 {
			return false
		}
	}
	return s != ""
}

// Class of a category.
type Class string

// The three sub-types of Category.
const (
	Kind   Class = "kind"
	Mixin  Class = "mixin"
	Action Class = "action"
)

// Category is a kind, a mixin or an action.
type Category struct {
	Class   Class
	Type    TypeID
	Title   string
	Parent  TypeID   // of a kind
	Depends []TypeID // of a mixin: other mixins; text renderings carry the first
	Applies []TypeID // of a mixin: kinds; text renderings carry none
	// Attributes that it defines, in the order in which they are shown.
	Attributes []Attribute
	Actions    []TypeID
	Location   string // of its collection, a path with a slash at the end; actions have none
}

// Attribute is the definition of one (GFD.221, table "Attribute"; GFD.226, table
// "Attribute Description"). Text renderings carry name, Mutable and Required.
type Attribute struct {
	Name        string
	Mutable     bool
	Required    bool
	Type        string // "string", "number", "boolean", "array", "object"; empty: string
	Default     any    // a value as of an Attributes; nil: none
	Description string
	Pattern     map[string]any // a JSON schema
}

// Attributes are values by name: a string, a float64, a bool, and in JSON also a []any or
// a map[string]any.
type Attributes map[string]any

// Entity is a resource, or a link where it has a Target.
type Entity struct {
	Kind    TypeID
	Mixins  []TypeID
	ID      string
	Title   string
	Summary string // resources only
	// Attributes but for occi.core.*, which are the fields here.
	Attributes Attributes
	Actions    []TypeID // that can be invoked now
	Links      []Entity // of a resource
	Source     End      // of a link
	Target     End
	// Location is the entity's path; it is not read back by any parser but that of the
	// links within a resource in text ("self").
	Location string
}

// End of a link.
type End struct {
	Location string
	Kind     TypeID // empty where it is not told
}

// IsLink tells links from resources.
func (e Entity) IsLink() bool { return e.Target != End{} || e.Source != End{} }

// Invocation of an action, with its parameters.
type Invocation struct {
	Action     TypeID
	Attributes Attributes
}

// core puts the attributes that are fields of an Entity into them; it is false for others.
func (e *Entity) core(name string, value any) (bool, error) {
	var field *string
	switch name {
	case "occi.core.id":
		field = &e.ID
	case "occi.core.title":
		field = &e.Title
	case "occi.core.summary":
		field = &e.Summary
	case "occi.core.source":
		field = &e.Source.Location
	case "occi.core.target":
		field = &e.Target.Location
	case "occi.core.source.kind":
		field = (*string)(&e.Source.Kind)
	case "occi.core.target.kind":
		field = (*string)(&e.Target.Kind)
	default:
		return false, nil
	}
	s, ok := value.(string)
	if !ok {
		return true, fmt.Errorf("attribute %s: want a string", name)
	}
	*field = s
	return true, nil
}

// set an attribute, wherever it belongs.
func (e *Entity) set(name string, value any) error {
	if isCore, err := e.core(name, value); isCore || err != nil {
		return err
	}
	if e.Attributes == nil {
		e.Attributes = Attributes{}
	}
	e.Attributes[name] = value
	return nil
}

func sortedNames[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
