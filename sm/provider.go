package sm

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/internal/identity"
	"github.com/reservoir-cloud/reservoir/internal/store"
	"github.com/reservoir-cloud/reservoir/smi"
	"github.com/reservoir-cloud/reservoir/vee"
	"github.com/reservoir-cloud/reservoir/vmi"
)

// HouseCustomer owns the services of callers that belong to no customer, such as the
// site's operator, where they name none.
const HouseCustomer = "house"

// asSite gives the SM's own calls to the VMI the site's identity: what the caller may do
// has been checked here.
func (m *Manager) asSite(ctx context.Context) context.Context {
	return identity.With(ctx, m.Identity())
}

// owner is the customer that is meant, the caller's own where none is named.
func owner(ctx context.Context, customer string) string {
	switch c := identity.From(ctx); {
	case customer != "":
		return customer
	case c.Customer != "":
		return c.Customer
	}
	return HouseCustomer
}

// mayChange refuses callers that only look on.
func mayChange(ctx context.Context) error {
	if c := identity.From(ctx); !c.Is(identity.Operator, identity.Provider, identity.SiteRole) {
		return fault.New(fault.Denied, "role %q may not change services", c.Role)
	}
	return nil
}

// find reads a service's record. What the caller may not see does not exist for it.
func (m *Manager) find(ctx context.Context, customer, name string) (record, uint64, error) {
	customer = owner(ctx, customer)
	missing := fault.New(fault.NotFound, "service %s of customer %s does not exist", name, customer).Try("see what there is: reservoir service list")
	if !identity.From(ctx).Sees(customer) || !vee.ValidName(name) || !vee.ValidName(customer) {
		return record{}, 0, missing
	}
	r, version, err := m.records.Get(ctx, recordKey(customer, name))
	if fault.Has(err, fault.NotFound) {
		return record{}, 0, missing
	}
	return r, version, err
}

// Deploy records what is wanted; the service's worker does it. All that can be refused is
// refused before anything is recorded.
func (m *Manager) Deploy(ctx context.Context, d smi.Deploy) (smi.Service, error) {
	if err := mayChange(ctx); err != nil {
		return smi.Service{}, err
	}
	for {
		p, err := m.propose(ctx, d)
		if err != nil {
			return smi.Service{}, err
		}
		if p.exists && p.old.DeployKey == d.IdempotencyKey && d.IdempotencyKey != "" {
			return m.showNow(ctx, p.old, p.version)
		}
		if err := p.permitted(d); err != nil {
			return smi.Service{}, err
		}
		if err := m.affordable(ctx, p); err != nil {
			return smi.Service{}, err
		}
		terms, err := m.admit(ctx, p, d)
		if err != nil {
			return smi.Service{}, err
		}
		version, err := m.commit(ctx, p, terms)
		if fault.Has(err, fault.Conflict) || fault.Has(err, fault.Exists) || fault.Has(err, fault.NotFound) {
			continue // somebody else was faster: decide anew
		}
		if err != nil {
			return smi.Service{}, err
		}
		m.announce(p)
		return m.showNow(ctx, p.rec, version)
	}
}

// permitted refuses a deployment over a service that is there.
func (p *proposal) permitted(d smi.Deploy) error {
	switch {
	case p.exists && !p.old.Deleting && p.old.Ceded != nil:
		return p.old.mayGoOn()
	case p.exists && p.old.Deleting:
		return fault.New(fault.Exists, "service %s of customer %s is still being deleted", p.rec.Name, p.rec.Customer).
			Try("wait until it is gone: reservoir service show %s --watch", p.rec.Name)
	case p.exists && !d.Replace:
		return fault.New(fault.Exists, "service %s of customer %s exists already", p.rec.Name, p.rec.Customer).
			Try("redeploy it: reservoir service deploy FILE --replace, or choose another name: --name NAME")
	}
	return nil
}

