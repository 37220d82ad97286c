package rules

import (
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/reservoir-cloud/reservoir/elastic"
	"github.com/reservoir-cloud/reservoir/manifest"
)

// service with rules, in YAML.
func service(t *testing.T, extra string) *manifest.Service {
	t.Helper()
	m, err := manifest.Parse("test.yaml", []byte(`service: grid
components:
  - {name: master, image: debian, memory: 256MiB}
  - name: batch-executor
    image: debian
    memory: 256MiB
    replicas: {initial: 1, min: 1, max: 16}
`+extra))
	if err != nil {
		t.Fatal(err)
	}
	return m
}

const kpis = `kpis:
  - {name: queueSize, component: master}
  - {name: queue-age, query: max(age_seconds)}
  - {name: com.sap.sessions}
  - {name: cpu_seconds_total, type: VEEHW, component: batch-executor}
`

func TestConditions(t *testing.T) {
	values := func(queue float64, size int) elastic.Values {
		return elastic.Values{KPIs: map[string]float64{"queueSize": queue, "queue-age": 60, "com.sap.sessions": 7}, Sizes: map[string]int{"batch-executor": size, "master": 1}}
	}
	for _, c := range []struct {
		condition   string
		queue, size float64
		want        bool
		wrong       string // the error of the evaluation has it
	}{
		// The published one (Chapman et al., section 6).
		{"queueSize / (batch-executor.instances.size + 1) > 4 && batch-executor.instances.size < 16", 20, 3, true, ""},
		{"queueSize / (batch-executor.instances.size + 1) > 4 && batch-executor.instances.size < 16", 20, 4, false, ""},
		{"queueSize / (batch-executor.instances.size + 1) > 4 && batch-executor.instances.size < 16", 2000, 16, false, ""},
		{"queueSize > 4.0 || queue-age >= 60", 0, 1, true, ""},
		{"com.sap.sessions - 7 == 0", 0, 1, true, ""},
		{"batch-executor.instances.size - 1 < master.instances.size", 0, 2, false, ""},
		{"10 / queueSize > 1", 0, 1, false, "division by zero"},
		{"queueSize / 0 > 1", 5, 1, false, "division by zero"},
		{"0 / queueSize > 1 || true", 0, 1, true, ""}, // as CEL has it: what is true whatever else is
		{"[1,2,3,4,5,6,7,8].all(a, [1,2,3,4,5,6,7,8].all(b, [1,2,3,4,5,6,7,8].all(c, [1,2,3,4,5,6,7,8].all(d, [1,2,3,4,5,6,7,8].all(e, a+b+c+d+e > queueSize)))))", 0, 1, false, "cost limit"},
		{"queueSize * 1.7e308 > 1 && queueSize - queueSize == 0", 1e308, 1, true, ""},
	} {
		m := service(t, kpis+fmt.Sprintf("rules:\n  - {name: r, every: 30s, condition: %q, do: {action: scaleUp, component: batch-executor}}\n", c.condition))
		set, err := Compile(m)
		if err != nil {
			t.Errorf("%s: %v", c.condition, err)
			continue
		}
		p, _ := set.Policy("batch-executor")
		is, err := p.Rules[0].Holds(values(c.queue, int(c.size)))
		if is != c.want || (err != nil) != (c.wrong != "") || err != nil && !strings.Contains(err.Error(), c.wrong) {
			t.Errorf("%s with %g and %g: %t, %v", c.condition, c.queue, c.size, is, err)
		}
	}
}

// What is not a number never holds, whatever it is compared with.
func TestNotANumber(t *testing.T) {
	set, err := Compile(service(t, kpis+"rules:\n  - {name: r, every: 30s, condition: queueSize > 4, do: {action: scaleUp, component: batch-executor}}\n"))
	if err != nil {
		t.Fatal(err)
	}
	p, _ := set.Policy("batch-executor")
	if is, err := p.Rules[0].Holds(elastic.Values{KPIs: map[string]float64{"queueSize": math.NaN()}}); is || err != nil {
		t.Errorf("%t, %v", is, err)
	}
}

// TestRefused: what makes no sense is told when it is compiled, with the rule and the place.
func TestRefused(t *testing.T) {
	rule := func(condition string) string {
		return fmt.Sprintf("rules:\n  - {name: grow, every: 30s, condition: %q, do: {action: scaleUp, component: batch-executor}}\n", condition)
	}
	for extra, want := range map[string]string{
		kpis + rule("queue > 4"):                                      "rule grow: condition \"queue > 4\": column 1: undeclared reference to 'queue'; there are batch-executor.instances.size, com.sap.sessions, cpu_seconds_total, master.instances.size, queue-age, queueSize",
		kpis + rule("queueSize >"):                                    "rule grow: condition \"queueSize >\": column 12: Syntax error",
		kpis + rule("queueSize + 1"):                                  "it is a double: want a comparison",
		kpis + rule("other.instances.size > 1"):                       "undeclared reference to 'other'",
		kpis + rule(strings.Repeat("(", 100)+"queueSize>1"):           "recursion",
		kpis + rule("queueSize > \"many\""):                           "no matching overload",
		"kpis:\n  - {name: a-b}\n  - {name: a_b}\n" + rule("a_b > 1"): "a-b and a_b cannot be told apart",
		"    schedules:\n      - {name: day, from: 09:00, to: 17:00, timezone: Mars/Olympus, min: 1, max: 2}\n": "there is no time zone \"Mars/Olympus\"",
	} {
		if _, err := Compile(service(t, extra)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s:\n%v\nwant %s", extra, err, want)
		}
	}
}

