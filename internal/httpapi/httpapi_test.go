package httpapi_test

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/internal/httpapi"
	"github.com/reservoir-cloud/reservoir/internal/identity"
)

type thing struct {
	Name  string `json:"name" minLength:"1"`
	Count int    `json:"count,omitempty" maximum:"10"`
}

var anyone = []identity.Role{identity.Operator}

// server with an operation of each sort. ticks is what its watch sends.
func server(ticks <-chan thing) *httpapi.Server {
	s := httpapi.NewServer("things", "1", slog.New(slog.DiscardHandler))
	httpapi.Register(s, httpapi.Op{Method: "POST", Path: "/t/things", Summary: "Make a thing", Roles: anyone, Status: 201},
		func(_ context.Context, in *struct{ Body thing }) (thing, error) {
			switch in.Body.Name {
			case "taken":
				return thing{}, fault.New(fault.Exists, "thing %q exists", in.Body.Name).Try("take another name")
			case "broken":
				return thing{}, errors.New("disk on fire")
			}
			return in.Body, nil
		})
	httpapi.RegisterNoBody(s, httpapi.Op{Method: "DELETE", Path: "/t/things/{name}", Summary: "Drop it", Roles: anyone},
		func(context.Context, *struct {
			Name string `path:"name"`
		}) error {
			return nil
		})
	httpapi.Register(s, httpapi.Op{Method: "GET", Path: "/t/nobody", Summary: "Nobody may"},
		func(context.Context, *httpapi.Empty) (thing, error) { return thing{}, nil })
	httpapi.RegisterOpen(s, httpapi.Op{Method: "GET", Path: "/t/open", Summary: "Everybody may"},
		func(context.Context, *httpapi.Empty) (thing, error) { return thing{Name: "open"}, nil })
	httpapi.RegisterStream(s, httpapi.Op{Method: "GET", Path: "/t/watch", Summary: "Watch", Roles: anyone},
		func(context.Context, *httpapi.Empty) (<-chan thing, error) { return ticks, nil })
	s.HandleUpgrade("GET /t/echo/{name}", anyone, func(r *http.Request) (io.ReadWriteCloser, error) {
		if r.PathValue("name") == "none" {
			return nil, fault.New(fault.NotFound, "no such thing")
		}
		a, b := net.Pipe()
		go func() {
			defer b.Close()
			_, _ = io.Copy(b, b)
		}()
		return a, nil
	})
	return s
}

// callerOf takes the bearer token for the role; none: nobody.
func callerOf(r *http.Request) (identity.Caller, error) {
	role := strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ")
	if role == "" {
		return identity.Caller{}, fault.New(fault.Unauthenticated, "no token")
	}
	return identity.Caller{ID: "t", Role: identity.Role(role)}, nil
}

func start(t *testing.T, ticks <-chan thing) *httptest.Server {
	t.Helper()
	srv := httptest.NewServer(server(ticks).Handler(callerOf, "/t/open"))
	t.Cleanup(srv.Close)
	return srv
}

func client(srv *httptest.Server, role string) *httpapi.Client {
	return &httpapi.Client{Base: srv.URL, HTTP: srv.Client(), Token: role}
}

