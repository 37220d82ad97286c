package balance

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"time"
)

// failures in a row after which a backend that was well is held to be ill: one lost answer
// of a busy guest is none.
const failures = 3

// health of one backend.
type health struct {
	well   bool
	once   bool // it has been well
	failed int
	why    string
}

// after a check that ended with err.
func (h health) after(err error) health {
	if err == nil {
		return health{well: true, once: true}
	}
	h.failed++
	h.why = err.Error()
	h.well = h.well && h.failed < failures
	return h
}

// usable are the backends that new connections may go to: those that are well. Where none
// is, all that ever were: a check that fails for all of them is more likely to be wrong
// than all of them are, and a refused connection is no better than one that may fail.
func usable(backends []netip.AddrPort, of func(netip.AddrPort) health) (use []netip.AddrPort) {
	var once []netip.AddrPort
	for _, b := range backends {
		h := of(b)
		if h.well {
			use = append(use, b)
		}
		if h.once {
			once = append(once, b)
		}
	}
	if len(use) == 0 {
		return once
	}
	return use
}

// check a backend: that it accepts a connection, or that path answers.
func check(ctx context.Context, at netip.AddrPort, path string, timeout time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	c, err := (&net.Dialer{}).DialContext(ctx, "tcp", at.String())
	if err != nil {
		return fmt.Errorf("does not accept connections: %w", err)
	}
	defer c.Close()
	if path == "" {
		return nil
	}
	transport := &http.Transport{DisableKeepAlives: true, DialContext: func(context.Context, string, string) (net.Conn, error) { return c, nil }}
	client := http.Client{Transport: transport, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+at.String()+path, nil)
	if err != nil {
		return fmt.Errorf("health path %q: %w", path, err)
	}
	resp, err := client.Do(req)
	if err != nil {
		return fmt.Errorf("does not answer %s: %w", path, err)
	}
	defer resp.Body.Close()
	_, _ = io.CopyN(io.Discard, resp.Body, 4<<10)
	if resp.StatusCode < 200 || resp.StatusCode > 399 {
		return fmt.Errorf("answers %s with %s", path, resp.Status)
	}
	return nil
}
