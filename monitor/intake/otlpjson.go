package intake

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strconv"

	"github.com/reservoir-cloud/reservoir/monitor"
)

// OTLPJSON is OTLP in OTLP's JSON encoding, where 64-bit integers are strings.
func OTLPJSON(body []byte, l Limits) ([]monitor.Value, Dropped, error) {
	var request struct {
		ResourceMetrics []struct {
			Resource struct {
				Attributes []jsonAttribute `json:"attributes"`
			} `json:"resource"`
			ScopeMetrics []struct {
				Metrics []jsonMetric `json:"metrics"`
			} `json:"scopeMetrics"`
		} `json:"resourceMetrics"`
	}
	if err := json.Unmarshal(body, &request); err != nil {
		return nil, nil, fmt.Errorf("OTLP in JSON: %w", err)
	}
	c := newCollector(l)
	for _, r := range request.ResourceMetrics {
		var own []label
		for _, a := range r.Resource.Attributes {
			own = appendIdentity(own, a.Key, a.Value.String())
		}
		for _, s := range r.ScopeMetrics {
			for _, j := range s.Metrics {
				m, err := j.metric(l.Series)
				if err != nil {
					return nil, nil, fmt.Errorf("OTLP in JSON: metric %.40q: %w", j.Name, err)
				}
				c.take(m, own)
			}
		}
	}
	return c.values, c.dropped, nil
}

type (
	jsonAttribute struct {
		Key   string    `json:"key"`
		Value jsonValue `json:"value"`
	}
	jsonValue struct {
		Text   *string         `json:"stringValue"`
		Bool   *bool           `json:"boolValue"`
		Int    json.RawMessage `json:"intValue"`
		Double *float64        `json:"doubleValue"`
	}
	jsonData struct {
		Points      []json.RawMessage `json:"dataPoints"` // one by one: a short text may be a large point
		Temporality json.RawMessage   `json:"aggregationTemporality"`
	}
	jsonMetric struct {
		Name        string    `json:"name"`
		Gauge       *jsonData `json:"gauge"`
		Sum         *jsonData `json:"sum"`
		Histogram   *jsonData `json:"histogram"`
		Exponential *jsonData `json:"exponentialHistogram"`
		Summary     *jsonData `json:"summary"`
	}
	jsonPoint struct {
		Attributes []jsonAttribute   `json:"attributes"`
		AsDouble   json.RawMessage   `json:"asDouble"`
		AsInt      json.RawMessage   `json:"asInt"`
		Flags      uint32            `json:"flags"`
		Count      json.RawMessage   `json:"count"`
		Sum        json.RawMessage   `json:"sum"`
		Counts     []json.RawMessage `json:"bucketCounts"`
		Bounds     []float64         `json:"explicitBounds"`
		Quantiles  []struct {
			Quantile float64 `json:"quantile"`
			Value    float64 `json:"value"`
		} `json:"quantileValues"`
	}
)

func (v jsonValue) String() string {
	switch {
	case v.Text != nil:
		return *v.Text
	case v.Bool != nil:
		return strconv.FormatBool(*v.Bool)
	case v.Double != nil:
		return strconv.FormatFloat(*v.Double, 'g', -1, 64)
	case v.Int != nil:
		n, err := jsonNumber(v.Int)
		if err == nil {
			return strconv.FormatFloat(n, 'f', -1, 64)
		}
	}
	return ""
}

// metric with at most so many points, and one more that stands for the others.
func (j jsonMetric) metric(most int) (m metric, err error) {
	m.name = j.Name
	for _, k := range []struct {
		data      *jsonData
		total     bool
		histogram bool
		summary   bool
	}{{data: j.Gauge}, {data: j.Sum, total: true}, {data: j.Histogram, total: true, histogram: true}, {data: j.Summary, summary: true}} {
		if k.data == nil {
			continue
		}
		if t := string(k.data.Temporality); k.total {
			m.delta = t != "2" && t != `"AGGREGATION_TEMPORALITY_CUMULATIVE"`
		}
		for _, b := range k.data.Points[:min(len(k.data.Points), most+1)] {
			var p jsonPoint
			if err := json.Unmarshal(b, &p); err != nil {
				return m, err
			}
			q, err := p.point()
			if err != nil {
				return m, err
			}
			q.histogram, q.summary = k.histogram, k.summary
			m.points = append(m.points, q)
		}
	}
	if j.Exponential != nil {
		m.unsupported += len(j.Exponential.Points)
	}
	return m, nil
}

func (j jsonPoint) point() (p point, err error) {
	for _, a := range j.Attributes {
		p.attributes = appendLabel(p.attributes, a.Key, a.Value.String())
	}
	p.none, p.bounds, p.hasSum = j.Flags&1 != 0, j.Bounds, j.Sum != nil
	for _, n := range []struct {
		text json.RawMessage
		to   *float64
	}{{j.AsDouble, &p.value}, {j.AsInt, &p.value}, {j.Count, &p.count}, {j.Sum, &p.sum}} {
		if n.text == nil {
			continue
		}
		if *n.to, err = jsonNumber(n.text); err != nil {
			return p, err
		}
	}
	for _, t := range j.Counts {
		n, err := jsonNumber(t)
		if err != nil {
			return p, err
		}
		p.counts = append(p.counts, n)
	}
	for _, q := range j.Quantiles {
		p.quantiles = append(p.quantiles, [2]float64{q.Quantile, q.Value})
	}
	return p, nil
}

// jsonNumber that may be in quotes, as "NaN" and 64-bit integers are.
func jsonNumber(t json.RawMessage) (float64, error) {
	s := string(t)
	if len(s) > 1 && s[0] == '"' {
		s = s[1 : len(s)-1]
	}
	switch s {
	case "Infinity":
		return math.Inf(1), nil
	case "-Infinity":
		return math.Inf(-1), nil
	}
	v, err := strconv.ParseFloat(s, 64)
	if err != nil && !errors.Is(err, strconv.ErrRange) {
		return 0, fmt.Errorf("%.40q is no number", s)
	}
	return v, nil
}
