package partners

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/internal/httpapi"
	"github.com/reservoir-cloud/reservoir/internal/identity"
	"github.com/reservoir-cloud/reservoir/vee"
	"github.com/reservoir-cloud/reservoir/vmi/peer"
)

// Invitation is the token with which another site may become a partner, once. What it holds
// beside the secret is the way to us and our authority's fingerprint, which two people
// compare by another way than the one the token takes.
type Invitation struct {
	Token       string      `json:"token"`
	Site        string      `json:"site,omitempty"` // that alone may use it; empty: any
	Fingerprint string      `json:"fingerprint"`    // of our authority
	Border      peer.Border `json:"border"`
	Expires     time.Time   `json:"expires"`
}

// token is what the text of an Invitation says.
type token struct {
	Site        string      `json:"s"`
	Border      peer.Border `json:"b"`
	Fingerprint string      `json:"f"`
	Secret      string      `json:"k"`
}

const tokenPrefix = "rsvf_"

// maxToken bounds what is parsed, bytes.
const maxToken = 2 << 10

func (t token) String() string {
	text, err := json.Marshal(t)
	if err != nil { // strings only
		panic(err)
	}
	return tokenPrefix + base64.RawURLEncoding.EncodeToString(text)
}

func parseToken(text string) (t token, err error) {
	text = strings.TrimSpace(text)
	enc, ok := strings.CutPrefix(text, tokenPrefix)
	bad := fault.New(fault.TokenInvalid, "this is no token for a partner: it begins with %q and is one line", tokenPrefix).Try("reservoir federation invite, at the other site")
	if !ok || len(text) > maxToken {
		return t, bad
	}
	raw, err := base64.RawURLEncoding.DecodeString(enc)
	if err != nil || json.Unmarshal(raw, &t) != nil || !vee.ValidName(t.Site) {
		return t, bad
	}
	if _, _, err := identity.ParseJoinToken(identity.Secret(t.Fingerprint + "." + t.Secret)); err != nil {
		return t, bad
	}
	if _, _, err := net.SplitHostPort(t.Border.Relay); err != nil {
		return t, bad
	}
	return t, nil
}

// Invite another site, for as long as life.
func (r *Registry) Invite(ctx context.Context, site string, life time.Duration) (Invitation, error) {
	b := r.cfg.Border()
	if b.Relay == "" {
		return Invitation{}, fault.New(fault.WrongState, "site %s has no proxy that others could reach", r.cfg.Site).Try("run one: reservoir proxy --help")
	}
	if site == r.cfg.Site {
		return Invitation{}, fault.New(fault.Malformed, "site %s cannot be its own partner", site)
	}
	secret, err := r.invitations.Create(ctx, r.cfg.CA, site, life)
	if err != nil {
		return Invitation{}, err
	}
	fingerprint, text, err := identity.ParseJoinToken(secret)
	if err != nil {
		return Invitation{}, err
	}
	expires := r.cfg.Now().Add(life)
	r.expect(expires)
	return Invitation{Site: site, Fingerprint: fingerprint, Border: b, Expires: expires,
		Token: token{Site: r.cfg.Site, Border: b, Fingerprint: fingerprint, Secret: text}.String()}, nil
}

// expect a stranger until then.
func (r *Registry) expect(until time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if until.After(r.expecting) {
		r.expecting = until
	}
}

// Strangers reports whether one may come to the accept call now: an invitation is open.
func (r *Registry) Strangers() bool {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return r.cfg.Now().Before(r.expecting)
}

// Accept implements peer.Host: the other site has our token.
func (r *Registry) Accept(ctx context.Context, a peer.Acceptance) (peer.Introduction, error) {
	var in peer.Introduction
	if err := json.Unmarshal(a.Introduction, &in); err != nil {
		return peer.Introduction{}, fault.New(fault.Malformed, "the introduction: %w", err)
	}
	if !vee.ValidName(in.Hello.Site) || in.Hello.Site == r.cfg.Site {
		return peer.Introduction{}, fault.New(fault.Malformed, "a site that is called %q cannot be a partner of %s", in.Hello.Site, r.cfg.Site)
	}
	id, err := identity.SiteID(in.Hello.Site)
	if err != nil {
		return peer.Introduction{}, err
	}
	if err := checkBundle(in.Bundle, in.Hello.Site); err != nil {
		return peer.Introduction{}, err
	}
	b, err := identity.ParseBundle(in.Hello.Site, in.Bundle.JWKS)
	if err != nil {
		return peer.Introduction{}, err
	}
	if err := identity.VerifySignature(a.Introduction, a.Signature, id, b, r.cfg.Now()); err != nil {
		return peer.Introduction{}, err
	}
	// The token belongs to the site and its first authority: an answer that was lost may be
	// asked for again, by nobody else.
	who := append([]byte(in.Hello.Site+"\x00"), []byte(identity.Fingerprints(b)[0])...)
	inv, err := r.invitations.Use(ctx, identity.Secret(r.cfg.CA.Fingerprint()+"."+a.Token), who)
	if err != nil {
		return peer.Introduction{}, err
	}
	if inv.Host != "" && inv.Host != in.Hello.Site {
		return peer.Introduction{}, fault.New(fault.Denied, "the invitation is for site %q, not for %q", inv.Host, in.Hello.Site).
			Try("reservoir federation invite %s", in.Hello.Site)
	}
	if err := r.befriend(ctx, in); err != nil {
		return peer.Introduction{}, err
	}
	return r.introduction(in.Hello.Site)
}

