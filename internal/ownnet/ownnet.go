// Package ownnet runs a package's tests in a network namespace of their own, so that what
// they do to links, addresses and the firewall ends with them.
package ownnet

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"
)

const inside = "RESERVOIR_TEST_OWN_NETWORK"

// Main is a TestMain: it starts the test binary anew in a namespace whose loopback link is
// up, and there runs the tests by run. Without root the tests run where they are, if they
// may; else it fails.
func Main(m *testing.M, rootless bool, run func(*testing.M) int) {
	if os.Geteuid() != 0 && !rootless {
		fmt.Fprintln(os.Stderr, "needs root: run make test as root (make check leaves it out)")
		os.Exit(1)
	}
	if os.Geteuid() != 0 {
		os.Exit(run(m))
	}
	if os.Getenv(inside) != "" {
		if err := loopbackUp(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(run(m))
	}
	c := exec.CommandContext(context.Background(), os.Args[0], os.Args[1:]...)
	c.Env = append(os.Environ(), inside+"=1")
	c.Stdout, c.Stderr = os.Stdout, os.Stderr
	c.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	err := c.Run()
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit):
		os.Exit(exit.ExitCode())
	case err != nil:
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// loopbackUp, which in a new namespace is down.
func loopbackUp() error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("the loopback link: %w", err)
	}
	return netlink.LinkSetUp(lo)
}
