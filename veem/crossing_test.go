package veem

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/ownership"
	"github.com/reservoir-cloud/reservoir/van/border"
	"github.com/reservoir-cloud/reservoir/vee"
	"github.com/reservoir-cloud/reservoir/vhi"
	"github.com/reservoir-cloud/reservoir/vmi"
)

// lodger of alpha's that crosses the border of this site, beta.
func lodger(from, to string) record {
	r := record{Seq: 7, Assigned: true, Holds: true, Move: &migration{Ticket: "t", Route: "r"}}
	r.Move.Migration = vmi.Migration{ID: "m", From: from, To: to, State: vmi.MigrationRunning, Started: time.Unix(0, 0)}
	r.ID, r.Host, r.Epoch, r.State, r.Target = "alpha.aaaaaaaaaa", from, vee.Epoch{Generation: 1, Term: 2, Hop: 3}, vee.Active, vee.Active
	r.Custody = &vmi.Custody{Epoch: r.Epoch, Seq: 40}
	return r
}

func saying(hop int, seq uint64, p vhi.Power, stage vhi.MoveStage) view {
	r := &vhi.Report{Epoch: vee.Epoch{Generation: 1, Term: 2, Hop: uint64(3 + hop)}, Seq: seq, Power: p}
	if stage != "" {
		r.Move = &vhi.MoveReport{ID: "m", Stage: stage, Error: "why"}
	}
	return view{host: alive, known: true, report: r}
}

// What the host here says of a VEE that comes from another site, and what follows. Nothing but
// the host's own word ends it, whatever the other site wants.
func TestDecideArriving(t *testing.T) {
	cancelled := func(r *record) { r.cancelMove("its own site has given it up") }
	for name, c := range map[string]struct {
		change  func(*record)
		to      view
		do      act
		state   vmi.MigrationState
		cancels bool
		target  vee.State
		host    string
	}{
		"the host is invited":              {nil, view{host: alive, known: true}, invite, vmi.MigrationRunning, false, vee.Active, "@alpha"},
		"it waits":                         {nil, saying(0, 7, vhi.Incoming, vhi.MoveWaiting), nothing, vmi.MigrationRunning, false, vee.Active, "@alpha"},
		"it has come":                      {nil, saying(1, 7, vhi.Running, vhi.MoveTaken), nothing, vmi.MigrationDone, false, vee.Active, "h3"},
		"taken, and does not run yet":      {nil, saying(1, 7, vhi.Running, vhi.MoveReceiving), nothing, vmi.MigrationRunning, false, vee.Active, "@alpha"},
		"no room on the host":              {nil, saying(0, 7, vhi.Incoming, vhi.MoveFailed), nothing, vmi.MigrationRunning, true, vee.Active, "@alpha"},
		"given up: the host is told":       {cancelled, saying(0, 7, vhi.Incoming, vhi.MoveWaiting), invite, vmi.MigrationRunning, true, vee.Active, "@alpha"},
		"given up: the host has obeyed":    {cancelled, saying(0, 8, vhi.Absent, vhi.MoveFailed), nothing, vmi.MigrationCancelled, true, vee.Destroyed, "@alpha"},
		"given up too late":                {cancelled, saying(1, 7, vhi.Running, vhi.MoveTaken), nothing, vmi.MigrationDone, true, vee.Active, "h3"},
		"given up, and the host is lost":   {cancelled, view{host: lost}, nothing, vmi.MigrationRunning, true, vee.Active, "@alpha"},
		"given up, and it is not heard of": {cancelled, view{host: unheard}, nothing, vmi.MigrationRunning, true, vee.Active, "@alpha"},
		"destroyed by its own site":        {func(r *record) { r.retarget(vee.Destroyed) }, saying(0, 8, vhi.Incoming, vhi.MoveWaiting), nothing, vmi.MigrationRunning, true, vee.Destroyed, "@alpha"},
	} {
		r := lodger("@alpha", "h3")
		if c.change != nil {
			c.change(&r)
		}
		d := decideArriving(r, c.to, time.Unix(9, 0))
		if d.do != c.do || d.rec.Move.State != c.state || d.rec.Move.Cancelling != c.cancels || d.rec.Target != c.target || d.rec.Host != c.host {
			t.Errorf("%s: %v, %s on %s for %s, cancelling %v", name, d.do, d.rec.Move.State, d.rec.Host, d.rec.Target, d.rec.Move.Cancelling)
		}
		if d.rec.Host == "h3" && (d.rec.Custody.Epoch != d.rec.Epoch || d.rec.Epoch.Hop != 4) {
			t.Errorf("%s: custody %v, epoch %v", name, d.rec.Custody.Epoch, d.rec.Epoch)
		}
		if a := r.invitation(); r.Move.Cancelling != (a.Power == vhi.Absent) {
			t.Errorf("%s: the host is told %s", name, a.Power)
		}
	}
}

