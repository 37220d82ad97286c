package intake

import (
	"fmt"
	"math"
	"strconv"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/reservoir-cloud/reservoir/monitor"
)

// This file reads the part of OTLP (opentelemetry-proto v1, metrics/v1/metrics.proto) that
// says what a running total or a gauge is: field numbers below are that file's. What it does
// not know it skips, as the protocol asks for.

// point of a number or a histogram, as either encoding says it.
type point struct {
	attributes []label
	value      float64
	none       bool // the flag "no recorded value"

	histogram, summary bool
	count, sum         float64
	hasSum             bool
	counts             []float64 // per bucket, not added up
	bounds             []float64
	quantiles          [][2]float64
}

// metric of one name.
type metric struct {
	name        string
	points      []point
	delta       bool
	unsupported int // points of kinds that are not read
}

// OTLP reads an ExportMetricsServiceRequest in protobuf. Attributes of data points become
// labels, of those of the resource only service.name ("job") and service.instance.id
// ("instance"), as Prometheus has it; dots and the like become underscores.
func OTLP(body []byte, l Limits) ([]monitor.Value, Dropped, error) {
	c := newCollector(l)
	err := fields(body, func(n protowire.Number, v value) error {
		if n != 1 { // resource_metrics
			return nil
		}
		return c.resource(v.bytes)
	})
	if err != nil {
		return nil, nil, fmt.Errorf("OTLP: %w", err)
	}
	return c.values, c.dropped, nil
}

