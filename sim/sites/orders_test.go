package sites

import (
	"context"
	"testing"

	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/internal/identity"
	"github.com/reservoir-cloud/reservoir/vee"
	"github.com/reservoir-cloud/reservoir/vhi"
	"github.com/reservoir-cloud/reservoir/vmi"
	"github.com/reservoir-cloud/reservoir/vmi/peer"
)

// What a partner may not order, or orders wrongly, changes nothing.
func TestOrdersThatCannotBe(t *testing.T) {
	stage(t, 1, []string{"alpha", "beta"}, func(s *scene) {
		id := s.deploy(vee.RestartInPlace)
		s.migrate(id, "@beta")
		s.settled(id)
		is, err := s.Sites["beta"].Manager().GetVEE(s.Sites["beta"].As(), id)
		s.must(err)
		order := func(change func(*peer.MoveOrder)) error {
			o := peer.MoveOrder{Assignment: vhi.Assignment{VEE: id, Epoch: is.Epoch, Seq: 1000, Power: vhi.Stopped,
				Move: &vhi.Move{ID: "m9", Ticket: "t", To: "@alpha", Cold: vhi.Stopped, Door: &vhi.Door{Site: "alpha", Host: "spiffe://alpha/host/h1", Route: "aaaaaaaaaaaaaaaaaaaaaaaaaa"}}}}
			change(&o)
			ctx := identity.With(context.Background(), identity.Caller{ID: "spiffe://alpha/site", Role: identity.Partner, Site: "alpha"})
			_, err := s.Sites["beta"].Manager().Peering().PutMove(ctx, o)
			return err
		}
		for name, c := range map[string]struct {
			change func(*peer.MoveOrder)
			want   fault.Code
		}{
			"a VEE of the receiver's": {func(o *peer.MoveOrder) { o.VEE = "beta.aaaaaaaaaa" }, fault.Denied},
			"a VEE of a third site's": {func(o *peer.MoveOrder) { o.VEE = "gamma.aaaaaaaaaa" }, fault.Denied},
			"one that was never here": {func(o *peer.MoveOrder) { o.VEE = "alpha.zzzzzzzzzz" }, fault.NotFound},
			"one that is here is to come": {func(o *peer.MoveOrder) {
				o.Power, o.Descriptor = vhi.Incoming, s.get(id).Descriptor
				o.Move.From = "@alpha"
			}, fault.Conflict},
			"an old order":              {func(o *peer.MoveOrder) { o.Seq = 0; o.Epoch = vee.Epoch{Generation: 1} }, fault.StaleEpoch},
			"no door":                   {func(o *peer.MoveOrder) { o.Move.Door = nil }, fault.Malformed},
			"cold, and running":         {func(o *peer.MoveOrder) { o.Move.Cold = vhi.Running }, fault.Malformed},
			"to come, without a ticket": {func(o *peer.MoveOrder) { o.Power = vhi.Incoming; o.Move.From, o.Move.Ticket = "@alpha", "" }, fault.Malformed},
		} {
			if err := order(c.change); !fault.Has(err, c.want) {
				t.Errorf("%s: %v, want %s", name, err, c.want)
			}
		}
		s.settled(id)
	})
}

// Two sites have VEEs of the same name, customer and group: one crosses to where the other is,
// live and cold, and they stay two.
func TestSameNamesAtTwoSites(t *testing.T) {
	stage(t, 1, []string{"alpha", "beta"}, func(s *scene) {
		b := s.Sites["beta"]
		out, err := b.m.InitializeVEEs(b.As(), vmi.Initialize{Model: vmi.TwoPhase, VEEs: []vmi.InitializeVEE{{Descriptor: vee.Descriptor{
			Name: "web-1", Customer: "acme", GroupID: "shop", VCPUs: 1, Memory: 64 * vee.MiB}}}})
		s.must(err)
		other := out.VEEs[0].ID
		_, err = b.m.SubmitVEEs(b.As(), []vee.ID{other})
		s.must(err)
		s.until("beta's runs", func() bool { return s.places(other) == 1 })
		id := s.deploy(vee.RestartInPlace)
		for _, cold := range []bool{false, true} {
			for _, to := range []string{"@beta", "h1"} {
				a := s.Sites["alpha"]
				m, err := a.m.Migrate(a.As(), vmi.Migrate{VEE: id, To: to, Cold: cold})
				s.must(err)
				s.until("it has come to "+to, func() bool { return s.get(id).Host == m.To && s.places(id) == 1 })
				s.settled(id)
				if s.at(other) != "beta" || s.places(other) != 1 {
					t.Errorf("to %s: beta's own runs at %q, at %d places", to, s.at(other), s.places(other))
				}
			}
		}
	})
}