// What the host here says of a VEE that goes to another site, and what follows.
func TestDecideLeaving(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*record)
		from   view
		do     act
		state  vmi.MigrationState
		target vee.State
	}{
		"the host is told":              {nil, saying(0, 6, vhi.Running, ""), assign, vmi.MigrationRunning, vee.Active},
		"under way":                     {nil, saying(0, 7, vhi.Running, vhi.MoveMemory), nothing, vmi.MigrationRunning, vee.Active},
		"given, no word yet":            {nil, saying(1, 7, vhi.Paused, vhi.MoveGiven), nothing, vmi.MigrationRunning, vee.Active},
		"gone":                          {nil, saying(1, 7, vhi.Absent, vhi.MoveGiven), nothing, vmi.MigrationDone, vee.Destroyed},
		"kept":                          {nil, saying(0, 7, vhi.Running, vhi.MoveFailed), nothing, vmi.MigrationFailed, vee.Active},
		"refused, and ours again":       {nil, saying(2, 7, vhi.Running, vhi.MoveVoid), nothing, vmi.MigrationFailed, vee.Active},
		"cancelled, the host is told":   {func(r *record) { r.cancelMove("x") }, saying(0, 7, vhi.Running, vhi.MoveMemory), assign, vmi.MigrationRunning, vee.Active},
		"cancelled, and kept":           {func(r *record) { r.cancelMove("x") }, saying(0, 8, vhi.Running, vhi.MoveFailed), nothing, vmi.MigrationCancelled, vee.Active},
		"cancelled too late":            {func(r *record) { r.cancelMove("x") }, saying(1, 7, vhi.Paused, vhi.MoveGiven), nothing, vmi.MigrationRunning, vee.Active},
		"lost":                          {nil, view{host: lost}, nothing, vmi.MigrationRunning, vee.Active},
		"its site knows who has it":     {func(r *record) { r.retarget(vee.Destroyed) }, saying(1, 7, vhi.Paused, vhi.MoveGiven), nothing, vmi.MigrationDone, vee.Destroyed},
		"destroyed before it was given": {func(r *record) { r.retarget(vee.Destroyed) }, saying(0, 7, vhi.Running, vhi.MoveMemory), nothing, vmi.MigrationRunning, vee.Destroyed},
	} {
		r := lodger("h3", "@alpha")
		if c.change != nil {
			c.change(&r)
		}
		d := decideLeaving(r, c.from, time.Unix(9, 0))
		if d.do != c.do || d.rec.Move.State != c.state || d.rec.Target != c.target {
			t.Errorf("%s: %v, %s for %s", name, d.do, d.rec.Move.State, d.rec.Target)
		}
	}
}

