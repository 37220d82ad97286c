package books

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/reservoir-cloud/reservoir/account"
	"github.com/reservoir-cloud/reservoir/account/billing"
	"github.com/reservoir-cloud/reservoir/account/money"
	"github.com/reservoir-cloud/reservoir/account/settlement"
	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/internal/identity"
	"github.com/reservoir-cloud/reservoir/internal/store"
	"github.com/reservoir-cloud/reservoir/vee"
	"github.com/reservoir-cloud/reservoir/vmi"
	"github.com/reservoir-cloud/reservoir/vmi/peer"
)

const (
	deal  = "beta.xaaaaaaaaa"
	month = "2026-11"
)

// world is two sites: alpha borrows, beta lends. Each has its own clock.
type world struct {
	t     failing
	now   time.Time // by alpha's clock
	sites map[string]*site
	agree []peer.Agreement
}

// failing is a test.
type failing interface {
	Helper()
	Fatalf(format string, args ...any)
}

// site is a keeper of books over a manager that is a table of VEEs.
type site struct {
	w       *world
	name    string
	ahead   time.Duration // of alpha's clock
	known   time.Duration // what partners think that it is
	cut     bool
	mute    bool // it answers no question about its book
	store   *store.Store
	keeper  *Keeper
	vees    map[vee.ID]vmi.VEE
	lines   func([]settlement.Line) []settlement.Line // a lie
	told    []Event
	lost    func() bool
	lacking bool
}

func (s *site) clock() time.Time { return s.w.now.Add(s.ahead) }

func newWorld(t failing) *world {
	w := &world{t: t, now: time.Date(2026, 11, 3, 8, 0, 0, 0, time.UTC), sites: map[string]*site{}}
	price := func(s string) money.Amount { a, _ := money.Parse(s); return a }
	w.agree = []peer.Agreement{{Terms: peer.Terms{ID: deal, Lender: "beta", Borrower: "alpha", From: w.now.Add(-time.Hour), Until: w.now.AddDate(1, 0, 0), Currency: "EUR", Places: 2,
		Prices: map[billing.Meter]money.Amount{billing.VEEs: price("3.6"), billing.VCPUs: price("36"), billing.Memory: price("7.2")}, SLA: peer.Promise{Availability: 0.99, CreditPercent: 10}},
		Signatures: map[string]string{"alpha": "a", "beta": "b"}}}
	for _, name := range []string{"alpha", "beta"} {
		s := &site{w: w, name: name, vees: map[vee.ID]vmi.VEE{}, lost: func() bool { return false }}
		s.store = store.InMemory(slog.New(slog.DiscardHandler), func(bool) error { return nil })
		w.sites[name] = s
		s.restart()
	}
	return w
}

// restart the keeper on what is on record.
func (s *site) restart() {
	s.keeper = New(Config{Site: s.name, Store: s.store, Partners: partners{s}, Agreements: func() []peer.Agreement { return s.w.agree }, Home: s, Every: time.Second, Call: time.Minute,
		Record: func(e Event) { s.told = append(s.told, e) }, Now: s.clock, Log: slog.New(slog.DiscardHandler)})
}

func (w *world) other(s *site) *site {
	if s.name == "alpha" {
		return w.sites["beta"]
	}
	return w.sites["alpha"]
}

func (w *world) pass(d time.Duration) { w.now = w.now.Add(d) }

// look of both sites at their books.
func (w *world) look() {
	for _, name := range []string{"alpha", "beta"} {
		k := w.sites[name].keeper
		for _, b := range k.wanted() {
			_ = k.look(context.Background(), b) // what fails is found again
		}
	}
}

// Source of a manager: partners see what is theirs.

func (s *site) ListVEEs(ctx context.Context, _ vmi.Filter) (list []vmi.VEE, err error) {
	for _, id := range slices.Sorted(maps.Keys(s.vees)) {
		if c := identity.From(ctx); c.Role != identity.Partner || c.Site == id.Site() {
			v := s.vees[id]
			v.History = nil
			list = append(list, v)
		}
	}
	return list, nil
}

