package service

import (
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

// What is pushed, and what is posted on somebody's behalf, arrives as it is; a proxy that
// does not answer is told once.
func TestPush(t *testing.T) {
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	got := make(chan string, 10)
	proxy := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body) // what is missing is seen
		got <- r.Method + " " + r.URL.Path + " " + r.Header.Get("Content-Type") + "\n" + string(b)
	}))
	defer proxy.Close()
	s := New(func() string { return "web-1" }, func() []string { return nil }, "")
	done := make(chan struct{})
	go func() { defer close(done); s.Push(ctx, proxy.URL+"/", &burner{ready: true}, t.Logf) }()
	const want = "POST /metrics text/plain; version=0.0.4\npushed_ready 1\npushed_uptime_seconds 2.5\npushed_a_b 0.5\npushed_queue_size 3\n"
	if text := <-got; text != want {
		t.Errorf("pushed\n%s\nwant\n%s", text, want)
	}
	stop()
	<-done
	if err := s.push(t.Context(), "http://127.0.0.1:1", &burner{}); err == nil {
		t.Error("nobody takes it, and there is no error")
	}
	r := httptest.NewRequest(http.MethodPost, "/ask?url="+proxy.URL+"/v1/metrics", strings.NewReader("body"))
	r.Header.Set("Content-Type", "application/json")
	s.Handler(t.Context(), &burner{}).ServeHTTP(httptest.NewRecorder(), r)
	if text := <-got; text != "POST /v1/metrics application/json\nbody" {
		t.Errorf("posted %s", text)
	}
}
