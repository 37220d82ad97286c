package scenario

import (
	_ "embed"
	"fmt"
	"html/template"
	"io"
	"math"
	"strings"
	"time"

	"github.com/reservoir-cloud/reservoir/vee"
)

//go:embed report.html
var reportText string

var report = template.Must(template.New("report").Parse(reportText))

// page is what the template draws. Widths are of 1,000.
type page struct {
	Title  string
	Report Report
	Lanes  []lane
	Marks  []mark
	Ticks  []mark
	Height int
	Curves []curve
	Most   int
	Bars   []bar
}

// Bottom of the time line's drawing, which begins above its lanes.
func (p page) Bottom() int { return p.Height + 24 }

// lane of a host, with bars where VEEs ran.
type lane struct {
	Name   string
	Y, Top int
	Boxes  []box
}

type box struct {
	X, Width float64
	Y        int
	Hue      int
	Name     string
	Hint     string
}

type mark struct {
	X    float64
	Text string
}

// curve of the hosts in violation; Points are those of an SVG polyline.
type curve struct {
	Name, Points string
	Hue          int
}

type bar struct {
	Name, Text string
	Width      float64
	Y, Hue     int
}

const rowHeight = 16

// HTML draws the run as one page that needs nothing else: where each VEE ran and what was
// done, or how many hosts had too much.
func (r Report) HTML(w io.Writer, title string) error {
	p := page{Title: title, Report: r}
	if len(r.results) > 0 {
		p.experiment(r)
	} else {
		p.timeline(r)
	}
	if err := report.Execute(w, p); err != nil {
		return fmt.Errorf("draw the report: %w", err)
	}
	return nil
}

func (p *page) timeline(r Report) {
	h := r.history
	if h.End == 0 {
		return
	}
	x := func(d time.Duration) float64 { return math.Round(10_000*d.Seconds()/h.End.Seconds()) / 10 }
	colour := map[vee.ID]int{} // far apart for VEEs that follow each other
	for _, s := range h.Spans {
		if _, known := colour[s.VEE]; !known {
			colour[s.VEE] = len(colour) * 137 % 360
		}
	}
	for _, name := range h.Hosts {
		l := lane{Name: name, Top: p.Height, Y: p.Height + rowHeight/2 + 4}
		rows := map[vee.ID]int{}
		for _, s := range h.Spans {
			if s.Host != name || s.To == 0 {
				continue
			}
			if _, known := rows[s.VEE]; !known {
				rows[s.VEE] = len(rows)
			}
			l.Boxes = append(l.Boxes, box{X: x(s.From), Width: max(1, x(s.To)-x(s.From)), Y: l.Top + rows[s.VEE]*rowHeight + 4, Hue: colour[s.VEE],
				Name: string(s.VEE), Hint: fmt.Sprintf("%s on %s, %.1f s to %.1f s", s.VEE, name, s.From.Seconds(), s.To.Seconds())})
		}
		p.Height += max(1, len(rows))*rowHeight + 6
		p.Lanes = append(p.Lanes, l)
	}
	for _, m := range h.Marks {
		p.Marks = append(p.Marks, mark{x(m.At), fmt.Sprintf("%.1f s: %s", m.At.Seconds(), m.Do)})
	}
	step := 30 * time.Second
	for h.End/step > 12 {
		step *= 2
	}
	for at := time.Duration(0); at <= h.End; at += step {
		p.Ticks = append(p.Ticks, mark{x(at), at.String()})
	}
}

func (p *page) experiment(r Report) {
	p.Most = 1
	longest := 1.
	for _, x := range r.results {
		p.Most = max(p.Most, x.Most)
		longest = max(longest, x.Violations.Mean())
	}
	for i, x := range r.results {
		var points strings.Builder
		for k, n := range x.Curve {
			fmt.Fprintf(&points, "%.1f,%.1f ", 1000*float64(k+1)/float64(len(x.Curve)), 200-190*float64(n)/float64(p.Most))
		}
		colour := 210 + 100*i
		p.Curves = append(p.Curves, curve{Name: string(x.Config.Algorithm), Points: points.String(), Hue: colour})
		p.Bars = append(p.Bars, bar{Name: string(x.Config.Algorithm), Text: fmt.Sprintf("%.1f s (longest %.0f s)", x.Violations.Mean(), x.Violations.Max),
			Width: 600 * x.Violations.Mean() / longest, Y: 10 + 26*i, Hue: colour})
	}
	p.Height = 20 + 26*len(p.Bars)
	for i := range 7 {
		p.Ticks = append(p.Ticks, mark{1000 * float64(i) / 6, (r.results[0].Config.Duration * time.Duration(i) / 6).Round(time.Second).String()})
	}
}
