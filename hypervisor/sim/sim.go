// Package sim is a driver whose guests are simulated: for scale, and for faults that
// cannot be staged otherwise. It keeps the promises of hypervisor.Driver, passes the same
// suite as the real drivers, and says Simulated in its capabilities.
//
// A simulated guest has no process. It has a power condition, a serial console
// (console.go) and an agent on its guest channel (agent.go); with Config.Dir they outlive
// the driver, as if the guests had gone on.
package sim

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/reservoir-cloud/reservoir/hypervisor"
	"github.com/reservoir-cloud/reservoir/internal/durable"
	"github.com/reservoir-cloud/reservoir/vee"
)

// Name of the driver, as in vee.Descriptor.Hypervisor.
const Name = "sim"

// Op names a command, for Config.Latency and Config.Fault.
type Op string

// Commands.
const (
	Prepare Op = "prepare"
	Start   Op = "start"
	Pause   Op = "pause"
	Resume  Op = "resume"
	Suspend Op = "suspend"
	Wake    Op = "wake"
	Stop    Op = "stop"
	Destroy Op = "destroy"
)

// Clock is the time that a simulation lives in.
type Clock interface {
	Now() time.Time
	// Sleep until d has passed or ctx is over, whose error it returns then.
	Sleep(ctx context.Context, d time.Duration) error
}

// Config of a driver. The zero value is one whose guests are as quick as they can be and
// are forgotten with it.
type Config struct {
	Dir   string // keeps guests and epochs over a restart; empty: memory only
	Clock Clock  // default: the real one

	// ReadyAfter a start is when a guest's agent says that its service answers.
	ReadyAfter time.Duration
	// Latency of a command, nil for none.
	Latency func(Op, vee.ID) time.Duration
	// Fault that a command ends with instead of taking effect; nil, or nil from it: none.
	Fault func(Op, vee.ID) error
	// KPIs that a guest reports after it has been up for so long; nil: none but what it
	// was told on its channel.
	KPIs func(id vee.ID, up time.Duration) map[string]float64
}

// Driver of simulated guests. It implements hypervisor.Driver.
type Driver struct {
	cfg   Config
	turns *hypervisor.Turns
	feed  *hypervisor.Feed

	ctx    context.Context // ends with Close
	close  context.CancelFunc
	agents sync.WaitGroup // goroutines that play guests' agents

	mu     sync.Mutex
	guests map[vee.ID]*guest
}

var _ hypervisor.Driver = (*Driver)(nil)

// state is all that there is of a simulated guest; in Config.Dir as JSON.
type state struct {
	Guest     hypervisor.Guest     `json:"guest"`
	Condition hypervisor.Condition `json:"condition"`
	Reason    string               `json:"reason,omitempty"`
	Since     time.Time            `json:"since"`

	Boots  int                `json:"boots"`  // what its disk remembers
	Booted time.Time          `json:"booted"` // last time
	Typed  int                `json:"typed"`  // on its console since then: its memory
	Ready  *bool              `json:"ready,omitempty"`
	KPIs   map[string]float64 `json:"kpis,omitempty"`
	Hung   bool               `json:"hung,omitempty"`

	Snapshots []frozen `json:"snapshots,omitempty"`
	Loaded    bool     `json:"loaded,omitempty"` // of an incoming one: its memory is here
}

// guest is a state with its lines.
type guest struct {
	d *Driver

	mu      sync.Mutex
	s       state
	console *terminal
	channel net.Conn
}

// New makes a driver, with the guests that cfg.Dir knows.
func New(cfg Config) (*Driver, error) {
	if cfg.Clock == nil {
		cfg.Clock = realClock{}
	}
	d := &Driver{cfg: cfg, feed: hypervisor.NewFeed(), guests: map[vee.ID]*guest{}}
	path := ""
	if cfg.Dir != "" {
		path = filepath.Join(cfg.Dir, "epochs")
		if err := d.load(); err != nil {
			return nil, fmt.Errorf("open the simulated driver on %s: %w", cfg.Dir, err)
		}
	}
	fence, err := hypervisor.OpenFence(path)
	if err != nil {
		return nil, fmt.Errorf("open the simulated driver: %w", err)
	}
	d.turns = hypervisor.NewTurns(fence)
	d.ctx, d.close = context.WithCancel(context.Background())
	return d, nil
}

