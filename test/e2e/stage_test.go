// Package e2e drives the real binary on real guests: a site with three hosts in network
// namespaces, QEMU, kernel bridges, TLS and etcd, as `reservoir dev up` makes them. It
// needs root, QEMU and the appliance's image (make images), and fails where they are
// missing.
package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/reservoir-cloud/reservoir/smi"
	"github.com/reservoir-cloud/reservoir/vee"
	"github.com/reservoir-cloud/reservoir/vmi"
)

// The stage has names of its own, so that a federation of the user's may run beside it.
const hosts = 3

var stage = struct {
	binary string
	dir    string // of the federation
	tmp    string
	prefix string // of its namespaces
	subnet string
}{prefix: "e2e", subnet: "120"}

func TestMain(m *testing.M) {
	code, err := run(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, "e2e:", err)
		code = 1
	}
	os.Exit(code)
}

func run(m *testing.M) (code int, err error) {
	if os.Geteuid() != 0 {
		return 1, errors.New("needs root: run make test as root (make check leaves it out)")
	}
	image, err := filepath.Abs("../../.cache/images/appliance")
	if err != nil {
		return 1, err
	}
	if _, err := os.Stat(image); err != nil {
		return 1, fmt.Errorf("the appliance's image is missing (make images): %w", err)
	}
	if stage.tmp, err = os.MkdirTemp("", "reservoir-e2e"); err != nil {
		return 1, err
	}
	defer os.RemoveAll(stage.tmp)
	stage.binary, stage.dir = filepath.Join(stage.tmp, "reservoir"), filepath.Join(stage.tmp, "dev")
	os.Setenv("RESERVOIR_CONFIG", filepath.Join(stage.tmp, "contexts.yaml"))
	if out, err := exec.Command("go", "build", "-o", stage.binary, "../../cmd/reservoir").CombinedOutput(); err != nil {
		return 1, fmt.Errorf("build reservoir: %w\n%s", err, out)
	}
	defer func() {
		if _, e := cli("dev", "down", "--dir", stage.dir); e != nil {
			code, err = 1, errors.Join(err, e)
		}
	}()
	// The guest's time to shut down by itself is real; nothing here waits for a lost host.
	if _, err := cli("dev", "up", "--detach", "--hosts", strconv.Itoa(hosts), "--dir", stage.dir, "--prefix", stage.prefix, "--subnet", stage.subnet,
		"--accounting-interval", "5s"); err != nil {
		return 1, err
	}
	if _, err := cli("image", "push", image, "appliance"); err != nil {
		return 1, err
	}
	return m.Run(), nil
}

// cli runs the command line as a person would; the error carries what it printed.
func cli(args ...string) (string, error) { return cliWithin(4*time.Minute, args...) }

func cliWithin(limit time.Duration, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	cmd := exec.CommandContext(ctx, stage.binary, args...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("reservoir %s: %w\n%s", strings.Join(args, " "), err, errs.String())
	}
	return out.String(), nil
}

func reservoir(t *testing.T, args ...string) string {
	t.Helper()
	out, err := cli(args...)
	if err != nil {
		dump(t)
		t.Fatal(err)
	}
	return out
}

// dump shows what helps to understand a failure.
func dump(t *testing.T) {
	t.Helper()
	for _, args := range [][]string{{"service", "list"}, {"vee", "list", "--destroyed"}, {"event", "list"}, {"dev", "status", "--dir", stage.dir}} {
		if out, err := cli(args...); err == nil {
			t.Logf("reservoir %s\n%s", strings.Join(args, " "), out)
		}
	}
	logs, _ := filepath.Glob(filepath.Join(stage.dir, "log", "*.log"))
	for _, l := range logs {
		b, _ := os.ReadFile(l)
		lines := strings.Split(strings.TrimSpace(string(b)), "\n")
		t.Logf("%s\n%s", filepath.Base(l), strings.Join(lines[max(0, len(lines)-15):], "\n"))
	}
}

func jsonOf[T any](t *testing.T, args ...string) (v T) {
	t.Helper()
	return decode[T](t, reservoir(t, append(args, "-o", "json")...))
}

func decode[T any](t *testing.T, text string) (v T) {
	t.Helper()
	if err := json.Unmarshal([]byte(text), &v); err != nil {
		t.Fatalf("%.200s: %v", text, err)
	}
	return v
}

func vees(t *testing.T) []vmi.VEE {
	t.Helper()
	return jsonOf[[]vmi.VEE](t, "vee", "list")
}

func only(t *testing.T, name string) vmi.VEE {
	t.Helper()
	for _, v := range vees(t) {
		if v.Descriptor.Name == name {
			return v
		}
	}
	dump(t)
	t.Fatalf("there is no VEE %s", name)
	return vmi.VEE{}
}

func service(t *testing.T, name string) smi.Service {
	t.Helper()
	return jsonOf[smi.Service](t, "service", "show", name)
}

func address(v vmi.VEE) string {
	a, _, _ := strings.Cut(v.Descriptor.NICs[0].Address, "/")
	return a
}

// manifest of a service of appliances; more goes below its one component.
func manifest(t *testing.T, name string, replicas int, more string) string {
	t.Helper()
	return write(t, fmt.Sprintf(`service: %s
networks:
  - name: public
    public: true
components:
  - name: web
    replicas: {min: 1, max: 6, initial: %d}
    image: appliance
    memory: 128MiB
    networks: [public]
    ports: [http:80]
%s`, name, replicas, more))
}

