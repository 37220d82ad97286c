package sm

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/internal/store"
	"github.com/reservoir-cloud/reservoir/manifest"
	"github.com/reservoir-cloud/reservoir/sm/deploy"
	"github.com/reservoir-cloud/reservoir/sm/rules"
	"github.com/reservoir-cloud/reservoir/smi"
	"github.com/reservoir-cloud/reservoir/vee"
	"github.com/reservoir-cloud/reservoir/vmi"
)

// Pauses after failures of the same action: doubled from the first to the last.
const (
	firstPause = 200 * time.Millisecond
	lastPause  = 15 * time.Second
)

// worker does one service's steps, one after the other. All but the fields for news is its
// own goroutine's.
type worker struct {
	m   *Manager
	key string

	news      chan struct{} // something may have changed
	roomFreed atomic.Bool   // a VEE somewhere has given its room back
	group     atomic.Value  // string: the service's ID, once it is known

	generation int
	troubles   map[string]trouble
	access     map[string]vmi.AccessPoint // nil: to be listed
	networks   map[string]vmi.Network     // of the group; nil: to be listed
	design     *design                    // of the current revision
	accounted  map[vee.ID]bool            // VEEs whose usage this process has registered for
	unheard    int                        // attempts at that which failed
	scaler     *scaler
	judged     judgement
	failed     int       // turns, one after the other
	wake       time.Time // where the manager is stepped: the next turn without news
}

type trouble struct {
	deploy.Trouble
	noRoom   bool
	attempts int
}

func newWorker(m *Manager, key string) *worker {
	w := &worker{m: m, key: key, news: make(chan struct{}, 1), troubles: map[string]trouble{}, accounted: map[vee.ID]bool{}, scaler: newScaler(m, key)}
	w.group.Store("")
	return w
}

// poke the worker; it never waits.
func (w *worker) poke() {
	select {
	case w.news <- struct{}{}:
	default:
	}
}

func (w *worker) run(ctx context.Context) {
	ctx, end := context.WithCancel(ctx)
	var scaling sync.WaitGroup
	scaling.Go(func() { w.scaler.run(ctx) })
	defer scaling.Wait()
	defer end()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-w.news:
		case <-timer.C:
		}
		wake, gone := w.turn(ctx)
		if gone && w.m.retire(w) {
			return
		}
		if !wake.IsZero() {
			timer.Reset(max(0, wake.Sub(w.m.cfg.Now())))
		}
	}
}

// turn does what there is to do, and says when there will be more without any news; the zero
// time: never. gone: the service is.
func (w *worker) turn(ctx context.Context) (wake time.Time, gone bool) {
	wake, err := w.converge(ctx)
	switch {
	case errors.Is(err, errGone):
		gone = true
	case err != nil && ctx.Err() == nil:
		w.m.cfg.Log.Warn("service: cannot go on, will try again", "service", w.key, "error", err)
		wake = w.m.cfg.Now().Add(backoff(w.failed))
		w.failed++
		return wake, false
	}
	w.failed = 0
	if w.design != nil && len(w.design.elastic.Policies) > 0 {
		w.scaler.poke()
	}
	return wake, gone
}

func backoff(attempts int) time.Duration {
	return min(lastPause, firstPause<<min(attempts, 10))
}

// errGone says that the service's record is no more.
var errGone = errors.New("the service is gone")

