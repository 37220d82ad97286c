package occi

import (
	"errors"
	"fmt"
	"net/http"
	"regexp"
	"strconv"
	"strings"

	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/internal/identity"
	"github.com/reservoir-cloud/reservoir/vmi/occi/rendering"
)

// maxHeader bounds an answer in text/occi, in bytes. Clients and proxies take little more,
// and what does not fit must not be cut off (GFD.229, "OCCI Header Rendering").
const maxHeader = 32 << 10

// Who may: whose VEEs a provider sees is decided by the Service.
var (
	readers = []identity.Role{identity.Operator, identity.Provider, identity.Auditor, identity.SiteRole}
	writers = []identity.Role{identity.Operator, identity.Provider, identity.SiteRole}
)

type handler struct{ Config }

// request is one request, on its way through the protocol.
type request struct {
	*http.Request
	h     *handler
	c     *catalogue
	media rendering.Media // of the answer
}

// answer to a request.
type answer struct {
	status   int
	location string // of what was created
	rendering.Payload
}

// refused is an error of the protocol itself; those of the VMI are fault.Error.
type refused struct {
	status int
	allow  string
	text   string
}

func (r *refused) Error() string { return r.text }

func refuse(status int, format string, args ...any) error {
	return &refused{status: status, text: fmt.Sprintf(format, args...)}
}

// notAllowed says which methods are.
func notAllowed(r *http.Request, allow, why string) error {
	return &refused{http.StatusMethodNotAllowed, allow, fmt.Sprintf("%s %s: %s", r.Method, r.URL.Path, why)}
}

// ServeHTTP answers with an answer or an error.
func (h *handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Server", "reservoir/"+strings.ReplaceAll(h.Version, " ", "-")+" OCCI/1.2")
	for _, m := range rendering.All {
		w.Header().Add("Accept", string(m))
	}
	q := &request{Request: r, h: h}
	a, err := q.answer()
	if err != nil {
		h.fail(w, r, err)
		return
	}
	for name, vs := range a.Header {
		w.Header()[name] = vs
	}
	w.Header().Set("Content-Type", string(q.media))
	if a.location != "" {
		w.Header().Set("Location", a.location)
	}
	w.WriteHeader(a.status)
	_, _ = w.Write(a.Body)
}

// statuses that the protocol's clients need not understand, as those that they must
// (GFD.223, "Status Codes").
var statuses = map[int]int{
	http.StatusPreconditionFailed: http.StatusConflict, http.StatusUnprocessableEntity: http.StatusBadRequest,
	http.StatusGatewayTimeout: http.StatusServiceUnavailable, http.StatusInsufficientStorage: http.StatusServiceUnavailable,
}

func statusOf(f *fault.Error) int {
	if s, ok := statuses[f.Status()]; ok {
		return s
	}
	return f.Status()
}

// fail says what went wrong, as text: the renderings have no form for it.
func (h *handler) fail(w http.ResponseWriter, r *http.Request, err error) {
	var p *refused
	status, next := 0, ""
	if errors.As(err, &p) {
		status = p.status
		if p.allow != "" {
			w.Header().Set("Allow", p.allow)
		}
	} else {
		f := fault.From(err)
		status, next = statusOf(f), f.NextStep()
		if f.Code == fault.Internal && r.Context().Err() == nil {
			h.Log.Error("operation failed", "op", r.Method+" "+r.URL.Path, "err", err)
		}
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.WriteHeader(status)
	fmt.Fprintln(w, err)
	if next != "" {
		fmt.Fprintln(w, "next:", next)
	}
}

var occiVersion = regexp.MustCompile(`\bOCCI/(\d{1,4})\.(\d{1,4})\b`)

// newer reports whether a client's User-Agent asks for more than OCCI 1.2.
func newer(agent string) bool {
	m := occiVersion.FindStringSubmatch(agent)
	if m == nil {
		return false
	}
	major, _ := strconv.Atoi(m[1])
	minor, _ := strconv.Atoi(m[2])
	return major > 1 || major == 1 && minor > 2
}

func (q *request) answer() (answer, error) {
	reads := q.Method == http.MethodGet || q.Method == http.MethodHead
	caller, roles := identity.From(q.Context()), writers
	if reads {
		roles = readers
	}
	if !caller.Is(roles...) {
		return answer{}, fault.New(fault.Denied, "%s %s: role %q may not (%v may)", q.Method, q.URL.Path, caller.Role, roles)
	}
	if newer(q.UserAgent()) {
		return answer{}, refuse(http.StatusNotImplemented, "User-Agent %q: the site speaks OCCI/1.2", q.UserAgent())
	}
	var ok bool
	if q.media, ok = rendering.Negotiate(q.Header.Values("Accept")); !ok {
		return answer{}, refuse(http.StatusNotAcceptable, "Accept %q: there are %v", q.Header.Values("Accept"), rendering.All)
	}
	var err error
	if q.c, err = q.h.catalogue(q.Context()); err != nil {
		return answer{}, err
	}
	a, err := q.route(reads)
	if err != nil {
		return answer{}, err
	}
	size := 0
	for _, vs := range a.Header {
		size += len(strings.Join(vs, ""))
	}
	if size > maxHeader {
		return answer{}, fault.New(fault.TooLarge, "the answer would take %d bytes of header", size).
			Try("ask for another media type, such as Accept: text/plain, or for a page: ?page=1&number=50")
	}
	return a, nil
}