func (s *site) GetVEE(ctx context.Context, id vee.ID) (vmi.VEE, error) {
	v, ok := s.vees[id]
	if c := identity.From(ctx); !ok || c.Role == identity.Partner && c.Site != id.Site() {
		return v, fault.New(fault.NotFound, "VEE %s is not known", id)
	}
	return v, nil
}

// maxSteps of a VEE's history, as the VEE Manager keeps it.
const maxSteps = 24

// put a VEE that lodges here into a state, as the VEE Manager writes it down.
func (s *site) put(id vee.ID, state vee.State, wanted bool, z account.Size) {
	v := s.vees[id]
	if v.ID == "" {
		v = vmi.VEE{ID: id, Created: s.clock(), Custody: &vmi.Custody{Agreement: deal}}
		v.Descriptor.Name = "web-" + string(id[len(id)-1])
	}
	v.State = state
	v.Version++
	steps := slices.Clone(v.History)
	if len(steps) >= maxSteps {
		steps = slices.Delete(steps, 1, 2+len(steps)-maxSteps)
	}
	v.History = append(steps, vmi.Step{At: s.clock(), State: state, Counted: &vmi.Counted{Agreement: deal, Wanted: wanted, Size: z}})
	s.vees[id] = v
}

// own VEE of the borrower's.
func (s *site) own(id vee.ID, z account.Size) {
	v := vmi.VEE{ID: id}
	v.Descriptor = vee.Descriptor{Name: "web-" + string(id[len(id)-1]), VCPUs: int(z.VCPUs), Memory: vee.Bytes(z.MemoryMiB) * vee.MiB, Disks: []vee.Disk{{Size: vee.Bytes(z.DiskMiB) * vee.MiB}}}
	s.vees[id] = v
}

// partners as one site knows them.
type partners struct{ s *site }

func (p partners) Partner(name string) (peer.Partner, error) {
	o := p.s.w.other(p.s)
	if name != o.name {
		return peer.Partner{}, fault.New(fault.NotFound, "no partner %s", name)
	}
	x := peer.Partner{Name: name, VMI: far{s: o, from: p.s}, Site: farSite{s: o, from: p.s}, Offset: o.known - p.s.known, OffsetError: 5 * time.Millisecond}
	if x.Hello.Site = name; !o.lacking {
		x.Hello.Capabilities = []peer.Capability{peer.CanAccount}
	}
	if o.cut || p.s.cut {
		x.Down = fault.New(fault.Unavailable, "site %s does not answer", name)
	}
	return x, nil
}
func (p partners) Partners() []peer.Partner {
	x, _ := p.Partner(p.s.w.other(p.s).name)
	return []peer.Partner{x}
}
func (p partners) Changed() <-chan struct{} { return nil }

// far manager; calls to it and their answers get lost.
type far struct {
	vmi.Service
	s, from *site
}

func (f far) as(ctx context.Context) context.Context {
	return identity.With(ctx, identity.Caller{ID: f.from.name, Role: identity.Partner, Site: f.from.name})
}

func lost(a, b *site) error {
	if a.cut || b.cut || a.lost() {
		return fault.New(fault.Unavailable, "lost on the way")
	}
	return nil
}

func (f far) ListVEEs(ctx context.Context, q vmi.Filter) ([]vmi.VEE, error) {
	if err := lost(f.s, f.from); err != nil {
		return nil, err
	}
	return f.s.ListVEEs(f.as(ctx), q)
}

func (f far) GetVEE(ctx context.Context, id vee.ID) (vmi.VEE, error) {
	if err := lost(f.s, f.from); err != nil {
		return vmi.VEE{}, err
	}
	return f.s.GetVEE(f.as(ctx), id)
}

type farSite struct {
	peer.Site
	s, from *site
}

func (f farSite) Lines(ctx context.Context, q peer.LinesAsked) (peer.Page, error) {
	if err := lost(f.s, f.from); err != nil || f.s.mute {
		return peer.Page{}, fault.New(fault.Unavailable, "site %s does not answer", f.s.name)
	}
	p, err := f.s.keeper.Lines(identity.With(ctx, identity.Caller{ID: f.from.name, Role: identity.Partner, Site: f.from.name}), q)
	if f.s.lines != nil {
		p.Lines = f.s.lines(p.Lines)
	}
	return p, err
}

