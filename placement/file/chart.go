package file

import (
	_ "embed"
	"fmt"
	"hash/fnv"
	"html/template"
	"io"
	"slices"

	"github.com/reservoir-cloud/reservoir/placement/model"
)

//go:embed chart.html
var chartText string

var chart = template.Must(template.New("chart").Parse(chartText))

// Most that a chart draws: beyond it only what the plan touches, and of that the first.
const (
	mostHosts   = 120
	mostActions = 400
)

// page is what the template draws.
type page struct {
	Title    string
	Solution *Solution
	Before   picture
	After    picture
	Rows     []row
	Ticks    []tick
	Height   int
	Hidden   string
}

// picture of a placement.
type picture struct {
	Dimensions []string
	Hosts      []hostBox
}

type hostBox struct {
	Name  string
	State string // "", "off", "draining"
	Bars  []bar
	VEEs  int
}

// bar of one dimension: segments in per cent of the capacity.
type bar struct {
	Used     string // in words
	Over     bool
	Segments []segment
}

type segment struct {
	Name  string
	Label string // within it, where there is room
	Width float64
	Hue   uint32
	Moves bool
}

// row of the time line. X and Width are per mille of the makespan.
type row struct {
	Kind     string
	Text     string
	X, Width float64
	Y        int
	Hint     string
}

type tick struct {
	X    float64
	Text string
	Last bool
}

// HTML draws the placement before, the plan on a time line and the placement after, as one
// page that needs nothing else.
func (p *Problem) HTML(w io.Writer, title string, s *Solution) error {
	pg := page{Title: title, Solution: s}
	touched := map[int32]bool{}
	moves := map[int32]bool{}
	for _, a := range s.plan.Actions {
		touched[a.From], touched[a.To], moves[a.VEE] = true, true, true
	}
	var hosts []int32
	for h := range int32(len(p.Model.Hosts)) {
		if len(p.Model.Hosts) <= mostHosts || touched[h] {
			hosts = append(hosts, h)
		}
	}
	if left := len(p.Model.Hosts) - min(len(hosts), mostHosts); left > 0 {
		hosts = hosts[:min(len(hosts), mostHosts)]
		pg.Hidden = fmt.Sprintf("%d more hosts are not drawn", left)
	}
	now := p.now()
	pg.Before = p.picture(hosts, now.At, now.On, moves)
	if s.Feasible {
		pg.After = p.picture(hosts, s.target.At, s.target.On, moves)
		pg.timeline(s)
	}
	if err := chart.Execute(w, pg); err != nil {
		return fmt.Errorf("draw the plan: %w", err)
	}
	return nil
}

func (p *Problem) picture(hosts []int32, at []int32, on []bool, moves map[int32]bool) picture {
	m := p.Model
	var pic picture
	for _, d := range m.Dimensions {
		pic.Dimensions = append(pic.Dimensions, string(d))
	}
	guests := map[int32][]int32{}
	for v, h := range at {
		if h != model.None {
			guests[h] = append(guests[h], int32(v))
		}
	}
	for _, h := range hosts {
		box := hostBox{Name: m.Hosts[h].Name, VEEs: len(guests[h])}
		switch {
		case !on[h]:
			box.State = "off"
		case m.Hosts[h].Draining:
			box.State = "draining"
		}
		for d, capacity := range m.Capacity(h) {
			box.Bars = append(box.Bars, p.bar(d, capacity, guests[h], moves))
		}
		pic.Hosts = append(pic.Hosts, box)
	}
	return pic
}

func (p *Problem) bar(d int, capacity int64, guests []int32, moves map[int32]bool) bar {
	var b bar
	used := int64(0)
	for _, v := range guests {
		used += p.Model.Demand(v)[d]
	}
	full := float64(max(capacity, used, 1))
	for _, v := range guests {
		name := p.Model.VEEs[v].Name
		x := segment{Name: fmt.Sprintf("%s: %d", name, p.Model.Demand(v)[d]), Width: 100 * float64(p.Model.Demand(v)[d]) / full, Hue: hue(name), Moves: moves[v]}
		if x.Width >= 4*float64(1+len(name)) {
			x.Label = name
		}
		b.Segments = append(b.Segments, x)
	}
	b.Used, b.Over = fmt.Sprintf("%d of %d", used, capacity), used > capacity
	return b
}

// hue of a VEE: the same before and after.
func hue(name string) uint32 {
	h := fnv.New32a()
	_, _ = h.Write([]byte(name))
	const golden = 2654435769 // 2³² by the golden ratio: names that differ little get hues that differ much
	return (h.Sum32() * golden >> 16) % 360
}

// timeline of the actions, one row each.
func (pg *page) timeline(s *Solution) {
	end := max(s.SecondsInAll, 1e-9)
	for i, a := range s.Actions[:min(len(s.Actions), mostActions)] {
		who := a.VEE
		where := a.From + " → " + a.To
		switch {
		case who == "":
			who, where = a.From+a.To, ""
		case a.To == "" || a.From == a.To:
			where = a.From
		case a.From == "":
			where = a.To
		}
		text := fmt.Sprintf("%d. %s %s %s", i+1, a.Action, who, where)
		hint := fmt.Sprintf("%s: %.3g s to %.3g s", text, a.Begin, a.End)
		if a.MiBPerSecond > 0 {
			hint += fmt.Sprintf(", %.3g MiB/s", a.MiBPerSecond)
		}
		pg.Rows = append(pg.Rows, row{Kind: kindClass(s.plan.Actions[i].Kind), Text: text, X: 1000 * a.Begin / end, Width: max(2, 1000*(a.End-a.Begin)/end), Y: 18 * i, Hint: hint})
	}
	if n := len(s.Actions) - len(pg.Rows); n > 0 {
		pg.Hidden = fmt.Sprintf("%s; %d more actions are not drawn", orNothing(pg.Hidden), n)
	}
	pg.Height = 18*len(pg.Rows) + 20
	for i := range 6 {
		pg.Ticks = append(pg.Ticks, tick{X: 200 * float64(i), Text: fmt.Sprintf("%.3g s", end*float64(i)/5), Last: i == 5})
	}
}

func orNothing(s string) string {
	if s == "" {
		return "every host is drawn"
	}
	return s
}

func kindClass(k model.Kind) string {
	if slices.Contains([]model.Kind{model.BootHost, model.ShutdownHost}, k) {
		return "host"
	}
	if slices.Contains([]model.Kind{model.Migrate, model.Relocate}, k) {
		return "move"
	}
	return "state"
}