func (d *Driver) load() error {
	if err := os.MkdirAll(filepath.Join(d.cfg.Dir, "vees"), 0o700); err != nil {
		return err
	}
	entries, err := os.ReadDir(filepath.Join(d.cfg.Dir, "vees"))
	if err != nil {
		return err
	}
	for _, e := range entries {
		id, err := vee.ParseID(strings.TrimSuffix(e.Name(), ".json"))
		if err != nil {
			continue
		}
		g := &guest{d: d}
		if err := durable.ReadJSON(d.path(id), &g.s); err != nil {
			return err
		}
		if g.s.Condition == hypervisor.Incoming && !g.s.Loaded {
			g.s.Condition, g.s.Reason = hypervisor.Crashed, "what carried its memory is gone"
		}
		d.guests[id] = g
	}
	return nil
}

func (d *Driver) path(id vee.ID) string {
	return filepath.Join(d.cfg.Dir, "vees", string(id)+".json")
}

// Close implements hypervisor.Driver.
func (d *Driver) Close() error {
	err := d.turns.Close()
	d.close()
	for _, g := range d.all() {
		g.mu.Lock()
		g.hangUp()
		g.mu.Unlock()
	}
	d.agents.Wait()
	d.feed.Close()
	return err
}

// Capabilities implements hypervisor.Driver.
func (d *Driver) Capabilities(context.Context) (hypervisor.Capabilities, error) {
	return hypervisor.Capabilities{
		Driver: Name, Version: "1", Why: "its guests are simulated: nothing runs", Simulated: true,
		Operations: []string{"suspend", "console", "guest-channel", hypervisor.OpMigrate,
			hypervisor.OpMemory, hypervisor.OpVCPUs, hypervisor.OpDisks, hypervisor.OpExport, hypervisor.OpSnapshot, hypervisor.OpPack, hypervisor.OpMigrateCold},
	}, nil
}

// Events implements hypervisor.Driver.
func (d *Driver) Events() <-chan hypervisor.Event { return d.feed.Events() }

// Observe implements hypervisor.Driver.
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

// Inspect implements hypervisor.Driver.
func (d *Driver) Inspect(_ context.Context, id vee.ID) (hypervisor.Observation, error) {
	if g := d.find(id); g != nil {
		if o := g.observe(); o.Condition != hypervisor.Absent {
			return o, nil
		}
	}
	return hypervisor.Observation{}, fmt.Errorf("inspect %s: %w", id, hypervisor.ErrNotFound)
}

func (d *Driver) all() []*guest {
	d.mu.Lock()
	defer d.mu.Unlock()
	all := make([]*guest, 0, len(d.guests))
	for _, g := range d.guests {
		all = append(all, g)
	}
	return all
}

// find the guest called id, nil when there is none.
func (d *Driver) find(id vee.ID) *guest {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.guests[id]
}

// Prepare implements hypervisor.Driver.
func (d *Driver) Prepare(ctx context.Context, gs hypervisor.Guest) error {
	return d.command(ctx, Prepare, gs.ID, gs.Epoch, func(g *guest) error {
		if err := gs.Check(); err != nil {
			return err
		}
		if g == nil {
			g = &guest{d: d, s: state{Guest: gs, Condition: hypervisor.Absent}}
			if err := g.become(hypervisor.Stopped, "", nil); err != nil {
				return err
			}
			d.mu.Lock()
			d.guests[gs.ID] = g
			d.mu.Unlock()
			return nil
		}
		return g.update(gs)
	})
}

// Start implements hypervisor.Driver.
func (d *Driver) Start(ctx context.Context, gs hypervisor.Guest) error {
	return d.command(ctx, Start, gs.ID, gs.Epoch, func(g *guest) error {
		c, err := g.in(Start, hypervisor.Running, hypervisor.Stopped, hypervisor.Crashed)
		if err != nil || c == hypervisor.Running {
			return err
		}
		if err := gs.Check(); err != nil {
			return err
		}
		if err := g.update(gs); err != nil {
			return err
		}
		return g.become(hypervisor.Running, "", func(s *state) {
			s.Booted, s.Typed, s.Ready, s.KPIs, s.Hung = d.cfg.Clock.Now(), 0, nil, nil, false
			s.Boots++
		})
	})
}

// Pause implements hypervisor.Driver.
func (d *Driver) Pause(ctx context.Context, id vee.ID, e vee.Epoch) error {
	return d.step(ctx, Pause, id, e, hypervisor.Paused, hypervisor.Running)
}

