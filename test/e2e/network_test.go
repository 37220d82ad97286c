package e2e

import (
	"fmt"
	"net/netip"
	"net/url"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/reservoir-cloud/reservoir/vee"
	"github.com/reservoir-cloud/reservoir/vhi"
	"github.com/reservoir-cloud/reservoir/vmi"
)

// pair of a web that users reach and a database that only web should, on two hosts, with a
// subnet and an address that another pair has too.
func pair(t *testing.T, name, more string) string {
	t.Helper()
	return write(t, fmt.Sprintf(`service: %[1]s
networks:
  - {name: public, public: true}
  - {name: back, subnet: 10.1.0.0/24, ipv6: true}
products:
  - class: reservoir
    properties:
      - {key: greeting, value: this is %[1]s}
components:
  - name: web
    image: appliance
    memory: 128MiB
    networks: [public, back]
    ports: [http:80]
  - name: db
    image: appliance
    memory: 128MiB
    networks: [{network: back, address: 10.1.0.10}]
%[2]santiAffinity:
  - {scope: physical, components: [web, db]}
`, name, more))
}

// replica of a service by name.
func replica(t *testing.T, service, name string) vmi.VEE {
	t.Helper()
	id := jsonOf[struct{ ID string }](t, "service", "show", service).ID
	for _, v := range vees(t) {
		if v.Descriptor.GroupID == id && v.Descriptor.Name == name {
			return v
		}
	}
	dump(t)
	t.Fatalf("service %s has no VEE %s", service, name)
	return vmi.VEE{}
}

// from a VEE on a public network: what a URL answers there; empty when it cannot be reached.
func from(v vmi.VEE, target string) string {
	return ask("http://" + address(v) + "/ask?url=" + url.QueryEscape(target))
}

// reaches until it does: the guest may have only just come up.
func reaches(t *testing.T, v vmi.VEE, target, want string) {
	t.Helper()
	page := ""
	eventually(t, fmt.Sprintf("%s reaches %s", v.Descriptor.Name, target), func() bool { page = from(v, target); return page != "" })
	if !strings.Contains(page, want) {
		t.Errorf("%s reaches %s, which answers %q, want %q", v.Descriptor.Name, target, page, want)
	}
}

func cannotReach(t *testing.T, v vmi.VEE, targets ...string) {
	t.Helper()
	reaches(t, v, "http://127.0.0.1/", "hostname") // it would say so
	for _, target := range targets {
		if page := from(v, target); page != "" {
			t.Errorf("%s of group %s reaches %s: %q", v.Descriptor.Name, v.Descriptor.GroupID, target, page)
		}
	}
}

// devices of private networks on a host.
func devices(t *testing.T, host string) (names []string) {
	t.Helper()
	out, err := exec.Command("ip", "-n", stage.prefix+"-alpha-"+host, "-br", "link").Output()
	if err != nil {
		t.Fatal(err)
	}
	for l := range strings.Lines(string(out)) {
		if name, _, _ := strings.Cut(strings.Fields(l)[0], "@"); strings.HasPrefix(name, "rv") || strings.HasPrefix(name, "rx") || strings.HasPrefix(name, "rg") {
			names = append(names, name)
		}
	}
	return names
}

