package btrplace

import (
	"strings"
	"testing"
	"time"

	"github.com/reservoir-cloud/reservoir/placement/check"
	"github.com/reservoir-cloud/reservoir/placement/model"
	"github.com/reservoir-cloud/reservoir/placement/solve"
)

// small instance: VM 0 is to run beside 1, for which node 3 has no room; node 5 is off.
const small = `{"model":{"mapping":{"readyVMs":[0],"onlineNodes":{"3":{"sleepingVMs":[],"runningVMs":[1,2]},"4":{"runningVMs":[]}},"offlineNodes":[5]},
 "attributes":{"nodes":{},"vms":{"0":{"boot":4,"shutdown":5,"clone":true}}},
 "views":[{"id":"shareableResource","rcId":"memory","defConsumption":100,"defCapacity":300,"nodes":{"3":200},"vms":{"1":100}},
          {"id":"ns","type":"vm","map":{"a":1}}]},
 "constraints":[{"id":"running","vm":0,"continuous":false},{"id":"online","node":3},{"id":"online","node":4},{"id":"offline","node":5},
  {"id":"spread","vms":[0,1],"continuous":true},{"id":"among","vms":[0,2],"parts":[[3,5],[4]],"continuous":false},
  {"id":"preserve","vm":1,"rc":"memory","amount":200}],"objective":{"id":"minimizeMTTR"}}`

func TestRead(t *testing.T) {
	m, err := Read(strings.NewReader(small))
	if err != nil {
		t.Fatal(err)
	}
	if len(m.Hosts) != 3 || !m.Hosts[2].Off || len(m.VEEs) != 3 || m.VEEs[0].Start != 4*time.Second || m.VEEs[1].Host != 0 || m.Capacity(0)[0] != 200 || m.Capacity(1)[0] != 300 {
		t.Errorf("read %+v", m)
	}
	if d := m.Migration.Duration(&m.VEEs[1]); d != time.Second {
		t.Errorf("a migration of 100 lasts %v", d)
	}
	target, err := solve.Repair(m, solve.Options{})
	if err != nil {
		t.Fatal(err)
	}
	p, err := solve.Schedule(m, target)
	if err != nil {
		t.Fatal(err)
	}
	if err := check.Plan(m, p); err != nil {
		t.Error(err)
	}
	if target.At[0] == target.At[1] || target.State[0] != model.Running {
		t.Errorf("repaired to %+v", target)
	}
}

func TestReadBad(t *testing.T) {
	for in, want := range map[string]string{
		"":                                 "EOF",
		`{"constraints":[{"id":"split"}]}`: "does not map",
		`{"constraints":[{"id":"running","vm":7}]}`:                                                        "there is no VM 7",
		`{"constraints":[{"id":"fence","node":7}]}`:                                                        "there is no node 7",
		`{"constraints":[{"id":"preserve","rc":"x"}]}`:                                                     "no resource",
		`{"model":{"mapping":{"onlineNodes":{"x":{}}}}}`:                                                   "is no number",
		`{"model":{"views":[{"id":"shareableResource","defCapacity":-1}],"mapping":{"offlineNodes":[1]}}}`: "not within",
	} {
		if _, err := Read(strings.NewReader(in)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want it to say %q", in, err, want)
		}
	}
}

func FuzzRead(f *testing.F) {
	f.Add(small)
	f.Fuzz(func(t *testing.T, in string) {
		if m, err := Read(strings.NewReader(in)); err == nil {
			_ = check.Placement(m)
		}
	})
}
