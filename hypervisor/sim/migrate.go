package sim

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"time"

	"github.com/reservoir-cloud/reservoir/hypervisor"
	"github.com/reservoir-cloud/reservoir/vee"
)

// Commands of a live migration, for Config.Latency and Config.Fault. Copy is the time and
// the fault of the copying itself, in the middle of a Send.
const (
	Receive Op = "receive"
	Send    Op = "send"
	Copy    Op = "copy"
	Take    Op = "take"
)

var _ hypervisor.Migrator = (*Driver)(nil)

// Shape implements hypervisor.Migrator: all simulated machines are the same.
func (d *Driver) Shape(_ context.Context, id vee.ID) ([]byte, error) {
	if _, err := d.find(id).in("shape", hypervisor.Running, hypervisor.Sent); err != nil {
		return nil, fmt.Errorf("describe the machine of %s: %w", id, err)
	}
	return []byte("{}"), nil
}

// Receive implements hypervisor.Migrator.
func (d *Driver) Receive(ctx context.Context, gs hypervisor.Guest, _ []byte) error {
	return d.command(ctx, Receive, gs.ID, gs.Epoch, func(g *guest) error {
		if g != nil {
			return fmt.Errorf("it is %s: %w", g.state().Condition, hypervisor.ErrWrongState)
		}
		if err := gs.Check(); err != nil {
			return err
		}
		g = &guest{d: d, s: state{Guest: gs, Condition: hypervisor.Absent}}
		if err := g.become(hypervisor.Incoming, "", nil); err != nil {
			return err
		}
		d.mu.Lock()
		defer d.mu.Unlock()
		d.guests[gs.ID] = g
		return nil
	})
}

// memory is what moves with a guest.
type memory struct {
	Boots  int                `json:"boots"`
	Booted time.Time          `json:"booted"`
	Typed  int                `json:"typed"`
	Ready  *bool              `json:"ready,omitempty"`
	KPIs   map[string]float64 `json:"kpis,omitempty"`
}

// Inlet implements hypervisor.Migrator. There is one stream: what a simulated disk
// remembers goes with the memory.
func (d *Driver) Inlet(_ context.Context, id vee.ID, stream string) (net.Conn, error) {
	g := d.find(id)
	if _, err := g.in("inlet", hypervisor.Incoming); err != nil {
		return nil, fmt.Errorf("open an inlet of %s: %w", id, err)
	}
	if stream != hypervisor.MemoryStream {
		return nil, fmt.Errorf("open an inlet of %s: it has no disk %q: %w", id, stream, hypervisor.ErrNotFound)
	}
	ours, theirs := net.Pipe()
	stop := context.AfterFunc(d.ctx, func() { theirs.Close() })
	d.agents.Go(func() {
		defer stop()
		defer theirs.Close()
		var m memory
		if json.NewDecoder(theirs).Decode(&m) != nil {
			_ = g.become(hypervisor.Crashed, "its memory did not arrive", nil)
			return
		}
		g.mu.Lock()
		defer g.mu.Unlock()
		_ = g.change(func(s *state) {
			s.Boots, s.Booted, s.Typed, s.Ready, s.KPIs, s.Loaded = m.Boots, m.Booted, m.Typed, m.Ready, m.KPIs, true
		})
	})
	return ours, nil
}

// loadPoll is how often Loaded looks.
const loadPoll = 5 * time.Millisecond

// Loaded implements hypervisor.Migrator.
func (d *Driver) Loaded(ctx context.Context, id vee.ID) error {
	g := d.find(id)
	for {
		if _, err := g.in("load", hypervisor.Incoming); err != nil {
			return fmt.Errorf("wait for the memory of %s: %w", id, err)
		}
		if g.state().Loaded {
			return nil
		}
		if err := d.cfg.Clock.Sleep(ctx, loadPoll); err != nil {
			return fmt.Errorf("wait for the memory of %s: %w", id, err)
		}
	}
}

// Take implements hypervisor.Migrator.
func (d *Driver) Take(ctx context.Context, id vee.ID, e vee.Epoch) (ran time.Time, err error) {
	if err := d.step(ctx, Take, id, e, hypervisor.Running, hypervisor.Incoming); err != nil {
		return ran, err
	}
	return d.find(id).observe().Since, nil
}

// Send implements hypervisor.Migrator.
func (d *Driver) Send(ctx context.Context, id vee.ID, e vee.Epoch, s hypervisor.Sending) (took hypervisor.Passage, err error) {
	err = d.command(ctx, Send, id, e, func(g *guest) error {
		c, err := g.in(Send, hypervisor.Running, hypervisor.Sent)
		if err != nil || c == hypervisor.Sent {
			return err
		}
		begun := d.cfg.Clock.Now()
		ctx, done := context.WithCancelCause(ctx)
		defer done(nil)
		far, err := s.Dial(ctx, hypervisor.MemoryStream)
		if err != nil {
			return fmt.Errorf("reach the other host's memory: %w", err)
		}
		defer far.Close()
		st := g.state()
		total := st.Guest.Descriptor.Memory
		tell := func(t hypervisor.Transfer) {
			if s.Progress != nil {
				s.Progress(t)
			}
		}
		for _, what := range []string{"disks", "memory", "switchover"} {
			tell(hypervisor.Transfer{What: what, Total: total, Left: total})
		}
		if d.cfg.Latency != nil {
			if err := d.cfg.Clock.Sleep(ctx, d.cfg.Latency(Copy, id)); err != nil {
				return err
			}
		}
		if d.cfg.Fault != nil {
			if err := d.cfg.Fault(Copy, id); err != nil {
				return err
			}
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err := json.NewEncoder(far).Encode(memory{st.Boots, st.Booted, st.Typed, st.Ready, st.KPIs}); err != nil {
			return fmt.Errorf("send its memory: %w", err)
		}
		tell(hypervisor.Transfer{What: "switchover", Total: total})
		took = hypervisor.Passage{Memory: total, MemoryTook: d.cfg.Clock.Now().Sub(begun), Stopped: d.cfg.Clock.Now()}
		return g.become(hypervisor.Sent, "", nil)
	})
	return took, err
}
