package sm

import (
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/reservoir-cloud/reservoir/account"
	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/sm/deploy"
	"github.com/reservoir-cloud/reservoir/sm/trade"
	"github.com/reservoir-cloud/reservoir/smi"
	"github.com/reservoir-cloud/reservoir/vee"
	"github.com/reservoir-cloud/reservoir/vmi"
)

func standing(replicas int) string { return yaml("shop", "web:1", replicas) + "standby: [beta]\n" }

// cooperating service of b, the only one.
func (b *bench) cooperating() Cooperating {
	b.t.Helper()
	list, err := b.m.Cooperating(b.t.Context())
	if err != nil || len(list) != 1 {
		b.t.Fatalf("%+v, %v", list, err)
	}
	return list[0]
}

// TestAServiceGoesToAnotherSite: the manager there makes of its definition what it was, whose
// new VEEs begin with what the old ones left; the manager here gives way, and what was used is
// in exactly one of the two accounts.
func TestAServiceGoesToAnotherSite(t *testing.T) {
	alpha := newBench(t, 21)
	alpha.deploy(smi.Deploy{Manifest: standing(2)})
	alpha.ready("shop")
	alpha.scale("shop", 3)
	s := alpha.ready("shop")
	alpha.until("all are listened to", func() bool { return len(alpha.group(s.ID)) == 4 && alpha.heard(s.ID) })
	vees := alpha.group(s.ID)
	one := vees[slices.Sorted(maps.Keys(vees))[0]]
	tell := func(b *bench, m vmi.AccountingMessage) {
		t.Helper()
		if err := b.m.ReceiveAccountingInformation(t.Context(), []vmi.AccountingMessage{m}); err != nil {
			t.Error(err)
		}
	}
	began := time.Now().Unix()/60 - 60 // minutes since 1970: what is long ago is forgotten
	tell(alpha, told(one, began, began+5))
	c := alpha.cooperating()
	if c.ID != s.ID || c.Customer != "acme" || !slices.Equal(c.Standbys, []string{"beta"}) || len(c.Images) != 1 || len(c.Replicas) != 4 {
		t.Fatalf("%s: %v, %v, %v", c.ID, c.Standbys, c.Images, c.Replicas)
	}

	beta := newBench(t, 22)
	seeds := map[vee.ID]vee.Seed{}
	for _, r := range c.Replicas {
		seeds[r.VEE] = vee.Seed{Digest: "sha256:" + strings.Repeat("a", 64), Size: 1, Of: r.VEE}
	}
	at := time.Unix((began+7)*60, 0)
	a := Adoption{From: "alpha", At: at, ID: "alpha/" + c.ID, Customer: "acme", Name: "shop", Definition: c.Definition, Seeds: seeds}
	for range 2 { // the site may have crashed before it noted that it was done
		if err := beta.m.Adopt(t.Context(), a); err != nil {
			t.Fatal(err)
		}
	}
	there := beta.ready("shop")
	if there.ID != a.ID || there.Revision != 1 || there.Components[1].Ready != 3 {
		t.Errorf("at the other site: %+v", there)
	}
	of := map[string]vee.ID{}
	for _, r := range c.Replicas {
		of[r.Name] = r.VEE
	}
	for _, v := range beta.group(a.ID) {
		if v.Descriptor.Seed == nil || v.Descriptor.Seed.Of != of[v.Descriptor.Name] {
			t.Errorf("%s begins with %+v, want what %s left", v.Descriptor.Name, v.Descriptor.Seed, of[v.Descriptor.Name])
		}
	}
	if used, err := beta.m.Seeds(t.Context()); err != nil || len(used) != 1 {
		t.Errorf("seeds in use: %v, %v", used, err)
	}
	a.ID = "alpha/alpha.s-another"
	if err := beta.m.Adopt(t.Context(), a); !fault.Has(err, fault.Exists) {
		t.Errorf("another service of that name: %v", err)
	}
	a.Name, a.Definition = "other", []byte(`{"id":"alpha.s-x","manifest":"service: [`)
	if err := beta.m.Adopt(t.Context(), a); !fault.Has(err, fault.Malformed) {
		t.Errorf("a definition that is none: %v", err)
	}
	if u := beta.usage("shop"); u.Total.ActiveMS != 5*60_000 {
		t.Errorf("what it used before is not told there: %+v", u)
	}

	for range 2 {
		if err := alpha.m.Cede(t.Context(), c.ID, "beta", at, "acme", "shop"); err != nil {
			t.Fatal(err)
		}
	}
	alpha.reach("shop", "ceded", func(s smi.Service) bool { return s.Phase == smi.Ceded })
	alpha.until("its VEEs are down", func() bool {
		return !slices.ContainsFunc(slices.Collect(maps.Values(alpha.group(s.ID))), func(v vmi.VEE) bool { return v.State != vee.Defined })
	})
	if n := len(alpha.group(s.ID)); n != 4 {
		t.Errorf("%d VEEs are left, want 4 with their disks", n)
	}
	if points, _ := alpha.vmi.ListAccessPoints(t.Context(), s.ID); len(points) > 0 {
		t.Errorf("it is reached here still: %v", points)
	}
	tell(alpha, told(one, began+5, began+10)) // it ran on until it was told
	if u := alpha.usage("shop"); u.Total.ActiveMS != 7*60_000 {
		t.Errorf("used here %d ms, want 7 minutes", u.Total.ActiveMS)
	}
	for what, err := range map[string]error{
		"deploy": second(alpha.m.Deploy(alpha.acme(), smi.Deploy{Manifest: standing(1), Replace: true})),
		"scale":  second(alpha.m.Scale(alpha.acme(), "", "shop", "web", 1)),
		"sleep":  second(alpha.m.Sleep(alpha.acme(), "", "shop")),
	} {
		if !fault.Has(err, fault.WrongState) || !strings.Contains(err.Error(), "site beta's") {
			t.Errorf("%s: %v", what, err)
		}
	}
	alpha.stop() // and after a restart
	alpha.start()
	alpha.reach("shop", "ceded", func(s smi.Service) bool { return s.Phase == smi.Ceded })
	if list, err := alpha.m.Cooperating(t.Context()); err != nil || len(list) > 0 {
		t.Errorf("it is shipped still: %+v, %v", list, err)
	}
	alpha.vanish("shop")
}

