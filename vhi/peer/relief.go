package peer

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/netip"
	"net/url"
	"strings"

	"github.com/reservoir-cloud/reservoir/dvms"
	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/internal/httpapi"
	"github.com/reservoir-cloud/reservoir/internal/identity"
	"github.com/reservoir-cloud/reservoir/van/plan"
	"github.com/reservoir-cloud/reservoir/vee"
	"github.com/reservoir-cloud/reservoir/vhi"
)

// Relief is what the hosts of a site say to each other to relieve one of them, also while
// nobody else answers (docs/dvms.md). Who speaks is in the context (package identity).
type Relief interface {
	// Tell a message of the protocol by which they agree. It may be lost.
	Tell(ctx context.Context, m dvms.Message) error
	// Load of the host: what it has, and what its guests take.
	Load(ctx context.Context) (Load, error)
	// Relieve has the host hand a VEE over to another, by a plan that its partition has made,
	// and answers with the move's ID at once. Errors: Conflict when the host knows of no such
	// plan, or the VEE is not as it was planned for.
	Relieve(ctx context.Context, r Relieve) (move string, err error)
	// Moving is how far a move is that the host was told to make; NotFound when it knows of
	// none, also because its agent was restarted.
	Moving(ctx context.Context, move string, id vee.ID) (vhi.MoveReport, error)
	// Expect a VEE from the host that calls, by a plan of both.
	Expect(ctx context.Context, e Expected) error
	// Moved is told by a host to those that share a network with a VEE of its, when it has
	// handed that over.
	Moved(ctx context.Context, m Moved) error
}

// Load of a host.
type Load struct {
	Host     string        `json:"host"`
	Driver   string        `json:"driver"` // hypervisor; VEEs move between hosts of the same
	CPUs     int           `json:"cpus"`   // physical
	Capacity vee.Resources `json:"capacity"`
	// Closed says why it takes no VEE; empty: it does. Guarded: also those under lease.
	Closed  string     `json:"closed,omitempty"`
	Guarded bool       `json:"guarded,omitempty"`
	Leaving bool       `json:"leaving,omitempty"` // its VEEs are to leave it
	Relief  vhi.Relief `json:"relief"`            // by which it goes
	VEEs    []Taken    `json:"vees"`
}

// Taken by one VEE of its host.
type Taken struct {
	VEE   vee.ID        `json:"vee"`
	Name  string        `json:"name"`
	Epoch vee.Epoch     `json:"epoch"`
	Needs vee.Resources `json:"needs"`    // that are promised to it
	CPU   int64         `json:"cpuMilli"` // that it takes; 1000 is one CPU
	// Stays says why it cannot be moved now; empty: it can.
	Stays    string    `json:"stays,omitempty"`
	Copy     vee.Bytes `json:"copyBytes,omitempty"` // that a migration sends
	Leased   bool      `json:"leased,omitempty"`
	Apart    []string  `json:"apart,omitempty"` // see vhi.Assignment
	Together []string  `json:"together,omitempty"`
}

// Agreed is a plan of a partition.
type Agreed struct {
	Partition dvms.ID      `json:"partition"`
	Plan      dvms.Version `json:"plan"`
}

// Relieve the host of a VEE.
type Relieve struct {
	Agreed
	VEE   vee.ID    `json:"vee"`
	Epoch vee.Epoch `json:"epoch"` // under which it was planned for
	To    string    `json:"to"`
	Why   string    `json:"why"` // for people: "overload of h1"
}

// Expected VEE: the assignment under which the source runs it, with the power Incoming and the
// move, and the networks that it is in as the source knows them.
type Expected struct {
	Agreed
	Assignment vhi.Assignment `json:"assignment"`
	Segments   []plan.Segment `json:"segments,omitempty"`
}

// Moved VEE.
type Moved struct {
	VEE      vee.ID     `json:"vee"`
	To       string     `json:"to"`
	Underlay netip.Addr `json:"underlay"` // of To
}

// wire is a message as it travels.
type wire struct {
	Kind    string          `json:"kind" doc:"of the message: one of docs/dvms.md"`
	Message json.RawMessage `json:"message"`
}

// kinds of message: how each is read, and who says that it speaks; "" is whoever sends it, since
// problems are passed on along a ring and leads handed over.
var kinds = map[string]func([]byte) (m dvms.Message, speaks string, err error){
	"problem":  kind(func(dvms.Problem) string { return "" }),
	"willing":  kind(func(m dvms.Willing) string { return m.From }),
	"busy":     kind(func(m dvms.Busy) string { return m.From }),
	"round":    kind(func(dvms.Round) string { return "" }),
	"update":   kind(func(dvms.Update) string { return "" }),
	"here":     kind(func(m dvms.Here) string { return m.From }),
	"gone":     kind(func(m dvms.Gone) string { return m.From }),
	"meet":     kind(func(dvms.Meet) string { return "" }),
	"offer":    kind(func(m dvms.Offer) string { return m.Partition.Leader }),
	"dissolve": kind(func(dvms.Dissolve) string { return "" }),
	"over":     kind(func(m dvms.Over) string { return m.ID.Initiator }),
}

