package agreement

import (
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/vee"
	"github.com/reservoir-cloud/reservoir/vmi/peer"
)

var now = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

const example = `
lend: true
until: 2027-01-01
notice: 24h
ceiling: {vees: 3, vcpus: 4, memory: 4GiB, disk: 20GiB}
types:
  - {name: small, vcpus: 1, memory: 1GiB, disk: 10GiB}
  - {name: large, vcpus: 4, memory: 4GiB}
currency: EUR
prices: {vee: 0.001, vcpu: 0.02}
locations: [{country: SE}]
sla: {availability: 0.999, credit-percent: 10}
move: [live, cold]
`

func terms(t *testing.T) peer.Terms {
	t.Helper()
	got, err := Parse([]byte(example), "beta", "alpha", now)
	if err != nil {
		t.Fatal(err)
	}
	got.ID = "beta.aaaaaaaaaa"
	if err := Check(got); err != nil {
		t.Fatal(err)
	}
	return got
}

func signed(t *testing.T) peer.Agreement {
	return peer.Agreement{Terms: terms(t), Signatures: map[string]string{"alpha": "x", "beta": "y"}}
}

func TestParse(t *testing.T) {
	got := terms(t)
	if got.Lender != "beta" || got.Borrower != "alpha" || !got.From.Equal(now) || got.NoticeMS != 86_400_000 || !got.Movable.Live || got.Types[0].Disk != 10*vee.GiB {
		t.Errorf("%+v", got)
	}
	for text, want := range map[string]string{
		"until: 2027-01-01":       "lend",
		"lend: true\nuntil: soon": "until",
		"lend: false\nuntil: 2027-01-01\nceiling: {memory: lots}":           "ceiling: memory",
		"lend: false\nuntil: 2027-01-01\nprices: {vee: much}":               "prices: vee",
		"lend: false\nuntil: 2027-01-01\nmove: [teleport]":                  "teleport",
		"lend: false\nuntil: 2027-01-01\npromote-after: never":              "promote-after",
		"lend: false\nuntil: 2027-01-01\nfree: true":                        "free",
		"lend: true\nuntil: 2027-01-01\nx: " + strings.Repeat("a", maxFile): "bytes",
	} {
		if _, err := Parse([]byte(text), "beta", "alpha", now); !fault.Has(err, fault.Malformed) || !strings.Contains(err.Error(), want) {
			t.Errorf("%.40q: %v, want %s", text, err, want)
		}
	}
}

// TestCheck breaks every term.
func TestCheck(t *testing.T) {
	for want, spoil := range map[string]func(*peer.Terms){
		"id":            func(t *peer.Terms) { t.ID = "x" },
		"two sites":     func(t *peer.Terms) { t.Borrower = t.Lender },
		"after from":    func(t *peer.Terms) { t.Until = t.From },
		"noticeMs":      func(t *peer.Terms) { t.NoticeMS = -1 },
		"promoteMs":     func(t *peer.Terms) { t.PromoteMS = 1000 },
		"ceiling":       func(t *peer.Terms) { t.Ceiling.VEEs = 0 },
		"instance type": func(t *peer.Terms) { t.Types[1].Name = "small" },
		"of its own":    func(t *peer.Terms) { t.Types[0].Name = "" },
		"1 to 100":      func(t *peer.Terms) { t.Types = nil },
		"currency":      func(t *peer.Terms) { t.Currency = "Euro" },
		"places":        func(t *peer.Terms) { t.Places = 7 },
		"meters":        func(t *peer.Terms) { t.Prices["air"] = t.Prices["vee"] },
		"negative":      func(t *peer.Terms) { t.Prices["vee"] = t.Prices["vee"].Negative() },
		"country":       func(t *peer.Terms) { t.Locations[0].Country = "Sweden" },
		"availability":  func(t *peer.Terms) { t.SLA.Availability = 99.9 },
		"credit":        func(t *peer.Terms) { t.SLA.CreditPercent = 101 },
	} {
		x := terms(t)
		spoil(&x)
		if err := Check(x); !fault.Has(err, fault.Malformed) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", want, err)
		}
	}
}

func descriptor(name string, vcpus int, memory vee.Bytes) vee.Descriptor {
	return vee.Descriptor{Name: name, VCPUs: vcpus, Memory: memory, Disks: []vee.Disk{{Name: "root", Size: vee.GiB}}}
}

