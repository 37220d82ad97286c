package rendering

import (
	"fmt"
	"net/http"
	"strings"
	"unicode/utf8"
)

// Payload is the part of an HTTP message that a rendering uses.
type Payload struct {
	Header http.Header // only the fields of text/occi
	Body   []byte
}

// Rendering writes and reads the messages of one media type. What is written must be
// well-formed in the sense of the model; what is read comes from outside.
type Rendering interface {
	Categories([]Category) Payload
	Entity(Entity) Payload
	// Collection is the entities themselves in JSON, and their absolute locations else.
	Collection(es []Entity, base string) Payload

	ReadCategories(Payload) ([]Category, error)
	// ReadEntities reads one entity, or in JSON a collection of them.
	ReadEntities(Payload) ([]Entity, error)
	ReadInvocation(Payload) (Invocation, error)
	// ReadLocations reads what entities a message names: by location, in JSON by identifier.
	ReadLocations(Payload) ([]string, error)
}

// Media is a media type that OCCI messages come in.
type Media string

// The media types, the default first.
const (
	Plain     Media = "text/plain"
	OCCIPlain Media = "text/occi+plain" // another name for text/plain (GFD.229, "OCCI Text Plain rendering")
	Header    Media = "text/occi"
	JSON      Media = "application/occi+json"
	URIList   Media = "text/uri-list" // of collections alone
)

// All media types, in the order of preference.
var All = []Media{Plain, Header, JSON, URIList, OCCIPlain}

// Of is the rendering of a media type; nil for one that is none.
func Of(m Media) Rendering {
	switch m {
	case Plain, OCCIPlain:
		return textRendering{plainFields{}}
	case Header:
		return textRendering{headerFields{}}
	case JSON:
		return jsonRendering{}
	case URIList:
		return uriList{}
	}
	return nil
}

// textRendering is GFD.229, wherever its fields stand.
type textRendering struct{ carrier }

type carrier interface {
	write([]field) Payload
	read(Payload) ([]field, error)
}

func (r textRendering) Categories(cs []Category) Payload { return r.write(categoryFields(cs)) }
func (r textRendering) Entity(e Entity) Payload          { return r.write(entityFields(e)) }

func (r textRendering) Collection(es []Entity, base string) Payload {
	return r.write(locationFields(locations(es, base)))
}

func locations(es []Entity, base string) []string {
	ls := make([]string, len(es))
	for i, e := range es {
		ls[i] = base + e.Location
	}
	return ls
}

func (r textRendering) parse(p Payload) (text, error) {
	fs, err := r.read(p)
	if err != nil {
		return text{}, err
	}
	return parseFields(fs)
}

func (r textRendering) ReadCategories(p Payload) ([]Category, error) {
	t, err := r.parse(p)
	return t.categories, err
}

func (r textRendering) ReadEntities(p Payload) ([]Entity, error) {
	t, err := r.parse(p)
	if err != nil {
		return nil, err
	}
	e, err := t.entityOf()
	if err != nil {
		return nil, err
	}
	return []Entity{e}, nil
}

func (r textRendering) ReadInvocation(p Payload) (Invocation, error) {
	t, err := r.parse(p)
	if err != nil {
		return Invocation{}, err
	}
	return t.invocation()
}

func (r textRendering) ReadLocations(p Payload) ([]string, error) {
	t, err := r.parse(p)
	return t.locations, err
}

// ReadFilter reads what a GET says in its header to ask for a part of a collection
// (GFD.223, "Filtering"): categories and attributes, any number of each.
func ReadFilter(h http.Header) ([]TypeID, Attributes, error) {
	fs, err := headerFields{}.read(Payload{Header: h})
	if err != nil {
		return nil, nil, err
	}
	t, err := parseFields(fs)
	if err != nil {
		return nil, nil, err
	}
	var types []TypeID
	for _, c := range t.categories {
		types = append(types, c.Type)
	}
	as := t.entity.Attributes
	for _, p := range coreAttributes(t.entity) {
		if as == nil {
			as = Attributes{}
		}
		as[p.name] = p.value
	}
	return types, as, nil
}

// plainFields stand in the body, a line each.
type plainFields struct{}

func (plainFields) write(fs []field) Payload {
	var b strings.Builder
	for _, f := range fs {
		b.WriteString(f.name + ": " + f.value + "\r\n")
	}
	return Payload{Body: []byte(b.String())}
}

func (plainFields) read(p Payload) (fs []field, err error) {
	if !utf8.Valid(p.Body) {
		return nil, fmt.Errorf("the body is not UTF-8")
	}
	n := 0
	for line := range strings.Lines(string(p.Body)) {
		n++
		line = strings.TrimSpace(line)
		if line == "" {
			continue
		}
		name, value, ok := strings.Cut(line, ":")
		known := canonical(strings.TrimSpace(name))
		if !ok || known == "" {
			return nil, fmt.Errorf("line %d: %.60q: want one of %s, a colon and a value", n, line, strings.Join(fieldNames, ", "))
		}
		fs = append(fs, field{known, value})
	}
	return fs, nil
}

func canonical(name string) string {
	for _, f := range fieldNames {
		if strings.EqualFold(f, name) {
			return f
		}
	}
	return ""
}

// headerFields stand in the HTTP header, those of one name in one list, which GFD.229
// recommends for interoperability; the body says OK.
type headerFields struct{}

func (headerFields) write(fs []field) Payload {
	p := Payload{Header: http.Header{}, Body: []byte("OK\n")}
	values := map[string][]string{}
	for _, f := range fs {
		values[f.name] = append(values[f.name], f.value)
	}
	for name, vs := range values {
		p.Header[http.CanonicalHeaderKey(name)] = []string{strings.Join(vs, ", ")}
	}
	return p
}

func (headerFields) read(p Payload) (fs []field, err error) {
	for _, name := range fieldNames {
		for _, v := range p.Header.Values(name) {
			if !utf8.ValidString(v) {
				return nil, fmt.Errorf("%s: the header is not UTF-8", name)
			}
			fs = append(fs, field{name, v})
		}
	}
	return fs, nil
}

// uriList is RFC 2483's list of locations. It renders nothing but collections.
type uriList struct{}

func (uriList) Collection(es []Entity, base string) Payload {
	var b strings.Builder
	for _, l := range locations(es, base) {
		b.WriteString(l + "\r\n")
	}
	return Payload{Body: []byte(b.String())}
}

// ReadLocations takes the lines that are no comments.
func (uriList) ReadLocations(p Payload) (ls []string, err error) {
	for line := range strings.Lines(string(p.Body)) {
		switch line = strings.TrimSpace(line); {
		case line == "" || line[0] == '#':
		case !isURI(line):
			return nil, fmt.Errorf("%.200q is no URI", line)
		default:
			ls = append(ls, line)
		}
	}
	return ls, nil
}

var errNoList = fmt.Errorf("%s lists the locations of a collection and can say nothing else", URIList)

func (uriList) Categories([]Category) Payload              { return Payload{} }
func (uriList) Entity(Entity) Payload                      { return Payload{} }
func (uriList) ReadCategories(Payload) ([]Category, error) { return nil, errNoList }
func (uriList) ReadEntities(Payload) ([]Entity, error)     { return nil, errNoList }
func (uriList) ReadInvocation(Payload) (Invocation, error) { return Invocation{}, errNoList }
