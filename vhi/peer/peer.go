// Package peer is what the agents of two hosts say to each other, of one site or of two: how
// a VEE moves from one to the other while it runs. Types, the Go interface, its HTTP server
// and client over mutual TLS; the streams of the hypervisors (memory, disks) travel as
// upgraded connections of the same listener.
//
// The caller is a host, proven by its certificate; what it may do there is what the site
// has told the other host to expect (vhi.Move): the called one compares VEE, epoch, source
// and ticket. A host of another site is let in for such a move alone.
package peer

import (
	"context"
	"io"
	"net/http"
	"net/url"

	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/internal/httpapi"
	"github.com/reservoir-cloud/reservoir/internal/identity"
	"github.com/reservoir-cloud/reservoir/ownership"
	"github.com/reservoir-cloud/reservoir/vee"
	"github.com/reservoir-cloud/reservoir/vhi"
)

// Offer is the first word of a move's source. It is taken once.
type Offer struct {
	Move   string    `json:"move"`
	Ticket string    `json:"ticket"`
	VEE    vee.ID    `json:"vee"`
	Epoch  vee.Epoch `json:"epoch"`           // under which the source runs it
	Shape  []byte    `json:"shape,omitempty"` // hypervisor.Migrator's
}

// Gift is the right to run a VEE, under an epoch with a hop more than the Offer's. Whoever
// sends it has stopped the guest and written the gift to disk. It may be repeated.
type Gift struct {
	Move  string    `json:"move"`
	VEE   vee.ID    `json:"vee"`
	Epoch vee.Epoch `json:"epoch"`
	// StillUS is for how long the vCPUs had stood still when it was sent, µs.
	StillUS int64           `json:"stillUs,omitempty"`
	Took    vhi.MoveFigures `json:"took,omitzero"` // so far
}

// Answer to a Gift, on disk before it is sent. Not Taken means void: it has not been taken
// and never will be.
type Answer struct {
	Taken bool `json:"taken"`
}

// Host is the destination, as the source sees it.
type Host interface {
	// Open makes room for the VEE and returns when its streams can be opened. Errors:
	// Denied, Conflict (the ticket was used), DiskFull, Unsupported.
	Open(ctx context.Context, o Offer) error
	// Stream carries memory or a disk to the guest that an Open has made room for.
	Stream(ctx context.Context, move string, id vee.ID, name string) (io.ReadWriteCloser, error)
	// Give hands the VEE over. Errors mean that the answer is not known.
	Give(ctx context.Context, g Gift) (Answer, error)
	// Abandon says that nothing more comes before a Give.
	Abandon(ctx context.Context, move string, id vee.ID) error
}

// Witness is a host as the others' witness of the control plane's silence.
type Witness interface {
	// Witness says that this host has lost the control plane, or nothing (Lost nil).
	Witness(ctx context.Context, a ownership.Ask) (Word, error)
}

// Word of a witness.
type Word struct {
	Lost *ownership.Lost `json:"lost,omitempty"`
}

// RegisterWitness serves w to the other hosts of the site.
func RegisterWitness(s *httpapi.Server, w Witness) {
	httpapi.Register(s, httpapi.Op{Method: "POST", Path: witnessPath, Summary: "Has this host lost the site's control plane?", Roles: hostOnly},
		func(ctx context.Context, in *struct{ Body ownership.Ask }) (Word, error) {
			if c := identity.From(ctx); c.Host != in.Body.Host {
				return Word{}, fault.New(fault.Denied, "host %q may not ask for host %q", c.Host, in.Body.Host)
			}
			return w.Witness(ctx, in.Body)
		})
}

const witnessPath = "/peer/v1/witness"

// NewWitnessClient speaks to another host.
func NewWitnessClient(c *httpapi.Client) Witness { return client{c} }

func (c client) Witness(ctx context.Context, a ownership.Ask) (w Word, err error) {
	err = c.c.Call(ctx, http.MethodPost, witnessPath, nil, a, &w)
	return w, err
}

