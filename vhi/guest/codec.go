package guest

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
)

// Bounds on what a guest may make its host remember.
const (
	MaxKPIs = 256 // in one Status
	MaxName = 128 // of a KPI, a command or an ID, in bytes
	MaxText = 4096
)

// Errors of a Reader. After ErrMalformed the next line can be read; anything else ends
// the connection.
var (
	ErrMalformed = errors.New("malformed message of the guest channel")
	ErrTooLong   = fmt.Errorf("line of the guest channel longer than %d bytes", MaxLine)
)

// Encode makes one line, newline included, of a Hello, Status, Command or Reply.
func Encode(msg any) ([]byte, error) {
	line, err := json.Marshal(msg)
	if err != nil {
		return nil, fmt.Errorf("encoding a %T for the guest channel: %w", msg, err)
	}
	line = append(line, '\n')
	if len(line) > MaxLine {
		return nil, fmt.Errorf("encoding a %T of %d bytes: %w", msg, len(line), ErrTooLong)
	}
	return line, nil
}

// Reader takes messages off a guest channel, from either end. Its memory is bounded by
// MaxLine. Not for use by several goroutines.
type Reader struct {
	lines *bufio.Reader
}

// NewReader reads from r, which it does not close.
func NewReader(r io.Reader) *Reader {
	return &Reader{bufio.NewReaderSize(r, MaxLine)}
}

// Next is one message: a *Hello, *Status or *Reply from a guest, a *Command from a host.
// Lines of nothing are passed over. Errors: ErrMalformed (wrapped), also for the half line
// that is left where an earlier connection was cut; ErrTooLong; io.EOF; the stream's own.
func (r *Reader) Next() (any, error) {
	for {
		line, err := r.lines.ReadSlice('\n')
		switch {
		case errors.Is(err, bufio.ErrBufferFull):
			return nil, ErrTooLong
		case err != nil:
			return nil, err
		case len(line) > 1:
			return decode(line)
		}
	}
}

// decode one line. What has none of the guest's types is a command, so that an agent can
// answer one that it does not know.
func decode(line []byte) (any, error) {
	var head struct {
		Type string `json:"type"`
	}
	if err := json.Unmarshal(line, &head); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	var msg interface{ check() error }
	switch head.Type {
	case "":
		return nil, fmt.Errorf("%w: it has no type", ErrMalformed)
	case "hello":
		msg = new(Hello)
	case "status":
		msg = new(Status)
	case "reply":
		msg = new(Reply)
	default:
		msg = new(Command)
	}
	if err := json.Unmarshal(line, msg); err != nil {
		return nil, fmt.Errorf("%w of type %.40q: %w", ErrMalformed, head.Type, err)
	}
	if err := msg.check(); err != nil {
		return nil, fmt.Errorf("%w of type %.40q: %w", ErrMalformed, head.Type, err)
	}
	return msg, nil
}

func (h *Hello) check() error {
	if len(h.Capabilities) > MaxKPIs {
		return fmt.Errorf("%d capabilities, at most %d", len(h.Capabilities), MaxKPIs)
	}
	return short(MaxText, append(h.Capabilities, h.Version, h.Hostname)...)
}

func (s *Status) check() error {
	if len(s.KPIs) > MaxKPIs {
		return fmt.Errorf("%d KPIs, at most %d", len(s.KPIs), MaxKPIs)
	}
	for name := range s.KPIs {
		if !ValidKPI(name) {
			return fmt.Errorf("KPI name %.40q: want letters, digits, _ . : or -, and no digit first", name)
		}
	}
	return short(MaxText, s.Message, s.Failure)
}

func (c *Command) check() error {
	if c.Seconds < 0 || c.Seconds > math.MaxInt32 {
		return fmt.Errorf("%g seconds: want 0 to %d", c.Seconds, math.MaxInt32)
	}
	return short(MaxName, c.Type, c.ID, c.Name)
}

func (r *Reply) check() error {
	return errors.Join(short(MaxName, r.ID), short(MaxText, r.Error))
}

func short(most int, texts ...string) error {
	for _, t := range texts {
		if len(t) > most {
			return fmt.Errorf("a text of %d bytes where at most %d fit", len(t), most)
		}
	}
	return nil
}

// ValidKPI reports whether a measurement may have this name: at most MaxName letters,
// digits, underscores, dots, colons and dashes, the first no digit.
func ValidKPI(name string) bool {
	if name == "" || len(name) > MaxName {
		return false
	}
	for i, c := range []byte(name) {
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', c == '_':
		case i > 0 && ('0' <= c && c <= '9' || c == '.' || c == ':' || c == '-'):
		default:
			return false
		}
	}
	return true
}
