package qemu

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/reservoir-cloud/reservoir/hypervisor"
	"github.com/reservoir-cloud/reservoir/hypervisor/disk"
	"github.com/reservoir-cloud/reservoir/vee"
)

// Live migration: the source, and what both hosts share; receive.go is the destination. QEMU
// speaks to sockets of this host only, and the agents carry what it says: memory goes through
// a socket pair whose far end is sent along with a command, and each disk through NBD, from
// the source's mirror job to the server in the destination's QEMU. The order is that of
// QEMU's docs/interop/live-block-operations.rst, "QMP invocation for live storage migration
// with blockdev-mirror + NBD".

const (
	nbdSocket = "nbd.sock" // of the destination's NBD server
	mirrorDir = "mirror"   // of the source's sockets that QEMU itself connects to

	// The vCPUs may stand still so long for the last memory: firstDowntime in the first
	// patientRounds over it, then twice as long with each, up to maxDowntime, which is QEMU's
	// default.
	firstDowntime = 10 * time.Millisecond
	maxDowntime   = 300 * time.Millisecond
	patientRounds = 2
	// unlimited bandwidth, bytes per second.
	unlimited = int64(1) << 40
	// stirPatience bounds the wait for an event before QEMU is asked anyway.
	stirPatience = 50 * time.Millisecond
)

var _ hypervisor.Migrator = (*Driver)(nil)

// Shape implements hypervisor.Migrator.
func (d *Driver) Shape(_ context.Context, id vee.ID) ([]byte, error) {
	g := d.guest(id)
	if c := g.condition(); c != hypervisor.Running && c != hypervisor.Sent {
		return nil, g.wrongState("describe the machine of")
	}
	rec := g.record()
	if err := hypervisor.SnapshotsStay(len(rec.Snapshots)); err != nil {
		return nil, fmt.Errorf("describe the machine of %s: %w", id, err)
	}
	rec.Process = nil
	return json.Marshal(rec)
}

// writableDisk of a guest, as its block node is called.
type writableDisk struct {
	node string
	path string // of the file that is written to
	// overlay: only what differs from the image has to travel.
	overlay bool
}

func (g *guest) writableDisks() (disks []writableDisk) {
	rec := g.record()
	for i, k := range disk.Plan(rec.Guest) {
		if k.Kind != disk.Medium {
			disks = append(disks, writableDisk{fmt.Sprintf("disk%d", i), filepath.Join(g.dir, rec.topOf(k)), k.Kind == disk.Clone && len(rec.Under[k.Name]) == 0})
		}
	}
	return disks
}

// syncDisks writes through what the host has of them in memory, so that QEMU finds little of
// that left to do when it stops the guest.
func (g *guest) syncDisks() error {
	for _, k := range g.writableDisks() {
		f, err := os.OpenFile(k.path, os.O_RDWR, 0)
		if err == nil {
			err = errors.Join(f.Sync(), f.Close())
		}
		if err != nil {
			return disk.NoSpace(fmt.Errorf("write its disk through: %w", err))
		}
	}
	return nil
}

// socketPair has one end for us and one for QEMU.
func socketPair() (ours net.Conn, theirs *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("make a socket pair: %w", err)
	}
	for _, fd := range fds { // best effort: it works with any
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, streamRoom)
	}
	mine := os.NewFile(uintptr(fds[0]), "stream")
	theirs = os.NewFile(uintptr(fds[1]), "stream of QEMU")
	defer mine.Close()
	if ours, err = net.FileConn(mine); err != nil {
		theirs.Close()
		return nil, nil, fmt.Errorf("make a socket pair: %w", err)
	}
	return ours, theirs, nil
}

// Send implements hypervisor.Migrator. The record says Sent all the while, so that a
// driver that comes after a crash knows what to undo.
func (d *Driver) Send(ctx context.Context, id vee.ID, e vee.Epoch, s hypervisor.Sending) (hypervisor.Passage, error) {
	g, ctx, done, err := d.command(ctx, id, e)
	if err != nil {
		return hypervisor.Passage{}, fmt.Errorf("send %s: %w", id, err)
	}
	defer done()
	c, v := g.condition(), g.process()
	switch {
	case c == hypervisor.Sent:
		return hypervisor.Passage{}, nil
	case c != hypervisor.Running || v == nil:
		return hypervisor.Passage{}, g.wrongState("send")
	}
	if s.Progress == nil {
		s.Progress = func(hypervisor.Transfer) {}
	}
	if s.Bandwidth == nil {
		s.Bandwidth = func() vee.Bytes { return 0 }
	}
	o := &outlet{v: v, s: s, limit: s.Bandwidth()}
	if err := o.send(ctx); err != nil {
		return hypervisor.Passage{}, fmt.Errorf("send %s: %w", id, err)
	}
	return o.took, nil
}

