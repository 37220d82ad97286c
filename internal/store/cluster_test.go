package store

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/internal/identity"
)

// council is a record of several members in this process, over loopback and mutual TLS.
type council struct {
	t  *testing.T
	ca *identity.CA
	at map[string]Config
	up map[string]*Store
}

func newCouncil(t *testing.T) *council {
	t.Helper()
	ca, err := identity.NewCA("alpha", time.Now, nil)
	if err != nil {
		t.Fatal(err)
	}
	c := &council{t: t, ca: ca, at: map[string]Config{}, up: map[string]*Store{}}
	t.Cleanup(func() {
		for _, s := range c.up {
			_ = s.Close()
		}
	})
	return c
}

func freeAddress(t *testing.T) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	return ln.Addr().String()
}

// certified is a new member's place and papers.
func (c *council) certified(name string, path ...string) Config {
	c.t.Helper()
	dir := c.t.TempDir()
	keys, err := identity.OpenKeypair(dir, time.Now)
	if err != nil {
		c.t.Fatal(err)
	}
	csr, _ := keys.CSR()
	id, err := identity.SiteID("alpha")
	if len(path) > 0 {
		id, err = identity.HostID("alpha", path[0])
	}
	if err != nil {
		c.t.Fatal(err)
	}
	chain, err := c.ca.Issue(csr, id, "127.0.0.1")
	if err == nil {
		err = keys.Install(chain, c.ca.Bundle())
	}
	if err != nil {
		c.t.Fatal(err)
	}
	at := freeAddress(c.t)
	return Config{Dir: filepath.Join(dir, "store"), Logger: slog.New(slog.DiscardHandler), Cluster: &Cluster{
		Name: name, Listen: at, Advertise: at, CommonName: "site",
		CertFile: filepath.Join(dir, "cert.pem"), KeyFile: filepath.Join(dir, "key.pem"), BundleFile: filepath.Join(dir, "bundle.pem"),
	}}
}

func (c *council) start(name string) *Store {
	c.t.Helper()
	s, err := Open(c.t.Context(), c.at[name])
	if err != nil {
		c.t.Fatalf("member %s: %v", name, err)
	}
	c.up[name] = s
	return s
}

// stop a member as a crash of its machine looks to the others.
func (c *council) stop(name string) {
	c.t.Helper()
	if err := c.up[name].Close(); err != nil {
		c.t.Errorf("member %s: %v", name, err)
	}
	delete(c.up, name)
}

// join brings a new member up by way of one that is there.
func (c *council) join(by, name string) *Store {
	c.t.Helper()
	cfg := c.certified(name)
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(50 * time.Millisecond) {
		all, err := c.up[by].AddMember(c.t.Context(), name, cfg.Cluster.Advertise)
		if err == nil {
			cfg.Cluster.Joining = all
			c.at[name] = cfg
			return c.start(name)
		}
		// etcd takes a member in only when the others have been connected for five seconds.
		if !fault.Has(err, fault.Conflict) || time.Now().After(deadline) {
			c.t.Fatalf("member %s: %v", name, err)
		}
	}
}

func three(t *testing.T) *council {
	c := newCouncil(t)
	c.at["m1"] = c.certified("m1")
	c.start("m1")
	c.join("m1", "m2")
	c.join("m1", "m3")
	return c
}

// A record of three: what one writes the others read; one is lost and nothing stands still;
// it comes back and knows what it missed; it is replaced by another; a stranger is not let in.
func TestThreeMembers(t *testing.T) {
	t.Parallel() // most of it is waiting: etcd lets a member join once the others have been well for 5 s
	ctx, c := t.Context(), three(t)
	put := func(by string, n int) {
		t.Helper()
		if _, err := NewCollection[int](c.up[by], "n").Put(ctx, "x", n); err != nil {
			t.Fatalf("%s writes %d: %v", by, n, err)
		}
	}
	want := func(by string, n int) {
		t.Helper()
		if got, _, err := NewCollection[int](c.up[by], "n").Get(ctx, "x"); err != nil || got != n {
			t.Fatalf("%s reads %d, %v; want %d", by, got, err, n)
		}
	}
	put("m3", 1)
	for m := range c.up {
		want(m, 1)
	}
	all, err := c.up["m2"].Members(ctx)
	if err != nil || len(all) != 3 || all[0].Name != "m1" || all[2].Address != c.at["m3"].Cluster.Advertise || all[1].Learns {
		t.Fatalf("%+v, %v", all, err)
	}

	c.stop("m1")
	put("m2", 2)
	want("m3", 2)
	c.start("m1") // upgraded, say
	want("m1", 2)

	c.stop("m3")
	put("m1", 3)
	if err := c.up["m1"].RemoveMember(ctx, "m3", ""); err != nil {
		t.Fatal(err)
	}
	c.join("m1", "m4")
	want("m4", 3)
	if all, err := c.up["m4"].Members(ctx); err != nil || len(all) != 3 || all[2].Name != "m4" {
		t.Fatalf("%+v, %v", all, err)
	}

	// A host of the site has a certificate of the same authority.
	host := c.certified("m5", "h1")
	host.Cluster.CommonName = "site"
	host.Cluster.Joining = append(all, Member{Name: "m5", Address: host.Cluster.Advertise})
	short, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	if s, err := Open(short, host); err == nil {
		s.Close()
		t.Error("a host has become a member of the record")
	}
}

