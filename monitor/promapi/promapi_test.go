package promapi

import (
	"context"
	"errors"
	"io"
	"math"
	"net/http"
	"net/http/httptest"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/monitor"
)

var start = time.Date(2026, 3, 1, 12, 0, 0, 500_000_000, time.UTC)

// answers is a repository whose expressions say what is to be answered.
type answers struct {
	scope monitor.Scope
	found map[string][]monitor.Series
	errs  map[string]error
	from  time.Time
	to    time.Time
	step  time.Duration

	sel   monitor.Selection
	label string
	more  bool
}

func (a *answers) LabelNames(_ context.Context, s monitor.Selection) ([]string, bool, error) {
	a.sel = s
	return []string{"customer", "service"}, a.more, a.errs["labels"]
}

func (a *answers) LabelValues(_ context.Context, label string, s monitor.Selection) ([]string, bool, error) {
	a.label, a.sel = label, s
	return []string{}, a.more, nil
}

func (a *answers) Series(_ context.Context, s monitor.Selection) ([]map[string]string, bool, error) {
	a.sel = s
	return []map[string]string{{"__name__": "x", "customer": "acme"}}, a.more, nil
}

func (a *answers) Querier(s monitor.Scope) monitor.Querier { a.scope = s; return a }

func (a *answers) Query(_ context.Context, expr string, at time.Time) ([]monitor.Series, error) {
	a.from = at
	return a.found[expr], a.errs[expr]
}

func (a *answers) QueryRange(_ context.Context, expr string, from, to time.Time, step time.Duration) ([]monitor.Series, error) {
	a.from, a.to, a.step = from, to, step
	return a.found[expr], a.errs[expr]
}

func serve(t *testing.T, a *answers, scope func(context.Context) (monitor.Scope, error)) (Client, *httptest.Server) {
	t.Helper()
	srv := httptest.NewServer(Handler(a, scope, func() time.Time { return start }))
	t.Cleanup(srv.Close)
	return Client{Base: srv.URL + Prefix, HTTP: srv.Client()}, srv
}

func everybody(context.Context) (monitor.Scope, error) { return monitor.Scope{Customer: "acme"}, nil }

func TestThereAndBack(t *testing.T) {
	labels := map[string]string{"__name__": "queue_size", "replica": "0"}
	a := &answers{found: map[string][]monitor.Series{
		"vector": {{Labels: labels, Points: []monitor.Point{{At: start, Value: 1.5}}}, {Labels: map[string]string{}, Points: []monitor.Point{{At: start, Value: math.Inf(-1)}}}},
		"scalar": {{Points: []monitor.Point{{At: start, Value: 3}}}},
		"matrix": {{Labels: labels, Points: []monitor.Point{{At: start, Value: 1}, {At: start.Add(time.Second), Value: 1e300}}}},
		"none":   {},
	}}
	c, _ := serve(t, a, everybody)
	for _, expr := range []string{"vector", "scalar", "none"} {
		got, err := c.Query(t.Context(), expr, start)
		if err != nil || len(got) != len(a.found[expr]) {
			t.Fatalf("%s: %v, %v", expr, got, err)
		}
		for i := range got {
			if !same(got[i], a.found[expr][i]) {
				t.Errorf("%s: %+v, want %+v", expr, got[i], a.found[expr][i])
			}
		}
	}
	if a.scope != (monitor.Scope{Customer: "acme"}) || !a.from.Equal(start) {
		t.Errorf("asked for %+v at %v", a.scope, a.from)
	}
	got, err := c.QueryRange(t.Context(), "matrix", start, start.Add(time.Minute), 1500*time.Millisecond)
	if err != nil || len(got) != 1 || !same(got[0], a.found["matrix"][0]) {
		t.Errorf("%+v, %v", got, err)
	}
	if !a.from.Equal(start) || !a.to.Equal(start.Add(time.Minute)) || a.step != 1500*time.Millisecond {
		t.Errorf("range %v to %v every %v", a.from, a.to, a.step)
	}
}

