package trade

import (
	"cmp"
	"context"
	"math"
	"slices"
	"time"

	"github.com/reservoir-cloud/reservoir/account/money"
	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/manifest"
	"github.com/reservoir-cloud/reservoir/sm/sla"
	"github.com/reservoir-cloud/reservoir/smi"
	"github.com/reservoir-cloud/reservoir/vee"
)

// watched is a service whose promises are watched, and its score as it is kept.
type watched struct {
	score    score  // never older than what is stored, as far as this process knows
	version  uint64 // of the score in the store; 0: none, or not known
	read     bool   // the score was looked for in the store
	saved    time.Time
	revision int // of the manifest that is read
	manifest *manifest.Service
	last     smi.Service
}

// gap is how long one observation stands for what follows.
func (d *Desk) gap() time.Duration { return 3 * d.cfg.Every }

// Old offers are forgotten every tidyEvery, budgets and what invoices are due are looked at with
// every so many looks at promises: that reads all accounts of the customers concerned.
const (
	tidyEvery   = time.Hour
	budgetLooks = 12
)

// watch services until ctx ends: at each change, and every so often.
func (d *Desk) watch(ctx context.Context) {
	tick := time.NewTicker(d.cfg.Every)
	defer tick.Stop()
	var tidied time.Time
	looks := 0
	services := map[string]smi.Service{} // by ID
	var changes <-chan smi.Service
	for ctx.Err() == nil {
		if changes == nil {
			var err error
			if changes, err = d.cfg.Services.Watch(ctx, "", ""); err != nil {
				d.cfg.Log.Warn("watch services for their promises", "err", err)
			}
		}
		select {
		case <-ctx.Done():
			return
		case s, ok := <-changes:
			if !ok {
				changes = nil
				pause(ctx, d.cfg.Every)
				continue
			}
			if s.Phase == smi.Deleting && len(s.Components) == 0 {
				delete(services, s.ID)
				d.ended(ctx, s)
				continue
			}
			services[s.ID] = s
			d.observe(ctx, s)
		case <-tick.C:
			for _, s := range services {
				d.observe(ctx, s)
			}
			if looks++; looks%budgetLooks == 0 {
				d.watchBudgets(ctx)
				d.issueDue(ctx)
			}
			if now := d.cfg.Now(); now.Sub(tidied) > tidyEvery || now.Before(tidied) {
				tidied = now
				d.forgetOffers(ctx)
			}
		}
	}
}

func pause(ctx context.Context, t time.Duration) {
	timer := time.NewTimer(t)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}

// observe a service now. What fails is tried again with the next look.
func (d *Desk) observe(ctx context.Context, s smi.Service) {
	d.scoring.Lock()
	defer d.scoring.Unlock()
	if err := d.step(ctx, s); err != nil && ctx.Err() == nil {
		d.cfg.Log.Warn("keep the score of a service's promises: will try again", "service", s.Customer+"/"+s.Name, "err", err)
	}
}

func (d *Desk) step(ctx context.Context, s smi.Service) error {
	key := s.Customer + "/" + s.ID
	w := d.open[key]
	if w == nil {
		w = &watched{}
		d.open[key] = w
	}
	if err := d.ready(ctx, key, w, s); err != nil {
		return err
	}
	w.last = s
	if len(w.score.Kept) == 0 && len(w.score.Past) == 0 || s.Phase == smi.Deleting {
		return nil
	}
	if s.Asleep {
		return nil // nobody promises anything of what its provider has put to sleep: it counts as not watched
	}
	now := d.cfg.Now().UTC()
	if w.score.Since.IsZero() {
		if s.Phase != smi.Ready {
			return nil // promises begin when it is ready for the first time
		}
		w.score.Since = now
	}
	x := look(s, now, func(name string) float64 { return d.cfg.Services.KPI(ctx, s, declared(w.manifest, name)) })
	changed := w.score.step(x, d.gap())
	for _, help := range w.score.protect(s, now) {
		changed = true
		d.helping.Go(func() { d.help(ctx, s, help) })
	}
	if !changed && now.Sub(w.saved).Abs() < d.gap()/2 {
		return nil
	}
	return d.save(ctx, key, w, now)
}

// ready reads the score and the promises of a service, where they are not those that are
// watched.
func (d *Desk) ready(ctx context.Context, key string, w *watched, s smi.Service) error {
	if !w.read {
		stored, version, err := d.scores.Get(ctx, key)
		switch {
		case err == nil:
			w.score, w.version = stored, version
			w.score.away()
		case !fault.Has(err, fault.NotFound):
			return err
		default:
			w.score = score{Customer: s.Customer, Service: s.Name, ServiceID: s.ID}
		}
		w.read = true
	}
	if w.revision == s.Revision && w.manifest != nil {
		return nil
	}
	text, err := d.cfg.Services.Manifest(ctx, s.Customer, s.Name)
	if err != nil {
		return err
	}
	m, err := manifest.Parse("manifest", []byte(text))
	if err != nil {
		return err
	}
	c, _, err := d.contract(ctx, s.ID)
	if err != nil {
		return err
	}
	id := ""
	if c != nil {
		id = c.ID
	}
	w.score.adopt(promises(m), id)
	w.revision, w.manifest = s.Revision, m
	return nil
}