// A partner that says that it does not have what it should send is not believed: it may have
// given it already. Only the destination ends it.
func TestSilenceClosesNothing(t *testing.T) {
	now := time.Unix(9, 0)
	r := lodger("@beta", "h1") // at its primary
	r.Custody = nil
	gone := view{host: alive, known: true}
	d := decideMoving(r, gone, saying(0, 7, vhi.Incoming, vhi.MoveReceiving), now)
	if !d.rec.Move.Cancelling || d.rec.Move.State != vmi.MigrationRunning {
		t.Fatalf("%+v", d.rec.Move)
	}
	r = d.rec
	if d = decideMoving(r, gone, saying(0, 7, vhi.Incoming, vhi.MoveReceiving), now); d.do != invite || r.invitation().Power != vhi.Absent {
		t.Fatalf("the destination is not asked: %v", d.do)
	}
	for name, to := range map[string]view{"lost": {host: lost}, "not heard of": {host: unheard}} {
		if d := decideMoving(r, gone, to, now); d.rec.Move.State != vmi.MigrationRunning {
			t.Errorf("the destination is %s, and the migration %s", name, d.rec.Move.State)
		}
	}
	if d := decideMoving(r, gone, saying(1, 7, vhi.Running, vhi.MoveTaken), now); d.rec.Host != "h1" {
		t.Errorf("it has come, and is on %s", d.rec.Host)
	}
	if d := decideMoving(r, gone, saying(0, 8, vhi.Absent, vhi.MoveFailed), now); d.rec.Move.State != vmi.MigrationFailed {
		t.Errorf("nothing has come nor will, and the migration is %s", d.rec.Move.State)
	}
}

// Routes of a proxy: out by a door, in to a host, and none for what goes from one partner to
// another.
func TestRouteOfAMigration(t *testing.T) {
	address := func(host string) string { return map[string]string{"h1": "10.0.0.1:7444"}[host] }
	out := lodger("h1", "@beta")
	if _, ok := out.route(address); ok {
		t.Error("there is a route before the other site has told of its door")
	}
	out.Move.Door = &vhi.Door{Site: "beta", Route: "theirs"}
	in := lodger("@beta", "h1")
	past := lodger("@beta", "@gamma")
	for name, c := range map[string]struct {
		r    record
		want border.Route
	}{
		"out": {out, border.Route{Ticket: "r", Peer: "beta", Show: "theirs"}},
		"in":  {in, border.Route{Ticket: "r", To: "10.0.0.1:7444"}},
	} {
		got, ok := c.r.route(address)
		got.For, got.Expires = "", time.Time{}
		if !ok || got != c.want {
			t.Errorf("%s: %+v, %v", name, got, ok)
		}
	}
	if _, ok := past.route(address); ok {
		t.Error("what goes from partner to partner has a route here")
	}
}

// What goes cold has the power that it travels in at both ends, whatever is wanted of it
// afterwards; nothing but its destruction overtakes it.
func TestDecideCold(t *testing.T) {
	now := time.Unix(9, 0)
	for _, c := range []struct {
		state vee.State
		power vhi.Power
	}{{vee.Defined, vhi.Stopped}, {vee.Suspended, vhi.Suspended}} {
		in := lodger("@alpha", "h3")
		in.Move.Cold, in.State, in.Target = c.power, c.state, c.state
		if d := decideArriving(in, saying(0, 7, vhi.Incoming, vhi.MoveReceiving), now); d.rec.Host != "@alpha" || d.rec.Move.Cancelling {
			t.Errorf("%s, on its way: on %s, cancelling %v", c.state, d.rec.Host, d.rec.Move.Cancelling)
		}
		if d := decideArriving(in, saying(1, 7, c.power, vhi.MoveTaken), now); d.rec.Host != "h3" || d.rec.State != c.state || d.rec.Phase == vee.PhaseRunning {
			t.Errorf("%s, there: %s %s on %s", c.state, d.rec.State, d.rec.Phase, d.rec.Host)
		}
		in.Target = vee.Active
		if d := decideArriving(in, saying(0, 7, vhi.Incoming, vhi.MoveReceiving), now); d.rec.Move.Cancelling {
			t.Errorf("%s, and it shall run afterwards: %q", c.state, d.rec.Move.Error)
		}
		in.retarget(vee.Destroyed)
		if d := decideArriving(in, saying(0, 7, vhi.Incoming, vhi.MoveReceiving), now); !d.rec.Move.Cancelling {
			t.Errorf("%s, and it is destroyed: it goes on", c.state)
		}
	}
	out := lodger("h3", "@alpha") // it runs, and is shut down for it
	out.Move.Cold = vhi.Stopped
	if a := out.assignment(time.Second); a.Power != vhi.Stopped || a.Move == nil || a.Move.Cold != vhi.Stopped {
		t.Errorf("its host is told %+v", a)
	}
	if d := decideLeaving(out, saying(0, 7, vhi.Stopped, vhi.MoveDisks), now); d.rec.State != vee.Defined || d.rec.Target != vee.Active {
		t.Errorf("shut down it is %s for %s", d.rec.State, d.rec.Target)
	}
	out.cancelMove("x")
	if a := out.assignment(time.Second); a.Power != vhi.Running || a.Move != nil {
		t.Errorf("given up, its host is told %+v", a)
	}
}