func kind[M dvms.Message](speaks func(M) string) func([]byte) (dvms.Message, string, error) {
	return func(b []byte) (dvms.Message, string, error) {
		var m M
		err := json.Unmarshal(b, &m)
		return m, speaks(m), err
	}
}

// wrap a message for its way.
func wrap(m dvms.Message) (w wire, err error) {
	w.Kind = strings.ToLower(strings.TrimPrefix(fmt.Sprintf("%T", m), "dvms."))
	w.Message, err = json.Marshal(m)
	return w, err
}

// open a message that from has sent. What it says of itself must be so.
func (w wire) open(from string) (dvms.Message, error) {
	read := kinds[w.Kind]
	if read == nil {
		return nil, fault.New(fault.Malformed, "a message of kind %q", w.Kind)
	}
	m, speaks, err := read(w.Message)
	switch {
	case err != nil:
		return nil, fault.New(fault.Malformed, "a message of kind %q: %w", w.Kind, err)
	case speaks != "" && speaks != from:
		return nil, fault.New(fault.Denied, "host %q may not speak for host %q", from, speaks)
	}
	return m, nil
}

// RegisterRelief serves r to the other hosts of the site.
func RegisterRelief(s *httpapi.Server, r Relief) {
	httpapi.RegisterNoBody(s, httpapi.Op{Method: "POST", Path: tellPath, Summary: "A word of the protocol by which hosts relieve each other", Roles: hostOnly},
		func(ctx context.Context, in *struct{ Body wire }) error {
			m, err := in.Body.open(identity.From(ctx).Host)
			if err != nil {
				return err
			}
			return r.Tell(ctx, m)
		})
	httpapi.Register(s, httpapi.Op{Method: "GET", Path: loadPath, Summary: "What this host has, and what its guests take", Roles: hostOnly},
		func(ctx context.Context, _ *httpapi.Empty) (Load, error) { return r.Load(ctx) })
	httpapi.Register(s, httpapi.Op{Method: "POST", Path: relievePath, Summary: "Hand a VEE over by a plan of this host's partition", Roles: hostOnly},
		func(ctx context.Context, in *struct{ Body Relieve }) (begun, error) {
			id, err := r.Relieve(ctx, in.Body)
			return begun{Move: id}, err
		})
	httpapi.Register(s, httpapi.Op{Method: "GET", Path: "/peer/v1/moves/{move}/vees/{id}", Summary: "How far a hand-over is", Roles: hostOnly},
		func(ctx context.Context, in *struct {
			Move string `path:"move"`
			ID   string `path:"id"`
		}) (vhi.MoveReport, error) {
			id, err := parse(in.ID)
			if err != nil {
				return vhi.MoveReport{}, err
			}
			return r.Moving(ctx, in.Move, id)
		})
	httpapi.RegisterNoBody(s, httpapi.Op{Method: "POST", Path: expectPath, Summary: "Expect a VEE from the host that calls", Roles: hostOnly},
		func(ctx context.Context, in *struct{ Body Expected }) error { return r.Expect(ctx, in.Body) })
	httpapi.RegisterNoBody(s, httpapi.Op{Method: "POST", Path: movedPath, Summary: "A VEE that was the caller's is at another host", Roles: hostOnly},
		func(ctx context.Context, in *struct{ Body Moved }) error { return r.Moved(ctx, in.Body) })
}

const (
	tellPath    = "/peer/v1/relief/words"
	loadPath    = "/peer/v1/relief/load"
	relievePath = "/peer/v1/relief/moves"
	expectPath  = "/peer/v1/relief/arrivals"
	movedPath   = "/peer/v1/relief/moved"
)

type begun struct {
	Move string `json:"move"`
}

// NewReliefClient speaks to another host.
func NewReliefClient(c *httpapi.Client) Relief { return client{c} }

func (c client) Tell(ctx context.Context, m dvms.Message) error {
	w, err := wrap(m)
	if err != nil {
		return fmt.Errorf("a message to another host: %w", err)
	}
	return c.c.Call(ctx, http.MethodPost, tellPath, nil, w, nil)
}

func (c client) Load(ctx context.Context) (l Load, err error) {
	err = c.c.Call(ctx, http.MethodGet, loadPath, nil, nil, &l)
	return l, err
}

func (c client) Relieve(ctx context.Context, r Relieve) (string, error) {
	var b begun
	err := c.c.Call(ctx, http.MethodPost, relievePath, nil, r, &b)
	return b.Move, err
}

func (c client) Moving(ctx context.Context, move string, id vee.ID) (p vhi.MoveReport, err error) {
	err = c.c.Call(ctx, http.MethodGet, path(move, "/vees/"+url.PathEscape(string(id))), nil, nil, &p)
	return p, err
}

func (c client) Expect(ctx context.Context, e Expected) error {
	return c.c.Call(ctx, http.MethodPost, expectPath, nil, e, nil)
}

func (c client) Moved(ctx context.Context, m Moved) error {
	return c.c.Call(ctx, http.MethodPost, movedPath, nil, m, nil)
}
