package site

import (
	"context"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/internal/httpapi"
	"github.com/reservoir-cloud/reservoir/internal/identity"
	"github.com/reservoir-cloud/reservoir/internal/store/storetest"
	"github.com/reservoir-cloud/reservoir/site/admin"
)

// council is a control plane of several members in this process, over loopback.
type council struct {
	t      *testing.T
	unseal string
	at     map[string]Config
	stop   map[string]func() error
	wait   map[string]func() error // until it has ended by itself
	log    syncBuffer
	token  string
}

func newCouncil(t *testing.T) *council {
	t.Helper()
	c := &council{t: t, unseal: filepath.Join(t.TempDir(), unsealFile), at: map[string]Config{}, stop: map[string]func() error{}, wait: map[string]func() error{}}
	t.Cleanup(func() {
		for m := range c.stop {
			if err := c.stop[m](); err != nil {
				t.Errorf("member %s: %v", m, err)
			}
		}
	})
	return c
}

func (c *council) config(name string) Config {
	cfg := config(c.t)
	cfg.UnsealFile, cfg.HAScale = c.unseal, 0.2
	cfg.Log = slog.New(slog.NewTextHandler(&c.log, nil)).With("member", name)
	cfg.Member = Member{Name: name, Listen: freePort(c.t), StoreListen: freePort(c.t)}
	return cfg
}

// start a member, again or for the first time.
func (c *council) start(cfg Config) {
	name := cfg.Member.Name
	c.at[name] = cfg
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- Run(ctx, cfg) }()
	wait := sync.OnceValue(func() error { defer cancel(); return <-done })
	c.wait[name], c.stop[name] = wait, func() error { cancel(); return wait() }
}

func (c *council) end(name string) {
	c.t.Helper()
	if err := c.stop[name](); err != nil {
		c.t.Errorf("member %s: %v", name, err)
	}
	delete(c.stop, name)
}

// admin speaks to the site by way of the members named; nil: all that there are.
func (c *council) admin(by ...string) *admin.Client {
	c.t.Helper()
	var at []string
	for name, cfg := range c.at {
		if c.stop[name] != nil && (len(by) == 0 || strings.Contains(strings.Join(by, " "), name)) {
			at = append(at, cfg.Listen)
		}
	}
	bundle, err := os.ReadFile(filepath.Join(c.at["m1"].Dir, "ca.pem"))
	if err != nil {
		c.t.Fatal(err)
	}
	conf, err := identity.BundleTLS(bundle, "alpha", time.Now)
	if err != nil {
		c.t.Fatal(err)
	}
	h := &http.Client{Transport: httpapi.NewMembers(conf, at...).Transport(), Timeout: 10 * time.Second}
	c.t.Cleanup(h.CloseIdleConnections)
	return admin.NewClient(&httpapi.Client{Base: "https://" + at[0], HTTP: h, Token: c.token})
}

// eventually within a generous bound.
func (c *council) eventually(what string, ok func() error) {
	c.t.Helper()
	var err error
	for deadline := time.Now().Add(2 * time.Minute); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		if err = ok(); err == nil {
			return
		}
	}
	c.t.Fatalf("%s: %v\n%s", what, err, c.log.String())
}

// begin with the first member.
func (c *council) begin() {
	c.t.Helper()
	c.beginAs(c.config("m1"))
}

func (c *council) beginAs(cfg Config) {
	c.t.Helper()
	c.start(cfg)
	c.eventually("the first member", func() error {
		b, err := os.ReadFile(filepath.Join(c.at["m1"].Dir, "admin-token"))
		if err == nil {
			c.token = strings.TrimSpace(string(b))
			_, err = c.admin().Site(c.t.Context())
		}
		return err
	})
}

// join another, and wait until all of n members are well.
func (c *council) join(name string, n int) {
	c.t.Helper()
	cfg := c.config(name)
	i, err := c.admin().InviteMember(c.t.Context(), admin.NewMember{Name: name})
	if err != nil {
		c.t.Fatal(err)
	}
	cfg.Member.JoinToken, cfg.Member.Join = i.Token, []string{i.Address}
	c.start(cfg)
	c.well(n)
}

