package qemu

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/reservoir-cloud/reservoir/hypervisor"
	"github.com/reservoir-cloud/reservoir/hypervisor/console"
	"github.com/reservoir-cloud/reservoir/hypervisor/disk"
	"github.com/reservoir-cloud/reservoir/hypervisor/qemu/qmp"
	"github.com/reservoir-cloud/reservoir/internal/durable"
	"github.com/reservoir-cloud/reservoir/vee"
)

const (
	recordFile = "guest.json"
	memoryFile = "memory.state"
	logFile    = "qemu.log"

	// logKept bounds qemu.log, bytes: a longer one is emptied when it is next looked at.
	logKept = 256 << 10

	// monitorPatience is how long QEMU may take to answer what it answers at once.
	monitorPatience = 10 * time.Second
	// killPatience is how long a process may take to end after SIGKILL.
	killPatience = 30 * time.Second
)

// record is what is on disk about a guest, in guest.json.
type record struct {
	Guest hypervisor.Guest     `json:"guest"`
	UID   int                  `json:"uid"` // of its process
	Want  hypervisor.Condition `json:"want"`
	// Want is what commands have brought it to: Stopped, Running, Paused or Suspended.

	Process *identity `json:"process,omitempty"` // the newest that was started
	// What its process was started as; saved memory can be loaded only into the same.
	Machine     string `json:"machine,omitempty"`
	CPU         string `json:"cpu,omitempty"`
	Accelerator string `json:"accelerator,omitempty"`

	layers // of its disks, and its snapshots

	Reason string    `json:"reason,omitempty"` // of its last end
	Since  time.Time `json:"since"`
}

// atRest is the condition of a guest that has no process.
func (r record) atRest() (hypervisor.Condition, string) {
	switch r.Want {
	case hypervisor.Stopped, hypervisor.Suspended:
		return r.Want, ""
	}
	return hypervisor.Crashed, cmp.Or(r.Reason, "its process ended while no agent was there to see it")
}

// guest is one VEE on this host. Commands about it take turns; what they and the watching
// goroutines share is under mu.
type guest struct {
	d   *Driver
	id  vee.ID
	dir string

	mu     sync.Mutex
	rec    record
	cond   hypervisor.Condition
	reason string
	since  time.Time
	vm     *vm // its process; nil when there is none
}

// vm is a guest's process and the lines to it.
type vm struct {
	*process
	g       *guest
	poke    chan struct{} // something happened: look at its state
	stirred chan struct{} // a job or a migration went on
	ended   chan struct{} // closed when it has ended and the guest says so

	// Under g.mu:
	monitor    *qmp.Client // nil: QEMU does not answer
	console    *console.Console
	stopping   hypervisor.Condition // what the guest becomes at its end; empty: nobody asked for it
	poweredOff bool                 // by the guest itself
	halted     time.Time            // since when its vCPUs stood still the last time
	ran        time.Time            // since when they ran the last time
	unexported bool                 // its NBD server was stopped
	move       string               // how far QEMU said last that a migration is (MigrationStatus in qapi/migration.json)
	jobs       map[string]string    // and each of its jobs (JobStatus in qapi/job.json)

	mu      sync.Mutex
	channel net.Conn // the newest caller's
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

func (g *guest) setCondition(c hypervisor.Condition, reason string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.set(c, reason)
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
		ID: g.id, Condition: g.cond, Reason: g.reason, Since: g.since,
		Epoch: g.d.turns.Obeyed(g.id),
	}
	if g.vm != nil {
		o.PID = g.vm.PID
	}
	g.mu.Unlock()
	if o.Condition != hypervisor.Absent {
		o.DiskUsed = disk.Used(g.dir)
		trimLog(filepath.Join(g.dir, logFile))
	}
	return o
}

// trimLog empties a log that has grown too long; QEMU appends, so it goes on at the start.
func trimLog(path string) {
	if st, err := os.Stat(path); err == nil && st.Size() > logKept {
		_ = os.Truncate(path, 0)
	}
}

// lastWords are the last lines of QEMU's log, for error messages.
func (g *guest) lastWords() string {
	f, err := os.Open(filepath.Join(g.dir, logFile))
	if err != nil {
		return ""
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return ""
	}
	b, _ := io.ReadAll(io.NewSectionReader(f, max(0, st.Size()-400), 400))
	return strings.Join(strings.Fields(string(b)), " ")
}

