package e2e

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/reservoir-cloud/reservoir/ownership"
	"github.com/reservoir-cloud/reservoir/vee"
	"github.com/reservoir-cloud/reservoir/vmi"
)

// Ownership on real guests: each test has a site of its own whose timings are shortened
// together, prints its times, and watches from the machine's table of processes that no VEE
// ever runs twice. All times are of CLOCK_BOOTTIME, which the namespaces share.

// haScale leaves a busy machine room: renewals every 2.5 s, answered in 2 s, a lease of 15 s.
const haScale = 0.5

var haTimings = ownership.DefaultTimings().Scale(haScale)

// owned is a site of its own, with a service of appliances that are restarted elsewhere. up
// are more arguments of `dev up`.
func owned(t *testing.T, replicas int, up ...string) *watcher {
	return ownedWith(t, replicas, "", up...)
}

// ownedWith is owned with more about the service's one component.
func ownedWith(t *testing.T, replicas int, more string, up ...string) *watcher {
	t.Helper()
	on := stage
	t.Cleanup(func() { stage = on })
	tmp, err := os.MkdirTemp("", "rsv-e2e-ha")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(tmp) })
	t.Setenv("RESERVOIR_CONFIG", filepath.Join(tmp, "contexts.yaml"))
	stage.dir, stage.prefix, stage.subnet = filepath.Join(tmp, "dev"), "eha", "123"
	t.Cleanup(func() {
		if _, err := cli("dev", "down", "--dir", stage.dir); err != nil {
			t.Error(err)
		}
	})
	reservoir(t, append([]string{"dev", "up", "--detach", "--hosts", strconv.Itoa(hosts), "--dir", stage.dir, "--prefix", stage.prefix, "--subnet", stage.subnet, "--ha-scale", fmt.Sprint(haScale)}, up...)...)
	image, err := filepath.Abs("../../.cache/images/appliance")
	if err != nil {
		t.Fatal(err)
	}
	reservoir(t, "image", "push", image, "appliance")
	reservoir(t, "service", "deploy", manifest(t, "ha", replicas, "    restart: elsewhere\n"+more), "--wait", "--timeout", "180s")
	eventually(t, "every host counts by a set of three witnesses", func() bool {
		for i := range hosts {
			b, _ := os.ReadFile(filepath.Join(stage.dir, "alpha", fmt.Sprintf("h%d", i+1), "leases.json"))
			var d ownership.Disk
			if json.Unmarshal(b, &d) != nil || len(d.Witnesses.Members) != 3 {
				return false
			}
		}
		return true
	})
	// A VEE that came to its host before the site knew of that one's guard gets its lease with
	// one of the next renewals, which nothing tells.
	time.Sleep(2 * haTimings.Renew)
	w := &watcher{t: t, stop: make(chan struct{}), life: map[string][]life{}}
	w.wg.Go(w.run)
	t.Cleanup(w.end)
	return w
}

// life of a guest's process.
type life struct {
	pid        int
	began, end time.Duration // CLOCK_BOOTTIME; end 0: it lives
}

// watcher of the guests' processes.
type watcher struct {
	t    *testing.T
	stop chan struct{}
	once sync.Once
	wg   sync.WaitGroup

	mu   sync.Mutex
	life map[string][]life // by VEE
}

func boottime() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		panic(err)
	}
	return time.Duration(ts.Nano())
}

// run looks at the table of processes again and again: whoever is not in it any more has
// ended before the look began.
func (w *watcher) run() {
	for {
		now := boottime()
		there := guests(w.t)
		w.mu.Lock()
		for id, ls := range w.life {
			for i := range ls {
				if ls[i].end == 0 && !slices.Contains(there, guestProcess{id, ls[i].pid}) {
					ls[i].end = now
				}
			}
		}
		for _, g := range there {
			if !slices.ContainsFunc(w.life[g.vee], func(l life) bool { return l.pid == g.pid }) {
				if b, ok := began(g.pid); ok {
					w.life[g.vee] = append(w.life[g.vee], life{pid: g.pid, began: b})
				}
			}
		}
		w.mu.Unlock()
		select {
		case <-w.stop:
			return
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// began is when a process was started (proc(5), stat field 22: clock ticks since boot).
func began(pid int) (time.Duration, bool) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, false
	}
	f := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))
	ticks, err := strconv.ParseInt(f[19], 10, 64)
	return time.Duration(ticks) * 10 * time.Millisecond, err == nil && f[0] != "Z"
}

