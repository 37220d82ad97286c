package account

import (
	"testing"

	"pgregory.net/rapid"

	"github.com/reservoir-cloud/reservoir/vee"
)

// life is drawn as the rates that a VEE had, one after the other.
type segment struct {
	ms   int64
	rate Rate
}

func drawLife(t *rapid.T) (life []segment) {
	for range rapid.IntRange(1, 8).Draw(t, "segments") {
		life = append(life, segment{rapid.Int64Range(1, 100_000).Draw(t, "ms"),
			RateOf(rapid.SampledFrom(vee.States[:5]).Draw(t, "state"), vee.Descriptor{VCPUs: rapid.IntRange(1, 4).Draw(t, "vcpus"), Memory: vee.GiB})})
	}
	return life
}

// reading of the meter of a life at ms.
func reading(life []segment, ms int64) Meter {
	m, end := Meter{}, int64(0)
	for _, s := range life {
		m = m.To(min(ms, end+s.ms), s.rate)
		end += s.ms
	}
	return m
}

// However a life is cut into messages, and whichever of them come again, the series has all
// of it once, in few intervals.
func TestASeriesHasEverythingOnce(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		life := drawLife(t)
		length := int64(0)
		for _, s := range life {
			length += s.ms
		}
		var s Series
		var told []Interval
		last := Meter{}
		for last.AtMS < length {
			next := reading(life, min(length, last.AtMS+rapid.Int64Range(1, length).Draw(t, "interval")))
			told = append(told, Interval{last.AtMS, next.AtMS, next.Used.Minus(last.Used)})
			last = next
		}
		add := func(i Interval) {
			var ok bool
			if s, ok = s.Add(i); !ok {
				t.Fatalf("%+v was refused by %+v", i, s)
			}
		}
		for k, i := range told {
			if rapid.Bool().Draw(t, "from the beginning") { // a listener that registered anew
				m := reading(life, i.ToMS)
				i = Interval{0, m.AtMS, m.Used}
			}
			add(i)
			if rapid.Bool().Draw(t, "again") {
				add(told[rapid.IntRange(0, k).Draw(t, "which")])
			}
		}
		if s.Total() != last.Used {
			t.Fatalf("total %+v, used %+v", s.Total(), last.Used)
		}
		for k := range s {
			if s[k].FromMS >= s[k].ToMS || k > 0 && s[k-1].ToMS != s[k].FromMS {
				t.Fatalf("interval %d of %+v", k, s)
			}
		}
		if most := 2*len(life) + 1; len(s) > most {
			t.Fatalf("%d intervals of a life of %d segments", len(s), len(life))
		}
	})
}

func TestWhatASeriesRefuses(t *testing.T) {
	one := func(from, to, used int64) Interval { return Interval{from, to, Usage{ActiveMS: used}} }
	s := Series{one(0, 10, 10), one(10, 20, 0)}
	for _, i := range []Interval{one(5, 30, 25), one(15, 30, 15), one(0, 30, 5)} {
		if got, ok := s.Add(i); ok || len(got) != 2 {
			t.Errorf("%+v: %+v, %v", i, got, ok)
		}
	}
	if got, ok := s.Add(one(40, 50, 10)); !ok || len(got) != 3 || got.Total().ActiveMS != 20 {
		t.Errorf("after a gap: %+v, %v", got, ok)
	}
	if one(2, 1, 0).Valid() || one(1, 2, -1).Valid() || !one(1, 1, 0).Valid() {
		t.Error("what is valid")
	}
}

// A VEE that changes all the time does not fill the store; its sums stay.
func TestASeriesIsBounded(t *testing.T) {
	var s Series
	for k := range int64(3 * maxIntervals) {
		s, _ = s.Add(Interval{k * 10, k*10 + 10, Usage{ActiveMS: k % 3}})
	}
	if len(s) > maxIntervals || s.Total().ActiveMS != 3*maxIntervals {
		t.Errorf("%d intervals, total %+v", len(s), s.Total())
	}
}

// What was billed once can always be told from what was not, to the unit.
func TestASeriesKeepsWhatWasBilled(t *testing.T) {
	var s Series
	var billed int64
	last := Usage{}
	for k := range int64(4 * maxIntervals) {
		s, _ = s.AddBilled(Interval{k * 10, k*10 + 10, Usage{ActiveMS: k % 7, VCPUMS: k % 3}}, billed)
		if k%maxIntervals == 300 {
			billed = k*10 + 5 // amid an interval
			last = used(s, 0, billed)
		}
		if billed > 0 && used(s, 0, billed) != last {
			t.Fatalf("at %d: %+v was billed until %d, the series says %+v", k, last, billed, used(s, 0, billed))
		}
	}
	if len(s) > maxIntervals {
		t.Errorf("%d intervals", len(s))
	}
}

func used(s Series, from, to int64) (u Usage) {
	for _, i := range s {
		u = u.Plus(i.Within(from, to).Used)
	}
	return u
}
