package veem

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/reservoir-cloud/reservoir/ownership"
	"github.com/reservoir-cloud/reservoir/vee"
	"github.com/reservoir-cloud/reservoir/vhi"
	"github.com/reservoir-cloud/reservoir/vmi"
)

// What the source says of a move that nobody here has ordered, and what follows.
func TestDecideMovedByHosts(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	here := vee.Epoch{Generation: 1, Term: 2, Hop: 3}
	there := here
	there.Hop++
	says := func(e vee.Epoch, p vhi.Power, stage vhi.MoveStage) view {
		return view{host: alive, known: true, report: &vhi.Report{Epoch: e, Seq: 7, Power: p, Move: &vhi.MoveReport{ID: "p", Stage: stage, From: "a", To: "b", By: "overload of a"}}}
	}
	waits := says(here, vhi.Incoming, vhi.MoveReceiving)
	for name, c := range map[string]struct {
		change   func(*record)
		from, to view
		do       act
		state    vmi.MigrationState // of the hosts' move; empty: it is not on record
		host     string
		epoch    vee.Epoch
		phase    vee.Phase
		cancels  bool
	}{
		"under way":                     {nil, says(here, vhi.Running, vhi.MoveMemory), waits, nothing, vmi.MigrationRunning, "a", here, vee.PhaseMigrate, false},
		"given, and no word yet":        {nil, says(there, vhi.Absent, vhi.MoveGiven), view{}, nothing, vmi.MigrationRunning, "a", here, vee.PhaseMigrate, false},
		"given, and the other is lost":  {nil, says(there, vhi.Absent, vhi.MoveGiven), view{host: lost}, nothing, vmi.MigrationRunning, "a", here, vee.PhaseUnknown, false},
		"taken":                         {nil, says(there, vhi.Absent, vhi.MoveGiven), says(there, vhi.Running, vhi.MoveTaken), nothing, vmi.MigrationDone, "b", there, vee.PhaseRunning, false},
		"it failed before it was known": {nil, says(here, vhi.Running, vhi.MoveFailed), view{}, nothing, "", "a", here, "", false},
		"it failed since":               {func(r *record) { r.Move = r.moveByHosts(&vhi.MoveReport{ID: "p", From: "a", To: "b", By: "x"}, now) }, says(here, vhi.Running, vhi.MoveFailed), waits, nothing, vmi.MigrationFailed, "a", here, "", false},
		"it is to be stopped":           {func(r *record) { r.Target, r.Seq = vee.Defined, 8 }, says(here, vhi.Running, vhi.MoveMemory), waits, assign, "", "a", here, "", false},
		"stopped when it was under way": {func(r *record) {
			r.Move = r.moveByHosts(&vhi.MoveReport{ID: "p", From: "a", To: "b", By: "x"}, now)
			r.Target = vee.Defined
		}, says(here, vhi.Running, vhi.MoveMemory), waits, assign, vmi.MigrationRunning, "a", here, vee.PhaseMigrate, true},
		"the site wants something else": {func(r *record) {
			r.Move = r.moveByHosts(&vhi.MoveReport{ID: "p", From: "a", To: "b", By: "x"}, now)
			r.Seq = 8
		}, says(here, vhi.Running, vhi.MoveMemory), waits, assign, vmi.MigrationRunning, "a", here, vee.PhaseMigrate, true},
	} {
		r := record{Seq: 7, Assigned: true}
		r.ID, r.Host, r.Epoch, r.State, r.Target = "alpha.aaaaaaaaaa", "a", here, vee.Active, vee.Active
		if c.change != nil {
			c.change(&r)
		}
		var d decision
		for range 5 { // until nothing is to be written any more
			if r.moving() {
				d = decideMoving(r, c.from, c.to, now)
			} else {
				d = decide(r, c.from, now, time.Hour)
			}
			if d.rec.same(&r) || d.rec.Host == "b" {
				break
			}
			r = d.rec
		}
		r = d.rec
		state := vmi.MigrationState("")
		if r.Move != nil {
			state = r.Move.State
		}
		if c.state == vmi.MigrationDone || c.state == vmi.MigrationFailed {
			d.do = c.do // what follows is another's matter
		}
		if d.do != c.do || state != c.state || r.Host != c.host || r.Epoch != c.epoch || c.phase != "" && r.Phase != c.phase || state == vmi.MigrationRunning && r.Move.Cancelling != c.cancels {
			t.Errorf("%s: %v, %q on %s under %s, %s; want %v, %q on %s under %s, %s", name, d.do, state, r.Host, r.Epoch, r.Phase, c.do, c.state, c.host, c.epoch, c.phase)
		}
		if a := r.assignment(0); a.Move != nil {
			t.Errorf("%s: a host is told of a move that hosts have agreed on: %+v", name, a.Move)
		}
	}
}

