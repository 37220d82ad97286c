package export

import (
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/reservoir-cloud/reservoir/internal/identity"
)

func TestHandler(t *testing.T) {
	r := New("site", "v1")
	r.Gauge("reservoir_test", "A gauge.", nil, func() float64 { return 3 })
	r.Counter("reservoir_tests_total", "A counter.", map[string]string{"a": "b"}, func() float64 { return 4 })
	r.Counters("reservoir_refused_total", "Counters.", "reason", func() map[string]float64 { return map[string]float64{"late": 5} })
	ask := func(c identity.Caller) (int, string) {
		w := httptest.NewRecorder()
		req := httptest.NewRequest("GET", Path, nil)
		r.Handler(identity.Operator).ServeHTTP(w, req.WithContext(identity.With(req.Context(), c)))
		return w.Code, w.Body.String()
	}
	status, text := ask(identity.Caller{Role: identity.Operator})
	for _, line := range []string{
		"reservoir_test 3", `reservoir_tests_total{a="b"} 4`, `reservoir_refused_total{reason="late"} 5`, `reservoir_build_info{process="site",version="v1"} 1`, "go_goroutines ", "process_resident_memory_bytes ",
	} {
		if !strings.Contains(text, line) {
			t.Errorf("status %d: no %q in\n%s", status, line, text)
		}
	}
	for _, c := range []identity.Caller{{}, {Role: identity.Provider, Customer: "acme"}, {Role: identity.HostRole, Host: "h1"}} {
		if status, text := ask(c); status != 403 || strings.Contains(text, "reservoir_test") {
			t.Errorf("%+v gets %d %s", c, status, text)
		}
	}
}
