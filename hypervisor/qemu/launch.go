package qemu

import (
	"context"
	"fmt"
	"hash/fnv"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/reservoir-cloud/reservoir/hypervisor"
	"github.com/reservoir-cloud/reservoir/hypervisor/disk"
	"github.com/reservoir-cloud/reservoir/hypervisor/qemu/cgroup"
	"github.com/reservoir-cloud/reservoir/vee"
)

// launchPatience is how long a QEMU may take until its monitor answers. It loads kernel
// and initrd before that.
const launchPatience = 60 * time.Second

// inherited are the files that a QEMU gets, numbered from 3 in the order of open.
type inherited struct{ files []*os.File }

// add takes over f, and says which number it will have.
func (in *inherited) add(f *os.File) int {
	in.files = append(in.files, f)
	return 2 + len(in.files)
}

// open a file for it.
func (in *inherited) open(path string, flag int) (int, error) {
	f, err := os.OpenFile(path, flag, 0)
	if err != nil {
		return 0, err
	}
	return in.add(f), nil
}

// openShared is open for a file that QEMU opens again by itself, as another user.
func (in *inherited) openShared(path string) (int, error) {
	fd, err := in.open(path, os.O_RDONLY)
	if err != nil {
		return 0, err
	}
	st, err := in.files[fd-3].Stat()
	if err == nil && os.Geteuid() == 0 && st.Mode()&0o004 == 0 {
		err = fmt.Errorf("%s must be readable by everybody, since guests run as users of their own: chmod o+r", path)
	}
	return fd, err
}

func (in *inherited) close() {
	for _, f := range in.files {
		f.Close()
	}
}

// launch starts the guest's QEMU with its vCPUs stopped and its monitor answering. Until
// the caller says otherwise by become, the guest is again what it was when the process
// ends. incoming is saved memory to start from, or nil.
//
// The process is found again after a crash at any instruction: before it is in the record
// by its token, from then on by its identity.
func (g *guest) launch(ctx context.Context, incoming *os.File, want hypervisor.Condition) (_ *vm, err error) {
	d, before, rec := g.d, g.condition(), g.record()
	m, in, err := g.machine(rec, incoming)
	defer in.close()
	if err != nil {
		return nil, err
	}
	log, err := g.openLog()
	if err != nil {
		return nil, disk.NoSpace(err)
	}
	defer log.Close()

	cmd := exec.Command(d.cfg.Binary, m.args()...) //nolint:noctx // it outlives every context of ours
	cmd.Dir = "/"
	cmd.Env = []string{"LC_ALL=C", "PATH=/usr/bin:/bin"}
	cmd.Stdout, cmd.Stderr = log, log
	cmd.ExtraFiles = in.files
	// A session of its own: no signal for the agent's group reaches it.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Credential: d.credential(rec.UID, m.Accelerator)}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start QEMU: %w", err)
	}
	defer func() { _ = cmd.Process.Release() }() // ended and waited for through its pidfd, as an adopted one
	in.close()                                   // who holds a socket that QEMU listens on would wait for its answer also when it has ended
	id, err := identify(cmd.Process.Pid)
	var p *process
	if err == nil {
		p, err = openProcess(id)
	}
	if err != nil {
		_ = cmd.Wait()
		return nil, fmt.Errorf("start QEMU: it ended at once; %s", g.lastWords())
	}
	v := g.attach(p, before)
	defer func() {
		if err != nil {
			clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), killPatience)
			defer cancel()
			_ = v.end(clean) // what is left of it, the next New ends
			if words := g.lastWords(); words != "" {
				err = fmt.Errorf("%w; QEMU says: %s", err, words)
			}
		}
	}()

	if err := d.cgroups.Place(d.prefix+string(g.id), p.PID, d.limits(rec.Guest.Descriptor.CPU, m)); err != nil {
		return nil, err
	}
	if err := g.save(func(r *record) {
		r.Process, r.Want, r.Reason = &id, want, ""
		r.Machine, r.CPU, r.Accelerator = m.Type, m.CPU, m.Accelerator
	}); err != nil {
		return nil, err
	}
	if err := d.cfg.Guard(ctx, g.id, p.PID); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, launchPatience, fmt.Errorf("QEMU does not answer after %s", launchPatience))
	defer cancel()
	if err := v.connect(ctx); err != nil {
		return nil, err
	}
	return v, nil
}