// converge does steps until there is nothing to do before the next news, or before wake.
func (w *worker) converge(ctx context.Context) (wake time.Time, err error) {
	for ctx.Err() == nil {
		rec, version, err := w.m.records.Get(ctx, w.key)
		if fault.Has(err, fault.NotFound) {
			return time.Time{}, errGone
		}
		if err != nil {
			return time.Time{}, err
		}
		if err := w.prepare(ctx, rec); err != nil {
			return time.Time{}, err
		}
		vees, synced := w.m.group(rec.ID)
		if !synced {
			return time.Time{}, nil // the watch will say when
		}
		if rec.Ceded != nil && !rec.Deleting {
			return w.giveWay(ctx, rec, version, vees)
		}
		world := w.worldOf(vees)
		look := w.judge(ctx, rec, &world)
		step := deploy.Next(w.design.goal(rec), rec.State, world)
		if !look.IsZero() && (step.Wake.IsZero() || look.Before(step.Wake)) {
			step.Wake = look
		}
		before := rec
		rec, version, err = w.recordStep(ctx, rec, version, step.State)
		if fault.Has(err, fault.Conflict) || fault.Has(err, fault.NotFound) {
			continue // the provider was faster
		}
		if err != nil {
			return time.Time{}, err
		}
		for _, e := range step.Events {
			w.m.event(rec, e)
		}
		w.m.publish(w.m.show(rec, version, w.design, vees, w.access, step.Waiting))
		if len(step.Actions) == 0 && equal(before.State, rec.State) {
			next, over := w.overcome()
			if over {
				continue
			}
			return soonest(step.Wake, next, w.listen(ctx, rec, vees)), w.forgetRevisions(ctx, rec, version)
		}
		for _, a := range step.Actions {
			if err := w.do(ctx, rec, version, a); err != nil {
				return time.Time{}, err
			}
		}
	}
	return time.Time{}, ctx.Err()
}

// overcome forgets, where nothing is left to do, the troubles that would be tried again by
// now: what failed was done all the same, or is not wanted any more. next is when that will be
// true of another.
func (w *worker) overcome() (next time.Time, over bool) {
	now := w.m.cfg.Now()
	for k, t := range w.troubles {
		if t.Until.After(now) {
			next = soonest(next, t.Until)
			continue
		}
		delete(w.troubles, k)
		over = true
	}
	return next, over
}

// soonest of some times, of which the zero time is never.
func soonest(times ...time.Time) (first time.Time) {
	for _, t := range times {
		if first.IsZero() || !t.IsZero() && t.Before(first) {
			first = t
		}
	}
	return first
}

// listen to what the VEEs use. A failure holds nothing else up: it is tried again at the hour
// that listen returns.
func (w *worker) listen(ctx context.Context, rec record, vees map[vee.ID]vmi.VEE) (again time.Time) {
	if err := w.account(ctx, rec, vees); err != nil && ctx.Err() == nil {
		w.m.cfg.Log.Warn("accounting: will try again", "service", w.key, "error", err)
		again = w.m.cfg.Now().Add(backoff(w.unheard))
		w.unheard++
		return again
	}
	w.unheard = 0
	return time.Time{}
}

// prepare brings what the worker remembers in line with the record.
func (w *worker) prepare(ctx context.Context, rec record) error {
	if w.group.Swap(rec.ID) != rec.ID { // the first, or another service under the same name
		w.design, w.access, w.networks, w.generation = nil, nil, nil, 0
	}
	if w.design == nil || w.design.number != rec.Revision {
		d, err := w.m.loadDesign(ctx, rec.ID, rec.Revision)
		if rec.Deleting && fault.Has(err, fault.Malformed) {
			// Written by a version that understood more or minded less. To take the
			// service down nothing of it is needed.
			d, err = &design{number: rec.Revision, manifest: &manifest.Service{}, elastic: &rules.Set{}}, nil
		}
		if err != nil {
			return err
		}
		w.design = d
	}
	if w.generation != rec.Generation {
		w.generation = rec.Generation
		clear(w.troubles)
		w.access, w.networks = nil, nil // somebody may have changed them
	}
	if w.roomFreed.Swap(false) {
		for k, t := range w.troubles {
			if t.noRoom {
				t.Until = time.Time{}
				w.troubles[k] = t
			}
		}
	}
	if w.networks == nil {
		var err error
		if w.networks, err = w.m.networksOf(ctx, rec.ID); err != nil {
			return err
		}
	}
	if w.access == nil || rec.State.Draining() || w.unreached() {
		list, err := w.m.cfg.VMI.ListAccessPoints(ctx, rec.ID)
		if err != nil {
			return fmt.Errorf("list the access points of service %s: %w", w.key, err)
		}
		w.access = map[string]vmi.AccessPoint{}
		for _, a := range list {
			w.access[a.Name] = a
		}
	}
	return nil
}

