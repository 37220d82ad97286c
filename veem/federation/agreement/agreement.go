// Package agreement is what framework agreements between two sites mean: which texts are
// signed, which terms make sense, and whether what a borrower wants is within them. It is
// pure: no I/O, no clock, no keys.
//
// What is signed is canonical JSON (RFC 8785) of the terms as this version understands them.
// So a site can neither sign nor verify a term that it does not know.
package agreement

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/reservoir-cloud/reservoir/account/billing"
	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/vee"
	"github.com/reservoir-cloud/reservoir/vmi/peer"
)

// Text of the terms, which both sites sign.
func Text(t peer.Terms) ([]byte, error) { return canonical(t) }

// EndText is what the site that ends an agreement signs.
func EndText(e peer.End) ([]byte, error) {
	e.Signature, e.Known = "", time.Time{}
	return canonical(e)
}

// canonical JSON: keys sorted, no spaces, no escapes that need not be. Numbers are as
// encoding/json writes them, which is ECMAScript's way, as the RFC wants.
func canonical(v any) ([]byte, error) {
	text, err := json.Marshal(v)
	if err != nil {
		return nil, err
	}
	var tree any
	d := json.NewDecoder(bytes.NewReader(text))
	d.UseNumber()
	if err := d.Decode(&tree); err != nil {
		return nil, err
	}
	var out bytes.Buffer
	e := json.NewEncoder(&out)
	e.SetEscapeHTML(false)
	if err := e.Encode(tree); err != nil { // maps are written in the order of their keys
		return nil, err
	}
	return bytes.TrimSuffix(out.Bytes(), []byte("\n")), nil
}

var (
	currency = regexp.MustCompile(`^[A-Z]{3}$`)
	country  = regexp.MustCompile(`^[A-Z]{2}$`)
)

const (
	maxTypes  = 100
	maxNotice = 366 * 24 * time.Hour
	// minPromote: a site that is restarted, or whose proxy is, has not gone.
	minPromote = 2 * time.Minute
)

// Check the terms themselves; the error names every mistake.
func Check(t peer.Terms) error {
	var wrong []error
	say := func(bad bool, format string, args ...any) {
		if bad {
			wrong = append(wrong, fmt.Errorf(format, args...))
		}
	}
	if _, err := vee.ParseID(t.ID); err != nil {
		wrong = append(wrong, fmt.Errorf("id: %w", err))
	}
	say(!vee.ValidName(t.Lender) || !vee.ValidName(t.Borrower) || t.Lender == t.Borrower,
		"lender %q and borrower %q: want two sites", t.Lender, t.Borrower)
	say(!t.Until.After(t.From), "until %s: want a time after from, %s", t.Until.Format(time.RFC3339), t.From.Format(time.RFC3339))
	say(t.PromoteMS != 0 && t.PromoteMS < minPromote.Milliseconds(), "promoteMs %d: want 0, or at least %v", t.PromoteMS, minPromote)
	say(t.NoticeMS < 0 || t.NoticeMS > maxNotice.Milliseconds(), "noticeMs %d: want 0 to a year", t.NoticeMS)
	c := t.Ceiling
	say(c.VEEs < 1 || c.VCPUs < 1 || c.Memory < 1 || c.Disk < 0, "ceiling of %d VEEs, %d vCPUs, %v of memory and %v of disk: want some of each", c.VEEs, c.VCPUs, c.Memory, c.Disk)
	say(len(t.Types) == 0 || len(t.Types) > maxTypes, "%d instance types: want 1 to %d", len(t.Types), maxTypes)
	names := map[string]bool{}
	for _, i := range t.Types {
		say(!vee.ValidName(i.Name) || names[i.Name], "instance type %q: want a name of its own, such as small", i.Name)
		say(i.VCPUs < 1 || i.Memory < vee.MiB || i.Disk < 0, "instance type %s: %d vCPUs, %v of memory and %v of disk", i.Name, i.VCPUs, i.Memory, i.Disk)
		names[i.Name] = true
	}
	say(!currency.MatchString(t.Currency), "currency %q: want three letters such as EUR", t.Currency)
	say(t.Places < 0 || t.Places > 6, "%d places: want 0 to 6", t.Places)
	for _, m := range slices.Sorted(maps.Keys(t.Prices)) {
		say(!slices.Contains(billing.Meters, m), "prices: %q is none of the meters %v", m, billing.Meters)
		say(t.Prices[m].Sign() < 0, "prices: %s for %s is negative", t.Prices[m], m)
	}
	for _, l := range t.Locations {
		say(!country.MatchString(l.Country), "location %+v: want a country such as SE", l)
	}
	say(!(t.SLA.Availability >= 0 && t.SLA.Availability <= 1), "availability %v: want 0 to 1", t.SLA.Availability)
	say(!(t.SLA.CreditPercent >= 0 && t.SLA.CreditPercent <= 100), "credit of %v percent", t.SLA.CreditPercent)
	if wrong != nil {
		return fault.New(fault.Malformed, "agreement %s: %w", t.ID, errors.Join(wrong...))
	}
	return nil
}

// Held is what a borrower has under an agreement already.
type Held struct {
	VEEs, VCPUs  int
	Memory, Disk vee.Bytes
}

// Plus a VEE.
func (h Held) Plus(d vee.Descriptor) Held {
	r := d.Resources()
	return Held{h.VEEs + 1, h.VCPUs + d.VCPUs, h.Memory + d.Memory, h.Disk + r.Disk}
}

