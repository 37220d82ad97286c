package site

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/reservoir-cloud/reservoir/image"
	"github.com/reservoir-cloud/reservoir/internal/durable"
	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/internal/httpapi"
	"github.com/reservoir-cloud/reservoir/internal/identity"
	"github.com/reservoir-cloud/reservoir/internal/store"
	"github.com/reservoir-cloud/reservoir/site/peer"
	"github.com/reservoir-cloud/reservoir/site/relay"
	"github.com/reservoir-cloud/reservoir/vee"
)

// Member makes this process one of several machines that are the site's control plane. The
// zero Member is the only one.
type Member struct {
	Name        string // a DNS label
	Listen      string // host:port where it answers other members for itself
	StoreListen string // host:port of its copy of the record of truth; of no use with EtcdEndpoints
	// Join the control plane at these addresses (host:port) at the first start, with the
	// one-time token.
	Join      []string
	JoinToken string
}

// addressOf a listener on this machine for other members: the port of listen at the address
// that the site is advertised at.
func (c *Config) addressOf(listen string) string {
	host, _, _ := net.SplitHostPort(c.Advertise)
	_, port, _ := net.SplitHostPort(listen)
	return net.JoinHostPort(host, port)
}

func (c *Config) checkMember() error {
	m := c.Member
	if m.Name == "" {
		if m.JoinToken != "" {
			return fault.New(fault.Malformed, "a machine that joins a control plane needs a name").Try("reservoir site --member m2 --join TOKEN --join-site https://HOST:8440")
		}
		return nil
	}
	if !vee.ValidName(m.Name) {
		return fault.New(fault.Malformed, "member name %q: want a DNS label such as \"m1\"", m.Name).Try("reservoir site --member m1")
	}
	for _, a := range []string{m.Listen, m.StoreListen} {
		if _, port, err := net.SplitHostPort(a); err != nil || port == "" {
			return fault.New(fault.Malformed, "a member's address %q: want HOST:PORT", a).Try("reservoir site --help")
		}
	}
	if m.JoinToken != "" && len(m.Join) == 0 {
		return fault.New(fault.Malformed, "a join token needs the address of the site").Try("reservoir site --join TOKEN --join-site https://HOST:8440")
	}
	return nil
}

// leader is who leads, as all members see it in the record of truth.
type leader struct {
	Member string `json:"member"`
	Own    string `json:"own"` // address of the member itself
}

// leaderKey is the one election of a site.
const leaderKey = "site"

// member is one machine of a site's control plane: its copy of the record of truth and of the
// images, and its chance to lead. The site itself, with its managers, is there while it leads.
type member struct {
	cfg     Config
	started time.Time
	store   *store.Store
	ca      *identity.CA
	keys    *identity.Keypair
	images  *image.Store
	shelf   shelf
	relay   *relay.Relay
	feed    *relay.Feed
	rows    store.Collection[memberRow]
	site    atomic.Pointer[site] // nil: it does not lead

	mu    sync.Mutex // of who leads
	leads bool
	other leader // that the record names
}

// memberRow is what the record of truth has of a member.
type memberRow struct {
	Name    string    `json:"name"`
	Address string    `json:"address"`
	Own     string    `json:"own"`
	Store   string    `json:"store"`
	Joined  time.Time `json:"joined"`
}

// several: there are other members, or may be.
func (m *member) several() bool { return m.cfg.Member.Name != "" }

// Run serves until ctx is done. Everything that it needs is made at its first start.
func Run(ctx context.Context, cfg Config) error {
	if err := cfg.check(); err != nil {
		return err
	}
	m := &member{cfg: cfg, started: time.Now()}
	defer m.close()
	// The ports first: an address that is taken should be told at once.
	ln, err := listen(cfg.Listen, "--listen")
	if err != nil {
		return err
	}
	defer ln.Close()
	var own net.Listener
	if m.several() {
		if own, err = listen(cfg.Member.Listen, "--member-listen"); err != nil {
			return err
		}
		defer own.Close()
	}
	if err := m.open(ctx); err != nil {
		return err
	}
	return m.serve(ctx, ln, own)
}

