package veem

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/reservoir-cloud/reservoir/account"
	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/internal/identity"
	"github.com/reservoir-cloud/reservoir/monitor"
	"github.com/reservoir-cloud/reservoir/vee"
	"github.com/reservoir-cloud/reservoir/vmi"
)

// bookkeeper is an accounting listener that checks what it hears. It may be down (nothing
// arrives), mute (it arrives, and the confirmation is lost), or hang.
type bookkeeper struct {
	mu         sync.Mutex
	down, mute bool
	hang       bool
	at         []time.Time
	heard      map[vee.ID][]vmi.AccountingMessage
	broken     []string
}

func (b *bookkeeper) ReceiveAccountingInformation(ctx context.Context, messages []vmi.AccountingMessage) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.at = append(b.at, time.Now())
	if b.hang {
		b.mu.Unlock()
		<-ctx.Done()
		b.mu.Lock()
		return ctx.Err()
	}
	if b.down {
		return errors.New("connection refused")
	}
	for _, m := range messages {
		b.hear(m)
	}
	if b.mute {
		return errors.New("connection reset")
	}
	return nil
}

func (b *bookkeeper) hear(m vmi.AccountingMessage) {
	if b.heard == nil {
		b.heard = map[vee.ID][]vmi.AccountingMessage{}
	}
	all := b.heard[m.VEE]
	switch n := len(all); {
	case n > 0 && all[n-1].Seq == m.Seq:
		if all[n-1] != m {
			b.broken = append(b.broken, fmt.Sprintf("message %d again, and another: %+v, %+v", m.Seq, all[n-1], m))
		}
		return
	case m.Seq != uint64(n+1), n > 0 && (all[n-1].ToMS != m.FromMS || all[n-1].Final), m.ToMS < m.FromMS:
		b.broken = append(b.broken, fmt.Sprintf("after %+v came %+v", all, m))
	}
	u := m.Used
	if sum := u.InitialMS + u.BilledMS(); sum != m.ToMS-m.FromMS {
		b.broken = append(b.broken, fmt.Sprintf("%d ms of states in %+v", sum, m))
	}
	b.heard[m.VEE] = append(all, m)
}

func (b *bookkeeper) set(f func()) { b.mu.Lock(); defer b.mu.Unlock(); f() }

// of a VEE.
func (b *bookkeeper) of(id vee.ID) []vmi.AccountingMessage {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.heard[id])
}

// sum of what was heard of a VEE.
func (b *bookkeeper) sum(id vee.ID) (u account.Usage) {
	for _, m := range b.of(id) {
		u = u.Plus(m.Used)
	}
	return u
}

var clerk = identity.Caller{ID: "clerk", Role: identity.SiteRole}

func (s *fakeSite) clerk() context.Context { return identity.With(context.Background(), clerk) }

// attach b before the manager runs, and after each restart.
func (s *fakeSite) attach(b vmi.AccountingListener) {
	s.stop()
	s.attached = b
	s.start()
	synctest.Wait()
}

func register(t *testing.T, s *fakeSite, ms int64, ids ...vee.ID) {
	t.Helper()
	if err := s.m.RegisterAccountingInformationListener(s.clerk(), vmi.AccountingRegistration{IDs: ids, IntervalMS: ms}); err != nil {
		t.Fatal(err)
	}
}

