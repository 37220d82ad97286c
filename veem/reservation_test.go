package veem

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/internal/identity"
	"github.com/reservoir-cloud/reservoir/vee"
	"github.com/reservoir-cloud/reservoir/vmi"
)

// A partner that lacks the capability is not asked, and everything else works.
func TestAnOlderPartnerReservesNothing(t *testing.T) {
	inSites(t, 1, 1, func(s *sites) {
		in := vmi.Reserve{At: "beta", VEEs: 1, VCPUs: 1, Memory: vee.GiB, From: time.Now().Add(time.Hour), Until: time.Now().Add(2 * time.Hour)}
		_, err := s.alpha.m.Reserve(s.alpha.operator(), in)
		if !fault.Has(err, fault.Unsupported) || !strings.Contains(err.Error(), `lacks the capability "reserve"`) {
			t.Errorf("reserved: %v", err)
		}
		if list, err := s.beta.m.ListReservations(s.beta.operator()); err != nil || len(list) != 0 {
			t.Errorf("it was asked: %+v, %v", list, err)
		}
		if ids := s.alpha.deploy(5); len(s.away(ids)) != 1 {
			t.Errorf("%d of five at the partner", len(s.away(ids)))
		}
	})
}

// What a partner asks for again is the same reservation, what comes again after it was given up
// gives nothing back, and nobody speaks for another.
func TestReplayedReservations(t *testing.T) {
	inSites(t, 0, 1, func(s *sites) {
		as := func(site string) context.Context {
			return identity.With(context.Background(), identity.Caller{ID: site, Role: identity.Partner, Site: site})
		}
		b := s.beta.m
		in := vmi.Reserve{ID: "alpha.aaaaaaaaaa", Customer: "acme", VEEs: 4, VCPUs: 1, Memory: vee.GiB, From: time.Now().Add(time.Hour), Until: time.Now().Add(2 * time.Hour)}
		for range 2 {
			if r, err := b.Reserve(as("alpha"), in); err != nil || r.State != vmi.ReservationHeld {
				t.Fatalf("%+v, %v", r, err)
			}
		}
		other := in
		other.VEEs = 1
		if _, err := b.Reserve(as("alpha"), other); !fault.Has(err, fault.Conflict) {
			t.Errorf("another under its name: %v", err)
		}
		if _, err := b.Reserve(as("gamma"), in); !fault.Has(err, fault.Denied) {
			t.Errorf("by another site: %v", err)
		}
		for what, call := range map[string]func(context.Context, string) (vmi.Reservation, error){"cancel": b.CancelReservation, "commit": b.CommitReservation, "see": b.GetReservation} {
			if _, err := call(as("gamma"), in.ID); !fault.Has(err, fault.NotFound) {
				t.Errorf("%s another's: %v", what, err)
			}
		}
		if r, err := b.CancelReservation(as("alpha"), in.ID); err != nil || r.State != vmi.ReservationCancelled {
			t.Fatalf("%+v, %v", r, err)
		}
		if r, err := b.Reserve(as("alpha"), in); err != nil || r.State != vmi.ReservationCancelled {
			t.Errorf("the first phase comes late: %+v, %v", r, err)
		}
		if _, err := b.CommitReservation(as("alpha"), in.ID); !fault.Has(err, fault.WrongState) {
			t.Errorf("the second phase comes late: %v", err)
		}
		in.ID = "alpha.bbbbbbbbbb"
		if _, err := b.Reserve(as("alpha"), in); err != nil {
			t.Errorf("what was given up is free: %v", err)
		}
	})
}

// Mistakes in what is asked for.
func TestWrongReservations(t *testing.T) {
	inSite(t, 1, func(s *fakeSite) {
		now := time.Now()
		good := vmi.Reserve{VEEs: 1, VCPUs: 1, Memory: vee.GiB, From: now, Until: now.Add(time.Hour)}
		for want, spoil := range map[string]func(*vmi.Reserve){
			"some of each":         func(r *vmi.Reserve) { r.VEEs = 0 },
			"a time to come":       func(r *vmi.Reserve) { r.Until = r.From },
			"a year ahead":         func(r *vmi.Reserve) { r.Until = now.AddDate(2, 0, 0) },
			"useWithinMs":          func(r *vmi.Reserve) { r.UseWithinMS = -1 },
			"VEE Manager has it":   func(r *vmi.Reserve) { r.ID = "alpha.aaaaaaaaaa" },
			"is no partner":        func(r *vmi.Reserve) { r.At = "beta" },
			"there is no room for": func(r *vmi.Reserve) { r.VEEs = 5 },
		} {
			in := good
			spoil(&in)
			if _, err := s.m.Reserve(s.operator(), in); err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%v, want %q", err, want)
			}
		}
		r, err := s.m.Reserve(s.provider("acme"), good)
		if err != nil || r.Customer != "acme" {
			t.Fatalf("%+v, %v", r, err)
		}
		if _, err := s.m.CancelReservation(s.provider("bolt"), r.ID); !fault.Has(err, fault.NotFound) {
			t.Errorf("another's: %v", err)
		}
		d := web(1)
		d.Customer, d.Where.Reservation = "bolt", r.ID
		if plan, err := s.m.Plan(s.provider("bolt"), initialize(vmi.TwoPhase, d)); err != nil || plan[0].Host != "" || !strings.Contains(plan[0].Why, "there is no reservation") {
			t.Errorf("under another's: %+v, %v", plan, err)
		}
	})
}
