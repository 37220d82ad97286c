package manifest

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/reservoir-cloud/reservoir/vee"
)

// Owner is what a descriptor says of the running service and a manifest cannot know.
type Owner struct {
	Customer  string
	GroupID   string
	FQNPrefix string // of this replica
	Domain    string // of the names of the service's replicas, "shop.alpha.internal"
}

// usualScrape is how often measurements are asked for where the manifest does not say.
const usualScrape = Duration(15 * time.Second)

// Descriptor of replica n (1 is the first) of component c of the service. Disks carry the
// image's reference in Source; the caller resolves it to a digest. There is no Context yet:
// what the guest is told has addresses in it, which are known once the VEE is initialised.
func (s *Service) Descriptor(c *Component, n int, by Owner) vee.Descriptor {
	d := vee.Descriptor{
		Name:       fmt.Sprintf("%s-%d", c.Name, n),
		Customer:   by.Customer,
		GroupID:    by.GroupID,
		FQNPrefix:  by.FQNPrefix,
		Hypervisor: c.driver(),
		VCPUs:      c.CPU.Count,
		VCPUsMax:   c.CPU.Max,
		CPU: vee.CPUShare{
			ReservationMHz: int(c.CPU.Reservation),
			LimitMHz:       int(c.CPU.Limit),
			Weight:         c.CPU.Weight,
		},
		Memory:    c.Memory.Size,
		MemoryMax: c.Memory.Max,
		Restart:   c.Restart,
		Tags:      []string{c.Name},
	}
	if r := c.Reliability; r != nil {
		d.Reliability = vee.Reliability{Keep: r.Keep, From: r.From, HeartbeatMS: time.Duration(r.Heartbeat).Milliseconds()}
	}
	d.Reliability.CheckpointMS = time.Duration(s.checkpoint()).Milliseconds()
	for _, k := range c.Disks {
		source := k.Image
		if f, ok := s.File(k.Image); ok {
			source = f.Href
		}
		d.Disks = append(d.Disks, vee.Disk{
			Name: k.Name, Source: source, Size: k.Size, Target: k.Target, Persistent: k.Persistent, CDROM: k.CDROM,
		})
	}
	for _, k := range c.NICs {
		i := slices.IndexFunc(s.Networks, func(n Network) bool { return n.Name == k.Network })
		d.NICs = append(d.NICs, vee.NIC{Network: k.Network, Target: k.Target, Address: k.Address, Public: i >= 0 && s.Networks[i].Public})
	}
	d.Naming = vee.Naming{Domain: by.Domain, Own: []string{d.Name + "." + c.Name, d.Name}, Shared: []string{c.Name}}
	for _, f := range c.Firewall {
		d.Firewall = append(d.Firewall, s.firewall(f))
	}
	for _, p := range c.Ports {
		d.Ports = append(d.Ports, p.Port)
	}
	if m := c.Metrics; m != nil {
		d.Metrics = vee.Metrics{Port: m.Port, Path: cmp.Or(m.Path, "/metrics"), EveryMS: time.Duration(cmp.Or(m.Every, usualScrape)).Milliseconds()}
	}
	for _, t := range c.Tags {
		if !slices.Contains(d.Tags, t) {
			d.Tags = append(d.Tags, t)
		}
	}
	for i, g := range s.AntiAffinity {
		if t := g.tag(i); slices.Contains(g.Components, c.Name) && !slices.Contains(d.Tags, t) {
			d.Tags = append(d.Tags, t)
		}
	}
	for _, w := range []*Deployment{s.Deployment, c.Deployment} {
		d.Where.Countries = append(d.Where.Countries, w.countries()...)
	}
	for _, x := range []*Sites{s.Sites, c.Sites} { // the component's own words come last
		x.tell(&d.Where)
	}
	for _, r := range c.Raw {
		if d.Raw == nil {
			d.Raw = map[string]string{}
		}
		d.Raw[r.Key] = r.Value
	}
	return d
}

// checkpoint is the time between two checkpoints of the service, the shortest that a component
// asks for: each is one of every component. 0: none are taken.
func (s *Service) checkpoint() (every Duration) {
	for _, c := range s.Components {
		if r := c.Reliability; r != nil && r.Checkpoint > 0 && (every == 0 || r.Checkpoint < every) {
			every = r.Checkpoint
		}
	}
	return every
}

