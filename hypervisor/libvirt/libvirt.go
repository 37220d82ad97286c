// Package libvirt runs guests through libvirtd, spoken to in its own protocol over its Unix
// socket: on hosts where it is there already, and where its means of keeping guests apart
// are wanted. hypervisor/qemu, which needs no daemon, is the usual driver.
//
// Everything about a guest is in its own folder, <Dir>/vees/<ID>/: guest.json (record),
// disks and seed medium as in hypervisor/disk, console.log. What is left of it is a domain of
// libvirt's, named after the folder; a suspended guest's memory is libvirt's "managed save".
// Two sockets per guest, of its console and its agent's line, are under Config.Run, since a
// socket's path must be short.
//
// The record is written before what cannot be undone, and a domain is looked at rather than
// its events believed: so New, and a libvirtd that comes back, find the same as one who had
// been there all the time.
//
// Guests' processes run under a user of their own each, in libvirt's seccomp sandbox,
// control groups and private /dev. They open their disks by name, so Config.Dir and the
// images must be reachable for everybody; their content is not.
//
// On test:///default, libvirt's mock hypervisor, guests are names with a state: it shows how
// the driver and libvirt's API get on, and says that it is simulated.
package libvirt

import (
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	rpc "github.com/digitalocean/go-libvirt"
	"golang.org/x/sys/unix"

	"github.com/reservoir-cloud/reservoir/hypervisor"
	"github.com/reservoir-cloud/reservoir/hypervisor/qemu"
	"github.com/reservoir-cloud/reservoir/internal/durable"
	"github.com/reservoir-cloud/reservoir/vee"
)

// Name of the driver, as in vee.Descriptor.Hypervisor.
const Name = "libvirt"

// DefaultURI is libvirtd's own QEMU.
const DefaultURI = "qemu:///system"

// libvirt's types of domain that we make.
const (
	kindKVM  = "kvm"
	kindTCG  = "qemu"
	kindMock = "test"
)

// Config of a driver. Only Dir is needed.
type Config struct {
	Dir string // belongs to this driver alone; made when it is not there
	// URI of libvirtd on this host; default DefaultURI. "qemu:///system?socket=PATH" is one
	// that listens elsewhere, "test:///default" libvirt's mock.
	URI       string
	Run       string // of sockets; default /run/reservoir/libvirt
	ImageTool string // default "qemu-img"

	// Accelerator "kvm" or "tcg"; empty: the one that qemu.Accelerator finds.
	Accelerator string
	ProbeCache  string // as in qemu.Config

	// FirstUID and UIDs are the range that guests' users are taken from; default 710000 and
	// 65536. No passwd entry is needed. A driver that is not root leaves the user to
	// libvirt's own configuration.
	FirstUID, UIDs int
	HostMHz        int // what one CPU of this host counts in CPUShare; 0: limits are not set

	Now func() time.Time // default time.Now
	Log *slog.Logger     // default: nothing is logged
}

// Driver runs guests under one directory. It implements hypervisor.Driver.
type Driver struct {
	cfg    Config
	caps   hypervisor.Capabilities
	kind   string // of domains
	prefix string // of domains' names, so that several drivers may share a libvirtd
	lock   *os.File
	turns  *hypervisor.Turns
	feed   *hypervisor.Feed
	con    *connection

	ctx     context.Context // ends with Close
	close   context.CancelFunc
	watches sync.WaitGroup // the goroutine that listens to libvirtd, saves that nobody waits for

	mu     sync.Mutex
	guests map[vee.ID]*guest
}

var _ hypervisor.Driver = (*Driver)(nil)

// New opens dir: it adopts the guests that libvirt has, notes those that ended, ends domains
// of ours that no record owns, and removes what was half made.
func New(ctx context.Context, cfg Config) (*Driver, error) {
	d, err := open(ctx, cfg)
	if err != nil {
		return nil, fmt.Errorf("open the libvirt driver on %s: %w", cfg.Dir, err)
	}
	return d, nil
}

