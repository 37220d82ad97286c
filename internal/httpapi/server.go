// Package httpapi is what the HTTP faces of SMI, VMI and VHI have in common: operations
// described in OpenAPI 3.1 from their Go types, errors as RFC 9457 problem documents, a
// role check on every operation, watches as streams of JSON lines, and byte streams
// (consoles) by HTTP upgrade. The operations themselves are declared beside the Go
// interface that they carry.
package httpapi

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"path"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"

	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/internal/identity"
)

// MaxBody bounds the body of a request, in bytes.
const MaxBody = 8 << 20

// Heartbeat is how often an idle watch sends an empty line, so that both ends notice a
// dead connection.
const Heartbeat = 10 * time.Second

// StreamProtocol is the Upgrade token of a byte stream.
const StreamProtocol = "reservoir-stream"

// Server collects operations on one mux with one OpenAPI document, served at
// /openapi.json.
type Server struct {
	mux      *http.ServeMux
	api      huma.API
	log      *slog.Logger
	password map[string]bool // patterns of HandleStock
	auditing *auditing       // nil: no audit
	receipts Receipts        // nil: no Idempotency-Key
	ops      []Op
}

// NewServer makes an empty one.
func NewServer(title, version string, log *slog.Logger) *Server {
	huma.NewError = newProblem // the library's own hook: a package variable
	mux := http.NewServeMux()
	c := huma.DefaultConfig(title, version)
	c.DocsPath = ""
	c.SchemasPath = ""
	c.CreateHooks = nil // no $schema links in bodies
	c.Transformers = nil
	c.OpenAPIPath = "/openapi"
	c.Components.Schemas = huma.NewMapRegistry("#/components/schemas/", schemaNamer())
	c.Components.SecuritySchemes = map[string]*huma.SecurityScheme{
		"token":     {Type: "http", Scheme: "bearer", Description: "an API token: reservoir site token create"},
		"mutualTLS": {Type: "mutualTLS", Description: "an X.509-SVID of the site or of a partner"},
	}
	c.Security = []map[string][]string{{"token": {}}, {"mutualTLS": {}}}
	return &Server{mux: mux, api: humago.New(mux, c), log: log, password: map[string]bool{}}
}

// schemaNamer calls types by their names alone, and the second of a name by its package too.
func schemaNamer() func(reflect.Type, string) string {
	first := map[string]reflect.Type{}
	return func(t reflect.Type, hint string) string {
		name := huma.DefaultSchemaNamer(t, hint)
		for t.Kind() == reflect.Pointer {
			t = t.Elem()
		}
		if other, ok := first[name]; ok && other != t && t.PkgPath() != "" {
			name = strings.ToUpper(path.Base(t.PkgPath())[:1]) + path.Base(t.PkgPath())[1:] + name
		}
		if _, ok := first[name]; !ok {
			first[name] = t
		}
		return name
	}
}

// Handle mounts a plain handler, which does its own role check.
func (s *Server) Handle(pattern string, h http.Handler) { s.mux.Handle(pattern, h) }

// HandleStock mounts a plain handler for clients of other makers (registries, OCCI). Many of
// them send nothing before they are asked, and then a password: the token is taken as one.
func (s *Server) HandleStock(pattern string, h http.Handler) {
	s.password[pattern] = true
	s.mux.Handle(pattern, h)
}

// challenge names the ways to authenticate, as every 401 must (RFC 9110, section 15.5.2).
func (s *Server) challenge(w http.ResponseWriter, r *http.Request) {
	if _, pattern := s.mux.Handler(r); s.password[pattern] {
		w.Header().Add("WWW-Authenticate", `Basic realm="reservoir"`) // first: some clients read no further
	}
	w.Header().Add("WWW-Authenticate", `Bearer realm="reservoir"`)
}

// Handler is the whole, behind authentication: callerOf proves who calls, and anonymous
// callers get no further, except to the paths of open (exact), whose handlers
// authenticate by themselves.
func (s *Server) Handler(callerOf func(*http.Request) (identity.Caller, error), open ...string) http.Handler {
	isOpen := map[string]bool{}
	for _, p := range open {
		isOpen[p] = true
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c, err := callerOf(r)
		if s.auditing != nil {
			var end func()
			w, r, end = s.auditing.begin(w, r, c)
			defer end()
		}
		if err != nil && !isOpen[r.URL.Path] {
			f := fault.From(err)
			if f.Status() == http.StatusUnauthorized {
				s.challenge(w, r)
			}
			writeProblem(w, f)
			return
		}
		if r.Body != nil && !strings.HasPrefix(r.URL.Path, "/v2/") { // the registry streams, with bounds of its own
			r.Body = http.MaxBytesReader(w, r.Body, MaxBody)
		}
		ctx := context.WithValue(r.Context(), keyReceived{}, r.Header.Get(keyHeader))
		s.mux.ServeHTTP(w, r.WithContext(identity.With(ctx, c)))
	})
}

