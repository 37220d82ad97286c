// Package vee is the vocabulary that every other package speaks: what a virtual
// execution environment (VEE) is called, what it is made of, which states it can be in,
// how many resources it takes and under which epoch it may be commanded.
//
// It holds words and the pure life cycle, and nothing else: no I/O, no clock, no
// goroutine, no import from this module.
package vee

import (
	"crypto/rand"
	"encoding/base32"
	"fmt"
	"io"
	"regexp"
	"strings"
)

// ID names a VEE for ever: the site of its birth, a dot, ten random characters
// ("alpha.k3v9q2m7xd"). It is never used again, also not after a restore from a backup,
// which is why it is drawn and not counted.
type ID string

// siteName is a DNS label, so that a site's name can stand in identifiers, in trust
// domains and in host names alike.
var (
	siteName = regexp.MustCompile(`^[a-z]([a-z0-9-]{0,30}[a-z0-9])?$`)
	idTail   = regexp.MustCompile(`^[a-z2-7]{10}$`)
	alphabet = base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding)
)

// ValidName reports whether s may name a site, a host, a service, a component or a
// customer: a DNS label of at most 32 characters.
func ValidName(s string) bool { return siteName.MatchString(s) }

// NewID draws an identifier for a VEE that is born at site. A nil random reads from
// crypto/rand.
func NewID(site string, random io.Reader) (ID, error) {
	if !ValidName(site) {
		return "", fmt.Errorf("site name %q: want a DNS label such as \"alpha\"", site)
	}
	if random == nil {
		random = rand.Reader
	}
	var b [8]byte
	if _, err := io.ReadFull(random, b[:]); err != nil {
		return "", fmt.Errorf("draw a VEE identifier: %w", err)
	}
	return ID(site + "." + alphabet.EncodeToString(b[:])[:10]), nil
}

// ParseID checks the shape of an identifier that came from outside.
func ParseID(s string) (ID, error) {
	site, tail, ok := strings.Cut(s, ".")
	if !ok || !ValidName(site) || !idTail.MatchString(tail) {
		return "", fmt.Errorf("VEE identifier %q: want SITE.xxxxxxxxxx", s)
	}
	return ID(s), nil
}

// Site is the site of birth. Where the VEE is now is an observed field of its record.
func (id ID) Site() string { s, _, _ := strings.Cut(string(id), "."); return s }

// Short is the random part, enough for a person to tell VEEs of one site apart.
func (id ID) Short() string { _, t, _ := strings.Cut(string(id), "."); return t }

// Epoch orders commands about one VEE: an actuator that has obeyed an epoch refuses every
// older one. Generation grows at each restore of the site's log, Term at each unplanned
// give-away, Hop at each planned handover; they are compared in that order.
type Epoch struct {
	Generation uint64 `json:"generation"`
	Term       uint64 `json:"term"`
	Hop        uint64 `json:"hop"`
}

// Compare is negative when e is older than o, zero when they are the same.
func (e Epoch) Compare(o Epoch) int {
	for _, p := range [...][2]uint64{{e.Generation, o.Generation}, {e.Term, o.Term}, {e.Hop, o.Hop}} {
		switch {
		case p[0] < p[1]:
			return -1
		case p[0] > p[1]:
			return 1
		}
	}
	return 0
}

func (e Epoch) String() string { return fmt.Sprintf("%d.%d.%d", e.Generation, e.Term, e.Hop) }

// FQN is the fully qualified name of a measurement (seed 5, section 2.7.4.1):
//
//	<site>.customers.<c>.services.<s>.vees.<component>.replicas.<n>.<measure>
//
// The VEEM treats the prefix up to the measure as opaque.
func FQN(site, customer, service, component string, replica int) string {
	return fmt.Sprintf("%s.customers.%s.services.%s.vees.%s.replicas.%d", site, customer, service, component, replica)
}
