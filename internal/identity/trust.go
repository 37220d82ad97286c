package identity

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/reservoir-cloud/reservoir/internal/fault"
)

// Trust is who of other trust domains may come in, by exact ID, each with the bundle that
// proves it: for a site's control plane those of its partners, for a host the hosts that
// VEEs go to, and all hosts of the sites that it expects one from. A new one trusts nobody.
// All methods may be called concurrently; what was removed is refused from the next call on,
// also on connections that are open (Caller).
type Trust struct {
	now func() time.Time

	mu    sync.RWMutex
	ids   map[spiffeid.ID]*spiffebundle.Bundle
	hosts map[spiffeid.TrustDomain]*spiffebundle.Bundle // any host of these
}

// NewTrust trusts nobody.
func NewTrust(now func() time.Time) *Trust {
	return &Trust{now: now, ids: map[spiffeid.ID]*spiffebundle.Bundle{}}
}

// Put trusts id by the authorities of its site's bundle, in place of those before.
func (t *Trust) Put(id spiffeid.ID, b *spiffebundle.Bundle) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.ids[id] = b
}

// Remove trusts id no longer.
func (t *Trust) Remove(id spiffeid.ID) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.ids, id)
}

// PutHosts trusts every host of the sites of these bundles, and of no other site any more.
func (t *Trust) PutHosts(bundles ...*spiffebundle.Bundle) {
	hosts := make(map[spiffeid.TrustDomain]*spiffebundle.Bundle, len(bundles))
	for _, b := range bundles {
		hosts[b.TrustDomain()] = b
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.hosts = hosts
}

func (t *Trust) bundle(id spiffeid.ID) (*spiffebundle.Bundle, bool) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	b, ok := t.ids[id]
	if !ok && strings.HasPrefix(id.Path(), "/host/") {
		b, ok = t.hosts[id.TrustDomain()]
	}
	return b, ok
}

// verify that certs (leaf first) prove an ID that is trusted.
func (t *Trust) verify(certs []*x509.Certificate) (spiffeid.ID, error) {
	if len(certs) == 0 {
		return spiffeid.ID{}, fault.New(fault.Unauthenticated, "the caller shows no certificate")
	}
	id, err := x509svid.IDFromCert(certs[0])
	if err != nil {
		return id, fault.New(fault.Denied, "the caller's certificate: %w", err)
	}
	b, ok := t.bundle(id)
	if !ok {
		return id, fault.New(fault.Denied, "%s is nobody that is trusted here", id).
			Try("become partners: reservoir federation invite")
	}
	return id, Verify(certs, id, b, t.now())
}

// Verify that certs, leaf first, prove id by its site's bundle. Errors say which clock and
// which end of the certificate's life do not fit.
func Verify(certs []*x509.Certificate, id spiffeid.ID, b *spiffebundle.Bundle, at time.Time) error {
	if len(certs) == 0 {
		return fault.New(fault.Unauthenticated, "%s shows no certificate", id)
	}
	if err := inTime(certs[0], id, at); err != nil {
		return err
	}
	got, _, err := x509svid.Verify(certs, b.X509Bundle(), x509svid.WithTime(at))
	if err != nil {
		return fault.New(fault.Denied, "the certificate of %s does not verify by the authorities that site %s has announced: %w", id, id.TrustDomain(), err).
			Try("if the site has lost its authority, become partners anew: reservoir federation leave --force %s", id.TrustDomain())
	}
	if got != id {
		return fault.New(fault.Denied, "the certificate is that of %s, not of %s", got, id)
	}
	return nil
}

// inTime tells apart what crypto/x509 has one error for.
func inTime(leaf *x509.Certificate, id spiffeid.ID, at time.Time) error {
	clock := at.UTC().Format(time.RFC3339)
	switch {
	case at.After(leaf.NotAfter):
		return fault.New(fault.Denied, "the certificate of %s has expired on %s (the clock here says %s)", id, leaf.NotAfter.UTC().Format(time.RFC3339), clock).
			Try("see that site %s runs and renews it, and compare the two clocks: date -u", id.TrustDomain())
	case at.Before(leaf.NotBefore):
		return fault.New(fault.Denied, "the certificate of %s is good only from %s on, but the clock here says %s: one of the two clocks is wrong", id, leaf.NotBefore.UTC().Format(time.RFC3339), clock).
			Try("compare the two clocks: date -u")
	}
	return nil
}

