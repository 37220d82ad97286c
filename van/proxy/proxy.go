// Package proxy is the VAN monitoring proxy (Clayman et al.; spec: monitoring): where the
// programs of a VEE publish their measurements, at the host's address in each of its
// networks, beside DHCP and DNS (van/responder). They push OTLP over HTTP or Prometheus's
// text; who pushes is the VEE whose address it is, which isolation keeps others from using
// (van/rules.go), and nothing that the body says.
//
// The guests are not trusted: connections, requests and bytes of each are bounded, and what
// one takes too much of, it takes from itself.
package proxy

import (
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"mime"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/reservoir-cloud/reservoir/monitor"
	"github.com/reservoir-cloud/reservoir/monitor/intake"
	"github.com/reservoir-cloud/reservoir/van/plan"
	"github.com/reservoir-cloud/reservoir/vee"
)

// Bounds of what one guest may take.
const (
	mostBody        = 1 << 20 // bytes of a push, unpacked
	mostConnections = 4       // at once from one address
	mostInAll       = 256     // at once on one device
	perSecond       = 5.0     // pushes, on average
	burst           = 20      // and at once
	patience        = 10 * time.Second
)

// Config of a Proxy.
type Config struct {
	Listeners []net.Listener // the proxy's to close
	// Take what a VEE has pushed. here is false for one that does not run on this host, and
	// refused how many of the values are too many. It must not block.
	Take func(id vee.ID, values []monitor.Value, dropped intake.Dropped) (here bool, refused int)
	Now  func() time.Time
	Log  *slog.Logger
}

// Proxy answers on one device: in a private network's segment, or in all those that share a
// host's bridge.
type Proxy struct {
	cfg    Config
	server *http.Server
	parts  sync.WaitGroup

	mu      sync.Mutex
	askers  map[netip.Addr]vee.ID
	tickets map[netip.Addr]*tickets
	open    map[netip.Addr]int // connections
}

// tickets for pushes of one address: a bucket that fills up with time.
type tickets struct {
	left float64
	at   time.Time
}

// New starts to answer. Until the first Set it knows nobody. Close ends it.
func New(cfg Config) *Proxy {
	p := &Proxy{cfg: cfg, askers: map[netip.Addr]vee.ID{}, tickets: map[netip.Addr]*tickets{}, open: map[netip.Addr]int{}}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", p.help)
	mux.HandleFunc("POST /v1/metrics", p.otlp)
	mux.HandleFunc("POST /metrics", p.text)
	mux.HandleFunc("PUT /metrics", p.text)
	p.server = &http.Server{
		Handler: p.known(mux), ReadHeaderTimeout: patience, ReadTimeout: patience, WriteTimeout: patience, IdleTimeout: time.Minute,
		MaxHeaderBytes: 8 << 10, ErrorLog: slog.NewLogLogger(cfg.Log.Handler(), slog.LevelDebug),
	}
	for _, l := range cfg.Listeners {
		p.parts.Go(func() {
			if err := p.server.Serve(&counted{l, p}); !errors.Is(err, http.ErrServerClosed) {
				cfg.Log.Warn("measurements are not taken any more", "at", l.Addr(), "error", err)
			}
		})
	}
	return p
}

// Set makes the ports of these segments those whose VEEs may push.
func (p *Proxy) Set(segments ...plan.Segment) {
	askers := map[netip.Addr]vee.ID{}
	for _, s := range segments {
		for _, port := range s.Ports {
			for _, a := range port.Addresses {
				askers[a] = port.VEE
			}
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.askers = askers
	maps.DeleteFunc(p.tickets, func(a netip.Addr, _ *tickets) bool { _, known := askers[a]; return !known })
}

// Close ends it, and closes the listeners.
func (p *Proxy) Close() error {
	err := p.server.Close()
	p.parts.Wait()
	return err
}

type sender struct{}

// known lets through whom the segments know.
func (p *Proxy) known(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		at, err := netip.ParseAddrPort(r.RemoteAddr)
		if err != nil {
			http.Error(w, "no address", http.StatusForbidden)
			return
		}
		from := at.Addr().Unmap().WithZone("")
		p.mu.Lock()
		id, is := p.askers[from]
		p.mu.Unlock()
		if !is {
			http.Error(w, fmt.Sprintf("%s is no VEE's address in this network", from), http.StatusForbidden)
			return
		}
		if r.Method != http.MethodGet && !p.ticket(from) {
			w.Header().Set("Retry-After", "1")
			http.Error(w, fmt.Sprintf("more than %g pushes a second", perSecond), http.StatusTooManyRequests)
			return
		}
		next.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), sender{}, id)))
	})
}