// networksOf a service that are its own and stay.
func (m *Manager) networksOf(ctx context.Context, id string) (map[string]vmi.Network, error) {
	list, err := m.cfg.VMI.ListNetworks(ctx, id)
	if err != nil {
		return nil, fmt.Errorf("list the networks of service %s: %w", id, err)
	}
	networks := map[string]vmi.Network{}
	for _, n := range list {
		if n.GroupID == id && !n.Leaving {
			networks[n.Name] = n
		}
	}
	return networks, nil
}

// unreached reports whether there is an access point at which nobody answered when it was
// looked at last.
func (w *worker) unreached() bool {
	for _, a := range w.access {
		if a.Backends == 0 {
			return true
		}
	}
	return false
}

func (w *worker) worldOf(vees map[vee.ID]vmi.VEE) deploy.World {
	troubles := make(map[string]deploy.Trouble, len(w.troubles))
	for k, t := range w.troubles {
		troubles[k] = t.Trouble
	}
	return deploy.World{VEEs: vees, AccessPoints: w.access, Networks: w.networks, Troubles: troubles, Now: w.m.cfg.Now()}
}

// recordStep writes the state that a step has led to, where it differs.
func (w *worker) recordStep(ctx context.Context, rec record, version uint64, s deploy.State) (record, uint64, error) {
	if equal(rec.State, s) {
		return rec, version, nil
	}
	if rec.State.Phase != s.Phase {
		rec.Changed = w.m.cfg.Now()
	}
	rec.State = s
	version, err := w.m.records.Update(ctx, rec.key(), rec, version)
	return rec, version, err
}

// equal as they are stored.
func equal(a, b deploy.State) bool {
	x, errX := json.Marshal(a)
	y, errY := json.Marshal(b)
	return errX == nil && errY == nil && string(x) == string(y)
}

// forgetRevisions drops manifests that nothing can need again.
func (w *worker) forgetRevisions(ctx context.Context, rec record, version uint64) error {
	if !rec.State.Settled || rec.Oldest == rec.Revision {
		return nil
	}
	var ops []store.Op
	rec.Update = nil
	for ; rec.Oldest < rec.Revision && len(ops) < store.MaxOps-1; rec.Oldest++ {
		ops = append(ops, w.m.revisions.OpDelete(revisionKey(rec.ID, rec.Oldest), 0))
	}
	_, err := w.m.cfg.Store.Txn(ctx, append(ops, w.m.records.OpUpdate(rec.key(), rec, version))...)
	if fault.Has(err, fault.Conflict) {
		return nil // changed meanwhile: its news come
	}
	return err
}

// do one action. Failures of the VMI become troubles; an error is one of the store.
func (w *worker) do(ctx context.Context, rec record, version uint64, a deploy.Action) error {
	switch a.Kind {
	case deploy.Initialize:
		return w.initialize(ctx, rec, a)
	case deploy.Submit:
		ids := make([]vee.ID, len(a.Slots))
		for i, l := range a.Slots {
			ids[i] = l.VEE
		}
		outcomes, err := w.contextualise(ctx, rec, a.Slots)
		if err == nil && allOK(outcomes) {
			outcomes, err = w.m.cfg.VMI.SubmitVEEs(ctx, ids)
		}
		w.acted(ctx, rec, a, componentsOf(a.Slots), outcomes, err)
	case deploy.Shutdown, deploy.Destroy:
		action := map[deploy.Kind]vee.Action{deploy.Shutdown: vee.Shutdown, deploy.Destroy: vee.Destroy}[a.Kind]
		outcomes, err := w.m.cfg.VMI.UpdateState(ctx, vmi.UpdateState{Collection: vmi.Collection{IDs: a.VEEs}, Action: action})
		w.acted(ctx, rec, a, []string{deploy.Stop}, outcomes, err)
	case deploy.Sleep, deploy.Wake:
		action := map[deploy.Kind]vee.Action{deploy.Sleep: vee.Suspend, deploy.Wake: vee.Activate}[a.Kind]
		_, err := w.m.cfg.VMI.UpdateState(ctx, vmi.UpdateState{Collection: vmi.Collection{IDs: a.VEEs}, Action: action, Together: true, Queue: true})
		w.acted(ctx, rec, a, []string{deploy.Switch}, nil, err)
	case deploy.PutAccessPoint:
		p := a.Access
		p.GroupID, p.Customer = rec.ID, rec.Customer
		made, err := w.m.cfg.VMI.PutAccessPoint(ctx, p)
		if err == nil {
			w.access[made.Name] = made
		}
		w.result(rec, []string{deploy.Access}, "access point "+p.Name, err)
	case deploy.DeleteAccessPoint:
		err := w.m.cfg.VMI.DeleteAccessPoint(ctx, rec.ID, a.Access.Name)
		if fault.Has(err, fault.NotFound) {
			err = nil
		}
		if err == nil {
			delete(w.access, a.Access.Name)
		}
		w.result(rec, []string{deploy.Access}, "access point "+a.Access.Name, err)
	case deploy.PutNetwork:
		n := a.Network
		n.GroupID, n.Customer = rec.ID, rec.Customer
		made, err := w.m.cfg.VMI.PutNetwork(ctx, n)
		if err == nil {
			w.networks[made.Name] = made
		}
		w.result(rec, []string{deploy.Networks}, "network "+n.Name, err)
	case deploy.DeleteNetwork:
		err := w.m.cfg.VMI.DeleteNetwork(ctx, rec.ID, a.Network.Name)
		if fault.Has(err, fault.NotFound) {
			err = nil
		}
		if err == nil {
			delete(w.networks, a.Network.Name)
		}
		w.result(rec, []string{deploy.Networks}, "network "+a.Network.Name, err)
	case deploy.Adjust:
		return w.adjust(ctx, rec, a)
	case deploy.Undo:
		return w.undo(ctx, rec, version, a.Why)
	case deploy.Finish:
		return w.finish(ctx, rec, version)
	}
	return nil
}