func (c *council) well(n int) (leader string) {
	c.t.Helper()
	c.eventually("all members are well", func() error {
		list, err := c.admin().Members(c.t.Context())
		well := 0
		for _, m := range list {
			if m.Healthy {
				well++
			}
			if m.Leads {
				leader = m.Name
			}
		}
		if err == nil && (well != n || leader == "") {
			err = fault.New(fault.Unavailable, "%+v", list)
		}
		return err
	})
	return leader
}

// Three members: each answers for the site, what is true at one is true at all, and when the
// leader ends another leads, which knows the tokens and has the authority. A token is good
// once, a host's makes no member, and who is removed hears of it.
func TestAControlPlaneOfThree(t *testing.T) {
	ctx, c := t.Context(), newCouncil(t)
	c.begin()
	c.join("m2", 2)
	c.join("m3", 3)
	for _, m := range []string{"m1", "m2", "m3"} {
		if s, err := c.admin(m).Site(ctx); err != nil || s.Members != 3 || s.Leader != "m1" {
			t.Errorf("by way of %s: %+v, %v", m, s, err)
		}
	}
	if _, err := c.admin("m2").CreateToken(ctx, admin.NewToken{Name: "ci", Role: identity.Auditor}); err != nil {
		t.Error(err)
	}
	if err := c.admin().RemoveMember(ctx, "m1"); !fault.Has(err, fault.WrongState) {
		t.Errorf("the leader is removed: %v", err)
	}
	if _, err := c.admin().InviteMember(ctx, admin.NewMember{Name: "m2"}); !fault.Has(err, fault.Exists) {
		t.Errorf("a member is invited: %v", err)
	}
	host, err := c.admin().InviteHost(ctx, admin.NewInvite{Host: "m4"})
	if err != nil {
		t.Fatal(err)
	}
	for what, join := range map[string]admin.MemberJoin{
		"with a host's token":                          {Token: host.Token},
		"with its own token a second time, as another": {Token: c.at["m3"].Member.JoinToken},
	} {
		keys, err := identity.OpenKeypair(t.TempDir(), time.Now)
		if err != nil {
			t.Fatal(err)
		}
		join.CSR, _ = keys.CSR()
		join.Member, join.Address, join.Own, join.Store = "m4", "127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:3"
		if _, err := c.admin().JoinMember(ctx, join); !fault.Has(err, fault.TokenInvalid) {
			t.Errorf("%s: %v", what, err)
		}
	}

	c.end("m1")
	c.eventually("another member leads", func() error {
		list, err := c.admin().ListTokens(ctx)
		if err == nil && len(list) != 2 {
			err = fault.New(fault.NotFound, "%v", list)
		}
		return err
	})
	if _, err := c.admin().InviteHost(ctx, admin.NewInvite{Host: "h1"}); err != nil {
		t.Errorf("the new leader's authority: %v", err)
	}
	c.start(c.at["m1"])
	leader := c.well(3)
	gone := "m2"
	if leader == gone {
		gone = "m3"
	}
	// etcd wants to see the others well for five seconds.
	c.eventually("a member is removed", func() error { return c.admin().RemoveMember(ctx, gone) })
	if err := c.wait[gone](); !fault.Has(err, fault.Unavailable) || !strings.Contains(fault.From(err).NextStep(), "member add "+gone) {
		t.Errorf("a member that was removed ends with %v", err)
	}
	delete(c.stop, gone)
	pass, err := os.ReadFile(c.unseal)
	if err != nil || strings.Contains(c.log.String(), strings.TrimSpace(string(pass))) || strings.Contains(c.log.String(), "PRIVATE KEY") {
		t.Errorf("the pass phrase or a key stands in the log, %v", err)
	}
}

