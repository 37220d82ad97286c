package post

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/reservoir-cloud/reservoir/internal/durable"
	"github.com/reservoir-cloud/reservoir/van/border"
	"github.com/reservoir-cloud/reservoir/van/border/relay"
)

// routes are where tickets lead now.
type routes struct {
	file string // of the digests of used tickets for one connection
	now  func() time.Time

	mu     sync.Mutex
	by     map[string]*route // by ticket
	relays map[string]string // of partners, by site
	used   map[string]bool   // by digest
}

type route struct {
	border.Route
	uses uint64
	open int
}

func openRoutes(file string, now func() time.Time) (*routes, error) {
	r := &routes{file: file, now: now, by: map[string]*route{}, relays: map[string]string{}, used: map[string]bool{}}
	var digests []string
	if err := durable.ReadJSON(file, &digests); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("used tickets: %w", err)
	}
	for _, d := range digests {
		r.used[d] = true
	}
	return r, nil
}

// put these routes in the place of all others. Connections that are open stay; that a ticket
// was used is forgotten with its route.
func (r *routes) put(peers []border.Peer, list []border.Route) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	next, used := map[string]*route{}, map[string]bool{}
	for _, x := range list {
		n := &route{Route: x}
		if old := r.by[x.Ticket]; old != nil {
			old.Route = x
			n = old // who is open counts down here
		}
		next[x.Ticket] = n
		if d := border.TicketDigest(x.Ticket); r.used[d] {
			used[d], n.uses = true, max(n.uses, 1)
		}
	}
	forgotten := len(used) != len(r.used)
	r.by, r.used, r.relays = next, used, map[string]string{}
	for _, p := range peers {
		r.relays[p.Site] = p.Relay
	}
	if forgotten {
		return r.keep()
	}
	return nil
}

func (r *routes) keep() error {
	digests := make([]string, 0, len(r.used))
	for d := range r.used {
		digests = append(digests, d)
	}
	slices.Sort(digests)
	return durable.WriteJSON(r.file, digests, 0o600)
}

func sideOf(x border.Route) relay.Side {
	if x.Peer != "" {
		return relay.Inside
	}
	return relay.Outside
}

// lead implements relay.Tickets. That a ticket for one connection was used is on disk before
// it leads anywhere.
func (r *routes) lead(side relay.Side, ticket string) (g relay.Goal, done func(), err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	x := r.by[ticket]
	switch {
	case x == nil || sideOf(x.Route) != side: // one for the other side is told from none to nobody
		return g, nil, errors.New("the ticket is not known here")
	case !x.Expires.IsZero() && !r.now().Before(x.Expires):
		return g, nil, fmt.Errorf("the ticket has expired at %s", x.Expires.UTC().Format(time.RFC3339))
	case x.Once && r.used[border.TicketDigest(ticket)]:
		return g, nil, errors.New("the ticket has been used, and was good for one connection")
	}
	g = relay.Goal{Address: x.To}
	if x.Peer != "" {
		g = relay.Goal{Address: r.relays[x.Peer], Show: x.Show}
	}
	if g.Address == "" {
		return g, nil, fmt.Errorf("it is not known where the proxy of site %s is", x.Peer)
	}
	if x.Once {
		d := border.TicketDigest(ticket)
		r.used[d] = true
		if err := r.keep(); err != nil {
			delete(r.used, d)
			return g, nil, errors.New("the proxy cannot write down that the ticket is used")
		}
	}
	x.uses++
	x.open++
	return g, func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		x.open--
	}, nil
}

// status of the routes, in the order of what they are for.
func (r *routes) status() []border.RouteStatus {
	r.mu.Lock()
	defer r.mu.Unlock()
	list := make([]border.RouteStatus, 0, len(r.by))
	for _, x := range r.by {
		s := border.RouteStatus{Digest: border.TicketDigest(x.Ticket), For: x.For, From: string(sideOf(x.Route)), To: x.To, Once: x.Once, Expires: x.Expires, Used: x.uses, Open: x.open}
		if x.Peer != "" {
			s.To = x.Peer
		}
		list = append(list, s)
	}
	slices.SortFunc(list, func(a, b border.RouteStatus) int {
		return strings.Compare(a.For+"\x00"+a.Digest, b.For+"\x00"+b.Digest)
	})
	return list
}
