package ve

import (
	"cmp"
	"fmt"
	"hash/fnv"
	"maps"
	"slices"
	"time"

	"github.com/reservoir-cloud/reservoir/vee"
	"github.com/reservoir-cloud/reservoir/vhi/peer"
)

// This file is the pure part: what is known of VEs, and what follows from it.

// standBy is how many hosts are told of a VE: the one that tracks it and one that has a
// replica of the record, made of the same presences.
const standBy = 2

// Line is the order in which hosts track a VE: the first that is there does. Every host
// works it out by itself (rendezvous hashing: a host that goes moves only what it tracked).
func Line(ve string, hosts []string) []string {
	place := func(host string) uint64 {
		h := fnv.New64a()
		fmt.Fprintf(h, "%s\x00%s", ve, host)
		x := h.Sum64() // fnv alone leaves names that differ in their last letter side by side
		x ^= x >> 33
		x *= 0xff51afd7ed558ccd
		return x ^ x>>33
	}
	line := slices.Clone(hosts)
	slices.SortFunc(line, func(a, b string) int { return cmp.Or(cmp.Compare(place(a), place(b)), cmp.Compare(a, b)) })
	return line
}

// record of a VE: the newest presence on each host that has something of it.
type record struct {
	at map[string]heard
	// tracked: this host is the first in line. tried is when a checkpoint was begun last.
	tracked bool
	tried   time.Time
}

type heard struct {
	peer.Presence
	when time.Time
}

// hear of the VE's presence on a host.
func (r *record) hear(w peer.Presence, now time.Time) {
	if len(w.Members)+len(w.Kept)+len(w.Gone) == 0 {
		delete(r.at, w.Host)
		return
	}
	r.at[w.Host] = heard{w, now}
}

// forget what was not said again for so long.
func (r *record) forget(now time.Time, after time.Duration) {
	maps.DeleteFunc(r.at, func(_ string, h heard) bool { return now.Sub(h.when) > after })
}

// part of a VE: a VEE where it runs.
type part struct {
	peer.Member
	host string
}

// parts that run, by identifier; of a VEE that two hosts claim the newer epoch counts.
func (r *record) parts() []part {
	newest := map[vee.ID]part{}
	for _, host := range slices.Sorted(maps.Keys(r.at)) {
		for _, m := range r.at[host].Members {
			if old, known := newest[m.VEE]; !known || m.Epoch.Compare(old.Epoch) > 0 {
				newest[m.VEE] = part{m, host}
			}
		}
	}
	var list []part
	for _, id := range slices.Sorted(maps.Keys(newest)) {
		if p := newest[id]; p.Running {
			list = append(list, p)
		}
	}
	return list
}

// kept checkpoints, of all VEEs on all hosts.
func (r *record) kept() (list []peer.Kept) {
	for _, w := range r.at {
		list = append(list, w.Kept...)
	}
	return list
}

// interval between checkpoints: the shortest that a VEE asks for; 0: none does.
func interval(parts []part) (every time.Duration, keep int) {
	for _, p := range parts {
		if d := time.Duration(p.Policy.CheckpointMS) * time.Millisecond; d > 0 && (every == 0 || d < every) {
			every = d
		}
		keep = max(keep, p.Policy.Keep)
	}
	return every, cmp.Or(keep, vee.UsualKeep)
}

// due is when the next checkpoint is to be taken; the zero time: never. known is how long
// this host has tracked the VE: a VEE that has just started is given one interval.
func (r *record) due(parts []part, since time.Time) time.Time {
	every, _ := interval(parts)
	if every == 0 {
		return time.Time{}
	}
	last := since
	for _, k := range r.kept() {
		if k.Whole && k.At.After(last) {
			last = k.At
		}
	}
	if r.tried.After(last) {
		last = r.tried
	}
	return last.Add(every)
}

// next number of a checkpoint.
func (r *record) next() int {
	n := 0
	for _, k := range r.kept() {
		n = max(n, k.N)
	}
	return n + 1
}

// useless checkpoints by host: of VEEs that were removed for good under that epoch or a newer.
func (r *record) useless() map[string][]peer.Kept {
	gone := map[vee.ID]vee.Epoch{}
	for _, w := range r.at {
		for _, g := range w.Gone {
			if e, known := gone[g.VEE]; !known || e.Compare(g.Epoch) < 0 {
				gone[g.VEE] = g.Epoch
			}
		}
	}
	all := map[string][]peer.Kept{}
	for host, w := range r.at {
		for _, k := range w.Kept {
			if e, is := gone[k.VEE]; is && k.Epoch.Compare(e) <= 0 {
				all[host] = append(all[host], k)
			}
		}
	}
	return all
}

// second host of a VEE's checkpoint: the next in its own line that is there and does not run
// it; empty: there is none.
func second(id vee.ID, runs string, hosts []string) string {
	for _, h := range Line(string(id), hosts) {
		if h != runs {
			return h
		}
	}
	return ""
}

// Best of the checkpoints of one VEE: the newest whole one. Epochs count before numbers:
// what a host took that has been given up since is older than anything taken later.
func Best(list []peer.Kept) (best peer.Kept, found bool) {
	for _, k := range list {
		if k.Whole && (!found || cmp.Or(k.Epoch.Compare(best.Epoch), cmp.Compare(k.N, best.N)) > 0) {
			best, found = k, true
		}
	}
	return best, found
}

// outdated are those of one VEE that are given up when checkpoint n of it is whole: all but
// the newest keep whole ones.
func outdated(list []peer.Kept, n, keep int) (gone []peer.Kept) {
	whole := 0
	slices.SortFunc(list, func(a, b peer.Kept) int { return cmp.Compare(b.N, a.N) })
	for _, k := range list {
		switch {
		case k.N > n:
		case k.Whole && whole < keep:
			whole++
		default:
			gone = append(gone, k)
		}
	}
	return gone
}
