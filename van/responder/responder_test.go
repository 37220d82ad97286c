package responder

import (
	"encoding/hex"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/dhcpv6"
	"github.com/insomniacslk/dhcp/iana"
	"github.com/miekg/dns"

	"github.com/reservoir-cloud/reservoir/van/plan"
	"github.com/reservoir-cloud/reservoir/vee"
)

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

// back is a private network: web-1 and db-1 on host a, web-2 on host b.
func back() plan.Segment {
	return plan.Segment{
		ID: "alpha.shop.back", VNI: 7, Domain: "shop.alpha.internal", MTU: 1370,
		Subnets:  []netip.Prefix{netip.MustParsePrefix("10.9.0.0/20"), netip.MustParsePrefix("fd00:9::/64")},
		Gateways: []netip.Addr{addr("10.9.0.1"), addr("fd00:9::1")},
		Ports: []plan.Port{
			{VEE: "alpha.web1", MAC: "02:52:0a:09:00:02", Host: "a", Addresses: []netip.Addr{addr("10.9.0.2"), addr("fd00:9::2")}, Names: []string{"web-1.web", "web-1", "web"}},
			{VEE: "alpha.web2", MAC: "02:52:0a:09:00:03", Host: "b", Addresses: []netip.Addr{addr("10.9.0.3"), addr("fd00:9::3")}, Names: []string{"web-2.web", "web-2", "web"}},
			{VEE: "alpha.db1", MAC: "02:52:0a:09:00:04", Host: "a", Addresses: []netip.Addr{addr("10.9.0.4"), addr("fd00:9::4")}},
		},
	}
}

// front is public: web-1 is on it too.
func front() plan.Segment {
	return plan.Segment{
		ID: "alpha.public", Public: true, Domain: "alpha.internal", MTU: 1500,
		Subnets:  []netip.Prefix{netip.MustParsePrefix("10.80.0.0/16")},
		Gateways: []netip.Addr{addr("10.80.0.1")},
		Ports: []plan.Port{
			{VEE: "alpha.web1", MAC: "02:52:0a:50:00:02", Host: "a", Addresses: []netip.Addr{addr("10.80.0.2")}, Names: []string{"web-1.web.shop"}},
		},
	}
}

func discover(t *testing.T, mac string, with ...dhcpv4.Modifier) []byte {
	t.Helper()
	hw, err := net.ParseMAC(mac)
	if err != nil {
		t.Fatal(err)
	}
	q, err := dhcpv4.NewDiscovery(hw, with...)
	if err != nil {
		t.Fatal(err)
	}
	return q.ToBytes()
}

