package trade

import (
	"context"
	"math"
	"strings"
	"sync"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/smi"
)

// service as its manager shows it: so many replicas of web are ready.
func (m *market) now(ready int) smi.Service {
	s := m.services["acme/shop"]
	c := s.Components[0]
	c.Ready, c.Replicas = ready, append([]smi.Replica{}, c.Replicas...)
	for i := range c.Replicas {
		c.Replicas[i].Ready = i < ready
	}
	s.Components = []smi.Component{c}
	if s.Phase = smi.Ready; ready < c.Desired {
		s.Phase = smi.Degraded
	}
	return s
}

// pass time, while the service is seen every five seconds.
func (m *market) pass(d time.Duration, ready int) {
	for end := m.at.Add(d); m.at.Before(end); {
		m.at = m.at.Add(min(5*time.Second, end.Sub(m.at)))
		m.desk.observe(operator, m.now(ready))
		m.desk.helping.Wait()
	}
}

func (m *market) sla(t reporter) smi.SLA {
	t.Helper()
	list, err := m.desk.SLA(acme, "", "shop")
	if err != nil || len(list) != 1 {
		t.Fatalf("%d scores, %v", len(list), err)
	}
	return list[0]
}

// contracted deploys the manifest under a contract.
func (m *market) contracted(t reporter, more string) {
	t.Helper()
	m.price(t, prices)
	o, err := m.desk.Offer(acme, web(more))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := m.desk.Accept(acme, o.ID); err != nil {
		t.Fatal(err)
	}
}

func TestLostAvailabilityIsCredited(t *testing.T) {
	m := open(t, nil)
	_, err := m.desk.SLA(acme, "", "shop")
	wants(t, "of no service", err, fault.NotFound, "has promised nothing")
	m.contracted(t, "availability: {window: 10m, percentile: 90, penalty: 0.5 * price + 0.1 EUR * minutes}\nrestartTime: {within: 1m, penalty: 2 EUR}\n")
	m.pass(30*time.Second, 0) // before it is ready for the first time nothing is promised
	m.desk.observe(operator, m.now(1))
	start := m.at
	m.pass(time.Minute, 1)
	m.pass(3*time.Minute, 0)
	s := m.sla(t)
	o := s.Objectives[0]
	// What was seen last holds until it is seen otherwise: the 5 s before the first look.
	if o.Now != "broken" || o.Window.BrokenMS != 175_000 || o.Window.BudgetMS != 60_000 || !o.Window.Violated || o.Window.KeptMS != 65_000 || s.Contract == "" || !s.Since.Equal(start) {
		t.Errorf("%+v of %+v", o.Window, s)
	}
	if r := s.Objectives[1]; len(r.Late) != 1 || r.Late[0].Replica != "web-1" || r.Now != "broken" {
		t.Errorf("restart time: %+v", r)
	}
	m.pass(10*time.Minute, 1)
	s = m.sla(t)
	if o = s.Objectives[0]; len(o.Past) != 1 || !o.Past[0].Violated || o.Past[0].BrokenMS != 180_000 || o.Window.BrokenMS != 0 || s.Objectives[1].Now != "kept" {
		t.Errorf("%+v", o)
	}
	v, err := m.desk.Draft(acme, "", time.Time{})
	if err != nil || len(v.Credits) != 0 {
		t.Errorf("before the window's usage is known: %s, %v", v, err)
	}
	m.use(t, "alpha.s-1", "alpha.web1", begin, m.at, false)
	// 66 EUR an hour: 11 in the window, 5.5 + 0.1 * 2 minutes beyond its budget.
	v, err = m.desk.Issue(operator, "acme", time.Time{})
	if err != nil || len(v.Credits) != 2 || v.Credits[0].Amount.String() != "2" && v.Credits[0].Amount.String() != "5.7" || v.Credited.String() != "7.7" {
		t.Errorf("%s, %v", v, err)
	}
	if s = m.sla(t); s.Objectives[0].Past[0].Invoice != v.Number || s.Objectives[0].Past[0].Due.String() != "5.7" || s.Due.String() != "7.7" || s.Objectives[1].Late[0].Invoice != v.Number {
		t.Errorf("%+v", s)
	}
	m.use(t, "alpha.s-1", "alpha.web1", begin, m.at.Add(time.Minute), false)
	m.at = m.at.Add(time.Minute)
	if v, err = m.desk.Issue(operator, "acme", time.Time{}); err != nil || len(v.Credits) != 0 {
		t.Errorf("credited again: %s, %v", v, err)
	}
	list, err := m.desk.SLA(rival, "", "")
	if err != nil || len(list) != 0 {
		t.Errorf("a rival's: %+v, %v", list, err)
	}
	_, err = m.desk.SLA(rival, "acme", "")
	wants(t, "another's", err, fault.Denied, "may not see")
}

