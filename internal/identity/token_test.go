package identity

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/reservoir-cloud/reservoir/internal/fault"
)

// memory is Records that keeps nothing.
type memory[T any] struct {
	mu       sync.Mutex
	version  uint64
	values   map[string]T
	versions map[string]uint64
}

func (m *memory[T]) Get(_ context.Context, key string) (T, uint64, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	v, ok := m.values[key]
	if !ok {
		return v, 0, fault.New(fault.NotFound, "%q does not exist", key)
	}
	return v, m.versions[key], nil
}

func (m *memory[T]) Values(context.Context, string) ([]T, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	var vs []T
	for _, k := range slices.Sorted(maps.Keys(m.values)) {
		vs = append(vs, m.values[k])
	}
	return vs, nil
}

func (m *memory[T]) Create(_ context.Context, key string, v T) (uint64, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, ok := m.values[key]; ok {
		return 0, fault.New(fault.Exists, "%q exists already", key)
	}
	if m.values == nil {
		m.values, m.versions = map[string]T{}, map[string]uint64{}
	}
	return m.set(key, v), nil
}

func (m *memory[T]) set(key string, v T) uint64 {
	m.version++
	m.values[key], m.versions[key] = v, m.version
	return m.version
}

func (m *memory[T]) Update(_ context.Context, key string, v T, version uint64) (uint64, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.versions[key] != version {
		return 0, fault.New(fault.Conflict, "%q has changed", key)
	}
	return m.set(key, v), nil
}

func (m *memory[T]) Delete(_ context.Context, key string, _ uint64) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, ok := m.values[key]; !ok {
		return fault.New(fault.NotFound, "%q does not exist", key)
	}
	delete(m.values, key)
	delete(m.versions, key)
	return nil
}

