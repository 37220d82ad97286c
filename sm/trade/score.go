package trade

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/reservoir-cloud/reservoir/account/billing"
	"github.com/reservoir-cloud/reservoir/account/money"
	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/manifest"
	"github.com/reservoir-cloud/reservoir/sm/sla"
	"github.com/reservoir-cloud/reservoir/smi"
)

// keepWindows of an objective that were not violated, or whose credit is given; the older ones
// are dropped.
const keepWindows = 100

// score of the promises of one service.
type score struct {
	Customer  string    `json:"customer"`
	Service   string    `json:"service"`
	ServiceID string    `json:"serviceID"`
	Contract  string    `json:"contract,omitempty"` // in force
	Since     time.Time `json:"since,omitzero"`     // it was ready for the first time
	Ended     bool      `json:"ended,omitempty"`
	Kept      []kept    `json:"objectives,omitempty"`
	Past      []past    `json:"past,omitempty"` // windows that are over, and late losses
}

// kept is the score of one promise.
type kept struct {
	Promise smi.Promise      `json:"promise"`
	State   sla.State        `json:"state,omitzero"`
	Up      []string         `json:"up,omitempty"`   // restart: replicas that were ready when they were last seen
	Lost    sla.RestartState `json:"lost,omitempty"` // restart
	Helped  time.Time        `json:"helped,omitzero"`
}

// past window, or late loss, under the promise and the contract of its time.
type past struct {
	Promise  smi.Promise `json:"promise"`
	Contract string      `json:"contract,omitempty"`
	Window   *sla.Window `json:"window,omitempty"`
	Loss     *sla.Loss   `json:"loss,omitempty"`
	Invoice  string      `json:"invoice,omitempty"` // that has the credit
}

// owed says that a credit may be due.
func (p past) owed() bool {
	return p.Contract != "" && p.Invoice == "" && (p.Loss != nil || p.Window.Violated())
}

// time that the price in a penalty's formula is about.
func (p past) time() (from, until time.Time) {
	if p.Loss != nil {
		return p.Loss.Lost.Add(-time.Hour), p.Loss.Lost
	}
	return p.Window.Start, p.Window.End
}

// due for it by its formula, where that much was charged in its time.
func (p past) due(price money.Amount, currency string) (money.Amount, error) {
	f, err := formula(p.Promise, currency)
	switch {
	case err != nil:
		return money.Amount{}, err
	case p.Loss != nil:
		return sla.Restart{Penalty: f}.Due(price)
	}
	return sla.Objective{Name: p.Promise.Name, Penalty: f}.Due(*p.Window, price)
}

// reason of a credit, for people.
func (p past) reason() string {
	if p.Loss != nil {
		return fmt.Sprintf("%s: %s was lost at %s and not back within %s", p.Promise.Name, p.Loss.Replica, p.Loss.Lost.UTC().Format(time.RFC3339), ms(p.Promise.WithinMS))
	}
	w := *p.Window
	for _, d := range []*time.Duration{&w.Kept, &w.Broken, &w.Unknown} {
		*d = d.Round(time.Millisecond)
	}
	return fmt.Sprintf("%s: %g %% was promised, %s", p.Promise.Name, p.Promise.Percent, w)
}

// trim what nobody will ask for again.
func (s *score) trim() {
	count := map[string]int{}
	for i := len(s.Past) - 1; i >= 0; i-- {
		if p := s.Past[i]; !p.owed() {
			if count[p.Promise.Name]++; count[p.Promise.Name] > keepWindows {
				s.Past = slices.Delete(s.Past, i, i+1)
			}
		}
	}
}

// adopt the promises and the contract that are in force from now on. The score of a promise
// that stays as it is goes on; that of another one ends with the window as far as it is. What
// no score can be kept of, such as a window of seconds, is passed over; no offer has it.
func (s *score) adopt(list []smi.Promise, contract string) {
	was := s.Kept
	s.Kept = nil
	for _, p := range list {
		if p.Kind != restart && objective(p, 0).Check() != nil {
			continue
		}
		k := kept{Promise: p}
		if i := slices.IndexFunc(was, func(k kept) bool { return same(k.Promise, p) }); i >= 0 && s.Contract == contract {
			k = was[i]
			was = slices.Delete(was, i, i+1)
		}
		s.Kept = append(s.Kept, k)
	}
	for _, k := range was {
		s.conclude(k)
	}
	s.Contract = contract
}

