package manifest

import (
	"fmt"
	"slices"
	"strings"

	"github.com/reservoir-cloud/reservoir/manifest/macro"
)

// NotInEffect says in words what the manifest asks for that this version has no effect
// for. None of it is an error: it is checked, kept, and comes into effect later.
func (s *Service) NotInEffect() []string {
	var list []string
	say := func(asked bool, format string, args ...any) {
		if asked {
			list = append(list, fmt.Sprintf(format, args...))
		}
	}
	for _, f := range s.Files {
		say(f.Compression == "gzip", "file %s: compression", f.ID)
	}
	for _, g := range s.Affinity {
		say(true, "affinity of %s (%s)", words(g.Components), g.Scope)
	}
	for _, g := range s.AntiAffinity {
		say(g.Scope == Datacenter, "anti-affinity of %s beyond hosts (%s)", words(g.Components), g.Scope)
	}
	say(s.Deployment.beyondCountries(), "where the service may run (deployment)")
	for i := range s.Components {
		list = append(list, s.Components[i].notInEffect()...)
	}
	return list
}

// beyondCountries: it asks for more than to be in some countries, or out of them.
func (d *Deployment) beyondCountries() bool {
	return d != nil && (len(d.Balance) > 0 || slices.ContainsFunc(d.Restrictions, func(r Restriction) bool {
		return len(r.Positions)+len(r.Timezones)+len(r.Areas) > 0
	}))
}

func (c *Component) notInEffect() []string {
	var list []string
	say := func(asked bool, format string, args ...any) {
		if asked {
			list = append(list, "component "+c.Name+": "+fmt.Sprintf(format, args...))
		}
	}
	say(c.Hypervisor != "" && c.driver() == "", "hypervisor %s", c.Hypervisor)
	for _, n := range c.NICs {
		say(n.MAC != "", "MAC address %s", n.MAC)
	}
	say(c.Balancer, "being a balancer of its own")
	say(c.Balanced != "", "being balanced by %s", c.Balanced)
	if u := c.Startup; u != nil {
		say(u.StartAction == "none", "not starting (startAction none)")
		say(u.StopAction != "" && u.StopAction != "guestShutdown", "stopAction %s", u.StopAction)
	}
	for _, r := range c.Raw {
		say(true, "raw data for driver %s", r.Key)
	}
	say(c.Deployment.beyondCountries(), "where it may run (deployment)")
	for _, m := range c.DiskMapping {
		say(true, "storage %s for disk %s", m.Storage, m.Disk)
	}
	if a := c.Aspects; a != nil {
		say(a.FaultProtection != "", "fault protection by %s", a.FaultProtection)
		say(a.Backup != nil, "backup")
	}
	return list
}

// eachProperty calls f with every property under the name that the guest knows it by.
func eachProperty(list []Property, products []Product, f func(name string, p Property)) {
	for _, p := range list {
		f(p.Key, p)
	}
	for _, g := range products {
		for _, p := range g.Properties {
			name := p.Key
			if g.Class != "" {
				name = g.Class + "." + name
			}
			if g.Instance != "" {
				name += "." + g.Instance
			}
			f(name, p)
		}
	}
}

// Warnings are what is allowed and looks like a mistake.
func (s *Service) Warnings() []string {
	var said []string
	check := func(whose string, list []Property, products []Product) {
		eachProperty(list, products, func(name string, p Property) {
			known, unknown := macro.In(p.Value)
			if p.CloudConfigurable {
				for _, m := range unknown {
					said = append(said, fmt.Sprintf("%sproperty %s: %s is no macro: it stays as it is written", whose, name, m))
				}
				return
			}
			for _, m := range known {
				said = append(said, fmt.Sprintf("%sproperty %s has the macro %s but is not cloudConfigurable: it stays as it is written", whose, name, m))
			}
		})
	}
	check("", s.Properties, s.Products)
	for _, c := range s.Components {
		check("component "+c.Name+": ", c.Properties, c.Products)
		if len(c.Ports) > 0 && !s.Reachable(&c) {
			said = append(said, fmt.Sprintf("component %s: its ports have no access point, since it is on no network that is public or has access: true", c.Name))
		}
		if c.Software != nil && c.UserData != "" && !strings.HasPrefix(c.UserData, "#") {
			said = append(said, "component "+c.Name+": beside software, userData is used only if it begins with #, as a cloud-config or a script does")
		}
	}
	return said
}

// Ignored says which elements of an OVF envelope were kept and have no meaning here.
func (s *Service) Ignored() []string {
	var said []string
	say := func(whose string, list []Extra) {
		for _, x := range list {
			if e, _, err := readExtra(x.XML); err == nil {
				said = append(said, fmt.Sprintf("%s%s of namespace %s", whose, e.Tag, e.NamespaceURI()))
			}
		}
	}
	say("", s.Extra)
	for _, c := range s.Components {
		say("component "+c.Name+": ", c.Extra)
	}
	return said
}

func words(list []string) string {
	switch len(list) {
	case 0:
		return ""
	case 1:
		return list[0]
	}
	text := list[0]
	for _, w := range list[1 : len(list)-1] {
		text += ", " + w
	}
	return text + " and " + list[len(list)-1]
}
