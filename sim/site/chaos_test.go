package site

import (
	"flag"
	"strings"
	"testing"
	"time"
)

var seeds = flag.Int("seeds", 1000, "random stories of TestChaos")

// TestChaos: whatever befalls a site, nothing is wrong at any moment, and all is well after.
func TestChaos(t *testing.T) {
	began := time.Now()
	for seed := range uint64(*seeds) {
		wrong, err := Random(seed).Play(nil)
		if err != nil {
			t.Fatal(err)
		}
		if len(wrong) > 0 {
			t.Errorf("seed %d (reservoir sim check --seed %d shows it):\n%s", seed, seed, strings.Join(wrong, "\n"))
		}
	}
	t.Logf("%d stories in %.1f s", *seeds, time.Since(began).Seconds())
}
