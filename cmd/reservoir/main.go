// Command reservoir is all of Reservoir in one binary: a site's control plane, a host's
// agent, and the client that people use. Everything is in package cli.
package main

import (
	"os"

	"github.com/reservoir-cloud/reservoir/cli"
)

func main() { os.Exit(cli.Main(os.Args[1:], os.Stdin, os.Stdout, os.Stderr)) }
