// Package sites runs the VEE Managers and the agents of several sites in one process: real
// managers over stores in memory, real trackers of VEEs over simulated hypervisors, and
// between the sites what the proxies do with tickets. Whatever lies between two of them can
// be cut, and each of them killed and started again, at any moment. It is for tests of what
// sites do to each other, in a bubble of testing/synctest.
package sites

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/reservoir-cloud/reservoir/agent/vet"
	"github.com/reservoir-cloud/reservoir/hypervisor"
	"github.com/reservoir-cloud/reservoir/hypervisor/sim"
	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/internal/identity"
	"github.com/reservoir-cloud/reservoir/internal/store"
	"github.com/reservoir-cloud/reservoir/placement"
	"github.com/reservoir-cloud/reservoir/van/border"
	"github.com/reservoir-cloud/reservoir/van/plan"
	"github.com/reservoir-cloud/reservoir/vee"
	"github.com/reservoir-cloud/reservoir/veem"
	"github.com/reservoir-cloud/reservoir/veem/federation"
	agreements "github.com/reservoir-cloud/reservoir/veem/federation/agreement"
	"github.com/reservoir-cloud/reservoir/veem/federation/books"
	"github.com/reservoir-cloud/reservoir/veem/federation/broker"
	"github.com/reservoir-cloud/reservoir/vhi"
	"github.com/reservoir-cloud/reservoir/vhi/peer"
	"github.com/reservoir-cloud/reservoir/vmi"
	sitepeer "github.com/reservoir-cloud/reservoir/vmi/peer"
)

// Union of sites.
type Union struct {
	Sites map[string]*Site
	// Hook is consulted at each crossing between two places, before it takes place and after
	// it took effect: an error from it is what the caller gets. Who and whom are sites, or
	// hosts ("alpha/h1"). nil: everything gets through.
	Hook func(Crossing) error

	// Offers are what sites tell of themselves, and PerHour what a VEE costs there.
	Offers  map[string]sitepeer.Attributes
	PerHour map[string]float64

	terms sync.Mutex
	ended map[[2]string]sitepeer.End // agreements by lender and borrower
}

// End an agreement, as both of its sites learn at once. The notice is a minute.
func (u *Union) End(lender, borrower, by string) {
	u.terms.Lock()
	defer u.terms.Unlock()
	if u.ended == nil {
		u.ended = map[[2]string]sitepeer.End{}
	}
	u.ended[[2]string{lender, borrower}] = sitepeer.End{By: by, At: time.Now(), Reason: "we part"}
}

// Renew an agreement that was ended.
func (u *Union) Renew(lender, borrower string) {
	u.terms.Lock()
	defer u.terms.Unlock()
	delete(u.ended, [2]string{lender, borrower})
}

// agreement of two sites as it is now.
func (u *Union) agreement(lender, borrower string) sitepeer.Agreement {
	a := agreement(lender, borrower)
	u.terms.Lock()
	defer u.terms.Unlock()
	if e, ended := u.ended[[2]string{lender, borrower}]; ended {
		a.End = &e
	}
	return a
}

// Crossing of a call.
type Crossing struct {
	From, To string
	What     string // "open", "stream", "give", "abandon" between hosts; "assign", "renew", "call"; "look" of a caller who waits
	After    bool   // it took effect, and only the answer may be lost
}

func (u *Union) cross(from, to, what string, after bool) error {
	if u.Hook == nil {
		return nil
	}
	return u.Hook(Crossing{from, to, what, after})
}

// Site of a Union.
type Site struct {
	u     *Union
	Name  string
	Hosts []*Host
	Clock time.Duration // how far it is ahead, for what was agreed
	store *store.Store
	log   *slog.Logger

	mu      sync.Mutex
	m       *veem.Manager // nil while it is down
	books   *books.Keeper
	cancel  context.CancelFunc
	done    sync.WaitGroup
	starts  int
	routes  []border.Route // at its proxy
	noProxy bool
	revoked map[string]bool
}

// Host of a Site.
type Host struct {
	s    *Site
	Name string
	dir  string
	log  *slog.Logger

	mu      sync.Mutex
	tr      *vet.Tracker // nil while its agent is down
	driver  *sim.Driver
	cancel  context.CancelFunc
	done    sync.WaitGroup
	calls   sync.WaitGroup
	seq     uint64
	starts  int
	changed chan struct{}
	// Latency of the driver's operations; nil: none.
	Latency func(sim.Op) time.Duration
}

