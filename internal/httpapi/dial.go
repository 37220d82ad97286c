package httpapi

import (
	"context"
	"crypto/tls"
	"net"
	"net/http"
	"net/url"
)

// dialTransport makes the connection that t would make to u, offering HTTP/1.1 alone: an
// upgrade needs the connection for itself.
func dialTransport(ctx context.Context, t *http.Transport, u *url.URL) (net.Conn, error) {
	if t.DialTLSContext != nil && u.Scheme == "https" {
		return t.DialTLSContext(context.WithValue(ctx, http1{}, true), "tcp", u.Host)
	}
	dial := t.DialContext
	if dial == nil {
		dial = (&net.Dialer{}).DialContext
	}
	host := u.Host
	if u.Port() == "" {
		host = net.JoinHostPort(u.Hostname(), map[string]string{"https": "443"}[u.Scheme]+map[string]string{"http": "80"}[u.Scheme])
	}
	conn, err := dial(ctx, "tcp", host)
	if err != nil || u.Scheme != "https" {
		return conn, err
	}
	cfg := &tls.Config{}
	if t.TLSClientConfig != nil {
		cfg = t.TLSClientConfig.Clone()
	}
	cfg.NextProtos = []string{"http/1.1"}
	if cfg.ServerName == "" {
		cfg.ServerName = u.Hostname()
	}
	under := &gather{Conn: conn}
	tc := tls.Client(under, cfg)
	if err := tc.HandshakeContext(ctx); err != nil {
		conn.Close()
		return nil, err
	}
	return gathered{tc, under}, nil
}
