package measure

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/reservoir-cloud/reservoir/agent/lrt"
	"github.com/reservoir-cloud/reservoir/hypervisor"
	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/monitor"
	"github.com/reservoir-cloud/reservoir/monitor/intake"
	"github.com/reservoir-cloud/reservoir/van"
	"github.com/reservoir-cloud/reservoir/vee"
	"github.com/reservoir-cloud/reservoir/vhi/guest"
)

// site takes reports while it is up.
type site struct {
	mu     sync.Mutex
	down   bool
	late   bool // takes the next report, and does not say so
	points map[string][]point
	lost   map[monitor.Reason]int
	orders monitor.Orders
	probes []monitor.Status
}

type point struct {
	at    int64 // ms
	value float64
}

func (s *site) Report(_ context.Context, r monitor.Report) (monitor.Orders, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.down {
		return monitor.Orders{}, fault.New(fault.Unavailable, "the site is away")
	}
	if s.points == nil {
		s.points, s.lost = map[string][]point{}, map[monitor.Reason]int{}
	}
	for _, m := range r.Measurements {
		for _, v := range m.Values {
			series := fmt.Sprintf("%s/%s{%s}", m.VEE, v.Field, v.Labels)
			// As the store has it: the same value of the same time is no other value.
			if p := (point{m.AtMS, v.Value}); !slices.Contains(s.points[series], p) {
				s.points[series] = append(s.points[series], p)
			}
		}
	}
	for why, n := range r.Lost {
		s.lost[why] += n
	}
	if r.Probes != nil {
		s.probes = r.Probes
	}
	if s.late {
		s.late = false
		return monitor.Orders{}, errors.New("the connection broke")
	}
	o := s.orders
	if o.Same = o.Version == r.Orders; o.Same {
		o.Orders = nil
	}
	return o, nil
}

func (s *site) of(series string) []point {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.points[series])
}

// host with a driver of its own.
type host struct {
	*Measurer
	source *monitor.Source

	mu      sync.Mutex
	running map[vee.ID]vee.Descriptor
	began   map[vee.ID]time.Time // of a process
	dial    func() (net.Conn, error)
}

func newHost(ctx context.Context, t *testing.T, wg *sync.WaitGroup, up monitor.Uplink, name string) *host {
	t.Helper()
	return newFullHost(ctx, t, wg, up, name, 0)
}

// newFullHost has a source with room for so many probes.
func newFullHost(ctx context.Context, t *testing.T, wg *sync.WaitGroup, up monitor.Uplink, name string, room int) *host {
	t.Helper()
	h := &host{running: map[vee.ID]vee.Descriptor{}, began: map[vee.ID]time.Time{}}
	h.source = monitor.NewSource(monitor.SourceConfig{Uplink: up, MaxProbes: room, Incarnation: name, Now: time.Now, Log: slog.New(slog.DiscardHandler)})
	h.Measurer = New(Config{
		Source: h.source, Machine: &lrt.Machine{Root: t.TempDir(), Dir: t.TempDir()}, Own: func(string) bool { return false }, Meter: h,
		Traffic: func(vee.ID, int) (van.Traffic, error) { return van.Traffic{Received: 1, Sent: 2}, nil },
		Dial:    func(context.Context, vee.ID, uint16) (net.Conn, error) { return h.dial() },
		Running: func() (list []VEE) {
			h.mu.Lock()
			defer h.mu.Unlock()
			for id, d := range h.running {
				list = append(list, VEE{id, d})
			}
			return list
		},
		Runs: func(id vee.ID) bool { h.mu.Lock(); defer h.mu.Unlock(); _, is := h.running[id]; return is },
		Now:  time.Now,
	})
	wg.Go(func() { h.Run(ctx) })
	wg.Go(func() { _ = h.source.Run(ctx) })
	return h
}

func (h *host) start(id vee.ID, d vee.Descriptor) {
	h.mu.Lock()
	h.running[id], h.began[id] = d, time.Now()
	h.mu.Unlock()
	h.Poke()
}

func (h *host) stop(id vee.ID) {
	h.mu.Lock()
	delete(h.running, id)
	h.mu.Unlock()
	h.Poke()
}

