// Package agent is the guest's end of the guest channel (vhi/guest): it says hello, tells
// how the guest is, and obeys the host. What the commands do to the machine that it runs on
// is passed in, so that it is the same in the appliance and in any other guest.
package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"strings"
	"sync"
	"time"

	"github.com/reservoir-cloud/reservoir/vhi/guest"
)

const (
	// statusEvery is how often a Status is sent when nothing changes.
	statusEvery = 5 * time.Second
	// writeTimeout of one message. A host that takes nothing for so long is gone.
	writeTimeout = 5 * time.Second
	// reconnectPause between two connections, so that a failing port is not asked in a loop.
	reconnectPause = 200 * time.Millisecond
)

// capabilities are the commands that Obey knows.
var capabilities = []string{"hello?", "burn-cpu", "burn-memory", "kpi", "ready", "shutdown"}

// Machine is what the agent runs on. Every function must be set.
type Machine struct {
	Hostname func() string
	Uptime   func() time.Duration
	// FreeMemory is what may be burnt without harm, in bytes.
	FreeMemory func() int64
	// Shutdown begins an orderly shutdown and returns.
	Shutdown func() error
	// KPIs measured afresh for each Status; those set by command go before them.
	KPIs func() map[string]float64
	// Idle reports whether this replica would not be missed.
	Idle func() bool
}

// Agent holds what the guest says of itself. Its methods may be called from any goroutine.
type Agent struct {
	machine Machine
	version string
	log     func(format string, args ...any)

	changed chan struct{} // holds at most one: a Status is due
	burning sync.WaitGroup

	mu      sync.Mutex
	ready   bool
	ordered *bool // the host's word on ready, which goes before ours
	message string
	failure string
	kpis    map[string]float64
	burns   int
}

// New makes an agent that is not ready yet. log takes one line, without its newline.
func New(m Machine, version string, log func(format string, args ...any)) *Agent {
	return &Agent{
		machine: m, version: version, log: log,
		changed: make(chan struct{}, 1),
		kpis:    map[string]float64{},
	}
}

// SetReady says whether the guest's service answers, and a word on it for people.
func (a *Agent) SetReady(ready bool, message string) {
	a.change(func() { a.ready, a.message = ready, message })
}

// SetFailure says what went wrong in the first boot. The guest is not ready from then on,
// but where the host orders it. What is too long for a Status is cut.
func (a *Agent) SetFailure(text string) {
	if len(text) > guest.MaxText {
		text = strings.ToValidUTF8(text[:guest.MaxText-len(more)], "") + more
	}
	a.change(func() { a.failure = text })
}

// more stands where a text was cut.
const more = " …"

// SetKPI publishes a measurement until it is set again.
func (a *Agent) SetKPI(name string, value float64) error {
	if !guest.ValidKPI(name) {
		return fmt.Errorf("KPI name %q: want letters, digits, _ . : or -, and no digit first", name)
	}
	if !finite(value) {
		return fmt.Errorf("KPI %s: %g is not a finite number", name, value)
	}
	a.mu.Lock()
	_, known := a.kpis[name]
	full := !known && len(a.kpis) >= guest.MaxKPIs
	a.mu.Unlock()
	if full {
		return fmt.Errorf("KPI %s: there are %d already, which is all that a status holds", name, guest.MaxKPIs)
	}
	a.change(func() { a.kpis[name] = value })
	return nil
}

// finite numbers are all that JSON can say.
func finite(v float64) bool { return !math.IsNaN(v) && !math.IsInf(v, 0) }

// Status of the guest as of now.
func (a *Agent) Status() guest.Status {
	measured := a.machine.KPIs()
	idle := a.machine.Idle()
	a.mu.Lock()
	defer a.mu.Unlock()
	s := guest.Status{
		Type: "status", Ready: a.ready && a.failure == "", Message: a.message, Failure: a.failure, KPIs: maps.Clone(a.kpis),
		Idle: idle && a.burns == 0, UptimeS: a.machine.Uptime().Seconds(),
	}
	if a.ordered != nil {
		s.Ready = *a.ordered
	}
	for name, v := range measured {
		if _, set := s.KPIs[name]; !set && len(s.KPIs) < guest.MaxKPIs && guest.ValidKPI(name) && finite(v) {
			s.KPIs[name] = v
		}
	}
	return s
}

