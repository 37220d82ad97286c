package dvms

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/reservoir-cloud/reservoir/sim"
)

var update = flag.Bool("update", false, "rewrite the transcripts in testdata")

// script of a transcript: "ring NODES" or "locality NODES" begins, lines with ">" are commands.
func (w *world) command(line string) error {
	f := strings.Fields(line)
	if len(f) < 2 {
		return fmt.Errorf("%q: a command and its objects are needed", line)
	}
	for _, n := range f[1:] {
		if i := strings.IndexByte(n, '='); i >= 0 {
			n = n[:i]
		}
		if w.nodes[n] == nil && f[0] != "wait" {
			return fmt.Errorf("%q: there is no node %s", line, n)
		}
	}
	switch f[0] {
	case "wait":
		d, err := time.ParseDuration(f[1])
		if err != nil {
			return err
		}
		return w.sim.Run(w.sim.Now().Add(d))
	case "load":
		for _, x := range f[1:] {
			n, value, _ := strings.Cut(x, "=")
			load, err := strconv.Atoi(value)
			if err != nil {
				return err
			}
			w.load[n] = load
		}
	case "drain":
		w.drain[f[1]] = Draining
	case "idle":
		w.drain[f[1]] = Idle
	case "reserve":
		w.step(f[1], Reserved{By: true})
	case "release":
		w.step(f[1], Reserved{})
	case "crash":
		w.crash(f[1])
	case "restart":
		w.restart(f[1])
	case "cut":
		w.net.Cut(f[1], f[2], true)
		w.net.Cut(f[2], f[1], true)
	case "mend":
		w.net.Cut(f[1], f[2], false)
		w.net.Cut(f[2], f[1], false)
	default:
		return fmt.Errorf("%q: no such command", line)
	}
	return nil
}

// stage of a transcript's first line.
func stage(line string, out *bytes.Buffer) *world {
	f := strings.Fields(line)
	p, over := DefaultProtocol(f[0] == "locality"), Overlay(NewRing(f[1:]))
	if p.Stay {
		var near Nearest // on a line, in the order given
		for i, n := range f[1:] {
			near = append(near, Place{Node: n, Site: n[:1], At: Coordinate{X: float64(i)}})
		}
		over = near
	}
	w := newWorld(1, p, over, f[1:], sim.Link{Delay: 10 * time.Millisecond})
	w.say = func(format string, args ...any) {
		fmt.Fprintf(out, "%6.2fs  %s\n", w.now().Seconds(), fmt.Sprintf(format, args...))
	}
	for _, n := range f[1:] {
		w.monitor(n)
	}
	return w
}

// TestTranscripts plays testdata/*.txt and compares what the nodes do with what is written.
func TestTranscripts(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no transcripts: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) {
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			var got bytes.Buffer
			var w *world
			for line := range strings.Lines(string(want)) {
				line = strings.TrimRight(line, "\n")
				switch {
				case strings.HasPrefix(line, "#"):
					fmt.Fprintln(&got, line)
				case strings.HasPrefix(line, "ring "), strings.HasPrefix(line, "locality "):
					fmt.Fprintln(&got, line)
					w = stage(line, &got)
				case strings.HasPrefix(line, "> "):
					fmt.Fprintln(&got, line)
					if err := w.command(line[2:]); err != nil {
						t.Fatal(err)
					}
				}
			}
			if w.wrong != "" {
				t.Error(w.wrong)
			}
			if *update {
				if err := os.WriteFile(file, got.Bytes(), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			if got.String() != string(want) {
				t.Errorf("%s is not what happens (-update rewrites it); now:\n%s", file, got.String())
			}
		})
	}
}
