// Package vet is the virtual environments tracker of a host's agent (seed 4): it keeps
// what the site has assigned, brings each VEE into the power that it should have, one
// step at a time, and reports what it sees. It survives the agent: assignments are on
// disk before they are acknowledged, guests are adopted by the driver, and whatever was
// interrupted is begun again.
//
// It decides nothing about placement or ownership; it obeys the newest assignment by
// (epoch, sequence number).
package vet

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/reservoir-cloud/reservoir/hypervisor"
	"github.com/reservoir-cloud/reservoir/internal/durable"
	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/vee"
	"github.com/reservoir-cloud/reservoir/vhi"
	"github.com/reservoir-cloud/reservoir/vhi/guest"
	"github.com/reservoir-cloud/reservoir/vhi/peer"
)

// Images fetches what a VEE's disks are made of.
type Images interface {
	Fetch(ctx context.Context, digest string, progress func(vee.Progress)) (hypervisor.LocalImage, error)
}

// Plugs are the host's networks.
type Plugs interface {
	// Plug a NIC in; it waits for its network. Unplug all of a VEE's.
	Plug(ctx context.Context, id vee.ID, nic int) (tap string, err error)
	Unplug(id vee.ID) error
	// Release says that a VEE has been handed over to the host with that underlay address,
	// Announce that it is this host's.
	Release(id vee.ID, to netip.Addr) error
	Announce(id vee.ID) error
}

// Leases are the host's right to run VEEs that may be restarted elsewhere (agent/lease).
type Leases interface {
	// May the VEE run here under that epoch, now?
	May(ctx context.Context, id vee.ID, e vee.Epoch) error
	// Give a VEE whose guest stands still to another host, durably and repeatedly: gone is
	// false where there is nothing to give, because it never was given.
	Give(ctx context.Context, id vee.ID, to string) (given bool, err error)
	// Void: a gift of epoch e was not taken and never will be.
	Void(ctx context.Context, id vee.ID, e vee.Epoch) error
	// Open reports whether a gift of epoch e may be taken; Take takes it, durably and
	// repeatedly. After an error of Take the VEE must not run under that epoch.
	Open(ctx context.Context, id vee.ID, e vee.Epoch) error
	Take(ctx context.Context, id vee.ID, from string, e vee.Epoch) error
	// Hold a process under guard; again does nothing.
	Hold(ctx context.Context, id vee.ID, pid int) error
}

// Config of a Tracker. All fields but Leases are needed.
type Config struct {
	Dir     string // for the assignments
	Driver  hypervisor.Driver
	Images  Images
	Plugs   Plugs
	Changed func() // a report has changed; must not block
	// NameServers that a NIC's guest is told of where its network has none; nil: none.
	NameServers func(vee.NIC) []string
	// Peer is the client of the destination of a move; it does not connect.
	Peer func(vhi.Move) peer.Host
	// Said is told each word of a guest on how it is; it must not block. nil: nobody listens.
	Said func(id vee.ID, s guest.Status)
	// Leases of VEEs that are assigned under lease; nil: none may run here.
	Leases Leases
	// Checkpoints that VEEs go on from; nil: there are none.
	Checkpoints Checkpoints
	// Seeds that VEEs begin with; nil: none can be had.
	Seeds Seeds
	Log   *slog.Logger
}

// keepTombstone is how long the assignment of a VEE that is gone goes on refusing late
// ones. The driver refuses older epochs for ever.
const keepTombstone = 24 * time.Hour

// keepGiven is how long it is kept of one that this host has handed over by itself: a site that
// was away for long has to learn where it went, and must not take it for lost.
const keepGiven = 90 * keepTombstone

// Tracker of the VEEs of one host.
type Tracker struct {
	cfg Config
	dir string

	mu   sync.Mutex
	vees map[vee.ID]*tracked
	ctx  context.Context // of Run; nil before
	wg   sync.WaitGroup
}

