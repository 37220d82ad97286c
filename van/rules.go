package van

import (
	"encoding/binary"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/reservoir-cloud/reservoir/van/plan"
	"github.com/reservoir-cloud/reservoir/vee"
)

// This file is the constant part of the rule set: its chains and rules look everything that
// changes up in sets, so that a port's coming or going is some elements and no rule.
// `nft list table bridge reservoir` and `nft list table inet reservoir` show it.
//
// Bridge family: who may send what (prerouting), and that nothing of a VAN enters its host
// (input). Inet family, by br_netfilter: what needs the state of connections, which the
// bridge family of some kernels cannot see.

// tableName of both tables.
const tableName = "reservoir"

var (
	frames  = &nftables.Table{Family: nftables.TableFamilyBridge, Name: tableName}
	packets = &nftables.Table{Family: nftables.TableFamilyINet, Name: tableName}
)

// Registers: the kernel has four of 16 bytes, each also to be had as four of 4 bytes.
const (
	reg1  = unix.NFT_REG_1
	reg2  = unix.NFT_REG_2
	reg3  = unix.NFT_REG_3
	word2 = 9  // of the first: what stands behind a mark in a concatenation
	word6 = 13 // second of the second: what stands behind a device and an IPv4 address
	word7 = 14 // third of the second: what stands behind a device and a MAC
)

// Sizes and offsets of what is looked at (IEEE 802.3, RFC 826, 791, 8200, 4861).
const (
	etherDst, etherSrc, etherType        = 0, 6, 12
	arpOp, arpSHA, arpSPA, arpTPA        = 6, 8, 14, 24
	ip4Src, ip4Dst, ip6Src, ip6Dst       = 12, 16, 8, 24
	portSrc, portDst, icmpType, ndTarget = 0, 2, 0, 8
)

// ICMPv6 types (RFC 4861).
const (
	routerSolicitation = 133 + iota
	routerAdvertisement
	neighbourSolicitation
	neighbourAdvertisement
	redirect
)

// stormPerSecond is how many questions a port may broadcast in a public network, where
// they cannot be answered from what is known; detoursPerSecond how many frames this host
// passes on to where a VEE moved, before the others know that it did.
const (
	stormPerSecond, stormBurst     = 50, 100
	detoursPerSecond, detoursBurst = 50000, 5000
)

type exprs = []expr.Any

// What is loaded into a register.
func meta(key expr.MetaKey, reg uint32) exprs { return exprs{&expr.Meta{Key: key, Register: reg}} }
func link(offset, size, reg uint32) exprs {
	return exprs{&expr.Payload{DestRegister: reg, Base: expr.PayloadBaseLLHeader, Offset: offset, Len: size}}
}
func network(offset, size, reg uint32) exprs {
	return exprs{&expr.Payload{DestRegister: reg, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: size}}
}
func transport(offset, size, reg uint32) exprs {
	return exprs{&expr.Payload{DestRegister: reg, Base: expr.PayloadBaseTransportHeader, Offset: offset, Len: size}}
}

// What is asked of register 1.
func is(data ...byte) exprs {
	return exprs{&expr.Cmp{Op: expr.CmpOpEq, Register: reg1, Data: data}}
}
func isNot(data ...byte) exprs {
	return exprs{&expr.Cmp{Op: expr.CmpOpNeq, Register: reg1, Data: data}}
}
func in(s *nftables.Set) exprs {
	return exprs{&expr.Lookup{SourceRegister: reg1, SetName: s.Name, SetID: s.ID}}
}
func notIn(s *nftables.Set) exprs {
	return exprs{&expr.Lookup{SourceRegister: reg1, SetName: s.Name, SetID: s.ID, Invert: true}}
}

// becomes what a map has for register 1; the rule ends where it has nothing.
func becomes(s *nftables.Set) exprs {
	return exprs{&expr.Lookup{SourceRegister: reg1, SetName: s.Name, SetID: s.ID, DestRegister: reg1, IsDestRegSet: true}}
}

// What is done.
func verdict(kind expr.VerdictKind, chain string) exprs {
	return exprs{&expr.Verdict{Kind: kind, Chain: chain}}
}

