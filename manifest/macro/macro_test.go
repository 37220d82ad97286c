package macro

import (
	"reflect"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/reservoir-cloud/reservoir/vee"
)

func scope() Scope {
	nic := func(name, alias, address, address6 string) NIC {
		return NIC{NIC: vee.NIC{Address: address, Address6: address6}, Name: name, Alias: alias}
	}
	front := nic("front", "", "10.80.0.7/16", "")
	front.Gateway, front.DNS = "10.80.0.1", []string{"10.80.0.2", "10.80.0.3"}
	return Scope{
		ServiceID: "alpha.s-abc", VEE: "alpha.k3v9q2m7xd", Domain: "shop.alpha.internal", Number: 2, Channel: "http://10.9.0.1:4318",
		NICs:   []NIC{front, nic("back", "east", "10.9.0.2/20", "fd00::2/64"), nic("back", "west", "10.9.0.3/20", ""), nic("six", "", "", "fd00:6::2/64")},
		Others: map[string][]NIC{"db": {nic("back", "store", "10.9.0.9/20", "")}, "new": {nic("back", "", "", "")}},
	}
}

func TestExpand(t *testing.T) {
	for value, want := range map[string]string{
		"":                                   "",
		"@IP(front)":                         "10.80.0.7",
		"@IP(back)":                          "10.9.0.2",
		"@IP( back , west )":                 "10.9.0.3",
		"@IP(back,store)":                    "10.9.0.9",
		"@IP(six)":                           "fd00:6::2",
		"@Netmask(back)":                     "255.255.240.0",
		"@Gateway(front)":                    "10.80.0.1",
		"@DNSServer(front)":                  "10.80.0.2",
		"@PrecedentTierEntryPoint(back,db)":  "10.9.0.9",
		"@id":                                "2",
		"@id()":                              "2",
		"node@id(100)":                       "node102",
		"@id(-2)":                            "0",
		"@ServiceId @VmId at @Domain":        "alpha.s-abc alpha.k3v9q2m7xd at shop.alpha.internal",
		"@MonitoringChannel":                 "http://10.9.0.1:4318",
		"tcp://@IP(back):1,tcp://@IP(front)": "tcp://10.9.0.2:1,tcp://10.80.0.7",
		"me@example.org @Ip(front) @":        "me@example.org @Ip(front) @",
		"@Domain.":                           "shop.alpha.internal.",
	} {
		if got, err := scope().Expand(value); err != nil || got != want {
			t.Errorf("%s: got %q, %v; want %q", value, got, err, want)
		}
	}
	for value, want := range map[string]string{
		"@IP":                                "@IP: want @IP(network) or @IP(network,alias)",
		"@IP(back,east,x)":                   "want @IP(network)",
		"@IP(side)":                          "@IP(side): it is not on network side",
		"@IP(back,north)":                    "no NIC on network back has the alias north",
		"@Netmask(six)":                      "it has no IPv4 address on network six",
		"@Gateway(back)":                     "there is no gateway: nothing is routed on network back",
		"@DNSServer(back)":                   "there is no name server on network back",
		"@PrecedentTierEntryPoint(back)":     "want @PrecedentTierEntryPoint(network,component)",
		"@PrecedentTierEntryPoint(back,web)": "component web has no replica",
		"@PrecedentTierEntryPoint(front,db)": "component db: it is not on network front",
		"@PrecedentTierEntryPoint(back,new)": "it has no address on network back yet",
		"@id(x)":                             `@id(x): offset "x": want a whole number`,
		"@Domain(x)":                         "@Domain(x): want @Domain",
		"@IP(side) and @id(y)":               "@id(y)",
	} {
		if got, err := scope().Expand(value); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %q, %v; want %q", value, got, err, want)
		}
	}
	if _, err := (Scope{}).Expand("@Domain"); err == nil || !strings.Contains(err.Error(), "there is no domain") {
		t.Errorf("nothing known: %v", err)
	}
}

func TestIn(t *testing.T) {
	known, unknown := In("a@b @IP(x) @id @Nothing(1)")
	if !reflect.DeepEqual(known, []string{"@IP(x)", "@id"}) || !reflect.DeepEqual(unknown, []string{"@b", "@Nothing(1)"}) {
		t.Errorf("%q, %q", known, unknown)
	}
}

// What has no macro stays as it is, and a macro is resolved or an error.
func TestExpandProperties(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		value := strings.Join(rapid.SliceOf(rapid.OneOf(rapid.SampledFrom([]string{"@IP(front)", "@id(1)", "@Domain", "@", "(", ")", ",", "@x"}), rapid.String())).Draw(t, "parts"), "")
		known, _ := In(value)
		got, err := scope().Expand(value)
		if len(known) == 0 && (got != value || err != nil) {
			t.Fatalf("%q became %q, %v", value, got, err)
		}
		if len(known) > 0 && err == nil && got == value {
			t.Fatalf("%q keeps its macros", value)
		}
	})
}
