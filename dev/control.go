package dev

import (
	"context"
	"fmt"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/reservoir-cloud/reservoir/internal/durable"
	"github.com/reservoir-cloud/reservoir/internal/fault"
)

// A control plane on several machines: the site's own node is the first member, "m1"; the
// others are plugged into its bridge as hosts are, each in a namespace of its own. Access
// points have an address that is whoever's leads.

// maxControl is far more than anybody needs, and what leaves the addresses to hosts.
const maxControl = 7

// accessHost is the number of the address of access points, on a control plane of several.
const accessHost = 250

// several machines are the control plane of each site.
func (c Config) several() bool { return c.Control > 1 }

// urls at which the members of site i answer.
func (c Config) urls(i int) (all []string) {
	for k := range max(1, c.Control) {
		all = append(all, fmt.Sprintf("https://%s:%d", c.address(i, 1+k), sitePort))
	}
	return all
}

// control is the nodes of site i's control plane, of which first is the one that there always
// is.
func (c Config) control(i int, first node) []node {
	if !c.several() {
		return []node{first}
	}
	dir := filepath.Join(c.Dir, first.site)
	all := []node{first}
	shared := []string{"--unseal-file", filepath.Join(dir, "unseal.key"), "--access-address", c.address(i, accessHost)}
	for k := 2; k <= c.Control; k++ {
		m := first
		m.member, m.host, m.address = true, "m"+strconv.Itoa(k), c.address(i, k)
		m.netns, m.dir = first.netns+"-"+m.host, filepath.Join(dir, m.host)
		m.args = append([]string{}, first.args...)
		for j := range m.args {
			switch m.args[j] {
			case "--dir":
				m.args[j+1] = m.dir
			case "--advertise":
				m.args[j+1] = m.address + ":" + strconv.Itoa(sitePort)
			}
		}
		m.args = append(append(m.args, "--member", m.host, "--join-site", strings.Join(c.urls(i), ","), "--join-file", filepath.Join(dir, m.host+".token")), shared...)
		all = append(all, m)
	}
	all[0].args = append(append(append([]string{}, first.args...), "--member", "m1"), shared...)
	return all
}

// inviteMember writes a join token for a member that has none yet. One that has joined does
// not look at it.
func (l layout) inviteMember(ctx context.Context, client Client, s Site, n node) error {
	return retry(ctx, func() error {
		token, err := client.InviteMember(ctx, s, n.host)
		if fault.Has(err, fault.Exists) { // it has joined in an earlier run
			return nil
		}
		if err != nil {
			return err
		}
		return durable.WriteFile(filepath.Join(l.cfg.Dir, n.site, n.host+".token"), []byte(token+"\n"), 0o600)
	})
}

// awaitMembers until all of a site's are well.
func (l layout) awaitMembers(ctx context.Context, client Client, s Site) error {
	if len(s.Members) == 0 {
		return nil
	}
	return retry(ctx, func() error {
		n, err := client.HealthyMembers(ctx, s)
		if err == nil && n < 1+len(s.Members) {
			err = fault.New(fault.Unavailable, "%d of %d members of site %s are well", n, 1+len(s.Members), s.Name)
		}
		return err
	})
}