var (
	drop    = verdict(expr.VerdictDrop, "")
	accept  = verdict(expr.VerdictAccept, "")
	setMark = exprs{&expr.Meta{Key: expr.MetaKeyMARK, Register: reg1, SourceRegister: true}}
	// redirectFrame to the MAC in register 1.
	redirectFrame = exprs{&expr.Payload{OperationType: expr.PayloadWrite, SourceRegister: reg1, Base: expr.PayloadBaseLLHeader, Offset: etherDst, Len: 6}}
	// pass clears the mark, which is ours, and accepts.
	pass = slices.Concat(exprs{&expr.Immediate{Register: reg1, Data: make([]byte, 4)}}, setMark, accept)
)

// jumpBy goes to the chain that a map has for register 1, and comes back.
func jumpBy(s *nftables.Set) exprs {
	return exprs{&expr.Lookup{SourceRegister: reg1, SetName: s.Name, SetID: s.ID, DestRegister: 0, IsDestRegSet: true}}
}
func goTo(chain string) exprs { return verdict(expr.VerdictGoto, chain) }

// Conditions that are needed more than once.
func inPrefix(p string) exprs {
	return slices.Concat(meta(expr.MetaKeyIIFNAME, reg1), is([]byte(p)...))
}
func outPrefix(p string) exprs {
	return slices.Concat(meta(expr.MetaKeyOIFNAME, reg1), is([]byte(p)...))
}
func frameOf(t uint16) exprs {
	return slices.Concat(link(etherType, 2, reg1), is(byte(t>>8), byte(t)))
}
func protocol(p byte) exprs { return slices.Concat(meta(expr.MetaKeyL4PROTO, reg1), is(p)) }
func icmp6(t byte) exprs {
	return slices.Concat(protocol(unix.IPPROTO_ICMPV6), transport(icmpType, 1, reg1), is(t))
}
func udp(offset uint32, port uint16) exprs {
	return slices.Concat(protocol(unix.IPPROTO_UDP), transport(offset, 2, reg1), is(byte(port>>8), byte(port)))
}
func tcpTo(port uint16) exprs {
	return slices.Concat(protocol(unix.IPPROTO_TCP), transport(portDst, 2, reg1), is(byte(port>>8), byte(port)))
}
func version(family byte) exprs { return slices.Concat(meta(expr.MetaKeyNFPROTO, reg1), is(family)) }
func toGroup() exprs            { return slices.Concat(groupBit(), isNot(0)) }
func toOne() exprs              { return slices.Concat(groupBit(), is(0)) }
func groupBit() exprs {
	return slices.Concat(link(etherDst, 1, reg1),
		exprs{&expr.Bitwise{SourceRegister: reg1, DestRegister: reg1, Len: 1, Mask: []byte{1}, Xor: []byte{0}}})
}
func connection(states uint32) exprs {
	return exprs{
		&expr.Ct{Key: expr.CtKeySTATE, Register: reg1},
		&expr.Bitwise{SourceRegister: reg1, DestRegister: reg1, Len: 4, Mask: binaryutil.NativeEndian.PutUint32(states), Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: reg1, Data: make([]byte, 4)},
	}
}
func isPublic() exprs { return slices.Concat(meta(expr.MetaKeyMARK, reg1), is(0, 0, 0, 0)) }

// sets of the two tables.
type sets struct {
	networks, macs, own4, own6, answers4, answers6, gates, storm *nftables.Set

	zones, guests4, guests6, services4, services6, underlay4, underlay6 *nftables.Set
	in4, in6, out4, out6, scraped4, scraped6                            *nftables.Set
}

var (
	ifMAC  = nftables.MustConcatSetType(nftables.TypeIFName, nftables.TypeEtherAddr)
	own4   = nftables.MustConcatSetType(nftables.TypeIFName, nftables.TypeEtherAddr, nftables.TypeIPAddr)
	own6   = nftables.MustConcatSetType(nftables.TypeIFName, nftables.TypeEtherAddr, nftables.TypeIP6Addr)
	if4    = nftables.MustConcatSetType(nftables.TypeIFName, nftables.TypeIPAddr)
	if6    = nftables.MustConcatSetType(nftables.TypeIFName, nftables.TypeIP6Addr)
	port4  = nftables.MustConcatSetType(nftables.TypeIFName, nftables.TypeIPAddr, nftables.TypeInetService)
	port6  = nftables.MustConcatSetType(nftables.TypeIFName, nftables.TypeIP6Addr, nftables.TypeInetService)
	mark4  = nftables.MustConcatSetType(nftables.TypeMark, nftables.TypeIPAddr)
	mark6  = nftables.MustConcatSetType(nftables.TypeMark, nftables.TypeIP6Addr)
	zoneID = func() nftables.SetDatatype { t := nftables.TypeInteger; t.Bytes = 2; return t }()
)

