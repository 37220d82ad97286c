package veem

import (
	"context"
	"fmt"
	"net/netip"
	"regexp"
	"slices"

	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/internal/identity"
	"github.com/reservoir-cloud/reservoir/vee"
	"github.com/reservoir-cloud/reservoir/vmi"
)

// Bounds of a descriptor. They keep sums far from overflow and records small.
const (
	maxVEEs     = 1000 // of one call
	maxVCPUs    = 256
	minMemory   = vee.MiB
	maxMemory   = 16 * vee.TiB
	maxDisk     = 256 * vee.TiB
	maxDisks    = 32
	maxNICs     = 16
	maxTags     = 64
	maxText     = 256 // of a tag, a group, an image reference
	maxContext  = 128 << 10
	maxHoldMS   = 7 * 24 * 3600 * 1000
	maxRules    = 64
	maxMHz      = 1 << 30
	maxCPUShare = 10_000
)

var (
	dnsLabel   = regexp.MustCompile(`^[a-z]([a-z0-9-]{0,61}[a-z0-9])?$`)
	dnsName    = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)*$`)
	deviceName = regexp.MustCompile(`^([a-z][a-z0-9]{0,14})?$`)
	fileName   = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}$`)
)

// describe checks what a caller hands in and returns the descriptors of the single VEEs:
// counted out, with their customer and the sizes of their disks. Errors: Malformed with the
// field and the reason, Denied.
func (m *Manager) describe(ctx context.Context, caller identity.Caller, in vmi.Initialize) ([]vee.Descriptor, error) {
	if err := checkCall(in); err != nil {
		return nil, err
	}
	if caller.Is(identity.Partner) {
		return m.describeLodger(ctx, caller, in)
	}
	var all []vee.Descriptor
	for i, v := range in.VEEs {
		where := fmt.Sprintf("vees[%d].descriptor.", i)
		d := v.Descriptor
		if v.ID != "" || v.Custody != nil {
			return nil, malformed(fmt.Sprintf("vees[%d].id", i), "%q: the manager gives identifiers out; only another site's keeps its own", v.ID)
		}
		if d.Customer == "" {
			d.Customer = caller.Customer
		}
		if d.Customer != "" && !vee.ValidName(d.Customer) {
			return nil, malformed(where+"customer", "%q: want a DNS label such as \"acme\"", d.Customer)
		}
		if !caller.Sees(d.Customer) {
			return nil, fault.New(fault.Denied, "%scustomer: %q is not %s's customer", where, d.Customer, orElse(caller.ID, "the caller"))
		}
		if err := m.checkDescriptor(ctx, where, &d); err != nil {
			return nil, err
		}
		if err := checkSeed(caller, where, d.Seed); err != nil {
			return nil, err
		}
		if v.Count < 0 || len(all)+max(1, v.Count) > maxVEEs {
			return nil, malformed(fmt.Sprintf("vees[%d].count", i), "%d: one call makes at most %d VEEs", v.Count, maxVEEs)
		}
		for n := 1; n <= max(1, v.Count); n++ {
			one := d
			if v.Count > 1 {
				one.Name = fmt.Sprintf("%s-%d", d.Name, n)
			}
			if !dnsLabel.MatchString(one.Name) {
				return nil, malformed(where+"name", "%q: want a DNS label such as \"web-1\"", one.Name)
			}
			all = append(all, one)
		}
	}
	return all, nil
}

func malformed(field, format string, args ...any) *fault.Error {
	return fault.New(fault.Malformed, "%s: %s", field, fmt.Sprintf(format, args...))
}

func checkCall(in vmi.Initialize) error {
	switch {
	case in.Model != vmi.TwoPhase && in.Model != vmi.BestEffort:
		return malformed("model", "%q: want %s or %s", in.Model, vmi.TwoPhase, vmi.BestEffort)
	case len(in.VEEs) == 0:
		return malformed("vees", "there is none")
	case in.HoldMS < 0 || in.HoldMS > maxHoldMS:
		return malformed("holdMs", "%d: want 0 to %d", in.HoldMS, maxHoldMS)
	case len(in.Rules) > maxRules:
		return malformed("rules", "%d: at most %d", len(in.Rules), maxRules)
	}
	for i, r := range in.Rules {
		where := fmt.Sprintf("rules[%d].", i)
		switch {
		case r.Kind != "affinity" && r.Kind != "anti-affinity":
			return malformed(where+"kind", "%q: want affinity or anti-affinity", r.Kind)
		case r.Scope != "" && r.Scope != "host" && r.Scope != scopeSite:
			return malformed(where+"scope", "%q: want host or site", r.Scope)
		case r.Tag == "":
			return malformed(where+"tag", "want the tag of the VEEs that the rule is about")
		}
	}
	return nil
}

