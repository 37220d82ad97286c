package connector

import (
	"context"
	"errors"
	"math"
	"testing"
	"testing/synctest"
	"time"

	"github.com/reservoir-cloud/reservoir/account/billing"
	"github.com/reservoir-cloud/reservoir/account/money"
	"github.com/reservoir-cloud/reservoir/vee"
	"github.com/reservoir-cloud/reservoir/vmi/peer"
)

func TestMatters(t *testing.T) {
	base := peer.Attributes{State: peer.State{Free: vee.Resources{MilliCPU: 10_000, Memory: vee.GiB}, FreeByType: map[string]int{"s": 2}, Load: 0.5, Hosts: 2}}
	for name, c := range map[string]struct {
		change func(*peer.Attributes)
		want   bool
	}{
		"nothing":           {func(*peer.Attributes) {}, false},
		"a little less CPU": {func(a *peer.Attributes) { a.State.Free.MilliCPU = 9_500 }, false},
		"much less CPU":     {func(a *peer.Attributes) { a.State.Free.MilliCPU = 8_500 }, true},
		"no memory":         {func(a *peer.Attributes) { a.State.Free.Memory = 0 }, true},
		"one of two":        {func(a *peer.Attributes) { a.State.FreeByType = map[string]int{"s": 1} }, false},
		"none of a type":    {func(a *peer.Attributes) { a.State.FreeByType = map[string]int{"s": 0} }, true},
		"a queue":           {func(a *peer.Attributes) { a.State.Queue = 1 }, true},
		"trouble":           {func(a *peer.Attributes) { a.State.Energy.Condition = "failing" }, true},
		"heat":              {func(a *peer.Attributes) { a.State.HeatWanted = 0.5 }, true},
		"a host":            {func(a *peer.Attributes) { a.State.Hosts = 3 }, true},
		"moved house":       {func(a *peer.Attributes) { a.Characteristics.Location.Country = "SE" }, true},
	} {
		b := base
		c.change(&b)
		if got := Matters(base, b); got != c.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}

func TestPlausible(t *testing.T) {
	for name, spoil := range map[string]func(*peer.Attributes){
		"good for years": func(a *peer.Attributes) { a.GoodMS = 1 << 40 },
		"negative room":  func(a *peer.Attributes) { a.State.Free.Memory = -1 },
		"no number":      func(a *peer.Attributes) { a.State.Load = math.NaN() },
		"more than all":  func(a *peer.Attributes) { a.State.HeatWanted = 2 },
		"off the Earth":  func(a *peer.Attributes) { a.Characteristics.Location.Latitude = 91 },
		"a negative price": func(a *peer.Attributes) {
			a.Characteristics.Prices = map[billing.Meter]money.Amount{billing.VEEs: money.Of(-1, 1)}
		},
		"a long list": func(a *peer.Attributes) { a.Characteristics.Images = make([]string, maxList+1) },
	} {
		a := peer.Attributes{GoodMS: 1000, State: peer.State{Load: 1, Free: vee.Resources{Memory: 1}}}
		if err := Plausible(a); err != nil {
			t.Fatal(err)
		}
		if spoil(&a); Plausible(a) == nil {
			t.Errorf("%s is believed", name)
		}
	}
}

// TestWatch: told at once, then what matters, and all else before it grows old.
func TestWatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start, free, broken := time.Now(), vee.Bytes(100), false
		c := New(Config{Every: time.Second, Good: 10 * time.Second, Now: time.Now, Look: func(context.Context) (peer.Attributes, error) {
			if broken {
				return peer.Attributes{}, errors.New("broken")
			}
			return peer.Attributes{Site: "beta", State: peer.State{Free: vee.Resources{Memory: free}}}, nil
		}})
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		ch, err := c.WatchAttributes(ctx)
		if err != nil {
			t.Fatal(err)
		}
		next := func(after time.Duration, want vee.Bytes) {
			t.Helper()
			a := <-ch
			if got := time.Since(start); got != after || a.State.Free.Memory != want || !a.At.Equal(time.Now()) || a.GoodMS != 10_000 {
				t.Errorf("after %v: %+v", got, a)
			}
		}
		next(0, 100)
		free = 95
		next(5*time.Second, 95) // it matters to nobody, but half of the time is over
		free = 50
		next(6*time.Second, 50)
		time.Sleep(500 * time.Millisecond)
		free = 49
		c.Tell()
		next(6500*time.Millisecond, 49) // an operator wants it told
		broken = true
		if _, more := <-ch; more {
			t.Error("told while it cannot look")
		}
	})
}