// outlet is one Send under way.
type outlet struct {
	v     *vm
	s     hypervisor.Sending
	took  hypervisor.Passage
	limit vee.Bytes // that is set, per second
	disks []writableDisk
	sent  atomic.Int64   // bytes of disks, with what NBD says around them
	wg    sync.WaitGroup // goroutines that carry streams
	lines []io.Closer    // of those
}

func (o *outlet) send(ctx context.Context) (err error) {
	v, g := o.v, o.v.g
	if err := g.save(func(r *record) { r.Want = hypervisor.Sent }); err != nil {
		return err
	}
	defer func() {
		if err == nil {
			return
		}
		back, cancel := context.WithTimeout(context.WithoutCancel(ctx), monitorPatience)
		defer cancel()
		if undo := v.unsend(back); undo != nil {
			err = fmt.Errorf("%w; and bring it back: %w", err, undo)
		}
		o.close()
	}()
	begun := time.Now()
	if err := o.mirror(ctx); err != nil {
		return err
	}
	if err := g.syncDisks(); err != nil {
		return err
	}
	mirrored := time.Now()
	if err := o.memory(ctx); err != nil {
		return err
	}
	o.took.Disks = vee.Bytes(o.sent.Load())
	g.mu.Lock()
	o.took.Stopped = v.halted
	g.set(hypervisor.Sent, "")
	g.mu.Unlock()
	o.took.DisksTook, o.took.MemoryTook = mirrored.Sub(begun), o.took.Stopped.Sub(mirrored)
	_ = os.RemoveAll(filepath.Join(g.dir, mirrorDir))
	// The vCPUs stand still: nobody waits here for QEMU to tidy up, nor for the last bytes,
	// which the other host finds missing if they do not arrive.
	g.d.watches.Go(func() {
		stop := context.AfterFunc(g.d.ctx, func() {
			for _, c := range o.lines {
				_ = c.Close()
			}
		})
		defer stop()
		o.wg.Wait()
	})
	return nil
}

// close the streams and wait for those who carry them.
func (o *outlet) close() {
	for _, c := range o.lines {
		_ = c.Close()
	}
	o.wg.Wait()
}

// carry joins QEMU's end of a stream with the way to the other host. What goes there is
// counted in sent, unless that is nil.
func (o *outlet) carry(near, far io.ReadWriteCloser, sent *atomic.Int64) {
	o.lines = append(o.lines, near, far)
	back := make(chan struct{})
	o.wg.Go(func() {
		_, _ = io.CopyBuffer(meter{far, sent}, readerOnly{near}, make([]byte, carryBuffer))
		_ = far.Close()
		<-back
	})
	go func() { defer close(back); _, _ = io.Copy(near, far); _ = near.Close() }()
}

// Bytes that are carried at once, and that may wait in a memory stream's socket: a guest that
// has been stopped waits for them.
const (
	carryBuffer = 256 << 10
	streamRoom  = 256 << 10
)

// meter counts what is written.
type meter struct {
	io.Writer
	n *atomic.Int64
}

func (m meter) Write(b []byte) (int, error) {
	n, err := m.Writer.Write(b)
	if m.n != nil {
		m.n.Add(int64(n))
	}
	return n, err
}

// readerOnly hides that a connection could copy itself, in smaller pieces.
type readerOnly struct{ io.Reader }

