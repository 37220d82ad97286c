// Package byhand is the live migration of a busy guest driven by hand over QMP, and the
// product's measured beside it: two QEMUs with the command line of the product's guest
// (disk, NIC and all), the same work and the same limits, joined by TCP, without a site,
// agents, TLS or a record of what happens.
//
// Downtime is how long no vCPU runs: from QEMU's STOP at the source to its RESUME at the
// destination, by QEMU's own timestamps. The product's leaves out the way of one message
// from host to host, since hosts (and sites) do not compare clocks. Total goes from the start
// of the destination's QEMU (by hand) or the call (product) to the guest's going on there (by
// hand) or the record's saying so (product).
package byhand

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/reservoir-cloud/reservoir/hypervisor/disk"
	"github.com/reservoir-cloud/reservoir/hypervisor/qemu/qmp"
	"github.com/reservoir-cloud/reservoir/vhi/guest"
)

// The work: so much memory is rewritten every second, and a CPU kept busy, while the guest
// migrates.
const (
	BurnMemory  = 64 << 20
	BurnSeconds = 20
)

// Manifest of the product's guest, a VEE named web-1.
const Manifest = `service: busy
components:
  - name: web
    image: appliance
    memory: 256MiB
    disks:
      - {name: data, size: 64MiB}
    networks: [public]
    ports: [http:80]
networks:
  - {name: public, public: true}
`

const (
	diskSize = 64 << 20 // as in the manifest
	// downtimeLimit of QEMU, ms, as the product sets it at first.
	downtimeLimit = 10
)

// Result of one migration: how long it took until the destination waited, until the disks were
// the same, until the vCPUs were stopped, how long none ran, and the whole.
type Result struct{ Prepare, Disks, Memory, Down, Total time.Duration }

func (r Result) String() string {
	return fmt.Sprintf("%d ms / %d ms", r.Down.Milliseconds(), r.Total.Milliseconds())
}

// Way from the source to the destination.
type Way struct {
	Prefix string // of the names of TAPs
	Port   int    // first of two TCP ports on the loopback at which the destination listens
	// Dial names the loopback ports at which the source reaches these, first and second.
	Dial [2]int
}

// Machine is the command line of the product's guest, to be made into that of one driven by
// hand.
type Machine struct {
	args []string
	seed string // a copy of its second disk, which is read only
}

var fdPath = regexp.MustCompile(`^/proc/self/fd/\d+$`)

// MachineOf the product's guest, with what it has open by name.
func MachineOf(federation, dir string) (m Machine, err error) {
	cmdlines, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		return m, err
	}
	for _, c := range cmdlines {
		b, err := os.ReadFile(c)
		if err != nil || !strings.Contains(string(b), "qemu-system") || !strings.Contains(string(b), federation+"/") {
			continue
		}
		args := strings.Split(strings.TrimRight(string(b), "\x00"), "\x00")[1:]
		for i := 0; i < len(args); i++ {
			switch a := args[i]; {
			case a == "-add-fd", a == "-name", a == "-incoming":
				i++
			case fdPath.MatchString(a):
				name, err := os.Readlink(filepath.Join(filepath.Dir(c), "fd", filepath.Base(a)))
				if err != nil {
					return m, fmt.Errorf("find a file of the guest: %w", err)
				}
				m.args = append(m.args, name)
			default:
				m.args = append(m.args, a)
			}
		}
		return m, m.copySeed(federation, dir)
	}
	return m, errors.New("the stage's guest is not to be found among the processes")
}

func (m *Machine) copySeed(federation, dir string) error {
	found, err := filepath.Glob(filepath.Join(federation, "*", "*", "qemu", "vees", "*", disk.SeedFile))
	if err != nil || len(found) != 1 {
		return fmt.Errorf("find the seed of the stage's guest: %d found: %w", len(found), err)
	}
	b, err := os.ReadFile(found[0])
	if err != nil {
		return err
	}
	m.seed = filepath.Join(dir, disk.SeedFile)
	return os.WriteFile(m.seed, b, 0o600)
}

// diskNode is the block node of the product's disk.
const diskNode = "disk0"

var fdSet = regexp.MustCompile(`/dev/fdset/\d+`)

