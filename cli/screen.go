package cli

import (
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/term"
)

// screen shows lines that change. On a terminal it repaints them in place; elsewhere it
// writes a line whenever the text under its key is new.
type screen struct {
	w       io.Writer
	tty     *os.File // nil: not a terminal
	painted int      // lines that stand there now
	last    map[string]string
}

func newScreen(w io.Writer) *screen {
	s := &screen{w: w, last: map[string]string{}}
	if f, ok := w.(*os.File); ok && term.IsTerminal(int(f.Fd())) && os.Getenv("TERM") != "dumb" {
		s.tty = f
	}
	return s
}

// live tells whether lines are repainted in place.
func (s *screen) live() bool { return s.tty != nil }

// paint replaces the lines painted before. Lines that do not fit are cut, so that the
// terminal never scrolls under the cursor's feet.
func (s *screen) paint(lines []string) {
	width, height, err := term.GetSize(int(s.tty.Fd()))
	if err != nil || width < 20 || height < 4 {
		width, height = 80, 24
	}
	io.WriteString(s.w, frame(lines, s.painted, width, height)) //nolint:errcheck // a terminal that is gone shows nothing
	s.painted = min(len(lines), height-1)
}

// frame is what to write to a terminal of that size to replace painted lines by lines.
func frame(lines []string, painted, width, height int) string {
	if len(lines) > height-1 {
		more := len(lines) - (height - 2)
		lines = append(lines[:height-2:height-2], fmt.Sprintf("… and %d more", more))
	}
	var b strings.Builder
	if painted > 0 {
		fmt.Fprintf(&b, "\x1b[%dA", painted)
	}
	for _, l := range lines {
		if r := []rune(l); len(r) > width-1 {
			l = string(r[:width-2]) + "…"
		}
		b.WriteString("\r" + l + "\x1b[K\n")
	}
	b.WriteString("\x1b[J")
	return b.String()
}

// line of a progress display. Detail changes often (bytes, seconds) and is shown on a
// terminal only.
type line struct {
	key, text, detail string
}

// show brings the display up to date.
func (s *screen) show(lines []line) {
	if s.tty != nil {
		texts := make([]string, len(lines))
		for i, l := range lines {
			texts[i] = strings.TrimRight(l.text+"  "+l.detail, " ")
		}
		s.paint(texts)
		return
	}
	for _, l := range lines {
		if s.last[l.key] != l.text {
			s.last[l.key] = l.text
			fmt.Fprintln(s.w, strings.TrimLeft(l.text, " ├└│─"))
		}
	}
}
