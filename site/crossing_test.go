package site

import (
	"testing"
	"time"

	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/vmi/peer"
)

type onePartner peer.Partner

func (p onePartner) Partner(name string) (peer.Partner, error) {
	if name != p.Name {
		return peer.Partner{}, fault.New(fault.NotFound, "no partner %s", name)
	}
	return peer.Partner(p), nil
}
func (p onePartner) Partners() []peer.Partner { return []peer.Partner{peer.Partner(p)} }
func (p onePartner) Changed() <-chan struct{} { return nil }

// Who may cross: those with whom that was agreed, and until the notice is over.
func TestWhoMayCross(t *testing.T) {
	now := time.Unix(1000, 0)
	deal := peer.Agreement{Signatures: map[string]string{"alpha": "x", "beta": "x"}, Terms: peer.Terms{Lender: "beta", Borrower: "alpha",
		From: time.Unix(0, 0), Until: time.Unix(5000, 0), NoticeMS: 60_000, Movable: peer.Movable{Live: true}}}
	ended := func(at int64) func(*peer.Agreement) {
		return func(a *peer.Agreement) { a.End = &peer.End{At: time.Unix(at, 0)} }
	}
	for name, c := range map[string]struct {
		change func(*peer.Agreement)
		site   string
		may    bool
	}{
		"agreed":                     {func(*peer.Agreement) {}, "beta", true},
		"a stranger":                 {func(*peer.Agreement) {}, "gamma", false},
		"not while they run":         {func(a *peer.Agreement) { a.Movable.Live = false }, "beta", false},
		"not signed by both":         {func(a *peer.Agreement) { delete(a.Signatures, "beta") }, "beta", false},
		"ended, within the notice":   {ended(950), "beta", true},
		"ended, and the notice over": {ended(900), "beta", false},
		"not yet":                    {func(a *peer.Agreement) { a.From = time.Unix(2000, 0) }, "beta", false},
	} {
		a := deal
		a.Signatures = map[string]string{"alpha": "x", "beta": "x"}
		c.change(&a)
		x := crossing{&gate{now: func() time.Time { return now }}, onePartner{Name: "beta", Bundle: peer.Bundle{JWKS: []byte("jwks")}, Agreements: []peer.Agreement{a}}}
		b, err := x.Bundle(c.site, false)
		if may := err == nil && string(b) == "jwks"; may != c.may || err != nil && !fault.Has(err, fault.Denied) {
			t.Errorf("%s: %q, %v", name, b, err)
		}
		if _, err := x.Bundle(c.site, true); !fault.Has(err, fault.Denied) {
			t.Errorf("%s, cold, which was not agreed: %v", name, err)
		}
		for i := range x.partners.(onePartner).Agreements {
			x.partners.(onePartner).Agreements[i].Movable = peer.Movable{Cold: a.Movable.Live}
		}
		if _, err := x.Bundle(c.site, true); (err == nil) != c.may {
			t.Errorf("%s, cold alone: %v", name, err)
		}
	}
}
