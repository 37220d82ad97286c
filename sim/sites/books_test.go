package sites

import (
	"testing"
	"time"

	"github.com/reservoir-cloud/reservoir/vee"
	"github.com/reservoir-cloud/reservoir/vmi"
)

// booksAgree about all that beta has lent to alpha, at both.
func (s *scene) booksAgree() {
	s.t.Helper()
	for _, name := range []string{"alpha", "beta"} {
		x, err := s.Sites[name].Settlement("beta", "alpha")
		if err != nil || !x.Agree {
			s.t.Errorf("the books, as %s sees them: %v; %s; %+v", name, err, x.Why, x.Differences)
		}
	}
}

// A VEE's life at a partner, with everything that changes what it costs; in it each manager is
// away for a while, and the two are apart while the partner goes on.
func TestBooksOfTwoSites(t *testing.T) {
	stage(t, 2, []string{"alpha", "beta"}, func(s *scene) {
		alpha, beta := s.Sites["alpha"], s.Sites["beta"]
		id := s.deploy(vee.RestartInPlace)
		s.migrate(id, "@beta")
		s.settled(id)
		do := func(action vee.Action, want vee.State) {
			t.Helper()
			_, err := alpha.Manager().UpdateState(alpha.As(), vmi.UpdateState{Collection: vmi.Collection{IDs: []vee.ID{id}}, Action: action})
			s.must(err)
			s.until(string(want), func() bool { return s.get(id).State == want })
			time.Sleep(17 * time.Second)
		}
		do(vee.Pause, vee.Paused)
		do(vee.Activate, vee.Active)
		beta.Stop()
		time.Sleep(time.Minute)
		s.must(beta.Start())
		do(vee.Suspend, vee.Suspended)
		do(vee.Activate, vee.Active)
		alpha.Stop()
		time.Sleep(time.Minute)
		s.must(alpha.Start())
		s.settled(id)
		cut(s, between)
		time.Sleep(10 * time.Minute)
		cut(s, nil)
		time.Sleep(time.Minute)
		s.booksAgree()
		more := 2 * vee.Bytes(64) * vee.MiB
		_, err := alpha.Manager().UpdateVEEs(alpha.As(), []vmi.VEEUpdate{{ID: id, Memory: &more}})
		s.must(err)
		time.Sleep(time.Minute)
		do(vee.Shutdown, vee.Defined)
		do(vee.Activate, vee.Active)
		s.migrate(id, "h1")
		s.settled(id)
		time.Sleep(time.Minute)
		s.booksAgree()
		x, err := alpha.Settlement("beta", "alpha")
		if err != nil || len(x.Bill.Charges) != 0 { // these agreements have no prices
			t.Errorf("%+v, %v", x, err)
		}
		lines, err := beta.Settlement("beta", "alpha")
		if err != nil || lines.Until.Before(time.Now().Add(-time.Minute)) {
			t.Errorf("known until %s, and it is %s: %v", lines.Until, time.Now(), err)
		}
	})
}
