package veem

import (
	"fmt"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/reservoir-cloud/reservoir/vee"
	"github.com/reservoir-cloud/reservoir/vhi"
	"github.com/reservoir-cloud/reservoir/vmi"
)

var t0 = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

func aRecord(s, target vee.State) record {
	return record{VEE: vmi.VEE{ID: "alpha.aaaaaaaaaa", State: s, Target: target, Host: "h1", Epoch: vee.Epoch{Generation: 1, Term: 2}, Changed: t0},
		Seq: 5, Assigned: true, Holds: true}
}

func aReport(p vhi.Power, seq uint64) *vhi.Report {
	return &vhi.Report{Epoch: vee.Epoch{Generation: 1, Term: 2}, Seq: seq, Power: p}
}

func TestDecide(t *testing.T) {
	soon := t0.Add(time.Minute)
	waiting := aRecord(vee.Initial, vee.Defined)
	waiting.Host, waiting.Assigned = "", false
	reserved := aRecord(vee.Defined, vee.Defined)
	reserved.Assigned, reserved.ReservedUntil = false, &soon
	doomed := reserved
	doomed.Target = vee.Destroyed
	known := func(r *vhi.Report) view { return view{host: alive, known: true, report: r, settled: true} }
	answer := func(r *vhi.Report) view { return view{host: alive, known: true, report: r} }
	with := func(r *vhi.Report, phase vee.Phase, err string) *vhi.Report { r.Phase, r.Error = phase, err; return r }
	never := aRecord(vee.Active, vee.Active)
	never.Descriptor.Restart = vee.RestartNever
	unknown := func(r record) record { r.Phase = vee.PhaseUnknown; return r }
	newer := aReport(vhi.Running, 1)
	newer.Epoch.Term = 7
	foreign := aReport(vhi.Running, 1)
	foreign.Epoch.Generation = 2

	for name, c := range map[string]struct {
		r    record
		v    view
		now  time.Time
		want string // do, then what changed
	}{
		"waits for a place":           {r: waiting, want: "place"},
		"reservation holds":           {r: reserved, want: "nothing until 1m0s"},
		"reservation has expired":     {r: reserved, now: soon, want: "nothing; host , holds false"},
		"reserved, to be destroyed":   {r: doomed, want: "nothing; state DESTROYED, phase DONE, holds false"},
		"destroyed":                   {r: aRecord(vee.Destroyed, vee.Destroyed), want: "nothing until 1h0m0s"},
		"destroyed long ago":          {r: aRecord(vee.Destroyed, vee.Destroyed), now: t0.Add(time.Hour), want: "purge"},
		"host not heard yet":          {r: aRecord(vee.Defined, vee.Active), v: view{host: unheard}, want: "nothing"},
		"host lost":                   {r: aRecord(vee.Active, vee.Active), v: view{host: lost}, want: "nothing; phase UNKNOWN"},
		"host was not told":           {r: aRecord(vee.Defined, vee.Active), v: view{host: alive}, want: "assign"},
		"host knows an older one":     {r: aRecord(vee.Defined, vee.Active), v: known(aReport(vhi.Stopped, 4)), want: "assign"},
		"host knows a newer seq":      {r: aRecord(vee.Active, vee.Active), v: known(aReport(vhi.Running, 9)), want: "nothing; seq 10"},
		"host knows a newer term":     {r: aRecord(vee.Active, vee.Active), v: known(newer), want: "nothing; epoch 1.8.0, seq 6"},
		"host knows a newer log":      {r: aRecord(vee.Active, vee.Active), v: known(foreign), want: "nothing; error host h1 has obeyed epoch 2.2.0, newer than this site's generation 1"},
		"boots":                       {r: aRecord(vee.Defined, vee.Active), v: known(with(aReport(vhi.Running, 5), vee.PhaseBoot, "")), want: "nothing; state ACTIVE, phase BOOT, settled true"},
		"is stopped":                  {r: aRecord(vee.Active, vee.Defined), v: known(with(aReport(vhi.Stopped, 5), vee.PhaseStopped, "")), want: "nothing; state DEFINED, phase STOPPED, settled true, holds false"},
		"is being stopped":            {r: aRecord(vee.Active, vee.Defined), v: known(with(aReport(vhi.Running, 5), vee.PhaseEpilog, "")), want: "nothing; phase EPILOG"},
		"cannot be stopped":           {r: aRecord(vee.Active, vee.Defined), v: known(with(aReport(vhi.Running, 5), vee.PhaseRunning, "stuck")), want: "nothing; target ACTIVE, phase RUNNING, error stuck, seq 6"},
		"an old error in the answer":  {r: aRecord(vee.Active, vee.Suspended), v: answer(with(aReport(vhi.Running, 5), vee.PhaseRunning, "old")), want: "nothing; phase RUNNING, error old"},
		"cannot be saved":             {r: aRecord(vee.Active, vee.Suspended), v: known(with(aReport(vhi.Running, 5), vee.PhaseRunning, "disk full")), want: "nothing; target ACTIVE, phase RUNNING, error disk full, seq 6"},
		"is suspended":                {r: aRecord(vee.Active, vee.Suspended), v: known(with(aReport(vhi.Suspended, 5), vee.PhaseSuspended, "")), want: "nothing; state SUSPENDED, phase SUSPENDED, settled true, holds false"},
		"cannot be woken":             {r: aRecord(vee.Suspended, vee.Active), v: known(with(aReport(vhi.Suspended, 5), vee.PhaseSuspended, "bad file")), want: "nothing; target SUSPENDED, phase SUSPENDED, error bad file, seq 6"},
		"cannot start yet":            {r: aRecord(vee.Defined, vee.Active), v: known(with(aReport(vhi.Unprepared, 5), vee.PhaseProlog, "no such image")), want: "nothing; phase PROLOG, error no such image"},
		"ended by itself":             {r: never, v: known(with(aReport(vhi.Failed, 5), vee.PhaseFailed, "exit 1")), want: "nothing; state DEFINED, target DEFINED, phase FAILED, error exit 1, seq 6"},
		"gone while being destroyed":  {r: aRecord(vee.Active, vee.Destroyed), v: known(nil), want: "nothing; state DESTROYED, phase DONE, holds false"},
		"absent, as asked":            {r: aRecord(vee.Active, vee.Destroyed), v: known(aReport(vhi.Absent, 5)), want: "nothing; state DESTROYED, phase DONE, holds false"},
		"absent, asked before":        {r: aRecord(vee.Active, vee.Destroyed), v: known(aReport(vhi.Absent, 4)), want: "assign; phase EPILOG"},
		"gone":                        {r: aRecord(vee.Active, vee.Active), v: known(nil), want: "nothing; phase UNKNOWN"},
		"gone, to run again":          {r: unknown(aRecord(vee.Active, vee.Active)), v: known(nil), want: "assign"},
		"gone, not to run again":      {r: unknown(never), v: known(nil), want: "nothing; state DEFINED, target DEFINED, phase FAILED, error it is gone from the host, and its restart policy is never, seq 6"},
		"gone with its memory":        {r: unknown(aRecord(vee.Suspended, vee.Suspended)), v: known(nil), want: "nothing; state DEFINED, target DEFINED, phase FAILED, error its memory is gone from the host, seq 6"},
		"gone before it had begun":    {r: aRecord(vee.Defined, vee.Active), v: known(nil), want: "assign"},
		"never ran, to be suspended":  {r: aRecord(vee.Defined, vee.Suspended), v: known(with(aReport(vhi.Unprepared, 5), vee.PhaseProlog, "")), want: "nothing; target DEFINED, phase FAILED, error it does not run, and no memory of it is saved, seq 6"},
		"crashed while being stopped": {r: aRecord(vee.Active, vee.Defined), v: known(with(aReport(vhi.Stopped, 5), vee.PhaseBoot, "")), want: "nothing; state DEFINED, phase BOOT"},
	} {
		t.Run(name, func(t *testing.T) {
			now := c.now
			if now.IsZero() {
				now = t0
			}
			d := decide(c.r, c.v, now, time.Hour)
			got := d.do.String()
			if !d.at.IsZero() {
				got += " until " + d.at.Sub(now).String()
			}
			if diff := difference(c.r, d.rec); diff != "" {
				got += "; " + diff
			}
			if got != c.want {
				t.Errorf("got  %s\nwant %s", got, c.want)
			}
		})
	}
}

