package solve

import (
	"cmp"
	"math"
	"slices"
	"time"

	"github.com/reservoir-cloud/reservoir/placement/model"
)

// traffic of migrations over links that they share. A migration keeps the bandwidth that it
// has begun with, since it is what its sender is told.
type traffic struct {
	m       *model.Model
	net     *model.Network
	used    []float64        // by direction of a link
	running [][]model.Action // by direction: the migrations that cross it
	sent    [][]int32        // by direction: those that have ended, but for what they came after themselves
	buffer  []int32
}

func newTraffic(m *model.Model) *traffic {
	n := m.Network()
	return &traffic{m: m, net: n, used: make([]float64, n.Directions()), running: make([][]model.Action, n.Directions()), sent: make([][]int32, n.Directions())}
}

// path is what a migration crosses; the slice is good until the next call.
func (t *traffic) path(from, to int32) []int32 {
	t.buffer = t.net.Path(from, to, t.buffer[:0])
	return t.buffer
}

// load of migrations, by their path's direction that takes longest to send all that waits
// for it, in seconds.
func (t *traffic) load(waiting []model.Action) func(model.Action) float64 {
	seconds := make([]float64, t.net.Directions())
	for _, a := range waiting {
		if a.Kind == model.Migrate {
			for _, d := range t.path(a.From, a.To) {
				seconds[d] += float64(t.m.VEEs[a.VEE].MemoryMiB) / t.net.Capacity(d)
			}
		}
	}
	return func(a model.Action) (most float64) {
		if a.Kind == model.Migrate {
			for _, d := range t.path(a.From, a.To) {
				most = max(most, seconds[d])
			}
		}
		return most
	}
}

// take so much more of what a crosses.
func (t *traffic) take(a model.Action, mibs float64) {
	for _, d := range t.path(a.From, a.To) {
		t.used[d] += mibs
	}
}

func (t *traffic) begin(a model.Action) {
	t.take(a, a.MiBs)
	for _, d := range t.path(a.From, a.To) {
		t.running[d] = append(t.running[d], a)
	}
}

func (t *traffic) end(i int32, a model.Action) {
	t.take(a, -a.MiBs)
	for _, d := range t.path(a.From, a.To) {
		t.running[d] = slices.DeleteFunc(t.running[d], func(b model.Action) bool { return b.VEE == a.VEE })
		t.sent[d] = append(slices.DeleteFunc(t.sent[d], func(j int32) bool { return slices.Contains(a.After, j) }), i)
	}
}

const rounding = 1e-9

// rate at which migration a may begin now, in MiB in a second; false: it waits. That is the
// whole of its narrowest link, for two that share one end later than one after the other, or
// what others leave of it, where that ends the migration no later than waiting for the whole.
func (s *schedule) rate(a model.Action) (float64, bool) {
	v := &s.m.VEEs[a.VEE]
	whole, left := math.Inf(1), math.Inf(1)
	path := s.traffic.path(a.From, a.To)
	for _, d := range path {
		c := s.traffic.net.Capacity(d)
		whole, left = min(whole, c/float64(s.together(a, d))), min(left, c-s.traffic.used[d])
	}
	if len(path) == 0 || v.MemoryMiB == 0 {
		return 0, true
	}
	whole = s.enough(v, whole)
	switch {
	case left >= whole*(1-rounding):
		return min(whole, left), true
	case left <= whole*rounding:
		return 0, false
	}
	wait := s.traffic.free(path, whole) - s.now
	return left, s.m.Migration.At(v, left) <= wait+s.m.Migration.At(v, whole)
}

// enough bandwidth for v: more would not make it faster, since it takes its least time.
func (s *schedule) enough(v *model.VEE, most float64) float64 {
	g := &s.m.Migration
	if g.At(v, most) > g.Least {
		return most
	}
	low, high := 0., most
	for range 30 {
		if half := (low + high) / 2; g.At(v, half) > g.Least {
			low = half
		} else {
			high = half
		}
	}
	return high
}

// free is when all directions of a path have so much left, if nothing else begins.
func (t *traffic) free(path []int32, mibs float64) (at time.Duration) {
	for _, d := range path {
		ends := slices.Clone(t.running[d])
		slices.SortFunc(ends, func(a, b model.Action) int { return cmp.Compare(a.End, b.End) })
		left := t.net.Capacity(d) - t.used[d]
		for _, a := range ends {
			if left >= mibs*(1-rounding) {
				break
			}
			left += a.MiBs
			at = max(at, a.End)
		}
	}
	return at
}

// together is how many migrations must begin with a and cross the same direction, a too.
func (s *schedule) together(a model.Action, direction int32) int {
	n := 1
	for _, g := range s.before {
		if !g.together || !g.first[a.VEE] {
			continue
		}
		for _, b := range s.waiting {
			if b.Kind == model.Migrate && b.VEE != a.VEE && g.first[b.VEE] && slices.Contains(s.traffic.net.Path(b.From, b.To, nil), direction) {
				n++
			}
		}
	}
	return n
}
