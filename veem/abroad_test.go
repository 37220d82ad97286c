package veem

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/internal/identity"
	"github.com/reservoir-cloud/reservoir/vee"
	"github.com/reservoir-cloud/reservoir/veem/federation"
	"github.com/reservoir-cloud/reservoir/veem/federation/broker"
	"github.com/reservoir-cloud/reservoir/vhi"
	"github.com/reservoir-cloud/reservoir/vmi"
	"github.com/reservoir-cloud/reservoir/vmi/peer"
)

// link is the partner's VEE Manager and site as one site reaches them. It loses, delays and
// repeats calls, and loses their answers.
type link struct {
	vmi.Service // nil: no test comes here
	from, to    *fakeSite
	partner     peer.Partner

	mu    sync.Mutex
	rng   *rand.Rand
	chaos float64
	down  bool
	late  sync.WaitGroup // calls that were repeated and are on their way
	calls map[string]int
}

func (l *link) set(f func()) { l.mu.Lock(); defer l.mu.Unlock(); f() }

// net is one crossing.
func (l *link) net() error {
	l.mu.Lock()
	pause := time.Duration(0)
	if l.chaos > 0 {
		pause = time.Duration(l.rng.IntN(40)) * time.Millisecond
		if l.rng.IntN(20) == 0 {
			pause *= 100
		}
	}
	lost := l.down || l.rng.Float64() < l.chaos
	l.mu.Unlock()
	time.Sleep(pause)
	if lost {
		return errNet
	}
	return nil
}

// as the partner that calls.
func (l *link) as(ctx context.Context) context.Context {
	return identity.With(ctx, identity.Caller{ID: l.from.cfg.Site, Role: identity.Partner, Site: l.from.cfg.Site})
}

// over the link: the call, perhaps again much later, and its answer.
func over[T any](ctx context.Context, l *link, name string, call func(context.Context, *Manager) (T, error)) (none T, err error) {
	if err := l.net(); err != nil {
		return none, err
	}
	as := l.as(context.WithoutCancel(ctx))
	l.mu.Lock()
	l.calls[name]++
	again := l.chaos > 0 && l.rng.IntN(6) == 0
	pause := time.Duration(l.rng.IntN(30)) * time.Second
	l.mu.Unlock()
	if again {
		l.late.Go(func() {
			time.Sleep(pause)
			if m := l.to.manager(); m != nil {
				_, _ = call(as, m)
			}
		})
	}
	m := l.to.manager()
	if m == nil {
		return none, errNet
	}
	out, err := call(as, m)
	if lost := l.net(); lost != nil {
		return none, lost
	}
	return out, err
}

func (l *link) InitializeVEEs(ctx context.Context, in vmi.Initialize) (vmi.Initialized, error) {
	return over(ctx, l, "initialize", func(ctx context.Context, m *Manager) (vmi.Initialized, error) { return m.InitializeVEEs(ctx, in) })
}

func (l *link) UpdateState(ctx context.Context, u vmi.UpdateState) ([]vmi.Outcome, error) {
	return over(ctx, l, string(u.Action), func(ctx context.Context, m *Manager) ([]vmi.Outcome, error) { return m.UpdateState(ctx, u) })
}

func (l *link) UpdateVEEs(ctx context.Context, us []vmi.VEEUpdate) ([]vmi.Outcome, error) {
	return over(ctx, l, "update", func(ctx context.Context, m *Manager) ([]vmi.Outcome, error) { return m.UpdateVEEs(ctx, us) })
}

func (l *link) GetVEE(ctx context.Context, id vee.ID) (vmi.VEE, error) {
	return over(ctx, l, "get", func(ctx context.Context, m *Manager) (vmi.VEE, error) { return m.GetVEE(ctx, id) })
}

func (l *link) ListVEEs(ctx context.Context, f vmi.Filter) ([]vmi.VEE, error) {
	return over(ctx, l, "list", func(ctx context.Context, m *Manager) ([]vmi.VEE, error) { return m.ListVEEs(ctx, f) })
}

