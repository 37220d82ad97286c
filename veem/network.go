package veem

import (
	"context"
	"crypto/sha256"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/internal/identity"
	"github.com/reservoir-cloud/reservoir/van/plan"
	"github.com/reservoir-cloud/reservoir/vee"
	"github.com/reservoir-cloud/reservoir/vhi"
	"github.com/reservoir-cloud/reservoir/vmi"
	"github.com/reservoir-cloud/reservoir/vmi/peer"
)

// networkRecord is a network of a group. A deleted one stays until no host can hold anything
// of it: so long its VNI and its subnets are nobody else's.
type networkRecord struct {
	vmi.Network            // without what is counted: NICs, Leaving
	Created     time.Time  `json:"created"`
	Deleted     *time.Time `json:"deleted,omitempty"`
	// Tunnel is its VNI between sites, once it has spanned some; it was drawn so many times.
	Tunnel uint32 `json:"tunnel,omitempty"`
	Drawn  uint32 `json:"drawn,omitempty"`
	// Entry is the address that the site's proxy has in it, by which access points come in.
	Entry netip.Addr `json:"entry,omitzero"`
	// Shared is what its own site tells of a network that is another site's.
	Shared *peer.Network `json:"shared,omitempty"`
	// Taken: it was another site's, and is as that has made it. What its service wishes for is
	// not known yet.
	Taken bool `json:"taken,omitempty"`
}

// networkID of a group's network and of its segment.
func networkID(group, name string) string { return group + "/" + name }

// Bounds of networks.
const (
	maxVNI     = 1<<24 - 1
	subnetBits = 24 // of the subnets that are given out
	smallest   = 29 // prefix length that may be wished for
	largest    = 16 // MACs hold 16 bits of an address
	// maxNetworks of a customer, so that nobody takes all identifiers and subnets.
	maxNetworks = 1000
	minMTU      = 576  // RFC 791
	minMTU6     = 1280 // RFC 8200
	// vanMTU is what guests are offered: it leaves room for VXLAN, and for the tunnel to
	// another site that a network may later span, so that it need not change then.
	vanMTU = 1370
	// maxVANMTU fits into VXLAN on an underlay of 1500 (RFC 7348: 50 bytes over IPv4).
	maxVANMTU = 1450
	publicMTU = 1500
)

// networkName is the manifest's rule for names of networks.
var networkName = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9_.-]{0,63}$`)

// range4 of addresses that VEEs get without asking: the first quarter is left to those that
// ask for a certain one.
func (n *networkRecord) range4() Network {
	s := n.Subnets[0]
	return Network{Subnet: s, Gateway: n.Gateways[0], First: nth(s, max(2, uint32(1)<<(30-s.Bits())))}
}

func checkNetwork(n vmi.Network) error {
	w := n.Wish
	switch {
	case !networkName.MatchString(n.Name):
		return malformed("name", "%q: want a letter, then letters, digits, and . _ -", n.Name)
	case n.GroupID == "" || len(n.GroupID) > maxText:
		return malformed("groupID", "%q: want the group whose network it is", n.GroupID)
	case w.Subnet.IsValid() && (!w.Subnet.Addr().Is4() || w.Subnet.Bits() < largest || w.Subnet.Bits() > smallest || w.Subnet != w.Subnet.Masked()):
		return malformed("wish.subnet", "%v: want an IPv4 prefix of /%d to /%d such as 10.1.0.0/24", w.Subnet, largest, smallest)
	case w.MTU != 0 && w.MTU < minMTU, w.MTU != 0 && w.IPv6 && w.MTU < minMTU6, w.MTU > maxVANMTU:
		return malformed("wish.mtu", "%d: want %d (with IPv6 %d) to %d", w.MTU, minMTU, minMTU6, maxVANMTU)
	}
	return nil
}

// PutNetwork: vmi.Service.
func (m *Manager) PutNetwork(ctx context.Context, n vmi.Network) (vmi.Network, error) {
	caller := identity.From(ctx)
	if err := mayWrite(caller); err != nil {
		return n, err
	}
	if err := checkNetwork(n); err != nil {
		return n, err
	}
	if n.Customer == "" {
		n.Customer = caller.Customer
	}
	id := networkID(n.GroupID, n.Name)
	if !caller.Sees(n.Customer) {
		return n, fault.New(fault.Denied, "network %s: customer %q is not %s's", id, n.Customer, orElse(caller.ID, "the caller"))
	}
	made := vmi.Network{}
	err := m.ledger.do(ctx, func(t *tx) error {
		r := networkRecord{Network: vmi.Network{Name: n.Name, GroupID: n.GroupID, Customer: n.Customer, ID: id}, Created: t.now}
		if old := t.networks.get(id); old != nil {
			if old.Customer != n.Customer || old.Shared != nil {
				return fault.New(fault.Denied, "network %s belongs to another customer", id)
			}
			if made = old.Network; old.Deleted == nil && old.Wish == n.Wish {
				return nil
			}
			r = *old
			r.Deleted = nil
			if r.Taken && old.Deleted == nil {
				r.Wish, r.Taken = n.Wish, false
				put(t, &t.networks, id, &r)
				made = r.Network
				return nil
			}
		} else if owned(t, n.Customer) >= maxNetworks {
			return fault.New(fault.NoResources, "customer %q has %d networks already", n.Customer, maxNetworks).Try("remove services that are not needed: reservoir van list")
		}
		if err := m.shape(t, &r, n.Wish); err != nil {
			return err
		}
		r.Version++
		put(t, &t.networks, id, &r)
		made = r.Network
		return nil
	})
	if err != nil {
		return n, fmt.Errorf("network %s: %w", id, err)
	}
	m.ledger.read(func(s *state) { made.NICs = onNetwork(s, id) })
	return made, nil
}

// owned counts a customer's networks, those that leave too.
func owned(t *tx, customer string) (n int) {
	for _, r := range t.networks.all() {
		if r.Customer == customer {
			n++
		}
	}
	return n
}

// shape gives r what the wish asks for. What is there stays where the wish allows it.
func (m *Manager) shape(t *tx, r *networkRecord, w vmi.NetworkWish) error {
	used := users(t, r.ID) > 0
	fresh := len(r.Subnets) == 0
	if !fresh && used && (r.Wish.Subnet != w.Subnet || r.Wish.IPv6 && !w.IPv6) {
		return fault.New(fault.InUse, "VEEs have addresses of %v: its subnets cannot change", r.Subnets).Try("remove the VEEs that are on it first, or give the network another name")
	}
	if r.VNI == 0 {
		v, err := freeVNI(t)
		if err != nil {
			return err
		}
		r.VNI = v
	}
	if fresh || r.Wish.Subnet != w.Subnet {
		s, err := m.freeSubnet(t, r, w.Subnet)
		if err != nil {
			return err
		}
		r.Subnets, r.Gateways, r.Entry = []netip.Prefix{s}, []netip.Addr{nth(s, 1)}, netip.Addr{}
	}
	r.Subnets, r.Gateways = r.Subnets[:1:1], r.Gateways[:1:1]
	if w.IPv6 {
		s := m.subnet6(t, r)
		r.Subnets, r.Gateways = append(r.Subnets, s), append(r.Gateways, nth(s, 1))
	}
	r.MTU = vanMTU
	if w.MTU != 0 {
		r.MTU = w.MTU
	}
	r.Wish = w
	return nil
}

// users counts the NICs on a network, of VEEs that are not gone.
func users(t *tx, id string) (n int) {
	for _, r := range t.vees.all() {
		n += r.nicsOn(id)
	}
	return n
}

func (r *record) nicsOn(id string) (n int) {
	if r.State == vee.Destroyed {
		return 0
	}
	for _, nic := range r.Descriptor.NICs {
		if r.segment(nic) == id {
			n++
		}
	}
	return n
}

// freeVNI is the next behind the newest network's, so that one rests before it is used again.
func freeVNI(t *tx) (uint32, error) {
	taken := map[uint32]bool{}
	var newest *networkRecord
	for _, r := range t.networks.all() {
		taken[r.VNI] = true
		if newest == nil || newest.Created.Before(r.Created) || newest.Created.Equal(r.Created) && newest.VNI < r.VNI {
			newest = r
		}
	}
	v := uint32(0)
	if newest != nil {
		v = newest.VNI
	}
	for range maxVNI {
		if v = v%maxVNI + 1; !taken[v] {
			return v, nil
		}
	}
	return 0, fault.New(fault.NoResources, "all %d identifiers of networks are taken", maxVNI)
}

// freeSubnet is the wished one, if nothing of the same group has it, or the first of the
// site's pool that nobody has.
func (m *Manager) freeSubnet(t *tx, of *networkRecord, wish netip.Prefix) (netip.Prefix, error) {
	var taken []netip.Prefix // none of these may be met
	for _, n := range m.cfg.Networks {
		taken = append(taken, n.Subnet.Masked())
	}
	for _, r := range t.networks.all() {
		if r.ID != of.ID && len(r.Subnets) > 0 && (!wish.IsValid() || r.GroupID == of.GroupID) {
			taken = append(taken, r.Subnets[0])
		}
	}
	if wish.IsValid() {
		for _, s := range taken {
			if s.Overlaps(wish) {
				return wish, fault.New(fault.Exists, "subnet %v overlaps %v, which the same VEEs may be on", wish, s).Try("choose another subnet, or none: the site gives out one")
			}
		}
		return wish, nil
	}
	// Ordered and searched side by side: a pool has many subnets.
	slices.SortFunc(taken, func(a, b netip.Prefix) int { return a.Addr().Compare(b.Addr()) })
	s := netip.PrefixFrom(m.cfg.VANs.Masked().Addr(), subnetBits)
	for m.cfg.VANs.Contains(s.Addr()) {
		i := slices.IndexFunc(taken, func(p netip.Prefix) bool { return p.Overlaps(s) })
		if i < 0 {
			return s, nil
		}
		s = netip.PrefixFrom(nth(s, 1<<(32-subnetBits)), subnetBits)
		if end := lastOf(taken[i]).Next(); s.Addr().Less(end) {
			s = netip.PrefixFrom(end, subnetBits).Masked()
		}
		taken = taken[i:] // those before it are behind
	}
	return s, fault.New(fault.NoResources, "the site's pool of subnets, %v, is used up", m.cfg.VANs).Try("remove services that are not needed, or give the site a larger pool: reservoir site --van-subnets")
}

func lastOf(p netip.Prefix) netip.Addr { return nth(p, 1<<(32-p.Bits())-1) }

// subnet6 of a network: a /64 of the site's unique local prefix (RFC 4193), which is derived
// from the site's name so that two sites hardly ever have the same.
func (m *Manager) subnet6(t *tx, of *networkRecord) netip.Prefix {
	taken := map[netip.Prefix]bool{}
	for _, r := range t.networks.all() {
		if r.ID != of.ID && len(r.Subnets) > 1 {
			taken[r.Subnets[1]] = true
		}
	}
	global := sha256.Sum256([]byte("reservoir site " + m.cfg.Site))
	for n := of.VNI; ; n++ { // 2¹⁶ of them: networks with IPv6 are fewer
		b := [16]byte{0xfd, global[0], global[1], global[2], global[3], global[4], byte(n >> 8), byte(n)}
		if p := netip.PrefixFrom(netip.AddrFrom16(b), 64); !taken[p] || n-of.VNI > 1<<16 {
			return p
		}
	}
}

// DeleteNetwork: vmi.Service.
func (m *Manager) DeleteNetwork(ctx context.Context, groupID, name string) error {
	caller := identity.From(ctx)
	if err := mayWrite(caller); err != nil {
		return err
	}
	id := networkID(groupID, name)
	return m.ledger.do(ctx, func(t *tx) error {
		r := t.networks.get(id)
		switch {
		case r == nil || r.Deleted != nil:
			return errNoNetwork(groupID, name)
		case !caller.Sees(r.Customer):
			return fault.New(fault.Denied, "network %s belongs to another customer", id)
		}
		if n := users(t, id); n > 0 {
			return fault.New(fault.InUse, "network %s: %d NICs are on it", id, n).Try("destroy their VEEs first: reservoir van show %s", name)
		}
		left := *r
		left.Deleted = &t.now
		left.Version++
		put(t, &t.networks, id, &left)
		return nil
	})
}

func errNoNetwork(group, name string) *fault.Error {
	return fault.New(fault.NotFound, "group %q has no network %q", group, name).Try("reservoir van list")
}

// siteNetwork as callers see it.
func (m *Manager) siteNetwork(name string) vmi.Network {
	n := m.cfg.Networks[name]
	v := vmi.Network{Name: name, Public: true, Subnets: []netip.Prefix{n.Subnet}, MTU: publicMTU}
	if n.Gateway.IsValid() {
		v.Gateways = []netip.Addr{n.Gateway}
	}
	return v
}

// ListNetworks: vmi.Service.
func (m *Manager) ListNetworks(ctx context.Context, groupID string) ([]vmi.Network, error) {
	caller := identity.From(ctx)
	if err := mayRead(caller); err != nil {
		return nil, err
	}
	list := []vmi.Network{}
	m.ledger.read(func(s *state) {
		for name := range m.cfg.Networks {
			n := m.siteNetwork(name)
			for _, r := range s.vees.rows {
				if caller.Sees(r.Descriptor.Customer) && (groupID == "" || r.Descriptor.GroupID == groupID) {
					n.NICs += r.nicsOn(r.segment(vee.NIC{Network: name, Public: true}))
				}
			}
			list = append(list, n)
		}
		for id, r := range s.networks.rows {
			if caller.Sees(r.Customer) && (groupID == "" || r.GroupID == groupID) {
				n := r.Network
				n.NICs, n.Leaving = onNetwork(s, id), r.Deleted != nil
				list = append(list, n)
			}
		}
	})
	slices.SortFunc(list, func(a, b vmi.Network) int {
		return strings.Compare(networkID(a.GroupID, a.Name), networkID(b.GroupID, b.Name))
	})
	return list, nil
}

// onNetwork counts the NICs on a group's network.
func onNetwork(s *state, id string) (n int) {
	for member := range s.segments.of(id) {
		n += s.vees.rows[string(member)].nicsOn(id)
	}
	return n
}

// GetNetwork: vmi.Service.
func (m *Manager) GetNetwork(ctx context.Context, groupID, name string) (vmi.NetworkView, error) {
	caller := identity.From(ctx)
	if err := mayRead(caller); err != nil {
		return vmi.NetworkView{}, err
	}
	view, found := vmi.NetworkView{}, false
	var ids []string
	m.ledger.read(func(s *state) {
		id := networkID(groupID, name)
		if r := s.networks.rows[id]; r != nil && caller.Sees(r.Customer) {
			view.Network, found, ids = r.Network, true, []string{id}
			view.Leaving = r.Deleted != nil
		} else if _, known := m.cfg.Networks[name]; known {
			view.Network, found = m.siteNetwork(name), true
			view.GroupID = groupID
			ids = partsOf(s, caller, groupID, name)
		}
		view.Ports = []plan.Port{}
		for _, id := range ids {
			g, _ := m.segment(s, id)
			view.ID, view.Domain = id, g.Domain
			view.Ports = append(view.Ports, g.Ports...)
		}
	})
	switch {
	case !found:
		return view, errNoNetwork(groupID, name)
	case len(ids) > 1: // of several groups
		view.ID, view.Domain = "", ""
	case len(ids) == 1:
		view.Hosts = m.hosts.holding(view.ID)
	}
	view.NICs = len(view.Ports)
	return view, nil
}

// partsOf one of the site's networks: the segment of a group there, or of all that the caller
// sees where none is named.
func partsOf(s *state, caller identity.Caller, group, name string) (ids []string) {
	for _, v := range s.vees.rows {
		if d := v.Descriptor; group != "" && d.GroupID != group || !caller.Sees(d.Customer) {
			continue
		}
		if id := v.segment(vee.NIC{Network: name, Public: true}); v.nicsOn(id) > 0 && !slices.Contains(ids, id) {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	return ids
}

// NetworkPlan: vmi.Service.
func (m *Manager) NetworkPlan(ctx context.Context, groupID, name string) ([]vhi.NetworkPlan, error) {
	if err := overseer(ctx, false); err != nil {
		return nil, err
	}
	view, err := m.GetNetwork(ctx, groupID, name)
	if err != nil {
		return nil, err
	}
	if view.ID == "" {
		return nil, fault.New(fault.Malformed, "network %s is the site's own: each group has a part of it", name).Try("name a service: reservoir van show SERVICE/%s --plan", name)
	}
	at := m.whereabouts(view.ID)
	plans := make([]vhi.NetworkPlan, len(at))
	m.each(len(at), func(i int) {
		c, err := m.client(at[i])
		if err == nil {
			ctx, cancel := context.WithTimeout(ctx, m.cfg.Timing.Call)
			defer cancel()
			plans[i], err = c.NetworkPlan(ctx, view.ID)
		}
		plans[i].Host = at[i]
		if err != nil {
			plans[i].Error = fault.From(err).Message
		}
	})
	return plans, nil
}
