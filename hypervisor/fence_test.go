package hypervisor

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/reservoir-cloud/reservoir/vee"
)

const fenced vee.ID = "alpha.aaaaaaaaaa"

func epoch(g, t, h uint64) vee.Epoch { return vee.Epoch{Generation: g, Term: t, Hop: h} }

func openFence(t *testing.T, path string) *Fence {
	t.Helper()
	f, err := OpenFence(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func TestFenceRefusesOlderAlsoAfterReopening(t *testing.T) {
	path := filepath.Join(t.TempDir(), "epochs")
	f := openFence(t, path)
	for _, e := range []vee.Epoch{epoch(1, 1, 0), epoch(1, 1, 0), epoch(1, 2, 0), epoch(1, 2, 7)} {
		if err := f.Obey(fenced, e); err != nil {
			t.Fatalf("epoch %s: %v", e, err)
		}
	}
	for _, f := range []*Fence{f, openFence(t, path)} {
		if err := f.Obey(fenced, epoch(1, 2, 6)); !errors.Is(err, ErrStaleEpoch) {
			t.Errorf("older epoch: %v, want ErrStaleEpoch", err)
		}
		if got := f.Obeyed(fenced); got != epoch(1, 2, 7) {
			t.Errorf("obeyed %s, want 1.2.7", got)
		}
		if err := f.Obey("alpha.bbbbbbbbbb", vee.Epoch{}); err != nil {
			t.Errorf("another VEE: %v", err)
		}
	}
}

func TestFenceToleratesOnlyATornEnd(t *testing.T) {
	one, two := string(fenceLine(fenced, epoch(1, 0, 0))), string(fenceLine(fenced, epoch(2, 0, 0)))
	for name, c := range map[string]struct {
		log  string
		want vee.Epoch
		bad  bool
	}{
		"whole":             {one + two, epoch(2, 0, 0), false},
		"torn":              {one + two[:len(two)-3], epoch(1, 0, 0), false},
		"end of line torn":  {one + two[:len(two)-1], epoch(1, 0, 0), false},
		"zeros after crash": {one + "\x00\x00\x00\x00", epoch(1, 0, 0), false},
		"damaged before":    {strings.Replace(one, "1.0.0", "1.9.0", 1) + two, vee.Epoch{}, true},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "epochs")
			if err := os.WriteFile(path, []byte(c.log), 0o600); err != nil {
				t.Fatal(err)
			}
			f, err := OpenFence(path)
			if c.bad {
				if err == nil || !strings.Contains(err.Error(), "line 1") {
					t.Fatalf("opened a damaged fence: %v", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			if got := f.Obeyed(fenced); got != c.want {
				t.Errorf("obeyed %s, want %s", got, c.want)
			}
			if err := f.Obey(fenced, epoch(3, 0, 0)); err != nil {
				t.Error(err)
			}
			if got := openFence(t, path).Obeyed(fenced); got != epoch(3, 0, 0) {
				t.Errorf("after writing behind the torn line: %s, want 3.0.0", got)
			}
		})
	}
}

// A crash may cut the log anywhere: what was acknowledged before the cut stays obeyed, and
// nothing that was not asked for appears.
func TestFenceSurvivesACutAnywhere(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var log []byte
		ends := map[int]vee.Epoch{0: {}}
		var newest vee.Epoch
		for range rapid.IntRange(0, 8).Draw(t, "lines") {
			newest.Term += rapid.Uint64Range(1, 1<<40).Draw(t, "term")
			log = append(log, fenceLine(fenced, newest)...)
			ends[len(log)] = newest
		}
		cut := rapid.IntRange(0, len(log)).Draw(t, "cut")
		got, size, err := decodeFence(log[:cut])
		if err != nil {
			t.Fatal(err)
		}
		at := cut
		for ; ; at-- {
			if _, ok := ends[at]; ok {
				break
			}
		}
		if got[fenced] != ends[at] || size != at {
			t.Fatalf("cut at %d: %s in %d bytes, want %s in %d", cut, got[fenced], size, ends[at], at)
		}
	})
}

func TestFenceIsWrittenAnewWhenItIsLong(t *testing.T) {
	path := filepath.Join(t.TempDir(), "epochs")
	var log []byte
	var last uint64
	for ; len(log) < 2*fenceRoom; last++ {
		log = append(log, fenceLine(fenced, epoch(1, last+1, 0))...)
	}
	if err := os.WriteFile(path, log, 0o600); err != nil {
		t.Fatal(err)
	}
	f := openFence(t, path)
	if err := f.Obey(fenced, epoch(2, 0, 0)); err != nil {
		t.Fatal(err)
	}
	if st, err := os.Stat(path); err != nil || st.Size() > 200 {
		t.Errorf("the log has %d bytes (%v), want two lines", st.Size(), err)
	}
	if got := openFence(t, path).Obeyed(fenced); got != epoch(2, 0, 0) {
		t.Errorf("obeyed %s, want 2.0.0", got)
	}
}

func FuzzDecodeFence(f *testing.F) {
	f.Add([]byte(nil))
	f.Add(append(fenceLine(fenced, epoch(1, 2, 3)), fenceLine(fenced, epoch(1, 2, 4))...))
	f.Fuzz(func(t *testing.T, log []byte) {
		obeyed, _, err := decodeFence(log)
		if err != nil {
			return
		}
		for id, e := range obeyed {
			if _, _, ok := parseFenceLine(fenceLine(id, e)[:len(fenceLine(id, e))-1]); !ok {
				t.Errorf("%q %s does not survive being written", id, e)
			}
		}
	})
}

func TestFeedDropsTheOldest(t *testing.T) {
	f := NewFeed()
	for i := range feedLength + 5 {
		f.Send(Event{ID: fenced, Reason: strings.Repeat("x", i%3)})
	}
	f.Send(Event{ID: fenced, Reason: "last"})
	f.Close()
	f.Close()
	f.Send(Event{})
	var last Event
	n := 0
	for e := range f.Events() {
		last = e
		n++
	}
	if n != feedLength || last.Reason != "last" {
		t.Errorf("%d events, the last %q; want %d, \"last\"", n, last.Reason, feedLength)
	}
}
