package broker

import (
	"errors"
	"flag"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/reservoir-cloud/reservoir/account/billing"
	"github.com/reservoir-cloud/reservoir/account/money"
	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/vee"
	"github.com/reservoir-cloud/reservoir/vmi/peer"
)

var update = flag.Bool("update", false, "write the golden files anew")

func site(name, country string, vcpus int, price string, change ...func(*Candidate)) Candidate {
	amount, err := money.Parse(price)
	if err != nil {
		panic(err)
	}
	prices := map[billing.Meter]money.Amount{billing.VCPUs: amount}
	c := Candidate{Age: time.Second, Attributes: peer.Attributes{Site: name, GoodMS: 10_000,
		Characteristics: peer.Characteristics{Location: peer.Location{Country: country, Latitude: 60, Longitude: 18}, Currency: "EUR", Prices: prices, Hypervisors: []string{"qemu"}},
		State:           peer.State{Free: vee.Resources{MilliCPU: int64(vcpus) * 1000, Memory: 64 * vee.GiB, Disk: vee.TiB}, Load: 0.5, FreeByType: map[string]int{"small": vcpus}},
	}}
	c.Agreement = &peer.Agreement{Terms: peer.Terms{Currency: "EUR", Prices: prices}}
	for _, f := range change {
		f(&c)
	}
	return c
}

// world of the golden files.
func world() []Candidate {
	return []Candidate{
		site("alpha", "SE", 2, "0.02", func(c *Candidate) { c.Here, c.Agreement = true, nil }),
		site("beta", "FI", 40, "0.03", func(c *Candidate) {
			c.State.Energy = peer.Energy{Condition: "scarce", GramsKWh: 80}
			c.Characteristics.Location.Longitude = 25
		}),
		site("gamma", "DE", 100, "0.01", func(c *Candidate) {
			c.State.HeatWanted, c.State.Energy.GramsKWh, c.Characteristics.Location.Latitude = 0.8, 350, 52
		}),
		site("delta", "SE", 100, "0.01", func(c *Candidate) { c.Agreement = nil }),
		site("epsilon", "SE", 100, "0.01", func(c *Candidate) { c.Age = time.Minute }),
		site("zeta", "SE", 100, "0.01", func(c *Candidate) { c.Silent = errors.New("site zeta does not answer: connection refused") }),
	}
}

func print(a Answer) string {
	var b strings.Builder
	fmt.Fprintf(&b, "order %s\n", a.Order)
	for _, m := range a.Fit {
		fmt.Fprintf(&b, "  %-8s %s\n", m.Site, m.Why)
	}
	for _, r := range a.Refused {
		fmt.Fprintf(&b, "- %-8s %s\n", r.Site, strings.Join(r.Why, "; "))
	}
	return b.String()
}