func same(a, b monitor.Series) bool {
	if !reflect.DeepEqual(a.Labels, b.Labels) || len(a.Points) != len(b.Points) {
		return false
	}
	for i := range a.Points {
		if !a.Points[i].At.Equal(b.Points[i].At) || a.Points[i].Value != b.Points[i].Value {
			return false
		}
	}
	return true
}

// TestStockClient reads what a client of another maker sends and gets.
func TestStockClient(t *testing.T) {
	a := &answers{found: map[string][]monitor.Series{"x": {{Labels: map[string]string{"a": "b"}, Points: []monitor.Point{{At: start, Value: math.NaN()}}}}}}
	_, srv := serve(t, a, everybody)
	for path, want := range map[string]string{
		"/api/v1/query?query=x":                       `{"status":"success","data":{"resultType":"vector","result":[{"metric":{"a":"b"},"value":[1772366400.500,"NaN"]}]}}`,
		"/api/v1/query_range?query=x&step=15&start=0": `{"status":"success","data":{"resultType":"matrix","result":[{"metric":{"a":"b"},"values":[[1772366400.500,"NaN"]]}]}}`,
		"/api/v1/query_range?query=x&step=1m":         `"success"`,
		"/api/v1/query_range?query=x&step=often":      `"errorType":"bad_data"`,
		"/api/v1/query?query=x&time=noon":             `"errorType":"bad_data"`,
		"/api/v1/query?query=none":                    `"result":[]`,
	} {
		resp, err := srv.Client().Get(srv.URL + Prefix + path)
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || !strings.Contains(string(b), want) {
			t.Errorf("%s: %s", path, b)
		}
	}
}

// What there is, as a stock client asks for it, and through our own client and back.
func TestCatalogue(t *testing.T) {
	a := &answers{errs: map[string]error{}}
	c, srv := serve(t, a, everybody)
	get := func(path string) (string, int) {
		resp, err := srv.Client().Get(srv.URL + Prefix + path)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(string(b)), resp.StatusCode
	}
	for path, want := range map[string]string{
		"/api/v1/labels":                                   `{"status":"success","data":["customer","service"]}`,
		"/api/v1/label/service/values":                     `{"status":"success","data":[]}`,
		"/api/v1/label/__name__/values?limit=5":            `{"status":"success","data":[]}`,
		"/api/v1/series?match[]=x&match[]=y&start=0&end=9": `{"status":"success","data":[{"__name__":"x","customer":"acme"}]}`,
		"/api/v1/series":                                   `"errorType":"bad_data"`,
		"/api/v1/labels?limit=-1":                          `"errorType":"bad_data"`,
		"/api/v1/labels?start=noon":                        `"errorType":"bad_data"`,
		"/api/v1/label/a%7Db/values":                       `"errorType":"bad_data"`,
		"/api/v1/label/..%2F..%2Fx/values":                 `"errorType":"bad_data"`,
	} {
		a.sel = monitor.Selection{}
		got, status := get(path)
		if !strings.Contains(got, want) || (status == 200) != strings.HasPrefix(want, "{") {
			t.Errorf("%s: %d %s", path, status, got)
		}
		// Nothing in the request says whose series they are.
		if status == 200 && a.sel.Scope != (monitor.Scope{Customer: "acme"}) {
			t.Errorf("%s: asked for %+v", path, a.sel)
		}
	}
	want := monitor.Selection{Match: []string{"x", `{customer="rival"}`}, From: start, To: start.Add(time.Hour), Limit: 7}
	a.more = true
	names, more, err := c.LabelNames(t.Context(), want)
	if err != nil || !more || len(names) != 2 {
		t.Errorf("names %v, %v, %v", names, more, err)
	}
	got := a.sel
	want.Scope = monitor.Scope{Customer: "acme"}
	if got.From, got.To = got.From.In(start.Location()), got.To.In(start.Location()); !reflect.DeepEqual(got, want) {
		t.Errorf("asked for %+v, want %+v", got, want)
	}
	a.more = false
	values, more, err := c.LabelValues(t.Context(), "service", monitor.Selection{To: start})
	if err != nil || more || len(values) != 0 || a.label != "service" || !a.sel.From.IsZero() {
		t.Errorf("values %v, %v, %v of %q, asked for %+v", values, more, err, a.label, a.sel)
	}
	series, _, err := c.Series(t.Context(), want)
	if err != nil || len(series) != 1 || series[0]["customer"] != "acme" {
		t.Errorf("series %v, %v", series, err)
	}
	a.errs["labels"] = fault.New(fault.TooLarge, "too much")
	if _, _, err := c.LabelNames(t.Context(), want); !fault.Has(err, fault.TooLarge) {
		t.Errorf("too much: %v", err)
	}
	denied, _ := serve(t, a, func(context.Context) (monitor.Scope, error) {
		return monitor.Scope{}, fault.New(fault.Denied, "not you")
	})
	if _, _, err := denied.Series(t.Context(), want); err == nil || !strings.Contains(err.Error(), "not you") {
		t.Errorf("denied: %v", err)
	}
}