// New union of sites with hosts of 4 vCPUs and 4 GiB each, which keep what they have below
// dir. Call it in a bubble, and Close it there.
func New(dir string, hosts int, log *slog.Logger, names ...string) (*Union, error) {
	u := &Union{Sites: map[string]*Site{}}
	for _, name := range names {
		s := &Site{u: u, Name: name, log: log.With("site", name), store: store.InMemory(log, func(bool) error { return nil }), revoked: map[string]bool{}}
		u.Sites[name] = s
		for i := range hosts {
			h := &Host{s: s, Name: fmt.Sprintf("h%d", i+1), changed: make(chan struct{}, 1)}
			h.dir, h.log = filepath.Join(dir, name, h.Name), s.log.With("host", h.Name)
			if err := os.MkdirAll(h.dir, 0o700); err != nil {
				return nil, err
			}
			s.Hosts = append(s.Hosts, h)
		}
	}
	for _, name := range names {
		s := u.Sites[name]
		if err := s.Start(); err != nil {
			return nil, err
		}
		for _, h := range s.Hosts {
			if err := s.m.HostJoined(context.Background(), h.Name); err != nil {
				return nil, err
			}
			if err := h.Start(); err != nil {
				return nil, err
			}
		}
		for _, other := range names {
			if other == name {
				continue
			}
			if err := s.m.PartnerJoined(context.Background(), other); err != nil {
				return nil, err
			}
		}
	}
	return u, nil
}

// Close everything.
func (u *Union) Close() {
	for _, s := range u.Sites {
		for _, h := range s.Hosts {
			h.Stop()
		}
		s.Stop()
	}
}

// Manager of the site; nil while it is down.
func (s *Site) Manager() *veem.Manager {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.m
}

// Host by its name.
func (s *Site) Host(name string) *Host {
	if i := slices.IndexFunc(s.Hosts, func(h *Host) bool { return h.Name == name }); i >= 0 {
		return s.Hosts[i]
	}
	return nil
}

// As an operator of the site.
func (s *Site) As() context.Context {
	return identity.With(context.Background(), identity.Caller{ID: "operator", Role: identity.Operator})
}

// entropy for identifiers: the same in each run.
type entropy struct{ r *rand.Rand }

func (e entropy) Read(b []byte) (int, error) {
	for i := range b {
		b[i] = byte(e.r.Uint32())
	}
	return len(b), nil
}

// Start the site's manager, on what its store has.
func (s *Site) Start() error {
	s.starts++
	places := map[string]*federation.Place{}
	var m *veem.Manager
	for name := range s.u.Sites {
		if name == s.Name {
			continue
		}
		places[vhi.AtSite(name)] = federation.New(federation.Config{Partner: name, Partners: partners{s}, Manager: late{&m}, Incarnation: fmt.Sprintf("%s-%d", name, s.starts),
			Every: 5 * time.Second, Call: 5 * time.Second, Hold: time.Minute, Now: time.Now, Log: s.log})
	}
	m, err := veem.New(context.Background(), veem.Config{
		Site: s.Name, Store: veem.OnStore(s.store), Placer: placement.Balance, Images: images{}, Balancer: balancer{}, Recorder: recorder{s.log},
		Networks: map[string]veem.Network{"site": {Subnet: netip.MustParsePrefix("10.0.0.0/16")}},
		Dial: func(name, _ string) vhi.Host {
			if p := places[name]; p != nil {
				return p
			}
			return toHost{s: s, h: s.Host(name)}
		},
		Partnership: terms{s}, Crossing: crossing{s}, Log: s.log,
		Random: entropy{rand.New(rand.NewPCG(uint64(s.starts), uint64(len(s.Name))<<8+uint64(s.Name[0])))},
	})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	s.mu.Lock()
	s.m, s.cancel, s.books = m, cancel, s.openBooks(m)
	s.mu.Unlock()
	s.done.Go(func() { _ = m.Run(ctx) })
	s.done.Go(func() { s.books.Run(ctx) })
	for _, p := range places {
		s.done.Go(func() { p.Run(ctx) })
	}
	return nil
}

// Stop the manager as a crash does: what it has not written is lost.
func (s *Site) Stop() {
	s.mu.Lock()
	s.m = nil
	cancel := s.cancel
	s.mu.Unlock()
	cancel()
	s.done.Wait()
}

