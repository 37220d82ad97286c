package store

import (
	"fmt"
	"log/slog"
	"maps"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/prometheus/promql/parser"
	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/monitor"
	"github.com/reservoir-cloud/reservoir/vee"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, goleak.IgnoreTopFunction("go.opencensus.io/stats/view.(*worker).start"))
}

var start = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// clock that tests move.
type clock struct {
	mu  sync.Mutex
	now time.Time
}

func (c *clock) Now() time.Time { c.mu.Lock(); defer c.mu.Unlock(); return c.now }
func (c *clock) set(t time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = t
}

func open(t *testing.T, cfg Config) (*Store, *clock) {
	t.Helper()
	c := &clock{now: start}
	if cfg.Dir == "" {
		cfg.Dir = t.TempDir()
	}
	cfg.Now, cfg.Log = c.Now, slog.New(slog.DiscardHandler)
	s, err := Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s, c
}

func replica(customer, service string, n int) monitor.Subject {
	return monitor.Subject{Site: "alpha", Customer: customer, Service: service, Component: "web", Replica: fmt.Sprint(n), VEE: vee.ID(fmt.Sprintf("alpha.%s%s%d", customer, service, n))}
}

func kpi(of monitor.Subject, at time.Time, field string, value float64) monitor.Measurement {
	return monitor.Measurement{Subject: of, Kind: monitor.KPIKind, At: at, Values: []monitor.Value{{Field: field, Value: value}}}
}