func TestDHCP4(t *testing.T) {
	request := func(wanted string) dhcpv4.Modifier {
		return func(d *dhcpv4.DHCPv4) {
			d.UpdateOption(dhcpv4.OptMessageType(dhcpv4.MessageTypeRequest))
			d.UpdateOption(dhcpv4.OptRequestedIPAddress(net.ParseIP(wanted)))
		}
	}
	for name, c := range map[string]struct {
		segment plan.Segment
		mac     string
		with    []dhcpv4.Modifier
		want    dhcpv4.MessageType // none: no answer
		yours   string
	}{
		"discover":               {back(), "02:52:0a:09:00:02", nil, dhcpv4.MessageTypeOffer, "10.9.0.2"},
		"request":                {back(), "02:52:0a:09:00:02", []dhcpv4.Modifier{request("10.9.0.2")}, dhcpv4.MessageTypeAck, "10.9.0.2"},
		"another's address":      {back(), "02:52:0a:09:00:02", []dhcpv4.Modifier{request("10.9.0.3")}, dhcpv4.MessageTypeNak, "0.0.0.0"},
		"another server's offer": {back(), "02:52:0a:09:00:02", []dhcpv4.Modifier{request("10.9.0.2"), dhcpv4.WithOption(dhcpv4.OptServerIdentifier(net.IPv4(10, 9, 0, 9)))}, 0, ""},
		"inform":                 {back(), "02:52:0a:09:00:02", []dhcpv4.Modifier{dhcpv4.WithMessageType(dhcpv4.MessageTypeInform)}, dhcpv4.MessageTypeAck, "0.0.0.0"},
		"release":                {back(), "02:52:0a:09:00:02", []dhcpv4.Modifier{dhcpv4.WithMessageType(dhcpv4.MessageTypeRelease)}, 0, ""},
		"unknown MAC":            {back(), "02:52:0a:09:00:99", nil, 0, ""},
		"another host's port":    {back(), "02:52:0a:09:00:03", nil, 0, ""},
		"by a relay":             {back(), "02:52:0a:09:00:02", []dhcpv4.Modifier{dhcpv4.WithRelay(net.IPv4(10, 9, 0, 9))}, 0, ""},
		"public":                 {front(), "02:52:0a:50:00:02", nil, dhcpv4.MessageTypeOffer, "10.80.0.2"},
	} {
		t.Run(name, func(t *testing.T) {
			answer := NewTable(c.segment, "a", nil).DHCP4(discover(t, c.mac, c.with...))
			if c.want == dhcpv4.MessageTypeNone {
				if answer != nil {
					t.Fatalf("answered: %x", answer)
				}
				return
			}
			r, err := dhcpv4.FromBytes(answer)
			if err != nil || r.MessageType() != c.want || r.YourIPAddr.String() != c.yours {
				t.Fatalf("want %v of %s, got %v, %v", c.want, c.yours, r, err)
			}
			if !same(r.ServerIdentifier(), c.segment.Gateways[0]) {
				t.Errorf("server %v", r.ServerIdentifier())
			}
			if c.want == dhcpv4.MessageTypeNak {
				return
			}
			bits, _ := r.SubnetMask().Size()
			mtu, _ := dhcpv4.GetUint16(dhcpv4.OptionInterfaceMTU, r.Options)
			if bits != c.segment.Subnets[0].Bits() || int(mtu) != c.segment.MTU || r.DomainSearch().Labels[0] != c.segment.Domain || !same(r.DNS()[0], c.segment.Gateways[0]) {
				t.Errorf("its network: %v", r.Summary())
			}
			if routed := len(r.Router()) > 0; routed != c.segment.Public || routed != (len(r.ClasslessStaticRoute()) > 0) {
				t.Errorf("routed %v in a network that is public: %v", routed, c.segment.Public)
			}
		})
	}
}

func TestDHCP6(t *testing.T) {
	table := NewTable(back(), "a", nil)
	hw, _ := net.ParseMAC("02:52:0a:09:00:02")
	q, err := dhcpv6.NewSolicit(hw)
	if err != nil {
		t.Fatal(err)
	}
	own := addr("fe80::52:aff:fe09:2")
	advertised, err := dhcpv6.MessageFromBytes(table.DHCP6(q.ToBytes(), own))
	if err != nil || advertised.MessageType != dhcpv6.MessageTypeAdvertise {
		t.Fatalf("%v, %v", advertised, err)
	}
	request, err := dhcpv6.NewRequestFromAdvertise(advertised)
	if err != nil {
		t.Fatal(err)
	}
	r, err := dhcpv6.MessageFromBytes(table.DHCP6(request.ToBytes(), own))
	if err != nil || r.MessageType != dhcpv6.MessageTypeReply {
		t.Fatalf("%v, %v", r, err)
	}
	if a := r.Options.OneIANA().Options.OneAddress(); !same(a.IPv6Addr, addr("fd00:9::2")) || a.ValidLifetime != lease {
		t.Errorf("address %v", a)
	}
	if !same(r.Options.DNS()[0], addr("fd00:9::1")) || r.Options.DomainSearchList().Labels[0] != "shop.alpha.internal" {
		t.Errorf("names: %v", r)
	}
	for name, from := range map[string]string{"a stranger": "fe80::52:aff:fe09:99", "another host's": "fe80::52:aff:fe09:3", "an address of its own choice": "fe80::1", "no link-local": "fd00:9::2"} {
		if answer := table.DHCP6(q.ToBytes(), addr(from)); answer != nil {
			t.Errorf("%s is answered", name)
		}
	}
	request.UpdateOption(dhcpv6.OptServerID(&dhcpv6.DUIDLL{HWType: iana.HWTypeEthernet, LinkLayerAddr: hw}))
	if answer := table.DHCP6(request.ToBytes(), own); answer != nil {
		t.Error("a request to another server is answered")
	}
}

