package identity

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/reservoir-cloud/reservoir/internal/fault"
)

// authority is all that a CA is made of. It is kept as one text, so that no crash leaves half
// of a change.
type authority struct {
	current  pair
	next     *pair     // announced; nil: none
	retired  []retired // those before
	sequence uint64    // of the bundle: counts its changes
}

// pair is a key and the certificate of it.
type pair struct {
	key  crypto.Signer
	cert *x509.Certificate
}

// retired is a certificate that signs nothing any more.
type retired struct {
	cert  *x509.Certificate
	until time.Time // certificates that it has signed may be met
}

// The text is PEM: the key in use and its certificate, those that are announced, and the
// certificates that are retired, told apart by these headers.
const (
	bundleSequence = "Bundle-Sequence" // at the key in use
	retireAfter    = "Retire-After"    // at a retired certificate
)

// encode it. Whoever has the text is the site.
func (a *authority) encode() (Secret, error) {
	var text []byte
	add := func(p pair, headers map[string]string) error {
		der, err := x509.MarshalPKCS8PrivateKey(p.key)
		if err != nil {
			return err
		}
		text = append(text, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Headers: headers, Bytes: der})...)
		text = append(text, encodeCertificate(p.cert.Raw)...)
		return nil
	}
	err := add(a.current, map[string]string{bundleSequence: strconv.FormatUint(a.sequence, 10)})
	if err == nil && a.next != nil {
		err = add(*a.next, nil)
	}
	if err != nil {
		return "", fmt.Errorf("encode the site's certificate authority: %w", err)
	}
	for _, r := range a.retired {
		text = append(text, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: r.cert.Raw,
			Headers: map[string]string{retireAfter: r.until.UTC().Format(time.RFC3339)}})...)
	}
	return Secret(text), nil
}

// parseAuthority of a site.
func parseAuthority(text Secret, site string) (a authority, err error) {
	defer func() {
		if err != nil && !fault.Has(err, fault.WrongState) {
			err = fault.New(fault.Malformed, "%w", err)
		}
		if err != nil {
			err = fmt.Errorf("read the site's certificate authority: %w", err)
		}
	}()
	a.sequence = 1
	var pairs []pair
	for block, rest := pem.Decode([]byte(text.Reveal())); block != nil; block, rest = pem.Decode(rest) {
		if block.Type == "PRIVATE KEY" {
			if s := block.Headers[bundleSequence]; s != "" {
				if a.sequence, err = strconv.ParseUint(s, 10, 64); err != nil {
					return a, fmt.Errorf("%s: %w", bundleSequence, err)
				}
			}
			key, err := signer(block.Bytes)
			if err != nil {
				return a, err
			}
			pairs = append(pairs, pair{key: key})
			continue
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return a, err
		}
		if until := block.Headers[retireAfter]; until != "" {
			r := retired{cert: cert}
			if r.until, err = time.Parse(time.RFC3339, until); err != nil {
				return a, fmt.Errorf("%s: %w", retireAfter, err)
			}
			a.retired = append(a.retired, r)
			continue
		}
		if len(pairs) == 0 || pairs[len(pairs)-1].cert != nil {
			return a, errors.New("a certificate has no key")
		}
		pairs[len(pairs)-1].cert = cert
	}
	if len(pairs) == 0 || len(pairs) > 2 {
		return a, fmt.Errorf("it has %d keys, not one or two", len(pairs))
	}
	for _, p := range pairs {
		if err := p.belongs(site); err != nil {
			return a, err
		}
	}
	a.current = pairs[0]
	if len(pairs) == 2 {
		a.next = &pairs[1]
	}
	return a, nil
}

// belongs says what is wrong with p as a pair of the site, if anything.
func (p pair) belongs(site string) error {
	if p.cert == nil {
		return errors.New("a key has no certificate")
	}
	if td, err := spiffeid.TrustDomainFromURI(firstURI(p.cert)); err != nil || td.Name() != site {
		return fault.New(fault.WrongState, "the authority is that of another site than %s", site).
			Try("start the site with the name it was made with, or with another directory")
	}
	if !samePublicKey(p.cert.PublicKey, p.key.Public()) {
		return fault.New(fault.WrongState, "the authority's key and its certificate do not belong together").
			Try("put the authority back from the site's backup")
	}
	return nil
}

// bundle is what others verify by, the certificate in use first.
func (a *authority) bundle() []*x509.Certificate {
	list := []*x509.Certificate{a.current.cert}
	if a.next != nil {
		list = append(list, a.next.cert)
	}
	for _, r := range a.retired {
		list = append(list, r.cert)
	}
	return list
}

// copy that can be changed.
func (a *authority) copy() authority {
	b := *a
	b.retired = slices.Clone(a.retired)
	return b
}

func generate() (crypto.Signer, error) { return ecdsa.GenerateKey(elliptic.P256(), rand.Reader) }