// mirror the disks until each is the same here and there, and every write goes to both.
func (o *outlet) mirror(ctx context.Context) error {
	v, g := o.v, o.v.g
	o.disks = g.writableDisks()
	if len(o.disks) == 0 {
		return nil
	}
	dir, sockets, err := o.mirrorSocket(ctx)
	if err != nil {
		return err
	}
	defer sockets.Close()
	for _, k := range o.disks {
		far, err := o.s.Dial(ctx, k.node)
		if err != nil {
			return fmt.Errorf("reach %s at the other host: %w", k.node, err)
		}
		accepted := make(chan error, 1)
		go func() {
			_ = sockets.SetDeadline(time.Now().Add(monitorPatience))
			near, err := sockets.Accept()
			if err == nil {
				o.carry(near, far, &o.sent)
			}
			accepted <- err
		}()
		err = v.do(ctx, "blockdev-add", object{
			"driver": "nbd", "node-name": "to-" + k.node, "export": k.node,
			"discard": "unmap", // zeroes take no room there, and no bandwidth on the way
			"server":  object{"type": "unix", "path": filepath.Join(dir, nbdSocket)},
		}, nil)
		if err != nil {
			_ = sockets.SetDeadline(time.Unix(1, 0))
		}
		if err := errors.Join(err, <-accepted); err != nil {
			_ = far.Close()
			return fmt.Errorf("open %s at the other host: %w", k.node, err)
		}
		sync := "full"
		if k.overlay {
			sync = "top"
		}
		if err := v.do(ctx, "blockdev-mirror", object{
			"job-id": "mirror-" + k.node, "device": k.node, "target": "to-" + k.node, "sync": sync,
			"copy-mode": "write-blocking", "speed": int64(o.limit), "auto-dismiss": false,
		}, nil); err != nil {
			return err
		}
	}
	for {
		jobs, err := v.mirrors(ctx)
		if err != nil {
			return err
		}
		ready, t := 0, hypervisor.Transfer{What: "disks"}
		for _, j := range jobs {
			switch {
			case j.Status == "ready":
				ready++
			case j.Error != "":
				return mirrorFailed(j)
			}
			t.Total += vee.Bytes(j.Total)
			t.Left += vee.Bytes(j.Total - j.Current)
		}
		o.s.Progress(t)
		if ready == len(o.disks) {
			return nil
		}
		if limit := o.s.Bandwidth(); limit != o.limit {
			o.limit = limit
			for _, k := range o.disks {
				if err := v.do(ctx, "block-job-set-speed", object{"device": "mirror-" + k.node, "speed": int64(limit)}, nil); err != nil {
					return err
				}
			}
		}
		if err := v.stir(ctx, stirPatience); err != nil {
			return fmt.Errorf("mirror its disks: %w", err)
		}
	}
}

// mirrorSocket listens where QEMU's NBD client is sent to: in a folder of the guest's
// user, which QEMU gets as an open file, since it may go nowhere else.
func (o *outlet) mirrorSocket(ctx context.Context) (path string, l *net.UnixListener, err error) {
	g := o.v.g
	dir := filepath.Join(g.dir, mirrorDir)
	if err := os.RemoveAll(dir); err != nil {
		return "", nil, err
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		return "", nil, err
	}
	folder, err := os.Open(dir)
	if err != nil {
		return "", nil, err
	}
	defer folder.Close()
	near := filepath.Join(fdPath(int(folder.Fd())), nbdSocket)
	if l, err = net.ListenUnix("unix", &net.UnixAddr{Net: "unix", Name: near}); err != nil {
		return "", nil, fmt.Errorf("make the socket %s: %w", filepath.Join(dir, nbdSocket), err)
	}
	l.SetUnlinkOnClose(false) // its name is gone with the folder
	if os.Geteuid() == 0 {
		uid := g.record().UID
		err = errors.Join(os.Chown(filepath.Join(dir, nbdSocket), uid, uid), os.Chown(dir, uid, uid))
	}
	var added struct {
		FD int `json:"fd"`
	}
	if err == nil {
		err = o.v.doWithFile(ctx, "add-fd", object{"fdset-id": mirrorSet}, folder, &added)
	}
	if err != nil {
		l.Close()
		return "", nil, err
	}
	return fdPath(added.FD), l, nil
}

// mirrorSet is the number of QEMU's set of files that mirrorDir is in.
const mirrorSet = 1000

// job of QEMU (qapi/job.json).
type job struct {
	ID      string `json:"id"`
	Status  string `json:"status"`
	Current int64  `json:"current-progress"`
	Total   int64  `json:"total-progress"`
	Error   string `json:"error"`
}

// mirrors under way or ended and not dismissed.
func (v *vm) mirrors(ctx context.Context) ([]job, error) {
	var all []job
	if err := v.do(ctx, "query-jobs", nil, &all); err != nil {
		return nil, err
	}
	return slices.DeleteFunc(all, func(j job) bool { return !strings.HasPrefix(j.ID, "mirror-") }), nil
}

