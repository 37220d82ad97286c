package intake

import (
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	service "go.opentelemetry.io/proto/otlp/collector/metrics/v1"
	common "go.opentelemetry.io/proto/otlp/common/v1"
	metrics "go.opentelemetry.io/proto/otlp/metrics/v1"
	resource "go.opentelemetry.io/proto/otlp/resource/v1"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/reservoir-cloud/reservoir/monitor"
)

// shown as lines, in order.
func shown(values []monitor.Value) string {
	var lines []string
	for _, v := range values {
		lines = append(lines, fmt.Sprintf("%s{%s} %g", v.Field, v.Labels, v.Value))
	}
	return strings.Join(lines, "\n")
}

func TestText(t *testing.T) {
	values, dropped, err := Text([]byte(`# HELP queue_size jobs that wait
# TYPE queue_size gauge
queue_size 4
http_requests_total{method="get", code="200",} 1027 1395066363000
http_requests_total{code="500",method="get"} 3 # {trace_id="x"} 0.5 1
http_requests_total{method="get",code="200"} 1028
path{p="C:\\DIR\n\"x\"",empty="",__name__="other"} 1e3
latency_bucket{le="+Inf"} 7
nothing NaN
most +Inf
job:rate5m 0.5
vee_cpu_seconds_total 1e9
host_energy_joules_total 1
	spaced	 	2
# EOF
`), Usual)
	if err != nil {
		t.Fatal(err)
	}
	const want = `queue_size{} 4
http_requests_total{code="200",method="get"} 1028
http_requests_total{code="500",method="get"} 3
path{p="C:\\DIR\n\"x\""} 1000
latency_bucket{le="+Inf"} 7
job_rate5m{} 0.5
spaced{} 2`
	if got := shown(values); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	if want := (Dropped{monitor.NotFinite: 2, monitor.Duplicate: 1, monitor.BadName: 2}); !maps.Equal(dropped, want) {
		t.Errorf("dropped %v, want %v", dropped, want)
	}
}