// TestProblems: every error is a problem document with a code and a next step.
func TestProblems(t *testing.T) {
	srv := start(t, nil)
	for name, c := range map[string]struct {
		method, path, role, body string
		status                   int
		code                     fault.Code
		says                     string
	}{
		"fault":            {"POST", "/t/things", "operator", `{"name":"taken"}`, 409, fault.Exists, `"next":"take another name"`},
		"error without":    {"POST", "/t/things", "operator", `{"name":"broken"}`, 500, fault.Internal, "disk on fire"},
		"missing field":    {"POST", "/t/things", "operator", `{}`, 422, fault.Malformed, "name"},
		"unknown field":    {"POST", "/t/things", "operator", `{"name":"a","colour":"red"}`, 422, fault.Malformed, "colour"},
		"out of range":     {"POST", "/t/things", "operator", `{"name":"a","count":11}`, 422, fault.Malformed, "count"},
		"not JSON":         {"POST", "/t/things", "operator", `{"name":`, 400, fault.Malformed, ""},
		"too large":        {"POST", "/t/things", "operator", `{"name":"` + strings.Repeat("a", httpapi.MaxBody) + `"}`, 413, fault.TooLarge, ""},
		"no token":         {"POST", "/t/things", "", `{"name":"a"}`, 401, fault.Unauthenticated, "no token"},
		"unknown role":     {"POST", "/t/things", "king", `{"name":"a"}`, 403, fault.Denied, "king"},
		"nobody's":         {"GET", "/t/nobody", "operator", "", 403, fault.Denied, ""},
		"not upgraded":     {"GET", "/t/echo/a", "operator", "", 400, fault.Malformed, "upgrade"},
		"upgrade, no role": {"GET", "/t/echo/a", "auditor", "", 403, fault.Denied, "auditor"},
	} {
		t.Run(name, func(t *testing.T) {
			req, err := http.NewRequestWithContext(t.Context(), c.method, srv.URL+c.path, strings.NewReader(c.body))
			if err != nil {
				t.Fatal(err)
			}
			req.Header.Set("Content-Type", "application/json")
			if c.role != "" {
				req.Header.Set("Authorization", "Bearer "+c.role)
			}
			resp, err := srv.Client().Do(req)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			b, _ := io.ReadAll(resp.Body)
			var p struct {
				Type, Title, Detail, Next string
				Status                    int
				Code                      fault.Code
			}
			if err := json.Unmarshal(b, &p); err != nil {
				t.Fatalf("%s: %s", resp.Status, b)
			}
			if resp.StatusCode != c.status || p.Status != c.status || p.Code != c.code || p.Type != "urn:reservoir:error:"+string(c.code) ||
				p.Title == "" || p.Detail == "" || p.Next == "" || resp.Header.Get("Content-Type") != "application/problem+json" || !strings.Contains(string(b), c.says) {
				t.Errorf("%s %q: %s", resp.Status, resp.Header.Get("Content-Type"), b)
			}
		})
	}
}

func TestClientGetsFaults(t *testing.T) {
	srv := start(t, nil)
	var got thing
	if err := client(srv, "operator").Call(t.Context(), "POST", "/t/things", nil, thing{Name: "a", Count: 3}, &got); err != nil || got != (thing{"a", 3}) {
		t.Errorf("%+v, %v", got, err)
	}
	if err := client(srv, "operator").Call(t.Context(), "DELETE", "/t/things/a", nil, nil, nil); err != nil {
		t.Error(err)
	}
	if err := client(srv, "").Call(t.Context(), "GET", "/t/open", nil, nil, &got); err != nil || got.Name != "open" {
		t.Errorf("open to all: %+v, %v", got, err)
	}
	err := client(srv, "operator").Call(t.Context(), "POST", "/t/things", nil, thing{Name: "taken"}, &got)
	if f := fault.From(err); f.Code != fault.Exists || f.NextStep() != "take another name" || f.Message != `thing "taken" exists` {
		t.Errorf("%+v", f)
	}
	gone := client(srv, "operator")
	srv.Close()
	if err := gone.Call(t.Context(), "GET", "/t/open", nil, nil, nil); !fault.Has(err, fault.Unavailable) {
		t.Errorf("nobody listens: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := gone.Call(ctx, "GET", "/t/open", nil, nil, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("given up: %v", err)
	}
}

func TestUpgrade(t *testing.T) {
	srv := start(t, nil)
	c, err := client(srv, "operator").Upgrade(t.Context(), "/t/echo/a")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(c, "hello"); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 5)
	if _, err := io.ReadFull(c, b); err != nil || string(b) != "hello" {
		t.Errorf("%q, %v", b, err)
	}
	c.Close()
	if _, err := client(srv, "operator").Upgrade(t.Context(), "/t/echo/none"); !fault.Has(err, fault.NotFound) {
		t.Errorf("none: %v", err)
	}
	if _, err := client(srv, "auditor").Upgrade(t.Context(), "/t/echo/a"); !fault.Has(err, fault.Denied) {
		t.Errorf("auditor: %v", err)
	}
}

