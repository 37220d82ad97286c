package sm

import (
	"context"
	"time"

	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/monitor"
)

// deriveEvery so often what KPIs that are queries come to is recorded.
const deriveEvery = 15 * time.Second

// DerivedField is what the record of a KPI that is a query is called: not as the KPI itself,
// which may be a measure that the query reads.
func DerivedField(kpi string) string { return "kpi_" + monitor.FieldOf(kpi) }

// derive records the KPIs of all services that are queries (derived KPIs: Clayman et al.), as
// measurements of the service, until ctx ends.
func (m *Manager) derive(ctx context.Context) {
	tick := time.NewTicker(deriveEvery)
	defer tick.Stop()
	designs := map[string]*design{} // by service
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		designs = m.deriveAll(ctx, designs)
	}
}

// deriveAll looks at each service once, and returns the designs that it read, for the next time.
func (m *Manager) deriveAll(ctx context.Context, known map[string]*design) map[string]*design {
	objects, err := m.records.List(ctx, "")
	if err != nil {
		m.cfg.Log.Warn("list services whose KPIs are queries", "error", err)
		return known
	}
	designs := make(map[string]*design, len(objects))
	for _, o := range objects {
		rec := o.Value
		if rec.Deleting || ctx.Err() != nil {
			continue
		}
		d := known[rec.ID]
		if d == nil || d.number != rec.Revision {
			if d, err = m.loadDesign(ctx, rec.ID, rec.Revision); err != nil {
				if !fault.Has(err, fault.NotFound) { // else it is deleted by now
					m.cfg.Log.Warn("read which KPIs are queries", "service", rec.Name, "error", err)
				}
				continue
			}
		}
		designs[rec.ID] = d
		m.deriveOf(ctx, rec, d, m.cfg.Now())
	}
	return designs
}

// deriveOf one service. A query that fails, or comes to nothing or to many, is no measurement.
func (m *Manager) deriveOf(ctx context.Context, rec record, d *design, now time.Time) {
	var values []monitor.Value
	for _, k := range d.manifest.KPIs {
		if k.Query == "" {
			continue
		}
		within, cancel := context.WithTimeout(ctx, queryPatience)
		series, err := m.cfg.Monitor.Querier(scopeNow(rec)).Query(within, k.Query, now)
		cancel()
		if err == nil && len(series) == 1 && len(series[0].Points) == 1 && finite(series[0].Points[0].Value) != nil {
			values = append(values, monitor.Value{Field: DerivedField(k.Name), Value: series[0].Points[0].Value})
		} else if err != nil {
			m.cfg.Log.Debug("a KPI that is a query", "service", rec.Name, "kpi", k.Name, "error", err)
		}
	}
	if len(values) == 0 {
		return
	}
	of := monitor.ServiceSubject(m.cfg.Site, rec.Customer, rec.Name)
	if _, err := m.cfg.Sink.Append(ctx, []monitor.Measurement{{Subject: of, Kind: monitor.DerivedKind, At: now, Values: values}}); err != nil {
		m.cfg.Log.Warn("record KPIs that are queries", "service", rec.Name, "error", err)
	}
}
