package peer

import (
	"context"
	"net/http"
	"time"

	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/internal/httpapi"
	"github.com/reservoir-cloud/reservoir/vee"
)

// Shipment is what it takes to go on with a service of the caller's at the reader's site, as
// of one moment. The large parts of it, images and checkpoints, are named by digest only: the
// reader fetches what it lacks from the caller's registry.
type Shipment struct {
	Service  string `json:"service"` // its ID at the caller's site, never reused: "alpha.s-k3v9q2m7xd"
	Customer string `json:"customer"`
	Name     string `json:"name"`
	// Number grows with every shipment of the service. Of two the larger one counts.
	Number uint64    `json:"number"`
	At     time.Time `json:"at"` // by the caller's clock
	// Definition is the caller's Service Manager's, and for the reader's: VEE Managers do not
	// look into it.
	Definition []byte `json:"definition" maxLength:"699052"` // base64 of MaxDefinition
	Digest     string `json:"digest"`                        // "sha256:…" of Definition
	// Images that the service's VEEs are made of, now or after the update that is under way:
	// digests of their manifests.
	Images []string `json:"images,omitempty" maxItems:"256"`
	// Parts of the newest checkpoint, one for each VEE that has one.
	Parts []CheckpointPart `json:"parts,omitempty" maxItems:"1024"`
	// Standbys of the service in the order of precedence: of two that were promoted the
	// first one has the service.
	Standbys []string `json:"standbys"`
}

// MaxDefinition in bytes: it is kept in one row of the record of truth.
const MaxDefinition = 512 << 10

// CheckpointPart is one VEE's part of a checkpoint, packed by its host.
type CheckpointPart struct {
	VEE    vee.ID    `json:"vee"`
	Name   string    `json:"name"` // of the replica: "db-1"
	N      int       `json:"n"`    // of the checkpoint
	At     time.Time `json:"at"`
	Size   vee.Bytes `json:"sizeBytes"`
	Digest string    `json:"digest"` // "sha256:…"
}

// Standing of a service at a standby.
type Standing struct {
	Service string `json:"service"`
	// Number and At of the newest shipment that is there as a whole, verified; 0: none is.
	Number uint64    `json:"number,omitempty"`
	At     time.Time `json:"at,omitzero"`
	// Coming is a newer one of which Missing bytes of checkpoints and so many images are still
	// to come; 0: none.
	Coming        uint64    `json:"coming,omitempty"`
	Missing       vee.Bytes `json:"missingBytes,omitempty"`
	MissingImages int       `json:"missingImages,omitempty"`
	Problem       string    `json:"problem,omitempty"` // why it does not come
	// Promoted: the service is that site's now.
	Promoted *Promotion `json:"promoted,omitempty"`
	// Known: the site that it was of has said that it gave way.
	Known bool `json:"known,omitempty"`
}

// Promotion of a standby: from At on the service is By's. Whoever had it before gives way.
type Promotion struct {
	Service string    `json:"service"` // its ID at the site that it was of
	By      string    `json:"by"`
	Number  uint64    `json:"number"` // of the shipment that it goes on from
	At      time.Time `json:"at"`     // by By's clock
	// Customer and Name of the service there.
	Customer string `json:"customer"`
	Name     string `json:"name"`
}

// Cooperation is what a standby does for the caller's services.
type Cooperation interface {
	// PutShipment tells what a service of the caller's is now. It is on record when it returns;
	// what it names is fetched after that, and the answer says how far that is. One that came
	// before may be told again. Errors: StaleEpoch (there is a newer one), Conflict (another one
	// of that number), Malformed, DigestMismatch, Denied and QuotaExceeded (by the agreement).
	// After a promotion nothing is taken, and the answer is that.
	PutShipment(ctx context.Context, s Shipment) (Standing, error)
	// DropShipments of the caller's services but these: the others have no standby here any more.
	DropShipments(ctx context.Context, but []string) error
	// Standings of all services of the caller's that were shipped here, or promoted.
	Standings(ctx context.Context) ([]Standing, error)
	// GaveWay says that the caller has given these services up, that were promoted: nothing of
	// them runs there by its doing from then on. Until it has, it is answered nothing but what
	// is in this interface.
	GaveWay(ctx context.Context, services []string) error
	// Succeeded are services of another site's that this site has gone on with, of those of
	// which the caller is a standby too.
	Succeeded(ctx context.Context, site string) ([]Promotion, error)
	// PutImages says which images VEEs of the caller's may be made of here, digests of their
	// manifests, in the place of what it said before: they are fetched ahead. The answer are
	// those that are here. Errors: Denied without an agreement.
	PutImages(ctx context.Context, digests []string) ([]string, error)
}