// Resume implements hypervisor.Driver.
func (d *Driver) Resume(ctx context.Context, id vee.ID, e vee.Epoch) error {
	return d.step(ctx, Resume, id, e, hypervisor.Running, hypervisor.Paused, hypervisor.Halted, hypervisor.Sent)
}

// Suspend implements hypervisor.Driver.
func (d *Driver) Suspend(ctx context.Context, id vee.ID, e vee.Epoch, progress func(vee.Progress)) error {
	return d.command(ctx, Suspend, id, e, func(g *guest) error {
		c, err := g.in(Suspend, hypervisor.Suspended, hypervisor.Running, hypervisor.Paused)
		if err != nil || c == hypervisor.Suspended {
			return err
		}
		if progress != nil {
			memory := int64(g.state().Guest.Descriptor.Memory)
			progress(vee.Progress{Done: memory, Total: memory, Unit: "bytes", What: "memory"})
		}
		return g.become(hypervisor.Suspended, "", nil)
	})
}

// Wake implements hypervisor.Driver.
func (d *Driver) Wake(ctx context.Context, gs hypervisor.Guest) error {
	return d.step(ctx, Wake, gs.ID, gs.Epoch, hypervisor.Running, hypervisor.Suspended)
}

// Stop implements hypervisor.Driver. Simulated guests obey the power button at once.
func (d *Driver) Stop(ctx context.Context, id vee.ID, e vee.Epoch, _ time.Duration) error {
	return d.step(ctx, Stop, id, e, hypervisor.Stopped, hypervisor.Running, hypervisor.Paused,
		hypervisor.Halted, hypervisor.Suspended, hypervisor.Crashed, hypervisor.Sent)
}

// Destroy implements hypervisor.Driver.
func (d *Driver) Destroy(ctx context.Context, id vee.ID, e vee.Epoch) error {
	return d.command(ctx, Destroy, id, e, func(g *guest) error {
		if g == nil {
			return nil
		}
		if d.cfg.Dir != "" {
			if err := durable.Remove(d.path(id)); err != nil {
				return err
			}
		}
		d.mu.Lock()
		delete(d.guests, id)
		d.mu.Unlock()
		g.mu.Lock()
		defer g.mu.Unlock()
		g.s.Condition = hypervisor.Absent
		g.hangUp()
		d.feed.Send(hypervisor.Event{ID: id, Condition: hypervisor.Absent})
		return nil
	})
}

// Crash ends a guest as if its process had died.
func (d *Driver) Crash(id vee.ID, reason string) error {
	return d.strike(id, hypervisor.Crashed, reason)
}

// PowerOff ends a guest as if it had shut itself down.
func (d *Driver) PowerOff(id vee.ID) error {
	return d.strike(id, hypervisor.Crashed, hypervisor.ReasonPoweredOff)
}

// Hang leaves a guest running that does nothing any more: its agent is silent until it boots.
func (d *Driver) Hang(id vee.ID) error {
	return d.command(d.ctx, "hang", id, d.turns.Obeyed(id), func(g *guest) error {
		if g == nil {
			return hypervisor.ErrNotFound
		}
		g.mu.Lock()
		defer g.mu.Unlock()
		return g.change(func(s *state) { s.Hung = true })
	})
}

// Halt stops a guest's vCPUs as a failing disk does; Resume tries again.
func (d *Driver) Halt(id vee.ID, reason string) error {
	return d.strike(id, hypervisor.Halted, reason)
}

// strike something that happens to a guest, not by command.
func (d *Driver) strike(id vee.ID, c hypervisor.Condition, reason string) error {
	g := d.find(id)
	if _, err := g.in("strike", hypervisor.Running, hypervisor.Paused, hypervisor.Halted); err != nil {
		return fmt.Errorf("make %s %s: %w", id, c, err)
	}
	return g.become(c, reason, nil)
}

// step is a command that only changes the condition.
func (d *Driver) step(ctx context.Context, op Op, id vee.ID, e vee.Epoch, to hypervisor.Condition, from ...hypervisor.Condition) error {
	return d.command(ctx, op, id, e, func(g *guest) error {
		if c, err := g.in(op, append(from, to)...); err != nil || c == to {
			return err
		}
		return g.become(to, "", nil)
	})
}