// WatchVEEs ends when the link does, and with chaos at some time.
func (l *link) WatchVEEs(ctx context.Context, f vmi.Filter) (<-chan vmi.Change, error) {
	if err := l.net(); err != nil {
		return nil, err
	}
	m := l.to.manager()
	if m == nil {
		return nil, errNet
	}
	ctx, cancel := context.WithCancel(identity.With(ctx, identity.Caller{ID: l.from.cfg.Site, Role: identity.Partner, Site: l.from.cfg.Site}))
	in, err := m.WatchVEEs(ctx, f)
	if err != nil {
		cancel()
		return nil, err
	}
	out := make(chan vmi.Change)
	go func() {
		defer close(out)
		defer cancel()
		for c := range in {
			l.mu.Lock()
			broken := l.down || l.rng.Float64() < l.chaos/4
			l.mu.Unlock()
			if broken {
				return
			}
			select {
			case out <- c:
			case <-ctx.Done():
				return
			}
		}
	}()
	return out, nil
}

// siteLink is the partner beside the VMI.
type siteLink struct {
	peer.Site // nil: no test comes here
	*link
}

func (l siteLink) PutNetwork(ctx context.Context, n peer.Network) error {
	_, err := over(ctx, l.link, "network", func(ctx context.Context, m *Manager) (any, error) { return nil, m.Peering().PutNetwork(ctx, n) })
	return err
}

func (l siteLink) RemoveNetwork(ctx context.Context, id string) error {
	_, err := over(ctx, l.link, "no network", func(ctx context.Context, m *Manager) (any, error) { return nil, m.Peering().RemoveNetwork(ctx, id) })
	return err
}

func (l siteLink) HeldNetworks(ctx context.Context) (map[string]uint64, error) {
	return over(ctx, l.link, "networks", func(ctx context.Context, m *Manager) (map[string]uint64, error) { return m.Peering().HeldNetworks(ctx) })
}

func (l siteLink) Attributes(context.Context) (peer.Attributes, error) {
	return peer.Attributes{}, fault.New(fault.Unsupported, "nothing is published")
}

// link's own.
func (l *link) Partner(name string) (peer.Partner, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if name != l.to.cfg.Site {
		return peer.Partner{}, fault.New(fault.NotFound, "no partner %q", name)
	}
	return l.partner, nil
}
func (l *link) Partners() []peer.Partner { p, _ := l.Partner(l.to.cfg.Site); return []peer.Partner{p} }
func (l *link) Changed() <-chan struct{} { return nil }

// agreed is what both sites hold to: so many VEEs of the other.
type agreed struct {
	mu      sync.Mutex
	vees    int
	price   float64
	own     float64
	country string
	ended   bool
	notice  *Notice
	known   map[string]broker.Candidate
}

func (a *agreed) Admit(partner string, has []vee.Descriptor, _ vee.Descriptor) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	switch {
	case a.ended:
		return fault.New(fault.Denied, "the agreement with site %s has ended", partner)
	case len(has) >= a.vees:
		return fault.New(fault.QuotaExceeded, "site %s has %d VEEs here already, of %d", partner, len(has), a.vees)
	}
	return nil
}

func (a *agreed) Covers(lender, borrower string, from, until time.Time) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.ended {
		return fault.New(fault.Denied, "the agreement has ended")
	}
	return nil
}

func (a *agreed) Candidates() map[string]broker.Candidate { return a.known }

func (a *agreed) Notice(string, string) *Notice {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.notice
}

func (a *agreed) AdmitAccess(partner string) error {
	if a.price < 0 {
		return fault.New(fault.Denied, "site %s may have no access points here", partner)
	}
	return nil
}

func (a *agreed) Offer(partner string, has []vee.Descriptor, more vee.Descriptor) (Offer, error) {
	err := a.Admit(partner, has, more)
	return Offer{Agreement: partner + ".a1", PerHour: a.price, OwnPerHour: a.own, Currency: "EUR", Country: a.country}, err
}

// sites are alpha, which borrows, and beta, which lends.
type sites struct {
	alpha, beta *fakeSite
	link        *link
	agreed      *agreed // as alpha sees it
	granted     *agreed // as beta sees it
}

// renewing is alpha's manager, whichever runs now.
type renewing struct{ s *fakeSite }

func (r renewing) Renew(ctx context.Context, n vhi.Renewal) (vhi.RenewalReply, error) {
	if m := r.s.manager(); m != nil {
		return m.Renew(ctx, n)
	}
	return vhi.RenewalReply{}, errNet
}

func (r renewing) RulesOf(id vee.ID) []vmi.PlacementRule {
	if m := r.s.manager(); m != nil {
		return m.RulesOf(id)
	}
	return nil
}

