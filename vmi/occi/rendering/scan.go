package rendering

import (
	"fmt"
	"math"
	"strconv"
	"strings"
)

// scanner reads the field values of GFD.229's ABNF: comma-separated lists of values whose
// parts are separated by semicolons, with tokens and quoted strings.
type scanner struct {
	s   string
	pos int
}

func (p *scanner) space() {
	for p.pos < len(p.s) && (p.s[p.pos] == ' ' || p.s[p.pos] == '\t') {
		p.pos++
	}
}

// take the character c, after white space, if it is next.
func (p *scanner) take(c byte) bool {
	p.space()
	if p.pos < len(p.s) && p.s[p.pos] == c {
		p.pos++
		return true
	}
	return false
}

func (p *scanner) end() bool { p.space(); return p.pos == len(p.s) }

func (p *scanner) errorf(format string, args ...any) error {
	rest := p.s[p.pos:]
	if len(rest) > 40 {
		rest = rest[:40] + "…"
	}
	return fmt.Errorf("%s at %q", fmt.Sprintf(format, args...), rest)
}

// token up to white space, a control character or a delimiter.
func (p *scanner) token() string {
	p.space()
	start := p.pos
	for p.pos < len(p.s) && strings.IndexByte(",;=\"<>", p.s[p.pos]) < 0 && p.s[p.pos] > ' ' && p.s[p.pos] != 0x7f {
		p.pos++
	}
	return p.s[start:p.pos]
}

// quoted string of RFC 7230, section 3.2.6; the opening quote is taken.
func (p *scanner) quoted() (string, error) {
	var b strings.Builder
	for p.pos < len(p.s) {
		c := p.s[p.pos]
		p.pos++
		switch c {
		case '"':
			return b.String(), nil
		case '\\':
			if p.pos == len(p.s) {
				return "", p.errorf("a quoted string ends in a backslash")
			}
			c = p.s[p.pos]
			p.pos++
		}
		if c < ' ' && c != '\t' || c == 0x7f {
			return "", p.errorf("a control character in a quoted string")
		}
		b.WriteByte(c)
	}
	return "", p.errorf("a quoted string without its closing quote")
}

// text is a token or a quoted string.
func (p *scanner) text() (string, error) {
	if p.take('"') {
		return p.quoted()
	}
	if t := p.token(); t != "" {
		return t, nil
	}
	return "", p.errorf("want a word or a quoted string")
}

// value of an attribute: a quoted string, a number, true or false. Words without quotes
// are taken for strings, since clients send them.
func (p *scanner) value() (any, error) {
	if p.take('"') {
		return p.quoted()
	}
	switch t := p.token(); {
	case t == "":
		return nil, p.errorf("want a value")
	case t == "true" || t == "false":
		return t == "true", nil
	case strings.ContainsRune("0123456789.-+", rune(t[0])):
		if f, err := strconv.ParseFloat(t, 64); err == nil && !math.IsInf(f, 0) && !math.IsNaN(f) {
			return f, nil
		}
		return t, nil // "10.0.0.1", "00:80:41:ae:fd:7e"
	default:
		return t, nil
	}
}

// list calls one for each value of a comma-separated list; empty ones are passed over.
func list(s string, one func(*scanner) error) error {
	p := &scanner{s: s}
	for {
		for p.take(',') {
			continue
		}
		if p.end() {
			return nil
		}
		if err := one(p); err != nil {
			return err
		}
		if !p.end() && !p.take(',') {
			return p.errorf("want a comma")
		}
	}
}

// params calls one for each ";name=value" that follows.
func (p *scanner) params(one func(name string, p *scanner) error) error {
	for p.take(';') {
		p.space()
		if p.pos == len(p.s) || p.s[p.pos] == ',' || p.s[p.pos] == ';' {
			continue // a semicolon at the end, as in the specification's own examples
		}
		name := p.token()
		if name == "" || !p.take('=') {
			return p.errorf("want name=value after %q", name)
		}
		if err := one(name, p); err != nil {
			return err
		}
	}
	return nil
}

func quote(s string) string {
	var b strings.Builder
	b.WriteByte('"')
	for i := range len(s) {
		switch c := s[i]; {
		case c == '"' || c == '\\':
			b.WriteByte('\\')
			b.WriteByte(c)
		case c < ' ' && c != '\t' || c == 0x7f: // a field is one line
			b.WriteByte(' ')
		default:
			b.WriteByte(c)
		}
	}
	b.WriteByte('"')
	return b.String()
}

// literal renders a value; text knows no arrays and objects, for which it is false.
func literal(v any) (string, bool) {
	switch v := v.(type) {
	case string:
		return quote(v), true
	case float64:
		return strconv.FormatFloat(v, 'f', -1, 64), true
	case bool:
		return strconv.FormatBool(v), true
	}
	return "", false
}
