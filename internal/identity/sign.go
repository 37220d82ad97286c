package identity

import (
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/reservoir-cloud/reservoir/internal/fault"
)

// signedBy are the algorithms of the keys that an authority certifies (CA.Issue).
var signedBy = []jose.SignatureAlgorithm{jose.ES256, jose.ES384, jose.EdDSA}

// Sign a text with k's key: a detached JWS in compact form (RFC 7515, appendix F) that
// carries the certificate, "x5c", and the time, "iat". Verified by VerifySignature.
func (k *Keypair) Sign(text []byte) (string, error) {
	now := k.get()
	if now == nil {
		return "", errNoCertificate
	}
	var chain []string
	for _, der := range now.tls.Certificate {
		chain = append(chain, base64.StdEncoding.EncodeToString(der))
	}
	opts := (&jose.SignerOptions{}).WithHeader("x5c", chain).WithHeader("iat", k.now().Unix())
	s, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: k.key}, opts) // newKey makes P-256
	if err != nil {
		return "", fmt.Errorf("sign as %s: %w", now.id, err)
	}
	jws, err := s.Sign(text)
	if err != nil {
		return "", fmt.Errorf("sign as %s: %w", now.id, err)
	}
	return jws.DetachedCompactSerialize()
}

// maxSignature bounds what is parsed, bytes: it has a chain of a few certificates.
const maxSignature = 16 << 10

// VerifySignature checks that by has signed text, with a certificate that was good when it
// did. A time of signing in the future of at is refused beyond what clocks differ by.
func VerifySignature(text []byte, signature string, by spiffeid.ID, b *spiffebundle.Bundle, at time.Time) error {
	refuse := func(err error) error {
		return fault.New(fault.Denied, "the signature of %s: %w", by, err)
	}
	if signature == "" || len(signature) > maxSignature || strings.Count(signature, ".") != 2 {
		return refuse(errors.New("it is not a detached JWS"))
	}
	jws, err := jose.ParseDetached(signature, text, signedBy)
	if err != nil {
		return refuse(err)
	}
	if len(jws.Signatures) != 1 {
		return refuse(errors.New("there is more than one"))
	}
	h := jws.Signatures[0].Protected
	iat, ok := h.ExtraHeaders["iat"].(float64)
	if !ok {
		return refuse(errors.New("it does not say when it was made"))
	}
	signed := time.Unix(int64(iat), 0)
	if signed.After(at.Add(skew)) {
		return refuse(fmt.Errorf("it was made at %s, but the clock here says %s", signed.UTC().Format(time.RFC3339), at.UTC().Format(time.RFC3339)))
	}
	roots := x509.NewCertPool()
	for _, a := range b.X509Authorities() {
		roots.AddCert(a)
	}
	chains, err := h.Certificates(x509.VerifyOptions{Roots: roots, CurrentTime: signed, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}})
	if err != nil {
		return refuse(err)
	}
	if err := Verify(chains[0], by, b, signed); err != nil {
		return refuse(err)
	}
	if _, err := jws.Verify(chains[0][0].PublicKey); err != nil {
		return refuse(errors.New("it is of another text, or made with another key"))
	}
	return nil
}