var (
	hostOnly = []identity.Role{identity.HostRole}
	sources  = []identity.Role{identity.HostRole, identity.PartnerHost} // of moves
)

func parse(id string) (vee.ID, error) {
	v, err := vee.ParseID(id)
	if err != nil {
		return "", fault.New(fault.Malformed, "%w", err)
	}
	return v, nil
}

// Register serves h to the other hosts of the site, and to those of partners that it expects.
func Register(s *httpapi.Server, h Host) {
	httpapi.RegisterNoBody(s, httpapi.Op{Method: "POST", Path: "/peer/v1/moves/{move}/open", Summary: "Make room for a VEE that moves here", Roles: sources},
		func(ctx context.Context, in *struct {
			Move string `path:"move"`
			Body Offer
		}) error {
			if in.Body.Move != in.Move {
				return fault.New(fault.Malformed, "the path names move %s, the offer %s", in.Move, in.Body.Move)
			}
			return h.Open(ctx, in.Body)
		})
	httpapi.Register(s, httpapi.Op{Method: "POST", Path: "/peer/v1/moves/{move}/give", Summary: "Hand a VEE over", Roles: sources},
		func(ctx context.Context, in *struct {
			Move string `path:"move"`
			Body Gift
		}) (Answer, error) {
			if in.Body.Move != in.Move {
				return Answer{}, fault.New(fault.Malformed, "the path names move %s, the gift %s", in.Move, in.Body.Move)
			}
			return h.Give(ctx, in.Body)
		})
	httpapi.RegisterNoBody(s, httpapi.Op{Method: "DELETE", Path: "/peer/v1/moves/{move}/vees/{id}", Summary: "Give a move up before it was handed over", Roles: sources},
		func(ctx context.Context, in *struct {
			Move string `path:"move"`
			ID   string `path:"id"`
		}) error {
			id, err := parse(in.ID)
			if err != nil {
				return err
			}
			return h.Abandon(ctx, in.Move, id)
		})
	s.HandleUpgrade("GET /peer/v1/moves/{move}/vees/{id}/streams/{name}", sources, func(r *http.Request) (io.ReadWriteCloser, error) {
		id, err := parse(r.PathValue("id"))
		if err != nil {
			return nil, err
		}
		c, err := h.Stream(r.Context(), r.PathValue("move"), id, r.PathValue("name"))
		if err != nil {
			return nil, err
		}
		return httpapi.Windowed{ReadWriteCloser: c, Window: window}, nil
	})
}

// window of a stream between two hosts, bytes. What is under way when a guest stops is what
// it waits for, and the kernel would let it grow to tens of MiB; a link of 10 Gbit/s is full
// with this up to a round trip of 0.2 ms.
const window = 256 << 10

type client struct{ c *httpapi.Client }

// NewClient speaks to another host's agent.
func NewClient(c *httpapi.Client) Host { return client{c} }

func path(move, sub string) string { return "/peer/v1/moves/" + url.PathEscape(move) + sub }

func (c client) Open(ctx context.Context, o Offer) error {
	return c.c.Call(ctx, http.MethodPost, path(o.Move, "/open"), nil, o, nil)
}

func (c client) Stream(ctx context.Context, move string, id vee.ID, name string) (io.ReadWriteCloser, error) {
	conn, err := c.c.Upgrade(ctx, path(move, "/vees/"+url.PathEscape(string(id))+"/streams/"+url.PathEscape(name)))
	if err != nil {
		return nil, err
	}
	httpapi.SetWindow(conn, window)
	return conn, nil
}

func (c client) Give(ctx context.Context, g Gift) (a Answer, err error) {
	err = c.c.Call(ctx, http.MethodPost, path(g.Move, "/give"), nil, g, &a)
	return a, err
}

func (c client) Abandon(ctx context.Context, move string, id vee.ID) error {
	return c.c.Call(ctx, http.MethodDelete, path(move, "/vees/"+url.PathEscape(string(id))), nil, nil, nil)
}
