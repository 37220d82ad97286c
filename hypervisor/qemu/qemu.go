// Package qemu runs guests with QEMU, directly: no daemon stands between a host's agent
// and its guests. It is spoken to over QMP (folder qmp), held down by control groups
// (folder cgroup), and started so that it survives the agent.
//
// Everything about a guest is in its own folder, <Dir>/vees/<ID>/:
//
//	guest.json     what it is and what was last made of it (record), written through
//	disk-*.qcow2   clones of images; disk-*.raw blank disks
//	seed.iso       Descriptor.Context, volume label "cidata"
//	memory.state   of a suspended guest
//	*@*            layers of disks, and memories, of snapshots (layers)
//	console.log    the end of what it wrote to its serial console
//	qemu.log       QEMU's own complaints
//	*.sock         QMP, the console, the guest agent's line
//
// A folder without guest.json is half-made or half-deleted, and goes at the next New. The
// record is written before what cannot be undone (the commit point of each command is
// named there), so that New can tell from it and from the process what to make of a guest
// after a crash at any instruction.
//
// QEMU gets no path but its own ROMs': disks, images, sockets and TAP devices are open
// files that it inherits. So it runs under a user of its own per guest, who owns nothing.
package qemu

import (
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/reservoir-cloud/reservoir/hypervisor"
	"github.com/reservoir-cloud/reservoir/hypervisor/qemu/cgroup"
	"github.com/reservoir-cloud/reservoir/internal/durable"
	"github.com/reservoir-cloud/reservoir/vee"
)

// Name of the driver, as in vee.Descriptor.Hypervisor.
const Name = "qemu"

// Config of a driver. Only Dir is needed.
type Config struct {
	Dir       string // belongs to this driver alone; made when it is not there
	Binary    string // default "qemu-system-x86_64"
	ImageTool string // default "qemu-img"

	// Accelerator "kvm" or "tcg"; empty: the one that a timed test boot finds (Probe).
	Accelerator string
	// ProbeCache is the file that keeps the test boot's result until the machine boots
	// again; default <Dir>/accelerator.json. Hosts on one machine may share it.
	ProbeCache string
	// CPU model of the guests; default DefaultCPU.
	CPU string

	// FirstUID and UIDs are the range that guests' users are taken from when the driver
	// runs as root; default 640000 and 65536. No passwd entry is needed. As another user
	// than root, guests run as that user.
	FirstUID, UIDs int
	// Cgroup is the parent of the guests' control groups, default "reservoir".
	Cgroup string
	// HostMHz is what one CPU of this host counts in CPUShare; default from /proc/cpuinfo.
	HostMHz int
	// AllowRaw lets Descriptor.Raw["qemu"] add arguments to QEMU's command line, split at
	// white space.
	AllowRaw bool

	// Guard is told of each process before its vCPUs may run; an error of it ends the process.
	// Default: nobody is told.
	Guard func(ctx context.Context, id vee.ID, pid int) error

	Now func() time.Time // default time.Now
	Log *slog.Logger     // default: nothing is logged
}

// Driver runs guests under one directory. It implements hypervisor.Driver.
type Driver struct {
	cfg     Config
	caps    hypervisor.Capabilities
	lock    *os.File
	turns   *hypervisor.Turns
	feed    *hypervisor.Feed
	cgroups *cgroup.Tree
	prefix  string // of this driver's cgroups, so that two hosts may share a machine

	ctx     context.Context // ends with Close
	close   context.CancelFunc
	watches sync.WaitGroup // goroutines that watch processes
	users   *users

	mu     sync.Mutex
	guests map[vee.ID]*guest
}

var _ hypervisor.Driver = (*Driver)(nil)

// New opens dir: it adopts the guests whose processes live, notes those that died, ends
// processes that no record owns, and removes what was half made. The first New after the
// machine booted takes the seconds of a test boot (Probe).
func New(ctx context.Context, cfg Config) (*Driver, error) {
	d, err := open(ctx, cfg)
	if err != nil {
		return nil, fmt.Errorf("open the QEMU driver on %s: %w", cfg.Dir, err)
	}
	return d, nil
}

