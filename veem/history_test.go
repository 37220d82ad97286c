package veem

import (
	"testing"
	"time"

	"github.com/reservoir-cloud/reservoir/account"
	"github.com/reservoir-cloud/reservoir/vee"
	"github.com/reservoir-cloud/reservoir/vmi"
)

// The history of another site's VEE has all that its site's book is made of: what it is from
// when on, how large, whether it is wanted to run, under which agreement; also when it comes
// anew. That of a VEE of our own has none of it.
func TestWhatALodgerCountsAs(t *testing.T) {
	now := time.Date(2026, 11, 3, 8, 0, 0, 0, time.UTC)
	r := record{VEE: vmi.VEE{ID: "beta.aaaaaaaaaa", State: vee.Defined, Target: vee.Defined, Custody: &vmi.Custody{Agreement: "beta.xaaaaaaaaa"},
		Descriptor: vee.Descriptor{VCPUs: 1, Memory: 512 * vee.MiB}}}
	r.live(nil, now)
	next := func(change func(*record)) {
		t.Helper()
		old := r
		change(&r)
		now = now.Add(time.Second)
		r.live(&old, now)
	}
	next(func(r *record) { r.Target, r.Custody = vee.Active, &vmi.Custody{Seq: 1} }) // it names no agreement
	next(func(r *record) { r.Seq++ })                                                // which is nothing that counts
	next(func(r *record) { r.State = vee.Active })
	next(func(r *record) { r.Descriptor.VCPUs = 2 })
	next(func(r *record) { r.Custody = &vmi.Custody{Agreement: "beta.xbbbbbbbbb", Seq: 2} })
	next(func(r *record) { r.Target, r.State = vee.Destroyed, vee.Destroyed })
	next(func(r *record) {
		*r = record{VEE: vmi.VEE{ID: r.ID, State: vee.Defined, Target: vee.Defined, Custody: &vmi.Custody{Agreement: "beta.xccccccccc"}, Descriptor: r.Descriptor}}
	})
	small, large := account.Size{VCPUs: 1, MemoryMiB: 512}, account.Size{VCPUs: 2, MemoryMiB: 512}
	want := []struct {
		second int
		state  vee.State
		vmi.Counted
	}{
		{0, vee.Defined, vmi.Counted{Agreement: "beta.xaaaaaaaaa", Size: small}},
		{1, vee.Defined, vmi.Counted{Agreement: "beta.xaaaaaaaaa", Wanted: true, Size: small}},
		{3, vee.Active, vmi.Counted{Agreement: "beta.xaaaaaaaaa", Wanted: true, Size: small}},
		{4, vee.Active, vmi.Counted{Agreement: "beta.xaaaaaaaaa", Wanted: true, Size: large}},
		{5, vee.Active, vmi.Counted{Agreement: "beta.xbbbbbbbbb", Wanted: true, Size: large}},
		{6, vee.Destroyed, vmi.Counted{Agreement: "beta.xbbbbbbbbb", Size: large}},
		{7, vee.Defined, vmi.Counted{Agreement: "beta.xccccccccc", Size: large}},
	}
	if len(r.History) != len(want) {
		t.Fatalf("%d steps: %+v", len(r.History), r.History)
	}
	for i, w := range want {
		s := r.History[i]
		if s.At != now.Add(time.Duration(w.second-7)*time.Second) || s.State != w.state || s.Counted == nil || *s.Counted != w.Counted {
			t.Errorf("step %d: %+v, counted %+v; want %+v", i, s, s.Counted, w)
		}
	}
	own := record{VEE: vmi.VEE{ID: "alpha.aaaaaaaaaa", State: vee.Defined}}
	own.live(nil, now)
	if len(own.History) != 1 || own.History[0].Counted != nil {
		t.Errorf("our own: %+v", own.History)
	}
}
