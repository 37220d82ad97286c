package cli

import (
	"os"
	"strings"
	"testing"
	"time"

	"github.com/reservoir-cloud/reservoir/vee"
	"github.com/reservoir-cloud/reservoir/vmi"
)

func TestTimeline(t *testing.T) {
	at := time.Date(2026, 5, 1, 10, 0, 0, 0, time.UTC)
	after := func(d time.Duration, s vee.State, p vee.Phase, host string) vmi.Step {
		at = at.Add(d)
		return vmi.Step{At: at, State: s, Phase: p, Host: host}
	}
	steps := []vmi.Step{
		after(0, vee.Defined, vee.PhaseStopped, "h1"),
		after(12*time.Millisecond, vee.Defined, vee.PhaseProlog, "h1"),
		after(2411*time.Millisecond, vee.Active, vee.PhaseBoot, "h1"),
		after(3200*time.Millisecond, vee.Active, vee.PhaseRunning, "h1"),
		after(26*time.Hour+time.Minute, vee.Active, vee.PhaseMigrate, "h1"),
		after(1700*time.Millisecond, vee.Active, vee.PhaseRunning, "h2"),
		after(90*time.Second, vee.Active, vee.PhaseSave, "h2"),
		after(31*time.Second, vee.Suspended, vee.PhaseSuspended, "h2"),
		after(time.Hour, vee.Defined, vee.PhaseFailed, "h2"),
	}
	steps[1].Progress = &vee.Progress{Done: 256 << 20, Total: 256 << 20, Unit: "bytes"}
	steps[8].Note = "its saved memory\nis gone"
	var b strings.Builder
	timeline(&b, steps, at.Add(5*time.Minute))
	const file = "testdata/timeline.golden"
	if *update {
		if err := os.WriteFile(file, []byte(b.String()), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if want, err := os.ReadFile(file); err != nil || b.String() != string(want) {
		t.Errorf("got\n%s\nwant\n%s(%v)", b.String(), want, err)
	}
	b.Reset()
	timeline(&b, nil, at)
	if b.Len() != 0 {
		t.Errorf("of nothing: %q", b.String())
	}
}