func mirrorFailed(j job) error {
	err := fmt.Errorf("mirror %s: %s", strings.TrimPrefix(j.ID, "mirror-"), j.Error)
	if strings.Contains(j.Error, "No space left") {
		err = fmt.Errorf("%w at the other host: %w", hypervisor.ErrNoSpace, err)
	}
	return err
}

// dropMirrors lets go of the disks at the other host, whatever they are like there, and
// waits until that is done.
func (v *vm) dropMirrors(ctx context.Context) error {
	asked := map[string]bool{}
	for {
		jobs, err := v.mirrors(ctx)
		if err != nil {
			return err
		}
		for _, j := range jobs {
			switch {
			case j.Status == "concluded":
				err = v.do(ctx, "job-dismiss", object{"id": j.ID}, nil)
			case !asked[j.ID]:
				asked[j.ID] = true
				err = v.do(ctx, "block-job-cancel", object{"device": j.ID, "force": true}, nil)
			}
			if err != nil {
				return err
			}
		}
		if len(jobs) == 0 {
			break
		}
		if err := v.stir(ctx, 2*time.Millisecond); err != nil {
			return fmt.Errorf("end the mirrors of its disks: %w", err)
		}
	}
	for _, k := range v.g.writableDisks() {
		// One that was never opened is not there.
		_ = v.do(ctx, "blockdev-del", object{"node-name": "to-" + k.node}, nil)
	}
	return nil
}

// memory goes over until all of it is there, with the disks let go just before the last.
func (o *outlet) memory(ctx context.Context) error {
	v := o.v
	var capabilities []object
	for name, on := range map[string]bool{"events": true, "pause-before-switchover": true, "auto-converge": o.s.AutoConverge} {
		capabilities = append(capabilities, object{"capability": name, "state": on})
	}
	far, err := o.s.Dial(ctx, hypervisor.MemoryStream)
	if err != nil {
		return fmt.Errorf("reach the other host's memory: %w", err)
	}
	near, theirs, err := socketPair()
	if err != nil {
		far.Close()
		return err
	}
	o.carry(near, far, nil)
	defer theirs.Close()
	if err := v.do(ctx, "migrate-set-capabilities", object{"capabilities": capabilities}, nil); err != nil {
		return err
	}
	downtime := firstDowntime
	if err := o.set(ctx, downtime); err != nil {
		return err
	}
	if err := v.doWithFile(ctx, "getfd", object{"fdname": hypervisor.MemoryStream}, theirs, nil); err != nil {
		return err
	}
	theirs.Close()
	v.forgetMove()
	if err := v.do(ctx, "migrate", object{"uri": "fd:" + hypervisor.MemoryStream}, nil); err != nil {
		return err
	}
	switched := false
	for {
		// While the vCPUs stand still, QEMU's events say all, and nothing is asked.
		switch status := v.moved(); {
		case status == "completed":
			return nil
		case status == "device", status == "pre-switchover" && switched:
		case status == "pre-switchover":
			switched = true
			if err := o.switchover(ctx); err != nil {
				return err
			}
		default:
			if err := o.goOn(ctx, &downtime); err != nil {
				return err
			}
		}
		if err := v.stir(ctx, stirPatience); err != nil {
			return fmt.Errorf("send its memory: %w", err)
		}
	}
}

// goOn with the memory while the guest runs: tell how far it is, and keep to the limits of
// the moment.
func (o *outlet) goOn(ctx context.Context, downtime *time.Duration) error {
	m, err := o.v.migration(ctx)
	if err != nil {
		return err
	}
	switch m.Status {
	case "failed", "cancelled", "cancelling":
		return fmt.Errorf("send its memory: %s %s", m.Status, m.Error)
	case "active":
		o.s.Progress(m.transfer())
	}
	if d, b := downtimeLimit(m.RAM.Rounds), o.s.Bandwidth(); d != *downtime || b != o.limit {
		*downtime, o.limit = d, b
		if err := o.set(ctx, d); err != nil {
			return err
		}
	}
	return o.mirrorsGoOn(ctx)
}

// set the limits of the memory's way.
func (o *outlet) set(ctx context.Context, downtime time.Duration) error {
	bandwidth := unlimited
	if o.limit > 0 {
		bandwidth = int64(o.limit)
	}
	return o.v.do(ctx, "migrate-set-parameters", object{"max-bandwidth": bandwidth, "downtime-limit": downtime.Milliseconds()}, nil)
}

