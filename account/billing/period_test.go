package billing

import (
	"testing"
	"time"

	"pgregory.net/rapid"
)

func TestPeriods(t *testing.T) {
	for _, c := range []struct {
		p           Period
		after, want string
	}{
		{Daily, "2026-03-04T05:00:00Z", "2026-03-05T00:00:00Z"},
		{Daily, "2026-03-04T00:00:00Z", "2026-03-05T00:00:00Z"},
		{Daily, "2026-12-31T23:59:59.999Z", "2027-01-01T00:00:00Z"},
		{Daily, "2026-03-04T00:30:00+02:00", "2026-03-04T00:00:00Z"},
		{Weekly, "2026-03-04T05:00:00Z", "2026-03-09T00:00:00Z"}, // a Wednesday
		{Weekly, "2026-03-08T23:00:00Z", "2026-03-09T00:00:00Z"},
		{Weekly, "2026-03-09T00:00:00Z", "2026-03-16T00:00:00Z"},
		{Monthly, "2026-01-31T05:00:00Z", "2026-02-01T00:00:00Z"},
		{Monthly, "2026-02-01T00:00:00Z", "2026-03-01T00:00:00Z"},
		{Monthly, "2026-12-01T00:00:00Z", "2027-01-01T00:00:00Z"},
	} {
		at, err := time.Parse(time.RFC3339, c.after)
		if err != nil {
			t.Fatal(err)
		}
		if got := c.p.After(at).Format(time.RFC3339); got != c.want {
			t.Errorf("%s after %s: %s, want %s", c.p, c.after, got, c.want)
		}
	}
}

// Periods follow upon one another: what is before an end has that end, or an earlier one.
func TestPeriodsMeet(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := rapid.SampledFrom([]Period{Daily, Weekly, Monthly}).Draw(t, "period")
		at := time.UnixMilli(rapid.Int64Range(0, 4e12).Draw(t, "ms"))
		end := p.After(at)
		if !end.After(at) || end.Sub(at) > 31*24*time.Hour || !p.After(end.Add(-1)).Equal(end) || p.After(at).After(p.After(end)) {
			t.Fatalf("%s after %s: %s", p, at, end)
		}
	})
}