// A process takes half a CPU.
func (h *host) CPUUse(_ context.Context, id vee.ID) (time.Duration, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if _, is := h.running[id]; !is {
		return 0, hypervisor.ErrWrongState
	}
	return time.Since(h.began[id]) / 2, nil
}

func (h *host) MemoryUse(context.Context, vee.ID) (hypervisor.MemoryUse, error) {
	return hypervisor.MemoryUse{Resident: 1, Guest: 2}, nil
}
func (h *host) BlockUse(context.Context, vee.ID) (hypervisor.BlockUse, error) {
	return hypervisor.BlockUse{}, hypervisor.ErrUnsupported
}
func (h *host) DirtyRate(context.Context, vee.ID, time.Duration) (vee.Bytes, error) {
	return 3, nil
}

const shop, bank vee.ID = "alpha.shopaaaaaa", "alpha.bankaaaaaa"

// run f in virtual time, with what it started ended afterwards.
func run(t *testing.T, f func(ctx context.Context, t *testing.T, wg *sync.WaitGroup)) {
	synctest.Test(t, func(t *testing.T) {
		ctx, stop := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		defer wg.Wait()
		defer stop()
		f(ctx, t, &wg)
	})
}

// increase as PromQL has it: a counter that falls has started again at 0.
func increase(points []point) (sum float64) {
	for i := 1; i < len(points); i++ {
		if d := points[i].value - points[i-1].value; d >= 0 {
			sum += d
		} else {
			sum += points[i].value
		}
	}
	return sum
}

func gap(points []point) (most time.Duration) {
	for i := 1; i < len(points); i++ {
		most = max(most, time.Duration(points[i].at-points[i-1].at)*time.Millisecond)
	}
	return most
}

// A VEE that moves every minute and a bit keeps its series: no gap is longer than one interval
// and the time that it stood still, and what it has used is counted once.
func TestSeriesOutliveMigrations(t *testing.T) {
	run(t, func(ctx context.Context, t *testing.T, wg *sync.WaitGroup) {
		up := &site{}
		hosts := []*host{newHost(ctx, t, wg, up, "a"), newHost(ctx, t, wg, up, "b")}
		const downtime, stay, moves = 85 * time.Millisecond, 67300 * time.Millisecond, 8
		said := func(h *host) {
			h.Said(shop, guest.Status{KPIs: map[string]float64{"queue": 4}})
		}
		ran := time.Duration(0)
		for i := range moves {
			h := hosts[i%2]
			h.start(shop, vee.Descriptor{NICs: make([]vee.NIC, 1)})
			for left := stay; left > 0; left -= 5 * time.Second {
				said(h)
				time.Sleep(min(left, 5*time.Second))
			}
			ran += stay
			if i == moves-1 {
				break
			}
			h.stop(shop) // its vCPUs stand still
			h.Said(shop, guest.Status{KPIs: map[string]float64{"queue": 4}})
			time.Sleep(downtime)
		}
		time.Sleep(2 * time.Second)
		cpu := up.of(string(shop) + "/vee_cpu_seconds_total{}")
		slices.SortFunc(cpu, func(a, b point) int { return int(a.at - b.at) })
		if g := gap(cpu); g > usual+downtime+10*time.Millisecond {
			t.Errorf("a gap of %v", g)
		}
		if used, most := increase(cpu), ran.Seconds()/2; used > most || used < most-float64(moves)*usual.Seconds()/2 {
			t.Errorf("%g s of CPU time are counted, of %g s at most", used, most)
		}
		for i := 1; i < len(cpu); i++ {
			if cpu[i].at == cpu[i-1].at {
				t.Errorf("two values at %d", cpu[i].at)
			}
		}
		queue := up.of(string(shop) + "/queue{}")
		if g := gap(queue); g > 5*time.Second+downtime+10*time.Millisecond || len(queue) < moves*13 {
			t.Errorf("%d values of the KPI, with a gap of %v", len(queue), g)
		}
	})
}

