package e2e

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/reservoir-cloud/reservoir/vee"
	"github.com/reservoir-cloud/reservoir/vmi"
)

// An overload is resolved by the hosts while the site's control plane stands still: a guest
// that burns goes to a host that has room, by a hand-over of its lease, with its memory and
// its networks; no guest dies, none runs twice, and the site learns it when it is back.
func TestAnOverloadIsResolvedByPeers(t *testing.T) {
	w := owned(t, 1, "--overload", "0.3", "--overload-for", "20s", "--placement", "pack")
	reservoir(t, "service", "deploy", write(t, `service: hot
networks:
  - {name: public, public: true}
  - {name: back, subnet: 10.1.0.0/24}
components:
  - name: web
    replicas: {min: 2, max: 2, initial: 2}
    image: appliance
    memory: 128MiB
    networks: [public, back]
    ports: [http:80]
    restart: elsewhere
`), "--wait", "--timeout", "180s")
	both := []vmi.VEE{replica(t, "hot", "web-1"), replica(t, "hot", "web-2")}
	if both[0].Host != both[1].Host {
		t.Fatalf("packed, they are on %s and %s", both[0].Host, both[1].Host)
	}
	for i, v := range both {
		reaches(t, v, "http://"+behind(t, both[1-i])+"/", both[1-i].Descriptor.Name)
	}
	eventually(t, "the hosts know each other", func() bool {
		known := 0
		for _, h := range jsonOf[[]vmi.Host](t, "host", "list") {
			if h.Peering != nil && h.Peering.Known == hosts-1 {
				known++
			}
		}
		return known == hosts
	})
	served := map[vee.ID]int{}
	for _, v := range both {
		served[v.ID] = requests(t, "http://"+address(v)+"/")
	}
	all := vees(t)

	site := process(t, "alpha")
	for _, v := range both {
		reservoir(t, "vee", "tell", string(v.ID), "burn-cpu", "amount=0.45", "seconds=600")
	}
	began := boottime()
	if err := syscall.Kill(site, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = syscall.Kill(site, syscall.SIGCONT) })

	var moved vmi.VEE
	eventually(t, "one of them is at another host alone", func() bool {
		for _, v := range both {
			if at := homes(t, v.ID); len(at) == 1 && at[0] != v.Host {
				moved = v
			}
		}
		return moved.ID != ""
	})
	relieved := boottime()
	for i, v := range both { // the network follows, with nobody to tell
		reaches(t, v, "http://"+behind(t, both[1-i])+"/", both[1-i].Descriptor.Name)
		if n := requests(t, "http://"+address(v)+"/"); n <= served[v.ID] {
			t.Errorf("%s has served %d requests, and %d before: it is another guest", v.Descriptor.Name, n, served[v.ID])
		}
	}
	if err := syscall.Kill(site, syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	back := boottime()
	eventually(t, "the site knows where it is", func() bool {
		var v vmi.VEE
		out, err := cli("vee", "show", string(moved.ID), "-o", "json")
		return err == nil && json.Unmarshal([]byte(out), &v) == nil && v.Host != moved.Host && v.State == vee.Active
	})
	t.Logf("overload resolved without the site after %s (it had to last %s), known to the site %s after it was back",
		seconds(relieved-began), seconds(time.Duration(haScale*float64(20*time.Second))), seconds(boottime()-back))

	m := migration(t, moved.ID)
	if m.By != "overload of "+moved.Host || m.From != moved.Host || m.State != vmi.MigrationDone {
		t.Errorf("the site has on record: %+v", m)
	}
	if n := eventsOf(t, moved.ID, "Migrated"); n != 1 {
		t.Errorf("%d events tell of it", n)
	}
	past := reservoir(t, "host", "partitions", "--past")
	t.Logf("\n%s", past)
	if !strings.Contains(past, "overloaded") {
		t.Error("host partitions does not know of it")
	}
	for _, v := range all {
		n := jsonOf[vmi.VEE](t, "vee", "show", string(v.ID))
		if n.Restarts != 0 || n.State != vee.Active { // a busy machine may have more than one leave
			t.Errorf("%s is %s on %s after %d restarts; it was on %s", n.Descriptor.Name, n.State, n.Host, n.Restarts, v.Host)
		}
	}
	if k := killed(t); len(k) > 0 {
		t.Errorf("guests were killed: %+v", k)
	}
	for i, v := range both {
		reaches(t, v, "http://"+behind(t, both[1-i])+"/", both[1-i].Descriptor.Name)
	}
	w.end()
}

// behind is the address of a VEE in the network that is its service's own.
func behind(t *testing.T, v vmi.VEE) string {
	t.Helper()
	for _, n := range v.Descriptor.NICs {
		if p, err := netip.ParsePrefix(n.Address); err == nil && !n.Public {
			return p.Addr().String()
		}
	}
	t.Fatalf("VEE %s has no private network", v.ID)
	return ""
}

// homes are the hosts that have a process of a VEE's.
func homes(t *testing.T, id vee.ID) (names []string) {
	t.Helper()
	for _, g := range guests(t) {
		if g.vee == string(id) {
			for i := range hosts {
				h := fmt.Sprintf("h%d", i+1)
				if inNamespace(g.pid, stage.prefix+"-alpha-"+h) {
					names = append(names, h)
				}
			}
		}
	}
	return names
}

// inNamespace reports whether a process is in a network namespace.
func inNamespace(pid int, name string) bool {
	var a, b syscall.Stat_t
	return syscall.Stat(fmt.Sprintf("/proc/%d/ns/net", pid), &a) == nil && syscall.Stat("/run/netns/"+name, &b) == nil && a.Ino == b.Ino
}
