package store

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/prometheus/storage/remote"

	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/monitor"
)

// receiver of remote writes that is away at first.
type receiver struct {
	mu   sync.Mutex
	away bool
	got  []string
	news chan struct{} // a word after each write that was taken
}

func (r *receiver) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.away {
		http.Error(w, "away", http.StatusServiceUnavailable)
		return
	}
	all, err := remote.DecodeWriteRequest(req.Body)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	for _, series := range all.Timeseries {
		var labels []string
		for _, l := range series.Labels {
			labels = append(labels, l.Name+"="+l.Value)
		}
		for _, s := range series.Samples {
			r.got = append(r.got, fmt.Sprint(strings.Join(labels, " "), " ", s.Value))
		}
	}
	select {
	case r.news <- struct{}{}:
	default:
	}
}

// TestRemoteWrite: samples go to the receiver too, those that were measured while it was
// away once it is back.
func TestRemoteWrite(t *testing.T) {
	r := &receiver{away: true, news: make(chan struct{}, 1)}
	srv := httptest.NewServer(r)
	defer srv.Close()
	c := &clock{now: time.Now()} // the sender passes over what is from before it started
	s, err := Open(Config{Dir: t.TempDir(), WriteTo: srv.URL + "/api/v1/write", Now: c.Now})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		srv.CloseClientConnections()
	}()
	c.set(c.Now().Add(10 * time.Second))
	put(t, s, kpi(replica("acme", "shop", 0), c.Now(), "queue_size", 7))
	r.mu.Lock()
	r.away = false
	r.mu.Unlock()
	// The sender looks at the log when something is written, else rarely.
	for came := false; !came; {
		c.set(c.Now().Add(time.Millisecond))
		put(t, s, kpi(replica("acme", "shop", 1), c.Now(), "queue_size", 8))
		select {
		case <-r.news:
			came = true
		case <-t.Context().Done():
			t.Fatal("nothing came")
		case <-time.After(50 * time.Millisecond):
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if want := "__name__=queue_size component=web customer=acme replica=0 service=shop site=alpha vee=alpha.acmeshop0 7"; !slices.Contains(r.got, want) {
		t.Errorf("came %q", r.got)
	}
}

func TestRemoteWriteNowhere(t *testing.T) {
	for _, to := range []string{"nowhere", "ftp://x/y", "http://"} {
		if _, err := Open(Config{Dir: t.TempDir(), WriteTo: to, Now: time.Now}); !fault.Has(err, fault.Malformed) {
			t.Errorf("%q: %v", to, err)
		}
	}
}

// asked is a server elsewhere that remembers what it was asked.
type asked struct {
	expr string
	sel  monitor.Selection
}

func (a *asked) LabelNames(_ context.Context, s monitor.Selection) ([]string, bool, error) {
	a.sel = s
	return nil, false, nil
}

func (a *asked) LabelValues(ctx context.Context, _ string, s monitor.Selection) ([]string, bool, error) {
	return a.LabelNames(ctx, s)
}

func (a *asked) Series(ctx context.Context, s monitor.Selection) ([]map[string]string, bool, error) {
	_, _, err := a.LabelNames(ctx, s)
	return nil, false, err
}

func (a *asked) Query(_ context.Context, expr string, _ time.Time) ([]monitor.Series, error) {
	a.expr = expr
	return nil, nil
}

func (a *asked) QueryRange(_ context.Context, expr string, _, _ time.Time, _ time.Duration) ([]monitor.Series, error) {
	a.expr = expr
	return nil, nil
}

// TestElsewhere: what leaves for another server is confined already.
func TestElsewhere(t *testing.T) {
	a := &asked{}
	q := Elsewhere(a).Querier(monitor.Scope{Customer: "acme"})
	if _, err := q.Query(t.Context(), `sum(rate(x{customer="rival"}[1m]))`, start); err != nil || a.expr != `sum(rate(x{customer="acme",customer="rival"}[1m]))` && a.expr != `sum(rate(x{customer="rival",customer="acme"}[1m]))` {
		t.Errorf("asked %s, %v", a.expr, err)
	}
	if _, err := q.QueryRange(t.Context(), "y", start, start.Add(time.Minute), time.Second); err != nil || a.expr != `y{customer="acme"}` {
		t.Errorf("asked %s, %v", a.expr, err)
	}
	a.expr = ""
	if _, err := q.QueryRange(t.Context(), "y", start, start.Add(-time.Minute), time.Second); !fault.Has(err, fault.Malformed) || a.expr != "" {
		t.Errorf("backwards: asked %q, %v", a.expr, err)
	}
	e := Elsewhere(a)
	sel := monitor.Selection{Scope: monitor.Scope{Customer: "acme"}, To: start}
	_, _, e1 := e.LabelNames(t.Context(), sel)
	if e1 != nil || !slices.Equal(a.sel.Match, []string{`{customer="acme"}`}) || a.sel.Scope != (monitor.Scope{}) {
		t.Errorf("asked %+v, %v", a.sel, e1)
	}
	sel.Match = []string{"x", `{customer="rival"}`}
	_, _, e1 = e.LabelValues(t.Context(), "customer", sel)
	want := []string{`{__name__="x",customer="acme"}`, `{customer="rival",customer="acme"}`}
	if e1 != nil || !slices.Equal(a.sel.Match, want) {
		t.Errorf("asked %+v, %v", a.sel, e1)
	}
	sel.Match, a.sel = []string{`x or y`}, monitor.Selection{}
	if _, _, err := e.Series(t.Context(), sel); !fault.Has(err, fault.Malformed) || a.sel.Match != nil {
		t.Errorf("asked %+v, %v", a.sel, err)
	}
	if _, err := q.Query(t.Context(), "y{", start); !fault.Has(err, fault.Malformed) || a.expr != "" {
		t.Errorf("asked %q, %v", a.expr, err)
	}
}
