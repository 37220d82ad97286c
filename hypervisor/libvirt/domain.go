package libvirt

import (
	"cmp"
	"path/filepath"
	"strings"

	"libvirt.org/go/libvirtxml"

	"github.com/reservoir-cloud/reservoir/hypervisor/disk"
	"github.com/reservoir-cloud/reservoir/vee"
	channel "github.com/reservoir-cloud/reservoir/vhi/guest"
)

// cpuModel and cpuFeature are what hypervisor/qemu's guests see too (qemu.DefaultCPU): a
// CPU that every x86-64 machine has, under either accelerator.
const (
	cpuModel   = "qemu64"
	cpuFeature = "rdrand"
)

// tbCache is the size of TCG's cache of translated code, MiB (hypervisor/qemu has the same).
const tbCache = 16

// cpuPeriod in which a guest's CPU limit is counted, µs.
const cpuPeriod = 100000

// place is where a guest's parts are on this host, as far as its domain names them.
type place struct {
	Domain  string // libvirt's name of it
	UUID    string
	Dir     string // of its disks
	Console string // socket
	Channel string // socket
	Label   string // DAC label of its process, "+UID:+GID"; empty: libvirt's own user
	MHz     int    // of one CPU of this host, 0: not known
	Shares  int    // what libvirt on this host calls an usual CPU weight
}

// domainXML describes the guest to libvirt (libvirt.org/formatdomain.html). kind is
// libvirt's type of domain: "kvm", "qemu", or "test" for the mock, which has no devices.
func domainXML(rec record, kind string, at place) (string, error) {
	desc := rec.Guest.Descriptor
	vcpus := uint(max(desc.VCPUs, 1))
	d := libvirtxml.Domain{
		Type: kind, Name: at.Domain, UUID: at.UUID,
		Title:    strings.Map(printable, cmp.Or(desc.Name, string(rec.Guest.ID))),
		Memory:   &libvirtxml.DomainMemory{Value: mib(max(desc.Memory, desc.MemoryMax)), Unit: "MiB"},
		VCPU:     &libvirtxml.DomainVCPU{Value: vcpus},
		OS:       &libvirtxml.DomainOS{Type: &libvirtxml.DomainOSType{Arch: "x86_64", Machine: "pc", Type: "hvm"}},
		Features: &libvirtxml.DomainFeatureList{ACPI: &libvirtxml.DomainFeature{}, APIC: &libvirtxml.DomainFeatureAPIC{}, VMPort: &libvirtxml.DomainFeatureState{State: "off"}},
		Clock:    &libvirtxml.DomainClock{Offset: "utc"},
		// A guest that powers itself off is told from a crash by libvirt's reason.
		OnPoweroff: "destroy", OnReboot: "restart", OnCrash: "preserve",
	}
	if desc.MemoryMax > desc.Memory {
		d.CurrentMemory = &libvirtxml.DomainCurrentMemory{Value: mib(desc.Memory), Unit: "MiB"}
	}
	if kind == kindMock {
		d.OS.Type.Machine, d.OS.Type.Arch, d.Features = "", "", nil
		return d.Marshal()
	}

	d.CPU = &libvirtxml.DomainCPU{Mode: "custom", Match: "exact", Check: "none",
		Model:    &libvirtxml.DomainCPUModel{Fallback: "forbid", Value: cpuModel},
		Features: []libvirtxml.DomainCPUFeature{{Policy: "require", Name: cpuFeature}}}
	if kind == kindTCG {
		d.Features.TCG = &libvirtxml.DomainFeatureTCG{TBCache: &libvirtxml.DomainFeatureTCGTBCache{Unit: "MiB", Size: tbCache}}
	}
	d.CPUTune = cpuTune(desc.CPU, at)
	if at.Label != "" {
		// libvirt changes no owner: images are shared, and the guest's own files are given
		// to its user by us.
		d.SecLabel = []libvirtxml.DomainSecLabel{{Type: "static", Model: "dac", Relabel: "no", Label: at.Label}}
	}
	none := uint(0)
	d.Devices = &libvirtxml.DomainDeviceList{
		Controllers: []libvirtxml.DomainController{{Type: "usb", Index: &none, Model: "none"}},
		Serials:     []libvirtxml.DomainSerial{{Source: socket(at.Console), Target: &libvirtxml.DomainSerialTarget{Type: "isa-serial"}}},
		Channels: []libvirtxml.DomainChannel{{Source: socket(at.Channel),
			Target: &libvirtxml.DomainChannelTarget{VirtIO: &libvirtxml.DomainChannelTargetVirtIO{Name: channel.PortName}}}},
		RNGs: []libvirtxml.DomainRNG{{Model: "virtio",
			Backend: &libvirtxml.DomainRNGBackend{Random: &libvirtxml.DomainRNGBackendRandom{Device: "/dev/urandom"}}}},
		// It deflates when it is told to and not for a guest that runs out of memory: such a
		// guest would count as its own what it was not given.
		MemBalloon: &libvirtxml.DomainMemBalloon{Model: "virtio", FreePageReporting: "on"},
	}
	direct := bootDirectly(rec, d.OS)
	disks, cdroms := 0, 0
	for i, k := range disk.Plan(rec.Guest) {
		x := diskXML(k, at.Dir)
		if k.Kind == disk.Medium {
			x.Target = target("ide", "hd", &cdroms)
		} else {
			x.Target = target("virtio", "vd", &disks)
		}
		if i == 0 && !direct {
			x.Boot = &libvirtxml.DomainDeviceBoot{Order: 1}
		}
		d.Devices.Disks = append(d.Devices.Disks, x)
	}
	if len(desc.Context) > 0 {
		d.Devices.Disks = append(d.Devices.Disks, libvirtxml.DomainDisk{
			Device: "disk", Driver: &libvirtxml.DomainDiskDriver{Name: "qemu", Type: "raw"},
			Source: file(filepath.Join(at.Dir, disk.SeedFile)), Target: target("virtio", "vd", &disks), Serial: disk.SeedLabel,
			ReadOnly: &libvirtxml.DomainDiskReadOnly{},
		})
	}
	for _, n := range rec.Guest.NICs {
		noROM := libvirtxml.DomainROM{Enabled: "no"} // nothing boots from the network
		d.Devices.Interfaces = append(d.Devices.Interfaces, libvirtxml.DomainInterface{
			MAC:    &libvirtxml.DomainInterfaceMAC{Address: n.MAC},
			Source: &libvirtxml.DomainInterfaceSource{Ethernet: &libvirtxml.DomainInterfaceSourceEthernet{}},
			// The TAP device is there and stays: the agent made it and plugged it in.
			Target: &libvirtxml.DomainInterfaceTarget{Dev: n.Tap, Managed: "no"},
			Model:  &libvirtxml.DomainInterfaceModel{Type: "virtio"},
			ROM:    &noROM,
		})
	}
	return d.Marshal()
}