func same(a, b smi.Promise) bool {
	end := func(x, y *float64) bool { return x == y || x != nil && y != nil && *x == *y }
	if !end(a.Min, b.Min) || !end(a.Max, b.Max) {
		return false
	}
	a.Min, a.Max, b.Min, b.Max = nil, nil, nil, nil
	return a == b
}

// away says that nobody has looked for a while: what was seen last, by another process, says
// nothing of the time since.
func (s *score) away() {
	for i := range s.Kept {
		s.Kept[i].State.Last = sla.Unknown
	}
}

// conclude a promise: its window ends here.
func (s *score) conclude(k kept) {
	if k.Promise.Kind == restart || k.State.Start.IsZero() {
		return
	}
	if w := k.State.Window(objective(k.Promise, 0)); w.Kept+w.Broken > 0 {
		s.Past = append(s.Past, past{Promise: k.Promise, Contract: s.Contract, Window: &w})
	}
}

// end the score with its service.
func (s *score) end() {
	for _, k := range s.Kept {
		s.conclude(k)
	}
	s.Kept, s.Ended = nil, true
}

// sight is what was seen of a service at a moment.
type sight struct {
	at     time.Time
	status func(smi.Promise) sla.Status
	ready  map[string]bool // replicas that are wanted, by COMPONENT-NUMBER
	of     map[string]string
}

// step takes what was seen and goes on to its moment. It reports whether that changed more
// than the time.
func (s *score) step(x sight, gap time.Duration) (changed bool) {
	for i := range s.Kept {
		k := &s.Kept[i]
		if k.Promise.Kind == restart {
			changed = k.stepRestart(x, s) || changed
			continue
		}
		o := objective(k.Promise, gap)
		if k.State.Start.IsZero() {
			k.State, changed = sla.Begin(x.at), true
		}
		before := k.State.Last
		var over []sla.Window
		k.State, over = sla.Step(o, k.State, []sla.Observation{{At: x.at, Status: x.status(k.Promise)}}, x.at)
		for _, w := range over {
			s.Past = append(s.Past, past{Promise: k.Promise, Contract: s.Contract, Window: &w})
		}
		changed = changed || len(over) > 0 || k.State.Last != before
	}
	s.trim()
	return changed
}

// stepRestart looks for replicas that were lost, are back, or are not wanted any more.
func (k *kept) stepRestart(x sight, s *score) (changed bool) {
	var changes []sla.Change
	up := map[string]bool{}
	for _, name := range k.Up {
		up[name] = true
	}
	for _, name := range slices.Sorted(maps.Keys(x.ready)) {
		if k.Promise.Component != "" && x.of[name] != k.Promise.Component {
			continue
		}
		switch _, lost := k.Lost[name]; {
		case x.ready[name]:
			up[name] = true
			if lost {
				changes = append(changes, sla.Change{Replica: name, At: x.at})
			}
		case up[name]:
			delete(up, name)
			changes = append(changes, sla.Change{Replica: name, At: x.at, Lost: true})
		}
	}
	for name := range k.Lost {
		if _, wanted := x.ready[name]; !wanted {
			changes = append(changes, sla.Change{Replica: name, At: x.at})
		}
	}
	maps.DeleteFunc(up, func(name string, _ bool) bool { _, wanted := x.ready[name]; return !wanted })
	var late []sla.Loss
	k.Lost, late = sla.Restart{Within: ms(k.Promise.WithinMS)}.Step(k.Lost, changes, x.at)
	for _, l := range late {
		s.Past = append(s.Past, past{Promise: k.Promise, Contract: s.Contract, Loss: &l})
	}
	now := slices.Sorted(maps.Keys(up))
	changed = len(changes)+len(late) > 0 || !slices.Equal(now, k.Up)
	k.Up = now
	return changed
}

// look at a service as its Service Manager shows it.
func look(s smi.Service, at time.Time, kpi func(name string) float64) sight {
	x := sight{at: at, ready: map[string]bool{}, of: map[string]string{}}
	for _, c := range s.Components {
		for _, r := range c.Replicas {
			name := fmt.Sprintf("%s-%d", c.Name, r.Number)
			x.ready[name], x.of[name] = r.Ready, c.Name
		}
	}
	x.status = func(p smi.Promise) sla.Status {
		if p.Kind == onKPI {
			return objective(p, 0).Judge(kpi(p.KPI))
		}
		return available(s, p.Component)
	}
	return x
}

