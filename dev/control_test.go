package dev

import (
	"slices"
	"strings"
	"testing"
)

// A control plane of three machines: each has a place of its own, the same unseal file and
// address of access points, and hosts know all three.
func TestAControlPlaneOfThree(t *testing.T) {
	c := Config{Dir: "/d", Sites: 2, Hosts: 1, Control: 3, Hypervisor: "sim", Prefix: "x", Subnet: 80}
	l := c.layout()
	var members []node
	for _, n := range l.nodes {
		switch {
		case n.site == "beta" && (n.host == "" || n.member):
			members = append(members, n)
		case n.site == "beta" && !n.proxy:
			if !slices.Contains(n.args, "https://10.81.0.1:8440,https://10.81.0.2:8440,https://10.81.0.3:8440") {
				t.Errorf("the host knows %v", n.args)
			}
		}
	}
	if len(members) != 3 {
		t.Fatalf("%d members", len(members))
	}
	seen := map[string]bool{}
	for i, m := range members {
		args := strings.Join(m.args, " ")
		for _, own := range []string{m.name(), m.netns, m.dir, m.address} {
			if seen[own] {
				t.Errorf("%s twice", own)
			}
			seen[own] = true
		}
		for _, want := range []string{"--dir " + m.dir, "--advertise " + m.address + ":8440", "--unseal-file /d/beta/unseal.key", "--access-address 10.81.0.250"} {
			if !strings.Contains(args, want) {
				t.Errorf("%s: %s; want %s", m.name(), args, want)
			}
		}
		if joins := strings.Contains(args, "--join-file /d/beta/"+m.host+".token"); joins != (i > 0) {
			t.Errorf("%s: %s", m.name(), args)
		}
	}
	if s := l.sites()[1]; len(s.Others) != 2 || len(s.Members) != 2 || len(s.Hosts) != 1 {
		t.Errorf("%+v", s)
	}
	c.Control = 1
	if l := c.layout(); len(l.nodes) != 6 || strings.Contains(strings.Join(l.nodes[0].args, " "), "--member") {
		t.Errorf("one machine: %+v", l.nodes[0])
	}
}