// InForce is nil when new VEEs may be had under a at that moment, or says why not.
func InForce(a peer.Agreement, at time.Time) error {
	refuse := func(format string, args ...any) error {
		return fault.New(fault.WrongState, "agreement %s between %s and %s "+format, append([]any{a.ID, a.Lender, a.Borrower}, args...)...).
			Try("reservoir agreement list")
	}
	switch {
	case a.Signatures[a.Lender] == "":
		return refuse("is not signed by %s", a.Lender)
	case a.Signatures[a.Borrower] == "":
		return refuse("is not signed by %s", a.Borrower)
	case a.End != nil:
		return refuse("was ended by %s on %s; what runs must leave by %s", a.End.By, day(a.End.At), day(a.Leave()))
	case at.Before(a.From):
		return refuse("is in force only from %s on", day(a.From))
	case !at.Before(a.Until):
		return refuse("was in force until %s; what runs must leave by %s", day(a.Until), day(a.Leave()))
	}
	return nil
}

// Over reports whether not even what runs may stay.
func Over(a peer.Agreement, at time.Time) bool { return !at.Before(a.Leave()) }

// Allows is nil when the borrower may have wanted beside what it holds, at a place of the
// lender's there, or says what is not within the terms.
func Allows(a peer.Agreement, held Held, wanted []vee.Descriptor, there peer.Location, at time.Time) error {
	if err := InForce(a, at); err != nil {
		return err
	}
	if len(a.Locations) > 0 && !slices.ContainsFunc(a.Locations, func(l peer.Location) bool { return within(there, l) }) {
		return fault.New(fault.Denied, "agreement %s is about VEEs in %s; site %s is in %s", a.ID, places(a.Locations), a.Lender, place(there)).
			Try("reservoir federation show %s", a.Lender)
	}
	for _, d := range wanted {
		if _, ok := Type(a.Types, d); !ok {
			return fault.New(fault.Denied, "agreement %s has no instance type for VEE %s with %d vCPUs, %v of memory and %v of disk; it has %s",
				a.ID, d.Name, d.VCPUs, d.Memory, d.Resources().Disk, sizes(a.Types)).Try("reservoir agreement show %s", a.ID)
		}
		held = held.Plus(d)
	}
	c := a.Ceiling
	for _, over := range []struct {
		is        bool
		have, may any
		what      string
	}{
		{held.VEEs > c.VEEs, held.VEEs, c.VEEs, "VEEs"},
		{held.VCPUs > c.VCPUs, held.VCPUs, c.VCPUs, "vCPUs"},
		{held.Memory > c.Memory, held.Memory, c.Memory, "of memory"},
		{c.Disk > 0 && held.Disk > c.Disk, held.Disk, c.Disk, "of disk"},
	} {
		if over.is {
			return fault.New(fault.QuotaExceeded, "with %d VEEs more site %s would have %v %s at %s; the ceiling of agreement %s is %v",
				len(wanted), a.Borrower, over.have, over.what, a.Lender, a.ID, over.may).Try("reservoir agreement show %s", a.ID)
		}
	}
	return nil
}

// AllowsMove is nil when VEEs may cross between the two sites in that way.
func AllowsMove(a peer.Agreement, live bool) error {
	if live && a.Movable.Live || !live && a.Movable.Cold {
		return nil
	}
	how := "stopped"
	if live {
		how = "while they run"
	}
	return fault.New(fault.Denied, "agreement %s does not let VEEs move between %s and %s %s", a.ID, a.Lender, a.Borrower, how).
		Try("reservoir agreement show %s", a.ID)
}

// Type is the smallest of types that d fits into.
func Type(types []peer.InstanceType, d vee.Descriptor) (peer.InstanceType, bool) {
	var best peer.InstanceType
	for _, t := range types {
		if d.VCPUs > t.VCPUs || d.Memory > t.Memory || t.Disk > 0 && d.Resources().Disk > t.Disk {
			continue
		}
		if best.Name == "" || t.VCPUs < best.VCPUs || t.VCPUs == best.VCPUs && t.Memory < best.Memory {
			best = t
		}
	}
	return best, best.Name != ""
}

// within reports whether a place is in another: what the other does not say, it leaves open.
func within(place, in peer.Location) bool {
	return (in.Country == "" || in.Country == place.Country) &&
		(in.Jurisdiction == "" || in.Jurisdiction == place.Jurisdiction) &&
		(in.Region == "" || in.Region == place.Region)
}

func place(l peer.Location) string {
	var parts []string
	for _, s := range []string{l.Country, l.Region, l.Jurisdiction} {
		if s != "" {
			parts = append(parts, s)
		}
	}
	if parts == nil {
		return "no place that it tells"
	}
	return strings.Join(parts, "/")
}

func places(list []peer.Location) string {
	var parts []string
	for _, l := range list {
		parts = append(parts, place(l))
	}
	return strings.Join(parts, ", ")
}

func sizes(types []peer.InstanceType) string {
	var parts []string
	for _, t := range types {
		s := fmt.Sprintf("%s (%d vCPUs, %v", t.Name, t.VCPUs, t.Memory)
		if t.Disk > 0 {
			s += fmt.Sprintf(", %v", t.Disk)
		}
		parts = append(parts, s+")")
	}
	return strings.Join(parts, ", ")
}

func day(t time.Time) string { return t.UTC().Format(time.RFC3339) }