// initialize makes the VEEs of a call and records the answer.
func (w *worker) initialize(ctx context.Context, rec record, a deploy.Action) error {
	var made vmi.Initialized
	call, err := w.m.call(ctx, rec, w.design, a)
	if err == nil {
		made, err = w.m.cfg.VMI.InitializeVEEs(ctx, call)
	}
	if err == nil && len(made.VEEs) != len(a.Slots) {
		err = fault.New(fault.Internal, "the VEE Manager made %d VEEs of %d", len(made.VEEs), len(a.Slots))
	}
	noRoom := fault.Has(err, fault.NoResources)
	// A refusal gives the slots up. An earlier attempt at the call may have made its VEEs
	// all the same: they are strays then, which must be known before their names are free.
	refused := err != nil && !uncertain(err) && w.look(ctx, rec) == nil
	stuck := false
	if err == nil || refused {
		ids := make([]vee.ID, len(made.VEEs))
		for i, v := range made.VEEs {
			ids[i] = v.ID
		}
		w.m.learn(made.VEEs)
		r, _, merr := w.m.records.Modify(ctx, w.key, func(r *record) error {
			switch {
			case r.ID != rec.ID:
			case refused:
				r.State = r.State.Refused(a.Call, noRoom)
			default:
				r.State = r.State.Initialized(a.Call, ids)
			}
			return nil
		})
		if merr != nil && !fault.Has(merr, fault.NotFound) {
			return merr
		}
		for _, l := range a.Slots {
			stuck = stuck || refused && r.State.Limit[l.Component] == 0
		}
	}
	w.result(rec, componentsOf(a.Slots), strings.Join(componentsOf(a.Slots), ", "), err)
	if err != nil {
		for _, c := range componentsOf(a.Slots) {
			t := w.troubles[c]
			t.Stuck = stuck
			w.troubles[c] = t
		}
	}
	return nil
}

// uncertain reports whether what failed with err may have been done all the same.
func uncertain(err error) bool {
	return fault.Has(err, fault.Unavailable) || fault.Has(err, fault.Timeout) ||
		errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded)
}

// acted takes the outcomes of a call on VEEs that are there, and looks at what it did.
func (w *worker) acted(ctx context.Context, rec record, a deploy.Action, keys []string, outcomes []vmi.Outcome, err error) {
	if lerr := w.look(ctx, rec); err == nil {
		err = lerr
	}
	vees, _ := w.m.group(rec.ID)
	for _, o := range outcomes {
		if v := vees[o.ID]; err == nil && !o.OK && !obeyed(a.Kind, v) {
			code := fault.Code(o.Code)
			if code == "" {
				code = fault.Internal
			}
			err = fault.New(code, "%s: %s", v.Descriptor.Name, o.Detail)
		}
	}
	w.result(rec, keys, string(a.Kind), err)
}

