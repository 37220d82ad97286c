package identity

import (
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"

	"github.com/reservoir-cloud/reservoir/internal/durable"
	"github.com/reservoir-cloud/reservoir/internal/fault"
)

// An authority's key is replaced in three steps, so that nobody ever meets a certificate
// that it cannot verify (SPIFFE Trust Domain and Bundle, section 4.1): Announce puts the
// next certificate into the bundle; when everybody has that bundle, Activate signs with it;
// when the last certificate of the one before has expired, Retire takes that one out.
//
// On disk: ca.key and ca.pem are in use, next.key and next.pem announced, retired.pem are
// those before, each with the time until which it must stay, and sequence counts changes.

// retired is a certificate that signs nothing any more.
type retired struct {
	cert  *x509.Certificate
	until time.Time // certificates that it has signed may be met
}

// retireAfter is the PEM header of a retired certificate.
const retireAfter = "Retire-After"

// Rotation is how far the replacement of an authority's key is.
type Rotation struct {
	Sequence  uint64    `json:"sequence"` // of the bundle
	Current   string    `json:"current"`  // fingerprint
	Next      string    `json:"next,omitempty"`
	Announced time.Time `json:"announced,omitzero"`
	Retiring  []string  `json:"retiring,omitempty"`
}

// Rotation tells how far it is.
func (ca *CA) Rotation() Rotation {
	ca.mu.RLock()
	defer ca.mu.RUnlock()
	r := Rotation{Sequence: ca.sequence, Current: fingerprint(ca.cert)}
	if ca.next != nil {
		r.Next, r.Announced = fingerprint(ca.next), ca.next.NotBefore.Add(skew)
	}
	for _, old := range ca.retired {
		r.Retiring = append(r.Retiring, fingerprint(old.cert))
	}
	return r
}

// SPIFFEBundle is the bundle with its sequence number.
func (ca *CA) SPIFFEBundle() *spiffebundle.Bundle {
	authorities := ca.authorities()
	ca.mu.RLock()
	defer ca.mu.RUnlock()
	id, _ := SiteID(ca.site) // OpenCA has checked the name
	b := spiffebundle.FromX509Authorities(id.TrustDomain(), authorities)
	b.SetSequenceNumber(ca.sequence)
	return b
}

func (ca *CA) authorities() []*x509.Certificate {
	ca.mu.RLock()
	defer ca.mu.RUnlock()
	list := []*x509.Certificate{ca.cert}
	if ca.next != nil {
		list = append(list, ca.next)
	}
	for _, r := range ca.retired {
		list = append(list, r.cert)
	}
	return list
}

// Announce the next certificate; where one is announced, it does nothing.
func (ca *CA) Announce() error {
	ca.mu.Lock()
	defer ca.mu.Unlock()
	if ca.next != nil {
		return nil
	}
	id, err := SiteID(ca.site)
	if err != nil {
		return err
	}
	key, err := newKey(ca.file("next.key"))
	if err != nil {
		return fmt.Errorf("announce an authority: %w", err)
	}
	text, err := ca.selfSign(id, key)
	if err == nil {
		err = durable.WriteFile(ca.file("next.pem"), text, 0o644)
	}
	if err == nil {
		err = ca.count()
	}
	if err != nil {
		return fmt.Errorf("announce an authority: %w", err)
	}
	return ca.openRotationLocked()
}

// Activate signs with what was announced. What the key before has signed stays good for as
// long as it would have. fault.WrongState when nothing is announced.
func (ca *CA) Activate() error {
	ca.mu.Lock()
	defer ca.mu.Unlock()
	if ca.next == nil {
		return fault.New(fault.WrongState, "site %s has announced no new authority", ca.site).Try("reservoir federation rotate")
	}
	next := ca.next
	key, err := openKey(ca.file("next.key"), false)
	if err != nil {
		return fmt.Errorf("activate an authority: %w", err)
	}
	if !samePublicKey(next.PublicKey, key.Public()) {
		return fault.New(fault.WrongState, "%s and next.key beside it do not belong together", ca.file("next.pem"))
	}
	old := append(slices.Clone(ca.retired), retired{ca.cert, ca.now().Add(CertLife + skew)})
	if err := errors.Join(ca.writeRetired(old), ca.count()); err != nil {
		return fmt.Errorf("activate an authority: %w", err)
	}
	// From here on finishRotation completes it.
	if err := durable.WriteFile(ca.file("ca.pem"), encodeCertificate(next.Raw), 0o644); err != nil {
		return fmt.Errorf("activate an authority: %w", err)
	}
	if err := ca.finishRotation(); err != nil {
		return fmt.Errorf("activate an authority: %w", err)
	}
	ca.key, ca.cert = key, next
	return ca.openRotationLocked()
}