func TestPolicies(t *testing.T) {
	set, err := Compile(service(t, `    elastic:
      - {kpi: queueSize, window: 10m, frequency: 30s, quota: 4, tolerance: 10}
      - {kpi: memory_used_bytes, window: 5m, frequency: 1m, quota: 1e9, type: VEEHW}
      - {kpi: cpu_seconds_total, window: 5m, frequency: 1m, quota: 0.75, type: VEEHW}
    schedules:
      - {name: office, days: [mon, fri], from: 09:00, to: 17:00, timezone: Europe/Rome, min: 2, max: 8}
`+kpis+`rules:
  - name: fatter
    every: 1m
    condition: |
      queue-age >
        600
    do: {action: resize, component: master, cpu: 2, memory: 1GiB}
`))
	if err != nil {
		t.Fatal(err)
	}
	var text strings.Builder
	for _, p := range set.Policies {
		fmt.Fprintf(&text, "%s %d..%d up %s down %s\n", p.Component, p.Min, p.Max, p.Up, p.Down)
		for _, a := range p.Arrays {
			fmt.Fprintf(&text, "  %s every %s quota %g ± %g%%\n", a, a.Every, a.Quota, a.Tolerance)
		}
		for _, r := range p.Rules {
			fmt.Fprintf(&text, "  %s: %s (%v): %s %d %s\n", r.Name, r.Condition, r.KPIs, r.Do.Kind, r.Do.VCPUs, r.Do.Memory)
		}
		for _, s := range p.Schedules {
			fmt.Fprintf(&text, "  %s %v %s to %s in %s: %d..%d\n", s.Name, s.Days, s.From, s.To, s.Location, s.Min, s.Max)
		}
	}
	for _, k := range set.KPIs {
		fmt.Fprintf(&text, "%s = %s\n", k.Name, k.Query)
	}
	const want = `master 1..1 up 1m0s down 5m0s
  fatter: queue-age > 600 ([queue-age]): resize 2 1GiB
batch-executor 1..16 up 1m0s down 5m0s
  queueSize over 10m every 30s quota 4 ± 10%
  batch-executor memory_used_bytes over 5m every 1m0s quota 1e+09 ± 0%
  cpu_seconds_total over 5m every 1m0s quota 0.75 ± 0%
  office [Monday Friday] 9h0m0s to 17h0m0s in Europe/Rome: 2..8
queueSize = sum(last_over_time(queueSize{component="master"}[150s]))
queue-age = max(age_seconds)
cpu_seconds_total = sum(rate(vee_cpu_seconds_total{component="batch-executor"}[150s]))
batch-executor memory_used_bytes = sum(last_over_time(vee_memory_used_bytes{component="batch-executor"}[150s]))
`
	if text.String() != want {
		t.Errorf("%s\nwant\n%s", text.String(), want)
	}
}

// FuzzCondition: no text that a manifest may carry brings the compiler or the evaluation down.
func FuzzCondition(f *testing.F) {
	for _, s := range []string{"queueSize > 4", "a.instances.size", "[1].map(x, x/0)[0] > 1", "{'a': queueSize}.a > 1", "'x'.matches('(a+)+$')", "queueSize--1>0"} {
		f.Add(s)
	}
	c := compiler{m: &manifest.Service{KPIs: []manifest.KPI{{Name: "queueSize"}, {Name: "queue-age"}}, Components: []manifest.Component{{Name: "a"}}}}
	if err := c.declare(); err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, text string) {
		holds, kpis, err := c.condition(text)
		if err != nil {
			return
		}
		if !slices.IsSorted(kpis) {
			t.Errorf("KPIs %q", kpis)
		}
		holds(elastic.Values{KPIs: map[string]float64{"queueSize": 1}})
	})
}

// TestExamples: what the repository shows as rules are rules.
func TestExamples(t *testing.T) {
	files, err := filepath.Glob("../../examples/*/*.yaml")
	more, err2 := filepath.Glob("../../manifest/testdata/valid/*")
	if err != nil || err2 != nil || len(files) < 2 || len(more) < 2 {
		t.Fatal(files, more, err, err2)
	}
	for _, file := range append(files, more...) {
		if filepath.Base(file) == "agreement.yaml" {
			continue // between sites, beside the manifest of what it is for
		}
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		m, err := manifest.Parse(filepath.Base(file), text)
		if err != nil {
			t.Errorf("%s: %v", file, err)
			continue
		}
		set, err := Compile(m)
		if err != nil {
			t.Errorf("%s: %v", file, err)
		} else if strings.Contains(file, "elastic-web") && (len(set.Policies) != 1 || len(set.KPIs) != 2) {
			t.Errorf("%s: %+v", file, set)
		}
	}
}
