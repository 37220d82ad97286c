package elastic

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/reservoir-cloud/reservoir/vee"
)

var update = flag.Bool("update", false, "rewrite the transcripts in testdata")

var epoch = time.Date(2026, 1, 5, 8, 0, 0, 0, time.UTC) // a Monday

// conditions that scripts name. The first is the published one of the Condor service
// (Chapman et al., section 6: queue size per executor above 4, and fewer than 16); the
// second is its other half, which takes the executors away.
var conditions = map[string]Rule{
	"grow": {Condition: "queueSize / (executor.instances.size + 1) > 4.0 && executor.instances.size < 16", KPIs: []string{"queueSize"},
		Do: Action{Kind: ScaleUp}, Holds: func(v Values) (bool, error) {
			n := v.Sizes["executor"]
			return v.KPIs["queueSize"]/float64(n+1) > 4 && n < 16, nil
		}},
	"shrink": {Condition: "queueSize / (executor.instances.size + 1) < 1.0", KPIs: []string{"queueSize"},
		Do: Action{Kind: ScaleDown}, Holds: func(v Values) (bool, error) {
			return v.KPIs["queueSize"]/float64(v.Sizes["executor"]+1) < 1, nil
		}},
	"fatter": {Condition: "memoryUse > 0.9", KPIs: []string{"memoryUse"},
		Do: Action{Kind: Resize, Memory: 2 * vee.GiB, VCPUs: 2}, Holds: func(v Values) (bool, error) { return v.KPIs["memoryUse"] > 0.9, nil }},
	"broken": {Condition: "10 / queueSize > 1", KPIs: []string{"queueSize"},
		Do: Action{Kind: ScaleUp}, Holds: func(Values) (bool, error) { return false, errors.New("division by zero") }},
}

// numbers and times: steps whose reasons differ in these alone are told once.
var numbers = regexp.MustCompile(`[0-9][0-9.hms]*`)

// replica of the bench, ready from booted on; one that leaves is there until it has gone.
type replica struct {
	name   string
	booted time.Time
	gone   time.Time
}

// leaving takes this long.
const leaving = time.Minute

// bench is a site in which replicas boot in a given time, and in which the script says what
// is measured.
type bench struct {
	t      *testing.T
	out    bytes.Buffer
	policy Policy
	state  State
	now    time.Time
	wanted Size
	there  []replica
	boot   time.Duration
	made   int
	last   string
	queue  []Sample
}

func (b *bench) printf(format string, args ...any) { fmt.Fprintf(&b.out, format+"\n", args...) }

func (b *bench) span(s string) time.Duration {
	d, err := time.ParseDuration(s)
	if err != nil {
		b.t.Fatal(err)
	}
	return d
}

func (b *bench) number(s string) float64 {
	f, err := strconv.ParseFloat(s, 64)
	if err != nil {
		b.t.Fatal(err)
	}
	return f
}

// options "key=value" of a line.
func (b *bench) options(list []string) func(string) string {
	m := map[string]string{}
	for _, o := range list {
		key, value, _ := strings.Cut(o, "=")
		m[key] = value
	}
	return func(key string) string { return m[key] }
}

// step once and do what is decided.
func (b *bench) step() {
	b.there = slices.DeleteFunc(b.there, func(r replica) bool { return !r.gone.IsZero() && !r.gone.After(b.now) })
	o := Observation{Wanted: b.wanted, Samples: b.queue}
	stay := 0
	for _, r := range b.there {
		is := Replica{Ready: !r.booted.After(b.now), Leaving: !r.gone.IsZero()}
		if is.Ready {
			is.VCPUs, is.Memory = b.wanted.VCPUs, b.wanted.Memory
		}
		if o.Replicas = append(o.Replicas, is); !is.Leaving {
			stay++
		}
	}
	var d Decision
	b.state, d = Step(b.policy, b.state, o, b.now)
	b.queue, b.wanted = nil, d.Size
	for i := len(b.there) - 1; i >= 0 && stay > d.Size.Replicas; i-- {
		if b.there[i].gone.IsZero() {
			b.there[i].gone = b.now.Add(leaving)
			stay--
		}
	}
	for ; stay < d.Size.Replicas; stay++ {
		b.made++
		b.there = append(b.there, replica{name: fmt.Sprintf("%s-%d", b.policy.Component, b.made), booted: b.now.Add(b.boot)})
	}
	said := fmt.Sprintf("%s: %s", d.Kind, d.Why)
	if d.Ignored > 0 {
		said += fmt.Sprintf("; %d measurements ignored", d.Ignored)
	}
	if kind := numbers.ReplaceAllString(said, "N"); kind != b.last || d.Kind != Hold {
		b.printf("%6s %s", brief(b.now.Sub(epoch)), said)
		b.last = kind
	}
}