func TestOpenAPI(t *testing.T) {
	srv := start(t, nil)
	var doc struct {
		OpenAPI string
		Paths   map[string]map[string]any
	}
	if err := client(srv, "operator").Call(t.Context(), "GET", "/openapi.json", nil, nil, &doc); err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(doc.OpenAPI, "3.1") || doc.Paths["/t/things"]["post"] == nil || doc.Paths["/t/watch"]["get"] == nil {
		t.Errorf("%+v", doc)
	}
}

// TestInputsThatWouldStayEmpty: the library would pass over them without a word.
func TestInputsThatWouldStayEmpty(t *testing.T) {
	defer func() {
		if recover() == nil {
			t.Error("an embedded private struct was taken")
		}
	}()
	type path struct {
		Name string `path:"name"`
	}
	httpapi.RegisterNoBody(server(nil), httpapi.Op{Method: "GET", Path: "/x/{name}"}, func(context.Context, *struct{ path }) error { return nil })
}

// pipes is a listener over pipes in memory, so that a bubble's clock can run.
type pipes chan net.Conn

func (p pipes) Accept() (net.Conn, error) {
	c, ok := <-p
	if !ok {
		return nil, net.ErrClosed
	}
	return c, nil
}
func (p pipes) Close() error   { return nil }
func (p pipes) Addr() net.Addr { return &net.UnixAddr{Name: "pipes"} }

// TestStream: values as they come, a heartbeat when there are none, the end when the
// server's channel closes or the caller goes.
func TestStream(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ticks := make(chan thing, 2)
		ln := make(pipes)
		srv := &http.Server{Handler: server(ticks).Handler(callerOf)}
		served := make(chan struct{})
		go func() { defer close(served); _ = srv.Serve(ln) }()
		tr := &http.Transport{DialContext: func(context.Context, string, string) (net.Conn, error) {
			a, b := net.Pipe()
			ln <- b
			return a, nil
		}}
		c := &httpapi.Client{Base: "http://t", HTTP: &http.Client{Transport: tr}, Token: "operator"}

		ctx, cancel := context.WithCancel(context.Background())
		ch, err := httpapi.Stream[thing](ctx, c, "/t/watch", nil)
		if err != nil {
			t.Fatal(err)
		}
		ticks <- thing{Name: "a"}
		if v := <-ch; v.Name != "a" {
			t.Errorf("got %+v", v)
		}
		time.Sleep(3 * httpapi.Heartbeat) // empty lines go by unseen
		ticks <- thing{Name: "b"}
		if v := <-ch; v.Name != "b" {
			t.Errorf("after heartbeats: %+v", v)
		}
		cancel()
		if v, open := <-ch; open {
			t.Errorf("after the caller went: %+v", v)
		}

		req, _ := http.NewRequestWithContext(context.Background(), "GET", "http://t/t/watch", nil)
		req.Header.Set("Authorization", "Bearer operator")
		resp, err := c.HTTP.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		line := make(chan string)
		go func() {
			b, err := io.ReadAll(resp.Body)
			if err != nil {
				t.Error(err)
			}
			line <- string(b)
		}()
		time.Sleep(2*httpapi.Heartbeat + time.Second)
		ticks <- thing{Name: "last"}
		close(ticks)
		if got, want := <-line, "\n\n"+`{"name":"last"}`+"\n"; got != want {
			t.Errorf("the line as it is: %q, want %q", got, want)
		}
		resp.Body.Close()
		tr.CloseIdleConnections()
		close(ln)
		_ = srv.Close()
		<-served
	})
}