// movedBy its hosts, without a word to the site: the guest is at the other one, a hop later.
func (s *fakeSite) movedByHosts(id vee.ID, from, to string) {
	a, b := s.host(from), s.host(to)
	defer a.lock()()
	g := a.guests[id]
	there := *g
	g.now, g.ready = vhi.Absent, false
	g.want.Power, g.want.Move, g.want.Epoch.Hop = vhi.Absent, nil, g.want.Epoch.Hop+1
	g.moved = vhi.MoveReport{ID: "by" + from + to, Stage: vhi.MoveGiven, From: from, To: to, By: "overload of " + from}
	there.want.Epoch.Hop++
	there.moved = g.moved
	there.moved.Stage, there.moved.Took.DowntimeMS = vhi.MoveTaken, 7
	b.guests[id] = &there
	s.check(b, id, &there)
}

// TestTheSiteLearnsWhereHostsHaveMovedIt while it was not there: once and again, and also when
// the host that it came from is not there any more. Nothing is started or removed.
func TestTheSiteLearnsWhereHostsHaveMovedIt(t *testing.T) {
	for _, c := range []struct {
		name string
		path []string
		lost bool // all but the last
	}{{"once", []string{"h1", "h2"}, false}, {"again", []string{"h1", "h2", "h3"}, false}, {"there and back", []string{"h1", "h2", "h1"}, false}, {"from a host that is gone", []string{"h1", "h2"}, true}} {
		t.Run(c.name, func(t *testing.T) {
			inSite(t, 3, func(s *fakeSite) {
				id := s.deploy(1)[0]
				v := s.until(id, vee.Active)
				// By name, whichever host the placement took.
				name := map[string]string{"h1": v.Host}
				for _, h := range s.hosts {
					if h.name != v.Host {
						name[fmt.Sprintf("h%d", len(name)+1)] = h.name
					}
				}
				time.Sleep(10 * time.Second)
				s.stop()
				for i := 1; i < len(c.path); i++ {
					s.movedByHosts(id, name[c.path[i-1]], name[c.path[i]])
				}
				last := name[c.path[len(c.path)-1]]
				if c.lost {
					s.host(v.Host).set(func() { s.host(v.Host).down = true })
				}
				s.start()
				s.untilThat(id, "at "+last, func(v vmi.VEE) bool { return v.Host == last && v.State == vee.Active && v.GuestReady })
				time.Sleep(2 * time.Minute)
				if got := s.get(id); got.Host != last || got.Restarts != 0 || got.State != vee.Active || got.Epoch.Term != v.Epoch.Term {
					t.Errorf("it is %s on %s under %s after %d restarts; want it on %s", got.State, got.Host, got.Epoch, got.Restarts, last)
				}
				if c.path[0] == c.path[len(c.path)-1] {
					return // it is where it was; nothing is to be told
				}
				m, ok := s.m.NewestMigration(id)
				if !ok || !strings.HasPrefix(m.By, "overload of ") || m.To != last || m.State != vmi.MigrationDone {
					t.Errorf("on record: %+v", m)
				}
			})
		})
	}
}

