package veem

import (
	"strings"
	"testing"
	"time"

	"github.com/reservoir-cloud/reservoir/vee"
	"github.com/reservoir-cloud/reservoir/vmi"
)

// What is there when its notice is over is stopped, but for what is on its way out, and goes
// for good when its own site has had the time to fetch its disks.
func TestOverstayed(t *testing.T) {
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	a := &agreed{notice: &Notice{From: now.Add(-time.Hour), By: now, Why: "agreement beta.a1 ran out"}}
	m := &Manager{cfg: Config{Site: "beta", Partnership: a}}
	lodger := record{Assigned: true, Seq: 4, VEE: vmi.VEE{ID: "alpha.aaaaaaaaaa", Site: "beta", State: vee.Active, Target: vee.Active, Custody: &vmi.Custody{Seq: 3}}}
	moving := func(from, to string) record {
		r := lodger
		r.Host, r.Move = "h1", &migration{Migration: vmi.Migration{From: from, To: to, State: vmi.MigrationRunning}}
		return r
	}
	own, saved, reserved := lodger, lodger, lodger
	own.Custody = nil
	saved.State, saved.Target = vee.Suspended, vee.Suspended
	reserved.Assigned, reserved.State, reserved.Target = false, vee.Defined, vee.Defined
	for name, c := range map[string]struct {
		r    record
		at   time.Duration
		done bool
		ok   func(record) bool
	}{
		"in its notice": {lodger, -time.Second, false, nil},
		"own":           {own, time.Hour, false, nil},
		"over": {lodger, 0, true, func(r record) bool {
			return r.Target == vee.Defined && r.Seq == 5 && r.Evicted != nil && strings.Contains(r.Failure, "ran out")
		}},
		"saved":             {saved, 0, true, func(r record) bool { return r.Target == vee.Suspended && r.Evicted != nil }},
		"reserved":          {reserved, 0, true, func(r record) bool { return r.State == vee.Destroyed }},
		"on its way home":   {moving("h1", "@alpha"), time.Minute, false, nil},
		"not coming home":   {moving("h1", "@alpha"), time.Hour, true, func(r record) bool { return r.Move.Cancelling && r.Evicted == nil }},
		"on its way here":   {moving("@alpha", "h1"), 0, true, func(r record) bool { return r.Move.Cancelling }},
		"destroyed already": {record{VEE: vmi.VEE{ID: lodger.ID, Custody: lodger.Custody, State: vee.Destroyed, Target: vee.Destroyed}}, time.Hour, false, nil},
	} {
		r := c.r
		if done := m.overstayed(&r, now.Add(c.at)); done != c.done || c.ok != nil && !c.ok(r) {
			t.Errorf("%s: %v, %+v", name, done, r)
		}
		if r.Evicted == nil {
			continue
		}
		if m.overstayed(&r, now.Add(keepEvicted-time.Second)) {
			t.Errorf("%s: its disks are to stay: %+v", name, r)
		}
		if !m.overstayed(&r, now.Add(keepEvicted)) || r.Target != vee.Destroyed {
			t.Errorf("%s: after a day: %+v", name, r)
		}
	}
}

func TestHalvesOfANotice(t *testing.T) {
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	n := &Notice{From: now, By: now.Add(time.Hour)}
	if got := n.end(now); !got.Equal(now.Add(30 * time.Minute)) {
		t.Errorf("the first ends at %v", got)
	}
	if got := n.end(now.Add(30 * time.Minute)); !got.Equal(n.By) || n.over(n.By.Add(-1)) || !n.over(n.By) {
		t.Errorf("the second ends at %v", got)
	}
}
