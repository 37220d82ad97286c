package scenario

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "rewrite the logs in test/scenarios")

const folder = "../../test/scenarios"

// TestScenarios runs every file of test/scenarios and compares what happens with the log
// beside it. One that is meant to fail says so in its log.
func TestScenarios(t *testing.T) {
	files, err := filepath.Glob(folder + "/*.yaml")
	if err != nil || len(files) < 60 {
		t.Fatalf("%d scenarios, %v", len(files), err)
	}
	for _, file := range files {
		name := strings.TrimSuffix(filepath.Base(file), ".yaml")
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			f, err := Parse(text)
			if err != nil {
				t.Fatal(err)
			}
			var log bytes.Buffer
			r, err := f.Run(&log)
			if err != nil {
				t.Fatal(err)
			}
			for _, w := range r.Wrong {
				fmt.Fprintf(&log, "wrong: %s\n", w)
			}
			if len(r.Wrong) > 0 && !strings.HasSuffix(name, "-refused") {
				t.Error(strings.Join(r.Wrong, "\n"))
			}
			for _, row := range r.Rows {
				fmt.Fprintf(&log, "%s: %d violations of %.2f s, %d migrations, %d messages\n", row.Algorithm, row.Violations, row.MeanS, row.Migrations, row.Messages)
			}
			golden := strings.TrimSuffix(file, ".yaml") + ".log"
			if *update {
				if err := os.WriteFile(golden, log.Bytes(), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(want, log.Bytes()) {
				t.Errorf("%s is not what happens (-update rewrites it); now:\n%s", golden, log.String())
			}
		})
	}
}

func TestParse(t *testing.T) {
	for text, want := range map[string]string{
		"":                  "EOF",
		"about: x":          "neither",
		"scripts: [settle]": "field scripts not found",
		"script: [settle]\nexperiment: {hosts: 5}":   "make two files",
		"script: [explode h1]":                       "no command explode",
		"script: [cut]":                              "want cut HOST [HOST]",
		"script: [\"\"]":                             "empty line",
		"script: settle":                             "line 1",
		"experiment: {hosts: 1}":                     "2 to 1,000,000 hosts",
		"experiment: {hosts: 5, setting: hard}":      "published or dense",
		"experiment: {hosts: 5, algorithms: [luck]}": "ring, locality or central",
		"experiment: {hosts: 5, duration: soon}":     "soon",
		"site: {hosts: many}\nscript: [settle]":      "many",
	} {
		if _, err := Parse([]byte(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", text, err, want)
		}
	}
	f, err := Parse([]byte("site: {hosts: 65}\nscript: [settle]"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.Run(nil); err == nil || !strings.Contains(err.Error(), "1 to 64 hosts") {
		t.Errorf("a site of 65 hosts: %v", err)
	}
}

// TestHTML: both kinds of page have what they are for, and names are no markup.
func TestHTML(t *testing.T) {
	for text, want := range map[string][]string{
		"about: <b>\nscript: [wait 5s, cut h1, wait 100s]": {"v1 on h1, 0.0 s to", "5.0 s: cut h1", "&lt;b&gt;", "Nothing was wrong"},
		"experiment: {hosts: 20, setting: dense}":          {"<polyline", "locality", "Mean time in violation"},
		"script: [expect v1 h2]":                           {"v1 runs h1"},
	} {
		f, err := Parse([]byte(text))
		if err != nil {
			t.Fatal(err)
		}
		r, err := f.Run(nil)
		if err != nil {
			t.Fatal(err)
		}
		var page bytes.Buffer
		if err := r.HTML(&page, "A <title>"); err != nil {
			t.Fatal(err)
		}
		for _, w := range append(want, "A &lt;title&gt;") {
			if !strings.Contains(page.String(), w) {
				t.Errorf("%q: the page has no %q", text, w)
			}
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add("site: {hosts: 3}\nscript: [cut h1, settle]")
	f.Add("experiment: {hosts: 20, sites: 2, mean: 50}")
	f.Fuzz(func(t *testing.T, text string) {
		_, _ = Parse([]byte(text)) // it may refuse, and must not panic
	})
}
