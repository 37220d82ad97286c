package manifest

import (
	"bytes"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"sort"
	"strings"

	"github.com/beevik/etree"
)

const maxAttributes = 256 // of one element

// document is XML that is safe to walk, with the place of each element in the text.
type document struct {
	root *etree.Element
	at   map[*etree.Element]place
}

// readXML reads text twice: encoding/xml first, for the places and to refuse what is
// hostile before a tree is built of it, then etree. Neither follows external entities; a
// DOCTYPE, where entities are declared, is refused altogether.
func readXML(r *report, text []byte) (*document, bool) {
	places, ok := scanXML(r, text)
	if !ok {
		return nil, false
	}
	tree := etree.NewDocument()
	tree.ReadSettings.MaxDepth = maxDepth + 1
	if err := tree.ReadFromBytes(text); err != nil || tree.Root() == nil {
		r.add(place{1, 0}, "", fmt.Sprintf("unreadable XML (%v)", err), "want one well-formed element")
		return nil, false
	}
	d := &document{root: tree.Root(), at: map[*etree.Element]place{}}
	var walk func(e *etree.Element)
	walk = func(e *etree.Element) {
		d.at[e], places = places[0], places[1:]
		for _, c := range e.ChildElements() {
			walk(c)
		}
	}
	walk(d.root)
	return d, true
}

// scanXML gives the place of each element in document order.
func scanXML(r *report, text []byte) ([]place, bool) {
	d := xml.NewDecoder(bytes.NewReader(text))
	d.Strict = true
	var places []place
	depth, roots := 0, 0
	for {
		line, column := d.InputPos()
		p := place{line, column}
		t, err := d.Token()
		if errors.Is(err, io.EOF) && roots == 1 {
			return places, true
		}
		if errors.Is(err, io.EOF) {
			r.add(p, "", fmt.Sprintf("%d root elements", roots), "want one")
			return nil, false
		}
		if err != nil {
			found := err.Error()
			var syntax *xml.SyntaxError
			if errors.As(err, &syntax) {
				p, found = place{syntax.Line, 0}, syntax.Msg
			}
			found = strings.TrimSuffix(found, " declared but Decoder.CharsetReader is nil")
			r.add(p, "", strings.TrimPrefix(found, "xml: "), "want well-formed XML in UTF-8")
			return nil, false
		}
		refuse := func(found, want string) ([]place, bool) {
			r.add(p, "", found, want)
			return nil, false
		}
		switch t := t.(type) {
		case xml.Directive:
			return refuse("a DOCTYPE", "want none: entities and external definitions are not read")
		case xml.StartElement:
			if depth == 0 {
				roots++
			}
			depth++
			places = append(places, p)
			switch {
			case depth > maxDepth:
				return refuse("nested too deeply", fmt.Sprintf("want at most %d levels", maxDepth))
			case len(places) > maxNodes:
				return refuse("too many elements", fmt.Sprintf("want at most %d", maxNodes))
			case len(t.Attr) > maxAttributes:
				return refuse("too many attributes in "+t.Name.Local, fmt.Sprintf("want at most %d", maxAttributes))
			}
			seen := map[xml.Name]bool{}
			for _, a := range t.Attr {
				if seen[a.Name] {
					return refuse("attribute "+a.Name.Local+" twice", "want it once")
				}
				seen[a.Name] = true
			}
		case xml.EndElement:
			depth--
		}
	}
}

// canonical writes an element so that it can stand anywhere: every namespace that it uses
// and does not declare itself is declared on it.
func canonical(e *etree.Element) (string, bool) {
	c := e.Copy()
	needed := map[string]bool{}
	var walk func(x *etree.Element, declared map[string]bool)
	walk = func(x *etree.Element, declared map[string]bool) {
		here := map[string]bool{}
		for k := range declared {
			here[k] = true
		}
		for _, a := range x.Attr {
			if a.Space == "xmlns" {
				here[a.Key] = true
			}
			if a.Space == "" && a.Key == "xmlns" {
				here[""] = true
			}
		}
		use := func(prefix string) {
			if !here[prefix] && prefix != "xml" && prefix != "xmlns" {
				needed[prefix] = true
			}
		}
		use(x.Space)
		for _, a := range x.Attr {
			if a.Space != "" {
				use(a.Space)
			}
		}
		for _, k := range x.ChildElements() {
			walk(k, here)
		}
	}
	walk(c, nil)
	prefixes := make([]string, 0, len(needed))
	for p := range needed {
		prefixes = append(prefixes, p)
	}
	sort.Strings(prefixes)
	for _, p := range prefixes {
		uri := uriOf(e, p)
		switch {
		case p == "":
			c.CreateAttr("xmlns", uri)
		case uri == "":
			return p, false // a prefix that nobody declares
		default:
			c.CreateAttr("xmlns:"+p, uri)
		}
	}
	text, err := writeXML(c)
	return text, err == nil
}

func uriOf(e *etree.Element, prefix string) string {
	probe := etree.NewElement("probe")
	probe.Space = prefix
	e.AddChild(probe)
	defer e.RemoveChild(probe)
	return probe.NamespaceURI()
}

func writeXML(e *etree.Element) (string, error) {
	d := etree.NewDocumentWithRoot(e)
	d.WriteSettings = writeSettings
	text, err := d.WriteToString()
	return strings.TrimSpace(text), err
}

// writeSettings keep line breaks in attributes and carriage returns in text.
var writeSettings = etree.WriteSettings{CanonicalText: true, CanonicalAttrVal: true}

// readExtra reads the text of an Extra and gives its canonical form.
func readExtra(text string) (*etree.Element, string, error) {
	r := &report{}
	d, ok := readXML(r, []byte(text))
	if !ok {
		return nil, "", errors.New(r.list[0].Found)
	}
	form, ok := canonical(d.root)
	if !ok {
		return nil, "", fmt.Errorf("namespace prefix %s is not declared", quote(form))
	}
	return d.root, form, nil
}