// While the site is away measurements wait, those of a report whose answer was lost too; what
// waits longest goes when it is too much, and is counted.
func TestSiteAway(t *testing.T) {
	run(t, func(ctx context.Context, t *testing.T, wg *sync.WaitGroup) {
		up := &site{}
		h := newHost(ctx, t, wg, up, "a")
		h.start(shop, vee.Descriptor{})
		time.Sleep(30 * time.Second)
		up.mu.Lock()
		up.late = true
		up.mu.Unlock()
		time.Sleep(30 * time.Second)
		up.mu.Lock()
		up.down = true
		up.mu.Unlock()
		time.Sleep(10 * time.Minute)
		if n := len(up.of(string(shop) + "/vee_cpu_seconds_total{}")); n > 7 {
			t.Fatalf("%d values in a minute", n)
		}
		up.mu.Lock()
		up.down = false
		up.mu.Unlock()
		time.Sleep(time.Minute)
		cpu := up.of(string(shop) + "/vee_cpu_seconds_total{}")
		if g := gap(cpu); len(cpu) < 70 || len(cpu) > 73 || g > usual+time.Millisecond {
			t.Errorf("%d values of 12 minutes, with a gap of %v", len(cpu), g)
		}
		if used := increase(cpu); math.Abs(used-float64(len(cpu)-1)*5) > 0.1 {
			t.Errorf("%g s of CPU time are counted", used)
		}

		up.mu.Lock()
		up.down = true
		up.mu.Unlock()
		values := make([]monitor.Value, 900)
		for i := range values {
			values[i] = monitor.Value{Field: "flood", Labels: fmt.Sprintf("i=\"%d\"", i)}
		}
		for range 200 { // 180,000 values
			h.Pushed(shop, slices.Clone(values), nil)
			time.Sleep(time.Second)
		}
		up.mu.Lock()
		up.down = false
		up.mu.Unlock()
		time.Sleep(time.Minute)
		up.mu.Lock()
		defer up.mu.Unlock()
		if n := up.lost[monitor.Lost]; n < 70_000 || n > 90_000 {
			t.Errorf("%d values are counted as lost", n)
		}
		if last := up.points[string(shop)+`/flood{i="7"}`]; len(last) < 100 || last[len(last)-1].at-last[0].at < 90_000 {
			t.Errorf("of the newest %d values are left", len(last))
		}
	})
}

// Orders reach the probes of a VEE wherever it is, and those of an agent that starts anew.
// A VEE that comes when there is no room for its probes is measured once there is.
func TestRoomForProbes(t *testing.T) {
	run(t, func(ctx context.Context, t *testing.T, wg *sync.WaitGroup) {
		up := &site{}
		h := newFullHost(ctx, t, wg, up, "h1", len(hostProbes(Config{}))+7)
		h.start(shop, vee.Descriptor{})
		time.Sleep(time.Second)
		h.start(bank, vee.Descriptor{})
		time.Sleep(time.Minute)
		if n := len(up.of(string(bank) + "/vee_cpu_seconds_total{}")); n != 0 {
			t.Errorf("%d measurements of a VEE for which there was no room", n)
		}
		before := len(up.of(string(shop) + "/vee_cpu_seconds_total{}"))
		h.stop(shop)
		time.Sleep(time.Minute)
		if n := len(up.of(string(bank) + "/vee_cpu_seconds_total{}")); before < 5 || n < 5 {
			t.Errorf("%d measurements of the VEE that was there, then %d of the other in a minute; want one each ten seconds", before, n)
		}
	})
}