func newSets() *sets {
	set := func(t *nftables.Table, name string, key nftables.SetDatatype) *nftables.Set {
		return &nftables.Set{Table: t, Name: name, KeyType: key}
	}
	to := func(t *nftables.Table, name string, key, value nftables.SetDatatype) *nftables.Set {
		return &nftables.Set{Table: t, Name: name, KeyType: key, DataType: value, IsMap: true}
	}
	s := &sets{
		networks:  to(frames, "networks", nftables.TypeIFName, nftables.TypeMark),
		macs:      set(frames, "macs", ifMAC),
		own4:      set(frames, "own4", own4),
		own6:      set(frames, "own6", own6),
		answers4:  to(frames, "answers4", mark4, nftables.TypeEtherAddr),
		answers6:  to(frames, "answers6", mark6, nftables.TypeEtherAddr),
		gates:     to(frames, "gates", nftables.TypeMark, nftables.TypeEtherAddr),
		storm:     set(frames, "storm", nftables.TypeIFName),
		zones:     to(packets, "zones", nftables.TypeIFName, zoneID),
		guests4:   set(packets, "guests4", if4),
		guests6:   set(packets, "guests6", if6),
		services4: set(packets, "services4", if4),
		services6: set(packets, "services6", if6),
		underlay4: set(packets, "underlay4", nftables.TypeIPAddr),
		underlay6: set(packets, "underlay6", nftables.TypeIP6Addr),
		in4:       to(packets, "in4", if4, nftables.TypeVerdict),
		in6:       to(packets, "in6", if6, nftables.TypeVerdict),
		out4:      to(packets, "out4", if4, nftables.TypeVerdict),
		out6:      to(packets, "out6", if6, nftables.TypeVerdict),
		scraped4:  set(packets, "scraped4", port4),
		scraped6:  set(packets, "scraped6", port6),
	}
	s.storm.Dynamic, s.storm.Size = true, 1<<16-1
	for _, x := range s.all() {
		x.Concatenation = x.KeyType.Name != nftables.TypeIFName.Name && x.KeyType.Name != nftables.TypeMark.Name &&
			x.KeyType.Name != nftables.TypeIPAddr.Name && x.KeyType.Name != nftables.TypeIP6Addr.Name
	}
	return s
}

func (s *sets) all() []*nftables.Set {
	return []*nftables.Set{s.networks, s.macs, s.own4, s.own6, s.answers4, s.answers6, s.gates, s.storm,
		s.zones, s.guests4, s.guests6, s.services4, s.services6, s.underlay4, s.underlay6, s.in4, s.in6, s.out4, s.out6, s.scraped4, s.scraped6}
}

// chain of the constant part.
type chain struct {
	*nftables.Chain
	rules []exprs
}

func base(t *nftables.Table, name string, hook *nftables.ChainHook, priority nftables.ChainPriority, rules ...exprs) chain {
	policy := nftables.ChainPolicyAccept
	return chain{&nftables.Chain{Name: name, Table: t, Type: nftables.ChainTypeFilter, Hooknum: hook, Priority: &priority, Policy: &policy}, rules}
}

func sub(t *nftables.Table, name string, rules ...exprs) chain {
	return chain{&nftables.Chain{Name: name, Table: t}, rules}
}

// layout is all chains, those that are jumped to first.
func (s *sets) layout(underlay netip.Addr) []chain {
	return append(s.frameChains(), s.packetChains(underlay)...)
}

// beforeNetfilter is a priority in the bridge family ahead of br_netfilter's 0.
const beforeNetfilter = -300

