package cli

import (
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"github.com/reservoir-cloud/reservoir/vmi"
)

// timeline tells the history of a VEE: what it was, when, for how long, and how that went.
func timeline(w io.Writer, steps []vmi.Step, now time.Time) {
	if len(steps) == 0 {
		return
	}
	fmt.Fprintf(w, "\nhistory since %s\n", steps[0].At.UTC().Format("2006-01-02 15:04:05 MST"))
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for i, s := range steps {
		end, still := now, "…"
		if i+1 < len(steps) {
			end, still = steps[i+1].At, ""
		}
		what := string(s.Phase)
		if string(s.State) != what {
			what = string(s.State) + " " + what
		}
		detail := ""
		if s.Host != "" && (i == 0 || steps[i-1].Host != s.Host) {
			detail = "on " + s.Host
		}
		for _, more := range []string{progress(s.Progress), oneLine(s.Note)} {
			if more != "" && detail != "" {
				detail += "; "
			}
			detail += more
		}
		if detail != "" {
			detail = "\t" + detail
		}
		fmt.Fprintf(t, "  +%s\t%s\t%s%s%s\n", span(s.At.Sub(steps[0].At)), what, span(end.Sub(s.At)), still, detail)
	}
	t.Flush()
}

// span of time, to three digits or so.
func span(d time.Duration) string {
	switch {
	case d < 10*time.Second:
		return d.Round(time.Millisecond).String()
	case d < time.Minute:
		return d.Round(100 * time.Millisecond).String()
	case d < time.Hour:
		return d.Round(time.Second).String()
	}
	return duration(d)
}
