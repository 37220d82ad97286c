package peer

import (
	"context"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"reflect"
	"testing"

	"github.com/reservoir-cloud/reservoir/dvms"
	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/internal/httpapi"
	"github.com/reservoir-cloud/reservoir/internal/identity"
	"github.com/reservoir-cloud/reservoir/ownership"
	"github.com/reservoir-cloud/reservoir/vee"
	"github.com/reservoir-cloud/reservoir/vhi"
)

// echo remembers what it was told last, and answers something.
type echo struct {
	Host
	told any
}

func (e *echo) Witness(context.Context, ownership.Ask) (Word, error) { return Word{}, nil }

func (e *echo) Tell(_ context.Context, m dvms.Message) error { e.told = m; return nil }
func (e *echo) Load(context.Context) (Load, error) {
	return Load{Host: "h1", CPUs: 2, VEEs: []Taken{{VEE: "alpha.aaaaaaaaaa", CPU: 5, Apart: []string{"x"}}}}, nil
}
func (e *echo) Relieve(_ context.Context, r Relieve) (string, error) { e.told = r; return "m1", nil }
func (e *echo) Moving(_ context.Context, move string, id vee.ID) (vhi.MoveReport, error) {
	return vhi.MoveReport{ID: move, Stage: vhi.MoveTaken, To: string(id)}, nil
}
func (e *echo) Expect(_ context.Context, x Expected) error { e.told = x; return nil }
func (e *echo) Moved(_ context.Context, m Moved) error     { e.told = m; return nil }

// serve all that a host's agent serves to others, to the host h1.
func serve(t *testing.T) (*echo, Relief) {
	t.Helper()
	e := &echo{}
	s := httpapi.NewServer("a host", "1", slog.New(slog.DiscardHandler))
	Register(s, e)
	RegisterWitness(s, e)
	RegisterGossip(s, nil)
	RegisterRelief(s, e)
	ts := httptest.NewServer(s.Handler(func(*http.Request) (identity.Caller, error) {
		return identity.Caller{ID: "h1", Role: identity.HostRole, Host: "h1"}, nil
	}))
	t.Cleanup(ts.Close)
	return e, NewReliefClient(&httpapi.Client{Base: ts.URL, HTTP: ts.Client()})
}

func TestEveryMessageTravels(t *testing.T) {
	e, c := serve(t)
	p := dvms.Partition{ID: dvms.ID{Initiator: "h1", Number: 3}, Reason: dvms.Overloaded, Version: dvms.Version{Term: 1, Count: 2}, Leader: "h1", Members: []string{"h1", "h2"}, State: dvms.Blocked}
	messages := []dvms.Message{
		dvms.Problem{Partition: p, Hops: 2}, dvms.Willing{ID: p.ID, From: "h1"}, dvms.Busy{ID: p.ID, From: "h1"}, dvms.Round{ID: p.ID, Version: p.Version},
		dvms.Update{Partition: p, Absorbed: p.ID, Offered: p.Version}, dvms.Here{ID: p.ID, Version: p.Version, From: "h1"}, dvms.Gone{ID: p.ID, From: "h1"},
		dvms.Meet{Partition: p, Back: true}, dvms.Offer{Partition: p, To: p.ID}, dvms.Dissolve{ID: p.ID, Version: p.Version, Failed: true}, dvms.Over{ID: p.ID},
	}
	if len(messages) != len(kinds) {
		t.Errorf("%d messages, %d kinds", len(messages), len(kinds))
	}
	for _, m := range messages {
		if err := c.Tell(t.Context(), m); err != nil || !reflect.DeepEqual(e.told, m) {
			t.Errorf("%+v came as %+v, %v", m, e.told, err)
		}
	}
	for _, m := range []dvms.Message{dvms.Willing{From: "h2"}, dvms.Busy{From: "h2"}, dvms.Here{From: "h2"}, dvms.Gone{From: "h2"}, dvms.Over{ID: dvms.ID{Initiator: "h2"}}, dvms.Offer{Partition: dvms.Partition{Leader: "h2"}}} {
		if err := c.Tell(t.Context(), m); !fault.Has(err, fault.Denied) {
			t.Errorf("h1 speaks for h2: %+v: %v", m, err)
		}
	}
}

func TestReliefTravels(t *testing.T) {
	e, c := serve(t)
	if l, err := c.Load(t.Context()); err != nil || len(l.VEEs) != 1 || l.VEEs[0].CPU != 5 {
		t.Errorf("load %+v, %v", l, err)
	}
	r := Relieve{Agreed: Agreed{Partition: dvms.ID{Initiator: "h1", Number: 2}, Plan: dvms.Version{Count: 4}}, VEE: "alpha.aaaaaaaaaa", To: "h2", Why: "overload of h1"}
	if id, err := c.Relieve(t.Context(), r); err != nil || id != "m1" || !reflect.DeepEqual(e.told, r) {
		t.Errorf("relieve: %q, %+v, %v", id, e.told, err)
	}
	if p, err := c.Moving(t.Context(), "m1", "alpha.aaaaaaaaaa"); err != nil || p.ID != "m1" || p.To != "alpha.aaaaaaaaaa" {
		t.Errorf("moving: %+v, %v", p, err)
	}
	x := Expected{Agreed: r.Agreed, Assignment: vhi.Assignment{VEE: "alpha.aaaaaaaaaa", Power: vhi.Incoming, Move: &vhi.Move{ID: "m1", By: "x"}}}
	if err := c.Expect(t.Context(), x); err != nil || e.told.(Expected).Assignment.Move.By != "x" {
		t.Errorf("expect: %+v, %v", e.told, err)
	}
	if err := c.Moved(t.Context(), Moved{VEE: "alpha.aaaaaaaaaa", To: "h2", Underlay: netip.MustParseAddr("192.0.2.2")}); err != nil || e.told.(Moved).To != "h2" {
		t.Errorf("moved: %+v, %v", e.told, err)
	}
}

func FuzzMessages(f *testing.F) {
	for k := range kinds {
		f.Add(k, []byte(`{"id":{"initiator":"h1","number":3},"partition":{"members":["h1"]},"from":"h1"}`))
	}
	f.Fuzz(func(t *testing.T, kind string, b []byte) {
		m, err := wire{Kind: kind, Message: b}.open("h1")
		if err != nil {
			return
		}
		// Whatever is let in, a node takes without harm, and says nothing to itself.
		n := dvms.Node{Host: "h2"}
		for range 3 {
			var actions []dvms.Action
			n, actions = n.Step(dvms.DefaultProtocol(true), dvms.NewRing([]string{"h1", "h2", "h3"}), 0, m)
			for _, a := range actions {
				if s, is := a.(dvms.Send); is && s.To == "h2" {
					t.Fatalf("it speaks to itself: %+v", s)
				}
			}
		}
	})
}