// inSites runs f beside two managers with hosts of their own and a link from alpha to beta.
func inSites(t *testing.T, alphaHosts, betaHosts int, f func(s *sites)) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		s := &sites{alpha: newFakeSite(t, "alpha"), beta: newFakeSite(t, "beta"), agreed: &agreed{vees: 100, price: .02, own: .01, country: "SE"}, granted: &agreed{vees: 100}}
		s.link = &link{from: s.alpha, to: s.beta, rng: rand.New(rand.NewPCG(7, 7)), calls: map[string]int{}}
		caps := []peer.Capability{peer.CanPlace, peer.CanNetwork, peer.CanAccess}
		now := time.Now()
		s.link.partner = peer.Partner{Name: "beta", VMI: s.link, Site: siteLink{link: s.link}, Hello: peer.Hello{Site: "beta", Capabilities: caps}, Underlay: netip.MustParseAddr("192.0.2.200"),
			Agreements: []peer.Agreement{{Terms: peer.Terms{ID: "beta.a1", Lender: "beta", Borrower: "alpha", From: now, Until: now.Add(1000 * time.Hour),
				Ceiling: peer.Ceiling{VEEs: 100, VCPUs: 64, Memory: 64 * vee.GiB, Disk: 1000 * vee.GiB}}, Signatures: map[string]string{"alpha": "a", "beta": "b"}}}}
		place := federation.New(federation.Config{Partner: "beta", Partners: s.link, Manager: renewing{s.alpha}, Incarnation: "1", Every: 5 * time.Second,
			Call: 10 * time.Second, Hold: time.Minute, Now: time.Now, Log: s.alpha.cfg.Log})
		s.alpha.cfg.Dial = func(name, _ string) vhi.Host {
			if name == "@beta" {
				return place
			}
			return s.alpha.host(name)
		}
		s.alpha.cfg.Country, s.alpha.cfg.Partnership = "DE", s.agreed
		s.beta.cfg.Partnership = s.granted
		s.beta.cfg.Border = func() netip.Addr { return netip.MustParseAddr("192.0.2.201") }
		ctx, cancel := context.WithCancel(context.Background())
		var wg sync.WaitGroup
		defer s.beta.open(betaHosts, &mu)()
		defer s.alpha.open(alphaHosts, &mu)()
		defer func() { cancel(); wg.Wait(); s.link.late.Wait() }()
		s.alpha.elsewhere, s.beta.elsewhere = s.beta.hosts, s.alpha.hosts
		if err := s.alpha.m.PartnerJoined(ctx, "beta"); err != nil {
			t.Fatal(err)
		}
		wg.Go(func() { place.Run(ctx) })
		time.Sleep(10 * time.Second)
		f(s)
	})
}

// TestOverflow: what has no place here runs at the partner, and is one service to its owner.
func TestOverflow(t *testing.T) {
	inSites(t, 1, 1, func(s *sites) {
		all := s.alpha.deploy(6) // 4 fit here
		away := s.away(all)
		if len(away) != 2 {
			t.Fatalf("%d of 6 are at the partner", len(away))
		}
		for _, id := range away {
			v := s.beta.get(id)
			if v.Descriptor.Customer != "alpha/acme" || v.Descriptor.GroupID != "alpha/shop" || v.Custody == nil || v.State != vee.Active || v.Host != "h1" {
				t.Errorf("at the partner: %+v", v)
			}
			if v := s.alpha.get(id); !v.GuestReady || v.Host != "@beta" || v.Phase != vee.PhaseRunning {
				t.Errorf("here: %+v", v)
			}
		}
		plan, err := s.alpha.m.Plan(s.alpha.operator(), initialize(vmi.TwoPhase, web(9)))
		if err != nil || plan[0].Host != "@beta" || plan[0].Why != "no host here takes it; site beta does, for 0.02 EUR an hour (agreement beta.a1)" {
			t.Errorf("plan: %+v, %v", plan, err)
		}
		for _, a := range []vee.Action{vee.Pause, vee.Activate, vee.Suspend, vee.Activate, vee.Shutdown, vee.Activate} {
			for _, o := range s.alpha.act(a, away...) {
				if !o.OK {
					t.Fatalf("%s: %+v", a, o)
				}
			}
		}
		more := vee.GiB + vee.MiB
		if outs, err := s.alpha.m.UpdateVEEs(s.alpha.operator(), []vmi.VEEUpdate{{ID: away[0], Memory: &more}}); err != nil || !outs[0].OK {
			t.Errorf("update: %+v, %v", outs, err)
		}
		time.Sleep(time.Minute)
		if v := s.beta.get(away[0]); v.Descriptor.Memory != more {
			t.Errorf("the partner has it with %v", v.Descriptor.Memory)
		}
		for _, o := range s.alpha.act(vee.Destroy, all...) {
			if !o.OK {
				t.Errorf("destroy: %+v", o)
			}
		}
		s.nothingLeft(t)
	})
}

