package cli

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// leaves are the commands that do something, in the order of the help.
func leaves(c *cobra.Command) (all []*cobra.Command) {
	for _, sub := range c.Commands() {
		switch {
		case sub.Hidden:
		case sub.HasSubCommands():
			all = append(all, leaves(sub)...)
		default:
			all = append(all, sub)
		}
	}
	return all
}

func commands() []*cobra.Command { return leaves((&app{}).root()) }

// TestEveryListingSpeaksJSON: what lists or shows something takes -o, and what takes it is run
// with -o json by testdata/json.txtar.
func TestEveryListingSpeaksJSON(t *testing.T) {
	script, err := os.ReadFile("testdata/json.txtar")
	if err != nil {
		t.Fatal(err)
	}
	words := map[string]bool{"list": true, "show": true, "status": true, "usage": true, "plan": true, "migrations": true, "audit": true}
	n := 0
	for _, c := range commands() {
		f := c.Flags().Lookup("output")
		listing := f != nil && f.Value.Type() == new(format).Type()
		if words[c.Name()] && !listing {
			t.Errorf("%s has no -o", c.CommandPath())
		}
		if !listing || c.CommandPath() == "reservoir doctor" || strings.HasPrefix(c.CommandPath(), "reservoir dev ") {
			continue // these look at this machine
		}
		n++
		if !strings.Contains(string(script), "isjson "+c.CommandPath()+" ") {
			t.Errorf("testdata/json.txtar does not run %s", c.CommandPath())
		}
	}
	if n < 15 {
		t.Errorf("only %d listings were found", n)
	}
}

const (
	begin = "<!-- commands: written by go test ./cli -run Documentation -update -->\n"
	end   = "<!-- end of commands -->\n"
)

// TestDocumentation: docs/cli.md has every command, with its flags.
func TestDocumentation(t *testing.T) {
	const file = "../docs/cli.md"
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, ok := strings.Cut(string(b), begin)
	was, after, ok2 := strings.Cut(rest, end)
	if !ok || !ok2 {
		t.Fatalf("%s has no place for the commands", file)
	}
	want := reference()
	if *update {
		if err := os.WriteFile(file, []byte(before+begin+want+end+after), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if was != want {
		t.Errorf("%s is not what the commands are: go test ./cli -run Documentation -update", file)
	}
}

// reference is a table of all commands.
func reference() string {
	var b strings.Builder
	b.WriteString("\n| command | | flags |\n|---|---|---|\n")
	for _, c := range commands() {
		path := strings.TrimPrefix(c.CommandPath(), "reservoir ")
		use := path
		if _, args, ok := strings.Cut(c.Use, " "); ok {
			use += " " + args
		}
		var flags []string
		c.LocalNonPersistentFlags().VisitAll(func(f *pflag.Flag) {
			if name := "`--" + f.Name + "`"; f.Name != "help" {
				flags = append(flags, name)
			}
		})
		fmt.Fprintf(&b, "| `%s` | %s | %s |\n", strings.ReplaceAll(use, "|", "\\|"), c.Short, strings.Join(flags, " "))
	}
	b.WriteString("\n")
	return b.String()
}
