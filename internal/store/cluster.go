package store

import (
	"context"
	"errors"
	"net/url"
	"slices"
	"strings"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"go.etcd.io/etcd/client/pkg/v3/transport"
	"go.etcd.io/etcd/server/v3/embed"

	"github.com/reservoir-cloud/reservoir/internal/fault"
)

// Cluster is how a record that is one of several finds the others. The first member has no
// Joining and begins the cluster; a record that was alone so far becomes the first of one.
type Cluster struct {
	Name      string // of this member
	Listen    string // host:port for the other members
	Advertise string // host:port that they reach it by
	// Certificates of the members, in PEM files that are read anew for each connection. Both
	// sides show one, whose common name is CommonName: nobody else is let in.
	CertFile, KeyFile, BundleFile, CommonName string
	// Joining lists all members, this one too, as AddMember gave them. It is of use at the
	// first start alone; nil: the first member.
	Joining []Member
}

// Member of the cluster that keeps the record.
type Member struct {
	ID      uint64 `json:"id"`
	Name    string `json:"name"`    // empty: it has not come up yet
	Address string `json:"address"` // host:port for other members
	Learns  bool   `json:"learns,omitempty"`
}

// A majority of several members has to hear of each write over the network: more patience
// than a lone one needs, whose election time is its start-up time.
const (
	clusterTickMs     = 100
	clusterElectionMs = 1000
)

func peerURL(address string) url.URL { return url.URL{Scheme: "https", Host: address} }

func (c *Cluster) configure(ec *embed.Config) {
	ec.Name = c.Name
	ec.ListenPeerUrls, ec.AdvertisePeerUrls = []url.URL{peerURL(c.Listen)}, []url.URL{peerURL(c.Advertise)}
	ec.InitialCluster = ec.InitialClusterFromName(c.Name)
	if len(c.Joining) > 0 {
		var all []string
		for _, m := range c.Joining {
			u := peerURL(m.Address)
			all = append(all, m.Name+"="+u.String())
		}
		ec.InitialCluster, ec.ClusterState = strings.Join(all, ","), embed.ClusterStateFlagExisting
	}
	ec.TickMs, ec.ElectionMs = clusterTickMs, clusterElectionMs
	// A follower that is behind by less than this is sent writes, not everything.
	ec.SnapshotCatchUpEntries = snapshotCount
	ec.PeerTLSInfo = transport.TLSInfo{
		CertFile: c.CertFile, KeyFile: c.KeyFile, TrustedCAFile: c.BundleFile, ClientCertAuth: true,
		// Hosts have certificates of the same authority. The address that a member calls from
		// says nothing (SkipClientSANVerify), the name that it was certified for does.
		AllowedCNs: []string{c.CommonName}, SkipClientSANVerify: true,
	}
}

// settle makes this member what its configuration says: at its address, and one that votes.
func (e *embedded) settle(ctx context.Context, c Cluster) error {
	self, u := uint64(e.etcd.Server.MemberID()), peerURL(c.Advertise)
	for {
		err := func() error {
			octx, cancel := context.WithTimeout(ctx, opTimeout)
			defer cancel()
			r, err := e.client.MemberList(octx)
			if err != nil {
				return err
			}
			i := slices.IndexFunc(r.Members, func(m *etcdserverpb.Member) bool { return m.ID == self })
			if i < 0 {
				return nil // it hears of its removal in a moment
			}
			if m := r.Members[i]; !slices.Equal(m.PeerURLs, []string{u.String()}) {
				if _, err := e.client.MemberUpdate(octx, self, []string{u.String()}); err != nil {
					return err
				}
			}
			if r.Members[i].IsLearner {
				_, err = e.client.MemberPromote(octx, self)
			}
			return err
		}()
		if err == nil {
			return nil
		}
		select {
		case <-e.etcd.Server.StopNotify():
			return errRemoved
		case <-ctx.Done():
			return fault.New(fault.Timeout, "become a member of the site's record of truth: %w", errors.Join(ctx.Err(), err))
		case <-time.After(retryAfter): // it is still learning, or there is no majority yet
		}
	}
}

