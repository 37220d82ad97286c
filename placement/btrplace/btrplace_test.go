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

// TestConstraints: every constraint of BtrPlace's that maps, as ours says it.
func TestConstraints(t *testing.T) {
	const begin = `{"model":{"mapping":{"onlineNodes":{"3":{"runningVMs":[1,2]},"4":{}}},"views":[{"id":"shareableResource","rcId":"cpu","defCapacity":4,"defConsumption":1}]},"constraints":[`
	for in, want := range map[string]string{
		`{"id":"running","vm":1}`: "VEEs [0] running", `{"id":"ready","vm":1}`: "VEEs [0] ready", `{"id":"sleeping","vm":1}`: "VEEs [0] sleeping", `{"id":"killed","vm":1}`: "VEEs [0] killed",
		`{"id":"online","node":3}`: "hosts [0] on", `{"id":"offline","node":3}`: "hosts [0] off",
		`{"id":"spread","vms":[1,2],"continuous":true}`: "VEEs [0 1] on distinct hosts, at every instant", `{"id":"gather","vms":[1,2]}`: "VEEs [0 1] in one host",
		`{"id":"lonely","vms":[1]}`: "VEEs [0] without strangers", `{"id":"among","vms":[1],"parts":[[3],[4]]}`: "VEEs [0] together in one of 2 groups of hosts",
		`{"id":"split","parts":[[1],[2]]}`: "2 groups share no host", `{"id":"splitAmong","vParts":[[1],[2]],"pParts":[[3],[4]]}`: "2 sets of VEEs in distinct groups of hosts",
		`{"id":"fence","vm":1,"nodes":[3]}`: "fence VEEs [0] in hosts [0]", `{"id":"ban","vm":1,"nodes":[4]}`: "ban VEEs [0] from hosts [1]",
		`{"id":"root","vm":1}`: "VEEs [0] do not move", `{"id":"quarantine","node":4}`: "hosts [1] in quarantine",
		`{"id":"preserve","vm":1,"rc":"cpu","amount":2}`: "VEEs [0] have at least 2 of dimension 0", `{"id":"overbook","node":3,"rc":"cpu","ratio":2}`: "at most 2 of dimension 0 promised for each one there is on hosts [0]",
		`{"id":"resourceCapacity","nodes":[3],"rc":"cpu","amount":2}`: "at most 2 of dimension 0 on hosts [0]", `{"id":"runningCapacity","nodes":[3],"amount":2}`: "at most 2 VEEs on hosts [0]",
		`{"id":"maxOnline","nodes":[3,4],"amount":1}`: "at most 1 of hosts [0 1] on", `{"id":"seq","vms":[2,1]}`: "VEEs [1 0] in this order", `{"id":"noDelay","vm":1}`: "VEEs [0] at once",
		`{"id":"Serialize","vms":[1,2]}`: "VEEs [0 1] one at a time", `{"id":"Sync","vms":[1,2]}`: "VEEs [0 1] together", `{"id":"Precedence","vm1":2,"vm2":1}`: "VEEs [1] before VEEs [0]",
	} {
		m, err := Read(strings.NewReader(begin + in + "]}"))
		if err != nil || len(m.Rules) != 1 || m.Rules[0].Constraint.String() != want {
			t.Errorf("%s: %v, %v, want %q", in, m, err, want)
		}
	}
}

func TestReadBad(t *testing.T) {
	for in, want := range map[string]string{
		"": "EOF",
		`{"constraints":[{"id":"Deadline","timestamp":"12:00"}]}`:                                          "does not map",
		`{"constraints":[{"id":"split","parts":[[7]]}]}`:                                                   "there is no VM 7",
		`{"constraints":[{"id":"splitAmong","pParts":[[7]]}]}`:                                             "there is no node 7",
		`{"constraints":[{"id":"Precedence","vm1":7}]}`:                                                    "there is no VM 7",
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