// bootDirectly says whether the first disk's image is a kernel, and names it.
func bootDirectly(rec record, o *libvirtxml.DomainOS) bool {
	disks := rec.Guest.Descriptor.Disks
	if len(disks) == 0 {
		return false
	}
	for _, i := range rec.Guest.Images {
		if i.Digest == disks[0].Image && i.Kernel != "" {
			o.Kernel, o.Initrd, o.Cmdline = i.Kernel, i.Initrd, i.KernelOptions(rec.Guest.Descriptor.VCPUs)
			return true
		}
	}
	return false
}

func diskXML(k disk.Disk, dir string) libvirtxml.DomainDisk {
	x := libvirtxml.DomainDisk{
		Device: "disk", Serial: k.Name[:min(len(k.Name), 20)], // virtio's length
		Driver: &libvirtxml.DomainDiskDriver{Name: "qemu", Type: disk.Format(k.File), Discard: "unmap"},
	}
	if k.Kind == disk.Medium {
		x.Device, x.Driver.Type, x.Source = "cdrom", k.Base.Format, file(k.Base.Disk)
		x.ReadOnly = &libvirtxml.DomainDiskReadOnly{}
		return x
	}
	x.Source = file(filepath.Join(dir, k.File))
	// A full or failing disk stops the guest instead of corrupting it.
	x.Driver.ErrorPolicy, x.Driver.RErrorPolicy = "stop", "stop"
	// Said in any case: a file's own word for its backing file is not trusted.
	x.BackingStore = &libvirtxml.DomainDiskBackingStore{}
	if k.Kind == disk.Clone {
		x.BackingStore.Format = &libvirtxml.DomainDiskFormat{Type: k.Base.Format}
		x.BackingStore.Source = file(k.Base.Disk)
		x.BackingStore.BackingStore = &libvirtxml.DomainDiskBackingStore{}
	}
	return x
}

// target is the next device of its kind: vda, vdb, … vdz, vdaa.
func target(bus, prefix string, n *int) *libvirtxml.DomainDiskTarget {
	name := string(rune('a' + *n%26))
	if *n >= 26 {
		name = string(rune('a'+*n/26-1)) + name
	}
	*n++
	return &libvirtxml.DomainDiskTarget{Dev: prefix + name, Bus: bus}
}

func file(path string) *libvirtxml.DomainDiskSource {
	return &libvirtxml.DomainDiskSource{File: &libvirtxml.DomainDiskSourceFile{File: path}}
}

func socket(path string) *libvirtxml.DomainChardevSource {
	return &libvirtxml.DomainChardevSource{UNIX: &libvirtxml.DomainChardevSourceUNIX{Mode: "bind", Path: path}}
}

// cpuTune of a guest: its weight, and its limit as CPU time of each of its vCPUs.
func cpuTune(c vee.CPUShare, at place) *libvirtxml.DomainCPUTune {
	var t libvirtxml.DomainCPUTune
	if c.Weight > 0 {
		t.Shares = &libvirtxml.DomainCPUTuneShares{Value: uint(max(c.Weight*at.Shares/100, 2))}
	}
	if c.LimitMHz > 0 && at.MHz > 0 {
		t.GlobalPeriod = &libvirtxml.DomainCPUTunePeriod{Value: cpuPeriod}
		// libvirt takes no quota below 1 ms.
		t.GlobalQuota = &libvirtxml.DomainCPUTuneQuota{Value: max(int64(c.LimitMHz)*cpuPeriod/int64(at.MHz), 1000)}
	}
	if t.Shares == nil && t.GlobalQuota == nil {
		return nil
	}
	return &t
}

func mib(b vee.Bytes) uint { return uint((b + vee.MiB - 1) / vee.MiB) }

// printable keeps XML well formed whatever a provider calls his VEE.
func printable(r rune) rune {
	if r < ' ' {
		return -1
	}
	return r
}

// domainName is libvirt's name of a guest: those of one driver share the prefix.
func domainName(prefix string, id vee.ID) string { return prefix + string(id) }