// save the score. After a failure it is not known whether that was written; nobody else writes
// it while this process has it open.
func (d *Desk) save(ctx context.Context, key string, w *watched, now time.Time) error {
	version, err := d.scores.Put(ctx, key, w.score)
	if err != nil {
		w.saved = time.Time{}
		return err
	}
	w.version, w.saved = version, now
	return nil
}

// ended says that a service is gone: its score ends.
func (d *Desk) ended(ctx context.Context, s smi.Service) {
	d.scoring.Lock()
	defer d.scoring.Unlock()
	key := s.Customer + "/" + s.ID
	if w := d.open[key]; w != nil && w.read && w.version > 0 {
		if err := d.save(ctx, key, w, d.cfg.Now()); err != nil && ctx.Err() == nil {
			d.cfg.Log.Warn("write the score of a service that is gone", "service", key, "err", err)
		}
	}
	delete(d.open, key)
	_, _, err := d.scores.Modify(ctx, key, func(s *score) error { s.end(); return nil })
	if err != nil && !fault.Has(err, fault.NotFound) && ctx.Err() == nil {
		d.cfg.Log.Warn("end the score of a service that is gone", "service", key, "err", err)
	}
}

// endGone scores of services that are no more.
func (d *Desk) endGone(ctx context.Context) error {
	scores, err := d.scores.Values(ctx, "")
	if err != nil || len(scores) == 0 {
		return err
	}
	services, err := d.cfg.Services.List(ctx, "")
	if err != nil {
		return err
	}
	there := map[string]bool{}
	for _, s := range services {
		there[s.ID] = true
	}
	for _, s := range scores {
		if !there[s.ServiceID] && !s.Ended {
			d.ended(ctx, smi.Service{Customer: s.Customer, Name: s.Service, ID: s.ServiceID})
		}
	}
	return nil
}

// help that a promise needs before it is broken.
type help struct {
	promise smi.Promise
	what    string // protection
	lost    []lostReplica
}

type lostReplica struct {
	name string
	vee  vee.ID
}

// protect says which promises need help now: those of which half the budget is gone while
// they are broken, and replicas of which half the time to be back is over. Each is helped
// once, and again when as much time has gone by as it took to get there, but a minute at least.
func (s *score) protect(svc smi.Service, now time.Time) (list []help) {
	for i := range s.Kept {
		k := &s.Kept[i]
		p := k.Promise
		if p.Protection == "" {
			continue
		}
		rest := time.Minute
		var endangered bool
		if p.Kind == restart {
			for _, l := range k.Lost {
				endangered = endangered || now.Sub(l.Lost) > ms(p.WithinMS)/2
			}
			rest = max(rest, ms(p.WithinMS))
		} else {
			o := objective(p, 0)
			w := k.State.Window(o)
			endangered = k.State.Last == sla.Broken && w.Left() <= o.Budget()/2
			rest = max(rest, o.Budget()/2)
		}
		if !endangered || now.Sub(k.Helped) < rest && !now.Before(k.Helped) {
			continue
		}
		k.Helped = now
		list = append(list, help{promise: p, what: p.Protection, lost: lost(svc, p.Component)})
	}
	return list
}

// lost replicas of a component, or of all.
func lost(s smi.Service, component string) (list []lostReplica) {
	for _, c := range s.Components {
		for _, r := range c.Replicas {
			if !r.Ready && r.VEE != "" && (component == "" || c.Name == component) {
				list = append(list, lostReplica{name: c.Name, vee: r.VEE})
			}
		}
	}
	return list
}

// helpWithin bounds what is done to protect a promise: a guest may take its time to shut down.
const helpWithin = 3 * time.Minute

// help a promise; what fails is told, and tried again later. It may take a while, in which
// the service is watched as before.
func (d *Desk) help(ctx context.Context, s smi.Service, h help) {
	ctx, cancel := context.WithTimeout(ctx, helpWithin)
	defer cancel()
	var err error
	done := ""
	switch h.what {
	case "scaleUp", "spare":
		for _, c := range s.Components {
			if short := h.promise.Component == c.Name || h.promise.Component == "" && (h.promise.Kind == onKPI && c.Max > c.Min || c.Ready < max(c.Min, 1)); short && c.Desired < c.Max {
				if _, err = d.cfg.Services.Scale(ctx, s.Customer, s.Name, c.Name, c.Desired+1); err == nil {
					done = "one more " + c.Name
				}
			}
		}
		if done == "" && err == nil {
			err = fault.New(fault.WrongState, "there are as many replicas as the manifest allows")
		}
	case "restart", "migrate":
		act := d.cfg.Services.Restart
		if h.what == "migrate" {
			act = d.cfg.Services.Move
		}
		for _, l := range h.lost {
			if err = act(ctx, l.vee); err != nil {
				break
			}
			done = h.what + " of " + l.name + " " + string(l.vee)
		}
		if done == "" && err == nil {
			err = fault.New(fault.WrongState, "no replica is lost")
		}
	}
	if err != nil {
		d.say("warning", "Unprotected", s.Customer, s.Name, "%s is in danger, and %s did not help: %v", h.promise.Name, h.what, err)
		return
	}
	d.say("normal", "Protected", s.Customer, s.Name, "%s is in danger: %s", h.promise.Name, done)
}