// firewall rule with its peer as what it is: a component's tag, a network, or addresses.
func (s *Service) firewall(f FirewallRule) vee.FirewallRule {
	r := vee.FirewallRule{Allow: f.Action == "allow", Out: f.Direction == "out", Protocol: f.Protocol}
	if r.Protocol == "" {
		r.Protocol = "any"
	}
	if first, last, isRange := strings.Cut(f.Ports, "-"); f.Ports != "" {
		if !isRange {
			last = first
		}
		low, _ := strconv.ParseUint(first, 10, 16) // Validate has
		high, _ := strconv.ParseUint(last, 10, 16)
		r.First, r.Last = uint16(low), uint16(high)
	}
	switch {
	case f.Peer == "":
	case s.Component(f.Peer) != nil:
		r.PeerTag = f.Peer
	case slices.ContainsFunc(s.Networks, func(n Network) bool { return n.Name == f.Peer }):
		r.PeerNetwork = f.Peer
	default:
		r.PeerPrefix = f.Peer
	}
	return r
}

// Reachable reports whether users of the site can be led to a component: it is on a network that
// is public or that access points lead into, or on none, and is plugged into the site's then.
func (s *Service) Reachable(c *Component) bool {
	return len(c.NICs) == 0 || slices.ContainsFunc(c.NICs, func(k NIC) bool {
		return slices.ContainsFunc(s.Networks, func(n Network) bool { return n.Name == k.Network && (n.Public || n.Access) })
	})
}

// tell where VEEs may run: what x says takes the place of what was said before, but for what
// forbids.
func (x *Sites) tell(w *vee.Where) {
	if x == nil {
		return
	}
	w.Partners = cmp.Or(vee.Partnering(x.Policy), w.Partners)
	w.Requirement, w.Reservation = cmp.Or(x.Require, w.Requirement), cmp.Or(x.Reservation, w.Reservation)
	if x.Allow != nil {
		w.Sites = x.Allow
	}
	w.Without = append(w.Without, x.Forbid...)
	for _, a := range x.Countries {
		w.Countries = append(w.Countries, vee.Area(a))
	}
	for _, a := range x.Jurisdictions {
		w.Jurisdictions = append(w.Jurisdictions, vee.Area(a))
	}
	if x.Users != nil {
		w.Users = &vee.Point{Latitude: x.Users.Latitude, Longitude: x.Users.Longitude}
	}
}

// countries that VEEs are kept in, or out of. A restriction of countries alone counts here:
// where it has other kinds of places too, any of those would do.
func (d *Deployment) countries() (areas []vee.Area) {
	if d == nil {
		return nil
	}
	for _, r := range d.Restrictions {
		if len(r.Positions)+len(r.Timezones)+len(r.Areas) > 0 {
			continue
		}
		for _, a := range r.Countries {
			areas = append(areas, vee.Area{Name: a.Name, Outside: a.Outside})
		}
	}
	return areas
}

// Apart lists the tags whose VEEs must be on distinct hosts (Physical) or at distinct sites
// (Domain): the rules of anti-affinity that are in effect, as Descriptor has tagged them.
func (s *Service) Apart(scope Scope) []string {
	var tags []string
	for i, g := range s.AntiAffinity {
		if t := g.tag(i); g.Scope == scope && !slices.Contains(tags, t) {
			tags = append(tags, t)
		}
	}
	return tags
}

// tag that the VEEs of the i-th rule of anti-affinity carry. No component's name has a dot.
func (g Group) tag(i int) string {
	if len(g.Components) == 1 {
		return g.Components[0]
	}
	return fmt.Sprintf("apart.%d", i+1)
}

// File that disks name as id.
func (s *Service) File(id string) (File, bool) {
	for _, f := range s.Files {
		if f.ID == id {
			return f, true
		}
	}
	return File{}, false
}

// Component by name, nil when there is none.
func (s *Service) Component(name string) *Component {
	for i := range s.Components {
		if s.Components[i].Name == name {
			return &s.Components[i]
		}
	}
	return nil
}

// driver of the hypervisor that the component asks for; empty: any, also where it asks for
// one that no host has.
func (c *Component) driver() string {
	switch t := strings.ToLower(c.Hypervisor); {
	case t == "qemu", strings.HasPrefix(t, "kvm"):
		return "qemu"
	case t == "sim":
		return "sim"
	}
	return ""
}
