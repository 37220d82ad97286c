package site

import (
	"context"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/internal/httpapi"
	"github.com/reservoir-cloud/reservoir/internal/identity"
	"github.com/reservoir-cloud/reservoir/internal/join"
	"github.com/reservoir-cloud/reservoir/internal/store"
	"github.com/reservoir-cloud/reservoir/site/admin"
	"github.com/reservoir-cloud/reservoir/site/peer"
	"github.com/reservoir-cloud/reservoir/vee"
	"github.com/reservoir-cloud/reservoir/vhi"
)

// The members of the control plane as the operator sees them, and how a machine becomes one.

// askMember is how long a member may take to say how it is.
const askMember = 2 * time.Second

// memberInvitations are kept apart from those of hosts: a host's token makes no member.
func memberInvitations(s *store.Store) *identity.Invitations {
	return identity.NewInvitations(store.NewCollection[identity.Invitation](s, "member-invitation"), time.Now)
}

// Members implements admin.Service.
func (s *site) Members(ctx context.Context) ([]admin.Member, error) {
	rows, err := s.member.rows.Values(ctx, "")
	if err != nil {
		return nil, err
	}
	list := make([]admin.Member, len(rows))
	var wg sync.WaitGroup
	for i, r := range rows {
		wg.Go(func() { list[i] = s.look(ctx, r) })
	}
	wg.Wait()
	return list, nil
}

// look how a member is.
func (s *site) look(ctx context.Context, r memberRow) admin.Member {
	out := admin.Member{Name: r.Name, Address: r.Address, Own: r.Own, Store: r.Store}
	ctx, cancel := context.WithTimeout(ctx, askMember)
	defer cancel()
	var st peer.MemberStatus
	var err error
	if r.Name == s.cfg.Member.Name {
		st, err = s.member.Status(ctx)
	} else {
		p, c := s.member.peerAt(r.Own)
		defer c.CloseIdleConnections()
		st, err = p.Status(ctx)
	}
	if err != nil {
		out.Problem = err.Error()
		return out
	}
	out.Healthy, out.Problem, out.Leads = st.Problem == "", st.Problem, st.Leads
	out.Version, out.Started, out.Size, out.Missing = st.Version, st.Started, st.Size, st.Missing
	return out
}

// eachMember but this one, one after the other. One that does not answer is passed over: it is
// not well, and Members says so.
func (s *site) eachMember(ctx context.Context, f func(context.Context, peer.Member) error) error {
	others, err := s.member.others(ctx)
	if err != nil {
		return err
	}
	for _, o := range others {
		p, c := s.member.peerAt(o.Own)
		err := f(ctx, p)
		c.CloseIdleConnections()
		if err != nil && !fault.Has(err, fault.Unavailable) && !fault.Has(err, fault.Timeout) {
			return err
		}
	}
	return nil
}

// InviteMember implements admin.Service.
func (s *site) InviteMember(ctx context.Context, r admin.NewMember) (admin.Invite, error) {
	if !s.member.several() {
		return admin.Invite{}, fault.New(fault.WrongState, "this control plane is one process that has no name").
			Try("start it again with a name: reservoir site --member m1")
	}
	if !vee.ValidName(r.Name) {
		return admin.Invite{}, fault.New(fault.Malformed, "member name %q: want a DNS label such as \"m2\"", r.Name)
	}
	if _, _, err := s.member.rows.Get(ctx, r.Name); err == nil {
		return admin.Invite{}, fault.New(fault.Exists, "there is a member %s", r.Name).Try("reservoir site member remove %s, if it is lost", r.Name)
	} else if !fault.Has(err, fault.NotFound) {
		return admin.Invite{}, err
	}
	d, err := life(r.TTLMS, inviteLife)
	if err != nil {
		return admin.Invite{}, err
	}
	token, err := memberInvitations(s.store).Create(ctx, s.ca, r.Name, d)
	if err != nil {
		return admin.Invite{}, err
	}
	return admin.Invite{Token: token.Reveal(), Host: r.Name, Address: s.cfg.Advertise, Expires: time.Now().Add(d)}, nil
}

// JoinMember implements admin.Joining.
func (s *site) JoinMember(ctx context.Context, r admin.MemberJoin) (admin.MemberPapers, error) {
	inv, err := memberInvitations(s.store).Redeem(ctx, identity.Secret(r.Token), r.CSR)
	if err != nil {
		return admin.MemberPapers{}, err
	}
	if inv.Host != r.Member {
		return admin.MemberPapers{}, fault.New(fault.Denied, "the invitation is for member %q, not for %q", inv.Host, r.Member).
			Try("reservoir site member add %s", r.Member)
	}
	for _, a := range []string{r.Address, r.Own, r.Store} {
		if host, _, err := net.SplitHostPort(a); err != nil || net.ParseIP(host).IsUnspecified() || strings.ContainsAny(host, "/@?#=,") {
			return admin.MemberPapers{}, fault.New(fault.Malformed, "address %q of member %s: want HOST:PORT by which the others reach it", a, r.Member).Try("reservoir site --advertise HOST:PORT")
		}
	}
	out := admin.MemberPapers{Site: s.cfg.Name}
	host, _, _ := net.SplitHostPort(r.Store)
	if out.Certificate, out.Bundle, err = certifySite(s.ca, s.cfg.Name, r.CSR, host); err != nil {
		return admin.MemberPapers{}, err
	}
	// The row first: what is half joined can be removed by its name.
	if _, err := s.member.rows.Put(ctx, r.Member, memberRow{Name: r.Member, Address: r.Address, Own: r.Own, Store: r.Store, Joined: time.Now()}); err != nil {
		return admin.MemberPapers{}, err
	}
	all, err := s.store.AddMember(ctx, r.Member, r.Store)
	if err != nil {
		return admin.MemberPapers{}, err
	}
	for _, m := range all {
		out.Record = append(out.Record, admin.MemberRecord{Name: m.Name, Address: m.Address})
	}
	return out, nil
}

