package border

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/reservoir-cloud/reservoir/van/plan"
)

const (
	keyA = "Y1dGuzAbRve4EORIUxqmSioOjbYdqxP2mTFkMjgDrnk="
	keyB = "gGhA01TKjwsEpQ+6QwT3vVNncgqDwcHGRhlTfXM+dBs="
)

func segment(id string, vni, tunnel uint32) Segment {
	return Segment{Tunnel: tunnel, Segment: plan.Segment{ID: id, Version: 1, VNI: vni, MTU: 1370, Subnets: []netip.Prefix{netip.MustParsePrefix("10.1.0.0/24")},
		Ports: []plan.Port{{VEE: "alpha.aaaaaaaaaa", MAC: "52:54:00:00:00:01", Addresses: []netip.Addr{netip.MustParseAddr("10.1.0.10")}, Host: SiteHost("beta")},
			{VEE: "alpha.bbbbbbbbbb", MAC: "52:54:00:00:00:02", Addresses: []netip.Addr{netip.MustParseAddr("10.1.0.254")}, Host: plan.AtBorder}}}}
}

func TestConfigsThatCannotBeFollowed(t *testing.T) {
	good := func() Config {
		return Config{Version: 1, Peers: []Peer{{Site: "beta", Key: keyA}, {Site: "gamma", Key: keyB}, {Site: "delta"}},
			Segments: []Segment{segment("s/one", 1, 1), segment("s/two", 2, 2)},
			Routes:   []Route{{Ticket: "site", To: "10.0.0.1:8440"}, {Ticket: "x", Peer: "beta", Show: "y", Once: true, Expires: time.Now()}},
			Doors:    []Door{{Port: 20000, Segment: "s/one", To: netip.MustParseAddrPort("10.1.0.10:80")}, {Port: 20000, UDP: true, Segment: "s/two", To: netip.MustParseAddrPort("10.1.0.10:53")}}}
	}
	if err := good().Check(); err != nil {
		t.Fatal(err)
	}
	for why, spoil := range map[string]func(c *Config){
		"a member of the control":     func(c *Config) { c.Members = []string{"10.0.0.1"} },
		"a peer has the name":         func(c *Config) { c.Peers[0].Site = "Not a name" },
		"want 32 bytes in base64":     func(c *Config) { c.Peers[0].Key = "short" },
		"peer gamma is there twice":   func(c *Config) { c.Peers[0].Site = "gamma" },
		"have the same key":           func(c *Config) { c.Peers[0].Key = keyB },
		"in none of its subnets":      func(c *Config) { c.Segments[0].Subnets = nil },
		"only private ones":           func(c *Config) { c.Segments[0].Public, c.Segments[0].VNI = true, 0 },
		"network s/two is there":      func(c *Config) { c.Segments[0].ID = "s/two" },
		"the same VNI 2":              func(c *Config) { c.Segments[0].VNI = 2 },
		"VNI 16777216 in the tunnel":  func(c *Config) { c.Segments[0].Tunnel = 1 << 24 },
		"the same VNI 2 in the tunne": func(c *Config) { c.Segments[0].Tunnel = 2 },
		"1 to 64 letters":             func(c *Config) { c.Routes[0].Ticket = "a b" },
		"is there twice":              func(c *Config) { c.Routes[0].Ticket = "x" },
		"an address of this site or":  func(c *Config) { c.Routes[0].Peer = "beta" },
		"has no ticket for site beta": func(c *Config) { c.Routes[1].Show = "" },
		"door at port 19999: want":    func(c *Config) { c.Doors[0].Port = 19999 },
		"port 20000 is there twice":   func(c *Config) { c.Doors[1].UDP = false },
		"no port of its own in":       func(c *Config) { c.Segments[0].Ports = c.Segments[0].Ports[:1] },
		"in network \"s/none\"":       func(c *Config) { c.Doors[0].Segment = "s/none" },
		"nobody in network \"s/two\"": func(c *Config) { c.Doors[1].To = netip.MustParseAddrPort("10.1.0.11:53") },
	} {
		c := good()
		spoil(&c)
		if err := c.Check(); err == nil || !strings.Contains(err.Error(), why) {
			t.Errorf("got %v: want %q", err, why)
		} else if strings.Contains(err.Error(), `"x"`) {
			t.Errorf("%v tells the ticket", err)
		}
	}
}

func TestAddressesAreMadeOfKeys(t *testing.T) {
	a, err := ParseKey(keyA)
	if err != nil {
		t.Fatal(err)
	}
	b, _ := ParseKey(keyB)
	if a.Address() == b.Address() || !netip.MustParsePrefix("240.0.0.0/4").Contains(a.Address()) {
		t.Errorf("%v and %v", a.Address(), b.Address())
	}
	if a.String() != keyA {
		t.Errorf("%v is written %v", keyA, a)
	}
}
