package proxy

import (
	"bytes"
	"compress/gzip"
	"context"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	metrics "go.opentelemetry.io/proto/otlp/collector/metrics/v1"
	"go.uber.org/goleak"
	"google.golang.org/protobuf/proto"

	"github.com/reservoir-cloud/reservoir/internal/ownnet"
	"github.com/reservoir-cloud/reservoir/monitor"
	"github.com/reservoir-cloud/reservoir/monitor/intake"
	"github.com/reservoir-cloud/reservoir/van/plan"
	"github.com/reservoir-cloud/reservoir/vee"
)

func TestMain(m *testing.M) {
	ownnet.Main(m, true, func(m *testing.M) int {
		code := m.Run()
		// What waits half a second for its peer to close is net/http's own.
		if err := goleak.Find(goleak.IgnoreAnyFunction("net/http.(*conn).closeWriteAndWait")); err != nil && code == 0 {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		return code
	})
}

// stage is a proxy on loopback, whose guests are addresses of that.
type stage struct {
	*testing.T
	proxy *Proxy
	url   string

	mu    sync.Mutex
	now   time.Time
	took  map[vee.ID][]monitor.Value
	gone  bool
	wide  int
	drops intake.Dropped
}

func newStage(t *testing.T) *stage {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &stage{T: t, url: "http://" + l.Addr().String(), now: time.Unix(1000, 0), took: map[vee.ID][]monitor.Value{}}
	s.proxy = New(Config{Listeners: []net.Listener{l}, Log: slog.New(slog.DiscardHandler),
		Now: func() time.Time { s.mu.Lock(); defer s.mu.Unlock(); return s.now },
		Take: func(id vee.ID, values []monitor.Value, dropped intake.Dropped) (bool, int) {
			s.mu.Lock()
			defer s.mu.Unlock()
			if s.gone {
				return false, 0
			}
			s.took[id] = append(s.took[id], values...)
			s.drops = maps.Clone(dropped)
			return true, s.wide
		}})
	t.Cleanup(func() {
		if err := s.proxy.Close(); err != nil {
			t.Error(err)
		}
	})
	port := func(id vee.ID, at string) plan.Port {
		return plan.Port{VEE: id, Addresses: []netip.Addr{netip.MustParseAddr(at)}}
	}
	s.proxy.Set(plan.Segment{ID: "shop", Ports: []plan.Port{port("alpha.shop", "127.0.0.2")}}, plan.Segment{ID: "bank", Ports: []plan.Port{port("alpha.bank", "127.0.0.3")}})
	return s
}

// from a guest's address.
func (s *stage) from(at string) *http.Client {
	dialer := &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(at)}}
	t := &http.Transport{DialContext: dialer.DialContext, DisableCompression: true}
	s.Cleanup(t.CloseIdleConnections)
	return &http.Client{Transport: t, Timeout: 20 * time.Second}
}

func (s *stage) push(at, path, kind, encoding string, body []byte) (status int, answer string) {
	s.Helper()
	r, err := http.NewRequestWithContext(s.Context(), http.MethodPost, s.url+path, bytes.NewReader(body))
	if err != nil {
		s.Fatal(err)
	}
	r.Header.Set("Content-Type", kind)
	if encoding != "" {
		r.Header.Set("Content-Encoding", encoding)
	}
	c := s.from(at)
	defer c.CloseIdleConnections()
	reply, err := c.Do(r)
	if err != nil {
		s.Fatal(err)
	}
	defer reply.Body.Close()
	b, err := io.ReadAll(reply.Body)
	if err != nil {
		s.Fatal(err)
	}
	return reply.StatusCode, string(b)
}

func zipped(b []byte) []byte {
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	_, _ = w.Write(b)
	_ = w.Close()
	return out.Bytes()
}

const jsonPush = `{"resourceMetrics":[{"resource":{"attributes":[{"key":"service.name","value":{"stringValue":"bank"}}]},
"scopeMetrics":[{"metrics":[{"name":"queue.size","gauge":{"dataPoints":[{"asDouble":4,"attributes":[{"key":"vee","value":{"stringValue":"alpha.bank"}}]}]}}]}]}]}`

