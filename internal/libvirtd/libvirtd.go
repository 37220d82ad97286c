// Package libvirtd runs a libvirtd of one's own, with its virtlogd: for tests, and for hosts
// that are namespaces on one machine. On a real host the system runs libvirtd, and nobody
// needs this package.
//
// libvirtd has its state at fixed places. Here each is mounted over by a folder below one
// directory, in a mount namespace that the daemons alone are in; so any number of them run
// beside each other and beside the system's own. Their network namespace is that of the one
// who starts them, and so is that of their guests. What libvirtd has found out about the
// machine's QEMU, which takes it many seconds, they share (/var/cache/libvirt).
package libvirtd

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// folders below the directory, and what they are mounted over.
var folders = [][2]string{
	{"run", "/run/libvirt"}, {"lib", "/var/lib/libvirt"}, {"log", "/var/log/libvirt"}, {"etc", "/etc/libvirt"},
}

// config of libvirtd: root alone reaches the socket, so nobody has to say who he is.
const config = `auth_unix_rw = "none"
unix_sock_dir = "/run/libvirt"
`

// guestConfig: no /dev of its own for each guest, since libvirt cannot make one where a file
// is mounted below /dev (hideKVM).
const guestConfig = "namespaces = []\n"

const (
	startPatience = 30 * time.Second
	stopGrace     = 10 * time.Second
	poll          = 20 * time.Millisecond
)

// Socket of the libvirtd below dir. A socket's path has 107 bytes at most (unix(7)).
func Socket(dir string) string { return filepath.Join(dir, "run", "libvirt-sock") }

// URI of it, for QEMU's guests.
func URI(dir string) string { return "qemu:///system?socket=" + Socket(dir) }

// Prepare the folders below dir.
func Prepare(dir string) error {
	for _, f := range folders {
		if err := os.MkdirAll(filepath.Join(dir, f[0]), 0o755); err != nil { //nolint:gosec // as libvirt's own
			return fmt.Errorf("prepare libvirtd's folders: %w", err)
		}
	}
	for name, text := range map[string]string{"libvirtd.conf": config, "qemu.conf": guestConfig} {
		if err := os.WriteFile(filepath.Join(dir, "etc", name), []byte(text), 0o600); err != nil {
			return fmt.Errorf("prepare libvirtd's folders: %w", err)
		}
	}
	return nil
}

// hideKVM where the user that guests run as may not use it. libvirtd probes QEMU as root,
// finds KVM, then finds that guests cannot have it, holds what it found for outdated, and
// probes again at every call, seconds each.
const hideKVM = `if [ -e /dev/kvm ] && ! setpriv --reuid=libvirt-qemu --regid=libvirt-qemu --init-groups test -w /dev/kvm 2>/dev/null; then
	: >"$1/no-kvm"
	mount --bind "$1/no-kvm" /dev/kvm
fi
`

// Args of the command that is libvirtd below dir, in the foreground, after Prepare.
func Args(dir string) []string {
	var script strings.Builder
	script.WriteString("set -e\n")
	for _, f := range folders {
		fmt.Fprintf(&script, "mkdir -p %s\nmount --bind \"$1/%s\" %s\n", f[1], f[0], f[1])
	}
	script.WriteString(hideKVM)
	script.WriteString("virtlogd --pid-file /run/libvirt/virtlogd.pid &\n")
	script.WriteString("exec libvirtd --pid-file /run/libvirt/libvirtd.pid\n")
	return []string{"unshare", "--mount", "--propagation", "private", "sh", "-c", script.String(), "libvirtd", dir}
}

// Daemon is a libvirtd that runs.
type Daemon struct {
	dir string
	cmd *exec.Cmd
	log *os.File
}

// Start one below dir. It returns when libvirtd listens.
func Start(ctx context.Context, dir string) (_ *Daemon, err error) {
	for _, p := range []string{"libvirtd", "virtlogd"} {
		if _, err := exec.LookPath(p); err != nil {
			return nil, fmt.Errorf("start libvirtd: %w; try: apt-get install --no-install-recommends libvirt-daemon-system libvirt-daemon-driver-qemu", err)
		}
	}
	if err := Prepare(dir); err != nil {
		return nil, err
	}
	d := &Daemon{dir: dir}
	if d.log, err = os.Create(filepath.Join(dir, "libvirtd.log")); err != nil {
		return nil, fmt.Errorf("start libvirtd: %w", err)
	}
	args := Args(dir)
	d.cmd = exec.Command(args[0], args[1:]...) //nolint:gosec,noctx // ended by Stop
	d.cmd.Stdout, d.cmd.Stderr = d.log, d.log
	d.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := d.cmd.Start(); err != nil {
		d.log.Close()
		return nil, fmt.Errorf("start libvirtd: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, startPatience)
	defer cancel()
	var dialer net.Dialer
	for {
		if conn, err := dialer.DialContext(ctx, "unix", Socket(dir)); err == nil {
			return d, conn.Close()
		}
		select {
		case <-ctx.Done():
			words, _ := os.ReadFile(d.log.Name())
			return nil, errors.Join(fmt.Errorf("start libvirtd: it does not listen: %w; it says: %s", ctx.Err(), words), d.Stop())
		case <-time.After(poll):
		}
	}
}

// URI of it, for QEMU's guests.
func (d *Daemon) URI() string { return URI(d.dir) }

// Stop it and its virtlogd. Guests run on, and are found by the next Start on the same
// directory.
func (d *Daemon) Stop() error {
	defer d.log.Close()
	group := -d.cmd.Process.Pid
	_ = syscall.Kill(group, syscall.SIGTERM)
	killed := time.AfterFunc(stopGrace, func() { _ = syscall.Kill(group, syscall.SIGKILL) })
	defer killed.Stop()
	err := d.cmd.Wait()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		return fmt.Errorf("stop libvirtd: %w", err)
	}
	return nil
}
