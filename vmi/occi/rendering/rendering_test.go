package rendering

import (
	"bytes"
	"flag"
	"fmt"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

var update = flag.Bool("update", false, "rewrite the golden files")

const infra = "http://schemas.ogf.org/occi/infrastructure#"

// machine is a compute with everything that a rendering can carry.
var machine = Entity{
	Kind:   infra + "compute",
	Mixins: []TypeID{"http://example.com/occi/os_tpl#trixie", "http://example.com/occi/resource_tpl#medium"},
	ID:     "urn:uuid:0d9b6a3e-4a2c-4c57-9e1f-0f3b5a7c9d11", Title: `Back "office"`, Summary: `C:\books`,
	Attributes: Attributes{"occi.compute.cores": 2.0, "occi.compute.memory": 1.5, "occi.compute.hostname": "books",
		"occi.compute.state": "active", "com.example.patched": true},
	Actions: []TypeID{"http://schemas.ogf.org/occi/infrastructure/compute/action#stop", "http://schemas.ogf.org/occi/infrastructure/compute/action#restart"},
	Links: []Entity{{
		Kind: infra + "networkinterface", Mixins: []TypeID{"http://schemas.ogf.org/occi/infrastructure/networkinterface#ipnetworkinterface"},
		ID: "urn:uuid:7f7c2c0c-3d61-4a6b-9a53-0a9d4b8f3d22", Location: "/networkinterface/7f7c",
		Attributes: Attributes{"occi.networkinterface.mac": "52:54:00:12:34:56", "occi.networkinterface.address": "10.1.2.3"},
		Source:     End{"/compute/0d9b", infra + "compute"}, Target: End{"/network/private", infra + "network"},
	}},
	Location: "/compute/0d9b",
}

var categories = []Category{
	{Class: Kind, Type: infra + "compute", Title: "Compute Resource", Parent: "http://schemas.ogf.org/occi/core#resource", Location: "/compute/",
		Actions: []TypeID{"http://schemas.ogf.org/occi/infrastructure/compute/action#stop"},
		Attributes: []Attribute{
			{Name: "occi.compute.memory", Mutable: true, Type: "number", Default: 0.5, Description: "GiB"},
			{Name: "occi.compute.state", Required: true, Type: "string", Pattern: map[string]any{"type": "string", "pattern": `\S+`}},
		}},
	{Class: Mixin, Type: "http://example.com/occi/resource_tpl#medium", Title: "Medium", Location: "/resource_tpl/medium/",
		Depends: []TypeID{infra + "resource_tpl"}, Applies: []TypeID{infra + "compute"}},
	{Class: Action, Type: "http://schemas.ogf.org/occi/infrastructure/compute/action#stop", Title: "Stop",
		Attributes: []Attribute{{Name: "method", Mutable: true, Type: "string"}}},
}

// print a payload as it would go over the wire.
func (p Payload) String() string {
	var b strings.Builder
	for _, name := range slices.Sorted(maps.Keys(p.Header)) {
		for _, v := range p.Header[name] {
			fmt.Fprintf(&b, "%s: %s\n", name, v)
		}
	}
	if len(p.Header) > 0 {
		b.WriteByte('\n')
	}
	return b.String() + strings.ReplaceAll(string(p.Body), "\r\n", "\n")
}

// What goes out, as people and other makers' clients see it.
func TestGolden(t *testing.T) {
	for _, m := range All {
		r := Of(m)
		parts := map[string]Payload{"collection": r.Collection([]Entity{machine, machine.Links[0]}, "https://site.example:8443")}
		if m != URIList {
			parts["entity"], parts["link"], parts["categories"] = r.Entity(machine), r.Entity(machine.Links[0]), r.Categories(categories)
		}
		for what, p := range parts {
			file := filepath.Join("testdata", strings.NewReplacer("/", "-", "+", "-").Replace(string(m))+"."+what)
			if *update {
				if err := os.WriteFile(file, []byte(p.String()), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if got := p.String(); got != string(want) {
				t.Errorf("%s is now (go test -update rewrites it)\n%s", file, got)
			}
		}
	}
}

// The forms in which the specification's examples write their messages: continued lines
// joined, a semicolon at the end of a category, several headers of one name or one list,
// classes with and without quotes, numbers with and without a fraction.
func TestFormsOfTheSpecification(t *testing.T) {
	want := Entity{
		Kind: infra + "compute", ID: "urn:uuid:b2", Title: "My, machine; x",
		Attributes: Attributes{"occi.compute.architecture": "x86", "occi.compute.memory": 2.0, "occi.compute.cores": 2.0, "com.example.on": true},
		Actions:    []TypeID{"http://schemas.ogf.org/occi/infrastructure/compute/action#start"},
	}
	start := `</compute/b2?action=start>; rel="http://schemas.ogf.org/occi/infrastructure/compute/action#start"`
	for what, p := range map[string]struct {
		Payload
		media Media
	}{
		"GFD.229, OCCI Text plain rendering, Example": {media: Plain, Payload: Payload{Body: []byte(
			"Category: compute; scheme=\"" + infra + "\"; class=\"kind\";\n" +
				"Link: " + start + "\n" +
				"X-OCCI-Attribute: occi.core.id=\"urn:uuid:b2\"\n" +
				"X-OCCI-Attribute: occi.core.title=\"My, machine; x\"\r\n" +
				"X-OCCI-Attribute: occi.compute.architecture=\"x86\"\n\n" +
				"x-occi-attribute: occi.compute.memory=2.0\n" +
				"X-OCCI-Attribute: occi.compute.cores=2, com.example.on=true")}},
		"GFD.229, OCCI Header Rendering, Example": {media: Header, Payload: Payload{Header: http.Header{
			"Category":         {`compute; scheme="` + infra + `"; class=kind`},
			"Link":             {start},
			"X-Occi-Attribute": {`occi.core.id="urn:uuid:b2", occi.core.title="My, machine; x", occi.compute.architecture="x86", occi.compute.memory=2.0`, `occi.compute.cores=2,com.example.on=true`},
		}}},
		"GFD.226, Resource Instance Rendering": {media: JSON, Payload: Payload{Body: []byte(`{"kind": "` + infra + `compute", "id": "urn:uuid:b2", "title": "My, machine; x",
			"attributes": {"occi.compute.architecture": "x86", "occi.compute.memory": 2, "occi.compute.cores": 2, "com.example.on": true},
			"actions": ["http://schemas.ogf.org/occi/infrastructure/compute/action#start"]}`)}},
		"GFD.226, Resource Collection Rendering": {media: JSON, Payload: Payload{Body: []byte(`{"resources": [{"kind": "` + infra + `compute",
			"attributes": {"occi.core.id": "urn:uuid:b2", "occi.core.title": "My, machine; x", "occi.compute.architecture": "x86", "occi.compute.memory": 2.0, "occi.compute.cores": 2, "com.example.on": true},
			"actions": ["http://schemas.ogf.org/occi/infrastructure/compute/action#start"]}]}`)}},
	} {
		got, err := Of(p.media).ReadEntities(p.Payload)
		if err != nil || len(got) != 1 || !reflect.DeepEqual(got[0], want) {
			t.Errorf("%s: %+v, %v\nwant %+v", what, got, err, want)
		}
	}
}

// Links within a resource (GFD.229, "Link ABNF"; GFD.226, "Link Instance Rendering").
func TestLinksOfAResource(t *testing.T) {
	want := Entity{
		Kind: infra + "networkinterface", Mixins: []TypeID{"http://example.com/m#ip"},
		Attributes: Attributes{"occi.networkinterface.interface": "eth0"}, Target: End{"/network/n1", infra + "network"},
	}
	text := `</network/n1>; rel="` + infra + `network"; category="` + infra + `networkinterface http://example.com/m#ip"; occi.networkinterface.interface=eth0`
	for m, p := range map[Media]Payload{
		Plain:  {Body: []byte("Category: compute; scheme=\"" + infra + "\"; class=\"kind\"\nLink: " + text)},
		Header: {Header: http.Header{"Category": {`compute; scheme="` + infra + `"; class="kind"`}, "Link": {text}}},
		JSON: {Body: []byte(`{"kind": "` + infra + `compute", "links": [{"kind": "` + infra + `networkinterface", "mixins": ["http://example.com/m#ip"],
			"attributes": {"occi.networkinterface.interface": "eth0"}, "target": {"location": "/network/n1", "kind": "` + infra + `network"}}]}`)},
	} {
		got, err := Of(m).ReadEntities(p)
		if err != nil || len(got) != 1 || len(got[0].Links) != 1 || !reflect.DeepEqual(got[0].Links[0], want) {
			t.Errorf("%s: %+v, %v", m, got, err)
		}
	}
}

// GFD.226, "Action Invocation Rendering"; GFD.229, "Action Invocation Rendering".
func TestInvocations(t *testing.T) {
	want := Invocation{"http://schemas.ogf.org/occi/infrastructure/compute/action#stop", Attributes{"method": "graceful"}}
	category := `stop; scheme="http://schemas.ogf.org/occi/infrastructure/compute/action#"; class="action"`
	for m, p := range map[Media]Payload{
		Plain:  {Body: []byte("Category: " + category + "\nX-OCCI-Attribute: method=\"graceful\"\n")},
		Header: {Header: http.Header{"Category": {category}, "X-Occi-Attribute": {`method="graceful"`}}},
		JSON:   {Body: []byte(`{"action": "http://schemas.ogf.org/occi/infrastructure/compute/action#stop", "attributes": {"method": "graceful"}}`)},
	} {
		if got, err := Of(m).ReadInvocation(p); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %+v, %v", m, got, err)
		}
	}
}

func TestBadInputIsRefusedWithItsPlace(t *testing.T) {
	kind := `Category: compute; scheme="` + infra + `"; class="kind"` + "\n"
	for _, c := range []struct {
		media      Media
		body, want string
	}{
		{Plain, "Kategorie: x", "line 1"},
		{Plain, "Category: compute", "scheme"},
		{Plain, `Category: compute; scheme="http://x"; class="kind"`, "scheme"},
		{Plain, `Category: compute; scheme="` + infra + `"; class="sort"`, "class"},
		{Plain, `Category: compute; scheme="` + infra, "closing quote"},
		{Plain, kind + kind, "one kind"},
		{Plain, kind + "X-OCCI-Attribute: 5", "name=value"},
		{Plain, kind + "X-OCCI-Attribute: a=", "value"},
		{Plain, kind + "X-OCCI-Attribute: a=1 b=2", "comma"},
		{Plain, kind + "X-OCCI-Attribute: occi.core.title=5", "string"},
		{Plain, kind + "Link: /x; rel=\"y\"", "<URI>"},
		{Plain, kind + "Link: </x>", "rel"},
		{Plain, kind + "Link: </x>; rel=\"" + infra + "network\"", "category"},
		{Plain, kind + "X-OCCI-Attribute: a=\"\xff\"", "UTF-8"},
		{JSON, "", "EOF"},
		{JSON, "{}x", "body"},
		{JSON, `{"kind": "compute"}`, "SCHEME#TERM"},
		{JSON, `{"kind": "` + infra + `compute", "attribute": {}}`, "attribute"},
		{JSON, `{"kind": "` + infra + `compute", "attributes": {"a b": 1}}`, "a b"},
		{JSON, `{"kind": "` + infra + `compute", "attributes": {"a": null}}`, "null"},
		{JSON, `{"kind": "` + infra + `compute", "attributes": {"a": ` + strings.Repeat("[", 100) + strings.Repeat("]", 100) + `}}`, "deep"},
		{URIList, "http://x/", "collection"},
	} {
		if got, err := Of(c.media).ReadEntities(Payload{Body: []byte(c.body)}); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s %q: %+v, %v; want an error with %q", c.media, c.body, got, err, c.want)
		}
	}
}

func TestNegotiate(t *testing.T) {
	for accept, want := range map[string]Media{
		"": Plain, "*/*": Plain, "text/*": Plain, "text/plain; charset=utf-8": Plain,
		"text/occi": Header, "application/*": JSON, "application/occi+json, text/plain;q=0.9": JSON,
		"text/plain;q=0.5, text/occi;q=0.7": Header, "text/uri-list": URIList, "text/html, */*;q=0.1": Plain,
		"text/plain;q=0, */*": Header, "text/occi+plain": OCCIPlain, "*/*, application/occi+json": JSON,
		"text/html": "", "text/plain;q=0": "", "text/plain;q=x": "",
	} {
		if got, ok := Negotiate([]string{accept}); got != want || ok != (want != "") {
			t.Errorf("Accept: %s: %q, %v; want %q", accept, got, ok, want)
		}
	}
}

func TestTextOfAValueStaysOnItsLine(t *testing.T) {
	e := Entity{Kind: infra + "compute", Title: "a\r\nX-OCCI-Attribute: b=1\x00"}
	for _, m := range []Media{Plain, Header} {
		got, err := Of(m).ReadEntities(Of(m).Entity(e))
		if err != nil || got[0].Title != "a  X-OCCI-Attribute: b=1 " || got[0].Attributes != nil {
			t.Errorf("%s: %+v, %v", m, got, err)
		}
	}
}

// Generators of everything that the model allows.
var (
	genTerm   = rapid.StringMatching(`[a-zA-Z0-9][a-zA-Z0-9_.-]{0,12}`)
	genType   = rapid.Map(rapid.SliceOfN(genTerm, 2, 2), func(s []string) TypeID { return TypeID("http://" + s[0] + "/occi#" + s[1]) })
	genTypes  = rapid.Map(rapid.SliceOfN(genType, 0, 3), orNil[[]TypeID])
	genPath   = rapid.StringMatching(`/[a-z0-9/:._-]{1,20}`)
	genString = rapid.StringMatching(`[ -~äß→]{0,20}`)
	genScalar = rapid.OneOf(rapid.Map(genString, asAny[string]), rapid.Map(rapid.Float64Range(-1e12, 1e12), asAny[float64]), rapid.Map(rapid.Bool(), asAny[bool]))
	genDeep   = rapid.OneOf(genScalar, rapid.Just[any](map[string]any{"a": []any{1.0, "x"}}), rapid.Just[any]([]any{}))
)

func asAny[T any](v T) any { return v }

func orNil[S ~[]E, E any](s S) S {
	if len(s) == 0 {
		return nil
	}
	return s
}

func genAttributes(t *rapid.T, value *rapid.Generator[any]) Attributes {
	m := rapid.MapOfN(rapid.Map(genTerm, func(s string) string { return "com." + s }), value, 0, 4).Draw(t, "attributes")
	if len(m) == 0 {
		return nil
	}
	return m
}

func genEntity(t *rapid.T, value *rapid.Generator[any], depth int) Entity {
	e := Entity{Kind: genType.Draw(t, "kind"), Mixins: genTypes.Draw(t, "mixins"), ID: genString.Draw(t, "id"), Title: genString.Draw(t, "title"),
		Attributes: genAttributes(t, value), Actions: genTypes.Draw(t, "actions"), Location: genPath.Draw(t, "location")}
	if depth == 0 || rapid.Bool().Draw(t, "isLink") {
		e.Source, e.Target = End{genPath.Draw(t, "source"), genType.Draw(t, "source kind")}, End{genPath.Draw(t, "target"), genType.Draw(t, "target kind")}
		return e
	}
	e.Summary = genString.Draw(t, "summary")
	for range rapid.IntRange(0, 3).Draw(t, "links") {
		e.Links = append(e.Links, genEntity(t, value, 0))
	}
	return e
}

// common is what every rendering carries of an entity.
func common(e Entity) Entity {
	e.Location = ""
	e.Links = slices.Clone(e.Links)
	for i := range e.Links {
		e.Links[i].Location, e.Links[i].Actions, e.Links[i].Source = "", nil, End{}
	}
	return e
}

func readOne(t interface{ Fatalf(string, ...any) }, r Rendering, p Payload) Entity {
	es, err := r.ReadEntities(p)
	if err != nil || len(es) != 1 {
		t.Fatalf("%v, %d entities, of\n%v", err, len(es), p)
	}
	return es[0]
}

func TestEntitiesSurviveEachRenderingAndAllOfThemInARow(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		e := genEntity(t, genScalar, 1)
		through := e
		for _, m := range rapid.Permutation([]Media{Plain, Header, JSON, OCCIPlain}).Draw(t, "order") {
			if got := readOne(t, Of(m), Of(m).Entity(e)); !reflect.DeepEqual(common(got), common(e)) {
				t.Fatalf("%s: %+v\nwas %+v", m, got, e)
			}
			through = readOne(t, Of(m), Of(m).Entity(through))
		}
		if !reflect.DeepEqual(common(through), common(e)) {
			t.Fatalf("through all: %+v\nwas %+v", through, e)
		}
	})
}