// checkDescriptor checks d field by field and fills in the sizes of its disks.
func (m *Manager) checkDescriptor(ctx context.Context, where string, d *vee.Descriptor) error {
	for _, check := range []func(string, *vee.Descriptor) error{checkHardware, checkLabels, checkNICs, checkNaming, checkFirewall, m.checkRaw, m.checkWhere} {
		if err := check(where, d); err != nil {
			return err
		}
	}
	return m.checkDisks(ctx, where, d)
}

func checkHardware(where string, d *vee.Descriptor) error {
	c := d.CPU
	switch {
	case d.VCPUs < 1 || d.VCPUs > maxVCPUs:
		return malformed(where+"vcpus", "%d: want 1 to %d", d.VCPUs, maxVCPUs)
	case d.Memory < minMemory || d.Memory > maxMemory:
		return malformed(where+"memoryBytes", "%v: want %v to %v", d.Memory, minMemory, maxMemory)
	case d.MemoryMax != 0 && (d.MemoryMax < d.Memory || d.MemoryMax > maxMemory):
		return malformed(where+"memoryMaxBytes", "%v: want 0, or %v to %v", d.MemoryMax, d.Memory, maxMemory)
	case d.VCPUsMax != 0 && (d.VCPUsMax < d.VCPUs || d.VCPUsMax > maxVCPUs):
		return malformed(where+"vcpusMax", "%d: want 0, or %d to %d", d.VCPUsMax, d.VCPUs, maxVCPUs)
	case c.ReservationMHz < 0 || c.ReservationMHz > maxMHz:
		return malformed(where+"cpu.reservationMHz", "%d: want 0 to %d", c.ReservationMHz, maxMHz)
	case c.LimitMHz < 0 || c.LimitMHz > maxMHz || c.LimitMHz != 0 && c.LimitMHz < c.ReservationMHz:
		return malformed(where+"cpu.limitMHz", "%d: want 0, or from the reservation to %d", c.LimitMHz, maxMHz)
	case c.Weight < 0 || c.Weight > maxCPUShare:
		return malformed(where+"cpu.weight", "%d: want 0 to %d", c.Weight, maxCPUShare)
	}
	switch d.Restart {
	case "", vee.RestartInPlace, vee.RestartNever, vee.RestartElse:
		return nil
	}
	return malformed(where+"restart", "%q: want %s, %s or %s", d.Restart, vee.RestartInPlace, vee.RestartElse, vee.RestartNever)
}

func checkLabels(where string, d *vee.Descriptor) error {
	switch {
	case d.Hypervisor != "" && !vee.ValidName(d.Hypervisor):
		return malformed(where+"hypervisor", "%q: want a driver such as \"qemu\"", d.Hypervisor)
	case len(d.GroupID) > maxText:
		return malformed(where+"groupID", "%d bytes: at most %d", len(d.GroupID), maxText)
	case len(d.FQNPrefix) > 2*maxText:
		return malformed(where+"fqnPrefix", "%d bytes: at most %d", len(d.FQNPrefix), 2*maxText)
	case len(d.Tags) > maxTags:
		return malformed(where+"tags", "%d: at most %d", len(d.Tags), maxTags)
	case len(d.Ports) > maxTags:
		return malformed(where+"ports", "%d: at most %d", len(d.Ports), maxTags)
	}
	for i, tag := range d.Tags {
		if tag == "" || len(tag) > maxText {
			return malformed(fmt.Sprintf("%stags[%d]", where, i), "%d bytes: want 1 to %d", len(tag), maxText)
		}
	}
	for i, p := range d.Ports {
		if p < 1 || p > 65535 {
			return malformed(fmt.Sprintf("%sports[%d]", where, i), "%d: want 1 to 65535", p)
		}
	}
	size := 0
	for name, text := range d.Context {
		if size += len(text); !fileName.MatchString(name) {
			return malformed(where+"context", "%q: want a file name", name)
		}
	}
	if size > maxContext {
		return malformed(where+"context", "%v: at most %v", vee.Bytes(size), vee.Bytes(maxContext))
	}
	return nil
}

func checkNICs(where string, d *vee.Descriptor) error {
	if len(d.NICs) > maxNICs {
		return malformed(where+"nics", "%d: at most %d", len(d.NICs), maxNICs)
	}
	for i, n := range d.NICs {
		where := fmt.Sprintf("%snics[%d].", where, i)
		switch a, err := netip.ParseAddr(n.Address); {
		case n.Address != "" && (err != nil || !a.Is4()):
			return malformed(where+"address", "%q: want an IPv4 address to ask for, without the length of its network, or none", n.Address)
		case n.MAC != "" || n.Address6 != "" || n.Gateway != "" || n.Gateway6 != "" || n.Domain != "" || n.MTU != 0 || len(n.DNS) > 0:
			return malformed(where+"mac", "what a guest is told of its network is given out by the manager: leave all but network, target, address and public empty")
		case !deviceName.MatchString(n.Target):
			return malformed(where+"target", "%q: want a device such as \"eth0\"", n.Target)
		}
	}
	return nil
}

