package sim

import (
	"context"
	"errors"
	"flag"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/reservoir-cloud/reservoir/hypervisor"
	"github.com/reservoir-cloud/reservoir/hypervisor/conformance"
	"github.com/reservoir-cloud/reservoir/vee"
	channel "github.com/reservoir-cloud/reservoir/vhi/guest"
)

var update = flag.Bool("update", false, "write the golden files anew")

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func description(*testing.T) hypervisor.Guest {
	return hypervisor.Guest{
		ID: "alpha.aaaaaaaaaa",
		Descriptor: vee.Descriptor{
			Name: "web-1", VCPUs: 1, Memory: 64 * vee.MiB,
			Disks: []vee.Disk{{Name: "root", Image: "sha256:x"}},
		},
		Images: []hypervisor.LocalImage{{Digest: "sha256:x", Disk: "x.raw", Format: "raw"}},
	}
}

func TestConformance(t *testing.T) {
	r := conformance.Run(t, conformance.Factory{
		New: func(t *testing.T, dir string) hypervisor.Driver {
			d, err := New(Config{Dir: dir})
			if err != nil {
				t.Fatal(err)
			}
			return d
		},
		Guest: description,
		Crash: func(t *testing.T, d hypervisor.Driver, o hypervisor.Observation) {
			if err := d.(*Driver).Crash(o.ID, "a test"); err != nil {
				t.Fatal(err)
			}
		},
	})
	r.Check(t, "sim", *update)
}

// started is a driver in memory with one running guest.
func started(t *testing.T, cfg Config) (*Driver, hypervisor.Guest) {
	t.Helper()
	d, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	g := description(t)
	if err := errors.Join(d.Prepare(t.Context(), g), d.Start(t.Context(), g)); err != nil {
		t.Fatal(err)
	}
	return d, g
}

func TestAgentSpeaksTheGuestChannel(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, g := started(t, Config{
			ReadyAfter: 2 * time.Second,
			KPIs:       func(vee.ID, time.Duration) map[string]float64 { return map[string]float64{"sessions": 7} },
		})
		conn, err := d.GuestChannel(t.Context(), g.ID)
		if err != nil {
			t.Fatal(err)
		}
		in := channel.NewReader(conn)
		next := func() any {
			t.Helper()
			msg, err := in.Next()
			if err != nil {
				t.Fatal(err)
			}
			return msg
		}
		tell := func(c channel.Command) {
			t.Helper()
			line, err := channel.Encode(c)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := conn.Write(line); err != nil {
				t.Fatal(err)
			}
		}
		if h, ok := next().(*channel.Hello); !ok || h.Hostname != "web-1" {
			t.Errorf("first message %+v, want a hello of web-1", h)
		}
		if s := next().(*channel.Status); s.Ready || s.KPIs["sessions"] != 7 {
			t.Errorf("at boot: %+v, want not ready and 7 sessions", s)
		}
		if s := next().(*channel.Status); !s.Ready || s.UptimeS != 2 {
			t.Errorf("next: %+v, want ready after 2 s", s)
		}
		tell(channel.Command{Type: "kpi", ID: "1", Name: "sessions", Amount: 9})
		if r := next().(*channel.Reply); !r.OK || r.ID != "1" {
			t.Errorf("reply %+v", r)
		}
		if s := next().(*channel.Status); s.KPIs["sessions"] != 9 {
			t.Errorf("after kpi: %+v, want 9 sessions", s)
		}
		tell(channel.Command{Type: "dance", ID: "2"})
		if r := next().(*channel.Reply); r.OK || r.Error == "" {
			t.Errorf("reply to an unknown command: %+v", r)
		}
		next()
		tell(channel.Command{Type: "shutdown"})
		if _, err := in.Next(); err == nil {
			t.Error("the channel outlives the guest")
		}
		o, err := d.Inspect(t.Context(), g.ID)
		if err != nil || o.Reason != hypervisor.ReasonPoweredOff {
			t.Errorf("after shutdown: %+v, %v", o, err)
		}
		d.Close()
	})
}

func TestFaultsAndLatencies(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		broken := errors.New("the disk is on fire")
		fail := true
		d, g := started(t, Config{
			Latency: func(op Op, _ vee.ID) time.Duration { return map[Op]time.Duration{Pause: time.Minute}[op] },
			Fault: func(op Op, _ vee.ID) error {
				if op == Pause && fail {
					return broken
				}
				return nil
			},
		})
		began := time.Now()
		if err := d.Pause(t.Context(), g.ID, g.Epoch); !errors.Is(err, broken) {
			t.Errorf("pause: %v, want %v", err, broken)
		}
		if took := time.Since(began); took != time.Minute {
			t.Errorf("pause took %s, want 1m", took)
		}
		fail = false
		short, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := d.Pause(short, g.ID, g.Epoch); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("pause with a short deadline: %v", err)
		}
		if err := d.Pause(t.Context(), g.ID, g.Epoch); err != nil {
			t.Errorf("pause: %v", err)
		}
		if err := d.Halt(g.ID, "no space left"); err != nil {
			t.Error(err)
		}
		if err := d.Resume(t.Context(), g.ID, g.Epoch); err != nil {
			t.Errorf("resume of a halted guest: %v", err)
		}
		d.Close()
	})
}

func TestWithoutADirectoryItForgets(t *testing.T) {
	d, _ := started(t, Config{})
	d.Close()
	d, err := New(Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if all, _ := d.Observe(t.Context()); len(all) != 0 {
		t.Errorf("%d guests in a new driver, want none", len(all))
	}
}
