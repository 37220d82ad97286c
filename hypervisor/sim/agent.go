package sim

import (
	"context"
	"maps"
	"net"
	"sync"
	"time"

	"github.com/reservoir-cloud/reservoir/hypervisor"
	"github.com/reservoir-cloud/reservoir/vee"
	channel "github.com/reservoir-cloud/reservoir/vhi/guest"
)

// statusEvery is how often a guest's agent speaks unasked.
const statusEvery = 5 * time.Second

// commands that a simulated agent obeys.
var commands = []string{"hello?", "burn-cpu", "burn-memory", "kpi", "ready", "shutdown"}

// play the agent inside a guest on one connection of its channel, until that is closed.
func (g *guest) play(ctx context.Context, conn net.Conn) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	a := &agent{g: g, conn: conn}
	var wg sync.WaitGroup
	defer wg.Wait()
	defer conn.Close()
	wg.Go(func() {
		defer cancel()
		a.obey()
	})
	wg.Go(func() { // ends obey, too, when the driver closes
		<-ctx.Done()
		conn.Close()
	})
	if !g.state().Hung {
		_ = a.say(a.hello())
	}
	for a.report() == nil {
		wait := statusEvery
		if left := g.untilReady(); left > 0 {
			wait = min(wait, left)
		}
		if g.d.cfg.Clock.Sleep(ctx, wait) != nil {
			return
		}
	}
}

// agent is one connection's.
type agent struct {
	g    *guest
	conn net.Conn
	mu   sync.Mutex // held while one message is written
}

func (a *agent) say(msg any) error {
	line, err := channel.Encode(msg)
	if err != nil {
		return err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	_, err = a.conn.Write(line)
	return err
}

func (a *agent) hello() channel.Hello {
	return channel.Hello{
		Type: "hello", Version: "sim", Hostname: a.g.state().Guest.Descriptor.Name, Capabilities: commands,
	}
}

// report the status. A guest whose vCPUs stand still says nothing.
func (a *agent) report() error {
	s := a.g.state()
	if s.Condition != hypervisor.Running || s.Hung {
		return nil
	}
	up := a.g.d.cfg.Clock.Now().Sub(s.Booted)
	kpis := hardware(s.Guest.Descriptor)
	if a.g.d.cfg.KPIs != nil {
		maps.Copy(kpis, a.g.d.cfg.KPIs(s.Guest.ID, up))
	}
	maps.Copy(kpis, s.KPIs)
	ready := up >= a.g.d.cfg.ReadyAfter
	if s.Ready != nil {
		ready = *s.Ready
	}
	return a.say(channel.Status{Type: "status", Ready: ready, KPIs: kpis, UptimeS: up.Seconds()})
}

// hardware that the agent of a simulated guest sees, as that of a real one tells it.
func hardware(d vee.Descriptor) map[string]float64 {
	return map[string]float64{"vcpus_online": float64(d.VCPUs), "memory_total_bytes": float64(d.Memory), "memory_available_bytes": float64(d.Memory) / 2}
}

// untilReady is how long the guest still needs to boot.
func (g *guest) untilReady() time.Duration {
	return g.d.cfg.ReadyAfter - g.d.cfg.Clock.Now().Sub(g.state().Booted)
}

// obey commands until the connection ends.
func (a *agent) obey() {
	in := channel.NewReader(a.conn)
	for {
		msg, err := in.Next()
		if err != nil {
			return
		}
		c, ok := msg.(*channel.Command)
		if s := a.g.state(); !ok || s.Condition != hypervisor.Running || s.Hung {
			continue
		}
		reply := channel.Reply{Type: "reply", ID: c.ID, OK: true}
		if err := a.do(*c); err != "" {
			reply.OK, reply.Error = false, err
		}
		if c.ID != "" {
			_ = a.say(reply)
		}
		switch c.Type {
		case "hello?":
			_ = a.say(a.hello())
		case "shutdown":
			_ = a.g.become(hypervisor.Crashed, hypervisor.ReasonPoweredOff, nil)
			return
		}
		if a.report() != nil {
			return
		}
	}
}

// do what a command says to the guest, and return what is wrong with it.
func (a *agent) do(c channel.Command) string {
	change := func(by func(*state)) string {
		a.g.mu.Lock()
		defer a.g.mu.Unlock()
		if err := a.g.change(by); err != nil {
			return err.Error()
		}
		return ""
	}
	kpi := func(name string) string {
		return change(func(s *state) {
			s.KPIs = maps.Clone(s.KPIs)
			if s.KPIs == nil {
				s.KPIs = map[string]float64{}
			}
			s.KPIs[name] = c.Amount
		})
	}
	switch c.Type {
	case "hello?", "shutdown":
		return ""
	case "kpi":
		if !channel.ValidKPI(c.Name) {
			return "this is no name of a KPI"
		}
		return kpi(c.Name)
	case "burn-cpu", "burn-memory": // shown, and never ending: no CPU is there to burn
		return kpi(c.Type)
	case "ready":
		ready := c.Amount != 0
		return change(func(s *state) { s.Ready = &ready })
	}
	return "unknown command"
}