// byHand has sockets, disk and TAP of its own, and everything else the same.
func (m Machine) byHand(prefix, dir, name string) (args []string) {
	for _, a := range m.args {
		switch {
		case strings.HasPrefix(a, "socket,id="):
			id, _, _ := strings.Cut(strings.TrimPrefix(a, "socket,id="), ",")
			a = fmt.Sprintf("socket,id=%s,server=on,wait=off,path=%s.%s", id, filepath.Join(dir, name), id)
		case strings.Contains(a, `"node-name":"`+diskNode+`-file"`):
			a = fdSet.ReplaceAllLiteralString(a, filepath.Join(dir, name+".disk"))
		case fdSet.MatchString(a):
			a = fdSet.ReplaceAllLiteralString(a, m.seed)
		case strings.Contains(a, `"type":"tap"`):
			a = fmt.Sprintf(`{"type":"tap","id":"net0","ifname":"%s-%s","script":"no","downscript":"no"}`, prefix, name)
		}
		args = append(args, a)
	}
	return args
}

// hand is one QEMU that is driven by hand.
type hand struct {
	cmd    *exec.Cmd
	qmp    *qmp.Client
	events chan qmp.Event
}

type object map[string]any

func startHand(ctx context.Context, m Machine, prefix, dir, name string, more ...string) (*hand, error) {
	file, err := os.Create(filepath.Join(dir, name+".disk"))
	if err == nil {
		err = errors.Join(file.Truncate(diskSize), file.Close())
	}
	if err != nil {
		return nil, err
	}
	h := &hand{events: make(chan qmp.Event, 1000)}
	h.cmd = exec.CommandContext(ctx, "qemu-system-x86_64", append(m.byHand(prefix, dir, name), more...)...)
	h.cmd.Stderr = os.Stderr
	if err := h.cmd.Start(); err != nil {
		return nil, err
	}
	conn, err := dial(ctx, filepath.Join(dir, name+".qmp"))
	if err == nil {
		h.qmp, err = qmp.Connect(ctx, conn.(*net.UnixConn), func(e qmp.Event) {
			select {
			case h.events <- e:
			default:
			}
		})
	}
	if err != nil {
		h.end()
		return nil, err
	}
	return h, nil
}

func (h *hand) end() {
	if h.qmp != nil {
		h.qmp.Close()
	}
	_ = h.cmd.Process.Kill()
	_ = h.cmd.Wait()
}

// await the event whose data hold want, and say when QEMU sent it. STOP is remembered on
// the way.
func (h *hand) await(ctx context.Context, event, want string, stopped *time.Time) (time.Time, error) {
	for {
		select {
		case e := <-h.events:
			if e.Event == "STOP" && stopped != nil {
				*stopped = e.Time()
			}
			if e.Event == "MIGRATION" && strings.Contains(string(e.Data), `"failed"`) {
				return time.Time{}, errors.New("the migration failed")
			}
			if e.Event == event && strings.Contains(string(e.Data), want) {
				return e.Time(), nil
			}
		case <-ctx.Done():
			return time.Time{}, fmt.Errorf("no event %s %s: %w", event, want, ctx.Err())
		}
	}
}

// script of commands, up to the first that fails.
func (h *hand) script(ctx context.Context, lines ...line) error {
	for _, l := range lines {
		if err := h.qmp.Do(ctx, l.command, l.args, nil); err != nil {
			return err
		}
	}
	return nil
}

type line struct {
	command string
	args    any
}

// dial a socket that is there in a moment.
func dial(ctx context.Context, path string) (net.Conn, error) {
	for {
		conn, err := (&net.Dialer{}).DialContext(ctx, "unix", path)
		if err == nil {
			return conn, nil
		}
		select {
		case <-ctx.Done():
			return nil, err
		case <-time.After(2 * time.Millisecond):
		}
	}
}

