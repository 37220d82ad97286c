package peer

import (
	"context"
	"io"
	"net"
	"net/http"
	"net/url"

	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/internal/httpapi"
	"github.com/reservoir-cloud/reservoir/internal/identity"
)

const gossipPath = "/peer/v1/gossip/"

// RegisterGossip serves what hosts tell each other of each other (agent/dnt): accept is given
// the host that calls and what kind of connection it wants.
func RegisterGossip(s *httpapi.Server, accept func(host, kind string) (io.ReadWriteCloser, error)) {
	s.HandleUpgrade("GET "+gossipPath+"{kind}", hostOnly, func(r *http.Request) (io.ReadWriteCloser, error) {
		return accept(identity.From(r.Context()).Host, r.PathValue("kind"))
	})
}

// DialGossip of another host.
func DialGossip(ctx context.Context, c *httpapi.Client, kind string) (net.Conn, error) {
	up, err := c.Upgrade(ctx, gossipPath+url.PathEscape(kind))
	if err != nil {
		return nil, err
	}
	conn, ok := up.(net.Conn)
	if !ok {
		up.Close()
		return nil, fault.New(fault.Internal, "an upgraded connection is none of the network's")
	}
	return conn, nil
}
