package qemu

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"

	"github.com/reservoir-cloud/reservoir/vee"
	channel "github.com/reservoir-cloud/reservoir/vhi/guest"
)

// DefaultCPU is the CPU model that guests see. It is one that every x86-64 machine of the
// last fifteen years has under either accelerator, so that guests can move between hosts;
// RDRAND where there is one lets their kernels start with entropy.
const DefaultCPU = "qemu64,+rdrand"

// tbSize is the size of TCG's cache of translated code, MiB. QEMU's own default would be
// as large as the guest's memory.
const tbSize = 16

// diskQueues is how many queues a disk has at most: one for each vCPU.
const diskQueues = 8

// machine is all that a QEMU is started with. Numbers called FD are those of files that it
// inherits; 0 is none.
type machine struct {
	Name        string // token, by which the process is found
	Type        string // with its version: what saved memory can be loaded into again
	CPU         string
	Accelerator string
	VCPUs       int
	VCPUsMax    int       // that can be plugged in later
	Memory      vee.Bytes // the most that the balloon may leave it

	KernelFD, InitrdFD int
	Cmdline            string
	Drives             []drive // in the order of their devices
	NICs               []nic

	QMPFD, ConsoleFD, GuestFD int  // listening sockets
	IncomingFD                int  // saved memory to start from
	Deferred                  bool // memory comes later, over a stream

	Raw []string
}

// drive is one disk, with what it is a clone of.
type drive struct {
	Serial   string // in the guest /dev/disk/by-id/virtio-<serial>
	FD       int
	Format   string
	ReadOnly bool
	CDROM    bool

	Under []layerFile // what it is written over, next first
}

// layerFile is a frozen layer or an image under a drive.
type layerFile struct {
	FD     int
	Format string
}

type nic struct {
	FD  int // a TAP device
	MAC string
}

// object is a JSON argument; QEMU takes -blockdev, -device and -netdev so, and no name can
// break out of its place.
type object map[string]any

// memory is the size of the guest's memory. Under TCG it is 8 KiB more than a whole number of
// MiB: in QEMU 7.2, where memory is a multiple of 64 pages, live migration clears its
// dirty bitmap a word at a time and does not tell TCG, whose next writes to those pages are
// then lost to the destination (a guest's kernel failed after one of a hundred migrations;
// mended later by "physmem: Fix migration dirty bitmap coherency with TCG memory access"). Other
// sizes are gone through page by page, as they should be.
func (m machine) memory() string {
	mib := int64((m.Memory + vee.MiB - 1) / vee.MiB)
	if m.Accelerator == "tcg" {
		return fmt.Sprintf("%dK", mib*1024+8)
	}
	return fmt.Sprintf("%dM", mib)
}