func TestAdvertisement(t *testing.T) {
	// Flags M and O, no default router; prefix on link and not for autoconfiguration; MTU;
	// name server and search list.
	const want = "86000000" + "40c00000" + "0000000000000000" +
		"03044080" + "00000708" + "00000708" + "00000000" + "fd000009000000000000000000000000" +
		"05010000" + "0000055a" +
		"19030000" + "00000708" + "fd000009000000000000000000000001" +
		"1f060000" + "00000708" + "0473686f7005616c70686108696e7465726e616c00" + "05616c70686108696e7465726e616c00" + "000000"
	if got := hex.EncodeToString(NewTable(back(), "a", nil).Advertisement()); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	if got := NewTable(front(), "a", nil).Advertisement(); got != nil {
		t.Errorf("without an IPv6 subnet: %x", got)
	}
	table := NewTable(back(), "a", nil)
	for from, want := range map[string]bool{"::": true, "fe80::52:aff:fe09:2": true, "fe80::52:aff:fe09:99": false} {
		if got := table.Solicited([]byte{133, 0, 0, 0, 0, 0, 0, 0}, addr(from)); got != want {
			t.Errorf("solicited by %s: %v", from, got)
		}
	}
}

// ask a table and show the answer in a line.
func ask(t *Table, from, name string, kind uint16, also ...*Table) string {
	q := new(dns.Msg).SetQuestion(name, kind)
	q.Id = 0
	r, forward := t.Answer(q, addr(from), also)
	var said []string
	for _, rr := range r.Answer {
		fields := strings.Fields(rr.String())
		said = append(said, fields[len(fields)-1])
	}
	slices.Sort(said)
	text := dns.RcodeToString[r.Rcode] + " " + strings.Join(said, " ")
	if forward {
		text = "forward"
	}
	return strings.TrimSpace(text)
}

func TestAnswer(t *testing.T) {
	private, public := NewTable(back(), "a", nil), NewTable(front(), "a", nil)
	for _, c := range []struct {
		table      *Table
		from, name string
		kind       uint16
		want       string
	}{
		{private, "10.9.0.4", "web-1.web.shop.alpha.internal.", dns.TypeA, "NOERROR 10.9.0.2"},
		{private, "10.9.0.4", "WEB-1.shop.alpha.internal.", dns.TypeAAAA, "NOERROR fd00:9::2"},
		{private, "10.9.0.4", "web.shop.alpha.internal.", dns.TypeA, "NOERROR 10.9.0.2 10.9.0.3"},
		{private, "10.9.0.4", "web.shop.alpha.internal.", dns.TypeMX, "NOERROR"},
		{private, "10.9.0.4", "db-1.db.shop.alpha.internal.", dns.TypeA, "NXDOMAIN"}, // is not to be found yet
		{private, "10.9.0.4", "shop.alpha.internal.", dns.TypeA, "NOERROR"},
		{private, "10.9.0.4", "2.0.9.10.in-addr.arpa.", dns.TypePTR, "NOERROR web-1.web.shop.alpha.internal."},
		{private, "10.9.0.4", "9.15.9.10.in-addr.arpa.", dns.TypePTR, "NXDOMAIN"},
		{private, "10.9.0.4", "9.16.9.10.in-addr.arpa.", dns.TypePTR, "REFUSED"}, // beyond the /20
		{private, "10.9.0.4", "3.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.0.0.0.0.0.d.f.ip6.arpa.", dns.TypePTR, "REFUSED"},
		{private, "10.9.0.4", "3.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.9.0.0.0.0.0.d.f.ip6.arpa.", dns.TypePTR, "NOERROR web-2.web.shop.alpha.internal."},
		{private, "10.9.0.4", "example.org.", dns.TypeA, "REFUSED"},
		{private, "10.9.0.4", "web-1.web.shop.", dns.TypeA, "REFUSED"},
		{public, "10.80.0.2", "example.org.", dns.TypeA, "forward"},
		{public, "10.80.0.77", "web-1.web.shop.alpha.internal.", dns.TypeA, "REFUSED"}, // nobody's port
		{public, "10.80.0.77", "example.org.", dns.TypeA, "REFUSED"},
		// Who is on both networks is told of both, and no one else.
		{private, "10.9.0.2", "example.org.", dns.TypeA, "forward"},
		{private, "10.9.0.2", "web-1.web.shop.alpha.internal.", dns.TypeA, "NOERROR 10.80.0.2 10.9.0.2"},
		{public, "10.80.0.2", "web-2.web.shop.alpha.internal.", dns.TypeA, "NOERROR 10.9.0.3"},
	} {
		if got := ask(c.table, c.from, c.name, c.kind, private, public); got != c.want {
			t.Errorf("%s asks %s in %s: got %q, want %q", c.from, c.name, c.table.segment.ID, got, c.want)
		}
	}
}