// attach makes p the guest's process and watches it until it ends or the driver closes.
// stopping is what the guest becomes if it ends before anything else is said.
func (g *guest) attach(p *process, stopping hypervisor.Condition) *vm {
	v := &vm{
		jobs:    map[string]string{},
		process: p, g: g, stopping: stopping,
		poke: make(chan struct{}, 1), stirred: make(chan struct{}, 1), ended: make(chan struct{}),
	}
	g.mu.Lock()
	g.vm = v
	g.mu.Unlock()
	exited := make(chan string, 1)
	g.d.watches.Go(func() {
		if how, err := p.wait(); err == nil {
			exited <- how
		}
	})
	g.d.watches.Go(func() {
		defer p.close()
		for {
			select {
			case how := <-exited:
				v.finish(how)
				return
			case <-v.poke:
				ctx, cancel := context.WithTimeout(g.d.ctx, monitorPatience)
				_ = v.refresh(ctx) // a monitor that does not answer will be found by the next command
				cancel()
			case <-g.d.ctx.Done():
				v.hangUp()
				return
			}
		}
	})
	return v
}

// connect opens the lines to QEMU: its monitor, which is there before QEMU is ready and
// answers when it is, and the console.
func (v *vm) connect(ctx context.Context) error {
	conn, err := dialUnix(ctx, v.g.dir, "qmp.sock")
	if err != nil {
		return err
	}
	monitor, err := qmp.Connect(ctx, conn, v.onEvent)
	if err != nil {
		return err
	}
	conn, err = dialUnix(ctx, v.g.dir, "console.sock")
	if err != nil {
		monitor.Close()
		return err
	}
	console, err := console.Open(v.g.dir, conn)
	if err != nil {
		_ = conn.Close()
		monitor.Close()
		return err
	}
	v.g.mu.Lock()
	defer v.g.mu.Unlock()
	v.monitor, v.console = monitor, console
	return nil
}

// onEvent looks at the state rather than believing the event's own word, so that adoption
// and a lost event come to the same.
func (v *vm) onEvent(e qmp.Event) {
	v.g.mu.Lock()
	switch e.Event {
	case "STOP":
		v.halted = e.Time()
	case "RESUME":
		v.ran = e.Time()
	case "MIGRATION":
		v.move = eventStatus(e.Data).Status
	case "JOB_STATUS_CHANGE":
		j := eventStatus(e.Data)
		v.jobs[j.ID] = j.Status
	}
	leaving := e.Event == "STOP" && v.move == "active" // its migration says more, and nothing is asked
	v.g.mu.Unlock()
	if leaving {
		return
	}
	switch e.Event {
	case "STOP", "RESUME", "SHUTDOWN", "BLOCK_IO_ERROR", "GUEST_PANICKED":
		select {
		case v.poke <- struct{}{}:
		default:
		}
	case "MIGRATION", "MIGRATION_PASS", "JOB_STATUS_CHANGE":
		select {
		case v.stirred <- struct{}{}:
		default:
		}
	}
}

// do runs a QMP command.
func (v *vm) do(ctx context.Context, command string, args, result any) error {
	return v.doWithFile(ctx, command, args, nil, result)
}

// doWithFile runs a QMP command with a file sent along.
func (v *vm) doWithFile(ctx context.Context, command string, args any, file *os.File, result any) error {
	v.g.mu.Lock()
	monitor := v.monitor
	v.g.mu.Unlock()
	if monitor == nil {
		return fmt.Errorf("%s: its QEMU (process %d) does not answer", v.g.id, v.PID)
	}
	ctx, cancel := context.WithTimeout(ctx, monitorPatience)
	defer cancel()
	return monitor.DoWithFile(ctx, command, args, file, result)
}

// status is QEMU's run state (qapi/run-state.json).
func (v *vm) status(ctx context.Context) (string, error) {
	var st struct {
		Status string `json:"status"`
	}
	err := v.do(ctx, "query-status", nil, &st)
	return st.Status, err
}

