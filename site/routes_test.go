package site

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/reservoir-cloud/reservoir/internal/audit"
	"github.com/reservoir-cloud/reservoir/internal/identity"
	"github.com/reservoir-cloud/reservoir/internal/receipt"
	"github.com/reservoir-cloud/reservoir/internal/store"
	"github.com/reservoir-cloud/reservoir/site/admin"
	"github.com/reservoir-cloud/reservoir/van/border"
	"github.com/reservoir-cloud/reservoir/vhi"
	"github.com/reservoir-cloud/reservoir/vmi/occi"
)

const (
	anID = "alpha.aaaaaaaaaa"
	aVEE = `{"model":"BESTEFFORT","vees":[{"descriptor":{"name":"a","vcpus":1,"memoryBytes":134217728}}]}`
)

// routes is every operation of a site: who may, and an example of a request. O is an
// operator, P a service provider, A an auditor, S the site itself, H one of its hosts, B its proxy;
// Q a partner, which comes by a listener of its own. ~ stands for the caller's letter.
var routes = map[string]struct{ may, path, body string }{
	"GET /vmi/v1/vees":                                   {"OPASQ", "", ""},
	"GET /vmi/v1/watch/vees":                             {"OPASQ", "", ""},
	"GET /vmi/v1/vees/{id}":                              {"OPASQ", "/vmi/v1/vees/" + anID, ""},
	"POST /vmi/v1/vees":                                  {"OPSQ", "", aVEE},
	"POST /vmi/v1/plan":                                  {"OPAS", "", aVEE},
	"POST /vmi/v1/submit":                                {"OPS", "", `{"ids":["` + anID + `"]}`},
	"POST /vmi/v1/state":                                 {"OPSQ", "", `{"ids":["` + anID + `"],"action":"PAUSE"}`},
	"POST /vmi/v1/update":                                {"OPSQ", "", `{"updates":[{"id":"` + anID + `"}]}`},
	"POST /vmi/v1/vees/{id}/tell":                        {"OPSQ", "/vmi/v1/vees/" + anID + "/tell", `{"type":"ready"}`},
	"GET /vmi/v1/vees/{id}/console":                      {"OPSQ", "/vmi/v1/vees/" + anID + "/console", ""},
	"GET /vmi/v1/vees/{id}/disks":                        {"OPASQ", "/vmi/v1/vees/" + anID + "/disks", ""},
	"GET /vmi/v1/vees/{id}/disks/{disk}/export":          {"OPSQ", "/vmi/v1/vees/" + anID + "/disks/root/export", ""},
	"GET /vmi/v1/vees/{id}/snapshots":                    {"OPASQ", "/vmi/v1/vees/" + anID + "/snapshots", ""},
	"PUT /vmi/v1/vees/{id}/snapshots/{name}":             {"OPSQ", "/vmi/v1/vees/" + anID + "/snapshots/one", `{}`},
	"POST /vmi/v1/vees/{id}/snapshots/{name}/restore":    {"OPSQ", "/vmi/v1/vees/" + anID + "/snapshots/one/restore", ""},
	"DELETE /vmi/v1/vees/{id}/snapshots/{name}":          {"OPSQ", "/vmi/v1/vees/" + anID + "/snapshots/one", ""},
	"GET /vmi/v1/access-points":                          {"OPAS", "", ""},
	"PUT /vmi/v1/groups/{group}/access-points/{name}":    {"OPS", "/vmi/v1/groups/~/access-points/web", `{"name":"web","groupID":"~","port":80,"backends":0}`},
	"DELETE /vmi/v1/groups/{group}/access-points/{name}": {"OPS", "/vmi/v1/groups/~/access-points/web", ""},
	"GET /vmi/v1/networks":                               {"OPAS", "", ""},
	"GET /vmi/v1/networks/{name}":                        {"OPAS", "/vmi/v1/networks/site", ""},
	"GET /vmi/v1/networks/{name}/plan":                   {"OAS", "/vmi/v1/networks/site/plan", ""},
	"PUT /vmi/v1/groups/{group}/networks/{name}":         {"OPS", "/vmi/v1/groups/~/networks/back", `{"name":"back","groupID":"~","nics":0}`},
	"DELETE /vmi/v1/groups/{group}/networks/{name}":      {"OPS", "/vmi/v1/groups/~/networks/back", ""},
	"GET /vmi/v1/vees/{id}/ports/{number}":               {"OPSQ", "/vmi/v1/vees/" + anID + "/ports/22", ""},
	"GET /vmi/v1/vees/{id}/nics/{number}/capture":        {"OPSQ", "/vmi/v1/vees/" + anID + "/nics/0/capture", ""},
	"PUT /vmi/v1/hosts/{name}/armed":                     {"OS", "/vmi/v1/hosts/h1/armed", `{"armed":false}`},
	"POST /vmi/v1/vees/{id}/claim":                       {"OS", "/vmi/v1/vees/" + anID + "/claim", `{"fenced":true}`},
	"POST /vmi/v1/evacuation":                            {"OS", "/vmi/v1/evacuation", `{}`},
	"POST /vmi/v1/evacuation/plan":                       {"OAS", "/vmi/v1/evacuation/plan", `{}`},
	"POST /vmi/v1/hosts/{name}/drain":                    {"OS", "/vmi/v1/hosts/h1/drain", `{}`},
	"GET /vmi/v1/reconfiguration":                        {"OAS", "", ""},
	"POST /vmi/v1/reconfiguration":                       {"OS", "", `{}`},
	"POST /vmi/v1/reconfiguration/plan":                  {"OAS", "", `{}`},
	"POST /vmi/v1/reconfiguration/stop":                  {"OS", "", ""},
	"GET /vmi/v1/hosts":                                  {"OAS", "", ""},
	"GET /vmi/v1/hosts/{name}":                           {"OAS", "/vmi/v1/hosts/h1", ""},
	"PUT /vmi/v1/hosts/{name}/state":                     {"OS", "/vmi/v1/hosts/h1/state", `{"state":"draining"}`},
	"DELETE /vmi/v1/hosts/{name}":                        {"OS", "/vmi/v1/hosts/h1", ""},
	"POST /vmi/v1/accounting-listeners":                  {"OPS", "", `{"ids":["` + anID + `"],"intervalMs":1000}`},
	"POST /vmi/v1/accounting-listeners/deregister":       {"OPS", "", `{"ids":["` + anID + `"]}`},
	"GET /vmi/v1/events":                                 {"OPAS", "", ""},
	"POST /vmi/v1/accounting":                            {"S", "", `{"messages":[{"vee":"` + anID + `","seq":1,"fromMs":0,"toMs":1,"used":{}}]}`},
	"POST /vmi/v1/monitoring":                            {"S", "", `{"events":[{"type":"Agent","t0":1,"fqn":"a.b","value":1}]}`},
	"GET /vmi/v1/quotas":                                 {"OAS", "", ""},
	"GET /vmi/v1/quotas/{customer}":                      {"OPAS", "/vmi/v1/quotas/acme", ""},
	"PUT /vmi/v1/quotas/{customer}":                      {"OS", "/vmi/v1/quotas/acme", `{"limits":{}}`},
	"DELETE /vmi/v1/quotas/{customer}":                   {"OS", "/vmi/v1/quotas/acme", ""},
	"POST /vmi/v1/reservations":                          {"OPSQ", "", `{"vees":1,"vcpus":1,"memoryBytes":1073741824,"from":"2100-01-01T00:00:00Z","until":"2100-01-02T00:00:00Z"}`},
	"GET /vmi/v1/reservations":                           {"OPASQ", "", ""},
	"GET /vmi/v1/reservations/{id}":                      {"OPASQ", "/vmi/v1/reservations/" + anID, ""},
	"POST /vmi/v1/reservations/{id}/commit":              {"OPSQ", "/vmi/v1/reservations/" + anID + "/commit", ""},
	"POST /vmi/v1/reservations/{id}/cancel":              {"OPSQ", "/vmi/v1/reservations/" + anID + "/cancel", ""},
	"GET /vmi/v1/migrations":                             {"OAS", "", ""},
	"GET /vmi/v1/migrations/{id}":                        {"OAS", "/vmi/v1/migrations/x", ""},
	"POST /vmi/v1/migrations":                            {"OS", "", `{"vee":"` + anID + `"}`},
	"POST /vmi/v1/migrations/{id}/cancel":                {"OS", "/vmi/v1/migrations/x/cancel", ""},
	"PUT /vmi/v1/migrations/{id}/limit":                  {"OS", "/vmi/v1/migrations/x/limit", `{"bandwidthBytes":1}`},

	"GET /smi/v1/services":                                        {"OPAS", "", ""},
	"GET /smi/v1/watch/services":                                  {"OPAS", "", ""},
	"GET /smi/v1/services/{name}":                                 {"OPAS", "/smi/v1/services/shop", ""},
	"GET /smi/v1/services/{name}/manifest":                        {"OPAS", "/smi/v1/services/shop/manifest", ""},
	"GET /smi/v1/services/{name}/usage":                           {"OPAS", "/smi/v1/services/shop/usage", ""},
	"POST /smi/v1/services":                                       {"OPS", "", `{"manifest":"service: shop"}`},
	"POST /smi/v1/plan":                                           {"OPS", "", `{"manifest":"service: shop"}`},
	"PUT /smi/v1/services/{name}/components/{component}/replicas": {"OPS", "/smi/v1/services/shop/components/web/replicas", `{"replicas":2}`},
	"GET /smi/v1/services/{name}/rules":                           {"OPAS", "/smi/v1/services/shop/rules", ""},
	"PUT /smi/v1/services/{name}/components/{component}/rules":    {"OPS", "/smi/v1/services/shop/components/web/rules", `{"on":false}`},
	"POST /smi/v1/services/{name}/rules/replay":                   {"OPAS", "/smi/v1/services/shop/rules/replay", `{"samples":[{"kpi":"a","atMs":1,"value":1}]}`},
	"DELETE /smi/v1/services/{name}":                              {"OPS", "/smi/v1/services/shop", ""},
	"POST /smi/v1/services/{name}/sleep":                          {"OPS", "/smi/v1/services/shop/sleep", ""},
	"POST /smi/v1/services/{name}/wake":                           {"OPS", "/smi/v1/services/shop/wake", ""},
	"GET /smi/v1/events":                                          {"OPAS", "", ""},
	"GET /smi/v1/watch/events":                                    {"OPAS", "", ""},

	"GET /smi/v1/prices":                {"OPAS", "", ""},
	"PUT /smi/v1/prices":                {"OS", "", `{"file":"currency: EUR"}`},
	"GET /smi/v1/sla":                   {"OPAS", "", ""},
	"GET /smi/v1/offers":                {"OPAS", "", ""},
	"POST /smi/v1/offers":               {"OPS", "", `{"manifest":"service: shop"}`},
	"GET /smi/v1/offers/{id}":           {"OPAS", "/smi/v1/offers/alpha.o-aaaaaaaaaa", ""},
	"POST /smi/v1/offers/{id}/accept":   {"OPS", "/smi/v1/offers/alpha.o-aaaaaaaaaa/accept", ""},
	"GET /smi/v1/invoices":              {"OPAS", "", ""},
	"POST /smi/v1/invoices":             {"OS", "", `{"customer":"acme"}`},
	"GET /smi/v1/invoices/{number}":     {"OPAS", "/smi/v1/invoices/alpha-acme-000001", ""},
	"GET /smi/v1/draft":                 {"OPAS", "", ""},
	"GET /smi/v1/budgets":               {"OPAS", "", ""},
	"PUT /smi/v1/budgets/{customer}":    {"OS", "/smi/v1/budgets/acme", `{"limit":"10"}`},
	"DELETE /smi/v1/budgets/{customer}": {"OS", "/smi/v1/budgets/acme", ""},

	"GET /site/v1":                   {"OPA", "", ""},
	"GET /site/v1/tokens":            {"OA", "", ""},
	"POST /site/v1/tokens":           {"O", "", `{"name":"new","role":"auditor"}`},
	"DELETE /site/v1/tokens/{name}":  {"O", "/site/v1/tokens/nobody", ""},
	"POST /site/v1/invites":          {"O", "", `{}`},
	"GET /site/v1/members":           {"OA", "", ""},
	"POST /site/v1/members":          {"O", "", `{"name":"m2"}`},
	"DELETE /site/v1/members/{name}": {"O", "/site/v1/members/m9", ""},
	"POST /site/v1/compact":          {"O", "", ""},
	"GET /site/v1/audit":             {"OA", "", ""},

	"GET /site/v1/partners":                 {"OA", "", ""},
	"POST /site/v1/partners":                {"O", "", `{"token":"rsvf_x"}`},
	"POST /site/v1/partners/invites":        {"O", "", `{}`},
	"GET /site/v1/partners/{name}":          {"OA", "/site/v1/partners/beta", ""},
	"POST /site/v1/partners/{name}/leave":   {"O", "/site/v1/partners/beta/leave", `{}`},
	"POST /site/v1/partners/{name}/revoke":  {"O", "/site/v1/partners/beta/revoke", `{}`},
	"GET /site/v1/settlements":              {"OA", "", ""},
	"POST /site/v1/settlements":             {"O", "", `{"agreement":"beta.xaaaaaaaaa","period":"2026-10"}`},
	"POST /site/v1/partners/{name}/promote": {"O", "/site/v1/partners/beta/promote", `{"sure":true}`},
	"GET /site/v1/standbys":                 {"OA", "", ""},
	"GET /site/v1/images-elsewhere":         {"OA", "", ""},
	"POST /site/v1/authority/rotate":        {"O", "", `{}`},
	"POST /site/v1/preflight":               {"OA", "", `{"partner":"beta"}`},
	"GET /site/v1/agreements":               {"OA", "", ""},
	"POST /site/v1/agreements":              {"O", "", `{"partner":"beta","terms":{"id":"","lender":"alpha","borrower":"beta","from":"2026-01-01T00:00:00Z","until":"2027-01-01T00:00:00Z","noticeMs":0,"ceiling":{"vees":1,"vcpus":1,"memoryBytes":1,"diskBytes":1},"types":[],"currency":"EUR","places":2}}`},
	"GET /site/v1/agreements/{id}":          {"OA", "/site/v1/agreements/beta.aaaaaaaaaa", ""},
	"POST /site/v1/agreements/{id}/sign":    {"O", "/site/v1/agreements/beta.aaaaaaaaaa/sign", ""},
	"POST /site/v1/agreements/{id}/end":     {"O", "/site/v1/agreements/beta.aaaaaaaaaa/end", `{}`},
	"POST /site/v1/find":                    {"OA", "", `{"requirement":"here"}`},
	"GET /site/v1/published":                {"OA", "", ""},
	"PATCH /site/v1/published":              {"O", "", `{"power":"scarce"}`},

	"POST /monitor/v1/reports":                          {"H", "", `{"incarnation":"1","orders":""}`},
	"GET /monitor/v1/probes":                            {"OPAS", "", ""},
	"PATCH /monitor/v1/sources/{source}/probes/{probe}": {"OPS", "/monitor/v1/sources/h1/probes/cpu", `{"on":false}`},

	"POST /border/v1/invites":      {"O", "", ""},
	"GET /border/v1/status":        {"OA", "", ""},
	"POST /border/v1/announcement": {"B", "", `{"address":"1.2.3.4:1","underlay":"1.2.3.4","inside":"1.2.3.4:2","outside":"1.2.3.4:3","tunnel":"1.2.3.4:3","key":"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=","holds":0}`},
	"POST /border/v1/certificate":  {"B", "", `{"csr":"AA=="}`},

	"GET /member/v1/status":      {"S", "", ""},
	"POST /member/v1/defragment": {"S", "", ""},
	"POST /member/v1/images":     {"S", "", `{"manifest":"AA==","from":"m2:1"}`},

	"POST /vhi/v1/renew":       {"H", "", `{"report":{"host":"h1","incarnation":"1","seq":1,"address":"h1:1","version":"1","capacity":{"milliCPU":1,"memoryBytes":1,"diskBytes":1},"cpus":1,"diskFreeBytes":1,"drivers":[],"vees":[],"generation":0}}`},
	"POST /vhi/v1/certificate": {"H", "", `{"csr":"AA=="}`},
}

