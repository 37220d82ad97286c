package balance

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/van/plan"
)

// tableName of the rules. `nft list table ip reservoir-access` shows them:
//
//	map points       address . protocol . port → jump to the point's chain
//	chain prerouting, output   look new connections up in it
//	chain point-…    mark the connection, dnat to one of the slots
//	chain postrouting          masquerade, so that answers come back this way
//	chain forward    only where this machine forwarded nothing before: what is not an
//	                 access point's is still not forwarded
const tableName = "reservoir-access"

// chainPrefix of the points' chains.
const chainPrefix = "point-"

// connectionMark of connections to access points, "resv".
const connectionMark = 0x72657376

// Kinds of the devices that a packet comes from and goes to ("bridge"): of enum
// nft_meta_keys, linux/netfilter/nf_tables.h.
const (
	metaIIFKind expr.MetaKey = 26
	metaOIFKind expr.MetaKey = 27
)

// Registers of 4 bytes: the second quarter of the kernel's first register, and so on.
const (
	reg    = 1 // first quarter, and the whole
	second = 9
	third  = 10
)

var (
	pointKey  = nftables.MustConcatSetType(nftables.TypeIPAddr, nftables.TypeInetProto, nftables.TypeInetService)
	slotValue = nftables.MustConcatSetType(nftables.TypeIPAddr, nftables.TypeInetService)
)

// kernel holds the rules of one network namespace: that of the process.
type kernel struct {
	table  *nftables.Table
	points *nftables.Set
}

func newKernel(table string) *kernel {
	t := &nftables.Table{Family: nftables.TableFamilyIPv4, Name: table}
	return &kernel{
		table:  t,
		points: &nftables.Set{Table: t, Name: "points", IsMap: true, Concatenation: true, KeyType: pointKey, DataType: nftables.TypeVerdict},
	}
}

// open makes the frame of the rules where it is not there yet. What an earlier process left
// goes on serving until sweep.
func (k *kernel) open() error {
	if k.there() {
		return nil
	}
	c := &nftables.Conn{}
	forwarded, err := forward()
	if err != nil {
		return unprivileged(err)
	}
	c.AddTable(k.table)
	err = c.AddSet(k.points, nil)
	look := []expr.Any{
		&expr.Payload{DestRegister: reg, Base: expr.PayloadBaseNetworkHeader, Offset: 16, Len: 4},
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: second},
		&expr.Payload{DestRegister: third, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		&expr.Lookup{SourceRegister: reg, DestRegister: 0, IsDestRegSet: true, SetName: k.points.Name, SetID: k.points.ID},
	}
	ours := []expr.Any{
		&expr.Ct{Register: reg, Key: expr.CtKeyMARK},
		&expr.Cmp{Op: expr.CmpOpEq, Register: reg, Data: binaryutil.NativeEndian.PutUint32(connectionMark)},
	}
	chain := func(name string, kind nftables.ChainType, hook *nftables.ChainHook, priority *nftables.ChainPriority, rules ...[]expr.Any) {
		ch := c.AddChain(&nftables.Chain{Table: k.table, Name: name, Type: kind, Hooknum: hook, Priority: priority})
		for _, r := range rules {
			c.AddRule(&nftables.Rule{Table: k.table, Chain: ch, Exprs: r})
		}
	}
	chain("prerouting", nftables.ChainTypeNAT, nftables.ChainHookPrerouting, nftables.ChainPriorityNATDest, look)
	chain("output", nftables.ChainTypeNAT, nftables.ChainHookOutput, nftables.ChainPriorityNATDest, look)
	chain("postrouting", nftables.ChainTypeNAT, nftables.ChainHookPostrouting, nftables.ChainPriorityNATSource, append(ours[:len(ours):len(ours)], &expr.Masq{}))
	if !forwarded {
		// With br_netfilter what a bridge passes on comes by here, too.
		bridge := append([]byte("bridge"), make([]byte, unix.IFNAMSIZ-len("bridge"))...)
		bridged := []expr.Any{
			&expr.Meta{Key: metaIIFKind, Register: reg},
			&expr.Cmp{Op: expr.CmpOpEq, Register: reg, Data: bridge},
			&expr.Meta{Key: metaOIFKind, Register: reg},
			&expr.Cmp{Op: expr.CmpOpEq, Register: reg, Data: bridge},
			&expr.Verdict{Kind: expr.VerdictAccept},
		}
		chain("forward", nftables.ChainTypeFilter, nftables.ChainHookForward, nftables.ChainPriorityFilter, bridged,
			append(ours[:len(ours):len(ours)], &expr.Verdict{Kind: expr.VerdictAccept}),
			[]expr.Any{&expr.Verdict{Kind: expr.VerdictDrop}})
	}
	if err := errors.Join(err, c.Flush()); err != nil {
		return unprivileged(fmt.Errorf("make the firewall's table %s: %w", k.table.Name, err))
	}
	return nil
}