func (cfg Config) withDefaults() Config {
	cfg.Binary = cmp.Or(cfg.Binary, "qemu-system-x86_64")
	cfg.ImageTool = cmp.Or(cfg.ImageTool, "qemu-img")
	cfg.CPU = cmp.Or(cfg.CPU, DefaultCPU)
	cfg.FirstUID = cmp.Or(cfg.FirstUID, 640000)
	cfg.UIDs = cmp.Or(cfg.UIDs, 65536)
	cfg.Cgroup = cmp.Or(cfg.Cgroup, "reservoir")
	if cfg.Guard == nil {
		cfg.Guard = func(context.Context, vee.ID, int) error { return nil }
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.HostMHz == 0 {
		cfg.HostMHz = hostMHz()
	}
	return cfg
}

func open(ctx context.Context, cfg Config) (_ *Driver, err error) {
	cfg = cfg.withDefaults()
	if err := os.MkdirAll(filepath.Join(cfg.Dir, "vees"), 0o700); err != nil {
		return nil, err
	}
	// Absolute and without links: the processes are found again by this name.
	if cfg.Dir, err = filepath.Abs(cfg.Dir); err != nil {
		return nil, err
	}
	if cfg.Dir, err = filepath.EvalSymlinks(cfg.Dir); err != nil {
		return nil, err
	}
	cfg.ProbeCache = cmp.Or(cfg.ProbeCache, filepath.Join(cfg.Dir, "accelerator.json"))

	d := &Driver{
		cfg:     cfg,
		feed:    hypervisor.NewFeed(),
		cgroups: cgroup.Find(cgroup.Root, cfg.Cgroup),
		prefix:  cgroupPrefix(cfg.Dir),
		guests:  map[vee.ID]*guest{},
		users:   newUsers(cfg.FirstUID, cfg.UIDs),
	}
	d.ctx, d.close = context.WithCancel(context.WithoutCancel(ctx))
	defer func() {
		if err != nil {
			_ = d.Close()
		}
	}()
	if d.lock, err = hypervisor.LockDir(cfg.Dir); err != nil {
		return nil, err
	}
	fence, err := hypervisor.OpenFence(filepath.Join(cfg.Dir, "epochs"))
	if err != nil {
		return nil, err
	}
	d.turns = hypervisor.NewTurns(fence)
	if err := d.adopt(ctx); err != nil {
		return nil, err
	}
	if d.caps, err = capabilities(ctx, cfg, d.cgroups); err != nil {
		return nil, err
	}
	return d, nil
}

func capabilities(ctx context.Context, cfg Config, cgroups *cgroup.Tree) (hypervisor.Capabilities, error) {
	version, err := Version(ctx, cfg.Binary)
	if err != nil {
		return hypervisor.Capabilities{}, err
	}
	c := hypervisor.Capabilities{
		Driver:      Name,
		Version:     version,
		Accelerator: cfg.Accelerator,
		Why:         "as configured",
		Operations: []string{"suspend", "console", "guest-channel", hypervisor.OpMigrate,
			hypervisor.OpMemory, hypervisor.OpVCPUs, hypervisor.OpDisks, hypervisor.OpExport, hypervisor.OpSnapshot, hypervisor.OpPack, hypervisor.OpMigrateCold},
	}
	if c.Accelerator == "" {
		p, err := cachedProbe(ctx, cfg, version)
		if err != nil {
			return hypervisor.Capabilities{}, err
		}
		c.Accelerator, c.Why = p.Accelerator, p.Why
	}
	if missing := cgroups.Missing(); len(missing) > 0 {
		c.Why += fmt.Sprintf("; guests' %s cannot be limited: no writable cgroup controller under %s",
			strings.Join(missing, ", "), cgroup.Root)
	}
	return c, nil
}

// Close lets go of all guests and leaves them running. Commands under way are cut short.
func (d *Driver) Close() error {
	var err error
	if d.turns != nil {
		err = d.turns.Close()
	}
	d.close()
	d.watches.Wait()
	d.feed.Close()
	if d.lock != nil {
		// Said, since a child between fork and exec may hold the file for a moment. A
		// second time, when Close is called again, does no harm.
		_ = unix.Flock(int(d.lock.Fd()), unix.LOCK_UN)
		d.lock.Close()
	}
	return err
}

// Capabilities were found out by New.
func (d *Driver) Capabilities(context.Context) (hypervisor.Capabilities, error) { return d.caps, nil }

// Events implements hypervisor.Driver.
func (d *Driver) Events() <-chan hypervisor.Event { return d.feed.Events() }

// Observe implements hypervisor.Driver.
func (d *Driver) Observe(context.Context) ([]hypervisor.Observation, error) {
	d.mu.Lock()
	guests := make([]*guest, 0, len(d.guests))
	for _, g := range d.guests {
		guests = append(guests, g)
	}
	d.mu.Unlock()
	var all []hypervisor.Observation
	for _, g := range guests {
		if o := g.observe(); o.Condition != hypervisor.Absent {
			all = append(all, o)
		}
	}
	slices.SortFunc(all, func(a, b hypervisor.Observation) int { return cmp.Compare(a.ID, b.ID) })
	return all, nil
}

// Inspect implements hypervisor.Driver.
func (d *Driver) Inspect(_ context.Context, id vee.ID) (hypervisor.Observation, error) {
	d.mu.Lock()
	g, ok := d.guests[id]
	d.mu.Unlock()
	if ok {
		if o := g.observe(); o.Condition != hypervisor.Absent {
			return o, nil
		}
	}
	return hypervisor.Observation{}, fmt.Errorf("inspect %s: %w", id, hypervisor.ErrNotFound)
}

// Console implements hypervisor.Driver.
func (d *Driver) Console(_ context.Context, id vee.ID) (io.ReadWriteCloser, error) {
	v, err := d.running(id)
	if err != nil {
		return nil, fmt.Errorf("attach to the console: %w", err)
	}
	c := v.openConsole()
	if c == nil {
		return nil, fmt.Errorf("attach to the console of %s: %w: its QEMU does not answer", id, hypervisor.ErrWrongState)
	}
	return c.Attach(), nil
}

// GuestChannel implements hypervisor.Driver.
func (d *Driver) GuestChannel(ctx context.Context, id vee.ID) (net.Conn, error) {
	v, err := d.running(id)
	if err != nil {
		return nil, fmt.Errorf("open the guest channel: %w", err)
	}
	conn, err := v.openChannel(ctx)
	if err != nil {
		return nil, fmt.Errorf("open the guest channel of %s: %w", id, err)
	}
	return conn, nil
}

// running is the guest's process.
func (d *Driver) running(id vee.ID) (*vm, error) {
	d.mu.Lock()
	g, ok := d.guests[id]
	d.mu.Unlock()
	if !ok {
		return nil, fmt.Errorf("%s: %w", id, hypervisor.ErrNotFound)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	switch {
	case g.cond == hypervisor.Absent:
		return nil, fmt.Errorf("%s: %w", id, hypervisor.ErrNotFound)
	case g.vm == nil:
		return nil, fmt.Errorf("%s is %s: %w", id, g.cond, hypervisor.ErrWrongState)
	}
	return g.vm, nil
}

// guest is the entry for id. Entries stay when guests go, so that commands about one guest
// always meet at the same place.
func (d *Driver) guest(id vee.ID) *guest {
	d.mu.Lock()
	defer d.mu.Unlock()
	g, ok := d.guests[id]
	if !ok {
		g = &guest{d: d, id: id, dir: filepath.Join(d.cfg.Dir, "vees", string(id)), cond: hypervisor.Absent}
		d.guests[id] = g
	}
	return g
}

// command waits for a command's turn (hypervisor.Turns) and finds its guest.
func (d *Driver) command(ctx context.Context, id vee.ID, e vee.Epoch) (*guest, context.Context, func(), error) {
	ctx, done, err := d.turns.Take(ctx, id, e)
	if err != nil {
		return nil, nil, nil, err
	}
	return d.guest(id), ctx, done, nil
}

// adopt brings the driver's view and the machine together after a start.
func (d *Driver) adopt(ctx context.Context) error {
	vees := filepath.Join(d.cfg.Dir, "vees")
	entries, err := os.ReadDir(vees)
	if err != nil {
		return err
	}
	processes, err := findProcesses(d.token(""))
	if err != nil {
		return err
	}
	var wg sync.WaitGroup
	for _, e := range entries {
		id, err := vee.ParseID(e.Name())
		if err != nil {
			continue // not ours
		}
		var rec record
		err = durable.ReadJSON(filepath.Join(vees, e.Name(), recordFile), &rec)
		if errors.Is(err, fs.ErrNotExist) {
			continue // removed below, after its process
		}
		g := d.guest(id)
		g.rec, g.since = rec, rec.Since
		if err != nil { // kept for a person to look at; Destroy works
			d.cfg.Log.Error("unreadable record", "vee", id, "error", err)
			g.cond, g.reason = hypervisor.Crashed, "its record on disk is damaged: "+err.Error()
			continue
		}
		d.users.keep(id, rec.UID)
		// Memory that was being saved, or has been loaded, is of no use any more.
		_ = os.Remove(filepath.Join(g.dir, memoryFile+".new"))
		if rec.Want != hypervisor.Suspended {
			_ = os.Remove(filepath.Join(g.dir, memoryFile))
		}
		g.sweepFiles()
		if p := rec.Process; p != nil && slices.Contains(processes[string(id)], p.PID) {
			if proc, err := openProcess(*p); err == nil {
				processes[string(id)] = slices.DeleteFunc(processes[string(id)], func(pid int) bool { return pid == p.PID })
				wg.Go(func() { g.adopt(ctx, proc) })
				continue
			}
		}
		g.cond, g.reason = rec.atRest()
	}
	// Processes that no record owns were started by a driver that died before it could
	// note them; their vCPUs never ran.
	for id, pids := range processes {
		for _, pid := range pids {
			d.cfg.Log.Warn("ending a QEMU that no record owns", "vee", id, "pid", pid)
			if err := killUnowned(ctx, pid); err != nil {
				return err
			}
		}
	}
	wg.Wait()
	for _, e := range entries {
		if g, ok := d.guests[vee.ID(e.Name())]; !ok || g.cond == hypervisor.Absent {
			if _, err := vee.ParseID(e.Name()); err == nil {
				if err := os.RemoveAll(filepath.Join(vees, e.Name())); err != nil {
					return err
				}
			}
		}
	}
	for _, name := range d.cgroups.Names() {
		if id, ok := strings.CutPrefix(name, d.prefix); ok {
			if g, known := d.guests[vee.ID(id)]; !known || g.vm == nil {
				_ = d.cgroups.Remove(name) // best effort: an empty group costs nothing
			}
		}
	}
	return nil
}

// cgroupPrefix starts the names of the groups of dir's guests.
func cgroupPrefix(dir string) string {
	sum := sha256.Sum256([]byte(dir))
	return fmt.Sprintf("%x-", sum[:4])
}

// token is how a guest's process is known among all processes: the name it is given.
// Without an ID it is the part that all of this driver's guests share.
func (d *Driver) token(id vee.ID) string { return "reservoir:" + d.cfg.Dir + ":" + string(id) }

// Version of the QEMU binary, "7.2.22".
func Version(ctx context.Context, binary string) (string, error) {
	out, err := exec.CommandContext(ctx, binary, "-version").Output()
	if err != nil {
		return "", fmt.Errorf("ask %s for its version (apt-get install qemu-system-x86): %w", binary, err)
	}
	fields := strings.Fields(string(out)) // "QEMU emulator version 7.2.22 (Debian 1:7.2…)"
	if i := slices.Index(fields, "version"); i >= 0 && i+1 < len(fields) {
		return fields[i+1], nil
	}
	return "", fmt.Errorf("ask %s for its version: it says %q", binary, out)
}

// hostMHz is the clock of this host's fastest CPU, 0 when the kernel does not tell.
func hostMHz() int {
	b, _ := os.ReadFile("/proc/cpuinfo")
	most := 0.0
	for line := range strings.Lines(string(b)) {
		if name, value, _ := strings.Cut(line, ":"); strings.TrimSpace(name) == "cpu MHz" {
			if mhz, err := strconv.ParseFloat(strings.TrimSpace(value), 64); err == nil {
				most = max(most, mhz)
			}
		}
	}
	return int(most)
}
