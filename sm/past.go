package sm

import (
	"context"
	"fmt"
	"time"

	"github.com/reservoir-cloud/reservoir/elastic"
)

// past is what was measured of the KPIs that the rules of a component average, before this
// process looked for the first time: a restart costs no window. What was measured before the
// service was as it is now is not asked for: since when it is, the record says.
func (s *scaler) past(ctx context.Context, rec record, p elastic.Policy, now time.Time) (samples []elastic.Sample, err error) {
	if s.m.cfg.Monitor == nil {
		return nil, nil
	}
	querier := s.m.cfg.Monitor.Querier(scopeNow(rec))
	for _, k := range p.Past() {
		from := now.Add(-k.Back)
		if rec.Changed.After(from) {
			from = rec.Changed
		}
		if !from.Before(now) {
			continue
		}
		within, cancel := context.WithTimeout(ctx, queryPatience)
		series, err := querier.QueryRange(within, s.design.elastic.Query(k.KPI), from, now, k.Step)
		cancel()
		if err != nil {
			return nil, fmt.Errorf("what KPI %s was in the last %s: %w", k.KPI, k.Back, err)
		}
		points, err := only(series)
		if err != nil {
			continue // nor can the rules decide by it now: measure says so
		}
		for _, x := range points {
			samples = append(samples, elastic.Sample{KPI: k.KPI, At: x.At, Value: x.Value})
		}
	}
	return samples, nil
}
