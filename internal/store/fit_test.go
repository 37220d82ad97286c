package store

import (
	"log/slog"
	"sync"
	"testing"
	"time"

	"github.com/reservoir-cloud/reservoir/internal/event"
	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/internal/identity"
	"github.com/reservoir-cloud/reservoir/smi"
)

// Those who keep their things in a store without knowing it, on a real one.

func TestKeepsInvitations(t *testing.T) {
	ctx := t.Context()
	s := open(t, Config{Dir: t.TempDir()})
	ca, err := identity.NewCA("alpha", time.Now, nil)
	if err != nil {
		t.Fatal(err)
	}
	is := identity.NewInvitations(NewCollection[identity.Invitation](s, "invitation"), time.Now)
	token, err := is.Create(ctx, ca, "h1", time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	joined := make(chan string, 8)
	for range cap(joined) {
		k, err := identity.OpenKeypair(t.TempDir(), time.Now)
		if err != nil {
			t.Fatal(err)
		}
		csr, err := k.CSR()
		if err != nil {
			t.Fatal(err)
		}
		wg.Go(func() {
			i, err := is.Redeem(ctx, token, csr)
			if err == nil {
				joined <- i.Host
			} else if !fault.Has(err, fault.TokenInvalid) {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if len(joined) != 1 {
		t.Errorf("%d machines joined with one token", len(joined))
	}
}

func TestKeepsTokens(t *testing.T) {
	ctx := t.Context()
	s := open(t, Config{Dir: t.TempDir()})
	ts := identity.NewTokens(NewCollection[identity.TokenRecord](s, "token"), time.Now)
	_, text, err := ts.Create(ctx, "ann", identity.Auditor, "", time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	if c, err := ts.Verify(ctx, text); c.Role != identity.Auditor || err != nil {
		t.Errorf("%+v, %v", c, err)
	}
	if err := ts.Revoke(ctx, "ann"); err != nil {
		t.Error(err)
	}
	if _, err := ts.Verify(ctx, text); !fault.Has(err, fault.TokenInvalid) {
		t.Errorf("revoked: %v", err)
	}
}

func TestKeepsEvents(t *testing.T) {
	s := open(t, Config{Dir: t.TempDir()})
	cfg := event.Config{
		Sink: NewCollection[smi.Event](s, "event"), Keep: 500,
		Now: time.Now, Logger: slog.New(slog.DiscardHandler),
	}
	for want := 0; want <= 500; want += 250 {
		l, err := event.Open(t.Context(), cfg)
		if err != nil {
			t.Fatal(err)
		}
		if got := l.List(smi.EventFilter{}); len(got) != want {
			t.Errorf("%d events after a restart, want %d", len(got), want)
		}
		for range 250 {
			l.Record(smi.Event{Object: "host/h1", Message: "something"})
		}
		l.Close()
	}
}
