package standby

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/vee"
	"github.com/reservoir-cloud/reservoir/vmi/peer"
)

var noon = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

func digestOf(c string) string { return "sha256:" + strings.Repeat(c, 64) }

// numbered shipment with these parts, by their digests' letter.
func numbered(n uint64, parts ...string) peer.Shipment {
	s := peer.Shipment{Service: "alpha.s-1", Number: n, Digest: digestOf("d"), Standbys: []string{"beta"}}
	for _, p := range parts {
		s.Parts = append(s.Parts, peer.CheckpointPart{VEE: "alpha.aaaaaaaaaa", Name: "db-1", N: int(n), Size: 10, Digest: digestOf(p)})
	}
	return s
}

func TestAnnounce(t *testing.T) {
	one, two, three := numbered(1, "a"), numbered(2, "b"), numbered(3, "c")
	words := two // the same checkpoint, something else said
	words.Number, words.Digest = 4, digestOf("e")
	other := one
	other.Digest = digestOf("f")
	for what, c := range map[string]struct {
		has     row
		comes   peer.Shipment
		changed bool
		coming  uint64
		code    fault.Code
	}{
		"the first":                          {row{}, one, true, 1, ""},
		"again":                              {row{Coming: &one}, one, false, 1, ""},
		"a newer one":                        {row{Whole: &one}, two, true, 2, ""},
		"an older one":                       {row{Whole: &two}, one, false, 0, fault.StaleEpoch},
		"another one of that number":         {row{Whole: &one}, other, false, 0, fault.Conflict},
		"while another is on its way":        {row{Whole: &one, Coming: &two}, three, false, 2, ""},
		"where that one cannot be had":       {row{Whole: &one, Coming: &two, Problem: "gone"}, three, true, 3, ""},
		"that needs nothing else":            {row{Whole: &one, Coming: &two}, words, true, 4, ""},
		"after the promotion":                {row{Whole: &one, Promoted: &promotion{}}, two, false, 0, ""},
		"older than what is on its way":      {row{Coming: &two}, one, false, 2, fault.StaleEpoch},
		"a second one of the one on its way": {row{Coming: &one}, other, false, 1, fault.Conflict},
	} {
		got, changed, err := c.has.announce(c.comes, noon)
		n := uint64(0)
		if got.Coming != nil {
			n = got.Coming.Number
		}
		if changed != c.changed || n != c.coming || (err == nil) != (c.code == "") || err != nil && !fault.Has(err, c.code) {
			t.Errorf("%s: changed %v, coming %d, %v", what, changed, n, err)
		}
	}
}

func TestWithin(t *testing.T) {
	deal := peer.Agreement{Terms: peer.Terms{ID: "beta.x", Ceiling: peer.Ceiling{Disk: 100}}}
	a, b := numbered(1, "a"), numbered(2, "a", "b")
	if err := within([]row{{Whole: &a, Coming: &b}}, 80, deal); err != nil { // "a" counts once
		t.Error(err)
	}
	if err := within([]row{{Whole: &a, Coming: &b}}, 81, deal); !fault.Has(err, fault.QuotaExceeded) || !strings.Contains(err.Error(), "beta.x") {
		t.Error(err)
	}
}

// TestRowsGoForward: whatever is told and in whatever order, and whatever can be had, what is
// whole is never replaced by anything older, and after a promotion it stays.
func TestRowsGoForward(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var r row
		var promoted *peer.Shipment
		for range rapid.IntRange(1, 40).Draw(t, "steps") {
			was := r
			switch rapid.SampledFrom([]string{"tell", "tell", "arrive", "fail", "promote"}).Draw(t, "step") {
			case "tell":
				s := numbered(rapid.Uint64Range(1, 9).Draw(t, "number"), rapid.SampledFrom([]string{"a", "b", "c"}).Draw(t, "part"))
				next, changed, err := r.announce(s, noon)
				if (err != nil || !changed) && !same(next, r) {
					t.Fatalf("changed all the same: %+v", next)
				}
				r = next
			case "arrive":
				if r.Coming != nil && r.Promoted == nil {
					r = r.arrived()
				}
			case "fail":
				if r.Coming != nil {
					r.Problem = "it cannot be had"
				}
			case "promote":
				if r.Whole != nil && r.Promoted == nil {
					r.Promoted, r.Coming = &promotion{}, nil
					promoted = r.Whole
				}
			}
			if was.Whole != nil && (r.Whole == nil || r.Whole.Number < was.Whole.Number) {
				t.Fatalf("whole went from %+v to %+v", was.Whole, r.Whole)
			}
			if promoted != nil && (r.Whole != promoted || r.Coming != nil) {
				t.Fatalf("after the promotion: %+v", r)
			}
			if r.newest() < was.newest() && r.Problem == "" && was.Promoted == r.Promoted {
				t.Fatalf("newest went from %d to %d", was.newest(), r.newest())
			}
		}
	})
}

