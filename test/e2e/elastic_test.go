package e2e

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/reservoir-cloud/reservoir/smi"
	"github.com/reservoir-cloud/reservoir/vmi"
)

// elastic is a service that keeps sessions per replica near 10, and decides fast.
const elastic = `service: tide
networks:
  - {name: public, public: true}
components:
  - name: web
    image: appliance
    replicas: {initial: 1, min: 1, max: 3}
    memory: {size: 128MiB, max: 256MiB}
    networks: [public]
    ports: [http:80]
    products:
      - {class: reservoir.kpi, properties: [{key: sessions, value: "5"}, {key: hunger, value: "0"}]}
    elastic:
      - {kpi: sessions, window: 4s, frequency: 1s, quota: 10, tolerance: 20}
    cooldown: {up: 3s, down: 5s}
kpis:
  - {name: sessions, component: web}
  - {name: hunger, query: max(hunger)}
rules:
  - {name: feed, every: 1s, condition: hunger > 0.9, do: {action: resize, component: web, memory: 256MiB}}
`

// decisions of a service's rules, in the words of its events.
func decisions(t *testing.T, name string) (list []string) {
	t.Helper()
	for _, e := range jsonOf[[]smi.Event](t, "event", "list", "--service", name) {
		if slices.Contains([]string{"ScaledUp", "ScaledDown", "Resized"}, e.Reason) {
			list = append(list, e.Reason+": "+e.Message)
		}
	}
	return list
}

// A number that a guest tells makes a component larger, smaller, and its replicas fatter, with
// the site stopped in the middle; and what was decided can be replayed.
func TestAKPIChangesTheSize(t *testing.T) {
	deploy(t, write(t, elastic), "tide")
	tell := func(vee, kpi string, amount float64) {
		t.Helper()
		reservoir(t, "vee", "tell", vee, "kpi", "name="+kpi, fmt.Sprintf("amount=%g", amount))
	}
	web := func() smi.Component { return service(t, "tide").Components[0] }
	settled := func(n int) func() bool {
		return func() bool {
			c := web()
			return c.Desired == n && c.Ready == n && len(c.Replicas) == n
		}
	}

	tell("web-1", "sessions", 25)
	eventually(t, "a second replica is wanted", func() bool { return web().Desired > 1 })
	before := process(t, "alpha")
	kill(t, "alpha")
	eventually(t, "the site is back", func() bool {
		_, err := cli("service", "show", "tide")
		return err == nil && process(t, "alpha") != before
	})
	eventually(t, "three replicas, also with the site started again", settled(3))

	pid := pidOf(t, only(t, "web-1").ID)
	tell("web-1", "hunger", 1)
	eventually(t, "larger replicas", func() bool {
		for _, v := range vees(t) {
			if v.Descriptor.Memory != 256<<20 || len(v.NextBoot) > 0 {
				return false
			}
		}
		return true
	})
	at := address(only(t, "web-1"))
	eventually(t, "the guest has the memory", func() bool { return kpi(at, "memory_total_bytes") > 192<<20 })
	if now := pidOf(t, only(t, "web-1").ID); now != pid {
		t.Errorf("web-1 was process %d and is %d: it was restarted", pid, now)
	}
	tell("web-1", "hunger", 0)

	tell("web-1", "sessions", 1)
	eventually(t, "one replica", settled(1))
	list := decisions(t, "tide")
	for _, want := range []string{"ScaledUp: web from 1 to 2: sessions is ", "ScaledDown: web from 2 to 1: sessions is ", "Resized: web to 256MiB each: feed: hunger > 0.9 holds with hunger = 1"} {
		if !slices.ContainsFunc(list, func(s string) bool { return strings.HasPrefix(s, want) }) {
			t.Errorf("no decision %q among\n%s", want, strings.Join(list, "\n"))
		}
	}
	if text := reservoir(t, "service", "rules", "explain", "tide"); !strings.Contains(text, "web: 1 of 1 ready; the manifest: 1 to 3") {
		t.Errorf("explained as\n%s", text)
	}
	replayed := jsonOf[smi.Replayed](t, "service", "rules", "replay", "tide", "--from", "10m", "--boot", "3s", "--changes")
	if len(replayed.Decisions) < 2 || replayed.Samples < 10 {
		t.Errorf("replayed: %+v", replayed)
	}
}

// An update goes replica by replica and loses no request; one whose guests cannot set
// themselves up is undone; one of the firewall replaces nobody.
func TestAnUpdateIsRolledAndUndone(t *testing.T) {
	with := func(more string) string {
		return manifest(t, "rolling", 2, "    update: {watch: 2s}\n"+more)
	}
	url := deploy(t, with(""), "rolling").URLs[0].URL
	ids := func() (list []string) {
		for _, v := range vees(t) {
			list = append(list, string(v.ID))
		}
		slices.Sort(list)
		return list
	}
	first := ids()

	asking := startAsking(url)
	reservoir(t, "service", "redeploy", with("    products:\n      - {class: reservoir, properties: [{key: greeting, value: \"second\"}]}\n"), "--wait")
	asking.end(t, "the update")
	second := ids()
	if len(second) != 2 || slices.Contains(second, first[0]) || slices.Contains(second, first[1]) {
		t.Errorf("replicas %v became %v", first, second)
	}
	if page := ask(url); !strings.Contains(page, "second") {
		t.Errorf("the page is\n%s", page)
	}

	_, err := cli("service", "redeploy", with("    products:\n      - {class: reservoir, properties: [{key: port, value: \"0\"}]}\n"), "--wait")
	if err == nil || !strings.Contains(err.Error(), "revision 3 was undone: web: the new replica") {
		t.Errorf("an update that cannot be: %v", err)
	}
	eventually(t, "as before", func() bool { return ready(t, "rolling")() && slices.Equal(ids(), second) })
	if page := ask(url); !strings.Contains(page, "second") {
		t.Errorf("after the update was undone the page is\n%s", page)
	}

	walled := with("    products:\n      - {class: reservoir, properties: [{key: greeting, value: \"second\"}]}\n    firewall:\n      - {action: allow, protocol: tcp, ports: \"80\"}\n")
	reservoir(t, "service", "redeploy", walled, "--wait")
	if now := ids(); !slices.Equal(now, second) {
		t.Errorf("a change of the firewall replaced %v by %v", second, now)
	}
	for _, v := range jsonOf[[]vmi.VEE](t, "vee", "list") {
		if len(v.Descriptor.Firewall) != 1 || v.Descriptor.Firewall[0].First != 80 {
			t.Errorf("%s has the firewall %+v", v.Descriptor.Name, v.Descriptor.Firewall)
		}
	}
	if page := ask(url); !strings.Contains(page, "second") {
		t.Errorf("behind its firewall the page is\n%s", page)
	}
}
