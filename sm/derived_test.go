package sm

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"testing"
	"time"

	"github.com/reservoir-cloud/reservoir/manifest"
	"github.com/reservoir-cloud/reservoir/monitor"
)

// answers are what queries come to; "fail" fails.
type answers map[string][]float64

func (a answers) Querier(s monitor.Scope) monitor.Querier {
	if s.Customer != "acme" || s.Service != "shop" {
		panic(fmt.Sprintf("asked within %+v", s))
	}
	return a
}

func (a answers) Query(_ context.Context, expr string, at time.Time) (list []monitor.Series, err error) {
	if expr == "fail" {
		return nil, errors.New("it does not parse")
	}
	for _, v := range a[expr] {
		list = append(list, monitor.Series{Points: []monitor.Point{{At: at, Value: v}}})
	}
	return list, nil
}

func (answers) QueryRange(context.Context, string, time.Time, time.Time, time.Duration) ([]monitor.Series, error) {
	return nil, nil
}

type kept struct{ ms []monitor.Measurement }

func (k *kept) Append(_ context.Context, ms []monitor.Measurement) (monitor.Receipt, error) {
	k.ms = append(k.ms, ms...)
	return monitor.Receipt{}, nil
}

// A KPI that is a query is recorded as a measurement of its service where it is one number.
func TestDerivedKPIs(t *testing.T) {
	k := &kept{}
	m := &Manager{cfg: Config{Site: "alpha", Sink: k, Log: slog.New(slog.DiscardHandler),
		Monitor: answers{"avg(load)": {0.5}, "load": {1, 2}, "0/0": {math.NaN()}}}}
	d := &design{manifest: &manifest.Service{KPIs: []manifest.KPI{
		{Name: "queue"}, {Name: "mean-load", Query: "avg(load)"}, {Name: "many", Query: "load"}, {Name: "none", Query: "absent"},
		{Name: "nan", Query: "0/0"}, {Name: "broken", Query: "fail"},
	}}}
	now := time.Unix(1000, 0)
	m.deriveOf(t.Context(), record{ID: "alpha.s-1", Customer: "acme", Name: "shop"}, d, now)
	if len(k.ms) != 1 || len(k.ms[0].Values) != 1 {
		t.Fatalf("recorded %+v", k.ms)
	}
	x := k.ms[0]
	if x.Kind != monitor.DerivedKind || !x.At.Equal(now) || x.Subject.FQN() != "alpha.customers.acme.services.shop" || x.Subject.VEE != "" ||
		x.Values[0] != (monitor.Value{Field: "kpi_mean_load", Value: 0.5}) || !monitor.ValidField(x.Kind, x.Values[0].Field) {
		t.Errorf("recorded %+v", x)
	}
	if monitor.ValidField(monitor.KPIKind, "kpi_mean_load") {
		t.Error("a guest may tell a KPI that is derived")
	}
}
