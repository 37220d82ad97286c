// Package doctor says whether a machine has what Reservoir needs, and for each thing that
// it lacks the command that brings it. Gather looks at the machine; Judge, which is pure,
// makes findings of what was seen.
package doctor

import (
	"fmt"
	"slices"
	"strings"

	"github.com/reservoir-cloud/reservoir/vee"
)

// Level of a finding.
type Level string

// Levels. Only a problem keeps something from working.
const (
	OK      Level = "ok"
	Warning Level = "warning"
	Problem Level = "problem"
)

// Finding about one thing.
type Finding struct {
	Check string `json:"check"`
	Level Level  `json:"level"`
	Found string `json:"found"`
	Fix   string `json:"fix,omitempty"` // exact command, or what to do
}

// Facts are what Gather saw.
type Facts struct {
	Root     bool
	OS       string            // PRETTY_NAME of /etc/os-release
	Programs map[string]string // name → path, empty where it is missing
	Kernel   map[string]string // feature → why it does not work, empty where it does
	// Accelerator that a timed test boot chose, and why; AcceleratorErr when none works.
	Accelerator, Why, AcceleratorErr string
	PortsTaken                       []int // of Ports
	Dir                              string
	DiskFree, MemoryFree             vee.Bytes
	CgroupMissing                    []string // controllers that are not to be had
	// Libvirt is what it and its hypervisor call themselves, LibvirtErr why it does not
	// answer; both are empty where nobody asked for it.
	Libvirt, LibvirtErr string
}

// program that is needed, and Debian's package of it.
type program struct{ name, pkg, why string }

// Programs that a host runs, then those that only building images and tests needs.
var (
	hostPrograms  = []program{{"qemu-system-x86_64", "qemu-system-x86", "runs guests"}, {"qemu-img", "qemu-utils", "makes disks"}}
	buildPrograms = []program{{"mmdebstrap", "mmdebstrap", "builds the debian image"}, {"mkfs.ext4", "e2fsprogs", "builds the debian image"}}
)

// Features of the kernel that a host uses.
var Features = []string{"network namespaces", "tun", "bridge", "veth", "vxlan", "nf_tables", "br_netfilter"}

// Ports that the processes listen on unless told otherwise.
var Ports = []int{8440, 8441}

// What a host should have at least; with less than Tight of either it is told so.
const (
	leastDisk, tightDisk     = 2 * vee.GiB, 10 * vee.GiB
	leastMemory, tightMemory = 1 * vee.GiB, 2 * vee.GiB
)

// Judge makes findings of facts, in the order in which a person would mend them.
func Judge(f Facts) []Finding {
	var list []Finding
	add := func(check string, level Level, found, fix string) {
		list = append(list, Finding{check, level, found, fix})
	}

	if f.Root {
		add("user", OK, "root", "")
	} else {
		add("user", Problem, "not root: a host makes TAP devices and network namespaces (a site needs no root)", "sudo reservoir doctor")
	}
	var missing []string
	for _, p := range append(slices.Clone(hostPrograms), buildPrograms...) {
		if f.Programs[p.name] == "" {
			missing = append(missing, p.pkg)
		}
	}
	install := "apt-get update && apt-get install -y --no-install-recommends " + strings.Join(missing, " ")
	programs := func(list []program, level Level) {
		for _, p := range list {
			if path := f.Programs[p.name]; path != "" {
				add(p.name, OK, path, "")
			} else {
				add(p.name, level, "not there; it "+p.why, install)
			}
		}
	}
	programs(hostPrograms, Problem)
	programs(buildPrograms, Warning)
	for _, k := range Features {
		switch why := f.Kernel[k]; {
		case !f.Root:
			add(k, Warning, "not looked at: needs root", "sudo reservoir doctor")
		case why != "":
			add(k, Problem, why, kernelFix[k])
		default:
			add(k, OK, "works", "")
		}
	}
	switch {
	case f.AcceleratorErr != "":
		add("accelerator", Problem, f.AcceleratorErr, "see that a guest boots: qemu-system-x86_64 -accel help")
	case f.Accelerator == "tcg":
		add("accelerator", Warning, "tcg: "+f.Why, "guests run, slowly; for speed give this machine a working /dev/kvm")
	case f.Accelerator != "":
		add("accelerator", OK, f.Accelerator+": "+f.Why, "")
	}
	switch {
	case f.LibvirtErr != "":
		add("libvirt", Problem, f.LibvirtErr, "apt-get update && apt-get install -y --no-install-recommends libvirt-daemon-system libvirt-daemon-driver-qemu, then: systemctl start virtlogd libvirtd")
	case f.Libvirt != "":
		add("libvirt", OK, f.Libvirt, "")
	}
	for _, p := range Ports {
		if slices.Contains(f.PortsTaken, p) {
			add(fmt.Sprintf("port %d", p), Warning, "taken: fine when it is Reservoir that listens", fmt.Sprintf("see who: ss -ltnp sport = :%d; or choose another with --listen", p))
		} else {
			add(fmt.Sprintf("port %d", p), OK, "free", "")
		}
	}
	room := func(check string, free, least, tight vee.Bytes, fix string) {
		switch {
		case free < least:
			add(check, Problem, fmt.Sprintf("%s free: want at least %s", free, least), fix)
		case free < tight:
			add(check, Warning, fmt.Sprintf("%s free: enough for few guests", free), fix)
		default:
			add(check, OK, free.String()+" free", "")
		}
	}
	room("disk", f.DiskFree, leastDisk, tightDisk, "make room at "+f.Dir+", or choose another --dir")
	room("memory", f.MemoryFree, leastMemory, tightMemory, "end what is not needed, or offer less: reservoir host --memory")
	if len(f.CgroupMissing) > 0 {
		add("control groups", Warning, "guests cannot be bounded in "+strings.Join(f.CgroupMissing, ", "), "mount -t cgroup2 none /sys/fs/cgroup, or enable the controllers in the kernel's command line")
	} else {
		add("control groups", OK, "cpu, memory, pids", "")
	}
	return list
}

var kernelFix = map[string]string{
	"network namespaces": "use a kernel with CONFIG_NET_NS",
	"tun":                "modprobe tun",
	"bridge":             "modprobe bridge",
	"veth":               "modprobe veth",
	"vxlan":              "modprobe vxlan",
	"nf_tables":          "modprobe nf_tables",
	"br_netfilter":       "modprobe br_netfilter",
}

// Worst level of a list of findings.
func Worst(list []Finding) Level {
	worst := OK
	for _, f := range list {
		if f.Level == Problem || f.Level == Warning && worst == OK {
			worst = f.Level
		}
	}
	return worst
}