func TestJSONCarriesAllOfAnEntity(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		e := genEntity(t, genDeep, 1)
		want := e
		want.Location, want.Links = "", slices.Clone(e.Links)
		for i := range want.Links {
			want.Links[i].Location = ""
		}
		if got := readOne(t, Of(JSON), Of(JSON).Entity(e)); !reflect.DeepEqual(got, want) {
			t.Fatalf("%+v\nwas %+v", got, want)
		}
	})
}

// textual is what the text renderings carry of a category.
func textual(c Category) Category {
	c.Applies = nil
	if len(c.Depends) > 1 {
		c.Depends = c.Depends[:1]
	}
	c.Attributes = slices.Clone(c.Attributes)
	for i, a := range c.Attributes {
		c.Attributes[i] = Attribute{Name: a.Name, Mutable: a.Mutable, Required: a.Required}
	}
	return c
}

func genCategories(t *rapid.T) (cs []Category) {
	for _, class := range []Class{Kind, Mixin, Action} { // in the order in which JSON has them
		for range rapid.IntRange(0, 3).Draw(t, "categories") {
			c := Category{Class: class, Type: genType.Draw(t, "type"), Title: genString.Draw(t, "title")}
			for _, name := range sortedNames(genAttributes(t, genScalar)) {
				c.Attributes = append(c.Attributes, Attribute{Name: name, Mutable: rapid.Bool().Draw(t, "mutable"), Required: rapid.Bool().Draw(t, "required"),
					Type: "string", Default: genScalar.Draw(t, "default"), Description: genString.Draw(t, "description")})
			}
			if class != Action {
				c.Actions, c.Location = genTypes.Draw(t, "actions"), genPath.Draw(t, "location")
			}
			switch class {
			case Kind:
				c.Parent = genType.Draw(t, "parent")
			case Mixin:
				c.Depends, c.Applies = genTypes.Draw(t, "depends"), genTypes.Draw(t, "applies")
			}
			cs = append(cs, c)
		}
	}
	return cs
}