func TestOrders(t *testing.T) {
	run(t, func(ctx context.Context, t *testing.T, wg *sync.WaitGroup) {
		up := &site{orders: monitor.Orders{Version: "1", Orders: []monitor.Order{
			{Ref: monitor.Ref{Name: "cpu", VEE: shop}, Settings: monitor.Settings{On: true, EveryMS: 2000}},
			{Ref: monitor.Ref{Name: "memory", VEE: shop}, Settings: monitor.Settings{}},
			{Ref: monitor.Ref{Name: "dirty", VEE: shop}, Settings: monitor.Settings{On: true, EveryMS: 5000}},
		}}}
		for _, incarnation := range []string{"a", "anew"} {
			once, stop := context.WithCancel(ctx)
			h := newHost(once, t, wg, up, incarnation)
			h.start(shop, vee.Descriptor{})
			time.Sleep(10 * time.Second)
			begin := time.Now().UnixMilli()
			time.Sleep(time.Minute)
			count := func(field string) (n int) {
				for _, p := range up.of(string(shop) + "/" + field + "{}") {
					if p.at >= begin {
						n++
					}
				}
				return n
			}
			if c, m, d := count("vee_cpu_seconds_total"), count("vee_memory_guest_bytes"), count("vee_memory_dirty_bytes_per_second"); c < 28 || c > 31 || m != 0 || d < 11 || d > 13 {
				t.Errorf("%s: in a minute %d of the CPU, %d of memory, %d of dirty pages", incarnation, c, m, d)
			}
			stop()
			time.Sleep(time.Second)
		}
	})
}

// What a guest's agent says is its own, bounded, and under names that are nobody else's.
func TestSaid(t *testing.T) {
	run(t, func(ctx context.Context, t *testing.T, wg *sync.WaitGroup) {
		up := &site{}
		h := newHost(ctx, t, wg, up, "a")
		h.start(shop, vee.Descriptor{})
		h.start(bank, vee.Descriptor{})
		h.Said(shop, guest.Status{KPIs: map[string]float64{"queue.size": 1, "queue_size": 2, "vee_cpu_seconds_total": 1e9, "host_load": 9, "alpha.customers.bankers.services.bank.queue": 7}})
		h.Said("alpha.strangeraa", guest.Status{KPIs: map[string]float64{"queue": 1}})
		for i := range 50 { // a hundred times too often, and ever new names
			many := map[string]float64{"steady": float64(i)}
			for k := range 100 {
				many[fmt.Sprintf("n%d", 100*i+k)] = 1
			}
			h.Said(shop, guest.Status{KPIs: many})
			time.Sleep(20 * time.Millisecond)
		}
		h.Said(bank, guest.Status{KPIs: map[string]float64{"queue": 5}})
		time.Sleep(10 * time.Second)
		if got := up.of(string(shop) + "/queue_size{}"); len(got) != 1 || got[0].value != 2 {
			t.Errorf("queue_size %v", got)
		}
		if got := up.of(string(bank) + "/queue{}"); len(got) != 1 || got[0].value != 5 {
			t.Errorf("another's queue %v", got)
		}
		if n := len(up.of(string(shop) + "/steady{}")); n < 1 || n > 3 {
			t.Errorf("%d values of a second", n)
		}
		up.mu.Lock()
		defer up.mu.Unlock()
		series := map[string]int{}
		for s := range maps.Keys(up.points) {
			id, field, _ := strings.Cut(s, "/")
			if !strings.HasPrefix(field, "vee_") && !strings.HasPrefix(field, "host_") {
				series[id]++
			}
		}
		if series[string(shop)] > mostSeries || series["alpha.strangeraa"] != 0 {
			t.Errorf("series %v", series)
		}
		for _, p := range up.points[string(shop)+"/vee_cpu_seconds_total{}"] {
			if p.value > 100 {
				t.Errorf("the guest's own word on its CPU time: %v", p)
			}
		}
		if up.lost[monitor.BadName] != 2 || up.lost[monitor.TooWide] < 3000 {
			t.Errorf("counted %v", up.lost)
		}
	})
}

func TestPushed(t *testing.T) {
	run(t, func(ctx context.Context, t *testing.T, wg *sync.WaitGroup) {
		up := &site{}
		h := newHost(ctx, t, wg, up, "a")
		h.start(shop, vee.Descriptor{})
		values := []monitor.Value{{Field: "queue", Labels: `vee="alpha.bankaaaaaa"`, Value: 3}}
		if here, refused := h.Pushed(shop, values, intake.Dropped{monitor.NotFinite: 2}); !here || refused != 0 {
			t.Errorf("here %v, %d refused", here, refused)
		}
		if here, _ := h.Pushed(bank, values, nil); here {
			t.Error("a VEE that is not here is taken from")
		}
		time.Sleep(5 * time.Second)
		if got := up.of(string(shop) + `/queue{vee="alpha.bankaaaaaa"}`); len(got) != 1 || got[0].value != 3 {
			t.Errorf("pushed %v", got)
		}
		h.stop(shop)
		time.Sleep(time.Second)
		if here, _ := h.Pushed(shop, values, nil); here {
			t.Error("a VEE that has left is taken from")
		}
		for _, p := range h.source.Probes() {
			if p.VEE != "" {
				t.Errorf("probe %s stays", p.Ref)
			}
		}
		up.mu.Lock()
		defer up.mu.Unlock()
		if up.lost[monitor.NotFinite] != 2 {
			t.Errorf("counted %v", up.lost)
		}
	})
}