// A control plane whose record is on an etcd cluster elsewhere: whoever may use that and has
// the unseal file is a member, without a token; one leads, and another follows it.
func TestAControlPlaneOnAClusterElsewhere(t *testing.T) {
	ctx, c := t.Context(), newCouncil(t)
	endpoints := []string{storetest.Serve(t)}
	on := func(name string) Config {
		cfg := c.config(name)
		cfg.EtcdEndpoints = endpoints
		return cfg
	}
	c.beginAs(on("m1"))
	before, err := c.admin().Site(ctx)
	if err != nil {
		t.Fatal(err)
	}
	c.start(on("m2"))
	if leader := c.well(2); leader != "m1" {
		t.Fatalf("%s leads, want m1, which was first", leader)
	}
	if _, err := c.admin("m2").CreateToken(ctx, admin.NewToken{Name: "ci", Role: identity.Auditor}); err != nil {
		t.Error(err)
	}
	c.end("m1")
	c.eventually("the other leads", func() error {
		s, err := c.admin("m2").Site(ctx)
		if err == nil && s.Leader != "m2" {
			err = fault.New(fault.Unavailable, "%s leads", s.Leader)
		}
		return err
	})
	after, err := c.admin("m2").Site(ctx)
	if err != nil || after.Generation != before.Generation {
		t.Errorf("after the change it is %+v, before %+v (%v)", after, before, err)
	}
	if list, err := c.admin("m2").ListTokens(ctx); err != nil || len(list) != 2 {
		t.Errorf("tokens %+v, %v, want two", list, err)
	}
}

// One of two members is stopped and backed up; the site is restored from that as one of a new
// generation, with the same authority, and another joins it.
func TestAControlPlaneIsRestored(t *testing.T) {
	ctx, c := t.Context(), newCouncil(t)
	c.begin()
	c.join("m2", 2)
	before, err := c.admin().CreateToken(ctx, admin.NewToken{Name: "ci", Role: identity.Operator})
	if err != nil {
		t.Fatal(err)
	}
	// A member that follows hears with the next write that one is done, and only then is it in
	// a copy of it that goes on alone.
	if _, err := c.admin().CreateToken(ctx, admin.NewToken{Name: "later", Role: identity.Auditor}); err != nil {
		t.Fatal(err)
	}
	c.end("m2")
	backup := filepath.Join(t.TempDir(), "backup")
	if err := Backup(c.at["m2"].Dir, backup); err != nil {
		t.Fatal(err)
	}
	c.end("m1")
	ca, err := os.ReadFile(filepath.Join(c.at["m1"].Dir, "ca.pem"))
	if err != nil {
		t.Fatal(err)
	}
	cfg := c.config("m1")
	cfg.Dir, cfg.UnsealFile = filepath.Join(t.TempDir(), "restored"), ""
	generation, err := Restore(ctx, "alpha", backup, cfg.Dir, c.unseal, cfg.Log)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(cfg.Dir, "ca.pem"), ca, 0o600); err != nil { // as clients have it
		t.Fatal(err)
	}
	delete(c.at, "m2")
	c.token = before.Secret
	c.start(cfg)
	c.eventually("the restored site answers", func() error {
		s, err := c.admin().Site(ctx)
		if err == nil && (s.Generation != generation || generation < 2) {
			t.Errorf("generation %d, was said to be %d", s.Generation, generation)
		}
		return err
	})
	c.join("m3", 2)
}

// What a member is told that cannot be.
func TestMembersThatCannotBe(t *testing.T) {
	good := func() Config {
		c := config(t)
		c.Member = Member{Name: "m1", Listen: "127.0.0.1:8442", StoreListen: "127.0.0.1:8443"}
		return c
	}
	for what, change := range map[string]func(*Config){
		"a bad name":              func(c *Config) { c.Member.Name = "M 1" },
		"a token without a name":  func(c *Config) { c.Member = Member{JoinToken: "x"} },
		"a token without a place": func(c *Config) { c.Member.JoinToken = "x" },
		"no port":                 func(c *Config) { c.Member.Listen = "127.0.0.1" },
	} {
		c := good()
		if change(&c); !fault.Has(c.check(), fault.Malformed) {
			t.Errorf("%s: %v", what, c.check())
		}
	}
	c := good()
	if err := c.check(); err != nil {
		t.Error(err)
	}
	if host, _, _ := net.SplitHostPort(c.addressOf("0.0.0.0:8442")); host != "127.0.0.1" {
		t.Errorf("others reach it at %s", host)
	}
	// A token and no unseal key: it says what to bring before it uses the token up.
	c.Member.JoinToken, c.Member.Join, c.Log = "x", []string{"127.0.0.1:1"}, slog.New(slog.DiscardHandler)
	c.Member.Listen, c.Member.StoreListen = freePort(t), freePort(t)
	if err := Run(t.Context(), c); !fault.Has(err, fault.NotFound) || !strings.Contains(fault.From(err).NextStep(), "unseal") {
		t.Errorf("%v; next: %s", err, fault.From(err).NextStep())
	}
}