var errRemoved = fault.New(fault.Unavailable, "this member of the site's record of truth was removed, or its disk failed").
	Try("to be a member again: reservoir site member add NAME on the site, and here a directory that is not there yet")

// Members of the cluster, in the order of their names.
func (s *Store) Members(ctx context.Context) ([]Member, error) {
	if s.embedded == nil {
		return nil, nil
	}
	ctx, cancel := context.WithTimeout(ctx, opTimeout)
	defer cancel()
	r, err := s.client.MemberList(ctx)
	if err != nil {
		return nil, explain(ctx, err, "list the members of the site's record of truth")
	}
	return membersOf(r.Members), nil
}

func membersOf(list []*etcdserverpb.Member) []Member {
	var all []Member
	for _, m := range list {
		x := Member{ID: m.ID, Name: m.Name, Learns: m.IsLearner}
		if len(m.PeerURLs) > 0 {
			if u, err := url.Parse(m.PeerURLs[0]); err == nil {
				x.Address = u.Host
			}
		}
		all = append(all, x)
	}
	slices.SortFunc(all, func(a, b Member) int { return strings.Compare(a.Name+" "+a.Address, b.Name+" "+b.Address) })
	return all
}

// AddMember lets a record of that name and address join, and answers with all members for its
// Cluster.Joining. It may be repeated. The new one has no vote until it has read everything
// and says so itself, so that nothing stands still meanwhile. Errors: fault.Conflict while
// another one is joining or some member is not well.
func (s *Store) AddMember(ctx context.Context, name, address string) ([]Member, error) {
	const doing = "add member %s to the site's record of truth"
	if s.embedded == nil {
		return nil, nil
	}
	ctx, cancel := context.WithTimeout(ctx, opTimeout)
	defer cancel()
	u := peerURL(address)
	r, err := s.client.MemberList(ctx)
	if err != nil {
		return nil, explain(ctx, err, doing, name)
	}
	all := membersOf(r.Members)
	at := func(m Member) bool { return m.Address == address }
	if !slices.ContainsFunc(all, at) {
		r, err := s.client.MemberAddAsLearner(ctx, []string{u.String()})
		switch {
		case isAny(err, rpctypes.ErrMemberNotEnoughStarted, rpctypes.ErrUnhealthy, rpctypes.ErrTooManyLearners):
			return nil, fault.New(fault.Conflict, doing+": %w", name, err).Try("wait until all members are well, or remove the one that is lost: reservoir site member list")
		case err != nil:
			return nil, explain(ctx, err, doing, name)
		}
		all = membersOf(r.Members)
	}
	for i := range all {
		if at(all[i]) {
			all[i].Name = name
		}
	}
	// One that has not come up has no name yet: the new one must not wait for it.
	return slices.DeleteFunc(all, func(m Member) bool { return m.Name == "" }), nil
}

// RemoveMember ends the membership of the record of that name or address; that there is none
// is no error. Errors: fault.Conflict where the rest would be no majority that is well.
func (s *Store) RemoveMember(ctx context.Context, name, address string) error {
	const doing = "remove member %s of the site's record of truth"
	all, err := s.Members(ctx)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, opTimeout)
	defer cancel()
	for _, m := range all {
		if m.Name != name && (m.Name != "" || m.Address != address) {
			continue
		}
		_, err := s.client.MemberRemove(ctx, m.ID)
		switch {
		case isAny(err, rpctypes.ErrMemberNotFound):
		case isAny(err, rpctypes.ErrMemberNotEnoughStarted, rpctypes.ErrUnhealthy):
			return fault.New(fault.Conflict, doing+": the others would be no majority: %w", name, err).Try("start the others first: reservoir site member list")
		case err != nil:
			return explain(ctx, err, doing, name)
		}
	}
	return nil
}

// isAny of errors that a client in process gives in another shape than one over the network.
func isAny(err error, any ...error) bool {
	return err != nil && slices.ContainsFunc(any, func(e error) bool {
		return errors.Is(err, e) || rpctypes.ErrorDesc(err) == rpctypes.ErrorDesc(e)
	})
}