// The monitoring channel is the host that the asker is on, unless a component is called so.
func TestMonitoringChannel(t *testing.T) {
	const name = "monitoring-channel.shop.alpha.internal."
	private := NewTable(back(), "a", nil)
	if got := ask(private, "10.9.0.3", name, dns.TypeA); got != "NOERROR 10.9.0.1" {
		t.Errorf("in a private network: %s", got)
	}
	open := front()
	open.Domain = "shop.alpha.internal"
	open.Ports = append(open.Ports, plan.Port{VEE: "alpha.web2", Host: "b", Underlay: addr("10.80.0.12"), Addresses: []netip.Addr{addr("10.80.0.3")}})
	public := NewTable(open, "a", []netip.Addr{addr("10.80.0.11")})
	for from, want := range map[string]string{"10.80.0.2": "NOERROR 10.80.0.11", "10.80.0.3": "NOERROR 10.80.0.12", "10.80.0.9": "REFUSED"} {
		if got := ask(public, from, name, dns.TypeA); got != want {
			t.Errorf("in a public network %s is told %s, want %s", from, got, want)
		}
	}
	open.Ports[0].Names = []string{vee.MonitoringName}
	if got := ask(NewTable(open, "a", []netip.Addr{addr("10.80.0.11")}), "10.80.0.3", name, dns.TypeA); got != "NOERROR 10.80.0.2" {
		t.Errorf("a component's name: %s", got)
	}
}

func TestAnswerRefuses(t *testing.T) {
	table := NewTable(back(), "a", nil)
	for name, c := range map[string]struct {
		change func(*dns.Msg)
		want   int
	}{
		"a notification": {func(q *dns.Msg) { q.Opcode = dns.OpcodeNotify }, dns.RcodeNotImplemented},
		"two questions":  {func(q *dns.Msg) { q.Question = append(q.Question, q.Question[0]) }, dns.RcodeFormatError},
		"another class":  {func(q *dns.Msg) { q.Question[0].Qclass = dns.ClassCHAOS }, dns.RcodeRefused},
	} {
		q := new(dns.Msg).SetQuestion("web.shop.alpha.internal.", dns.TypeA)
		c.change(q)
		if r, _ := table.Answer(q, addr("10.9.0.4"), nil); r.Rcode != c.want || len(r.Answer) > 0 {
			t.Errorf("%s: %v", name, r)
		}
	}
	q := new(dns.Msg).SetQuestion("web.shop.alpha.internal.", dns.TypeA)
	q.Response = true
	if r, _ := table.Answer(q, addr("10.9.0.4"), nil); r != nil {
		t.Errorf("an answer is answered: %v", r)
	}
}

