package agent

import (
	"context"
	"net"
	"net/http"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/internal/httpapi"
	"github.com/reservoir-cloud/reservoir/internal/identity"
	"github.com/reservoir-cloud/reservoir/van/border/relay"
	"github.com/reservoir-cloud/reservoir/vhi"
)

// maxDoors that connections are kept for. What is beyond only has to connect anew.
const maxDoors = 64

// throughDoor is the client of a host at another site: its calls are connections to this
// site's proxy, which leads them there, and TLS with that host alone.
func (a *agent) throughDoor(d vhi.Door) *httpapi.Client {
	a.peersMu.Lock()
	defer a.peersMu.Unlock()
	if c := a.doors[d.Route]; c != nil {
		return c
	}
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		return relay.Dial(ctx, &net.Dialer{Timeout: 10 * time.Second}, d.Proxy, d.Route)
	}
	t := &http.Transport{ForceAttemptHTTP2: true, IdleConnTimeout: time.Minute, DialContext: dial}
	if id, trust, err := trustDoor(d, time.Now); err != nil {
		t.DialContext = func(context.Context, string, string) (net.Conn, error) { return nil, err }
	} else {
		t.TLSClientConfig = a.keys.PartnerTLS(trust, id)
	}
	if len(a.doors) >= maxDoors {
		clear(a.doors)
	}
	c := &httpapi.Client{Base: "https://" + d.Proxy, HTTP: &http.Client{Transport: t}}
	a.doors[d.Route] = c
	return c
}

// trustDoor is trust in the one who opens it.
func trustDoor(d vhi.Door, now func() time.Time) (spiffeid.ID, *identity.Trust, error) {
	id, err := spiffeid.FromString(d.Host)
	if err != nil || id.TrustDomain().Name() != d.Site {
		return id, nil, fault.New(fault.Malformed, "the door into site %s: %q is no host of it", d.Site, d.Host)
	}
	b, err := identity.ParseBundle(d.Site, d.Bundle)
	if err != nil {
		return id, nil, err
	}
	trust := identity.NewTrust(now)
	trust.Put(id, b)
	return id, trust, nil
}

// letIn the hosts of the sites that VEEs are expected from, and nobody else.
func (a *agent) letIn() {
	var all []*spiffebundle.Bundle
	for _, o := range a.tracker.Origins() {
		b, err := identity.ParseBundle(o.Site, o.Bundle)
		if err != nil {
			a.cfg.Log.Warn("a VEE from another site will not come", "site", o.Site, "err", err)
			continue
		}
		all = append(all, b)
	}
	a.trust.PutHosts(all...)
}
