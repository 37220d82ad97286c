package e2e

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/reservoir-cloud/reservoir/smi"
	"github.com/reservoir-cloud/reservoir/vee"
)

type buffer struct {
	mu sync.Mutex
	b  strings.Builder
}

func (b *buffer) Write(p []byte) (int, error) { b.mu.Lock(); defer b.mu.Unlock(); return b.b.Write(p) }
func (b *buffer) String() string              { b.mu.Lock(); defer b.mu.Unlock(); return b.b.String() }

func ready(t *testing.T, name string) func() bool {
	return func() bool {
		s, err := cli("service", "show", name, "-o", "json")
		return err == nil && strings.Contains(s, `"ready"`) && service(t, name).Phase == smi.Ready
	}
}

func TestAKilledGuestIsStartedAgain(t *testing.T) {
	s := deploy(t, manifest(t, "qemukill", 1, ""), "qemukill")
	v := only(t, "web-1")
	pid := pidOf(t, v.ID)
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the guest runs again", func() bool { p := pidOf(t, v.ID); return p != 0 && p != pid })
	eventually(t, "the service is ready again", ready(t, s.Name))
	if now := only(t, "web-1"); now.ID != v.ID || now.Restarts != 1 {
		t.Errorf("VEE %s with %d restarts, want %s with one", now.ID, now.Restarts, v.ID)
	}
	if ask(s.URLs[0].URL) == "" {
		t.Error("its URL does not answer")
	}
	if out := reservoir(t, "event", "list", "--object", "vee/"+string(v.ID)); !strings.Contains(out, "Exited") && !strings.Contains(out, "Restarted") {
		t.Errorf("no event tells of it:\n%s", out)
	}
}

func TestGuestsSurviveTheirAgent(t *testing.T) {
	deploy(t, manifest(t, "agentkill", 1, ""), "agentkill")
	v := only(t, "web-1")
	pid, url := pidOf(t, v.ID), "http://"+address(v)+"/"
	agent := process(t, "alpha-"+v.Host)
	kill(t, "alpha-"+v.Host)
	if ask(url) == "" {
		t.Error("the guest does not answer while its agent is dead")
	}
	eventually(t, "the agent is back", func() bool { p := process(t, "alpha-"+v.Host); return p != 0 && p != agent })
	eventually(t, "the guest is adopted", func() bool { n := only(t, "web-1"); return n.Phase == vee.PhaseRunning && n.GuestReady })
	if now := pidOf(t, v.ID); now != pid {
		t.Errorf("guest process %d, before %d", now, pid)
	}
	if n := only(t, "web-1").Restarts; n != 0 {
		t.Errorf("%d restarts, want none", n)
	}
	reservoir(t, "vee", "pause", string(v.ID)) // the adopted guest obeys
	eventually(t, "the adopted guest is paused", func() bool { return only(t, "web-1").State == vee.Paused })
}

func TestServicesSurviveTheirSite(t *testing.T) {
	s := deploy(t, manifest(t, "sitekill", 1, ""), "sitekill")
	v := only(t, "web-1")
	url := "http://" + address(v) + "/"
	before := process(t, "alpha")
	kill(t, "alpha")
	if ask(url) == "" {
		t.Error("the guest does not answer while its site is dead")
	}
	eventually(t, "the site is back", func() bool {
		out, err := cli("service", "show", "sitekill")
		return err == nil && out != "" && process(t, "alpha") != before
	})
	eventually(t, "the service is ready", ready(t, "sitekill"))
	now := service(t, "sitekill")
	if now.URLs[0].URL != s.URLs[0].URL || ask(now.URLs[0].URL) == "" {
		t.Errorf("URL %s before, %s now; want the same, answering", s.URLs[0].URL, now.URLs[0].URL)
	}
	if pidOf(t, v.ID) == 0 || only(t, "web-1").ID != v.ID {
		t.Error("the VEE was replaced")
	}
}

// Bad wishes: each is refused with its reason and the next step, and what runs goes on.
func TestRefusalsSayWhy(t *testing.T) {
	deploy(t, manifest(t, "bystander", 1, ""), "bystander")
	pid := pidOf(t, only(t, "web-1").ID)
	base := "service: bad\nnetworks:\n  - {name: public, public: true}\ncomponents:\n  - name: web\n    replicas: {min: 1, max: 1, initial: 1}\n    memory: %s\n    image: %s\n    networks: [public]\n"
	for name, c := range map[string]struct{ manifest, says string }{
		"an image that is not there": {fmt.Sprintf(base, "128MiB", "nosuch"), "nosuch"},
		"another digest":             {fmt.Sprintf(base, "128MiB", `"appliance@sha256:`+strings.Repeat("0", 64)+`"`), "sha256:000"},
		"too much memory":            {fmt.Sprintf(base, "100TiB", "appliance"), "memory"},
		"an unknown unit":            {fmt.Sprintf(base, "12parsec", "appliance"), "12parsec"},
		"a negative size":            {fmt.Sprintf(base, `"-1MiB"`, "appliance"), "-1MiB"},
		"a truncated manifest":       {"<?xml version=\"1.0\"?><Envelope xmlns=\"http://schemas.dmtf.org/ovf/envelope/1\"><Ref", ":1"},
		"an entity bomb":             {"<?xml version=\"1.0\"?><!DOCTYPE x [<!ENTITY a \"aaaa\">]><Envelope>&a;</Envelope>", "DOCTYPE"},
		"a start order in circles": {fmt.Sprintf(base, "128MiB", "appliance") + "    startAfter: [db]\n  - name: db\n    image: appliance\n    memory: 128MiB\n    startAfter: [web]\n",
			"cycle"},
	} {
		out, err := cli("service", "deploy", write(t, c.manifest))
		if err == nil || !strings.Contains(err.Error(), c.says) || !strings.Contains(err.Error(), "try:") {
			t.Errorf("%s: %v\n%s\nwant an error with %q and what to try", name, err, out, c.says)
		}
	}
	if list := jsonOf[[]smi.Service](t, "service", "list"); len(list) != 1 {
		t.Errorf("%d services, want the bystander alone", len(list))
	}
	if now := pidOf(t, only(t, "web-1").ID); now != pid {
		t.Error("the bystander's guest was disturbed")
	}
}

