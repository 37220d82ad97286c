// Command migrate measures the live migration of a busy guest of 256 MiB between two hosts
// of a site, and beside it, in turns, the same migration driven by hand over QMP: two QEMUs
// with the same machine, kernel and work, joined by a Unix socket, without a site, agents,
// TLS or a record of what happens.
//
// Downtime is how long no vCPU runs. By hand it is the time from QEMU's STOP at the source
// to its RESUME at the destination. For the product it is what the migration reports:
// QEMU's own measure up to the moment when all memory is sent, and from there to the return
// of "cont" at the destination, with both hosts' writes to disk in between. Total goes from
// the start of the destination's QEMU (by hand) or the call (product) to the guest's going
// on there (by hand) or the record's saying so (product).
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/reservoir-cloud/reservoir/bench/figure"
	"github.com/reservoir-cloud/reservoir/hypervisor/qemu/qmp"
	"github.com/reservoir-cloud/reservoir/vhi/guest"
	"github.com/reservoir-cloud/reservoir/vmi"
)

var (
	binary = flag.String("reservoir", "build/reservoir", "the binary under test")
	layout = flag.String("image", ".cache/images/appliance", "OCI layout of the appliance")
	rounds = flag.Int("rounds", 5, "migrations of each kind")
	prefix = flag.String("prefix", "bmi", "of the stage's interfaces")
	subnet = flag.String("subnet", "129", "of the stage")
)

// The work: so much memory is filled, and a CPU kept busy, while the guest migrates.
const (
	burnMemory  = 64 << 20
	burnSeconds = 30
)

func main() {
	flag.Parse()
	ctx, cancel := context.WithTimeout(context.Background(), 15*time.Minute)
	defer cancel()
	if err := run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "bench migrate:", err)
		os.Exit(1)
	}
}

// result of one migration.
type result struct{ down, total time.Duration }

func run(ctx context.Context) (err error) {
	dir, err := os.MkdirTemp("", "bench-migrate")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	os.Setenv("RESERVOIR_CONFIG", filepath.Join(dir, "contexts.yaml"))
	stage := filepath.Join(dir, "dev")
	defer func() {
		_, e := reservoir(context.WithoutCancel(ctx), "dev", "down", "--dir", stage)
		err = errors.Join(err, e)
	}()
	file := filepath.Join(dir, "busy.yaml")
	if err := os.WriteFile(file, []byte(manifest), 0o600); err != nil {
		return err
	}
	for _, args := range [][]string{
		{"dev", "up", "--detach", "--hosts", "2", "--dir", stage, "--prefix", *prefix, "--subnet", *subnet},
		{"image", "push", *layout, "appliance"},
		{"service", "deploy", file, "--wait"},
	} {
		if _, err := reservoir(ctx, args...); err != nil {
			return err
		}
	}
	machine, err := machineOf(stage)
	if err != nil {
		return err
	}
	var ours, hand []result
	fmt.Printf("%-6s %22s %22s\n", "round", "product down / total", "by hand down / total")
	for i := range *rounds {
		p, err := product(ctx)
		if err != nil {
			return fmt.Errorf("round %d: %w", i+1, err)
		}
		h, err := byHand(ctx, filepath.Join(dir, fmt.Sprint("hand", i)), machine)
		if err != nil {
			return fmt.Errorf("round %d by hand: %w", i+1, err)
		}
		ours, hand = append(ours, p), append(hand, h)
		fmt.Printf("%-6d %22s %22s\n", i+1, p, h)
	}
	down := func(r result) time.Duration { return r.down }
	total := func(r result) time.Duration { return r.total }
	fmt.Printf("%-6s %22s %22s\n", "median", result{median(ours, down), median(ours, total)}, result{median(hand, down), median(hand, total)})
	ratio := func(of func(result) time.Duration) float64 {
		return float64(median(ours, of)) / float64(max(median(hand, of), time.Millisecond))
	}
	figure.Line("migrate_downtime_ratio", ratio(down), "x", "<=", 1.2)
	figure.Line("migrate_total_ratio", ratio(total), "x", "<=", 1.2)
	return nil
}

func (r result) String() string {
	return fmt.Sprintf("%d ms / %d ms", r.down.Milliseconds(), r.total.Milliseconds())
}

func median(rs []result, of func(result) time.Duration) time.Duration {
	var d []time.Duration
	for _, r := range rs {
		d = append(d, of(r))
	}
	return figure.Median(d)
}

const manifest = `service: busy
components:
  - name: web
    image: appliance
    memory: 256MiB
    networks: [public]
    ports: [http:80]
networks:
  - {name: public, public: true}
`

// product migrates the VEE to the other host.
func product(ctx context.Context) (result, error) {
	for _, work := range []string{"burn-cpu amount=1", fmt.Sprintf("burn-memory amount=%d", burnMemory)} {
		if _, err := reservoir(ctx, append([]string{"vee", "tell", "web-1"}, append(strings.Fields(work), fmt.Sprintf("seconds=%d", burnSeconds))...)...); err != nil {
			return result{}, err
		}
	}
	if _, err := reservoir(ctx, "vee", "migrate", "web-1", "--wait"); err != nil {
		return result{}, err
	}
	out, err := reservoir(ctx, "vee", "migrations", "-o", "json")
	if err != nil {
		return result{}, err
	}
	var list []vmi.Migration
	if err := json.Unmarshal([]byte(out), &list); err != nil || len(list) == 0 || list[0].Ended == nil {
		return result{}, fmt.Errorf("read vee migrations: %q: %w", out, err)
	}
	// The guest's channel is open again, and its work is over, before the next round.
	time.Sleep(burnSeconds*time.Second - time.Since(list[0].Started))
	return result{time.Duration(list[0].DowntimeMS) * time.Millisecond, list[0].Ended.Sub(list[0].Started)}, nil
}