// Who may be migrated how, and why not.
func TestMayMove(t *testing.T) {
	for name, c := range map[string]struct {
		change     func(*record)
		live, cold fault.Code
	}{
		"it runs":          {func(*record) {}, "", ""},
		"stopped":          {func(r *record) { r.State, r.Target = vee.Defined, vee.Defined }, fault.WrongState, ""},
		"suspended":        {func(r *record) { r.State, r.Target = vee.Suspended, vee.Suspended }, fault.WrongState, ""},
		"paused":           {func(r *record) { r.State, r.Target = vee.Paused, vee.Paused }, fault.WrongState, fault.WrongState},
		"on its way":       {func(r *record) { r.Target = vee.Suspended }, fault.WrongState, fault.WrongState},
		"never assigned":   {func(r *record) { r.State, r.Target, r.Assigned = vee.Defined, vee.Defined, false }, fault.WrongState, fault.WrongState},
		"migrating":        {func(r *record) { r.Move = lodger("h3", "@alpha").Move }, fault.WrongState, fault.WrongState},
		"being given away": {func(r *record) { r.Lease = &lease{Sealing: true} }, "", fault.WrongState},
	} {
		r := lodger("h3", "@alpha")
		r.Move = nil
		c.change(&r)
		for cold, want := range map[bool]fault.Code{false: c.live, true: c.cold} {
			if err := r.mayMove(cold); (err == nil) != (want == "") || err != nil && !fault.Has(err, want) {
				t.Errorf("%s, cold %v: %v", name, cold, err)
			}
		}
	}
}

// noBorder is never crossed.
type noBorder struct{ Crossing }

// An address of this site's public network stays here, which is said before anything moves.
func TestPublicAddressesStay(t *testing.T) {
	m := &Manager{cfg: Config{Site: "alpha", Crossing: noBorder{}, Partnership: &agreed{}}}
	r := lodger("h1", "@beta")
	r.Descriptor.NICs = []vee.NIC{{Network: "back"}, {Network: "site", Public: true, Address: "192.0.2.7/24"}}
	err := m.mayGo(nil, r, "beta", nil)
	if f := fault.From(err); !fault.Has(err, fault.Unsupported) || len(f.Next) == 0 || !strings.Contains(f.Message, "192.0.2.7") {
		t.Errorf("%+v", f)
	}
}

// With the order to go cold the lease ends, in the same write: the log of ownership has nothing
// of the VEE then, and so nobody gives it away while it is on its way.
func TestALeaseEndsWithTheOrderToGo(t *testing.T) {
	inSite(t, 2, func(s *fakeSite) {
		id := s.deploy(1)[0]
		undo := errors.New("undone")
		err := s.m.ledger.do(s.operator(), func(x *tx) error {
			for cold, leased := range map[bool]bool{false: true, true: false} {
				r, _ := x.vee(id)
				r.Lease = &lease{}
				r.depart(x, "0123456789abcdef", tickets{}, "h2", vmi.Migrate{VEE: id, Cold: cold})
				if r.leased() != leased || (r.owned() != ownership.Record{}) != leased || r.invitation().Leased != leased || r.assignment(0).Leased != leased {
					t.Errorf("cold %v: lease %v, in the log %+v", cold, r.Lease, r.owned())
				}
			}
			return undo
		})
		if !errors.Is(err, undo) {
			t.Error(err)
		}
	})
}