// Terms follow each other: at most one leads, the next as soon as the first resigns or is
// lost, and what a deposed one writes is refused.
func TestTerms(t *testing.T) {
	t.Parallel()
	ctx, c := t.Context(), three(t)
	const ttl = 2 * time.Second
	first, err := c.up["m1"].Lead(ctx, "site", "m1", ttl)
	if err != nil {
		t.Fatal(err)
	}
	things := NewCollection[string](first.Store, "thing")
	if _, err := things.Put(ctx, "a", "by m1"); err != nil {
		t.Fatal(err)
	}
	terms := make(chan *Term, 2)
	var wg sync.WaitGroup
	defer wg.Wait()
	cctx, cancel := context.WithCancel(ctx)
	defer cancel()
	for _, m := range []string{"m2", "m3"} {
		wg.Go(func() {
			if t, err := c.up[m].Lead(cctx, "site", m, ttl); err == nil {
				terms <- t
			}
		})
	}
	if who, _, err := Leaders[string](c.up["m3"]).Get(ctx, "site"); err != nil || who != "m1" {
		t.Errorf("%q leads, %v", who, err)
	}
	select {
	case <-terms:
		t.Fatal("two lead")
	case <-time.After(2 * ttl): // it is kept alive
	}
	if err := first.Resign(ctx); err != nil {
		t.Error(err)
	}
	second := <-terms
	if _, err := things.Put(ctx, "a", "late"); !fault.Has(err, fault.Unavailable) {
		t.Errorf("a deposed one writes: %v", err)
	}
	if err := things.DeleteRange(ctx, "", "z"); !fault.Has(err, fault.Unavailable) {
		t.Errorf("a deposed one deletes: %v", err)
	}
	if got, _, err := NewCollection[string](second.Store, "thing").Get(ctx, "a"); err != nil || got != "by m1" {
		t.Errorf("%q, %v", got, err)
	}
	// Who leads is lost with its machine: the third follows.
	who, _, err := Leaders[string](c.up["m1"]).Get(ctx, "site")
	if err != nil {
		t.Fatal(err)
	}
	c.stop(who)
	<-second.Done()
	third := <-terms
	if _, err := NewCollection[string](third.Store, "thing").Put(ctx, "a", fmt.Sprint("after ", who)); err != nil {
		t.Error(err)
	}
	if err := third.Resign(ctx); err != nil {
		t.Error(err)
	}
}

// Without a majority nobody leads, and who led knows it before another could.
func TestAMinorityDoesNotLead(t *testing.T) {
	t.Parallel()
	ctx, c := t.Context(), three(t)
	term, err := c.up["m1"].Lead(ctx, "site", "m1", 2*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	c.stop("m2")
	c.stop("m3")
	<-term.Done()
	if !time.Now().Add(time.Millisecond).After(term.Until()) {
		t.Error("the term ended before its time")
	}
	short, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	if err := c.up["m1"].Barrier(short); err == nil {
		t.Error("a minority vouches")
	}
	_ = term.Resign(ctx) // nobody hears it: the lease runs out by itself
}

// A record that only one process can have open is led at once, and for ever.
func TestALoneRecordIsLed(t *testing.T) {
	s := open(t, Config{Dir: t.TempDir()})
	term, err := s.Lead(t.Context(), "site", "m1", time.Second)
	if err != nil || !term.Until().IsZero() {
		t.Fatal(err)
	}
	if _, err := NewCollection[int](term.Store, "n").Put(t.Context(), "x", 1); err != nil {
		t.Error(err)
	}
	if err := term.Resign(t.Context()); err != nil {
		t.Error(err)
	}
}

// A record that was alone becomes one of three, and one of three goes on alone when the
// others are lost for good.
func TestFromOneToThreeAndBack(t *testing.T) {
	t.Parallel()
	ctx, c := t.Context(), newCouncil(t)
	cfg := c.certified("m1")
	lone := cfg
	lone.Cluster = nil
	s, err := Open(ctx, lone)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := NewCollection[int](s, "n").Put(ctx, "x", 1); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	c.at["m1"] = cfg
	c.start("m1")
	c.join("m1", "m2")
	if _, err := NewCollection[int](c.up["m2"], "n").Put(ctx, "x", 2); err != nil {
		t.Fatal(err)
	}
	c.stop("m1")
	c.stop("m2")
	alone := c.at["m2"]
	alone.Cluster, alone.Alone = nil, true
	if s, err = Open(ctx, alone); err != nil {
		t.Fatal(err)
	}
	if n, _, err := NewCollection[int](s, "n").Get(ctx, "x"); err != nil || n != 2 {
		t.Errorf("%d, %v", n, err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	c.start("m2")
	c.join("m2", "m3")
	if n, _, err := NewCollection[int](c.up["m3"], "n").Get(ctx, "x"); err != nil || n != 2 {
		t.Errorf("%d, %v", n, err)
	}
}
