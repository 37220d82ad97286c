package sm

import (
	"context"
	"fmt"
	"slices"

	"github.com/reservoir-cloud/reservoir/elastic"
	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/internal/identity"
	"github.com/reservoir-cloud/reservoir/manifest"
	"github.com/reservoir-cloud/reservoir/sm/deploy"
	"github.com/reservoir-cloud/reservoir/smi"
	"github.com/reservoir-cloud/reservoir/vee"
	"github.com/reservoir-cloud/reservoir/vmi"
)

// proposal is a deployment that has been thought through and not recorded.
type proposal struct {
	rec      record
	design   *design
	exists   bool
	old      record // when it exists
	version  uint64 // of old
	access   map[string]vmi.AccessPoint
	networks map[string]vmi.Network
}

// propose reads the manifest, finds its images and makes the record that a deployment
// would write. Errors: fault.Malformed, Denied, NotFound (an image), DigestMismatch.
func (m *Manager) propose(ctx context.Context, d smi.Deploy) (*proposal, error) {
	design, err := newDesign(revision{Text: d.Manifest, File: d.File}, 1)
	if err != nil {
		return nil, err
	}
	customer, name := owner(ctx, d.Customer), d.Name
	if name == "" {
		name = design.manifest.Name
	}
	for what, n := range map[string]string{"service": name, "customer": customer} {
		if !vee.ValidName(n) {
			return nil, fault.New(fault.Malformed, "%s name %q: want a DNS label of at most 32 characters such as \"web\"", what, n)
		}
	}
	if !identity.From(ctx).Sees(customer) {
		return nil, fault.New(fault.Denied, "%s may not deploy for customer %s", identity.From(ctx).ID, customer)
	}
	if err := m.resolve(ctx, design, d.Images); err != nil {
		return nil, err
	}
	p := &proposal{design: design}
	p.old, p.version, err = m.records.Get(ctx, recordKey(customer, name))
	switch {
	case fault.Has(err, fault.NotFound):
		id, err := m.newServiceID()
		if err != nil {
			return nil, err
		}
		p.rec = record{ID: id, Customer: customer, Name: name, Oldest: 1, Created: m.cfg.Now(), Desired: map[string]int{}}
	case err != nil:
		return nil, err
	default:
		p.exists, p.rec = true, p.old
	}
	return p, m.next(ctx, p, d)
}

// newServiceID draws one: "alpha.s-k3v9q2m7xd".
func (m *Manager) newServiceID() (string, error) {
	id, err := vee.NewID(m.cfg.Site, m.cfg.Random)
	if err != nil {
		return "", fmt.Errorf("draw a service's identifier: %w", err)
	}
	return id.Site() + ".s-" + id.Short(), nil
}

// next fills in what the new revision changes in the record.
func (m *Manager) next(ctx context.Context, p *proposal, d smi.Deploy) error {
	was := map[string]int{} // initial replicas of the revision before
	if p.exists {
		before, err := m.loadDesign(ctx, p.old.ID, p.old.Revision)
		if err != nil {
			return err
		}
		for _, c := range before.manifest.Components {
			was[c.Name] = c.Replicas.Initial
		}
	}
	p.rec.Desired = map[string]int{}
	for _, c := range p.design.manifest.Components {
		n := c.Replicas.Initial
		// What was scaled since stays so, unless the new manifest says another number.
		if initial, known := was[c.Name]; known && initial == n {
			n = min(max(p.old.Desired[c.Name], c.Replicas.Min), c.Replicas.Max)
		}
		p.rec.Desired[c.Name] = n
	}
	p.rec.Undone = ""
	if p.exists && p.old.State.Settled {
		p.rec.Update = &updating{From: p.old.Revision}
	}
	p.rec.keepSizes(p.design)
	p.rec.Revision++
	p.design.number = p.rec.Revision
	p.rec.BestEffort, p.rec.DeployKey = d.BestEffort, d.IdempotencyKey
	p.rec.newGoal(m.cfg.Now())
	list, err := m.cfg.VMI.ListAccessPoints(m.asSite(ctx), p.rec.ID)
	if err != nil {
		return fmt.Errorf("list the access points of service %s: %w", p.rec.key(), err)
	}
	p.access = map[string]vmi.AccessPoint{}
	for _, a := range list {
		p.access[a.Name] = a
	}
	p.networks, err = m.networksOf(m.asSite(ctx), p.rec.ID)
	return err
}

