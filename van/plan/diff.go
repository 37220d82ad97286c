package plan

import (
	"cmp"
	"fmt"
	"io"
	"slices"
)

// Change of one entry. Have is nil where it is made, Want where it is removed.
type Change struct{ Have, Want Entry }

// Key of what changes.
func (c Change) Key() Key {
	if c.Want != nil {
		return c.Want.key()
	}
	return c.Have.key()
}

func (c Change) String() string {
	switch {
	case c.Have == nil:
		return "+ " + c.Want.String()
	case c.Want == nil:
		return "- " + c.Have.String()
	}
	return "~ " + c.Have.String() + "\n  " + c.Want.String()
}

// Diff is what turns have into want, in an order that a kernel can follow: what is no
// longer wanted goes first, the last made before the first. A device that changes is made
// anew, and with it what is forwarded to it.
func Diff(have, want HostPlan) []Change {
	var gone, made []keyed
	anew := map[string]bool{}
	for k, e := range have {
		if _, ok := want[k]; !ok {
			gone = append(gone, keyed{k, Change{Have: e}})
		}
	}
	for k, e := range want {
		if h, ok := have[k]; !ok {
			made = append(made, keyed{k, Change{Want: e}})
		} else if !e.same(h) {
			made = append(made, keyed{k, Change{Have: h, Want: e}})
			if k.Kind == KindTunnel || k.Kind == KindGateway {
				anew[k.Name] = true
			}
		}
	}
	if len(anew) > 0 {
		for k, e := range want {
			if h, ok := have[k]; ok && k.Kind == KindForward && anew[k.Name] && e.same(h) {
				made = append(made, keyed{k, Change{Want: e}})
			}
		}
	}
	slices.SortFunc(gone, func(a, b keyed) int { return compare(b.key, a.key) })
	slices.SortFunc(made, func(a, b keyed) int { return compare(a.key, b.key) })
	all := make([]Change, 0, len(gone)+len(made))
	for _, c := range append(gone, made...) {
		all = append(all, c.Change)
	}
	return all
}

// keyed change: thousands are sorted.
type keyed struct {
	key Key
	Change
}

func compare(a, b Key) int {
	if c := cmp.Compare(a.Kind, b.Kind); c != 0 {
		return c
	}
	if c := cmp.Compare(a.VNI, b.VNI); c != 0 {
		return c
	}
	if c := cmp.Compare(a.Name, b.Name); c != 0 {
		return c
	}
	return cmp.Or(cmp.Compare(a.MAC, b.MAC), a.Addr.Compare(b.Addr))
}

// Entries of the plan in the order in which they are made.
func (h HostPlan) Entries() []Entry {
	all := make([]Entry, 0, len(h))
	for _, c := range Diff(nil, h) {
		all = append(all, c.Want)
	}
	return all
}

// Write the plan, one line an entry.
func (h HostPlan) Write(w io.Writer) error {
	for _, e := range h.Entries() {
		if _, err := fmt.Fprintln(w, e); err != nil {
			return err
		}
	}
	return nil
}
