package intake

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"

	"github.com/reservoir-cloud/reservoir/monitor"
)

// Text reads Prometheus's text format 0.0.4, and of OpenMetrics what is the same in both.
// Time stamps and comments are passed over. An error names the line, and then nothing of
// the body counts.
func Text(body []byte, l Limits) ([]monitor.Value, Dropped, error) {
	c := newCollector(l)
	number := 0
	for line := range bytes.Lines(body) {
		number++
		s := string(bytes.TrimSpace(line))
		if s == "" || s[0] == '#' {
			continue
		}
		if err := c.line(s); err != nil {
			return nil, nil, fmt.Errorf("line %d: %w", number, err)
		}
	}
	return c.values, c.dropped, nil
}

// line is NAME[{LABELS}] VALUE [TIMESTAMP] [# EXEMPLAR].
func (c *collector) line(s string) error {
	end := strings.IndexAny(s, "{ \t")
	if end < 0 {
		return errors.New("a name without a value")
	}
	name, rest := s[:end], s[end:]
	if !metricName(name) {
		return fmt.Errorf("name %.40q: want letters, digits, underscores and colons, no digit first", name)
	}
	rest = strings.TrimLeft(rest, " \t")
	var labels []label
	if strings.HasPrefix(rest, "{") {
		var err error
		if labels, rest, err = parseLabels(rest[1:]); err != nil {
			return fmt.Errorf("labels of %.40s: %w", name, err)
		}
	}
	if at := strings.IndexByte(rest, '#'); at >= 0 { // an exemplar
		rest = rest[:at]
	}
	fields := strings.Fields(rest)
	if len(fields) < 1 || len(fields) > 2 {
		return fmt.Errorf("%.40s: want a value and at most a time stamp after the name", name)
	}
	value, err := strconv.ParseFloat(fields[0], 64)
	if err != nil && !math.IsInf(value, 0) { // too large is infinite, and dropped as that
		return fmt.Errorf("%.40s: value %.40q is no number", name, fields[0])
	}
	if len(fields) == 2 {
		if _, err := strconv.ParseFloat(fields[1], 64); err != nil {
			return fmt.Errorf("%.40s: time stamp %.40q is no number", name, fields[1])
		}
	}
	c.add(name, labels, value)
	return nil
}

// mostParsed labels of one value are read.
const mostParsed = 256

// parseLabels up to the closing brace, and what comes after it.
func parseLabels(s string) (labels []label, rest string, err error) {
	for {
		s = strings.TrimLeft(s, " \t")
		if strings.HasPrefix(s, "}") {
			return labels, s[1:], nil
		}
		name, after, ok := strings.Cut(s, "=")
		if name = strings.TrimSpace(name); !ok || !labelName(name) {
			return nil, "", fmt.Errorf("label name %.40q: want letters, digits and underscores, no digit first", name)
		}
		if after = strings.TrimLeft(after, " \t"); !strings.HasPrefix(after, `"`) {
			return nil, "", fmt.Errorf("label %.40s: want its value in quotes", name)
		}
		value, n, err := quoted(after[1:])
		if err != nil {
			return nil, "", fmt.Errorf("label %.40s: %w", name, err)
		}
		for _, l := range labels {
			if l.name == name {
				return nil, "", fmt.Errorf("label %.40s stands there twice", name)
			}
		}
		if len(labels) >= mostParsed {
			return nil, "", fmt.Errorf("more than %d labels", mostParsed)
		}
		if !ours(name) && value != "" { // an empty label is none
			labels = append(labels, label{name, text([]byte(value))})
		}
		s = strings.TrimLeft(after[1+n:], " \t")
		if strings.HasPrefix(s, ",") {
			s = s[1:]
		} else if !strings.HasPrefix(s, "}") {
			return nil, "", errors.New("want a comma or a closing brace")
		}
	}
}

// quoted reads up to the closing quote, and says how many bytes that took.
func quoted(s string) (value string, n int, err error) {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		switch s[i] {
		case '"':
			return b.String(), i + 1, nil
		case '\\':
			i++
			if i == len(s) {
				return "", 0, errors.New("its value has no end")
			}
			switch s[i] {
			case 'n':
				b.WriteByte('\n')
			case '\\', '"':
				b.WriteByte(s[i])
			default: // as Prometheus reads it
				b.WriteByte('\\')
				b.WriteByte(s[i])
			}
		default:
			b.WriteByte(s[i])
		}
	}
	return "", 0, errors.New("its value has no end")
}