func TestAnswers(t *testing.T) {
	stockholm := &vee.Point{Latitude: 59.3, Longitude: 18.1}
	vees := Size{VCPUs: 2, Memory: vee.GiB, Disk: 10 * vee.GiB}
	var got strings.Builder
	for _, q := range []Question{
		{},
		{VEE: vees, Count: 4},
		{VEE: vees, Order: Overflow},
		{Requirement: `country in ["SE", "FI"] && free.vcpus >= 8 && load < 0.9`},
		{Requirement: `hour < 0.05 && price["vcpu"] < 0.025`, VEE: vees},
		{Requirement: `fits["large"] > 1`},
		{Requirement: `km < 1000 || here`, Users: stockholm, Order: Location},
		{Requirement: `energy == "normal" && co2 < 100`, Order: Energy},
		{Requirement: `heat > 0.5`, Order: Heat},
		{Requirement: `agreement && "qemu" in hypervisors && !(site == "beta")`},
	} {
		b, err := New(q)
		if err != nil {
			t.Fatalf("%+v: %v", q, err)
		}
		fmt.Fprintf(&got, "%q, %d × %d vCPUs\n%s\n", q.Requirement, q.Count, q.VEE.VCPUs, print(b.Answer(world())))
	}
	path := filepath.Join("testdata", "answers.txt")
	if *update {
		if err := os.WriteFile(path, []byte(got.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got.String() != string(want) {
		t.Errorf("got\n%s\nwant\n%s", got.String(), want)
	}
}

func TestMisunderstood(t *testing.T) {
	for want, q := range map[string]Question{
		"Syntax error":         {Requirement: "free.vcpus >"},
		"undeclared":           {Requirement: "cpus > 1"},
		"want a comparison":    {Requirement: "load"},
		"no matching overload": {Requirement: `country > 3`},
		"bytes":                {Requirement: strings.Repeat("x", maxText+1)},
		"one of":               {Order: "mood"},
		"where the users are":  {Order: Location},
		"needs to know":        {Requirement: "km < 5"},
		"latitude":             {Users: &vee.Point{Latitude: 91}},
		"VEEs of":              {VEE: Size{VCPUs: -1}},
	} {
		if _, err := New(q); !fault.Has(err, fault.Malformed) || !strings.Contains(err.Error(), want) {
			t.Errorf("%.60q: %v, want %q", q.Requirement, err, want)
		}
	}
	if _, err := New(Question{Users: &vee.Point{Latitude: math.NaN()}}); err == nil {
		t.Error("users nowhere")
	}
}

// TestDearRequirement: one that would take for ever is refused for each site, with a reason.
func TestDearRequirement(t *testing.T) {
	list := "[" + strings.TrimSuffix(strings.Repeat("1,", 40), ",") + "]"
	b, err := New(Question{Requirement: fmt.Sprintf("%[1]s.all(a, %[1]s.all(b, %[1]s.all(c, %[1]s.all(d, a + b + c + d > 0))))", list)})
	if err != nil {
		t.Fatal(err)
	}
	a := b.Answer(world()[:1])
	if len(a.Refused) != 1 || !strings.Contains(a.Refused[0].Why[0], "cost limit") {
		t.Errorf("%+v", a)
	}
}

// TestEverySiteIsAnswered once: it fits or is refused with a reason, whatever it says of
// itself and whatever the others do.
func TestEverySiteIsAnswered(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		q := Question{Requirement: rapid.SampledFrom([]string{"", "load < 0.5", "free.vcpus > 3 && heat > 0.2", `fits["x"] > 1`}).Draw(rt, "requirement"),
			Order: rapid.SampledFrom(Orders).Draw(rt, "order"), Users: &vee.Point{Latitude: 10, Longitude: 10}, Count: rapid.IntRange(0, 3).Draw(rt, "count"), VEE: Size{VCPUs: 1}}
		b, err := New(q)
		if err != nil {
			rt.Fatal(err)
		}
		var all []Candidate
		for i := range rapid.IntRange(0, 8).Draw(rt, "sites") {
			all = append(all, site(fmt.Sprintf("s%d", i), "SE", rapid.IntRange(-1, 9).Draw(rt, "free"), "0.01", func(c *Candidate) {
				c.State.Load, c.State.HeatWanted = rapid.Float64().Draw(rt, "load"), rapid.Float64().Draw(rt, "heat")
				c.Age = time.Duration(rapid.IntRange(0, 20).Draw(rt, "age")) * time.Second
			}))
		}
		a := b.Answer(all)
		if len(a.Fit)+len(a.Refused) != len(all) {
			rt.Fatalf("%d sites, %d fit, %d refused", len(all), len(a.Fit), len(a.Refused))
		}
		for _, r := range a.Refused {
			if len(r.Why) == 0 {
				rt.Fatalf("%s is refused without a reason", r.Site)
			}
		}
		for _, m := range a.Fit {
			if m.AgeMS > 10_000 {
				rt.Fatalf("%s fits by attributes of %d ms", m.Site, m.AgeMS)
			}
		}
	})
}

func FuzzRequirement(f *testing.F) {
	f.Add(`country in ["SE"] && free.vcpus >= 8`)
	f.Add(`[1,2].exists(x, x > load)`)
	f.Fuzz(func(t *testing.T, text string) {
		b, err := New(Question{Requirement: text, Users: &vee.Point{Latitude: 1, Longitude: 1}})
		if err == nil {
			b.Answer(world())
		}
	})
}

func TestDistance(t *testing.T) {
	if got := distance(vee.Point{Latitude: 59.33, Longitude: 18.07}, vee.Point{Latitude: 60.17, Longitude: 24.94}); math.Abs(got-396) > 5 { // Stockholm, Helsinki
		t.Errorf("%v km", got)
	}
}