func (s *sets) frameChains() []chain {
	dev := meta(expr.MetaKeyIIFNAME, reg1)
	sender4 := slices.Concat(dev, link(etherSrc, 6, reg2), network(ip4Src, 4, word7))
	sender6 := slices.Concat(dev, link(etherSrc, 6, reg2), network(ip6Src, 16, word7))
	toGate := slices.Concat(meta(expr.MetaKeyMARK, reg1), becomes(s.gates), redirectFrame, pass)
	dhcp4 := slices.Concat(udp(portSrc, 68), udp(portDst, 67), toGate)
	// A question for an address goes to the MAC that has it, and nowhere else.
	answer4 := slices.Concat(meta(expr.MetaKeyMARK, reg1), network(arpTPA, 4, word2), becomes(s.answers4), redirectFrame, pass)
	answer6 := slices.Concat(meta(expr.MetaKeyMARK, reg1), transport(ndTarget, 16, word2), becomes(s.answers6), redirectFrame, pass)
	arpRequest := slices.Concat(network(arpOp, 2, reg1), is(0, 1))
	// In a public network nobody knows every address: a limited number of questions is let
	// out. The limit is each port's own.
	ask := slices.Concat(isPublic(), dev, exprs{&expr.Dynset{SrcRegKey: reg1, SetName: s.storm.Name, SetID: s.storm.ID, Operation: uint32(unix.NFT_DYNSET_OP_UPDATE),
		Exprs: exprs{&expr.Limit{Type: expr.LimitTypePkts, Rate: stormPerSecond, Unit: expr.LimitTimeSecond, Burst: stormBurst}}}}, pass)
	none6 := make([]byte, 16)

	return []chain{
		sub(frames, "ask4", answer4, ask, drop),
		sub(frames, "ask6", answer6, ask, drop),
		sub(frames, "arp",
			slices.Concat(network(0, 6, reg1), isNot(0, 1, 8, 0, 6, 4), drop), // Ethernet and IPv4
			slices.Concat(dev, network(arpSHA, 6, reg2), notIn(s.macs), drop),
			slices.Concat(network(arpSPA, 4, reg1), is(0, 0, 0, 0), arpRequest, goTo("ask4")), // probe: RFC 5227
			slices.Concat(dev, network(arpSHA, 6, reg2), network(arpSPA, 4, word7), notIn(s.own4), drop),
			slices.Concat(arpRequest, goTo("ask4")),
			slices.Concat(toGroup(), drop),
			slices.Concat(network(arpOp, 2, reg1), is(0, 2), pass),
			drop),
		sub(frames, "ip4",
			slices.Concat(network(ip4Src, 4, reg1), is(0, 0, 0, 0), dhcp4),
			slices.Concat(sender4, notIn(s.own4), drop),
			dhcp4,
			slices.Concat(udp(portSrc, 67), drop), // a DHCP server
			slices.Concat(toGroup(), drop),
			pass),
		sub(frames, "ip6",
			slices.Concat(network(ip6Src, 16, reg1), is(none6...), icmp6(neighbourSolicitation), goTo("ask6")), // duplicate address detection
			slices.Concat(sender6, notIn(s.own6), drop),
			slices.Concat(udp(portSrc, 547), drop), // a DHCPv6 server
			slices.Concat(udp(portSrc, 546), udp(portDst, 547), toGate),
			slices.Concat(icmp6(routerSolicitation), toGate),
			slices.Concat(icmp6(routerAdvertisement), drop),
			slices.Concat(icmp6(redirect), drop),
			slices.Concat(icmp6(neighbourSolicitation), goTo("ask6")),
			slices.Concat(icmp6(neighbourAdvertisement), dev, link(etherSrc, 6, reg2), transport(ndTarget, 16, word7), notIn(s.own6), drop),
			slices.Concat(toGroup(), drop),
			pass),
		// What a guest sends. What no rule lets through is dropped, VLAN tags too: the type is
		// read where it stands in the frame. Most frames are TCP or UDP from whom they say to
		// one addressee, and are looked up once.
		sub(frames, "port",
			slices.Concat(frameOf(unix.ETH_P_IP), protocol(unix.IPPROTO_TCP), toOne(), sender4, in(s.own4), accept),
			slices.Concat(frameOf(unix.ETH_P_IP), protocol(unix.IPPROTO_UDP), transport(portSrc, 2, reg1), isNot(0, 67), transport(portDst, 2, reg1), isNot(0, 67),
				toOne(), sender4, in(s.own4), accept),
			slices.Concat(frameOf(unix.ETH_P_IPV6), protocol(unix.IPPROTO_TCP), toOne(), sender6, in(s.own6), accept),
			slices.Concat(dev, link(etherSrc, 6, reg2), notIn(s.macs), drop),
			slices.Concat(dev, becomes(s.networks), setMark),
			slices.Concat(frameOf(unix.ETH_P_ARP), goTo("arp")),
			slices.Concat(frameOf(unix.ETH_P_IP), goTo("ip4")),
			slices.Concat(frameOf(unix.ETH_P_IPV6), goTo("ip6")),
			drop),
		// What the agent sends from the gateway's namespace.
		sub(frames, "gateway",
			slices.Concat(dev, becomes(s.networks), setMark),
			slices.Concat(frameOf(unix.ETH_P_ARP), arpRequest, answer4),
			slices.Concat(frameOf(unix.ETH_P_IPV6), icmp6(neighbourSolicitation), answer6),
			pass),
		base(frames, "prerouting", nftables.ChainHookPrerouting, beforeNetfilter,
			slices.Concat(inPrefix(plan.TapPrefix), goTo("port")),
			slices.Concat(inPrefix(plan.GatewayPrefix), goTo("gateway")),
			slices.Concat(inPrefix(plan.TunnelPrefix), toGroup(), drop)),
		// Nothing of a private network enters its host's own stack.
		base(frames, "input", nftables.ChainHookInput, beforeNetfilter,
			slices.Concat(inPrefix(plan.TunnelPrefix), drop),
			slices.Concat(inPrefix(plan.GatewayPrefix), drop),
			slices.Concat(inPrefix(plan.TapPrefix), dev, becomes(s.networks), isNot(0, 0, 0, 0), drop)),
		base(frames, "forward", nftables.ChainHookForward, beforeNetfilter,
			slices.Concat(inPrefix(plan.TunnelPrefix), outPrefix(plan.TunnelPrefix),
				exprs{&expr.Limit{Type: expr.LimitTypePkts, Rate: detoursPerSecond, Unit: expr.LimitTimeSecond, Burst: detoursBurst, Over: true}}, drop)),
	}
}

