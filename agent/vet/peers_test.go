package vet

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/reservoir-cloud/reservoir/hypervisor"
	"github.com/reservoir-cloud/reservoir/hypervisor/sim"
	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/vee"
	"github.com/reservoir-cloud/reservoir/vhi"
)

// byThemselves has the hosts move the VEE from one to the other.
func byThemselves(t *testing.T, from, to *machine, id string) error {
	t.Helper()
	m := vhi.Move{ID: id, From: from.name, To: to.name, Ticket: "drawn for " + id, By: "overload of " + from.name}
	for _, s := range from.tr.Standings() {
		if s.VEE != web {
			continue
		}
		a := s.Assignment
		a.Power, a.Move = vhi.Incoming, &m
		if err := to.tr.Expect(a); err != nil {
			return err
		}
		return from.tr.Depart(web, a.Epoch, m)
	}
	return errors.New("it is not there")
}

// peersEnd what does not come, by the source's word.
func peersEnd(t *testing.T, a, b *machine) {
	t.Helper()
	time.Sleep(10 * time.Second)
	synctest.Wait()
	for _, x := range b.tr.Arrivals() {
		p, err := a.tr.Moving(x.Move.ID, x.VEE)
		if fault.Has(err, fault.NotFound) || err == nil && p.Over() {
			b.tr.Forsake(x)
		}
	}
}

// alone is twoHosts without the site's invitation.
func alone(t *testing.T) (a, b *machine) {
	t.Helper()
	a, b = twoHosts(t)
	gone := mover(4, vhi.Absent)
	assign(t, b.tr, gone)
	return a, b
}

func TestHostsMoveByThemselves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := alone(t)
		defer func() { a.stop(); b.stop() }()
		at := a
		// There, back again and there once more, without a word of the site.
		for i, hop := range []uint64{1, 2, 3} {
			other := a
			if at == a {
				other = b
			}
			before := report(t, at.tr)
			if err := byThemselves(t, at, other, fmt.Sprint("again", i)); err != nil {
				t.Fatal(err)
			}
			left := at
			if at = atOnePlace(t, a, b); at != other {
				t.Fatalf("it stays on %s", at.name)
			}
			r := report(t, at.tr)
			if r.Epoch.Hop != before.Epoch.Hop+1 || r.Epoch.Term != before.Epoch.Term || r.Move == nil || r.Move.By == "" || r.Move.From != left.name || r.Move.To != at.name || r.Move.Stage != vhi.MoveTaken {
				t.Fatalf("hop %d: report %+v, move %+v", hop, r, r.Move)
			}
			g := report(t, left.tr)
			if g.Power != vhi.Absent || g.Epoch != r.Epoch || g.Move == nil || g.Move.To != at.name {
				t.Fatalf("hop %d: the source reports %+v, move %+v", hop, g, g.Move)
			}
			left.restart() // what it knows of it is on disk
			if p, err := left.tr.Moving(fmt.Sprint("again", i), web); err != nil || p.Stage != vhi.MoveTaken {
				t.Errorf("hop %d: after a restart the source says %+v, %v", hop, p, err)
			}
		}
	})
}

// Each call between the hosts is lost, before it arrives or after it took effect, or one of
// the agents is killed at that moment; and no site is there to clean up.
func TestHostsMoveByThemselvesCutAtEachPhase(t *testing.T) {
	for _, call := range []string{"before open", "after open", "before stream", "after stream", "before give", "after give", "before abandon"} {
		for _, what := range []string{"lost", "source killed", "destination killed", "both killed"} {
			t.Run(call+", "+what, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					a, b := alone(t)
					defer func() { a.stop(); b.stop() }()
					hit := make(chan struct{}, 1)
					once := true
					a.cut = func(c string) error {
						if call == "before abandon" && c == "before stream" && once {
							return errors.New("no stream, so that it has to be abandoned")
						}
						if c != call || !once {
							return nil
						}
						once = false
						hit <- struct{}{}
						if what != "lost" {
							time.Sleep(100 * time.Millisecond) // the killing
						}
						return fmt.Errorf("cut %s", c)
					}
					if err := byThemselves(t, a, b, "p1"); err != nil {
						t.Fatal(err)
					}
					<-hit
					if what == "source killed" || what == "both killed" {
						a.restart()
					}
					if what == "destination killed" || what == "both killed" {
						b.restart()
					}
					peersEnd(t, a, b)
					at := atOnePlace(t, a, b)
					if at == b {
						return
					}
					if err := byThemselves(t, a, b, "p2"); err != nil {
						t.Fatalf("a second attempt: %v", err)
					}
					if at = atOnePlace(t, a, b); at != b {
						t.Fatal("a second attempt does not lead there")
					}
				})
			})
		}
	}
}

// What the site assigns is newer than what the hosts have agreed on.
func TestTheSiteEndsWhatHostsHaveBegun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := alone(t)
		defer func() { a.stop(); b.stop() }()
		a.hard(sim.Copy, nil)
		if err := byThemselves(t, a, b, "p1"); err != nil {
			t.Fatal(err)
		}
		<-a.hit
		assign(t, a.tr, mover(3, vhi.Running)) // repeated, as it was before: changes nothing
		assign(t, a.tr, mover(5, vhi.Stopped))
		peersEnd(t, a, b)
		if a.condition() != hypervisor.Stopped || b.condition() != hypervisor.Absent {
			t.Errorf("it is %s on a and %s on b", a.condition(), b.condition())
		}
	})
}

func TestWhatHostsDoNotAgreeOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := alone(t)
		defer func() { a.stop(); b.stop() }()
		m := vhi.Move{ID: "p1", From: "a", To: "b", Ticket: "x", By: "overload of a"}
		for what, err := range map[string]error{
			"a VEE that is not here":         a.tr.Depart("alpha.nobody", vee.Epoch{}, m),
			"under another epoch":            a.tr.Depart(web, vee.Epoch{Generation: 1, Term: 9}, m),
			"expected without a move":        b.tr.Expect(mover(1, vhi.Incoming)),
			"expected to run":                b.tr.Expect(func() vhi.Assignment { x := mover(1, vhi.Running); x.Move = &m; return x }()),
			"where it runs":                  a.tr.Expect(func() vhi.Assignment { x := mover(9, vhi.Incoming); x.Move = &m; return x }()),
			"expected by a move of nobody's": b.tr.Expect(func() vhi.Assignment { x := mover(9, vhi.Incoming); x.Move = &theMove; return x }()),
		} {
			if err == nil {
				t.Errorf("%s: no error", what)
			}
		}
		if _, err := b.tr.Moving("p1", web); !fault.Has(err, fault.NotFound) || !strings.Contains(err.Error(), "p1") {
			t.Errorf("a move of nobody's: %v", err)
		}
	})
}