// there reports whether the kernel has the table already.
func (k *kernel) there() bool {
	tables, err := (&nftables.Conn{}).ListTablesOfFamily(nftables.TableFamilyIPv4)
	return err == nil && slices.ContainsFunc(tables, func(t *nftables.Table) bool { return t.Name == k.table.Name })
}

// forward lets this machine forward packets, and reports whether it did already.
func forward() (already bool, err error) {
	const path = "/proc/sys/net/ipv4/ip_forward"
	b, err := os.ReadFile(path)
	if err != nil {
		return false, fmt.Errorf("may this machine forward: %w", err)
	}
	if strings.TrimSpace(string(b)) != "0" {
		return true, nil
	}
	if err := os.WriteFile(path, []byte("1"), 0o644); err != nil {
		return false, fmt.Errorf("let this machine forward: %w", err)
	}
	return false, nil
}

func unprivileged(err error) error {
	if errors.Is(err, os.ErrPermission) {
		return fault.New(fault.Unsupported, "access points: %w", err).Try("run the site as root, or give it the capability CAP_NET_ADMIN")
	}
	return fmt.Errorf("access points: %w", err)
}

// key of t in the map of points: each part padded to four bytes.
func (t target) key() []byte {
	a := t.at.Addr().As4()
	k := make([]byte, 12)
	copy(k, a[:])
	k[4] = t.proto()
	binary.BigEndian.PutUint16(k[8:], t.at.Port())
	return k
}

func targetOf(key []byte) (target, bool) {
	if len(key) != 12 || key[4] != unix.IPPROTO_TCP && key[4] != unix.IPPROTO_UDP {
		return target{}, false
	}
	return target{netip.AddrPortFrom(netip.AddrFrom4([4]byte(key[:4])), binary.BigEndian.Uint16(key[8:])), key[4] == unix.IPPROTO_UDP}, true
}

// chainOf a point; names of the kernel are short, keys may be long.
func chainOf(key string) string {
	h := fnv.New64a()
	h.Write([]byte(key))
	return fmt.Sprintf("%s%016x", chainPrefix, h.Sum64())
}

