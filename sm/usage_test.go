package sm

import (
	"context"
	"maps"
	"slices"
	"testing"
	"time"

	"github.com/reservoir-cloud/reservoir/account"
	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/internal/identity"
	"github.com/reservoir-cloud/reservoir/smi"
	"github.com/reservoir-cloud/reservoir/vmi"
)

// RegisterAccountingInformationListener notes who is listened to.
func (f *fakeVMI) RegisterAccountingInformationListener(ctx context.Context, r vmi.AccountingRegistration) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	before, after := f.luck()
	if before != nil {
		return before
	}
	if f.deaf > 0 {
		f.deaf--
		return fault.New(fault.Unavailable, "connection refused")
	}
	if c := identity.From(ctx); c.ID != "sm.alpha" || c.Role != identity.SiteRole || r.IntervalMS != usageInterval.Milliseconds() {
		f.broken = append(f.broken, "registered as "+c.ID)
	}
	for _, id := range r.IDs {
		if _, there := f.vees[id]; !there {
			return fault.New(fault.NotFound, "VEE %s", id)
		}
		f.listened[id]++
	}
	return after
}

// until ok, or the test fails.
func (b *bench) until(what string, ok func() bool) {
	b.t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			b.t.Fatal(what + ": not within 30 s")
		}
	}
}

// heard is whether every VEE of a service is listened to.
func (b *bench) heard(id string) bool {
	all := true
	for _, v := range b.group(id) {
		b.vmi.with(func() { all = all && b.vmi.listened[v.ID] > 0 })
	}
	return all
}

func (b *bench) usage(name string) smi.ServiceUsage {
	b.t.Helper()
	u, err := b.m.Usage(b.acme(), "", name)
	if err != nil {
		b.t.Fatal(err)
	}
	return u
}

// told is a message about v's use from one minute to another.
func told(v vmi.VEE, from, to int64) vmi.AccountingMessage {
	const minute = 60_000
	return vmi.AccountingMessage{VEE: v.ID, Customer: v.Descriptor.Customer, GroupID: v.Descriptor.GroupID, Seq: uint64(to),
		FromMS: from * minute, ToMS: to * minute, Used: account.Usage{ActiveMS: (to - from) * minute}}
}

// The SM listens to each VEE, again after a restart, and keeps what it is told once: also when
// messages come twice, when a registration was lost and began anew, and when the service has
// gone.
func TestUsage(t *testing.T) {
	b := newBench(t, 11)
	s := b.deploy(smi.Deploy{Manifest: yaml("shop", "web:1", 2)})
	b.ready("shop")
	b.until("all are listened to", func() bool { return b.heard(s.ID) })
	if u := b.usage("shop"); len(u.VEEs) != 3 || u.Total != (account.Usage{}) {
		t.Errorf("before anything was told: %+v", u)
	}
	vees := slices.Collect(maps.Values(b.group(s.ID)))
	v, other := vees[0], vees[1]
	tell := func(ms ...vmi.AccountingMessage) {
		t.Helper()
		if err := b.m.ReceiveAccountingInformation(t.Context(), ms); err != nil {
			t.Error(err)
		}
	}
	tell(told(v, 0, 5), told(other, 0, 5))
	tell(told(v, 5, 10), told(v, 0, 5), told(v, 5, 10))
	b.stop()
	b.start()
	b.until("registered again", func() bool {
		n := 0
		b.vmi.with(func() { n = b.vmi.listened[v.ID] })
		return n == 2
	})
	tell(told(v, 0, 12)) // from the beginning of its life: the registration was lost
	u := b.usage("shop")
	if total := u.Total.ActiveMS; total != (12+5)*60_000 {
		t.Errorf("total %d ms, want %d: %+v", total, 17*60_000, u)
	}
	for _, x := range u.VEEs {
		if x.VEE == v.ID && (len(x.Intervals) != 1 || !x.Through.Equal(time.UnixMilli(12*60_000)) || x.Ended) {
			t.Errorf("%+v, want one interval of 12 minutes", x)
		}
	}
	b.vanish("shop")
	last := told(v, 12, 13)
	last.Final = true
	tell(last, last)
	u = b.usage("shop")
	if u.Total.ActiveMS != (13+5)*60_000 || len(u.VEEs) != 3 {
		t.Errorf("of a service that is gone: %+v", u)
	}
	// A service of the same name is another one, and both count.
	again := b.deploy(smi.Deploy{Manifest: yaml("shop", "web:1", 1)})
	b.ready("shop")
	b.until("the second is listened to", func() bool { return b.heard(again.ID) })
	if u = b.usage("shop"); len(u.VEEs) != 5 || u.Total.ActiveMS != 18*60_000 {
		t.Errorf("with the second service: %+v", u)
	}
	var listened int
	b.vmi.with(func() { listened = b.vmi.listened[v.ID] })
	if listened != 2 {
		t.Errorf("registered %d times for a VEE that is gone", listened)
	}
}

// What is told by mistake or in malice changes nothing.
func TestUsageThatIsNone(t *testing.T) {
	b := newBench(t, 12)
	s := b.deploy(smi.Deploy{Manifest: yaml("shop", "web:1", 1)})
	b.ready("shop")
	b.until("all are listened to", func() bool { return b.heard(s.ID) })
	v := slices.Collect(maps.Values(b.group(s.ID)))[0]
	stranger, foreign, backwards, negative := told(v, 0, 5), told(v, 0, 5), told(v, 5, 0), told(v, 0, 5)
	stranger.VEE, foreign.Customer, negative.Used.ActiveMS = "alpha.zzzzzzzzzz", "evil", -1
	for what, c := range map[string]struct {
		m    vmi.AccountingMessage
		code fault.Code
	}{"stranger": {stranger, ""}, "foreign": {foreign, ""}, "backwards": {backwards, fault.Malformed}, "negative": {negative, fault.Malformed}} {
		err := b.m.ReceiveAccountingInformation(t.Context(), []vmi.AccountingMessage{c.m})
		if c.code == "" && err != nil || c.code != "" && !fault.Has(err, c.code) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if u := b.usage("shop"); u.Total != (account.Usage{}) {
		t.Errorf("counted: %+v", u)
	}
	for who, ctx := range map[string]context.Context{"another customer": as(t.Context(), identity.Provider, "evil"), "nobody": t.Context()} {
		if _, err := b.m.Usage(ctx, "acme", "shop"); !fault.Has(err, fault.NotFound) {
			t.Errorf("asked by %s: %v", who, err)
		}
	}
	if _, err := b.m.Usage(b.acme(), "", "nosuch"); !fault.Has(err, fault.NotFound) {
		t.Errorf("of a service that never was: %v", err)
	}
	if u, err := b.m.Usage(as(t.Context(), identity.Auditor, ""), "acme", "shop"); err != nil || len(u.VEEs) != 2 {
		t.Errorf("asked by an auditor: %+v, %v", u, err)
	}
}

// A VEE Manager that does not answer is asked again, and holds no deployment up.
func TestUsageInSpiteOfFaults(t *testing.T) {
	b := newBench(t, 13)
	b.vmi.with(func() { b.vmi.deaf = 3 })
	s := b.deploy(smi.Deploy{Manifest: yaml("shop", "web:1", 2)})
	b.ready("shop")
	b.until("all are listened to", func() bool { return len(b.group(s.ID)) == 3 && b.heard(s.ID) })
}
