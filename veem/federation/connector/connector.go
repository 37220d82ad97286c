// Package connector tells partners what a site has to offer (RVWS): it looks at the site
// now and then (detection), judges whether anybody should be told (decision), and tells who
// watches (notification). Whoever asks gets the values of the moment of the question.
package connector

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"sync"
	"time"

	"github.com/reservoir-cloud/reservoir/vmi/peer"
)

// Config of a Connector.
type Config struct {
	// Look at the site: its attributes now, but for At, GoodMS and Seq.
	Look func(ctx context.Context) (peer.Attributes, error)
	// Every so often it looks while somebody watches.
	Every time.Duration
	// Good bounds the age of what was told; it is told anew in half of it.
	Good time.Duration
	Now  func() time.Time
}

// Connector implements peer.Publisher.
type Connector struct {
	cfg Config

	mu   sync.Mutex
	seq  uint64
	tell chan struct{} // closed when all who watch are to be told
}

// New one.
func New(cfg Config) *Connector { return &Connector{cfg: cfg, tell: make(chan struct{})} }

// Tell all who watch now, whatever has changed.
func (c *Connector) Tell() {
	c.mu.Lock()
	defer c.mu.Unlock()
	close(c.tell)
	c.tell = make(chan struct{})
}

func (c *Connector) told() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.tell
}

var _ peer.Publisher = (*Connector)(nil)

// Attributes implements peer.Publisher.
func (c *Connector) Attributes(ctx context.Context) (peer.Attributes, error) {
	at := c.cfg.Now() // before the look: none of it is older
	a, err := c.cfg.Look(ctx)
	if err != nil {
		return a, err
	}
	c.mu.Lock()
	c.seq++
	a.Seq = c.seq
	c.mu.Unlock()
	a.At, a.GoodMS = at, c.cfg.Good.Milliseconds()
	return a, nil
}

// WatchAttributes implements peer.Publisher.
func (c *Connector) WatchAttributes(ctx context.Context) (<-chan peer.Attributes, error) {
	tell := c.told()
	last, err := c.Attributes(ctx)
	if err != nil {
		return nil, err
	}
	ch := make(chan peer.Attributes, 1)
	ch <- last
	go func() {
		defer close(ch)
		tick := time.NewTicker(c.cfg.Every)
		defer tick.Stop()
		for {
			asked := false
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			case <-tell:
				asked, tell = true, c.told()
			}
			now, err := c.Attributes(ctx)
			if err != nil {
				return // who watches sees that it ends, and what it has grow old
			}
			if !asked && now.At.Sub(last.At) < c.cfg.Good/2 && !Matters(last, now) {
				continue
			}
			select {
			case ch <- now:
				last = now
			case <-ctx.Done():
				return
			}
		}
	}()
	return ch, nil
}

// mostGood is the longest that anybody's attributes are believed, whatever they say.
const mostGood = 10 * time.Minute

// maxList bounds the lists of attributes.
const maxList = 10_000

// Plausible says what cannot be so in attributes that another site has told; nil: it may all
// be. That it is true nobody can say before VEEs are asked for: a reservation is the proof.
func Plausible(a peer.Attributes) error {
	x, s := a.Characteristics, a.State
	within := func(v, most float64) bool { return v >= 0 && v <= most } // NaN is not
	switch {
	case a.GoodMS < 0 || a.GoodMS > mostGood.Milliseconds():
		return fmt.Errorf("good for %d ms: want up to %v", a.GoodMS, mostGood)
	case s.Free.MilliCPU < 0 || s.Free.Memory < 0 || s.Free.Disk < 0 || s.Hosts < 0 || s.VEEs < 0 || s.Queue < 0:
		return errors.New("less than nothing is free, or there")
	case !within(s.Load, 1), !within(s.HeatWanted, 1), !within(x.Availability, 1), !within(s.Energy.GramsKWh, 1e6):
		return errors.New("a part is not between 0 and 1, or CO₂ below nothing")
	case !within(x.Location.Latitude+90, 180), !within(x.Location.Longitude+180, 360):
		return errors.New("it is nowhere on Earth")
	case len(x.Images) > maxList, len(x.Types) > maxList, len(x.Hypervisors) > maxList, len(s.FreeByType) > maxList:
		return fmt.Errorf("a list has more than %d entries", maxList)
	}
	for m, p := range x.Prices {
		if p.Sign() < 0 {
			return fmt.Errorf("the price of %s is negative", m)
		}
	}
	return nil
}

// part of a quantity that has to change for anybody to be told.
const part = 0.1

// Matters reports whether the difference is large enough to tell anyone: a tenth of what is
// free or of the load, anything that came to nothing or from nothing, and everything that is
// a word.
func Matters(a, b peer.Attributes) bool {
	x, y := a.State, b.State
	switch {
	case moved(float64(x.Free.MilliCPU), float64(y.Free.MilliCPU)), moved(float64(x.Free.Memory), float64(y.Free.Memory)), moved(float64(x.Free.Disk), float64(y.Free.Disk)),
		moved(float64(x.Queue), float64(y.Queue)), math.Abs(x.Load-y.Load) >= part, math.Abs(x.HeatWanted-y.HeatWanted) >= part,
		x.Energy.Condition != y.Energy.Condition, moved(x.Energy.GramsKWh, y.Energy.GramsKWh), x.Hosts != y.Hosts:
		return true
	}
	for t, n := range x.FreeByType {
		if (n == 0) != (y.FreeByType[t] == 0) {
			return true
		}
	}
	return !same(a.Characteristics, b.Characteristics)
}

func moved(a, b float64) bool {
	return (a == 0) != (b == 0) || math.Abs(a-b) > part*max(math.Abs(a), math.Abs(b))
}

func same(a, b peer.Characteristics) bool {
	if len(a.Prices) != len(b.Prices) {
		return false
	}
	for m, p := range a.Prices {
		if q, ok := b.Prices[m]; !ok || p.Compare(q) != 0 {
			return false
		}
	}
	return a.Location == b.Location && a.Currency == b.Currency && a.Availability == b.Availability && a.Software == b.Software &&
		slices.Equal(a.Hypervisors, b.Hypervisors) && slices.Equal(a.Types, b.Types) && slices.Equal(a.Images, b.Images)
}
