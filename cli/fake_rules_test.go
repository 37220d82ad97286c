package cli

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/smi"
)

// fakeRules are those of a service whose component db has none.
type fakeRules struct {
	mu     sync.Mutex
	paused bool
}

func (r *fakeRules) Rules(_ context.Context, _, name string) (smi.Rules, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	load, at := 25.0, time.Now()
	return smi.Rules{Service: name, Customer: "acme",
		KPIs: []smi.KPI{{Name: "load", Query: "sum(load)", Value: &load, At: at}, {Name: "queue", Query: "queue", At: at, Problem: "its query gives 3 series"}},
		Components: []smi.ElasticComponent{{Name: "web", Desired: 2, Ready: 1, Min: 1, Max: 6, By: "the manifest", Paused: r.paused,
			Rules: []smi.ElasticRule{{Name: "load over 1m", Kind: "array", EveryMS: 10_000, Text: "keep load per replica, averaged over 1m0s, near 10 ± 10%"},
				{Name: "office", Kind: "schedule", Text: "Mon 09:00 to 17:00 (UTC): 2 to 6 replicas"}},
			Last: &smi.ElasticDecision{At: at.Add(-20 * time.Second), Component: "web", Kind: "scaleUp", Rule: "load over 1m", Replicas: 2, Why: "from 1 to 2: load is 25 per replica"},
			Now:  "stays at 2: a change is in flight for 20s (1 of 2 ready)", Looked: at}}}, nil
}

func (r *fakeRules) SetRules(ctx context.Context, customer, name, component string, on bool) (smi.Rules, error) {
	if component != "web" {
		return smi.Rules{}, fault.New(fault.NotFound, "component %s of service %s has no rules that change its size", component, name)
	}
	r.mu.Lock()
	r.paused = !on
	r.mu.Unlock()
	return r.Rules(ctx, customer, name)
}

func (r *fakeRules) Replay(_ context.Context, _, name string, p smi.Replay) (smi.Replayed, error) {
	if len(p.Samples) == 0 && p.From.IsZero() {
		return smi.Replayed{}, fault.New(fault.Malformed, "no time").Try("reservoir service rules replay %s --from 1h", name)
	}
	at := time.Date(2030, 5, 6, 7, 0, 0, 0, time.UTC)
	return smi.Replayed{From: at, To: at.Add(time.Hour), Samples: max(1, len(p.Samples)), Decisions: []smi.ElasticDecision{
		{At: at, Component: "web", Kind: "hold", Replicas: 1, Ready: 1, Why: "stays at 1: there is no measurement of load yet"},
		{At: at.Add(time.Minute), Component: "web", Kind: "scaleUp", Rule: "load over 1m", Replicas: 2, Ready: 1, Why: "from 1 to 2: load is 25 per replica"},
	}}, nil
}

func TestParseSamples(t *testing.T) {
	list, ignored, err := parseSamples([]byte("time, kpi, value\n# a remark\n2026-01-31T10:00:00Z,load,12.5\n\n1769853600.25, load , 1e3\n1769853600,load,NaN\n1769853600,load,+Inf\n"))
	if want := "[{load 1769853600000 12.5} {load 1769853600250 1000}]"; err != nil || ignored != 2 || fmt.Sprint(list) != want {
		t.Errorf("%v, %d, %v, want %s", list, ignored, err, want)
	}
	for text, want := range map[string]string{
		"":                     "no measurement",
		"1,2":                  "line 1: \"1,2\": want TIME,KPI,VALUE",
		"1769853600,load,many": "line 1: value \"many\"",
		"yesterday,load,1":     "line 1: time \"yesterday\"",
		"1769853600,,1":        "line 1: want the name",
		"1769853600,load,NaN":  "no measurement",
	} {
		if _, _, err := parseSamples([]byte(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %s", text, err, want)
		}
	}
}

// FuzzParseSamples: whatever the file holds, what is read of it are numbers of named KPIs.
func FuzzParseSamples(f *testing.F) {
	f.Add([]byte("time,kpi,value\n2026-01-31T10:00:00Z,load,12.5\n"))
	f.Add([]byte("1769853600.25,load,-1e308\n1e12,a,1"))
	f.Fuzz(func(t *testing.T, text []byte) {
		list, _, err := parseSamples(text)
		for _, s := range list {
			if s.KPI == "" || s.Value != s.Value {
				t.Errorf("read %+v", s)
			}
		}
		if err == nil && len(list) == 0 {
			t.Error("nothing read, and no error")
		}
	})
}