// Open reads the assignments and finds the guests that are there.
func Open(ctx context.Context, cfg Config) (*Tracker, error) {
	if cfg.Leases == nil {
		cfg.Leases = noLeases{}
	}
	if cfg.Seeds == nil {
		cfg.Seeds = noSeeds{}
	}
	if cfg.Checkpoints == nil {
		cfg.Checkpoints = noCheckpoints{}
	}
	t := &Tracker{cfg: cfg, dir: filepath.Join(cfg.Dir, "assignments"), vees: map[vee.ID]*tracked{}}
	if err := os.MkdirAll(t.dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the directory of assignments: %w", err)
	}
	names, err := os.ReadDir(t.dir)
	if err != nil {
		return nil, fmt.Errorf("list assignments: %w", err)
	}
	var before []kept
	for _, n := range names {
		if strings.HasPrefix(n.Name(), ".") {
			_ = os.Remove(filepath.Join(t.dir, n.Name())) // a write that a crash cut off
			continue
		}
		var a kept
		if err := durable.ReadJSON(filepath.Join(t.dir, n.Name()), &a); err != nil {
			return nil, fault.New(fault.Internal, "assignment %s is damaged: %w", n.Name(), err).
				Try("remove that file: the site will assign the VEE again")
		}
		t.vees[a.VEE] = newTracked(t, a.Assignment)
		before = append(before, a)
	}
	seen, err := cfg.Driver.Observe(ctx)
	if err != nil {
		return nil, fmt.Errorf("observe the guests of this host: %w", err)
	}
	for _, o := range seen {
		v := t.vees[o.ID]
		if v == nil { // a guest that nobody assigned: shown to the site, which knows what to do with it
			v = newTracked(t, vhi.Assignment{VEE: o.ID, Epoch: o.Epoch})
			t.vees[o.ID] = v
		}
		v.seen = o
	}
	for _, k := range before {
		if err := t.vees[k.VEE].resume(k); err != nil {
			return nil, err
		}
	}
	return t, nil
}

// Run converges every VEE until ctx is done, and waits for all that it began. Guests stay
// as they are.
func (t *Tracker) Run(ctx context.Context) error {
	t.mu.Lock()
	t.ctx = ctx
	for _, v := range t.vees {
		t.begin(v)
	}
	t.mu.Unlock()
	defer t.wg.Wait()
	sweep := time.NewTicker(time.Hour)
	defer sweep.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case e := <-t.cfg.Driver.Events():
			if v := t.find(e.ID); v != nil {
				v.nudge()
			}
		case <-sweep.C:
			t.dropTombstones(time.Now())
		}
	}
}

// begin starts the loop of v, once. t.mu is held.
func (t *Tracker) begin(v *tracked) {
	ctx := t.ctx
	if ctx == nil || ctx.Err() != nil || v.begun {
		return
	}
	v.begun = true
	t.wg.Add(1)
	go func() { defer t.wg.Done(); v.loop(ctx) }()
}

func (t *Tracker) find(id vee.ID) *tracked {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.vees[id]
}

// Assign takes an assignment if it is not older than the one that is obeyed. It is on
// disk when Assign returns.
func (t *Tracker) Assign(_ context.Context, a vhi.Assignment) (vhi.Report, error) {
	if _, err := vee.ParseID(string(a.VEE)); err != nil {
		return vhi.Report{}, fault.New(fault.Malformed, "%w", err)
	}
	if _, ok := orders[a.Power]; !ok {
		return vhi.Report{}, fault.New(fault.Malformed, "VEE %s: power %q cannot be assigned", a.VEE, a.Power)
	}
	v, fresh := t.findOrMake(a.VEE)
	if err := v.assign(a); err != nil {
		if fresh {
			t.drop(a.VEE)
		}
		return vhi.Report{}, err
	}
	if fresh {
		t.mu.Lock()
		t.begin(v)
		t.mu.Unlock()
	}
	return v.report(), nil
}

// findOrMake what tracks a VEE; fresh: it is to begin, or to be dropped.
func (t *Tracker) findOrMake(id vee.ID) (v *tracked, fresh bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if v = t.vees[id]; v == nil {
		v, fresh = newTracked(t, vhi.Assignment{VEE: id}), true
		t.vees[id] = v
	}
	return v, fresh
}

func (t *Tracker) drop(id vee.ID) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.vees, id)
}

var _ peer.Host = (*Tracker)(nil)

var orders = map[vhi.Power]struct{}{vhi.Running: {}, vhi.Paused: {}, vhi.Suspended: {}, vhi.Stopped: {}, vhi.Absent: {}, vhi.Incoming: {}}

