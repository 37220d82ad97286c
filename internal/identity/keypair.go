package identity

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/reservoir-cloud/reservoir/internal/durable"
	"github.com/reservoir-cloud/reservoir/internal/fault"
)

// Keypair is what a process proves itself with: a key that never leaves its directory, the
// certificate for it, and the bundle of authorities it trusts. The certificate may be
// replaced while TLS configurations made of it are in use: the next handshake has the new
// one. All methods may be called concurrently.
type Keypair struct {
	dir string
	key crypto.Signer
	now func() time.Time

	mu      sync.Mutex
	current *issued // nil until the first Install
}

// issued is one certificate and what goes with it; never changed once made.
type issued struct {
	id     spiffeid.ID
	tls    tls.Certificate
	leaf   *x509.Certificate
	bundle *x509bundle.Bundle
}

// OpenKeypair loads key.pem, cert.pem and bundle.pem from dir, which it makes (mode 0700)
// with a new key where there is none. Ready tells whether there is a certificate yet.
func OpenKeypair(dir string, now func() time.Time) (*Keypair, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("open the identity in %s: %w", dir, err)
	}
	cert, err := os.ReadFile(filepath.Join(dir, "cert.pem"))
	isNew := errors.Is(err, os.ErrNotExist)
	if err != nil && !isNew {
		return nil, fmt.Errorf("open the identity in %s: %w", dir, err)
	}
	k := &Keypair{dir: dir, now: now}
	if k.key, err = openKey(filepath.Join(dir, "key.pem"), isNew); err != nil {
		return nil, fmt.Errorf("open the identity in %s: %w", dir, err)
	}
	if isNew {
		return k, nil
	}
	bundle, err := os.ReadFile(filepath.Join(dir, "bundle.pem"))
	if err == nil {
		// At its notAfter a certificate is still what this process is: it asks for the next.
		k.current, err = k.parse(cert, bundle, time.Time{})
	}
	if err != nil {
		return nil, fmt.Errorf("open the identity in %s: %w", dir, err)
	}
	return k, nil
}