// resource is a ResourceMetrics: 1 resource, 2 scope_metrics.
func (c *collector) resource(b []byte) error {
	var own []label
	var scopes [][]byte
	err := fields(b, func(n protowire.Number, v value) error {
		switch n {
		case 1:
			return fields(v.bytes, func(n protowire.Number, v value) error {
				if n != 1 {
					return nil
				}
				name, is, err := attribute(v.bytes)
				own = appendIdentity(own, name, is)
				return err
			})
		case 2:
			scopes = append(scopes, v.bytes)
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, s := range scopes {
		err := fields(s, func(n protowire.Number, v value) error {
			if n != 2 { // metrics
				return nil
			}
			m, err := c.metric(v.bytes)
			if err == nil {
				c.take(m, own)
			}
			return err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// appendIdentity of a program in the guest, which tells apart two that measure the same.
func appendIdentity(own []label, name, is string) []label {
	switch name {
	case "service.name":
		return appendLabel(own, "job", is)
	case "service.instance.id":
		return appendLabel(own, "instance", is)
	}
	return own
}

// metric is a Metric: 1 name, 5 gauge, 7 sum, 9 histogram, 10 exponential_histogram, 11 summary.
func (c *collector) metric(b []byte) (m metric, err error) {
	err = fields(b, func(n protowire.Number, v value) error {
		switch n {
		case 1:
			m.name = text(v.bytes)
		case 5, 7, 9, 10, 11:
			return fields(v.bytes, func(k protowire.Number, v value) error {
				switch {
				case k == 1 && n == 10:
					m.unsupported++
				case k == 1: // data_points
					// A point that cannot be taken any more is not read.
					if len(m.points) > c.limits.Series {
						c.dropped[monitor.TooMany]++
						return nil
					}
					p, err := parsePoint(v.bytes, n)
					m.points = append(m.points, p)
					return err
				case k == 2 && (n == 7 || n == 9): // aggregation_temporality; 2 is cumulative
					m.delta = v.varint != 2
				}
				return nil
			})
		}
		return nil
	})
	return m, err
}

// parsePoint of a NumberDataPoint (1 attributes.. 7, 4 as_double, 6 as_int, 8 flags), a
// HistogramDataPoint (9, 4 count, 5 sum, 6 bucket_counts, 7 explicit_bounds, 10 flags) or a
// SummaryDataPoint (7, 4 count, 5 sum, 6 quantile_values, 8 flags).
func parsePoint(b []byte, kind protowire.Number) (p point, err error) {
	p.histogram, p.summary = kind == 9, kind == 11
	attributes, flags := protowire.Number(7), protowire.Number(8)
	if p.histogram {
		attributes, flags = 9, 10
	}
	err = fields(b, func(n protowire.Number, v value) error {
		switch {
		case n == attributes:
			name, is, err := attribute(v.bytes)
			p.attributes = appendLabel(p.attributes, name, is)
			return err
		case n == flags:
			p.none = v.varint&1 != 0
		case p.histogram || p.summary:
			return p.distribution(n, v)
		case n == 4:
			p.value = math.Float64frombits(v.fixed)
		case n == 6:
			p.value = float64(int64(v.fixed)) // sfixed64
		}
		return nil
	})
	return p, err
}

func (p *point) distribution(n protowire.Number, v value) (err error) {
	switch {
	case n == 4:
		p.count = float64(v.fixed)
	case n == 5:
		p.sum, p.hasSum = math.Float64frombits(v.fixed), true
	case n == 6 && p.histogram:
		return v.packed(func(u uint64) { p.counts = append(p.counts, float64(u)) })
	case n == 7 && p.histogram:
		return v.packed(func(u uint64) { p.bounds = append(p.bounds, math.Float64frombits(u)) })
	case n == 6:
		var q [2]float64 // 1 quantile, 2 value
		err = fields(v.bytes, func(n protowire.Number, v value) error {
			if n == 1 || n == 2 {
				q[n-1] = math.Float64frombits(v.fixed)
			}
			return nil
		})
		p.quantiles = append(p.quantiles, q)
	}
	return err
}

// attribute is a KeyValue: 1 key, 2 AnyValue (1 string, 2 bool, 3 int, 4 double). Lists and
// maps are no labels.
func attribute(b []byte) (name, is string, err error) {
	err = fields(b, func(n protowire.Number, v value) error {
		switch n {
		case 1:
			name = text(v.bytes)
		case 2:
			return fields(v.bytes, func(n protowire.Number, v value) error {
				switch n {
				case 1:
					is = text(v.bytes)
				case 2:
					is = strconv.FormatBool(v.varint != 0)
				case 3:
					is = strconv.FormatInt(int64(v.varint), 10)
				case 4:
					is = strconv.FormatFloat(math.Float64frombits(v.fixed), 'g', -1, 64)
				}
				return nil
			})
		}
		return nil
	})
	return name, is, err
}

// appendLabel unless it is empty or one of its name is there.
func appendLabel(labels []label, name, is string) []label {
	name = monitor.FieldOf(name)
	if name == "" || is == "" || ours(name) || len(labels) >= mostParsed {
		return labels
	}
	for i := range labels {
		if labels[i].name == name {
			return labels
		}
	}
	return append(labels, label{name, is})
}

// take the points of a metric as samples.
func (c *collector) take(m metric, own []label) {
	c.refuse(m.unsupported)
	if m.delta {
		c.refuse(len(m.points))
		return
	}
	name := m.name
	for _, p := range m.points {
		switch {
		case p.none:
			continue
		case len(p.attributes) > c.limits.Labels:
			c.dropped[monitor.TooWide]++
			continue
		case len(p.counts)+len(p.quantiles) > c.limits.Series:
			c.dropped[monitor.TooMany]++
			continue
		}
		labels := func(name, is string) []label { // each sample's own
			l := append(make([]label, 0, len(p.attributes)+len(own)+1), p.attributes...)
			for _, o := range own {
				l = appendLabel(l, o.name, o.value)
			}
			if name != "" {
				l = append(drop(l, name), label{name, is})
			}
			return l
		}
		switch {
		case p.histogram:
			total := 0.0
			for i, n := range p.counts {
				bound := "+Inf"
				if i < len(p.bounds) {
					bound = strconv.FormatFloat(p.bounds[i], 'g', -1, 64)
				}
				total += n
				c.add(name+"_bucket", labels("le", bound), total)
			}
		case p.summary:
			for _, q := range p.quantiles {
				c.add(name, labels("quantile", strconv.FormatFloat(q[0], 'g', -1, 64)), q[1])
			}
		default:
			c.add(name, labels("", ""), p.value)
			continue
		}
		c.add(name+"_count", labels("", ""), p.count)
		if p.hasSum {
			c.add(name+"_sum", labels("", ""), p.sum)
		}
	}
}

// refuse points of kinds that are not read.
func (c *collector) refuse(n int) {
	if n > 0 {
		c.dropped[monitor.Unsupported] += n
	}
}

func drop(labels []label, name string) []label {
	kept := labels[:0]
	for _, l := range labels {
		if l.name != name {
			kept = append(kept, l)
		}
	}
	return kept
}

// value of a protobuf field, by its wire type.
type value struct {
	kind   protowire.Type
	varint uint64
	fixed  uint64
	bytes  []byte
}

// packed calls f with each number of a repeated field of 64 bits, packed or not.
func (v value) packed(f func(uint64)) error {
	if v.kind != protowire.BytesType {
		f(v.fixed)
		return nil
	}
	for b := v.bytes; len(b) > 0; {
		u, n := protowire.ConsumeFixed64(b)
		if n < 0 {
			return protowire.ParseError(n)
		}
		f(u)
		b = b[n:]
	}
	return nil
}

// fields calls f with each field of a message.
func fields(b []byte, f func(protowire.Number, value) error) error {
	for len(b) > 0 {
		n, kind, used := protowire.ConsumeTag(b)
		if used < 0 {
			return protowire.ParseError(used)
		}
		b = b[used:]
		v := value{kind: kind}
		switch kind {
		case protowire.VarintType:
			v.varint, used = protowire.ConsumeVarint(b)
		case protowire.Fixed64Type:
			v.fixed, used = protowire.ConsumeFixed64(b)
		case protowire.BytesType:
			v.bytes, used = protowire.ConsumeBytes(b)
		default:
			used = protowire.ConsumeFieldValue(n, kind, b)
		}
		if used < 0 {
			return protowire.ParseError(used)
		}
		b = b[used:]
		if err := f(n, v); err != nil {
			return err
		}
	}
	return nil
}
