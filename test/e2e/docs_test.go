package e2e

import (
	"context"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// TestDocumentedVMI runs the examples of docs/vmi.md as they stand there.
func TestDocumentedVMI(t *testing.T) {
	t.Cleanup(func() { nothingLeft(t) })
	text, err := os.ReadFile("../../docs/vmi.md")
	if err != nil {
		t.Fatal(err)
	}
	script := "set -eux\n"
	for i, part := range strings.Split(string(text), "```sh\n") {
		if block, _, ok := strings.Cut(part, "```\n"); ok && i > 0 {
			script += block
		}
	}
	token := jsonOf[struct{ Secret string }](t, "site", "token", "create", "docs", "--role", "provider", "--customer", "acme")
	t.Cleanup(func() { reservoir(t, "site", "token", "revoke", "docs") })
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "bash", "-s")
	cmd.Dir, cmd.Stdin = t.TempDir(), strings.NewReader(script)
	cmd.Env = append(os.Environ(), "SITE="+siteURL(t), "TOKEN="+token.Secret, "CA="+caFile())
	if out, err := cmd.CombinedOutput(); err != nil {
		dump(t)
		t.Errorf("%v\n%s", err, strings.ReplaceAll(string(out), token.Secret, "TOKEN"))
	}
}