func same(a, b row) bool { return a.Whole == b.Whole && a.Coming == b.Coming && a.Problem == b.Problem }

func TestNext(t *testing.T) {
	n := map[vee.ID]*vee.Checkpoint{}
	newest := func(id vee.ID) *vee.Checkpoint { return n[id] }
	point := func(k int) *vee.Checkpoint {
		return &vee.Checkpoint{N: k, Size: 1, Digest: digestOf(fmt.Sprint(k % 10))}
	}
	of := Service{ID: "alpha.s-1", Name: "shop", Standbys: []string{"beta"}, Definition: []byte("{}"), Replicas: []Replica{{"web-2", "b"}, {"web-1", "a"}}}
	step := func(s shipped, after time.Duration) (shipped, peer.Shipment, bool) {
		return s.next(of, newest, noon.Add(after), time.Minute)
	}
	s, first, fresh := step(shipped{}, 0)
	if !fresh || len(first.Parts) != 0 || first.Number == 0 {
		t.Fatalf("%+v", first)
	}
	if _, _, again := step(s, time.Hour); again {
		t.Error("nothing has changed, and it is new")
	}
	n["a"], n["b"] = point(1), point(1)
	s, two, fresh := step(s, time.Second)
	if !fresh || two.Number <= first.Number || len(two.Parts) != 2 || two.Parts[0].Name != "web-1" {
		t.Fatalf("%+v", two)
	}
	n["a"] = point(2) // b is late: what goes along is of one moment still
	s, three, _ := step(s, 2*time.Second)
	if !slices.Equal(three.Parts, two.Parts) {
		t.Errorf("of two moments: %+v", three.Parts)
	}
	n["b"] = point(2)
	s, three, fresh = step(s, 3*time.Second)
	if !fresh || three.Parts[0].N != 2 || three.Parts[1].N != 2 || !s.Uneven.IsZero() {
		t.Errorf("%+v", three)
	}
	n["a"] = point(3) // b sleeps, and is in no checkpoint: it does not hold the others up for ever
	s, _, _ = step(s, 4*time.Second)
	_, four, fresh := step(s, 2*time.Minute)
	if !fresh || four.Parts[0].N != 3 || four.Parts[1].N != 2 {
		t.Errorf("%+v", four)
	}
	restored := shipped{Service: "alpha.s-1", Number: 3, Of: "something older"}
	if _, five, _ := step(restored, time.Hour); five.Number <= four.Number {
		t.Errorf("after a restore %d, told before %d", five.Number, four.Number)
	}
}

func TestFirst(t *testing.T) {
	beta, gamma := peer.Promotion{By: "beta"}, peer.Promotion{By: "gamma"}
	for _, c := range []struct {
		order []string
		want  string
	}{{[]string{"gamma", "beta"}, "gamma"}, {[]string{"beta", "gamma"}, "beta"}, {[]string{"gamma"}, "gamma"}, {nil, "beta"}} {
		for _, list := range [][]peer.Promotion{{beta, gamma}, {gamma, beta}} {
			if got := first(c.order, list); got.By != c.want {
				t.Errorf("%v: %s, want %s", c.order, got.By, c.want)
			}
		}
	}
}

func TestWanted(t *testing.T) {
	got := wanted([]Service{
		{Standbys: []string{"beta"}, Sites: []string{"gamma"}, Images: []string{"b", "a"}},
		{Sites: []string{"beta"}, Images: []string{"a", "c"}},
	})
	if !slices.Equal(got["beta"], []string{"a", "b", "c"}) || !slices.Equal(got["gamma"], []string{"a", "b"}) {
		t.Errorf("%v", got)
	}
}
