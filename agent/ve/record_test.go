package ve

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/reservoir-cloud/reservoir/vee"
	"github.com/reservoir-cloud/reservoir/vhi/peer"
)

// Every host works out the same line, whatever the order in which it knows the hosts; and a
// host that goes changes nothing for the VEs that it did not stand for.
func TestLine(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		hosts := rapid.SliceOfNDistinct(rapid.StringMatching(`h[0-9]{1,3}`), 2, 8, rapid.ID).Draw(t, "hosts")
		ve := rapid.String().Draw(t, "ve")
		line := Line(ve, hosts)
		other := rapid.Permutation(hosts).Draw(t, "order")
		if !slices.Equal(Line(ve, other), line) {
			t.Fatalf("%v and %v", line, Line(ve, other))
		}
		gone := rapid.SampledFrom(hosts).Draw(t, "gone")
		left := Line(ve, slices.DeleteFunc(slices.Clone(hosts), func(h string) bool { return h == gone }))
		if !slices.Equal(left, slices.DeleteFunc(line, func(h string) bool { return h == gone })) {
			t.Fatalf("without %s: %v", gone, left)
		}
	})
}

// Names that differ little stand far apart.
func TestLinesAreSpread(t *testing.T) {
	hosts := []string{"h1", "h2", "h3", "h4"}
	first := map[string]int{}
	for i := range 400 {
		first[Line(fmt.Sprintf("alpha.s-%d", i), hosts)[0]]++
	}
	for _, h := range hosts {
		if first[h] < 60 || first[h] > 140 {
			t.Errorf("%s is first in %d of 400 lines", h, first[h])
		}
	}
}

// What is given up is never one of the newest that are to be kept, and all that remains is no
// more than that.
func TestOutdated(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		numbers := rapid.SliceOfNDistinct(rapid.IntRange(1, 20), 1, 12, rapid.ID).Draw(t, "numbers")
		var list []peer.Kept
		for _, n := range numbers {
			list = append(list, peer.Kept{VEE: web1, N: n, Whole: rapid.Bool().Draw(t, "whole")})
		}
		n, keep := rapid.SampledFrom(numbers).Draw(t, "n"), rapid.IntRange(1, 4).Draw(t, "keep")
		gone := outdated(slices.Clone(list), n, keep)
		whole := 0
		for _, k := range list {
			if !slices.Contains(gone, k) && k.N <= n {
				if whole++; !k.Whole {
					t.Fatalf("%d is a part, and is kept", k.N)
				}
			}
		}
		if whole > keep {
			t.Fatalf("%d are kept of %d", whole, keep)
		}
		best, found := Best(slices.DeleteFunc(slices.Clone(list), func(k peer.Kept) bool { return k.N > n }))
		if found && slices.Contains(gone, best) {
			t.Fatalf("the newest, %d, was given up", best.N)
		}
	})
}

// A VEE that two hosts claim counts where its epoch is newer; and a checkpoint that a host took
// which has been given up since is older than all that were taken later.
func TestEpochsDecide(t *testing.T) {
	at := time.Unix(1000, 0)
	r := record{at: map[string]heard{}}
	epoch := func(term uint64) vee.Epoch { return vee.Epoch{Generation: 1, Term: term} }
	for host, term := range map[string]uint64{"h1": 1, "h2": 2} {
		r.hear(peer.Presence{VE: "shop", Host: host, Members: []peer.Member{{VEE: web1, Epoch: epoch(term), Running: true}}}, at)
	}
	if parts := r.parts(); len(parts) != 1 || parts[0].host != "h2" {
		t.Errorf("parts: %+v", parts)
	}
	if b, _ := Best([]peer.Kept{{N: 9, Epoch: epoch(1), Whole: true}, {N: 3, Epoch: epoch(2), Whole: true}, {N: 4, Epoch: epoch(2)}}); b.N != 3 {
		t.Errorf("best: %+v", b)
	}
	if r.forget(at.Add(time.Minute), 30*time.Second); len(r.at) != 0 {
		t.Errorf("remembered: %+v", r.at)
	}
}
