package site

import (
	"math"
	"testing"
	"time"

	"github.com/reservoir-cloud/reservoir/internal/fault"
)

func TestReliefIsChecked(t *testing.T) {
	for _, r := range []Relief{{}, {Overload: 0.9, Calm: 0.75, Lasts: time.Minute}, {Overload: 1, Calm: 1}, {Overload: 0.9, Calm: 0.7, Underload: 0.1}, {Underload: 0.2}} {
		if err := r.check(); err != nil {
			t.Errorf("%+v: %v", r, err)
		}
	}
	for _, r := range []Relief{{Overload: -0.1}, {Overload: 90, Calm: 75}, {Overload: math.NaN()}, {Overload: 0.9}, {Overload: 0.5, Calm: 0.6}, {Overload: 0.9, Calm: 0.5, Underload: 0.6},
		{Underload: -1}, {Lasts: -time.Second}, {Overload: 0.9, Calm: math.NaN()}} {
		if err := r.check(); !fault.Has(err, fault.Malformed) {
			t.Errorf("%+v: %v", r, err)
		}
	}
	c := Config{Relief: Relief{Overload: 0.9, Calm: 0.75, Lasts: 3 * time.Minute}, HAScale: 0.5}
	if got := c.relief(); got.LastsMS != 90_000 {
		t.Errorf("scaled by a half: %d ms", got.LastsMS)
	}
}