// settled is the one settlement of the month, at a site.
func (w *world) settled(name string) Settlement {
	w.t.Helper()
	all, err := w.sites[name].keeper.Settlements(context.Background(), Asked{Period: month})
	if err != nil || len(all) != 1 {
		w.t.Fatalf("settlements at %s: %+v, %v", name, all, err)
	}
	return all[0]
}

// agreeNow fails unless both sites say that their books are the same, and charge the same.
func (w *world) agreeNow() Settlement {
	w.t.Helper()
	a, b := w.settled("alpha"), w.settled("beta")
	for _, s := range []Settlement{a, b} {
		if !s.Agree || s.Theirs == nil || s.Theirs.Compare(s.Bill.Total) != 0 {
			w.t.Fatalf("site that is not %s: the books differ: %s, theirs %v, %+v", s.Partner, s.Why, s.Theirs, s.Differences)
		}
	}
	if a.Bill.Total.Compare(b.Bill.Total) != 0 || a.Lender != "beta" || a.Borrower != "alpha" {
		w.t.Fatalf("alpha: %s, beta: %s", a.Bill, b.Bill)
	}
	return b
}

var small = account.Size{VCPUs: 1, MemoryMiB: 512, DiskMiB: 1024}

const (
	web1 = vee.ID("alpha.aaaaaaaaa2")
	web2 = vee.ID("alpha.aaaaaaaaa3")
)

// lent has one VEE run at beta for an hour, as both sites see.
func lent(t failing) *world {
	w := newWorld(t)
	w.look()
	w.sites["alpha"].own(web1, small)
	w.sites["beta"].put(web1, vee.Defined, false, small)
	w.pass(1234 * time.Millisecond)
	w.sites["beta"].put(web1, vee.Active, true, small)
	w.pass(time.Hour)
	return w
}

func (w *world) end() {
	w.sites["beta"].put(web1, vee.Destroyed, false, small)
	w.pass(time.Minute)
}

func TestBothSitesKnowWhatAnHourCosts(t *testing.T) {
	w := lent(t)
	w.end()
	// An hour of a VEE, of a vCPU and of half a GiB.
	if s := w.agreeNow(); s.Bill.Total.String() != "43.2" || s.Complete {
		t.Errorf("%s", s.Bill)
	}
	if all, err := w.sites["alpha"].keeper.Settlements(context.Background(), Asked{Period: "2026-10"}); err != nil || len(all) != 0 {
		t.Errorf("before the agreement: %+v, %v", all, err)
	}
}

// Whatever is lost on the way, whichever of them is away or starts again, and however far their
// clocks are from each other: when they can see each other again the books agree, to the unit.
func TestBooksAgreeThroughFaults(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		w := newWorld(rt)
		alpha, beta := w.sites["alpha"], w.sites["beta"]
		beta.ahead = time.Duration(rapid.Int64Range(-50*60_000, 50*60_000).Draw(rt, "ahead")) * time.Millisecond
		beta.known = beta.ahead + time.Duration(rapid.Int64Range(-4, 4).Draw(rt, "error"))*time.Millisecond
		w.look()
		rng := rand.New(rand.NewPCG(rapid.Uint64().Draw(rt, "seed"), 1))
		w.sites["beta"].lost = func() bool { return rng.IntN(3) == 0 }
		ids := []vee.ID{web1, web2}
		changes := map[vee.ID]int{}
		for _, id := range ids {
			alpha.own(id, account.Size{VCPUs: 8, MemoryMiB: 4096, DiskMiB: 4096})
		}
		for range rapid.IntRange(1, 60).Draw(rt, "steps") {
			w.pass(time.Duration(rapid.Int64Range(1, 600_000).Draw(rt, "ms")) * time.Millisecond)
			switch rapid.IntRange(0, 6).Draw(rt, "what") {
			case 0, 1:
				id := rapid.SampledFrom(ids).Draw(rt, "vee")
				if changes[id]++; changes[id] > maxSteps-2 { // more is told in TestMoreThanAHistoryHas
					continue
				}
				z := account.Size{VCPUs: rapid.Int64Range(1, 8).Draw(rt, "vcpus"), MemoryMiB: 512}
				beta.put(id, rapid.SampledFrom(vee.States[1:]).Draw(rt, "state"), rapid.Bool().Draw(rt, "wanted"), z)
			case 2:
				beta.cut = !beta.cut
			case 3:
				alpha.restart()
			case 4:
				beta.restart()
			default:
				w.look()
			}
		}
		beta.cut, beta.lost = false, func() bool { return false }
		w.pass(time.Minute)
		w.agreeNow()
	})
}

