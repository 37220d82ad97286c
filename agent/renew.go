package agent

import (
	"context"
	"log/slog"
	"time"

	"github.com/reservoir-cloud/reservoir/vhi"
)

// Timings of the renewals (spec: luc-os, ownership). They scale together.
const (
	renewEvery   = 5 * time.Second
	renewTimeout = 4 * time.Second
)

// renewer keeps the host current at its site: the whole report every renewEvery, and at
// once when something changed. One renewal is under way at a time; what changes meanwhile
// goes with the next.
type renewer struct {
	site   vhi.Manager
	report func(ctx context.Context) vhi.Renewal
	// heed the answer; true: renew again at once.
	heed  func(ctx context.Context, r vhi.RenewalReply) bool
	scale float64
	log   *slog.Logger

	changed chan struct{} // of size one
}

// poke says that the report has changed. It never blocks.
func (r *renewer) poke() {
	select {
	case r.changed <- struct{}{}:
	default:
	}
}

func (r *renewer) scaled(d time.Duration) time.Duration { return time.Duration(float64(d) * r.scale) }

func (r *renewer) run(ctx context.Context) {
	every := r.scaled(renewEvery)
	lost := false
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		case <-r.changed:
		}
		began := time.Now()
		c, cancel := context.WithTimeout(ctx, r.scaled(renewTimeout))
		reply, err := r.site.Renew(c, r.report(ctx))
		cancel()
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			if !lost {
				r.log.Warn("the site does not answer", "err", err)
			}
			lost = true
			timer.Reset(every / 5)
			continue
		case lost:
			r.log.Info("the site answers again")
			lost = false
		}
		if r.heed(ctx, reply) {
			r.poke()
		}
		r.rest(ctx, min(4*time.Since(began), every/5))
		timer.Reset(every)
	}
}

// rest between two renewals in proportion to what one takes: with thousands of VEEs that
// change all the time, whole reports would keep the site and this host busy with nothing
// else. What changes meanwhile goes with the next.
func (r *renewer) rest(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}
