package doctor

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/reservoir-cloud/reservoir/vee"
)

// Machine is what Gather cannot find out by itself.
type Machine struct {
	Dir string // where guests' disks will be
	// Accelerator boots a guest to see which one works: name, and why in words.
	Accelerator func(context.Context) (name, why string, err error)
	// CgroupMissing names the controllers that guests cannot be bounded by.
	CgroupMissing func() []string
	Libvirt       func(context.Context) (version string, err error) // nil: not asked for
}

// Gather looks at this machine. As root it tries the kernel's features in a network
// namespace of its own, which is gone afterwards.
func Gather(ctx context.Context, m Machine) (Facts, error) {
	f := Facts{Root: os.Geteuid() == 0, Programs: map[string]string{}, Kernel: map[string]string{}, Dir: m.Dir}
	for _, p := range append(hostPrograms[:len(hostPrograms):len(hostPrograms)], buildPrograms...) {
		f.Programs[p.name] = lookup(p.name)
	}
	if f.Root {
		f.Kernel = tryKernel()
	}
	if f.Programs["qemu-system-x86_64"] != "" {
		var err error
		if f.Accelerator, f.Why, err = m.Accelerator(ctx); err != nil {
			f.AcceleratorErr = err.Error()
		}
	}
	for _, p := range Ports {
		l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", ":"+strconv.Itoa(p))
		if err != nil {
			f.PortsTaken = append(f.PortsTaken, p)
			continue
		}
		l.Close()
	}
	f.CgroupMissing = m.CgroupMissing()
	var err error
	if m.Libvirt != nil {
		if f.Libvirt, err = m.Libvirt(ctx); err != nil {
			f.LibvirtErr = err.Error()
		}
	}
	if f.DiskFree, err = DiskFree(m.Dir); err != nil {
		return f, err
	}
	f.MemoryFree, err = MemoryFree()
	return f, err
}

// lookup finds a program also where only root's PATH leads.
func lookup(name string) string {
	if p, err := exec.LookPath(name); err == nil {
		return p
	}
	for _, dir := range []string{"/usr/sbin", "/sbin"} {
		if p, err := exec.LookPath(filepath.Join(dir, name)); err == nil {
			return p
		}
	}
	return ""
}

// tryKernel makes one of everything in a namespace of its own, which goes when the thread
// leaves it.
func tryKernel() map[string]string {
	why := map[string]string{}
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		home, err := netns.Get()
		if err == nil {
			defer home.Close()
			var ns netns.NsHandle
			if ns, err = netns.New(); err == nil {
				defer func() {
					ns.Close()
					if netns.Set(home) == nil {
						runtime.UnlockOSThread() // else the thread ends with this goroutine
					}
				}()
			}
		}
		if err != nil {
			for _, k := range Features {
				why[k] = err.Error()
			}
			return
		}
		note := func(feature string, err error) {
			if err != nil {
				why[feature] = err.Error()
			}
		}
		attrs := func(name string) netlink.LinkAttrs {
			a := netlink.NewLinkAttrs()
			a.Name = name
			return a
		}
		tap := &netlink.Tuntap{LinkAttrs: attrs("t0"), Mode: netlink.TUNTAP_MODE_TAP, Queues: 1}
		note("tun", netlink.LinkAdd(tap))
		for _, fd := range tap.Fds {
			fd.Close()
		}
		note("bridge", netlink.LinkAdd(&netlink.Bridge{LinkAttrs: attrs("b0")}))
		note("veth", netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs("v0"), PeerName: "v1"}))
		note("vxlan", netlink.LinkAdd(&netlink.Vxlan{LinkAttrs: attrs("x0"), VxlanId: 1, Port: 4789}))
		note("nf_tables", tryTables())
		_, err = os.Stat("/proc/sys/net/bridge") // it shows a bridge's packets to the firewall
		note("br_netfilter", err)
	}()
	<-done
	return why
}

func tryTables() error {
	c, err := nftables.New()
	if err != nil {
		return err
	}
	c.AddTable(&nftables.Table{Family: nftables.TableFamilyINet, Name: "reservoir-doctor"})
	return c.Flush()
}

// MemoryFree is what new processes may take, as the kernel estimates it.
func MemoryFree() (vee.Bytes, error) {
	b, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return 0, fmt.Errorf("how much memory is free: %w", err)
	}
	_, rest, _ := strings.Cut(string(b), "MemAvailable:")
	fields := strings.Fields(rest)
	if len(fields) == 0 {
		return 0, errors.New("how much memory is free: /proc/meminfo has no MemAvailable")
	}
	kib, err := strconv.ParseInt(fields[0], 10, 64)
	return vee.Bytes(kib) * vee.KiB, err
}

// DiskFree at the nearest directory above path that is there.
func DiskFree(path string) (vee.Bytes, error) {
	for {
		var st unix.Statfs_t
		err := unix.Statfs(path, &st)
		if err == nil {
			return vee.Bytes(st.Bavail) * vee.Bytes(st.Bsize), nil
		}
		if !errors.Is(err, unix.ENOENT) || path == "/" {
			return 0, fmt.Errorf("how much disk is free at %s: %w", path, err)
		}
		path = filepath.Dir(path)
	}
}