func (r *Registry) introduction(to string) (peer.Introduction, error) {
	b, err := r.ownBundle()
	return peer.Introduction{Hello: r.hello(to), Bundle: b}, err
}

// befriend keeps a site as a partner. One of the same name that was not revoked must have
// the same authorities.
func (r *Registry) befriend(ctx context.Context, in peer.Introduction) error {
	name := in.Hello.Site
	in.Hello.Received, in.Hello.Sent = time.Time{}, time.Time{}
	p := record{Name: name, Since: r.cfg.Now(), Bundle: in.Bundle, Hello: in.Hello}
	r.acting.Lock()
	defer r.acting.Unlock()
	r.mu.RLock()
	old, known := r.partners[name]
	r.mu.RUnlock()
	if known && old.Revoked == nil {
		if !related(old.Bundle, in.Bundle) {
			return fault.New(fault.Exists, "site %s is a partner already, with other authorities than this one shows", name).
				Try("if it is the same site and has lost its authority: reservoir federation leave %s --force", name)
		}
		p.Since = old.Since
	}
	if _, err := r.records.Put(ctx, name, p); err != nil {
		return fmt.Errorf("keep site %s as a partner: %w", name, err)
	}
	if err := r.adopt(p); err != nil {
		return err
	}
	r.event(false, "PartnerAccepted", "site/"+name, "site %s is a partner now; its authority's fingerprint is %s", name, Fingerprint(p.Bundle))
	return nil
}

// related bundles of one site have an authority in common.
func related(a, b peer.Bundle) bool {
	x, err := identity.ParseBundle(a.Site, a.JWKS)
	y, err2 := identity.ParseBundle(b.Site, b.JWKS)
	if err != nil || err2 != nil {
		return false
	}
	for _, c := range x.X509Authorities() {
		if y.HasX509Authority(c) {
			return true
		}
	}
	return false
}

// Fingerprint of a bundle's first authority, which people compare.
func Fingerprint(b peer.Bundle) string {
	parsed, err := identity.ParseBundle(b.Site, b.JWKS)
	if err != nil {
		return ""
	}
	return identity.Fingerprints(parsed)[0]
}

// AcceptToken makes the site that gave it out our partner, and us its.
func (r *Registry) AcceptToken(ctx context.Context, text string) (peer.Partner, error) {
	t, err := parseToken(text)
	if err != nil {
		return peer.Partner{}, err
	}
	if t.Site == r.cfg.Site {
		return peer.Partner{}, fault.New(fault.Malformed, "the token is one of this site's own: it is for another site's operator")
	}
	ours, err := r.introduction(t.Site)
	if err != nil {
		return peer.Partner{}, err
	}
	introduction, err := json.Marshal(ours)
	if err != nil {
		return peer.Partner{}, err
	}
	signature, err := r.cfg.Keys.Sign(introduction)
	if err != nil {
		return peer.Partner{}, err
	}
	in, err := r.introduce(ctx, t, peer.Acceptance{Token: t.Secret, Introduction: introduction, Signature: signature})
	if err != nil {
		return peer.Partner{}, fmt.Errorf("become a partner of site %s: %w", t.Site, err)
	}
	if in.Hello.Site != t.Site {
		return peer.Partner{}, fault.New(fault.Denied, "the token is that of site %s, who answers is %q", t.Site, in.Hello.Site)
	}
	if err := checkBundle(in.Bundle, t.Site); err != nil {
		return peer.Partner{}, err
	}
	if in.Hello.Border == (peer.Border{}) {
		in.Hello.Border = t.Border
	}
	if err := r.befriend(ctx, in); err != nil {
		return peer.Partner{}, err
	}
	return r.greeted(ctx, t.Site)
}

// greeted waits a little for the first greeting of a new partner: people look at the answer.
func (r *Registry) greeted(ctx context.Context, name string) (peer.Partner, error) {
	ctx, cancel := context.WithTimeout(ctx, r.cfg.Timing.Wait)
	defer cancel()
	for {
		changed := r.Changed()
		p, err := r.Partner(name)
		if err != nil || p.Down == nil {
			return p, err
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return p, nil
		}
	}
}

// introduce makes the accept call, over a connection that the fingerprint in the token
// proves.
func (r *Registry) introduce(ctx context.Context, t token, a peer.Acceptance) (peer.Introduction, error) {
	r.mu.Lock()
	if _, known := r.partners[t.Site]; !known {
		r.joining[t.Site] = t.Border
		r.tell() // our own proxy has to know the way
	}
	r.mu.Unlock()
	defer func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		if _, there := r.joining[t.Site]; there {
			delete(r.joining, t.Site)
			r.tell()
		}
	}()
	// Our proxy may still be on its way to know: Dial waits for that.
	ctx, cancel := context.WithTimeout(ctx, acceptWithin)
	defer cancel()
	transport := &http.Transport{TLSClientConfig: identity.PinnedTLS(t.Fingerprint, r.cfg.Now), ForceAttemptHTTP2: true, TLSHandshakeTimeout: r.cfg.Timing.Dial, DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return r.cfg.Dial(ctx, t.Site, t.Border) }}
	return peer.NewHostClient(&httpapi.Client{Base: "https://" + t.Site, HTTP: &http.Client{Transport: transport}}).Accept(ctx, a)
}

// acceptWithin bounds the accept call: a person waits for it.
const acceptWithin = 30 * time.Second
