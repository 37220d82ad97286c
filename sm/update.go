package sm

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/reservoir-cloud/reservoir/elastic"
	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/manifest"
	"github.com/reservoir-cloud/reservoir/sm/deploy"
	"github.com/reservoir-cloud/reservoir/sm/rules"
	"github.com/reservoir-cloud/reservoir/vee"
	"github.com/reservoir-cloud/reservoir/vmi"
)

// updating is an update that is under way: a redeployment of a service that was as desired.
type updating struct {
	From int `json:"from"` // revision that it goes back to when it fails
}

// Watching of new replicas while others still have to be replaced.
const (
	judgeEvery   = 5 * time.Second  // KPIs are looked at
	judgeTimes   = 3                // in a row a KPI is out of its range, before that counts
	defaultWatch = 30 * time.Second // of a component whose KPIs are promised
)

// watch is how long a new replica of a component is watched, and the patience with it.
func (d *design) watch(c *manifest.Component) (watch, patience time.Duration) {
	if len(d.promises(c)) > 0 {
		watch = defaultWatch
	}
	if c.Update != nil {
		watch, patience = time.Duration(c.Update.Watch), time.Duration(c.Update.Patience)
	}
	return watch, patience
}

// promises on KPIs that a component's replicas have to keep.
func (d *design) promises(c *manifest.Component) []manifest.Constraint {
	return slices.Concat(d.manifest.Performance, c.Performance)
}

// judgement of an update, as its new replicas are watched. What is lost of it with the
// process costs some time, or makes a KPI count that was bad before.
type judgement struct {
	revision int
	next     time.Time
	before   map[string]bool   // promises that were broken before there was a new replica
	times    map[string]int    // in a row that a promise was seen broken
	broken   map[string]string // in which words, by component
}

// judge the new replicas of an update by the KPIs that are promised, and say when to look
// again; the zero time: there is nothing to judge.
func (w *worker) judge(ctx context.Context, rec record, world *deploy.World) (again time.Time) {
	j := &w.judged
	if rec.Update == nil || rec.Deleting || rec.State.Settled || w.m.cfg.Monitor == nil {
		*j = judgement{}
		return time.Time{}
	}
	if j.revision != rec.Revision {
		*j = judgement{revision: rec.Revision, before: map[string]bool{}, times: map[string]int{}}
	}
	now, any := w.m.cfg.Now(), false
	look := !now.Before(j.next)
	if look {
		j.next, j.broken = now.Add(judgeEvery), map[string]string{}
	}
	for i := range w.design.manifest.Components {
		c := &w.design.manifest.Components[i]
		for _, p := range w.design.promises(c) {
			if any = true; look {
				w.judgeBy(ctx, rec, c.Name, p, now)
			}
		}
	}
	world.Objections = j.broken
	if !any {
		return time.Time{}
	}
	return j.next
}

// judgeBy one promise.
func (w *worker) judgeBy(ctx context.Context, rec record, component string, p manifest.Constraint, now time.Time) {
	j, key := &w.judged, component+"/"+p.Name+"/"+p.KPI
	why, err := w.m.outside(ctx, rec, w.design, p, now)
	if err != nil {
		w.m.cfg.Log.Info("update: cannot tell how a KPI is", "service", w.key, "kpi", p.KPI, "error", err)
		return
	}
	fresh := slices.ContainsFunc(rec.State.Slots, func(l deploy.Slot) bool {
		return l.Component == component && l.Spec == w.design.Specs[component] && l.Revision == rec.Revision && !l.Ready.IsZero()
	})
	switch {
	case !fresh:
		j.before[key] = why != ""
	case why == "":
		j.before[key], j.times[key] = false, 0
	case !j.before[key]:
		if j.times[key]++; j.times[key] >= judgeTimes {
			j.broken[component] = why
		}
	}
}

// outside says how a KPI is outside of the range that is promised, or "".
func (m *Manager) outside(ctx context.Context, rec record, d *design, p manifest.Constraint, now time.Time) (string, error) {
	i := slices.IndexFunc(d.manifest.KPIs, func(k manifest.KPI) bool { return k.Name == p.KPI })
	if i < 0 {
		return "", nil // the manifest was valid: there is one
	}
	ctx, cancel := context.WithTimeout(ctx, queryPatience)
	defer cancel()
	series, err := m.cfg.Monitor.Querier(scopeNow(rec)).Query(ctx, rules.QueryOf(d.manifest.KPIs[i]), now)
	if err != nil {
		return "", err
	}
	points, err := only(series)
	for _, x := range points {
		switch r := p.Range; {
		case r.Max != nil && x.Value > *r.Max:
			return fmt.Sprintf("%s is %.6g since there is a new replica, above the promised %g %s", p.KPI, x.Value, *r.Max, r.Unit), err
		case r.Min != nil && x.Value < *r.Min:
			return fmt.Sprintf("%s is %.6g since there is a new replica, below the promised %g %s", p.KPI, x.Value, *r.Min, r.Unit), err
		}
	}
	return "", err
}

