package identity

import (
	"errors"
	"strings"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/reservoir-cloud/reservoir/internal/fault"
)

// The SPIFFE IDs of a site. Its name is the trust domain.
//
//	spiffe://SITE/site            its control plane
//	spiffe://SITE/host/NAME       a host
//	spiffe://SITE/proxy           its VAN proxy
//	spiffe://SITE/provider/NAME   a service provider's client

// SiteID is the ID of a site's control plane; fault.Malformed for a name that cannot be a
// SPIFFE trust domain (lower-case letters, digits, ".", "-", "_").
func SiteID(site string) (spiffeid.ID, error) { return newID(site, "site") }

// HostID is the ID of a host. Its name may have letters, digits, ".", "-", "_".
func HostID(site, host string) (spiffeid.ID, error) { return newID(site, "host", host) }

// ProviderID is the ID of a service provider's client.
func ProviderID(site, customer string) (spiffeid.ID, error) {
	return newID(site, "provider", customer)
}

func newID(site string, segments ...string) (spiffeid.ID, error) {
	td, err := spiffeid.TrustDomainFromString(site)
	if err == nil && td.Name() != site { // it takes a whole SPIFFE ID as well
		err = errors.New(`only lower-case letters, digits, ".", "-" and "_" may be in it`)
	}
	if err != nil {
		return spiffeid.ID{}, fault.New(fault.Malformed, "site name %q: %w", site, err)
	}
	id, err := spiffeid.FromSegments(td, segments...)
	if err != nil {
		return spiffeid.ID{}, fault.New(fault.Malformed, "%s name %q: %w", segments[0], segments[len(segments)-1], err)
	}
	return id, nil
}

// callerOf is what a proven SPIFFE ID makes of its holder at a site; fault.Denied for an
// ID that has no role there.
func callerOf(site string, id spiffeid.ID) (Caller, error) {
	c := Caller{ID: id.String()}
	kind, name, _ := strings.Cut(strings.TrimPrefix(id.Path(), "/"), "/")
	switch {
	case id.TrustDomain().Name() != site, strings.Contains(name, "/"):
	case kind == "site" && name == "":
		c.Role = SiteRole
	case kind == "host" && name != "":
		c.Role, c.Host = HostRole, name
	case kind == "proxy" && name == "":
		c.Role = ProxyRole
	case kind == "provider" && name != "":
		c.Role, c.Customer = Provider, name
	}
	if c.Role == "" {
		return Caller{}, fault.New(fault.Denied, "identity %s has no role at site %s", id, site)
	}
	return c, nil
}