// CSR asks an authority for a certificate: PKCS #10 in PEM, with the key and nothing else.
func (k *Keypair) CSR() ([]byte, error) {
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, k.key)
	if err != nil {
		return nil, fmt.Errorf("make a certificate request: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}), nil
}

// Install puts a certificate chain and the bundle that verifies it in use, then on disk.
// It refuses what is not for this key, does not verify, or is for another ID than before.
func (k *Keypair) Install(chain, bundle []byte) error {
	next, err := k.parse(chain, bundle, k.now())
	if err != nil {
		return fmt.Errorf("install a certificate: %w", err)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.current != nil && k.current.id != next.id {
		return fmt.Errorf("install a certificate: it is for %s, this is %s", next.id, k.current.id)
	}
	// The bundle first: with a new one and the old certificate the start is still good.
	if err := durable.WriteFile(filepath.Join(k.dir, "bundle.pem"), bundle, 0o644); err != nil {
		return fmt.Errorf("install a certificate: %w", err)
	}
	if err := durable.WriteFile(filepath.Join(k.dir, "cert.pem"), chain, 0o644); err != nil {
		return fmt.Errorf("install a certificate: %w", err)
	}
	k.current = next
	return nil
}

// parse checks that chain is for our key and verifies by bundle at the given time; the
// zero time stands for one at which the certificate was good.
func (k *Keypair) parse(chain, bundle []byte, at time.Time) (*issued, error) {
	certs, err := parseCertificates(chain)
	if err != nil {
		return nil, err
	}
	leaf := certs[0]
	if !samePublicKey(leaf.PublicKey, k.key.Public()) {
		return nil, errors.New("the certificate is not for the key beside it")
	}
	id, err := x509svid.IDFromCert(leaf)
	if err != nil {
		return nil, err
	}
	b, err := x509bundle.Parse(id.TrustDomain(), bundle)
	if err != nil {
		return nil, err
	}
	if at.IsZero() {
		at = leaf.NotBefore.Add(skew)
	}
	if _, _, err := x509svid.Verify(certs, b, x509svid.WithTime(at)); err != nil {
		return nil, err
	}
	t := tls.Certificate{PrivateKey: k.key, Leaf: leaf}
	for _, c := range certs {
		t.Certificate = append(t.Certificate, c.Raw)
	}
	return &issued{id: id, tls: t, leaf: leaf, bundle: b}, nil
}

// Ready reports whether there is a certificate, good or expired.
func (k *Keypair) Ready() bool { return k.get() != nil }

// ID that the certificate is for; the zero ID before there is one.
func (k *Keypair) ID() spiffeid.ID {
	if c := k.get(); c != nil {
		return c.id
	}
	return spiffeid.ID{}
}

// Site is the trust domain of ID; "" before there is a certificate.
func (k *Keypair) Site() string {
	return k.ID().TrustDomain().Name()
}

// Expires is the certificate's notAfter; the zero time before there is one.
func (k *Keypair) Expires() time.Time {
	if c := k.get(); c != nil {
		return c.leaf.NotAfter
	}
	return time.Time{}
}

// RenewAt is when two thirds of the certificate's life are over.
func (k *Keypair) RenewAt() time.Time {
	c := k.get()
	if c == nil {
		return time.Time{}
	}
	return c.leaf.NotAfter.Add(-c.leaf.NotAfter.Sub(c.leaf.NotBefore) / 3)
}

func (k *Keypair) get() *issued {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.current
}

// renewRetry is how long KeepFresh waits after a failed renewal, of which there is then a
// third of the certificate's life to repeat it.
const renewRetry = time.Minute

// KeepFresh renews the certificate in time until ctx ends; it returns then. renew sends
// the request to the authority and brings chain and bundle back.
func (k *Keypair) KeepFresh(ctx context.Context, log *slog.Logger, renew func(ctx context.Context, csr []byte) (chain, bundle []byte, err error)) {
	wait := func(d time.Duration) bool {
		t := time.NewTimer(d)
		defer t.Stop()
		select {
		case <-t.C:
			return true
		case <-ctx.Done():
			return false
		}
	}
	for wait(min(max(k.RenewAt().Sub(k.now()), 0), time.Hour)) { // hourly, lest a clock was set meanwhile
		if k.now().Before(k.RenewAt()) {
			continue
		}
		if err := k.renew(ctx, renew); err != nil {
			log.Warn("certificate not renewed, will try again", "id", k.ID(), "expires", k.Expires(), "error", err)
			if !wait(renewRetry) {
				return
			}
		}
	}
}

func (k *Keypair) renew(ctx context.Context, renew func(context.Context, []byte) (chain, bundle []byte, err error)) error {
	csr, err := k.CSR()
	if err != nil {
		return err
	}
	chain, bundle, err := renew(ctx, csr)
	if err != nil {
		return err
	}
	return k.Install(chain, bundle)
}

// openKey loads a private key (PKCS #8 in PEM), or makes one where there is none and
// create allows it.
func openKey(path string, create bool) (crypto.Signer, error) {
	text, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) && create {
		return newKey(path)
	}
	if err != nil {
		return nil, err
	}
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if info.Mode().Perm()&0o077 != 0 {
		return nil, fault.New(fault.WrongState, "private key %s is open to other users (mode %04o)", path, info.Mode().Perm()).
			Try("chmod 600 %s, and consider whether somebody has read it", path)
	}
	block, _ := pem.Decode(text)
	if block == nil {
		return nil, fmt.Errorf("%s is not PEM", path)
	}
	key, err := signer(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return key, nil
}

// signer of a private key in PKCS #8.
func signer(der []byte) (crypto.Signer, error) {
	key, err := x509.ParsePKCS8PrivateKey(der)
	if err != nil {
		return nil, err
	}
	s, ok := key.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("a %T cannot sign", key)
	}
	return s, nil
}

func newKey(path string) (crypto.Signer, error) {
	key, err := generate()
	if err != nil {
		return nil, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	return key, durable.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), 0o600)
}

func parseCertificates(text []byte) ([]*x509.Certificate, error) {
	var certs []*x509.Certificate
	for {
		var block *pem.Block
		if block, text = pem.Decode(text); block == nil {
			break
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, err
		}
		certs = append(certs, c)
	}
	if len(certs) == 0 {
		return nil, errors.New("no certificate in PEM")
	}
	return certs, nil
}

func encodeCertificate(der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

func samePublicKey(a, b crypto.PublicKey) bool {
	k, ok := a.(interface{ Equal(crypto.PublicKey) bool })
	return ok && k.Equal(b)
}
