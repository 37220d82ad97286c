package sites

import (
	"strings"
	"testing"

	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/vee"
	"github.com/reservoir-cloud/reservoir/vmi"
	sitepeer "github.com/reservoir-cloud/reservoir/vmi/peer"
)

// world of three sites: alpha at home in Stockholm, beta cheap and clean in Helsinki, gamma
// in Berlin, where somebody wants its heat.
func world(s *scene) {
	site := func(name, country, law string, lat, long, co2, heat float64) sitepeer.Attributes {
		return sitepeer.Attributes{Site: name, GoodMS: 60_000, Characteristics: sitepeer.Characteristics{Availability: 0.999,
			Location: sitepeer.Location{Country: country, Jurisdiction: law, Latitude: lat, Longitude: long}},
			State: sitepeer.State{Energy: sitepeer.Energy{GramsKWh: co2}, HeatWanted: heat, Free: vee.Resources{MilliCPU: 4000, Memory: 4 * vee.GiB}}}
	}
	s.Offers = map[string]sitepeer.Attributes{
		"alpha": site("alpha", "SE", "EU", 59.3, 18.1, 40, 0),
		"beta":  site("beta", "FI", "EU", 60.2, 24.9, 20, 0.2),
		"gamma": site("gamma", "DE", "EU", 52.5, 13.4, 350, 0.9),
	}
	s.PerHour = map[string]float64{"alpha": 0.03, "beta": 0.01, "gamma": 0.02}
}

// TestPoliciesOverSites: the first placement goes where each policy says, and says why there
// and why not elsewhere.
func TestPoliciesOverSites(t *testing.T) {
	berlin := &vee.Point{Latitude: 52.5, Longitude: 13.4}
	for _, c := range []struct {
		name  string
		where vee.Where
		vees  int
		want  string // where each goes
		why   string // of the last
	}{
		{"overflow", vee.Where{}, 1, "h1", ""},
		{"overflow, full", vee.Where{}, 5, "h1 h1 h1 h1 @beta", "no host here takes it; site beta does, for 0.01 EUR an hour (agreement beta.aaaaaaaaaa)"},
		{"cost", vee.Where{Partners: vee.PartnersCost}, 1, "@beta", "here it is 0.03"},
		{"cost, but not there", vee.Where{Partners: vee.PartnersCost, Without: []string{"beta"}}, 1, "@gamma", "site beta not: it may not run at beta"},
		{"location", vee.Where{Partners: vee.PartnersLocation, Users: berlin}, 1, "@gamma", "0 km from the users"},
		{"energy", vee.Where{Partners: vee.PartnersEnergy}, 1, "@beta", "20 g CO₂/kWh"},
		{"heat", vee.Where{Partners: vee.PartnersHeat}, 1, "@gamma", "90% of its heat is wanted"},
		{"spread", vee.Where{Partners: vee.PartnersSpread}, 4, "h1 @beta @gamma h1", ""},
		{"never", vee.Where{Partners: vee.PartnersNever}, 5, "h1 h1 h1 h1", "@beta, @gamma: it does not go to partners"},
		{"country", vee.Where{Countries: []vee.Area{{Name: "DE"}}}, 1, "@gamma", "site beta not: it may run in DE alone, and site beta says FI"},
		{"law", vee.Where{Jurisdictions: []vee.Area{{Name: "EU", Outside: true}}}, 1, "", "@beta, @gamma: it may not run under the law of EU"},
		{"requirement", vee.Where{Requirement: `co2 < 100 && country != "SE"`}, 1, "@beta", `site gamma not: co2 < 100 does not hold: co2 is 350`},
		{"requirement of nobody", vee.Where{Requirement: `availability > 0.9999`}, 1, "", "h1: availability > 0.9999 does not hold: availability is 0.999"},
		{"heat of some", vee.Where{Partners: vee.PartnersHeat, Requirement: "heat < 0.5"}, 1, "@beta", "site gamma not: heat < 0.5 does not hold: heat is 0.9"},
	} {
		t.Run(c.name, func(t *testing.T) {
			stage(t, 1, []string{"alpha", "beta", "gamma"}, func(s *scene) {
				world(s)
				a := s.Sites["alpha"]
				in := vmi.Initialize{Model: vmi.BestEffort}
				for range c.vees {
					in.VEEs = append(in.VEEs, vmi.InitializeVEE{Descriptor: vee.Descriptor{Name: "web-" + string(rune('a'+len(in.VEEs))), Customer: "acme", GroupID: "shop",
						VCPUs: 1, Memory: 64 * vee.MiB, Tags: []string{"web"}, Where: c.where}})
				}
				var got []string
				var why string
				plan := func(in vmi.Initialize) {
					p, err := a.m.Plan(a.As(), in)
					s.must(err)
					for _, x := range p {
						got, why = append(got, x.Host), x.Why
					}
				}
				if c.name == "spread" { // one after the other, as replicas come
					for _, v := range in.VEEs {
						v.Descriptor.Name = "web-" + string(rune('a'+len(got)))
						out, err := a.m.InitializeVEEs(a.As(), vmi.Initialize{Model: vmi.TwoPhase, VEEs: []vmi.InitializeVEE{v}})
						s.must(err)
						got = append(got, out.VEEs[0].Host)
						why = out.VEEs[0].Why
					}
				} else {
					plan(in)
				}
				if strings.TrimSpace(strings.Join(got, " ")) != c.want || !strings.Contains(why, c.why) {
					t.Errorf("placed %q: %s; want %q: %s", got, why, c.want, c.why)
				}
			})
		})
	}
}

// What a site lets callers say of policies, and mistakes in what they say.
func TestMistakenWishes(t *testing.T) {
	stage(t, 1, []string{"alpha", "beta"}, func(s *scene) {
		a := s.Sites["alpha"]
		for want, where := range map[string]vee.Where{
			"want one of":          {Partners: "mood"},
			"where the users are":  {Partners: vee.PartnersLocation},
			"undeclared reference": {Requirement: "cpus > 1"},
			"want a comparison":    {Requirement: "load"},
			"needs to know where":  {Requirement: "km < 100"},
			"at most 64":           {Sites: make([]string, 1000)},
		} {
			_, err := a.m.Plan(a.As(), vmi.Initialize{Model: vmi.TwoPhase, VEEs: []vmi.InitializeVEE{{Descriptor: vee.Descriptor{
				Name: "web", Customer: "acme", GroupID: "shop", VCPUs: 1, Memory: vee.GiB, Where: where}}}})
			if !fault.Has(err, fault.Malformed) || !strings.Contains(err.Error(), want) {
				t.Errorf("%+v: %v, want %q", where.Partners, err, want)
			}
		}
	})
}
