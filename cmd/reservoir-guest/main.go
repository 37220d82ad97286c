// Command reservoir-guest runs inside a VEE. As the first process of a machine it is the
// appliance: it boots, configures the network from the seed medium and serves HTTP. With
// root= on the kernel's command line it is the initramfs of another system, and hands over
// to that one's init. Started by such a system it is only the agent on the guest channel.
//
// It starts no process as the first one, so there are no children to reap.
package main

import (
	"context"
	"fmt"
	"os"

	"github.com/reservoir-cloud/reservoir/cmd/reservoir-guest/boot"
)

// version is set when it is built.
var version = "devel"

func main() {
	err := run(context.Background())
	if err != nil {
		logf("%s", err)
		os.Exit(1) // as the first process: the kernel stops, as it should
	}
}

func run(ctx context.Context) error {
	if os.Getpid() != 1 {
		return resident(ctx, os.Args[1:])
	}
	if err := boot.Mount(); err != nil {
		return err
	}
	root, err := boot.CommandLine("root")
	if err != nil {
		return err
	}
	if root != "" {
		if err := boot.LoadModules(boot.ModulesRoot); err != nil {
			return err
		}
		return boot.SwitchRoot(ctx, root)
	}
	return appliance(ctx)
}

// logf writes one line to standard error: the serial console, or a service's journal.
func logf(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "reservoir-guest: [%7.3f] %s\n", uptime().Seconds(), fmt.Sprintf(format, args...))
}
