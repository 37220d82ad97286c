package responder

import (
	"net/netip"
	"slices"
	"strings"

	"github.com/miekg/dns"
)

const (
	// ttl of every answer, seconds: a replica that starts or ends is known within it.
	ttl = 1
	// mostRecords of one answer.
	mostRecords = 256
)

// Answer to a DNS query that was asked of the segment from an address. also are other
// segments of this host: a guest with several NICs is told of all the networks it is on,
// whichever it asks in. Of a name that is none of theirs, forward says whether the host's
// resolver is to be asked, which is where one of the guest's networks is public; the answer
// is then only for when that fails. Who has no port in the segment is refused.
//
// nil is the answer to what is no query at all.
func (t *Table) Answer(q *dns.Msg, from netip.Addr, also []*Table) (r *dns.Msg, forward bool) {
	if q.Response {
		return nil, false
	}
	r = new(dns.Msg).SetReply(q)
	r.RecursionAvailable = true
	if e := q.IsEdns0(); e != nil {
		r.SetEdns0(dns.DefaultMsgSize, false)
		if e.Version() != 0 {
			return r.SetRcode(q, dns.RcodeBadVers), false
		}
	}
	switch {
	case q.Opcode != dns.OpcodeQuery:
		r.Rcode = dns.RcodeNotImplemented
		return r, false
	case len(q.Question) != 1:
		r.Rcode = dns.RcodeFormatError
		return r, false
	case q.Question[0].Qclass != dns.ClassINET:
		r.Rcode = dns.RcodeRefused
		return r, false
	}
	if _, known := t.asker[from]; !known { // there are no guests of other networks here
		r.Rcode = dns.RcodeRefused
		return r, false
	}
	views := t.views(from, also)
	name, kind := dns.CanonicalName(q.Question[0].Name), q.Question[0].Qtype
	var zone string
	for _, v := range views {
		z := v.answer(r, q.Question[0], name, kind, from)
		if len(z) > len(zone) {
			zone = z
		}
	}
	if zone == "" {
		r.Rcode = dns.RcodeRefused
		return r, slices.ContainsFunc(views, func(v *Table) bool { return v.segment.Public })
	}
	r.Authoritative = true
	exists := len(r.Answer) > 0 || name == zone || slices.ContainsFunc(views, func(v *Table) bool { return v.has(name) })
	if !exists {
		r.Rcode = dns.RcodeNameError
	}
	if len(r.Answer) == 0 { // says for how long there is nothing (RFC 2308)
		r.Ns = []dns.RR{soa(zone)}
	}
	// Another one first each time, so that those who take the first spread.
	if n := len(r.Answer); n > 1 {
		k := int(q.Id) % n
		r.Answer = append(slices.Clone(r.Answer[k:]), r.Answer[:k]...)
	}
	if len(r.Answer) > mostRecords {
		r.Answer = r.Answer[:mostRecords]
	}
	return r, false
}

// views are the tables that the asker at an address may know: this one, and those in which
// its VEE has a port too.
func (t *Table) views(from netip.Addr, also []*Table) []*Table {
	views := []*Table{t}
	id := t.asker[from]
	for _, o := range also {
		if o.segment.ID != t.segment.ID && o.members[id] {
			views = append(views, o)
		}
	}
	return views
}

// answer adds what t knows of a name, and returns the zone of t that the name is in; "" for
// none.
func (t *Table) answer(r *dns.Msg, q dns.Question, name string, kind uint16, from netip.Addr) (zone string) {
	if zone = t.reverseZone(name); zone != "" {
		for _, host := range t.reversed[name] {
			if kind == dns.TypePTR || kind == dns.TypeANY {
				r.Answer = append(r.Answer, &dns.PTR{Hdr: header(q.Name, dns.TypePTR), Ptr: host})
			}
		}
		return zone
	}
	if t.zone == "" || !dns.IsSubDomain(t.zone, name) {
		return ""
	}
	for _, a := range t.addresses(name, from) {
		switch {
		case a.Is4() && (kind == dns.TypeA || kind == dns.TypeANY):
			r.Answer = append(r.Answer, &dns.A{Hdr: header(q.Name, dns.TypeA), A: a.AsSlice()})
		case a.Is6() && (kind == dns.TypeAAAA || kind == dns.TypeANY):
			r.Answer = append(r.Answer, &dns.AAAA{Hdr: header(q.Name, dns.TypeAAAA), AAAA: a.AsSlice()})
		}
	}
	if kind == dns.TypeSOA && name == t.zone && len(r.Answer) == 0 {
		r.Answer = append(r.Answer, soa(q.Name))
	}
	return t.zone
}

// has reports whether the name is known, of whatever type its records are.
func (t *Table) has(name string) bool { return len(t.names[name]) > 0 || len(t.reversed[name]) > 0 }

// reverseZone of t that a name is in: its subnets' own, cut at the label (RFC 1035, section
// 3.5; RFC 3596, section 2.5).
func (t *Table) reverseZone(name string) string {
	if !strings.HasSuffix(name, ".arpa.") {
		return ""
	}
	for _, p := range t.segment.Subnets {
		full, err := dns.ReverseAddr(p.Masked().Addr().String())
		if err != nil {
			continue
		}
		labels, width := dns.SplitDomainName(full), 8
		if p.Addr().Is6() {
			width = 4
		}
		cut := len(labels) - 2 - p.Bits()/width
		zone := strings.Join(labels[cut:], ".") + "."
		if a, ok := addressOf(name); dns.IsSubDomain(zone, name) && (!ok || p.Contains(a)) {
			return zone
		}
	}
	return ""
}

// addressOf is what a whole name of in-addr.arpa stands for; of the others false.
func addressOf(name string) (netip.Addr, bool) {
	head, is := strings.CutSuffix(name, ".in-addr.arpa.")
	if !is {
		return netip.Addr{}, false
	}
	labels := strings.Split(head, ".")
	slices.Reverse(labels)
	a, err := netip.ParseAddr(strings.Join(labels, "."))
	return a, err == nil
}

func header(name string, kind uint16) dns.RR_Header {
	return dns.RR_Header{Name: name, Rrtype: kind, Class: dns.ClassINET, Ttl: ttl}
}

func soa(zone string) *dns.SOA {
	return &dns.SOA{Hdr: header(zone, dns.TypeSOA), Ns: "ns." + zone, Mbox: "hostmaster." + zone,
		Serial: 1, Refresh: ttl, Retry: ttl, Expire: ttl, Minttl: ttl}
}
