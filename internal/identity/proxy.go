package identity

import "github.com/spiffe/go-spiffe/v2/spiffeid"

// ProxyRole is the site's VAN proxy, which other sites reach (van/border). What it may ask of
// the site is next to nothing.
const ProxyRole Role = "proxy"

// ProxyID is the ID of a site's VAN proxy.
func ProxyID(site string) (spiffeid.ID, error) { return newID(site, "proxy") }
