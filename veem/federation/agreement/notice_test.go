package agreement

import (
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/vmi/peer"
)

func dated(t *testing.T, id string, from, until time.Time, change ...func(*peer.Agreement)) peer.Agreement {
	a := signed(t)
	a.ID, a.From, a.Until = id, from, until
	for _, f := range change {
		f(&a)
	}
	return a
}

func endedBy(site string, at time.Time) func(*peer.Agreement) {
	return func(a *peer.Agreement) { a.End = &peer.End{By: site, At: at} }
}

func TestEnding(t *testing.T) {
	day, soon := 24*time.Hour, now.Add(time.Hour)
	year := now.AddDate(1, 0, 0)
	for name, c := range map[string]struct {
		list []peer.Agreement
		by   time.Time // zero: nobody has to leave
		why  string
	}{
		"none":                 {nil, time.Time{}, ""},
		"in force":             {[]peer.Agreement{dated(t, "beta.a", now, year)}, time.Time{}, ""},
		"ended":                {[]peer.Agreement{dated(t, "beta.a", now, year, endedBy("alpha", now))}, now.Add(day), "ended by site alpha"},
		"run out":              {[]peer.Agreement{dated(t, "beta.a", now.Add(-day), now)}, now.Add(day), "ran out"},
		"another covers it":    {[]peer.Agreement{dated(t, "beta.a", now, year, endedBy("alpha", now)), dated(t, "beta.b", now, year)}, time.Time{}, ""},
		"the longer of two":    {[]peer.Agreement{dated(t, "beta.a", now.Add(-day), now), dated(t, "beta.b", now, year, endedBy("beta", now.Add(time.Minute)))}, now.Add(day + time.Minute), "beta.b"},
		"still to come":        {[]peer.Agreement{dated(t, "beta.a", soon.Add(day), year)}, time.Time{}, ""},
		"never signed by both": {[]peer.Agreement{dated(t, "beta.a", now, year, func(a *peer.Agreement) { delete(a.Signatures, "beta") })}, time.Time{}, ""},
	} {
		n, ending := Ending(c.list, "beta", "alpha", soon)
		if ending != !c.by.IsZero() || !n.By.Equal(c.by) || !strings.Contains(n.Why, c.why) {
			t.Errorf("%s: %v, %+v", name, ending, n)
		}
		_, stays := Stays(c.list, "beta", "alpha", soon)
		if _, other := Ending(c.list, "alpha", "beta", soon); other {
			t.Errorf("%s: the other way round", name)
		}
		if covered := len(c.list) > 0 && c.by.IsZero() && name != "still to come" && name != "never signed by both"; stays != (covered || ending) {
			t.Errorf("%s: stays %v", name, stays)
		}
	}
}

// Who is told to leave has no agreement that covers it, and is not there any more under any when
// the notice is over.
func TestWhoLeavesHasNoAgreement(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		var list []peer.Agreement
		hours := rapid.IntRange(-48, 48)
		at := func(label string) time.Time { return now.Add(time.Duration(hours.Draw(rt, label)) * time.Hour) }
		for range rapid.IntRange(0, 4).Draw(rt, "agreements") {
			a := dated(t, "beta.a", at("from"), at("until"))
			if rapid.Bool().Draw(rt, "ended") {
				a.End = &peer.End{By: "beta", At: at("end")}
			}
			list = append(list, a)
		}
		moment := at("now")
		n, ending := Ending(list, "beta", "alpha", moment)
		stay, stays := Stays(list, "beta", "alpha", moment)
		switch {
		case ending && stays && stay.Covers(moment):
			rt.Fatalf("told to leave by %v under %+v", n, stay)
		case ending && stays != moment.Before(n.By):
			rt.Fatalf("notice %+v, stays %v", n, stays)
		}
	})
}

func TestCovers(t *testing.T) {
	year := now.AddDate(1, 0, 0)
	a := dated(t, "beta.a", now, year)
	for want, err := range map[string]error{
		"":                      Covers([]peer.Agreement{a}, "beta", "alpha", now, year),
		"is in force until":     Covers([]peer.Agreement{a}, "beta", "alpha", now, year.Add(time.Second)),
		"in force only from":    Covers([]peer.Agreement{a}, "beta", "alpha", now.Add(-time.Second), year),
		"was ended by alpha":    Covers([]peer.Agreement{dated(t, "beta.a", now, year, endedBy("alpha", now))}, "beta", "alpha", now, year),
		"there is no agreement": Covers([]peer.Agreement{a}, "alpha", "beta", now, year),
	} {
		if want == "" && err != nil || want != "" && (!fault.Has(err, fault.Denied) && !fault.Has(err, fault.WrongState) || !strings.Contains(err.Error(), want)) {
			t.Errorf("%v, want %q", err, want)
		}
	}
}
