package sm

import (
	"math"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/monitor"
	"github.com/reservoir-cloud/reservoir/smi"
)

// TestElasticityConverges lets a site be stopped at any moment, its VEE Manager fail and lose
// answers, KPIs be wrong and people scale, redeploy and pause; and then lets all be well. The
// size is never out of its bounds, no rule decides within its cool-down, no replica is made
// twice, and in the end the service is as large as its load wants it, and ready.
func TestElasticityConverges(t *testing.T) {
	text := `    elastic:
      - {kpi: load, window: 20s, frequency: 5s, quota: 10, tolerance: 10}
    cooldown: {up: 30s, down: 1m}
kpis:
  - {name: load, query: load}
rules:
  - {name: fatter, every: 5s, condition: load > 35, do: {action: resize, component: web, memory: 256MiB}}
`
	rapid.Check(t, func(r *rapid.T) {
		s := newStage(t)
		s.vmi.rnd = rand.New(rand.NewPCG(rapid.Uint64().Draw(r, "seed"), 1))
		s.deploy(shop(text))
		s.kpi("load", 10)
		s.pass(30 * time.Second)
		for range rapid.IntRange(3, 25).Draw(r, "events") {
			switch rapid.SampledFrom([]string{"load", "load", "wrong", "error", "restart", "restart", "faults", "scale", "redeploy", "pause", "resume", "none"}).Draw(r, "event") {
			case "load":
				s.kpi("load", float64(rapid.IntRange(0, 60).Draw(r, "load")))
			case "wrong":
				s.kpi("load", rapid.SampledFrom([]float64{math.NaN(), math.Inf(1), math.Inf(-1)}).Draw(r, "value"))
			case "error":
				s.measured["load"] = func(time.Time) ([]monitor.Series, error) {
					return nil, fault.New(fault.Unavailable, "the proxy does not answer")
				}
			case "restart":
				s.restart()
			case "faults":
				s.vmi.faults = !s.vmi.faults
			case "scale":
				_, err := s.m.Scale(s.acme(), "", "shop", "web", rapid.IntRange(1, 4).Draw(r, "size"))
				s.excused(r, err)
			case "redeploy":
				image := rapid.SampledFrom([]string{"web:1", "web:2"}).Draw(r, "image")
				_, err := s.m.Deploy(s.acme(), smi.Deploy{Manifest: strings.Replace(shop(text), "web:1", image, 1), Replace: true})
				s.excused(r, err)
			case "pause", "resume":
				_, err := s.m.SetRules(s.acme(), "", "shop", "web", rapid.Bool().Draw(r, "on"))
				s.excused(r, err)
			}
			s.pass(time.Duration(rapid.IntRange(1, 60).Draw(r, "seconds")) * time.Second)
			if d, _ := s.size(); d < 1 || d > 4 {
				r.Fatalf("%d replicas are wanted", d)
			}
		}
		s.vmi.faults = false
		if _, err := s.m.SetRules(s.acme(), "", "shop", "web", true); err != nil {
			r.Fatal(err)
		}
		load := float64(rapid.SampledFrom([]int{3, 10, 20, 30, 100}).Draw(r, "load at last"))
		s.kpi("load", load)
		s.pass(30 * time.Minute)
		want := min(4, max(1, int(math.Round(load/10))))
		got, err := s.m.Get(s.acme(), "", "shop")
		if err != nil || got.Phase != smi.Ready || got.Components[0].Desired != want || got.Components[0].Ready != want || len(s.hardware()) != want {
			r.Fatalf("%+v, %v, want %d for a load of %g\n%s", got, err, want, load, strings.Join(s.said(""), "\n"))
		}
		s.vmi.with(func() {
			if len(s.vmi.broken) > 0 {
				r.Fatal(s.vmi.broken)
			}
		})
		s.checkCooldowns(r)
	})
}

// excused are errors of calls that may fail while the VEE Manager does.
func (s *stage) excused(r *rapid.T, err error) {
	if err != nil && !s.vmi.faults {
		r.Fatal(err)
	}
}

// checkCooldowns: by its rules the service has not changed sooner after a change than they let.
func (s *stage) checkCooldowns(r *rapid.T) {
	last := time.Time{}
	for _, e := range s.events.List(smi.EventFilter{Service: "shop"}) {
		wait := map[string]time.Duration{"ScaledUp": 30 * time.Second, "Resized": 30 * time.Second, "ScaledDown": time.Minute}[e.Reason]
		if wait > 0 && !last.IsZero() && e.At.Sub(last) < wait {
			r.Fatalf("%s %s after the last change\n%s", e.Reason, e.At.Sub(last), strings.Join(s.said(""), "\n"))
		}
		if wait > 0 || e.Reason == "Scaled" {
			last = e.At
		}
	}
}