func (s *sets) packetChains(underlay netip.Addr) []chain {
	type family struct {
		version                 byte
		src, dst, size          uint32
		guests, services, peers *nftables.Set
		in, out, scraped        *nftables.Set
		port                    uint32 // the word behind an address in reg2
	}
	families := []family{
		{unix.NFPROTO_IPV4, ip4Src, ip4Dst, 4, s.guests4, s.services4, s.underlay4, s.in4, s.out4, s.scraped4, word6},
		{unix.NFPROTO_IPV6, ip6Src, ip6Dst, 16, s.guests6, s.services6, s.underlay6, s.in6, s.out6, s.scraped6, reg3},
	}
	inDev, outDev := meta(expr.MetaKeyIIFNAME, reg1), meta(expr.MetaKeyOIFNAME, reg1)
	known := slices.Concat(connection(expr.CtStateBitESTABLISHED|expr.CtStateBitRELATED), accept)
	var neighbours []exprs
	for t := byte(routerSolicitation); t <= neighbourAdvertisement; t++ {
		neighbours = append(neighbours, slices.Concat(icmp6(t), accept))
	}

	// tooBig: what says which size fits. That a tunnel makes for the first packet of a
	// connection bears that connection's state, "new", and no wall would let it in.
	tooBig := []exprs{
		slices.Concat(protocol(unix.IPPROTO_ICMP), transport(icmpType, 2, reg1), is(3, 4), accept),
		slices.Concat(icmp6(2), accept),
	}

	// host: what guests of public networks may ask of it.
	host := append([]exprs{known,
		slices.Concat(udp(portDst, 53), accept), slices.Concat(tcpTo(53), accept), slices.Concat(tcpTo(vee.MonitoringPort), accept),
		slices.Concat(udp(portDst, 67), accept), slices.Concat(udp(portDst, 547), accept),
	}, neighbours...)
	host = append(host, drop)

	// What is not tracked is of a network that has no walls here.
	passing := slices.Concat(connection(expr.CtStateBitUNTRACKED|expr.CtStateBitESTABLISHED|expr.CtStateBitRELATED), accept)
	returned := verdict(expr.VerdictReturn, "")
	services := []exprs{slices.Concat(udp(portDst, 53), returned), slices.Concat(tcpTo(53), returned), slices.Concat(tcpTo(vee.MonitoringPort), returned)}
	input, forward := s.tunnelGuard(underlay), slices.Concat([]exprs{passing}, neighbours, tooBig)
	untracked := slices.Concat(connection(expr.CtStateBitUNTRACKED), accept)
	// What the host answers itself passes every wall.
	output := append([]exprs{untracked, known}, slices.Concat(udp(portSrc, 53), accept),
		slices.Concat(udp(portSrc, 67), accept), slices.Concat(udp(portSrc, 547), accept))
	output = append(output, neighbours...)
	for _, f := range families {
		input = append(input, slices.Concat(version(f.version), inDev, network(f.src, f.size, reg2), in(f.guests), goTo("host")))
		forward = append(forward,
			slices.Concat(version(f.version), inDev, network(f.src, f.size, reg2), in(f.services), accept),
			slices.Concat(version(f.version), inDev, network(f.dst, f.size, reg2), in(f.services), accept))
	}
	for _, f := range families {
		forward = append(forward,
			slices.Concat(version(f.version), inDev, network(f.src, f.size, reg2), in(f.guests), network(f.dst, f.size, reg1), in(f.peers), verdict(expr.VerdictJump, "hosts")),
			slices.Concat(version(f.version), inDev, network(f.src, f.size, reg2), jumpBy(f.out)),
			slices.Concat(version(f.version), outDev, network(f.dst, f.size, reg2), jumpBy(f.in)))
		output = append(output,
			slices.Concat(version(f.version), protocol(unix.IPPROTO_TCP), outDev, network(f.dst, f.size, reg2), transport(portDst, 2, f.port), in(f.scraped), accept),
			slices.Concat(version(f.version), outDev, network(f.dst, f.size, reg2), jumpBy(f.in)))
	}
	// The zone is set ahead of defragmentation too: fragments of two networks are not mixed.
	const beforeDefragmentation = -450
	prerouting := []exprs{
		slices.Concat(inDev, becomes(s.zones), exprs{&expr.Ct{Key: expr.CtKeyZONE, Register: reg1, SourceRegister: true}}, returned),
		slices.Concat(inPrefix(plan.BridgePrefix), exprs{&expr.Notrack{}}),
	}
	if underlay.IsValid() { // tunnels are no connections: answers come to another port
		notBridge := slices.Concat(meta(expr.MetaKeyIIFNAME, reg1), isNot([]byte(plan.BridgePrefix)...))
		untrack := slices.Concat(notBridge, exprs{&expr.Notrack{}}, returned)
		prerouting = slices.Insert(prerouting, 0, slices.Concat(fromTunnel(underlay), untrack))
		if underlay.Is4() { // all fragments or none: those behind the first have no port
			prerouting = slices.Insert(prerouting, 0, slices.Concat(s.fragment(underlay), untrack))
		}
	}
	return []chain{
		sub(packets, "host", host...),
		// Of other hosts, a guest that moved here may still ask one for names, and push to its
		// proxy.
		sub(packets, "hosts", append(services, drop)...),
		base(packets, "prerouting", nftables.ChainHookPrerouting, beforeDefragmentation, prerouting...),
		base(packets, "outgoing", nftables.ChainHookOutput, beforeDefragmentation,
			slices.Concat(udp(portDst, plan.VXLANPort), exprs{&expr.Notrack{}})),
		base(packets, "input", nftables.ChainHookInput, 0, input...),
		base(packets, "forward", nftables.ChainHookForward, 0, forward...),
		base(packets, "output", nftables.ChainHookOutput, 0, output...),
	}
}