// Whatever a body says, it is of the VEE whose address it came from.
func TestWhoPushesIsWhoHasTheAddress(t *testing.T) {
	s := newStage(t)
	const claims = `queue{customer="bankers",service="bank",vee="alpha.bank",site="beta",fqn="alpha.customers.bankers.services.bank"} 7` + "\n"
	if code, text := s.push("127.0.0.2", "/metrics", "text/plain", "", []byte(claims)); code != http.StatusNoContent {
		t.Fatalf("%d %s", code, text)
	}
	if code, text := s.push("127.0.0.2", "/v1/metrics", "application/json", "gzip", zipped([]byte(jsonPush))); code != http.StatusOK || text != "{}" {
		t.Fatalf("%d %s", code, text)
	}
	if len(s.took["alpha.bank"]) != 0 || len(s.took["alpha.shop"]) != 2 {
		t.Fatalf("took %v", s.took)
	}
	if v := s.took["alpha.shop"][1]; v.Field != "queue_size" || v.Labels != `job="bank",vee="alpha.bank"` || v.Value != 4 {
		t.Errorf("took %+v", v)
	}
	if code, _ := s.push("127.0.0.9", "/metrics", "text/plain", "", []byte("queue 1\n")); code != http.StatusForbidden {
		t.Errorf("a stranger's push: %d", code)
	}
	s.proxy.Set(plan.Segment{ID: "bank", Ports: nil})
	if code, _ := s.push("127.0.0.2", "/metrics", "text/plain", "", []byte("queue 1\n")); code != http.StatusForbidden {
		t.Errorf("a push of one who has left: %d", code)
	}
}

func TestAnswers(t *testing.T) {
	s := newStage(t)
	empty, err := proto.Marshal(&metrics.ExportMetricsServiceRequest{})
	if err != nil {
		t.Fatal(err)
	}
	bomb := zipped(make([]byte, 4<<20))
	for name, c := range map[string]struct {
		path, kind, encoding string
		body                 []byte
		want                 int
		says                 string
	}{
		"protobuf":            {"/v1/metrics", "application/x-protobuf", "", empty, 200, ""},
		"broken protobuf":     {"/v1/metrics", "application/x-protobuf", "", []byte("\x0a\xff"), 400, "OTLP"},
		"broken JSON":         {"/v1/metrics", "application/json; charset=utf-8", "", []byte("{"), 400, "OTLP"},
		"another kind":        {"/v1/metrics", "text/html", "", empty, 415, "want application"},
		"another encoding":    {"/metrics", "text/plain", "br", empty, 415, "gzip"},
		"no gzip":             {"/metrics", "text/plain", "gzip", []byte("queue 1\n"), 400, "no gzip"},
		"half a gzip":         {"/metrics", "text/plain", "gzip", zipped([]byte("queue 1\n"))[:12], 400, "no end"},
		"broken text":         {"/metrics", "text/plain", "", []byte("queue 1\nqueue\n"), 400, "line 2"},
		"too long":            {"/metrics", "text/plain", "", bytes.Repeat([]byte("#"), mostBody+1), 413, "bytes"},
		"a bomb":              {"/metrics", "text/plain", "gzip", bomb, 413, "bytes"},
		"some is passed over": {"/metrics", "text/plain", "", []byte("queue NaN\nvee_cpu_seconds_total 9\nb 1\n"), 200, "1: names that are reserved or none; 1: no finite numbers"},
		"another path":        {"/prometheus", "text/plain", "", nil, 404, ""},
	} {
		s.mu.Lock()
		s.now = s.now.Add(time.Second)
		s.mu.Unlock()
		if code, text := s.push("127.0.0.2", c.path, c.kind, c.encoding, c.body); code != c.want || !strings.Contains(text, c.says) {
			t.Errorf("%s: %d %q, want %d with %q", name, code, text, c.want, c.says)
		}
	}
	s.wide = 3
	code, text := s.push("127.0.0.2", "/v1/metrics", "application/x-protobuf", "", empty)
	var reply metrics.ExportMetricsServiceResponse
	if err := proto.Unmarshal([]byte(text), &reply); code != 200 || err != nil || reply.GetPartialSuccess().GetRejectedDataPoints() != 3 {
		t.Errorf("partial success: %d %v %v", code, &reply, err)
	}
	if _, text := s.push("127.0.0.2", "/v1/metrics", "application/json", "", []byte("{}")); !strings.Contains(text, `"rejectedDataPoints":"3"`) {
		t.Errorf("partial success in JSON: %s", text)
	}
	s.gone = true
	if code, _ := s.push("127.0.0.2", "/metrics", "text/plain", "", []byte("queue 1\n")); code != http.StatusServiceUnavailable {
		t.Errorf("a VEE that is elsewhere: %d", code)
	}
}

