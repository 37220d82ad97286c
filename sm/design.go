package sm

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/manifest"
	"github.com/reservoir-cloud/reservoir/sm/deploy"
	"github.com/reservoir-cloud/reservoir/sm/rules"
	"github.com/reservoir-cloud/reservoir/smi"
	"github.com/reservoir-cloud/reservoir/vee"
	"github.com/reservoir-cloud/reservoir/vmi"
)

// design is a revision of a manifest, read.
type design struct {
	revision
	number   int
	manifest *manifest.Service
	groups   map[string]int // start group by component, from 0
	elastic  *rules.Set
}

// newDesign reads a manifest. Errors: fault.Malformed with every mistake and its place.
func newDesign(rev revision, number int) (*design, error) {
	file := rev.File
	if file == "" {
		file = "manifest"
	}
	s, err := manifest.Parse(file, []byte(rev.Text))
	if err != nil {
		return nil, fault.New(fault.Malformed, "%w", err).Try("correct these places, then look: reservoir service plan FILE")
	}
	order, err := s.StartOrder()
	if err != nil {
		return nil, fault.New(fault.Malformed, "%s: %w", file, err)
	}
	d := &design{revision: rev, number: number, manifest: s, groups: map[string]int{}}
	if d.elastic, err = rules.Compile(s); err != nil {
		return nil, fault.New(fault.Malformed, "%s: %w", file, err).Try("correct the rules, then look: reservoir service plan FILE")
	}
	for i, group := range order {
		for _, name := range group {
			d.groups[name] = i
		}
	}
	return d, nil
}

// loadDesign reads a revision from the store.
func (m *Manager) loadDesign(ctx context.Context, id string, number int) (*design, error) {
	rev, _, err := m.revisions.Get(ctx, revisionKey(id, number))
	if err != nil {
		return nil, err
	}
	return newDesign(rev, number)
}

// resolve finds every image of the manifest and fingerprints the components. given are the
// images that the client has pushed for the manifest's own files.
func (m *Manager) resolve(ctx context.Context, d *design, given map[string]string) error {
	d.Images = map[string]imageRef{}
	var problems []error
	for _, c := range d.manifest.Components {
		for _, k := range c.Disks {
			if k.Image == "" {
				continue
			}
			f, listed := d.manifest.File(k.Image)
			if !listed {
				f.Href = k.Image
			}
			if _, known := d.Images[f.Href]; known {
				continue
			}
			ref, err := m.resolveImage(ctx, c.Name, f, given[f.Href])
			if err != nil {
				problems = append(problems, err)
			}
			d.Images[f.Href] = ref
		}
	}
	if err := errors.Join(problems...); err != nil {
		first := fault.From(problems[0])
		return &fault.Error{Code: first.Code, Message: err.Error(), Next: first.Next, Err: err}
	}
	d.Specs = map[string]string{}
	for i := range d.manifest.Components {
		c := &d.manifest.Components[i]
		d.Specs[c.Name] = d.fingerprint(c)
	}
	return nil
}

func (m *Manager) resolveImage(ctx context.Context, component string, f manifest.File, given string) (imageRef, error) {
	reference := f.Href
	if given != "" {
		reference = given
	}
	digest, size, err := m.cfg.Images.Resolve(ctx, reference)
	switch {
	case fault.Has(err, fault.NotFound):
		return imageRef{}, fault.New(fault.NotFound, "component %s: image %s is not in the registry of site %s", component, f.Href, m.cfg.Site).
			Try("see what there is: reservoir image list; add it: reservoir image push %s FILE", f.Href)
	case err != nil:
		return imageRef{}, fmt.Errorf("component %s: find image %s: %w", component, f.Href, err)
	case given == "" && f.Digest != "" && string(f.Digest) != digest:
		return imageRef{}, fault.New(fault.DigestMismatch, "file %s: the manifest says that %s is %s, in the registry it is %s", f.ID, f.Href, f.Digest, digest)
	}
	return imageRef{digest, size}, nil
}

// fingerprint of what the component's VEEs are made of.
func (d *design) fingerprint(c *manifest.Component) string {
	v := d.descriptor(c, 0, manifest.Owner{})
	v.VCPUs, v.Memory, v.Firewall = 0, 0, nil // are changed while they run: fit
	text, _ := json.Marshal(struct {
		VEE   vee.Descriptor
		Rules []vmi.PlacementRule
		Told  map[string]string
	}{v, d.rules([]string{c.Name}), d.manifest.Told(c)}) // plain data always marshals
	sum := sha256.Sum256(text)
	return hex.EncodeToString(sum[:8])
}