func listen(address, flag string) (net.Listener, error) {
	ln, err := net.Listen("tcp", address)
	if err != nil {
		return nil, fault.New(fault.Unavailable, "listen on %s: %w", address, err).
			Try("choose another address: reservoir site %s HOST:PORT, or see who has it: ss -ltnp", flag)
	}
	return ln, nil
}

// open what a member has whether it leads or not.
func (m *member) open(ctx context.Context) (err error) {
	c := &m.cfg
	if err := os.MkdirAll(c.Dir, 0o700); err != nil {
		return fmt.Errorf("make the site's directory: %w", err)
	}
	if m.keys, err = identity.OpenKeypair(filepath.Join(c.Dir, "identity"), time.Now); err != nil {
		return err
	}
	if err := m.openAuthority(); err != nil {
		return err
	}
	record := store.Config{Dir: filepath.Join(c.Dir, "store"), Endpoints: c.EtcdEndpoints, TLS: c.EtcdTLS,
		Prefix: "/reservoir/" + c.Name + "/", QuotaBytes: c.StoreQuota, Logger: c.Log}
	switch {
	case len(c.EtcdEndpoints) > 0: // whoever may use that is a member
	case m.ca == nil:
		// Asked again where an earlier start was cut short: until the first is complete, only
		// the answer tells a record that joins from one that begins.
		if record.Cluster, err = m.join(ctx); err != nil {
			return err
		}
	case m.several():
		record.Cluster = m.cluster(nil)
		fallthrough
	default:
		if err = m.certified(); err != nil {
			return err
		}
	}
	if m.store, err = store.Open(ctx, record); err != nil {
		return err
	}
	if err := m.settleAuthority(ctx); err != nil {
		return err
	}
	if err := m.certified(); err != nil {
		return err
	}
	m.rows = store.NewCollection[memberRow](m.store, "member")
	if m.several() {
		if err := m.introduce(ctx); err != nil {
			return err
		}
	}
	return m.openImages(ctx)
}

// introduce this member to the others.
func (m *member) introduce(ctx context.Context) error {
	row := memberRow{Name: m.cfg.Member.Name, Address: m.cfg.Advertise, Own: m.cfg.addressOf(m.cfg.Member.Listen), Joined: time.Now()}
	if len(m.cfg.EtcdEndpoints) == 0 {
		row.Store = m.cfg.addressOf(m.cfg.Member.StoreListen)
	}
	was, _, err := m.rows.Get(ctx, row.Name)
	if err == nil {
		row.Joined = was.Joined
	} else if !fault.Has(err, fault.NotFound) {
		return err
	}
	_, err = m.rows.Put(ctx, row.Name, row)
	return err
}

// close undoes open, in reverse, as far as it got.
func (m *member) close() {
	m.shelf.close()
	if m.images != nil {
		m.images.Close()
	}
	if m.store != nil {
		if err := m.store.Close(); err != nil {
			m.cfg.Log.Warn("close the store", "err", err)
		}
	}
}

// certified gives this process a certificate of the site's authority, and people what they
// know the site by.
func (m *member) certified() error {
	csr, err := m.keys.CSR()
	if err != nil {
		return err
	}
	chain, bundle, err := m.certify(csr)
	if err != nil {
		return err
	}
	if err := m.keys.Install(chain, bundle); err != nil {
		return err
	}
	return durable.WriteFile(filepath.Join(m.cfg.Dir, "ca.pem"), bundle, 0o644)
}

func (m *member) certify(csr []byte) (chain, bundle []byte, err error) {
	host, _, _ := net.SplitHostPort(m.cfg.Advertise)
	return certifySite(m.ca, m.cfg.Name, csr, host)
}

// certifySite issues the certificate of a member at host.
func certifySite(ca *identity.CA, name string, csr []byte, host string) (chain, bundle []byte, err error) {
	id, err := identity.SiteID(name)
	if err != nil {
		return nil, nil, err
	}
	chain, err = ca.Issue(csr, id, host, "localhost", "127.0.0.1")
	return chain, ca.Bundle(), err
}

