// Package service is what the appliance answers over HTTP: a page that tells which replica
// it is, its health, its measurements, and the means to put it under load.
package service

import (
	"context"
	"fmt"
	"io"
	"maps"
	"math"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/reservoir-cloud/reservoir/vhi/guest"
)

// Agent is what the service needs of the guest's agent.
type Agent interface {
	Status() guest.Status
	BurnCPU(ctx context.Context, cores float64, length time.Duration) error
	BurnMemory(ctx context.Context, bytes float64, length time.Duration) error
}

// Service counts what it answers.
type Service struct {
	hostname  func() string
	addresses func() []string
	greeting  string // a line of its own on the page, when not empty
	requests  atomic.Uint64
	last      atomic.Int64 // when the last request came, ns since started
	started   time.Time
}

// New makes a service; greeting is a line of its page, if there is one.
func New(hostname func() string, addresses func() []string, greeting string) *Service {
	return &Service{hostname: hostname, addresses: addresses, greeting: greeting, started: time.Now()}
}

// Requests answered so far; those for health and measurements do not count.
func (s *Service) Requests() uint64 { return s.requests.Load() }

// Quiet is how long it is since the last request that counts, or since the start.
func (s *Service) Quiet() time.Duration {
	return time.Since(s.started) - time.Duration(s.last.Load())
}

// Handler answers the requests. What they burn ends with ctx.
func (s *Service) Handler(ctx context.Context, a Agent) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", s.page)
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		if !a.Status().Ready {
			http.Error(w, "not ready", http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, "ok")
	})
	mux.HandleFunc("GET /kpis", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/plain; version=0.0.4")
		fmt.Fprint(w, Metrics(a.Status()))
	})
	mux.HandleFunc("GET /burn", func(w http.ResponseWriter, r *http.Request) {
		s.count()
		if err := burn(ctx, a, r); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		fmt.Fprintln(w, "burning")
	})
	mux.HandleFunc("GET /ask", func(w http.ResponseWriter, r *http.Request) { s.ask(w, r) })
	mux.HandleFunc("POST /ask", func(w http.ResponseWriter, r *http.Request) { s.ask(w, r) })
	mux.HandleFunc("GET /download", func(w http.ResponseWriter, r *http.Request) { s.download(w, r) })
	return mux
}

// downloadPause is between two parts of a download that takes its time.
const downloadPause = 20 * time.Millisecond

// download as many bytes as the query says, spread over so many seconds, as in
// /download?bytes=1000000&seconds=10: numbers counted up from 0, in lines.
func (s *Service) download(w http.ResponseWriter, r *http.Request) {
	s.count()
	query := r.URL.Query()
	bytes, err := strconv.ParseUint(query.Get("bytes"), 10, 40)
	seconds, serr := strconv.ParseUint(query.Get("seconds"), 10, 20)
	if err != nil || serr != nil && query.Has("seconds") {
		http.Error(w, "want bytes, and seconds, as in /download?bytes=1000000&seconds=10", http.StatusBadRequest)
		return
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("Content-Length", strconv.FormatUint(bytes, 10))
	parts := max(1, seconds*uint64(time.Second/downloadPause))
	out := http.NewResponseController(w)
	var line []byte
	for n, sent, part := uint64(0), uint64(0), uint64(1); sent < bytes; n++ {
		line = fmt.Appendf(line[:0], "%d\n", n)
		line = line[:min(uint64(len(line)), bytes-sent)]
		if _, err := w.Write(line); err != nil {
			return // whoever asked has gone
		}
		for sent += uint64(len(line)); part < parts && sent*parts >= part*bytes; part++ {
			if out.Flush() != nil {
				return
			}
			time.Sleep(downloadPause)
		}
	}
}

// Bounds of asking others.
const (
	askPatience = 5 * time.Second
	askLongest  = 10 * time.Minute
	askMost     = 64 << 10
	askMostLong = 64 << 20 // of one that takes its time
	askPosted   = 4 << 20
)

// ask another machine on the query's behalf, as in /ask?url=http://db.shop.alpha.internal/,
// and pass on what it answers, as it comes: so one sees from here who can be reached from
// here. The body of a POST is posted there. With seconds=60 it takes so long, and may be a
// long answer.
func (s *Service) ask(w http.ResponseWriter, r *http.Request) {
	s.count()
	patience, most := askPatience, int64(askMost)
	if text := r.URL.Query().Get("seconds"); text != "" {
		n, err := strconv.ParseUint(text, 10, 16)
		if err != nil || n == 0 || time.Duration(n)*time.Second > askLongest {
			http.Error(w, fmt.Sprintf("seconds=%q: want 1 to %d", text, askLongest/time.Second), http.StatusBadRequest)
			return
		}
		patience, most = time.Duration(n)*time.Second, askMostLong
	}
	ctx, cancel := context.WithTimeout(r.Context(), patience)
	defer cancel()
	var body io.Reader
	if r.Method == http.MethodPost {
		body = http.MaxBytesReader(w, r.Body, askPosted)
	}
	request, err := http.NewRequestWithContext(ctx, r.Method, r.URL.Query().Get("url"), body)
	if err != nil {
		http.Error(w, "want a URL, as in /ask?url=http://10.0.0.5/: "+err.Error(), http.StatusBadRequest)
		return
	}
	if kind := r.Header.Get("Content-Type"); kind != "" {
		request.Header.Set("Content-Type", kind)
	}
	// A connection of its own each time: what is asked is whether one comes about.
	reply, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Do(request)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadGateway)
		return
	}
	defer reply.Body.Close()
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.WriteHeader(reply.StatusCode)
	_, _ = io.Copy(flushed{w, http.NewResponseController(w)}, io.LimitReader(reply.Body, most)) // whoever asked has gone
}