// A guest that pushes too often is told so, and takes nothing from others.
func TestTooOften(t *testing.T) {
	s := newStage(t)
	push := func(at string) int {
		code, _ := s.push(at, "/metrics", "text/plain", "", []byte("queue 1\n"))
		return code
	}
	for range burst {
		if code := push("127.0.0.2"); code != http.StatusNoContent {
			t.Fatalf("within the burst: %d", code)
		}
	}
	if code := push("127.0.0.2"); code != http.StatusTooManyRequests {
		t.Errorf("beyond the burst: %d", code)
	}
	if code := push("127.0.0.3"); code != http.StatusNoContent {
		t.Errorf("another guest: %d", code)
	}
	s.mu.Lock()
	s.now = s.now.Add(time.Second)
	s.mu.Unlock()
	if code := push("127.0.0.2"); code != http.StatusNoContent {
		t.Errorf("a second later: %d", code)
	}
}

// A guest that holds connections without end takes its own share of them and no more.
func TestTooManyConnections(t *testing.T) {
	s := newStage(t)
	dial := func() net.Conn {
		t.Helper()
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP("127.0.0.2")}}
		c, err := d.DialContext(t.Context(), "tcp", strings.TrimPrefix(s.url, "http://"))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c
	}
	var held []net.Conn
	for range mostConnections {
		c := dial()
		fmt.Fprint(c, "GET / HTTP/1.1\r\nHost: x\r\n\r\n") // and then nothing more
		if _, err := c.Read(make([]byte, 12)); err != nil {
			t.Fatal(err)
		}
		held = append(held, c)
	}
	extra := dial()
	_ = extra.SetReadDeadline(time.Now().Add(20 * time.Second))
	if _, err := extra.Read(make([]byte, 1)); err == nil || os.IsTimeout(err) {
		t.Errorf("one connection too many is not closed: %v", err)
	}
	if code, _ := s.push("127.0.0.3", "/metrics", "text/plain", "", []byte("queue 1\n")); code != http.StatusNoContent {
		t.Errorf("another guest: %d", code)
	}
	for _, c := range held {
		c.Close()
	}
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		s.proxy.mu.Lock()
		n := len(s.proxy.open)
		s.proxy.mu.Unlock()
		if n == 0 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d addresses still count as connected", n)
		}
	}
	c := s.from("127.0.0.2")
	reply, err := c.Get(s.url)
	if err != nil {
		t.Fatal(err)
	}
	defer reply.Body.Close()
	if text, _ := io.ReadAll(reply.Body); !strings.Contains(string(text), "alpha.shop") {
		t.Errorf("help says %s", text)
	}
}

func TestListen(t *testing.T) {
	listeners, err := Listen(context.Background(), "lo", []netip.Addr{netip.MustParseAddr("127.0.0.1")})
	if err != nil {
		t.Fatal(err)
	}
	defer listeners[0].Close()
	if again, err := Listen(context.Background(), "lo", []netip.Addr{netip.MustParseAddr("127.0.0.4"), netip.MustParseAddr("127.0.0.1")}); err == nil {
		t.Errorf("a port that is taken: %v", again)
	}
	c, err := net.Listen("tcp", "127.0.0.4:4318") // the first was closed again
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
}