func TestAnswerSpreadsAndIsBounded(t *testing.T) {
	s := back()
	s.Ports = nil
	for i := range 1000 {
		s.Ports = append(s.Ports, plan.Port{VEE: vee.ID("alpha.x"), Addresses: []netip.Addr{netip.AddrFrom4([4]byte{10, 9, byte(i >> 8), byte(i)})}, Names: []string{"many"}})
	}
	table := NewTable(s, "a", nil)
	first := map[string]bool{}
	for id := range uint16(8) {
		q := new(dns.Msg).SetQuestion("many.shop.alpha.internal.", dns.TypeA)
		q.Id = id
		r, _ := table.Answer(q, addr("10.9.0.4"), nil)
		if len(r.Answer) != mostRecords || r.Answer[0].Header().Ttl != ttl {
			t.Fatalf("%d answers, %v", len(r.Answer), r.Answer[0])
		}
		first[r.Answer[0].String()] = true
	}
	if len(first) != 8 {
		t.Errorf("8 questions give %d first answers", len(first))
	}
}

// FuzzDHCP4: whatever a guest sends, an answer is for the MAC and of the address of a port.
func FuzzDHCP4(f *testing.F) {
	table := NewTable(back(), "a", nil)
	hw, _ := net.ParseMAC("02:52:0a:09:00:02")
	q, err := dhcpv4.NewDiscovery(hw)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(q.ToBytes())
	f.Add([]byte{1, 1, 6})
	f.Fuzz(func(t *testing.T, query []byte) {
		answer := table.DHCP4(query)
		if answer == nil {
			return
		}
		r, err := dhcpv4.FromBytes(answer)
		if err != nil {
			t.Fatal(err)
		}
		p, known := table.ports[r.ClientHWAddr.String()]
		if !known || !r.YourIPAddr.IsUnspecified() && !same(r.YourIPAddr, p.own[ip4]) {
			t.Fatalf("%v is given out to %v", r.YourIPAddr, r.ClientHWAddr)
		}
		if len(answer) > 1024 {
			t.Fatalf("an answer of %d bytes", len(answer))
		}
	})
}

// FuzzDHCP6: likewise.
func FuzzDHCP6(f *testing.F) {
	table := NewTable(back(), "a", nil)
	hw, _ := net.ParseMAC("02:52:0a:09:00:02")
	q, err := dhcpv6.NewSolicit(hw)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(q.ToBytes())
	f.Add([]byte{1, 0, 0, 0, 0, 3})
	f.Fuzz(func(t *testing.T, query []byte) {
		answer := table.DHCP6(query, addr("fe80::52:aff:fe09:2"))
		if answer == nil {
			return
		}
		r, err := dhcpv6.MessageFromBytes(answer)
		if err != nil {
			t.Fatal(err)
		}
		for _, ia := range r.Options.IANA() {
			for _, a := range ia.Options.Addresses() {
				if !same(a.IPv6Addr, addr("fd00:9::2")) && a.ValidLifetime != 0 {
					t.Fatalf("%v is given out", a)
				}
			}
		}
	})
}

// FuzzAnswer: whatever question a guest sends, there is an answer that can be sent.
func FuzzAnswer(f *testing.F) {
	private, public := NewTable(back(), "a", nil), NewTable(front(), "a", nil)
	for _, name := range []string{"web.shop.alpha.internal.", "2.0.9.10.in-addr.arpa.", "."} {
		text, err := new(dns.Msg).SetQuestion(name, dns.TypeANY).Pack()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, query []byte) {
		var q dns.Msg
		if q.Unpack(query) != nil {
			return
		}
		r, _ := private.Answer(&q, addr("10.9.0.2"), []*Table{public})
		if r == nil {
			return
		}
		if _, err := r.Pack(); err != nil {
			t.Fatalf("%v\nis answered by\n%v\nwhich cannot be sent: %v", &q, r, err)
		}
	})
}
