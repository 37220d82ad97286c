package cli

import (
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
)

var update = flag.Bool("update", false, "rewrite what the scripts in testdata expect")

// TestMain lets the scripts call the test's own binary as reservoir.
func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){
		"reservoir": func() { os.Exit(Main(os.Args[1:], os.Stdin, os.Stdout, os.Stderr)) },
	})
}

// TestScripts runs testdata/*.txtar, each against a site of its own made of fakes: what
// people read there is compared letter by letter.
func TestScripts(t *testing.T) {
	t.Parallel()
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata",
		UpdateScripts:       *update,
		RequireExplicitExec: true,
		Setup: func(e *testscript.Env) error {
			s, err := startFake(e)
			if err != nil {
				return err
			}
			e.Setenv("RESERVOIR_CONFIG", filepath.Join(e.WorkDir, "contexts.yaml"))
			e.Setenv("TZ", "UTC")
			e.Setenv("URL", s.url)
			for name, text := range map[string]string{"ca.pem": s.ca, "token": fakeToken + "\n"} {
				if err := os.WriteFile(filepath.Join(e.WorkDir, name), []byte(text), 0o600); err != nil {
					return err
				}
			}
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){"exit": wantExit, "scrub": scrub, "isjson": isJSON},
	})
}

// wantExit is "exit CODE COMMAND…": the command ends with that code.
func wantExit(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exit CODE COMMAND…")
	}
	err := ts.Exec(args[1], args[2:]...)
	got := "0"
	if err != nil {
		got = strings.TrimPrefix(err.Error(), "exit status ")
	}
	if got != args[0] {
		ts.Fatalf("exit status %s, want %s\n%s%s", got, args[0], ts.ReadFile("stdout"), ts.ReadFile("stderr"))
	}
}

// isJSON is "isjson COMMAND…": the command prints one JSON document, and nothing else.
func isJSON(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) == 0 {
		ts.Fatalf("usage: isjson COMMAND…")
	}
	ts.Check(ts.Exec(args[0], args[1:]...))
	if text := ts.ReadFile("stdout"); !json.Valid([]byte(text)) {
		ts.Fatalf("%s: this is not JSON:\n%s", strings.Join(args, " "), text)
	}
}

// scrub is "scrub stdout|stderr FILE": what was written, with the site's address, which is
// new each time, replaced.
func scrub(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: scrub stdout|stderr FILE")
	}
	text := strings.ReplaceAll(ts.ReadFile(args[0]), ts.Getenv("URL"), "https://SITE")
	text = strings.ReplaceAll(text, ts.Getenv("WORK"), "WORK")
	ts.Check(os.WriteFile(ts.MkAbs(args[1]), []byte(text), 0o600))
}