func checkNaming(where string, d *vee.Descriptor) error {
	n := d.Naming
	if n.Domain != "" && !dnsName.MatchString(n.Domain) || len(n.Domain) > maxText {
		return malformed(where+"naming.domain", "%q: want a domain such as \"shop.alpha.internal\"", n.Domain)
	}
	if len(n.Own)+len(n.Shared) > maxTags {
		return malformed(where+"naming", "%d names: at most %d", len(n.Own)+len(n.Shared), maxTags)
	}
	for _, name := range slices.Concat(n.Own, n.Shared) {
		if !dnsName.MatchString(name) || len(name) > maxText {
			return malformed(where+"naming", "%q: want a name such as \"web-1.web\"", name)
		}
	}
	return nil
}

func checkFirewall(where string, d *vee.Descriptor) error {
	if len(d.Firewall) > maxRules {
		return malformed(where+"firewall", "%d rules: at most %d", len(d.Firewall), maxRules)
	}
	for i, f := range d.Firewall {
		where := fmt.Sprintf("%sfirewall[%d].", where, i)
		_, err := netip.ParsePrefix(f.PeerPrefix)
		peers := 0
		for _, p := range []string{f.PeerTag, f.PeerNetwork, f.PeerPrefix} {
			if p != "" {
				peers++
			}
		}
		switch {
		case !slices.Contains([]string{"tcp", "udp", "icmp", "any"}, f.Protocol):
			return malformed(where+"protocol", "%q: want tcp, udp, icmp or any", f.Protocol)
		case f.Last < f.First || f.First == 0 && f.Last != 0:
			return malformed(where+"last", "%d to %d: want ports in order, or none", f.First, f.Last)
		case f.First != 0 && f.Protocol != "tcp" && f.Protocol != "udp":
			return malformed(where+"first", "protocol %s has no ports", f.Protocol)
		case peers > 1:
			return malformed(where+"peerTag", "more than one kind of peer")
		case f.PeerPrefix != "" && err != nil:
			return malformed(where+"peerPrefix", "%q: want addresses such as \"10.0.0.0/8\"", f.PeerPrefix)
		}
	}
	return nil
}

func (m *Manager) networkNames() (names []string) {
	for name := range m.cfg.Networks {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

func (m *Manager) checkRaw(where string, d *vee.Descriptor) error {
	size := 0
	for driver, text := range d.Raw {
		if size += len(text); !slices.Contains(m.cfg.RawDrivers, driver) {
			return fault.New(fault.Denied, "%sraw: this site's policy lets nobody hand raw data to driver %q", where, driver)
		}
	}
	if size > maxContext {
		return malformed(where+"raw", "%v: at most %v", vee.Bytes(size), vee.Bytes(maxContext))
	}
	return nil
}

// checkDisks checks the disks and gives those without a size that of their image.
func (m *Manager) checkDisks(ctx context.Context, where string, d *vee.Descriptor) error {
	if len(d.Disks) > maxDisks {
		return malformed(where+"disks", "%d: at most %d", len(d.Disks), maxDisks)
	}
	disks := slices.Clone(d.Disks)
	names := map[string]bool{}
	for i := range disks {
		k, where := &disks[i], fmt.Sprintf("%sdisks[%d].", where, i)
		switch {
		case !dnsLabel.MatchString(k.Name):
			return malformed(where+"name", "%q: want a DNS label such as \"root\"", k.Name)
		case names[k.Name]:
			return malformed(where+"name", "%q: there is another disk of that name", k.Name)
		case !deviceName.MatchString(k.Target):
			return malformed(where+"target", "%q: want a device such as \"vda\"", k.Target)
		case k.Size < 0 || k.Size > maxDisk:
			return malformed(where+"sizeBytes", "%d: want 0 to %v", k.Size, maxDisk)
		case k.Image == "" && k.CDROM:
			return malformed(where+"image", "a CD-ROM needs one")
		case k.Image == "" && k.Size == 0:
			return malformed(where+"sizeBytes", "a blank disk needs a size")
		case len(k.Source) > 2*maxText:
			return malformed(where+"source", "%d bytes: at most %d", len(k.Source), 2*maxText)
		}
		names[k.Name] = true
		if k.Image == "" {
			continue
		}
		size, err := m.cfg.Images.VirtualSize(ctx, k.Image)
		switch {
		case fault.Has(err, fault.NotFound) || fault.Has(err, fault.Malformed):
			return malformed(where+"image", "%s: %v", orElse(k.Source, k.Image), err).Try("reservoir image list, reservoir image push")
		case err != nil:
			return fmt.Errorf("%simage %s: %w", where, k.Image, err)
		case k.Size == 0:
			k.Size = size
		case k.Size < size:
			return malformed(where+"sizeBytes", "%v: its image has %v, and a disk cannot be smaller", k.Size, size)
		}
	}
	d.Disks = disks
	return nil
}