// Retire takes those out of the bundle that nothing good is signed by any more.
func (ca *CA) Retire() error {
	ca.mu.Lock()
	defer ca.mu.Unlock()
	keep := slices.DeleteFunc(slices.Clone(ca.retired), func(r retired) bool { return ca.now().After(r.until) })
	if len(keep) == len(ca.retired) {
		return nil
	}
	if err := ca.writeRetired(keep); err != nil {
		return fmt.Errorf("retire an authority: %w", err)
	}
	if err := ca.count(); err != nil {
		return fmt.Errorf("retire an authority: %w", err)
	}
	return ca.openRotationLocked()
}

func (ca *CA) file(name string) string { return filepath.Join(ca.dir, name) }

// finishRotation completes an Activate that was cut short after its certificate was written.
func (ca *CA) finishRotation() error {
	text, err := os.ReadFile(ca.file("next.pem"))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	current, err := os.ReadFile(ca.file("ca.pem"))
	if err != nil || string(current) != string(text) {
		return nil //nolint:nilerr // it was announced and no more; OpenCA tells what is wrong with ca.pem
	}
	if err := os.Rename(ca.file("next.key"), ca.file("ca.key")); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if err := os.Remove(ca.file("next.pem")); err != nil {
		return err
	}
	return durable.SyncDir(ca.dir)
}

func (ca *CA) openRotation() error {
	ca.mu.Lock()
	defer ca.mu.Unlock()
	return ca.openRotationLocked()
}

// openRotationLocked reads what is beside the key in use.
func (ca *CA) openRotationLocked() error {
	ca.next, ca.retired, ca.sequence = nil, nil, 1
	switch text, err := os.ReadFile(ca.file("next.pem")); {
	case err == nil:
		certs, err := parseCertificates(text)
		if err != nil {
			return fmt.Errorf("next.pem: %w", err)
		}
		ca.next = certs[0]
	case !errors.Is(err, os.ErrNotExist):
		return err
	}
	switch text, err := os.ReadFile(ca.file("retired.pem")); {
	case err == nil:
		if ca.retired, err = parseRetired(text); err != nil {
			return fmt.Errorf("retired.pem: %w", err)
		}
	case !errors.Is(err, os.ErrNotExist):
		return err
	}
	// An Activate that was cut short before its certificate was written has retired the
	// one in use.
	ca.retired = slices.DeleteFunc(ca.retired, func(r retired) bool { return r.cert.Equal(ca.cert) })
	switch text, err := os.ReadFile(ca.file("sequence")); {
	case err == nil:
		if ca.sequence, err = strconv.ParseUint(strings.TrimSpace(string(text)), 10, 64); err != nil {
			return fmt.Errorf("sequence: %w", err)
		}
	case !errors.Is(err, os.ErrNotExist):
		return err
	}
	return nil
}

func parseRetired(text []byte) (list []retired, err error) {
	for {
		var block *pem.Block
		if block, text = pem.Decode(text); block == nil {
			return list, nil
		}
		var r retired
		if r.cert, err = x509.ParseCertificate(block.Bytes); err != nil {
			return nil, err
		}
		if r.until, err = time.Parse(time.RFC3339, block.Headers[retireAfter]); err != nil {
			return nil, err
		}
		list = append(list, r)
	}
}

func (ca *CA) writeRetired(list []retired) error {
	var text []byte
	for _, r := range list {
		text = append(text, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: r.cert.Raw,
			Headers: map[string]string{retireAfter: r.until.UTC().Format(time.RFC3339)}})...)
	}
	return durable.WriteFile(ca.file("retired.pem"), text, 0o644)
}

// count a change of the bundle.
func (ca *CA) count() error {
	return durable.WriteFile(ca.file("sequence"), []byte(strconv.FormatUint(ca.sequence+1, 10)+"\n"), 0o644)
}
