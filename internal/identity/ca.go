package identity

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/url"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/reservoir-cloud/reservoir/internal/fault"
)

const (
	// skew is how far a peer's clock may be behind without refusing a new certificate.
	skew = time.Hour
	// caLife is that of the site itself: its authority is replaced by its operator alone.
	caLife = 20 * 365 * 24 * time.Hour
	// CertLife is how long a certificate is good. Its holder renews it after two thirds.
	CertLife = 7 * 24 * time.Hour
)

// CA is a site's certificate authority. It alone decides what a certificate says. All
// methods may be called concurrently. How one key follows another: rotate.go.
type CA struct {
	site string
	now  func() time.Time
	keep func(Secret) error // writes it down; nil: nobody does

	mu sync.RWMutex
	authority
}

// NewCA makes the authority of a site that has none. keep is given the text of it, for
// ParseCA, now and before each change; whoever has that text is the site. Nil: it is nowhere
// but in memory, see Export.
func NewCA(site string, now func() time.Time, keep func(Secret) error) (*CA, error) {
	if _, err := SiteID(site); err != nil {
		return nil, err
	}
	ca := &CA{site: site, now: now, keep: keep}
	if err := ca.change(func(a *authority) (err error) { a.current, err = ca.newPair(); return err }); err != nil {
		return nil, fmt.Errorf("make the site's certificate authority: %w", err)
	}
	return ca, nil
}

// ParseCA is the authority of a site that was exported. Errors: Malformed; WrongState for
// that of another site.
func ParseCA(text Secret, site string, now func() time.Time, keep func(Secret) error) (*CA, error) {
	if _, err := SiteID(site); err != nil {
		return nil, err
	}
	a, err := parseAuthority(text, site)
	if err != nil {
		return nil, err
	}
	return &CA{site: site, now: now, keep: keep, authority: a}, nil
}

// Export is all of it as a text, for ParseCA. Whoever has it is the site.
func (ca *CA) Export() (Secret, error) {
	ca.mu.RLock()
	defer ca.mu.RUnlock()
	return ca.encode()
}

// Adopt what another process has made of the same authority; what is older changes nothing.
func (ca *CA) Adopt(text Secret) error {
	a, err := parseAuthority(text, ca.site)
	if err != nil {
		return err
	}
	ca.mu.Lock()
	defer ca.mu.Unlock()
	if a.sequence > ca.sequence {
		ca.authority = a
	}
	return nil
}

// change it: kept before it holds, and counted.
func (ca *CA) change(f func(*authority) error) error {
	ca.mu.Lock()
	defer ca.mu.Unlock()
	next := ca.copy()
	if err := f(&next); err != nil {
		return err
	}
	next.sequence++
	if ca.keep != nil {
		text, err := next.encode()
		if err == nil {
			err = ca.keep(text)
		}
		if err != nil {
			return err
		}
	}
	ca.authority = next
	return nil
}

// newPair of a key and a certificate that it signs itself.
func (ca *CA) newPair() (p pair, err error) {
	id, err := SiteID(ca.site)
	if err != nil {
		return p, err
	}
	if p.key, err = generate(); err != nil {
		return p, err
	}
	der, err := ca.selfSign(id, p.key)
	if err != nil {
		return p, err
	}
	p.cert, err = x509.ParseCertificate(der)
	return p, err
}

func (ca *CA) selfSign(site spiffeid.ID, key crypto.Signer) ([]byte, error) {
	now := ca.now()
	t := &x509.Certificate{
		SerialNumber:          serial(),
		Subject:               pkix.Name{CommonName: "Reservoir site " + ca.site},
		URIs:                  []*url.URL{site.TrustDomain().ID().URL()},
		NotBefore:             now.Add(-skew),
		NotAfter:              now.Add(caLife),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
		MaxPathLenZero:        true,
	}
	return x509.CreateCertificate(rand.Reader, t, t, key.Public(), key)
}