func TestAPITokens(t *testing.T) {
	ctx := t.Context()
	var c clock
	records := &memory[TokenRecord]{}
	ts := NewTokens(records, c.now)

	for _, tt := range []struct {
		name, customer string
		role           Role
		life           time.Duration
		code           fault.Code
	}{
		{"op", "", Operator, time.Hour, ""},
		{"ann", "acme", Provider, time.Minute, ""},
		{"beta-site", "", Partner, time.Hour, ""},
		{"books", "", Auditor, time.Hour, ""},
		{"op", "", Operator, time.Hour, fault.Exists},
		{"no-customer", "", Provider, time.Hour, fault.Malformed},
		{"customer", "acme", Operator, time.Hour, fault.Malformed},
		{"host", "", HostRole, time.Hour, fault.Malformed},
		{"site", "", SiteRole, time.Hour, fault.Malformed},
		{"role", "", "root", time.Hour, fault.Malformed},
		{"dead", "", Operator, 0, fault.Malformed},
		{"", "", Operator, time.Hour, fault.Malformed},
		{"Name.x", "", Operator, time.Hour, fault.Malformed},
	} {
		tok, text, err := ts.Create(ctx, tt.name, tt.role, tt.customer, tt.life)
		if tt.code != "" {
			if !fault.Has(err, tt.code) || text != "" {
				t.Errorf("%s %s: %v, want %s", tt.name, tt.role, err, tt.code)
			}
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		got, err := ts.Verify(ctx, text)
		if want := (Caller{ID: tt.name, Role: tt.role, Customer: tt.customer}); got != want || err != nil || tok.Name != tt.name {
			t.Errorf("%s is %+v, %v", tt.name, got, err)
		}
		if kept, _ := json.Marshal(records.values); bytes.Contains(kept, []byte(strings.Split(text.Reveal(), ".")[1])) {
			t.Errorf("%s: the secret is kept", tt.name)
		}
	}

	list, err := ts.List(ctx)
	if err != nil || len(list) != 4 || list[0].Name != "ann" {
		t.Errorf("List = %v, %v", list, err)
	}

	_, text, err := ts.Create(ctx, "short", Operator, "", time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	secret := text.Reveal()
	for _, bad := range []string{
		"", "rsv_", "rsv_short", "rsv_short.", secret[4:], secret + "A", secret[:len(secret)-1], secret + "\n",
		strings.Replace(secret, "short", "op", 1), strings.Replace(secret, "short", "none", 1), strings.ToUpper(secret),
	} {
		if c, err := ts.Verify(ctx, Secret(bad)); !fault.Has(err, fault.TokenInvalid) || c != (Caller{}) {
			t.Errorf("%q is %+v, %v", bad, c, err)
		}
	}
	c.advance(time.Minute)
	if _, err := ts.Verify(ctx, text); !fault.Has(err, fault.TokenInvalid) || !strings.Contains(err.Error(), "expired") {
		t.Errorf("expired: %v", err)
	}

	_, text, err = ts.Create(ctx, "revoked", Operator, "", time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	if err := ts.Revoke(ctx, "revoked"); err != nil {
		t.Error(err)
	}
	if _, err := ts.Verify(ctx, text); !fault.Has(err, fault.TokenInvalid) {
		t.Errorf("revoked: %v", err)
	}
	if err := ts.Revoke(ctx, "revoked"); !fault.Has(err, fault.NotFound) {
		t.Errorf("revoked twice: %v", err)
	}
	if _, _, err := ts.Create(ctx, "revoked", Operator, "", time.Hour); err != nil {
		t.Error(err)
	}
	if _, err := ts.Verify(ctx, text); !fault.Has(err, fault.TokenInvalid) {
		t.Errorf("the old text of a new token: %v", err)
	}
}

func TestSecretIsNotSeen(t *testing.T) {
	s := Secret("rsv_ann.hidden-text")
	in := struct {
		S Secret
		P *Secret
		M map[string]Secret
	}{s, &s, map[string]Secret{"a": s}}
	var out bytes.Buffer
	for _, h := range []slog.Handler{slog.NewTextHandler(&out, nil), slog.NewJSONHandler(&out, nil)} {
		slog.New(h).Info("text", "s", s, "in", in, "list", []Secret{s})
	}
	fmt.Fprintf(&out, "%s %v %+v %#v %q %x %d", s, s, s, s, s, s, s)
	fmt.Fprintf(&out, "%v %+v %#v", in, in, in)
	fmt.Fprint(&out, s, fmt.Errorf("with %w", fault.New(fault.TokenInvalid, "token %s", s)))
	if err := json.NewEncoder(&out).Encode(in); err != nil {
		t.Error(err)
	}
	if strings.Contains(out.String(), "hidden-text") || strings.Contains(out.String(), "68696464656e") {
		t.Errorf("seen in:\n%s", out.String())
	}
	if s.Reveal() != "rsv_ann.hidden-text" {
		t.Error(s.Reveal())
	}
}

func TestJoinOnce(t *testing.T) {
	ctx := t.Context()
	var c clock
	ca := newCA(t, "alpha", c.now)
	records := &memory[Invitation]{}
	is := NewInvitations(records, c.now)
	token, err := is.Create(ctx, ca, "h1", time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	if fp, _, err := ParseJoinToken(token); fp != ca.Fingerprint() || err != nil {
		t.Errorf("fingerprint %s, %v", fp, err)
	}

	// Many machines find the same token at once: one of them joins.
	const machines = 16
	csrs := make([][]byte, machines)
	for i := range csrs {
		k, err := OpenKeypair(t.TempDir(), c.now)
		if err != nil {
			t.Fatal(err)
		}
		if csrs[i], err = k.CSR(); err != nil {
			t.Fatal(err)
		}
	}
	results := make([]error, machines)
	var wg sync.WaitGroup
	for i := range machines {
		wg.Go(func() { _, results[i] = is.Redeem(ctx, token, csrs[i]) })
	}
	wg.Wait()
	winner := slices.Index(results, nil)
	for i, err := range results {
		if i != winner && !fault.Has(err, fault.TokenInvalid) || winner < 0 {
			t.Errorf("machine %d: %v", i, err)
		}
	}
	if i, err := is.Redeem(ctx, token, csrs[winner]); err != nil || i.Host != "h1" {
		t.Errorf("the same machine again, whose answer was lost: %+v, %v", i, err)
	}

	late, err := is.Create(ctx, ca, "", time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := is.Redeem(ctx, late, []byte("no request")); !fault.Has(err, fault.Malformed) {
		t.Errorf("a request that is none: %v", err)
	}
	c.advance(time.Minute)
	if _, err := is.Redeem(ctx, late, csrs[0]); !fault.Has(err, fault.TokenInvalid) || !strings.Contains(err.Error(), "expired") {
		t.Errorf("expired: %v", err)
	}
	if _, err := is.Redeem(ctx, Secret(ca.Fingerprint()+"."+newSecret()), csrs[0]); !fault.Has(err, fault.TokenInvalid) {
		t.Errorf("forged: %v", err)
	}
	if _, err := is.Create(ctx, ca, "a/b", time.Hour); !fault.Has(err, fault.Malformed) {
		t.Errorf("bad host name: %v", err)
	}
	c.advance(time.Hour)
	if _, err := is.Create(ctx, ca, "h3", time.Hour); err != nil || len(records.values) != 1 {
		t.Errorf("%d invitations are kept, expired ones with them; %v", len(records.values), err)
	}
}

func FuzzParseTokens(f *testing.F) {
	digest := newSecret()
	for _, seed := range []string{"", ".", "rsv_", "rsv_ann." + digest, digest + "." + digest, digest + "." + digest + ".", "rsv_a.b", " " + digest + "." + digest + "\n"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		if name, secret, ok := parseAPIToken(text); ok && (text != "rsv_"+name+"."+secret || len(secret) != 43) {
			t.Errorf("%q is %q and %q", text, name, secret)
		}
		fp, secret, err := ParseJoinToken(Secret(text))
		if err == nil && strings.TrimSpace(text) != fp+"."+secret {
			t.Errorf("%q is %q and %q", text, fp, secret)
		}
		if err != nil && len(text) > 40 && strings.Contains(err.Error(), text) {
			t.Errorf("the error shows the token: %v", err)
		}
	})
}

func FuzzCertificateRequest(f *testing.F) {
	k, err := OpenKeypair(f.TempDir(), time.Now)
	if err != nil {
		f.Fatal(err)
	}
	csr, err := k.CSR()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(csr)
	f.Add([]byte("-----BEGIN CERTIFICATE REQUEST-----\n-----END CERTIFICATE REQUEST-----\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if key, err := requestedKey(b); (key == nil) == (err == nil) {
			t.Errorf("key %v, error %v", key, err)
		}
	})
}
