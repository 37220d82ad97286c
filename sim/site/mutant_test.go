package site

import (
	"slices"
	"testing"
)

// TestMutants builds sites with a deliberate mistake each. Random stories must find it within
// 200 seeds. (What the ownership protocol itself could get wrong, its own exhaustive check
// finds: ownership/mutant_test.go.)
func TestMutants(t *testing.T) {
	for _, b := range []bug{bugGiveAway, bugSteady, bugGuard, bugDisk, bugAutostart, bugStaleRead,
		bugImpatient, bugCopyEarly, bugReserve, bugMeter, bugForget, bugClock} {
		t.Run(string(b), func(t *testing.T) {
			for seed := range uint64(200) {
				wrong, err := Random(seed).play(nil, b)
				if err != nil {
					t.Fatal(err)
				}
				if len(wrong) > 0 {
					t.Logf("%s: seed %d, %s", b, seed, wrong[0])
					return
				}
			}
			t.Errorf("200 seeds do not find it: %s", b)
		})
	}
}

// TestReplay: a seed tells the same story every time, to the last line.
func TestReplay(t *testing.T) {
	tell := func(seed uint64) []byte {
		var out lines
		if _, err := Random(seed).Play(&out); err != nil {
			t.Fatal(err)
		}
		return out
	}
	for seed := range uint64(5) {
		if a, b := tell(seed), tell(seed); !slices.Equal(a, b) {
			t.Errorf("seed %d: two runs differ", seed)
		}
	}
}

type lines []byte

func (l *lines) Write(b []byte) (int, error) {
	*l = append(*l, b...)
	return len(b), nil
}