// A partition so long that the lender has forgotten part of a VEE's life: what the borrower did
// not see is a difference, with its place.
func TestMoreThanAHistoryHas(t *testing.T) {
	w := lent(t)
	w.look()
	w.sites["beta"].cut = true
	for range maxSteps {
		w.sites["beta"].put(web1, vee.Paused, false, small)
		w.pass(time.Second)
		w.look()
		w.sites["beta"].put(web1, vee.Defined, false, small)
		w.pass(time.Second)
		w.look()
	}
	w.sites["beta"].cut = false
	w.pass(time.Minute)
	a := w.settled("alpha")
	if a.Agree || len(a.Differences) == 0 || a.Differences[0].VEE != web1 || a.Differences[0].Ours <= a.Differences[0].Theirs {
		t.Errorf("%+v", a)
	}
}

// The lender's clock jumps an hour ahead: that hour is in its own book, and the borrower's says
// that it never was.
func TestAClockThatJumps(t *testing.T) {
	w := lent(t)
	w.look()
	beta := w.sites["beta"]
	w.pass(10 * time.Minute)
	beta.ahead, beta.known = 30*time.Minute, 30*time.Minute
	w.pass(10 * time.Minute)
	beta.put(web1, vee.Active, true, account.Size{VCPUs: 1, MemoryMiB: 256, DiskMiB: 1024})
	n := 0
	beta.lost = func() bool { n++; return n == 2 } // the list comes, and not what is in it
	w.look()
	beta.put(web1, vee.Active, true, small)
	w.pass(time.Minute)
	w.look()
	w.end()
	a, b := w.settled("alpha"), w.settled("beta")
	for _, s := range []Settlement{a, b} {
		if s.Agree || len(s.Differences) != 4 {
			t.Fatalf("%+v", s.Differences)
		}
	}
	d := a.Differences[0]
	if d.Meter != billing.VEEs || d.Ours != 0 || d.Theirs != (30*time.Minute).Milliseconds() || d.ToMS-d.FromMS != d.Theirs {
		t.Errorf("%+v", d)
	}
	if by := a.Theirs.Minus(a.Bill.Total); by.String() != "21.6" { // half of an hour's 43.2
		t.Errorf("the hour costs %s more", by)
	}
	if !slices.ContainsFunc(w.sites["alpha"].told, func(e Event) bool { return e.Reason == "ClockJumped" }) {
		t.Errorf("nobody was told: %+v", w.sites["alpha"].told)
	}
}

// What a partner says of its book changes nothing of ours, and is shown, or refused where it is
// no book at all.
func TestALyingPartner(t *testing.T) {
	w := lent(t)
	w.end()
	truth := w.agreeNow().Bill.Total
	for name, c := range map[string]struct {
		lie   func([]settlement.Line) []settlement.Line
		sense bool
	}{
		"more":          {func(l []settlement.Line) []settlement.Line { l[1].Used.VCPUMS++; return l }, true},
		"nothing":       {func([]settlement.Line) []settlement.Line { return nil }, true},
		"another VEE":   {func(l []settlement.Line) []settlement.Line { l[0].VEE, l[1].VEE = web2, web2; return l }, true},
		"somebody's":    {func(l []settlement.Line) []settlement.Line { l[0].VEE = "gamma.aaaaaaaaaa"; return l }, false},
		"twice":         {func(l []settlement.Line) []settlement.Line { return append(l, l...) }, false},
		"another month": {func(l []settlement.Line) []settlement.Line { l[0].FromMS = 5; return l }, false},
	} {
		w.sites["beta"].lines = c.lie
		s := w.settled("alpha")
		if s.Agree || s.Bill.Total.Compare(truth) != 0 || c.sense != (len(s.Differences) > 0) || c.sense == strings.Contains(s.Why, "makes no sense") {
			t.Errorf("%s: %+v", name, s)
		}
	}
	w.sites["beta"].lines = nil
	w.agreeNow()
}