// fit of a component's replicas: what is changed while they run.
func (d *design) fit(rec record, c *manifest.Component) deploy.Fit {
	s := d.sizeOf(rec, c.Name)
	f := deploy.Fit{VCPUs: s.VCPUs, Memory: s.Memory}
	if rules := d.manifest.Descriptor(c, 0, manifest.Owner{}).Firewall; len(rules) > 0 {
		text, _ := json.Marshal(rules) // plain data always marshals
		sum := sha256.Sum256(text)
		f.Firewall = hex.EncodeToString(sum[:8])
	}
	return f
}

// descriptor of a replica, with its images as they were resolved.
func (d *design) descriptor(c *manifest.Component, n int, by manifest.Owner) vee.Descriptor {
	v := d.manifest.Descriptor(c, n, by)
	for i := range v.Disks {
		k := &v.Disks[i]
		if ref, ok := d.Images[k.Source]; ok {
			k.Image = ref.Digest
			k.Size = max(k.Size, ref.Size)
		}
	}
	return v
}

// rules of placement that concern the components: those whose tag one of them carries.
func (d *design) rules(components []string) (rules []vmi.PlacementRule) {
	for _, apart := range []struct {
		from manifest.Scope
		to   string
	}{{manifest.Physical, "host"}, {manifest.Domain, "site"}} {
		for _, tag := range d.manifest.Apart(apart.from) {
			for _, name := range components {
				c := d.manifest.Component(name)
				if c != nil && slices.Contains(d.manifest.Descriptor(c, 0, manifest.Owner{}).Tags, tag) {
					rules = append(rules, vmi.PlacementRule{Kind: "anti-affinity", Scope: apart.to, Tag: tag})
					break
				}
			}
		}
	}
	return rules
}

// goal of a record that is at this design.
func (d *design) goal(rec record) deploy.Goal {
	g := deploy.Goal{Revision: d.number, BestEffort: rec.BestEffort, Deleting: rec.Deleting, Asleep: rec.Asleep, Undo: rec.Update != nil}
	for _, n := range d.manifest.Networks {
		if !n.Public {
			w := vmi.NetworkWish{IPv6: n.IPv6, MTU: n.MTU}
			w.Subnet, _ = netip.ParsePrefix(n.Subnet) // none, or one that Validate has read
			g.Networks = append(g.Networks, deploy.Network{Name: n.Name, Wish: w})
		}
	}
	for _, c := range d.manifest.Components {
		dc := deploy.Component{Name: c.Name, Group: d.groups[c.Name], Desired: rec.Desired[c.Name], Spec: d.Specs[c.Name], Fit: d.fit(rec, &c)}
		for _, p := range c.Ports {
			if !d.manifest.Reachable(&c) {
				break
			}
			dc.Ports = append(dc.Ports, deploy.Port{Number: p.Port, Scheme: p.Scheme, Health: p.Health, Algorithm: algorithm(c.LoadBalancer),
				Partners: c.LoadBalancer != nil && c.LoadBalancer.Partners})
		}
		if c.LoadBalancer != nil {
			dc.Drain = time.Duration(c.LoadBalancer.Drain)
		}
		dc.Watch, dc.Patience = d.watch(&c)
		if u := c.Startup; u != nil {
			dc.StartDelay, dc.StopDelay, dc.WaitForGuest = time.Duration(u.StartDelay), time.Duration(u.StopDelay), u.WaitingForGuest
		}
		g.Components = append(g.Components, dc)
	}
	return g
}

// algorithm of spreading that a component asks for. A client that is to stay with its
// replica is led by its address.
func algorithm(b *manifest.LoadBalancer) string {
	switch {
	case b == nil:
		return ""
	case b.Sticky:
		return "source"
	}
	return b.Algorithm
}

// call is the parameter of InitializeVEEs for an action. Its slots may be of an older
// revision, when that call was not answered before the manifest was replaced.
func (m *Manager) call(ctx context.Context, rec record, d *design, a deploy.Action) (vmi.Initialize, error) {
	r := vmi.Initialize{Model: a.Slots[0].Model, IdempotencyKey: fmt.Sprintf("%s/%d", rec.ID, a.Call)}
	for _, l := range a.Slots {
		if l.Revision != d.number {
			older, err := m.loadDesign(ctx, rec.ID, l.Revision)
			if err != nil {
				return r, err
			}
			d = older // a call's slots are all of one revision
		}
		c := d.manifest.Component(l.Component)
		if c == nil {
			return r, fault.New(fault.Internal, "service %s: revision %d of its manifest has no component %s", rec.key(), d.number, l.Component)
		}
		r.VEEs = append(r.VEEs, vmi.InitializeVEE{Descriptor: m.descriptor(rec, d, c, l), Count: 1})
	}
	r.Rules = d.rules(componentsOf(a.Slots))
	return r, nil
}

