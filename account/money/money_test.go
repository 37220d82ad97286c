package money

import (
	"encoding/json"
	"testing"

	"pgregory.net/rapid"
)

func draw(t *rapid.T, name string) Amount {
	return Of(rapid.Int64Range(-1e12, 1e12).Draw(t, name), rapid.Int64Range(1, 1e9).Draw(t, name+" per"))
}

func TestText(t *testing.T) {
	for text, want := range map[string]string{"12": "12", "0.05": "0.05", "-0.50": "-0.5", "1/3": "1/3", "2/4": "0.5", "007": "7"} {
		a, err := Parse(text)
		if err != nil || a.String() != want {
			t.Errorf("%q is %s, %v; want %s", text, a, err, want)
		}
	}
	for _, text := range []string{"", ".", "1e9", "1e999999999", "0x10", "1/0", "+1", "1,5", " 1", "NaN", "1_000", "1.", "٣"} {
		if a, err := Parse(text); err == nil {
			t.Errorf("%q is %s", text, a)
		}
	}
	for want, a := range map[string]Amount{"0.01": Of(1, 200), "-0.01": Of(-1, 200), "0.00": Of(-1, 1000), "0.67": Of(2, 3), "100.00": Of(100, 1)} {
		if got := a.Fixed(2); got != want {
			t.Errorf("%s is written %s, want %s", a, got, want)
		}
	}
}

func TestAmountsComeBackFromJSON(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a := draw(t, "a")
		raw, err := json.Marshal(a)
		if err != nil {
			t.Fatal(err)
		}
		var b Amount
		if err := json.Unmarshal(raw, &b); err != nil || a.Compare(b) != 0 {
			t.Fatalf("%s became %s, %v", a, b, err)
		}
	})
}

func TestRoundedPartsAreTheRoundedWhole(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var list []Amount
		for range rapid.IntRange(0, 30).Draw(t, "n") {
			list = append(list, draw(t, "part"))
		}
		places := rapid.IntRange(0, 4).Draw(t, "places")
		unit := Of(1, 1)
		for range places {
			unit = unit.Times(Of(1, 10))
		}
		parts := Round(list, places)
		if got, want := Sum(parts), Sum(list).Round(places); got.Compare(want) != 0 {
			t.Fatalf("parts %s, whole %s", got, want)
		}
		for i, p := range parts {
			off := p.Minus(list[i])
			if off.Sign() < 0 {
				off = Amount{}.Minus(off)
			}
			if off.Compare(unit) > 0 {
				t.Fatalf("%s was rounded to %s", list[i], p)
			}
		}
	})
}

func TestArithmetic(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a, b, c := draw(t, "a"), draw(t, "b"), draw(t, "c")
		if a.Plus(b).Minus(b).Compare(a) != 0 || a.Plus(b).Times(c).Compare(a.Times(c).Plus(b.Times(c))) != 0 {
			t.Fatal("not exact")
		}
		if c.Sign() != 0 && a.Over(c).Times(c).Compare(a) != 0 {
			t.Fatal("division is not exact")
		}
		if a.Minus(a).Sign() != 0 || (Amount{}).Plus(a).Compare(a) != 0 {
			t.Fatal("nothing is something")
		}
	})
}

func FuzzParse(f *testing.F) {
	f.Add("0.05")
	f.Add("-1/3")
	f.Fuzz(func(t *testing.T, s string) {
		a, err := Parse(s)
		if err != nil {
			return
		}
		if b, err := Parse(a.String()); err != nil || a.Compare(b) != 0 {
			t.Errorf("%q is %s, read again %s, %v", s, a, b, err)
		}
	})
}