// Operations are those that are registered, byte streams and watches too; not the plain
// handlers.
func (s *Server) Operations() []Op { return slices.Clone(s.ops) }

// OpenAPI is the document, as JSON.
func (s *Server) OpenAPI() ([]byte, error) { return json.MarshalIndent(s.api.OpenAPI(), "", "  ") }

// Op describes an operation. Roles lists who may; an empty list means nobody.
type Op struct {
	Method, Path string
	Summary      string
	Roles        []identity.Role
	Status       int // of success; 0: 200, or 204 without a body
	// Asks: it changes nothing, whatever its method, and so is not in the audit.
	Asks bool
	// Unkeyed: Receipts do not remember its answers, because the operation does so itself or
	// they hold a secret.
	Unkeyed bool
}

// mustBeSeen panics at start-up when the library would not fill a part of an operation's
// input: it passes over embedded structs whose type's name is not exported.
func mustBeSeen[I any](op Op) {
	t := reflect.TypeFor[I]()
	if t.Kind() != reflect.Struct {
		return
	}
	for i := range t.NumField() {
		if f := t.Field(i); f.Anonymous && !f.IsExported() {
			panic(fmt.Sprintf("%s %s: the embedded %s of its input would stay empty: write its fields out", op.Method, op.Path, f.Name))
		}
	}
}

func (s *Server) describe(o Op) huma.Operation {
	s.ops = append(s.ops, o)
	id := strings.ToLower(o.Method) + strings.NewReplacer("/", "-", "{", "", "}", "").Replace(o.Path)
	tag, _, _ := strings.Cut(strings.TrimPrefix(o.Path, "/"), "/")
	h := huma.Operation{
		OperationID: id, Method: o.Method, Path: o.Path, Summary: o.Summary, Tags: []string{tag},
		DefaultStatus: o.Status, MaxBodyBytes: MaxBody, BodyReadTimeout: -1,
	}
	if s.receipts != nil && !o.Unkeyed && o.Changes() {
		h.Parameters = []*huma.Param{keyParam()}
	}
	return h
}

func (o Op) allow(ctx context.Context) error {
	o.note(ctx)
	c := identity.From(ctx)
	if c.Is(o.Roles...) {
		return nil
	}
	return fault.New(fault.Denied, "%s %s: role %q may not (%v may)", o.Method, o.Path, c.Role, o.Roles)
}

// Body wraps a response body.
type Body[T any] struct{ Body T }

// Empty is the input or output of an operation that has none.
type Empty struct{}

// RegisterOpen adds an operation without a role check: the handler authenticates by
// itself, and callers have no name that their keys could go by. Its path must be given to Handler as open.
func RegisterOpen[I, O any](s *Server, op Op, h func(ctx context.Context, in *I) (O, error)) {
	op.Unkeyed = true
	register(s, op, func(context.Context) error { return nil }, h)
}

// Register adds an operation. in is a struct with huma's tags (path, query, header, Body),
// the result is sent as JSON.
func Register[I, O any](s *Server, op Op, h func(ctx context.Context, in *I) (O, error)) {
	mustBeSeen[I](op)
	register(s, op, op.allow, h)
}

func register[I, O any](s *Server, op Op, allow func(context.Context) error, h func(ctx context.Context, in *I) (O, error)) {
	huma.Register(s.api, s.describe(op), func(ctx context.Context, in *I) (*Body[O], error) {
		if err := allow(ctx); err != nil {
			return nil, s.problem(ctx, op, err)
		}
		out, err := once(ctx, s, op, in, func(ctx context.Context) (O, error) { return h(ctx, in) })
		if err != nil {
			return nil, s.problem(ctx, op, err)
		}
		return &Body[O]{out}, nil
	})
}

// RegisterNoBody adds an operation that answers 204.
func RegisterNoBody[I any](s *Server, op Op, h func(ctx context.Context, in *I) error) {
	mustBeSeen[I](op)
	if op.Status == 0 {
		op.Status = http.StatusNoContent
	}
	huma.Register(s.api, s.describe(op), func(ctx context.Context, in *I) (*struct{}, error) {
		if err := op.allow(ctx); err != nil {
			return nil, s.problem(ctx, op, err)
		}
		if _, err := once(ctx, s, op, in, func(ctx context.Context) (Empty, error) { return Empty{}, h(ctx, in) }); err != nil {
			return nil, s.problem(ctx, op, err)
		}
		return nil, nil
	})
}

