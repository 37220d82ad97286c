package image

import (
	"regexp"
	"strings"

	"github.com/opencontainers/go-digest"

	"github.com/reservoir-cloud/reservoir/internal/fault"
)

// defaultTag is meant where a reference has a name only.
const defaultTag = "latest"

// Names and tags as the OCI distribution spec 1.1 has them ("Pulling manifests").
var (
	validName = regexp.MustCompile(`^[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*(/[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*)*$`)
	validTag  = regexp.MustCompile(`^[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}$`)
)

// maxName is what most registries take, in bytes.
const maxName = 255

// Reference names an image: by name and tag, or by digest, which is then the one that
// counts; a name beside a digest is for people.
type Reference struct {
	Name   string
	Tag    string        // set, or Digest is
	Digest digest.Digest // of the manifest
}

// ParseReference reads "name", "name:tag", "name@sha256:…" or "sha256:…". A name alone
// means its tag "latest". Errors: fault.Malformed.
func ParseReference(s string) (Reference, error) {
	bad := func(why string) (Reference, error) {
		return Reference{}, fault.New(fault.Malformed, "image %.300q: %s", s, why).
			Try("name an image as NAME, NAME:TAG, NAME@sha256:… or sha256:…; see reservoir image list")
	}
	if strings.HasPrefix(s, "sha256:") {
		d, err := parseDigest(s)
		if err != nil {
			return bad("want 64 hexadecimal digits after sha256:")
		}
		return Reference{Digest: d}, nil
	}
	r := Reference{Name: s, Tag: defaultTag}
	if name, d, ok := strings.Cut(s, "@"); ok {
		parsed, err := parseDigest(d)
		if err != nil {
			return bad("want sha256: and 64 hexadecimal digits after @")
		}
		r = Reference{Name: name, Digest: parsed}
	} else if name, tag, ok := strings.Cut(s, ":"); ok {
		r = Reference{Name: name, Tag: tag}
		if !validTag.MatchString(tag) {
			return bad("want a tag of letters, digits, '.', '_' and '-', at most 128")
		}
	}
	if !isName(r.Name) {
		return bad("want a name of lower-case letters and digits, parted by '.', '_', '-' or '/'")
	}
	return r, nil
}

// isName leaves out the one name whose tags would read as digests.
func isName(s string) bool {
	return len(s) <= maxName && s != string(digest.SHA256) && validName.MatchString(s)
}

// String is the shortest form that ParseReference reads back as r.
func (r Reference) String() string {
	switch {
	case r.Digest == "":
		return r.Name + ":" + r.Tag
	case r.Name == "":
		return r.Digest.String()
	}
	return r.Name + "@" + r.Digest.String()
}

// parseDigest takes SHA-256 only, so that a file name made of it is always 64 hexadecimal
// digits. Errors: fault.Malformed.
func parseDigest(s string) (digest.Digest, error) {
	d, err := digest.Parse(s)
	if err != nil || d.Algorithm() != digest.SHA256 {
		return "", fault.New(fault.Malformed, "digest %.100q: want sha256: and 64 hexadecimal digits", s)
	}
	return d, nil
}