func TestTextRefuses(t *testing.T) {
	for body, want := range map[string]string{
		"a 1\nqueue":             "line 2: a name without a value",
		"1queue 2":               "line 1: name",
		"queue two":              "is no number",
		"queue 1 2 3":            "at most a time stamp",
		"queue 1 soon":           "time stamp",
		`queue{a="1"`:            "want a comma or a closing brace",
		`queue{a="1`:             "has no end",
		`queue{a="1\`:            "has no end",
		`queue{a=1} 1`:           "in quotes",
		`queue{0a="1"} 1`:        "label name",
		`queue{"a.b"} 1`:         "label name",
		`q{a="1",a="2"} 1`:       "twice",
		`q{a="1" b="2"} 1`:       "comma",
		"\xff\xfe 1":             "name",
		`q{` + many(300) + `} 1`: "more than 256 labels",
	} {
		if values, _, err := Text([]byte(body), Usual); err == nil || !strings.Contains(err.Error(), want) || values != nil {
			t.Errorf("%.40q: %v, %v; want an error with %q", body, values, err, want)
		}
	}
}

func many(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, `l%d="x",`, i)
	}
	return b.String()
}

func TestLimits(t *testing.T) {
	l := Limits{Series: 2, Labels: 1, Name: 8, Value: 4}
	values, dropped, err := Text([]byte(`a 1
b{x="1234"} 1
c{x="12345"} 1
d{x="1",y="2"} 1
long_name 1
e 1
f 1
a 2
`), l)
	if err != nil {
		t.Fatal(err)
	}
	if got := shown(values); got != "a{} 2\nb{x=\"1234\"} 1" {
		t.Errorf("got %s", got)
	}
	if want := (Dropped{monitor.TooWide: 3, monitor.TooMany: 2, monitor.Duplicate: 1}); !maps.Equal(dropped, want) {
		t.Errorf("dropped %v, want %v", dropped, want)
	}
}

func word(key, is string) *common.KeyValue {
	return &common.KeyValue{Key: key, Value: &common.AnyValue{Value: &common.AnyValue_StringValue{StringValue: is}}}
}

func number(f float64, attributes ...*common.KeyValue) *metrics.NumberDataPoint {
	return &metrics.NumberDataPoint{Attributes: attributes, Value: &metrics.NumberDataPoint_AsDouble{AsDouble: f}, TimeUnixNano: math.MaxUint64}
}

// request as a stock exporter makes it.
func request() *service.ExportMetricsServiceRequest {
	integer := &metrics.NumberDataPoint{Value: &metrics.NumberDataPoint_AsInt{AsInt: -7}, Attributes: []*common.KeyValue{
		{Key: "on", Value: &common.AnyValue{Value: &common.AnyValue_BoolValue{BoolValue: true}}},
		{Key: "n", Value: &common.AnyValue{Value: &common.AnyValue_IntValue{IntValue: 12}}},
		{Key: "f", Value: &common.AnyValue{Value: &common.AnyValue_DoubleValue{DoubleValue: 0.5}}},
		{Key: "list", Value: &common.AnyValue{Value: &common.AnyValue_ArrayValue{ArrayValue: &common.ArrayValue{}}}},
	}}
	none := number(1)
	none.Flags = uint32(metrics.DataPointFlags_DATA_POINT_FLAGS_NO_RECORDED_VALUE_MASK)
	sum, cumulative := 2.5, metrics.AggregationTemporality_AGGREGATION_TEMPORALITY_CUMULATIVE
	list := []*metrics.Metric{
		{Name: "queue.size", Unit: "{jobs}", Data: &metrics.Metric_Gauge{Gauge: &metrics.Gauge{DataPoints: []*metrics.NumberDataPoint{number(4, word("queue.name", "a\nb")), integer, none}}}},
		{Name: "http.requests", Data: &metrics.Metric_Sum{Sum: &metrics.Sum{AggregationTemporality: cumulative, IsMonotonic: true,
			DataPoints: []*metrics.NumberDataPoint{number(9, word("job", "mine"), word("customer", "other"))}}}},
		{Name: "delta", Data: &metrics.Metric_Sum{Sum: &metrics.Sum{AggregationTemporality: metrics.AggregationTemporality_AGGREGATION_TEMPORALITY_DELTA,
			DataPoints: []*metrics.NumberDataPoint{number(1), number(2)}}}},
		{Name: "latency", Data: &metrics.Metric_Histogram{Histogram: &metrics.Histogram{AggregationTemporality: cumulative, DataPoints: []*metrics.HistogramDataPoint{
			{Count: 6, Sum: &sum, BucketCounts: []uint64{1, 2, 3}, ExplicitBounds: []float64{0.1, 1}}}}}},
		{Name: "exp", Data: &metrics.Metric_ExponentialHistogram{ExponentialHistogram: &metrics.ExponentialHistogram{AggregationTemporality: cumulative,
			DataPoints: []*metrics.ExponentialHistogramDataPoint{{Count: 1}}}}},
		{Name: "summary", Data: &metrics.Metric_Summary{Summary: &metrics.Summary{DataPoints: []*metrics.SummaryDataPoint{
			{Count: 3, Sum: 6, QuantileValues: []*metrics.SummaryDataPoint_ValueAtQuantile{{Quantile: 0.5, Value: 2}}}}}}},
		{Name: "nan", Data: &metrics.Metric_Gauge{Gauge: &metrics.Gauge{DataPoints: []*metrics.NumberDataPoint{number(math.NaN()), number(math.Inf(-1))}}}},
	}
	return &service.ExportMetricsServiceRequest{ResourceMetrics: []*metrics.ResourceMetrics{{
		Resource:     &resource.Resource{Attributes: []*common.KeyValue{word("service.name", "shop"), word("service.instance.id", "i-1"), word("host.name", "web-1")}},
		ScopeMetrics: []*metrics.ScopeMetrics{{Metrics: list}},
	}}}
}

// Both encodings, as OpenTelemetry's own code makes them, come to the same.
func TestOTLP(t *testing.T) {
	const want = `queue_size{instance="i-1",job="shop",queue_name="a\nb"} 4
queue_size{f="0.5",instance="i-1",job="shop",n="12",on="true"} -7
http_requests{customer="other",instance="i-1",job="mine"} 9
latency_bucket{instance="i-1",job="shop",le="0.1"} 1
latency_bucket{instance="i-1",job="shop",le="1"} 3
latency_bucket{instance="i-1",job="shop",le="+Inf"} 6
latency_count{instance="i-1",job="shop"} 6
latency_sum{instance="i-1",job="shop"} 2.5
summary{instance="i-1",job="shop",quantile="0.5"} 2
summary_count{instance="i-1",job="shop"} 3
summary_sum{instance="i-1",job="shop"} 6`
	binary, err := proto.Marshal(request())
	if err != nil {
		t.Fatal(err)
	}
	inJSON, err := protojson.Marshal(request())
	if err != nil {
		t.Fatal(err)
	}
	named, err := protojson.MarshalOptions{UseEnumNumbers: true}.Marshal(request())
	if err != nil {
		t.Fatal(err)
	}
	for name, read := range map[string]func() ([]monitor.Value, Dropped, error){
		"protobuf":                 func() ([]monitor.Value, Dropped, error) { return OTLP(binary, Usual) },
		"JSON":                     func() ([]monitor.Value, Dropped, error) { return OTLPJSON(inJSON, Usual) },
		"JSON with enums' numbers": func() ([]monitor.Value, Dropped, error) { return OTLPJSON(named, Usual) },
	} {
		values, dropped, err := read()
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if got := shown(values); got != want {
			t.Errorf("%s: got\n%s\nwant\n%s", name, got, want)
		}
		if want := (Dropped{monitor.Unsupported: 3, monitor.NotFinite: 2}); !maps.Equal(dropped, want) {
			t.Errorf("%s: dropped %v, want %v", name, dropped, want)
		}
	}
}

func TestOTLPBounds(t *testing.T) {
	r := request()
	points := make([]*metrics.NumberDataPoint, 5000)
	for i := range points {
		points[i] = number(1, word("i", fmt.Sprint(i)))
	}
	wide := number(1)
	for i := range 100 {
		wide.Attributes = append(wide.Attributes, word(fmt.Sprint("a", i), "x"))
	}
	r.ResourceMetrics[0].ScopeMetrics[0].Metrics = []*metrics.Metric{
		{Name: "wide", Data: &metrics.Metric_Gauge{Gauge: &metrics.Gauge{DataPoints: []*metrics.NumberDataPoint{wide}}}},
		{Name: "many", Data: &metrics.Metric_Gauge{Gauge: &metrics.Gauge{DataPoints: points}}},
	}
	binary, err := proto.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	inJSON, err := protojson.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	for name, read := range map[string]func() ([]monitor.Value, Dropped, error){
		"protobuf": func() ([]monitor.Value, Dropped, error) { return OTLP(binary, Usual) },
		"JSON":     func() ([]monitor.Value, Dropped, error) { return OTLPJSON(inJSON, Usual) },
	} {
		values, dropped, err := read()
		if err != nil || len(values) != Usual.Series || dropped[monitor.TooMany] == 0 || dropped[monitor.TooWide] != 1 {
			t.Errorf("%s: %d values, dropped %v, %v", name, len(values), dropped, err)
		}
	}
	for name, err := range map[string]error{
		"protobuf cut off": third(OTLP(binary[:len(binary)/2], Usual)),
		"a group":          third(OTLP([]byte{0x0b, 0x0c, 0x0a, 0x05}, Usual)),
		"JSON cut off":     third(OTLPJSON(inJSON[:len(inJSON)/2], Usual)),
		"a word":           third(OTLPJSON([]byte(`{"resourceMetrics":[{"scopeMetrics":[{"metrics":[{"name":"x","gauge":{"dataPoints":[{"asInt":"x"}]}}]}]}]}`), Usual)),
	} {
		if err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func third(_ []monitor.Value, _ Dropped, err error) error { return err }

func TestQuota(t *testing.T) {
	q := Quota{Most: 3, Keep: time.Hour}
	now := time.Unix(1000, 0)
	send := func(fields ...string) string {
		var values []monitor.Value
		for i, f := range fields {
			values = append(values, monitor.Value{Field: f, Value: float64(i)})
		}
		admitted, refused := q.Admit(values, now)
		return fmt.Sprint(len(admitted), refused)
	}
	for i, c := range []struct {
		after  time.Duration
		fields string
		want   string
	}{
		{0, "a b", "2 0"},
		{time.Minute, "a b c d", "3 1"},
		{time.Minute, "d e f", "0 3"}, // churn makes no room
		{59 * time.Minute, "a b", "2 0"},
		{2 * time.Minute, "a d", "2 0"}, // c is forgotten
		{0, "c", "0 1"},
		{0, "d", "1 0"},
	} {
		now = now.Add(c.after)
		if got := send(strings.Fields(c.fields)...); got != c.want {
			t.Errorf("step %d: admitted and refused %s, want %s", i, got, c.want)
		}
	}
}

// sound is what must hold of whatever comes in.
func sound(t *testing.T, values []monitor.Value, err error) {
	t.Helper()
	if err != nil && values != nil {
		t.Fatal("values beside an error")
	}
	seen := map[monitor.Value]bool{}
	for _, v := range values {
		series := monitor.Value{Field: v.Field, Labels: v.Labels}
		if seen[series] || math.IsNaN(v.Value) || math.IsInf(v.Value, 0) || !monitor.ValidField(monitor.KPIKind, v.Field) {
			t.Fatalf("let through %+v", v)
		}
		seen[series] = true
		if v.Labels == "" {
			continue
		}
		labels, rest, perr := parseLabels(v.Labels + "}")
		names := slices.IsSortedFunc(labels, func(a, b label) int { return strings.Compare(a.name, b.name) })
		if perr != nil || rest != "" || !names || notation(labels) != v.Labels || len(labels) > Usual.Labels {
			t.Fatalf("labels %q: %v, %v", v.Labels, labels, errors.Join(perr))
		}
	}
	if len(values) > Usual.Series {
		t.Fatalf("%d values", len(values))
	}
}

func FuzzText(f *testing.F) {
	f.Add([]byte("a{b=\"c\",d=\"\\\\\"} 1 2\n# x\nb NaN\n"))
	f.Add([]byte("a{} 1\n\xff{a=\"\xff\"} 1"))
	f.Fuzz(func(t *testing.T, body []byte) {
		values, _, err := Text(body, Usual)
		sound(t, values, err)
	})
}

func FuzzOTLP(f *testing.F) {
	binary, err := proto.Marshal(request())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(binary)
	f.Add(binary[:100])
	f.Fuzz(func(t *testing.T, body []byte) {
		values, _, err := OTLP(body, Usual)
		sound(t, values, err)
	})
}

func FuzzOTLPJSON(f *testing.F) {
	inJSON, err := protojson.Marshal(request())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(inJSON)
	f.Add([]byte(`{"resourceMetrics":[{"scopeMetrics":[{"metrics":[{"name":"9x","gauge":{"dataPoints":[{"asDouble":"NaN"}]}}]}]}]}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		values, _, err := OTLPJSON(body, Usual)
		sound(t, values, err)
	})
}