func TestCategoriesSurviveEachRendering(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		cs := genCategories(t)
		var short []Category
		for _, c := range cs {
			short = append(short, textual(c))
		}
		for m, want := range map[Media][]Category{Plain: short, Header: short, JSON: cs} {
			if got, err := Of(m).ReadCategories(Of(m).Categories(cs)); err != nil || !reflect.DeepEqual(got, want) {
				t.Fatalf("%s: %+v, %v\nwant %+v", m, got, err, want)
			}
		}
	})
}

// settled checks that what was read from outside can be said again, and means the same.
func settled(t *testing.T, r Rendering, p Payload) {
	if cs, err := r.ReadCategories(p); err == nil {
		again, err := r.ReadCategories(r.Categories(cs))
		if err != nil || !slices.EqualFunc(cs, again, func(a, b Category) bool { return a.Type == b.Type && a.Class == b.Class }) {
			t.Errorf("categories %+v, then %+v, %v", cs, again, err)
		}
	}
	es, err := r.ReadEntities(p)
	if err != nil {
		return
	}
	for _, e := range es {
		if e.Kind == "" || e.IsLink() && len(e.Links) > 0 {
			continue // refused by who reads them
		}
		if got := readOne(t, r, r.Entity(e)); !reflect.DeepEqual(common(got), common(e)) {
			t.Errorf("%+v, then %+v", e, got)
		}
	}
}