// downtimeLimit in a round over the memory, from 1.
func downtimeLimit(round int64) time.Duration {
	limit := firstDowntime
	for ; round > patientRounds && limit < maxDowntime; round-- {
		limit *= 2
	}
	return min(limit, maxDowntime)
}

// switchover: the vCPUs stand still, so the disks at both hosts are the same once their
// mirrors have ended. What is left of those is tidied up with the guest.
func (o *outlet) switchover(ctx context.Context) error {
	v := o.v
	var refused error
	for _, k := range o.disks {
		refused = errors.Join(refused, v.do(ctx, "block-job-cancel", object{"device": "mirror-" + k.node}, nil))
	}
	for ended := len(o.disks) == 0; !ended; {
		if err := o.awaitMirrors(ctx); err != nil {
			return fmt.Errorf("end the mirrors of its disks: %w", err)
		}
		jobs, err := v.mirrors(ctx)
		if err != nil {
			return err
		}
		ended = true
		for _, j := range jobs {
			if j.Error != "" {
				return mirrorFailed(j)
			}
			ended = ended && j.Status == "concluded"
		}
		if refused != nil {
			return refused
		}
	}
	if err := v.do(ctx, "migrate-continue", object{"state": "pre-switchover"}, nil); err != nil {
		return err
	}
	m, err := v.migration(ctx) // while QEMU is at it
	if err != nil {
		return err
	}
	o.took.Memory = vee.Bytes(m.RAM.Transferred + m.RAM.Remaining)
	t := m.transfer()
	t.What = "switchover"
	o.s.Progress(t)
	return nil
}

// awaitMirrors until events say that all of them have concluded, or a while.
func (o *outlet) awaitMirrors(ctx context.Context) error {
	concluded := func() bool {
		o.v.g.mu.Lock()
		defer o.v.g.mu.Unlock()
		return !slices.ContainsFunc(o.disks, func(k writableDisk) bool { return o.v.jobs["mirror-"+k.node] != "concluded" })
	}
	for end := time.Now().Add(stirPatience); !concluded() && time.Now().Before(end); {
		if err := o.v.stir(ctx, time.Until(end)); err != nil {
			return err
		}
	}
	return nil
}

// mirrorsGoOn while memory is sent; one that failed would leave an old disk over there.
func (o *outlet) mirrorsGoOn(ctx context.Context) error {
	if len(o.disks) == 0 {
		return nil
	}
	if c := o.v.g.condition(); c == hypervisor.Halted {
		return fmt.Errorf("it halted meanwhile: %w", hypervisor.ErrWrongState)
	}
	jobs, err := o.v.mirrors(ctx)
	for _, j := range jobs {
		if j.Error != "" {
			return mirrorFailed(j)
		}
	}
	return err
}

// migration of a QEMU (qapi/migration.json, MigrationInfo).
type migration struct {
	Status   string `json:"status"`
	Error    string `json:"error-desc"`
	Expected int64  `json:"expected-downtime"` // ms
	RAM      struct {
		Total       int64 `json:"total"`
		Remaining   int64 `json:"remaining"`
		Transferred int64 `json:"transferred"`
		DirtyRate   int64 `json:"dirty-pages-rate"`
		PageSize    int64 `json:"page-size"`
		Rounds      int64 `json:"dirty-sync-count"`
	} `json:"ram"`
}

func (v *vm) migration(ctx context.Context) (m migration, err error) {
	err = v.do(ctx, "query-migrate", nil, &m)
	return m, err
}

func (m migration) transfer() hypervisor.Transfer {
	return hypervisor.Transfer{
		What: "memory", Total: vee.Bytes(m.RAM.Total), Left: vee.Bytes(m.RAM.Remaining),
		DirtyRate: vee.Bytes(m.RAM.DirtyRate * m.RAM.PageSize), Downtime: time.Duration(m.Expected) * time.Millisecond,
	}
}

// eventStatus is what MIGRATION and JOB_STATUS_CHANGE events say.
func eventStatus(data json.RawMessage) (m struct {
	ID     string `json:"id"`
	Status string `json:"status"`
}) {
	_ = json.Unmarshal(data, &m) // without one, QEMU is asked
	return m
}

