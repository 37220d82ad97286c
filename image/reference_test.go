package image

import (
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/reservoir-cloud/reservoir/internal/fault"
)

const someDigest = "sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"

func TestParseReference(t *testing.T) {
	for _, tt := range []struct {
		in   string
		want string // of String; empty: refused
	}{
		{"appliance", "appliance:latest"},
		{"appliance:v1.2", "appliance:v1.2"},
		{"acme/web/app_1:X", "acme/web/app_1:X"},
		{"appliance@" + someDigest, "appliance@" + someDigest},
		{someDigest, someDigest},
		{"", ""},
		{"Appliance", ""},
		{":v1", ""},
		{"sha256", ""},
		{"a:", ""},
		{"a:b:c", ""},
		{"a:.b", ""},
		{"a:v1@" + someDigest, ""},
		{"../etc/passwd", ""},
		{"a//b", ""},
		{"a/../b", ""},
		{"host:5000/name:tag", ""},
		{"a@sha256:12", ""},
		{"a@sha512:" + strings.Repeat("ab", 64), ""},
		{"sha256:" + strings.Repeat("A", 64), ""},
		{strings.Repeat("a", 256), ""},
		{"a:" + strings.Repeat("t", 129), ""},
	} {
		r, err := ParseReference(tt.in)
		switch {
		case tt.want == "" && !fault.Has(err, fault.Malformed):
			t.Errorf("ParseReference(%q) = %v, %v; want fault.Malformed", tt.in, r, err)
		case tt.want != "" && (err != nil || r.String() != tt.want):
			t.Errorf("ParseReference(%q) = %v, %v; want %s", tt.in, r, err, tt.want)
		}
	}
}

func TestReferenceRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r := Reference{Name: rapid.StringMatching(validName.String()).Filter(isName).Draw(t, "name")}
		if rapid.Bool().Draw(t, "tagged") {
			r.Tag = rapid.StringMatching(validTag.String()).Draw(t, "tag")
		} else {
			r.Digest = someDigest
		}
		if back, err := ParseReference(r.String()); err != nil || back != r {
			t.Fatalf("%+v came back as %+v, %v", r, back, err)
		}
	})
}

func FuzzParseReference(f *testing.F) {
	for _, s := range []string{"a", "a/b:c", "a@" + someDigest, someDigest, "a:b@c", "sha256:"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		r, err := ParseReference(s)
		if err != nil {
			return
		}
		if (r.Tag == "") == (r.Digest == "") {
			t.Fatalf("%q: want a tag or a digest, got %+v", s, r)
		}
		if back, err := ParseReference(r.String()); err != nil || back != r {
			t.Fatalf("%q: %+v came back as %+v, %v", s, r, back, err)
		}
	})
}