// fitting is what the VMI says of the VEEs that a proposal would make.
type fitting struct {
	create  []deploy.Slot
	places  []vmi.Placement // of create
	missing []vmi.Placement // those without a host
	tight   bool            // no room for old and new together
}

// groupNow asks the VMI for the VEEs of a group.
func (m *Manager) groupNow(ctx context.Context, id string) (map[vee.ID]vmi.VEE, error) {
	list, err := m.cfg.VMI.ListVEEs(m.asSite(ctx), vmi.Filter{GroupID: id, Destroyed: true})
	if err != nil {
		return nil, fmt.Errorf("list the VEEs of service %s: %w", id, err)
	}
	vees := make(map[vee.ID]vmi.VEE, len(list))
	for _, v := range list {
		vees[v.ID] = v
	}
	return vees, nil
}

// fit asks the VMI where the proposal's new VEEs would go.
func (m *Manager) fit(ctx context.Context, p *proposal) (fitting, error) {
	vees, err := m.groupNow(ctx, p.rec.ID)
	if err != nil {
		return fitting{}, err
	}
	step := deploy.Next(p.design.goal(p.rec), p.rec.State, deploy.World{VEEs: vees, AccessPoints: p.access, Now: m.cfg.Now()})
	var f fitting
	outdated := map[string]bool{}
	for _, l := range step.State.Slots {
		switch {
		case l.Call > p.rec.State.Calls:
			f.create = append(f.create, l)
		case l.Spec != p.design.Specs[l.Component]: // and so replaced
			outdated[l.Component] = true
		}
	}
	if len(f.create) == 0 {
		return f, nil
	}
	call, err := m.call(ctx, p.rec, p.design, deploy.Action{Slots: f.create})
	if err != nil {
		return f, err
	}
	call.Model, call.IdempotencyKey = vmi.TwoPhase, ""
	if f.places, err = m.cfg.VMI.Plan(m.asSite(ctx), call); err != nil {
		return f, fmt.Errorf("plan service %s: %w", p.rec.Name, err)
	}
	for i, place := range f.places {
		switch {
		case place.Host != "" || i >= len(f.create):
		case len(outdated) > 0:
			f.tight = true // some of what is there will go
		default:
			f.missing = append(f.missing, place)
		}
	}
	return f, nil
}

// roomFor refuses n more replicas of a component when there is no room for them.
func (m *Manager) roomFor(ctx context.Context, rec record, d *design, component string, n int) error {
	grown := rec
	grown.Desired = map[string]int{}
	for c, k := range rec.Desired {
		grown.Desired[c] = k
	}
	grown.Desired[component] += n
	p := &proposal{rec: grown, design: d, exists: true, old: rec}
	f, err := m.fit(ctx, p)
	if err != nil {
		return err
	}
	if len(f.missing) > 0 {
		return noRoom(rec.Name, f.missing)
	}
	return nil
}

// Plan says what Deploy would do.
func (m *Manager) Plan(ctx context.Context, d smi.Deploy) (smi.Plan, error) {
	if err := mayChange(ctx); err != nil {
		return smi.Plan{}, err
	}
	p, err := m.propose(ctx, d)
	if err != nil {
		return smi.Plan{}, err
	}
	f, err := m.fit(ctx, p)
	if err != nil {
		return smi.Plan{}, err
	}
	plan := smi.Plan{
		Name: p.rec.Name, Feasible: len(f.missing) == 0, Steps: []smi.PlanStep{},
		NotInEffect: p.design.manifest.NotInEffect(), Warnings: p.design.warnings(),
	}
	d.Replace = true // to ask is not to do
	if err := p.permitted(d); err != nil {
		plan.Feasible = false
		plan.Warnings = append(plan.Warnings, err.Error())
	}
	if _, err := m.admit(ctx, p, d); err != nil {
		plan.Feasible = false
		plan.Warnings = append(plan.Warnings, err.Error())
	}
	if p.rec.BestEffort && len(f.missing) > 0 {
		plan.Feasible = true
		plan.Warnings = append(plan.Warnings, fmt.Sprintf("%d VEEs wait until there is room", len(f.missing)))
	}
	if f.tight {
		plan.Warnings = append(plan.Warnings, "there may be no room for old and new replicas together: they are then replaced one by one")
	}
	for _, c := range p.design.manifest.Components {
		r := p.design.size(&c)
		for range p.rec.Desired[c.Name] {
			plan.Total = plan.Total.Plus(r)
		}
	}
	plan.Steps = p.steps(f)
	return plan, nil
}

