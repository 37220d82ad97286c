package federation

import (
	"testing"

	"pgregory.net/rapid"

	"github.com/reservoir-cloud/reservoir/vee"
	"github.com/reservoir-cloud/reservoir/vhi"
	"github.com/reservoir-cloud/reservoir/vmi"
)

// From whatever earlier wishes have left, and whatever the partner has done by itself, every
// wish comes to rest in a few steps: it is obeyed as a whole, or refused for good.
func TestEveryWishComesToRest(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		epoch := vee.Epoch{Generation: 1, Term: 1}
		powers := []vhi.Power{vhi.Running, vhi.Paused, vhi.Suspended, vhi.Stopped, vhi.Absent}
		a := vhi.Assignment{VEE: "alpha.aaaaaaaaaa", Epoch: epoch, Seq: 5, Power: rapid.SampledFrom(powers).Draw(t, "wish"), Descriptor: vee.Descriptor{VCPUs: 1, Memory: vee.GiB}}
		var v *vmi.VEE
		if rapid.Bool().Draw(t, "known") {
			state := rapid.SampledFrom([]vee.State{vee.Defined, vee.Active, vee.Paused, vee.Suspended, vee.Destroyed}).Draw(t, "state")
			v = &vmi.VEE{ID: a.VEE, State: state, Target: state, Descriptor: vee.Descriptor{VCPUs: rapid.IntRange(1, 2).Draw(t, "vCPUs"), Memory: vee.GiB},
				Custody: &vmi.Custody{Epoch: epoch, Seq: rapid.Uint64Range(1, 6).Draw(t, "custody"), Part: rapid.Bool().Draw(t, "part")}}
		}
		for range maxSteps {
			s := next(a, v)
			c := vmi.Custody{Epoch: a.Epoch, Seq: a.Seq, Part: s.part}
			switch s.do {
			case rest:
				if overruled := v.Custody.Compare(custody(a, "")) > 0; !overruled && v.Custody.Compare(custody(a, "")) != 0 {
					t.Fatalf("rests before %+v is obeyed: %+v", a, v)
				}
				return
			case refuse:
				if v.State != vee.Destroyed || a.Power == vhi.Absent {
					t.Fatalf("refused: %+v by %+v", a, v)
				}
				return
			case reserve:
				v = &vmi.VEE{ID: a.VEE, State: vee.Defined, Target: vee.Defined, Descriptor: a.Descriptor, Custody: &c}
			case fit:
				v.Descriptor.VCPUs = *s.update.VCPUs
			case act:
				if v == nil {
					v = &vmi.VEE{ID: a.VEE, State: vee.Destroyed, Target: vee.Destroyed, Custody: &c}
					continue
				}
				to, err := v.Target.After(s.action)
				if v.Target != wanted(s.action) {
					if err != nil {
						t.Fatalf("%s of %+v: %v", s.action, v, err)
					}
					v.Target, v.State = to, to
				}
				v.Custody = &c
			}
		}
		t.Fatalf("%+v does not come to rest: %+v", a, v)
	})
}

func wanted(a vee.Action) vee.State {
	for power, action := range actions {
		if action == a {
			return targets[power]
		}
	}
	return ""
}

// What a partner tells is of an older wish until the whole of a newer one is obeyed.
func TestPartsAreOfTheOlderWish(t *testing.T) {
	v := vmi.VEE{State: vee.Defined, Target: vee.Active, Phase: vee.PhaseProlog, Error: "it is still coming", Custody: &vmi.Custody{Seq: 7, Part: true}}
	if p := report(v); p.Seq != 6 || p.Power != vhi.Unprepared || p.Error == "" {
		t.Errorf("a part: %+v", p)
	}
	v = vmi.VEE{State: vee.Active, Target: vee.Paused, Error: "its host does not answer", Custody: &vmi.Custody{Seq: 7}}
	if p := report(v); p.Seq != 7 || p.Power != vhi.Running || p.Error != "" {
		t.Errorf("on its way, and still tried: %+v", p)
	}
}
