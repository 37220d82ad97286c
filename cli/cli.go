// Package cli is the command line: one file per noun, each command a thin shell over the
// interfaces of a site (smi, vmi, site/admin, image) or over the processes that it starts
// (site, agent, dev). How it speaks is written down in docs/cli.md: results on stdout,
// everything else on stderr, and after each error the next command to try.
//
// Nothing is decided here: what a command shows or refuses, the interface says.
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/reservoir-cloud/reservoir/internal/fault"
)

// version is set by the linker (Makefile).
var version = "devel"

// app is one run of the command line: its streams and the global flags.
type app struct {
	in       io.Reader
	out, err io.Writer
	context  string // --context: overrides the current one
	now      func() time.Time
}

// Main runs one command and returns the exit code of the process.
func Main(args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	a := &app{in: stdin, out: stdout, err: stderr, now: time.Now}
	root := a.root()
	root.SetArgs(args)
	cmd, err := root.ExecuteContextC(ctx)
	if err == nil {
		return 0
	}
	if strings.HasPrefix(err.Error(), "required flag(s)") { // cobra's own, of no type
		err = fault.New(fault.Malformed, "%s: %w", cmd.CommandPath(), err).Try("%s --help", cmd.CommandPath())
	}
	if ctx.Err() != nil && errors.Is(err, context.Canceled) {
		return exitInterrupted
	}
	writeError(stderr, err)
	return exitCode(err)
}

func (a *app) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "reservoir",
		Short: "A cloud site out of Linux machines, a federation out of sites",
		Long: `Reservoir makes a cloud site out of Linux machines, and a federation out of sites.

A service provider hands in a manifest; the site runs the service's virtual machines,
keeps them as many and as well as the manifest says, and gives the service a URL.`,
		Example: `  reservoir doctor                        does this machine have what is needed?
  reservoir dev up --detach               a site with three hosts on this machine
  reservoir service deploy web.yaml --wait
  reservoir service show web`,
		SilenceErrors: true,
		SilenceUsage:  true,
	}
	root.SetIn(a.in)
	root.SetOut(a.out)
	root.SetErr(a.err)
	root.SetHelpTemplate(helpTemplate)
	root.SetUsageTemplate(helpTemplate)
	cobra.EnableCommandSorting = false
	root.PersistentFlags().StringVar(&a.context, "context", "", "the site to speak to (reservoir context list)")
	_ = root.RegisterFlagCompletionFunc("context", a.completeContexts)
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return fault.New(fault.Malformed, "%s: %w", cmd.CommandPath(), err).Try("%s --help", cmd.CommandPath())
	})
	root.AddGroup(&cobra.Group{ID: "services", Title: "Services and what they run on"},
		&cobra.Group{ID: "process", Title: "This machine"})
	for _, c := range []*cobra.Command{a.serviceCmd(), a.accountCmd(), a.veeCmd(), a.vanCmd(), a.imageCmd(), a.manifestCmd(), a.metricCmd(), a.probeCmd(), a.eventCmd(), a.hostCmd(), a.siteCmd(), a.federationCmd(), a.agreementCmd(), a.reservationCmd(), a.planCmd(), a.simCmd(), a.contextCmd()} {
		c.GroupID = "services"
		root.AddCommand(c)
	}
	for _, c := range []*cobra.Command{a.doctorCmd(), a.devCmd(), a.guardCmd(), a.proxyCmd(), a.versionCmd()} {
		c.GroupID = "process"
		root.AddCommand(c)
	}
	root.SetCompletionCommandGroupID("process")
	root.SetHelpCommandGroupID("process")
	group(root)
	check(root)
	return root
}

// noun groups verbs. Alone it shows its help; an unknown verb is an error with the
// nearest ones.
func noun(use, short string, verbs ...*cobra.Command) *cobra.Command {
	c := &cobra.Command{Use: use, Short: short}
	c.AddCommand(verbs...)
	group(c)
	return c
}

func group(c *cobra.Command) {
	c.Args = cobra.ArbitraryArgs
	c.RunE = func(cmd *cobra.Command, args []string) error {
		if len(args) == 0 {
			return cmd.Help()
		}
		return unknownVerb(cmd, args[0])
	}
}