// difference of two records in words.
func difference(a, b record) (s string) {
	add := func(name string, x, y any) {
		if x != y {
			if s != "" {
				s += ", "
			}
			s += fmt.Sprintf("%s %v", name, y)
		}
	}
	add("host", a.Host, b.Host)
	add("state", a.State, b.State)
	if b.State != vee.Destroyed {
		add("target", a.Target, b.Target)
	}
	add("phase", a.Phase, b.Phase)
	add("error", a.Error, b.Error)
	add("epoch", a.Epoch, b.Epoch)
	add("seq", a.Seq, b.Seq)
	add("settled", a.Settled, b.Settled)
	add("holds", a.Holds, b.Holds)
	return s
}

// TestNoStateWithoutAWayOut starts from every record and every report that can be made up,
// also impossible ones, and lets a host that works do what it is told: the VEE must come to
// rest in the state that is asked for, soon.
func TestNoStateWithoutAWayOut(t *testing.T) {
	phases := []vee.Phase{"", vee.PhaseProlog, vee.PhaseBoot, vee.PhaseRunning, vee.PhaseUnknown, vee.PhaseFailed, vee.PhaseStopped}
	rapid.Check(t, func(t *rapid.T) {
		r := aRecord(rapid.SampledFrom(vee.States[1:]).Draw(t, "state"), rapid.SampledFrom(vee.States[1:]).Draw(t, "target"))
		r.Phase = rapid.SampledFrom(phases).Draw(t, "phase")
		r.Settled, r.Holds = rapid.Bool().Draw(t, "settled"), rapid.Bool().Draw(t, "holds")
		r.Descriptor.Restart = rapid.SampledFrom([]vee.RestartPolicy{"", vee.RestartNever}).Draw(t, "restart")
		if r.State == vee.Destroyed {
			r.finish() // it is only ever written by this
		}
		v := view{host: rapid.SampledFrom([]condition{unheard, alive, lost}).Draw(t, "host"), known: rapid.Bool().Draw(t, "known"), settled: rapid.Bool().Draw(t, "fresh")}
		if rapid.Bool().Draw(t, "reported") {
			v.report = aReport(rapid.SampledFrom([]vhi.Power{vhi.Running, vhi.Paused, vhi.Suspended, vhi.Stopped, vhi.Unprepared, vhi.Failed, vhi.Absent}).Draw(t, "power"),
				rapid.Uint64Range(3, 7).Draw(t, "seq"))
			v.report.Epoch.Term = rapid.Uint64Range(1, 3).Draw(t, "term")
			v.report.Phase = rapid.SampledFrom(phases).Draw(t, "reported phase")
			v.report.Error = rapid.SampledFrom([]string{"", "disk full"}).Draw(t, "error")
		}
		if d := decide(r, v, t0, time.Hour); v.host == lost && d.rec.Host != r.Host {
			t.Fatal("moved because its host is lost")
		}
		trace := fmt.Sprintf("%+v %+v\n", r, v)
		v.host = alive // whatever it was, it comes back
		for range 30 {
			d := decide(r, v, t0, time.Hour)
			if d.rec.Epoch.Compare(r.Epoch) < 0 || d.rec.Epoch == r.Epoch && d.rec.Seq < r.Seq {
				t.Fatalf("epoch or seq went back: %+v\n%s", d.rec, trace)
			}
			trace += fmt.Sprintf("%s %s/%s %s seq %d: %v\n", d.do, d.rec.State, d.rec.Target, d.rec.Phase, d.rec.Seq, v.report)
			switch {
			case r.State == vee.Destroyed && d.rec.State != vee.Destroyed:
				t.Fatalf("back from the dead\n%s", trace)
			case !d.rec.same(&r):
				r = d.rec
			case d.do == assign:
				p := obey(r.assignment(0), v.report)
				v.known, v.report, v.settled = true, &p, true
			case r.State == r.Target && (r.Settled || r.State == vee.Destroyed):
				if (r.State == vee.Defined || r.State == vee.Suspended) && r.Holds {
					t.Fatalf("at rest, and still holds its host's memory\n%s", trace)
				}
				return
			default: // the host goes on
				p := obey(r.assignment(0), v.report)
				v.known, v.report, v.settled = true, &p, true
			}
		}
		t.Fatalf("not at rest: %+v\n%s", r, trace)
	})
}