// put the point's rules, in one transaction: a new connection meets the old ones or the new.
func (k *kernel) put(key string, t target, a plan.Algorithm, slots []netip.AddrPort) error {
	c := &nftables.Conn{}
	chain := c.AddChain(&nftables.Chain{Table: k.table, Name: chainOf(key)})
	c.FlushChain(chain)
	if len(slots) > 0 {
		elements := make([]nftables.SetElement, len(slots))
		for i, s := range slots {
			ip := s.Addr().As4()
			elements[i] = nftables.SetElement{Key: binaryutil.NativeEndian.PutUint32(uint32(i)), Val: append(ip[:], byte(s.Port()>>8), byte(s.Port()), 0, 0)}
		}
		set := &nftables.Set{Table: k.table, Anonymous: true, Constant: true, IsMap: true, KeyType: nftables.TypeInteger, DataType: slotValue}
		if err := c.AddSet(set, elements); err != nil {
			return fmt.Errorf("access point %s: %w", key, err)
		}
		n := uint32(len(slots))
		choose := []expr.Any{&expr.Numgen{Register: reg, Modulus: n, Type: unix.NFT_NG_INCREMENTAL}}
		if a == plan.SourceHash {
			choose = []expr.Any{
				&expr.Payload{DestRegister: 2, Base: expr.PayloadBaseNetworkHeader, Offset: 12, Len: 4},
				&expr.Hash{SourceRegister: 2, DestRegister: reg, Length: 4, Modulus: n, Type: expr.HashTypeJenkins},
			}
		}
		c.AddRule(&nftables.Rule{Table: k.table, Chain: chain, Exprs: append(append([]expr.Any{
			&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: reg},
			&expr.Cmp{Op: expr.CmpOpEq, Register: reg, Data: []byte{t.proto()}},
			&expr.Immediate{Register: reg, Data: binaryutil.NativeEndian.PutUint32(connectionMark)},
			&expr.Ct{Register: reg, Key: expr.CtKeyMARK, SourceRegister: true},
		}, choose...),
			&expr.Lookup{SourceRegister: reg, DestRegister: reg, IsDestRegSet: true, SetName: set.Name, SetID: set.ID},
			&expr.NAT{Type: expr.NATTypeDestNAT, Family: unix.NFPROTO_IPV4, RegAddrMin: reg, RegProtoMin: second, Specified: true},
		)})
	}
	if err := errors.Join(
		c.SetAddElements(k.points, []nftables.SetElement{{Key: t.key(), VerdictData: &expr.Verdict{Kind: expr.VerdictJump, Chain: chain.Name}}}),
		c.Flush(),
	); err != nil {
		return unprivileged(fmt.Errorf("access point %s at %v: %w", key, t, err))
	}
	return nil
}

// drop the rules of a point.
func (k *kernel) drop(t target, chain string) error {
	c := &nftables.Conn{}
	ch := &nftables.Chain{Table: k.table, Name: chain}
	err := c.SetDeleteElements(k.points, []nftables.SetElement{{Key: t.key(), VerdictData: &expr.Verdict{Kind: expr.VerdictJump, Chain: chain}}})
	c.FlushChain(ch)
	c.DelChain(ch)
	if err := errors.Join(err, c.Flush()); err != nil && !errors.Is(err, os.ErrNotExist) {
		return unprivileged(fmt.Errorf("remove the access point at %v: %w", t, err))
	}
	return nil
}

// free takes an address of the pool away again.
func (k *kernel) free(a netip.Addr) error {
	addrs, err := netlink.AddrList(nil, netlink.FAMILY_V4)
	for _, x := range addrs {
		if ones, _ := x.Mask.Size(); ones == 32 && x.IP.Equal(net.IP(a.AsSlice())) {
			l, lerr := netlink.LinkByIndex(x.LinkIndex)
			if lerr == nil {
				lerr = netlink.AddrDel(l, &x)
			}
			err = errors.Join(err, lerr)
		}
	}
	if err != nil {
		return fmt.Errorf("take address %v away: %w", a, err)
	}
	return nil
}

// askAgain who has an address that nobody answered for until now. A check of a guest that was
// not there yet has left a question open, and what waits for its answer would fail with it.
func (k *kernel) askAgain(a netip.Addr) {
	neighbours, err := netlink.NeighList(0, netlink.FAMILY_V4)
	if err != nil {
		return // it is asked again in a moment anyway
	}
	for _, n := range neighbours {
		if n.IP.Equal(net.IP(a.AsSlice())) && n.State&(netlink.NUD_INCOMPLETE|netlink.NUD_FAILED) != 0 {
			_ = netlink.NeighDel(&n)
		}
	}
}

// Conntrack's states of a TCP connection that has ended (linux/netfilter/nf_conntrack_tcp.h).
const (
	tcpLastACK  = 6
	tcpTimeWait = 7
	tcpClose    = 8
)

