package agent

import (
	"context"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/van"
	"github.com/reservoir-cloud/reservoir/van/plan"
	"github.com/reservoir-cloud/reservoir/vee"
)

// connectTimeout bounds the wait for a guest that does not answer.
const connectTimeout = 5 * time.Second

// Connect implements vhi.Host.
func (a *agent) Connect(ctx context.Context, id vee.ID, port uint16) (io.ReadWriteCloser, error) {
	if _, err := a.tracker.NICs(id); err != nil {
		return nil, err
	}
	return a.networks.connect(ctx, id, port)
}

// connect to a port of a VEE that is here, from inside one of its networks: where it is not
// to be reached in one, the next is tried; public ones come first.
func (n *networks) connect(ctx context.Context, id vee.ID, port uint16) (conn net.Conn, err error) {
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	err = fault.New(fault.NotFound, "VEE %s has no network", id)
	for _, s := range n.segmentsOf(id) {
		for _, p := range s.Ports {
			if p.VEE != id {
				continue
			}
			for _, at := range p.Addresses {
				derr := n.path.Inside(s.ID, func(string) (err error) {
					conn, err = (&net.Dialer{}).DialContext(ctx, "tcp", netip.AddrPortFrom(at, port).String())
					return err
				})
				if derr == nil && conn != nil {
					return conn, nil
				}
				err = fault.New(fault.Unavailable, "VEE %s does not accept connections to port %d: %w", id, port, derr).
					Try("see what the guest says: reservoir vee console %s", id)
			}
		}
	}
	return nil, err
}

// segmentsOf a VEE, public ones first.
func (n *networks) segmentsOf(id vee.ID) (of []plan.Segment) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, s := range n.effect {
		if slices.ContainsFunc(s.Ports, func(p plan.Port) bool { return p.VEE == id }) {
			of = append(of, s)
		}
	}
	slices.SortFunc(of, func(a, b plan.Segment) int {
		if a.Public != b.Public {
			if a.Public {
				return -1
			}
			return 1
		}
		return strings.Compare(a.ID, b.ID)
	})
	return of
}

// Capture implements vhi.Host.
func (a *agent) Capture(ctx context.Context, id vee.ID, nic int) (io.ReadWriteCloser, error) {
	if _, err := a.tracker.NICs(id); err != nil {
		return nil, err
	}
	// The stream lives on when the call that opened it has returned: its reader ends it.
	r, err := van.Capture(context.WithoutCancel(ctx), id, nic)
	if err != nil {
		return nil, err
	}
	return readOnly{r}, nil
}

// readOnly is a stream that takes what is written and drops it.
type readOnly struct{ io.ReadCloser }

func (readOnly) Write(b []byte) (int, error) { return len(b), nil }
