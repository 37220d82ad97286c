package manifest

import (
	"encoding"
	"math"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"github.com/reservoir-cloud/reservoir/vee"
)

// The model's structs are their own description. This file reads their tags and the texts
// of single values; yaml.go and section.go walk them.

// field of a struct of the model.
type field struct {
	index []int
	yaml  string   // key
	ovf   string   // element; "SECTION>ITEM" for a section that holds a list
	attr  string   // attribute, where it is one
	text  bool     // it is the text of the element
	not   bool     // the attribute says the opposite and defaults to true
	enum  []string // allowed texts, where they are few
}

// fieldsOf lists the fields of a struct, those of embedded structs in their place.
func fieldsOf(t reflect.Type) []field {
	var list []field
	for _, f := range reflect.VisibleFields(t) {
		if f.Anonymous {
			continue
		}
		x := field{index: f.Index, yaml: f.Tag.Get("yaml")}
		name, options, _ := strings.Cut(f.Tag.Get("ovf"), ",")
		switch {
		case name == ".":
			x.text = true
		case strings.HasPrefix(name, "@"):
			x.attr, x.not = name[1:], options == "not"
		default:
			x.ovf = name
		}
		if e := f.Tag.Get("enum"); e != "" {
			x.enum = strings.Split(e, ",")
		}
		list = append(list, x)
	}
	return list
}

// layout remembers the fields of the structs that a reader has met: a manifest has many of
// few kinds.
type layout map[reflect.Type][]field

func (l layout) of(t reflect.Type) []field {
	list, known := l[t]
	if !known {
		list = fieldsOf(t)
		l[t] = list
	}
	return list
}

// preset fills in what is not the zero value while a component is being read.
func preset(v reflect.Value) {
	if c, ok := v.Addr().Interface().(*Component); ok {
		c.Replicas = Replicas{unset, unset, unset}
		c.CPU.Count = unset
	}
}

// unset marks a number that has a default other than zero.
const unset = math.MinInt

var sizeType = reflect.TypeFor[vee.Bytes]()

// isLeaf reports whether values of t are written as one text.
func isLeaf(t reflect.Type) bool {
	return t.Kind() != reflect.Struct && t.Kind() != reflect.Slice && t.Kind() != reflect.Pointer
}

// setLeaf reads a text into v. The result says what is wanted instead, empty when all is well.
func setLeaf(v reflect.Value, text string, enum []string) (want string) {
	if v.Type() == sizeType {
		b, err := parseSize(text)
		if err != nil {
			return err.Error()
		}
		v.SetInt(int64(b))
		return ""
	}
	if u, ok := v.Addr().Interface().(encoding.TextUnmarshaler); ok {
		if err := u.UnmarshalText([]byte(text)); err != nil {
			return err.Error()
		}
		return ""
	}
	switch v.Kind() {
	case reflect.String:
		if enum != nil && !slices.Contains(enum, text) {
			return unknown(text, enum)
		}
		v.SetString(text)
	case reflect.Bool:
		switch text {
		case "true", "1":
			v.SetBool(true)
		case "false", "0":
			v.SetBool(false)
		default:
			return "want true or false"
		}
	case reflect.Int:
		n, err := strconv.ParseInt(text, 10, 32)
		if err != nil {
			return "want a whole number"
		}
		v.SetInt(n)
	default: // float64
		n, err := strconv.ParseFloat(text, 64)
		if err != nil || math.IsNaN(n) || math.IsInf(n, 0) {
			return "want a number"
		}
		v.SetFloat(n)
	}
	return ""
}

// leafText is the way back.
func leafText(v reflect.Value) string {
	if v.Type() == sizeType {
		return formatSize(vee.Bytes(v.Int()))
	}
	if m, ok := v.Interface().(encoding.TextMarshaler); ok {
		text, _ := m.MarshalText() // ours never fail
		return string(text)
	}
	switch v.Kind() {
	case reflect.String:
		return v.String()
	case reflect.Bool:
		return strconv.FormatBool(v.Bool())
	case reflect.Int:
		return strconv.FormatInt(v.Int(), 10)
	default: // float64
		return strconv.FormatFloat(v.Float(), 'g', -1, 64)
	}
}

// at makes the path of a part: "components", "components[2]", "components[2].name".
func at(path, key string) string {
	if path == "" {
		return key
	}
	return path + "." + key
}

func atIndex(path string, i int) string { return path + "[" + strconv.Itoa(i) + "]" }