// obey is what a working host reports after it has done what it can about a.
func obey(a vhi.Assignment, was *vhi.Report) vhi.Report {
	p := vhi.Report{VEE: a.VEE, Epoch: a.Epoch, Seq: a.Seq, Power: a.Power}
	if a.Power == vhi.Suspended && (was == nil || was.Power != vhi.Running && was.Power != vhi.Paused && was.Power != vhi.Suspended) {
		p.Power = vhi.Stopped // there is no memory to save
	}
	p.Phase = map[vhi.Power]vee.Phase{vhi.Running: vee.PhaseRunning, vhi.Paused: vee.PhaseHold, vhi.Suspended: vee.PhaseSuspended, vhi.Stopped: vee.PhaseStopped, vhi.Absent: vee.PhaseDone}[p.Power]
	return p
}

// TestActions is the table of the white paper (section 2.5.4), written out: every state and
// action, on VEEs that are in that state. "-" is refused.
func TestActions(t *testing.T) {
	table := map[vee.State]string{ // ACTIVATE PAUSE SUSPEND SHUTDOWN DESTROY
		vee.Initial:   "- - - - DESTROYED",
		vee.Defined:   "ACTIVE - - - DESTROYED",
		vee.Active:    "- PAUSED SUSPENDED DEFINED DESTROYED",
		vee.Paused:    "ACTIVE - SUSPENDED DEFINED DESTROYED",
		vee.Suspended: "ACTIVE - - DEFINED DESTROYED",
		vee.Destroyed: "- - - - DESTROYED",
	}
	inSite(t, 1, func(s *fakeSite) {
		n := 0
		for _, state := range vee.States {
			got := ""
			for _, a := range vee.Actions {
				n++
				id := s.inState(state, n)
				o := s.act(a, id)[0]
				v := s.get(id)
				if is := string(v.State); !o.OK {
					if v.State != state {
						t.Errorf("%s of a %s one was refused, and it is %s", a, state, v.State)
					}
					got += " -"
				} else {
					got += " " + is
				}
				s.act(vee.Destroy, id)
			}
			if got[1:] != table[state] {
				t.Errorf("%s: got%s, want %s", state, got, table[state])
			}
		}
	})
}

