package store

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/reservoir-cloud/reservoir/monitor"
)

// BenchmarkAppend of 50,000 samples, a thousand at a time, as hosts with a hundred VEEs send them.
func BenchmarkAppend(b *testing.B) {
	at := start
	s, err := Open(Config{Dir: b.TempDir(), Now: func() time.Time { return at }, ServiceRate: 1e9})
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	var ms []monitor.Measurement
	for i := range 5000 {
		m := monitor.Measurement{Subject: replica("acme", "shop", i), Kind: monitor.VEEKind}
		for k := range 10 {
			m.Values = append(m.Values, monitor.Value{Field: fmt.Sprintf("vee_field_%d", k)})
		}
		ms = append(ms, m)
	}
	for b.Loop() {
		at = at.Add(10 * time.Second)
		for i := range ms {
			ms[i].At = at
		}
		for part := range slices.Chunk(ms, 100) {
			if _, err := s.Append(b.Context(), part); err != nil {
				b.Fatal(err)
			}
		}
	}
}
