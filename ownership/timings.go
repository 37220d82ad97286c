package ownership

import (
	"fmt"
	"time"
)

// Timings of a site. All but KillTime and Drift scale together (--ha-scale): those two are
// what machines need, whatever we would like.
type Timings struct {
	Renew     time.Duration // between two renewals of a host
	EchoAge   time.Duration // an echo older than this is not fresh
	Window    time.Duration // a host is current for this long after a fresh renewal
	LostAfter time.Duration // a witness without an answer for this long says "lost"
	WordGood  time.Duration // words of witnesses count together within this time of the question
	Lease     time.Duration // self-kill: the guard's deadline after the proof that it rests on
	Watchdog  time.Duration // a hardware watchdog or power fence has acted, after the same proof
	GiveAway  time.Duration // a host that has not been current for this long is expired
	Steady    time.Duration // witnesses must have been current this long before expiry counts
	KillTime  time.Duration // between the guard's deadline and the last instruction of a guest
	Drift     float64       // relative error of a clock's rate
}

// DefaultTimings are those of a site with --ha-scale 1.
func DefaultTimings() Timings {
	return Timings{
		Renew: 5 * time.Second, EchoAge: 8 * time.Second, Window: 10 * time.Second,
		LostAfter: 20 * time.Second, WordGood: 5 * time.Second,
		Lease: 30 * time.Second, Watchdog: 45 * time.Second, GiveAway: 60 * time.Second, Steady: 45 * time.Second,
		KillTime: 500 * time.Millisecond, Drift: 0.001,
	}
}

// Scale multiplies what --ha-scale scales.
func (t Timings) Scale(f float64) Timings {
	for _, d := range []*time.Duration{&t.Renew, &t.EchoAge, &t.Window, &t.LostAfter, &t.WordGood,
		&t.Lease, &t.Watchdog, &t.GiveAway, &t.Steady} {
		*d = time.Duration(float64(*d) * f)
	}
	return t
}

// Check refuses timings under which the protocol is not safe, or under which it would kill
// guests for nothing. The reasons are in docs/ownership.md.
func (t Timings) Check() error {
	if t.Renew <= 0 || t.WordGood <= 0 || t.KillTime < 0 || t.Drift < 0 || t.Drift >= 0.1 {
		return fmt.Errorf("high-availability timings: renew interval %v, word %v, kill time %v, clock drift %g: want positive times and a drift below 0.1", t.Renew, t.WordGood, t.KillTime, t.Drift)
	}
	// Two clocks may drift apart: what is measured on one must be shorter on the other.
	apart := func(d time.Duration) time.Duration {
		return time.Duration(float64(d) * (1 + t.Drift) / (1 - t.Drift))
	}
	for _, c := range []struct {
		small, large time.Duration
		strict       bool
		why          string
	}{
		{t.Renew, t.EchoAge, true, "an echo must outlive a renewal interval (renew < echo age)"},
		{2 * t.Renew, t.Window, false, "one lost renewal must not end a host's currency (2 × renew ≤ window)"},
		{apart(t.EchoAge + t.Window), t.LostAfter, true, "a witness that is current must never say lost (echo age + window < lost after)"},
		{apart(t.LostAfter + t.WordGood), t.Lease, false, "guests must outlive the time in which witnesses notice (lost after + word ≤ lease)"},
		{apart(t.Lease) + t.KillTime, t.Watchdog, false, "the guard must kill before the watchdog does (self-kill < watchdog)"},
		{apart(t.Watchdog), t.GiveAway, true, "the watchdog must have acted before a give-away (watchdog < give-away)"},
		{apart(t.Lease) + t.KillTime, t.Steady, true, "witnesses must have been current since before the last word that can still count (lease < steady)"},
	} {
		if c.small > c.large || c.strict && c.small == c.large {
			return fmt.Errorf("high-availability timings: %v against %v with clock drift and kill time: %s; try a larger --ha-scale", c.small, c.large, c.why)
		}
	}
	return nil
}
