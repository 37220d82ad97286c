package manifest

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"path"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/reservoir-cloud/reservoir/manifest/macro"
	"github.com/reservoir-cloud/reservoir/vee"
)

// normalise brings what can be said in several ways into the one that the model has.
func (s *Service) normalise() {
	used := map[string]bool{}
	for i := range s.Components {
		c := &s.Components[i]
		r := &c.Replicas
		r.Initial = unsetOr(r.Initial, min(max(1, unsetOr(r.Min, 1)), unsetOr(r.Max, 1<<31)))
		r.Min = unsetOr(r.Min, min(1, r.Initial))
		r.Max = unsetOr(r.Max, max(1, r.Initial))
		c.CPU.Count = unsetOr(c.CPU.Count, 1)
		if c.CPU.Max == c.CPU.Count {
			c.CPU.Max = 0
		}
		if c.Memory.Max == c.Memory.Size {
			c.Memory.Max = 0
		}
		if c.Startup != nil && *c.Startup == (Startup{}) {
			c.Startup = nil
		}
		for j := range c.Ports {
			if c.Ports[j].Scheme == "" {
				c.Ports[j].Scheme = "http"
			}
		}
		for j := range c.Disks {
			used[c.Disks[j].Image] = true
			if c.Disks[j].Format == formatQCOW2 {
				c.Disks[j].Format = ""
			}
		}
		normaliseProperties(c.Properties, c.Products)
		normaliseExtras(c.Extra)
	}
	normaliseProperties(s.Properties, s.Products)
	normaliseExtras(s.Extra)
	s.Files = slices.DeleteFunc(s.Files, func(f File) bool {
		return f == File{ID: f.ID, Href: f.ID} && used[f.ID] // the registry's, which need not be listed
	})
	emptyToNil(reflect.ValueOf(s).Elem())
}

func normaliseProperties(list []Property, products []Product) {
	for i := range list {
		if list[i].Type == "string" {
			list[i].Type = ""
		}
	}
	for _, p := range products {
		normaliseProperties(p.Properties, nil)
	}
}

// normaliseExtras keeps the order of those at one place; between places there is none.
func normaliseExtras(list []Extra) {
	for i, x := range list {
		if _, form, err := readExtra(x.XML); err == nil {
			list[i].XML = form
		}
	}
	slices.SortStableFunc(list, func(a, b Extra) int { return strings.Compare(a.In, b.In) })
}

// emptyToNil makes an empty list and an absent one the same.
func emptyToNil(v reflect.Value) {
	switch v.Kind() {
	case reflect.Pointer:
		if !v.IsNil() {
			emptyToNil(v.Elem())
		}
	case reflect.Struct:
		for i := range v.NumField() {
			emptyToNil(v.Field(i))
		}
	case reflect.Slice:
		if v.Len() == 0 {
			v.SetZero()
		}
		for i := range v.Len() {
			emptyToNil(v.Index(i))
		}
	}
}

// Validate checks a service that was made or changed by a program. Parse has already done
// so for one that was read. The error is of type *Errors, without lines.
func (s *Service) Validate() error {
	r := &report{file: "service " + s.Name}
	s.validate(r)
	return r.err()
}