// Site and agents are killed at random during thirty deploys, scales and deletes;
// afterwards every service is as desired, no guest runs that no VEE owns, no disk is left.
func TestKilledAtRandom(t *testing.T) {
	seed := uint64(20090512)
	if s := os.Getenv("RESERVOIR_SEED"); s != "" {
		if _, err := fmt.Sscan(s, &seed); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("RESERVOIR_SEED=%d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	names := []string{"one", "two", "three"}
	files, wanted := map[string]string{}, map[string]int{}
	for _, n := range names {
		files[n] = manifest(t, n, 1, "")
	}
	t.Cleanup(func() {
		for _, n := range names {
			_, _ = cli("service", "delete", n, "--wait")
		}
	})
	// do repeats a command that a kill may have interrupted until the site has answered it
	// one way or the other, as a person would.
	do := func(done func(error) bool, args ...string) {
		t.Helper()
		var err error
		eventually(t, strings.Join(args, " "), func() bool {
			_, err = cli(args...)
			return err == nil || done(err)
		})
	}
	says := func(part string) func(error) bool {
		return func(err error) bool { return strings.Contains(err.Error(), part) }
	}
	processes := []string{"alpha", "alpha-h1", "alpha-h2", "alpha-h3"}
	for op := range 30 {
		name := names[random.IntN(len(names))]
		var victims []string
		switch random.IntN(4) {
		case 0:
			victims = []string{"alpha"}
		case 1:
			victims = []string{processes[1+random.IntN(hosts)]}
		case 2:
			victims = []string{"alpha", processes[1+random.IntN(hosts)]}
		}
		var wg sync.WaitGroup
		if len(victims) > 0 {
			after := time.Duration(random.IntN(1500)) * time.Millisecond
			pids := make([]int, len(victims))
			for i, v := range victims {
				pids[i] = process(t, v)
			}
			wg.Go(func() {
				time.Sleep(after)
				for _, pid := range pids {
					if pid > 0 {
						_ = syscall.Kill(pid, syscall.SIGKILL)
					}
				}
			})
		}
		switch _, there := wanted[name]; {
		case !there:
			t.Logf("%d: deploy %s, kill %v", op, name, victims)
			do(says("exists"), "service", "deploy", files[name])
			wanted[name] = 1
		case random.IntN(3) == 0:
			t.Logf("%d: delete %s, kill %v", op, name, victims)
			do(says("does not exist"), "service", "delete", name)
			delete(wanted, name)
			wg.Wait()
			eventually(t, "deletion of "+name, func() bool {
				_, err := cli("service", "show", name)
				return err != nil && strings.Contains(err.Error(), "does not exist")
			})
		default:
			n := 1 + random.IntN(3)
			t.Logf("%d: scale %s to %d, kill %v", op, name, n, victims)
			do(func(error) bool { return false }, "service", "scale", name, "web", fmt.Sprint(n))
			wanted[name] = n
		}
		wg.Wait()
	}
	total := 0
	for name, n := range wanted {
		eventually(t, name+" is ready", ready(t, name))
		s := service(t, name)
		if s.Components[0].Ready != n {
			t.Errorf("%s has %d ready replicas, want %d", name, s.Components[0].Ready, n)
		}
		if got := answering(s.URLs[0].URL); len(got) != n {
			t.Errorf("%s is answered by %v, want %d replicas", name, got, n)
		}
		total += n
	}
	eventually(t, "as many VEEs as replicas", func() bool { return len(vees(t)) == total })
	eventually(t, "as many guests as VEEs", func() bool { return len(guests(t)) == total })
	eventually(t, "no disk of other VEEs", func() bool {
		dirs, _ := filepath.Glob(filepath.Join(stage.dir, "alpha", "h*", "qemu", "vees", "*"))
		return len(dirs) == total
	})
	seen := map[string]bool{}
	for _, v := range vees(t) {
		if seen[address(v)] {
			t.Errorf("two VEEs have the address %s", address(v))
		}
		seen[address(v)] = true
	}
	for name := range wanted {
		remove(t, name)
	}
	nothingLeft(t)
}