// Migrate is what a person would do who knows QEMU's docs/interop/live-block-operations.rst
// by heart and types without delay: mirror the disk over NBD, send memory with a pause
// before the switchover, let go of the mirror in it, stop the NBD server, go on.
func Migrate(ctx context.Context, dir string, m Machine, w Way) (r Result, err error) {
	if err := os.Mkdir(dir, 0o700); err != nil {
		return r, err
	}
	ctx, cancel := context.WithTimeout(ctx, 3*time.Minute)
	defer cancel()
	from, err := startHand(ctx, m, w.Prefix, dir, "from")
	if err != nil {
		return r, err
	}
	defer from.end()
	if err := from.qmp.Do(ctx, "cont", nil, nil); err != nil {
		return r, err
	}
	if err := work(ctx, filepath.Join(dir, "from.guest")); err != nil {
		return r, fmt.Errorf("put the guest to work: %w", err)
	}

	begun := time.Now()
	to, err := startHand(ctx, m, w.Prefix, dir, "to", "-incoming", "defer")
	if err != nil {
		return r, err
	}
	defer to.end()
	address := func(port int) object { return object{"host": "127.0.0.1", "port": fmt.Sprint(port)} }
	memory := func(port int) object { return object{"uri": fmt.Sprintf("tcp:127.0.0.1:%d", port)} }
	err = to.script(ctx,
		line{"nbd-server-start", object{"addr": object{"type": "inet", "data": address(w.Port)}}},
		line{"block-export-add", object{"type": "nbd", "id": "disk", "node-name": diskNode, "name": diskNode, "writable": true}},
		line{"migrate-set-capabilities", object{"capabilities": []object{{"capability": "events", "state": true}}}},
		line{"migrate-incoming", memory(w.Port + 1)})
	if err != nil {
		return r, err
	}
	prepared := time.Now()
	err = from.script(ctx,
		line{"blockdev-add", object{"driver": "nbd", "node-name": "to", "export": diskNode, "discard": "unmap", "server": object{"type": "inet", "host": "127.0.0.1", "port": fmt.Sprint(w.Dial[0])}}},
		line{"blockdev-mirror", object{"job-id": "mirror", "device": diskNode, "target": "to", "sync": "full", "copy-mode": "write-blocking"}})
	if err == nil {
		_, err = from.await(ctx, "BLOCK_JOB_READY", "mirror", nil)
	}
	if err != nil {
		return r, err
	}
	mirrored := time.Now()
	err = from.script(ctx,
		line{"migrate-set-capabilities", object{"capabilities": []object{{"capability": "events", "state": true}, {"capability": "pause-before-switchover", "state": true}}}},
		line{"migrate-set-parameters", object{"max-bandwidth": int64(1) << 40, "downtime-limit": downtimeLimit}},
		line{"migrate", memory(w.Dial[1])})
	var stopped time.Time
	if err == nil {
		_, err = from.await(ctx, "MIGRATION", "pre-switchover", &stopped)
	}
	if err == nil {
		err = from.qmp.Do(ctx, "block-job-cancel", object{"device": "mirror"}, nil)
	}
	if err == nil {
		_, err = from.await(ctx, "BLOCK_JOB_COMPLETED", "mirror", nil)
	}
	if err == nil {
		err = from.qmp.Do(ctx, "migrate-continue", object{"state": "pre-switchover"}, nil)
	}
	if err == nil {
		_, err = to.await(ctx, "MIGRATION", "completed", nil)
	}
	if err == nil {
		err = to.script(ctx, line{"nbd-server-stop", nil}, line{"cont", nil})
	}
	if err != nil {
		return r, err
	}
	resumed, err := to.await(ctx, "RESUME", "", nil)
	return Result{prepared.Sub(begun), mirrored.Sub(prepared), stopped.Sub(mirrored), resumed.Sub(stopped), resumed.Sub(begun)}, err
}

// work is told to the guest as soon as its agent answers, and given the time to begin.
func work(ctx context.Context, path string) error {
	conn, err := dial(ctx, path)
	if err != nil {
		return err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	in := guest.NewReader(conn)
	for ready := false; !ready; {
		m, err := in.Next()
		if err != nil && !errors.Is(err, guest.ErrMalformed) {
			return err
		}
		if s, ok := m.(*guest.Status); ok {
			ready = s.Ready
		}
	}
	for i, c := range []guest.Command{{Type: "burn-cpu", Amount: 1}, {Type: "burn-memory", Amount: BurnMemory}} {
		c.ID, c.Seconds = fmt.Sprint(i), BurnSeconds
		b, err := guest.Encode(c)
		if err != nil {
			return err
		}
		if _, err := conn.Write(b); err != nil {
			return err
		}
		for done := false; !done; {
			m, err := in.Next()
			if err != nil && !errors.Is(err, guest.ErrMalformed) {
				return err
			}
			if a, ok := m.(*guest.Reply); ok && a.ID == c.ID {
				if done = a.OK; !done {
					return fmt.Errorf("%s: %s", c.Type, a.Error)
				}
			}
		}
	}
	return nil
}