// Reports of all VEEs, ordered by identifier.
func (t *Tracker) Reports() []vhi.Report {
	t.mu.Lock()
	all := make([]*tracked, 0, len(t.vees))
	for _, v := range t.vees {
		all = append(all, v)
	}
	t.mu.Unlock()
	out := make([]vhi.Report, 0, len(all))
	for _, v := range all {
		out = append(out, v.report())
	}
	slices.SortFunc(out, func(a, b vhi.Report) int { return strings.Compare(string(a.VEE), string(b.VEE)) })
	return out
}

// InUse lists the images (manifest digests) that assigned VEEs are made of.
func (t *Tracker) InUse() []string {
	t.mu.Lock()
	defer t.mu.Unlock()
	var used []string
	for _, v := range t.vees {
		a := v.assigned()
		if a.Power == vhi.Absent {
			continue
		}
		for _, d := range a.Descriptor.Disks {
			if d.Image != "" {
				used = append(used, d.Image)
			}
		}
	}
	return used
}

// Here lists the VEEs that have or may get anything on this host.
func (t *Tracker) Here() []vee.ID {
	t.mu.Lock()
	defer t.mu.Unlock()
	var ids []vee.ID
	for id, v := range t.vees {
		if !v.gone() {
			ids = append(ids, id)
		}
	}
	return ids
}

// Running is a VEE whose guest has vCPUs that are this host's to let run: not one that waits
// for its memory, nor one that was given away.
type Running struct {
	VEE        vee.ID
	Descriptor vee.Descriptor
}

// Running VEEs, paused ones too.
func (t *Tracker) Running() []Running {
	t.mu.Lock()
	defer t.mu.Unlock()
	var list []Running
	for id, v := range t.vees {
		if d, ok := v.running(); ok {
			list = append(list, Running{id, d})
		}
	}
	return list
}

// Runs reports whether Running has a VEE.
func (t *Tracker) Runs(id vee.ID) bool {
	v := t.find(id)
	if v == nil {
		return false
	}
	_, ok := v.running()
	return ok
}

// Origins of the moves from other sites that are expected here, or whose gift may be asked
// about again: whose hosts this one lets in for them.
func (t *Tracker) Origins() (all []vhi.Origin) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, v := range t.vees {
		if o := v.expects(); o != nil {
			all = append(all, *o)
		}
	}
	return all
}

// NICs of a VEE that is here, as the VEE Manager filled them.
func (t *Tracker) NICs(id vee.ID) ([]vee.NIC, error) {
	v := t.find(id)
	if v == nil || v.gone() {
		return nil, fault.New(fault.NotFound, "VEE %s is not on this host", id)
	}
	return v.assigned().Descriptor.NICs, nil
}

// Leased reports whether a VEE is assigned under lease.
func (t *Tracker) Leased(id vee.ID) bool {
	v := t.find(id)
	return v != nil && v.assigned().Leased
}

// Nudge looks at every VEE under lease again: what may run here has changed.
func (t *Tracker) Nudge() {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, v := range t.vees {
		if v.assigned().Leased {
			v.nudge()
		}
	}
}

// Console of a VEE's guest.
func (t *Tracker) Console(ctx context.Context, id vee.ID) (io.ReadWriteCloser, error) {
	if t.find(id) == nil {
		return nil, fault.New(fault.NotFound, "VEE %s is not on this host", id)
	}
	c, err := t.cfg.Driver.Console(ctx, id)
	if err != nil {
		return nil, coded(fmt.Errorf("console of VEE %s: %w", id, err))
	}
	return c, nil
}

// Tell passes a command to the agent in the guest.
func (t *Tracker) Tell(ctx context.Context, id vee.ID, c guest.Command) (guest.Reply, error) {
	v := t.find(id)
	if v == nil {
		return guest.Reply{}, fault.New(fault.NotFound, "VEE %s is not on this host", id)
	}
	return v.line.tell(ctx, c)
}

func (t *Tracker) file(id vee.ID) string { return filepath.Join(t.dir, string(id)+".json") }

func (t *Tracker) dropTombstones(now time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for id, v := range t.vees {
		st, err := os.Stat(t.file(id))
		keep := keepTombstone
		if v.gave() {
			keep = keepGiven
		}
		if !v.gone() || err != nil || now.Sub(st.ModTime()) < keep {
			continue
		}
		if err := durable.Remove(t.file(id)); err != nil {
			t.cfg.Log.Warn("drop the tombstone of a VEE", "vee", id, "err", err)
			continue
		}
		v.end()
		delete(t.vees, id)
	}
}