// What its provider has put to sleep is not missed: nothing of it is owed.
func TestSleepBreaksNoPromise(t *testing.T) {
	m := open(t, nil)
	m.contracted(t, "availability: {window: 10m, percentile: 90, penalty: 0.5 * price}\n")
	m.pass(3*time.Minute, 1)
	asleep := m.now(0)
	asleep.Asleep, asleep.Phase = true, smi.Sleeping
	for range 36 {
		m.at = m.at.Add(5 * time.Second)
		m.desk.observe(operator, asleep)
		m.desk.helping.Wait()
	}
	m.pass(time.Minute, 1)
	if o := m.sla(t).Objectives[0]; o.Window.BrokenMS != 0 || o.Window.Violated || o.Now != "kept" {
		t.Errorf("%+v", o)
	}
}

func TestPromisesWithoutAContract(t *testing.T) {
	m := open(t, nil)
	if _, err := m.Deploy(acme, web(promise+"performance: [{kpi: load, window: 1h, range: {max: 2}, percentage: 50}]\nkpis: [{name: load}]\n")); err != nil {
		t.Fatal(err)
	}
	m.kpi = 1
	m.pass(time.Minute, 1)
	m.kpi = 3
	m.pass(time.Minute, 1)
	m.kpi = math.NaN()
	m.pass(40*time.Minute, 0)
	s := m.sla(t)
	if a, k := s.Objectives[0], s.Objectives[1]; !a.Window.Violated || k.Window.KeptMS != 60_000 || k.Window.BrokenMS != 60_000 || k.Now != "unknown" || s.Contract != "" || s.Due.Sign() != 0 {
		t.Errorf("%+v, %+v", a.Window, k.Window)
	}
	// A site that was away knows nothing of that time.
	m.restart()
	m.at = m.at.Add(10 * time.Minute)
	m.pass(time.Second, 1)
	if a := m.sla(t).Objectives[0].Window; a.UnknownMS < 9*60_000 || a.BrokenMS > 41*60_000 {
		t.Errorf("%+v", a)
	}
	// Another manifest: the first promise stays, the other ends.
	d := web(promise)
	d.Replace = true
	if _, err := m.Deploy(acme, d); err != nil {
		t.Fatal(err)
	}
	m.pass(time.Second, 1)
	if s = m.sla(t); len(s.Objectives) != 2 || !s.Objectives[0].Window.Violated || s.Objectives[1].Window != nil || len(s.Objectives[1].Past) != 1 {
		t.Errorf("%+v", s)
	}
	m.desk.ended(operator, m.now(0))
	if s = m.sla(t); !s.Ended || len(s.Objectives[0].Past) != 1 {
		t.Errorf("%+v", s)
	}
}