func unknownVerb(cmd *cobra.Command, verb string) error {
	cmd.SuggestionsMinimumDistance = 2
	e := fault.New(fault.Malformed, "%s: there is no command %q", cmd.CommandPath(), verb).Try("%s --help", cmd.CommandPath())
	if near := cmd.SuggestionsFor(verb); len(near) > 0 {
		e = e.Try("%s %s", cmd.CommandPath(), near[0])
	}
	return e
}

// check gives every command an argument check made of its own usage line, in which
// "NAME" is wanted, "[NAME]" may be left out and "NAME…" may be repeated.
func check(c *cobra.Command) {
	if c.Args == nil {
		c.Args = wantArgs
	}
	c.DisableFlagsInUseLine = true
	for _, sub := range c.Commands() {
		check(sub)
	}
}

func wantArgs(cmd *cobra.Command, args []string) error {
	words := strings.Fields(cmd.Use)[1:]
	least, most := 0, len(words)
	for _, w := range words {
		if !strings.HasPrefix(w, "[") {
			least++
		}
		if strings.Contains(w, "…") {
			most = 1 << 20
		}
	}
	if len(args) >= least && len(args) <= most {
		return nil
	}
	want := strings.Join(words, " ")
	if want == "" {
		want = "no argument"
	}
	return fault.New(fault.Malformed, "%s: want %s, got %d arguments", cmd.CommandPath(), want, len(args)).Try("%s --help", cmd.CommandPath())
}

const helpTemplate = `{{with or .Long .Short}}{{. | trimTrailingWhitespaces}}

{{end}}Usage:
{{- if and .Runnable (not .HasAvailableSubCommands)}}
  {{.UseLine}}{{if .HasAvailableFlags}} [flags]{{end}}{{end}}
{{- if .HasAvailableSubCommands}}
  {{.CommandPath}} COMMAND [flags]{{end}}
{{- if .HasExample}}

Examples:
{{.Example}}{{end}}
{{- if .HasAvailableSubCommands}}
{{- $cmds := .Commands}}{{$root := .}}
{{- if eq (len .Groups) 0}}

Commands:{{range $cmds}}{{if .IsAvailableCommand}}
  {{rpad .Name .NamePadding}} {{.Short}}{{end}}{{end}}
{{- else}}{{range $g := .Groups}}

{{.Title}}:{{range $cmds}}{{if and (eq .GroupID $g.ID) .IsAvailableCommand}}
  {{rpad .Name .NamePadding}} {{.Short}}{{end}}{{end}}{{end}}{{end}}{{end}}
{{- if .HasAvailableLocalFlags}}

Flags:
{{.LocalFlags.FlagUsages | trimTrailingWhitespaces}}{{end}}
{{- if .HasAvailableInheritedFlags}}

Global flags:
{{.InheritedFlags.FlagUsages | trimTrailingWhitespaces}}{{end}}
`

// Exit codes, as docs/cli.md documents them.
const (
	exitFailed      = 1
	exitUsage       = 2
	exitNotFound    = 3
	exitDenied      = 4
	exitState       = 5
	exitNoRoom      = 6
	exitUnavailable = 7
	exitTimeout     = 8
	exitInterrupted = 130
)

// exitCode of an error, by its fault.Code.
func exitCode(err error) int {
	if errors.Is(err, context.DeadlineExceeded) {
		return exitTimeout
	}
	switch fault.From(err).Code {
	case fault.Malformed, fault.TooLarge:
		return exitUsage
	case fault.NotFound:
		return exitNotFound
	case fault.Denied, fault.Unauthenticated, fault.TokenInvalid:
		return exitDenied
	case fault.WrongState, fault.Conflict, fault.Exists, fault.InUse, fault.StaleEpoch:
		return exitState
	case fault.NoResources, fault.StoreFull, fault.DiskFull:
		return exitNoRoom
	case fault.Unavailable:
		return exitUnavailable
	case fault.Timeout:
		return exitTimeout
	}
	return exitFailed
}

// writeError tells what went wrong and what to try next. Further lines of a message are
// set in under the first.
func writeError(w io.Writer, err error) {
	f := fault.From(err)
	fmt.Fprintf(w, "error: %s\n", strings.ReplaceAll(strings.TrimSpace(f.Message), "\n", "\n       "))
	if next := f.NextStep(); next != "" {
		fmt.Fprintf(w, "try: %s\n", next)
	}
}
