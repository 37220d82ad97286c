package partners

import (
	"github.com/reservoir-cloud/reservoir/internal/httpapi"
)

// Client speaks to a partner's control plane, over the relay: for what is neither the VMI nor
// peer.Site, such as its registry. Calls fail at once while it is down.
func (r *Registry) Client(name string) (*httpapi.Client, error) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	l, p := r.links[name], r.partners[name]
	if l == nil || p.Revoked != nil {
		return nil, r.unknown(name, p)
	}
	return l.client, nil
}