func TestAccountingAtExactIntervals(t *testing.T) {
	inSite(t, 1, func(s *fakeSite) {
		b := &bookkeeper{}
		s.attach(b)
		id := s.deploy(1)[0]
		begin := time.Now()
		register(t, s, 300_000, id)
		time.Sleep(15 * time.Minute)
		synctest.Wait()
		for i, at := range b.at {
			if want := begin.Add(time.Duration(i+1) * 5 * time.Minute); at.UnixMilli() != want.UnixMilli() {
				t.Errorf("message %d came %v, want %v", i+1, at, want)
			}
		}
		if len(b.at) != 3 {
			t.Fatalf("%d messages in 15 minutes", len(b.at))
		}
		last := b.of(id)[2]
		if last.ToMS-last.FromMS != 300_000 || last.Used != (account.Usage{ActiveMS: 300_000, VCPUMS: 300_000, MemoryMiBMS: 300_000 * 1024, DiskMiBMS: 300_000 * 1024}) ||
			last.Customer != "acme" || last.GroupID != "shop" {
			t.Errorf("message: %+v", last)
		}
		register(t, s, 300_000, id) // again the same: nothing changes
		time.Sleep(time.Minute)
		register(t, s, 600_000, id)
		changed := time.Now()
		time.Sleep(10 * time.Minute)
		synctest.Wait()
		if n := len(b.at); n != 4 || b.at[3].UnixMilli() != changed.Add(10*time.Minute).UnixMilli() {
			t.Errorf("after the interval was changed at %v: %v", changed, b.at)
		}
		if m := b.of(id)[3]; m.ToMS-m.FromMS != 660_000 {
			t.Errorf("the first one after that: %+v", m)
		}
		if err := s.m.DeregisterAccountingInformationListener(s.clerk(), []vee.ID{id}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Hour)
		if len(b.at) != 4 || b.broken != nil {
			t.Errorf("%d messages; %v", len(b.at), b.broken)
		}
		if err := s.m.DeregisterAccountingInformationListener(s.clerk(), []vee.ID{id}); err != nil {
			t.Errorf("deregister where nobody is registered: %v", err)
		}
	})
}

func TestAccountingErrors(t *testing.T) {
	inSite(t, 1, func(s *fakeSite) {
		s.attach(&bookkeeper{})
		id := s.deploy(1)[0]
		in := vmi.AccountingRegistration{IDs: []vee.ID{id}, IntervalMS: 60_000}
		with := func(f func(*vmi.AccountingRegistration)) vmi.AccountingRegistration { n := in; f(&n); return n }
		for name, c := range map[string]struct {
			ctx  context.Context
			in   vmi.AccountingRegistration
			want fault.Code
		}{
			"unknown":   {s.clerk(), with(func(r *vmi.AccountingRegistration) { r.IDs = []vee.ID{id, "alpha.zzzzzzzzzz"} }), fault.NotFound},
			"foreign":   {s.provider("other"), in, fault.Malformed}, // and it has nowhere to send to
			"interval":  {s.clerk(), with(func(r *vmi.AccountingRegistration) { r.IntervalMS = 10 }), fault.Malformed},
			"nobody":    {context.Background(), in, fault.Denied},
			"elsewhere": {s.clerk(), with(func(r *vmi.AccountingRegistration) { r.URL = "https://169.254.169.254/" }), fault.Denied},
			"nowhere":   {s.operator(), in, fault.Malformed},
		} {
			if err := s.m.RegisterAccountingInformationListener(c.ctx, c.in); !fault.Has(err, c.want) {
				t.Errorf("%s: %v, want %s", name, err, c.want)
			}
		}
		s.m.accountant.attached[listenerOf(identity.Caller{ID: "other", Role: identity.Provider})] = &bookkeeper{}
		if err := s.m.RegisterAccountingInformationListener(s.provider("other"), in); !fault.Has(err, fault.Denied) {
			t.Errorf("somebody else's VEE: %v", err)
		}
		if err := s.m.DeregisterAccountingInformationListener(s.clerk(), []vee.ID{id, "alpha.zzzzzzzzzz"}); !fault.Has(err, fault.NotFound) {
			t.Errorf("deregister an unknown one: %v", err)
		}
		if len(s.m.ledger.accounts.rows) != 0 {
			t.Errorf("registered: %+v", s.m.ledger.accounts.rows)
		}
	})
}

// TestAHangingListenerHoldsNobodyUp: another one gets its messages at the hour, and what the
// first one has missed comes as one longer interval.
func TestAHangingListenerHoldsNobodyUp(t *testing.T) {
	inSite(t, 1, func(s *fakeSite) {
		slow, quick := &bookkeeper{hang: true}, &bookkeeper{}
		s.attach(slow)
		other := identity.Caller{ID: "other", Role: identity.SiteRole}
		s.stop()
		s.more = map[identity.Caller]vmi.AccountingListener{other: quick}
		s.start()
		id := s.deploy(1)[0]
		register(t, s, 60_000, id)
		if err := s.m.RegisterAccountingInformationListener(identity.With(context.Background(), other), vmi.AccountingRegistration{IDs: []vee.ID{id}, IntervalMS: 60_000}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Hour)
		synctest.Wait()
		if n := len(quick.of(id)); n != 60 {
			t.Errorf("the quick one has heard %d messages in an hour", n)
		}
		if n := len(slow.at); n != 60 {
			t.Errorf("the slow one was tried %d times", n)
		}
		slow.set(func() { slow.hang = false })
		time.Sleep(time.Minute)
		synctest.Wait()
		if got := slow.of(id); len(got) != 2 || got[1].ToMS-got[1].FromMS != 60*60_000 || slow.sum(id) != quick.sum(id) {
			t.Errorf("what it had missed: %+v\n%+v, %+v", got, slow.sum(id), quick.sum(id))
		}
		for _, b := range append(slow.broken, quick.broken...) {
			t.Error(b)
		}
	})
}

