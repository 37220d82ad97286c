package httpapi_test

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/reservoir-cloud/reservoir/internal/audit"
	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/internal/httpapi"
	"github.com/reservoir-cloud/reservoir/internal/identity"
)

type trail struct {
	mu      sync.Mutex
	entries []audit.Entry
}

func (t *trail) Record(e audit.Entry) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.entries = append(t.entries, e)
}

// lines are what was recorded, in short.
func (t *trail) lines() (all []string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, e := range t.entries {
		all = append(all, strings.TrimSpace(fmt.Sprintf("%s %s %s: %s %d %s", e.By, e.Call, e.Object, e.Outcome, e.Status, e.Code)))
	}
	return all
}

// TestAudit: what changes something and what is refused is recorded, reading is not, and no
// body ever.
func TestAudit(t *testing.T) {
	s := httpapi.NewServer("test", "1", slog.New(slog.DiscardHandler))
	kept := &trail{}
	s.Audit(kept)
	type body struct {
		Body struct {
			Secret string `json:"secret"`
		}
	}
	change := func(ctx context.Context, in *body) (string, error) {
		httpapi.Concerns(ctx, "vee/a", "vee/b")
		if in.Body.Secret == "bad" {
			return "", fault.New(fault.WrongState, "not now")
		}
		return "done", nil
	}
	operators := []identity.Role{identity.Operator, identity.HostRole}
	httpapi.Register(s, httpapi.Op{Method: "POST", Path: "/change", Roles: operators}, change)
	httpapi.Register(s, httpapi.Op{Method: "POST", Path: "/plan", Roles: append(operators, identity.Auditor)}, change)
	httpapi.Register(s, httpapi.Op{Method: "GET", Path: "/look", Roles: operators}, func(context.Context, *httpapi.Empty) (string, error) { return "", nil })
	s.HandleUpgrade("GET /console", operators, func(*http.Request) (io.ReadWriteCloser, error) { return nil, fault.New(fault.NotFound, "none") })
	s.Handle("/v2/", http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusCreated) }))
	srv := httptest.NewServer(s.Handler(func(r *http.Request) (identity.Caller, error) {
		role := r.Header.Get("Role")
		if role == "" {
			return identity.Caller{}, fault.New(fault.Unauthenticated, "who are you?")
		}
		return identity.Caller{ID: "ann", Role: identity.Role(role)}, nil
	}))
	defer srv.Close()
	call := func(role, method, path, body string) {
		req, err := http.NewRequestWithContext(t.Context(), method, srv.URL+path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Content-Type", "application/json")
		req.Header.Set("Role", role)
		resp, err := srv.Client().Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
	}
	call("operator", "POST", "/change", `{"secret":"s3cr3t"}`)
	call("operator", "POST", "/change", `{"secret":"bad"}`)
	call("operator", "POST", "/plan", `{"secret":"x"}`)
	call("operator", "GET", "/look", "")
	call("auditor", "POST", "/change", `{"secret":"x"}`)
	call("auditor", "GET", "/look", "")
	call("auditor", "GET", "/console", "")
	call("host", "POST", "/change", `{"secret":"renewal"}`)
	call("operator", "PUT", "/v2/web/manifests/1", "{}")
	call("operator", "PATCH", "/v2/web/blobs/uploads/1", "{}")
	want := []string{
		"ann POST /change vee/a vee/b: ok 200",
		"ann POST /change vee/a vee/b: failed 409 wrong-state",
		"ann POST /change change: denied 403 access-denied",
		"ann GET /look look: denied 403 access-denied",
		"ann GET /console console: denied 403",
		"ann PUT /v2/web/manifests/1 v2/web/manifests/1: ok 201",
	}
	if got := kept.lines(); !slices.Equal(got, want) {
		t.Errorf("recorded\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	for range 100 { // strangers cannot fill the log
		call("", "POST", "/change", `{}`)
	}
	if n := len(kept.lines()) - len(want); n != 20 {
		t.Errorf("%d entries for a hundred calls of nobody known", n)
	}
	if all := fmt.Sprint(kept.entries); strings.Contains(all, "s3cr3t") {
		t.Errorf("a secret is recorded: %s", all)
	}
}
