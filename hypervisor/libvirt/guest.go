package libvirt

import (
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	rpc "github.com/digitalocean/go-libvirt"
	"golang.org/x/sys/unix"

	"github.com/reservoir-cloud/reservoir/hypervisor"
	"github.com/reservoir-cloud/reservoir/hypervisor/console"
	"github.com/reservoir-cloud/reservoir/hypervisor/disk"
	"github.com/reservoir-cloud/reservoir/internal/durable"
	"github.com/reservoir-cloud/reservoir/vee"
)

const recordFile = "guest.json"

// fullBelow is the free space on the host's disk below which a guest's I/O error is taken
// for want of it.
const fullBelow = 4 * vee.MiB

// record is what is on disk about a guest, in guest.json.
type record struct {
	Guest hypervisor.Guest     `json:"guest"`
	UID   int                  `json:"uid"` // of its process
	Want  hypervisor.Condition `json:"want"`
	// Want is what commands have brought it to: Stopped, Running, Paused or Suspended.

	Reason string    `json:"reason,omitempty"` // of its last end
	Since  time.Time `json:"since"`
}

// guest is one VEE on this host. Commands about it take turns; what they share with the
// goroutine that listens to libvirtd is under mu.
type guest struct {
	d     *Driver
	id    vee.ID
	dir   string
	dom   rpc.Domain
	ended chan struct{} // has room for one: libvirtd told of a change, for who waits

	mu     sync.Mutex
	rec    record
	cond   hypervisor.Condition
	reason string
	since  time.Time
	pid    int
	busy   bool // a command is at it, and looks by itself
	missed bool // what libvirtd told meanwhile

	lines   sync.Mutex // serialises who opens and closes:
	console *console.Console
	channel net.Conn // the newest caller's
}

func newGuest(d *Driver, id vee.ID) *guest {
	name := domainName(d.prefix, id)
	sum := sha256.Sum256([]byte(name))
	uuid := [16]byte(sum[:16])
	uuid[6], uuid[8] = uuid[6]&0x0f|0x80, uuid[8]&0x3f|0x80 // RFC 9562, version 8
	return &guest{
		d: d, id: id, dir: filepath.Join(d.cfg.Dir, "vees", string(id)), cond: hypervisor.Absent,
		dom: rpc.Domain{Name: name, UUID: uuid, ID: -1}, ended: make(chan struct{}, 1),
	}
}

func (g *guest) uuid() string {
	u := g.dom.UUID
	return fmt.Sprintf("%x-%x-%x-%x-%x", u[:4], u[4:6], u[6:8], u[8:10], u[10:])
}

// place of the guest's parts.
func (g *guest) place(rec record) place {
	at := place{
		Domain: g.dom.Name, UUID: g.uuid(), Dir: g.dir,
		Console: g.socket("console"), Channel: g.socket("guest"), MHz: g.d.cfg.HostMHz, Shares: 1024,
	}
	if _, err := os.Stat("/sys/fs/cgroup/cgroup.controllers"); err == nil {
		at.Shares = 100 // libvirt hands the number through, and version 2 counts so
	}
	if os.Geteuid() == 0 {
		group := rec.UID
		var st unix.Stat_t
		if g.d.kind == kindKVM && unix.Stat("/dev/kvm", &st) == nil && st.Gid != 0 {
			group = int(st.Gid)
		}
		at.Label = fmt.Sprintf("+%d:+%d", rec.UID, group)
	}
	return at
}

// socket of one of the guest's lines, whose path has 107 bytes at most (unix(7)).
func (g *guest) socket(line string) string {
	return filepath.Join(g.d.cfg.Run, fmt.Sprintf("%x.%s", g.dom.UUID[:8], line))
}

func (g *guest) condition() hypervisor.Condition {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.cond
}

func (g *guest) record() record {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.rec
}

// set notes a condition and tells of the change. g.mu is held.
func (g *guest) set(c hypervisor.Condition, reason string) {
	if g.cond == c && g.reason == reason {
		return
	}
	if g.cond != c {
		g.since = g.d.cfg.Now()
	}
	g.cond, g.reason = c, reason
	g.d.feed.Send(hypervisor.Event{ID: g.id, Condition: c, Reason: reason})
}

// save changes the record, on disk first.
func (g *guest) save(change func(*record)) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.saveLocked(change)
}

func (g *guest) saveLocked(change func(*record)) error {
	rec := g.rec
	change(&rec)
	rec.Since = g.d.cfg.Now()
	if err := durable.WriteJSON(filepath.Join(g.dir, recordFile), rec, 0o600); err != nil {
		return disk.NoSpace(err)
	}
	g.rec = rec
	return nil
}

func (g *guest) observe() hypervisor.Observation {
	g.mu.Lock()
	o := hypervisor.Observation{
		ID: g.id, Condition: g.cond, Reason: g.reason, Since: g.since, PID: g.pid,
		Epoch: g.d.turns.Obeyed(g.id),
	}
	g.mu.Unlock()
	if o.Condition != hypervisor.Absent {
		o.DiskUsed = disk.Used(g.dir) // libvirt's managed save is not ours to measure
	}
	return o
}

