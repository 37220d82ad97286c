package standby

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"slices"
	"time"

	"github.com/reservoir-cloud/reservoir/vee"
	"github.com/reservoir-cloud/reservoir/vmi/peer"
)

// Service of this site's, of which others are to have something.
type Service struct {
	ID, Customer, Name string
	Standbys           []string // in the order of precedence; none: it is not shipped
	Sites              []string // where its VEEs may go, so that its images are there ahead
	Images             []string // digests of manifests
	Definition         []byte
	Replicas           []Replica
}

// Replica of a service.
type Replica struct {
	Name string
	VEE  vee.ID
}

// wanted are the images that each site is to have ahead.
func wanted(services []Service) map[string][]string {
	all := map[string][]string{}
	for _, s := range services {
		for _, site := range slices.Concat(s.Standbys, s.Sites) {
			for _, d := range s.Images {
				if !slices.Contains(all[site], d) {
					all[site] = append(all[site], d)
				}
			}
		}
	}
	for _, list := range all {
		slices.Sort(list)
	}
	return all
}

// newestPart of a replica's VEE: that of its host's last word. nil: it has none.
type newestPart func(vee.ID) *vee.Checkpoint

// checkpoint of a service: the parts that its VEEs have of the newest one. even is false while
// they do not have it all, or not all say so yet.
func checkpoint(replicas []Replica, newest newestPart) (parts []peer.CheckpointPart, even bool) {
	for _, r := range replicas {
		if c := newest(r.VEE); c != nil && c.Digest != "" {
			parts = append(parts, peer.CheckpointPart{VEE: r.VEE, Name: r.Name, N: c.N, At: c.At, Size: c.Size, Digest: c.Digest})
		}
	}
	slices.SortFunc(parts, func(a, b peer.CheckpointPart) int {
		return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.VEE, b.VEE))
	})
	for _, p := range parts {
		if p.N != parts[0].N {
			return parts, false
		}
	}
	return parts, true
}

// shipment of a service, but for its number and its time.
func shipment(s Service, parts []peer.CheckpointPart) peer.Shipment {
	sum := sha256.Sum256(s.Definition)
	return peer.Shipment{Service: s.ID, Customer: s.Customer, Name: s.Name, Definition: s.Definition, Digest: "sha256:" + hex.EncodeToString(sum[:]),
		Images: s.Images, Parts: parts, Standbys: s.Standbys}
}

// shipped is the last shipment of a service, as the primary remembers it.
type shipped struct {
	Service string    `json:"service"`
	Number  uint64    `json:"number"`
	At      time.Time `json:"at"`
	Of      string    `json:"of"` // what it was made of
	// Parts of its checkpoint; Uneven since: those that there are now are not of one moment.
	Parts  []peer.CheckpointPart `json:"parts,omitempty"`
	Uneven time.Time             `json:"uneven,omitzero"`
}

// next is what is shipped after s, and whether that is anything new. Parts that are not of one
// moment are waited for: the ones before go along again, at most for so long.
func (s shipped) next(of Service, newest newestPart, now time.Time, patience time.Duration) (shipped, peer.Shipment, bool) {
	parts, even := checkpoint(of.Replicas, newest)
	switch {
	case even:
		s.Uneven = time.Time{}
	case s.Uneven.IsZero():
		s.Uneven = now
		parts = s.Parts
	case now.Sub(s.Uneven) < patience:
		parts = s.Parts
	}
	out := shipment(of, parts)
	text, _ := json.Marshal(out) // plain data always marshals
	sum := sha256.Sum256(text)
	is := hex.EncodeToString(sum[:])
	fresh := is != s.Of
	if fresh {
		// The clock makes it grow also where a backup has brought an old number back.
		s.Service, s.Of, s.Parts, s.At = of.ID, is, parts, now
		s.Number = max(s.Number+1, uint64(now.UnixMilli()))
	}
	out.Number, out.At = s.Number, s.At
	return s, out, fresh
}

// first of the sites that were promoted: the one that the service names first. Those that it
// does not name any more come last, by their names.
func first(standbys []string, promoted []peer.Promotion) peer.Promotion {
	rank := func(p peer.Promotion) int {
		if i := slices.Index(standbys, p.By); i >= 0 {
			return i
		}
		return len(standbys)
	}
	return slices.MinFunc(promoted, func(a, b peer.Promotion) int { return cmp.Or(cmp.Compare(rank(a), rank(b)), cmp.Compare(a.By, b.By)) })
}
