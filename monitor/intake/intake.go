// Package intake reads the measurements that programs in guests hand over: Prometheus's
// text format, and OTLP metrics in protobuf and JSON. Guests are not trusted, so everything
// here is bounded: bytes by whoever reads the body, series and labels by Limits, and the
// series of one guest over time by a Quota. It is pure.
//
// What a guest says of itself ends up as labels of its own measurements and is never taken
// for who it is. Nor is its clock believed: a measurement's time is when it arrived.
package intake

import (
	"cmp"
	"math"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/reservoir-cloud/reservoir/monitor"
)

// Limits of what one body may hold.
type Limits struct {
	Series int // values
	Labels int // of a value
	Name   int // bytes, of a field or a label
	Value  int // bytes, of a label
}

// Usual limits: what well-behaved programs stay below, and one monitor.Reported holds.
var Usual = Limits{Series: 1000, Labels: 24, Name: 128, Value: 256}

// Dropped counts the values of a body that were passed over, by reason: NotFinite;
// Duplicate, earlier values of a series that the body has more than once; TooMany beyond
// Limits.Series; TooWide, with more or longer labels than Limits allow; BadName;
// Unsupported kinds of OTLP data.
type Dropped = map[monitor.Reason]int

// label of a value.
type label struct{ name, value string }

// collector puts a body's values together.
type collector struct {
	limits  Limits
	values  []monitor.Value
	at      map[monitor.Value]int // index of a series' value; the key's own is 0
	dropped Dropped
}

func newCollector(l Limits) *collector {
	return &collector{limits: l, at: map[monitor.Value]int{}, dropped: Dropped{}}
}

// add a value; labels are the collector's to keep. Two of one name are the caller's mistake.
func (c *collector) add(name string, labels []label, value float64) {
	field := monitor.FieldOf(name)
	switch {
	case math.IsNaN(value) || math.IsInf(value, 0):
		c.dropped[monitor.NotFinite]++
		return
	case !monitor.ValidField(monitor.KPIKind, field):
		c.dropped[monitor.BadName]++
		return
	case !c.fits(name, labels):
		c.dropped[monitor.TooWide]++
		return
	}
	v := monitor.Value{Field: field, Labels: notation(labels)}
	if len(v.Labels) > monitor.MaxLabels { // written out, with what had to be escaped
		c.dropped[monitor.TooWide]++
		return
	}
	if i, twice := c.at[v]; twice {
		c.values[i].Value = value
		c.dropped[monitor.Duplicate]++
		return
	}
	if len(c.values) >= c.limits.Series {
		c.dropped[monitor.TooMany]++
		return
	}
	c.at[v] = len(c.values)
	v.Value = value
	c.values = append(c.values, v)
}

func (c *collector) fits(name string, labels []label) bool {
	if len(name) > c.limits.Name || len(labels) > c.limits.Labels {
		return false
	}
	for _, l := range labels {
		if len(l.name) > c.limits.Name || len(l.value) > c.limits.Value {
			return false
		}
	}
	return true
}

// escapes of a label's value in Prometheus's notation.
var escapes = strings.NewReplacer(`\`, `\\`, `"`, `\"`, "\n", `\n`)

// notation of labels as monitor.Value has it. It sorts them.
func notation(labels []label) string {
	if len(labels) == 0 {
		return ""
	}
	slices.SortFunc(labels, func(a, b label) int { return cmp.Compare(a.name, b.name) })
	var b strings.Builder
	for i, l := range labels {
		if i > 0 {
			b.WriteByte(',')
		}
		b.WriteString(l.name)
		b.WriteString(`="`)
		b.WriteString(escapes.Replace(l.value))
		b.WriteByte('"')
	}
	return b.String()
}

// metricName reports whether a metric may have this name (Prometheus's data model, classic).
func metricName(s string) bool { return validName(s, true) }

func labelName(s string) bool { return validName(s, false) }

func validName(s string, colons bool) bool {
	for i, r := range []byte(s) {
		switch {
		case 'a' <= r && r <= 'z', 'A' <= r && r <= 'Z', r == '_', colons && r == ':':
		case i > 0 && '0' <= r && r <= '9':
		default:
			return false
		}
	}
	return s != ""
}

// ours are labels with two underscores in front, which mean something to stores.
func ours(name string) bool { return strings.HasPrefix(name, "__") }

// text that came as bytes.
func text(b []byte) string {
	if utf8.Valid(b) {
		return string(b)
	}
	return strings.ToValidUTF8(string(b), "\uFFFD")
}