// available is a component of which there are as many ready replicas as there must be at
// least, and a service all of whose components are.
func available(s smi.Service, component string) sla.Status {
	for _, c := range s.Components {
		if component != "" && c.Name != component {
			continue
		}
		if c.Ready < min(max(c.Min, 1), c.Desired) {
			return sla.Broken
		}
	}
	return sla.Kept
}

// declared KPI of a manifest.
func declared(m *manifest.Service, name string) manifest.KPI {
	for _, k := range m.KPIs {
		if k.Name == name {
			return k
		}
	}
	return manifest.KPI{Name: name}
}

// creditsUntil are those that are due until a moment and on no invoice yet.
func (d *Desk) creditsUntil(ctx context.Context, customer string, until time.Time) (list []billing.Credit, err error) {
	scores, err := d.scores.Values(ctx, customer+"/")
	if err != nil {
		return nil, err
	}
	b, err := d.bill(ctx, customer)
	if err != nil {
		return nil, err
	}
	for _, s := range scores {
		for _, p := range s.Past {
			if c, ok, err := b.credit(s, p, until); err != nil {
				return nil, err
			} else if ok && p.owed() {
				list = append(list, c)
			}
		}
	}
	return list, nil
}

// cutCredits marks what is due under an invoice's number, and returns what is on it.
func (d *Desk) cutCredits(ctx context.Context, customer string, o opening) (list []billing.Credit, err error) {
	d.scoring.Lock()
	defer d.scoring.Unlock()
	scores, err := d.scores.List(ctx, customer+"/")
	if err != nil {
		return nil, err
	}
	b, err := d.bill(ctx, customer)
	if err != nil {
		return nil, err
	}
	for _, row := range scores {
		w := d.open[row.Key]
		if w != nil && w.read {
			if err := d.save(ctx, row.Key, w, b.now); err != nil {
				return nil, err
			}
		}
		s, version, err := d.scores.Modify(ctx, row.Key, func(s *score) error {
			for i := range s.Past {
				p := &s.Past[i]
				if _, ok, err := b.credit(*s, *p, o.Until); err != nil {
					return err
				} else if ok && p.owed() {
					p.Invoice = o.Number
				}
			}
			return nil
		})
		if err != nil {
			if w != nil {
				w.read = false // it may have been written
			}
			return nil, err
		}
		if w != nil && w.read {
			w.score, w.version = s, version
		}
		for _, p := range s.Past {
			if p.Invoice == o.Number {
				c, _, err := b.credit(s, p, o.Until)
				if err != nil {
					return nil, err
				}
				list = append(list, c)
			}
		}
	}
	return list, nil
}

// bill is what is needed to say what a penalty amounts to.
type bill struct {
	tariff   billing.Tariff
	lists    func(service string) []billing.PriceList
	accounts []Account
	now      time.Time
}

func (d *Desk) bill(ctx context.Context, customer string) (b bill, err error) {
	if b.tariff, err = d.tariff(ctx); err != nil {
		return b, err
	}
	if b.lists, err = d.listsBy(ctx); err != nil {
		return b, err
	}
	b.now = d.cfg.Now()
	b.accounts, err = d.accounts.Values(ctx, customer+"/")
	return b, err
}

// patience with accounts that are not complete: after it, a penalty is computed from what is
// known.
const patience = 24 * time.Hour

// credit for what is over until a moment, once it is known what its time cost.
func (b bill) credit(s score, p past, until time.Time) (billing.Credit, bool, error) {
	c := billing.Credit{Service: s.Service, Reason: p.reason()}
	if p.Contract == "" || p.Window != nil && !p.Window.Violated() {
		return c, false, nil
	}
	from, end := p.time()
	if end.After(until) {
		return c, false, nil
	}
	price, complete, err := charged(b.tariff, b.accounts, b.lists(s.ServiceID), s.ServiceID, from, end)
	if err != nil {
		return c, false, err
	}
	if c.Due, err = p.due(price, b.tariff.Currency); err != nil {
		return c, false, fault.New(fault.WrongState, "%w", err)
	}
	return c, complete || b.now.Sub(end) > patience, nil
}