// machineOf the product's guest: the arguments that make it what it is, with the files that
// it has open by their names.
func machineOf(stage string) (args []string, err error) {
	cmdlines, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		return nil, err
	}
	for _, c := range cmdlines {
		b, err := os.ReadFile(c)
		if err != nil || !strings.Contains(string(b), "qemu-system") || !strings.Contains(string(b), stage+"/") {
			continue
		}
		all := strings.Split(strings.TrimRight(string(b), "\x00"), "\x00")
		for i := range len(all) - 1 {
			if slices.Contains([]string{"-machine", "-accel", "-cpu", "-m", "-smp", "-append"}, all[i]) {
				args = append(args, all[i], all[i+1])
			}
			if all[i] == "-kernel" || all[i] == "-initrd" {
				name, err := os.Readlink(filepath.Join(filepath.Dir(c), "fd", filepath.Base(all[i+1])))
				if err != nil {
					return nil, fmt.Errorf("find the guest's %s: %w", all[i], err)
				}
				args = append(args, all[i], name)
			}
		}
		return args, nil
	}
	return nil, errors.New("the stage's guest is not to be found among the processes")
}

// hand is one QEMU that is driven by hand.
type hand struct {
	cmd    *exec.Cmd
	qmp    *qmp.Client
	events chan string
}

func startHand(ctx context.Context, dir, name string, args ...string) (*hand, error) {
	qmpPath := filepath.Join(dir, name+".qmp")
	h := &hand{events: make(chan string, 100)}
	h.cmd = exec.CommandContext(ctx, "qemu-system-x86_64", append(args, "-nodefaults", "-display", "none",
		"-qmp", "unix:"+qmpPath+",server=on,wait=off", "-device", "virtio-serial-pci",
		"-chardev", "socket,id=guest,server=on,wait=off,path="+filepath.Join(dir, name+".guest"),
		"-device", "virtserialport,chardev=guest,name="+guest.PortName,
		"-object", "rng-random,id=rng,filename=/dev/urandom", "-device", "virtio-rng-pci,rng=rng")...)
	h.cmd.Stderr = os.Stderr
	if err := h.cmd.Start(); err != nil {
		return nil, err
	}
	conn, err := dial(ctx, qmpPath)
	if err == nil {
		h.qmp, err = qmp.Connect(ctx, conn.(*net.UnixConn), func(e qmp.Event) {
			select {
			case h.events <- e.Event:
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

// await an event, and say when it came.
func (h *hand) await(ctx context.Context, event string) (time.Time, error) {
	for {
		select {
		case e := <-h.events:
			if e == event {
				return time.Now(), nil
			}
		case <-ctx.Done():
			return time.Time{}, fmt.Errorf("no event %s: %w", event, ctx.Err())
		}
	}
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

func byHand(ctx context.Context, dir string, machine []string) (r result, err error) {
	if err := os.Mkdir(dir, 0o700); err != nil {
		return r, err
	}
	ctx, cancel := context.WithTimeout(ctx, 3*time.Minute)
	defer cancel()
	from, err := startHand(ctx, dir, "from", machine...)
	if err != nil {
		return r, err
	}
	defer from.end()
	if err := work(ctx, filepath.Join(dir, "from.guest")); err != nil {
		return r, fmt.Errorf("put the guest to work: %w", err)
	}

	begun := time.Now()
	incoming := filepath.Join(dir, "incoming")
	to, err := startHand(ctx, dir, "to", append(slices.Clone(machine), "-incoming", "unix:"+incoming)...)
	if err != nil {
		return r, err
	}
	defer to.end()
	type object map[string]any
	if err := from.qmp.Do(ctx, "migrate-set-parameters", object{"max-bandwidth": int64(1) << 40, "downtime-limit": 300}, nil); err != nil {
		return r, err
	}
	if err := from.qmp.Do(ctx, "migrate", object{"uri": "unix:" + incoming}, nil); err != nil {
		return r, err
	}
	type moment struct {
		at  time.Time
		err error
	}
	stopped := make(chan moment, 1)
	go func() {
		at, err := from.await(ctx, "STOP")
		stopped <- moment{at, err}
	}()
	resumed, err := to.await(ctx, "RESUME")
	if err != nil {
		cancel()
	}
	s := <-stopped
	return result{resumed.Sub(s.at), resumed.Sub(begun)}, errors.Join(err, s.err)
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
	for i, c := range []guest.Command{{Type: "burn-cpu", Amount: 1}, {Type: "burn-memory", Amount: burnMemory}} {
		c.ID, c.Seconds = fmt.Sprint(i), burnSeconds
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

func reservoir(ctx context.Context, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, *binary, args...)
	var errs strings.Builder
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("reservoir %s: %w\n%s", strings.Join(args, " "), err, errs.String())
	}
	return string(out), nil
}