// A guest's endpoint may answer anything, slowly, or not at all.
func TestScrape(t *testing.T) {
	for name, c := range map[string]struct {
		answer http.HandlerFunc
		want   string // of the error; "": queue is 4
	}{
		"well": {func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path != "/own" {
				w.WriteHeader(http.StatusNotFound)
			}
			fmt.Fprintln(w, "queue 4")
		}, ""},
		"not there": {http.NotFound, "404"},
		"another's": {func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "http://10.9.0.3/metrics", http.StatusFound)
		}, "302"},
		"no text":  {func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "<html>") }, "line 1"},
		"too long": {func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(make([]byte, mostScraped+1)) }, "longer than"},
		"breaks off": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "100")
			fmt.Fprint(w, "queue 4\n")
		}, "EOF"},
		"ends at once": {func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, "EOF"},
	} {
		t.Run(name, func(t *testing.T) {
			endpoint := httptest.NewServer(c.answer)
			defer endpoint.Close()
			m := New(Config{
				Source:  monitor.NewSource(monitor.SourceConfig{Now: time.Now, Log: slog.New(slog.DiscardHandler)}),
				Machine: &lrt.Machine{}, Now: time.Now,
				Dial: func(ctx context.Context, id vee.ID, port uint16) (net.Conn, error) {
					if id != shop || port != 9100 {
						t.Errorf("asked for port %d of %s", port, id)
					}
					return (&net.Dialer{}).DialContext(ctx, "tcp", endpoint.Listener.Addr().String())
				},
			})
			v := VEE{shop, vee.Descriptor{Name: "web-1", Metrics: vee.Metrics{Port: 9100, Path: "/own", EveryMS: 1000}}}
			values, err := m.scrape(t.Context(), v, &measured{quota: intake.Quota{Most: 10, Keep: time.Hour}})
			if c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want) || values != nil) {
				t.Errorf("%v, %v; want an error with %q", values, err, c.want)
			}
			if c.want == "" && (err != nil || len(values) != 1 || values[0] != (monitor.Value{Field: "queue", Value: 4})) {
				t.Errorf("%v, %v", values, err)
			}
		})
	}
}

// What cannot be measured is said in the probe's status, and the others go on.
func TestWhatCannotBeMeasured(t *testing.T) {
	run(t, func(ctx context.Context, t *testing.T, wg *sync.WaitGroup) {
		up := &site{}
		h := newHost(ctx, t, wg, up, "a") // on a machine without /proc
		h.dial = func() (net.Conn, error) { return nil, errors.New("connection refused") }
		h.start(shop, vee.Descriptor{Metrics: vee.Metrics{Port: 80, Path: "/metrics", EveryMS: 1000}})
		time.Sleep(20 * time.Second)
		said := map[string]string{}
		for _, p := range h.source.Probes() {
			said[p.Name] = p.LastError
		}
		for name, want := range map[string]string{"energy": "does not tell its energy", "block": "cannot do that", "scrape": "connection refused", "cpu": "", "memory": ""} {
			if want == "" && name == "cpu" {
				continue // both the host's and the VEE's have that name
			}
			if name != "memory" && !strings.Contains(said[name], want) {
				t.Errorf("probe %s says %q, want %q", name, said[name], want)
			}
		}
		if len(up.of(string(shop)+"/vee_cpu_seconds_total{}")) < 2 {
			t.Error("the CPU is not measured")
		}
	})
}
