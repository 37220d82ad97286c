package vmi_test

import (
	"fmt"
	"log/slog"
	"os"
	"strings"
	"testing"

	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/internal/httpapi"
	"github.com/reservoir-cloud/reservoir/vee"
	"github.com/reservoir-cloud/reservoir/vmi"
)

// TestDocumentation: docs/vmi.md has a row for every operation and every code of an error, and
// its table of states is what the life cycle says.
func TestDocumentation(t *testing.T) {
	b, err := os.ReadFile("../docs/vmi.md")
	if err != nil {
		t.Fatal(err)
	}
	text := string(b)
	api := httpapi.NewServer("test", "1", slog.New(slog.DiscardHandler))
	vmi.Register(api, &counting{})
	ops := api.Operations()
	for _, op := range ops {
		if row := fmt.Sprintf("| `%s %s` |", op.Method, op.Path); !strings.Contains(text, row) {
			t.Errorf("there is no row %s", row)
		}
	}
	if n := strings.Count(text, " /vmi/v1/") - strings.Count(text, "`POST /vmi/v1/accounting` ") - strings.Count(text, "`POST /vmi/v1/accounting`\n") - strings.Count(text, "`POST /vmi/v1/monitoring`"); n != len(ops) {
		t.Errorf("%d operations in the text, %d there are", n, len(ops))
	}
	for code := range fault.Codes() {
		if !strings.Contains(text, "`"+string(code)+"`") {
			t.Errorf("error %s is not explained", code)
		}
	}
	for _, s := range vee.States {
		row := ""
		for line := range strings.Lines(text) {
			if strings.HasPrefix(line, "| "+string(s)) {
				row = line
			}
		}
		cells := strings.Split(row, "|")
		if len(cells) != len(vee.Actions)+3 {
			t.Errorf("state %s: %q", s, row)
			continue
		}
		for i, a := range vee.Actions {
			to, err := s.After(a)
			if err != nil {
				to = ""
			}
			if got := strings.TrimSpace(cells[i+2]); got != string(to) {
				t.Errorf("%s of a %s one: %q, want %q", a, s, got, to)
			}
		}
	}
}
