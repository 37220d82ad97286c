package solve_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/reservoir-cloud/reservoir/placement/check"
	"github.com/reservoir-cloud/reservoir/placement/model"
	"github.com/reservoir-cloud/reservoir/placement/solve"
)

// rack of four hosts with links of 100 MiB/s that migrations share, and VEEs that are to
// move, each given as "from:to:MiB".
func rack(vees ...string) *model.Model {
	m := model.New("cpu")
	m.Migration = model.Migration{MiBs: 100, Shared: true}
	for h := range 4 {
		m.AddHost(model.Host{Name: fmt.Sprint("h", h)}, 100)
	}
	for i, text := range vees {
		x := model.VEE{Name: fmt.Sprint("v", i), State: model.Running}
		var to int32
		fmt.Sscanf(text, "%d:%d:%d", &x.Host, &to, &x.MemoryMiB)
		m.Require(model.Fence{VEEs: []int32{m.AddVEE(x, 1)}, Hosts: []int32{to}})
	}
	return m
}

// TestSharedLinks: what the plan gives each migration: "VEE from-to s at MiB/s".
func TestSharedLinks(t *testing.T) {
	for name, c := range map[string]struct {
		m      *model.Model
		change func(*model.Model)
		want   string
	}{
		"one after the other over one link": {rack("0:1:1000", "0:1:500"), nil, "v1 0-5 at 100; v0 5-15 at 100"},
		"beside each other over others":     {rack("0:1:1000", "2:3:1000"), nil, "v0 0-10 at 100; v1 0-10 at 100"},
		"both ways at once":                 {rack("0:1:1000", "1:0:1000"), nil, "v0 0-10 at 100; v1 0-10 at 100"},
		"narrow sources, a wide target": {rack("0:3:500", "1:3:500"), func(m *model.Model) { m.Hosts[0].LinkMiBs, m.Hosts[1].LinkMiBs = 50, 50 },
			"v0 0-10 at 50; v1 0-10 at 50"},
		"what others leave, where waiting is no better": {rack("0:3:600", "1:3:400"), func(m *model.Model) { m.Hosts[0].LinkMiBs, m.Hosts[1].LinkMiBs = 60, 60 },
			"v1 0-6.67 at 60; v0 0-15 at 40"},
		"a rack's uplink": {rack("0:2:1000", "1:3:1000"), func(m *model.Model) { m.Migration.Links = []model.Link{{Hosts: []int32{0, 1}, MiBs: 120}} },
			"v0 0-10 at 100; v1 10-20 at 100"},
		"within the rack the uplink is not crossed": {rack("0:1:1000"), func(m *model.Model) { m.Migration.Links = []model.Link{{Hosts: []int32{0, 1}, MiBs: 1}} },
			"v0 0-10 at 100"},
		"busy VEEs are not slowed down by others": {rack("0:1:1000", "0:1:1000"), func(m *model.Model) {
			for v := range m.VEEs {
				m.VEEs[v].DirtyMiBs, m.VEEs[v].HotMiB = 50, 100
			}
		}, "v0 0-12 at 100; v1 12-24 at 100"},
		"no more than the least time needs": {rack("0:1:100", "0:1:100"), func(m *model.Model) { m.Migration.Least = 2 * time.Second },
			"v0 0-2 at 50; v1 0-2 at 50"},
		"slots besides":             {rack("0:3:500", "1:3:500"), func(m *model.Model) { m.Hosts[0].LinkMiBs, m.Hosts[1].LinkMiBs, m.Migration.Slots = 50, 50, 1 }, "v0 0-10 at 50; v1 10-20 at 50"},
		"together":                  {rack("0:1:1000", "0:1:500"), func(m *model.Model) { m.Require(model.Sync{VEEs: []int32{0, 1}}) }, "v1 0-10 at 50; v0 0-20 at 50"},
		"at once":                   {rack("0:1:500", "0:1:1000"), func(m *model.Model) { m.Require(model.NoDelay{VEEs: []int32{1}}) }, "v1 0-10 at 100; v0 10-15 at 100"},
		"by a deadline":             {rack("0:1:500", "0:1:1000"), func(m *model.Model) { m.Require(model.Deadline{VEEs: []int32{1}, By: 11 * time.Second}) }, "v1 0-10 at 100; v0 10-15 at 100"},
		"by an impossible deadline": {rack("0:1:1000"), func(m *model.Model) { m.Require(model.Deadline{VEEs: []int32{0}, By: time.Second}) }, "error: plan the reconfiguration: the plan found breaks a rule: VEEs [0] by 1s: v0 ends after 10s"},
		"in order":                  {rack("0:1:500", "2:3:1000"), func(m *model.Model) { m.Require(model.Seq{VEEs: []int32{1, 0}}) }, "v1 0-10 at 100; v0 10-15 at 100"},
		"one before the other":      {rack("0:1:500", "2:3:1000"), func(m *model.Model) { m.Require(model.Precedence{Before: []int32{1}, After: []int32{0}}) }, "v1 0-10 at 100; v0 10-15 at 100"},
		"never two":                 {rack("0:1:500", "2:3:1000"), func(m *model.Model) { m.Require(model.Serialize{VEEs: []int32{0, 1}}) }, "v0 0-5 at 100; v1 5-15 at 100"},
		"a link of nothing much":    {rack("0:1:1000", "0:1:1000", "0:1:1000", "0:1:1000", "0:1:1000"), func(m *model.Model) { m.Migration.MiBs = 1e-300 }, "error: plan the reconfiguration: it takes longer than 73 years: give migrations more bandwidth"},
	} {
		t.Run(name, func(t *testing.T) {
			if c.change != nil {
				c.change(c.m)
			}
			if err := c.m.Validate(); err != nil {
				t.Fatal(err)
			}
			p, err := solved(c.m, solve.Options{})
			var got []string
			for _, a := range p.Actions {
				got = append(got, fmt.Sprintf("v%d %.3g-%.3g at %.3g", a.VEE, a.Start.Seconds(), a.End.Seconds(), a.MiBs))
			}
			text := strings.Join(got, "; ")
			if err != nil {
				text = "error: " + err.Error()
			} else if err := check.Plan(c.m, p); err != nil {
				t.Errorf("the checker says: %v", err)
			}
			if text != c.want {
				t.Errorf("got  %s\nwant %s", text, c.want)
			}
		})
	}
}

// TestBusiestFirst: the link that has most to send decides when all is done, so it never
// waits for the short ones of others.
func TestBusiestFirst(t *testing.T) {
	m := rack("0:1:1000", "0:2:1000", "0:3:1000", "2:1:900", "3:2:900")
	p, err := solved(m, solve.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if got := p.Makespan(); got != 30*time.Second {
		t.Errorf("all is done after %v, want 30 s: host h0 has 3,000 MiB to send\n%v", got, p.Actions)
	}
	if err := check.Plan(m, p); err != nil {
		t.Error(err)
	}
}