// Site is the name that the authority was made for.
func (ca *CA) Site() string { return ca.site }

// Bundle is the authority's certificates in PEM, the one that is in use first: what others
// verify the site's by.
func (ca *CA) Bundle() (text []byte) {
	ca.mu.RLock()
	defer ca.mu.RUnlock()
	for _, c := range ca.bundle() {
		text = append(text, encodeCertificate(c.Raw)...)
	}
	return text
}

// Fingerprint of the certificate in use, as join tokens carry it: SHA-256, base64url.
func (ca *CA) Fingerprint() string {
	ca.mu.RLock()
	defer ca.mu.RUnlock()
	return fingerprint(ca.current.cert)
}

func fingerprint(c *x509.Certificate) string {
	sum := sha256.Sum256(c.Raw)
	return base64.RawURLEncoding.EncodeToString(sum[:])
}

// Issue certifies that the key that signed csr (PEM, PKCS #10) belongs to id, for
// CertLife. Nothing but the key is taken from csr. names are the DNS names and IP
// addresses under which clients that do not know SPIFFE, such as browsers, reach it. It
// returns the chain in PEM, the authority's certificate last. fault.Malformed for a csr
// that cannot be used, fault.Denied for an id of another site.
func (ca *CA) Issue(csr []byte, id spiffeid.ID, names ...string) ([]byte, error) {
	if id.TrustDomain().Name() != ca.site || id.Path() == "" {
		return nil, fault.New(fault.Denied, "issue a certificate for %s: not an identity of site %s", id, ca.site)
	}
	key, err := requestedKey(csr)
	if err != nil {
		return nil, fault.New(fault.Malformed, "issue a certificate for %s: %w", id, err)
	}
	now := ca.now()
	t := &x509.Certificate{
		SerialNumber:          serial(),
		Subject:               pkix.Name{CommonName: id.Path()[1:]},
		URIs:                  []*url.URL{id.URL()},
		NotBefore:             now.Add(-skew),
		NotAfter:              now.Add(CertLife),
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		BasicConstraintsValid: true,
	}
	for _, n := range names {
		if ip := net.ParseIP(n); ip != nil {
			t.IPAddresses = append(t.IPAddresses, ip)
		} else {
			t.DNSNames = append(t.DNSNames, n)
		}
	}
	ca.mu.RLock()
	defer ca.mu.RUnlock()
	der, err := x509.CreateCertificate(rand.Reader, t, ca.current.cert, key, ca.current.key)
	if err != nil {
		return nil, fmt.Errorf("issue a certificate for %s: %w", id, err)
	}
	return append(encodeCertificate(der), encodeCertificate(ca.current.cert.Raw)...), nil
}

// requestedKey is the public key of a request whose sender has proven to hold it.
func requestedKey(csr []byte) (crypto.PublicKey, error) {
	block, _ := pem.Decode(csr)
	if block == nil || block.Type != "CERTIFICATE REQUEST" {
		return nil, errors.New("the request is not a PEM block of type CERTIFICATE REQUEST")
	}
	r, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("parse the request: %w", err)
	}
	if err := r.CheckSignature(); err != nil {
		return nil, fmt.Errorf("the request is not signed by the key in it: %w", err)
	}
	switch k := r.PublicKey.(type) {
	case *ecdsa.PublicKey:
		if k.Curve == elliptic.P256() || k.Curve == elliptic.P384() {
			return k, nil
		}
	case ed25519.PublicKey:
		return k, nil
	}
	return nil, errors.New("the request's key must be ECDSA P-256 or P-384, or Ed25519")
}

func serial() *big.Int {
	b := make([]byte, 16)
	rand.Read(b)
	b[0] &= 0x7f // positive, RFC 5280 section 4.1.2.2
	return new(big.Int).SetBytes(b)
}

func firstURI(c *x509.Certificate) *url.URL {
	if len(c.URIs) == 0 {
		return &url.URL{}
	}
	return c.URIs[0]
}