// undo an update: the revision before becomes the newest one.
func (w *worker) undo(ctx context.Context, rec record, version uint64, why string) error {
	before, err := w.m.loadDesign(ctx, rec.ID, rec.Update.From)
	if err != nil {
		return fmt.Errorf("undo revision %d of service %s: %w", rec.Revision, w.key, err)
	}
	rec.Undone = fmt.Sprintf("revision %d was undone: %s", rec.Revision, why)
	rec.Update = nil
	rec.Revision++
	desired := map[string]int{}
	for _, c := range before.manifest.Components {
		n, known := rec.Desired[c.Name]
		if !known {
			n = c.Replicas.Initial
		}
		desired[c.Name] = min(max(n, c.Replicas.Min), c.Replicas.Max)
	}
	rec.Desired = desired
	rec.newGoal(w.m.cfg.Now())
	_, err = w.m.cfg.Store.Txn(ctx, w.m.revisions.OpCreate(revisionKey(rec.ID, rec.Revision), before.revision), w.m.records.OpUpdate(rec.key(), rec, version))
	if fault.Has(err, fault.Conflict) || fault.Has(err, fault.NotFound) {
		return nil // the provider was faster: his news come
	}
	if err == nil {
		w.m.event(rec, deploy.Event{Warning: true, Reason: "UpdateUndone", Message: rec.Undone})
	}
	return err
}

// adjust replicas that run. What becomes of each is recorded.
func (w *worker) adjust(ctx context.Context, rec record, a deploy.Action) error {
	vees, _ := w.m.group(rec.ID)
	var updates []vmi.VEEUpdate
	for _, l := range a.Slots {
		c := w.design.manifest.Component(l.Component)
		if c == nil {
			continue
		}
		d := w.m.descriptor(rec, w.design, c, l)
		updates = append(updates, vmi.VEEUpdate{ID: l.VEE, VCPUs: &d.VCPUs, Memory: &d.Memory, Firewall: &d.Firewall})
	}
	outcomes, err := w.m.cfg.VMI.UpdateVEEs(ctx, updates)
	var fitted, misfits []deploy.Slot
	for i, o := range outcomes {
		l, runs := a.Slots[i], vees[o.ID].State == vee.Active || vees[o.ID].State == vee.Paused
		switch {
		case o.OK && runs && strings.HasPrefix(o.Detail, vmi.AtNextBoot+":"), !o.OK && o.Code == string(fault.NoResources):
			misfits = append(misfits, l)
			w.m.event(rec, deploy.Event{Reason: "NotAdjusted", Message: fmt.Sprintf("%s is replaced to become %s: %s", l.Name(), fitText(l.Fit), o.Detail)})
		case o.OK:
			fitted = append(fitted, l)
			w.m.event(rec, deploy.Event{Reason: "Adjusted", Message: fmt.Sprintf("%s is now %s: %s", l.Name(), fitText(l.Fit), o.Detail)})
		case err == nil:
			err = fault.New(fault.Code(o.Code), "%s: %s", l.Name(), o.Detail)
		}
	}
	if len(fitted)+len(misfits) > 0 {
		_, _, merr := w.m.records.Modify(ctx, w.key, func(r *record) error {
			if r.ID == rec.ID {
				r.State = r.State.Adjusted(fitted, misfits)
			}
			return nil
		})
		if merr != nil && !fault.Has(merr, fault.NotFound) {
			return merr
		}
	}
	w.result(rec, []string{deploy.Fitting}, "change what runs", err)
	return nil
}

func fitText(f deploy.Fit) string {
	text := fmt.Sprintf("%d vCPUs and %s", f.VCPUs, f.Memory)
	if f.Firewall != "" {
		text += " with firewall " + f.Firewall
	}
	return text
}

// keepSizes that rules have decided, but for components that a design gives others.
func (r *record) keepSizes(d *design) {
	sizes := maps.Clone(r.Sizes)
	maps.DeleteFunc(sizes, func(component string, _ size) bool {
		p, known := d.elastic.Policy(component)
		return !known || !slices.ContainsFunc(p.Rules, func(x elastic.Rule) bool { return x.Do.Kind == elastic.Resize })
	})
	r.Sizes = sizes
}
