package agent

import (
	"context"
	"fmt"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/reservoir-cloud/reservoir/vhi/guest"
)

func machine() Machine {
	return Machine{
		Hostname:   func() string { return "web-1" },
		Uptime:     func() time.Duration { return 3 * time.Second },
		FreeMemory: func() int64 { return 1 << 20 },
		Shutdown:   func() error { return nil },
		KPIs:       func() map[string]float64 { return map[string]float64{"requests": 7, "queue": 1} },
		Idle:       func() bool { return true },
	}
}

// host is the other end of the guest channel.
type host struct {
	net.Conn
	*guest.Reader
}

// serve an agent in the bubble; each call of the returned function is a host that
// connects anew, after the one before has gone.
func serve(t *testing.T, a *Agent) func() host {
	ctx, cancel := context.WithCancel(context.Background())
	guests := make(chan net.Conn)
	done := make(chan struct{})
	go func() {
		defer close(done)
		a.Serve(ctx, func(ctx context.Context) (Port, error) {
			select {
			case c := <-guests:
				return c, nil
			case <-ctx.Done():
				return nil, ctx.Err()
			}
		})
	}()
	var last net.Conn
	t.Cleanup(func() {
		cancel()
		if last != nil {
			last.Close()
		}
		<-done
	})
	return func() host {
		if last != nil {
			last.Close()
		}
		mine, its := net.Pipe()
		last = mine
		guests <- its
		return host{mine, guest.NewReader(mine)}
	}
}

func (h host) next(t *testing.T) any {
	t.Helper()
	m, err := h.Next()
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func (h host) send(t *testing.T, text string) {
	t.Helper()
	if _, err := fmt.Fprintln(h, text); err != nil {
		t.Fatal(err)
	}
}

// reply skips the statuses before it.
func (h host) reply(t *testing.T) guest.Reply {
	t.Helper()
	for {
		if r, ok := h.next(t).(*guest.Reply); ok {
			return *r
		}
	}
}

func TestAgentTellsHowItIs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := New(machine(), "v1", t.Logf)
		connect := serve(t, a)
		h := connect()
		hello := h.next(t).(*guest.Hello)
		if hello.Hostname != "web-1" || hello.Version != "v1" || len(hello.Capabilities) == 0 {
			t.Errorf("hello: %+v", hello)
		}
		s := h.next(t).(*guest.Status)
		if s.Ready || !s.Idle || s.KPIs["requests"] != 7 || s.UptimeS != 3 {
			t.Errorf("first status: %+v", s)
		}

		before := time.Now()
		a.SetReady(true, "port 80 answers")
		if s := h.next(t).(*guest.Status); !s.Ready || s.Message != "port 80 answers" || time.Since(before) != 0 {
			t.Errorf("status at once after a change: %+v after %v", s, time.Since(before))
		}
		h.next(t)
		if d := time.Since(before); d > statusEvery {
			t.Errorf("the next status after %v, want at most %v", d, statusEvery)
		}

		// The host's agent restarts; the new one is in the middle of nothing.
		h = connect()
		h.send(t, `"kpi","name":"half a line"}`)
		if _, ok := h.next(t).(*guest.Hello); !ok {
			t.Error("no hello on a new connection")
		}
		h.next(t)
		h.send(t, `{"type":"hello?","id":"1"}`)
		if _, ok := h.next(t).(*guest.Hello); !ok {
			t.Error("no hello when asked")
		}
		if r := h.reply(t); !r.OK || r.ID != "1" {
			t.Errorf("reply: %+v", r)
		}
	})
}

func TestAgentObeys(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := machine()
		shut := false
		m.Shutdown = func() error { shut = true; return nil }
		a := New(m, "v1", t.Logf)
		a.SetReady(true, "")
		h := serve(t, a)()
		for _, c := range []struct{ command, wantError string }{
			{`{"type":"kpi","id":"a","name":"queue","amount":4}`, ""},
			{`{"type":"kpi","id":"a","name":"no good","amount":4}`, "KPI name"},
			{`{"type":"ready","id":"a","amount":0}`, ""},
			{`{"type":"burn-memory","id":"a","amount":65536,"seconds":60}`, ""},
			{`{"type":"burn-memory","id":"a","amount":1e12,"seconds":60}`, "what can be spared"},
			{`{"type":"burn-cpu","id":"a","amount":-1,"seconds":60}`, "more than 0"},
			{`{"type":"dance","id":"a"}`, "not known"},
			{`{"type":"shutdown","id":"a"}`, ""},
		} {
			h.send(t, c.command)
			r := h.reply(t)
			if r.OK != (c.wantError == "") || !strings.Contains(r.Error, c.wantError) {
				t.Errorf("%s: %+v", c.command, r)
			}
		}
		s := a.Status()
		if s.KPIs["queue"] != 4 || s.Ready || s.Idle || !shut {
			t.Errorf("afterwards: %+v, shut down %v", s, shut)
		}
		time.Sleep(2 * time.Minute)
		if !a.Status().Idle {
			t.Error("not idle after the burning")
		}
	})
}

func TestAgentDropsAHostThatReadsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		connect := serve(t, New(machine(), "v1", t.Logf))
		connect()
		time.Sleep(2 * writeTimeout)
		if _, ok := connect().next(t).(*guest.Hello); !ok {
			t.Error("no hello for the next host")
		}
	})
}

func TestBurnCPUEndsWithItsContext(t *testing.T) {
	a := New(machine(), "v1", t.Logf)
	ctx, cancel := context.WithCancel(t.Context())
	if err := a.BurnCPU(ctx, 1.5, time.Hour); err != nil {
		t.Fatal(err)
	}
	if a.Status().Idle {
		t.Error("idle while burning")
	}
	cancel()
	a.burning.Wait()
	if !a.Status().Idle {
		t.Error("not idle afterwards")
	}
}

func TestFailureMeansNotReady(t *testing.T) {
	a := New(machine(), "v1", t.Logf)
	a.SetFailure(strings.Repeat("ä", guest.MaxText))
	a.SetReady(true, "")
	s := a.Status()
	if s.Ready || len(s.Failure) > guest.MaxText || !strings.HasSuffix(s.Failure, "ä"+more) {
		t.Errorf("ready %v, failure of %d bytes", s.Ready, len(s.Failure))
	}
	if _, err := guest.Encode(s); err != nil {
		t.Error(err)
	}
	if err := a.Obey(t.Context(), guest.Command{Type: "ready", Amount: 1}); err != nil || !a.Status().Ready {
		t.Errorf("ordered to be ready: %v", err)
	}
}