// warnings are what the manifest says that looks like a mistake.
func (d *design) warnings() []string {
	w := d.manifest.Warnings()
	w = append(w, d.beyond()...)
	for _, x := range d.manifest.Ignored() {
		w = append(w, "ignored: "+x)
	}
	return w
}

// beyond are the resizes of rules that no replica can take while it runs.
func (d *design) beyond() (said []string) {
	for _, p := range d.elastic.Policies {
		c := d.manifest.Component(p.Component)
		for _, r := range p.Rules {
			if r.Do.Kind == elastic.Resize && (r.Do.VCPUs > max(c.CPU.Count, c.CPU.Max) || r.Do.Memory > max(c.Memory.Size, c.Memory.Max)) {
				said = append(said, fmt.Sprintf("rule %s makes replicas of %s larger than cpu.max or memory.max: they are replaced for it", r.Name, p.Component))
			}
		}
	}
	return said
}

func (d *design) size(c *manifest.Component) vee.Resources {
	return d.descriptor(c, 0, manifest.Owner{}).Resources()
}

// steps of a plan in the order of the start: networks, access points, then VEEs.
func (p *proposal) steps(f fitting) []smi.PlanStep {
	steps := []smi.PlanStep{}
	for _, n := range p.design.goal(p.rec).Networks {
		action := "create"
		if is, there := p.networks[n.Name]; there && is.Wish == n.Wish {
			action = "keep"
		} else if there {
			action = "change"
		}
		steps = append(steps, smi.PlanStep{Action: action, Object: "network " + n.Name})
	}
	for _, c := range p.design.goal(p.rec).Components {
		for _, port := range c.Ports {
			action := "create"
			if _, there := p.access[deploy.AccessPointName(c.Name, port)]; there {
				action = "keep"
			}
			steps = append(steps, smi.PlanStep{Action: action, Object: fmt.Sprintf("access point %s:%d", c.Name, port.Number), Component: c.Name, Order: c.Group + 1})
		}
		steps = append(steps, p.componentSteps(c, f)...)
	}
	for _, l := range p.rec.State.Slots {
		if p.design.manifest.Component(l.Component) == nil {
			steps = append(steps, smi.PlanStep{Action: "remove", Object: "vee " + l.Name(), Component: l.Component, Why: "the manifest has no component " + l.Component + " any more"})
		}
	}
	slices.SortStableFunc(steps, func(a, b smi.PlanStep) int { return a.Order - b.Order })
	return steps
}

func (p *proposal) componentSteps(c deploy.Component, f fitting) (steps []smi.PlanStep) {
	r := p.design.size(p.design.manifest.Component(c.Name))
	step := func(action string, l deploy.Slot, where, why string) {
		steps = append(steps, smi.PlanStep{
			Action: action, Object: "vee " + l.Name(), Component: c.Name, Order: c.Group + 1, Where: where, Why: why,
			Size: fmt.Sprintf("%d vCPU, %s", r.MilliCPU/1000, r.Memory),
		})
	}
	var outdated []deploy.Slot
	kept := 0
	for _, l := range p.rec.State.Slots {
		switch {
		case l.Component != c.Name:
		case l.Spec != c.Spec:
			outdated = append(outdated, l)
		case kept < c.Desired && l.Fit != c.Fit:
			kept++
			step("change", l, "", "its size or firewall, while it runs if it can be")
		case kept < c.Desired:
			kept++
			step("keep", l, "", "unchanged")
		default:
			step("remove", l, "", fmt.Sprintf("%d of %s are wanted", c.Desired, c.Name))
		}
	}
	for i, l := range f.create {
		if l.Component != c.Name {
			continue
		}
		var place vmi.Placement
		if i < len(f.places) {
			place = f.places[i]
		}
		if len(outdated) == 0 {
			step("create", l, place.Host, place.Why)
			continue
		}
		step("replace", outdated[0], place.Host, fmt.Sprintf("what it is made of has changed: %s takes its place; %s", l.Name(), place.Why))
		outdated = outdated[1:]
	}
	for _, l := range outdated {
		step("remove", l, "", fmt.Sprintf("what it is made of has changed, and %d of %s are wanted", c.Desired, c.Name))
	}
	return steps
}