// Revoke a partner, or take it back: its calls are refused, and ours to it are not made.
func (s *Site) Revoke(partner string, revoked bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.revoked[partner] = revoked
}

func (s *Site) trusts(partner string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.revoked[partner] {
		return fault.New(fault.Denied, "site %s is trusted no longer", partner)
	}
	return nil
}

// late is a manager that is made after what needs it.
type late struct{ m **veem.Manager }

func (l late) Renew(ctx context.Context, r vhi.Renewal) (vhi.RenewalReply, error) {
	return (*l.m).Renew(ctx, r)
}
func (l late) RulesOf(id vee.ID) []vmi.PlacementRule { return (*l.m).RulesOf(id) }

// Start the host's agent.
func (h *Host) Start() error {
	h.starts++
	d, err := sim.New(sim.Config{Dir: filepath.Join(h.dir, "sim"), Latency: func(op sim.Op, _ vee.ID) time.Duration {
		if h.Latency == nil {
			return 0
		}
		return h.Latency(op)
	}})
	if err != nil {
		return err
	}
	tr, err := vet.Open(context.Background(), vet.Config{Dir: h.dir, Driver: d, Images: images{}, Plugs: plugs{}, Changed: h.nudge, Log: h.log,
		Peer: func(m vhi.Move) peer.Host { return wire{from: h, move: m} }})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	h.mu.Lock()
	h.tr, h.driver, h.cancel = tr, d, cancel
	h.mu.Unlock()
	h.done.Go(func() { _ = tr.Run(ctx) })
	h.done.Go(func() { h.renewals(ctx) })
	return nil
}

// Stop the agent as a crash does; guests stay as they are.
func (h *Host) Stop() {
	h.mu.Lock()
	d := h.driver
	h.tr = nil
	h.mu.Unlock()
	h.cancel()
	h.done.Wait()
	h.calls.Wait()
	_ = d.Close()
}

// Restart the agent.
func (h *Host) Restart() error { h.Stop(); return h.Start() }

// Runs reports whether a VEE's vCPUs run here.
func (h *Host) Runs(id vee.ID) bool { return h.Condition(id) == hypervisor.Running }

// Condition of a VEE's guest here.
func (h *Host) Condition(id vee.ID) hypervisor.Condition {
	h.mu.Lock()
	d := h.driver
	h.mu.Unlock()
	o, err := d.Inspect(context.Background(), id)
	if err != nil {
		return hypervisor.Absent
	}
	return o.Condition
}

func (h *Host) nudge() {
	select {
	case h.changed <- struct{}{}:
	default:
	}
}

func (h *Host) full() string { return h.s.Name + "/" + h.Name }

func (h *Host) report() (vhi.HostReport, bool) {
	h.mu.Lock()
	tr := h.tr
	h.seq++
	seq := h.seq
	h.mu.Unlock()
	if tr == nil {
		return vhi.HostReport{}, false
	}
	return vhi.HostReport{Host: h.Name, Incarnation: fmt.Sprint(h.starts), Seq: seq, Address: h.Name + ":1", CPUs: 4, VEEs: tr.Reports(), Generation: 1,
		Capacity: vee.Resources{MilliCPU: 4000, Memory: 4 * vee.GiB, Disk: 100 * vee.GiB},
		Drivers:  []vhi.DriverInfo{{Name: "sim", Simulated: true, Operations: []string{hypervisor.OpMigrate, hypervisor.OpMigrateCold}}}}, true
}

// renewals of the host, as an agent sends them.
func (h *Host) renewals(ctx context.Context) {
	beat := time.NewTicker(5 * time.Second)
	defer beat.Stop()
	for {
		r, up := h.report()
		m := h.s.Manager()
		if up && m != nil && h.s.u.cross(h.full(), h.s.Name, "renew", false) == nil {
			_, _ = m.Renew(identity.With(ctx, identity.Caller{Role: identity.HostRole, Host: h.Name}), vhi.Renewal{Report: r})
		}
		select {
		case <-ctx.Done():
			return
		case <-beat.C:
		case <-h.changed:
		}
	}
}

// toHost is a host as its site's manager reaches it.
type toHost struct {
	vhi.Host // nil: what these tests have no use for
	s        *Site
	h        *Host
}

func (t toHost) call(f func(*vet.Tracker) error) error {
	if err := t.s.u.cross(t.s.Name, t.h.full(), "assign", false); err != nil {
		return err
	}
	if err := t.h.answer(f); err != nil {
		return err
	}
	return t.s.u.cross(t.s.Name, t.h.full(), "assign", true)
}