// away are those that are at the partner.
func (s *sites) away(ids []vee.ID) (away []vee.ID) {
	for _, id := range ids {
		if s.alpha.get(id).Host == "@beta" {
			away = append(away, id)
		}
	}
	return away
}

// nothingLeft of alpha's at beta.
func (s *sites) nothingLeft(t *testing.T) {
	t.Helper()
	list, err := s.beta.m.ListVEEs(s.beta.operator(), vmi.Filter{})
	if err != nil || len(list) > 0 {
		t.Errorf("beta has %+v, %v", list, err)
	}
	for _, h := range s.beta.hosts {
		for id := range h.guests {
			if p := h.power(id); p != vhi.Absent {
				t.Errorf("host %s of beta has VEE %s: %s", h.name, id, p)
			}
		}
	}
}

// TestReservationsAway: the partner keeps a place in the first of two phases; one that nobody
// commits expires on both sides, and one that is destroyed is given up at once.
func TestReservationsAway(t *testing.T) {
	inSites(t, 0, 1, func(s *sites) {
		in := initialize(vmi.TwoPhase, web(1), web(2), web(3), web(4))
		in.HoldMS = 60_000
		out, err := s.alpha.m.InitializeVEEs(s.alpha.operator(), in)
		if err != nil {
			t.Fatal(err)
		}
		for _, v := range out.VEEs {
			if at := s.beta.get(v.ID); at.State != vee.Defined || at.ReservedUntil == nil {
				t.Errorf("at the partner: %+v", at)
			}
		}
		if _, err := s.alpha.m.InitializeVEEs(s.alpha.operator(), initialize(vmi.TwoPhase, web(5))); !fault.Has(err, fault.NoResources) || !strings.Contains(err.Error(), "site beta") {
			t.Errorf("a fifth of four: %v", err)
		}
		s.alpha.act(vee.Destroy, out.VEEs[0].ID)
		if at := s.beta.get(out.VEEs[0].ID); at.State != vee.Destroyed {
			t.Errorf("destroyed: %+v", at)
		}
		s.alpha.submit(out.VEEs[1].ID)
		s.alpha.until(out.VEEs[1].ID, vee.Active)
		time.Sleep(2 * time.Minute)
		for _, v := range out.VEEs[2:] {
			if at := s.beta.get(v.ID); at.State != vee.Destroyed {
				t.Errorf("not committed: %+v", at)
			}
		}
		s.alpha.submit(out.VEEs[2].ID) // it looks for a place again
		s.alpha.until(out.VEEs[2].ID, vee.Active)
	})
}

// TestPartnerLies: it refuses what it should take; the VEE is placed elsewhere.
func TestPartnerLies(t *testing.T) {
	inSites(t, 1, 1, func(s *sites) {
		s.granted.vees = 0
		s.alpha.deploy(4)
		out, err := s.alpha.m.InitializeVEEs(s.alpha.operator(), initialize(vmi.BestEffort, web(7)))
		if err != nil {
			t.Fatal(err)
		}
		id := out.VEEs[0].ID
		s.alpha.submit(id)
		v := s.alpha.untilThat(id, "refused", func(v vmi.VEE) bool {
			return v.Host == "" && strings.Contains(v.Error, "0 of 0") || strings.Contains(v.Error, "of 0")
		})
		if v.State != vee.Initial {
			t.Errorf("refused: %+v", v)
		}
		s.granted.mu.Lock()
		s.granted.vees = 10
		s.granted.mu.Unlock()
		time.Sleep(2 * time.Minute)
		s.alpha.act(vee.Destroy, s.own()...)
		s.alpha.until(id, vee.Active)
	})
}

// own are alpha's VEEs that run here.
func (s *sites) own() (ids []vee.ID) {
	list, _ := s.alpha.m.ListVEEs(s.alpha.operator(), vmi.Filter{})
	for _, v := range list {
		if v.Host != "" && v.Host != "@beta" {
			ids = append(ids, v.ID)
		}
	}
	return ids
}