// A lender that lies about the VEEs themselves: what it says before it could have been so, or
// larger than it was asked for, or of a VEE that nobody had, is not in our book.
func TestALyingLender(t *testing.T) {
	w := lent(t)
	beta := w.sites["beta"]
	w.look()
	w.pass(time.Hour)
	w.look()
	v := beta.vees[web1]
	v.History = append(slices.Clone(v.History), vmi.Step{At: w.now.Add(-50 * time.Minute), State: vee.Active, Counted: &vmi.Counted{Agreement: deal, Wanted: true, Size: account.Size{VCPUs: 64, MemoryMiB: 512, DiskMiB: 1024}}})
	v.Version++
	beta.vees[web1] = v
	w.sites["alpha"].own(web1, account.Size{VCPUs: 2, MemoryMiB: 512, DiskMiB: 1024}) // it was asked to grow, to two
	beta.put(web2, vee.Active, true, small)
	w.pass(time.Hour)
	a := w.settled("alpha")
	invented, dated := false, false
	for _, d := range a.Differences {
		invented = invented || d.VEE == web2 && d.Ours == 0
		dated = dated || d.VEE == web1 && d.Meter == billing.VCPUs && d.FromMS < w.now.Add(-time.Hour-time.Minute).UnixMilli() && d.Ours < d.Theirs
	}
	// Two hours with one vCPU, and one with the two that were asked for, but for what cannot be
	// told apart: changes are seen some seconds late.
	most := time.Duration(4)*time.Hour + time.Minute
	if !invented || !dated || a.Bill.Charges[1].Raw > most.Milliseconds() {
		t.Errorf("%+v\n%s", a.Differences, a.Bill)
	}
}

// An agreement that has ended is settled still, as is the time in which VEEs leave; a VEE that
// goes on under another one is on that one's bill from then on.
func TestAnAgreementThatEnds(t *testing.T) {
	w := lent(t)
	w.look()
	w.agree[0].End = &peer.End{Agreement: deal, By: "beta", At: w.now}
	w.agree[0].NoticeMS = time.Hour.Milliseconds()
	w.pass(30 * time.Minute)
	w.end()
	if s := w.agreeNow(); s.Bill.Total.String() != "64.8" {
		t.Errorf("%s", s.Bill)
	}
	next := w.agree[0]
	next.ID, next.End, next.Prices = "beta.xbbbbbbbbb", nil, map[billing.Meter]money.Amount{billing.VEEs: money.Of(1, 1)}
	w.agree = append(w.agree, next)
	beta := w.sites["beta"]
	w.sites["alpha"].own(web2, small)
	beta.put(web2, vee.Active, true, small)
	w.pass(time.Hour)
	beta.put(web2, vee.Active, true, small)
	beta.vees[web2].History[1].Counted.Agreement = next.ID
	w.pass(2 * time.Hour)
	beta.put(web2, vee.Destroyed, false, small)
	beta.vees[web2].History[2].Counted.Agreement = next.ID
	w.pass(time.Minute)
	for _, name := range []string{"alpha", "beta"} {
		all, err := w.sites[name].keeper.Settlements(context.Background(), Asked{Period: month})
		if err != nil || len(all) != 2 || !all[0].Agree || !all[1].Agree || all[0].Bill.Total.String() != "108" || all[1].Bill.Total.String() != "2" {
			t.Errorf("%s: %v, %+v", name, err, all)
		}
	}
}