// sight is what libvirt says of a domain.
type sight struct {
	active bool
	state  rpc.DomainState
	reason int32 // what it means depends on state
	saved  bool  // its memory is in a managed save
	full   bool  // it stands still by an I/O error, and the host has no space
}

// see the guest's domain; one that is not there is not active.
func (g *guest) see(ctx context.Context) (s sight, err error) {
	err = g.d.con.call(ctx, func(l *rpc.Libvirt) error {
		state, reason, err := l.DomainGetState(g.dom, 0)
		if err != nil {
			return err
		}
		s = sight{state: rpc.DomainState(state), reason: reason}
		switch s.state {
		case rpc.DomainShutoff, rpc.DomainNostate:
			saved, err := l.DomainHasManagedSaveImage(g.dom, 0)
			s.saved = saved != 0
			return err
		case rpc.DomainPaused:
			if rpc.DomainPausedReason(reason) == rpc.DomainPausedIoerror {
				// libvirt tells which disk and not what; so the host is asked.
				free, err := disk.Free(g.dir)
				s.full = err == nil && free < fullBelow
			}
		}
		s.active = true
		return nil
	})
	if is(err, rpc.ErrNoDomain) {
		return sight{state: rpc.DomainShutoff}, nil
	}
	return s, err
}

// judge what a guest is, from what commands wanted and what libvirt says.
func judge(rec record, s sight) (hypervisor.Condition, string) {
	if s.active {
		switch s.state {
		case rpc.DomainPaused:
			switch rpc.DomainPausedReason(s.reason) {
			case rpc.DomainPausedIoerror:
				if s.full {
					return hypervisor.Halted, "no space left on the host for one of its disks; make room, then resume it"
				}
				return hypervisor.Halted, "I/O error on a disk; see the host's kernel log"
			case rpc.DomainPausedCrashed:
				return hypervisor.Halted, "guest panicked"
			}
			return hypervisor.Paused, ""
		case rpc.DomainCrashed: // its process is kept (on_crash)
			return hypervisor.Halted, "guest panicked"
		}
		return hypervisor.Running, "" // also asleep by itself (ACPI S3), or shutting down
	}
	switch {
	case s.saved:
		return hypervisor.Suspended, ""
	case rec.Want == hypervisor.Stopped:
		return hypervisor.Stopped, ""
	case rec.Want == hypervisor.Suspended:
		return hypervisor.Crashed, cmp.Or(rec.Reason, "libvirt has lost its saved memory")
	}
	end := "its process ended while nobody was there to see it"
	switch rpc.DomainShutoffReason(s.reason) {
	case rpc.DomainShutoffShutdown:
		end = hypervisor.ReasonPoweredOff
	case rpc.DomainShutoffDestroyed:
		end = "somebody else ended it through libvirt"
	case rpc.DomainShutoffCrashed, rpc.DomainShutoffFailed:
		end = "its process ended without being told to; see its log in /var/log/libvirt/qemu"
	}
	return hypervisor.Crashed, cmp.Or(rec.Reason, end)
}

// refresh is for the goroutine that listens: while a command is at the guest, it is the
// command that looks.
func (g *guest) refresh(ctx context.Context) {
	select {
	case g.ended <- struct{}{}:
	default:
	}
	g.mu.Lock()
	skip := g.busy || g.cond == hypervisor.Absent || g.rec.Guest.ID == ""
	g.missed = g.missed || g.busy
	g.mu.Unlock()
	if !skip {
		_ = g.look(ctx, func() bool { return !g.busy }) // tried again with the next event, or when libvirtd is back
	}
}

// look at the domain and bring the guest's condition in line. only is asked with g.mu held
// whether what was seen still counts; nil: it does.
func (g *guest) look(ctx context.Context, only func() bool) error {
	s, err := g.see(ctx)
	if err != nil {
		return err
	}
	pid := g.process(s)
	if !s.active {
		g.hangUp()
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.cond == hypervisor.Absent && g.rec.Guest.ID == "" || only != nil && !only() {
		return nil
	}
	c, reason := g.assess(s, pid)
	g.set(c, reason)
	return nil
}

// assess what was seen of the guest, and note it for later. g.mu is held.
func (g *guest) assess(s sight, pid int) (hypervisor.Condition, string) {
	g.pid = pid
	c, reason := judge(g.rec, s)
	if c == hypervisor.Crashed && g.rec.Reason != reason {
		// For the next driver to tell, when libvirt has forgotten; when it cannot be
		// written, that one says less.
		if err := g.saveLocked(func(r *record) { r.Reason = reason }); err != nil {
			g.d.cfg.Log.Warn("cannot note why a guest ended", "vee", g.id, "error", err)
		}
	}
	return c, reason
}

// process of an active domain, 0 when there is none.
func (g *guest) process(s sight) int {
	if !s.active || g.d.kind == kindMock {
		return 0
	}
	g.mu.Lock()
	pid := g.pid
	g.mu.Unlock()
	if hasUUID(pid, g.uuid()) {
		return pid
	}
	return findProcess(g.uuid())
}

// findProcess of a domain, 0 when there is none: libvirt does not tell, but gives QEMU the
// UUID as an argument.
func findProcess(uuid string) int {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return 0
	}
	for _, e := range entries {
		if pid, err := strconv.Atoi(e.Name()); err == nil && hasUUID(pid, uuid) {
			return pid
		}
	}
	return 0
}