func TestProtection(t *testing.T) {
	m := open(t, nil)
	m.contracted(t, "availability: {window: 10m, percentile: 80, protection: restart}\nrestartTime: {within: 1m, protection: migrate}\nperformance: [{kpi: load, window: 10m, range: {max: 2}, percentage: 80, protection: scaleUp}]\nkpis: [{name: load}]\n")
	m.kpi = 1
	m.pass(10*time.Second, 1)
	m.pass(25*time.Second, 0)
	if len(m.did) != 0 {
		t.Errorf("too soon: %v", m.did)
	}
	m.pass(50*time.Second, 0)
	m.kpi = 3
	m.pass(70*time.Second, 1)
	if got := strings.Join(m.did, ", "); got != "move alpha.web1, restart alpha.web1, scale web to 2" {
		t.Errorf("done: %s", got)
	}
	var said []string
	for _, e := range m.events {
		if strings.HasSuffix(e.Reason, "rotected") {
			said = append(said, e.Reason+": "+e.Message)
		}
	}
	want := "Unprotected: restart time is in danger, and migrate did not help: no other host\n" +
		"Protected: availability is in danger: restart of web alpha.web1\n" +
		"Protected: load is in danger: one more web"
	if got := strings.Join(said, "\n"); got != want {
		t.Errorf("said\n%s\nwant\n%s", got, want)
	}
}

// TestScoresSurviveCrashes: whatever writes fail and however often the process starts anew,
// the score never has more broken time than there was, no time twice, and loses none but what
// went by unseen: kept, broken and unknown sum up to all the time since the first look.
func TestScoresSurviveCrashes(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		deadly := false
		m := open(t, func(bool) error {
			if deadly && rapid.IntRange(0, 4).Draw(t, "dies") == 0 {
				return errCrash
			}
			return nil
		})
		m.contracted(t, "availability: {window: 2m, percentile: 50, penalty: 1 EUR}\n")
		m.desk.observe(operator, m.now(1))
		start, broken, ready := m.at, time.Duration(0), 1
		for range rapid.IntRange(1, 60).Draw(t, "looks") {
			deadly = rapid.Bool().Draw(t, "deadly")
			step := time.Duration(rapid.IntRange(1, 20).Draw(t, "seconds")) * time.Second
			if ready == 0 {
				broken += step
			}
			m.at = m.at.Add(step)
			ready = rapid.IntRange(0, 1).Draw(t, "ready")
			if rapid.IntRange(0, 4).Draw(t, "dead") == 0 {
				m.restart()
			}
			if rapid.IntRange(0, 9).Draw(t, "clock") == 0 { // a step back that is mended at once
				m.at = m.at.Add(-time.Hour)
				m.desk.observe(operator, m.now(ready))
				m.at = m.at.Add(time.Hour)
			}
			m.desk.observe(operator, m.now(ready))
		}
		deadly = false
		m.at = m.at.Add(time.Second)
		if ready == 0 {
			broken += time.Second
		}
		m.desk.observe(operator, m.now(ready))
		m.desk.observe(operator, m.now(ready)) // a failed write is read anew
		s := m.sla(t)
		var kept, lost, unknown int64
		end := start
		for _, w := range append(s.Objectives[0].Past, *s.Objectives[0].Window) {
			if w.Start.Before(end) {
				t.Fatalf("a window begins at %s, before %s: %+v", w.Start, end, s.Objectives[0])
			}
			unknown += w.Start.Sub(end).Milliseconds() // windows of which nothing is known are left out
			kept, lost, unknown, end = kept+w.KeptMS, lost+w.BrokenMS, unknown+w.UnknownMS, w.End
		}
		if all := m.at.Sub(start).Milliseconds(); kept+lost+unknown != all || !end.Equal(m.at) {
			t.Fatalf("%d ms kept, %d broken, %d unknown of %d", kept, lost, unknown, all)
		}
		if lost > broken.Milliseconds() {
			t.Fatalf("%d ms broken, it was %s", lost, broken)
		}
	})
}

// Run watches what its services show, and ends the score of one that goes.
func TestRun(t *testing.T) {
	m := open(t, nil)
	m.desk.cfg.Every = time.Hour
	m.contracted(t, promise)
	ctx, stop := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() { _ = m.desk.Run(ctx) })
	m.watcher <- m.now(1)
	gone := m.now(1)
	gone.Phase, gone.Components = smi.Deleting, nil
	m.watcher <- gone
	m.watcher <- m.now(1) // the one before is done when this is taken
	stop()
	running.Wait()
	if s := m.sla(t); !s.Ended {
		t.Errorf("%+v", s)
	}
}
