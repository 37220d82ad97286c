package elastic

import (
	"fmt"
	"math"
	"slices"
	"time"
)

// resolution: so many measurements are kept of the time that a KPI is looked back, evenly
// spread. A probe that sends a hundred times too many makes nothing larger or slower.
const resolution = 256

// gap is the longest time that one measurement stands for: one may be lost and the next late.
func (a Array) gap() time.Duration { return max(a.Window/2, 5*a.Every/2) }

// lookBack is how old measurements of a KPI may be that count; 0: none does.
func (e *evaluation) lookBack(kpi string) (back time.Duration) {
	for _, a := range e.policy.Arrays {
		if a.KPI == kpi {
			back = max(back, a.Window+a.gap())
		}
	}
	for _, r := range e.policy.Rules {
		if slices.Contains(r.KPIs, kpi) {
			back = max(back, r.fresh())
		}
	}
	return back
}

// Past of a KPI that counts: so far back, at such steps.
type Past struct {
	KPI        string
	Back, Step time.Duration
}

// Past measurements that a state which was lost can be made up for with: those of the windows
// of arrays. Rules look at the newest one alone.
func (p Policy) Past() (list []Past) {
	for _, a := range p.Arrays {
		back := a.Window + a.gap()
		x := Past{a.KPI, back, max(a.Every, back/resolution, time.Second)}
		i := slices.IndexFunc(list, func(y Past) bool { return y.KPI == a.KPI })
		if i < 0 {
			list = append(list, x)
			continue
		}
		list[i].Back, list[i].Step = max(list[i].Back, x.Back), min(list[i].Step, x.Step)
	}
	return list
}

// take measurements in, and drop those that are of no use any more. It returns how many of
// the new ones were none, or came before their time or after.
func (e *evaluation) take(samples []Sample) (ignored int) {
	kept := e.state.Samples
	for _, x := range samples {
		back := e.lookBack(x.KPI)
		if back == 0 {
			continue // no rule asks
		}
		if math.IsNaN(x.Value) || math.IsInf(x.Value, 0) || x.At.After(e.now) || e.now.Sub(x.At) > back {
			ignored++
			continue
		}
		cell := max(back/resolution, time.Millisecond)
		list := kept[x.KPI]
		i, same := slices.BinarySearchFunc(list, x.At.Truncate(cell), func(y Sample, at time.Time) int { return y.At.Truncate(cell).Compare(at) })
		switch {
		case !same:
			kept[x.KPI] = slices.Insert(list, i, x)
		case x.At.After(list[i].At):
			list[i] = x
		}
	}
	for kpi, list := range kept {
		back := e.lookBack(kpi)
		list = slices.DeleteFunc(list, func(x Sample) bool { return e.now.Sub(x.At) > back })
		if kept[kpi] = list; len(list) == 0 {
			delete(kept, kpi)
		}
	}
	return ignored
}

// counted measurements of a KPI: none from when an action was in flight.
func (e *evaluation) counted(kpi string) []Sample {
	list := e.state.Samples[kpi]
	i := slices.IndexFunc(list, func(x Sample) bool { return x.At.After(e.state.From) })
	if i < 0 {
		return nil
	}
	return list[i:]
}

// average of the KPI over the array's window, in which each measurement holds until the next
// one; so their number does not matter. Or it says what is missing.
func (e *evaluation) average(a Array) (average float64, missing string) {
	list := e.counted(a.KPI)
	if len(list) == 0 {
		return 0, "there is no measurement of " + a.KPI + " yet"
	}
	begin, first := e.now.Add(-a.Window), 0
	if measured := e.now.Sub(list[0].At); measured < a.Window {
		return 0, fmt.Sprintf("the window is not full: %s was measured for %s of %s", a.KPI, brief(measured), brief(a.Window))
	}
	for first+1 < len(list) && !list[first+1].At.After(begin) {
		first++
	}
	base := list[first].Value // a steady value is its own average, to the last bit
	average = base
	for i := first; i < len(list); i++ {
		from, to := list[i].At, e.now
		if i+1 < len(list) {
			to = list[i+1].At
		}
		if hole := to.Sub(from); hole > a.gap() {
			return 0, fmt.Sprintf("%s was not measured for %s in the window of %s", a.KPI, brief(hole), brief(a.Window))
		}
		if from.Before(begin) {
			from = begin
		}
		average += (list[i].Value - base) * (to.Sub(from).Seconds() / a.Window.Seconds())
	}
	return average, ""
}

// newest measurement of the KPI that is not older than fresh, or what is missing.
func (e *evaluation) newest(kpi string, fresh time.Duration) (value float64, missing string) {
	list := e.counted(kpi)
	if len(list) == 0 {
		return 0, "there is no measurement of " + kpi + " yet"
	}
	last := list[len(list)-1]
	if age := e.now.Sub(last.At); age > fresh {
		return 0, fmt.Sprintf("the last measurement of %s is %s old", kpi, brief(age))
	}
	return last.Value, ""
}