// fromTunnel matches VXLAN that is for this host; what a guest sends to that port of
// another does not.
func fromTunnel(underlay netip.Addr) exprs {
	v, dst := byte(unix.NFPROTO_IPV4), uint32(ip4Dst)
	if underlay.Is6() {
		v, dst = unix.NFPROTO_IPV6, ip6Dst
	}
	a := underlay.AsSlice()
	return slices.Concat(udp(portDst, plan.VXLANPort), version(v), network(dst, uint32(len(a)), reg1), is(a...))
}

// fragment matches a piece of a datagram from another host to this one.
func (s *sets) fragment(underlay netip.Addr) exprs {
	const flagsAndOffset = 6 // RFC 791, section 3.1
	return slices.Concat(version(unix.NFPROTO_IPV4), protocol(unix.IPPROTO_UDP), network(ip4Dst, 4, reg1), is(underlay.AsSlice()...),
		network(flagsAndOffset, 2, reg1), exprs{&expr.Bitwise{SourceRegister: reg1, DestRegister: reg1, Len: 2, Mask: []byte{0x3f, 0xff}, Xor: []byte{0, 0}}}, isNot(0, 0),
		network(ip4Src, 4, reg1), in(s.underlay4))
}

// tunnelGuard lets VXLAN in from hosts alone that have ports of our networks.
func (s *sets) tunnelGuard(underlay netip.Addr) []exprs {
	if !underlay.IsValid() {
		return nil
	}
	peer, peers := network(ip4Src, 4, reg1), s.underlay4
	if underlay.Is6() {
		peer, peers = network(ip6Src, 16, reg1), s.underlay6
	}
	return []exprs{
		slices.Concat(fromTunnel(underlay), peer, notIn(peers), drop),
		slices.Concat(fromTunnel(underlay), accept),
	}
}

