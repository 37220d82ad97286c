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
	return vhi.RenewalReply{Generation: uint64(len(f.got))}, nil
}

func TestRenewerIsPunctualAndPrompt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		site := &fakeSite{}
		seq := uint64(0)
		r := &renewer{site: site, scale: 1, log: slog.New(slog.NewTextHandler(io.Discard, nil)), changed: make(chan struct{}, 1),
			report: func(context.Context) vhi.Renewal { seq++; return vhi.Renewal{Report: vhi.HostReport{Seq: seq}} },
			// The first answer asks for another renewal at once, as one does that knows no echo.
			heed: func(_ context.Context, r vhi.RenewalReply) bool { return r.Generation == 1 }}
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan struct{})
		go func() { defer close(done); r.run(ctx) }()
		defer func() { cancel(); <-done }()

		start := time.Now()
		time.Sleep(11 * time.Second)
		synctest.Wait()
		if len(site.got) != 4 || site.at[1].Sub(start) != 0 {
			t.Fatalf("renewals in 11 s at %v, want 4, the second at once", site.at)
		}
		r.poke()
		synctest.Wait()
		if len(site.got) != 5 || site.at[4].Sub(start) != 11*time.Second {
			t.Errorf("a change was not reported at once: %v", site.at)
		}
		site.down = true
		time.Sleep(30 * time.Second)
		site.down = false
		before := len(site.got)
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if len(site.got) != before+1 {
			t.Errorf("after the site was down: %d renewals, want one", len(site.got)-before)
		}
	})
}
