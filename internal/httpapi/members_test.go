package httpapi_test

import (
	"context"
	"crypto/tls"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"testing"

	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/internal/httpapi"
	"github.com/reservoir-cloud/reservoir/internal/identity"
)

// member is a server that says its name, until it is closed.
func member(t *testing.T, name string) (address string, stop func()) {
	t.Helper()
	api := httpapi.NewServer("test", "0", slog.New(slog.DiscardHandler))
	httpapi.Register(api, httpapi.Op{Method: http.MethodPost, Path: "/name", Roles: []identity.Role{identity.Operator}},
		func(context.Context, *httpapi.Empty) (string, error) { return name, nil })
	api.HandleUpgrade("GET /echo", []identity.Role{identity.Operator}, func(*http.Request) (io.ReadWriteCloser, error) {
		a, b := net.Pipe()
		go func() { _, _ = io.WriteString(b, name); b.Close() }()
		return a, nil
	})
	s := httptest.NewUnstartedServer(api.Handler(func(*http.Request) (identity.Caller, error) {
		return identity.Caller{ID: "op", Role: identity.Operator}, nil
	}))
	s.EnableHTTP2 = true
	s.StartTLS()
	t.Cleanup(s.Close)
	return s.Listener.Addr().String(), func() { s.CloseClientConnections(); s.Close() }
}

// deaf accepts connections and says nothing: a member that knows no leader closes them.
func deaf(t *testing.T) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			c.Close()
		}
	}()
	t.Cleanup(func() { ln.Close(); <-done })
	return ln.Addr().String()
}

func TestAnyMemberWillDo(t *testing.T) {
	a, stopA := member(t, "a")
	b, stopB := member(t, "b")
	all := []string{deaf(t), a, b}
	m := httpapi.NewMembers(&tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2", "http/1.1"}}, all...)
	hc := &http.Client{Transport: m.Transport()}
	t.Cleanup(hc.CloseIdleConnections)
	c := &httpapi.Client{Base: "https://" + all[0], HTTP: hc}
	name := func() (s string, err error) {
		err = c.Call(t.Context(), http.MethodPost, "/name", nil, nil, &s)
		return s, err
	}
	if got, err := name(); got != "a" || err != nil {
		t.Fatalf("%q, %v", got, err)
	}
	if got := m.Addresses(); got[0] != a {
		t.Errorf("%v first, want the one that answered", got)
	}
	up, err := c.Upgrade(t.Context(), "/echo")
	if err != nil {
		t.Fatal(err)
	}
	if text, _ := io.ReadAll(up); string(text) != "a" {
		t.Errorf("%q", text)
	}
	up.Close()
	stopA()
	got, err := name()
	for range 3 { // what was under way fails
		if err == nil {
			break
		}
		got, err = name()
	}
	if got != "b" || err != nil {
		t.Fatalf("%q, %v", got, err)
	}
	m.Set([]string{b, "127.0.0.1:1"})
	if got := m.Addresses(); !slices.Equal(got, []string{b, "127.0.0.1:1"}) {
		t.Errorf("%v", got)
	}
	m.Set(nil) // a site of no members is a mistake of somebody's
	if got := m.Addresses(); len(got) != 2 {
		t.Errorf("%v", got)
	}
	stopB()
	hc.CloseIdleConnections()
	if _, err := name(); !fault.Has(err, fault.Unavailable) {
		t.Errorf("nobody there: %v", err)
	}
}