func (w *watcher) end() {
	w.once.Do(func() { close(w.stop) })
	w.wg.Wait()
}

// lives of a VEE's guests, oldest first, after checking that none began while another lived.
// An end that a guard has noted is taken from there: it is more exact.
func (w *watcher) lives(id vee.ID) []life {
	w.t.Helper()
	w.mu.Lock()
	ls := slices.Clone(w.life[string(id)])
	w.mu.Unlock()
	for i := range ls {
		for _, k := range killed(w.t) {
			if k.PID == ls[i].pid && k.VEE == string(id) {
				ls[i].end = min(ls[i].end, k.Gone)
			}
		}
	}
	slices.SortFunc(ls, func(a, b life) int { return int(a.began - b.began) })
	for i := 1; i < len(ls); i++ {
		// A start is known to a tick of 10 ms.
		if before := ls[i-1]; before.end == 0 || before.end > ls[i].began+10*time.Millisecond {
			w.t.Errorf("VEE %s ran twice: process %d from %v to %v, process %d from %v", id, before.pid, before.began, before.end, ls[i].pid, ls[i].began)
		}
	}
	return ls
}

type killedGuest struct {
	VEE      string        `json:"vee"`
	PID      int           `json:"pid"`
	Deadline time.Duration `json:"deadline"`
	Gone     time.Duration `json:"gone"`
}

// killed by the hosts' guards, as they have noted it.
func killed(t *testing.T) (all []killedGuest) {
	t.Helper()
	for i := range hosts {
		var s struct {
			Killed []killedGuest `json:"killed"`
		}
		b, err := os.ReadFile(filepath.Join(stage.dir, "alpha", fmt.Sprintf("h%d", i+1), "guard.json"))
		if err == nil && json.Unmarshal(b, &s) == nil {
			all = append(all, s.Killed...)
		}
	}
	return all
}

// link of a host's namespace, up or down.
func link(t *testing.T, host, state string) {
	t.Helper()
	if out, err := exec.Command("ip", "-n", stage.prefix+"-alpha-"+host, "link", "set", "up0", state).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
}

// signal a process of the stage.
func signal(t *testing.T, name string, s syscall.Signal) {
	t.Helper()
	if pid := process(t, name); pid > 0 {
		if err := syscall.Kill(pid, s); err != nil && !errors.Is(err, syscall.ESRCH) {
			t.Fatal(err)
		}
	}
}

