package site

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"math"
	"testing"
	"time"

	"github.com/reservoir-cloud/reservoir/monitor"
	measurements "github.com/reservoir-cloud/reservoir/monitor/store"
	"github.com/reservoir-cloud/reservoir/vee"
)

// What VEEs need comes from what was measured of them: one that was seen for long enough, of
// what it used nearly always; none that is new, or that was seen in gaps.
func TestDemandFromHistory(t *testing.T) {
	st, err := measurements.Open(measurements.Config{Dir: t.TempDir(), Now: time.Now, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	defer st.Close()
	now := time.Now().Truncate(time.Second)
	const history = 20 * time.Minute
	for _, v := range []struct {
		id    string
		since time.Duration
		cores float64
		every time.Duration
	}{{"steady", 25 * time.Minute, 0.25, 15 * time.Second}, {"busy", 25 * time.Minute, 1.5, 15 * time.Second}, {"new", 5 * time.Minute, 0.1, 15 * time.Second}} {
		for at := now.Add(-v.since); !at.After(now); at = at.Add(v.every) {
			total := at.Sub(now.Add(-v.since)).Seconds() * v.cores
			if _, err := st.Append(t.Context(), []monitor.Measurement{{Subject: monitor.Subject{Site: "alpha", Customer: "acme", Service: "shop", Component: "web", Replica: "1", VEE: vee.ID("alpha." + v.id)},
				Kind: monitor.VEEKind, At: at, Values: []monitor.Value{{Field: "vee_cpu_seconds_total", Value: total}}}}); err != nil {
				t.Fatal(err)
			}
		}
	}
	got, err := askDemand(t.Context(), st.Querier(monitor.Scope{}), history, now)
	if err != nil {
		t.Fatal(err)
	}
	near := func(id string, want int64) bool { n := got["alpha."+id]; return n >= want-2 && n <= want+2 }
	if len(got) != 2 || !near("steady", 250) || !near("busy", 1500) {
		t.Errorf("needs %v", got)
	}
	s := &site{cfg: Config{Overbooking: Overbooking{History: history}}}
	if err := s.cfg.Overbooking.check(); err != nil || s.booking() == nil {
		t.Errorf("%v", err)
	}
	if (&site{}).booking() != nil {
		t.Error("overbooked from history unasked")
	}
	for _, bad := range []Overbooking{{History: time.Second}, {History: time.Hour, Headroom: 1}, {History: time.Hour, Headroom: math.NaN()}, {History: -time.Hour}} {
		if bad.check() == nil {
			t.Errorf("%+v is taken", bad)
		}
	}
	if _, err := askDemand(t.Context(), broken{}, history, now); err == nil {
		t.Error("no error where none can be asked")
	}
	odd, err := askDemand(t.Context(), broken{series: []monitor.Series{
		{Labels: map[string]string{"vee": "a"}, Points: []monitor.Point{{Value: math.NaN()}}}, {Labels: map[string]string{"vee": "b"}, Points: []monitor.Point{{Value: math.Inf(1)}}},
		{Labels: map[string]string{"vee": "c"}, Points: []monitor.Point{{Value: -1}}}, {Labels: map[string]string{"vee": "d"}}, {Points: []monitor.Point{{Value: 1}}}}}, history, now)
	if err != nil || len(odd) != 0 {
		t.Errorf("measurements that are none: %v, %v", maps.Keys(odd), err)
	}
}

// broken answers with an error, or with what it was given.
type broken struct {
	monitor.Querier
	series []monitor.Series
}

func (b broken) Query(context.Context, string, time.Time) ([]monitor.Series, error) {
	if b.series == nil {
		return nil, errors.New("away")
	}
	return b.series, nil
}