// A borrower that names an agreement that there is not pays by the one that there is.
func TestABorrowerThatNamesAnotherAgreement(t *testing.T) {
	w := lent(t)
	for _, s := range w.sites["beta"].vees[web1].History {
		s.Counted.Agreement = "beta.xzzzzzzzzz"
	}
	w.end()
	s := w.settled("beta")
	if s.Bill.Total.String() != "43.2" || s.Agree || len(s.Differences) == 0 {
		t.Errorf("%s, %+v", s.Bill, s.Differences)
	}
}

// Only the partner of an agreement sees the book about it.
func TestWhoMayReadTheBook(t *testing.T) {
	w := lent(t)
	k := w.sites["beta"].keeper
	as := func(c identity.Caller) context.Context { return identity.With(context.Background(), c) }
	alpha := as(identity.Caller{ID: "alpha", Role: identity.Partner, Site: "alpha"})
	if p, err := k.Lines(alpha, peer.LinesAsked{Agreement: deal, Period: month}); err != nil || len(p.Lines) != 2 {
		t.Fatalf("%+v, %v", p, err)
	}
	for name, c := range map[string]struct {
		ctx context.Context
		q   peer.LinesAsked
		is  fault.Code
	}{
		"another partner":   {as(identity.Caller{ID: "gamma", Role: identity.Partner, Site: "gamma"}), peer.LinesAsked{Agreement: deal, Period: month}, fault.NotFound},
		"nobody":            {context.Background(), peer.LinesAsked{Agreement: deal, Period: month}, fault.NotFound},
		"a provider":        {as(identity.Caller{ID: "x", Role: identity.Provider, Site: "alpha"}), peer.LinesAsked{Agreement: deal, Period: month}, fault.NotFound},
		"another agreement": {alpha, peer.LinesAsked{Agreement: "beta.xzzzzzzzzz", Period: month}, fault.NotFound},
		"no month":          {alpha, peer.LinesAsked{Agreement: deal, Period: "2026"}, fault.Malformed},
		"no position":       {alpha, peer.LinesAsked{Agreement: deal, Period: month, After: "x/y"}, fault.Malformed},
	} {
		if p, err := k.Lines(c.ctx, c.q); !fault.Has(err, c.is) {
			t.Errorf("%s: %+v, %v", name, p, err)
		}
	}
	w.sites["beta"].lacking = true
	if s := w.settled("alpha"); s.Theirs != nil || !strings.Contains(s.Why, "accounting") || s.Bill.Total.Sign() <= 0 {
		t.Errorf("a partner that lacks the capability: %+v", s)
	}
}

// A book of many lines comes in pages, and is the same as in one.
func TestPages(t *testing.T) {
	w := newWorld(t)
	w.look()
	for n := range peer.MaxLines + 20 {
		id := vee.ID(fmt.Sprintf("alpha.aaaaaaa%c%c%c", 'a'+n/576, 'a'+n/24%24, 'a'+n%24))
		w.sites["alpha"].own(id, small)
		w.sites["beta"].put(id, vee.Active, true, small)
		w.pass(time.Second)
		w.sites["beta"].put(id, vee.Paused, false, small)
		w.pass(time.Second)
		if n%20 == 0 {
			w.look()
		}
	}
	w.pass(time.Minute)
	w.agreeNow()
	p, err := w.sites["beta"].keeper.Lines(identity.With(context.Background(), identity.Caller{Role: identity.Partner, Site: "alpha"}), peer.LinesAsked{Agreement: deal, Period: month})
	if err != nil || len(p.Lines) != peer.MaxLines || p.Next == "" {
		t.Errorf("%d lines, next %q, %v", len(p.Lines), p.Next, err)
	}
}

// A VEE that changes all the time has a log of many parts, and loses nothing.
func TestALongLog(t *testing.T) {
	w := lent(t)
	for n := range 2*maxEvents + 50 {
		w.sites["beta"].put(web1, []vee.State{vee.Active, vee.Paused}[n%2], true, small)
		w.pass(time.Second)
		w.look()
		if n == maxEvents {
			w.sites["alpha"].restart()
			w.sites["beta"].restart()
		}
	}
	w.end()
	w.agreeNow()
	if list, err := w.sites["beta"].keeper.entries.Values(context.Background(), "lent/alpha/"); err != nil || len(list) != 3 {
		t.Errorf("%d parts, %v", len(list), err)
	}
}