// serve until ctx is done, leading when it is this member's turn.
func (m *member) serve(ctx context.Context, ln, own net.Listener) error {
	m.feed = relay.NewFeed(ln.Addr())
	m.relay = &relay.Relay{Here: m.feed, Log: m.cfg.Log}
	m.direct()
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	var wg sync.WaitGroup
	all := []func(context.Context) error{
		func(ctx context.Context) error { return m.relay.Serve(ctx, ln) },
		func(ctx context.Context) error {
			m.keys.KeepFresh(ctx, m.cfg.Log, func(ctx context.Context, csr []byte) ([]byte, []byte, error) {
				if err := m.followAuthority(ctx); err != nil {
					return nil, nil, err
				}
				return m.certify(csr)
			})
			return nil
		},
		m.rule,
		m.watchRecord,
	}
	if own != nil {
		itself := &relay.Relay{Here: m.feed, Log: m.cfg.Log}
		itself.Lead() // it answers here for itself, whoever leads
		all = append(all, func(ctx context.Context) error { return itself.Serve(ctx, own) },
			func(ctx context.Context) error { m.followLeader(ctx); return nil },
			func(ctx context.Context) error { m.followImages(ctx); return nil })
	}
	for _, f := range all {
		wg.Go(func() {
			if err := f(ctx); err != nil {
				stop(err)
			}
		})
	}
	wg.Wait()
	if err := context.Cause(ctx); !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

// watchRecord ends the process when its copy of the record of truth has ended by itself.
func (m *member) watchRecord(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return nil
	case <-m.store.Ended():
		return fault.New(fault.Unavailable, "member %s was removed from the control plane, or its disk has failed", m.cfg.Member.Name).
			Try("to be a member again: reservoir site member add %s on the site, and here a directory that is not there yet", m.cfg.Member.Name)
	}
}

// leaseOfLeader is how long nobody leads after a leader is lost, about. etcd counts in seconds,
// and so does the kernel the lifetimes of addresses.
func (c *Config) leaseOfLeader() time.Duration {
	return max(4*time.Second, time.Duration(c.HAScale*float64(5*time.Second)).Round(time.Second))
}

// rule again and again, when it is this member's turn.
func (m *member) rule(ctx context.Context) error {
	for {
		term, err := m.standBy(ctx)
		if err != nil || term == nil {
			return err
		}
		if err := m.lead(ctx, term); err != nil || ctx.Err() != nil {
			return err
		}
		m.cfg.Log.Warn("this member leads no more", "member", m.cfg.Member.Name)
	}
}

// standBy answers other members until this one is to lead; nil when ctx is done.
func (m *member) standBy(ctx context.Context) (*store.Term, error) {
	idle, stop := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer stop()
	if m.several() {
		l := &httpapi.Listener{Handler: m.standbyHandler(), TLS: m.keys.ServerTLS(), Log: m.cfg.Log}
		wg.Go(func() {
			if err := l.Serve(idle, m.feed.Listener()); err != nil {
				m.cfg.Log.Error("answer other members", "err", err)
			}
		})
	}
	term, err := m.store.Lead(ctx, leaderKey, leader{m.cfg.Member.Name, m.cfg.addressOf(m.cfg.Member.Listen)}, m.cfg.leaseOfLeader())
	if ctx.Err() != nil {
		if term != nil {
			err = term.Resign(context.WithoutCancel(ctx))
		}
		return nil, err
	}
	return term, err
}

// lead for a term: open the site, serve it, and let go of it. An error is one that another
// term would not mend.
func (m *member) lead(ctx context.Context, term *store.Term) (err error) {
	defer func() {
		if rerr := term.Resign(context.WithoutCancel(ctx)); rerr != nil {
			m.cfg.Log.Warn("lead no more", "err", rerr)
		}
	}()
	ctx, end := context.WithCancel(ctx)
	var watch sync.WaitGroup
	defer watch.Wait()
	defer end()
	watch.Go(func() {
		select {
		case <-term.Done():
			end()
		case <-ctx.Done():
		}
	})
	m.lords(true)
	defer m.lords(false)
	defer context.AfterFunc(ctx, func() { m.lords(false) })()
	s := m.newSite(term)
	defer s.close()
	if err := m.followAuthority(ctx); err != nil {
		return m.unlessOver(ctx, err)
	}
	if err := m.settleImages(ctx, term); err != nil {
		return m.unlessOver(ctx, err)
	}
	if err := s.open(ctx); err != nil {
		return m.unlessOver(ctx, err)
	}
	m.site.Store(s)
	defer m.site.Store(nil)
	return s.serve(ctx, m.feed.Listener())
}

