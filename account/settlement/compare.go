package settlement

import (
	"github.com/reservoir-cloud/reservoir/account/billing"
	"github.com/reservoir-cloud/reservoir/vee"
)

// Difference between two books: in one time one meter of one VEE, as each has it, in ms or
// MiB·ms.
type Difference struct {
	VEE    vee.ID        `json:"vee"`
	Name   string        `json:"name,omitempty"`
	FromMS int64         `json:"fromMs"`
	ToMS   int64         `json:"toMs"`
	Meter  billing.Meter `json:"meter"` // or Outage
	Ours   int64         `json:"ours"`
	Theirs int64         `json:"theirs"`
}

// Compare two books, each in Order and without overlaps. They may cut the same time in
// different ways. Where they differ is told meter by meter; times that adjoin are one.
func Compare(ours, theirs []Line) (all []Difference) {
	for len(ours) > 0 || len(theirs) > 0 {
		var id vee.ID
		switch {
		case len(theirs) == 0 || len(ours) > 0 && ours[0].VEE <= theirs[0].VEE:
			id = ours[0].VEE
		default:
			id = theirs[0].VEE
		}
		var a, b []Line
		a, ours = one(id, ours)
		b, theirs = one(id, theirs)
		all = append(all, compare(a, b)...)
	}
	return all
}

// one VEE's lines at the head of a book.
func one(id vee.ID, book []Line) (its, rest []Line) {
	n := 0
	for n < len(book) && book[n].VEE == id {
		n++
	}
	return book[:n], book[n:]
}

// compare the lines of one VEE: both are gone through together, from each moment at which a
// line of either begins or ends until the next.
func compare(a, b []Line) (all []Difference) {
	open := map[billing.Meter]int{} // index in all of the difference that the next may adjoin
	at := int64(0)
	if len(a) > 0 {
		at = a[0].FromMS
	}
	if len(b) > 0 && (len(a) == 0 || b[0].FromMS < at) {
		at = b[0].FromMS
	}
	for len(a) > 0 || len(b) > 0 {
		end := int64(1<<63 - 1)
		for _, book := range [][]Line{a, b} {
			if len(book) > 0 && book[0].FromMS > at {
				end = min(end, book[0].FromMS)
			} else if len(book) > 0 {
				end = min(end, book[0].ToMS)
			}
		}
		x, y := part(a, at, end), part(b, at, end)
		for _, m := range meters {
			ours, theirs := x.of(m), y.of(m)
			if ours == theirs {
				continue
			}
			if k, ok := open[m]; ok && all[k].ToMS == at {
				all[k].ToMS, all[k].Ours, all[k].Theirs = end, all[k].Ours+ours, all[k].Theirs+theirs
				continue
			}
			open[m] = len(all)
			d := Difference{VEE: x.VEE, Name: x.Name, FromMS: at, ToMS: end, Meter: m, Ours: ours, Theirs: theirs}
			if d.VEE == "" {
				d.VEE, d.Name = y.VEE, y.Name
			}
			all = append(all, d)
		}
		at = end
		for _, book := range []*[]Line{&a, &b} {
			if len(*book) > 0 && (*book)[0].ToMS <= at {
				*book = (*book)[1:]
			}
		}
	}
	return all
}

// part of a book's first line, if that covers the time.
func part(book []Line, fromMS, toMS int64) Line {
	if len(book) == 0 || book[0].FromMS > fromMS {
		return Line{}
	}
	return book[0].within(fromMS, toMS)
}

// Unit of Ours and Theirs.
func (d Difference) Unit() string {
	switch d.Meter {
	case billing.VCPUs:
		return "vCPU·ms"
	case billing.Memory, billing.Disk:
		return "MiB·ms"
	}
	return "ms"
}
