package httpapi

import (
	"bytes"
	"context"
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"testing"
)

// counted counts the writes of a connection.
type counted struct {
	net.Conn
	writes int
}

func (c *counted) Write(b []byte) (int, error) { c.writes++; return c.Conn.Write(b) }

// A large Write arrives as it was, by one write to the kernel and not by one for each record.
func TestGathered(t *testing.T) {
	far, near := net.Pipe()
	defer far.Close()
	defer near.Close()
	srv := httptest.NewTLSServer(nil)
	defer srv.Close()
	under := &counted{Conn: near}
	want := bytes.Repeat([]byte("0123456789abcdef"), 256<<10/16)
	got := make(chan []byte, 1)
	go func() {
		c := tls.Server(far, srv.TLS)
		b := make([]byte, len(want))
		if _, err := io.ReadFull(c, b); err != nil {
			b = nil
		}
		got <- b
	}()
	conn, err := dialTransport(t.Context(), &http.Transport{TLSClientConfig: srv.Client().Transport.(*http.Transport).TLSClientConfig,
		DialContext: func(context.Context, string, string) (net.Conn, error) { return under, nil }}, &url.URL{Scheme: "https", Host: "example.com"})
	if err != nil {
		t.Fatal(err)
	}
	before := under.writes
	if n, err := conn.Write(want); n != len(want) || err != nil {
		t.Fatal(n, err)
	}
	if b := <-got; !bytes.Equal(b, want) {
		t.Error("it has not arrived as it was")
	}
	if n := under.writes - before; n != 1 {
		t.Errorf("%d writes, want 1", n)
	}
}