// TestPartnerDown: what became of its VEEs is unknown, and nothing is guessed.
func TestPartnerDown(t *testing.T) {
	inSites(t, 0, 1, func(s *sites) {
		id := s.alpha.deploy(1)[0]
		s.link.set(func() { s.link.down = true })
		s.alpha.untilThat(id, "unknown", func(v vmi.VEE) bool { return v.Phase == vee.PhaseUnknown })
		if s.beta.get(id).State != vee.Active {
			t.Error("the partner goes on")
		}
		time.Sleep(time.Hour)
		if v := s.alpha.get(id); v.Phase != vee.PhaseUnknown || v.Host != "@beta" {
			t.Errorf("after an hour: %+v", v)
		}
		s.link.set(func() { s.link.down = false })
		s.alpha.untilThat(id, "found", func(v vmi.VEE) bool { return v.Phase == vee.PhaseRunning && v.GuestReady })
	})
}

// TestNetworkOfTwoSites: it is at the partner before a VEE of it runs there, under a VNI of the
// partner's and beside a network of the partner's own with the same subnet; each site knows
// what is at the other to be behind the proxy; it goes with the last VEE.
func TestNetworkOfTwoSites(t *testing.T) {
	inSites(t, 1, 1, func(s *sites) {
		subnet := vmi.NetworkWish{Subnet: netip.MustParsePrefix("10.1.0.0/24")}
		for _, site := range []*fakeSite{s.alpha, s.beta} {
			if _, err := site.m.PutNetwork(site.operator(), vmi.Network{Name: "back", GroupID: "shop", Customer: "acme", Wish: subnet}); err != nil {
				t.Fatal(err)
			}
		}
		in := initialize(vmi.TwoPhase)
		for n := range 5 {
			d := web(n + 1)
			d.NICs = []vee.NIC{{Network: "back"}}
			in.VEEs = append(in.VEEs, vmi.InitializeVEE{Descriptor: d})
		}
		out, err := s.alpha.m.InitializeVEEs(s.alpha.operator(), in)
		if err != nil {
			t.Fatal(err)
		}
		all := ids(out.VEEs)
		s.alpha.submit(all...)
		for _, id := range all {
			s.alpha.until(id, vee.Active)
		}
		away := s.away(all)
		time.Sleep(time.Minute)
		if len(away) != 1 {
			t.Fatalf("%d of 5 are at the partner", len(away))
		}
		g := s.beta.hosts[0].segments["alpha/shop/back"]
		own, err := s.beta.m.GetNetwork(s.beta.operator(), "shop", "back")
		if err != nil || g.VNI == 0 || g.VNI == own.VNI || len(g.Ports) != 6 || g.MTU != vanMTU || !slices.Equal(g.Subnets, own.Subnets) {
			t.Fatalf("at the partner's host: %+v beside %+v, %v", g, own.Network, err)
		}
		for _, p := range g.Ports {
			want, at := "@alpha", netip.MustParseAddr("192.0.2.201")
			if p.VEE == away[0] {
				want, at = "h1", netip.MustParseAddr("192.0.2.1")
			}
			if p.VEE == entryID("alpha") { // the proxy's own
				if p.Host != want || p.Underlay != at || p.Addresses[0] != netip.MustParseAddr("10.1.0.254") {
					t.Errorf("the port by which access points enter: %+v", p)
				}
				continue
			}
			if p.Host != want || p.Underlay != at || len(p.Names) != len(s.alpha.get(p.VEE).Descriptor.Naming.Own) {
				t.Errorf("port of %s: %+v", p.VEE, p)
			}
		}
		for _, p := range s.alpha.hosts[0].segments["shop/back"].Ports {
			if (p.Host == "@beta") != (p.VEE == away[0]) {
				t.Errorf("here: %+v", p)
			}
		}
		border := s.beta.m.Border()
		if len(border) != 1 || len(s.alpha.m.Border()) != 1 || border[0].Tunnel != s.alpha.m.Border()[0].Tunnel {
			t.Errorf("the proxies carry %+v and %+v", border, s.alpha.m.Border())
		}
		s.alpha.act(vee.Destroy, away...)
		time.Sleep(5 * time.Minute)
		list, err := s.beta.m.ListNetworks(s.beta.operator(), "alpha/shop")
		if err != nil || len(list) != 1 || len(s.beta.m.Border())+len(s.alpha.m.Border()) != 0 { // the site's own alone
			t.Errorf("after the last has left: %+v, %v; %+v", list, err, s.beta.m.Border())
		}
	})
}