func TestFaults(t *testing.T) {
	a := &answers{errs: map[string]error{
		"bad": fault.New(fault.Malformed, "what?"), "much": fault.New(fault.TooLarge, "too much"), "slow": fault.New(fault.Timeout, "too slow"),
		"away": fault.New(fault.Unavailable, "away"), "broken": errors.New("disk"),
	}}
	c, srv := serve(t, a, everybody)
	for expr, want := range map[string]fault.Code{"bad": fault.Malformed, "much": fault.TooLarge, "slow": fault.Timeout, "away": fault.Unavailable, "broken": fault.Internal} {
		if _, err := c.Query(t.Context(), expr, start); !fault.Has(err, want) {
			t.Errorf("%s: %v", expr, err)
		}
	}
	denied, _ := serve(t, a, func(context.Context) (monitor.Scope, error) {
		return monitor.Scope{}, fault.New(fault.Denied, "not you")
	})
	if _, err := denied.Query(t.Context(), "x", start); err == nil || !strings.Contains(err.Error(), "not you") {
		t.Errorf("denied: %v", err)
	}
	srv.Close()
	if _, err := c.Query(t.Context(), "x", start); !fault.Has(err, fault.Unavailable) {
		t.Errorf("nobody there: %v", err)
	}
	for _, answer := range []string{"", "<html>", `{"status":"success"}`, `{"status":"success","data":{"resultType":"vector","result":[{"metric":{}}]}}`, `{"status":"success","data":{"resultType":"string","result":[1,"x"]}}`,
		`{"status":"success","data":{"resultType":"vector","result":[{"metric":{},"value":[1e300,"1"]}]}}`, `{"status":"success","data":{"resultType":"scalar","result":["x",1]}}`} {
		srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, answer) }))
		if got, err := (Client{Base: srv.URL, HTTP: srv.Client()}).Query(t.Context(), "x", start); err == nil {
			t.Errorf("%q is taken for %+v", answer, got)
		}
		srv.Close()
	}
}

func FuzzPoint(f *testing.F) {
	f.Add(`[1.5,"NaN"]`)
	f.Add(`[0,"-Inf"]`)
	f.Fuzz(func(t *testing.T, text string) {
		var p, q Point
		if p.UnmarshalJSON([]byte(text)) != nil {
			return
		}
		b, err := p.MarshalJSON()
		if err != nil || q.UnmarshalJSON(b) != nil {
			t.Fatalf("%q is written as %q: %v", text, b, err)
		}
		if !q.At.Equal(p.At) || q.Value != p.Value && !math.IsNaN(p.Value) {
			t.Errorf("%q is %v, and then %v", text, p, q)
		}
	})
}
