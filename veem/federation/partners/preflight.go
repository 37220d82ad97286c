package partners

import (
	"context"
	"crypto/tls"
	"fmt"
	"maps"
	"net"
	"net/http"
	"slices"
	"time"

	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/internal/httpapi"
	"github.com/reservoir-cloud/reservoir/internal/identity"
	"github.com/reservoir-cloud/reservoir/vmi/peer"
)

// Check is one step of the way to a partner.
type Check struct {
	Step   string `json:"step"`
	Target string `json:"target,omitempty"` // proto://ip:port
	OK     bool   `json:"ok"`
	Detail string `json:"detail,omitempty"` // what was found
	Next   string `json:"next,omitempty"`   // what to try, where it is not OK
}

// wrongClock is an offset that people should mend: certificates and agreements bear an hour,
// but what two logs say of one moment should fit.
const wrongClock = time.Second

// Preflight goes the way to a partner, or to the site that gave out a token, step by step up
// to the first that fails.
func (r *Registry) Preflight(ctx context.Context, name, tokenText string) ([]Check, error) {
	var checks []Check
	step := func(what, target, detail string, err error) bool {
		c := Check{Step: what, Target: target, OK: err == nil, Detail: detail}
		if err != nil {
			f := fault.From(err)
			c.Detail, c.Next = err.Error(), f.NextStep()
		}
		checks = append(checks, c)
		return err == nil
	}
	var to peer.Border
	var config *tls.Config
	if tokenText != "" {
		t, err := parseToken(tokenText)
		if err != nil {
			return nil, err
		}
		r.mu.Lock()
		if _, known := r.partners[t.Site]; !known {
			r.joining[t.Site] = t.Border
			r.tell()
			defer func() {
				r.mu.Lock()
				defer r.mu.Unlock()
				delete(r.joining, t.Site)
				r.tell()
			}()
		}
		r.mu.Unlock()
		name, to, config = t.Site, t.Border, identity.PinnedTLS(t.Fingerprint, r.cfg.Now)
	} else {
		p, err := r.Partner(name)
		if err != nil {
			return nil, err
		}
		id, err := identity.SiteID(name)
		if err != nil {
			return nil, err
		}
		to, config = p.Hello.Border, r.cfg.Keys.PartnerTLS(r.cfg.Trust, id)
	}
	ours := r.cfg.Border()
	var none error
	if ours.Relay == "" {
		none = fault.New(fault.WrongState, "this site has no proxy").Try("reservoir proxy --help")
	}
	step("this site's proxy, as it announces itself", target("tcp", ours.Relay), "", none)

	ctx, cancel := context.WithTimeout(ctx, acceptWithin)
	defer cancel()
	conn, err := r.cfg.Dial(ctx, name, to)
	if !step("reach site "+name+" through its proxy", target("tcp", to.Relay), "", err) {
		return checks, nil
	}
	config.NextProtos = []string{"http/1.1"}
	secured := tls.Client(conn, config)
	err = secured.HandshakeContext(ctx)
	if err != nil {
		err = fault.New(fault.From(err).Code, "the TLS handshake with site %s: %w", name, err).Try("compare clocks (date -u) and fingerprints (reservoir federation show %s)", name)
	}
	secured.Close()
	if !step("prove that it is site "+name, target("tcp", to.Relay), "", err) || tokenText != "" {
		return checks, nil
	}
	if !step("be taken for a partner there", "", "", r.asked(ctx, name)) {
		return checks, nil
	}
	r.mu.RLock()
	l := r.links[name]
	p := r.partners[name]
	r.mu.RUnlock()
	l.mu.Lock()
	offset, within := l.clock.best()
	l.mu.Unlock()
	var off error
	if offset.Abs()-within > wrongClock {
		off = fault.New(fault.WrongState, "the clock of site %s is %v off ours (±%v)", name, offset.Round(time.Millisecond), within.Round(time.Millisecond)).Try("compare the two clocks: date -u")
	}
	step("compare the clocks", "", fmt.Sprintf("%v apart, ±%v", offset.Round(time.Millisecond), within.Round(time.Millisecond)), off)
	var lacks []peer.Capability
	for _, c := range r.cfg.Capabilities {
		if !p.Hello.Can(c) {
			lacks = append(lacks, c)
		}
	}
	detail := "it can all that this site can"
	if lacks != nil {
		detail = fmt.Sprintf("version %s lacks %v: refused where it is needed, everything else works", p.Hello.Version, lacks)
	}
	step("compare capabilities", "", detail, nil)
	if r.cfg.Tunnel != nil {
		step("the tunnel for shared networks", target("udp", to.Tunnel), "", r.cfg.Tunnel(ctx, name))
	}
	return checks, nil
}