// TestNothingOfALifeIsLost: over random lives, restarts of the site and faults of the
// listener, the intervals adjoin and sum up to the VEE's life, in each state.
func TestNothingOfALifeIsLost(t *testing.T) {
	for seed := range uint64(25) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			inSite(t, 2, func(s *fakeSite) {
				rng := rand.New(rand.NewPCG(seed, 3))
				b := &bookkeeper{}
				s.attach(b)
				id := s.deploy(1)[0]
				born := s.get(id).Created.UnixMilli()
				registered := false
				for range 30 {
					time.Sleep(time.Duration(rng.IntN(180_000)) * time.Millisecond)
					switch rng.IntN(8) {
					case 0:
						s.stop()
						time.Sleep(time.Duration(rng.IntN(200)) * time.Second)
						s.start()
						time.Sleep(10 * time.Second)
					case 1:
						b.set(func() { b.down, b.mute = rng.IntN(2) == 0, rng.IntN(2) == 0 })
					case 2:
						register(t, s, int64(1000*(1+rng.IntN(300))), id)
						registered = true
					default:
						s.act(vee.Actions[rng.IntN(4)], id) // some are refused
					}
				}
				if !registered {
					register(t, s, 7000, id)
				}
				s.act(vee.Destroy, id)
				end := s.get(id).Changed.UnixMilli()
				want := s.m.ledger.vees.rows[string(id)].Meter.Used
				if rng.IntN(2) == 0 {
					time.Sleep(2 * time.Hour) // its record is dropped before the listener is well again
				}
				b.set(func() { b.down, b.mute = false, false })
				time.Sleep(time.Hour)
				synctest.Wait()
				all := b.of(id)
				if len(all) == 0 || all[0].FromMS != born || all[len(all)-1].ToMS != end || !all[len(all)-1].Final {
					t.Fatalf("life from %d to %d, heard %+v", born, end, all)
				}
				if got := b.sum(id); got != want || got.InitialMS+got.BilledMS() != end-born {
					t.Errorf("heard %+v in all, want %+v", got, want)
				}
				if n := len(s.m.ledger.accounts.rows); n != 0 {
					t.Errorf("%d registrations are left", n)
				}
				for _, x := range b.broken {
					t.Error(x)
				}
			})
		})
	}
}