// moved is how far QEMU's last event says that its migration is.
func (v *vm) moved() string {
	v.g.mu.Lock()
	defer v.g.mu.Unlock()
	return v.move
}

// forgetMove before a new one, of which nothing has been said.
func (v *vm) forgetMove() {
	v.g.mu.Lock()
	defer v.g.mu.Unlock()
	v.move = ""
}

// unsend is the way back from any point of a Send: the guest runs here, with nothing left
// of what was tried.
func (v *vm) unsend(ctx context.Context) error {
	m, err := v.migration(ctx)
	if err != nil {
		return err
	}
	for over := m.Status == "" || m.Status == "completed" || m.Status == "failed" || m.Status == "cancelled"; !over; {
		if m.Status != "cancelling" {
			if err := v.do(ctx, "migrate_cancel", nil, nil); err != nil {
				return err
			}
		}
		if err := v.stir(ctx, stirPatience); err != nil {
			return err
		}
		if m, err = v.migration(ctx); err != nil {
			return err
		}
		over = m.Status == "completed" || m.Status == "failed" || m.Status == "cancelled"
	}
	if err := v.dropMirrors(ctx); err != nil {
		return err
	}
	_ = v.do(ctx, "remove-fd", object{"fdset-id": mirrorSet}, nil) // it may not be there
	// Suspend uses the same machinery and wants no pause.
	if err := v.do(ctx, "migrate-set-capabilities", object{"capabilities": []object{
		{"capability": "pause-before-switchover", "state": false}, {"capability": "auto-converge", "state": false}}}, nil); err != nil {
		return err
	}
	return v.rerun(ctx)
}

// rerun lets the vCPUs of a guest that was to be sent run here again.
func (v *vm) rerun(ctx context.Context) error {
	status, err := v.status(ctx)
	for err == nil && status == "finish-migrate" { // QEMU tidies up, and refuses "cont"
		if err = v.stir(ctx, migrationPoll); err == nil {
			status, err = v.status(ctx)
		}
	}
	if err != nil {
		return err
	}
	switch status {
	case "postmigrate", "paused":
		if err := v.do(ctx, "cont", nil, nil); err != nil {
			return err
		}
		// Switches may have learnt the other host's side: tell them.
		_ = v.do(ctx, "announce-self", object{"initial": 20, "max": 200, "rounds": 4, "step": 50}, nil)
	}
	_ = os.RemoveAll(filepath.Join(v.g.dir, mirrorDir))
	if err := v.g.save(func(r *record) { r.Want = hypervisor.Running }); err != nil {
		return err
	}
	return v.refresh(ctx)
}

// takeBack is Resume of a guest that was sent.
func (d *Driver) takeBack(ctx context.Context, id vee.ID, e vee.Epoch) error {
	g, ctx, done, err := d.command(ctx, id, e)
	if err == nil {
		defer done()
		v := g.process()
		if c := g.condition(); c != hypervisor.Sent || v == nil {
			return g.wrongState("resume")
		}
		err = v.unsend(ctx)
	}
	if err != nil {
		return fmt.Errorf("resume %s: %w", id, err)
	}
	return nil
}

// adoptMigration goes on with, or undoes, what an earlier driver was at when it ended: a
// guest that is complete at either side stays as it is, for the agents to agree on;
// anything before that is undone.
func (v *vm) adoptMigration(ctx context.Context, want hypervisor.Condition) error {
	status, err := v.status(ctx)
	if err != nil {
		return err
	}
	if want == hypervisor.Sent {
		m, err := v.migration(ctx)
		if err == nil && m.Status == "completed" {
			v.g.setCondition(hypervisor.Sent, "") // also while QEMU still tidies up
			return nil
		}
		return errors.Join(err, v.unsend(ctx))
	}
	switch status {
	case "inmigrate":
		return v.end(ctx) // what carried its streams is gone
	case "paused", "prelaunch":
		return v.refresh(ctx)
	}
	return v.taken(ctx) // it came to run, and perhaps further
}

// stir waits until QEMU says that something happened, or a while.
func (v *vm) stir(ctx context.Context, patience time.Duration) error {
	t := time.NewTimer(patience)
	defer t.Stop()
	select {
	case <-t.C:
	case <-v.stirred:
	case <-v.ended:
		return errors.New("its QEMU ended")
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	return nil
}
