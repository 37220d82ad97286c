package monitor

import (
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/reservoir-cloud/reservoir/vee"
)

func TestFQN(t *testing.T) {
	s, rest, ok := ParseFQN(vee.FQN("alpha", "acme", "shop", "web", 3) + ".queue.size")
	if want := (Subject{Site: "alpha", Customer: "acme", Service: "shop", Component: "web", Replica: "3"}); s != want || rest != "queue.size" || !ok {
		t.Errorf("%+v %q %v", s, rest, ok)
	}
	if s, rest, ok := ParseFQN("alpha.hosts.h1.host_load"); s != HostSubject("alpha", "h1") || rest != "host_load" || !ok {
		t.Errorf("%+v %q %v", s, rest, ok)
	}
	for _, bad := range []string{"", ".customers.a", "alpha.customers.", "alpha.services.x", "alpha.hosts.h.customers.c", "alpha.customers.a.vees.b"} {
		if s, rest, ok := ParseFQN(bad); ok && (rest == "" || s != Subject{Site: "alpha"} && s != Subject{Site: "alpha", Customer: "a"}) {
			t.Errorf("%q is %+v, %q", bad, s, rest)
		}
	}
	name := rapid.StringMatching(`[a-z][a-z0-9-]{0,8}`)
	rapid.Check(t, func(t *rapid.T) {
		s := Subject{Site: name.Draw(t, "site")}
		depth := rapid.IntRange(0, 4).Draw(t, "depth")
		for i, to := range []*string{&s.Customer, &s.Service, &s.Component, &s.Replica} {
			if i < depth {
				*to = name.Draw(t, "name")
			}
		}
		got, rest, ok := ParseFQN(s.FQN())
		if got != s || rest != "" || !ok {
			t.Fatalf("%+v is %q, which is %+v %q %v", s, s.FQN(), got, rest, ok)
		}
	})
}

func FuzzParseFQN(f *testing.F) {
	f.Add("alpha.customers.acme.services.shop.vees.web.replicas.3.queue")
	f.Fuzz(func(t *testing.T, text string) {
		if s, rest, ok := ParseFQN(text); ok && s.FQN()+"."+rest != text && s.FQN() != text && !strings.HasPrefix(text, s.FQN()) {
			t.Errorf("%q is %+v, %q", text, s, rest)
		}
	})
}

// TestVEESubject: the FQN prefix came from whoever asked for the VEE, and is believed only
// about the customer who did.
func TestVEESubject(t *testing.T) {
	for prefix, want := range map[string]Subject{
		vee.FQN("alpha", "acme", "shop", "web", 3):  {Site: "alpha", Customer: "acme", Service: "shop", Component: "web", Replica: "3", VEE: "alpha.x"},
		vee.FQN("alpha", "rival", "shop", "web", 3): {Site: "alpha", Customer: "acme", Service: "group", VEE: "alpha.x"},
		"":                     {Site: "alpha", Customer: "acme", Service: "group", VEE: "alpha.x"},
		"alpha.hosts.h1":       {Site: "alpha", Customer: "acme", Service: "group", VEE: "alpha.x"},
		"alpha.customers.acme": {Site: "alpha", Customer: "acme", VEE: "alpha.x"},
	} {
		if got := VEESubject("alpha", "alpha.x", "acme", "group", prefix); got != want {
			t.Errorf("%q: %+v, want %+v", prefix, got, want)
		}
	}
}

func TestFields(t *testing.T) {
	for name, want := range map[string]string{"queue.size": "queue_size", "9lives": "_9lives", "com.sap/x-y": "com_sap_x_y", "ok_1": "ok_1", "größe": "gr__e"} {
		if got := FieldOf(name); got != want {
			t.Errorf("%q becomes %q, want %q", name, got, want)
		}
	}
	for _, c := range []struct {
		kind Kind
		name string
		want bool
	}{
		{KPIKind, "queue_size", true}, {KPIKind, "vee_cpu", false}, {KPIKind, "host_x", false}, {VEEKind, "vee_cpu", true}, {HostKind, "host_x", true}, {HostKind, "vee_x", false},
		{KPIKind, "__name__", false}, {KPIKind, "", false}, {KPIKind, "a b", false}, {KPIKind, strings.Repeat("a", 129), false}, {DerivedKind, "per_replica", true},
	} {
		if got := ValidField(c.kind, c.name); got != c.want {
			t.Errorf("%s %q: %v", c.kind, c.name, got)
		}
	}
	if ref := (Ref{Name: "cpu", VEE: "alpha.x"}); ParseRef(ref.String()) != ref || ParseRef("cpu") != (Ref{Name: "cpu"}) {
		t.Error("a probe's name does not come back")
	}
}
