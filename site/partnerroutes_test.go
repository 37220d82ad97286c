package site

import (
	"cmp"
	"context"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/reservoir-cloud/reservoir/internal/audit"
	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/internal/httpapi"
	"github.com/reservoir-cloud/reservoir/internal/identity"
	"github.com/reservoir-cloud/reservoir/internal/receipt"
	"github.com/reservoir-cloud/reservoir/internal/store"
	"github.com/reservoir-cloud/reservoir/vmi/peer"
)

// forPartners is every operation that a partner may call, by the listener that is for partners.
// The rest of the VMI is there and refuses it.
var forPartners = []string{
	"DELETE /federation/v1/networks/{id}",
	"DELETE /vmi/v1/groups/{group}/access-points/{name}", // its own, of VEEs that are here
	"DELETE /vmi/v1/vees/{id}/snapshots/{name}",
	"GET /federation/v1/attributes",
	"GET /federation/v1/attributes/watch",
	"GET /federation/v1/books/{agreement}",
	"GET /federation/v1/bundle",
	"GET /federation/v1/measurements",
	"GET /federation/v1/networks",
	"GET /federation/v1/shipments",
	"GET /federation/v1/succeeded/{site}",
	"GET /vmi/v1/reservations",
	"GET /vmi/v1/reservations/{id}",
	"GET /vmi/v1/vees",
	"GET /vmi/v1/vees/{id}",
	"GET /vmi/v1/vees/{id}/console",
	"GET /vmi/v1/vees/{id}/disks",
	"GET /vmi/v1/vees/{id}/disks/{disk}/export",
	"GET /vmi/v1/vees/{id}/nics/{number}/capture",
	"GET /vmi/v1/vees/{id}/ports/{number}",
	"GET /vmi/v1/vees/{id}/snapshots",
	"GET /vmi/v1/watch/vees",
	"POST /federation/v1/agreements/{id}/end",
	"POST /federation/v1/hello",
	"POST /federation/v1/leave",
	"POST /federation/v1/shipments/drop",
	"POST /federation/v1/shipments/gave-way",
	"POST /vmi/v1/reservations",
	"POST /vmi/v1/reservations/{id}/cancel",
	"POST /vmi/v1/reservations/{id}/commit",
	"POST /vmi/v1/state",
	"POST /vmi/v1/update",
	"POST /vmi/v1/vees",
	"POST /vmi/v1/vees/{id}/snapshots/{name}/restore",
	"POST /vmi/v1/vees/{id}/tell",
	"PUT /federation/v1/agreements/{id}",
	"PUT /federation/v1/images",
	"PUT /federation/v1/moves/{id}",
	"PUT /federation/v1/networks/{id}",
	"PUT /federation/v1/shipments/{service}",
	"PUT /vmi/v1/groups/{group}/access-points/{name}",
	"PUT /vmi/v1/vees/{id}/snapshots/{name}",
}

// TestEveryRouteForPartners: a partner may what the table says; what it may not is refused and in
// the audit log with who came, and whatever a stranger asks is refused; no body is read without a
// bound, and none that is nonsense gets past its decoder.
func TestEveryRouteForPartners(t *testing.T) {
	cfg := config(t)
	cfg.Log = slog.New(slog.DiscardHandler)
	if err := cfg.check(); err != nil {
		t.Fatal(err)
	}
	s := opened(t, cfg)
	if s.forPartners != nil {
		t.Errorf("a site without a proxy listens for partners at %v", s.forPartners.Addr())
	}
	kept := &trail{}
	book := receipt.NewBook(store.NewCollection[receipt.Receipt](s.store, "receipt"), time.Now, cfg.Log)
	api := s.faceForPartners(kept, book)
	ctx, stop := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { _ = s.veem.Run(ctx) })
	running.Go(func() { book.Run(ctx) })
	defer running.Wait()
	defer stop()
	srv := httptest.NewServer(api.Handler(func(r *http.Request) (identity.Caller, error) {
		if r.Header.Get("Role") == "stranger" {
			return identity.Caller{}, fault.New(fault.Unauthenticated, "nobody knows this site")
		}
		return identity.Caller{ID: "spiffe://beta/site", Role: identity.Partner, Site: "beta"}, nil
	}, peer.AcceptPath))
	defer srv.Close()
	var may, refused []string
	for _, op := range api.Operations() {
		if op.Path == peer.AcceptPath {
			continue // a stranger's; its token is the proof
		}
		allowed := slices.Contains(op.Roles, identity.Partner)
		if allowed {
			may = append(may, op.Method+" "+op.Path)
		}
		name := "web"
		if strings.Contains(op.Path, "networks/{name}") {
			name = "back"
		}
		path := strings.NewReplacer("{id}", "alpha.aaaaaaaaaa", "{name}", name, "{group}", "g", "{site}", "gamma", "{number}", "1", "{disk}", "root",
			"{agreement}", "alpha.aaaaaaaaaa", "{service}", "s", "{customer}", "c").Replace(op.Path)
		ask := func(role, body string) int {
			t.Helper()
			req, err := http.NewRequestWithContext(t.Context(), op.Method, srv.URL+path, strings.NewReader(body))
			if err != nil {
				t.Fatal(err)
			}
			req.Header.Set("Content-Type", "application/json")
			req.Header.Set("Role", role)
			resp, err := srv.Client().Do(req)
			if err != nil {
				t.Fatalf("%s %s: %v", op.Method, path, err)
			}
			resp.Body.Close()
			return resp.StatusCode
		}
		if got := ask("stranger", ""); got != http.StatusUnauthorized {
			t.Errorf("%s %s of a stranger: status %d", op.Method, path, got)
		}
		if !allowed {
			if got := ask("partner", strings.ReplaceAll(cmp.Or(routes[op.Method+" "+op.Path].body, "{}"), "~", "g")); got != http.StatusForbidden {
				t.Errorf("%s %s of a partner, which may not: status %d", op.Method, path, got)
			}
			refused = append(refused, op.Method+" "+path)
			continue
		}
		if op.Method == http.MethodGet || op.Method == http.MethodDelete {
			continue
		}
		for what, body := range map[string]string{"nonsense": `{"what`, "not what is asked for": `[["\u0000"]]`} {
			if got := ask("partner", body); got >= 500 || strings.Contains(op.Path, "vees/{id}") && got < 400 {
				t.Errorf("%s %s with a body that is %s: status %d", op.Method, path, what, got)
			}
		}
	}
	recorded := map[string]bool{}
	for _, e := range kept.take(2 * len(refused)) { // others are there too
		recorded[e.Call] = recorded[e.Call] || e.Outcome == audit.Denied && e.By == "spiffe://beta/site"
	}
	for _, call := range refused {
		if !recorded[call] {
			t.Errorf("%s of a partner, which may not, is not in the audit log", call)
		}
	}
	if slices.Sort(may); !slices.Equal(may, forPartners) {
		t.Errorf("partners may\n%s\nand in the table\n%s", strings.Join(may, "\n"), strings.Join(forPartners, "\n"))
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, srv.URL+"/vmi/v1/vees", io.LimitReader(zeros{}, httpapi.MaxBody+1))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	if resp, err := srv.Client().Do(req); err != nil || resp.StatusCode != http.StatusRequestEntityTooLarge {
		t.Errorf("a body without end: %+v, %v", resp, err)
	} else {
		resp.Body.Close()
	}
}

// zeros are a body without end.
type zeros struct{}

func (zeros) Read(b []byte) (int, error) {
	for i := range b {
		b[i] = '0'
	}
	return len(b), nil
}