// refresh brings the guest's condition in line with QEMU's run state.
func (v *vm) refresh(ctx context.Context) error {
	status, err := v.status(ctx)
	if err != nil {
		return err
	}
	g := v.g
	if status == "shutdown" { // it has nothing left to do; its end is told by finish
		g.mu.Lock()
		v.poweredOff = true
		g.mu.Unlock()
		if v.do(ctx, "quit", nil, nil) == nil {
			return nil
		}
		return v.kill()
	}
	cond, reason := conditionOf(status)
	if status == "io-error" {
		reason = v.ioError(ctx)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.vm == v && v.stopping == "" {
		if cond == hypervisor.Paused {
			cond = g.standing(status)
		}
		g.set(cond, reason)
	}
	return nil
}

// standing is what it means that vCPUs do not run: a pause, or a step of a live migration.
// g.mu is held.
func (g *guest) standing(status string) hypervisor.Condition {
	switch {
	case g.rec.Want == hypervisor.Incoming:
		return hypervisor.Incoming
	case g.rec.Want == hypervisor.Sent && status == "postmigrate":
		return hypervisor.Sent
	case g.rec.Want == hypervisor.Sent:
		return g.cond // for the moment of the switchover
	}
	return hypervisor.Paused
}

// conditionOf a run state.
func conditionOf(status string) (hypervisor.Condition, string) {
	switch status {
	case "running", "suspended": // "suspended" is the guest's own sleep (ACPI S3)
		return hypervisor.Running, ""
	case "io-error":
		return hypervisor.Halted, "I/O error on a disk"
	case "internal-error":
		return hypervisor.Halted, "the accelerator stopped it: internal error"
	case "guest-panicked":
		return hypervisor.Halted, "guest panicked"
	}
	return hypervisor.Paused, ""
}

// ioError says what went wrong on which disk.
func (v *vm) ioError(ctx context.Context) string {
	var devices []struct {
		QDev     string `json:"qdev"`
		IOStatus string `json:"io-status"`
		Inserted struct {
			Node string `json:"node-name"`
		} `json:"inserted"`
	}
	if err := v.do(ctx, "query-block", nil, &devices); err != nil {
		return "I/O error on a disk"
	}
	for _, d := range devices {
		switch d.IOStatus {
		case "nospace":
			return fmt.Sprintf("no space left on the host for %s; make room, then resume it", d.Inserted.Node)
		case "failed":
			return fmt.Sprintf("I/O error on %s; see the host's kernel log", d.Inserted.Node)
		}
	}
	return "I/O error on a disk"
}

// finish is the end of a process.
func (v *vm) finish(how string) {
	g := v.g
	v.hangUp()
	name := g.d.prefix + string(g.id)
	outOfMemory := g.d.cgroups.OutOfMemory(name)
	_ = g.d.cgroups.Remove(name) // best effort, New tries again

	g.mu.Lock()
	defer g.mu.Unlock()
	g.vm = nil
	g.since = g.d.cfg.Now() // also when it is again what it was before a start that failed
	if v.stopping != "" {
		g.set(v.stopping, "")
	} else {
		reason := "its QEMU ended"
		switch {
		case v.poweredOff:
			reason = hypervisor.ReasonPoweredOff
		case outOfMemory:
			reason = "its QEMU was killed: it used more memory than its cgroup allows"
		case how != "":
			reason += ": " + how
		}
		if words := g.lastWords(); words != "" && reason != hypervisor.ReasonPoweredOff {
			reason += "; its last words: " + words
		}
		// For the next driver to tell; when it cannot be written, that one says less.
		if err := g.saveLocked(func(r *record) { r.Process, r.Reason = nil, reason }); err != nil {
			g.d.cfg.Log.Warn("cannot note why a guest ended", "vee", g.id, "error", err)
		}
		g.set(hypervisor.Crashed, reason)
	}
	close(v.ended)
}

// hangUp closes the lines to QEMU and leaves it running.
func (v *vm) hangUp() {
	v.g.mu.Lock()
	monitor, console := v.monitor, v.console
	v.g.mu.Unlock()
	if monitor != nil {
		monitor.Close()
	}
	if console != nil {
		console.Close()
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.channel != nil {
		v.channel.Close()
	}
}

// openConsole is the console's hub, nil when QEMU does not answer.
func (v *vm) openConsole() *console.Console {
	v.g.mu.Lock()
	defer v.g.mu.Unlock()
	return v.console
}

// openChannel dials the guest agent's line for a new caller. QEMU serves one at a time.
func (v *vm) openChannel(ctx context.Context) (net.Conn, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.channel != nil {
		v.channel.Close()
	}
	conn, err := dialUnix(ctx, v.g.dir, "guest.sock")
	if err != nil {
		return nil, err
	}
	v.channel = conn
	return conn, nil
}

// become says what the guest is to be when its process ends; empty takes that back.
func (v *vm) become(c hypervisor.Condition) {
	v.g.mu.Lock()
	defer v.g.mu.Unlock()
	v.stopping = c
}

// end the process, and wait until the guest is what it is to become: first by "quit", so
// that QEMU closes its disks cleanly, then by force.
func (v *vm) end(ctx context.Context) error {
	quit, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	if v.do(quit, "quit", nil, nil) == nil {
		select {
		case <-v.ended:
			return nil
		case <-quit.Done():
		}
	}
	if err := v.kill(); err != nil {
		select {
		case <-v.ended: // its handle was closed because it had ended
			return nil
		default:
			return err
		}
	}
	patience := time.NewTimer(killPatience)
	defer patience.Stop()
	select {
	case <-v.ended:
		return nil
	case <-patience.C:
		return fmt.Errorf("end %s: process %d does not die; it may wait for a disk of the host (look at its kernel log)", v.g.id, v.PID)
	case <-ctx.Done():
		return fmt.Errorf("end %s: %w", v.g.id, context.Cause(ctx))
	}
}

// adopt takes over a process that an earlier driver started, and finishes what that one
// was at when it ended. It fails no driver: what cannot be spoken to is shown so.
func (g *guest) adopt(ctx context.Context, p *process) {
	log := g.d.cfg.Log.With("vee", g.id, "pid", p.PID)
	want := g.rec.Want
	v := g.attach(p, "")
	ctx, cancel := context.WithTimeout(ctx, monitorPatience)
	defer cancel()
	if want == hypervisor.Stopped || want == hypervisor.Suspended {
		// Stop, or Suspend past its commit point, or Wake before it.
		v.become(want)
		if err := v.end(ctx); err != nil {
			log.Error("cannot end a guest that was stopped", "error", err)
		}
		return
	}
	err := v.connect(ctx)
	var status string
	if err == nil {
		status, err = v.status(ctx)
	}
	if err == nil && (want == hypervisor.Incoming || want == hypervisor.Sent) {
		g.setCondition(hypervisor.Running, "") // until it is known better
		err = v.adoptMigration(ctx, want)
	}
	// Start before its last step, or a Suspend that did not get to its commit point.
	if err == nil && want == hypervisor.Running && (status == "prelaunch" || status == "paused" || status == "postmigrate" || status == "finish-migrate") {
		err = v.abandonSave(ctx)
	}
	if err == nil {
		err = v.refresh(ctx)
	}
	if err != nil {
		select {
		case <-v.ended:
		default:
			log.Error("cannot speak to a running guest", "error", err)
			g.setCondition(hypervisor.Halted, "its QEMU runs and does not answer: "+err.Error())
		}
		return
	}
	log.Info("adopted a running guest", "condition", g.condition())
}

// openLog starts the logs anew: a console is one boot's, and the one before is kept.
func (g *guest) openLog() (*os.File, error) {
	path := filepath.Join(g.dir, console.File)
	if err := os.Rename(path, path+".1"); err != nil && !os.IsNotExist(err) {
		return nil, err
	}
	return os.OpenFile(filepath.Join(g.dir, logFile), os.O_CREATE|os.O_WRONLY|os.O_TRUNC|os.O_APPEND, 0o600)
}

// dialUnix connects to a socket in dir. The path goes through an open descriptor, because
// a Unix socket's path may have 108 bytes only (unix(7)).
func dialUnix(ctx context.Context, dir, name string) (*net.UnixConn, error) {
	d, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, "unix", filepath.Join(fdPath(int(d.Fd())), name))
	if err != nil {
		return nil, fmt.Errorf("connect to %s: %w", filepath.Join(dir, name), err)
	}
	return conn.(*net.UnixConn), nil
}

// listenUnix makes a socket in dir for QEMU to inherit, already listening: who connects
// early waits, and nobody has to look whether it is there yet.
func listenUnix(dir, name string) (*os.File, error) {
	d, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	path := filepath.Join(dir, name)
	if err := os.Remove(path); err != nil && !os.IsNotExist(err) {
		return nil, err
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Net: "unix", Name: filepath.Join(fdPath(int(d.Fd())), name)})
	if err != nil {
		return nil, fmt.Errorf("make the socket %s: %w", path, err)
	}
	defer func() { _ = l.Close() }()
	l.SetUnlinkOnClose(false)
	return l.File()
}
