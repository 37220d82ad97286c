package veem

import (
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/vee"
	"github.com/reservoir-cloud/reservoir/vmi"
)

// What an update makes of a descriptor, and what it refuses.
func TestChangedDescriptor(t *testing.T) {
	size := func(b vee.Bytes) *vee.Bytes { return &b }
	count := func(n int) *int { return &n }
	d := vee.Descriptor{VCPUs: 1, VCPUsMax: 2, Memory: 128 * vee.MiB, MemoryMax: 256 * vee.MiB,
		Disks: []vee.Disk{{Name: "data", Size: vee.GiB}, {Name: "cd", CDROM: true}}}
	got, err := changed(d, vmi.VEEUpdate{Memory: size(512 * vee.MiB), VCPUs: count(2), Disks: map[string]vee.Bytes{"data": 2 * vee.GiB}})
	if err != nil || got.Memory != 512*vee.MiB || max(got.Memory, got.MemoryMax) != 512*vee.MiB || got.VCPUs != 2 || got.VCPUsMax != 2 || got.Disks[0].Size != 2*vee.GiB {
		t.Errorf("%+v, %v", got, err)
	}
	if got, err = changed(d, vmi.VEEUpdate{Context: map[string]string{"meta-data": "x"}}); err != nil || got.Context["meta-data"] != "x" {
		t.Errorf("%+v, %v", got, err)
	}
	if d.Disks[0].Size != vee.GiB {
		t.Error("the descriptor before was changed in place")
	}
	for disks, why := range map[string]string{"data": "only grow", "cd": "CD-ROM", "none": "no disk"} {
		if _, err := changed(d, vmi.VEEUpdate{Disks: map[string]vee.Bytes{disks: vee.MiB}}); err == nil || !strings.Contains(err.Error(), why) {
			t.Errorf("disk %s: %v, want %q", disks, err, why)
		}
	}
}

// Whatever is asked for, the upper end of the range never sinks below what it was.
func TestRangesStay(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		mem := rapid.Custom(func(t *rapid.T) vee.Bytes { return vee.Bytes(rapid.IntRange(1, 8).Draw(t, "mem")) * 64 * vee.MiB })
		d := vee.Descriptor{VCPUs: 1, Memory: mem.Draw(t, "has")}
		most := d.Memory
		for range rapid.IntRange(1, 5).Draw(t, "updates") {
			m := mem.Draw(t, "want")
			most = max(most, m)
			var err error
			if d, err = changed(d, vmi.VEEUpdate{Memory: &m}); err != nil || d.Memory != m || d.MemoryMax != 0 && d.MemoryMax < d.Memory {
				t.Fatalf("%+v, %v", d, err)
			}
			if max(d.Memory, d.MemoryMax) != most {
				t.Fatalf("%+v, the range went up to %s", d, most)
			}
		}
	})
}

// UpdateVEEs says what became of a change as soon as that is known, and does not wait for
// a host whose driver will never say.
func TestUpdateIsAnsweredInTime(t *testing.T) {
	memory, tags := 512*vee.MiB, []string{"blue"}
	for name, c := range map[string]struct {
		live     []string
		nextBoot []string
		fail     string
		update   vmi.VEEUpdate
		want     string
		waits    bool
	}{
		"no live changes":   {update: vmi.VEEUpdate{Memory: &memory}, want: "applied at next boot: the hypervisor of host h1 changes nothing"},
		"tags need no host": {update: vmi.VEEUpdate{Tags: &tags}, want: "applied live"},
		"taken":             {live: []string{"memory-hotplug"}, update: vmi.VEEUpdate{Memory: &memory}, want: "applied live"},
		"another kind":      {live: []string{"disk-grow"}, nextBoot: []string{"memory of 512MiB: it cannot"}, update: vmi.VEEUpdate{Memory: &memory}, want: "applied at next boot: memory of 512MiB: it cannot"},
		"fails":             {live: []string{"memory-hotplug"}, fail: "it does not answer", update: vmi.VEEUpdate{Memory: &memory}, want: "will be applied: it does not answer", waits: true},
	} {
		t.Run(name, func(t *testing.T) {
			inSite(t, 1, func(s *fakeSite) {
				h := s.hosts[0]
				h.set(func() { h.live = c.live })
				id := s.deploy(1)[0]
				h.set(func() { h.nextBoot, h.failFit = c.nextBoot, c.fail })
				c.update.ID = id
				began := time.Now()
				out, err := s.manager().UpdateVEEs(s.operator(), []vmi.VEEUpdate{c.update})
				if err != nil || !out[0].OK || !strings.Contains(out[0].Detail, c.want) {
					t.Fatalf("%+v, %v; want %q", out, err, c.want)
				}
				if waited := time.Since(began) >= fitPatience*s.manager().cfg.Timing.Call; waited != c.waits {
					t.Errorf("answered after %s", time.Since(began))
				}
			})
		})
	}
}

// What a guest is told can be put until its VEE is submitted, and the same again later.
func TestContextUntilItIsSubmitted(t *testing.T) {
	inSite(t, 1, func(s *fakeSite) {
		out, err := s.m.InitializeVEEs(s.operator(), initialize(vmi.TwoPhase, web(1)))
		if err != nil {
			t.Fatal(err)
		}
		id := out.VEEs[0].ID
		tell := func(text string) vmi.Outcome {
			t.Helper()
			outs, err := s.m.UpdateVEEs(s.operator(), []vmi.VEEUpdate{{ID: id, Context: map[string]string{"meta-data": text}}})
			if err != nil {
				t.Fatal(err)
			}
			return outs[0]
		}
		if o := tell("one"); !o.OK || s.get(id).Descriptor.Context["meta-data"] != "one" {
			t.Errorf("before it is submitted: %+v", o)
		}
		s.submit(id)
		s.until(id, vee.Active)
		if o := tell("one"); !o.OK {
			t.Errorf("the same again: %+v", o)
		}
		if o := tell("two"); o.OK || o.Code != string(fault.WrongState) || s.get(id).Descriptor.Context["meta-data"] != "one" {
			t.Errorf("another when it runs: %+v", o)
		}
	})
}