// connections under way, by target and backend.
func (k *kernel) connections() (map[target]map[netip.AddrPort]int, error) {
	flows, err := netlink.ConntrackTableList(netlink.ConntrackTable, unix.AF_INET)
	if err != nil {
		return nil, fmt.Errorf("read the connections under way: %w", err)
	}
	under := map[target]map[netip.AddrPort]int{}
	for _, f := range flows {
		if tcp, ok := f.ProtoInfo.(*netlink.ProtoInfoTCP); ok && (tcp.State == tcpLastACK || tcp.State == tcpTimeWait || tcp.State == tcpClose) {
			continue
		}
		t, backend := flow(f)
		if under[t] == nil {
			under[t] = map[netip.AddrPort]int{}
		}
		under[t][backend]++
	}
	return under, nil
}

// flow is what a connection was addressed to, and who answers it.
func flow(f *netlink.ConntrackFlow) (target, netip.AddrPort) {
	to, _ := netip.AddrFromSlice(f.Forward.DstIP.To4())
	from, _ := netip.AddrFromSlice(f.Reverse.SrcIP.To4())
	return target{netip.AddrPortFrom(to, f.Forward.DstPort), f.Forward.Protocol == unix.IPPROTO_UDP}, netip.AddrPortFrom(from, f.Reverse.SrcPort)
}

// ended is a filter of the connections of an access point whose backends are gone.
type ended struct {
	t    target
	gone func(netip.AddrPort) bool
}

// MatchConntrackFlow: netlink.CustomConntrackFilter.
func (e ended) MatchConntrackFlow(f *netlink.ConntrackFlow) bool {
	t, backend := flow(f)
	return t == e.t && backend.Addr() != t.at.Addr() && e.gone(backend)
}

// forget what the kernel knows of connections to backends that are no more: what a client
// sends on one goes to another, which resets it, so that the client learns it at once.
func (k *kernel) forget(t target, gone func(netip.AddrPort) bool) error {
	if _, err := netlink.ConntrackDeleteFilters(netlink.ConntrackTable, unix.AF_INET, ended{t, gone}); err != nil {
		return fmt.Errorf("forget the connections of %v: %w", t, err)
	}
	return nil
}

// sweep removes what is of no point in keep: of an earlier process, or of a call that was
// cut short.
func (k *kernel) sweep(keep map[target]string) error {
	c := &nftables.Conn{}
	elements, err := c.GetSetElements(k.points)
	if err != nil {
		return unprivileged(fmt.Errorf("read the access points of the firewall: %w", err))
	}
	chains, err := c.ListChainsOfTableFamily(nftables.TableFamilyIPv4)
	if err != nil {
		return unprivileged(fmt.Errorf("read the chains of the firewall: %w", err))
	}
	kept := map[string]bool{}
	for _, chain := range keep {
		kept[chain] = true
	}
	var strays []nftables.SetElement
	for _, e := range elements {
		if t, ok := targetOf(e.Key); !ok || keep[t] == "" {
			strays = append(strays, nftables.SetElement{Key: e.Key})
		}
	}
	if len(strays) > 0 {
		if err := c.SetDeleteElements(k.points, strays); err != nil {
			return fmt.Errorf("remove access points that are no more: %w", err)
		}
	}
	for _, ch := range chains {
		if ch.Table.Name == k.table.Name && strings.HasPrefix(ch.Name, chainPrefix) && !kept[ch.Name] {
			c.FlushChain(ch)
			c.DelChain(ch)
		}
	}
	if err := c.Flush(); err != nil {
		return unprivileged(fmt.Errorf("remove access points that are no more: %w", err))
	}
	return nil
}

// clear removes every rule.
func (k *kernel) clear() error {
	c := &nftables.Conn{}
	c.DelTable(k.table)
	if err := c.Flush(); err != nil && !errors.Is(err, os.ErrNotExist) {
		return unprivileged(fmt.Errorf("remove the firewall's table %s: %w", k.table.Name, err))
	}
	return nil
}