func write(t *testing.T, text string) string {
	t.Helper()
	f := filepath.Join(t.TempDir(), "manifest.yaml")
	if err := os.WriteFile(f, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return f
}

// deploy waits until the service is ready, and deletes it when the test is over.
func deploy(t *testing.T, file, name string) smi.Service {
	t.Helper()
	t.Cleanup(func() { remove(t, name) })
	reservoir(t, "service", "deploy", file, "--wait", "--timeout", "230s")
	return service(t, name)
}

// remove deletes a service, and checks that nothing of it is left.
func remove(t *testing.T, name string) {
	t.Helper()
	if out, err := cli("service", "delete", name, "--wait"); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
	nothingLeft(t)
}

// nothingLeft: no guest, no TAP, no disk, but those of VEEs that there are.
func nothingLeft(t *testing.T) {
	t.Helper()
	wanted, nics := map[string]bool{}, 0
	for _, v := range vees(t) {
		wanted[string(v.ID)] = true
		nics += len(v.Descriptor.NICs)
	}
	for _, id := range guests(t) {
		if !wanted[id.vee] {
			t.Errorf("a guest of VEE %s runs (process %d), which there is not", id.vee, id.pid)
		}
	}
	dirs, err := filepath.Glob(filepath.Join(stage.dir, "alpha", "h*", "qemu", "vees", "*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range dirs {
		if !wanted[filepath.Base(d)] {
			t.Errorf("%s is left over", d)
		}
	}
	for i := range hosts {
		out, err := exec.Command("ip", "-n", fmt.Sprintf("%s-alpha-h%d", stage.prefix, i+1), "-o", "link").Output()
		if err != nil {
			t.Fatal(err)
		}
		if n := strings.Count(string(out), ": rt"); n > nics {
			t.Errorf("host h%d has %d TAPs for the %d NICs of all VEEs", i+1, n, nics)
		}
	}
}

type guestProcess struct {
	vee string
	pid int
}

// guests that run in the namespaces of the stage's hosts, from the table of processes.
func guests(t *testing.T) (list []guestProcess) {
	t.Helper()
	here := map[string]bool{}
	for i := range hosts {
		var st syscall.Stat_t
		if err := syscall.Stat(fmt.Sprintf("/run/netns/%s-alpha-h%d", stage.prefix, i+1), &st); err != nil {
			t.Fatal(err)
		}
		here[fmt.Sprintf("net:[%d]", st.Ino)] = true
	}
	procs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range procs {
		ns, _ := os.Readlink(filepath.Join(p, "ns/net"))
		b, err := os.ReadFile(filepath.Join(p, "cmdline"))
		if err != nil || !here[ns] || !bytes.Contains(b, []byte("qemu-system")) {
			continue
		}
		pid, _ := strconv.Atoi(filepath.Base(p))
		for _, f := range strings.FieldsFunc(string(b), func(r rune) bool { return strings.ContainsRune("\x00/,=:@", r) }) {
			if _, err := vee.ParseID(f); err == nil {
				list = append(list, guestProcess{f, pid})
				break
			}
		}
	}
	return list
}

func pidOf(t *testing.T, id vee.ID) int {
	t.Helper()
	for _, g := range guests(t) {
		if g.vee == string(id) {
			return g.pid
		}
	}
	return 0
}

type devProcess struct {
	Name string `json:"name"`
	PID  int    `json:"pid"`
}

// process of the stage by its name in `reservoir dev status`: "alpha", "alpha-h1".
func process(t *testing.T, name string) int {
	t.Helper()
	for _, p := range jsonOf[[]devProcess](t, "dev", "status", "--dir", stage.dir) {
		if p.Name == name {
			return p.PID
		}
	}
	t.Fatalf("dev status shows no process %s", name)
	return 0
}

// kill -9 of a process of the stage, which the supervisor starts again.
func kill(t *testing.T, name string) {
	t.Helper()
	if pid := process(t, name); pid > 0 {
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
			t.Fatal(err)
		}
	}
}

// eventually asks until ok or a generous bound; waiting longer than that is a failure.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(2 * time.Minute); !ok(); time.Sleep(100 * time.Millisecond) {
		if time.Now().After(deadline) {
			dump(t)
			t.Fatalf("%s: not within two minutes", what)
		}
	}
}

var web = &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}

// ask is one HTTP request; empty when it was not answered with 200.
func ask(url string) string {
	resp, err := web.Get(url)
	if err != nil {
		return ""
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		return ""
	}
	return string(b)
}

// field of the appliance's page: "hostname", "request".
func field(page, name string) string {
	for l := range strings.Lines(page) {
		if v, ok := strings.CutPrefix(l, name+": "); ok {
			return strings.TrimSpace(v)
		}
	}
	return ""
}

// answering are the replicas that answer at url within a few rounds.
func answering(url string) []string {
	seen := map[string]bool{}
	for range 24 {
		if h := field(ask(url), "hostname"); h != "" {
			seen[h] = true
		}
	}
	var list []string
	for h := range seen {
		list = append(list, h)
	}
	slices.Sort(list)
	return list
}