func (b *bench) run(line string) {
	f := strings.Fields(line)
	o := b.options(f[1:])
	switch f[0] {
	case "component": // NAME replicas=N min= max= up= down= boot= [patience=]
		b.policy.Component = f[1]
		b.policy.Min, b.policy.Max = int(b.number(o("min"))), int(b.number(o("max")))
		b.policy.Up, b.policy.Down, b.boot = b.span(o("up")), b.span(o("down")), b.span(o("boot"))
		if o("patience") != "" {
			b.policy.Patience = b.span(o("patience"))
		}
		b.wanted.Replicas = int(b.number(o("replicas")))
		for range b.wanted.Replicas {
			b.made++
			b.there = append(b.there, replica{name: fmt.Sprintf("%s-%d", f[1], b.made)})
		}
	case "size": // vcpus= memory=
		m, err := vee.ParseBytes(o("memory"))
		if err != nil {
			b.t.Fatal(err)
		}
		b.wanted.VCPUs, b.wanted.Memory = int(b.number(o("vcpus"))), m
	case "array": // KPI window= every= quota= tolerance=
		b.policy.Arrays = append(b.policy.Arrays, Array{KPI: f[1], Window: b.span(o("window")), Every: b.span(o("every")),
			Quota: b.number(o("quota")), Tolerance: b.number(o("tolerance"))})
	case "rule": // CONDITION every=
		r := conditions[f[1]]
		r.Name, r.Every = f[1], b.span(o("every"))
		if by := o("by"); by != "" {
			r.Do.By = int(b.number(by))
		}
		b.policy.Rules = append(b.policy.Rules, r)
	case "schedule": // NAME from= to= min= max=, on weekdays
		b.policy.Schedules = append(b.policy.Schedules, Schedule{Name: f[1], From: b.span(o("from")), To: b.span(o("to")),
			Days: []time.Weekday{1, 2, 3, 4, 5}, Min: int(b.number(o("min"))), Max: int(b.number(o("max")))})
	case "lose": // a replica, which boots again
		for i := range b.there {
			if b.there[i].name == f[1] {
				b.there[i].booted = b.now.Add(b.boot)
			}
		}
	case "clock": // set back or forth
		b.now = b.now.Add(b.span(f[1]))
		for i := range b.there {
			b.there[i].booted = b.there[i].booted.Add(b.span(f[1]))
		}
	case "measure": // KPI VALUE AGO
		b.queue = append(b.queue, Sample{f[1], b.now.Add(-b.span(f[3])), b.number(f[2])})
	case "step":
		b.step()
	case "run": // SPAN every=30s KPI=VALUE…
		if err := b.policy.Check(); err != nil {
			b.t.Fatal(err)
		}
		for end := b.now.Add(b.span(f[1])); b.now.Before(end); {
			b.now = b.now.Add(b.span(o("every")))
			for _, m := range f[3:] {
				kpi, value, _ := strings.Cut(m, "=")
				b.queue = append(b.queue, Sample{kpi, b.now, b.number(value)})
			}
			b.step()
		}
	default:
		b.t.Fatalf("unknown command %q", line)
	}
}

// TestScenarios replays the scripts in testdata: lines with "$ " are what happens, the
// lines below each are what is decided, when it differs from the step before.
func TestScenarios(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatal("no scenarios: ", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) {
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			b := &bench{t: t, now: epoch}
			for line := range strings.Lines(string(want)) {
				line = strings.TrimRight(line, "\n")
				switch command, isCommand := strings.CutPrefix(line, "$ "); {
				case isCommand:
					b.printf("%s", line)
					b.run(command)
				case strings.HasPrefix(line, "#") || line == "":
					b.printf("%s", line)
				}
			}
			if *update {
				if err := os.WriteFile(file, b.out.Bytes(), 0o644); err != nil {
					t.Fatal(err)
				}
			} else if !bytes.Equal(want, b.out.Bytes()) {
				t.Errorf("transcript differs (go test -update rewrites it); now:\n%s", b.out.String())
			}
		})
	}
}
