// Package standby lets services outlive their site: the primary of a service ships what it
// takes to go on with it to the partners that the service names, and one of them goes on
// with it when it is promoted (ADR 28).
//
//   - row.go is the pure core of the standby's side: what it has of a service, what is taken of
//     what the primary says, and what is still to come.
//   - shelf.go is the shell around it: the rows in the record of truth, the checkpoints on disk,
//     what is fetched; promotion.go carries promotions out.
//   - ship.go is the pure core of the primary's side: what a shipment is made of, and which of
//     two promotions has the service; shipper.go its shell.
//
// What a definition says, and how VEEs change their owner, is not known here: that is for the
// Service Manager and the VEE Manager of each site, behind the interfaces of Config.
package standby

import (
	"slices"
	"time"

	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/vee"
	"github.com/reservoir-cloud/reservoir/vmi/peer"
)

// row is what a standby has of one service of a partner's.
type row struct {
	Site    string `json:"site"`
	Service string `json:"service"`
	// Whole is the newest shipment of which everything is here, verified; nil: none.
	Whole *peer.Shipment `json:"whole,omitempty"`
	// Coming is a newer one that is being fetched; nil: none.
	Coming *peer.Shipment `json:"coming,omitempty"`
	// Problem with the fetching, for people.
	Problem string `json:"problem,omitempty"`
	// Promoted: the service is this site's.
	Promoted *promotion `json:"promoted,omitempty"`
	Taken    time.Time  `json:"taken"` // when the last word of it was taken, by our clock
}

// promotion is on record before anything of it is done.
type promotion struct {
	peer.Promotion
	Group  string `json:"group"` // of the service here
	Fenced bool   `json:"fenced,omitempty"`
	By     string `json:"orderedBy,omitempty"` // who has said so
	// Lodgers that have changed their owner; nil: none yet.
	Lodgers []vee.ID `json:"lodgers,omitempty"`
	Done    bool     `json:"done,omitempty"`    // the service is with the Service Manager here
	Known   bool     `json:"known,omitempty"`   // its old site has given way
	Yielded string   `json:"yielded,omitempty"` // to another standby that was promoted too
}

func rowKey(site, service string) string { return site + "/" + service }

// newest number that was taken.
func (r row) newest() (n uint64) {
	for _, s := range []*peer.Shipment{r.Whole, r.Coming} {
		if s != nil {
			n = max(n, s.Number)
		}
	}
	return n
}

// announce takes a shipment that the primary tells of, and reports whether that changes the
// row. While something is on its way that would be begun anew for it, it is not taken: it, or
// a newer one, will be told again. So a transfer that takes longer than the time between two
// checkpoints comes to its end.
func (r row) announce(s peer.Shipment, now time.Time) (row, bool, error) {
	if r.Promoted != nil {
		return r, false, nil
	}
	for _, has := range []*peer.Shipment{r.Whole, r.Coming} {
		if has != nil && has.Number == s.Number {
			if has.Digest != s.Digest || !slices.Equal(has.Parts, s.Parts) || !slices.Equal(has.Images, s.Images) {
				return r, false, fault.New(fault.Conflict, "service %s: another shipment has number %d already", s.Service, s.Number)
			}
			return r, false, nil
		}
	}
	if n := r.newest(); s.Number < n {
		return r, false, fault.New(fault.StaleEpoch, "service %s: shipment %d is older than %d, which is here", s.Service, s.Number, n)
	}
	if r.Coming != nil && r.Problem == "" && !slices.Equal(r.Coming.Parts, s.Parts) {
		return r, false, nil
	}
	r.Coming, r.Problem, r.Taken = &s, "", now
	return r, true, nil
}

// arrived is r when everything of what was coming is here.
func (r row) arrived() row {
	r.Whole, r.Coming, r.Problem = r.Coming, nil, ""
	return r
}

// missing of what is coming, by what is here.
func (r row) missing(part, image func(digest string) bool) (parts []peer.CheckpointPart, images []string) {
	if r.Coming == nil || r.Promoted != nil {
		return nil, nil
	}
	for _, p := range r.Coming.Parts {
		if !part(p.Digest) {
			parts = append(parts, p)
		}
	}
	for _, d := range r.Coming.Images {
		if !image(d) {
			images = append(images, d)
		}
	}
	return parts, images
}

// parts that are kept for it.
func (r row) parts() (list []peer.CheckpointPart) {
	for _, s := range []*peer.Shipment{r.Whole, r.Coming} {
		if s != nil {
			list = append(list, s.Parts...)
		}
	}
	return list
}

// holds so much disk with its parts, each once.
func holds(rows []row) (sum vee.Bytes) {
	seen := map[string]bool{}
	for _, r := range rows {
		for _, p := range r.parts() {
			if !seen[p.Digest] {
				seen[p.Digest] = true
				sum += p.Size
			}
		}
	}
	return sum
}

// within the disk of an agreement's ceiling: the checkpoints of all of a partner's services
// beside its VEEs. Of a service that is shipped anew both the old and the new are there for a
// while.
func within(rows []row, lodgers vee.Bytes, ceiling peer.Agreement) error {
	sum := holds(rows)
	if sum+lodgers <= ceiling.Ceiling.Disk {
		return nil
	}
	return fault.New(fault.QuotaExceeded, "checkpoints of %s beside VEEs with %s of disk: agreement %s has %s", sum, lodgers, ceiling.ID, ceiling.Ceiling.Disk).
		Try("agree upon more disk, or let fewer services have this site as their standby: reservoir agreement show %s", ceiling.ID)
}

// standing as its primary is told of it.
func (r row) standing(missing vee.Bytes, images int) peer.Standing {
	s := peer.Standing{Service: r.Service, Problem: r.Problem}
	if r.Whole != nil {
		s.Number, s.At = r.Whole.Number, r.Whole.At
	}
	if r.Coming != nil {
		s.Coming, s.Missing, s.MissingImages = r.Coming.Number, missing, images
	}
	if r.Promoted != nil && r.Promoted.Yielded == "" {
		s.Promoted, s.Known = &r.Promoted.Promotion, r.Promoted.Known
	}
	return s
}