// TestAgreementEnded: nothing new goes to the partner, and what is there runs on.
func TestAgreementEnded(t *testing.T) {
	inSites(t, 0, 1, func(s *sites) {
		id := s.alpha.deploy(1)[0]
		for _, a := range []*agreed{s.agreed, s.granted} {
			a.mu.Lock()
			a.ended = true
			a.mu.Unlock()
		}
		if _, err := s.alpha.m.InitializeVEEs(s.alpha.operator(), initialize(vmi.TwoPhase, web(2))); !fault.Has(err, fault.NoResources) || !strings.Contains(err.Error(), "has ended") {
			t.Errorf("a new one: %v", err)
		}
		for _, a := range []vee.Action{vee.Pause, vee.Activate, vee.Destroy} {
			if o := s.alpha.act(a, id)[0]; !o.OK {
				t.Errorf("%s of one that is there: %+v", a, o)
			}
		}
		s.nothingLeft(t)
	})
}

// TestWhere: each policy of going to partners, by what the plan says.
func TestWhere(t *testing.T) {
	rule := func(kind string, soft bool) []vmi.PlacementRule {
		return []vmi.PlacementRule{{Kind: kind, Scope: "site", Tag: "web", Soft: soft}}
	}
	for _, c := range []struct {
		name  string
		where vee.Where
		rules []vmi.PlacementRule
		price float64
		want  []string // host or part of the reason
	}{
		{"overflow", vee.Where{}, nil, 1, []string{"h1", "h1"}},
		{"never", vee.Where{Partners: vee.PartnersNever, Sites: []string{"beta"}}, nil, 1, []string{"it does not go to partners", "it may run at beta alone"}},
		{"cheaper", vee.Where{Partners: vee.PartnersCost}, nil, .001, []string{"@beta", "@beta"}},
		{"dearer", vee.Where{Partners: vee.PartnersCost}, nil, 1, []string{"h1", "h1"}},
		{"site", vee.Where{Sites: []string{"beta"}}, nil, 1, []string{"@beta", "@beta"}},
		{"country", vee.Where{Countries: []vee.Area{{Name: "SE"}}}, nil, 1, []string{"@beta", "@beta"}},
		{"not that country", vee.Where{Countries: []vee.Area{{Name: "DE", Outside: true}}}, nil, 1, []string{"@beta", "@beta"}},
		{"no such country", vee.Where{Countries: []vee.Area{{Name: "FR"}}}, nil, 1, []string{"it may run in FR alone", "it may run in FR alone"}},
		{"apart", vee.Where{}, rule("anti-affinity", false), 1, []string{"h1", "@beta"}},
		{"spread", vee.Where{}, rule("anti-affinity", true), 1, []string{"h1", "@beta"}},
		{"together", vee.Where{Partners: vee.PartnersCost}, rule("affinity", false), .001, []string{"@beta", "@beta"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			inSites(t, 1, 1, func(s *sites) {
				s.agreed.mu.Lock()
				s.agreed.price = c.price
				s.agreed.mu.Unlock()
				in := initialize(vmi.TwoPhase, web(1), web(2))
				in.Rules = c.rules
				for i := range in.VEEs {
					in.VEEs[i].Descriptor.Where = c.where
				}
				plan, err := s.alpha.m.Plan(s.alpha.operator(), in)
				if err != nil {
					t.Fatal(err)
				}
				for i, want := range c.want {
					if got := plan[i]; got.Host != want && (got.Host != "" || !strings.Contains(got.Why, want)) {
						t.Errorf("VEE %d: %+v, want %q", i, got, want)
					}
				}
			})
		})
	}
}

