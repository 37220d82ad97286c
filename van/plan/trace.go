package plan

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/reservoir-cloud/reservoir/vee"
)

// Question where a packet goes.
type Question struct {
	From     vee.ID
	To       netip.Addr
	Protocol string // "tcp", "udp", "icmp"
	Port     uint16 // destination; 0 with icmp
}

// Trace is the way of a packet, hop by hop, and what becomes of it.
type Trace struct {
	Hops      []string   `json:"hops"`
	Delivered bool       `json:"delivered"`
	VEE       vee.ID     `json:"vee,omitempty"` // that gets it
	Reached   netip.Addr `json:"reached,omitzero"`
	// Dropped says where, by what, and why; empty where it is delivered.
	Dropped string `json:"dropped,omitempty"`
}

// Find the way of a packet through the networks as their hosts are told of them. It knows
// nothing of what a guest itself does with the packet.
func Find(networks []Segment, q Question) Trace {
	var t Trace
	from, net, ok := leaves(networks, q)
	if !ok {
		return t.drop("at its start: VEE %s has no NIC on a network", q.From)
	}
	t.hop("%s NIC %d (%s, %s)", q.From, from.NIC, addressLike(from, q.To), from.MAC)
	i := slices.IndexFunc(net.Subnets, func(s netip.Prefix) bool { return s.Contains(q.To) })
	switch {
	case i < 0 && !net.Public:
		return t.drop("in the guest: %v is on none of its networks, and network %s leads nowhere else", q.To, net.ID)
	case slices.Contains(net.Gateways, q.To) && !net.Public:
		return t.gateway(from, q)
	}
	if by, allowed := through(from.Firewall, true, q.Protocol, q.Port, q.To); !allowed {
		return t.drop("on host %s, on its way out: %s", from.Host, by)
	} else if by != "" {
		t.hop("host %s lets it out: %s", from.Host, by)
	}
	if i < 0 {
		t.hop("bridge of network %s on host %s", net.ID, from.Host)
		t.Delivered, t.Reached = true, q.To
		t.hop("to the gateway of the site: %v is not on network %s", q.To, net.ID)
		return t
	}
	j := slices.IndexFunc(net.Ports, func(p Port) bool { return slices.Contains(p.Addresses, q.To) })
	if j < 0 {
		if net.Public {
			t.hop("bridge of network %s on host %s", net.ID, from.Host)
			t.Delivered, t.Reached = true, q.To
			t.hop("to %v, which is no VEE of this service", q.To)
			return t
		}
		return t.drop("on host %s: nobody on network %s has %v, so nobody answers for it", from.Host, net.ID, q.To)
	}
	to := net.Ports[j]
	t.hop("bridge of network %s on host %s", net.ID, from.Host)
	if to.Host != from.Host && !net.Public {
		t.hop("VXLAN %d from %v to %v (UDP 4789)", net.VNI, from.Underlay, to.Underlay)
	}
	if to.Host != from.Host {
		t.hop("bridge of network %s on host %s", net.ID, to.Host)
	}
	if by, allowed := through(to.Firewall, false, q.Protocol, q.Port, addressLike(from, q.To)); !allowed {
		return t.drop("on host %s, on its way in: %s", to.Host, by)
	} else if by != "" {
		t.hop("host %s lets it in: %s", to.Host, by)
	}
	t.hop("%s NIC %d (%v, %s)", to.VEE, to.NIC, q.To, to.MAC)
	t.Delivered, t.VEE, t.Reached = true, to.VEE, q.To
	return t
}

// gateway answers for a private network, and for nothing else.
func (t Trace) gateway(from Port, q Question) Trace {
	if q.Protocol == "udp" && (q.Port == 53 || q.Port == 67) || q.Protocol == "tcp" && q.Port == 53 || q.Protocol == "icmp" {
		t.hop("host %s answers as the network's gateway", from.Host)
		t.Delivered, t.Reached = true, q.To
		return t
	}
	return t.drop("on host %s, by isolation: a network's gateway answers DHCP, DNS and echo requests alone", from.Host)
}

func (t *Trace) hop(format string, args ...any) {
	t.Hops = append(t.Hops, fmt.Sprintf(format, args...))
}

func (t Trace) drop(format string, args ...any) Trace {
	t.Dropped = fmt.Sprintf(format, args...)
	return t
}

// leaves is the port that a packet of q leaves by: the one whose network has the address,
// else one on a public network, else any.
func leaves(networks []Segment, q Question) (Port, Segment, bool) {
	var best Port
	var on Segment
	rank := 0
	for _, s := range networks {
		r := 1
		switch {
		case slices.ContainsFunc(s.Subnets, func(p netip.Prefix) bool { return p.Contains(q.To) }):
			r = 3
		case s.Public:
			r = 2
		}
		for _, p := range s.Ports {
			if p.VEE == q.From && r > rank {
				best, on, rank = p, s, r
			}
		}
	}
	return best, on, rank > 0
}

// addressLike is the port's address of the same family as a.
func addressLike(p Port, a netip.Addr) netip.Addr {
	for _, x := range p.Addresses {
		if x.Is4() == a.Is4() {
			return x
		}
	}
	return netip.Addr{}
}

// through the rules of one direction: by which, "" where there are none.
func through(rules []Rule, out bool, protocol string, port uint16, peer netip.Addr) (by string, allowed bool) {
	some := false
	for i, r := range rules {
		if r.Out != out {
			continue
		}
		some = true
		if r.speaksOf(protocol, port, peer) {
			word := "denied"
			if r.Allow {
				word = "allowed"
			}
			return fmt.Sprintf("firewall rule %d (%s) has it %s", i+1, r, word), r.Allow
		}
	}
	if !some {
		return "", true
	}
	return "no firewall rule speaks of it, and there are some", false
}

func (r Rule) speaksOf(protocol string, port uint16, peer netip.Addr) bool {
	switch {
	case r.Protocol != "any" && r.Protocol != "" && r.Protocol != protocol:
		return false
	case r.First > 0 && (port < r.First || port > max(r.First, r.Last)):
		return false
	}
	return len(r.Peers) == 0 || slices.ContainsFunc(r.Peers, func(p netip.Prefix) bool { return p.Contains(peer) })
}

// String is the rule as people say it: "allow tcp 80 from 10.0.0.0/8".
func (r Rule) String() string {
	text := "deny"
	if r.Allow {
		text = "allow"
	}
	if r.Protocol == "" {
		text += " any"
	} else {
		text += " " + r.Protocol
	}
	switch {
	case r.First > 0 && r.Last > r.First:
		text += fmt.Sprintf(" %d-%d", r.First, r.Last)
	case r.First > 0:
		text += fmt.Sprintf(" %d", r.First)
	}
	side := " from"
	if r.Out {
		side = " to"
	}
	switch n := len(r.Peers); {
	case n == 0:
		text += side + " anybody"
	case n > 3:
		text += fmt.Sprintf("%s %v and %d more", side, r.Peers[0], n-1)
	default:
		text += side
		for i, p := range r.Peers {
			if i > 0 {
				text += ","
			}
			text += " " + p.String()
		}
	}
	return text
}
