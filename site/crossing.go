package site

import (
	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/veem"
	"github.com/reservoir-cloud/reservoir/veem/federation/agreement"
	"github.com/reservoir-cloud/reservoir/vmi/peer"
)

// crossing is how VEEs pass the border (veem.Crossing): by routes at the proxy, to
// and from hosts that the partner's bundle proves.
type crossing struct {
	*gate
	partners peer.Partners
}

var _ veem.Crossing = crossing{}

// Bundle implements veem.Crossing. An agreement that was ended still lets VEEs leave, until
// its notice is over.
func (c crossing) Bundle(site string, cold bool) ([]byte, error) {
	x, err := c.partners.Partner(site)
	if err != nil {
		return nil, fault.New(fault.Denied, "no VEE crosses to or from site %s: %w", site, err)
	}
	now := c.now()
	for _, a := range x.Agreements {
		if a.Signed() && agreement.AllowsMove(a, !cold) == nil && !now.Before(a.From) && now.Before(a.Leave()) {
			return x.Bundle.JWKS, nil
		}
	}
	how := "while they run"
	if cold {
		how = "stopped"
	}
	return nil, fault.New(fault.Denied, "no agreement with site %s lets VEEs cross %s", site, how).Try("reservoir agreement list")
}