// TestChaosBetweenSites does what callers do while the link loses, delays and repeats calls,
// either manager is killed, and writes of both fail. When that stops every VEE is at exactly
// one place, as it was last asked to be, and nothing is left at the other.
func TestChaosBetweenSites(t *testing.T) {
	for seed := uint64(1); seed <= 20; seed++ {
		if *chaosSeed != 0 && seed != *chaosSeed {
			continue
		}
		t.Run(fmt.Sprint("seed=", seed), func(t *testing.T) {
			inSites(t, 1, 2, func(s *sites) {
				rng := rand.New(rand.NewPCG(seed, 3))
				a := &chaotic{s: s.alpha, rng: rng, wanted: map[vee.ID]vee.State{}}
				b := &chaotic{s: s.beta, rng: rng, wanted: map[vee.ID]vee.State{}}
				a.begin()
				b.begin()
				s.link.set(func() { s.link.chaos, s.link.rng = .1, rand.New(rand.NewPCG(seed, 4)) })
				for range 120 {
					switch rng.IntN(20) {
					case 0:
						s.beta.stop()
						s.beta.start()
					case 1:
						s.link.set(func() { s.link.down = !s.link.down })
					case 2:
						s.granted.mu.Lock()
						s.granted.vees = rng.IntN(8)
						s.granted.mu.Unlock()
					default:
						a.act()
					}
					time.Sleep(time.Duration(rng.IntN(800)) * time.Millisecond)
				}
				a.end()
				b.end()
				s.link.set(func() { s.link.chaos, s.link.down = 0, false })
				s.granted.mu.Lock()
				s.granted.vees = 100
				s.granted.mu.Unlock()
				time.Sleep(15 * time.Minute)
				s.check(t, a)
			})
			if t.Failed() {
				t.Logf("again with: go test ./veem -run TestChaosBetweenSites -chaos.seed=%d", seed)
			}
		})
	}
}

// check both sites after a time without faults.
func (s *sites) check(t *testing.T, c *chaotic) {
	list, err := s.alpha.m.ListVEEs(s.alpha.operator(), vmi.Filter{Destroyed: true})
	if err != nil {
		t.Fatal(err)
	}
	lodging, err := s.beta.m.ListVEEs(s.beta.operator(), vmi.Filter{})
	if err != nil {
		t.Fatal(err)
	}
	there := map[vee.ID]vmi.VEE{}
	for _, v := range lodging {
		there[v.ID] = v
	}
	at := func(hosts []*fakeHost, id vee.ID) (power []vhi.Power) {
		for _, h := range hosts {
			if p := h.power(id); p != vhi.Absent {
				power = append(power, p)
			}
		}
		return power
	}
	for _, v := range list {
		if w := c.wanted[v.ID]; w != "" && v.Target != w && v.State != vee.Initial && v.Error == "" {
			t.Errorf("VEE %s should be %s: %+v", v.ID, w, v)
		}
		here, far := at(s.alpha.hosts, v.ID), at(s.beta.hosts, v.ID)
		other, lodges := there[v.ID]
		delete(there, v.ID)
		switch {
		case v.State == vee.Destroyed || v.State == vee.Initial || v.Host == "":
			if lodges || len(here)+len(far) > 0 {
				t.Errorf("VEE %s is %s: it is still here %v, there %v, lodging %v", v.ID, v.State, here, far, other)
			}
		case v.State != v.Target && strings.Contains(v.Error, "which has no room for it now"): // nor will there be
		case v.State != v.Target:
			r, _ := s.alpha.m.ledger.vee(v.ID)
			view := s.alpha.m.hosts.view(r.Host, r.ID)
			for _, site := range []*fakeSite{s.alpha, s.beta} {
				for _, e := range site.events.all {
					if e.Object == "vee/"+string(v.ID) {
						t.Logf("%s: %s %s", site.cfg.Site, e.Reason, e.Message)
					}
				}
			}
			t.Errorf("VEE %s is stuck: %q %+v\nthere: %+v, %+v\nseen: %+v %+v", v.ID, v.Error, r, other, other.Custody, view, view.report)
		case v.Host == "@beta" && !v.Submitted: // a place that is thought of
			if lodges || len(here)+len(far) > 0 {
				t.Errorf("VEE %s was not submitted: here %v, there %v %+v", v.ID, here, far, other)
			}
		case v.Host == "@beta":
			if !lodges || len(here) > 0 || v.State != other.State && other.Phase != vee.PhaseFailed || v.State == vee.Active && !slices.Equal(far, []vhi.Power{vhi.Running}) {
				r, _ := s.alpha.m.ledger.vee(v.ID)
				t.Errorf("VEE %s is %s at the partner: here %v, there %v\nhere:  %+v\nthere: %+v", v.ID, v.State, here, far, r, other)
			}
		case lodges || len(far) > 0:
			t.Errorf("VEE %s is on host %s, and at the partner %v %+v", v.ID, v.Host, far, other)
		}
	}
	for id, v := range there {
		t.Errorf("the partner has VEE %s, which nobody knows here: %+v", id, v)
	}
}
