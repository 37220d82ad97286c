package identity

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"strings"
	"time"

	"github.com/reservoir-cloud/reservoir/internal/fault"
)

// Invitation lets one machine become a host of the site, or its proxy, once.
type Invitation struct {
	ID      string    `json:"id"`              // SHA-256 of the secret in hex: its key among the records
	Host    string    `json:"host,omitempty"`  // name that the host will have; empty: it may choose
	Proxy   bool      `json:"proxy,omitempty"` // it is for the site's proxy, and for no host
	Created time.Time `json:"created"`
	Expires time.Time `json:"expires"`
	// UsedBy is the digest of the key that joined with it. The same key may come again,
	// for an answer that was lost on the way.
	UsedBy []byte `json:"usedBy,omitempty"`
}

// Invitations are those of a site, kept under the SHA-256 of their secret.
type Invitations struct {
	records Records[Invitation]
	now     func() time.Time
}

// NewInvitations are those in records.
func NewInvitations(records Records[Invitation], now func() time.Time) *Invitations {
	return &Invitations{records, now}
}

// Create makes an invitation that is good for life and returns the token for it, which is
// not kept: "CA-FINGERPRINT.SECRET". host may be empty. Expired invitations are forgotten.
func (is *Invitations) Create(ctx context.Context, ca *CA, host string, life time.Duration) (Secret, error) {
	if host != "" {
		if _, err := HostID(ca.Site(), host); err != nil {
			return "", err
		}
	}
	return is.create(ctx, ca, Invitation{Host: host}, life)
}

// CreateProxy makes an invitation for the site's proxy, as Create does for a host.
func (is *Invitations) CreateProxy(ctx context.Context, ca *CA, life time.Duration) (Secret, error) {
	return is.create(ctx, ca, Invitation{Proxy: true}, life)
}

func (is *Invitations) create(ctx context.Context, ca *CA, i Invitation, life time.Duration) (Secret, error) {
	if err := is.prune(ctx); err != nil {
		return "", fmt.Errorf("forget expired invitations: %w", err)
	}
	now, secret := is.now(), newSecret()
	i.ID, i.Created, i.Expires = invitationID(secret), now, now.Add(life)
	if _, err := is.records.Create(ctx, i.ID, i); err != nil {
		return "", fmt.Errorf("create an invitation: %w", err)
	}
	return Secret(ca.Fingerprint() + "." + secret), nil
}

func (is *Invitations) prune(ctx context.Context) error {
	list, err := is.records.Values(ctx, "")
	for _, i := range list {
		if err == nil && !is.now().Before(i.Expires) {
			if err = is.records.Delete(ctx, i.ID, 0); fault.Has(err, fault.NotFound) {
				err = nil
			}
		}
	}
	return err
}

// Redeem uses an invitation up for the key of csr (Keypair.CSR); its certificate is then
// issued to Invitation.Host. fault.TokenInvalid when there is none, it has expired, or
// another key has used it.
func (is *Invitations) Redeem(ctx context.Context, token Secret, csr []byte) (Invitation, error) {
	by, err := csrDigest(csr)
	if err != nil {
		return Invitation{}, fault.New(fault.Malformed, "join: %w", err)
	}
	return is.Use(ctx, token, by)
}

// Use an invitation up for whoever by stands for. Errors are those of Redeem.
func (is *Invitations) Use(ctx context.Context, token Secret, by []byte) (Invitation, error) {
	_, secret, err := ParseJoinToken(token)
	if err != nil {
		return Invitation{}, err
	}
	for {
		i, version, err := is.records.Get(ctx, invitationID(secret))
		if fault.Has(err, fault.NotFound) {
			return Invitation{}, fault.New(fault.TokenInvalid, "the join token is not valid at this site")
		}
		if err != nil {
			return Invitation{}, fmt.Errorf("join: %w", err)
		}
		switch {
		case !is.now().Before(i.Expires):
			return Invitation{}, fault.New(fault.TokenInvalid, "the join token has expired on %s", i.Expires.UTC().Format(time.RFC3339))
		case i.UsedBy != nil && string(i.UsedBy) != string(by):
			return Invitation{}, fault.New(fault.TokenInvalid, "the join token has been used by another machine")
		case i.UsedBy != nil:
			return i, nil
		}
		i.UsedBy = by
		if _, err = is.records.Update(ctx, invitationID(secret), i, version); err == nil {
			return i, nil
		}
		if !fault.Has(err, fault.Conflict) && !fault.Has(err, fault.NotFound) {
			return Invitation{}, fmt.Errorf("join: %w", err)
		}
	}
}

// ParseJoinToken splits a join token into the fingerprint of the site's authority, for
// PinnedTLS, and the secret, which only the site looks into. fault.TokenInvalid.
func ParseJoinToken(token Secret) (caFingerprint, secret string, err error) {
	caFingerprint, secret, ok := strings.Cut(strings.TrimSpace(token.Reveal()), ".")
	if !ok || !isDigest(caFingerprint) || !isDigest(secret) {
		return "", "", fault.New(fault.TokenInvalid, "the join token is not complete: it has two parts of 43 characters with a \".\" between them")
	}
	return caFingerprint, secret, nil
}

func invitationID(secret string) string { return hex.EncodeToString(hash(secret)) }

// csrDigest is the SHA-256 of the public key of csr, which its sender has proven to hold.
func csrDigest(csr []byte) ([]byte, error) {
	key, err := requestedKey(csr)
	if err != nil {
		return nil, err
	}
	der, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(der)
	return sum[:], nil
}