// unlessOver is err, unless the term is over: then that is why.
func (m *member) unlessOver(ctx context.Context, err error) error {
	select {
	case <-ctx.Done():
		return nil
	default:
		return err
	}
}

// newSite of a term, not open yet.
func (m *member) newSite(term *store.Term) *site {
	return &site{cfg: m.cfg, started: m.started, member: m, term: term, store: term.Store, ca: m.ca, keys: m.keys, images: m.images}
}

// lords says whether this member leads.
func (m *member) lords(leads bool) {
	m.mu.Lock()
	m.leads = leads
	m.mu.Unlock()
	m.direct()
}

// direct connections to whoever leads.
func (m *member) direct() {
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case m.leads || !m.several():
		m.relay.Lead()
	case m.other.Own != "" && m.other.Member != m.cfg.Member.Name:
		m.relay.Follow(m.other.Own)
	default:
		m.relay.Nobody()
	}
}

// followLeader as the record of truth names it.
func (m *member) followLeader(ctx context.Context) {
	for c := range store.Leaders[leader](m.store).Watch(ctx, leaderKey) {
		var now leader
		switch c.Kind {
		case store.Changed:
			now = c.Value
		case store.Synced:
			continue
		}
		m.mu.Lock()
		m.other = now
		m.mu.Unlock()
		m.direct()
	}
}

// standbyHandler answers other members alone: whoever else comes here, comes to the wrong one.
func (m *member) standbyHandler() http.Handler {
	api := httpapi.NewServer("Reservoir site "+m.cfg.Name+", member "+m.cfg.Member.Name, m.cfg.Version, m.cfg.Log)
	peer.Register(api, m)
	api.Handle("/v2/", m.images.Handler(image.Allow))
	auth := &identity.Authenticator{Site: m.cfg.Name}
	inner := api.Handler(auth.Caller)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c, err := auth.Caller(r)
		if err == nil && c.Role == identity.SiteRole && (strings.HasPrefix(r.URL.Path, peer.Prefix+"/") || strings.HasPrefix(r.URL.Path, "/v2/") && r.Method == http.MethodGet) {
			inner.ServeHTTP(w, r)
			return
		}
		httpapi.Refuse(w, fault.New(fault.Unavailable, "member %s of site %s does not lead", m.cfg.Member.Name, m.cfg.Name).
			Try("repeat it: another member leads, or soon will; reservoir site member list"))
	})
}

// Status implements peer.Member.
func (m *member) Status(ctx context.Context) (peer.MemberStatus, error) {
	m.mu.Lock()
	leads := m.leads
	m.mu.Unlock()
	out := peer.MemberStatus{Name: m.cfg.Member.Name, Version: m.cfg.Version, Started: m.started, Leads: leads}
	st, err := m.store.Status(ctx)
	if err != nil {
		return out, err
	}
	out.Size, out.InUse = vee.Bytes(st.Size), vee.Bytes(st.InUse)
	out.Missing, out.Problem = m.shelf.status(m.images)
	return out, nil
}

// Defragment implements peer.Member.
func (m *member) Defragment(ctx context.Context) error {
	if _, err := m.store.Compact(ctx); err != nil && !fault.Has(err, fault.StoreFull) {
		return err
	}
	return nil
}

// peerAt is another member, by its own address.
func (m *member) peerAt(address string) (peer.Member, *http.Client) {
	c := m.toMember(address)
	return peer.NewClient(&httpapi.Client{Base: "https://" + address, HTTP: c}), c
}

// toMember speaks to a member of this site and to nobody else. The connections are closed
// after use: members are few, and what they say to each other is rare.
func (m *member) toMember(address string) *http.Client {
	id, err := identity.SiteID(m.cfg.Name)
	if err != nil { // names are checked when a site starts
		panic("site " + m.cfg.Name + ": " + err.Error())
	}
	return &http.Client{Transport: httpapi.NewMembers(m.keys.ClientTLS(id), address).Transport()}
}

// others are the members beside this one.
func (m *member) others(ctx context.Context) ([]memberRow, error) {
	all, err := m.rows.Values(ctx, "")
	var list []memberRow
	for _, r := range all {
		if r.Name != m.cfg.Member.Name {
			list = append(list, r)
		}
	}
	return list, err
}