func TestAllows(t *testing.T) {
	sweden := peer.Location{Country: "SE", Region: "north"}
	web := descriptor("web", 1, vee.GiB)
	for name, c := range map[string]struct {
		change func(*peer.Agreement)
		held   Held
		wanted []vee.Descriptor
		there  peer.Location
		at     time.Time
		code   fault.Code
		want   string
	}{
		"within":     {wanted: []vee.Descriptor{web, web, web}, there: sweden, at: now},
		"one signed": {change: func(a *peer.Agreement) { delete(a.Signatures, "alpha") }, there: sweden, at: now, code: fault.WrongState, want: "not signed by alpha"},
		"early":      {there: sweden, at: now.Add(-time.Second), code: fault.WrongState, want: "only from"},
		"late":       {there: sweden, at: now.AddDate(1, 0, 0), code: fault.WrongState, want: "until 2027-01-01"},
		"ended": {change: func(a *peer.Agreement) { a.End = &peer.End{By: "alpha", At: now} }, there: sweden, at: now.Add(time.Hour),
			code: fault.WrongState, want: "must leave by 2026-03-02"},
		"elsewhere": {wanted: []vee.Descriptor{web}, there: peer.Location{Country: "DE"}, at: now, code: fault.Denied, want: "site beta is in DE"},
		"too large": {wanted: []vee.Descriptor{descriptor("db", 5, vee.GiB)}, there: sweden, at: now, code: fault.Denied, want: "small (1 vCPUs, 1GiB, 10GiB), large (4 vCPUs, 4GiB)"},
		"VEEs":      {wanted: []vee.Descriptor{web, web, web, web}, there: sweden, at: now, code: fault.QuotaExceeded, want: "4 VEEs"},
		"vCPUs":     {held: Held{VEEs: 1, VCPUs: 4}, wanted: []vee.Descriptor{web}, there: sweden, at: now, code: fault.QuotaExceeded, want: "5 vCPUs"},
		"memory":    {held: Held{VEEs: 1, Memory: 4 * vee.GiB}, wanted: []vee.Descriptor{web}, there: sweden, at: now, code: fault.QuotaExceeded, want: "5GiB of memory"},
		"disk":      {held: Held{VEEs: 1, Disk: 20 * vee.GiB}, wanted: []vee.Descriptor{web}, there: sweden, at: now, code: fault.QuotaExceeded, want: "of disk"},
	} {
		a := signed(t)
		if c.change != nil {
			c.change(&a)
		}
		err := Allows(a, c.held, c.wanted, c.there, c.at)
		if c.want == "" && err != nil || c.want != "" && (!fault.Has(err, c.code) || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: %v, want %s %q", name, err, c.code, c.want)
		}
	}
}

func TestEndsWithNotice(t *testing.T) {
	a := signed(t)
	a.End = &peer.End{By: "alpha", At: now}
	if Over(a, now.Add(24*time.Hour-time.Second)) || !Over(a, now.Add(24*time.Hour)) {
		t.Errorf("VEEs may stay until %v", a.Leave())
	}
	a.End.At = a.Until.Add(time.Hour) // it had run out before: the end makes nothing longer
	if !a.Leave().Equal(a.Until.Add(24 * time.Hour)) {
		t.Errorf("VEEs may stay until %v", a.Leave())
	}
}

func TestAllowsMove(t *testing.T) {
	a := signed(t)
	a.Movable.Live = false
	if err := AllowsMove(a, true); !fault.Has(err, fault.Denied) || !strings.Contains(err.Error(), "while they run") {
		t.Error(err)
	}
	if err := AllowsMove(a, false); err != nil {
		t.Error(err)
	}
}

// TestTextIsCanonical: the same terms have one text, whatever way they came.
func TestTextIsCanonical(t *testing.T) {
	x := terms(t)
	a, err := Text(x)
	if err != nil {
		t.Fatal(err)
	}
	want := `{"borrower":"alpha","ceiling":{"diskBytes":21474836480,"memoryBytes":4294967296,"vcpus":4,"vees":3},"currency":"EUR",` +
		`"from":"2026-03-01T12:00:00Z","id":"beta.aaaaaaaaaa","lender":"beta","locations":[{"country":"SE"}],"movable":{"cold":true,"live":true},` +
		`"noticeMs":86400000,"places":2,"prices":{"vcpu":"0.02","vee":"0.001"},"sla":{"availability":0.999,"creditPercent":10},` +
		`"types":[{"diskBytes":10737418240,"memoryBytes":1073741824,"name":"small","vcpus":1},{"memoryBytes":4294967296,"name":"large","vcpus":4}],"until":"2027-01-01T00:00:00Z"}`
	if string(a) != want {
		t.Errorf("got\n%s, want\n%s", a, want)
	}
}

// TestNeverOverTheCeiling: whatever is asked for one after the other, what was allowed in
// all stays within.
func TestNeverOverTheCeiling(t *testing.T) {
	a := signed(t)
	rapid.Check(t, func(rt *rapid.T) {
		var held Held
		for range rapid.IntRange(1, 10).Draw(rt, "calls") {
			var wanted []vee.Descriptor
			for range rapid.IntRange(1, 3).Draw(rt, "VEEs") {
				wanted = append(wanted, descriptor("v", rapid.IntRange(1, 5).Draw(rt, "vcpus"), vee.Bytes(rapid.IntRange(1, 5).Draw(rt, "GiB"))*vee.GiB))
			}
			if Allows(a, held, wanted, peer.Location{Country: "SE"}, now) == nil {
				for _, d := range wanted {
					held = held.Plus(d)
				}
			}
			if c := a.Ceiling; held.VEEs > c.VEEs || held.VCPUs > c.VCPUs || held.Memory > c.Memory || held.Disk > c.Disk {
				rt.Fatalf("holds %+v of %+v", held, c)
			}
		}
	})
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(example))
	f.Add([]byte("lend: [true"))
	f.Fuzz(func(t *testing.T, text []byte) {
		if terms, err := Parse(text, "beta", "alpha", now); err == nil {
			if _, err := Text(terms); err != nil {
				t.Errorf("what was parsed has no text: %v", err)
			}
		}
	})
}