// Caller of r, who must be trusted now, whatever held when the connection was made.
func (t *Trust) Caller(r *http.Request) (Caller, error) {
	if r.TLS == nil {
		return Caller{}, fault.New(fault.Unauthenticated, "the connection is not encrypted")
	}
	id, err := t.verify(r.TLS.PeerCertificates)
	if err != nil {
		return Caller{}, err
	}
	c := Caller{ID: id.String(), Site: id.TrustDomain().Name()}
	if host, ok := strings.CutPrefix(id.Path(), "/host/"); ok {
		c.Role, c.Host = PartnerHost, host
	} else if id.Path() == "/site" {
		c.Role = Partner
	} else {
		return Caller{}, fault.New(fault.Denied, "%s has no role here", id)
	}
	return c, nil
}

// FederationTLS is for the server that partners reach: nobody whom trust does not name gets
// past the handshake, except one who shows no certificate while strangers reports that
// somebody new is expected. refused, which may be nil, is told of everybody else: their end
// of the connection learns nothing of why.
func (k *Keypair) FederationTLS(trust *Trust, strangers func() bool, refused func(error)) *tls.Config {
	c := base()
	c.Time = k.now
	c.ClientAuth = tls.RequestClientCert
	c.GetCertificate = func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
		now := k.get()
		if now == nil {
			return nil, errNoCertificate
		}
		return &now.tls, nil
	}
	c.VerifyConnection = func(s tls.ConnectionState) error {
		if len(s.PeerCertificates) == 0 && strangers() {
			return nil
		}
		_, err := trust.verify(s.PeerCertificates)
		if err != nil && refused != nil {
			refused(err)
		}
		return err
	}
	return c
}

// MeetingTLS is ServerTLS for a host that besides its own site's processes lets in whom
// trust names. An Authenticator with the same Trust knows them.
func (k *Keypair) MeetingTLS(trust *Trust) *tls.Config {
	c := base()
	c.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) {
		now := k.get()
		if now == nil {
			return nil, errNoCertificate
		}
		c := k.clientsVerified(now)
		for _, a := range trust.authorities() {
			c.ClientCAs.AddCert(a)
		}
		// That some authority here has signed it is not enough: none speaks for another's site.
		c.VerifyConnection = func(s tls.ConnectionState) error {
			if len(s.PeerCertificates) == 0 {
				return nil
			}
			if id, err := x509svid.IDFromCert(s.PeerCertificates[0]); err == nil && id.MemberOf(now.id.TrustDomain()) {
				return verifyPeer(s, now.bundle, id, k.now())
			}
			_, err := trust.verify(s.PeerCertificates)
			return err
		}
		return c, nil
	}
	return c
}

// authorities of everybody who is trusted.
func (t *Trust) authorities() (list []*x509.Certificate) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	for _, b := range t.ids {
		list = append(list, b.X509Authorities()...)
	}
	for _, b := range t.hosts {
		list = append(list, b.X509Authorities()...)
	}
	return list
}

// PartnerTLS is for calls to peer, of another trust domain, as trust knows it at that
// moment; nobody else is taken for it. It shows k's certificate.
func (k *Keypair) PartnerTLS(trust *Trust, peer spiffeid.ID) *tls.Config {
	c := base()
	c.Time = k.now
	c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
		now := k.get()
		if now == nil {
			return nil, errNoCertificate
		}
		if err := inTime(now.leaf, now.id, k.now()); err != nil {
			return nil, fmt.Errorf("this process's own identity: %w", err)
		}
		return &now.tls, nil
	}
	c.VerifyConnection = func(s tls.ConnectionState) error {
		b, ok := trust.bundle(peer)
		if !ok {
			return fault.New(fault.Denied, "%s is trusted no longer", peer)
		}
		return Verify(s.PeerCertificates, peer, b, k.now())
	}
	return c
}

// ParseBundle reads a site's bundle in SPIFFE's form. It must have an authority, and none
// that is not for X.509 makes one.
func ParseBundle(site string, jwks []byte) (*spiffebundle.Bundle, error) {
	id, err := SiteID(site)
	if err != nil {
		return nil, err
	}
	if len(jwks) > maxBundle {
		return nil, fault.New(fault.TooLarge, "the trust bundle of site %s has %d bytes, more than %d", site, len(jwks), maxBundle)
	}
	b, err := spiffebundle.Parse(id.TrustDomain(), jwks)
	if err == nil && len(b.X509Authorities()) == 0 {
		err = errors.New("it has no X.509 authority")
	}
	if err != nil {
		return nil, fault.New(fault.Malformed, "the trust bundle of site %s: %w", site, err)
	}
	return b, nil
}

// maxBundle bounds what is parsed, bytes: a dozen authorities.
const maxBundle = 64 << 10

// Fingerprints of a bundle's authorities, as CA.Fingerprint has them.
func Fingerprints(b *spiffebundle.Bundle) []string {
	var list []string
	for _, a := range b.X509Authorities() {
		list = append(list, fingerprint(a))
	}
	return list
}
