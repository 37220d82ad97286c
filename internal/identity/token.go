package identity

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"fmt"
	"log/slog"
	"regexp"
	"strings"
	"time"

	"github.com/reservoir-cloud/reservoir/internal/fault"
)

// Secret is text that must not be seen: whatever prints, logs or encodes it writes "***".
type Secret string

// Reveal is the text itself, for the one place that shows or sends it.
func (s Secret) Reveal() string { return string(s) }

const hidden = "***"

// String hides the text.
func (Secret) String() string { return hidden }

// GoString hides the text from %#v.
func (Secret) GoString() string { return hidden }

// Format hides the text from every other verb, %x for one.
func (Secret) Format(f fmt.State, _ rune) { fmt.Fprint(f, hidden) }

// LogValue hides the text from log/slog.
func (Secret) LogValue() slog.Value { return slog.StringValue(hidden) }

// MarshalText hides the text from JSON and the like.
func (Secret) MarshalText() ([]byte, error) { return []byte(hidden), nil }

// Records keeps values by key, for ever. Create fails with fault.Exists, Get, Update and
// Delete with fault.NotFound, Update and Delete with fault.Conflict when the version is
// not the current one (Delete takes 0 for any).
type Records[T any] interface {
	Get(ctx context.Context, key string) (value T, version uint64, err error)
	Values(ctx context.Context, prefix string) ([]T, error)
	Create(ctx context.Context, key string, v T) (version uint64, err error)
	Update(ctx context.Context, key string, v T, version uint64) (newVersion uint64, err error)
	Delete(ctx context.Context, key string, version uint64) error
}

// Token lets a person or a program call the API: what the site knows of it.
type Token struct {
	Name     string    `json:"name"`
	Role     Role      `json:"role"`
	Customer string    `json:"customer,omitempty"` // of a Provider
	Created  time.Time `json:"created"`
	Expires  time.Time `json:"expires"`
}

// TokenRecord is a Token as it is kept, with the SHA-256 of its secret. The secret has 256
// random bits: a slow hash would add nothing.
type TokenRecord struct {
	Token
	Hash []byte `json:"hash"`
}

// Tokens are the API tokens of a site.
type Tokens struct {
	records Records[TokenRecord]
	now     func() time.Time
}

// NewTokens are those in records.
func NewTokens(records Records[TokenRecord], now func() time.Time) *Tokens {
	return &Tokens{records, now}
}

// Names are part of the token's text, so they are plain.
var tokenName = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,62}$`)

// Create makes a token that is good for life and returns its text, which is not kept:
// "rsv_NAME.SECRET". The roles are those of people and partners. fault.Malformed,
// fault.Exists.
func (ts *Tokens) Create(ctx context.Context, name string, role Role, customer string, life time.Duration) (Token, Secret, error) {
	now := ts.now()
	t := Token{Name: name, Role: role, Customer: customer, Created: now, Expires: now.Add(life)}
	if err := t.check(); err != nil {
		return Token{}, "", err
	}
	secret := newSecret()
	if _, err := ts.records.Create(ctx, name, TokenRecord{Token: t, Hash: hash(secret)}); err != nil {
		return Token{}, "", fmt.Errorf("create token %q: %w", name, err)
	}
	return t, Secret(apiTokenPrefix + name + "." + secret), nil
}

func (t Token) check() error {
	switch {
	case !tokenName.MatchString(t.Name):
		return fault.New(fault.Malformed, "token name %q: up to 63 lower-case letters, digits and \"-\", a letter or digit first", t.Name)
	case t.Role != Operator && t.Role != Provider && t.Role != Partner && t.Role != Auditor:
		return fault.New(fault.Malformed, "token %q: role %q is not one of operator, provider, partner, auditor", t.Name, t.Role)
	case (t.Role == Provider) != (t.Customer != ""):
		return fault.New(fault.Malformed, "token %q: a provider's token needs a customer, and no other has one", t.Name)
	case !t.Expires.After(t.Created):
		return fault.New(fault.Malformed, "token %q: it would have expired at once", t.Name)
	}
	return nil
}

// List returns all tokens, expired ones too, in the order of their names.
func (ts *Tokens) List(ctx context.Context) ([]Token, error) {
	records, err := ts.records.Values(ctx, "")
	if err != nil {
		return nil, fmt.Errorf("list tokens: %w", err)
	}
	list := make([]Token, len(records))
	for i, r := range records {
		list[i] = r.Token
	}
	return list, nil
}

// Revoke makes a token useless from the next call on. fault.NotFound.
func (ts *Tokens) Revoke(ctx context.Context, name string) error {
	if err := ts.records.Delete(ctx, name, 0); err != nil {
		return fmt.Errorf("revoke token %q: %w", name, err)
	}
	return nil
}

// Verify says whose token text is. fault.TokenInvalid, with one message for all that is
// wrong with it save expiry.
func (ts *Tokens) Verify(ctx context.Context, text Secret) (Caller, error) {
	name, secret, ok := parseAPIToken(text.Reveal())
	if !ok {
		return Caller{}, errTokenInvalid()
	}
	r, _, err := ts.records.Get(ctx, name)
	if fault.Has(err, fault.NotFound) {
		return Caller{}, errTokenInvalid()
	}
	if err != nil {
		return Caller{}, fmt.Errorf("verify an API token: %w", err)
	}
	if subtle.ConstantTimeCompare(r.Hash, hash(secret)) != 1 {
		return Caller{}, errTokenInvalid()
	}
	if !ts.now().Before(r.Expires) {
		return Caller{}, fault.New(fault.TokenInvalid, "API token %q has expired on %s", name, r.Expires.UTC().Format(time.RFC3339))
	}
	return Caller{ID: r.Name, Role: r.Role, Customer: r.Customer}, nil
}

func errTokenInvalid() error {
	return fault.New(fault.TokenInvalid, "the API token is not valid at this site: mistyped, revoked or made by another site")
}

const apiTokenPrefix = "rsv_"

// parseAPIToken splits "rsv_NAME.SECRET".
func parseAPIToken(text string) (name, secret string, ok bool) {
	text, ok = strings.CutPrefix(text, apiTokenPrefix)
	name, secret, found := strings.Cut(text, ".")
	return name, secret, ok && found && tokenName.MatchString(name) && isDigest(secret)
}

// newSecret has 256 random bits: 43 characters of base64url.
func newSecret() string {
	b := make([]byte, sha256.Size)
	rand.Read(b)
	return base64.RawURLEncoding.EncodeToString(b)
}

func hash(secret string) []byte {
	sum := sha256.Sum256([]byte(secret))
	return sum[:]
}

// isDigest reports whether s is 256 bits in base64url, in its only spelling.
func isDigest(s string) bool {
	b, err := base64.RawURLEncoding.Strict().DecodeString(s)
	return err == nil && len(b) == sha256.Size && !strings.ContainsAny(s, "\r\n")
}