func second[T any](_ T, err error) error { return err }

// TestLodgersStay: VEEs that were at the other site already are slots of the service there, under
// their numbers, and what the others left goes to the numbers between.
func TestLodgersStay(t *testing.T) {
	alpha := newBench(t, 23)
	s := alpha.deploy(smi.Deploy{Manifest: standing(3)})
	alpha.ready("shop")
	c := alpha.cooperating()
	beta := newBench(t, 24)
	seeds := map[vee.ID]vee.Seed{}
	var lodger vmi.VEE
	for _, v := range alpha.group(s.ID) {
		if v.Descriptor.Name == "web-2" {
			lodger = v
			continue
		}
		seeds[v.ID] = vee.Seed{Digest: "sha256:" + strings.Repeat("a", 64), Size: 1, Of: v.ID}
	}
	lodger.Descriptor.GroupID, lodger.Descriptor.Customer = "alpha/"+c.ID, "acme"
	beta.vmi.with(func() { beta.vmi.seq = 1000; beta.vmi.set(lodger) })
	if err := beta.m.Adopt(t.Context(), Adoption{From: "alpha", At: time.Now(), ID: "alpha/" + c.ID, Customer: "acme", Name: "shop", Definition: c.Definition, Lodgers: []vee.ID{lodger.ID}, Seeds: seeds}); err != nil {
		t.Fatal(err)
	}
	beta.ready("shop")
	for _, v := range beta.group("alpha/" + c.ID) {
		if own := v.ID == lodger.ID; own != (v.Descriptor.Seed == nil) || own != (v.Descriptor.Name == "web-2") {
			t.Errorf("%s (%s) begins with %+v", v.Descriptor.Name, v.ID, v.Descriptor.Seed)
		}
	}
}

func TestSow(t *testing.T) {
	slot := func(c string, n int, id vee.ID) deploy.Slot { return deploy.Slot{Component: c, Number: n, VEE: id} }
	left := func(ids ...vee.ID) map[vee.ID]vee.Seed {
		m := map[vee.ID]vee.Seed{}
		for _, id := range ids {
			m[id] = vee.Seed{Of: id}
		}
		return m
	}
	leaving := slot("web", 4, "e")
	leaving.Retiring = time.Unix(1, 0)
	for what, c := range map[string]struct {
		were, here []deploy.Slot
		seeds      map[vee.ID]vee.Seed
		want       map[string]vee.ID
	}{
		"each under its own number": {[]deploy.Slot{slot("web", 2, "b"), slot("web", 1, "a"), slot("db", 1, "c")}, nil, left("a", "b", "c"), map[string]vee.ID{"web-1": "a", "web-2": "b", "db-1": "c"}},
		"gaps close":                {[]deploy.Slot{slot("web", 5, "b"), slot("web", 3, "a")}, nil, left("a", "b"), map[string]vee.ID{"web-1": "a", "web-2": "b"}},
		"around who is there":       {[]deploy.Slot{slot("web", 1, "a"), slot("web", 2, "b"), slot("web", 3, "c")}, []deploy.Slot{slot("web", 1, "a")}, left("b", "c"), map[string]vee.ID{"web-2": "b", "web-3": "c"}},
		"not of one that leaves":    {[]deploy.Slot{slot("web", 1, "a"), leaving}, nil, left("a", "e"), map[string]vee.ID{"web-1": "a"}},
		"nothing was left":          {[]deploy.Slot{slot("web", 1, "a")}, nil, nil, map[string]vee.ID{}},
	} {
		got := map[string]vee.ID{}
		for name, s := range sow(c.were, c.here, c.seeds) {
			got[name] = s.Of
		}
		if !maps.Equal(got, c.want) {
			t.Errorf("%s: %v, want %v", what, got, c.want)
		}
	}
}

// TestNeitherGapNorOverlap: whenever a service changes sites, and however its usage is told, each
// millisecond of a VEE is in one of the two accounts.
func TestNeitherGapNorOverlap(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		at := rapid.Int64Range(1, 1000).Draw(t, "handover")
		var old, young trade.Account
		young.SinceMS = at
		var through int64
		closed := false
		for range rapid.IntRange(1, 20).Draw(t, "messages") {
			if !closed && rapid.Bool().Draw(t, "close") {
				old.CloseAt(at)
				closed = true
			}
			to := through + rapid.Int64Range(1, 100).Draw(t, "length")
			from := rapid.SampledFrom([]int64{through, 0}).Draw(t, "from")
			i := account.Interval{FromMS: from, ToMS: to, Used: account.Usage{ActiveMS: to - from}}
			if !old.Add(i) || !young.Add(i) {
				t.Fatalf("refused: %+v", i)
			}
			through = to
		}
		old.CloseAt(at)
		if got := old.Intervals.Total().ActiveMS + young.Intervals.Total().ActiveMS; got != through {
			t.Fatalf("%d ms in the two accounts, used %d: %+v %+v", got, through, old, young)
		}
		for _, i := range old.Intervals {
			if i.ToMS > at {
				t.Fatalf("after %d: %+v", at, i)
			}
		}
	})
}
