package identity

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
)

// Of a peer only its SPIFFE ID counts, never the name or address it was reached by: hosts
// move and sit behind tunnels. So the configurations below verify the chain by the site's
// bundle themselves (x509svid.Verify) in place of crypto/tls's check of names. Sessions
// are not resumed, so that each connection sees current certificates.

// ServerTLS is for a server that k identifies. Clients need no certificate, since people
// come with tokens, but one they show must verify. HTTP/1.1 and HTTP/2.
func (k *Keypair) ServerTLS() *tls.Config {
	c := base()
	c.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) {
		now := k.get()
		if now == nil {
			return nil, errNoCertificate
		}
		return k.clientsVerified(now), nil
	}
	return c
}

// clientsVerified is for one handshake: a client's certificate must be of k's own site.
func (k *Keypair) clientsVerified(now *issued) *tls.Config {
	c := base()
	c.Time = k.now
	c.Certificates = []tls.Certificate{now.tls}
	c.ClientAuth = tls.VerifyClientCertIfGiven
	c.ClientCAs = x509.NewCertPool()
	for _, a := range now.bundle.X509Authorities() {
		c.ClientCAs.AddCert(a)
	}
	return c
}

// ClientTLS is for calls to the one that peer names, and nobody else: the handshake fails
// with every other. It shows k's certificate.
func (k *Keypair) ClientTLS(peer spiffeid.ID) *tls.Config {
	c := base()
	c.Time = k.now
	c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
		now := k.get()
		if now == nil {
			return nil, errNoCertificate
		}
		return &now.tls, nil
	}
	c.VerifyConnection = func(s tls.ConnectionState) error {
		now := k.get()
		if now == nil {
			return errNoCertificate
		}
		return verifyPeer(s, now.bundle, peer, k.now())
	}
	return c
}

// BundleTLS is for clients without a certificate, who trust the site of this bundle
// (CA.Bundle) and accept only its control plane.
func BundleTLS(bundle []byte, site string, now func() time.Time) (*tls.Config, error) {
	peer, err := SiteID(site)
	if err != nil {
		return nil, err
	}
	b, err := x509bundle.Parse(peer.TrustDomain(), bundle)
	if err != nil {
		return nil, fmt.Errorf("read the bundle of site %s: %w", site, err)
	}
	c := base()
	c.VerifyConnection = func(s tls.ConnectionState) error { return verifyPeer(s, b, peer, now()) }
	return c, nil
}

// PinnedTLS is for the first call of all, when nothing of the site is known but its
// authority's fingerprint (CA.Fingerprint) from a join token: it accepts the control plane
// of that authority's site.
func PinnedTLS(caFingerprint string, now func() time.Time) *tls.Config {
	c := base()
	c.VerifyConnection = func(s tls.ConnectionState) error {
		for _, ca := range s.PeerCertificates {
			if fingerprint(ca) != caFingerprint {
				continue
			}
			td, err := spiffeid.TrustDomainFromURI(firstURI(ca))
			if err != nil {
				return fmt.Errorf("the site's authority: %w", err)
			}
			peer, err := SiteID(td.Name())
			if err != nil {
				return err
			}
			return verifyPeer(s, x509bundle.FromX509Authorities(td, []*x509.Certificate{ca}), peer, now())
		}
		return errors.New("the server does not belong to the site that the token was made by: the fingerprint of its authority differs")
	}
	return c
}

func verifyPeer(s tls.ConnectionState, b *x509bundle.Bundle, want spiffeid.ID, at time.Time) error {
	id, _, err := x509svid.Verify(s.PeerCertificates, b, x509svid.WithTime(at))
	if err != nil {
		return fmt.Errorf("the peer is not known to be %s: %w", want, err)
	}
	if id != want {
		return fmt.Errorf("the peer is %s, not %s", id, want)
	}
	return nil
}

func base() *tls.Config {
	return &tls.Config{
		MinVersion:             tls.VersionTLS13,
		NextProtos:             []string{"h2", "http/1.1"},
		SessionTicketsDisabled: true,
		InsecureSkipVerify:     true, // VerifyConnection does it, see above; servers ignore this
	}
}

var errNoCertificate = errors.New("this process has no certificate yet: it has not joined a site")
