package main

import (
	"math"
	"testing"
)

// With the published settings each model gives the published figures, and so may say what
// others would have given.
func TestModelsGiveThePublishedFigures(t *testing.T) {
	for i, m := range models {
		d, err := dedicated(m.workload, 1)
		if err != nil {
			t.Fatal(err)
		}
		o, _, err := elastic(m.workload, published(m.boot), 1, nil)
		if err != nil {
			t.Fatal(err)
		}
		near := func(what string, got, want, within float64) {
			t.Helper()
			if math.Abs(got-want) > within {
				t.Errorf("model %d: %s %.2f, published %.2f", i+1, what, got, want)
			}
		}
		near("dedicated, minutes", d.Time.Minutes(), publishedDedicated, 1)
		near("minutes", o.Time.Minutes(), publishedTime, 1)
		near("extra, %", o.extra(d), publishedExtra, 0.5)
		near("nodes", o.Nodes, publishedNodes, 0.15)
		near("shut down, minutes", o.Shutdown.Minutes(), publishedShutdown, 2)
	}
}

// The run follows from its seed, no job loses its node, and no more can be saved than there
// is to save.
func TestOurSettings(t *testing.T) {
	w := models[0].workload
	d, err := dedicated(w, 1)
	if err != nil {
		t.Fatal(err)
	}
	var runs [2]outcome
	for i := range runs {
		if runs[i], _, err = elastic(w, ours(bootHere), 1, nil); err != nil {
			t.Fatal(err)
		}
	}
	if runs[0] != runs[1] {
		t.Errorf("one run %+v, and again %+v", runs[0], runs[1])
	}
	if o := runs[0]; o.Requeued != 0 || o.Peak != mostNodes || o.extra(d) > 5 || o.saving() > possible(w, d) {
		t.Errorf("%+v, extra %.2f %%, saving %.2f %% of %.2f %%", o, o.extra(d), o.saving(), possible(w, d))
	}
}