// ticket for one push of an address.
func (p *Proxy) ticket(from netip.Addr) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := p.cfg.Now()
	t := p.tickets[from]
	if t == nil {
		t = &tickets{left: burst, at: now}
		p.tickets[from] = t
	}
	t.left = min(burst, t.left+max(0, now.Sub(t.at).Seconds())*perSecond)
	t.at = now
	if t.left < 1 {
		return false
	}
	t.left--
	return true
}

func (p *Proxy) help(w http.ResponseWriter, r *http.Request) {
	fmt.Fprintf(w, "This is the monitoring proxy of VEE %s.\nPush OTLP (protobuf or JSON) to /v1/metrics, or Prometheus text to /metrics.\n", r.Context().Value(sender{}))
}

// text takes a push in Prometheus's text format.
func (p *Proxy) text(w http.ResponseWriter, r *http.Request) {
	body, ok := read(w, r)
	if !ok {
		return
	}
	values, dropped, err := intake.Text(body, intake.Usual)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	if refused, ok := p.take(w, r, values, dropped); ok {
		if refused != "" {
			fmt.Fprintln(w, refused)
			return
		}
		w.WriteHeader(http.StatusNoContent)
	}
}

// otlp takes an ExportMetricsServiceRequest (opentelemetry.io/docs/specs/otlp, OTLP/HTTP).
func (p *Proxy) otlp(w http.ResponseWriter, r *http.Request) {
	kind, _, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	decode := map[string]func([]byte, intake.Limits) ([]monitor.Value, intake.Dropped, error){
		"application/x-protobuf": intake.OTLP, "application/json": intake.OTLPJSON,
	}[kind]
	if err != nil || decode == nil {
		http.Error(w, "want application/x-protobuf or application/json", http.StatusUnsupportedMediaType)
		return
	}
	body, ok := read(w, r)
	if !ok {
		return
	}
	values, dropped, err := decode(body, intake.Usual)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	refused, ok := p.take(w, r, values, dropped)
	if !ok {
		return
	}
	w.Header().Set("Content-Type", kind)
	n := 0
	for _, k := range dropped {
		n += k
	}
	_, _ = w.Write(partial(kind, n, refused)) // whoever pushed has gone
}

// partial success (ExportMetricsServiceResponse: 1 partial_success, of that 1
// rejected_data_points, 2 error_message); whole success is empty.
func partial(kind string, n int, why string) []byte {
	if kind == "application/json" {
		if why == "" {
			return []byte("{}")
		}
		text, _ := json.Marshal(map[string]any{"partialSuccess": map[string]any{"rejectedDataPoints": fmt.Sprint(n), "errorMessage": why}}) // plain data
		return text
	}
	if why == "" {
		return nil
	}
	var inner []byte
	inner = protowire.AppendTag(inner, 1, protowire.VarintType)
	inner = protowire.AppendVarint(inner, uint64(n))
	inner = protowire.AppendTag(inner, 2, protowire.BytesType)
	inner = protowire.AppendString(inner, why)
	return protowire.AppendBytes(protowire.AppendTag(nil, 1, protowire.BytesType), inner)
}