// descriptor of a slot's VEE, with the site's network where the manifest has a public one.
func (m *Manager) descriptor(rec record, d *design, c *manifest.Component, l deploy.Slot) vee.Descriptor {
	desc := d.descriptor(c, l.Number, manifest.Owner{Customer: rec.Customer, GroupID: rec.ID,
		FQNPrefix: vee.FQN(m.cfg.Site, rec.Customer, rec.Name, l.Component, l.Number), Domain: rec.Name + "." + m.cfg.Site + ".internal"})
	if l.Fit.VCPUs > 0 {
		desc.VCPUs = l.Fit.VCPUs
		if desc.VCPUsMax != 0 {
			desc.VCPUsMax = max(desc.VCPUsMax, desc.VCPUs)
		}
	}
	if l.Fit.Memory > 0 {
		desc.Memory = l.Fit.Memory
		if desc.MemoryMax != 0 {
			desc.MemoryMax = max(desc.MemoryMax, desc.Memory)
		}
	}
	desc.Seed = rec.seed(l)
	if len(desc.NICs) == 0 && len(c.Ports) > 0 {
		desc.NICs = []vee.NIC{{Public: true}} // it could not be reached without one
	}
	public := map[string]bool{}
	for i := range desc.NICs {
		if n := &desc.NICs[i]; n.Public {
			public[n.Network] = true
			n.Network = m.cfg.Network
		}
	}
	for i := range desc.Firewall {
		if f := &desc.Firewall[i]; public[f.PeerNetwork] && f.PeerNetwork != "" {
			f.PeerNetwork = m.cfg.Network
		}
	}
	return desc
}

// show is the service as its provider sees it.
func (m *Manager) show(rec record, version uint64, d *design, vees map[vee.ID]vmi.VEE, access map[string]vmi.AccessPoint, waiting map[string]string) smi.Service {
	s := smi.Service{
		Name: rec.Name, Customer: rec.Customer, ID: rec.ID, Version: version, Revision: rec.Revision,
		Phase: rec.State.Phase, Message: rec.State.Message, Created: rec.Created, Changed: rec.Changed,
		NotInEffect: d.manifest.NotInEffect(), Components: []smi.Component{},
	}
	if s.Phase == "" {
		s.Phase = smi.Deploying
	}
	s.Undone, s.Asleep = rec.Undone, rec.Asleep
	if rec.Deleting {
		s.Phase = smi.Deleting
	}
	goal := d.goal(rec)
	for i, c := range d.manifest.Components {
		sc := smi.Component{
			Name: c.Name, Min: c.Replicas.Min, Max: c.Replicas.Max, Desired: rec.Desired[c.Name], Order: d.groups[c.Name] + 1, Waiting: waiting[c.Name],
		}
		for _, l := range rec.State.Slots {
			if l.Component != c.Name {
				continue
			}
			r := replica(l, vees[l.VEE])
			if r.Ready && l.Retiring.IsZero() {
				sc.Ready++
			}
			sc.Replicas = append(sc.Replicas, r)
		}
		slices.SortFunc(sc.Replicas, func(a, b smi.Replica) int { return a.Number - b.Number })
		s.Components = append(s.Components, sc)
		for _, p := range goal.Components[i].Ports {
			if a, ok := access[deploy.AccessPointName(c.Name, p)]; ok && a.Address != "" {
				s.URLs = append(s.URLs, smi.URL{Component: c.Name, URL: p.Scheme + "://" + a.Address, Backends: sc.Ready})
				for _, e := range a.Elsewhere {
					if e.Address != "" {
						s.URLs = append(s.URLs, smi.URL{Component: c.Name, URL: p.Scheme + "://" + e.Address, Site: e.Site, Backends: e.Backends})
					}
				}
			}
		}
	}
	return s
}

func replica(l deploy.Slot, v vmi.VEE) smi.Replica {
	r := smi.Replica{
		Number: l.Number, VEE: l.VEE, Revision: l.Revision,
		State: v.State, Phase: v.Phase, Progress: v.Progress, Ready: deploy.Ready(v), Host: v.Host, Error: v.Error,
	}
	for _, n := range v.Descriptor.NICs {
		if n.Address != "" {
			r.Address = host(n.Address)
			break
		}
	}
	return r
}

// host is the address without the length of its network.
func host(cidr string) string {
	for i := range cidr {
		if cidr[i] == '/' {
			return cidr[:i]
		}
	}
	return cidr
}