// answer has the agent, if it is up, do what another asks.
func (h *Host) answer(f func(*vet.Tracker) error) error {
	h.mu.Lock()
	tr := h.tr
	if tr == nil {
		h.mu.Unlock()
		return fault.New(fault.Unavailable, "host %s: connection refused", h.full())
	}
	h.calls.Add(1)
	h.mu.Unlock()
	defer h.calls.Done()
	return f(tr)
}

func (t toHost) Assign(ctx context.Context, a vhi.Assignment) (r vhi.Report, err error) {
	err = t.call(func(tr *vet.Tracker) error { r, err = tr.Assign(ctx, a); return err })
	return r, err
}

func (t toHost) Report(context.Context) (r vhi.HostReport, err error) {
	err = t.call(func(*vet.Tracker) error { r, _ = t.h.report(); return nil })
	return r, err
}

func (t toHost) Snapshots(ctx context.Context, id vee.ID) (list []vee.Snapshot, err error) {
	err = t.call(func(tr *vet.Tracker) error { list, err = tr.Snapshots(ctx, id); return err })
	return list, err
}

func (t toHost) PutSegment(context.Context, plan.Segment) error { return nil }
func (t toHost) RemoveSegment(context.Context, string) error    { return nil }

// wire is what lies between the source of a migration and its destination: nothing inside a
// site, and both proxies between two.
type wire struct {
	from *Host
	move vhi.Move
}

// lead finds the destination, as proxies do, and says what its TLS would say of the caller.
func (w wire) lead() (*Host, context.Context, error) {
	s := w.from.s
	own := identity.With(context.Background(), identity.Caller{ID: "spiffe://" + s.Name + "/host/" + w.from.Name, Role: identity.HostRole, Host: w.from.Name})
	d := w.move.Door
	if d == nil {
		return s.Host(w.move.To), own, nil
	}
	r, ok := s.route(d.Route)
	if !ok || r.Peer == "" || d.Proxy != s.Name {
		return nil, nil, fault.New(fault.Denied, "the proxy of %s does not know that ticket", s.Name)
	}
	there := s.u.Sites[r.Peer]
	in, ok := there.route(r.Show)
	if !ok || in.To == "" {
		return nil, nil, fault.New(fault.Denied, "the proxy of %s does not know that ticket", there.Name)
	}
	host, _, _ := strings.Cut(in.To, ":")
	h := there.Host(host)
	if d.Host != "spiffe://"+there.Name+"/host/"+h.Name || string(d.Bundle) != there.Name {
		return nil, nil, fault.New(fault.Denied, "it is host %s of %s, not %s", h.Name, there.Name, d.Host)
	}
	return h, identity.With(context.Background(), identity.Caller{ID: "spiffe://" + s.Name + "/host/" + w.from.Name, Role: identity.PartnerHost, Host: w.from.Name, Site: s.Name}), nil
}

func (w wire) call(ctx context.Context, what string, f func(context.Context, *vet.Tracker) error) error {
	h, as, err := w.lead()
	if err != nil {
		return err
	}
	ctx = identity.With(ctx, identity.From(as))
	u := w.from.s.u
	if err := u.cross(w.from.full(), h.full(), what, false); err != nil {
		return err
	}
	err = h.answer(func(tr *vet.Tracker) error {
		c := identity.From(ctx)
		if c.Role == identity.PartnerHost && !slices.ContainsFunc(tr.Origins(), func(o vhi.Origin) bool { return o.Site == c.Site && string(o.Bundle) == c.Site }) {
			return fault.New(fault.Denied, "remote error: tls: bad certificate")
		}
		return f(ctx, tr)
	})
	if lost := u.cross(w.from.full(), h.full(), what, true); lost != nil {
		return lost
	}
	return err
}

func (w wire) Open(ctx context.Context, o peer.Offer) error {
	return w.call(ctx, "open", func(ctx context.Context, tr *vet.Tracker) error { return tr.Open(ctx, o) })
}

func (w wire) Stream(ctx context.Context, move string, id vee.ID, name string) (c io.ReadWriteCloser, err error) {
	err = w.call(ctx, "stream", func(ctx context.Context, tr *vet.Tracker) error {
		c, err = tr.Stream(ctx, move, id, name)
		return err
	})
	return c, err
}