// asked greets once more, over a new connection.
func (r *Registry) asked(ctx context.Context, name string) error {
	id, err := identity.SiteID(name)
	if err != nil {
		return err
	}
	t := &http.Transport{TLSClientConfig: r.cfg.Keys.PartnerTLS(r.cfg.Trust, id), ForceAttemptHTTP2: true, DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			p, err := r.Partner(name)
			if err != nil {
				return nil, err
			}
			return r.cfg.Dial(ctx, name, p.Hello.Border)
		}}
	_, err = peer.NewClient(&httpapi.Client{Base: "https://" + name, HTTP: &http.Client{Transport: t}}).Hello(ctx, r.hello(name))
	return explained(err)
}

func target(proto, address string) string {
	if address == "" {
		return ""
	}
	return proto + "://" + address
}

// Shown is a partner as operators see it.
type Shown struct {
	Name          string            `json:"name"`
	State         string            `json:"state"` // reached, lost, revoked
	Why           string            `json:"why,omitempty"`
	Since         time.Time         `json:"since"`
	Seen          time.Time         `json:"seen,omitzero"`
	Version       string            `json:"softwareVersion,omitempty"`
	Capabilities  []peer.Capability `json:"capabilities"`
	Fingerprint   string            `json:"fingerprint"`
	Bundle        uint64            `json:"bundleSequence"`
	Border        peer.Border       `json:"border"`
	OffsetMS      float64           `json:"clockOffsetMs"` // its clock minus ours
	OffsetErrorMS float64           `json:"clockOffsetErrorMs"`
	Agreements    []string          `json:"agreements"`
	Revoked       *Revocation       `json:"revoked,omitempty"`
	Offer         *peer.Attributes  `json:"offer,omitempty"`
	OfferAgeMS    int64             `json:"offerAgeMs,omitempty"`
}

// Show a partner, also one that was revoked; NotFound.
func (r *Registry) Show(name string) (Shown, error) {
	r.mu.RLock()
	p, ok := r.partners[name]
	if !ok {
		defer r.mu.RUnlock()
		return Shown{}, r.unknown(name, p)
	}
	s := Shown{Name: name, State: "reached", Since: p.Since, Version: p.Hello.Version, Capabilities: p.Hello.Capabilities, Fingerprint: Fingerprint(p.Bundle),
		Bundle: p.Bundle.Sequence, Border: p.Hello.Border, Revoked: p.Revoked, Agreements: []string{}}
	for _, id := range slices.Sorted(maps.Keys(r.agreements)) {
		if r.agreements[id].Other(r.cfg.Site) == name {
			s.Agreements = append(s.Agreements, id)
		}
	}
	if p.Revoked != nil {
		s.State, s.Why = "revoked", p.Revoked.Reason
		r.mu.RUnlock()
		return s, nil
	}
	view := r.view(p)
	r.mu.RUnlock()
	if s.Seen = view.Seen; view.Down != nil {
		s.State, s.Why = "lost", view.Down.Error()
	}
	ms := func(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
	s.OffsetMS, s.OffsetErrorMS = ms(view.Offset), ms(view.OffsetError)
	if a, age, ok := r.Offer(name); ok {
		s.Offer, s.OfferAgeMS = &a, age.Milliseconds()
	}
	return s, nil
}

// List all partners, also those that were revoked, in the order of their names.
func (r *Registry) List() []Shown {
	r.mu.RLock()
	names := slices.Sorted(maps.Keys(r.partners))
	r.mu.RUnlock()
	list := []Shown{}
	for _, name := range names {
		if s, err := r.Show(name); err == nil { // it may have left meanwhile
			list = append(list, s)
		}
	}
	return list
}