// affordable refuses a deployment for which there is no room, unless it may wait for room.
func (m *Manager) affordable(ctx context.Context, p *proposal) error {
	if p.rec.BestEffort {
		return nil
	}
	fit, err := m.fit(ctx, p)
	if err != nil {
		return err
	}
	if len(fit.missing) > 0 {
		return noRoom(p.rec.Name, fit.missing)
	}
	return nil
}

func noRoom(service string, missing []vmi.Placement) error {
	var why []string
	for _, p := range missing {
		why = append(why, p.Name+": "+p.Why)
	}
	return fault.New(fault.NoResources, "service %s: there is no room for %d of its VEEs: %s", service, len(missing), strings.Join(why, "; ")).
		Try("see what is free: reservoir host list -o wide; or let it wait for room: reservoir service deploy --best-effort")
}

// commit writes the manifest and the record together, and the terms that it is deployed under.
func (m *Manager) commit(ctx context.Context, p *proposal, terms []store.Op) (uint64, error) {
	terms = append(terms, m.revisions.OpCreate(revisionKey(p.rec.ID, p.rec.Revision), p.design.revision))
	if p.exists {
		return m.cfg.Store.Txn(ctx, append(terms, m.records.OpUpdate(p.rec.key(), p.rec, p.version))...)
	}
	return m.cfg.Store.Txn(ctx, append(terms, m.records.OpCreate(p.rec.key(), p.rec))...)
}

func (m *Manager) announce(p *proposal) {
	reason, message := "Deployed", "deployed"
	if p.exists {
		reason, message = "Redeployed", "redeployed"
	}
	var sizes []string
	for _, c := range p.design.manifest.Components {
		sizes = append(sizes, fmt.Sprintf("%d %s", p.rec.Desired[c.Name], c.Name))
	}
	m.said(p.rec, reason, "%s, revision %d: %s", message, p.rec.Revision, strings.Join(sizes, ", "))
}

// said records an event of what a provider has done.
func (m *Manager) said(rec record, reason, format string, args ...any) {
	m.cfg.Events.Record(smi.Event{
		Type: "normal", Reason: reason, Object: "service/" + rec.Name, Customer: rec.Customer, Service: rec.Name, Message: fmt.Sprintf(format, args...),
	})
}

// Scale sets how many replicas of a component there should be.
func (m *Manager) Scale(ctx context.Context, customer, name, component string, replicas int) (smi.Service, error) {
	if err := mayChange(ctx); err != nil {
		return smi.Service{}, err
	}
	rec, _, err := m.find(ctx, customer, name)
	if err != nil {
		return smi.Service{}, err
	}
	d, err := m.loadDesign(ctx, rec.ID, rec.Revision)
	if err != nil {
		return smi.Service{}, err
	}
	if err := d.scalable(name, component, replicas); err != nil {
		return smi.Service{}, err
	}
	if more := replicas - rec.Desired[component]; more > 0 && !rec.BestEffort && !rec.Deleting {
		if err := m.roomFor(ctx, rec, d, component, more); err != nil {
			return smi.Service{}, err
		}
	}
	if err := m.affordScale(ctx, rec, d, component, replicas-rec.Desired[component]); err != nil {
		return smi.Service{}, err
	}
	was, id := 0, rec.ID
	rec, version, err := m.records.Modify(ctx, rec.key(), func(r *record) error {
		switch {
		case r.Ceded != nil:
			return r.mayGoOn()
		case r.Deleting || r.ID != id:
			return fault.New(fault.WrongState, "service %s is being deleted", name).Try("deploy it again when it is gone: reservoir service list")
		case r.Revision != d.number:
			return fault.New(fault.Conflict, "service %s was redeployed at the same time", name)
		}
		if was = r.Desired[component]; was != replicas {
			r.Desired[component] = replicas
			r.resized(component, scaled{At: m.cfg.Now(), Kind: "scale", To: replicas, Why: fmt.Sprintf("from %d to %d: by hand", was, replicas)})
			r.newGoal(m.cfg.Now())
		}
		return nil
	})
	if err != nil {
		return smi.Service{}, err
	}
	if was != replicas {
		m.said(rec, "Scaled", "%s from %d to %d replicas", component, was, replicas)
	}
	return m.showNow(ctx, rec, version)
}

