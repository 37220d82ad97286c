package peer

import (
	"context"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/internal/httpapi"
	"github.com/reservoir-cloud/reservoir/internal/identity"
	"github.com/reservoir-cloud/reservoir/vee"
)

// Presence of a VE on one host (the VEEs of one group on this site): which of its VEEs are
// there, and which checkpoints of any of them it keeps. It says all that there is, and takes
// the place of the one before.
type Presence struct {
	VE      string     `json:"ve"`
	Host    string     `json:"host"`
	Members []Member   `json:"members,omitempty"`
	Kept    []Kept     `json:"kept,omitempty"`
	Gone    []Departed `json:"gone,omitempty"`
}

// Member of a VE, with the three layers that are tracked of it.
type Member struct {
	VEE      vee.ID          `json:"vee"`
	Name     string          `json:"name"`
	Epoch    vee.Epoch       `json:"epoch"`
	Running  bool            `json:"running,omitempty"`
	Images   []string        `json:"images,omitempty"`   // manifest digests
	Networks []string        `json:"networks,omitempty"` // each with the address there
	Policy   vee.Reliability `json:"policy"`
}

// Kept is a checkpoint of one VEE on some host. Whole: every VEE of the VE has its part of
// the same number, on two hosts where there are two.
type Kept struct {
	VEE    vee.ID    `json:"vee"`
	VE     string    `json:"ve"`
	N      int       `json:"n"`
	Epoch  vee.Epoch `json:"epoch"` // under which it was taken
	At     time.Time `json:"at"`
	Size   vee.Bytes `json:"sizeBytes"`
	Digest string    `json:"digest"` // "sha256:…" of its stream
	Whole  bool      `json:"whole,omitempty"`
}

// Departed is a VEE that was removed for good, with what it was commanded by last.
type Departed struct {
	VEE   vee.ID    `json:"vee"`
	Epoch vee.Epoch `json:"epoch"`
}

// Deed is a part of a checkpoint of a VE, done by a host for one of its VEEs.
type Deed string

// Deeds in their order. Freeze stops the vCPUs, Take saves what is then, Thaw lets it go on;
// Fetch has a second host keep a copy; Settle says that the checkpoint is whole. Drop gives
// it up.
const (
	Freeze Deed = "freeze"
	Take   Deed = "take"
	Thaw   Deed = "thaw"
	Fetch  Deed = "fetch"
	Settle Deed = "settle"
	Drop   Deed = "drop"
)

// Order of a VE's tracker.
type Order struct {
	VE      string    `json:"ve"`
	VEE     vee.ID    `json:"vee"`
	Epoch   vee.Epoch `json:"epoch"`
	N       int       `json:"n"`                 // of the checkpoint
	LimitMS int64     `json:"limitMs,omitempty"` // Freeze: it goes on by itself after so long, ms
	From    string    `json:"from,omitempty"`    // Fetch: the host that has it
	Keep    int       `json:"keep,omitempty"`    // Settle: older ones beyond so many are given up
}

// Trackers is what the trackers of VEs say to each other and to the hosts.
type Trackers interface {
	// Present a VE to whoever tracks it, or stands by to.
	Present(ctx context.Context, p Presence) error
	// Do a deed. from is the tracker's host. Errors: Denied from a host that is not first or
	// second in line to track the VE, WrongState, StaleEpoch, DiskFull.
	Do(ctx context.Context, from string, d Deed, o Order) error
	// Kept checkpoints of a VEE, here.
	Kept(ctx context.Context, id vee.ID) ([]Kept, error)
	// Read one. fault.NotFound.
	Read(ctx context.Context, id vee.ID, n int) (io.ReadWriteCloser, error)
}

// RegisterTrackers serves t to the other hosts of the site.
func RegisterTrackers(s *httpapi.Server, t Trackers) {
	httpapi.RegisterNoBody(s, httpapi.Op{Method: "POST", Path: "/peer/v1/ve/presence", Summary: "What a host has of a VE", Roles: hostOnly},
		func(ctx context.Context, in *struct{ Body Presence }) error {
			if c := identity.From(ctx); c.Host != in.Body.Host {
				return fault.New(fault.Denied, "host %q may not speak for host %q", c.Host, in.Body.Host)
			}
			return t.Present(ctx, in.Body)
		})
	httpapi.RegisterNoBody(s, httpapi.Op{Method: "POST", Path: "/peer/v1/ve/deeds/{deed}", Summary: "A part of a checkpoint of a VE", Roles: hostOnly},
		func(ctx context.Context, in *struct {
			Deed string `path:"deed" enum:"freeze,take,thaw,fetch,settle,drop"`
			Body Order
		}) error {
			if _, err := parse(string(in.Body.VEE)); err != nil {
				return err
			}
			return t.Do(ctx, identity.From(ctx).Host, Deed(in.Deed), in.Body)
		})
	httpapi.Register(s, httpapi.Op{Method: "GET", Path: "/peer/v1/checkpoints/{id}", Summary: "The checkpoints of a VEE that this host keeps", Roles: hostOnly},
		func(ctx context.Context, in *struct {
			ID string `path:"id"`
		}) ([]Kept, error) {
			id, err := parse(in.ID)
			if err != nil {
				return nil, err
			}
			return t.Kept(ctx, id)
		})
	s.HandleUpgrade("GET /peer/v1/checkpoints/{id}/{n}", hostOnly, func(r *http.Request) (io.ReadWriteCloser, error) {
		id, err := parse(r.PathValue("id"))
		if err != nil {
			return nil, err
		}
		n, err := strconv.Atoi(r.PathValue("n"))
		if err != nil {
			return nil, fault.New(fault.Malformed, "checkpoint %q: want a number", r.PathValue("n"))
		}
		return t.Read(r.Context(), id, n)
	})
}

// NewTrackersClient speaks to another host.
func NewTrackersClient(c *httpapi.Client) Trackers { return trackersClient{c} }

type trackersClient struct{ c *httpapi.Client }

func (c trackersClient) Present(ctx context.Context, p Presence) error {
	return c.c.Call(ctx, http.MethodPost, "/peer/v1/ve/presence", nil, p, nil)
}

func (c trackersClient) Do(ctx context.Context, _ string, d Deed, o Order) error {
	return c.c.Call(ctx, http.MethodPost, "/peer/v1/ve/deeds/"+string(d), nil, o, nil)
}

func checkpointsURL(id vee.ID) string { return "/peer/v1/checkpoints/" + url.PathEscape(string(id)) }

func (c trackersClient) Kept(ctx context.Context, id vee.ID) (list []Kept, err error) {
	err = c.c.Call(ctx, http.MethodGet, checkpointsURL(id), nil, nil, &list)
	return list, err
}

func (c trackersClient) Read(ctx context.Context, id vee.ID, n int) (io.ReadWriteCloser, error) {
	return c.c.Upgrade(ctx, checkpointsURL(id)+"/"+strconv.Itoa(n))
}
