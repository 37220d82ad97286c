package sim

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

var begin = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

// gossip is a program that draws all that there is to draw: nodes that pass rumours on over
// a bad network, which is parted and healed meanwhile. It returns the trace.
func gossip(t interface{ Fatal(...any) }, seed uint64, shuffled bool) string {
	s := New(seed, begin)
	if shuffled {
		s.ShuffleTies()
	}
	var trace strings.Builder
	s.Trace = func(at time.Time, what string) { fmt.Fprintf(&trace, "%s %s\n", at.Sub(begin), what) }
	n := NewNetwork(s, Link{Delay: time.Millisecond, Jitter: 5 * time.Millisecond, Loss: 0.2, Twice: 0.1})
	nodes := []string{"a", "b", "c", "d"}
	pick := s.Stream("pick")
	var tell func(from string, hops int)
	tell = func(from string, hops int) {
		if hops == 0 {
			return
		}
		for range 2 {
			to := nodes[pick.IntN(len(nodes))]
			n.Send(from, to, fmt.Sprint("rumour ", hops), func() { tell(to, hops-1) })
		}
	}
	for _, node := range nodes {
		s.At(begin, node+" begins", func() { tell(node, 6) })
	}
	s.After(4*time.Millisecond, "part", func() { n.Partition([]string{"a", "b"}) })
	s.After(9*time.Millisecond, "heal", n.Heal)
	s.After(12*time.Millisecond, "crash", func() { n.Down("c", true) })
	if err := s.Run(begin.Add(time.Second)); err != nil {
		t.Fatal(err)
	}
	return trace.String()
}

func TestARunFollowsFromItsSeed(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		seed, shuffled := rapid.Uint64().Draw(t, "seed"), rapid.Bool().Draw(t, "shuffled")
		one, two := gossip(t, seed, shuffled), gossip(t, seed, shuffled)
		if one != two {
			t.Fatalf("two runs of one seed:\n%s\n%s", one, two)
		}
	})
	if gossip(t, 1, false) == gossip(t, 2, false) {
		t.Error("two seeds gave the same run")
	}
	if gossip(t, 1, false) == gossip(t, 1, true) {
		t.Error("the order of ties was not shuffled")
	}
}

// Events happen in the order of time, those of one moment in the order in which they were
// scheduled, each once; cancelled ones do not.
func TestOrder(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		type mark struct {
			at     time.Time
			number int
		}
		s := New(0, begin)
		var want, got []mark
		var events []*Event
		for n := range rapid.IntRange(0, 50).Draw(t, "events") {
			m := mark{begin.Add(time.Duration(rapid.IntRange(-2, 10).Draw(t, "at"))), n}
			events = append(events, s.At(m.at, "event", func() { got = append(got, mark{s.Now(), m.number}) }))
			if m.at.Before(begin) {
				m.at = begin
			}
			want = append(want, m)
		}
		for n := len(events) - 1; n >= 0; n-- {
			if rapid.IntRange(0, 3).Draw(t, "cancel") == 0 {
				if !events[n].Cancel() || events[n].Cancel() {
					t.Fatal("an event is cancelled once")
				}
				want = slices.Delete(want, n, n+1)
			}
		}
		slices.SortStableFunc(want, func(a, b mark) int { return a.at.Compare(b.at) })
		half := begin.Add(time.Duration(rapid.IntRange(0, 10).Draw(t, "half")))
		if err := s.Run(half); err != nil {
			t.Fatal(err)
		}
		if len(got) > 0 && got[len(got)-1].at.After(half) || !s.Now().Equal(half) {
			t.Fatalf("ran until %s, told to until %s", s.Now(), half)
		}
		if err := s.Run(begin.Add(time.Hour)); err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(got, want) || s.Pending() != 0 {
			t.Fatalf("happened %v, want %v", got, want)
		}
		for _, e := range events {
			if e.Cancel() {
				t.Fatal("what has happened was cancelled")
			}
		}
	})
}

func TestEvery(t *testing.T) {
	s := New(0, begin)
	n := 0
	s.Every(time.Second, "tick", func() bool { n++; return n < 5 })
	if err := s.Run(begin.Add(3500 * time.Millisecond)); err != nil || n != 3 {
		t.Errorf("%d ticks, %v", n, err)
	}
	if err := s.Run(begin.Add(time.Hour)); err != nil || n != 5 || s.Pending() != 0 {
		t.Errorf("%d ticks, %v", n, err)
	}
}

func TestNoTimePasses(t *testing.T) {
	s := New(0, begin)
	s.Every(0, "busy", func() bool { return true })
	if err := s.Run(begin); err == nil || !strings.Contains(err.Error(), "busy") {
		t.Errorf("%v", err)
	}
}