// inState brings a new VEE into a state.
func (s *fakeSite) inState(state vee.State, n int) vee.ID {
	s.t.Helper()
	d := web(n)
	model := vmi.TwoPhase
	if state == vee.Initial {
		model, d.VCPUs = vmi.BestEffort, 64 // no host has so many
	}
	out, err := s.m.InitializeVEEs(s.operator(), initialize(model, d))
	if err != nil {
		s.t.Fatal(err)
	}
	id := out.VEEs[0].ID
	if state != vee.Initial && state != vee.Defined {
		s.submit(id)
		s.until(id, vee.Active)
	}
	for a, to := range map[vee.Action]vee.State{vee.Pause: vee.Paused, vee.Suspend: vee.Suspended, vee.Destroy: vee.Destroyed} {
		if to == state {
			s.act(a, id)
		}
	}
	if v := s.get(id); v.State != state {
		s.t.Fatalf("VEE is %s, not %s", v.State, state)
	}
	return id
}

// What a guest said last holds while it runs on and its host has not heard it yet; a guest
// that was started anew has said nothing.
func TestAGuestThatHasNotBeenHeardYet(t *testing.T) {
	r := record{VEE: vmi.VEE{State: vee.Active, Target: vee.Active, GuestReady: true, GuestSeen: true}, HostRestarts: 1}
	for _, c := range []struct {
		name        string
		p           vhi.Report
		seen, ready bool
	}{
		{"not heard by a new agent", vhi.Report{Power: vhi.Running, Restarts: 1}, true, true},
		{"started anew in its place", vhi.Report{Power: vhi.Running, Restarts: 2}, false, false},
		{"says that it is not ready", vhi.Report{Power: vhi.Running, Restarts: 1, GuestSeen: true}, true, false},
		{"paused", vhi.Report{Power: vhi.Paused, Restarts: 1}, false, false},
	} {
		if got := observed(r, c.p); got.GuestSeen != c.seen || got.GuestReady != c.ready {
			t.Errorf("%s: seen %v, ready %v; want %v, %v", c.name, got.GuestSeen, got.GuestReady, c.seen, c.ready)
		}
	}
}
