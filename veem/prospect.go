package veem

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/vee"
	"github.com/reservoir-cloud/reservoir/veem/federation/broker"
)

// Which site a VEE goes to first: what bars a site is asked before anything else (its own
// wishes, what was agreed, rules between VEEs), then the policy orders those that are left.

// prospect of one VEE: the sites that may take it, best first, and why the other hosts may
// not.
type prospect struct {
	sites  []string // "": this one
	barred map[string]string
	why    map[string]string // what speaks for a site
	here   string            // name of this site
}

// explain why it is at the k-th of its sites: what speaks for that one, and what spoke against
// each other.
func (p prospect) explain(k int, host string) string {
	parts := []string{p.why[p.sites[k]]}
	if p.sites[k] == "" {
		parts = []string{host, p.why[""]}
	}
	for _, site := range p.sites[:k] {
		if site != "" { // that no host here takes it is said already
			parts = append(parts, "site "+site+", which comes first, has no room for it")
		} else if p.why[p.sites[k]] == "" {
			parts = append(parts, "no host of site "+p.here+" takes it")
		}
	}
	for _, name := range slices.Sorted(maps.Keys(p.barred)) {
		if isPartner(name) {
			parts = append(parts, "site "+partnerOf(name)+" not: "+p.barred[name])
		}
	}
	return strings.Join(slices.DeleteFunc(parts, func(s string) bool { return s == "" }), "; ")
}

// anywhere: nothing is said of where it may run.
func anywhere(w vee.Where) bool {
	return len(w.Sites)+len(w.Without)+len(w.Countries)+len(w.Jurisdictions) == 0 && w.Requirement == "" && w.Reservation == ""
}

// orders of the broker that policies go by.
var orders = map[vee.Partnering]broker.Order{
	vee.PartnersLocation: broker.Location, vee.PartnersEnergy: broker.Energy, vee.PartnersHeat: broker.Heat,
}

// policyOver sites of a VEE: its own wish, else the site's.
func (m *Manager) policyOver(w vee.Where) vee.Partnering {
	site := cmp.Or(m.cfg.Partnering, vee.PartnersOverflow)
	if site == vee.PartnersNever {
		return site
	}
	return cmp.Or(w.Partners, site)
}

// checkWhere a VEE may run, and by which policy, as far as this site lets callers say that.
func (m *Manager) checkWhere(where string, d *vee.Descriptor) error {
	w := d.Where
	switch {
	case w.Partners == "":
	case !slices.Contains(vee.Partnerings, w.Partners):
		return malformed(where+"where.partners", "%q: want one of %v", w.Partners, vee.Partnerings)
	case m.cfg.Partnerings != nil && w.Partners != vee.PartnersNever && !slices.Contains(m.cfg.Partnerings, w.Partners):
		return fault.New(fault.Denied, "%swhere.partners: site %s does not let VEEs choose the policy %s: it lets them choose %v", where, m.cfg.Site, w.Partners, m.cfg.Partnerings).
			Try("leave the policy out, or ask the site's operator: reservoir site --partnering-allow")
	}
	if n := len(w.Sites) + len(w.Without) + len(w.Countries) + len(w.Jurisdictions); n > maxTags {
		return malformed(where+"where", "%d sites, countries and jurisdictions: at most %d", n, maxTags)
	}
	if w.Partners == vee.PartnersLocation && w.Users == nil {
		return malformed(where+"where.users", "nothing: the policy %s needs to know where the users are", w.Partners)
	}
	if _, err := judgeOf(w, w.Partners, vee.Descriptor{VCPUs: 1}); err != nil {
		return malformed(where+"where.requirement", "%v", fault.From(err).Message)
	}
	return nil
}

// judgeOf sites for d; nil: nothing that sites tell of themselves matters to it.
func judgeOf(w vee.Where, policy vee.Partnering, d vee.Descriptor) (*broker.Broker, error) {
	order := orders[policy]
	if order == broker.Location && w.Users == nil {
		order = "" // the site's own policy, of a VEE whose users are anywhere
	}
	if order == "" && w.Requirement == "" {
		return nil, nil
	}
	return broker.New(broker.Question{Requirement: w.Requirement, Order: cmp.Or(order, broker.Overflow), Users: w.Users,
		VEE: broker.Size{VCPUs: d.VCPUs, Memory: d.Memory, Disk: d.Resources().Disk}, Count: 1})
}

// standing of a site for a VEE: less is better, the first number before the others.
type standing []float64

