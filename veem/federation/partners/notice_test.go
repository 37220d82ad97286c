package partners

import (
	"testing"
	"time"

	"github.com/reservoir-cloud/reservoir/veem/federation/agreement"
	"github.com/reservoir-cloud/reservoir/vmi/peer"
)

// TestNoticeRunsFromWhenItIsKnown: a lender that ends an agreement while the borrower is away
// counts from when it has told it, and the borrower from when it heard, each by its own clock,
// though they are minutes apart.
func TestNoticeRunsFromWhenItIsKnown(t *testing.T) {
	_, alpha, beta := befriended(t, func(s *aSite, c *Config) {
		c.Timing.Wait = 100 * time.Millisecond
		if s.name == "beta" {
			s.ahead = 5 * time.Minute
		}
	})
	a, err := alpha.Propose(t.Context(), "beta", terms("beta", "alpha", alpha.now()))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := beta.SignAgreement(t.Context(), a.ID); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it is in force at alpha", func() bool { g, _ := alpha.Agreement(a.ID); return g.State == InForce })
	notice := time.Duration(a.NoticeMS) * time.Millisecond

	release := make(chan struct{})
	alpha.set(func() { alpha.stall = release })
	eventually(t, "alpha is away", func() bool { return !beta.reaches("alpha") })
	if _, err := beta.EndOurs(t.Context(), a.ID, "we part"); err != nil {
		t.Fatal(err)
	}
	ended := beta.now()
	beta.set(func() { beta.ahead += 2 * notice }) // so long nobody hears of it
	g, _ := beta.Agreement(a.ID)
	if g.State != Ending || g.Told || g.Leave.Before(beta.now().Add(notice-time.Minute)) {
		t.Errorf("the notice runs before the borrower knows: ended %v, now %v: %+v", ended, beta.now(), g)
	}
	p, err := beta.Partner("alpha")
	if err != nil {
		t.Fatal(err)
	}
	if _, ending := agreement.Ending(p.Agreements, "beta", "alpha", beta.now()); !ending {
		t.Error("nobody is to leave")
	}
	beta.set(func() { beta.ahead -= 2 * notice })
	alpha.set(func() { alpha.stall = nil })
	close(release)
	eventually(t, "alpha knows, and beta that it does", func() bool {
		x, _ := alpha.Agreement(a.ID)
		y, _ := beta.Agreement(a.ID)
		return x.State == Ending && y.Told
	})
	x, _ := alpha.Agreement(a.ID)
	y, _ := beta.Agreement(a.ID)
	ours, theirs := x.Leave.Sub(alpha.now()), y.Leave.Sub(beta.now())
	if ours > notice || theirs > notice || ours < notice-time.Minute || theirs < notice-time.Minute || y.End.Known.Before(ended) {
		t.Errorf("alpha has %v left, beta gives %v", ours, theirs)
	}
}

// TestExpiryIsAnEnd: one that runs out has the notice too, and an end after that changes nothing.
func TestExpiryIsAnEnd(t *testing.T) {
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	a := peer.Agreement{Terms: peer.Terms{ID: "beta.a", Lender: "beta", Borrower: "alpha", From: now.Add(-time.Hour), Until: now, NoticeMS: 3_600_000},
		Signatures: map[string]string{"alpha": "x", "beta": "y"}}
	n, ending := agreement.Ending([]peer.Agreement{a}, "beta", "alpha", now.Add(time.Minute))
	if !ending || !n.From.Equal(now) || !n.By.Equal(now.Add(time.Hour)) || n.Why != "agreement beta.a ran out on 2026-03-01T12:00:00Z" {
		t.Errorf("%+v", n)
	}
}