// args is the command line without the program's name. The vCPUs do not run until QMP
// says "cont".
func (m machine) args() []string {
	accel := m.Accelerator
	if accel == "tcg" {
		accel = fmt.Sprintf("tcg,tb-size=%d", tbSize)
	}
	smp := strconv.Itoa(m.VCPUs)
	if m.VCPUsMax > m.VCPUs {
		smp += fmt.Sprintf(",maxcpus=%d", m.VCPUsMax)
	}
	args := []string{
		"-name", m.Name,
		"-machine", m.Type + ",usb=off,vmport=off,dump-guest-core=off",
		"-accel", accel,
		"-cpu", m.CPU,
		"-smp", smp,
		"-m", m.memory(),
		"-nodefaults", "-no-user-config", "-display", "none",
		"-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
		"-rtc", "base=utc",
		// A guest that powers itself off leaves its QEMU for the driver to end: so it can
		// be told from a crash also when no agent was there to see it.
		"-action", "shutdown=pause",
		"-S",
	}
	json := func(option string, o object) { args = append(args, option, o.String()) }
	socket := func(id string, fd int) {
		args = append(args, "-chardev", fmt.Sprintf("socket,id=%s,fd=%d,server=on,wait=off", id, fd))
	}

	socket("qmp", m.QMPFD)
	args = append(args, "-mon", "chardev=qmp,mode=control")
	socket("console", m.ConsoleFD)
	args = append(args, "-serial", "chardev:console")
	json("-device", object{"driver": "virtio-serial-pci", "max_ports": 2})
	socket("guest", m.GuestFD)
	json("-device", object{"driver": "virtserialport", "chardev": "guest", "name": channel.PortName})
	args = append(args, "-object", "rng-random,id=rng,filename=/dev/urandom")
	json("-device", object{"driver": "virtio-rng-pci", "rng": "rng"})
	// It holds what the guest has not got of its range (resize.go), so it never gives way.
	json("-device", object{"driver": "virtio-balloon-pci", "free-page-reporting": true})

	if m.KernelFD != 0 {
		args = append(args, "-kernel", fdPath(m.KernelFD), "-append", m.Cmdline)
		if m.InitrdFD != 0 {
			args = append(args, "-initrd", fdPath(m.InitrdFD))
		}
	}
	for i, d := range m.Drives {
		args = append(args, d.args(i, m.KernelFD == 0, min(max(m.VCPUs, m.VCPUsMax), diskQueues))...)
	}
	for i, n := range m.NICs {
		id := fmt.Sprintf("net%d", i)
		json("-netdev", object{"type": "tap", "id": id, "fd": strconv.Itoa(n.FD)})
		// No ROM: nothing boots from the network.
		json("-device", object{"driver": "virtio-net-pci", "netdev": id, "mac": n.MAC, "romfile": ""})
	}
	if m.IncomingFD != 0 {
		args = append(args, "-incoming", fmt.Sprintf("fd:%d", m.IncomingFD))
	}
	if m.Deferred {
		args = append(args, "-incoming", "defer")
	}
	return append(args, m.Raw...)
}

func (d drive) args(i int, bootable bool, queues int) []string {
	var args []string
	node := func(name string, fd int, format string, readOnly bool, backing any) {
		file := object{
			"driver": "file", "node-name": name + "-file", "filename": fmt.Sprintf("/dev/fdset/%d", fd),
			"read-only": readOnly, "discard": "unmap",
		}
		top := object{
			"driver": format, "node-name": name, "file": name + "-file",
			"read-only": readOnly, "discard": "unmap",
		}
		if format == "qcow2" {
			// Said in any case: the file's own word for its backing file is not trusted.
			top["backing"] = backing
		}
		args = append(args, "-add-fd", fmt.Sprintf("fd=%d,set=%d", fd, fd),
			"-blockdev", file.String(), "-blockdev", top.String())
	}
	name := fmt.Sprintf("disk%d", i)
	var backing any
	for n := len(d.Under) - 1; n >= 0; n-- { // the lowest first, called base
		under := name + "-base"
		if n < len(d.Under)-1 {
			under = fmt.Sprintf("%s-layer%d", name, len(d.Under)-1-n)
		}
		node(under, d.Under[n].FD, d.Under[n].Format, true, backing)
		backing = under
	}
	node(name, d.FD, d.Format, d.ReadOnly, backing)

	// QEMU's own default, the number of vCPUs, would be another after one was plugged in, and
	// saved memory could not be loaded.
	device := object{"driver": "virtio-blk-pci", "drive": name, "serial": d.Serial, "num-queues": queues}
	if d.CDROM {
		device = object{"driver": "ide-cd", "drive": name, "serial": d.Serial}
	} else if !d.ReadOnly {
		// A full or failing disk stops the guest instead of corrupting it.
		device["werror"], device["rerror"] = "stop", "stop"
	}
	if bootable && i == 0 {
		device["bootindex"] = 0
	}
	return append(args, "-device", device.String())
}

func fdPath(fd int) string { return fmt.Sprintf("/proc/self/fd/%d", fd) }

// String is the object's JSON, keys sorted.
func (o object) String() string {
	var b strings.Builder
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(o); err != nil {
		panic(err) // made of strings, numbers and booleans only
	}
	return strings.TrimSuffix(b.String(), "\n")
}
