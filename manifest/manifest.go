// Package manifest reads and writes the Service Definition Manifest: what a service
// provider hands in to say what a service is made of. An OVF 1.x envelope (.ovf, or .ova
// with its files) with the extensions that the Claudia Service Manager published, and the
// YAML form that people write by hand, decode into one model, Service, and either may be
// written from it without loss.
//
// Both forms come from the same Go structs: the tag `yaml` names a field in YAML, the tag
// `ovf` says where an extension stands in OVF (codec.go, section.go). Only what the OVF
// standard itself lays out is mapped by hand (ovfread.go, ovfwrite.go).
//
// What a manifest asks for and this version does not do yet is parsed, checked and kept
// all the same, and told by Service.NotInEffect. The package knows nothing of sites,
// hosts or running services; its only output towards them is Service.Descriptor.
package manifest

import (
	"bytes"
	"fmt"
	"unicode/utf8"
)

// Bounds on what is read. A manifest that needs more is not one that a person can check.
const (
	MaxText     = 4 << 20 // bytes of manifest text
	maxDepth    = 64      // nesting of elements or YAML collections
	maxNodes    = 100_000 // elements or YAML nodes, after aliases are followed
	maxParts    = 1000    // entries of any list
	maxReplicas = 1000    // of one component
	maxVCPUs    = 256
)

// Parse reads a manifest in either form: text whose first character is "<" is OVF,
// everything else is YAML. The name stands in errors only. The error, if any, is an
// *Errors and tells every mistake in the text.
func Parse(name string, text []byte) (*Service, error) {
	r := &report{file: name}
	s := parse(r, text)
	if err := r.err(); err != nil {
		return nil, err
	}
	return s, nil
}

func parse(r *report, text []byte) *Service {
	text = bytes.TrimPrefix(text, []byte("\ufeff"))
	switch {
	case len(text) > MaxText:
		r.add(place{}, "", fmt.Sprintf("%d bytes of text", len(text)), fmt.Sprintf("want at most %d", MaxText))
		return nil
	case isTar(text):
		r.add(place{}, "", "an .ova archive", "want manifest text; give the .ova by its file name")
		return nil
	case !utf8.Valid(text):
		r.add(place{}, "", "bytes that are not UTF-8", "want text in UTF-8")
		return nil
	}
	s, readable := &Service{}, false
	if trimmed := bytes.TrimSpace(text); len(trimmed) > 0 && trimmed[0] == '<' {
		readable = readOVF(r, text, s)
	} else {
		readable = readYAML(r, text, s)
	}
	if readable {
		r.told() // what could not be read is not checked as well
		s.normalise()
		s.validate(r)
	}
	return s
}

func isTar(b []byte) bool { return len(b) > 262 && string(b[257:262]) == "ustar" }
