package manifest

import (
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"

	"go.yaml.in/yaml/v4"
)

// readYAML decodes text into s and reports whether it could be read at all. It walks the document itself instead of letting the
// library fill the structs: all mistakes are told together, each with its place and what
// was expected, and aliases count for what they stand for.
func readYAML(r *report, text []byte, s *Service) bool {
	var doc yaml.Node
	if err := yaml.Load(text, &doc); err != nil {
		var at *yaml.LoadError
		p := place{}
		found := strings.TrimSpace(strings.ReplaceAll(err.Error(), "\n", " "))
		if errors.As(err, &at) {
			p = place{at.Mark.Line, at.Mark.Column}
			found = at.Message
		}
		r.add(p, "", strings.TrimPrefix(found, "yaml: "), "want one YAML document")
		return false
	}
	d := &yamlReader{report: r, layout: layout{}}
	root := &doc
	if root.Kind == yaml.DocumentNode && len(root.Content) == 1 {
		root = root.Content[0]
	}
	if !d.check(root, 0) {
		return false
	}
	d.value(root, reflect.ValueOf(s).Elem(), "", nil)
	return root.Kind == yaml.MappingNode
}

type yamlReader struct {
	*report
	layout layout
	nodes  int
}

func placeOf(n *yaml.Node) place { return place{n.Line, n.Column} }

// check bounds the size of the document with all aliases followed: what an alias bomb
// would expand to.
func (d *yamlReader) check(n *yaml.Node, depth int) bool {
	if n.Kind == yaml.AliasNode {
		n = n.Alias
	}
	d.nodes++
	switch {
	case depth > maxDepth:
		d.add(placeOf(n), "", "nested too deeply", fmt.Sprintf("want at most %d levels, and no alias inside of what it stands for", maxDepth))
		return false
	case d.nodes > maxNodes:
		d.add(placeOf(n), "", "too many values", fmt.Sprintf("want at most %d, aliases followed", maxNodes))
		return false
	}
	for _, c := range n.Content {
		if !d.check(c, depth+1) {
			return false
		}
	}
	return true
}

func (d *yamlReader) value(n *yaml.Node, v reflect.Value, path string, enum []string) {
	d.mark(path, placeOf(n))
	if n.Kind == yaml.AliasNode {
		n = n.Alias
	}
	switch {
	case v.Kind() == reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		d.value(n, v.Elem(), path, enum)
	case v.Kind() == reflect.Slice:
		if n.Kind != yaml.SequenceNode {
			d.bad(path, describe(n), "want a list")
			return
		}
		for _, c := range n.Content {
			e := reflect.New(v.Type().Elem()).Elem()
			preset(e)
			d.value(c, e, atIndex(path, v.Len()), enum)
			v.Set(reflect.Append(v, e))
		}
	case isLeaf(v.Type()):
		if n.Kind != yaml.ScalarNode || n.ShortTag() == "!!null" {
			d.bad(path, describe(n), "want a single value")
			return
		}
		if want := setLeaf(v, n.Value, enum); want != "" {
			d.bad(path, describe(n), want)
		}
	default:
		d.structure(n, v, path)
	}
}

func (d *yamlReader) structure(n *yaml.Node, v reflect.Value, path string) {
	if b, ok := v.Addr().Interface().(short); ok && n.Kind == yaml.ScalarNode && n.ShortTag() != "!!null" {
		if err := b.fromShort(n.Value); err != nil {
			d.bad(path, describe(n), err.Error())
		}
		return
	}
	fields := d.layout.of(v.Type())
	keys := make([]string, len(fields))
	for i, f := range fields {
		keys[i] = f.yaml
	}
	component, isComponent := v.Addr().Interface().(*Component)
	if isComponent {
		keys = append(keys, "image")
		d.image(n, component, path)
	}
	if n.Kind != yaml.MappingNode {
		d.bad(path, describe(n), "want keys and values: "+strings.Join(keys, ", "))
		return
	}
	seen := map[string]int{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		k, c := n.Content[i], n.Content[i+1]
		p := at(path, k.Value)
		if line, twice := seen[k.Value]; twice {
			d.add(placeOf(k), p, "given twice", fmt.Sprintf("first in line %d", line))
			continue
		}
		seen[k.Value] = k.Line
		switch j := slices.Index(keys, k.Value); {
		case k.Kind != yaml.ScalarNode || j < 0:
			if k.Kind != yaml.ScalarNode {
				d.add(placeOf(k), path, describe(k), "want a key")
				break
			}
			d.add(placeOf(k), at(path, shorten(k.Value)), "", unknown(k.Value, keys))
		case j < len(fields):
			d.value(c, v.FieldByIndex(fields[j].index), p, fields[j].enum)
		}
	}
}