// killMachine ends everything that runs on a host; nothing starts it again until the
// returned function lets it.
func killMachine(t *testing.T, host string) (boot func()) {
	t.Helper()
	signal(t, "dev", syscall.SIGSTOP)
	out, err := exec.Command("ip", "netns", "pids", stage.prefix+"-alpha-"+host).Output()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range strings.Fields(string(out)) {
		pid, _ := strconv.Atoi(p)
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
	supervisor := process(t, "dev")
	boot = func() { _ = syscall.Kill(supervisor, syscall.SIGCONT) }
	t.Cleanup(boot)
	return boot
}

func eventsOf(t *testing.T, id vee.ID, reason string) (n int) {
	t.Helper()
	for l := range strings.Lines(reservoir(t, "event", "list", "--object", "vee/"+string(id))) {
		if slices.Contains(strings.Fields(l), reason) {
			n++
		}
	}
	return n
}

func runsElsewhere(t *testing.T, v vmi.VEE) func() bool {
	return func() bool {
		n := only(t, v.Descriptor.Name)
		return n.ID == v.ID && n.Host != v.Host && n.State == vee.Active && n.GuestReady
	}
}

// seconds as real timings would take them, for people.
func seconds(d time.Duration) string { return fmt.Sprintf("%.1f s", d.Seconds()) }

// A machine dies with all that runs on it: its VEE is started elsewhere, once, and stays
// there when the machine comes back.
func TestAHostIsKilled(t *testing.T) {
	w := owned(t, 2)
	v, other := only(t, "web-1"), only(t, "web-2")
	dead := boottime()
	boot := killMachine(t, v.Host)
	eventually(t, "it runs elsewhere", runsElsewhere(t, v))
	ready := boottime()
	ls := w.lives(v.ID)
	if len(ls) != 2 {
		t.Fatalf("guests of %s: %+v, want two", v.ID, ls)
	}
	t.Logf("host killed: guest of %s gone after %s, started on %s after %s, ready after %s; times × %g", v.Host, seconds(ls[0].end-dead), only(t, "web-1").Host, seconds(ls[1].began-dead), seconds(ready-dead), haScale)
	if least := haTimings.GiveAway; ls[1].began-dead < least {
		t.Errorf("it was started elsewhere after %v, want at least %v", ls[1].began-dead, least)
	}
	boot()
	eventually(t, "the host is back", func() bool { return hostNamed(t, v.Host).Alive })
	eventually(t, "nothing of the VEE is left on it", func() bool {
		_, err := os.Stat(filepath.Join(stage.dir, "alpha", v.Host, "qemu", "vees", string(v.ID)))
		return errors.Is(err, os.ErrNotExist)
	})
	if n := len(w.lives(v.ID)); n != 2 {
		t.Errorf("%d guests of it in all, want two", n)
	}
	if n := eventsOf(t, v.ID, "GivenAway"); n != 1 {
		t.Errorf("it was given away %d times, want once", n)
	}
	if ls := w.lives(other.ID); len(ls) != 1 || ls[0].end != 0 {
		t.Errorf("the other VEE's guests: %+v, want one that lives", ls)
	}
}

// A host is cut off and all on it goes on: its guest is dead before the other starts. A VEE
// that is not to be restarted elsewhere lives through it.
func TestAHostIsCutOff(t *testing.T) {
	w := owned(t, 1)
	v := only(t, "web-1")
	for _, h := range []string{"h1", "h2", "h3"} {
		if h != v.Host {
			reservoir(t, "host", "cordon", h)
		}
	}
	reservoir(t, "service", "deploy", manifest(t, "stay", 1, ""), "--wait", "--timeout", "180s")
	var stays vmi.VEE
	for _, x := range vees(t) {
		if x.ID != v.ID {
			stays = x
		}
	}
	for _, h := range []string{"h1", "h2", "h3"} {
		reservoir(t, "host", "on", h)
	}
	cut := boottime()
	link(t, v.Host, "down")
	eventually(t, "it runs elsewhere", func() bool {
		for _, n := range vees(t) {
			if n.ID == v.ID {
				return n.Host != v.Host && n.State == vee.Active && n.GuestReady
			}
		}
		return false
	})
	ls := w.lives(v.ID)
	if len(ls) != 2 {
		t.Fatalf("guests of %s: %+v, want two", v.ID, ls)
	}
	t.Logf("host cut off: its guest was dead after %s, the other began after %s, %s later; times × %g", seconds(ls[0].end-cut), seconds(ls[1].began-cut), seconds(ls[1].began-ls[0].end), haScale)
	if over := ls[0].end - cut; over > haTimings.Lease+haTimings.KillTime {
		t.Errorf("its guest lived for %v after the cut, the lease is %v", over, haTimings.Lease)
	}
	if pid := pidOf(t, stays.ID); pid == 0 || len(w.lives(stays.ID)) != 1 {
		t.Errorf("the VEE under no lease has guests %+v, want the one that it had", w.lives(stays.ID))
	}
	link(t, v.Host, "up")
	eventually(t, "the host is back", func() bool { return hostNamed(t, v.Host).Alive })
	eventually(t, "nothing of the VEE is left on it", func() bool {
		_, err := os.Stat(filepath.Join(stage.dir, "alpha", v.Host, "qemu", "vees", string(v.ID)))
		return errors.Is(err, os.ErrNotExist)
	})
	if n := len(w.lives(v.ID)); n != 2 {
		t.Errorf("%d guests of it in all, want two", n)
	}
}

// An agent is stopped for a minute's worth of timings, and goes on: the guard has ended its
// guest meanwhile, and it starts none.
func TestAnAgentIsStopped(t *testing.T) {
	w := owned(t, 1)
	v := only(t, "web-1")
	agent := process(t, "alpha-"+v.Host)
	stopped := boottime()
	if err := syscall.Kill(agent, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = syscall.Kill(agent, syscall.SIGCONT) })
	eventually(t, "it runs elsewhere", runsElsewhere(t, v))
	ls := w.lives(v.ID)
	if len(ls) != 2 {
		t.Fatalf("guests of %s: %+v, want two", v.ID, ls)
	}
	t.Logf("agent stopped: the guard had ended its guest after %s, the other began after %s; times × %g", seconds(ls[0].end-stopped), seconds(ls[1].began-stopped), haScale)
	if over := ls[0].end - stopped; over > haTimings.Lease+haTimings.KillTime {
		t.Errorf("its guest lived for %v, the lease is %v", over, haTimings.Lease)
	}
	if err := syscall.Kill(agent, syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the host is back", func() bool { return hostNamed(t, v.Host).Alive })
	eventually(t, "nothing of the VEE is left on it", func() bool {
		_, err := os.Stat(filepath.Join(stage.dir, "alpha", v.Host, "qemu", "vees", string(v.ID)))
		return errors.Is(err, os.ErrNotExist)
	})
	if n := len(w.lives(v.ID)); n != 2 {
		t.Errorf("%d guests of it in all, want two", n)
	}
}

// A guest that ends by itself is started where it was, also under lease, with pauses that
// grow; one whose policy is never is shown as failed.
func TestGuestsCrash(t *testing.T) {
	w := owned(t, 1)
	v := only(t, "web-1")
	for i := range 3 {
		pid := 0
		eventually(t, "the guest runs", func() bool { pid = pidOf(t, v.ID); return pid != 0 && only(t, "web-1").Restarts == i })
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		eventually(t, "it is started again", func() bool { p := pidOf(t, v.ID); return p != 0 && p != pid })
	}
	eventually(t, "it is ready again", func() bool { n := only(t, "web-1"); return n.GuestReady && n.Restarts == 3 })
	ls := w.lives(v.ID)
	if len(ls) != 4 || only(t, "web-1").Host != v.Host {
		t.Fatalf("guests %+v on %s, want four on %s", ls, only(t, "web-1").Host, v.Host)
	}
	for i, least := range []time.Duration{time.Second, 2 * time.Second, 4 * time.Second} {
		pause := ls[i+1].began - ls[i].end
		t.Logf("guest crashed: started again after %s", seconds(pause))
		if pause < least-100*time.Millisecond {
			t.Errorf("restart %d came after %v, want at least %v", i+1, pause, least)
		}
	}
	reservoir(t, "service", "delete", "ha", "--wait")
	reservoir(t, "service", "deploy", manifest(t, "once", 1, "    restart: never\n"), "--wait", "--timeout", "180s")
	n := only(t, "web-1")
	if err := syscall.Kill(pidOf(t, n.ID), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the VEE has failed", func() bool { return only(t, "web-1").Phase == vee.PhaseFailed })
}

// The control plane stands still for three minutes' worth of timings: the witnesses say so to
// each other, and no guest dies or moves, then or after.
func TestTheControlPlaneIsDown(t *testing.T) {
	w := owned(t, 2)
	before := vees(t)
	eventually(t, "every host has been vouched for just now", func() bool {
		for i := range hosts {
			var s struct {
				Deadline time.Duration `json:"deadline"`
			}
			b, _ := os.ReadFile(filepath.Join(stage.dir, "alpha", fmt.Sprintf("h%d", i+1), "guard.json"))
			if json.Unmarshal(b, &s) != nil || s.Deadline-boottime() < haTimings.Lease*2/3 {
				return false
			}
		}
		return true
	})
	outage := 6 * haTimings.Lease
	site := process(t, "alpha")
	if err := syscall.Kill(site, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	began := boottime()
	t.Cleanup(func() { _ = syscall.Kill(site, syscall.SIGCONT) })
	for boottime()-began < outage {
		time.Sleep(time.Second)
		if k := killed(t); len(k) > 0 {
			t.Fatalf("guests were killed %v after the control plane stopped: %+v", boottime()-began, k)
		}
	}
	// A guest that crashes meanwhile is started again by its host alone.
	pid := pidOf(t, before[0].ID)
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it is started again", func() bool { p := pidOf(t, before[0].ID); return p != 0 && p != pid })
	if err := syscall.Kill(site, syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	back := boottime()
	eventually(t, "all hosts are back", func() bool {
		out, err := cli("host", "list")
		return err == nil && strings.Count(out, " on ") == hosts
	})
	for boottime()-back < haTimings.GiveAway+haTimings.Window { // nobody was forgotten
		time.Sleep(time.Second)
	}
	t.Logf("control plane down for %s (times × %g): no guest died", seconds(back-began), haScale)
	for i, v := range before {
		n := only(t, v.Descriptor.Name)
		if want := 1 + map[bool]int{true: 1}[i == 0]; len(w.lives(v.ID)) != want || n.Host != v.Host || n.State != vee.Active {
			t.Errorf("%s: guests %+v, now %s on %s; before on %s", v.Descriptor.Name, w.lives(v.ID), n.State, n.Host, v.Host)
		}
	}
	if k := killed(t); len(k) > 0 {
		t.Errorf("guests were killed: %+v", k)
	}
}

// An agent that is started again finds its guests under guard, and one whose guard is
// killed goes on with the next.
func TestGuardAndAgentAreKilled(t *testing.T) {
	w := owned(t, 1)
	v := only(t, "web-1")
	dir := filepath.Join(stage.dir, "alpha", v.Host)
	for range 3 {
		kill(t, "alpha-"+v.Host)
		if pid := guardOf(t, v.Host); pid > 0 {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
		time.Sleep(haTimings.Renew)
	}
	eventually(t, "guard and agent are back", func() bool { return guardHolds(dir, v.ID) && hostNamed(t, v.Host).Alive })
	if ls := w.lives(v.ID); len(ls) != 1 || ls[0].end != 0 {
		t.Errorf("its guests: %+v, want the one that it had", ls)
	}
}

// guardOf a host: the process that listens on its socket.
func guardOf(t *testing.T, host string) int {
	t.Helper()
	var r struct {
		Pid int `json:"pid"`
	}
	b, err := os.ReadFile(filepath.Join(stage.dir, "run", "alpha-"+host+"-guard.json"))
	if err != nil || json.Unmarshal(b, &r) != nil {
		t.Fatalf("the guard's process: %v", err)
	}
	return r.Pid
}

// guardHolds reports whether the guard in dir answers and has a guest of the VEE.
func guardHolds(dir string, id vee.ID) bool {
	c, err := net.Dial("unix", filepath.Join(dir, "guard.sock"))
	if err != nil {
		return false
	}
	defer c.Close()
	if _, err := c.Write([]byte(`{"op":"show"}` + "\n")); err != nil {
		return false
	}
	line, err := bufio.NewReader(c).ReadString('\n')
	return err == nil && strings.Contains(line, `"vee":"`+string(id)+`"`)
}

// A VEE under lease moves live: the right to run it goes with it, and the guard of the host
// that it went to holds it. From there it is restarted elsewhere like any other.
func TestALeaseMovesWithItsVEE(t *testing.T) {
	w := owned(t, 1)
	v := only(t, "web-1")
	url := "http://" + address(v) + "/"
	before := requests(t, url)
	to := map[string]string{"h1": "h2", "h2": "h3", "h3": "h1"}[v.Host]
	reservoir(t, "vee", "migrate", string(v.ID), "--to", to, "--wait", "--timeout", "120s")
	if n := only(t, "web-1"); n.Host != to || n.Restarts != 0 {
		t.Fatalf("it is on %s after %d restarts, want %s after none", n.Host, n.Restarts, to)
	}
	if n := requests(t, url); n <= before {
		t.Errorf("request %d after %d: its memory is another", n, before)
	}
	eventually(t, "the guard there holds it", func() bool { return guardHolds(filepath.Join(stage.dir, "alpha", to), v.ID) })
	time.Sleep(haTimings.Lease + haTimings.Window) // it is renewed there
	if n := guestsOf(t, v.ID); n != 1 {
		t.Fatalf("%d guests of it", n)
	}
	for _, k := range killed(t) {
		if k.Deadline != 0 { // else what the migration had left at its source
			t.Fatalf("killed: %+v", k)
		}
	}
	cut := boottime()
	w.forget(v.ID, to)
	link(t, to, "down")
	eventually(t, "it runs elsewhere", runsElsewhere(t, only(t, "web-1")))
	ls := w.lives(v.ID)
	t.Logf("host cut off after a migration: its guest was dead after %s, the other began after %s; times × %g", seconds(ls[0].end-cut), seconds(ls[len(ls)-1].began-cut), haScale)
	link(t, to, "up")
	eventually(t, "the host is back", func() bool { return hostNamed(t, to).Alive })
}

// forget the guests of a VEE but those of one host: during a migration two processes are
// there, of which one runs.
func (w *watcher) forget(id vee.ID, host string) {
	b, err := os.ReadFile(filepath.Join(stage.dir, "alpha", host, "guard.json"))
	if err != nil {
		w.t.Fatal(err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.life[string(id)] = slices.DeleteFunc(w.life[string(id)], func(l life) bool { return !strings.Contains(string(b), fmt.Sprintf(`"pid":%d,`, l.pid)) })
}