// CooperationPaths are all that a site is answered whose services were promoted and that has not
// given way yet; beside greetings.
var CooperationPaths = []string{base + "/shipments", base + "/succeeded/", base + "/hello", base + "/bundle", base + "/leave"}

func registerCooperation(s *httpapi.Server, svc Cooperation) {
	httpapi.Register(s, httpapi.Op{Method: "PUT", Path: base + "/shipments/{service}", Summary: "Ship a service to its standby", Roles: partners},
		func(ctx context.Context, in *struct {
			Service string `path:"service"`
			Body    Shipment
		}) (Standing, error) {
			if in.Body.Service != in.Service {
				return Standing{}, fault.New(fault.Malformed, "the path names service %s, the body %s", in.Service, in.Body.Service)
			}
			httpapi.Concerns(ctx, in.Service)
			return svc.PutShipment(ctx, in.Body)
		})
	httpapi.RegisterNoBody(s, httpapi.Op{Method: "POST", Path: base + "/shipments/drop", Summary: "Drop shipments of all services but these", Roles: partners},
		func(ctx context.Context, in *struct{ Body names }) error {
			httpapi.Concerns(ctx, "shipments")
			return svc.DropShipments(ctx, in.Body.Names)
		})
	httpapi.Register(s, httpapi.Op{Method: "GET", Path: base + "/shipments", Summary: "The caller's services here: what of them is there, and which are this site's now", Roles: partners},
		func(ctx context.Context, _ *httpapi.Empty) ([]Standing, error) { return svc.Standings(ctx) })
	httpapi.RegisterNoBody(s, httpapi.Op{Method: "POST", Path: base + "/shipments/gave-way", Summary: "The caller has given services up that were promoted", Roles: partners},
		func(ctx context.Context, in *struct{ Body names }) error {
			httpapi.Concerns(ctx, in.Body.Names...)
			return svc.GaveWay(ctx, in.Body.Names)
		})
	httpapi.Register(s, httpapi.Op{Method: "GET", Path: base + "/succeeded/{site}", Summary: "Services of another site's that this site has gone on with", Roles: partners},
		func(ctx context.Context, in *struct {
			Site string `path:"site"`
		}) ([]Promotion, error) {
			return svc.Succeeded(ctx, in.Site)
		})
	httpapi.Register(s, httpapi.Op{Method: "PUT", Path: base + "/images", Summary: "Images that VEEs of the caller's may be made of here", Roles: partners},
		func(ctx context.Context, in *struct{ Body names }) ([]string, error) {
			httpapi.Concerns(ctx, "images")
			return svc.PutImages(ctx, in.Body.Names)
		})
}

type names struct {
	Names []string `json:"names" maxItems:"1024"`
}

func (c client) PutShipment(ctx context.Context, s Shipment) (out Standing, err error) {
	err = c.c.Call(ctx, http.MethodPut, one("shipments", s.Service), nil, s, &out)
	return out, err
}

func (c client) DropShipments(ctx context.Context, but []string) error {
	return c.c.Call(ctx, http.MethodPost, base+"/shipments/drop", nil, names{orNone(but)}, nil)
}

func (c client) Standings(ctx context.Context) (out []Standing, err error) {
	err = c.c.Call(ctx, http.MethodGet, base+"/shipments", nil, nil, &out)
	return out, err
}

func (c client) GaveWay(ctx context.Context, services []string) error {
	return c.c.Call(ctx, http.MethodPost, base+"/shipments/gave-way", nil, names{orNone(services)}, nil)
}

func (c client) Succeeded(ctx context.Context, site string) (out []Promotion, err error) {
	err = c.c.Call(ctx, http.MethodGet, one("succeeded", site), nil, nil, &out)
	return out, err
}

func (c client) PutImages(ctx context.Context, digests []string) (out []string, err error) {
	err = c.c.Call(ctx, http.MethodPut, base+"/images", nil, names{orNone(digests)}, &out)
	return out, err
}

// orNone is list, as JSON that is no null.
func orNone(list []string) []string {
	if list == nil {
		return []string{}
	}
	return list
}
