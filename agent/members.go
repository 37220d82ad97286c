package agent

import (
	"errors"
	"io/fs"
	"path/filepath"
	"slices"

	"github.com/reservoir-cloud/reservoir/internal/durable"
	"github.com/reservoir-cloud/reservoir/internal/httpapi"
	"github.com/reservoir-cloud/reservoir/internal/identity"
)

// The addresses of the site's members come with each renewal. They are kept, so that a host
// finds the site after a restart when none of those is left that it was started with.

func membersFile(dir string) string { return filepath.Join(dir, "members.json") }

// toSite are the members of the site, those that the site has told before those of the
// configuration.
func toSite(cfg Config, keys *identity.Keypair) (*httpapi.Members, error) {
	id, err := identity.SiteID(keys.Site())
	if err != nil {
		return nil, err
	}
	var all []string
	if err := durable.ReadJSON(membersFile(cfg.Dir), &all); err != nil && !errors.Is(err, fs.ErrNotExist) {
		cfg.Log.Warn("addresses of the site's members", "err", err) // the configuration has some
	}
	for _, a := range cfg.Sites {
		if !slices.Contains(all, a) {
			all = append(all, a)
		}
	}
	return httpapi.NewMembers(keys.ClientTLS(id), all...), nil
}

// moved takes in where the site's members are now.
func (a *agent) moved(members []string) {
	if len(members) == 0 {
		return
	}
	now := a.members.Addresses()
	slices.Sort(now)
	if next := slices.Sorted(slices.Values(members)); slices.Equal(now, next) {
		return
	}
	a.members.Set(members)
	if err := durable.WriteJSON(membersFile(a.cfg.Dir), members, 0o600); err != nil {
		a.cfg.Log.Warn("keep the addresses of the site's members", "err", err)
	}
}