// Obey a command of the host. Burning goes on after it has returned, until its time is
// over or ctx ends.
func (a *Agent) Obey(ctx context.Context, c guest.Command) error {
	length := time.Duration(c.Seconds * float64(time.Second))
	switch c.Type {
	case "hello?":
		return nil // answered by the connection itself
	case "burn-cpu":
		return a.BurnCPU(ctx, c.Amount, length)
	case "burn-memory":
		return a.BurnMemory(ctx, c.Amount, length)
	case "kpi":
		return a.SetKPI(c.Name, c.Amount)
	case "ready":
		ready := c.Amount != 0
		a.change(func() { a.ordered = &ready })
		return nil
	case "shutdown":
		return a.machine.Shutdown()
	}
	return fmt.Errorf("command %q is not known: want one of %s", c.Type, strings.Join(capabilities, ", "))
}

func (a *Agent) change(do func()) {
	a.mu.Lock()
	do()
	a.mu.Unlock()
	select {
	case a.changed <- struct{}{}:
	default:
	}
}

// Port is an open guest channel.
type Port interface {
	io.ReadWriteCloser
	SetWriteDeadline(t time.Time) error
}

// Serve talks to the host until ctx ends, over one connection after another: the host's
// agent restarts, and the guest is saved and restored elsewhere. open waits until somebody
// listens at the other end. Serve returns when everything that it began has ended.
func (a *Agent) Serve(ctx context.Context, open func(context.Context) (Port, error)) {
	defer a.burning.Wait()
	for last := ""; ctx.Err() == nil; {
		err := a.connect(ctx, open)
		if err != nil && ctx.Err() == nil && err.Error() != last {
			last = err.Error()
			a.log("guest channel: %s", last)
		}
		select {
		case <-ctx.Done():
		case <-time.After(reconnectPause):
		}
	}
}

func (a *Agent) connect(ctx context.Context, open func(context.Context) (Port, error)) error {
	port, err := open(ctx)
	if err != nil {
		return err
	}
	if err := a.talk(ctx, port); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	return nil
}

// talk over one connection until it ends. It closes port.
func (a *Agent) talk(ctx context.Context, port Port) error {
	commands := make(chan guest.Command)
	ended := make(chan error, 1)
	quit := make(chan struct{})
	defer func() { // the reader ends when the port is closed or its command not wanted
		port.Close()
		close(quit)
		<-ended //nolint:errcheck // why it ended has been told already
	}()
	go func() {
		err := read(guest.NewReader(port), commands, quit)
		ended <- err
		ended <- nil
	}()

	if err := a.sayHello(port); err != nil {
		return err
	}
	tick := time.NewTicker(statusEvery)
	defer tick.Stop()
	for {
		var err error
		select {
		case <-ctx.Done():
			return ctx.Err()
		case err := <-ended:
			return err
		case <-tick.C:
			err = send(port, a.Status())
		case <-a.changed:
			err = send(port, a.Status())
		case c := <-commands:
			err = a.answer(ctx, port, c)
		}
		if err != nil {
			return err
		}
	}
}

// read hands on commands until the port ends. Lines that are none are passed over: after a
// restore the first may be the rest of one that an earlier host had begun.
func read(r *guest.Reader, commands chan<- guest.Command, quit <-chan struct{}) error {
	for {
		msg, err := r.Next()
		if errors.Is(err, guest.ErrMalformed) {
			continue
		}
		if err != nil {
			return err
		}
		c, ok := msg.(*guest.Command)
		if !ok {
			continue
		}
		select {
		case commands <- *c:
		case <-quit:
			return nil
		}
	}
}

func (a *Agent) answer(ctx context.Context, port Port, c guest.Command) error {
	if c.Type == "hello?" {
		if err := a.sayHello(port); err != nil {
			return err
		}
	}
	err := a.Obey(ctx, c)
	if c.ID == "" {
		return nil
	}
	reply := guest.Reply{Type: "reply", ID: c.ID, OK: err == nil}
	if err != nil {
		reply.Error = err.Error()
	}
	return send(port, reply)
}

// sayHello and how the guest is, which a host that has just come does not know.
func (a *Agent) sayHello(port Port) error {
	hello := guest.Hello{Type: "hello", Version: a.version, Hostname: a.machine.Hostname(), Capabilities: capabilities}
	if err := send(port, hello); err != nil {
		return err
	}
	return send(port, a.Status())
}

func send(port Port, msg any) error {
	line, err := guest.Encode(msg)
	if err != nil {
		return err
	}
	if err := port.SetWriteDeadline(time.Now().Add(writeTimeout)); err != nil {
		return err
	}
	_, err = port.Write(line)
	return err
}
