package image

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// annotationCustomer on a tag's entry in index.json: the provider whose tag it is.
const annotationCustomer = "vnd.reservoir.customer"

// index is index.json of the layout: every manifest that is kept, and the tags on them. A
// manifest without a tag was pushed by digest, or its tag has moved on.
type index struct {
	tags      map[Reference]tag
	manifests map[digest.Digest]int64 // size in bytes
}

type tag struct {
	digest   digest.Digest
	customer string // empty: the operator's
}

func (x index) clone() index {
	return index{maps.Clone(x.tags), maps.Clone(x.manifests)}
}

// tagged lists the tags of a manifest, sorted.
func (x index) tagged(d digest.Digest) []Reference {
	var refs []Reference
	for r, t := range x.tags {
		if t.digest == d {
			refs = append(refs, r)
		}
	}
	slices.SortFunc(refs, compareReferences)
	return refs
}

func compareReferences(a, b Reference) int { return strings.Compare(a.String(), b.String()) }

// encode gives the same bytes for the same index.
func (x index) encode() ([]byte, error) {
	out := ocispec.Index{
		Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: ocispec.MediaTypeImageIndex,
		Manifests: []ocispec.Descriptor{},
	}
	entry := func(d digest.Digest, annotations map[string]string) {
		out.Manifests = append(out.Manifests, ocispec.Descriptor{
			MediaType: ocispec.MediaTypeImageManifest, ArtifactType: ArtifactType,
			Digest: d, Size: x.manifests[d], Annotations: annotations,
		})
	}
	untagged := maps.Clone(x.manifests)
	for _, r := range slices.SortedFunc(maps.Keys(x.tags), compareReferences) {
		t := x.tags[r]
		delete(untagged, t.digest)
		annotations := map[string]string{ocispec.AnnotationRefName: r.String()}
		if t.customer != "" {
			annotations[annotationCustomer] = t.customer
		}
		entry(t.digest, annotations)
	}
	for _, d := range slices.Sorted(maps.Keys(untagged)) {
		entry(d, nil)
	}
	return json.MarshalIndent(out, "", "  ")
}

// decodeIndex reads what encode wrote. A reference that is none of ours, as other tools
// write them ("1.0" for a tag alone), is taken as no tag.
func decodeIndex(raw []byte) (index, error) {
	x := index{map[Reference]tag{}, map[digest.Digest]int64{}}
	var in ocispec.Index
	if err := json.Unmarshal(raw, &in); err != nil {
		return index{}, fmt.Errorf("no JSON of an OCI index: %w", err)
	}
	if in.SchemaVersion != 2 {
		return index{}, fmt.Errorf("schema version %d: want 2", in.SchemaVersion)
	}
	for _, m := range in.Manifests {
		d, err := parseDigest(m.Digest.String())
		if err != nil {
			return index{}, err
		}
		x.manifests[d] = m.Size
		name := m.Annotations[ocispec.AnnotationRefName]
		if r, err := ParseReference(name); err == nil && r.Tag != "" && strings.Contains(name, ":") {
			x.tags[r] = tag{d, m.Annotations[annotationCustomer]}
		}
	}
	return x, nil
}
