package manifest

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// maxErrors that one report tells; more than that help nobody.
const maxErrors = 20

// Error is one mistake in a manifest.
type Error struct {
	File   string
	Line   int    // 1 is the first; 0: not known
	Column int    // of Line; 0: not known
	Path   string // "components[0].memory"; empty: the whole text
	Found  string
	Want   string
}

func (e *Error) Error() string {
	var b strings.Builder
	b.WriteString(e.File)
	for _, n := range []int{e.Line, e.Column} {
		if n == 0 {
			break
		}
		b.WriteString(":" + strconv.Itoa(n))
	}
	for _, s := range []string{e.Path, e.Found, e.Want} {
		if s == "" {
			continue
		}
		if b.Len() > 0 {
			b.WriteString(": ")
		}
		b.WriteString(s)
	}
	return b.String()
}

// Errors are all mistakes of a manifest in the order of the text, at most twenty, with the
// number of further ones.
type Errors struct {
	List []*Error
	More int
}

func (e *Errors) Error() string {
	lines := make([]string, 0, len(e.List)+1)
	for _, x := range e.List {
		lines = append(lines, x.Error())
	}
	if e.More > 0 {
		lines = append(lines, fmt.Sprintf("and %d more", e.More))
	}
	return strings.Join(lines, "\n")
}

// Unwrap gives each mistake to errors.As.
func (e *Errors) Unwrap() []error {
	list := make([]error, len(e.List))
	for i, x := range e.List {
		list[i] = x
	}
	return list
}

// place in a text.
type place struct{ line, column int }

// report gathers mistakes, and remembers where in the text each part of the model stood,
// so that a mistake found later, on the model, still has its line.
type report struct {
	file string
	at   map[string]place
	list []*Error
	more int
	read []string // paths of the parts that could not be read
}

// told ends reading: from now on, nothing is added about a part that could not be read.
func (r *report) told() {
	for _, e := range r.list {
		r.read = append(r.read, e.Path)
	}
}

// mark remembers the place of the part of the model at path.
func (r *report) mark(path string, p place) {
	if r.at == nil {
		r.at = map[string]place{}
	}
	r.at[path] = p
}

// bad adds a mistake in the part of the model at path. Its place is the nearest known one.
func (r *report) bad(path, found, want string) {
	for _, p := range r.read {
		if strings.HasPrefix(p, path) || strings.HasPrefix(path, p) {
			return
		}
	}
	p, known := r.at[path]
	for up := path; !known && up != ""; p, known = r.at[up] {
		up = up[:max(strings.LastIndexByte(up, '.'), strings.LastIndexByte(up, '['), 0)]
	}
	r.add(p, path, found, want)
}

func (r *report) add(p place, path, found, want string) {
	if len(r.list) == maxErrors {
		r.more++
		return
	}
	r.list = append(r.list, &Error{r.file, p.line, p.column, path, found, want})
}

func (r *report) err() error {
	if len(r.list) == 0 {
		return nil
	}
	slices.SortStableFunc(r.list, func(a, b *Error) int {
		return cmp.Or(a.Line-b.Line, a.Column-b.Column, strings.Compare(a.Path, b.Path))
	})
	return &Errors{r.list, r.more}
}

// quote shows a text that was found, shortened.
func quote(s string) string {
	const most = 60
	if r := []rune(s); len(r) > most {
		return strconv.Quote(string(r[:most])) + "…"
	}
	return strconv.Quote(s)
}

// unknown says that name is not among known, and which of them is nearest to it.
func unknown(name string, known []string) string {
	best, near := len(name)/2+1, ""
	for _, k := range known {
		if d := distance(strings.ToLower(name), strings.ToLower(k)); d < best {
			best, near = d, k
		}
	}
	if near != "" {
		return fmt.Sprintf("unknown, did you mean %q?", near)
	}
	if len(known) == 0 {
		return "unknown, there is none"
	}
	return "unknown, want one of " + strings.Join(known, ", ")
}

// distance between two words: how many letters to insert, delete or replace (Levenshtein).
func distance(a, b string) int {
	if len(a) > 64 || len(b) > 64 {
		return 64
	}
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := 1
			if a[i] == b[j] {
				cost = 0
			}
			diagonal, row[j+1] = row[j+1], min(row[j+1]+1, row[j]+1, diagonal+cost)
		}
	}
	return row[len(b)]
}