// A statement is issued by the lender when the month is over and the books agree, once.
func TestStatements(t *testing.T) {
	w := lent(t)
	w.end()
	ctx := context.Background()
	alpha, beta := w.sites["alpha"], w.sites["beta"]
	order := Order{Agreement: deal, Period: month}
	issue := func(s *site, o Order, want fault.Code) Settlement {
		t.Helper()
		got, err := s.keeper.Issue(ctx, o)
		if want == "" && err != nil || want != "" && !fault.Has(err, want) {
			t.Fatalf("%+v at %s: %v, want %q", o, s.name, err, want)
		}
		return got
	}
	issue(beta, order, fault.WrongState) // the month is not over
	w.now = time.Date(2026, 12, 2, 0, 0, 0, 0, time.UTC)
	issue(alpha, order, fault.WrongState) // it borrows
	issue(beta, Order{Agreement: "beta.xzzzzzzzzz", Period: month}, fault.NotFound)
	issue(beta, Order{Agreement: deal, Period: "x"}, fault.Malformed)
	alpha.mute = true
	issue(beta, order, fault.Conflict) // the other book is not seen
	alpha.mute = false
	alpha.lines = func(l []settlement.Line) []settlement.Line { return l[1:] }
	issue(beta, order, fault.Conflict) // it differs
	alpha.lines = nil
	first := issue(beta, order, "")
	if first.Statement != deal+"-"+month || first.Bill.Number != first.Statement || first.Bill.Total.String() != "43.2" || len(first.Bill.Charges) != 3 {
		t.Errorf("%+v", first)
	}
	beta.restart()
	if again := issue(beta, order, ""); again.Statement != first.Statement || again.Bill.String() != first.Bill.String() {
		t.Errorf("%+v", again)
	}
	list, err := beta.keeper.statements.Values(ctx, "")
	if err != nil || len(list) != 1 || list[0].Disputed {
		t.Errorf("%+v, %v", list, err)
	}
	if s := w.settled("alpha"); s.Statement != first.Statement || !s.Complete || !s.Agree {
		t.Errorf("alpha knows of %+v", s)
	}
	w.now = time.Date(2027, 1, 2, 0, 0, 0, 0, time.UTC)
	alpha.cut = true
	if s := issue(beta, Order{Agreement: deal, Period: "2026-12", Disputed: true}, ""); s.Statement == "" {
		t.Errorf("%+v", s)
	}
}

// A crash after the charges were written, and before the statement: nothing was issued, and the
// next one is whole.
func TestAStatementThatWasCutOff(t *testing.T) {
	w := lent(t)
	w.end()
	w.now = time.Date(2026, 12, 2, 0, 0, 0, 0, time.UTC)
	beta := w.sites["beta"]
	ctx := context.Background()
	if _, err := beta.keeper.charges.Put(ctx, statementKey(deal, month)+"/000000", []billing.Charge{{Service: "half"}}); err != nil {
		t.Fatal(err)
	}
	if s := w.settled("beta"); s.Statement != "" {
		t.Errorf("it was issued: %+v", s)
	}
	s, err := beta.keeper.Issue(ctx, Order{Agreement: deal, Period: month})
	if err != nil || len(s.Bill.Charges) != 3 || s.Bill.Charges[0].Service != deal {
		t.Errorf("%+v, %v", s, err)
	}
}

// Entries that are long past are dropped, and those that others go on from stay.
func TestForgetting(t *testing.T) {
	w := lent(t)
	w.sites["alpha"].own(web2, small)
	w.sites["beta"].put(web2, vee.Active, true, small)
	w.end()
	w.look()
	w.now = w.now.AddDate(3, 0, 0)
	if err := w.sites["beta"].keeper.forget(context.Background()); err != nil {
		t.Fatal(err)
	}
	list, err := w.sites["beta"].keeper.entries.Values(context.Background(), "")
	if err != nil || len(list) != 1 || list[0].VEE != web2 {
		t.Errorf("%+v, %v", list, err)
	}
}
