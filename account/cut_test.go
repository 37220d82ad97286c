package account

import (
	"testing"

	"pgregory.net/rapid"
)

// Wherever a life is cut, each part is what the meter would have said, and the sum is the whole.
func TestCutsOfALife(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		life := drawLife(t)
		var s Series
		end := int64(0)
		for _, l := range life {
			m, n := reading(life, end), reading(life, end+l.ms)
			s, _ = s.Add(Interval{end, end + l.ms, n.Used.Minus(m.Used)})
			end += l.ms
		}
		from := rapid.Int64Range(-10, end+10).Draw(t, "from")
		to := rapid.Int64Range(from-10, end+10).Draw(t, "to")
		var got Usage
		for _, i := range s {
			p := i.Within(from, to)
			if !p.Valid() {
				t.Fatalf("%+v of %+v", p, i)
			}
			got = got.Plus(p.Used)
		}
		a, b := min(max(from, 0), end), min(max(from, to, 0), end)
		if want := reading(life, b).Used.Minus(reading(life, a).Used); got != want {
			t.Fatalf("from %d to %d: %+v, want %+v", from, to, got, want)
		}
	})
}

// An interval of any usage is the sum of its parts.
func TestCutLosesNothing(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		i := Interval{FromMS: rapid.Int64Range(-1000, 1000).Draw(t, "from"), Used: Usage{DiskMiBMS: rapid.Int64Range(0, 1<<62).Draw(t, "disk"), ActiveMS: rapid.Int64Range(0, 9).Draw(t, "ms")}}
		i.ToMS = i.FromMS + rapid.Int64Range(0, 1<<40).Draw(t, "length")
		a, b := i.Cut(rapid.Int64().Draw(t, "at"))
		if !a.Valid() || !b.Valid() || a.ToMS != b.FromMS || a.FromMS != i.FromMS || b.ToMS != i.ToMS || a.Used.Plus(b.Used) != i.Used {
			t.Fatalf("%+v is %+v and %+v", i, a, b)
		}
		var sum Usage
		at := i.FromMS
		for at < i.ToMS {
			next := at + rapid.Int64Range(max(1, (i.ToMS-i.FromMS)/10), 1<<40).Draw(t, "part")
			p := i.Within(at, next)
			if !p.Valid() {
				t.Fatalf("%+v of %+v", p, i)
			}
			sum, at = sum.Plus(p.Used), next
		}
		if i.ToMS > i.FromMS && sum != i.Used {
			t.Fatalf("parts %+v, whole %+v", sum, i.Used)
		}
	})
}