func FuzzPlain(f *testing.F) {
	f.Add(Of(Plain).Entity(machine).Body)
	f.Add(Of(Plain).Categories(categories).Body)
	f.Add(Of(Plain).Collection([]Entity{machine}, "http://x").Body)
	f.Fuzz(func(t *testing.T, b []byte) { settled(t, Of(Plain), Payload{Body: b}) })
}

func FuzzHeader(f *testing.F) {
	for _, p := range []Payload{Of(Header).Entity(machine), Of(Header).Categories(categories)} {
		f.Add(p.Header.Get("Category"), p.Header.Get("Link"), p.Header.Get("X-OCCI-Attribute"))
	}
	f.Fuzz(func(t *testing.T, category, link, attribute string) {
		settled(t, Of(Header), Payload{Header: http.Header{"Category": {category}, "Link": {link}, "X-Occi-Attribute": {attribute}}})
		if _, _, err := ReadFilter(http.Header{"Category": {category}, "X-Occi-Attribute": {attribute}}); err != nil && strings.TrimSpace(err.Error()) == "" {
			t.Error("an error without words")
		}
	})
}

func FuzzJSON(f *testing.F) {
	f.Add(Of(JSON).Entity(machine).Body)
	f.Add(Of(JSON).Categories(categories).Body)
	f.Add(bytes.ReplaceAll(Of(JSON).Collection([]Entity{machine}, "").Body, []byte("1.5"), []byte("1e3")))
	f.Fuzz(func(t *testing.T, b []byte) { settled(t, Of(JSON), Payload{Body: b}) })
}