func (w wire) Give(ctx context.Context, g peer.Gift) (a peer.Answer, err error) {
	err = w.call(ctx, "give", func(ctx context.Context, tr *vet.Tracker) error {
		a, err = tr.Give(ctx, g)
		return err
	})
	return a, err
}

func (w wire) Abandon(ctx context.Context, move string, id vee.ID) error {
	return w.call(ctx, "abandon", func(ctx context.Context, tr *vet.Tracker) error { return tr.Abandon(ctx, move, id) })
}

// crossing is the site's proxy, as its manager has it.
type crossing struct{ s *Site }

func (c crossing) Pass(_ context.Context, routes []border.Route) (string, error) {
	if err := (border.Config{Routes: routes}).Check(); err != nil {
		return "", err
	}
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	if c.s.noProxy {
		return "", fault.New(fault.Unavailable, "the proxy of site %s does not answer", c.s.Name)
	}
	c.s.routes = slices.Clone(routes)
	return c.s.Name, nil
}

func (c crossing) Bundle(site string, _ bool) ([]byte, error) {
	if err := c.s.trusts(site); err != nil {
		return nil, err
	}
	return []byte(site), nil
}

// Proxy of the site is up, or down: what it was put outlives that, as it does a real one's
// crash.
func (s *Site) Proxy(up bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.noProxy = !up
}

func (s *Site) route(ticket string) (border.Route, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	i := slices.IndexFunc(s.routes, func(r border.Route) bool { return r.Ticket == ticket })
	if i < 0 || s.noProxy {
		return border.Route{}, false
	}
	return s.routes[i], true
}

// partners of a site, which are all others.
type partners struct{ s *Site }

func (p partners) Partner(name string) (sitepeer.Partner, error) {
	there := p.s.u.Sites[name]
	x := sitepeer.Partner{Name: name, VMI: remote{from: p.s, to: there}, Site: remoteSite{remote: remote{from: p.s, to: there}}, Seen: time.Now(),
		Hello:      sitepeer.Hello{Site: name, Capabilities: []sitepeer.Capability{sitepeer.CanPlace, sitepeer.CanReserve, sitepeer.CanMove, sitepeer.CanMoveCold, sitepeer.CanNetwork}},
		Agreements: []sitepeer.Agreement{p.s.u.agreement(name, p.s.Name), p.s.u.agreement(p.s.Name, name)}}
	if err := p.s.trusts(name); err != nil {
		return x, err
	}
	return x, nil
}

func (p partners) Partners() (all []sitepeer.Partner) {
	for name := range p.s.u.Sites {
		if x, err := p.Partner(name); err == nil && name != p.s.Name {
			all = append(all, x)
		}
	}
	return all
}

func (p partners) Changed() <-chan struct{} { return nil }

func agreement(lender, borrower string) sitepeer.Agreement {
	return sitepeer.Agreement{Signatures: map[string]string{lender: "x", borrower: "x"}, Terms: sitepeer.Terms{
		ID: lender + ".aaaaaaaaaa", Lender: lender, Borrower: borrower, From: time.Unix(0, 0), Until: time.Now().AddDate(1, 0, 0), NoticeMS: 60_000,
		Ceiling:  sitepeer.Ceiling{VEEs: 8, VCPUs: 8, Memory: 8 * vee.GiB, Disk: 100 * vee.GiB},
		Currency: "EUR", Places: 2, Movable: sitepeer.Movable{Live: true, Cold: true}}}
}

// terms of all agreements: everything is allowed while they are in force.
type terms struct{ s *Site }

func (t terms) Admit(partner string, has []vee.Descriptor, more vee.Descriptor) error {
	if err := t.inForce(t.s.Name, partner); err != nil {
		return err
	}
	return t.ceiling(t.s.Name, partner, has, more)
}

// ceiling of an agreement, in vCPUs.
func (t terms) ceiling(lender, borrower string, has []vee.Descriptor, more vee.Descriptor) error {
	sum, most := more.VCPUs, t.s.u.agreement(lender, borrower).Ceiling.VCPUs
	for _, d := range has {
		sum += d.VCPUs
	}
	if sum > most {
		return fault.New(fault.QuotaExceeded, "site %s would have %d vCPUs at %s; the ceiling is %d", borrower, sum, lender, most)
	}
	return nil
}

