package e2e

import (
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/reservoir-cloud/reservoir/vmi"
)

func hostNamed(t *testing.T, name string) vmi.Host {
	t.Helper()
	for _, h := range jsonOf[[]vmi.Host](t, "host", "list") {
		if h.Name == name {
			return h
		}
	}
	t.Fatalf("there is no host %s", name)
	return vmi.Host{}
}

// A host of three guests is drained while they answer: all go on elsewhere, with their
// memory and without a restart.
func TestDrain(t *testing.T) {
	for _, h := range []string{"h2", "h3"} {
		reservoir(t, "host", "cordon", h)
	}
	t.Cleanup(func() {
		for _, h := range []string{"h1", "h2", "h3"} {
			reservoir(t, "host", "on", h)
		}
	})
	deploy(t, manifest(t, "drain", 3, ""), "drain")
	for _, h := range []string{"h2", "h3"} {
		reservoir(t, "host", "on", h)
	}
	before := map[string]int{} // requests that each has answered
	url := map[string]string{}
	for _, v := range vees(t) {
		if v.Host != "h1" {
			t.Fatalf("%s is on %s", v.Descriptor.Name, v.Host)
		}
		url[string(v.ID)] = "http://" + address(v) + "/"
		before[string(v.ID)] = requests(t, url[string(v.ID)])
	}
	// They are asked all the time from here on.
	var stop atomic.Bool
	var asking sync.WaitGroup
	var mu sync.Mutex
	answers := map[string]int{}
	for id, u := range url {
		asking.Go(func() {
			for !stop.Load() {
				if ask(u) != "" {
					mu.Lock()
					answers[id]++
					mu.Unlock()
				}
			}
		})
	}
	eventually(t, "all three answer", func() bool {
		mu.Lock()
		defer mu.Unlock()
		return len(answers) == 3
	})
	out, err := cli("host", "drain", "h1", "--wait", "--timeout", "220s")
	stop.Store(true)
	asking.Wait()
	if err != nil || !strings.Contains(out, "drained") {
		dump(t)
		t.Fatalf("drain: %v\n%s", err, out)
	}
	if h := hostNamed(t, "h1"); !h.Drained || h.VEEs != 0 {
		t.Errorf("host h1 after it was drained: %+v", h)
	}
	for _, v := range vees(t) {
		id := string(v.ID)
		if v.Host == "h1" || v.Restarts != 0 {
			t.Errorf("%s is on %s after %d restarts", v.Descriptor.Name, v.Host, v.Restarts)
		}
		if n := requests(t, url[id]); n <= before[id] {
			t.Errorf("%s: request %d after %d, %d answers meanwhile: its memory is another", v.Descriptor.Name, n, before[id], answers[id])
			dump(t)
		}
		eventually(t, "it has one guest process", func() bool { return guestsOf(t, v.ID) == 1 })
	}
	if p := jsonOf[vmi.Reconfiguration](t, "site", "rebalance", "--status"); p.Cause != "drain" || len(p.Steps) != 3 {
		t.Errorf("the plan was %+v", p)
	}
	reservoir(t, "host", "on", "h1")
	// What has just moved rests: a plan by a policy leaves it where it is.
	if p := jsonOf[vmi.Reconfiguration](t, "site", "rebalance", "--plan", "--policy", "balance"); p.State != vmi.ReconfigurationPlanned || len(p.Steps) != 0 {
		t.Errorf("planned: %+v", p)
	}
}