// look at the service's VEEs without waiting for the watch.
func (w *worker) look(ctx context.Context, rec record) error {
	list, err := w.m.cfg.VMI.ListVEEs(ctx, vmi.Filter{GroupID: rec.ID, Destroyed: true})
	if err != nil {
		return fmt.Errorf("list the VEEs of service %s: %w", w.key, err)
	}
	w.m.learn(list)
	return nil
}

// obeyed reports whether the VEE is on its way to what the action asks for, whatever its
// outcome was.
func obeyed(k deploy.Kind, v vmi.VEE) bool {
	switch k {
	case deploy.Submit:
		return v.Submitted
	case deploy.Shutdown:
		return v.Target != vee.Active
	}
	return v.Target == vee.Destroyed || v.State == vee.Destroyed || v.ID == ""
}

// result of an action on what keys name: a trouble, or none any more.
func (w *worker) result(rec record, keys []string, what string, err error) {
	for _, k := range keys {
		if err == nil {
			delete(w.troubles, k)
			continue
		}
		t := w.troubles[k]
		message := fmt.Sprintf("%s: %v", what, err)
		if t.Message != message {
			w.m.event(rec, deploy.Event{Warning: true, Reason: reason(err), Message: message})
		}
		t.Message, t.Until, t.noRoom = message, w.m.cfg.Now().Add(backoff(t.attempts)), fault.Has(err, fault.NoResources)
		t.attempts++
		w.troubles[k] = t
	}
}

// reason for an event, of a failure.
func reason(err error) string {
	switch {
	case fault.Has(err, fault.NoResources):
		return "NoResources"
	case uncertain(err):
		return "NoAnswer"
	}
	return "Refused"
}

func componentsOf(slots []deploy.Slot) (names []string) {
	known := map[string]bool{}
	for _, l := range slots {
		if !known[l.Component] {
			names = append(names, l.Component)
			known[l.Component] = true
		}
	}
	return names
}

// finish drops the record of a service of which the VMI says that nothing is left.
func (w *worker) finish(ctx context.Context, rec record, version uint64) error {
	left, err := w.m.cfg.VMI.ListVEEs(ctx, vmi.Filter{GroupID: rec.ID})
	if err != nil {
		return fmt.Errorf("make sure that no VEE of service %s is left: %w", w.key, err)
	}
	points, err := w.m.cfg.VMI.ListAccessPoints(ctx, rec.ID)
	if err != nil {
		return fmt.Errorf("make sure that no access point of service %s is left: %w", w.key, err)
	}
	networks, err := w.m.networksOf(ctx, rec.ID)
	if err != nil {
		return err
	}
	if len(left)+len(points)+len(networks) > 0 {
		w.m.learn(left)
		w.access, w.networks = nil, nil
		return nil
	}
	ops := []store.Op{w.m.records.OpDelete(w.key, version)}
	for n := rec.Oldest; n <= rec.Revision && len(ops) < store.MaxOps; n++ {
		ops = append(ops, w.m.revisions.OpDelete(revisionKey(rec.ID, n), 0))
	}
	if _, err := w.m.cfg.Store.Txn(ctx, ops...); err != nil && !fault.Has(err, fault.Conflict) && !fault.Has(err, fault.NotFound) {
		return err
	}
	w.m.event(rec, deploy.Event{Reason: "Deleted", Message: "deleted; nothing of it is left"})
	w.m.publish(smi.Service{
		Name: rec.Name, Customer: rec.Customer, ID: rec.ID, Version: version, Revision: rec.Revision,
		Phase: smi.Deleting, Message: "deleted", Created: rec.Created, Changed: w.m.cfg.Now(),
	})
	return nil
}

// event records one of a service.
func (m *Manager) event(rec record, e deploy.Event) {
	kind := "normal"
	if e.Warning {
		kind = "warning"
	}
	m.cfg.Events.Record(smi.Event{
		Type: kind, Reason: e.Reason, Object: "service/" + rec.Name, Customer: rec.Customer, Service: rec.Name, Message: e.Message,
	})
}