// scalable refuses sizes that the manifest does not allow.
func (d *design) scalable(service, component string, replicas int) error {
	c := d.manifest.Component(component)
	if c == nil {
		var names []string
		for _, c := range d.manifest.Components {
			names = append(names, c.Name)
		}
		return fault.New(fault.NotFound, "service %s has no component %s: it has %s", service, component, strings.Join(names, ", "))
	}
	if replicas < c.Replicas.Min || replicas > c.Replicas.Max {
		return fault.New(fault.Malformed, "service %s: %d replicas of %s: its manifest allows %d to %d", service, replicas, component, c.Replicas.Min, c.Replicas.Max).
			Try("choose a number within these bounds, or redeploy with others: reservoir service deploy FILE --replace")
	}
	return nil
}

// Get shows a service.
func (m *Manager) Get(ctx context.Context, customer, name string) (smi.Service, error) {
	rec, version, err := m.find(ctx, customer, name)
	if err != nil {
		return smi.Service{}, err
	}
	s, err := m.showNow(ctx, rec, version)
	if err == nil && m.cfg.Standings != nil {
		s.Standbys = m.cfg.Standings(m.asSite(ctx), rec.ID)
	}
	return m.measured(s), err
}

// showNow is a service as its worker sees it or, where that has not come to this version of
// the record yet, as the record and the VMI say it is.
func (m *Manager) showNow(ctx context.Context, rec record, version uint64) (smi.Service, error) {
	if s, ok := m.views.of(rec.key(), version); ok {
		return s, nil
	}
	d, err := m.loadDesign(ctx, rec.ID, rec.Revision)
	if err != nil {
		return smi.Service{}, err
	}
	access := map[string]vmi.AccessPoint{}
	list, err := m.cfg.VMI.ListAccessPoints(m.asSite(ctx), rec.ID)
	if err != nil { // what is recorded can be shown all the same
		m.cfg.Log.Warn("service shown without its addresses", "service", rec.key(), "error", err)
	}
	for _, a := range list {
		access[a.Name] = a
	}
	vees, _ := m.group(rec.ID)
	return m.show(rec, version, d, vees, access, nil), nil
}

// List shows the services of a customer; where none is named, those of all that the caller
// may see.
func (m *Manager) List(ctx context.Context, customer string) ([]smi.Service, error) {
	prefix, err := scope(ctx, customer)
	if err != nil {
		return nil, err
	}
	if prefix != "" {
		prefix += "/"
	}
	objects, err := m.records.List(ctx, prefix)
	if err != nil {
		return nil, err
	}
	list := []smi.Service{}
	for _, o := range objects {
		s, err := m.showNow(ctx, o.Value, o.Version)
		if fault.Has(err, fault.NotFound) {
			continue // deleted meanwhile
		}
		if err != nil {
			return nil, err
		}
		list = append(list, s)
	}
	return list, nil
}

// scope is the only customer that a list or watch is about, "" for all. A provider asks
// about itself, whether it says so or not.
func scope(ctx context.Context, customer string) (string, error) {
	c := identity.From(ctx)
	switch {
	case c.Role == identity.Provider && customer == "":
		customer = c.Customer
	case customer == "" && !c.Sees(customer), customer != "" && !c.Sees(customer):
		return "", fault.New(fault.Denied, "role %q may not see the services of customer %q", c.Role, customer)
	}
	if customer == "" && c.Role != identity.Provider {
		return "", nil
	}
	if !vee.ValidName(customer) {
		return "", fault.New(fault.Malformed, "customer %q: want a DNS label of at most 32 characters such as \"acme\"", customer)
	}
	return customer, nil
}