// image puts what a component's short form names before the disks that are still to be read.
func (d *yamlReader) image(n *yaml.Node, c *Component, path string) {
	for i := 0; i+1 < len(n.Content) && n.Kind == yaml.MappingNode; i += 2 {
		if n.Content[i].Value == "image" && c.Disks == nil {
			c.Disks = []Disk{{Name: "root"}}
			d.value(n.Content[i+1], reflect.ValueOf(&c.Disks[0].Image).Elem(), at(path, "image"), nil)
		}
	}
}

func shorten(s string) string {
	if len(s) > 40 {
		return strings.ToValidUTF8(s[:40], "") + "…"
	}
	return s
}

func describe(n *yaml.Node) string {
	switch {
	case n.Kind == yaml.SequenceNode:
		return "a list"
	case n.Kind == yaml.MappingNode:
		return "keys and values"
	case n.Kind == yaml.ScalarNode && n.ShortTag() == "!!null":
		return "nothing"
	}
	return quote(n.Value)
}

// YAML writes the service as people do: short forms where they say everything, nothing
// that is a default.
func (s *Service) YAML() ([]byte, error) {
	if err := s.Validate(); err != nil {
		return nil, fmt.Errorf("write service %s as YAML: %w", s.Name, err)
	}
	text, err := yaml.Dump(yamlNode(reflect.ValueOf(s).Elem()), yaml.WithLineWidth(-1))
	if err != nil {
		return nil, fmt.Errorf("write service %s as YAML: %w", s.Name, err)
	}
	return text, nil
}

func yamlNode(v reflect.Value) *yaml.Node {
	switch {
	case v.Kind() == reflect.Pointer:
		return yamlNode(v.Elem())
	case v.Kind() == reflect.Slice:
		list := &yaml.Node{Kind: yaml.SequenceNode}
		flat := true
		for i := range v.Len() {
			e := yamlNode(v.Index(i))
			flat = flat && e.Kind == yaml.ScalarNode && len(e.Value) < 30 && e.Style != yaml.LiteralStyle
			list.Content = append(list.Content, e)
		}
		if flat && v.Len() <= 6 {
			list.Style = yaml.FlowStyle
		}
		return list
	case isLeaf(v.Type()):
		return yamlScalar(leafText(v), v.Kind() == reflect.String)
	}
	c := reflect.New(v.Type())
	c.Elem().Set(v)
	if b, ok := c.Interface().(short); ok {
		if text, ok := b.toShort(); ok {
			return yamlScalar(text, false)
		}
	}
	m := &yaml.Node{Kind: yaml.MappingNode}
	put := func(key string, n *yaml.Node) {
		m.Content = append(m.Content, yamlScalar(key, true), n)
	}
	flat := true
	image := imageOf(c.Interface())
	_, isReplicas := c.Interface().(*Replicas)
	for _, f := range fieldsOf(v.Type()) {
		x := v.FieldByIndex(f.index)
		switch {
		case image != "" && f.yaml == "replicas": // what is run comes before how often
			put("image", yamlScalar(image, true))
		case image != "" && f.yaml == "disks":
			x = x.Slice(1, x.Len())
		}
		if !isReplicas && (x.IsZero() || x.Kind() == reflect.Slice && x.Len() == 0) {
			continue
		}
		flat = flat && isLeaf(x.Type()) && len(leafText(x)) < 30
		put(f.yaml, yamlNode(x))
	}
	if flat && len(m.Content) <= 8 {
		m.Style = yaml.FlowStyle
	}
	return m
}

// imageOf a component whose first disk is written as `image:`; empty for all else.
func imageOf(v any) string {
	if c, ok := v.(*Component); ok && len(c.Disks) > 0 && c.Disks[0] == (Disk{Name: "root", Image: c.Disks[0].Image}) {
		return c.Disks[0].Image
	}
	return ""
}

// yamlScalar gives a text the plainest style that it survives in.
func yamlScalar(text string, isText bool) *yaml.Node {
	n := &yaml.Node{Kind: yaml.ScalarNode, Value: text}
	if isText {
		n.Tag = "!!str"
	}
	if strings.Contains(text, "\n") && !strings.HasPrefix(text, " ") && !strings.HasPrefix(text, "\n") {
		n.Style = yaml.LiteralStyle
	}
	return n
}