func put(t *testing.T, s *Store, ms ...monitor.Measurement) monitor.Receipt {
	t.Helper()
	r, err := s.Append(t.Context(), ms)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func ask(t *testing.T, q monitor.Querier, expr string, at time.Time) map[string]float64 {
	t.Helper()
	all, err := q.Query(t.Context(), expr, at)
	if err != nil {
		t.Fatalf("%s: %v", expr, err)
	}
	got := map[string]float64{}
	for _, x := range all {
		got[text(x.Labels)] = x.Points[0].Value
	}
	return got
}

func text(l map[string]string) string {
	var b strings.Builder
	for _, k := range slices.Sorted(maps.Keys(l)) {
		fmt.Fprintf(&b, "%s=%s ", k, l[k])
	}
	return strings.TrimSpace(b.String())
}

func TestStoreAndQuery(t *testing.T) {
	s, _ := open(t, Config{})
	web := replica("acme", "shop", 0)
	host := monitor.Measurement{Subject: monitor.HostSubject("alpha", "h1"), Kind: monitor.HostKind, At: start, Values: []monitor.Value{{Field: "host_cpus", Value: 4}}}
	labelled := monitor.Measurement{Subject: web, Kind: monitor.KPIKind, At: start, Values: []monitor.Value{
		{Field: "requests_total", Labels: `code="200"`, Value: 7}, {Field: "requests_total", Labels: `code="500",customer="evil"`, Value: 1},
	}}
	if r := put(t, s, kpi(web, start, "queue_size", 12), host, labelled); r.Stored != 4 || len(r.Refused) > 0 {
		t.Fatalf("receipt %+v", r)
	}
	all := s.Querier(monitor.Scope{})
	for expr, want := range map[string]map[string]float64{
		"queue_size":                       {"__name__=queue_size component=web customer=acme replica=0 service=shop site=alpha vee=alpha.acmeshop0": 12},
		"host_cpus * 2":                    {"host=h1 site=alpha": 8},
		"1 + 1":                            {"": 2},
		"nothing":                          {},
		"sum(queue_size) by (service) / 0": {"service=shop": math.Inf(1)},
		`requests_total{exported_customer="evil"}`: {"__name__=requests_total code=500 component=web customer=acme exported_customer=evil replica=0 service=shop site=alpha vee=alpha.acmeshop0": 1},
	} {
		if got := ask(t, all, expr, start.Add(time.Second)); !maps.Equal(got, want) {
			t.Errorf("%s = %v, want %v", expr, got, want)
		}
	}
	if got := ask(t, all, "queue_size", start.Add(6*time.Minute)); len(got) > 0 {
		t.Errorf("six minutes later there is still %v", got)
	}
}

func TestRange(t *testing.T) {
	s, c := open(t, Config{})
	for i := range 7 {
		c.set(start.Add(time.Duration(i) * 10 * time.Second))
		put(t, s, kpi(replica("acme", "shop", 0), c.Now(), "queue_size", float64(i)))
	}
	got, err := s.Querier(monitor.Scope{Customer: "acme"}).QueryRange(t.Context(), "queue_size", start, start.Add(time.Minute), 20*time.Second)
	if err != nil || len(got) != 1 {
		t.Fatal(got, err)
	}
	var values []float64
	for _, p := range got[0].Points {
		values = append(values, p.Value)
	}
	if !slices.Equal(values, []float64{0, 2, 4, 6}) {
		t.Errorf("range %v", values)
	}
}

// TestBadMeasurements shows that each kind of bad input is counted by its reason and keeps
// nothing else out.
func TestBadMeasurements(t *testing.T) {
	s, c := open(t, Config{Late: 10 * time.Minute, ServiceSeries: 5, Series: 9, ServiceRate: 20})
	web := replica("acme", "shop", 0)
	c.set(start.Add(time.Hour))
	now := c.Now()
	put(t, s, kpi(web, now, "queue_size", 1))
	wide := func(customer string, n int) (ms []monitor.Measurement) {
		for i := range n {
			ms = append(ms, kpi(replica(customer, "shop", 1), now, fmt.Sprint("field_", i), 1))
		}
		return ms
	}
	for _, c := range []struct {
		name string
		ms   []monitor.Measurement
		want monitor.Receipt
	}{
		{"out of order", []monitor.Measurement{kpi(web, now.Add(-time.Minute), "queue_size", 3), kpi(web, now.Add(-2*time.Minute), "queue_size", 3)}, monitor.Receipt{Stored: 2}},
		{"late", []monitor.Measurement{kpi(web, now.Add(-11*time.Minute), "queue_size", 3)}, monitor.Receipt{Refused: map[monitor.Reason]int{monitor.Late: 1}}},
		{"again", []monitor.Measurement{kpi(web, now, "queue_size", 1)}, monitor.Receipt{Stored: 1}},
		{"contradicting", []monitor.Measurement{kpi(web, now, "queue_size", 2)}, monitor.Receipt{Refused: map[monitor.Reason]int{monitor.Duplicate: 1}}},
		{"a little ahead", []monitor.Measurement{kpi(web, now.Add(50*time.Second), "queue_size", 2)}, monitor.Receipt{Stored: 1}},
		{"future", []monitor.Measurement{kpi(web, now.Add(2*time.Minute), "queue_size", 2)}, monitor.Receipt{Refused: map[monitor.Reason]int{monitor.Future: 1}}},
		{"no number", []monitor.Measurement{kpi(web, now, "x", math.NaN()), kpi(web, now, "x", math.Inf(-1)), kpi(web, now, "x", 4)}, monitor.Receipt{Stored: 1, Refused: map[monitor.Reason]int{monitor.NotFinite: 2}}},
		{"names", []monitor.Measurement{kpi(web, now, "", 1), kpi(web, now, "queue.size", 1), kpi(web, now, "vee_cpu_seconds_total", 1), kpi(web, now, "__name__", 1)}, monitor.Receipt{Refused: map[monitor.Reason]int{monitor.BadName: 4}}},
		{"too many series of a service", wide("acme", 7), monitor.Receipt{Stored: 3, Refused: map[monitor.Reason]int{monitor.TooWide: 4}}},
		{"another service has room", wide("rival", 1), monitor.Receipt{Stored: 1}},
		{"too many of all", wide("third", 6), monitor.Receipt{Stored: 3, Refused: map[monitor.Reason]int{monitor.TooWide: 3}}},
	} {
		if got := put(t, s, c.ms...); got.Stored != c.want.Stored || !maps.Equal(got.Refused, c.want.Refused) {
			t.Errorf("%s: %+v, want %+v", c.name, got, c.want)
		}
	}
	var flood []monitor.Measurement
	for range 20_000 {
		flood = append(flood, kpi(web, now, "queue_size", 1))
	}
	flood = append(flood, kpi(replica("rival", "shop", 1), now, "field_0", 1))
	if r := put(t, s, flood...); r.Refused[monitor.TooMany] < 19_800 || r.Stored < 1 || r.Stored > 201 {
		t.Errorf("flood: %+v", r)
	}
	if st := s.Stats(); st.Series != 9 || st.Total.Refused[monitor.Future] != 1 {
		t.Errorf("stats %+v", st)
	}
}

// TestReopened shows that what was measured, the count of series and their limits outlive
// the process.
func TestReopened(t *testing.T) {
	dir := t.TempDir()
	cfg := Config{Dir: dir, ServiceSeries: 2}
	c := &clock{now: start}
	cfg.Now = c.Now
	s, err := Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	put(t, s, kpi(replica("acme", "shop", 0), start, "a", 1), kpi(replica("acme", "shop", 0), start, "b", 2))
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s, _ = open(t, cfg)
	if got := ask(t, s.Querier(monitor.Scope{}), `sum({__name__=~"a|b"})`, start); got[""] != 3 {
		t.Errorf("after a restart: %v", got)
	}
	if r := put(t, s, kpi(replica("acme", "shop", 0), start, "c", 1), kpi(replica("acme", "shop", 0), start.Add(time.Second), "a", 1)); r.Stored != 1 || r.Refused[monitor.TooWide] != 1 {
		t.Errorf("after a restart: %+v", r)
	}
}

func TestEnd(t *testing.T) {
	s, c := open(t, Config{})
	gone, stays := replica("acme", "shop", 0), replica("acme", "shop", 1)
	put(t, s, kpi(gone, start, "queue_size", 5), kpi(stays, start, "queue_size", 7))
	c.set(start.Add(10 * time.Second))
	if err := s.End(t.Context(), gone, c.Now()); err != nil {
		t.Fatal(err)
	}
	all := s.Querier(monitor.Scope{})
	if got := ask(t, all, "sum(queue_size)", start.Add(5*time.Second)); got[""] != 12 {
		t.Errorf("before its end: %v", got)
	}
	if got := ask(t, all, "sum(queue_size)", start.Add(11*time.Second)); got[""] != 7 {
		t.Errorf("after its end: %v", got)
	}
	c.set(start.Add(20 * time.Second))
	put(t, s, kpi(gone, c.Now(), "queue_size", 1))
	if got := ask(t, all, "sum(queue_size)", c.Now()); got[""] != 8 {
		t.Errorf("when it is back: %v", got)
	}
}

func TestQueryFaults(t *testing.T) {
	s, _ := open(t, Config{})
	put(t, s, kpi(replica("acme", "shop", 0), start, "a", 1))
	q := s.Querier(monitor.Scope{})
	for expr, want := range map[string]fault.Code{
		"sum(": fault.Malformed, `"text"`: fault.Malformed, "": fault.Malformed, `{__name__=~".*"}`: fault.Malformed,
		"nonsense(a)": fault.Malformed, strings.Repeat("a+", 10_000) + "a": fault.TooLarge,
		`info(a)`: fault.Malformed, // an experimental function, which reads what no selector names
	} {
		if _, err := q.Query(t.Context(), expr, start); !fault.Has(err, want) {
			t.Errorf("%.40q: %v, want %s", expr, err, want)
		}
	}
	for name, c := range map[string]struct {
		to   time.Time
		step time.Duration
		want fault.Code
	}{"backwards": {start.Add(-1), time.Second, fault.Malformed}, "no step": {start, 0, fault.Malformed}, "too fine": {start.Add(time.Hour), time.Millisecond, fault.TooLarge}} {
		if _, err := q.QueryRange(t.Context(), "a", start, c.to, c.step); !fault.Has(err, c.want) {
			t.Errorf("%s: %v, want %s", name, err, c.want)
		}
	}
	if _, err := s.Querier(monitor.Scope{Service: "shop"}).Query(t.Context(), "a", start); !fault.Has(err, fault.Denied) {
		t.Errorf("a service of nobody: %v", err)
	}
}

// TestIsolation tries to read another service's measurements in every way that PromQL has.
func TestIsolation(t *testing.T) {
	s, _ := open(t, Config{})
	secret := map[string]bool{}
	for i, of := range []monitor.Subject{replica("acme", "shop", 0), replica("acme", "blog", 0), replica("rival", "shop", 0), monitor.HostSubject("alpha", "h1")} {
		kind := monitor.KPIKind
		if of.Host != "" {
			kind = monitor.HostKind
		}
		v := float64(1000 + i)
		for k := range 3 {
			m := kpi(of, start.Add(time.Duration(k-3)*10*time.Second), "queue_size", v)
			m.Kind = kind
			put(t, s, m)
		}
		secret[fmt.Sprint(v)] = i > 0
	}
	scopes := map[monitor.Scope][]string{
		{Customer: "acme", Service: "shop"}:   {"1000"},
		{Customer: "acme"}:                    {"1000", "1001"},
		{Customer: "nobody"}:                  nil,
		{Customer: `x",customer=~".*`}:        nil,
		{Customer: "acme", Service: "shop|x"}: nil,
	}
	tries := []string{
		"queue_size", `{__name__="queue_size"}`, `{"queue_size"}`, `queue_size{customer="rival"}`, `queue_size{customer=~".*"}`, `queue_size{customer!="acme"}`, `queue_size{customer=""}`,
		`{__name__=~".+",service=~"shop|blog"}`, `queue_size or queue_size{customer="rival"}`, `max_over_time(queue_size{customer="rival"}[1m])`,
		`max_over_time(queue_size{host="h1"}[1m:1s])`, `sum(queue_size) without (customer)`, `group_left(queue_size)`,
		`label_replace(queue_size{customer=~"r.*"}, "customer", "acme", "", "")`, `queue_size * on (site) group_right queue_size{customer="rival"}`,
		`max(queue_size) by (customer, service, host)`, `count_values("secret", queue_size)`, `quantile(1, queue_size)`, `queue_size offset -1s`, `queue_size @ end()`,
		`topk(10, {site="alpha"})`, `absent(queue_size{customer="rival"})`, `scalar(queue_size{customer="rival"})`, `vector(scalar(max(queue_size{customer="rival"})))`,
		`last_over_time({customer="rival",__name__=~"queue.*"}[5m] offset 1s)`, `(((queue_size{customer="rival"})))`, `-queue_size{customer="rival"}`, `queue_size{customer="acme",customer="rival"}`,
		"queue_size{customer=\"rival\"} # {customer=\"acme\"}", `sum_over_time((queue_size{customer="rival"} > 0)[1m:10s])`,
	}
	for scope, mine := range scopes {
		q := s.Querier(scope)
		for _, expr := range tries {
			all, err := q.Query(t.Context(), expr, start)
			if err != nil {
				continue // one that does not parse tells nothing
			}
			for _, x := range all {
				if c := x.Labels["customer"]; c != "" && c != scope.Customer {
					t.Errorf("%+v: %s has labels %v", scope, expr, x.Labels)
				}
				for _, words := range append(slices.Collect(maps.Values(x.Labels)), fmt.Sprint(math.Abs(x.Points[0].Value))) {
					if _, is := secret[words]; is && !slices.Contains(mine, words) {
						t.Errorf("%+v: %s tells %s", scope, expr, words)
					}
				}
			}
		}
	}
}

// TestConfined is the rule behind it: whatever parses, each selector of what is evaluated
// has the scope's matchers.
// TestVEEsThatAreThere: a scope may leave out what replicas that are gone measured last.
func TestVEEsThatAreThere(t *testing.T) {
	p := parser.NewParser(parser.Options{})
	got, err := confine(p, monitor.Scope{Customer: "acme", Service: "shop", VEEs: "- alpha.aa alpha.bb"}, "sum(load)")
	if want := `sum(load{customer="acme",service="shop",vee=~"|-|alpha\\.aa|alpha\\.bb"})`; err != nil || got != want {
		t.Errorf("%s, %v, want %s", got, err, want)
	}
}

func TestConfined(t *testing.T) {
	p := parser.NewParser(parser.Options{})
	pieces := []string{"a", "b", "{", "}", "(", ")", "[", "5m", "]", ":", "customer", "service", "=", "=~", "!=", `"rival"`, `"acme"`, ",", "or", "and", "unless", "on", "by", "sum", "rate",
		"offset", "@", "end()", "+", "-", "*", "bool", "1", `"x\"y"`, "`r`", "#", "\n", "max_over_time(", "label_replace(", "__name__", "without"}
	rapid.Check(t, func(t *rapid.T) {
		expr := strings.Join(rapid.SliceOfN(rapid.SampledFrom(pieces), 1, 14).Draw(t, "expr"), rapid.SampledFrom([]string{"", " "}).Draw(t, "between"))
		checkConfined(t, p, expr)
	})
}

func checkConfined(t interface{ Fatalf(string, ...any) }, p parser.Parser, expr string) {
	got, err := confine(p, monitor.Scope{Customer: "acme", Service: `s"hop`}, expr)
	if err != nil {
		return
	}
	tree, err := p.ParseExpr(got)
	if err != nil {
		t.Fatalf("%q became %q, which does not parse: %v", expr, got, err)
	}
	parser.Inspect(tree, func(n parser.Node, _ []parser.Node) error {
		v, ok := n.(*parser.VectorSelector)
		if !ok {
			return nil
		}
		found := 0
		for _, m := range v.LabelMatchers {
			if m.String() == `customer="acme"` || m.String() == `service="s\"hop"` {
				found++
			}
		}
		if found < 2 {
			t.Fatalf("%q became %q: selector %s is not confined", expr, got, v)
		}
		return nil
	})
}

func FuzzConfine(f *testing.F) {
	for _, s := range []string{"a", `rate(a{customer="x"}[5m:1m] offset 1h)`, "sum by (x) (a) / on (y) group_left b @ 0", `{"a.b", x=~"y"}`, "a{x='`'} # c"} {
		f.Add(s)
	}
	p := parser.NewParser(parser.Options{})
	f.Fuzz(func(t *testing.T, expr string) { checkConfined(t, p, expr) })
}

// TestMoved shows the continuity of a series over a migration: two hosts report of the same
// VEE, one after the other, and it is one series without a gap or a value twice.
func TestMoved(t *testing.T) {
	s, c := open(t, Config{})
	web := replica("acme", "shop", 0)
	for i := range 60 {
		c.set(start.Add(time.Duration(i) * 10 * time.Second))
		// The counter starts again where the VEE goes to.
		used := float64(i * 10)
		if i >= 30 {
			used = float64((i - 30) * 10)
		}
		m := monitor.Measurement{Subject: web, Kind: monitor.VEEKind, At: c.Now(), Values: []monitor.Value{{Field: "vee_cpu_seconds_total", Value: used}}}
		put(t, s, m)
		if i == 30 { // the host that it left reports a last time
			if r := put(t, s, m); r.Stored != 1 {
				t.Errorf("told twice: %+v", r)
			}
		}
	}
	q := s.Querier(monitor.Scope{Customer: "acme"})
	if got := ask(t, q, "count(vee_cpu_seconds_total)", c.Now()); got[""] != 1 {
		t.Errorf("%v series", got)
	}
	if got := ask(t, q, "count_over_time(vee_cpu_seconds_total[10m])", c.Now()); slices.Max(slices.Collect(maps.Values(got))) != 60 {
		t.Errorf("samples %v", got)
	}
	if got := slices.Collect(maps.Values(ask(t, q, "rate(vee_cpu_seconds_total[9m])", c.Now()))); len(got) != 1 || got[0] < 0.9 || got[0] > 1 {
		t.Errorf("CPU seconds a second %v: want 1, less the interval in which it moved", got)
	}
}

// TestElastic shows replicas that come and go: each has its series from its first sample to
// its end, and sums are of those that there are.
func TestElastic(t *testing.T) {
	s, c := open(t, Config{})
	r := rand.New(rand.NewPCG(1, 2))
	there := map[int]bool{}
	for i := range 200 {
		c.set(start.Add(time.Duration(i) * 10 * time.Second))
		n := r.IntN(12)
		of := replica("acme", "shop", n)
		if there[n] {
			if err := s.End(t.Context(), of, c.Now()); err != nil {
				t.Fatal(err)
			}
			delete(there, n)
		} else {
			there[n] = true
		}
		for n := range there {
			put(t, s, kpi(replica("acme", "shop", n), c.Now().Add(time.Millisecond), "up", 1))
		}
		got := ask(t, s.Querier(monitor.Scope{}), "sum(up)", c.Now().Add(time.Second))
		if int(got[""]) != len(there) {
			t.Fatalf("step %d: %v, want %d", i, got, len(there))
		}
	}
}
