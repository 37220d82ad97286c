package httpapi

import (
	"context"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/reservoir-cloud/reservoir/internal/audit"
	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/internal/identity"
)

// Auditor keeps a record of calls. Record does not block.
type Auditor interface{ Record(audit.Entry) }

// Audit has every call that changes something, and every one that is refused, recorded by a.
// It must be called before Handler.
func (s *Server) Audit(a Auditor) { s.auditing = &auditing{to: a, now: time.Now} }

// Concerns notes for the audit what a call is about, where its path does not say: a VEE, a
// service. Never a secret.
func Concerns(ctx context.Context, objects ...string) {
	if n, ok := ctx.Value(noteKey{}).(*note); ok {
		n.objects = append(n.objects, objects...)
	}
}

// maxObjects of one call that are named.
const maxObjects = 20

type noteKey struct{}

// note of a call while it is under way.
type note struct {
	objects []string
	reads   bool // it changes nothing, whatever its method
	changes bool // it changes something, whatever its method
	code    fault.Code
	said    bool
	w       *statusWriter
	say     func(status int)
}

// noted changes the note of ctx, if there is one.
func noted(ctx context.Context, f func(*note)) {
	if n, ok := ctx.Value(noteKey{}).(*note); ok {
		f(n)
	}
}

// note of an operation, whether it changes something.
func (o Op) note(ctx context.Context) {
	noted(ctx, func(n *note) { n.reads = !o.Changes() })
}

// auditing is the middleware's.
type auditing struct {
	to  Auditor
	now func() time.Time

	mu        sync.Mutex // guards what follows: calls of strangers
	window    time.Time
	strangers int
	more      int
}

// strangers of whom so many a minute have an entry of their own.
const strangersAMinute = 20

// begin to watch a call; the caller calls the function that it returns when the call has
// ended.
func (a *auditing) begin(w http.ResponseWriter, r *http.Request, c identity.Caller) (http.ResponseWriter, *http.Request, func()) {
	n := &note{w: &statusWriter{ResponseWriter: w, status: http.StatusOK}}
	at, call, path := a.now(), r.Method+" "+r.URL.Path, r.URL.Path
	n.say = func(status int) {
		if n.said {
			return
		}
		n.said = true
		e := audit.Entry{At: at, By: c.ID, Role: string(c.Role), Customer: c.Customer, From: r.RemoteAddr, Call: call, Status: status, Code: string(n.code), Outcome: outcomeOf(status)}
		if e.Outcome != audit.Denied && !n.mutates(r.Method, path, c, status) {
			return
		}
		e.Object = objectOf(n, path)
		if c.Role == "" && status == http.StatusUnauthorized {
			var told bool
			if e.More, told = a.stranger(at); !told {
				return
			}
		}
		a.to.Record(e)
	}
	return n.w, r.WithContext(context.WithValue(r.Context(), noteKey{}, n)), func() { n.say(n.w.status) }
}

func outcomeOf(status int) audit.Outcome {
	switch {
	case status == http.StatusUnauthorized || status == http.StatusForbidden:
		return audit.Denied
	case status >= 400:
		return audit.Failed
	}
	return audit.OK
}

// mutates reports whether the call was one to change something. Hosts that renew, and the
// parts of an image that is being pushed, would hide everything else: the push ends with
// the manifest, which is recorded.
func (n *note) mutates(method, path string, c identity.Caller, status int) bool {
	switch {
	case n.changes:
		return true
	case n.reads || method == http.MethodGet || method == http.MethodHead || method == http.MethodOptions:
		return false
	case c.Is(identity.HostRole, identity.ProxyRole) && status < 400:
		return false
	case strings.HasPrefix(path, "/v2/"):
		return method == http.MethodDelete || method == http.MethodPut && strings.Contains(path, "/manifests/")
	}
	return true
}

func objectOf(n *note, path string) string {
	switch k := len(n.objects); {
	case k == 0:
		return strings.TrimPrefix(path, "/")
	case k > maxObjects:
		return strings.Join(n.objects[:maxObjects], " ") + " …"
	}
	return strings.Join(n.objects, " ")
}

// stranger counts a call of nobody known, and says whether it has an entry of its own and
// how many had none before it.
func (a *auditing) stranger(at time.Time) (more int, told bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if at.Sub(a.window) >= time.Minute {
		a.window, a.strangers = at, 0
	}
	if a.strangers++; a.strangers > strangersAMinute {
		a.more++
		return 0, false
	}
	more, a.more = a.more, 0
	return more, true
}

// statusWriter sees the status go by.
type statusWriter struct {
	http.ResponseWriter
	status int
	wrote  bool
}

func (w *statusWriter) WriteHeader(status int) {
	if !w.wrote && status >= 200 {
		w.status, w.wrote = status, true
	}
	w.ResponseWriter.WriteHeader(status)
}

func (w *statusWriter) Write(p []byte) (int, error) {
	w.wrote = true
	return w.ResponseWriter.Write(p)
}

// Unwrap is for http.ResponseController.
func (w *statusWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }
