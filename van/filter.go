package van

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"golang.org/x/sys/unix"

	"github.com/reservoir-cloud/reservoir/van/plan"
)

// filter is the rule set in one network namespace.
type filter struct {
	ns       int // file descriptor of the namespace
	underlay netip.Addr
	hostMAC  net.HardwareAddr // of the public networks' bridge
	sets     *sets
	log      *slog.Logger
}

// batch bounds how many changes go to the kernel at once, all or none of them.
const batch = 256

func (f *filter) dial() (*nftables.Conn, error) {
	return nftables.New(nftables.WithNetNSFd(f.ns), nftables.AsLasting())
}

// ensure makes the constant part, if it is not there as this version has it. Whatever a
// broken or another version's part held goes: it is put back from the segments.
func (f *filter) ensure() error {
	c, err := f.dial()
	if err != nil {
		return fmt.Errorf("reach nftables: %w", err)
	}
	defer func() { _ = c.CloseLasting() }()
	chains := f.sets.layout(f.underlay)
	if f.intact(c, chains) {
		return nil
	}
	for _, t := range []*nftables.Table{frames, packets} {
		c.AddTable(t) // so that there is one to delete
		c.DelTable(t)
		c.AddTable(t)
	}
	for _, s := range f.sets.all() {
		s.ID = 0
		if err := c.AddSet(s, nil); err != nil {
			return fmt.Errorf("nftables set %s: %w", s.Name, err)
		}
	}
	chains = f.sets.layout(f.underlay) // sets are named by their new numbers within a batch
	for _, k := range chains {
		c.AddChain(k.Chain)
	}
	for _, k := range chains {
		for _, r := range k.rules {
			c.AddRule(&nftables.Rule{Table: k.Table, Chain: k.Chain, Exprs: r, UserData: comment(digest(r))})
		}
	}
	if err := c.Flush(); err != nil {
		return fmt.Errorf("make the nftables tables %q: %w", tableName, err)
	}
	f.log.Info("the rule set was made anew", "table", tableName)
	return nil
}

// intact reports whether every set is there, and every rule of the constant part.
func (f *filter) intact(c *nftables.Conn, chains []chain) bool {
	for _, t := range []*nftables.Table{frames, packets} {
		there, err := c.GetSets(t)
		if err != nil {
			return false
		}
		for _, s := range f.sets.all() {
			if s.Table == t && !slices.ContainsFunc(there, func(o *nftables.Set) bool { return o.Name == s.Name }) {
				return false
			}
		}
	}
	for _, k := range chains {
		want := make([]string, 0, len(k.rules))
		for _, r := range k.rules {
			want = append(want, digest(r))
		}
		if have, err := comments(c, k.Chain); err != nil || !slices.Equal(have, want) {
			return false
		}
	}
	return true
}

// digest tells two rules apart. The numbers that sets have in a batch are not part of it.
func digest(r exprs) string {
	h := sha256.New()
	for _, e := range r {
		switch x := e.(type) {
		case *expr.Lookup:
			y := *x
			y.SetID = 0
			e = &y
		case *expr.Dynset:
			y := *x
			y.SetID = 0
			e = &y
		}
		text, err := json.Marshal(e)
		if err != nil {
			panic(fmt.Sprintf("expressions are plain data: %v", err))
		}
		fmt.Fprintf(h, "%T%s", e, text)
	}
	return hex.EncodeToString(h.Sum(nil)[:8])
}

func comment(s string) []byte { return userdata.AppendString(nil, userdata.TypeComment, s) }

// comments of a chain's rules, in order; none where there is no such chain.
func comments(c *nftables.Conn, k *nftables.Chain) ([]string, error) {
	rules, err := c.GetRules(k.Table, k)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	all := make([]string, 0, len(rules))
	for _, r := range rules {
		s, _ := userdata.GetString(r.UserData, userdata.TypeComment)
		all = append(all, s)
	}
	return all, nil
}

// remove both tables.
func (f *filter) remove() error {
	c, err := f.dial()
	if err != nil {
		return fmt.Errorf("reach nftables: %w", err)
	}
	defer func() { _ = c.CloseLasting() }()
	for _, t := range []*nftables.Table{frames, packets} {
		c.AddTable(t)
		c.DelTable(t)
	}
	if err := c.Flush(); err != nil {
		return fmt.Errorf("remove the nftables tables %q: %w", tableName, err)
	}
	return nil
}

// holds reports whether entries of the kind are in the rule set.
func holds(k plan.Kind) bool {
	return k >= plan.KindZone && k != plan.KindMember && k != plan.KindForward
}

// apply changes of entries that are in the rule set.
func (f *filter) apply(changes []plan.Change) error {
	c, err := f.dial()
	if err != nil {
		return fmt.Errorf("reach nftables: %w", err)
	}
	defer func() { _ = c.CloseLasting() }()
	for part := range slices.Chunk(changes, batch) {
		for _, ch := range part {
			if err := f.change(c, ch); err != nil {
				return fmt.Errorf("change of the rule set %q: %w", ch, err)
			}
		}
		if err := c.Flush(); err != nil {
			return fmt.Errorf("change the rule set (%s …): %w", part[0], err)
		}
	}
	return nil
}

func (f *filter) change(c *nftables.Conn, ch plan.Change) error {
	if w, ok := ch.Want.(plan.Wall); ok {
		return f.build(c, w, ch.Have != nil)
	}
	if w, ok := ch.Have.(plan.Wall); ok {
		k := &nftables.Chain{Table: packets, Name: w.Chain()}
		c.FlushChain(k)
		c.DelChain(k)
		return nil
	}
	if ch.Have != nil {
		s, e := f.element(ch.Have)
		if err := c.SetDeleteElements(s, []nftables.SetElement{e}); err != nil {
			return err
		}
	}
	if ch.Want != nil {
		s, e := f.element(ch.Want)
		return c.SetAddElements(s, []nftables.SetElement{e})
	}
	return nil
}

// build a wall: its chain alone is written anew.
func (f *filter) build(c *nftables.Conn, w plan.Wall, there bool) error {
	k := &nftables.Chain{Table: packets, Name: w.Chain()}
	c.AddChain(k)
	if there {
		c.FlushChain(k)
	}
	rules, err := wallRules(c, w)
	if err != nil {
		return err
	}
	for _, r := range rules {
		c.AddRule(&nftables.Rule{Table: packets, Chain: k, Exprs: r, UserData: comment(wallComment(w.Digest, len(rules)))})
	}
	return nil
}

// wallComment says in each rule of a wall how many there are, so that one that is missing
// is missed.
func wallComment(digest string, n int) string { return fmt.Sprintf("%s of %d", digest, n) }

// element of a set that stands for an entry.
func (f *filter) element(e plan.Entry) (*nftables.Set, nftables.SetElement) {
	s := f.sets
	at := func(v4, v6 *nftables.Set, a netip.Addr, before []byte) (*nftables.Set, nftables.SetElement) {
		set := v4
		if a.Is6() {
			set = v6
		}
		return set, nftables.SetElement{Key: append(before, a.AsSlice()...)}
	}
	switch e := e.(type) {
	case plan.Network:
		return s.networks, nftables.SetElement{Key: ifname(e.Device), Val: mark(e.VNI)}
	case plan.Permit:
		key := append(ifname(e.Tap), append(mac(e.MAC), 0, 0)...)
		if !e.Addr.IsValid() {
			return s.macs, nftables.SetElement{Key: key}
		}
		return at(s.own4, s.own6, e.Addr, key)
	case plan.Answer:
		set, x := at(s.answers4, s.answers6, e.Addr, mark(e.VNI))
		x.Val = mac(e.MAC)
		return set, x
	case plan.Gate:
		m := []byte(f.hostMAC)
		if e.MAC != "" {
			m = mac(e.MAC)
		}
		return s.gates, nftables.SetElement{Key: mark(e.VNI), Val: m}
	case plan.Zone:
		return s.zones, nftables.SetElement{Key: ifname(e.Bridge), Val: binary.NativeEndian.AppendUint16(nil, e.ID)}
	case plan.Guest:
		if e.Gate {
			return at(s.services4, s.services6, e.Addr, ifname(e.Bridge))
		}
		return at(s.guests4, s.guests6, e.Addr, ifname(e.Bridge))
	case plan.Underlay:
		return at(s.underlay4, s.underlay6, e.Addr, nil)
	case plan.Door:
		v4, v6 := s.in4, s.in6
		if e.Out {
			v4, v6 = s.out4, s.out6
		}
		set, x := at(v4, v6, e.Addr, ifname(e.Bridge))
		x.VerdictData = &expr.Verdict{Kind: expr.VerdictJump, Chain: plan.Wall{Tap: e.Tap, Out: e.Out}.Chain()}
		return set, x
	case plan.Hatch:
		set, x := at(s.scraped4, s.scraped6, e.Addr, ifname(e.Bridge))
		x.Key = append(x.Key, byte(e.Port>>8), byte(e.Port), 0, 0)
		return set, x
	}
	panic(fmt.Sprintf("entry %T is none of the rule set", e))
}

// read what the kernel has.
func (f *filter) read(into plan.HostPlan) error {
	c, err := f.dial()
	if err != nil {
		return fmt.Errorf("reach nftables: %w", err)
	}
	defer func() { _ = c.CloseLasting() }()
	for _, s := range f.sets.all() {
		if s == f.sets.storm {
			continue
		}
		elements, err := c.GetSetElements(s)
		if err != nil {
			return fmt.Errorf("read nftables set %s: %w", s.Name, err)
		}
		for _, x := range elements {
			e := f.entry(s, x)
			into.Add(e)
		}
	}
	return f.readWalls(c, into)
}

// readWalls that there are. One whose rules are not as they were made has no digest: nobody
// wants that.
func (f *filter) readWalls(c *nftables.Conn, into plan.HostPlan) error {
	chains, err := c.ListChainsOfTableFamily(packets.Family)
	if err != nil {
		return fmt.Errorf("list nftables chains: %w", err)
	}
	for _, k := range chains {
		tap, out := strings.CutPrefix(k.Name, "out-")
		tap, in := strings.CutPrefix(tap, "in-")
		if k.Table.Name != tableName || in == out {
			continue
		}
		all, err := comments(c, &nftables.Chain{Table: packets, Name: k.Name})
		if err != nil {
			return fmt.Errorf("read nftables chain %s: %w", k.Name, err)
		}
		w := plan.Wall{Tap: tap, Out: out}
		if len(all) > 0 {
			w.Digest, _, _ = strings.Cut(all[0], " ")
		}
		if slices.ContainsFunc(all, func(s string) bool { return s != wallComment(w.Digest, len(all)) }) {
			w.Digest = ""
		}
		into.Add(w)
	}
	return nil
}

// entry that an element stands for.
func (f *filter) entry(s *nftables.Set, x nftables.SetElement) plan.Entry {
	switch s {
	case f.sets.networks:
		return plan.Network{Device: name(x.Key), VNI: binary.NativeEndian.Uint32(x.Val)}
	case f.sets.macs:
		return plan.Permit{Tap: name(x.Key), MAC: net.HardwareAddr(x.Key[16:22]).String()}
	case f.sets.own4, f.sets.own6:
		return plan.Permit{Tap: name(x.Key), MAC: net.HardwareAddr(x.Key[16:22]).String(), Addr: addr(x.Key[24:])}
	case f.sets.answers4, f.sets.answers6:
		return plan.Answer{VNI: binary.NativeEndian.Uint32(x.Key), Addr: addr(x.Key[4:]), MAC: net.HardwareAddr(x.Val[:6]).String()}
	case f.sets.gates:
		g := plan.Gate{VNI: binary.NativeEndian.Uint32(x.Key), MAC: net.HardwareAddr(x.Val[:6]).String()}
		if g.VNI == 0 && slices.Equal(x.Val[:6], f.hostMAC) {
			g.MAC = ""
		}
		return g
	case f.sets.zones:
		return plan.Zone{Bridge: name(x.Key), ID: binary.NativeEndian.Uint16(x.Val)}
	case f.sets.guests4, f.sets.guests6, f.sets.services4, f.sets.services6:
		return plan.Guest{Bridge: name(x.Key), Addr: addr(x.Key[16:]), Gate: s == f.sets.services4 || s == f.sets.services6}
	case f.sets.underlay4, f.sets.underlay6:
		return plan.Underlay{Addr: addr(x.Key)}
	case f.sets.in4, f.sets.in6, f.sets.out4, f.sets.out6:
		chain := verdictChain(x.Val)
		tap := chain[strings.IndexByte(chain, '-')+1:]
		return plan.Door{Bridge: name(x.Key), Addr: addr(x.Key[16:]), Out: s == f.sets.out4 || s == f.sets.out6, Tap: tap}
	case f.sets.scraped4, f.sets.scraped6:
		port := len(x.Key) - 4
		return plan.Hatch{Bridge: name(x.Key), Addr: addr(x.Key[16:port]), Port: binary.BigEndian.Uint16(x.Key[port:])}
	}
	panic("a set that nobody reads: " + s.Name)
}

// verdictChain is the name in a verdict, as the kernel nests it: attributes of a length,
// a type and a value (libnftnl's NFTA_VERDICT_CHAIN).
func verdictChain(b []byte) string {
	for len(b) >= 4 {
		n := int(binary.NativeEndian.Uint16(b))
		if n < 4 || n > len(b) {
			break
		}
		if binary.NativeEndian.Uint16(b[2:])&0x3fff == unix.NFTA_VERDICT_CHAIN {
			return strings.TrimRight(string(b[4:n]), "\x00")
		}
		b = b[min(len(b), (n+3)&^3):]
	}
	return ""
}

func ifname(s string) []byte { return append([]byte(s), make([]byte, 16-len(s))...) }
func name(b []byte) string   { return strings.TrimRight(string(b[:16]), "\x00") }
func mark(vni uint32) []byte { return binaryutil.NativeEndian.PutUint32(vni) }

func mac(s string) []byte {
	m, err := net.ParseMAC(s)
	if err != nil || len(m) != 6 { // Segment.Check has refused it
		return make([]byte, 6)
	}
	return m
}

func addr(b []byte) netip.Addr {
	a, _ := netip.AddrFromSlice(b)
	return a
}