// A list of locations names the same entities when it is read back.
func FuzzURIList(f *testing.F) {
	f.Add(Of(URIList).Collection([]Entity{machine}, "https://site.example:8443").Body)
	f.Add([]byte("# a comment\r\n\r\nhttps://a/b\r\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		ls, err := Of(URIList).ReadLocations(Payload{Body: b})
		if err != nil {
			return
		}
		var es []Entity
		for _, l := range ls {
			es = append(es, Entity{Location: l})
		}
		if again, err := Of(URIList).ReadLocations(Of(URIList).Collection(es, "")); err != nil || !slices.Equal(again, ls) {
			t.Errorf("%q, then %q, %v", ls, again, err)
		}
	})
}

func TestLocations(t *testing.T) {
	es := []Entity{{ID: "urn:a", Kind: machine.Kind, Location: "/compute/a"}, {ID: "urn:b", Kind: machine.Kind, Location: "/compute/b"}}
	for _, m := range All {
		want := []string{"https://x/compute/a", "https://x/compute/b"}
		if m == JSON {
			want = []string{"urn:a", "urn:b"}
		}
		if got, err := Of(m).ReadLocations(Of(m).Collection(es, "https://x")); err != nil || !slices.Equal(got, want) {
			t.Errorf("%s: %q, %v; want %q", m, got, err, want)
		}
	}
	for _, bad := range []string{"not a uri", "https://a b"} {
		if ls, err := Of(URIList).ReadLocations(Payload{Body: []byte(bad)}); err == nil {
			t.Errorf("%q: %q", bad, ls)
		}
	}
	if ls, err := Of(JSON).ReadLocations(Payload{Body: []byte(`{"resources": [{"kind": "http://schemas.ogf.org/occi/infrastructure#compute"}]}`)}); err == nil {
		t.Errorf("an entity without an id: %q", ls)
	}
}