// stock is what plain handlers serve; they check for themselves.
var stock = map[string]struct{ may, path, body string }{
	"GET /v2/":                                    {"OPASHQB", "", ""},
	"DELETE /v2/{name}/manifests":                 {"OPS", "/v2/web/manifests/latest", ""},
	"GET /prometheus/api/v1/query":                {"OPAS", "", ""},
	"GET /prometheus/api/v1/labels":               {"OPAS", "", ""},
	"GET /prometheus/api/v1/series":               {"OPAS", "", ""},
	"GET /prometheus/api/v1/label/service/values": {"OPAS", "", ""},
	"GET /metrics":                                {"OAS", "", ""},
	"GET /metrics/hosts/h9":                       {"OAS", "", ""},
	"GET " + occi.QueryPath:                       {"OPAS", "", ""},
	"POST " + occi.QueryPath:                      {"OPS", "", ""},
	"GET occi compute":                            {"OPAS", occi.Base + "/compute/", ""},
	"POST occi compute":                           {"OPS", occi.Base + "/compute/", ""},
	"DELETE occi compute":                         {"OPS", occi.Base + "/compute/" + anID, ""},
}

var callers = map[rune]identity.Caller{
	'O': {ID: "operator", Role: identity.Operator},
	'P': {ID: "provider", Role: identity.Provider, Customer: "acme"},
	'A': {ID: "auditor", Role: identity.Auditor},
	'S': {ID: "site", Role: identity.SiteRole},
	'H': {ID: "host", Role: identity.HostRole, Host: "h1"},
	'B': {ID: "proxy", Role: identity.ProxyRole},
	'Q': {ID: "partner", Role: identity.Partner},
}

