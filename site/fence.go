package site

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/vee"
	"github.com/reservoir-cloud/reservoir/veem"
)

// commands switch hosts off: a folder of programs that are named after hosts, or "default" for
// those that have none. Each is called with "off" and the host's name, and answers with exit
// code 0 when that is off and stays off (IPMI's chassis power off, Redfish's ForceOff, a
// switched socket). It is the machine's operator who fills the folder; no call of the API can.
type commands string

var _ veem.Fencer = commands("")

// fenceWords is how much of what a program says is kept, bytes.
const fenceWords = 2 << 10

// fencer of a folder; nil for none.
func fencer(dir string) (veem.Fencer, error) {
	if dir == "" {
		return nil, nil
	}
	if st, err := os.Stat(dir); err != nil || !st.IsDir() {
		return nil, fault.New(fault.Malformed, "folder of power fences %s: %w", dir, errors.Join(err, errNoFolder)).
			Try("make it, with an executable file for each host, or one called default")
	}
	return commands(dir), nil
}

var errNoFolder = errors.New("want a folder that is there")

func (c commands) program(host string) (string, bool) {
	if !vee.ValidName(host) {
		return "", false
	}
	for _, name := range []string{host, "default"} {
		path := filepath.Join(string(c), name)
		if st, err := os.Stat(path); err == nil && st.Mode().IsRegular() && st.Mode()&0o111 != 0 {
			return path, true
		}
	}
	return "", false
}

// Can implements veem.Fencer.
func (c commands) Can(host string) bool { _, can := c.program(host); return can }

// Fence implements veem.Fencer. A program that does not end in time has failed, and is ended.
func (c commands) Fence(ctx context.Context, host string) error {
	path, can := c.program(host)
	if !can {
		return fault.New(fault.NotFound, "host %s has no power fence in %s", host, string(c))
	}
	cmd := exec.CommandContext(ctx, path, "off", host)
	cmd.WaitDelay = time.Second
	out, err := cmd.CombinedOutput()
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		said := strings.Join(strings.Fields(string(out[:min(len(out), fenceWords)])), " ")
		return fmt.Errorf("%s off %s: %w: %s", path, host, err, said)
	}
	return nil
}
