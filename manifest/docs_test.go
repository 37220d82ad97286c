package manifest

import (
	"bytes"
	"encoding/json"
	"fmt"
	"reflect"
	"regexp"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"
	"go.yaml.in/yaml/v4"
)

var fence = regexp.MustCompile("(?ms)^```yaml\n(.*?)^```$")

// TestDocumentation parses every example of docs/manifest.md, also by the schema.
func TestDocumentation(t *testing.T) {
	text := read(t, "../docs/manifest.md")
	schema := compiled(t)
	blocks := fence.FindAllSubmatchIndex(text, -1)
	if len(blocks) < 8 {
		t.Fatalf("%d examples", len(blocks))
	}
	for _, b := range blocks {
		name := fmt.Sprintf("docs/manifest.md, line %d", 1+bytes.Count(text[:b[2]], []byte("\n")))
		t.Run(name, func(t *testing.T) {
			example := text[b[2]:b[3]]
			bothWays(t, mustParse(t, "example.yaml", example))
			fits(t, schema, example)
		})
	}
}

func TestSchema(t *testing.T) {
	text, err := json.MarshalIndent(schemaOf(), "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "schema.json", append(text, '\n'))
	schema := compiled(t)
	for _, file := range []string{"../examples/web/web.yaml", "testdata/valid/everything.yaml", "testdata/golden/everything.yaml.yaml", "testdata/golden/appliance.ovf.yaml"} {
		fits(t, schema, read(t, file))
	}
	for _, wrong := range []string{"service: 5", "service: a\nflavour: b", "service: a\ncomponents: [{name: a, restart: sometimes}]"} {
		if schema.Validate(asJSON(t, []byte(wrong))) == nil {
			t.Errorf("the schema takes %q", wrong)
		}
	}
}

func compiled(t *testing.T) *jsonschema.Schema {
	t.Helper()
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(read(t, "schema.json")))
	if err != nil {
		t.Fatal(err)
	}
	c := jsonschema.NewCompiler()
	if err := c.AddResource("schema.json", doc); err != nil {
		t.Fatal(err)
	}
	return c.MustCompile("schema.json")
}

// asJSON is YAML as JSON would have it.
func asJSON(t *testing.T, text []byte) any {
	t.Helper()
	var v any
	if err := yaml.Load(text, &v); err != nil {
		t.Fatal(err)
	}
	j, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(j))
	if err != nil {
		t.Fatal(err)
	}
	return doc
}

func fits(t *testing.T, schema *jsonschema.Schema, text []byte) {
	t.Helper()
	if err := schema.Validate(asJSON(t, text)); err != nil {
		t.Errorf("%v\n%s", err, text)
	}
}

// schemaOf describes the YAML form, from the same tags that decode it.
func schemaOf() map[string]any {
	type object = map[string]any
	definitions := object{}
	var of func(t reflect.Type, enum []string) object
	of = func(t reflect.Type, enum []string) object {
		switch {
		case t.Kind() == reflect.Pointer:
			return of(t.Elem(), enum)
		case t.Kind() == reflect.Slice:
			return object{"type": "array", "items": of(t.Elem(), enum), "maxItems": maxParts}
		case enum != nil:
			return object{"enum": enum}
		case t == sizeType:
			return object{"type": []string{"string", "integer"}, "description": "a size such as 512MiB"}
		case t == reflect.TypeFor[Duration]():
			return object{"type": []string{"string", "integer"}, "description": "a duration such as 90s, 5m or 30d"}
		case t == reflect.TypeFor[Clock]():
			return object{"type": "string", "description": "a time of the day such as 09:00"}
		case t == reflect.TypeFor[MHz](), t == reflect.TypeFor[Digest]():
			return object{"type": "string"}
		case t == reflect.TypeFor[Kilometres]():
			return object{"type": []string{"string", "number"}, "description": "a distance such as 300km"}
		case t.Kind() == reflect.Bool:
			return object{"type": "boolean"}
		case t.Kind() == reflect.Int:
			return object{"type": "integer", "minimum": 0}
		case t.Kind() == reflect.Float64:
			return object{"type": "number"}
		case t.Kind() == reflect.String:
			return object{"type": "string"}
		}
		ref := object{"$ref": "#/$defs/" + t.Name()}
		if _, known := definitions[t.Name()]; !known {
			definitions[t.Name()] = nil
			properties := object{}
			for _, f := range fieldsOf(t) {
				properties[f.yaml] = of(t.FieldByIndex(f.index).Type, f.enum)
			}
			if t == reflect.TypeFor[Component]() {
				properties["image"] = object{"type": "string"}
			}
			definitions[t.Name()] = object{"type": "object", "properties": properties, "additionalProperties": false}
		}
		if reflect.PointerTo(t).Implements(reflect.TypeFor[short]()) {
			return object{"anyOf": []any{ref, object{"type": []string{"string", "integer"}}}}
		}
		return ref
	}
	root := of(reflect.TypeFor[Service](), nil)
	definitions["Service"].(object)["required"] = []string{"service", "components"}
	definitions["Component"].(object)["required"] = []string{"name", "memory"}
	root["$schema"] = "https://json-schema.org/draft/2020-12/schema"
	root["title"] = "Service Definition Manifest"
	root["$defs"] = definitions
	return root
}
