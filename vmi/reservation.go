package vmi

import (
	"context"
	"net/http"
	"net/url"
	"time"

	"github.com/reservoir-cloud/reservoir/internal/httpapi"
	"github.com/reservoir-cloud/reservoir/vee"
)

// ReservationState is what has become of one.
type ReservationState string

// States. Held is the first of two phases: it expires unless it is committed. What is reserved
// is active from its beginning on; VEEs are placed under it then.
const (
	ReservationHeld      ReservationState = "held"
	ReservationReserved  ReservationState = "reserved"
	ReservationActive    ReservationState = "active"
	ReservationEnded     ReservationState = "ended"
	ReservationExpired   ReservationState = "expired" // not committed, or not used
	ReservationCancelled ReservationState = "cancelled"
)

// Over reports whether nothing is kept for it any more.
func (s ReservationState) Over() bool {
	return s == ReservationEnded || s == ReservationExpired || s == ReservationCancelled
}

// Reserve asks for capacity for a later time: room for so many VEEs of a size.
type Reserve struct {
	// ID is for another site's VEE Manager alone: one of its own. It commits afterwards.
	ID       string    `json:"id,omitempty"`
	At       string    `json:"at,omitempty" doc:"partner site; empty: this one"`
	Customer string    `json:"customer,omitempty" doc:"whose VEEs may be placed under it; a provider's own"`
	VEEs     int       `json:"vees" minimum:"1" maximum:"1000"`
	VCPUs    int       `json:"vcpus" minimum:"1" doc:"of each"`
	Memory   vee.Bytes `json:"memoryBytes" minimum:"1"`
	Disk     vee.Bytes `json:"diskBytes,omitempty" minimum:"0"`
	From     time.Time `json:"from"`
	Until    time.Time `json:"until"`
	// UseWithinMS of its beginning a VEE has to be placed under it, or it expires; 0: an hour.
	UseWithinMS int64 `json:"useWithinMs,omitempty" minimum:"0"`
}

// Reservation of capacity for a time.
type Reservation struct {
	Reserve
	State   ReservationState `json:"state"`
	Created time.Time        `json:"created"`
	// HeldUntil it is kept without having been committed.
	HeldUntil *time.Time `json:"heldUntil,omitempty"`
	// Agreement that it is under, at a partner, and what an hour of all its VEEs costs by that.
	Agreement string  `json:"agreement,omitempty"`
	PerHour   float64 `json:"perHour,omitempty"`
	Currency  string  `json:"currency,omitempty"`
	Used      int     `json:"used"`           // VEEs that are placed under it
	Note      string  `json:"note,omitempty"` // why it is over, or what it lacks
}

// Reservations of capacity for a later time. What has no end (a VEE that runs) counts as
// staying, so what is reserved is free then.
type Reservations interface {
	// Reserve capacity at this site or at a partner. Errors: NoResources and QuotaExceeded (of
	// which there is not enough, and when), Denied (no agreement covers that time), Malformed,
	// Unsupported, Unavailable (the partner).
	Reserve(ctx context.Context, r Reserve) (Reservation, error)
	// CommitReservation that is held; by another site's VEE Manager. Errors: NotFound,
	// WrongState (it has expired).
	CommitReservation(ctx context.Context, id string) (Reservation, error)
	// CancelReservation gives it up; VEEs that run under it stay. One that is over stays as it is.
	CancelReservation(ctx context.Context, id string) (Reservation, error)
	GetReservation(ctx context.Context, id string) (Reservation, error)
	// ListReservations by their beginning, those too that are over, for a day.
	ListReservations(ctx context.Context) ([]Reservation, error)
}

const reservationsPath = "/vmi/v1/reservations"

func registerReservations(s *httpapi.Server, svc Reservations) {
	type input struct {
		ID string `path:"id"`
	}
	const one = reservationsPath + "/{id}"
	httpapi.Register(s, httpapi.Op{Method: "POST", Path: reservationsPath, Summary: "Reserve capacity for a later time", Roles: commanders, Status: http.StatusCreated},
		func(ctx context.Context, in *struct{ Body Reserve }) (Reservation, error) {
			out, err := svc.Reserve(ctx, in.Body)
			httpapi.Concerns(ctx, "reservation/"+out.ID)
			return out, err
		})
	httpapi.Register(s, httpapi.Op{Method: "POST", Path: one + "/commit", Summary: "Commit a reservation that is held", Roles: commanders},
		func(ctx context.Context, in *input) (Reservation, error) {
			httpapi.Concerns(ctx, "reservation/"+in.ID)
			return svc.CommitReservation(ctx, in.ID)
		})
	httpapi.Register(s, httpapi.Op{Method: "POST", Path: one + "/cancel", Summary: "Give a reservation up", Roles: commanders},
		func(ctx context.Context, in *input) (Reservation, error) {
			httpapi.Concerns(ctx, "reservation/"+in.ID)
			return svc.CancelReservation(ctx, in.ID)
		})
	httpapi.Register(s, httpapi.Op{Method: "GET", Path: one, Summary: "One reservation", Roles: followers},
		func(ctx context.Context, in *input) (Reservation, error) { return svc.GetReservation(ctx, in.ID) })
	httpapi.Register(s, httpapi.Op{Method: "GET", Path: reservationsPath, Summary: "List reservations", Roles: followers},
		func(ctx context.Context, _ *httpapi.Empty) ([]Reservation, error) { return svc.ListReservations(ctx) })
}

func reservationPath(id, sub string) string { return reservationsPath + "/" + url.PathEscape(id) + sub }

func (c client) Reserve(ctx context.Context, r Reserve) (out Reservation, err error) {
	err = c.c.Call(ctx, http.MethodPost, reservationsPath, nil, r, &out)
	return out, err
}

func (c client) CommitReservation(ctx context.Context, id string) (out Reservation, err error) {
	err = c.c.Call(ctx, http.MethodPost, reservationPath(id, "/commit"), nil, nil, &out)
	return out, err
}

func (c client) CancelReservation(ctx context.Context, id string) (out Reservation, err error) {
	err = c.c.Call(ctx, http.MethodPost, reservationPath(id, "/cancel"), nil, nil, &out)
	return out, err
}

func (c client) GetReservation(ctx context.Context, id string) (out Reservation, err error) {
	err = c.c.Call(ctx, http.MethodGet, reservationPath(id, ""), nil, nil, &out)
	return out, err
}

func (c client) ListReservations(ctx context.Context) (out []Reservation, err error) {
	err = c.c.Call(ctx, http.MethodGet, reservationsPath, nil, nil, &out)
	return out, err
}