// prospect of r as the policies are.
func (x *choosing) prospect(r *record) prospect {
	p := prospect{barred: map[string]string{}, why: map[string]string{}, here: x.m.cfg.Site}
	where, m := r.Descriptor.Where, x.m
	policy := m.policyOver(where)
	if r.lodges() {
		policy = vee.PartnersNever // its own site has decided about sites
		where = vee.Where{Reservation: where.Reservation}
	}
	counts, bySite := x.rules(r)
	if id := where.Reservation; id != "" {
		site, why := x.underReservation(r)
		for _, h := range x.board {
			if other := siteOfHost(h.Name); why != "" {
				bySite[other] = why
			} else if other != site {
				bySite[other] = fmt.Sprintf("it is placed under reservation %s, which is at site %s", id, cmp.Or(site, m.cfg.Site))
			}
		}
	}
	spread := x.spread(r)
	j, err := judgeOf(where, policy, r.Descriptor)
	by := map[string]standing{}
	ownPrice := -1.0
	// enter a site that may take it, or bar its hosts.
	enter := func(site string, offer Offer, why string) string {
		why = cmp.Or(why, bySite[site])
		if err != nil && why == "" {
			why = fault.From(err).Message
		}
		var rank []float64
		if j != nil && why == "" {
			var refused []string
			if rank, p.why[site], refused = j.Judge(x.candidate(cmp.Or(site, m.cfg.Site))); refused != nil {
				why = strings.Join(refused, "; ")
			}
		}
		if why != "" {
			return why
		}
		own := float64(min(1, len(site)))
		s := standing{float64(counts[site])}
		switch policy {
		case vee.PartnersCost:
			s = append(s, offer.PerHour)
		case vee.PartnersSpread:
			s = append(s, float64(spread[site]))
		case vee.PartnersLocation, vee.PartnersEnergy, vee.PartnersHeat:
			s = append(s, rank...)
		}
		p.sites = append(p.sites, site)
		by[site] = append(s, own, offer.PerHour)
		return ""
	}
	type lender struct {
		host  string
		offer Offer
		why   string
	}
	var lenders []lender
	for _, h := range x.board {
		if isPartner(h.Name) {
			offer, why := x.offer(r, h.Name, policy)
			lenders = append(lenders, lender{h.Name, offer, why})
			if why == "" {
				ownPrice = offer.OwnPerHour
			}
		}
	}
	own := enter("", Offer{PerHour: max(0, ownPrice)}, where.Allows(m.own()))
	for _, h := range x.board {
		if own != "" && !isPartner(h.Name) {
			p.barred[h.Name] = own
		}
	}
	for _, l := range lenders {
		site := partnerOf(l.host)
		if why := enter(site, l.offer, l.why); why != "" {
			p.barred[l.host] = why
			continue
		}
		price := fmt.Sprintf("for %.4g %s an hour (agreement %s)", l.offer.PerHour, l.offer.Currency, l.offer.Agreement)
		switch {
		case own != "":
			p.why[site] = fmt.Sprintf("site %s takes it %s; here: %s", site, price, own)
		case policy == vee.PartnersCost:
			p.why[site] = fmt.Sprintf("site %s takes it %s, here it is %.4g", site, price, l.offer.OwnPerHour)
		case policy == vee.PartnersSpread:
			p.why[site] = fmt.Sprintf("site %s takes it %s, and has %d of its kind; here are %d", site, price, spread[site], spread[""])
		case orders[policy] != "" && p.why[site] != "":
			p.why[site] = fmt.Sprintf("site %s takes it %s: %s", site, price, p.why[site])
		default:
			p.why[site] = fmt.Sprintf("no host here takes it; site %s does, %s", site, price)
		}
	}
	slices.SortStableFunc(p.sites, func(a, b string) int {
		return cmp.Or(slices.Compare(by[a], by[b]), strings.Compare(a, b))
	})
	return p
}

// candidate that a site is, as far as it is known.
func (x *choosing) candidate(site string) broker.Candidate {
	if x.known == nil {
		x.known = map[string]broker.Candidate{}
		if x.m.cfg.Partnership != nil {
			x.known = x.m.cfg.Partnership.Candidates()
		}
	}
	c, ok := x.known[site]
	if !ok {
		c.Site, c.Here = site, site == x.m.cfg.Site
		c.Silent = fault.New(fault.Unavailable, "site %s has told nothing of itself", site)
	}
	return c
}

// spread is how many VEEs of r's kind each site has: those of its group with the same tags.
func (x *choosing) spread(r *record) map[string]int {
	n := map[string]int{}
	for _, h := range x.board {
		for _, l := range h.VEEs {
			if l.Group == r.Scope && slices.Equal(l.Tags, r.Descriptor.Tags) {
				n[siteOfHost(h.Name)]++
			}
		}
	}
	return n
}
