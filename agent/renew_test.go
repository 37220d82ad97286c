package agent

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"github.com/reservoir-cloud/reservoir/vhi"
)

// fakeSite answers renewals, unless it is down.
type fakeSite struct {
	vhi.Manager
	got  []vhi.Renewal
	at   []time.Time
	down bool
}

func (f *fakeSite) Renew(_ context.Context, r vhi.Renewal) (vhi.RenewalReply, error) {
	if f.down {
		return vhi.RenewalReply{}, errors.New("connection refused")
	}
	f.got, f.at = append(f.got, r), append(f.at, time.Now())
	return vhi.RenewalReply{Nonce: string(rune('a' + len(f.got))), Generation: 1}, nil
}

func TestRenewerIsPunctualPromptAndEchoesTheLastNonce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		site := &fakeSite{}
		seq := uint64(0)
		r := &renewer{site: site, scale: 1, log: slog.New(slog.NewTextHandler(io.Discard, nil)), changed: make(chan struct{}, 1),
			report: func() vhi.HostReport { seq++; return vhi.HostReport{Seq: seq} }, heed: func(vhi.RenewalReply) {}}
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan struct{})
		go func() { defer close(done); r.run(ctx) }()
		defer func() { cancel(); <-done }()

		start := time.Now()
		time.Sleep(11 * time.Second)
		synctest.Wait()
		if len(site.got) != 3 {
			t.Fatalf("%d renewals in 11 s, want 3", len(site.got))
		}
		r.poke()
		synctest.Wait()
		if len(site.got) != 4 || site.at[3].Sub(start) != 11*time.Second {
			t.Errorf("a change was not reported at once: %v", site.at)
		}
		for i, g := range site.got[1:] {
			if want := string(rune('a' + i + 1)); g.Nonce != want {
				t.Errorf("renewal %d echoes %q, want %q", i+1, g.Nonce, want)
			}
		}

		site.down = true
		time.Sleep(30 * time.Second)
		site.down = false
		before := len(site.got)
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if len(site.got) != before+1 || site.got[before].Nonce != "" {
			t.Errorf("after the site was down: %d renewals, nonce %q; want one without a nonce", len(site.got)-before, site.got[before].Nonce)
		}
	})
}
