package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"go.yaml.in/yaml/v4"

	"github.com/reservoir-cloud/reservoir/internal/fault"
)

// format of a result on stdout.
type format string

var formats = []string{"table", "wide", "json", "yaml", "name"}

func (f *format) String() string { return string(*f) }
func (f *format) Type() string   { return "FORMAT" }
func (f *format) Set(s string) error {
	if !slices.Contains(formats, s) {
		return fmt.Errorf("want one of %s", strings.Join(formats, ", "))
	}
	*f = format(s)
	return nil
}

// outputFlag adds -o.
func outputFlag(cmd *cobra.Command) *format {
	f := format("table")
	cmd.Flags().VarP(&f, "output", "o", "`FORMAT` of the result: "+strings.Join(formats, ", "))
	_ = cmd.RegisterFlagCompletionFunc("output", cobra.FixedCompletions(formats, cobra.ShellCompDirectiveNoFileComp))
	return &f
}

// watchFlag adds --watch.
func watchFlag(cmd *cobra.Command) *bool {
	return cmd.Flags().BoolP("watch", "w", false, "go on showing what changes, until interrupted")
}

// column of a table. Wide columns are shown with -o wide only.
type column[T any] struct {
	head string
	cell func(T) string
	wide bool
}

// listing says how objects of one kind are shown.
type listing[T any] struct {
	columns []column[T]
	name    func(T) string // what other commands call it, and what it is known by in a watch
	none    string         // said on stderr instead of an empty table
}

// print writes items to a.out in format f.
func (l listing[T]) print(a *app, f format, items []T) error {
	switch f {
	case "json", "yaml":
		if items == nil {
			items = []T{}
		}
		return writeObject(a.out, f, items)
	case "name":
		for _, x := range items {
			fmt.Fprintln(a.out, l.name(x))
		}
		return nil
	}
	if len(items) == 0 {
		fmt.Fprintln(a.err, l.none)
		return nil
	}
	for _, line := range l.table(f, items) {
		fmt.Fprintln(a.out, line)
	}
	return nil
}

// table is a line of heads and one for each item, aligned.
func (l listing[T]) table(f format, items []T) []string {
	var b strings.Builder
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	row := func(cell func(column[T]) string) {
		first := true
		for _, c := range l.columns {
			if c.wide && f != "wide" {
				continue
			}
			if !first {
				fmt.Fprint(w, "\t")
			}
			first = false
			s := cell(c)
			if s == "" {
				s = "-"
			}
			fmt.Fprint(w, oneLine(s))
		}
		fmt.Fprintln(w)
	}
	row(func(c column[T]) string { return c.head })
	for _, x := range items {
		row(func(c column[T]) string { return c.cell(x) })
	}
	w.Flush() // into memory: cannot fail
	lines := strings.Split(strings.TrimSuffix(b.String(), "\n"), "\n")
	for i := range lines {
		lines[i] = strings.TrimRight(lines[i], " ")
	}
	return lines
}

// printOne shows one object: as its row of the table, unless asked for otherwise.
func (l listing[T]) printOne(a *app, f format, x T) error {
	if f == "json" || f == "yaml" {
		return writeObject(a.out, f, x)
	}
	return l.print(a, f, []T{x})
}

// watch shows snapshots of a list until they end: the table in place on a terminal,
// otherwise every item that is new or different on a line of its own.
func (l listing[T]) watch(ctx context.Context, a *app, f format, snapshots <-chan []T) error {
	screen := newScreen(a.out)
	seen := map[string]string{}
	headed := false
	for {
		var items []T
		select {
		case <-ctx.Done():
			return ctx.Err()
		case s, ok := <-snapshots:
			if !ok {
				return nil
			}
			items = s
		}
		if screen.live() && (f == "table" || f == "wide") {
			screen.paint(l.table(f, items))
			continue
		}
		var changed []T
		for _, x := range items {
			b, err := json.Marshal(x)
			if err != nil {
				return fmt.Errorf("encode %s: %w", l.name(x), err)
			}
			if seen[l.name(x)] != string(b) {
				seen[l.name(x)] = string(b)
				changed = append(changed, x)
			}
		}
		if f == "table" || f == "wide" {
			lines := l.table(f, changed)
			if headed {
				lines = lines[1:]
			}
			headed = true
			for _, line := range lines {
				fmt.Fprintln(a.out, line)
			}
			continue
		}
		for _, x := range changed {
			if err := l.printLine(a, f, x); err != nil {
				return err
			}
		}
	}
}

// printLine shows one message of a watch in a format for machines: JSON on one line, YAML
// as a document, or the name.
func (l listing[T]) printLine(a *app, f format, x T) error {
	switch f {
	case "json":
		return json.NewEncoder(a.out).Encode(x)
	case "yaml":
		fmt.Fprintln(a.out, "---")
		return writeObject(a.out, f, x)
	}
	fmt.Fprintln(a.out, l.name(x))
	return nil
}

// writeObject writes v as JSON, or as YAML with the same names in the same order.
func writeObject(w io.Writer, f format, v any) error {
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return fmt.Errorf("encode the result: %w", err)
	}
	if f == "yaml" {
		var n yaml.Node
		if err := yaml.Load(b, &n); err != nil { // JSON is YAML
			return fmt.Errorf("encode the result: %w", err)
		}
		block(&n)
		if b, err = yaml.Dump(&n, yaml.WithIndent(2)); err != nil {
			return fmt.Errorf("encode the result: %w", err)
		}
	}
	_, err = fmt.Fprintln(w, strings.TrimSuffix(string(b), "\n"))
	return err
}

// block turns JSON's flow style and quotes into what people write.
func block(n *yaml.Node) {
	n.Style = 0
	for _, c := range n.Content {
		block(c)
	}
}

// oneLine keeps what came from elsewhere from breaking a table or steering the terminal.
func oneLine(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, s)
}

// since says how long ago t was: 12s, 5m, 3h, 2d.
func (a *app) since(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return duration(a.now().Sub(t))
}

func duration(d time.Duration) string {
	switch d = max(d, 0); {
	case d < 2*time.Minute:
		return fmt.Sprintf("%ds", int(d.Seconds()))
	case d < 2*time.Hour:
		return fmt.Sprintf("%dm", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh", int(d.Hours()))
	}
	return fmt.Sprintf("%dd", int(math.Floor(d.Hours()/24)))
}

// yes is a word for a flag in a table.
func yes(b bool) string {
	if b {
		return "yes"
	}
	return ""
}

// short digest, enough for people.
func short(digest string) string {
	_, hex, ok := strings.Cut(digest, ":")
	if !ok || len(hex) < 12 {
		return digest
	}
	return hex[:12]
}

// timeoutFault says what was waited for when time was up.
func timeoutFault(err error, after time.Duration, format string, args ...any) error {
	return &fault.Error{Code: fault.Timeout, Message: fmt.Sprintf(format, args...) + " after " + after.String(), Err: err}
}

// printf writes to stdout.
func (a *app) printf(format string, args ...any) { fmt.Fprintf(a.out, format, args...) }
