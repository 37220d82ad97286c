package elastic

import (
	"cmp"
	"fmt"
	"slices"
	"time"
)

// Schedule sets other bounds at some hours. The last one that is in force holds.
type Schedule struct {
	Name     string
	Days     []time.Weekday // on which it begins; none: every day
	From, To time.Duration  // since midnight by the clock on the wall; To at or before From is on the next day
	Location *time.Location // nil: UTC
	Min, Max int
}

// in reports whether the schedule is in force.
func (s Schedule) in(now time.Time) bool {
	zone := s.Location
	if zone == nil {
		zone = time.UTC
	}
	now = now.In(zone)
	h, m, sec := now.Clock()
	clock := time.Duration(h)*time.Hour + time.Duration(m)*time.Minute + time.Duration(sec)*time.Second
	day := now.Weekday()
	if s.To > s.From {
		return s.on(day) && clock >= s.From && clock < s.To
	}
	return s.on(day) && clock >= s.From || s.on((day+6)%7) && clock < s.To
}

func (s Schedule) on(d time.Weekday) bool { return len(s.Days) == 0 || slices.Contains(s.Days, d) }

// Bounds in force and who sets them.
func (p Policy) Bounds(now time.Time) (low, high int, whose string) {
	low, high, whose = p.Min, p.Max, "the manifest"
	for _, s := range p.Schedules {
		if s.in(now) {
			low, high, whose = s.Min, s.Max, "schedule "+s.Name
		}
	}
	return low, high, whose
}

func (p Policy) patience() time.Duration { return cmp.Or(p.Patience, DefaultPatience) }

// longest time that a rule needs to come to a decision.
func (p Policy) longest() (d time.Duration) {
	for _, a := range p.Arrays {
		d = max(d, a.Window+a.Every)
	}
	for _, r := range p.Rules {
		d = max(d, r.Every)
	}
	return d
}

// Check says what Step could make no sense of.
func (p Policy) Check() error {
	wrong := func(format string, args ...any) error {
		return fmt.Errorf("elasticity of component "+p.Component+": "+format, args...)
	}
	if p.Min < 0 || p.Min > p.Max {
		return wrong("from %d to %d replicas: want 0 <= min <= max", p.Min, p.Max)
	}
	if p.Up < 0 || p.Down < 0 || p.Patience < 0 {
		return wrong("a cool-down or patience is negative")
	}
	for i, a := range p.Arrays {
		if slices.ContainsFunc(p.Arrays[:i], func(o Array) bool { return o.String() == a.String() }) {
			return wrong("two elastic arrays by %s", a)
		}
		if a.KPI == "" || a.Window <= 0 || a.Every < 0 || !(a.Quota > 0) || !(a.Tolerance >= 0 && a.Tolerance <= 100) {
			return wrong("elastic array by KPI %q: want a KPI, a window, a quota above 0, a tolerance from 0 to 100 %%, and no negative time", a.KPI)
		}
	}
	for i, r := range p.Rules {
		switch {
		case r.Name == "" || slices.ContainsFunc(p.Rules[:i], func(o Rule) bool { return o.Name == r.Name }):
			return wrong("rule %q: want a name of its own", r.Name)
		case r.Holds == nil || r.Every < 0 || r.Do.By < 0:
			return wrong("rule %s: want a condition, and no negative time or number", r.Name)
		case !slices.Contains([]Kind{ScaleUp, ScaleDown, Resize}, r.Do.Kind):
			return wrong("rule %s: there is no action %q", r.Name, r.Do.Kind)
		case r.Do.Kind == Resize && r.Do.VCPUs <= 0 && r.Do.Memory <= 0:
			return wrong("rule %s: resize to what?", r.Name)
		}
	}
	for _, s := range p.Schedules {
		if s.Min < 0 || s.Min > s.Max || s.From < 0 || s.To < 0 || s.From >= 24*time.Hour || s.To > 24*time.Hour {
			return wrong("schedule %s: want 0 <= min <= max, and hours of a day", s.Name)
		}
	}
	return nil
}