// SLA implements smi.Trade.
func (d *Desk) SLA(ctx context.Context, whose, name string) ([]smi.SLA, error) {
	of, err := prefix(ctx, whose)
	if err != nil {
		return nil, err
	}
	scores, err := d.scoresNow(ctx, of)
	if err != nil {
		return nil, err
	}
	bills := map[string]bill{}
	var list []smi.SLA
	for _, s := range scores {
		if name != "" && s.Service != name {
			continue
		}
		b, known := bills[s.Customer]
		if !known {
			if b, err = d.bill(ctx, s.Customer); err != nil && !fault.Has(err, fault.WrongState) {
				return nil, err
			}
			bills[s.Customer] = b
		}
		list = append(list, s.shown(b, d.cfg.Now()))
	}
	if name != "" && len(list) == 0 {
		return nil, fault.New(fault.NotFound, "service %s has promised nothing", name).
			Try("see what services there are: reservoir service list; what a manifest may promise: docs/sla.md")
	}
	slices.SortFunc(list, func(a, b smi.SLA) int {
		return cmp.Or(cmp.Compare(a.Customer, b.Customer), cmp.Compare(a.Service, b.Service), a.Since.Compare(b.Since), cmp.Compare(a.ServiceID, b.ServiceID))
	})
	return list, nil
}

// scoresNow are the scores as they are kept, and as far as they have come.
func (d *Desk) scoresNow(ctx context.Context, prefix string) ([]score, error) {
	rows, err := d.scores.List(ctx, prefix)
	if err != nil {
		return nil, err
	}
	d.scoring.Lock()
	defer d.scoring.Unlock()
	list := make([]score, len(rows))
	for i, r := range rows {
		list[i] = r.Value
		if w := d.open[r.Key]; w != nil && w.read {
			list[i] = w.score
			list[i].Kept, list[i].Past = slices.Clone(w.score.Kept), slices.Clone(w.score.Past)
		}
	}
	return list, nil
}

// shown is the score as people see it.
func (s score) shown(b bill, now time.Time) smi.SLA {
	out := smi.SLA{Customer: s.Customer, Service: s.Service, ServiceID: s.ServiceID, Contract: s.Contract, Since: s.Since, Ended: s.Ended,
		Currency: b.tariff.Currency, Objectives: []smi.Objective{}}
	at := map[string]int{}
	for _, k := range s.Kept {
		o := smi.Objective{Promise: k.Promise, Now: word(k.State.Last), LastHelp: k.Helped}
		if k.Promise.Kind == restart {
			o.Now = word(sla.Kept)
			for _, l := range k.Lost {
				if l.Told {
					o.Now = word(sla.Broken)
				}
			}
		} else if !k.State.Start.IsZero() {
			w := windowOf(k.State.Window(objective(k.Promise, 0)))
			o.Window = &w
		}
		at[k.Promise.Name] = len(out.Objectives)
		out.Objectives = append(out.Objectives, o)
	}
	for _, p := range s.Past {
		i, known := at[p.Promise.Name]
		if !known {
			i = len(out.Objectives)
			at[p.Promise.Name] = i
			out.Objectives = append(out.Objectives, smi.Objective{Promise: p.Promise, Now: word(sla.Unknown)})
		}
		o := &out.Objectives[i]
		var due money.Amount
		if c, _, err := b.credit(s, p, now); err == nil {
			due = c.Due
		}
		if p.Loss != nil {
			o.Late = append(o.Late, smi.Late{Replica: p.Loss.Replica, Lost: p.Loss.Lost, Due: due, Invoice: p.Invoice})
		} else {
			w := windowOf(*p.Window)
			w.Due, w.Invoice = due, p.Invoice
			o.Past = append(o.Past, w)
		}
		o.Due = o.Due.Plus(due)
		out.Due = out.Due.Plus(due)
	}
	return out
}

func word(s sla.Status) string {
	switch s {
	case sla.Kept:
		return "kept"
	case sla.Broken:
		return "broken"
	}
	return "unknown"
}

func windowOf(w sla.Window) smi.Window {
	return smi.Window{Start: w.Start, End: w.End, KeptMS: w.Kept.Milliseconds(), BrokenMS: w.Broken.Milliseconds(), UnknownMS: w.Unknown.Milliseconds(),
		BudgetMS: w.Budget.Milliseconds(), Kept: math.Round(w.Compliance()*1e6) / 1e6, Violated: w.Violated()}
}