// Manifest is the text that was handed in.
func (m *Manager) Manifest(ctx context.Context, customer, name string) (string, error) {
	rec, _, err := m.find(ctx, customer, name)
	if err != nil {
		return "", err
	}
	rev, _, err := m.revisions.Get(ctx, revisionKey(rec.ID, rec.Revision))
	return rev.Text, err
}

// Delete records that the service should go. To delete one that is going already is right.
func (m *Manager) Delete(ctx context.Context, customer, name string) error {
	if err := mayChange(ctx); err != nil {
		return err
	}
	rec, _, err := m.find(ctx, customer, name)
	if err != nil {
		return err
	}
	id, was := rec.ID, false
	rec, _, err = m.records.Modify(ctx, rec.key(), func(r *record) error {
		if was = r.Deleting || r.ID != id; !was {
			r.Deleting = true
			r.newGoal(m.cfg.Now())
		}
		return nil
	})
	if err == nil && !was {
		m.said(rec, "Deleting", "to be deleted with all its VEEs")
	}
	return err
}

// Sleep records that all VEEs of the service should sleep, together; the VEE Manager makes it
// so, or leaves them as they are.
func (m *Manager) Sleep(ctx context.Context, customer, name string) (smi.Service, error) {
	return m.setAsleep(ctx, customer, name, true)
}

// Wake is the way back from Sleep. Where there is no room, the service waits for it.
func (m *Manager) Wake(ctx context.Context, customer, name string) (smi.Service, error) {
	return m.setAsleep(ctx, customer, name, false)
}

func (m *Manager) setAsleep(ctx context.Context, customer, name string, asleep bool) (smi.Service, error) {
	if err := mayChange(ctx); err != nil {
		return smi.Service{}, err
	}
	rec, _, err := m.find(ctx, customer, name)
	if err != nil {
		return smi.Service{}, err
	}
	id, was := rec.ID, asleep
	rec, version, err := m.records.Modify(ctx, rec.key(), func(r *record) error {
		if r.Deleting || r.ID != id {
			return fault.New(fault.WrongState, "service %s is being deleted", name).Try("deploy it again when it is gone: reservoir service list")
		}
		if r.Ceded != nil {
			return r.mayGoOn()
		}
		if was = r.Asleep; was != asleep {
			r.Asleep, r.State.Asked = asleep, time.Time{}
			r.newGoal(m.cfg.Now())
		}
		return nil
	})
	if err != nil {
		return smi.Service{}, err
	}
	switch {
	case was == asleep:
	case asleep:
		m.said(rec, "ToSleep", "its VEEs are put to sleep together")
	default:
		m.said(rec, "ToWake", "its VEEs are woken together")
	}
	return m.showNow(ctx, rec, version)
}

// Watch shows services now and at each change.
func (m *Manager) Watch(ctx context.Context, customer, name string) (<-chan smi.Service, error) {
	if name == "" {
		customer, err := scope(ctx, customer)
		if err != nil {
			return nil, err
		}
		return m.views.watch(ctx, matcher(customer, "")), nil
	}
	rec, _, err := m.find(ctx, customer, name)
	if err != nil {
		return nil, err
	}
	return m.views.watch(ctx, matcher(rec.Customer, name)), nil
}

// Events lists what happened.
func (m *Manager) Events(ctx context.Context, f smi.EventFilter) ([]smi.Event, error) {
	var err error
	if f.Customer, err = scope(ctx, f.Customer); err != nil {
		return nil, err
	}
	return slices.Clip(m.cfg.Events.List(f)), nil
}

// WatchEvents lists what happened, then what happens.
func (m *Manager) WatchEvents(ctx context.Context, f smi.EventFilter) (<-chan smi.Event, error) {
	var err error
	if f.Customer, err = scope(ctx, f.Customer); err != nil {
		return nil, err
	}
	return m.cfg.Events.Watch(ctx, f), nil
}