func (cfg Config) withDefaults() Config {
	cfg.URI = cmp.Or(cfg.URI, DefaultURI)
	cfg.Run = cmp.Or(cfg.Run, "/run/reservoir/libvirt")
	cfg.ImageTool = cmp.Or(cfg.ImageTool, "qemu-img")
	cfg.FirstUID = cmp.Or(cfg.FirstUID, 710000)
	cfg.UIDs = cmp.Or(cfg.UIDs, 65536)
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	return cfg
}

func open(ctx context.Context, cfg Config) (_ *Driver, err error) {
	cfg = cfg.withDefaults()
	con, err := newConnection(cfg.URI)
	if err != nil {
		return nil, err
	}
	if cfg.Dir, err = filepath.Abs(cfg.Dir); err != nil {
		return nil, err
	}
	// Open for the guests' users to pass through, not to look into.
	for _, dir := range []string{cfg.Dir, filepath.Join(cfg.Dir, "vees")} {
		if err := errors.Join(os.MkdirAll(dir, 0o711), os.Chmod(dir, 0o711)); err != nil { //nolint:gosec // see above
			return nil, err
		}
	}
	if cfg.Dir, err = filepath.EvalSymlinks(cfg.Dir); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(cfg.Run, 0o700); err != nil {
		return nil, err
	}
	sum := sha256.Sum256([]byte(cfg.Dir))
	d := &Driver{
		cfg: cfg, con: con, feed: hypervisor.NewFeed(), guests: map[vee.ID]*guest{},
		prefix: fmt.Sprintf("reservoir-%x-", sum[:4]),
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
	l, err := con.dial(ctx)
	if err != nil {
		return nil, err
	}
	if err := d.findOut(ctx); err != nil {
		return nil, err
	}
	if d.kind != kindMock && os.Geteuid() == 0 {
		if err := passable(filepath.Join(cfg.Dir, "vees")); err != nil {
			return nil, err
		}
	}
	if err := d.adopt(ctx); err != nil {
		return nil, err
	}
	d.watches.Go(func() { d.listen(l) })
	return d, nil
}

// findOut what libvirt can do here.
func (d *Driver) findOut(ctx context.Context) error {
	version, err := d.con.version(ctx)
	if err != nil {
		return err
	}
	d.caps = hypervisor.Capabilities{Driver: Name, Version: version}
	if d.con.mock() {
		d.kind = kindMock
		d.caps.Simulated = true
		d.caps.Why = "libvirt's mock hypervisor: guests are names with a state"
		d.caps.Operations = []string{hypervisor.OpSuspend}
		return nil
	}
	d.caps.Operations = []string{hypervisor.OpSuspend, hypervisor.OpConsole, hypervisor.OpGuestChannel,
		hypervisor.OpMemory, hypervisor.OpDisks, hypervisor.OpExport}
	d.caps.Accelerator, d.caps.Why = d.cfg.Accelerator, "as configured"
	if d.caps.Accelerator == "" {
		p, err := qemu.Accelerator(ctx, qemu.Config{Dir: d.cfg.Dir, ProbeCache: d.cfg.ProbeCache, Log: d.cfg.Log})
		if err != nil {
			return err
		}
		d.caps.Accelerator, d.caps.Why = p.Accelerator, p.Why
	}
	d.kind = kindTCG
	if d.caps.Accelerator == "kvm" {
		d.kind = kindKVM
	}
	return nil
}

// Version of libvirt and its hypervisor at a URI as in Config, "QEMU 7.2.22, libvirt 9.0.0".
func Version(ctx context.Context, uri string) (string, error) {
	c, err := newConnection(cmp.Or(uri, DefaultURI))
	if err != nil {
		return "", err
	}
	defer c.close()
	l, err := c.dial(ctx)
	if err != nil {
		return "", err
	}
	var drained sync.WaitGroup
	drained.Go(l.drain)
	defer func() { c.close(); drained.Wait() }()
	return c.version(ctx)
}

// passable says which folder on the way to dir a guest's user could not pass.
func passable(dir string) error {
	for p := dir; p != filepath.Dir(p); p = filepath.Dir(p) {
		st, err := os.Stat(p)
		if err != nil {
			return err
		}
		if st.Mode()&0o001 == 0 {
			return fmt.Errorf("guests run as users of their own and cannot pass %s: chmod o+x %s", p, p)
		}
	}
	return nil
}

// readable says why a guest's user cannot read an image.
func readable(path string) error {
	st, err := os.Stat(path)
	if err != nil {
		return err
	}
	if st.Mode()&0o004 == 0 {
		return fmt.Errorf("guests run as users of their own and cannot read %s: chmod o+r %s", path, path)
	}
	return passable(filepath.Dir(path))
}

// Close lets go of all guests and leaves them running. Commands under way are cut short.
func (d *Driver) Close() error {
	var err error
	if d.turns != nil {
		err = d.turns.Close()
	}
	d.close()
	d.con.close()
	d.watches.Wait()
	for _, g := range d.all() {
		g.hangUp()
	}
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

// Observe implements hypervisor.Driver. While libvirtd is away it tells what was last seen.
func (d *Driver) Observe(context.Context) ([]hypervisor.Observation, error) {
	var all []hypervisor.Observation
	for _, g := range d.all() {
		if o := g.observe(); o.Condition != hypervisor.Absent {
			all = append(all, o)
		}
	}
	slices.SortFunc(all, func(a, b hypervisor.Observation) int { return cmp.Compare(a.ID, b.ID) })
	return all, nil
}

func (d *Driver) all() []*guest {
	d.mu.Lock()
	defer d.mu.Unlock()
	guests := make([]*guest, 0, len(d.guests))
	for _, g := range d.guests {
		guests = append(guests, g)
	}
	return guests
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
func (d *Driver) Console(ctx context.Context, id vee.ID) (io.ReadWriteCloser, error) {
	c, err := d.lineTo(ctx, id, (*guest).openConsole)
	if err != nil {
		return nil, fmt.Errorf("attach to the console of %s: %w", id, err)
	}
	return c, nil
}

// GuestChannel implements hypervisor.Driver.
func (d *Driver) GuestChannel(ctx context.Context, id vee.ID) (net.Conn, error) {
	c, err := d.lineTo(ctx, id, (*guest).openChannel)
	if err != nil {
		return nil, fmt.Errorf("open the guest channel of %s: %w", id, err)
	}
	return c.(net.Conn), nil
}

// lineTo a guest that has a process.
func (d *Driver) lineTo(ctx context.Context, id vee.ID, open func(*guest, context.Context) (io.ReadWriteCloser, error)) (io.ReadWriteCloser, error) {
	d.mu.Lock()
	g, ok := d.guests[id]
	d.mu.Unlock()
	if !ok {
		return nil, hypervisor.ErrNotFound
	}
	switch c := g.condition(); c {
	case hypervisor.Absent:
		return nil, hypervisor.ErrNotFound
	case hypervisor.Running, hypervisor.Paused, hypervisor.Halted:
	default:
		return nil, fmt.Errorf("it is %s: %w", c, hypervisor.ErrWrongState)
	}
	if d.kind == kindMock {
		return nil, hypervisor.ErrUnsupported
	}
	return open(g, ctx)
}

// guest is the entry for id. Entries stay when guests go, so that commands about one guest
// always meet at the same place.
func (d *Driver) guest(id vee.ID) *guest {
	d.mu.Lock()
	defer d.mu.Unlock()
	g, ok := d.guests[id]
	if !ok {
		g = newGuest(d, id)
		d.guests[id] = g
	}
	return g
}

// command waits for a command's turn (hypervisor.Turns) and finds its guest. Until done, the
// guest's condition is the command's to say.
func (d *Driver) command(ctx context.Context, id vee.ID, e vee.Epoch) (*guest, context.Context, func(), error) {
	ctx, done, err := d.turns.Take(ctx, id, e)
	if err != nil {
		return nil, nil, nil, err
	}
	g := d.guest(id)
	g.mu.Lock()
	g.busy = true
	g.mu.Unlock()
	return g, ctx, func() {
		g.mu.Lock()
		g.busy = false
		missed := g.missed
		g.missed = false
		g.mu.Unlock()
		if missed {
			g.refresh(d.ctx)
		}
		done()
	}, nil
}

// listen to libvirtd until the driver is closed, and look for it again when it goes away.
func (d *Driver) listen(l *line) {
	for {
		for e := range l.events {
			id, ours := strings.CutPrefix(e.Dom.Name, d.prefix)
			if !ours {
				continue
			}
			d.mu.Lock()
			g := d.guests[vee.ID(id)]
			d.mu.Unlock()
			if g != nil {
				g.refresh(d.ctx)
			}
		}
		d.con.lost(l)
		if d.ctx.Err() != nil {
			return
		}
		d.cfg.Log.Warn("libvirtd is gone; guests run on")
		if l = d.redial(); l == nil {
			return
		}
		d.cfg.Log.Info("libvirtd is back")
		for _, g := range d.all() {
			g.refresh(d.ctx)
		}
	}
}

// redial until libvirtd answers; nil when the driver is closed first.
func (d *Driver) redial() *line {
	pause := time.NewTicker(reconnectPause)
	defer pause.Stop()
	for {
		if l, err := d.con.dial(d.ctx); err == nil {
			return l
		}
		select {
		case <-d.ctx.Done():
			return nil
		case <-pause.C:
		}
	}
}

// adopt brings the driver's view and libvirt's together after a start.
func (d *Driver) adopt(ctx context.Context) error {
	vees := filepath.Join(d.cfg.Dir, "vees")
	entries, err := os.ReadDir(vees)
	if err != nil {
		return err
	}
	for _, e := range entries {
		id, err := vee.ParseID(e.Name())
		if err != nil {
			continue // not ours
		}
		var rec record
		err = durable.ReadJSON(filepath.Join(vees, e.Name(), recordFile), &rec)
		if errors.Is(err, fs.ErrNotExist) {
			continue // removed below, after its domain
		}
		g := d.guest(id)
		g.rec, g.since = rec, rec.Since
		if err != nil { // kept for a person to look at; Destroy works
			d.cfg.Log.Error("unreadable record", "vee", id, "error", err)
			g.cond, g.reason = hypervisor.Crashed, "its record on disk is damaged: "+err.Error()
			continue
		}
		if err := g.adopt(ctx); err != nil {
			return fmt.Errorf("adopt %s: %w", id, err)
		}
	}
	var domains []rpc.Domain
	if err := d.con.call(ctx, func(l *rpc.Libvirt) (err error) {
		domains, _, err = l.ConnectListAllDomains(1, 0)
		return err
	}); err != nil {
		return fmt.Errorf("list libvirt's domains: %w", err)
	}
	for _, dom := range domains {
		id, ours := strings.CutPrefix(dom.Name, d.prefix)
		if _, err := vee.ParseID(id); !ours || err != nil || d.known(vee.ID(id)) {
			continue
		}
		d.cfg.Log.Warn("ending a domain that no record owns", "vee", id)
		if err := newGuest(d, vee.ID(id)).undefine(ctx); err != nil {
			return err
		}
	}
	for _, e := range entries {
		if _, err := vee.ParseID(e.Name()); err == nil && !d.known(vee.ID(e.Name())) {
			if err := os.RemoveAll(filepath.Join(vees, e.Name())); err != nil {
				return err
			}
		}
	}
	return nil
}

func (d *Driver) known(id vee.ID) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.guests[id] != nil
}

// pickUID that no other guest of this driver has. It starts at a place that depends on the
// guest and the directory, so that drivers that share a range hardly ever share a user.
func (d *Driver) pickUID(id vee.ID) int {
	taken := map[int]bool{}
	for _, g := range d.all() {
		if g.id != id {
			taken[g.record().UID] = true
		}
	}
	h := fnv.New32a()
	h.Write([]byte(domainName(d.prefix, id)))
	start := int(h.Sum32()) & 0x7fffffff
	for i := range d.cfg.UIDs {
		if uid := d.cfg.FirstUID + (start+i)%d.cfg.UIDs; !taken[uid] {
			return uid
		}
	}
	return d.cfg.FirstUID + start%d.cfg.UIDs // more guests than users
}
