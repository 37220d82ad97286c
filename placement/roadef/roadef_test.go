package roadef

import (
	"strings"
	"testing"

	"github.com/reservoir-cloud/reservoir/placement/reassign"
)

// two resources, the first transient; four machines, two services, three processes, one
// balance: the example of the challenge's subject in shape.
const model = `2
1 100 0 10
4
0 0 30 400 16 80 0 1 4 5
0 0 10 240 8 160 1 0 3 4
1 1 15 100 12 80 4 3 0 2
1 2 10 100 8 80 5 4 2 0
2
2 0
1 1 0
3
0 12 10 1000
0 10 20 100
1 6 200 1
1
0 1 20
10
1 10 100`

const assignment = "0 3 0"

func TestRead(t *testing.T) {
	p, err := Read(strings.NewReader(model), strings.NewReader(assignment))
	if err != nil {
		t.Fatal(err)
	}
	cost, err := p.Cost(p.Initial)
	if err != nil {
		t.Fatal(err)
	}
	// Machine 0 uses 18, 2 above its safety of 16, and 210, 130 above 80; machine 3 uses 10,
	// 2 above 8. Balance: 20·12−190, 20·10−240, 20·15−100, 20·0−80.
	if want := int64(100*2 + 10*130 + 100*2 + 10*(50+0+200+0)); cost != want {
		t.Errorf("the initial assignment costs %d, want %d", cost, want)
	}
	best, err := reassign.Improve(p, reassign.Options{Iterations: 20000})
	if err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	if err := WriteAssignment(&out, best.At); err != nil || len(strings.Fields(out.String())) != 3 {
		t.Errorf("wrote %q, %v", out.String(), err)
	}
}

func TestReadBad(t *testing.T) {
	for name, c := range map[string]struct{ model, assignment, want string }{
		"empty":         {"", "", "number of resources is missing"},
		"words":         {"two", "", `"two": not a number`},
		"negative":      {"-2", "", "not a number from 0 on"},
		"enormous":      {"99999999999", "", "not below"},
		"cut":           {model[:60], assignment, "is missing"},
		"no assignment": {model, "0 3", "machine of a process is missing"},
		"no machine":    {model, "0 3 4", "not below 4"},
		"no service":    {strings.Replace(model, "1 6 200 1", "7 6 200 1", 1), assignment, "service is 7"},
	} {
		if _, err := Read(strings.NewReader(c.model), strings.NewReader(c.assignment)); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want it to say %q", name, err, c.want)
		}
	}
}

func FuzzRead(f *testing.F) {
	f.Add(model, assignment)
	f.Fuzz(func(t *testing.T, m, a string) {
		if p, err := Read(strings.NewReader(m), strings.NewReader(a)); err == nil {
			_, _ = p.Cost(p.Initial)
		}
	})
}
