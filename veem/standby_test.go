package veem

import (
	"context"
	"slices"
	"testing"
	"time"

	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/internal/identity"
	"github.com/reservoir-cloud/reservoir/vee"
	"github.com/reservoir-cloud/reservoir/vmi"
)

// TestAPartnerTakesOver: what lodges at the partner runs on there, with its address, and is the
// partner's; its own site has nothing to say about it any more, and does not start it elsewhere;
// the network that both shared ends at the partner, for whose service it goes on.
func TestAPartnerTakesOver(t *testing.T) {
	inSites(t, 1, 1, func(s *sites) {
		if _, err := s.alpha.m.PutNetwork(s.alpha.operator(), vmi.Network{Name: "back", GroupID: "shop", Customer: "acme"}); err != nil {
			t.Fatal(err)
		}
		in := initialize(vmi.TwoPhase)
		for n := range 5 { // 4 fit here
			d := web(n + 1)
			d.NICs = []vee.NIC{{Network: "back"}}
			in.VEEs = append(in.VEEs, vmi.InitializeVEE{Descriptor: d})
		}
		out, err := s.alpha.m.InitializeVEEs(s.alpha.operator(), in)
		if err != nil {
			t.Fatal(err)
		}
		all := ids(out.VEEs)
		s.alpha.submit(all...)
		for _, id := range all {
			s.alpha.until(id, vee.Active)
		}
		away := s.away(all)
		if len(away) != 1 {
			t.Fatalf("%d of 5 are at the partner", len(away))
		}
		before := s.beta.get(away[0])
		if disk := s.beta.m.Lodging("alpha"); disk != before.Descriptor.Resources().Disk {
			t.Errorf("alpha's VEEs have %s of disk there", disk)
		}
		s.link.set(func() { s.link.down = true })
		time.Sleep(time.Minute)
		site := identity.With(context.Background(), identity.Caller{ID: "beta", Role: identity.SiteRole})
		for range 2 {
			group, lodgers, err := s.beta.m.TakeOver(site, "alpha", "shop", "alpha-acme")
			if err != nil || group != "alpha/shop" || !slices.Equal(lodgers, away) {
				t.Fatalf("%s, %v, %v", group, lodgers, err)
			}
		}
		if v := s.beta.get(away[0]); v.State != vee.Active || v.Custody != nil || v.Descriptor.Customer != "alpha-acme" || v.Descriptor.NICs[0].Address != before.Descriptor.NICs[0].Address || v.Epoch != before.Epoch {
			t.Errorf("taken over: %+v", v)
		}
		n, err := s.beta.m.PutNetwork(site, vmi.Network{Name: "back", GroupID: "alpha/shop", Customer: "alpha-acme"})
		if err != nil || n.VNI == 0 || len(s.beta.m.Border()) != 0 {
			t.Errorf("its network: %+v, %v; the proxy carries %+v", n, err, s.beta.m.Border())
		}
		more := vmi.Initialize{Model: vmi.TwoPhase, VEEs: []vmi.InitializeVEE{{Descriptor: web(1)}}}
		more.VEEs[0].Descriptor.GroupID, more.VEEs[0].Descriptor.Customer, more.VEEs[0].Descriptor.NICs = "alpha/shop", "alpha-acme", []vee.NIC{{Network: "back"}}
		made, err := s.beta.m.InitializeVEEs(site, more)
		if err != nil || made.VEEs[0].Descriptor.NICs[0].Address == before.Descriptor.NICs[0].Address {
			t.Errorf("another one beside it: %+v, %v", made, err)
		}

		// Its own site is told before it sees what it has lost.
		for range 2 {
			if err := s.alpha.m.GiveUp(context.Background(), "shop", "beta"); err != nil {
				t.Fatal(err)
			}
		}
		s.link.set(func() { s.link.down = false })
		time.Sleep(10 * time.Minute)
		if v := s.alpha.get(away[0]); v.State != vee.Destroyed {
			t.Errorf("at its old site: %+v", v)
		}
		if v := s.beta.get(away[0]); v.State != vee.Active {
			t.Errorf("after its old site is back: %+v", v)
		}
		old := identity.With(context.Background(), identity.Caller{ID: "alpha", Role: identity.Partner, Site: "alpha"})
		if _, err := s.beta.m.GetVEE(old, away[0]); !fault.Has(err, fault.Denied) {
			t.Errorf("its old site sees it: %v", err)
		}
		c := vmi.Custody{Epoch: vee.Epoch{Generation: 99, Term: 99}}
		outs, err := s.beta.m.UpdateState(old, vmi.UpdateState{Collection: vmi.Collection{IDs: away}, Action: vee.Destroy, Custody: map[vee.ID]vmi.Custody{away[0]: c}})
		if err == nil && outs[0].OK {
			t.Error("its old site destroys it")
		}
		d := before.Descriptor
		d.Customer, d.GroupID = "acme", "shop"
		if _, err := s.beta.m.InitializeVEEs(old, vmi.Initialize{Model: vmi.TwoPhase, HoldMS: 60_000, VEEs: []vmi.InitializeVEE{{Descriptor: d, ID: away[0], Custody: &c}}}); !fault.Has(err, fault.Conflict) {
			t.Errorf("its old site hands it over again: %v", err)
		}
	})
}

// TestSeeds: only the site itself lets VEEs begin with checkpoints, and a partner takes none.
func TestSeeds(t *testing.T) {
	inSites(t, 1, 1, func(s *sites) {
		d := web(1)
		d.Seed = &vee.Seed{Digest: "sha256:6666666666666666666666666666666666666666666666666666666666666666", Size: 1, Of: "alpha.aaaaaaaaaa"}
		if _, err := s.alpha.m.InitializeVEEs(s.alpha.operator(), initialize(vmi.TwoPhase, d)); !fault.Has(err, fault.Denied) {
			t.Errorf("an operator: %v", err)
		}
		site := identity.With(context.Background(), identity.Caller{ID: "alpha", Role: identity.SiteRole})
		if _, err := s.alpha.m.InitializeVEEs(site, initialize(vmi.TwoPhase, d)); err != nil {
			t.Errorf("the site: %v", err)
		}
		d.Name, d.Seed = "web-2", &vee.Seed{Digest: "../x", Size: 1}
		if _, err := s.alpha.m.InitializeVEEs(site, initialize(vmi.TwoPhase, d)); !fault.Has(err, fault.Malformed) {
			t.Errorf("no digest: %v", err)
		}
	})
}
