// Package report writes how promises were kept: as CSV, a row for each window and each late
// loss, and as one HTML page that needs nothing but itself.
package report

import (
	_ "embed"
	"encoding/csv"
	"fmt"
	"html/template"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/reservoir-cloud/reservoir/smi"
)

var columns = []string{"customer", "service", "service_id", "contract", "objective", "kind", "from", "until", "over",
	"kept_s", "broken_s", "unknown_s", "budget_s", "kept_percent", "promised_percent", "violated", "replica", "due", "currency", "invoice"}

// CSV of all windows, the present ones too (over: no), and late losses. Times are UTC.
func CSV(w io.Writer, list []smi.SLA) error {
	lines := [][]string{columns}
	for _, s := range list {
		for _, o := range s.Objectives {
			head := []string{s.Customer, s.Service, s.ServiceID, s.Contract, safe(o.Name), o.Kind}
			window := func(x smi.Window, over string) {
				lines = append(lines, append(append([]string{}, head...), stamp(x.Start), stamp(x.End), over,
					seconds(x.KeptMS), seconds(x.BrokenMS), seconds(x.UnknownMS), seconds(x.BudgetMS), number(x.Kept), number(o.Percent),
					yes(x.Violated), "", x.Due.Fixed(4), s.Currency, x.Invoice))
			}
			for _, x := range o.Past {
				window(x, "yes")
			}
			if o.Window != nil {
				window(*o.Window, "no")
			}
			for _, l := range o.Late {
				lines = append(lines, append(append([]string{}, head...), stamp(l.Lost), "", "yes", "", "", "", "", "", "", "yes", l.Replica, l.Due.Fixed(4), s.Currency, l.Invoice))
			}
		}
	}
	if err := csv.NewWriter(w).WriteAll(lines); err != nil {
		return fmt.Errorf("write the report of %d services: %w", len(list), err)
	}
	return nil
}

// safe keeps a spreadsheet from taking a text for a formula.
func safe(s string) string {
	if strings.ContainsAny(s[:min(1, len(s))], "=+-@\t\r") {
		return "'" + s
	}
	return s
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }
func seconds(ms int64) string  { return strconv.FormatFloat(float64(ms)/1000, 'f', -1, 64) }
func number(f float64) string  { return strconv.FormatFloat(f, 'f', -1, 64) }

// span of ms: "720h", "1h30m", "40.25s".
func span(ms int64) string {
	s := (time.Duration(ms) * time.Millisecond).String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}

func yes(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

//go:embed report.html
var page string

var html = template.Must(template.New("report").Funcs(template.FuncMap{
	"stamp": func(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05") },
	"span":  span, "number": number,
	"share": func(part int64, w smi.Window) string {
		all := w.KeptMS + w.BrokenMS + w.UnknownMS
		if all == 0 {
			return "0"
		}
		return strconv.FormatFloat(100*float64(part)/float64(all), 'f', 3, 64)
	},
	"left":    func(w smi.Window) string { return span(w.BudgetMS - w.BrokenMS) },
	"promise": Promise,
}).Parse(page))

// HTML page of services, made at a moment.
func HTML(w io.Writer, site string, at time.Time, list []smi.SLA) error {
	if err := html.Execute(w, map[string]any{"Site": site, "At": at, "Services": list}); err != nil {
		return fmt.Errorf("write the report of %d services: %w", len(list), err)
	}
	return nil
}

// Promise in words: "99.9 % of every 720h0m0s".
func Promise(p smi.Promise) string {
	if p.Kind == "restart" {
		return "a lost replica is back within " + span(p.WithinMS)
	}
	text := fmt.Sprintf("%s %% of every %s", number(p.Percent), span(p.WindowMS))
	switch {
	case p.Min != nil && p.Max != nil:
		text = fmt.Sprintf("%s from %s to %s for %s", p.KPI, number(*p.Min), number(*p.Max), text)
	case p.Min != nil:
		text = fmt.Sprintf("%s at least %s for %s", p.KPI, number(*p.Min), text)
	case p.Max != nil:
		text = fmt.Sprintf("%s at most %s for %s", p.KPI, number(*p.Max), text)
	}
	return text
}
