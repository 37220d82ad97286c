package agreement

import (
	"bytes"
	"fmt"
	"maps"
	"slices"
	"time"

	"go.yaml.in/yaml/v4"

	"github.com/reservoir-cloud/reservoir/account/billing"
	"github.com/reservoir-cloud/reservoir/account/money"
	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/vee"
	"github.com/reservoir-cloud/reservoir/vmi/peer"
)

// file is an agreement as a person writes it.
type file struct {
	Lend    *bool  `yaml:"lend"`
	From    string `yaml:"from"`
	Until   string `yaml:"until"`
	Notice  string `yaml:"notice"`
	Ceiling struct {
		VEEs   int    `yaml:"vees"`
		VCPUs  int    `yaml:"vcpus"`
		Memory string `yaml:"memory"`
		Disk   string `yaml:"disk"`
	} `yaml:"ceiling"`
	Types []struct {
		Name   string `yaml:"name"`
		VCPUs  int    `yaml:"vcpus"`
		Memory string `yaml:"memory"`
		Disk   string `yaml:"disk"`
	} `yaml:"types"`
	Currency  string            `yaml:"currency"`
	Places    *int              `yaml:"places"`
	Prices    map[string]string `yaml:"prices"`
	Locations []struct {
		Country      string `yaml:"country"`
		Jurisdiction string `yaml:"jurisdiction"`
		Region       string `yaml:"region"`
	} `yaml:"locations"`
	SLA struct {
		Availability  float64 `yaml:"availability"`
		CreditPercent float64 `yaml:"credit-percent"`
	} `yaml:"sla"`
	Move   []string `yaml:"move"`
	Access bool     `yaml:"access"`
	// PromoteAfter so long a silence.
	PromoteAfter string `yaml:"promote-after"`
}

// Parse reads the terms that a person proposes for an agreement between two sites:
//
//	lend: true                  # we lend to the partner; false: we borrow from it
//	from: 2026-01-01            # UTC, or a time of RFC 3339; empty: now
//	until: 2027-01-01
//	notice: 24h
//	ceiling: {vees: 20, vcpus: 40, memory: 64GiB, disk: 500GiB}
//	types:
//	  - {name: small, vcpus: 1, memory: 1GiB, disk: 10GiB}
//	currency: EUR
//	prices: {vee: 0.001, vcpu: 0.02, memory: 0.005}   # for an hour
//	locations: [{country: SE}]
//	sla: {availability: 0.999, credit-percent: 10}
//	move: [live, cold]          # how VEEs may cross; empty: not at all
//	access: true                # the lender's public addresses may lead to the borrower's VEEs
//	promote-after: 30m          # of silence the lender goes on with the borrower's services; empty: never by itself
//
// The identifier and the names of the sites are for the caller to fill in: us and partner are
// put where lend says. fault.Malformed.
func Parse(text []byte, us, partner string, now time.Time) (t peer.Terms, err error) {
	bad := func(format string, args ...any) (peer.Terms, error) {
		return peer.Terms{}, fault.New(fault.Malformed, "the agreement's file: "+format, args...).Try("what a file looks like: docs/federation.md")
	}
	if len(text) > maxFile {
		return bad("it has %d bytes, more than %d", len(text), maxFile)
	}
	var f file
	d, err := yaml.NewLoader(bytes.NewReader(text), yaml.WithKnownFields())
	if err == nil {
		err = d.Load(&f)
	}
	if err != nil {
		return bad("%w", err)
	}
	if f.Lend == nil {
		return bad("lend: want true (site %s lends to %s) or false (it borrows)", us, partner)
	}
	t = peer.Terms{Lender: partner, Borrower: us, Currency: f.Currency, Places: 2, SLA: peer.Promise(f.SLA)}
	if *f.Lend {
		t.Lender, t.Borrower = us, partner
	}
	if f.Places != nil {
		t.Places = *f.Places
	}
	if t.From, err = moment(f.From, now); err != nil {
		return bad("from: %w", err)
	}
	if t.Until, err = moment(f.Until, time.Time{}); err != nil {
		return bad("until: %w", err)
	}
	if f.Notice != "" {
		notice, err := time.ParseDuration(f.Notice)
		if err != nil {
			return bad("notice: %w", err)
		}
		t.NoticeMS = notice.Milliseconds()
	}
	if f.PromoteAfter != "" {
		after, err := time.ParseDuration(f.PromoteAfter)
		if err != nil {
			return bad("promote-after: %w", err)
		}
		t.PromoteMS = after.Milliseconds()
	}
	size := func(what, text string) (b vee.Bytes) {
		if text != "" && err == nil {
			if b, err = vee.ParseBytes(text); err != nil {
				err = fmt.Errorf("%s: %w", what, err)
			}
		}
		return b
	}
	t.Ceiling = peer.Ceiling{VEEs: f.Ceiling.VEEs, VCPUs: f.Ceiling.VCPUs, Memory: size("ceiling: memory", f.Ceiling.Memory), Disk: size("ceiling: disk", f.Ceiling.Disk)}
	for _, i := range f.Types {
		t.Types = append(t.Types, peer.InstanceType{Name: i.Name, VCPUs: i.VCPUs, Memory: size("type "+i.Name+": memory", i.Memory), Disk: size("type "+i.Name+": disk", i.Disk)})
	}
	if err != nil {
		return bad("%w", err)
	}
	for _, m := range slices.Sorted(maps.Keys(f.Prices)) {
		price, err := money.Parse(f.Prices[m])
		if err != nil {
			return bad("prices: %s: %w", m, err)
		}
		if t.Prices == nil {
			t.Prices = map[billing.Meter]money.Amount{}
		}
		t.Prices[billing.Meter(m)] = price
	}
	for _, l := range f.Locations {
		t.Locations = append(t.Locations, peer.Location{Country: l.Country, Jurisdiction: l.Jurisdiction, Region: l.Region})
	}
	for _, how := range f.Move {
		switch how {
		case "live":
			t.Movable.Live = true
		case "cold":
			t.Movable.Cold = true
		default:
			return bad("move: %q: want live or cold", how)
		}
	}
	t.Access = f.Access
	return t, nil
}

// maxFile bounds what is parsed, bytes.
const maxFile = 64 << 10

// moment in UTC to the second: what is signed is written in one way only.
func moment(text string, otherwise time.Time) (time.Time, error) {
	if text == "" && !otherwise.IsZero() {
		return otherwise.UTC().Truncate(time.Second), nil
	}
	for _, layout := range []string{time.RFC3339, time.DateOnly} {
		if t, err := time.Parse(layout, text); err == nil {
			return t.UTC().Truncate(time.Second), nil
		}
	}
	return time.Time{}, fmt.Errorf("%q: want a date such as 2027-01-01, or a time of RFC 3339", text)
}
