package dvms

import "testing"

// TestMutants takes each rule of the protocol away; an ordeal must notice within 200 seeds.
func TestMutants(t *testing.T) {
	for _, m := range []rule{ruleConfirm, ruleVersion, ruleLeave, ruleTerm} {
		t.Run(string(m), func(t *testing.T) {
			for seed := range uint64(200) {
				for _, kind := range []string{"ring", "locality"} {
					if wrong := ordeal(seed, kind, m); wrong != "" {
						t.Logf("without %q: seed %d, %s: %s", m, seed, kind, wrong)
						return
					}
				}
			}
			t.Errorf("200 seeds do not notice that %q is missing", m)
		})
	}
}
