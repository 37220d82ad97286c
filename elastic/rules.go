package elastic

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"
)

// verdict of one rule.
type verdict struct {
	rule  string
	array bool
	due   bool // only a rule whose time has come decides; others may still object
	want  Kind
	do    Action
	why   string
}

// rules decides by them: up, else larger replicas, else down.
func (e *evaluation) rules(d *Decision) {
	var all []verdict
	for _, a := range e.policy.Arrays {
		all = append(all, e.array(a))
	}
	for _, r := range e.policy.Rules {
		all = append(all, e.rule(r))
	}
	var held []string
	for _, want := range []Kind{ScaleUp, Resize, ScaleDown} {
		for _, v := range all {
			if !v.due || v.want != want {
				continue
			}
			size, but := e.apply(v, all)
			if but == "" {
				*d = Decision{Kind: want, Rule: v.rule, Size: size, Ignored: d.Ignored, Why: change(d.Size, size) + ": " + v.why}
				return
			}
			held = append(held, v.why+", but "+but)
		}
	}
	for _, v := range all {
		if !v.due || v.want == Hold {
			held = append(held, v.why)
		}
	}
	d.Why = fmt.Sprintf("stays at %d", d.Size.Replicas)
	if len(held) > 0 {
		d.Why += ": " + strings.Join(held, "; ")
	}
}

// apply what v wants, or say what stands against it.
func (e *evaluation) apply(v verdict, all []verdict) (size Size, but string) {
	size = e.seen.Wanted
	low, high, whose := e.policy.Bounds(e.now)
	cool := e.policy.Up
	switch v.want {
	case ScaleUp:
		if size.Replicas >= high {
			return size, fmt.Sprintf("%s allows at most %d", whose, high)
		}
		size.Replicas = min(high, size.Replicas+max(1, v.do.By))
	case ScaleDown:
		cool = e.policy.Down
		for _, o := range all {
			if o.want == ScaleUp || v.array && o.array && o.want != ScaleDown {
				return size, "this is against it: " + o.why
			}
		}
		if size.Replicas <= low {
			return size, fmt.Sprintf("%s wants at least %d", whose, low)
		}
		size.Replicas = max(low, size.Replicas-max(1, v.do.By))
	case Resize:
		size.VCPUs, size.Memory = cmp.Or(v.do.VCPUs, size.VCPUs), cmp.Or(v.do.Memory, size.Memory)
		if size == e.seen.Wanted {
			return size, "the replicas have that size"
		}
	}
	if past := e.now.Sub(e.state.Changed); !e.state.Changed.IsZero() && past < cool {
		return size, fmt.Sprintf("the last change was %s ago, within the cool-down of %s", brief(past), brief(cool))
	}
	return size, ""
}

func change(from, to Size) string {
	if from.Replicas != to.Replicas {
		return fmt.Sprintf("from %d to %d", from.Replicas, to.Replicas)
	}
	var said []string
	if to.VCPUs != from.VCPUs {
		said = append(said, fmt.Sprintf("%d vCPUs", to.VCPUs))
	}
	if to.Memory != from.Memory {
		said = append(said, to.Memory.String())
	}
	return "to " + strings.Join(said, " and ") + " each"
}

// due reports whether it is the rule's time, which is then noted.
func (e *evaluation) due(rule string, every time.Duration) bool {
	if last, ok := e.state.Looked[rule]; ok && e.now.Sub(last) < every {
		return false
	}
	e.state.Looked[rule] = e.now
	return true
}

// String names the array's rule.
func (a Array) String() string { return fmt.Sprintf("%s over %s", a.KPI, brief(a.Window)) }

func (e *evaluation) array(a Array) verdict {
	v := verdict{rule: a.String(), array: true, due: e.due(a.String(), a.Every), want: Hold}
	average, missing := e.average(a)
	if missing != "" {
		v.why = missing
		return v
	}
	per := func(n int) float64 { return average / float64(max(1, n)) }
	r, high, low := per(e.ready), a.Quota*(1+a.Tolerance/100), a.Quota*(1-a.Tolerance/100)
	said := fmt.Sprintf("%s is %s per replica (average %s over %s ÷ %d)", a.KPI, number(r), number(average), brief(a.Window), max(1, e.ready))
	switch {
	case r > high:
		v.want = ScaleUp
		v.why = fmt.Sprintf("%s, above %s (quota %s + %s%%)", said, number(high), number(a.Quota), number(a.Tolerance))
	case r < low && per(e.ready-1) > high:
		v.why = fmt.Sprintf("%s, below %s, but with one less it would be %s, above %s", said, number(low), number(per(e.ready-1)), number(high))
	case r < low:
		v.want = ScaleDown
		v.why = fmt.Sprintf("%s, below %s (quota %s − %s%%)", said, number(low), number(a.Quota), number(a.Tolerance))
	default:
		v.why = fmt.Sprintf("%s, between %s and %s", said, number(low), number(high))
	}
	return v
}

func (e *evaluation) rule(r Rule) verdict {
	v := verdict{rule: r.Name, due: e.due(r.Name, r.Every), want: Hold}
	values := Values{KPIs: map[string]float64{}, Sizes: map[string]int{}}
	maps.Copy(values.Sizes, e.seen.Sizes)
	values.Sizes[e.policy.Component] = e.ready
	with := []string{}
	for _, kpi := range r.KPIs {
		newest, missing := e.newest(kpi, r.fresh())
		if missing != "" {
			v.why = r.Name + ": " + missing
			return v
		}
		values.KPIs[kpi] = newest
		with = append(with, kpi+" = "+number(newest))
	}
	for _, name := range slices.Sorted(maps.Keys(values.Sizes)) {
		if size := name + ".instances.size"; strings.Contains(r.Condition, size) {
			with = append(with, fmt.Sprintf("%s = %d", size, values.Sizes[name]))
		}
	}
	holds, err := r.Holds(values)
	said := fmt.Sprintf("%s: %s", r.Name, r.Condition)
	if err != nil {
		v.why = fmt.Sprintf("%s cannot be told with %s: %v", said, strings.Join(with, ", "), err)
		return v
	}
	v.why = fmt.Sprintf("%s does not hold with %s", said, strings.Join(with, ", "))
	if holds {
		v.want, v.do = r.Do.Kind, r.Do
		v.why = fmt.Sprintf("%s holds with %s", said, strings.Join(with, ", "))
	}
	return v
}

// fresh is how old a measurement may be that the condition sees.
func (r Rule) fresh() time.Duration { return max(3*r.Every, time.Minute) }

func number(f float64) string { return strconv.FormatFloat(f, 'g', 6, 64) }

// brief duration, "1m30s", "5m": no trailing zeros, no fractions of more than a second.
func brief(d time.Duration) string {
	if d >= time.Second {
		d = d.Round(time.Second)
	} else {
		d = d.Round(100 * time.Millisecond)
	}
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}