func TestHostsAreToldOfEachOther(t *testing.T) {
	inSite(t, 9, func(s *fakeSite) {
		time.Sleep(10 * time.Second)
		s.host("h9").set(func() { s.host("h9").down = true })
		time.Sleep(time.Minute)
		reached, todo := map[string]bool{"h1": true}, []string{"h1"}
		for len(todo) > 0 {
			c := s.m.company(todo[0])
			todo = todo[1:]
			if len(c.Neighbours) != neighbours {
				t.Errorf("it is told of %v", c.Neighbours)
			}
			for _, n := range c.Neighbours {
				if n.Host == "h9" || n.Address == "" {
					t.Errorf("it is told of %+v", n)
				}
				if !reached[n.Host] {
					reached[n.Host] = true
					todo = append(todo, n.Host)
				}
			}
		}
		if len(reached) != 8 {
			t.Errorf("from h1 on, those that are there find %d", len(reached))
		}
		s.drain("h1", vmi.Drain{})
		if !s.m.company("h1").Draining && !s.drained("h1") {
			t.Error("h1 is not told that it is to be emptied")
		}
	})
}

// That hosts could not help is told once, however often they say so.
func TestHostsThatCannotHelpAreHeardOnce(t *testing.T) {
	inSite(t, 2, func(s *fakeSite) {
		say := func(id string, helpless bool) {
			s.m.helpless(vhi.HostReport{Host: "h1", Peering: &vhi.Peering{Past: []vhi.PastPartition{{ID: id, Reason: "overloaded", Members: []string{"h1", "h2"}, Helpless: helpless}}}})
		}
		say("h1#1", false)
		for range 3 {
			say("h1#2", true)
		}
		say("h1#3", true)
		if n := s.events.count("NoRelief"); n != 2 {
			t.Errorf("told %d times of two", n)
		}
	})
}

func (s *fakeSite) drained(name string) bool {
	h, _ := s.m.ledger.host(name)
	return h.Drain != nil && h.Drain.Done
}

func TestBonds(t *testing.T) {
	r := record{Scope: "g"}
	r.Descriptor.Tags = []string{"web", "front"}
	r.Rules = []vmi.PlacementRule{{Kind: "anti-affinity", Tag: "web"}, {Kind: "affinity", Tag: "front", Soft: true}, {Kind: "anti-affinity", Tag: "db"}}
	apart, together := r.bonds()
	if !slices.Equal(apart, []string{"g/web"}) || !slices.Equal(together, []string{"g/front"}) {
		t.Errorf("apart %v, together %v", apart, together)
	}
}

// The log of ownership finds a VEE under lease where its hosts have moved it.
func TestTheLogFollowsWhatHostsHaveMoved(t *testing.T) {
	r := record{Seq: 7, Assigned: true, Lease: &lease{}}
	r.ID, r.Host, r.Epoch, r.State, r.Target = "alpha.aaaaaaaaaa", "a", vee.Epoch{Generation: 1, Term: 1}, vee.Active, vee.Active
	there := vee.Epoch{Generation: 1, Term: 1, Hop: 1}
	p := vhi.Report{VEE: r.ID, Epoch: there, Seq: 7, Power: vhi.Running, Move: &vhi.MoveReport{ID: "p", Stage: vhi.MoveReceiving, From: "a", To: "b", By: "overload of a"}}
	m := &Manager{hosts: hosts{known: map[string]*hostView{"b": {alive: true, met: true, vees: map[vee.ID]*word{r.ID: {report: &p}}}}}, gen: 1}
	m.obeyLog(&tx{}, &r, ownership.Record{VEE: r.ID, Host: "b", Epoch: there, Taken: there})
	if r.Host != "b" || r.Epoch != there || r.Move == nil || r.Move.By != "overload of a" || r.Move.State != vmi.MigrationDone {
		t.Errorf("it is on %s under %s, by %+v", r.Host, r.Epoch, r.Move)
	}
}