func (t terms) inForce(lender, borrower string) error {
	for _, partner := range []string{lender, borrower} {
		if partner != t.s.Name {
			if err := t.s.trusts(partner); err != nil {
				return err
			}
		}
	}
	return agreements.InForce(t.s.u.agreement(lender, borrower), time.Now())
}

// Covers a time.
func (t terms) Covers(lender, borrower string, from, until time.Time) error {
	return agreements.Covers([]sitepeer.Agreement{t.s.u.agreement(lender, borrower)}, lender, borrower, from, until)
}

// Candidates are what the sites have told.
func (t terms) Candidates() map[string]broker.Candidate {
	all := map[string]broker.Candidate{}
	for name, told := range t.s.u.Offers {
		all[name] = broker.Candidate{Attributes: told, Here: name == t.s.Name}
	}
	return all
}

// Notice goes by each site's own clock.
func (t terms) Notice(lender, borrower string) *veem.Notice {
	now := time.Now().Add(t.s.Clock)
	n, ending := agreements.Ending([]sitepeer.Agreement{t.s.u.agreement(lender, borrower)}, lender, borrower, now)
	if !ending {
		return nil
	}
	return &veem.Notice{From: n.From, By: n.By.Add(-t.s.Clock), Why: n.Why}
}

func (t terms) AdmitAccess(string) error { return nil }

func (t terms) Offer(partner string, has []vee.Descriptor, more vee.Descriptor) (veem.Offer, error) {
	if err := t.ceiling(partner, t.s.Name, has, more); err != nil {
		return veem.Offer{}, err
	}
	at := t.s.u.Offers[partner].Characteristics.Location
	price := func(site string) float64 { return cmp.Or(t.s.u.PerHour[site], 1) }
	return veem.Offer{Agreement: partner + ".aaaaaaaaaa", PerHour: price(partner), OwnPerHour: price(t.s.Name), Currency: "EUR",
		Country: at.Country, Jurisdiction: at.Jurisdiction}, t.inForce(partner, t.s.Name)
}

// remote is a site's manager as another site reaches it, over both proxies.
type remote struct {
	vmi.Service // nil: what these tests have no use for
	from, to    *Site
}

// call the other site, if everything between is whole.
func call[T any](ctx context.Context, r remote, f func(context.Context, *veem.Manager) (T, error)) (T, error) {
	return callAs(ctx, r, "call", f)
}

func callAs[T any](ctx context.Context, r remote, what string, f func(context.Context, *veem.Manager) (T, error)) (out T, err error) {
	if err := r.from.trusts(r.to.Name); err != nil {
		return out, err
	}
	if err := r.to.trusts(r.from.Name); err != nil {
		return out, err
	}
	if err := r.from.u.cross(r.from.Name, r.to.Name, what, false); err != nil {
		return out, err
	}
	m := r.to.Manager()
	if m == nil {
		return out, fault.New(fault.Unavailable, "site %s: connection refused", r.to.Name)
	}
	out, err = f(identity.With(ctx, identity.Caller{ID: "spiffe://" + r.from.Name + "/site", Role: identity.Partner, Site: r.from.Name}), m)
	if lost := r.from.u.cross(r.from.Name, r.to.Name, what, true); lost != nil {
		return out, lost
	}
	return out, err
}

func (r remote) InitializeVEEs(ctx context.Context, in vmi.Initialize) (vmi.Initialized, error) {
	return call(ctx, r, func(ctx context.Context, m *veem.Manager) (vmi.Initialized, error) { return m.InitializeVEEs(ctx, in) })
}

func (r remote) UpdateState(ctx context.Context, u vmi.UpdateState) ([]vmi.Outcome, error) {
	return call(ctx, r, func(ctx context.Context, m *veem.Manager) ([]vmi.Outcome, error) { return m.UpdateState(ctx, u) })
}

func (r remote) UpdateVEEs(ctx context.Context, u []vmi.VEEUpdate) ([]vmi.Outcome, error) {
	return call(ctx, r, func(ctx context.Context, m *veem.Manager) ([]vmi.Outcome, error) { return m.UpdateVEEs(ctx, u) })
}

func (r remote) GetVEE(ctx context.Context, id vee.ID) (vmi.VEE, error) {
	return call(ctx, r, func(ctx context.Context, m *veem.Manager) (vmi.VEE, error) { return m.GetVEE(ctx, id) })
}