// RegisterStream adds a watch: the channel's values are sent as JSON lines until it
// closes or the caller goes.
func RegisterStream[I, T any](s *Server, op Op, h func(ctx context.Context, in *I) (<-chan T, error)) {
	mustBeSeen[I](op)
	o := s.describe(op)
	o.Responses = map[string]*huma.Response{"200": {
		Description: "one JSON object a line, as they happen; empty lines are heartbeats",
		Content:     map[string]*huma.MediaType{"application/x-ndjson": {Schema: huma.SchemaFromType(s.api.OpenAPI().Components.Schemas, typeOf[T]())}},
	}}
	huma.Register(s.api, o, func(ctx context.Context, in *I) (*huma.StreamResponse, error) {
		if err := op.allow(ctx); err != nil {
			return nil, s.problem(ctx, op, err)
		}
		ctx, cancel := context.WithCancel(ctx)
		ch, err := h(ctx, in)
		if err != nil {
			cancel()
			return nil, s.problem(ctx, op, err)
		}
		return &huma.StreamResponse{Body: func(hc huma.Context) {
			defer cancel()
			_, w := humago.Unwrap(hc)
			hc.SetHeader("Content-Type", "application/x-ndjson")
			sendLines(ctx, w, ch)
		}}, nil
	})
}

func sendLines[T any](ctx context.Context, w http.ResponseWriter, ch <-chan T) {
	rc := http.NewResponseController(w)
	enc := json.NewEncoder(w)
	beat := time.NewTicker(Heartbeat)
	defer beat.Stop()
	for {
		if rc.Flush() != nil {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-beat.C:
			if _, err := io.WriteString(w, "\n"); err != nil {
				return
			}
		case v, ok := <-ch:
			if !ok || enc.Encode(v) != nil {
				return
			}
			for more := true; more; { // what is there already goes out in one write
				select {
				case v, ok := <-ch:
					if !ok || enc.Encode(v) != nil {
						return
					}
				default:
					more = false
				}
			}
		}
	}
}

// Windowed is a byte stream of which no more than about Window bytes are to be under way at
// each end: who reads it needs what was written last soon.
type Windowed struct {
	io.ReadWriteCloser
	Window int
}

// SetWindow does so for a connection that Upgrade returned or a server took over, if that is
// TCP, with TLS over it or not.
func SetWindow(conn any, bytes int) {
	switch c := conn.(type) {
	case bufferedConn:
		SetWindow(c.Conn, bytes)
	case gathered:
		SetWindow(c.under.Conn, bytes)
	case *tls.Conn:
		SetWindow(c.NetConn(), bytes)
	case *net.TCPConn: // best effort: it works with any
		_ = c.SetReadBuffer(bytes)
		_ = c.SetWriteBuffer(bytes)
	}
}

// HandleUpgrade mounts a byte stream at pattern ("GET /path/{id}"): open is called with
// the request, and what it returns is joined to the caller's connection until either ends.
func (s *Server) HandleUpgrade(pattern string, roles []identity.Role, open func(*http.Request) (io.ReadWriteCloser, error)) {
	op := Op{Method: "GET", Path: strings.TrimPrefix(pattern, "GET "), Roles: roles}
	s.ops = append(s.ops, op)
	s.mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
		if err := op.allow(r.Context()); err != nil {
			writeProblem(w, fault.From(err))
			return
		}
		if !strings.EqualFold(r.Header.Get("Upgrade"), StreamProtocol) {
			w.Header().Set("Upgrade", StreamProtocol)
			writeProblem(w, fault.New(fault.Malformed, "%s: want an HTTP upgrade to %s", r.URL.Path, StreamProtocol).Try("use the client: reservoir vee console ID"))
			return
		}
		up, err := open(r)
		if err != nil {
			writeProblem(w, fault.From(err))
			return
		}
		defer up.Close()
		conn, buf, err := http.NewResponseController(w).Hijack()
		if err != nil {
			writeProblem(w, fault.New(fault.Unsupported, "upgrade: %w", err))
			return
		}
		defer conn.Close()
		noted(r.Context(), func(n *note) { n.changes = true; n.say(http.StatusSwitchingProtocols) })
		_ = conn.SetDeadline(time.Time{})
		if w, ok := up.(Windowed); ok {
			SetWindow(conn, w.Window)
		}
		fmt.Fprintf(buf, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: %s\r\n\r\n", StreamProtocol)
		if buf.Flush() != nil {
			return
		}
		Join(bufferedConn{conn, buf.Reader}, up)
	})
}

// Join copies both ways until one side ends, then closes both.
func Join(a, b io.ReadWriteCloser) {
	done := make(chan struct{}, 2)
	for _, p := range [][2]io.ReadWriteCloser{{a, b}, {b, a}} {
		go func() {
			_, _ = io.Copy(p[0], p[1])
			done <- struct{}{}
		}()
	}
	<-done
	a.Close()
	b.Close()
	<-done
}

type bufferedConn struct {
	net.Conn
	r *bufio.Reader
}

func (c bufferedConn) Read(p []byte) (int, error) { return c.r.Read(p) }

// problem is the log line and the document of a failed operation.
func (s *Server) problem(ctx context.Context, op Op, err error) error {
	f := fault.From(err)
	noted(ctx, func(n *note) { n.code = f.Code })
	if f.Code == fault.Internal && s.log != nil && !errors.Is(err, context.Canceled) {
		s.log.Error("operation failed", "op", op.Method+" "+op.Path, "err", err)
	}
	return problemOf(f)
}
