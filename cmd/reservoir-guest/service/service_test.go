package service

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"testing"
	"testing/synctest"
	"time"

	"github.com/reservoir-cloud/reservoir/vhi/guest"
)

// burner remembers what it was told to burn.
type burner struct {
	ready bool
	told  string
}

func (b *burner) Status() guest.Status {
	return guest.Status{Ready: b.ready, UptimeS: 2.5, KPIs: map[string]float64{"queue.size": 3, "a-b": 0.5}}
}

func (b *burner) BurnCPU(_ context.Context, cores float64, d time.Duration) error {
	b.told += fmt.Sprintf("cpu %g %s;", cores, d)
	return nil
}

func (b *burner) BurnMemory(_ context.Context, bytes float64, d time.Duration) error {
	return fmt.Errorf("no memory to burn")
}

func TestHandler(t *testing.T) {
	b := &burner{}
	s := New(func() string { return "web-1" }, func() []string { return []string{"10.0.0.5/24", "fd00::5/64"} }, "good morning")
	h := s.Handler(t.Context(), b)
	other := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "me", http.StatusTeapot) }))
	defer other.Close()
	for _, c := range []struct {
		target string
		status int
		body   string
	}{
		{"/", 200, "good morning\nhostname: web-1\naddress: 10.0.0.5/24 fd00::5/64\nrequest: 1\n"},
		{"/healthz", 503, "not ready\n"},
		{"/kpis", 200, "ready 0\nuptime_seconds 2.5\na_b 0.5\nqueue_size 3\n"},
		{"/burn?cpu=1.5&seconds=2", 200, "burning\n"},
		{"/burn?memory=5&seconds=2", 400, "no memory to burn\n"},
		{"/burn?seconds=2", 400, "want cpu (cores) or memory (bytes), as in /burn?cpu=0.5&seconds=30\n"},
		{"/burn?cpu=1", 400, "seconds=\"\": want a number, as in /burn?cpu=0.5&seconds=30\n"},
		{"/burn?cpu=NaN&seconds=1", 400, "cpu=\"NaN\": want a number, as in /burn?cpu=0.5&seconds=30\n"},
		{"/burn?cpu=1&seconds=-1", 400, "seconds=\"-1\": want a number, as in /burn?cpu=0.5&seconds=30\n"},
		{"/ask?url=%3A", 400, "want a URL, as in /ask?url=http://10.0.0.5/: parse \":\": missing protocol scheme\n"},
		{"/ask?url=" + other.URL, 418, "me\n"},
		{"/ask?seconds=9&url=" + other.URL, 418, "me\n"},
		{"/ask?seconds=0&url=" + other.URL, 400, "seconds=\"0\": want 1 to 600\n"},
		{"/ask?seconds=601&url=" + other.URL, 400, "seconds=\"601\": want 1 to 600\n"},
		{"/ask?url=http%3A%2F%2F127.0.0.1%3A1%2F", 502, "Get \"http://127.0.0.1:1/\": dial tcp 127.0.0.1:1: connect: connection refused\n"},
		{"/elsewhere", 404, "404 page not found\n"},
	} {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest("GET", c.target, nil))
		if w.Code != c.status || w.Body.String() != c.body {
			t.Errorf("%s: %d %q, want %d %q", c.target, w.Code, w.Body, c.status, c.body)
		}
	}
	if b.told != "cpu 1.5 2s;" {
		t.Errorf("burnt %q", b.told)
	}
	b.ready = true
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest("GET", "/healthz", nil))
	if w.Code != 200 {
		t.Errorf("/healthz when ready: %d", w.Code)
	}
}

func TestQuiet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := New(func() string { return "" }, func() []string { return nil }, "")
		h := s.Handler(t.Context(), &burner{})
		ask := func(path string) { h.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", path, nil)) }
		time.Sleep(time.Minute)
		ask("/kpis")
		if d := s.Quiet(); d != time.Minute {
			t.Errorf("quiet since the start: %s", d)
		}
		ask("/")
		time.Sleep(time.Second)
		if d, n := s.Quiet(), s.Requests(); d != time.Second || n != 1 {
			t.Errorf("after a request: %s, %d requests", d, n)
		}
	})
}

func TestDownload(t *testing.T) {
	h := New(func() string { return "x" }, func() []string { return nil }, "").Handler(t.Context(), nil)
	get := func(query string) *httptest.ResponseRecorder {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/download?"+query, nil))
		return w
	}
	for query, want := range map[string]string{
		"bytes=0": "", "bytes=5": "0\n1\n2", "bytes=22": "0\n1\n2\n3\n4\n5\n6\n7\n8\n9\n10", "bytes=4&seconds=1": "0\n1\n",
	} {
		if w := get(query); w.Code != http.StatusOK || w.Body.String() != want {
			t.Errorf("%s: %d %q, want %q", query, w.Code, w.Body, want)
		}
	}
	for _, query := range []string{"", "bytes=-1", "bytes=5&seconds=x", "bytes=99999999999999"} {
		if w := get(query); w.Code != http.StatusBadRequest {
			t.Errorf("%q: status %d", query, w.Code)
		}
	}
}
