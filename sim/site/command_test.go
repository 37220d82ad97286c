package site

import (
	"strings"
	"testing"
)

// TestBadCommands: what cannot be done is said, with what is wanted instead.
func TestBadCommands(t *testing.T) {
	for line, want := range map[string]string{
		"":                    "empty line",
		"explode h1":          "no command explode",
		"cut":                 "want cut HOST [HOST]",
		"cut h1 h2 h3":        "want cut HOST [HOST]",
		"cut h9":              "no host h9",
		"cut h1 h9":           "no h9",
		"cut h1 h1":           "no h1",
		"wait soon":           "soon",
		"network lots 1ms":    "loss of lots",
		"network 101% 1ms":    "loss of 101%",
		"network 1% later":    "later",
		"clock h1 0":          "above 0",
		"clock h1 quick":      "above 0",
		"slow-disk h1 much":   "much",
		"kill v9":             "no VEE v9",
		"control sideways":    "want down, up",
		"restore":             "no backup",
		"fence h1":            "h1 is on",
		"load v1 heavy":       "want a VEE and per cent",
		"load v9 10":          "want a VEE and per cent",
		"move v1 h9":          "no host h9",
		"move v9 h1":          "v9 runs nowhere",
		"expect v9 h1":        "no VEE v9",
		"expect v1 nowhere":   "v1 runs h1",
		"expect v1 elsewhere": "v1 runs h1",
		"expect-running 2":    "1 VEEs run",
		"expect-running all":  "1 VEEs run",
	} {
		s, err := New(Config{}, nil)
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Do(line); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", line, err, want)
		}
	}
	for _, c := range []Config{{Hosts: -1}, {Hosts: 65}, {Machines: 8}, {VEEs: 513}, {Room: -1}, {Load: -1}} {
		if _, err := New(c, nil); err == nil {
			t.Errorf("a site of %+v was built", c)
		}
	}
}

// TestCommandsTwice: to do what has been done already, or to undo what was not, harms nobody.
func TestCommandsTwice(t *testing.T) {
	s, err := New(Config{Hosts: 3, VEEs: 3, Watchdog: true}, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{
		"join h1", "power-on h1", "thaw h1", "start-agent h1", "resume-agent h1", "rescue h1", "undrain h1", "control resume", "store up", "tickets kept",
		"power-off h1", "power-off h1", "hang h1", "freeze h1", "thaw h1", "crash-agent h1", "start-agent h1", "fence h1", "wait 2s", "power-on h1", "power-on h1",
		"hang h2", "hang h2", "wait 2m", "freeze h3", "freeze h3", "power-off h3", "thaw h3", "power-on h3",
		"strand h1", "strand h1", "wait 20s", "rescue h1", "rescue h1", "control down", "control down", "control up", "settle",
	} {
		if err := s.Do(line); err != nil {
			t.Fatal(err)
		}
	}
	if wrong := s.Wrong(); len(wrong) > 0 {
		t.Error(strings.Join(wrong, "\n"))
	}
}