// RemoveMember implements admin.Service.
func (s *site) RemoveMember(ctx context.Context, name string) error {
	r, _, err := s.member.rows.Get(ctx, name)
	if err != nil {
		return err
	}
	if name == s.cfg.Member.Name {
		return fault.New(fault.WrongState, "member %s leads", name).Try("stop it first: another will lead, and can remove it")
	}
	if err := s.store.RemoveMember(ctx, name, r.Store); err != nil {
		return err
	}
	return s.member.rows.Delete(ctx, name, 0)
}

// cluster of the record of truth, that this member is one of.
func (m *member) cluster(joining []admin.MemberRecord) *store.Cluster {
	dir := filepath.Join(m.cfg.Dir, "identity")
	c := &store.Cluster{
		Name: m.cfg.Member.Name, Listen: m.cfg.Member.StoreListen, Advertise: m.cfg.addressOf(m.cfg.Member.StoreListen),
		CertFile: filepath.Join(dir, "cert.pem"), KeyFile: filepath.Join(dir, "key.pem"), BundleFile: filepath.Join(dir, "bundle.pem"),
		CommonName: string(identity.SiteRole), // as the last part of identity.SiteID
	}
	for _, j := range joining {
		c.Joining = append(c.Joining, store.Member{Name: j.Name, Address: j.Address})
	}
	return c
}

// join the control plane with the one-time token.
func (m *member) join(ctx context.Context) (*store.Cluster, error) {
	c := m.cfg
	if c.Member.JoinToken == "" {
		return nil, fault.New(fault.Unauthenticated, "member %s has not joined the control plane yet", c.Member.Name).
			Try("on the site: reservoir site member add %s; here: reservoir site --join TOKEN --join-site https://HOST:8440", c.Member.Name)
	}
	if _, err := passphrase(c.unseal()); err != nil {
		return nil, err // better now than as half a member
	}
	var got admin.MemberPapers
	err := join.Site(ctx, m.keys, join.Way{Sites: c.Member.Join, Token: c.Member.JoinToken, Log: c.Log}, func(ctx context.Context, site *httpapi.Client, csr []byte) (_ join.Papers, err error) {
		got, err = admin.NewClient(site).JoinMember(ctx, admin.MemberJoin{Token: c.Member.JoinToken, Member: c.Member.Name, CSR: csr,
			Address: c.Advertise, Own: c.addressOf(c.Member.Listen), Store: c.addressOf(c.Member.StoreListen)})
		if err == nil && got.Site != c.Name {
			err = fault.New(fault.WrongState, "the token is of site %s, not of %s", got.Site, c.Name).Try("reservoir site --name %s", got.Site)
		}
		return join.Papers{Site: got.Site, Certificate: got.Certificate, Bundle: got.Bundle}, err
	})
	if err != nil {
		return nil, err
	}
	return m.cluster(got.Record), nil
}

// accessLease is until when this member may have the addresses of access points: it leads till
// then. nil: they are this machine's own.
func (s *site) accessLease() func() time.Time {
	host, _, _ := net.SplitHostPort(s.cfg.Advertise)
	if own, err := netip.ParseAddr(host); !s.member.several() || err == nil && own == s.cfg.AccessAddress {
		return nil
	}
	return s.term.Until
}

// Renew implements vhi.Manager: with the answer a host hears at which addresses the site's
// members are.
func (h hosts) Renew(ctx context.Context, r vhi.Renewal) (vhi.RenewalReply, error) {
	out, err := h.Manager.Renew(ctx, r)
	if err != nil || !h.s.member.several() {
		return out, err
	}
	out.Members = h.s.addresses()
	return out, nil
}

// addresses at which the site's members answer for the site, as of a moment ago.
func (s *site) addresses() []string {
	s.rowsMu.Lock()
	defer s.rowsMu.Unlock()
	return slices.Clone(s.at)
}

// followMembers keeps what addresses answers.
func (s *site) followMembers(ctx context.Context) {
	at := map[string]string{}
	for c := range s.member.rows.Watch(ctx, "") {
		switch c.Kind {
		case store.Changed:
			at[c.Key] = c.Value.Address
		case store.Deleted:
			delete(at, c.Key)
		}
		var list []string
		for _, a := range at {
			list = append(list, a)
		}
		slices.Sort(list)
		s.rowsMu.Lock()
		s.at = list
		s.rowsMu.Unlock()
	}
}