func hasUUID(pid int, uuid string) bool {
	if pid == 0 {
		return false
	}
	b, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "cmdline"))
	return err == nil && strings.Contains(string(b), "\x00-uuid\x00"+uuid+"\x00")
}

// attach to the console of a guest that has a process. Its output is kept from then on.
func (g *guest) attach(ctx context.Context) error {
	if g.d.kind == kindMock {
		return nil
	}
	g.lines.Lock()
	defer g.lines.Unlock()
	if g.console != nil {
		return nil
	}
	conn, err := dialUnix(ctx, g.socket("console"))
	if err != nil {
		return fmt.Errorf("its console: %w", err)
	}
	if g.console, err = console.Open(g.dir, conn); err != nil {
		conn.Close()
		return disk.NoSpace(fmt.Errorf("its console: %w", err))
	}
	return nil
}

// openConsole for a caller.
func (g *guest) openConsole(ctx context.Context) (io.ReadWriteCloser, error) {
	if err := g.attach(ctx); err != nil {
		return nil, err
	}
	g.lines.Lock()
	defer g.lines.Unlock()
	if g.console == nil {
		return nil, fmt.Errorf("its process has ended: %w", hypervisor.ErrWrongState)
	}
	return g.console.Attach(), nil
}

// openChannel for a new caller. QEMU serves one at a time.
func (g *guest) openChannel(ctx context.Context) (io.ReadWriteCloser, error) {
	g.lines.Lock()
	defer g.lines.Unlock()
	if g.channel != nil {
		g.channel.Close()
	}
	conn, err := dialUnix(ctx, g.socket("guest"))
	if err != nil {
		return nil, err
	}
	g.channel = conn
	return conn, nil
}

// hangUp closes the lines to the guest and leaves it running.
func (g *guest) hangUp() {
	g.lines.Lock()
	defer g.lines.Unlock()
	if g.console != nil {
		g.console.Close()
		g.console = nil
	}
	if g.channel != nil {
		g.channel.Close()
		g.channel = nil
	}
}

func dialUnix(ctx context.Context, path string) (net.Conn, error) {
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, "unix", path)
	if err != nil {
		return nil, fmt.Errorf("connect to %s: %w", path, err)
	}
	return conn, nil
}

// adopt takes over what an earlier driver left, and finishes what that one was at when it
// ended. A guest that cannot be spoken to fails no driver: it is shown so.
func (g *guest) adopt(ctx context.Context) error {
	s, err := g.see(ctx)
	if err != nil {
		return err
	}
	if s.active {
		switch want := g.rec.Want; {
		case want == hypervisor.Stopped: // Stop
			err = g.end(ctx)
		case want == hypervisor.Suspended && s.state == rpc.DomainPaused: // Wake past the load
			if err = g.save(func(r *record) { r.Want = hypervisor.Running }); err == nil {
				err = g.resume(ctx)
			}
		case want == hypervisor.Running && s.state == rpc.DomainPaused && startedPaused(s.reason): // Start before its last step
			err = g.resume(ctx)
		}
		if err != nil {
			g.d.cfg.Log.Error("cannot finish what was begun", "vee", g.id, "error", err)
		}
	} else if s.saved && g.rec.Want != hypervisor.Suspended { // Suspend, or somebody else's
		if err := g.save(func(r *record) { r.Want = hypervisor.Suspended }); err != nil {
			return err
		}
	}
	if s, err = g.see(ctx); err != nil {
		return err
	}
	pid := g.process(s)
	g.mu.Lock()
	since := g.rec.Since
	g.cond, g.reason = g.assess(s, pid) // as it was: nothing to tell of
	g.since = since
	running := g.cond == hypervisor.Running || g.cond == hypervisor.Paused
	g.mu.Unlock()
	if running {
		if err := g.attach(ctx); err != nil {
			g.d.cfg.Log.Error("cannot read a guest's console", "vee", g.id, "error", err)
		}
		g.d.cfg.Log.Info("adopted a running guest", "vee", g.id, "pid", g.pid)
	}
	return nil
}

// startedPaused tells a guest that was made and not set going from one that stands still
// for a reason of its own.
func startedPaused(reason int32) bool {
	switch rpc.DomainPausedReason(reason) {
	case rpc.DomainPausedUnknown, rpc.DomainPausedUser, rpc.DomainPausedStartingUp:
		return true
	}
	return false
}

// openLog starts the console's log anew: it is one boot's, and the one before is kept.
func (g *guest) openLog() error {
	path := filepath.Join(g.dir, console.File)
	if err := os.Rename(path, path+".1"); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}
