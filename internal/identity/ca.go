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
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/reservoir-cloud/reservoir/internal/durable"
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
	dir, site string
	now       func() time.Time

	mu       sync.RWMutex // guards what follows
	key      crypto.Signer
	cert     *x509.Certificate
	next     *x509.Certificate // announced; nil: none
	retired  []retired
	sequence uint64
}

// OpenCA loads the authority of a site from dir (ca.key, ca.pem), or makes it there when
// dir has neither.
func OpenCA(dir, site string, now func() time.Time) (*CA, error) {
	id, err := SiteID(site)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("open the site's certificate authority: %w", err)
	}
	ca := &CA{dir: dir, site: site, now: now}
	if err := ca.finishRotation(); err != nil {
		return nil, fmt.Errorf("open the site's certificate authority: %w", err)
	}
	certFile := filepath.Join(dir, "ca.pem")
	text, err := os.ReadFile(certFile)
	isNew := errors.Is(err, os.ErrNotExist)
	if err != nil && !isNew {
		return nil, fmt.Errorf("open the site's certificate authority: %w", err)
	}
	// A key without a certificate is a start that was cut short: the certificate is made.
	// A certificate without its key is a loss that nothing here can repair.
	if ca.key, err = openKey(filepath.Join(dir, "ca.key"), isNew); err != nil {
		return nil, fmt.Errorf("open the site's certificate authority: %w", err)
	}
	if isNew {
		if text, err = ca.selfSign(id, ca.key); err == nil {
			err = durable.WriteFile(certFile, text, 0o644)
		}
		if err != nil {
			return nil, fmt.Errorf("make the site's certificate authority: %w", err)
		}
	}
	certs, err := parseCertificates(text)
	if err != nil {
		return nil, fmt.Errorf("open the site's certificate authority: %s: %w", certFile, err)
	}
	ca.cert = certs[0]
	if td, err := spiffeid.TrustDomainFromURI(firstURI(ca.cert)); err != nil || td.Name() != site {
		return nil, fault.New(fault.WrongState, "%s is the authority of another site than %s", certFile, site).
			Try("start the site with the name it was made with, or with another directory")
	}
	if !samePublicKey(ca.cert.PublicKey, ca.key.Public()) {
		return nil, fault.New(fault.WrongState, "%s and ca.key beside it do not belong together", certFile).
			Try("put both back from the same backup")
	}
	if err := ca.openRotation(); err != nil {
		return nil, fmt.Errorf("open the site's certificate authority: %w", err)
	}
	return ca, nil
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
	der, err := x509.CreateCertificate(rand.Reader, t, t, key.Public(), key)
	return encodeCertificate(der), err
}

// Site is the name that the authority was made for.
func (ca *CA) Site() string { return ca.site }

// Bundle is the authority's certificates in PEM, the one that is in use first: what others
// verify the site's by.
func (ca *CA) Bundle() (text []byte) {
	for _, c := range ca.authorities() {
		text = append(text, encodeCertificate(c.Raw)...)
	}
	return text
}

// Fingerprint of the certificate in use, as join tokens carry it: SHA-256, base64url.
func (ca *CA) Fingerprint() string {
	ca.mu.RLock()
	defer ca.mu.RUnlock()
	return fingerprint(ca.cert)
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
	der, err := x509.CreateCertificate(rand.Reader, t, ca.cert, key, ca.key)
	if err != nil {
		return nil, fmt.Errorf("issue a certificate for %s: %w", id, err)
	}
	return append(encodeCertificate(der), encodeCertificate(ca.cert.Raw)...), nil
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