// flushed passes on each piece at once.
type flushed struct {
	io.Writer
	to *http.ResponseController
}

func (f flushed) Write(b []byte) (int, error) {
	n, err := f.Writer.Write(b)
	if err == nil {
		err = f.to.Flush()
	}
	return n, err
}

func (s *Service) count() uint64 {
	s.last.Store(int64(time.Since(s.started)))
	return s.requests.Add(1)
}

func (s *Service) page(w http.ResponseWriter, _ *http.Request) {
	n := s.count()
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	if s.greeting != "" {
		fmt.Fprintln(w, s.greeting)
	}
	fmt.Fprintf(w, "hostname: %s\naddress: %s\nrequest: %d\n", s.hostname(), strings.Join(s.addresses(), " "), n)
}

// burn as the query says: cpu (cores) or memory (bytes), for so many seconds.
func burn(ctx context.Context, a Agent, r *http.Request) error {
	query := r.URL.Query()
	number := func(key string) (float64, error) {
		text := query.Get(key)
		v, err := strconv.ParseFloat(text, 64)
		if err != nil || !(v >= 0 && v <= math.MaxInt64) {
			return 0, fmt.Errorf("%s=%q: want a number, as in /burn?cpu=0.5&seconds=30", key, text)
		}
		return v, nil
	}
	seconds, err := number("seconds")
	if err != nil {
		return err
	}
	length := time.Duration(min(seconds, math.MaxInt32) * float64(time.Second))
	if !query.Has("cpu") && !query.Has("memory") {
		return fmt.Errorf("want cpu (cores) or memory (bytes), as in /burn?cpu=0.5&seconds=30")
	}
	for key, do := range map[string]func(context.Context, float64, time.Duration) error{
		"cpu": a.BurnCPU, "memory": a.BurnMemory,
	} {
		if !query.Has(key) {
			continue
		}
		amount, err := number(key)
		if err != nil {
			return err
		}
		if err := do(ctx, amount, length); err != nil {
			return err
		}
	}
	return nil
}

// Metrics of a status in Prometheus's text format 0.0.4. Its names allow no dots or
// dashes: they become underscores.
func Metrics(s guest.Status) string {
	var text strings.Builder
	fmt.Fprintf(&text, "ready %d\nuptime_seconds %g\n", btoi(s.Ready), s.UptimeS)
	for _, name := range slices.Sorted(maps.Keys(s.KPIs)) {
		fmt.Fprintf(&text, "%s %g\n", strings.NewReplacer(".", "_", "-", "_").Replace(name), s.KPIs[name])
	}
	return text.String()
}

func btoi(b bool) int {
	if b {
		return 1
	}
	return 0
}
