package sim

import (
	"bytes"
	"fmt"
	"io"
	"sync"

	"github.com/reservoir-cloud/reservoir/hypervisor"
)

// terminal is a caller's side of a simulated serial console. Its guest says what the
// conformance suite expects of one (conformance.Factory): how often it has booted, and how
// many bytes were typed since.
type terminal struct {
	g *guest

	mu     sync.Mutex
	filled sync.Cond
	output bytes.Buffer
	ended  bool
}

// newTerminal has the guest's first words waiting. g.mu is held.
func newTerminal(g *guest) *terminal {
	t := &terminal{g: g}
	t.filled.L = &t.mu
	t.greet()
	return t
}

// greet is what a guest says that has booted. g.mu is held.
func (t *terminal) greet() { t.say("B%02X\n", t.g.s.Boots&0xff) }

func (t *terminal) say(format string, args ...any) {
	t.mu.Lock()
	defer t.mu.Unlock()
	fmt.Fprintf(&t.output, format, args...)
	t.filled.Broadcast()
}

func (t *terminal) end() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.ended = true
	t.filled.Broadcast()
}

// Read waits for output; io.EOF when the guest ended or another took over.
func (t *terminal) Read(b []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for t.output.Len() == 0 {
		if t.ended {
			return 0, io.EOF
		}
		t.filled.Wait()
	}
	return t.output.Read(b)
}

// Write is what is typed. A guest whose vCPUs stand still does not see it.
func (t *terminal) Write(b []byte) (int, error) {
	t.mu.Lock()
	ended := t.ended
	t.mu.Unlock()
	if ended {
		return 0, errDetached
	}
	for _, key := range b {
		if key == 'q' {
			return len(b), t.g.become(hypervisor.Crashed, hypervisor.ReasonPoweredOff, nil)
		}
		if err := t.g.typed(); err != nil {
			return 0, err
		}
	}
	return len(b), nil
}

// typed is one key on the console of a guest.
func (g *guest) typed() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.s.Condition != hypervisor.Running {
		return nil
	}
	if err := g.change(func(s *state) { s.Typed++ }); err != nil {
		return err
	}
	if g.console != nil {
		g.console.say("C%02X\n", g.s.Typed&0xff)
	}
	return nil
}

// Close detaches.
func (t *terminal) Close() error {
	t.g.mu.Lock()
	if t.g.console == t {
		t.g.console = nil
	}
	t.g.mu.Unlock()
	t.end()
	return nil
}