// command takes its turn, its time and its fault, and then effect. do gets nil where there
// is no guest.
func (d *Driver) command(ctx context.Context, op Op, id vee.ID, e vee.Epoch, do func(*guest) error) error {
	ctx, done, err := d.turns.Take(ctx, id, e)
	if err == nil {
		defer done()
		if d.cfg.Latency != nil {
			err = d.cfg.Clock.Sleep(ctx, d.cfg.Latency(op, id))
		}
		if err == nil && d.cfg.Fault != nil {
			err = d.cfg.Fault(op, id)
		}
		if err == nil {
			err = do(d.find(id))
		}
	}
	if err != nil {
		return fmt.Errorf("%s %s: %w", op, id, err)
	}
	return nil
}

// in checks that the guest is in one of the conditions, and says in which.
func (g *guest) in(op Op, conditions ...hypervisor.Condition) (hypervisor.Condition, error) {
	if g == nil {
		return hypervisor.Absent, hypervisor.ErrNotFound
	}
	c := g.state().Condition
	if !slices.Contains(conditions, c) {
		return c, fmt.Errorf("it is %s: %w", c, hypervisor.ErrWrongState)
	}
	return c, nil
}

func (g *guest) state() state {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.s
}

// update the description of a guest at rest.
func (g *guest) update(gs hypervisor.Guest) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.s.Condition != hypervisor.Stopped && g.s.Condition != hypervisor.Crashed {
		return nil
	}
	return g.change(func(s *state) { s.Guest = gs })
}

// become another condition, with what else changes by that.
func (g *guest) become(c hypervisor.Condition, reason string, also func(*state)) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	err := g.change(func(s *state) {
		s.Condition, s.Reason, s.Since = c, reason, g.d.cfg.Clock.Now()
		if also != nil {
			also(s)
		}
	})
	if err != nil {
		return err
	}
	if !alive(c) {
		g.hangUp()
	}
	if g.console != nil && c == hypervisor.Running {
		g.console.greet()
	}
	g.d.feed.Send(hypervisor.Event{ID: g.s.Guest.ID, Condition: c, Reason: reason})
	return nil
}

// change the state, on disk first. g.mu is held.
func (g *guest) change(by func(*state)) error {
	s := g.s
	by(&s)
	if g.d.cfg.Dir != "" {
		if err := durable.WriteJSON(g.d.path(s.Guest.ID), s, 0o600); err != nil {
			return err
		}
	}
	g.s = s
	return nil
}

// alive: with a (simulated) process.
func alive(c hypervisor.Condition) bool {
	return c == hypervisor.Running || c == hypervisor.Paused || c == hypervisor.Halted
}

func (g *guest) observe() hypervisor.Observation {
	s := g.state()
	o := hypervisor.Observation{
		ID: s.Guest.ID, Epoch: g.d.turns.Obeyed(s.Guest.ID), Condition: s.Condition, Reason: s.Reason, Since: s.Since,
		DiskUsed: vee.Bytes(len(s.Guest.Descriptor.Disks)) * vee.MiB, // what a fresh clone takes
	}
	if s.Condition == hypervisor.Suspended {
		o.DiskUsed += s.Guest.Descriptor.Memory
	}
	return o
}

// hangUp ends the lines. g.mu is held.
func (g *guest) hangUp() {
	if g.console != nil {
		g.console.end()
		g.console = nil
	}
	if g.channel != nil {
		g.channel.Close()
		g.channel = nil
	}
}

// Console implements hypervisor.Driver.
func (d *Driver) Console(_ context.Context, id vee.ID) (io.ReadWriteCloser, error) {
	g := d.find(id)
	if _, err := g.in("console", hypervisor.Running, hypervisor.Paused, hypervisor.Halted); err != nil {
		return nil, fmt.Errorf("attach to the console of %s: %w", id, err)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.console != nil {
		g.console.end()
	}
	g.console = newTerminal(g)
	return g.console, nil
}

// GuestChannel implements hypervisor.Driver.
func (d *Driver) GuestChannel(_ context.Context, id vee.ID) (net.Conn, error) {
	g := d.find(id)
	if _, err := g.in("channel", hypervisor.Running, hypervisor.Paused, hypervisor.Halted); err != nil {
		return nil, fmt.Errorf("open the guest channel of %s: %w", id, err)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if d.ctx.Err() != nil {
		return nil, fmt.Errorf("open the guest channel of %s: %w", id, hypervisor.ErrClosed)
	}
	if g.channel != nil {
		g.channel.Close()
	}
	host, inside := net.Pipe()
	g.channel = host
	d.agents.Go(func() { g.play(d.ctx, inside) })
	return host, nil
}

type realClock struct{}

func (realClock) Now() time.Time { return time.Now() }

func (realClock) Sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

var errDetached = errors.New("detached from the console")