// trail keeps audit entries.
type trail struct {
	mu      sync.Mutex
	entries []audit.Entry
}

func (t *trail) Record(e audit.Entry) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.entries = append(t.entries, e)
}

// take what was recorded, n entries or more: an answer may be here before its entry.
func (t *trail) take(n int) []audit.Entry {
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		t.mu.Lock()
		if all := t.entries; len(all) >= n || time.Now().After(deadline) {
			t.entries = nil
			t.mu.Unlock()
			return all
		}
		t.mu.Unlock()
	}
}

// TestEveryRoute calls every operation of a site as every role: who may is as the table says,
// and every call that changes something, and every one that is refused, is in the audit log
// with who called.
func TestEveryRoute(t *testing.T) {
	cfg := config(t)
	cfg.Log = slog.New(slog.DiscardHandler)
	if err := cfg.check(); err != nil {
		t.Fatal(err)
	}
	s := opened(t, cfg)
	kept := &trail{}
	book := receipt.NewBook(store.NewCollection[receipt.Receipt](s.store, "receipt"), time.Now, cfg.Log)
	api := s.faces(kept, book)
	ctx, stop := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { _ = s.veem.Run(ctx) })
	running.Go(func() { _ = s.sm.Run(ctx) })
	running.Go(func() { book.Run(ctx) })
	defer running.Wait()
	defer stop()
	var there []string
	for _, op := range api.Operations() {
		if op.Path != vhi.JoinPath && op.Path != border.JoinPath && op.Path != admin.JoinPath { // open: the token is the proof
			there = append(there, op.Method+" "+op.Path)
		}
	}
	slices.Sort(there)
	if table := slices.Sorted(maps.Keys(routes)); !slices.Equal(there, table) {
		t.Errorf("operations\n%s\nand in the table\n%s", strings.Join(there, "\n"), strings.Join(table, "\n"))
	}
	srv := httptest.NewServer(api.Handler(func(r *http.Request) (identity.Caller, error) {
		return callers[rune(r.Header.Get("Role")[0])], nil
	}))
	defer srv.Close()
	all := maps.Clone(routes)
	maps.Copy(all, stock)
	for _, name := range slices.Sorted(maps.Keys(all)) {
		for letter, caller := range callers {
			c := all[name]
			method, path, _ := strings.Cut(name, " ")
			if c.path != "" {
				path = c.path
			}
			own := strings.NewReplacer("~", string(letter))
			path = own.Replace(path)
			status := call(t, srv, method, path, own.Replace(c.body), letter)
			may := strings.ContainsRune(c.may, letter)
			if name == "POST /site/v1/partners" && status == http.StatusUnauthorized {
				may = false // it was let in; what proves more is the token, and the example's is none
			}
			if denied := status == http.StatusForbidden || status == http.StatusUnauthorized; denied == may {
				t.Errorf("%s as %s: status %d; may: %v", name, caller.Role, status, may)
			}
			if status == http.StatusUnprocessableEntity || status >= 500 && status != http.StatusNotImplemented {
				t.Errorf("%s as %s: status %d: the example is none, or the site has failed", name, caller.Role, status)
			}
			want := 1
			reads := method == http.MethodGet || strings.ContainsRune(c.may, 'A')
			if may && reads || may && (letter == 'H' || letter == 'B') && status < 400 || may && strings.HasPrefix(path, "/v2/") && method != http.MethodDelete {
				want = 0
			}
			entries := kept.take(want)
			if len(entries) != want {
				t.Errorf("%s as %s (status %d): %d entries in the audit log, want %d: %+v", name, caller.Role, status, len(entries), want, entries)
				continue
			}
			if want == 1 {
				e := entries[0]
				if e.By != caller.ID || e.Role != string(caller.Role) || e.Call != method+" "+path || e.Status != status || (e.Outcome == audit.Denied) == may || e.Object == "" {
					t.Errorf("%s as %s: recorded as %+v", name, caller.Role, e)
				}
			}
		}
	}
}

// opened is a site that leads and is not served, until the test ends.
func opened(t *testing.T, cfg Config) *site {
	t.Helper()
	m := &member{cfg: cfg, started: time.Now()}
	t.Cleanup(m.close)
	if err := m.open(t.Context()); err != nil {
		t.Fatal(err)
	}
	term, err := m.store.Lead(t.Context(), leaderKey, leader{}, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	s := m.newSite(term)
	t.Cleanup(func() {
		m.site.Store(nil)
		s.close()
		if err := term.Resign(context.Background()); err != nil {
			t.Error(err)
		}
	})
	if err := s.open(t.Context()); err != nil {
		t.Fatal(err)
	}
	m.site.Store(s)
	return s
}

// call and return the status; of a watch only the head is read.
func call(t *testing.T, srv *httptest.Server, method, path, body string, role rune) int {
	t.Helper()
	var b io.Reader
	if body != "" {
		b = strings.NewReader(body)
	}
	req, err := http.NewRequestWithContext(t.Context(), method, srv.URL+path, b)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Role", string(role))
	resp, err := srv.Client().Do(req)
	if err != nil {
		t.Fatal(fmt.Errorf("%s %s as %c: %w", method, path, role, err))
	}
	resp.Body.Close()
	return resp.StatusCode
}
