package httpapi

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"

	"github.com/reservoir-cloud/reservoir/internal/fault"
)

// Client calls operations of a Server. HTTP carries TLS and its certificates; Token, if
// any, goes along as a bearer token.
type Client struct {
	Base  string // "https://host:port"
	HTTP  *http.Client
	Token string
}

// Call sends in as JSON (nil: no body) and decodes the answer into out (nil: none is
// wanted). query may be nil. Errors are *fault.Error.
func (c *Client) Call(ctx context.Context, method, path string, query url.Values, in, out any, header ...string) error {
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return fmt.Errorf("encode request %s %s: %w", method, path, err)
		}
		body = bytes.NewReader(b)
	}
	resp, err := c.do(ctx, method, path, query, body, header...)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if out == nil {
		_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, MaxBody))
		return nil
	}
	if err := json.NewDecoder(io.LimitReader(resp.Body, 64<<20)).Decode(out); err != nil {
		return fault.New(fault.Unavailable, "read the answer of %s %s: %w", method, path, err)
	}
	return nil
}

func (c *Client) do(ctx context.Context, method, path string, query url.Values, body io.Reader, header ...string) (*http.Response, error) {
	u := strings.TrimSuffix(c.Base, "/") + path
	if len(query) > 0 {
		u += "?" + query.Encode()
	}
	req, err := http.NewRequestWithContext(ctx, method, u, body)
	if err != nil {
		return nil, fault.New(fault.Malformed, "%s %s: %w", method, path, err)
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	if key, _ := ctx.Value(keyToSend{}).(string); key != "" && method != http.MethodGet {
		req.Header.Set(keyHeader, key)
	}
	for i := 0; i+1 < len(header); i += 2 {
		if header[i+1] != "" {
			req.Header.Set(header[i], header[i+1])
		}
	}
	if c.Token != "" {
		req.Header.Set("Authorization", "Bearer "+c.Token)
	}
	resp, err := c.HTTP.Do(req)
	if err != nil {
		return nil, transportFault(err, c.Base)
	}
	if resp.StatusCode >= 400 {
		defer resp.Body.Close()
		return nil, decodeProblem(resp)
	}
	return resp, nil
}

func transportFault(err error, base string) error {
	switch {
	case errors.Is(err, context.Canceled):
		return err
	case errors.Is(err, context.DeadlineExceeded):
		return fault.New(fault.Timeout, "no answer from %s in time: %w", base, err)
	}
	var ue *url.Error
	if errors.As(err, &ue) {
		err = ue.Err
	}
	var f *fault.Error
	if errors.As(err, &f) { // the dialer, or the check of who answers, knows better
		return &fault.Error{Code: f.Code, Message: fmt.Sprintf("cannot reach %s: %v", base, err), Next: f.Next, Err: err}
	}
	return fault.New(fault.Unavailable, "cannot reach %s: %w", base, err)
}

func decodeProblem(resp *http.Response) error {
	b, _ := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
	var p problemDetails
	if json.Unmarshal(b, &p) == nil && p.Code != "" {
		return &fault.Error{Code: p.Code, Message: p.Detail, Next: p.Next}
	}
	return fault.New(fault.Internal, "%s %s: %s: %s", resp.Request.Method, resp.Request.URL.Path, resp.Status, bytes.TrimSpace(b))
}

// Stream opens a watch. The channel closes when the server ends it, the connection breaks
// or ctx is done.
func Stream[T any](ctx context.Context, c *Client, path string, query url.Values) (<-chan T, error) {
	resp, err := c.do(ctx, http.MethodGet, path, query, nil) //nolint:bodyclose // the goroutine below does
	if err != nil {
		return nil, err
	}
	ch := make(chan T, 64)
	go func() {
		defer close(ch)
		defer resp.Body.Close()
		dec := json.NewDecoder(resp.Body) // skips the empty lines of the heartbeat
		for {
			var v T
			if dec.Decode(&v) != nil {
				return
			}
			select {
			case ch <- v:
			case <-ctx.Done():
				return
			}
		}
	}()
	return ch, nil
}

// Upgrade opens a byte stream. dial makes the (TLS) connection; it must offer HTTP/1.1
// alone.
func (c *Client) Upgrade(ctx context.Context, path string) (io.ReadWriteCloser, error) {
	u, err := url.Parse(c.Base)
	if err != nil {
		return nil, fault.New(fault.Malformed, "address %q: %w", c.Base, err)
	}
	conn, err := c.dial(ctx, u)
	if err != nil {
		return nil, transportFault(err, c.Base)
	}
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, strings.TrimSuffix(c.Base, "/")+path, nil)
	if err != nil {
		conn.Close()
		return nil, fault.New(fault.Malformed, "GET %s: %w", path, err)
	}
	req.Header.Set("Connection", "Upgrade")
	req.Header.Set("Upgrade", StreamProtocol)
	if c.Token != "" {
		req.Header.Set("Authorization", "Bearer "+c.Token)
	}
	r := bufio.NewReader(conn)
	if err = req.Write(conn); err == nil {
		var resp *http.Response
		if resp, err = http.ReadResponse(r, req); err == nil && resp.StatusCode != http.StatusSwitchingProtocols {
			err = decodeProblem(resp)
			resp.Body.Close()
			conn.Close()
			return nil, err
		}
	}
	if err != nil || !stop() {
		conn.Close()
		return nil, transportFault(err, c.Base)
	}
	return bufferedConn{conn, r}, nil
}

// dial connects as the HTTP client's transport would, for HTTP/1.1.
func (c *Client) dial(ctx context.Context, u *url.URL) (net.Conn, error) {
	t, ok := c.HTTP.Transport.(*http.Transport)
	if !ok {
		t = http.DefaultTransport.(*http.Transport)
	}
	return dialTransport(ctx, t, u)
}
