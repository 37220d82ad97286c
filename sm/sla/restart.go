package sla

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/reservoir-cloud/reservoir/account/money"
)

// Restart promises that a lost replica is back in time.
type Restart struct {
	Within  time.Duration
	Penalty Formula // of each loss that took longer
}

// Change of a replica: it was lost, or it is back (or no longer wanted).
type Change struct {
	Replica string
	At      time.Time
	Lost    bool
}

// Loss of a replica that is, or was, not back in time.
type Loss struct {
	Replica string    `json:"replica"`
	Lost    time.Time `json:"lost"`
	Told    bool      `json:"told,omitempty"` // as late
}

// RestartState is the replicas that are lost, by name.
type RestartState map[string]Loss

// Step takes changes in the order of time and goes on to now. It returns the losses that
// became late, each once: when the time is over, not when the replica is back.
func (r Restart) Step(s RestartState, changes []Change, now time.Time) (RestartState, []Loss) {
	s = maps.Clone(s)
	if s == nil {
		s = RestartState{}
	}
	var late []Loss
	tell := func(l Loss, at time.Time) {
		if !l.Told && at.Sub(l.Lost) > r.Within {
			l.Told = true
			late = append(late, l)
			s[l.Replica] = l
		}
	}
	for _, c := range changes {
		l, lost := s[c.Replica]
		switch {
		case c.At.After(now):
		case c.Lost && !lost:
			s[c.Replica] = Loss{Replica: c.Replica, Lost: c.At}
		case !c.Lost && lost && !c.At.Before(l.Lost):
			tell(l, c.At)
			delete(s, c.Replica)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(s)) {
		tell(s[name], now)
	}
	slices.SortStableFunc(late, func(a, b Loss) int { return cmp.Or(a.Lost.Compare(b.Lost), cmp.Compare(a.Replica, b.Replica)) })
	return s, late
}

// Due for one late loss, in a time for which the service was charged price. The formula's
// minutes are zero: how long it will take is not known when it is due.
func (r Restart) Due(price money.Amount) (money.Amount, error) {
	due, err := r.Penalty.Of(price, 0)
	if err != nil {
		return due, fmt.Errorf("penalty of the restart time: %w", err)
	}
	return due, nil
}
