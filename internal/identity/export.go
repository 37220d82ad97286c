package identity

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/reservoir-cloud/reservoir/internal/fault"
)

// NewCA makes the authority of a site that has none. It is nowhere but in memory: Export it.
func NewCA(site string, now func() time.Time) (*CA, error) {
	id, err := SiteID(site)
	if err != nil {
		return nil, err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make the site's certificate authority: %w", err)
	}
	ca := &CA{site: site, key: key, now: now}
	text, err := ca.selfSign(id, key)
	if err != nil {
		return nil, fmt.Errorf("make the site's certificate authority: %w", err)
	}
	certs, err := parseCertificates(text)
	if err != nil {
		return nil, fmt.Errorf("make the site's certificate authority: %w", err)
	}
	ca.cert = certs[0]
	return ca, nil
}

// Export is key and certificate in PEM, for ParseCA. Whoever has it is the site.
func (ca *CA) Export() (Secret, error) {
	der, err := x509.MarshalPKCS8PrivateKey(ca.key)
	if err != nil {
		return "", fmt.Errorf("encode the site's certificate authority: %w", err)
	}
	return Secret(append(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), ca.Bundle()...)), nil
}

// ParseCA is the authority of a site that was exported.
func ParseCA(text Secret, site string, now func() time.Time) (*CA, error) {
	block, rest := pem.Decode([]byte(text.Reveal()))
	if block == nil {
		return nil, fault.New(fault.Malformed, "read the site's certificate authority: it is not PEM")
	}
	key, err := signer(block.Bytes)
	if err != nil {
		return nil, fault.New(fault.Malformed, "read the site's certificate authority: %w", err)
	}
	certs, err := parseCertificates(rest)
	if err != nil {
		return nil, fault.New(fault.Malformed, "read the site's certificate authority: %w", err)
	}
	ca := &CA{site: site, key: key, cert: certs[0], now: now}
	if td, err := spiffeid.TrustDomainFromURI(firstURI(ca.cert)); err != nil || td.Name() != site {
		return nil, fault.New(fault.WrongState, "the authority is that of another site than %s", site).
			Try("start the site with the name it was made with")
	}
	if !samePublicKey(ca.cert.PublicKey, ca.key.Public()) {
		return nil, fault.New(fault.WrongState, "the authority's key and its certificate do not belong together").
			Try("put both back from the same backup")
	}
	return ca, nil
}