// machine of the guest, and the files that go with it; close them also on an error.
func (g *guest) machine(rec record, incoming *os.File) (machine, *inherited, error) {
	d, in := g.d, &inherited{}
	desc := rec.Guest.Descriptor
	m := machine{
		Name:        d.token(g.id),
		Type:        machineType(d.caps.Version),
		CPU:         d.cfg.CPU,
		Accelerator: d.caps.Accelerator,
		VCPUs:       max(desc.VCPUs, 1),
		VCPUsMax:    max(desc.VCPUs, desc.VCPUsMax),
		Memory:      max(desc.Memory, desc.MemoryMax),
	}
	m.Deferred = rec.Want == hypervisor.Incoming
	if incoming != nil || m.Deferred { // memory fits only what it came from
		m.Type, m.CPU, m.Accelerator = rec.Machine, rec.CPU, rec.Accelerator
	}
	if d.cfg.AllowRaw {
		m.Raw = strings.Fields(desc.Raw[Name])
	}

	// The image of the first disk says how the VEE boots.
	if len(desc.Disks) > 0 {
		for _, i := range rec.Guest.Images {
			if i.Digest != desc.Disks[0].Image || i.Kernel == "" {
				continue
			}
			var err error
			m.Cmdline = i.KernelOptions(m.VCPUsMax)
			if m.KernelFD, err = in.openShared(i.Kernel); err != nil {
				return m, in, err
			}
			if i.Initrd != "" {
				if m.InitrdFD, err = in.openShared(i.Initrd); err != nil {
					return m, in, err
				}
			}
		}
	}
	for _, k := range disk.Plan(rec.Guest) {
		var err error
		r := drive{Serial: k.Name[:min(len(k.Name), 20)]} // virtio's length
		switch k.Kind {
		case disk.Medium:
			r.Format, r.ReadOnly, r.CDROM = k.Base.Format, true, true
			r.FD, err = in.open(k.Base.Disk, os.O_RDONLY)
		default:
			r.Format = disk.Format(rec.topOf(k))
			r.FD, err = in.open(filepath.Join(g.dir, rec.topOf(k)), os.O_RDWR)
			for _, l := range g.under(rec, k) {
				if err == nil {
					var fd int
					fd, err = in.open(l.path, os.O_RDONLY)
					r.Under = append(r.Under, layerFile{fd, l.format})
				}
			}
		}
		if err != nil {
			return m, in, err
		}
		m.Drives = append(m.Drives, r)
	}
	if len(desc.Context) > 0 {
		fd, err := in.open(filepath.Join(g.dir, disk.SeedFile), os.O_RDONLY)
		if err != nil {
			return m, in, err
		}
		m.Drives = append(m.Drives, drive{Serial: disk.SeedLabel, FD: fd, Format: "raw", ReadOnly: true})
	}
	for _, n := range rec.Guest.NICs {
		tap, err := openTap(n.Tap)
		if err != nil {
			return m, in, err
		}
		m.NICs = append(m.NICs, nic{in.add(tap), n.MAC})
	}
	for _, s := range []struct {
		fd   *int
		name string
	}{{&m.QMPFD, "qmp.sock"}, {&m.ConsoleFD, "console.sock"}, {&m.GuestFD, "guest.sock"}} {
		f, err := listenUnix(g.dir, s.name)
		if err != nil {
			return m, in, disk.NoSpace(err)
		}
		*s.fd = in.add(f)
	}
	if incoming != nil {
		// Held by the caller too, so a handle of its own.
		fd, err := unix.FcntlInt(incoming.Fd(), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			return m, in, err
		}
		m.IncomingFD = in.add(os.NewFile(uintptr(fd), incoming.Name()))
	}
	return m, in, nil
}

// machineType of QEMU's version, "pc-i440fx-7.2" for "7.2.22". The name without a version
// would mean another machine after an upgrade, and saved memory could not be loaded.
func machineType(version string) string {
	parts := strings.SplitN(version, ".", 3)
	if len(parts) < 2 {
		return "pc"
	}
	return "pc-i440fx-" + parts[0] + "." + parts[1]
}

// limits of a guest's process: the guest's own share, and what QEMU needs beside it.
func (d *Driver) limits(cpu vee.CPUShare, m machine) cgroup.Limits {
	l := cgroup.Limits{
		Weight: cpu.Weight,
		Memory: int64(m.Memory + memoryOverhead(m.Memory)),
		Tasks:  128 + 4*max(m.VCPUs, m.VCPUsMax), // vCPUs, and QEMU's pool of at most 64 for I/O
	}
	if cpu.LimitMHz > 0 && d.cfg.HostMHz > 0 {
		l.CPUs = float64(cpu.LimitMHz) / float64(d.cfg.HostMHz)
	}
	return l
}

// memoryOverhead of a guest's process over the guest's memory: QEMU itself, translated
// code, kernel and initrd as they were loaded, page tables, the disks' page cache.
func memoryOverhead(memory vee.Bytes) vee.Bytes { return 192*vee.MiB + memory/32 }

// credential of a guest's user, nil where the driver is not root.
func (d *Driver) credential(uid int, accelerator string) *syscall.Credential {
	if os.Geteuid() != 0 {
		return nil
	}
	c := &syscall.Credential{Uid: uint32(uid), Gid: uint32(uid)}
	var st unix.Stat_t
	if accelerator == "kvm" && unix.Stat("/dev/kvm", &st) == nil && st.Gid != 0 {
		c.Groups = []uint32{st.Gid}
	}
	return c
}

// users gives each guest of a driver a user of its own. It has a lock of its own, which is
// held while no other is taken.
type users struct {
	first, n int

	mu    sync.Mutex
	taken map[int]vee.ID
	of    map[vee.ID]int
}

func newUsers(first, n int) *users {
	return &users{first: first, n: n, taken: map[int]vee.ID{}, of: map[vee.ID]int{}}
}

// keep notes the user that an adopted guest has.
func (u *users) keep(id vee.ID, uid int) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.taken[uid], u.of[id] = id, uid
}

// take a user for id that no other guest of this driver has, or the one that it has
// already. The search starts at a place that depends on token, so that drivers that share a
// range hardly ever share a user.
func (u *users) take(id vee.ID, token string) int {
	u.mu.Lock()
	defer u.mu.Unlock()
	if uid, ok := u.of[id]; ok {
		return uid
	}
	h := fnv.New32a()
	h.Write([]byte(token))
	start := int(h.Sum32()) & 0x7fffffff
	uid := u.first + start%u.n // where there are more guests than users
	for i := range u.n {
		free := u.first + (start+i)%u.n
		if _, taken := u.taken[free]; !taken {
			uid = free
			break
		}
	}
	u.taken[uid], u.of[id] = id, uid
	return uid
}

func (u *users) free(id vee.ID) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if uid, ok := u.of[id]; ok && u.taken[uid] == id {
		delete(u.taken, uid)
	}
	delete(u.of, id)
}