// A stream depends on its name alone.
func TestStreams(t *testing.T) {
	one, two := New(7, begin), New(7, begin)
	two.Stream("other").Uint64()
	if a, b := one.Stream("x").Uint64(), two.Stream("x").Uint64(); a != b {
		t.Errorf("%d and %d", a, b)
	}
	if one.Stream("x").Uint64() == one.Stream("y").Uint64() || one.Stream("x").Uint64() == New(8, begin).Stream("x").Uint64() {
		t.Error("streams are the same")
	}
}

// post sends so many messages, a millisecond apart, and returns their numbers as they arrive.
func post(t *testing.T, l Link, count int) (arrived []int) {
	s := New(3, begin)
	n := NewNetwork(s, Link{})
	n.Set("a", "b", l)
	for i := range count {
		sent := begin.Add(time.Duration(i) * time.Millisecond)
		s.At(sent, "send", func() {
			n.Send("a", "b", "message", func() {
				if d := s.Now().Sub(sent); d < l.Delay || d > l.Delay+l.Jitter && !l.Ordered {
					t.Errorf("message %d took %s", i, d)
				}
				arrived = append(arrived, i)
			})
			if len(arrived) > 0 && arrived[len(arrived)-1] == i {
				t.Error("a message arrived before Send returned")
			}
		})
	}
	if err := s.Run(begin.Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
	return arrived
}

func TestLinks(t *testing.T) {
	const count = 10_000
	if got := post(t, Link{}, count); len(got) != count {
		t.Errorf("%d of %d messages arrived over a good link", len(got), count)
	}
	if got := post(t, Link{Delay: time.Second, Jitter: time.Second}, count); len(got) != count || slices.IsSorted(got) {
		t.Errorf("%d of %d messages; none overtook another", len(got), count)
	}
	if got := post(t, Link{Delay: time.Second, Jitter: time.Second, Ordered: true}, count); len(got) != count || !slices.IsSorted(got) {
		t.Errorf("%d of %d messages; some overtook others", len(got), count)
	}
	for _, share := range []float64{0, 0.25, 1} {
		lost := 1 - float64(len(post(t, Link{Loss: share}, count)))/count
		twice := float64(len(post(t, Link{Twice: share}, count)))/count - 1
		if math.Abs(lost-share) > 0.02 || math.Abs(twice-share) > 0.02 {
			t.Errorf("%g of the messages were lost and %g came twice, want %g", lost, twice, share)
		}
	}
}

func TestWhatKeepsAMessageAway(t *testing.T) {
	for name, c := range map[string]struct {
		do      func(s *Sim, n *Network) // at 5 ms, when a message is under way from 0 to 10 ms
		arrives bool
		after   bool // one that is sent at 6 ms
	}{
		"nothing":                     {func(*Sim, *Network) {}, true, true},
		"a partition":                 {func(_ *Sim, n *Network) { n.Partition([]string{"a"}, []string{"b"}) }, false, false},
		"a partition from the rest":   {func(_ *Sim, n *Network) { n.Partition([]string{"b"}) }, false, false},
		"a partition of others":       {func(_ *Sim, n *Network) { n.Partition([]string{"a", "b"}, []string{"c"}) }, true, true},
		"a partition that was healed": {func(_ *Sim, n *Network) { n.Partition([]string{"a"}); n.Heal() }, false, true},
		"a cut":                       {func(_ *Sim, n *Network) { n.Cut("a", "b", true) }, false, false},
		"a cut that was mended":       {func(_ *Sim, n *Network) { n.Cut("a", "b", true); n.Cut("a", "b", false) }, false, true},
		"a cut the other way":         {func(_ *Sim, n *Network) { n.Cut("b", "a", true) }, true, true},
		"a crash":                     {func(_ *Sim, n *Network) { n.Down("b", true) }, false, false},
		"a restart":                   {func(_ *Sim, n *Network) { n.Down("b", true); n.Down("b", true); n.Down("b", false) }, false, true},
		"the sender's crash":          {func(_ *Sim, n *Network) { n.Down("a", true) }, false, false},
	} {
		t.Run(name, func(t *testing.T) {
			s := New(0, begin)
			n := NewNetwork(s, Link{Delay: 10 * time.Millisecond})
			var first, second bool
			n.Send("a", "b", "first", func() { first = true })
			s.After(5*time.Millisecond, name, func() { c.do(s, n) })
			s.After(6*time.Millisecond, "send", func() {
				if n.Reaches("a", "b") != c.after {
					t.Errorf("reaches: %v", !c.after)
				}
				n.Send("a", "b", "second", func() { second = true })
			})
			if err := s.Run(begin.Add(time.Second)); err != nil {
				t.Fatal(err)
			}
			if first != c.arrives || second != c.after {
				t.Errorf("the first arrived: %v, want %v; the second: %v, want %v", first, c.arrives, second, c.after)
			}
		})
	}
}