func (r remote) ListSnapshots(ctx context.Context, id vee.ID) ([]vee.Snapshot, error) {
	return callAs(ctx, r, "look", func(ctx context.Context, m *veem.Manager) ([]vee.Snapshot, error) { return m.ListSnapshots(ctx, id) })
}

func (r remote) ListVEEs(ctx context.Context, f vmi.Filter) ([]vmi.VEE, error) {
	return call(ctx, r, func(ctx context.Context, m *veem.Manager) ([]vmi.VEE, error) { return m.ListVEEs(ctx, f) })
}

func (r remote) WatchVEEs(ctx context.Context, f vmi.Filter) (<-chan vmi.Change, error) {
	in, err := call(ctx, r, func(ctx context.Context, m *veem.Manager) (<-chan vmi.Change, error) { return m.WatchVEEs(ctx, f) })
	if err != nil {
		return nil, err
	}
	out := make(chan vmi.Change)
	r.from.done.Go(func() {
		defer close(out)
		for c := range in {
			if r.from.trusts(r.to.Name) != nil || r.to.trusts(r.from.Name) != nil || r.from.u.cross(r.to.Name, r.from.Name, "call", true) != nil {
				return // the connection is cut
			}
			select {
			case out <- c:
			case <-ctx.Done():
				return
			}
		}
	})
	return out, nil
}

func (r remote) Reserve(ctx context.Context, in vmi.Reserve) (vmi.Reservation, error) {
	return call(ctx, r, func(ctx context.Context, m *veem.Manager) (vmi.Reservation, error) { return m.Reserve(ctx, in) })
}

func (r remote) CommitReservation(ctx context.Context, id string) (vmi.Reservation, error) {
	return call(ctx, r, func(ctx context.Context, m *veem.Manager) (vmi.Reservation, error) {
		return m.CommitReservation(ctx, id)
	})
}

func (r remote) CancelReservation(ctx context.Context, id string) (vmi.Reservation, error) {
	return call(ctx, r, func(ctx context.Context, m *veem.Manager) (vmi.Reservation, error) {
		return m.CancelReservation(ctx, id)
	})
}

func (r remote) GetReservation(ctx context.Context, id string) (vmi.Reservation, error) {
	return call(ctx, r, func(ctx context.Context, m *veem.Manager) (vmi.Reservation, error) { return m.GetReservation(ctx, id) })
}

// remoteSite is the rest of what sites say to each other.
type remoteSite struct {
	sitepeer.Site // nil: what these tests have no use for
	remote        remote
}

func (r remoteSite) PutMove(ctx context.Context, o sitepeer.MoveOrder) (vmi.VEE, error) {
	return call(ctx, r.remote, func(ctx context.Context, m *veem.Manager) (vmi.VEE, error) { return m.Peering().PutMove(ctx, o) })
}

func (r remoteSite) HeldNetworks(ctx context.Context) (map[string]uint64, error) {
	return call(ctx, r.remote, func(ctx context.Context, m *veem.Manager) (map[string]uint64, error) {
		return m.Peering().HeldNetworks(ctx)
	})
}

func (r remoteSite) Attributes(context.Context) (sitepeer.Attributes, error) {
	return sitepeer.Attributes{}, fault.New(fault.Unsupported, "these sites publish nothing")
}

// images: every digest is one of a GiB, and on every host.
type images struct{}

func (images) VirtualSize(context.Context, string) (vee.Bytes, error) { return vee.GiB, nil }
func (images) Fetch(_ context.Context, digest string, _ func(vee.Progress)) (hypervisor.LocalImage, error) {
	return hypervisor.LocalImage{Digest: digest}, nil
}

// plugs of hosts without networks.
type plugs struct{}

func (plugs) Plug(context.Context, vee.ID, int) (string, error) { return "tap", nil }
func (plugs) Unplug(vee.ID) error                               { return nil }
func (plugs) Release(vee.ID, netip.Addr) error                  { return nil }
func (plugs) Announce(vee.ID) error                             { return nil }

type balancer struct{}

func (balancer) Set(_ context.Context, p plan.Point) (string, error) { return "192.0.2.1:1", nil }
func (balancer) Remove(string) error                                 { return nil }
func (balancer) Show(...string) map[string][]plan.BackendState       { return nil }
func (balancer) Sweep() error                                        { return nil }

type recorder struct{ log *slog.Logger }

func (r recorder) Record(e veem.Event) {
	r.log.Info(e.Reason, "object", e.Object, "message", e.Message)
}