func TestQuotas(t *testing.T) {
	inSite(t, 2, func(s *fakeSite) {
		n, memory := 3, 2*vee.GiB
		q, err := s.m.SetQuota(s.operator(), vmi.SetQuota{Customer: "acme", Limits: vmi.Limits{VEEs: &n, Memory: &memory}})
		if err != nil || q.Version != 1 {
			t.Fatal(q, err)
		}
		if _, err := s.m.SetQuota(s.operator(), vmi.SetQuota{Customer: "acme", Version: 7}); !fault.Has(err, fault.Conflict) {
			t.Errorf("over another version: %v", err)
		}
		_, err = s.m.InitializeVEEs(s.provider("acme"), initialize(vmi.BestEffort, web(1), web(2), web(3)))
		if !fault.Has(err, fault.QuotaExceeded) || !strings.Contains(err.Error(), `the quota of customer "acme" is 2GiB of memory: 0B used, 3GiB more asked for`) {
			t.Errorf("three of 1 GiB: %v", err)
		}
		if _, err := s.m.Plan(s.provider("acme"), initialize(vmi.TwoPhase, web(1), web(2), web(3))); !fault.Has(err, fault.QuotaExceeded) {
			t.Errorf("planned: %v", err)
		}
		var wg sync.WaitGroup
		var mu sync.Mutex
		made := 0
		for i := range 8 { // at once: two have room
			wg.Go(func() {
				if _, err := s.m.InitializeVEEs(s.provider("acme"), initialize(vmi.TwoPhase, web(i+1))); err == nil {
					mu.Lock()
					made++
					mu.Unlock()
				}
			})
		}
		wg.Wait()
		q, err = s.m.GetQuota(s.provider("acme"), "acme")
		if made != 2 || err != nil || q.Used != (vmi.Holdings{VEEs: 2, VCPUs: 2, Memory: 2 * vee.GiB, Disk: 2 * vee.GiB}) {
			t.Errorf("%d made, %+v, %v", made, q, err)
		}
		other := web(9)
		other.Customer = ""
		if _, err := s.m.InitializeVEEs(s.provider("other"), initialize(vmi.TwoPhase, other)); err != nil {
			t.Errorf("somebody else: %v", err)
		}
		if _, err := s.m.GetQuota(s.provider("other"), "acme"); !fault.Has(err, fault.Denied) {
			t.Errorf("another's quota: %v", err)
		}
		if _, err := s.m.SetQuota(s.provider("acme"), vmi.SetQuota{Customer: "acme"}); !fault.Has(err, fault.Denied) {
			t.Errorf("one's own: %v", err)
		}
		if list, err := s.m.ListQuotas(s.operator()); err != nil || len(list) != 2 || list[1].Customer != "other" || list[1].Version != 0 {
			t.Errorf("list: %+v, %v", list, err)
		}
		if _, err := s.m.ListQuotas(s.provider("acme")); !fault.Has(err, fault.Denied) {
			t.Errorf("everybody's: %v", err)
		}
		if err := s.m.DeleteQuota(s.operator(), "acme"); err != nil {
			t.Error(err)
		}
		if err := s.m.DeleteQuota(s.operator(), "acme"); !fault.Has(err, fault.NotFound) {
			t.Errorf("again: %v", err)
		}
	})
}

func TestPagesAndVersions(t *testing.T) {
	inSite(t, 2, func(s *fakeSite) {
		all := s.deploy(7)
		var got []vee.ID
		f := vmi.Filter{Limit: 3}
		for {
			page, err := s.m.ListVEEs(s.operator(), f)
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, ids(page)...)
			if len(page) < f.Limit {
				break
			}
			f.Continue = page[len(page)-1].ID
			s.act(vee.Destroy, f.Continue) // it may go meanwhile
		}
		if !slices.Equal(got, all) {
			t.Errorf("pages %v, want %v", got, all)
		}
		if _, err := s.m.ListVEEs(s.operator(), vmi.Filter{Continue: "alpha.zzzzzzzzzz"}); !fault.Has(err, fault.NotFound) {
			t.Errorf("after an unknown one: %v", err)
		}
		id := all[0]
		v := s.get(id)
		u := vmi.UpdateState{Collection: vmi.Collection{IDs: []vee.ID{id}}, Action: vee.Pause, Wait: true, Versions: map[vee.ID]uint64{id: v.Version - 1}}
		if out, err := s.m.UpdateState(s.operator(), u); err != nil || out[0].Code != string(fault.Conflict) {
			t.Errorf("an older version: %+v, %v", out, err)
		}
		u.Versions[id] = v.Version
		if out, err := s.m.UpdateState(s.operator(), u); err != nil || !out[0].OK {
			t.Errorf("its version: %+v, %v", out, err)
		}
	})
}

