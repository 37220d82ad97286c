package httpapi

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"slices"
	"sync"
	"time"
)

// Members are the machines of a site's control plane. Any of them will do: each answers in
// the name of the one that leads, and proves the same identity. A connection goes to the one
// that answered last, or else to the next that does.
type Members struct {
	tls *tls.Config // which verifies whom it speaks to, whatever the address

	mu        sync.Mutex
	addresses []string // host:port, the one to try first at the front
}

// Timeouts of a connection to a member. One that hangs is as good as lost.
const (
	dialMember = 3 * time.Second
	pingMember = 5 * time.Second // of an HTTP/2 connection that is silent
)

// NewMembers at host:port each; conf verifies every one of them.
func NewMembers(conf *tls.Config, addresses ...string) *Members {
	return &Members{tls: conf, addresses: slices.Clone(addresses)}
}

// Set what members there are. Those that were known stay in their order.
func (m *Members) Set(addresses []string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	next := slices.DeleteFunc(slices.Clone(m.addresses), func(a string) bool { return !slices.Contains(addresses, a) })
	for _, a := range addresses {
		if !slices.Contains(next, a) {
			next = append(next, a)
		}
	}
	if len(next) > 0 {
		m.addresses = next
	}
}

// Addresses of the members, the one that answered last first.
func (m *Members) Addresses() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.addresses)
}

// Transport speaks to the members, whatever address a request names.
func (m *Members) Transport() *http.Transport {
	return &http.Transport{
		TLSClientConfig: m.tls, DialTLSContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return m.dial(ctx) },
		ForceAttemptHTTP2: true, IdleConnTimeout: time.Minute,
		HTTP2: &http.HTTP2Config{SendPingTimeout: pingMember, PingTimeout: pingMember},
	}
}

// http1 in a context asks dial for a connection of its own.
type http1 struct{}

func (m *Members) dial(ctx context.Context) (net.Conn, error) {
	all := m.Addresses()
	var errs []error
	for _, a := range all {
		conn, err := m.dialOne(ctx, a)
		if err == nil {
			return conn, nil
		}
		m.demote(a)
		if ctx.Err() != nil {
			return nil, err
		}
		if len(all) > 1 {
			err = fmt.Errorf("%s: %w", a, err)
		}
		errs = append(errs, err)
	}
	return nil, errors.Join(errs...)
}

// demote a member that does not answer to the end of the list.
func (m *Members) demote(address string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.addresses) > 1 && m.addresses[0] == address {
		m.addresses = append(slices.Clone(m.addresses[1:]), address)
	}
}

func (m *Members) dialOne(ctx context.Context, address string) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, dialMember)
	defer cancel()
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	conf := m.tls.Clone()
	if ctx.Value(http1{}) != nil {
		conf.NextProtos = []string{"http/1.1"}
	}
	if conf.ServerName == "" {
		conf.ServerName, _, _ = net.SplitHostPort(address)
	}
	tc := tls.Client(conn, conf)
	if err := tc.HandshakeContext(ctx); err != nil {
		conn.Close()
		return nil, err
	}
	return tc, nil
}
