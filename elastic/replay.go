package elastic

import (
	"cmp"
	"maps"
	"slices"
	"time"
)

// Trial is a run of policies on measurements that are there, in a world in which everything
// goes as it is assumed to.
type Trial struct {
	Policies []Policy
	Sizes    map[string]Size // of the components to begin with, also of those that have no policy
	Boot     time.Duration   // until a new replica serves
	Leave    time.Duration   // until a replica that has to go is gone
	From, To time.Time
}

// Moment of a replay.
type Moment struct {
	At        time.Time
	Component string
	Ready     int // replicas, before the decision
	Decision
}

// model of a component's replicas: each has come when it serves, and goes when it has left.
type model struct {
	state State
	size  Size
	since []time.Time // from when on each replica serves
	until []time.Time // until when each one that leaves is there
	wake  time.Time
}

func (c *model) at(now time.Time) (list []Replica, ready int) {
	for _, t := range c.since {
		r := Replica{Ready: !t.After(now), VCPUs: c.size.VCPUs, Memory: c.size.Memory}
		if list = append(list, r); r.Ready {
			ready++
		}
	}
	c.until = slices.DeleteFunc(c.until, func(t time.Time) bool { return !t.After(now) })
	for range c.until {
		list = append(list, Replica{Ready: true, Leaving: true})
	}
	return list, ready
}

// become the size that was decided: the newest replicas go first.
func (c *model) become(s Size, now time.Time, t Trial) {
	for len(c.since) > s.Replicas {
		c.since = c.since[:len(c.since)-1]
		c.until = append(c.until, now.Add(t.Leave))
	}
	for len(c.since) < s.Replicas {
		c.since = append(c.since, now.Add(t.Boot))
	}
	c.size = s
}

// Replay says what the policies would have decided, and why: every step at which the
// decision, or the reason not to take one, is of another kind than the one before.
// It looks no further than most moments; more says that there would have been others.
func (t Trial) Replay(samples []Sample, most int) (moments []Moment, more bool) {
	samples = slices.SortedStableFunc(slices.Values(samples), func(a, b Sample) int { return a.At.Compare(b.At) })
	all := map[string]*model{}
	for name, size := range t.Sizes {
		c := &model{wake: t.From}
		c.become(size, t.From.Add(-t.Boot), t)
		all[name] = c
	}
	last := map[string]string{}
	given := 0
	for now := t.From; !now.After(t.To); {
		upto := given
		for upto < len(samples) && !samples[upto].At.After(now) {
			upto++
		}
		sizes := map[string]int{}
		for name, c := range all {
			_, sizes[name] = c.at(now)
		}
		for _, p := range t.Policies {
			c := all[p.Component]
			if c == nil {
				continue
			}
			there, ready := c.at(now)
			var d Decision
			c.state, d = Step(p, c.state, Observation{Wanted: c.size, Replicas: there, Sizes: maps.Clone(sizes), Samples: samples[given:upto]}, now)
			c.become(d.Size, now, t)
			c.wake = d.Wake
			if kind := d.likeness(); kind != last[p.Component] || d.Kind != Hold {
				if len(moments) == most {
					return moments, true
				}
				moments = append(moments, Moment{At: now, Component: p.Component, Ready: ready, Decision: d})
				last[p.Component] = kind
			}
		}
		given = upto
		now = t.next(now, all)
	}
	return moments, false
}

// next moment at which something may change: a rule's time, or a replica that comes or goes.
func (t Trial) next(now time.Time, all map[string]*model) time.Time {
	next := now.Add(longestSleep)
	sooner := func(at time.Time) {
		if at.After(now) && at.Before(next) {
			next = at
		}
	}
	for _, c := range all {
		sooner(c.wake)
		for _, at := range slices.Concat(c.since, c.until) {
			sooner(at)
		}
	}
	return next
}

// likeness of two decisions: they are the same but for the numbers.
func (d Decision) likeness() string {
	out := make([]byte, 0, len(d.Why))
	for _, b := range []byte(d.Why) {
		if b >= '0' && b <= '9' || b == '.' {
			continue
		}
		out = append(out, b)
	}
	return cmp.Or(string(d.Kind), string(Hold)) + " " + d.Rule + " " + string(out)
}
