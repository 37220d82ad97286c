package file

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/reservoir-cloud/reservoir/placement/check"
	"github.com/reservoir-cloud/reservoir/placement/solve"
)

var update = flag.Bool("update", false, "rewrite the golden files")

const examples = "../../examples/plan"

var fixed = solve.Options{Seed: 1, Iterations: 20_000}

func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s is not as expected (rewrite it with -update):\n%s", path, got)
	}
}

func parse(t *testing.T, text string) *Problem {
	t.Helper()
	p, err := Parse([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// TestExamples solves every example; what comes out is in testdata, with one picture.
func TestExamples(t *testing.T) {
	files, err := filepath.Glob(filepath.Join(examples, "*.json"))
	if err != nil || len(files) < 5 {
		t.Fatalf("%d examples, %v", len(files), err)
	}
	for _, f := range files {
		name := strings.TrimSuffix(filepath.Base(f), ".json")
		t.Run(name, func(t *testing.T) {
			text, err := os.ReadFile(f)
			if err != nil {
				t.Fatal(err)
			}
			p := parse(t, string(text))
			s := p.Solve(fixed)
			if s.Feasible != (name != "impossible") {
				t.Errorf("feasible: %v, %s", s.Feasible, s.Why)
			}
			out, err := json.MarshalIndent(s, "", "  ")
			if err != nil {
				t.Fatal(err)
			}
			golden(t, name+".json", append(out, '\n'))
			var page bytes.Buffer
			if err := p.HTML(&page, "Plan for "+name, s); err != nil {
				t.Fatal(err)
			}
			for _, foreign := range []string{"http:", "https:", "src=", "@import", "url(", "ZgotmplZ", "<script"} {
				if strings.Contains(page.String(), foreign) {
					t.Errorf("the page has %q: it must need nothing else", foreign)
				}
			}
			if name == "swap" {
				golden(t, name+".html", page.Bytes())
			}
		})
	}
}

// TestBadInput: whatever is wrong, the error says where.
func TestBadInput(t *testing.T) {
	doc := func(hosts, vees, rules string) string {
		return fmt.Sprintf(`{"dimensions": ["cpu"], "hosts": [%s], "vees": [%s], "rules": [%s]}`, hosts, vees, rules)
	}
	const h, v = `{"name": "h", "capacity": {"cpu": 4}}`, `{"name": "v", "host": "h", "demand": {"cpu": 1}}`
	for name, c := range map[string]struct{ text, want string }{
		"empty":               {``, "no JSON"},
		"not a number":        {doc(`{"name": "h", "capacity": {"cpu": NaN}}`, v, ``), "which has no NaN"},
		"infinite":            {doc(h, `{"name": "v", "dirtyMiBPerSecond": 1e999}`, ``), "1e999"},
		"another document":    {`{"service": "web"}`, "/: missing properties"},
		"no hosts":            {`{"dimensions": ["cpu"]}`, "'hosts'"},
		"negative":            {doc(`{"name": "h", "capacity": {"cpu": -1}}`, ``, ``), "/hosts/0/capacity/cpu"},
		"enormous":            {doc(`{"name": "h", "capacity": {"cpu": 9223372036854775807}}`, ``, ``), "/hosts/0/capacity/cpu"},
		"a fraction":          {doc(`{"name": "h", "capacity": {"cpu": 1.5}}`, ``, ``), "/hosts/0/capacity/cpu"},
		"a word for a number": {doc(`{"name": "h", "price": "cheap"}`, ``, ``), "/hosts/0/price"},
		"unknown field":       {doc(`{"name": "h", "colour": "red"}`, ``, ``), "colour"},
		"unknown dimension":   {doc(`{"name": "h", "capacity": {"ram": 1}}`, ``, ``), `/hosts/0/capacity: there is no dimension "ram"`},
		"twice the dimension": {`{"dimensions": ["cpu", "cpu"], "hosts": []}`, `/dimensions/1: there are two`},
		"twice the host":      {doc(h+","+h, ``, ``), `/hosts/1: there are two hosts "h"`},
		"twice the VEE":       {doc(h, v+","+v, ``), `/vees/1: there are two VEEs "v"`},
		"host of nowhere":     {doc(h, `{"name": "v", "host": "x"}`, ``), `/vees/0/host: there is no host "x"`},
		"runs nowhere":        {doc(h, `{"name": "v", "state": "running"}`, ``), `needs a host`},
		"ready somewhere":     {doc(h, `{"name": "v", "state": "ready", "host": "h"}`, ``), `has not a host`},
		"runs on an off host": {doc(`{"name": "h", "state": "off"}`, v, ``), "which is off"},
		"unknown rule":        {doc(h, v, `{"kind": "levitate"}`), "/rules/0/kind"},
		"rule without hosts":  {doc(h, v, `{"kind": "fence", "vees": ["v"]}`), "'hosts'"},
		"rule about nobody":   {doc(h, v, `{"kind": "root", "vees": ["w"]}`), `/rules/0: there is no VEE "w"`},
		"rule without a tag":  {doc(h, v, `{"kind": "root", "vees": ["#w"]}`), `no VEE has the tag "w"`},
		"wrong state":         {doc(h, v, `{"kind": "state", "vees": ["v"], "state": "on"}`), "/rules/0/state"},
		"negative weight":     {doc(h, v, `{"kind": "root", "vees": ["v"], "weight": -1}`), "/rules/0/weight"},
		"no such dimension":   {doc(h, v, `{"kind": "preserve", "vees": ["v"], "dimension": "ram", "amount": 1}`), `there is no dimension "ram"`},
	} {
		if _, err := Parse([]byte(c.text)); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want it to say %q", name, err, c.want)
		}
	}
}

// TestAlwaysAnAnswer: what is odd but no mistake has an answer, and what cannot be says why.
func TestAlwaysAnAnswer(t *testing.T) {
	doc := func(hosts, vees, rules, more string) string {
		return fmt.Sprintf(`{"dimensions": ["cpu"], "hosts": [%s], "vees": [%s], "rules": [%s]%s}`, hosts, vees, rules, more)
	}
	const two = `{"name": "a", "capacity": {"cpu": 4}}, {"name": "b", "capacity": {"cpu": 4}}`
	const pair = `{"name": "v", "host": "a", "demand": {"cpu": 1}}, {"name": "w", "host": "a", "demand": {"cpu": 1}}`
	never := solve.Options{Stop: func() bool { return true }}
	for name, c := range map[string]struct {
		text string
		o    solve.Options
		why  string // empty: there is a plan
	}{
		"nothing at all":             {doc(``, ``, ``, ``), fixed, ""},
		"zero capacity, zero demand": {doc(`{"name": "h"}`, `{"name": "v", "host": "h"}`, ``, ``), fixed, ""},
		"zero capacity":              {doc(`{"name": "h"}`, `{"name": "v", "host": "h", "demand": {"cpu": 1}}`, ``, ``), fixed, "too little cpu"},
		"the largest capacity":       {doc(`{"name": "h", "capacity": {"cpu": 4398046511104}}, {"name": "i", "capacity": {"cpu": 1}}`, `{"name": "v", "host": "i", "demand": {"cpu": 4398046511104}}`, ``, ``), fixed, ""},
		"no host for a VEE":          {doc(``, `{"name": "v"}`, `{"kind": "state", "vees": ["v"], "state": "running"}`, ``), fixed, "VEE v"},
		"together and apart":         {doc(two, pair, `{"kind": "gather", "vees": ["v", "w"]}, {"kind": "spread", "vees": ["v", "w"], "name": "apart"}`, ``), fixed, "no"},
		"on and off":                 {doc(two, pair, `{"kind": "power", "hosts": ["a"], "state": "off"}, {"kind": "power", "hosts": ["a"], "state": "on"}, {"kind": "root", "vees": ["v"]}, {"kind": "ban", "vees": ["v"], "hosts": ["a"]}`, ``), fixed, "drop one"},
		"soft rules give way":        {doc(two, pair, `{"kind": "gather", "vees": ["v", "w"], "weight": 1}, {"kind": "spread", "vees": ["v", "w"], "weight": 2}`, ``), fixed, ""},
		"no time":                    {doc(two, pair, `{"kind": "spread", "vees": ["v", "w"]}`, ``), never, "more time"},
		"no time and nothing to do":  {doc(two, pair, ``, `, "objective": {"balance": 1}`), never, ""},
		"a deadline of zero seconds": {doc(two, pair, `{"kind": "spread", "vees": ["v", "w"]}, {"kind": "deadline", "vees": ["v", "w"], "seconds": 0}`, `, "migration": {"leastSeconds": 1}`), fixed, "by 0s"},
		"an empty rule":              {doc(two, pair, `{"kind": "spread", "vees": []}`, ``), fixed, ""},
	} {
		t.Run(name, func(t *testing.T) {
			p := parse(t, c.text)
			s := p.Solve(c.o)
			if s.Feasible != (c.why == "") || !strings.Contains(s.Why, c.why) {
				t.Errorf("feasible: %v, %q; want %q", s.Feasible, s.Why, c.why)
			}
			if err := p.HTML(&bytes.Buffer{}, name, s); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestEveryKind: the schema, the code and the documentation have the same kinds of rules.
func TestEveryKind(t *testing.T) {
	var schema struct {
		Properties struct {
			Rules struct {
				Items struct {
					Properties struct {
						Kind struct{ Enum []string }
					}
				}
			}
		}
	}
	if err := json.Unmarshal(Schema, &schema); err != nil {
		t.Fatal(err)
	}
	doc, err := os.ReadFile("../../docs/placement.md")
	if err != nil {
		t.Fatal(err)
	}
	kinds := schema.Properties.Rules.Items.Properties.Kind.Enum
	if len(kinds) < 29 {
		t.Errorf("%d kinds", len(kinds))
	}
	for _, k := range kinds {
		p := parse(t, fmt.Sprintf(`{"dimensions": ["cpu"], "hosts": [{"name": "h", "capacity": {"cpu": 2}}, {"name": "i", "capacity": {"cpu": 2}}], "vees": [{"name": "v", "host": "h", "demand": {"cpu": 1}}],
			"rules": [{"kind": %q, "vees": ["v"], "on": ["v"], "hosts": ["h"], "groups": [["h"]], "sets": [["v"]], "dimension": "cpu", "amount": 1, "ratio": 1, "max": 1, "min": 1, "state": %q, "label": "x", "hypervisor": "x", "seconds": 9}]}`,
			k, map[bool]string{true: "on", false: "running"}[k == "power"]))
		if len(p.Model.Rules) != 1 || p.rules[0].String() == "" {
			t.Errorf("%s: %+v", k, p.Model.Rules)
		}
		p.Solve(solve.Options{Iterations: 10})
		if !bytes.Contains(doc, []byte("`"+k+"`")) {
			t.Errorf("docs/placement.md does not name the rule %s", k)
		}
	}
}

func TestWhyHosts(t *testing.T) {
	text, err := os.ReadFile(filepath.Join(examples, "impossible.json"))
	if err != nil {
		t.Fatal(err)
	}
	p := parse(t, string(text))
	all, err := p.WhyHosts("ledger", "")
	if err != nil || len(all) != 3 {
		t.Fatalf("%+v, %v", all, err)
	}
	if all[0].OK || !slices.Equal(all[0].Against, []string{`rule "apart" (spread ledger, vault)`}) || !all[1].Here || all[1].OK {
		t.Errorf("%+v", all)
	}
	if one, err := p.WhyHosts("ledger", "h2"); err != nil || len(one) != 1 {
		t.Errorf("%+v, %v", one, err)
	}
	for _, c := range [][2]string{{"nobody", ""}, {"ledger", "nowhere"}} {
		if _, err := p.WhyHosts(c[0], c[1]); err == nil {
			t.Errorf("%v: no error", c)
		}
	}
}

// FuzzParse: whatever is in a file, it is refused or it has a solution that says what it is.
func FuzzParse(f *testing.F) {
	files, err := filepath.Glob(filepath.Join(examples, "*.json"))
	if err != nil {
		f.Fatal(err)
	}
	for _, name := range files {
		text, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		p, err := Parse(text)
		if err != nil || len(p.Model.VEEs)*len(p.Model.Hosts)*len(p.Model.Rules) > 1e6 {
			return
		}
		s := p.Solve(solve.Options{Seed: 1, Iterations: 50})
		switch {
		case s.Feasible == (s.Why != ""):
			t.Errorf("feasible: %v, why: %q", s.Feasible, s.Why)
		case s.Feasible && check.Plan(p.Model, s.plan) != nil:
			t.Error("a plan that does not hold")
		case strings.Contains(s.Why, "does not hold"):
			t.Errorf("the checker rejects the solver's plan: %s", s.Why)
		}
	})
}