func TestHistory(t *testing.T) {
	inSite(t, 1, func(s *fakeSite) {
		id := s.deploy(1)[0]
		s.act(vee.Pause, id)
		s.act(vee.Activate, id)
		var got []string
		v := s.get(id)
		for i, x := range v.History {
			got = append(got, string(x.State)+"/"+string(x.Phase))
			if i > 0 && x.At.Before(v.History[i-1].At) {
				t.Errorf("out of order: %+v", v.History)
			}
		}
		want := []string{"DEFINED/STOPPED", "DEFINED/PROLOG", "DEFINED/STOPPED", "DEFINED/BOOT", "ACTIVE/RUNNING", "PAUSED/HOLD", "PAUSED/BOOT", "ACTIVE/RUNNING"}
		if !slices.Equal(got, want) {
			t.Errorf("history %v, want %v", got, want)
		}
		if list, _ := s.m.ListVEEs(s.operator(), vmi.Filter{}); list[0].History != nil {
			t.Errorf("a list tells histories: %+v", list[0].History)
		}
		for range maxSteps {
			s.act(vee.Pause, id)
			s.act(vee.Activate, id)
		}
		if h := s.get(id).History; len(h) != maxSteps || h[0].At != v.History[0].At || h[maxSteps-1].Phase != vee.PhaseRunning {
			t.Errorf("%d steps: %+v", len(h), h)
		}
	})
}

func TestMonitoringEvents(t *testing.T) {
	inSite(t, 1, func(s *fakeSite) {
		d := web(1)
		d.FQNPrefix = vee.FQN("alpha", "acme", "shop", "web", 1)
		out, err := s.m.InitializeVEEs(s.operator(), initialize(vmi.TwoPhase, d, web(2)))
		if err != nil {
			t.Fatal(err)
		}
		id := out.VEEs[0].ID
		ctx, cancel := context.WithCancel(s.provider("acme"))
		defer cancel()
		ch, err := s.m.WatchMonitoring(ctx, vmi.EventFilter{Prefix: d.FQNPrefix})
		if err != nil {
			t.Fatal(err)
		}
		s.submit(id)
		s.untilThat(id, "ready", func(v vmi.VEE) bool { return v.GuestReady })
		of := monitor.VEESubject("alpha", id, "acme", "", d.FQNPrefix)
		s.m.Measured([]monitor.Measurement{
			{Subject: of, Kind: monitor.KPIKind, At: time.Now(), Values: []monitor.Value{{Field: "sessions", Value: 7}, {Field: "labelled", Labels: `a="b"`}}},
			{Subject: of, Kind: monitor.VEEKind, At: time.Now(), Values: []monitor.Value{{Field: "vee_cpu_seconds_total"}}},
			{Subject: monitor.Subject{VEE: "alpha.unknownaaa"}, Kind: monitor.KPIKind, At: time.Now(), Values: []monitor.Value{{Field: "sessions"}}},
		})
		synctest.Wait()
		got := map[string]string{}
		for range len(ch) + 100 {
			select {
			case e := <-ch:
				got[e.FQN] = fmt.Sprintf("%s %s %v", e.Type, e.Text, e.Value)
				if e.VEE != id || e.T0 == 0 || e.Customer != "acme" {
					t.Errorf("event %+v", e)
				}
			case <-time.After(time.Second):
			}
		}
		for fqn, want := range map[string]string{"state": "VeeHw ACTIVE 0", "phase": "VeeHw RUNNING 0", "ready": "VeeHw  1", "sessions": "Agent  7"} {
			if got[d.FQNPrefix+"."+fqn] != want {
				t.Errorf("%s: %q, want %q", fqn, got[d.FQNPrefix+"."+fqn], want)
			}
		}
		if len(got) != 4 {
			t.Errorf("events: %v", got)
		}
		if _, err := s.m.WatchMonitoring(identity.With(ctx, identity.Caller{Role: identity.HostRole}), vmi.EventFilter{}); !fault.Has(err, fault.Denied) {
			t.Errorf("a host watches: %v", err)
		}
	})
}

// TestASlowReaderLosesTheOldest events, and is told how many.
func TestASlowReaderLosesTheOldest(t *testing.T) {
	r := &eventReader{caller: clerk, news: make(chan struct{}, 1)}
	h := eventHub{readers: map[*eventReader]struct{}{}}
	h.add(r)
	for i := range maxEvents + 10 {
		h.publish(vmi.MonitoringEvent{FQN: "x", T0: int64(i)})
	}
	if got := r.take(); len(got) != maxEvents || got[0].Lost != 10 || got[0].T0 != 10 {
		t.Errorf("%d events, the first %+v", len(got), got[0])
	}
	h.remove(r)
	h.publish(vmi.MonitoringEvent{FQN: "y"})
	if got := r.take(); got != nil {
		t.Errorf("after it has left: %+v", got)
	}
}
