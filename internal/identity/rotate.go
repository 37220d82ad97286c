package identity

import (
	"slices"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"

	"github.com/reservoir-cloud/reservoir/internal/fault"
)

// An authority's key is replaced in three steps, so that nobody ever meets a certificate
// that it cannot verify (SPIFFE Trust Domain and Bundle, section 4.1): Announce puts the
// next certificate into the bundle; when everybody has that bundle, Activate signs with it;
// when the last certificate of the one before has expired, Retire takes that one out.

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
	r := Rotation{Sequence: ca.sequence, Current: fingerprint(ca.current.cert)}
	if ca.next != nil {
		r.Next, r.Announced = fingerprint(ca.next.cert), ca.next.cert.NotBefore.Add(skew)
	}
	for _, old := range ca.retired {
		r.Retiring = append(r.Retiring, fingerprint(old.cert))
	}
	return r
}

// SPIFFEBundle is the bundle with its sequence number.
func (ca *CA) SPIFFEBundle() *spiffebundle.Bundle {
	id, _ := SiteID(ca.site) // NewCA and ParseCA have checked the name
	ca.mu.RLock()
	defer ca.mu.RUnlock()
	b := spiffebundle.FromX509Authorities(id.TrustDomain(), ca.bundle())
	b.SetSequenceNumber(ca.sequence)
	return b
}

// Announce the next certificate; where one is announced, it does nothing.
func (ca *CA) Announce() error {
	if ca.Rotation().Next != "" {
		return nil
	}
	return ca.change(func(a *authority) error {
		if a.next != nil {
			return nil
		}
		p, err := ca.newPair()
		a.next = &p
		return err
	})
}

// Activate signs with what was announced. What the key before has signed stays good for as
// long as it would have. fault.WrongState when nothing is announced.
func (ca *CA) Activate() error {
	return ca.change(func(a *authority) error {
		if a.next == nil {
			return fault.New(fault.WrongState, "site %s has announced no new authority", ca.site).Try("reservoir federation rotate")
		}
		a.retired = append(a.retired, retired{a.current.cert, ca.now().Add(CertLife + skew)})
		a.current, a.next = *a.next, nil
		return nil
	})
}

// Retire takes those out of the bundle that nothing good is signed by any more.
func (ca *CA) Retire() error {
	over := func(r retired) bool { return ca.now().After(r.until) }
	ca.mu.RLock()
	some := slices.ContainsFunc(ca.retired, over)
	ca.mu.RUnlock()
	if !some {
		return nil
	}
	return ca.change(func(a *authority) error {
		a.retired = slices.DeleteFunc(a.retired, over)
		return nil
	})
}