// Patterns of what is not a vee.ValidName.
var (
	diskName  = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$`)
	device    = regexp.MustCompile(`^[a-z][a-z0-9]{0,14}$`)
	word      = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9_.-]{0,63}$`)
	key       = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9_:-]{0,127}$`)
	portRange = regexp.MustCompile(`^(\d{1,5})(?:-(\d{1,5}))?$`)
	fileMode  = regexp.MustCompile(`^0?[0-7]{3,4}$`)
	country   = regexp.MustCompile(`^[A-Z]{2,3}$`)
)

const (
	wantName    = `want a DNS label of at most 32 characters such as "web"`
	wantWord    = "want a letter, then letters, digits, and . _ -"
	wantPercent = "want a percentage above 0 and at most 100"
)

// validator knows what names may refer to.
type validator struct {
	*report
	components, networks, kpis []string
	users                      bool // the service says where they are
	excess                     bool // a list is too long to go on
}

func (s *Service) names() []string {
	var list []string
	for _, c := range s.Components {
		list = append(list, c.Name)
	}
	return list
}

func (s *Service) validate(r *report) {
	v := &validator{report: r, components: s.names()}
	for _, n := range s.Networks {
		v.networks = append(v.networks, n.Name)
	}
	for _, k := range s.KPIs {
		v.kpis = append(v.kpis, k.Name)
	}
	if v.texts(reflect.ValueOf(s).Elem(), "", nil); v.excess {
		return
	}
	v.name("service", s.Name)
	if len(s.Components) == 0 {
		v.bad("components", "none", "want at least one")
	}
	v.unique("components", ".name", v.components)
	v.unique("networks", ".name", v.networks)
	v.unique("kpis", ".name", v.kpis)
	for i, n := range s.Networks {
		v.network(atIndex("networks", i), n)
	}
	v.files(s)
	v.properties("", s.Properties, s.Products)
	v.extras("", s.Extra, "envelope", "collection")
	v.users = s.Sites != nil && s.Sites.Users != nil
	for i := range s.Components {
		v.component(atIndex("components", i), &s.Components[i])
	}
	v.groups("affinity", s.Affinity)
	v.groups("antiAffinity", s.AntiAffinity)
	for i, k := range s.KPIs {
		p := atIndex("kpis", i)
		v.match(p+".name", k.Name, word, wantWord)
		if k.Component != "" {
			v.known(p+".component", k.Component, v.components)
		}
	}
	v.rules(s)
	v.deployment("deployment", s.Deployment)
	v.sites("sites", s.Sites)
	v.promises("", s.Availability, s.Performance, s.RestartTime)
	if o := s.Offer; o != nil {
		for i, name := range o.Sites {
			v.name(atIndex("offer.sites", i), name)
		}
	}
	if len(s.Standby) > maxStandbys {
		v.bad("standby", fmt.Sprintf("%d sites", len(s.Standby)), fmt.Sprintf("want at most %d", maxStandbys))
	}
	for i, name := range s.Standby {
		v.name(atIndex("standby", i), name)
		if slices.Contains(s.Standby[:i], name) {
			v.bad(atIndex("standby", i), name, "want each site once")
		}
	}
	if c := s.Contract; c != nil && c.Offer == "" {
		v.bad("contract.offer", "nothing", "want the offer that was accepted")
	}
	if len(r.list) == 0 {
		var cycle *CycleError
		if _, err := s.StartOrder(); errors.As(err, &cycle) {
			i := slices.Index(v.components, cycle.Components[0])
			v.bad(atIndex("components", i)+".startAfter", "a cycle: "+cycle.String(), "want an order of start that has a beginning")
		}
		v.macros(s)
	}
}

// macros checks that every macro can be resolved once addresses are known: here each NIC
// has one of those that are for documentation (RFC 5737).
func (v *validator) macros(s *Service) {
	example := func(c *Component) []macro.NIC {
		r := Replica{Component: c.Name, Number: 1}
		for _, n := range c.NICs {
			nic := vee.NIC{Network: n.Network, Address: "192.0.2.1/24", DNS: []string{"192.0.2.2"}}
			if i := slices.Index(v.networks, n.Network); i >= 0 && s.Networks[i].Public {
				nic.Gateway = "192.0.2.3" // nothing is routed in a private network
			}
			r.NICs = append(r.NICs, nic)
		}
		return c.macroNICs(r)
	}
	scope := macro.Scope{ServiceID: "alpha.s-1", VEE: "alpha.1", Domain: "alpha.internal", Channel: "/dev/null", Number: 1, Others: map[string][]macro.NIC{}}
	for i := range s.Components {
		scope.Others[s.Components[i].Name] = example(&s.Components[i])
	}
	for i := range s.Components {
		c := &s.Components[i]
		scope.NICs = scope.Others[c.Name]
		check := func(path string, list []Property, whose string) {
			for j, p := range list {
				if !p.CloudConfigurable {
					continue
				}
				if _, err := scope.Expand(p.Value); err != nil {
					v.bad(atIndex(path, j)+".value", whose+"property "+p.Key, err.Error())
				}
			}
		}
		all := func(base string, list []Property, products []Product, whose string) {
			check(at(base, "properties"), list, whose)
			for j, g := range products {
				check(atIndex(at(base, "products"), j)+".properties", g.Properties, whose)
			}
		}
		all(atIndex("components", i), c.Properties, c.Products, "")
		all("", s.Properties, s.Products, "component "+c.Name+", ")
	}
}

// texts checks what holds for all: characters that both forms can carry, nothing negative,
// words of a closed list.
func (v *validator) texts(x reflect.Value, path string, enum []string) {
	switch x.Kind() {
	case reflect.Pointer:
		if !x.IsNil() {
			v.texts(x.Elem(), path, enum)
		}
	case reflect.Struct:
		for _, f := range fieldsOf(x.Type()) {
			v.texts(x.FieldByIndex(f.index), at(path, f.yaml), f.enum)
		}
	case reflect.Slice:
		if x.Len() > maxParts {
			v.bad(path, fmt.Sprintf("%d entries", x.Len()), fmt.Sprintf("want at most %d", maxParts))
			v.excess = true
			return
		}
		for i := range x.Len() {
			v.texts(x.Index(i), atIndex(path, i), enum)
		}
	case reflect.String:
		if i := strings.IndexFunc(x.String(), unwritable); i >= 0 {
			v.bad(path, fmt.Sprintf("the character %+q", []rune(x.String()[i:])[0]), "want printable text; line breaks are \\n")
		} else if enum != nil && x.String() != "" && !slices.Contains(enum, x.String()) {
			v.bad(path, quote(x.String()), unknown(x.String(), enum))
		}
	case reflect.Int, reflect.Int64:
		if x.Int() < 0 {
			v.bad(path, leafText(x), "want nothing negative")
		}
	}
}

// unwritable are characters that XML or YAML could not carry as they are.
func unwritable(r rune) bool {
	switch {
	case r == '\n' || r == '\t':
		return false
	case r < 0x20, r >= 0x7f && r < 0xa0, r == 0x2028, r == 0x2029, r == 0xfeff, r == 0xfffd, r&0xfffe == 0xfffe:
		return true
	}
	return false
}

func (v *validator) name(path, s string) {
	if !vee.ValidName(s) {
		v.bad(path, quote(s), wantName)
	}
}

func (v *validator) match(path, s string, pattern *regexp.Regexp, want string) {
	if !pattern.MatchString(s) {
		v.bad(path, quote(s), want)
	}
}

func (v *validator) known(path, s string, known []string) {
	if !slices.Contains(known, s) {
		v.bad(path, quote(s), unknown(s, known))
	}
}

func (v *validator) within(path string, n, low, high int) {
	if n < low || n > high {
		v.bad(path, strconv.Itoa(n), fmt.Sprintf("want %d to %d", low, high))
	}
}

func (v *validator) percent(path string, n float64) {
	if n <= 0 || n > 100 {
		v.bad(path, fmt.Sprint(n), wantPercent)
	}
}

func (v *validator) positive(path string, d Duration) {
	if d <= 0 {
		v.bad(path, "nothing", errDuration.Error())
	}
}

func (v *validator) unique(path, suffix string, list []string) {
	first := map[string]int{}
	for i, s := range list {
		if j, twice := first[s]; twice {
			v.bad(atIndex(path, i)+suffix, quote(s)+" twice", "already at "+atIndex(path, j))
			continue
		}
		first[s] = i
	}
}

func (v *validator) files(s *Service) {
	var ids []string
	for i, f := range s.Files {
		p := atIndex("files", i)
		ids = append(ids, f.ID)
		if f.ID == "" {
			v.bad(p+".id", "nothing", "want an identifier for disks to name")
		}
		switch scheme, _, isURL := strings.Cut(f.Href, "://"); {
		case f.Href == "":
			v.bad(p+".href", "nothing", "want a file beside the manifest, a URL, or a name in the registry")
		case isURL && !slices.Contains([]string{"http", "https", "file"}, scheme):
			v.bad(p+".href", quote(f.Href), "want http, https or file")
		case !isURL && !safePath(f.Href):
			v.bad(p+".href", quote(f.Href), "want a file in the manifest's own directory or below")
		}
	}
	v.unique("files", ".id", ids)
}

// safePath reports whether a path stays in the directory that it starts from.
func safePath(p string) bool {
	return p != "" && !path.IsAbs(p) && !strings.Contains(p, `\`) && path.Clean(p) != ".." && !strings.HasPrefix(path.Clean(p), "../")
}

func (v *validator) network(p string, n Network) {
	v.match(p+".name", n.Name, word, wantWord)
	subnet, err := netip.ParsePrefix(n.Subnet)
	switch {
	case n.Public && (n.Subnet != "" || n.IPv6 || n.MTU != 0 || n.Access):
		v.bad(p+".public", "access, subnet, ipv6 or mtu beside it", "want none of them: a public network is the site's own")
	case n.Subnet != "" && (err != nil || !subnet.Addr().Is4() || subnet != subnet.Masked() || subnet.Bits() < 16 || subnet.Bits() > 29):
		v.bad(p+".subnet", quote(n.Subnet), `want an IPv4 network of /16 to /29 such as "10.1.0.0/24"`)
	case n.IPv6 && n.MTU != 0:
		v.within(p+".mtu", n.MTU, 1280, 1450)
	case n.MTU != 0:
		v.within(p+".mtu", n.MTU, 576, 1450)
	}
}

func (v *validator) properties(base string, list []Property, products []Product) {
	check := func(path string, list []Property) {
		var keys []string
		for i, p := range list {
			keys = append(keys, p.Key)
			v.match(atIndex(path, i)+".key", p.Key, key, "want letters, digits, and _ : -")
			if p.Type != "" {
				v.match(atIndex(path, i)+".type", p.Type, word, "want a type such as string, boolean or uint16")
			}
		}
		v.unique(path, ".key", keys)
	}
	check(at(base, "properties"), list)
	for i, p := range products {
		path := atIndex(at(base, "products"), i)
		if p.isBare() {
			v.bad(path, "properties and nothing else", "want them under properties")
		}
		for k, s := range map[string]string{"class": p.Class, "instance": p.Instance} {
			if s != "" {
				v.match(path+"."+k, s, word, wantWord)
			}
		}
		check(path+".properties", p.Properties)
	}

}

func (v *validator) extras(base string, list []Extra, in ...string) {
	for i, x := range list {
		p := atIndex(at(base, "extra"), i)
		if !slices.Contains(in, x.In) {
			v.bad(p+".in", quote(x.In), "want one of "+strings.Join(in, ", "))
		}
		_, form, err := readExtra(x.XML)
		switch {
		case err != nil:
			v.bad(p+".xml", err.Error(), "want one XML element")
		case form != x.XML:
			v.bad(p+".xml", "XML in another form", "want it as "+quote(form))
		}
	}
}

func (v *validator) component(p string, c *Component) {
	v.name(p+".name", c.Name)
	r := c.Replicas
	switch {
	case r.Max < 1 || r.Max > maxReplicas:
		v.within(p+".replicas.max", r.Max, 1, maxReplicas)
	case r.Min > r.Max:
		v.bad(p+".replicas.min", strconv.Itoa(r.Min), fmt.Sprintf("want at most max, which is %d", r.Max))
	case r.Initial < r.Min || r.Initial > r.Max:
		v.bad(p+".replicas.initial", strconv.Itoa(r.Initial), fmt.Sprintf("want min to max, %d to %d", r.Min, r.Max))
	}
	v.within(p+".cpu.count", c.CPU.Count, 1, maxVCPUs)
	if c.CPU.Max > 0 && (c.CPU.Max <= c.CPU.Count || c.CPU.Max > maxVCPUs) {
		v.bad(p+".cpu.max", strconv.Itoa(c.CPU.Max), fmt.Sprintf("want more than the count, up to %d", maxVCPUs))
	}
	v.within(p+".cpu.weight", c.CPU.Weight, 0, 10000)
	if c.CPU.Limit != 0 && c.CPU.Reservation > c.CPU.Limit {
		v.bad(p+".cpu.reservation", leafText(reflect.ValueOf(c.CPU.Reservation)), "want at most the limit")
	}
	switch {
	case c.Memory == Memory{}:
		v.bad(p+".memory", "nothing", errSize.Error())
	case c.Memory.Size < 4*vee.MiB || c.Memory.Size > 64*vee.TiB:
		v.bad(p+".memory", formatSize(c.Memory.Size), "want a size from 4MiB to 64TiB")
	case c.Memory.Max != 0 && (c.Memory.Max <= c.Memory.Size || c.Memory.Max > 64*vee.TiB):
		v.bad(p+".memory.max", formatSize(c.Memory.Max), "want more than the size, up to 64TiB")
	}
	if c.Hypervisor != "" {
		v.match(p+".hypervisor", c.Hypervisor, word, `want a type such as "qemu"`)
	}
	v.disks(p, c)
	for i, n := range c.NICs {
		q := atIndex(p+".networks", i)
		v.known(q+".network", n.Network, v.networks)
		if n.Target != "" {
			v.match(q+".target", n.Target, device, `want a device such as "eth0"`)
		}
		if n.Alias != "" {
			v.match(q+".alias", n.Alias, word, wantWord)
		}
		if n.Address != "" {
			a, err := netip.ParseAddr(n.Address)
			switch {
			case err != nil || !a.Is4():
				v.bad(q+".address", quote(n.Address), `want an IPv4 address such as "10.1.0.10"`)
			case c.Replicas.Max > 1:
				v.bad(q+".address", quote(n.Address), "want no more than one replica (replicas.max) where it has an address of its own")
			}
		}
		if n.MAC != "" {
			if mac, err := net.ParseMAC(n.MAC); err != nil || len(mac) != 6 {
				v.bad(q+".mac", quote(n.MAC), `want six bytes such as "52:54:00:12:34:56"`)
			}
		}
	}
	var ports []string
	for i, x := range c.Ports {
		ports = append(ports, strconv.Itoa(x.Port))
		v.within(atIndex(p+".ports", i)+".port", x.Port, 1, 65535)
		if x.Health != "" && !strings.HasPrefix(x.Health, "/") {
			v.bad(atIndex(p+".ports", i)+".health", quote(x.Health), `want a path such as "/health"`)
		}
	}
	v.unique(p+".ports", ".port", ports)
	if m := c.Metrics; m != nil {
		v.within(p+".metrics.port", m.Port, 1, 65535)
		if m.Path != "" && !strings.HasPrefix(m.Path, "/") {
			v.bad(p+".metrics.path", quote(m.Path), `want a path such as "/metrics"`)
		}
		if m.Every != 0 && m.Every < leastScrape {
			v.bad(p+".metrics.every", time.Duration(m.Every).String(), "want at least 1s")
		}
	}
	if c.Balanced != "" {
		v.known(p+".balanced", c.Balanced, v.components)
	}
	if u := c.Startup; u != nil {
		for k, d := range map[string]Duration{"startDelay": u.StartDelay, "stopDelay": u.StopDelay} {
			if time.Duration(d)%time.Second != 0 || time.Duration(d) > 24*time.Hour {
				v.bad(p+".startup."+k, leafText(reflect.ValueOf(d)), "want whole seconds, at most a day")
			}
		}
	}
	for i, a := range c.StartAfter {
		v.known(atIndex(p+".startAfter", i), a, v.components)
	}
	for i, t := range c.Tags {
		v.match(atIndex(p+".tags", i), t, word, wantWord)
	}
	v.unique(p+".tags", "", c.Tags)
	var drivers []string
	for i, x := range c.Raw {
		drivers = append(drivers, x.Key)
		v.match(atIndex(p+".raw", i)+".key", x.Key, word, `want a driver such as "qemu"`)
	}
	v.unique(p+".raw", ".key", drivers)
	v.properties(p, c.Properties, c.Products)
	for i, k := range c.SSHKeys {
		if len(strings.Fields(k)) < 2 || strings.Contains(k, "\n") {
			v.bad(atIndex(p+".sshKeys", i), quote(k), `want a public key in one line, "ssh-ed25519 AAAA…"`)
		}
	}
	if w := c.Software; w != nil {
		for i, f := range w.Files {
			q := atIndex(p+".software.files", i)
			if !path.IsAbs(f.Path) {
				v.bad(q+".path", quote(f.Path), "want a full path in the guest")
			}
			if f.Mode != "" {
				v.match(q+".mode", f.Mode, fileMode, `want octal such as "0644"`)
			}
		}
	}
	v.elastic(p, c)
	v.schedules(p+".schedules", c.Schedules)
	v.deployment(p+".deployment", c.Deployment)
	v.sites(p+".sites", c.Sites)
	v.promises(p, c.Availability, c.Performance, c.RestartTime)
	v.reliability(p+".reliability", c)
	v.firewall(p, c)
	v.extras(p, c.Extra, "component", "hardware")
}

// maxStandbys of a service: everything is shipped to each of them.
const maxStandbys = 4

// Bounds of what reliability asks for: a checkpoint stops the guests while it is taken, and a
// guest under load is late now and then.
const (
	minCheckpoint = Duration(5 * time.Second)
	minHeartbeat  = Duration(10 * time.Second) // the agent in the guest speaks every 5 s
	maxKeep       = 16
)

func (v *validator) reliability(p string, c *Component) {
	r := c.Reliability
	if r == nil {
		return
	}
	if r.Checkpoint != 0 && r.Checkpoint < minCheckpoint {
		v.bad(p+".checkpoint", time.Duration(r.Checkpoint).String(), "want at least 5s: every guest of the service stands still while one is taken")
	}
	if r.Heartbeat != 0 && r.Heartbeat < minHeartbeat {
		v.bad(p+".heartbeat", time.Duration(r.Heartbeat).String(), "want at least 10s")
	}
	v.within(p+".keep", r.Keep, 0, maxKeep)
	switch {
	case r.From == vee.FromCheckpoint && r.Checkpoint == 0:
		v.bad(p+".from", "checkpoint", "want a time between checkpoints, such as checkpoint: 5m")
	case r.From == vee.FromCheckpoint && c.Restart == vee.RestartNever:
		v.bad(p+".from", "checkpoint", "want restart: in-place or elsewhere: a component that is never restarted starts from nothing")
	}
}

func (v *validator) disks(p string, c *Component) {
	var names []string
	bootable := false
	for i, d := range c.Disks {
		q := atIndex(p+".disks", i)
		names = append(names, d.Name)
		bootable = bootable || d.Image != ""
		v.match(q+".name", d.Name, diskName, "want letters, digits, and . _ -")
		if d.Image == "" && d.Size == 0 {
			v.bad(q, "neither image nor size", "want an image to clone or the size of a blank disk")
		}
		if d.Size > 1<<50 {
			v.bad(q+".size", formatSize(d.Size), "want at most 1024TiB")
		}
		if d.Target != "" {
			v.match(q+".target", d.Target, device, `want a device such as "vda"`)
		}
		if d.CDROM && (d.Persistent || d.Image == "") {
			v.bad(q+".cdrom", "true", "want an image that is not persistent: the medium is read-only")
		}
	}
	v.unique(p+".disks", ".name", names)
	if !bootable {
		v.bad(p+".image", "nothing to boot from", "want an image")
	}
	for i, m := range c.DiskMapping {
		v.known(atIndex(p+".diskMapping", i)+".disk", m.Disk, names)
		if m.Storage == "" {
			v.bad(atIndex(p+".diskMapping", i)+".storage", "nothing", "want a kind of storage that the site offers")
		}
	}
}

// leastScrape is how often a guest may be asked for its measurements.
const leastScrape = Duration(time.Second)

func (v *validator) elastic(p string, c *Component) {
	for i, e := range c.Elastic {
		q := atIndex(p+".elastic", i)
		if e.Type != "VEEHW" { // the others are measured by an agent under a name that is declared
			v.known(q+".kpi", e.KPI, v.kpis)
		} else {
			v.match(q+".kpi", e.KPI, word, wantWord)
		}
		v.positive(q+".window", e.Window)
		v.positive(q+".frequency", e.Frequency)
		if e.Quota <= 0 {
			v.bad(q+".quota", fmt.Sprint(e.Quota), "want more than 0")
		}
		if e.Tolerance < 0 || e.Tolerance > 100 {
			v.bad(q+".tolerance", fmt.Sprint(e.Tolerance), "want 0 to 100 percent")
		}
	}
}

func (v *validator) schedules(path string, list []Schedule) {
	var names []string
	for i, x := range list {
		p := atIndex(path, i)
		names = append(names, x.Name)
		v.match(p+".name", x.Name, word, wantWord)
		if x.From == x.To {
			v.bad(p+".to", x.To.String(), "want another time than from; the whole day is 00:00 to 24:00")
		}
		v.within(p+".max", x.Max, 0, maxReplicas)
		if x.Min > x.Max {
			v.bad(p+".min", strconv.Itoa(x.Min), fmt.Sprintf("want at most max, which is %d", x.Max))
		}
		v.unique(p+".days", "", x.Days)
	}
	v.unique(path, ".name", names)
}

func (v *validator) rules(s *Service) {
	var names []string
	for i, x := range s.Rules {
		p := atIndex("rules", i)
		names = append(names, x.Name)
		v.match(p+".name", x.Name, word, wantWord)
		v.positive(p+".every", x.Every)
		if strings.TrimSpace(x.Condition) == "" {
			v.bad(p+".condition", "nothing", `want an expression such as "queue > 4.0"`)
		}
		if x.Do.Kind == "" {
			v.bad(p+".do.action", "nothing", "want scaleUp, scaleDown or resize")
		}
		v.known(p+".do.component", x.Do.Component, v.components)
		switch resize := x.Do.Kind == "resize"; {
		case resize && x.Do.CPU == 0 && x.Do.Memory == 0:
			v.bad(p+".do", "a resize to nothing", "want cpu or memory")
		case resize && x.Do.By != 0:
			v.bad(p+".do.by", strconv.Itoa(x.Do.By), "want it with scaleUp and scaleDown only")
		case !resize && (x.Do.CPU != 0 || x.Do.Memory != 0):
			v.bad(p+".do", "a size", "want cpu and memory with resize only")
		}
		v.within(p+".do.by", x.Do.By, 0, maxReplicas)
		v.within(p+".do.cpu", x.Do.CPU, 0, maxVCPUs)
	}
	v.unique("rules", ".name", names)
}

func (v *validator) groups(path string, list []Group) {
	for i, g := range list {
		p := atIndex(path, i)
		if g.Scope == "" {
			v.bad(p+".scope", "nothing", "want physical, datacenter or domain")
		}
		if len(g.Components) == 0 {
			v.bad(p+".components", "none", "want components; a single one means its own replicas")
		}
		for j, c := range g.Components {
			v.known(atIndex(p+".components", j), c, v.components)
		}
		v.unique(p+".components", "", g.Components)
	}
}

func (v *validator) deployment(p string, d *Deployment) {
	if d == nil {
		return
	}
	for i, r := range d.Restrictions {
		v.places(atIndex(p+".restrictions", i), r.Places)
	}
	sum := 0.0
	for i, b := range d.Balance {
		q := atIndex(p+".balance", i)
		v.percent(q+".percent", b.Percent)
		v.places(q, b.Places)
		sum += b.Percent
	}
	if sum > 100.001 {
		v.bad(p+".balance", fmt.Sprintf("%g%% in all", sum), "want at most 100")
	}
}

func (v *validator) sites(p string, x *Sites) {
	if x == nil {
		return
	}
	for key, list := range map[string][]string{"allow": x.Allow, "forbid": x.Forbid} {
		for i, name := range list {
			v.name(atIndex(p+"."+key, i), name)
		}
	}
	for i, name := range x.Forbid {
		if slices.Contains(x.Allow, name) {
			v.bad(atIndex(p+".forbid", i), quote(name)+", which is allowed too", "want one of both")
		}
	}
	for i, y := range x.Countries {
		v.match(atIndex(p+".countries", i), y.Name, country, `want a code of ISO 3166 such as "DE"`)
	}
	for i, y := range x.Jurisdictions {
		if y.Name == "" {
			v.bad(atIndex(p+".jurisdictions", i), "nothing", "want a name")
		}
	}
	if l := x.Users; l != nil && !(l.Latitude >= -90 && l.Latitude <= 90 && l.Longitude >= -180 && l.Longitude <= 180) {
		v.bad(p+".users", fmt.Sprintf("%g, %g", l.Latitude, l.Longitude), "want degrees of latitude within 90, of longitude within 180")
	}
	if x.Policy == "location" && x.Users == nil && !v.users {
		v.bad(p+".policy", "location", "want users beside it, {latitude: …, longitude: …}: where most of them are")
	}
	if len(x.Require) > maxRequirement {
		v.bad(p+".require", fmt.Sprintf("%d bytes", len(x.Require)), fmt.Sprintf("want at most %d", maxRequirement))
	}
}

// maxRequirement of sites, bytes: as the broker takes it.
const maxRequirement = 4096

func (v *validator) places(p string, x Places) {
	if len(x.Positions)+len(x.Countries)+len(x.Timezones)+len(x.Areas) == 0 {
		v.bad(p, "no place", "want positions, countries, timezones or areas")
	}
	for i, y := range x.Positions {
		if l := y.Location; l.Latitude < -90 || l.Latitude > 90 || l.Longitude < -180 || l.Longitude > 180 {
			v.bad(atIndex(p+".positions", i)+".location", fmt.Sprintf("%g, %g", l.Latitude, l.Longitude), "want degrees of latitude within 90, of longitude within 180")
		}
		if y.Distance <= 0 {
			v.bad(atIndex(p+".positions", i)+".distance", "nothing", errDistance.Error())
		}
	}
	for i, y := range x.Countries {
		v.match(atIndex(p+".countries", i), y.Name, country, `want a code of ISO 3166 such as "DE"`)
	}
	for k, list := range map[string][]Area{"timezones": x.Timezones, "areas": x.Areas} {
		for i, y := range list {
			if y.Name == "" {
				v.bad(atIndex(p+"."+k, i), "nothing", "want a name")
			}
		}
	}
}

func (v *validator) promises(base string, a *Availability, list []Constraint, t *RestartTime) {
	if a != nil {
		v.positive(at(base, "availability.window"), a.Window)
		v.percent(at(base, "availability.percentile"), a.Percentile)
	}
	if t != nil {
		v.positive(at(base, "restartTime.within"), t.Within)
	}
	for i, c := range list {
		p := atIndex(at(base, "performance"), i)
		v.known(p+".kpi", c.KPI, v.kpis)
		v.positive(p+".window", c.Window)
		v.percent(p+".percentage", c.Percentage)
		switch r := c.Range; {
		case r.Min == nil && r.Max == nil:
			v.bad(p+".range", "no end", "want min, max or both")
		case r.Min != nil && r.Max != nil && *r.Min > *r.Max:
			v.bad(p+".range", fmt.Sprintf("%g to %g", *r.Min, *r.Max), "want min at most max")
		}
	}
}

func (v *validator) firewall(p string, c *Component) {
	for i, f := range c.Firewall {
		q := atIndex(p+".firewall", i)
		if f.Action == "" {
			v.bad(q+".action", "nothing", "want allow or deny")
		}
		if f.Ports != "" {
			if f.Protocol != "tcp" && f.Protocol != "udp" {
				v.bad(q+".protocol", quote(f.Protocol), "want tcp or udp where ports are named")
			}
			m := portRange.FindStringSubmatch(f.Ports)
			if m == nil {
				v.bad(q+".ports", quote(f.Ports), `want a port or a range such as "8000-8100"`)
			} else if low, _ := strconv.Atoi(m[1]); m[2] != "" {
				high, _ := strconv.Atoi(m[2])
				v.within(q+".ports", high, max(low, 1), 65535)
			} else {
				v.within(q+".ports", low, 1, 65535)
			}
		}
		if f.Peer != "" && !slices.Contains(v.components, f.Peer) && !slices.Contains(v.networks, f.Peer) {
			if _, err := netip.ParsePrefix(f.Peer); err != nil {
				v.bad(q+".peer", quote(f.Peer), `want a component, a network, or addresses such as "10.0.0.0/8"`)
			}
		}
	}
}