// wallRules are the chain of a port's rules in one direction: what is allowed returns to
// the chain that jumped here, because the other end's wall is still to be passed.
func wallRules(c *nftables.Conn, w plan.Wall) ([]exprs, error) {
	var all []exprs
	peer4, peer6 := uint32(ip4Src), uint32(ip6Src) // who sends
	if w.Out {
		peer4, peer6 = ip4Dst, ip6Dst
	}
	for _, r := range w.Rules {
		do := drop
		if r.Allow {
			do = verdict(expr.VerdictReturn, "")
		}
		for _, what := range protocolExprs(r) {
			peers, err := peerExprs(c, r.Peers, peer4, peer6) // anew: an anonymous set is one rule's
			if err != nil {
				return nil, err
			}
			for _, who := range peers {
				all = append(all, slices.Concat(who, what, do))
			}
		}
	}
	return append(all, drop), nil
}

func protocolExprs(r plan.Rule) []exprs {
	numbers := map[string][]byte{"tcp": {unix.IPPROTO_TCP}, "udp": {unix.IPPROTO_UDP}, "icmp": {unix.IPPROTO_ICMP, unix.IPPROTO_ICMPV6}}[r.Protocol]
	if r.Protocol == "any" {
		if r.First == 0 {
			return []exprs{nil}
		}
		numbers = []byte{unix.IPPROTO_TCP, unix.IPPROTO_UDP}
	}
	var all []exprs
	for _, n := range numbers {
		e := protocol(n)
		if r.First != 0 {
			e = slices.Concat(e, transport(portDst, 2, reg1), exprs{&expr.Range{Op: expr.CmpOpEq, Register: reg1,
				FromData: binary.BigEndian.AppendUint16(nil, r.First), ToData: binary.BigEndian.AppendUint16(nil, max(r.First, r.Last))}})
		}
		all = append(all, e)
	}
	return all
}

// peerExprs match any of the peers: single addresses by a set for each family, networks
// one by one. No peers: one that matches everybody.
func peerExprs(c *nftables.Conn, peers []netip.Prefix, offset4, offset6 uint32) ([]exprs, error) {
	if len(peers) == 0 {
		return []exprs{nil}, nil
	}
	var all []exprs
	var single [2][]nftables.SetElement
	for _, p := range peers {
		p = p.Masked()
		v, offset, i := byte(unix.NFPROTO_IPV4), offset4, 0
		if p.Addr().Is6() {
			v, offset, i = unix.NFPROTO_IPV6, offset6, 1
		}
		a := p.Addr().AsSlice()
		if p.IsSingleIP() {
			single[i] = append(single[i], nftables.SetElement{Key: a})
			continue
		}
		n := uint32(len(a))
		mask := make([]byte, n)
		for b := range p.Bits() {
			mask[b/8] |= 0x80 >> (b % 8)
		}
		all = append(all, slices.Concat(version(v), network(offset, n, reg1),
			exprs{&expr.Bitwise{SourceRegister: reg1, DestRegister: reg1, Len: n, Mask: mask, Xor: make([]byte, n)}}, is(a...)))
	}
	for i, elements := range single {
		if len(elements) == 0 {
			continue
		}
		v, offset, n, t := byte(unix.NFPROTO_IPV4), offset4, uint32(4), nftables.TypeIPAddr
		if i == 1 {
			v, offset, n, t = unix.NFPROTO_IPV6, offset6, 16, nftables.TypeIP6Addr
		}
		s := &nftables.Set{Table: packets, Anonymous: true, Constant: true, KeyType: t}
		if err := c.AddSet(s, elements); err != nil {
			return nil, err
		}
		all = append(all, slices.Concat(version(v), network(offset, n, reg1), in(s)))
	}
	return all, nil
}