// take hands values on, and says in words what was passed over. Not ok: it has answered.
func (p *Proxy) take(w http.ResponseWriter, r *http.Request, values []monitor.Value, dropped intake.Dropped) (refused string, ok bool) {
	id, _ := r.Context().Value(sender{}).(vee.ID)
	here, many := p.cfg.Take(id, values, dropped)
	if !here {
		w.Header().Set("Retry-After", "1")
		http.Error(w, fmt.Sprintf("VEE %s does not run on this host", id), http.StatusServiceUnavailable)
		return "", false
	}
	if many > 0 {
		dropped[monitor.TooWide] += many
	}
	var parts []string
	for _, why := range slices.Sorted(maps.Keys(dropped)) {
		parts = append(parts, fmt.Sprintf("%d: %s", dropped[why], reasons[why]))
	}
	if len(parts) == 0 {
		return "", true
	}
	return "passed over: " + strings.Join(parts, "; "), true
}

// reasons in words.
var reasons = map[monitor.Reason]string{
	monitor.NotFinite:   "no finite numbers",
	monitor.Duplicate:   "series that were there twice",
	monitor.TooMany:     "more than a push may hold",
	monitor.TooWide:     "too many or too long labels, or too many series in all",
	monitor.BadName:     "names that are reserved or none",
	monitor.Unsupported: "deltas and exponential histograms",
}

// read a body, unpacked and bounded. Not ok: it has answered.
func read(w http.ResponseWriter, r *http.Request) (body []byte, ok bool) {
	var in io.Reader = http.MaxBytesReader(w, r.Body, mostBody)
	switch r.Header.Get("Content-Encoding") {
	case "", "identity":
	case "gzip":
		z, err := gzip.NewReader(in)
		if err != nil {
			http.Error(w, "the body is no gzip", http.StatusBadRequest)
			return nil, false
		}
		defer z.Close()
		in = z
	default:
		http.Error(w, "want no content encoding, or gzip", http.StatusUnsupportedMediaType)
		return nil, false
	}
	body, err := io.ReadAll(io.LimitReader(in, mostBody+1))
	switch {
	case errors.As(err, new(*http.MaxBytesError)) || len(body) > mostBody:
		http.Error(w, fmt.Sprintf("more than %d bytes", mostBody), http.StatusRequestEntityTooLarge)
	case err != nil:
		http.Error(w, "the body has no end", http.StatusBadRequest)
	default:
		return body, true
	}
	return nil, false
}

// counted keeps one guest from taking all connections.
type counted struct {
	net.Listener
	p *Proxy
}

// Accept passes over connections of addresses that have too many already.
func (l *counted) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		from := c.RemoteAddr().(*net.TCPAddr).AddrPort().Addr().Unmap().WithZone("")
		if l.p.enter(from) {
			return &leaving{Conn: c, leave: sync.OnceFunc(func() { l.p.leave(from) })}, nil
		}
		_ = c.Close()
	}
}

func (p *Proxy) enter(from netip.Addr) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	all := 0
	for _, n := range p.open {
		all += n
	}
	if all >= mostInAll || p.open[from] >= mostConnections {
		return false
	}
	p.open[from]++
	return true
}

func (p *Proxy) leave(from netip.Addr) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.open[from]--; p.open[from] == 0 {
		delete(p.open, from)
	}
}

// leaving is a connection that is counted until it is closed.
type leaving struct {
	net.Conn
	leave func()
}

func (c *leaving) Close() error {
	c.leave()
	return c.Conn.Close()
}

// Listen opens the proxy's sockets in the network namespace of the calling thread, on one
// device alone, which has the addresses servers already.
func Listen(ctx context.Context, device string, servers []netip.Addr) (listeners []net.Listener, err error) {
	config := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var set error
		err := c.Control(func(fd uintptr) { set = unix.BindToDevice(int(fd), device) })
		return errors.Join(err, set)
	}}
	for _, a := range servers {
		l, err := config.Listen(ctx, "tcp", netip.AddrPortFrom(a, vee.MonitoringPort).String())
		if err != nil {
			for _, open := range listeners {
				_ = open.Close()
			}
			return nil, fmt.Errorf("listen for measurements on device %s: %w", device, err)
		}
		listeners = append(listeners, l)
	}
	return listeners, nil
}