// Two services have the same private subnet, and the same address in it, and each reaches
// its own, by address and by name, over two hosts; who is not on it reaches neither. A
// database that moves keeps its addresses and its name. Nothing is left when they are gone.
func TestPrivateNetworks(t *testing.T) {
	t.Cleanup(func() { noNetworks(t) }) // after the services are deleted
	deploy(t, pair(t, "left", ""), "left")
	deploy(t, pair(t, "right", ""), "right")
	deploy(t, manifest(t, "stranger", 1, ""), "stranger")
	stranger := replica(t, "stranger", "web-1")
	for _, name := range []string{"left", "right"} {
		webHere, db := replica(t, name, "web-1"), replica(t, name, "db-1")
		if webHere.Host == db.Host || address(db) != "10.1.0.10" || !webHere.Descriptor.NICs[0].Public {
			t.Fatalf("%+v and %+v, want them on two hosts, the database at 10.1.0.10", webHere, db)
		}
		six := netip.MustParsePrefix(db.Descriptor.NICs[0].Address6).Addr().String()
		for _, host := range []string{"10.1.0.10", "[" + six + "]", "db", "db-1", "db-1.db", "db." + name + ".alpha.internal", "db-1.db." + name + ".alpha.internal"} {
			reaches(t, webHere, "http://"+host+"/", "this is "+name)
		}
		cannotReach(t, stranger, "http://10.1.0.10/", "http://["+six+"]/", "http://db-1.db."+name+".alpha.internal/")
		// Nor is the host within reach of who is on the network.
		cannotReach(t, webHere, "https://10.1.0.1:8441/", "https://"+subnetOf(t, db.Host)+":8441/")
	}
	cannotReach(t, replica(t, "left", "web-1"), "http://db-1.db.right.alpha.internal/")

	webHere, db := replica(t, "left", "web-1"), replica(t, "left", "db-1")
	requestsBefore := field(from(webHere, "http://10.1.0.10/"), "request")
	reservoir(t, "vee", "migrate", string(db.ID), "--wait", "--timeout", "90s")
	now := replica(t, "left", "db-1")
	if now.Host == db.Host || now.Host == webHere.Host || now.Restarts != 0 || fmt.Sprint(now.Descriptor.NICs) != fmt.Sprint(db.Descriptor.NICs) {
		t.Errorf("%+v, want it on a third host with the addresses of %+v", now, db)
	}
	reaches(t, webHere, "http://10.1.0.10/", "this is left")
	reaches(t, webHere, "http://db-1.db.left.alpha.internal/", "this is left")
	if after := field(from(webHere, "http://10.1.0.10/"), "request"); after == requestsBefore || after == "1" {
		t.Errorf("request %s before and %s after: it is not the same machine", requestsBefore, after)
	}
	reaches(t, replica(t, "right", "web-1"), "http://10.1.0.10/", "this is right")

	eventually(t, "every host's kernel holds what it should", func() bool {
		plans := jsonOf[[]vhi.NetworkPlan](t, "van", "show", "left/back", "--plan")
		return len(plans) == 2 && !slices.ContainsFunc(plans, func(p vhi.NetworkPlan) bool {
			return p.Error != "" || len(p.Missing)+len(p.Surplus) > 0 || len(p.Entries) == 0
		})
	})

	// A name goes with its replica, and comes back with it.
	reservoir(t, "vee", "pause", string(db.ID), "--wait")
	eventually(t, "a paused replica has no name", func() bool {
		return from(webHere, "http://127.0.0.1/") != "" && !named(t, "left/back", db.ID)
	})
	reservoir(t, "vee", "activate", string(db.ID), "--wait")
	reaches(t, webHere, "http://db/", "this is left")

}

// noNetworks: what services had is gone, from the site and from the hosts' kernels.
func noNetworks(t *testing.T) {
	t.Helper()
	for i := range hosts {
		host := fmt.Sprintf("h%d", i+1)
		eventually(t, "nothing of the networks is left on host "+host, func() bool { return len(devices(t, host)) == 0 })
	}
	for _, n := range jsonOf[[]vmi.Network](t, "van", "list") {
		if n.GroupID != "" && !n.Leaving {
			t.Errorf("network %+v is left over", n)
		}
	}
}

// subnetOf a host: its address in the site's network.
func subnetOf(t *testing.T, host string) string {
	t.Helper()
	a, _, _ := strings.Cut(jsonOf[vmi.Host](t, "host", "show", host).Address, ":")
	return a
}

// named: a VEE's port has a name in a network.
func named(t *testing.T, network string, id vee.ID) bool {
	t.Helper()
	for _, p := range jsonOf[vmi.NetworkView](t, "van", "show", network).Ports {
		if p.VEE == id {
			return len(p.Names) > 0
		}
	}
	return false
}

// The manifest's firewall: the database lets web in, on one port, and nobody else who is on
// the same network.
func TestFirewall(t *testing.T) {
	deploy(t, pair(t, "walled", `    firewall:
      - {action: allow, protocol: tcp, ports: "80", peer: web}
  - name: spy
    image: appliance
    memory: 128MiB
    networks: [public, back]
`), "walled")
	db := "http://10.1.0.10/"
	reaches(t, replica(t, "walled", "web-1"), db, "this is walled")
	spy := replica(t, "walled", "spy-1")
	cannotReach(t, spy, db)
	// What has no rule is open: the spy reaches web, over the same network.
	inside, _, _ := strings.Cut(replica(t, "walled", "web-1").Descriptor.NICs[1].Address, "/")
	reaches(t, spy, "http://"+inside+"/", "this is walled")
}
