package veem

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/internal/identity"
	"github.com/reservoir-cloud/reservoir/vee"
	"github.com/reservoir-cloud/reservoir/vmi"
)

// VEEs of other sites lodge at this one. They are records like any other, and run under this
// site's own policy and epochs; what differs is in this file. Their identifier and their
// addresses are given by their own site, whose customer and group they keep behind its name
// ("alpha/acme"), so that nothing of it meets what is ours. Every wish of that site carries
// a Custody, by which what comes late is known: the newest that was obeyed is on record,
// also of a VEE that is destroyed, for as long as that is remembered.

// lodges: it belongs to another site.
func (r *record) lodges() bool { return r.Custody != nil }

// foreign name of a customer or a group of another site's.
func foreign(site, name string) string { return site + "/" + name }

// describeLodger checks what a partner hands in, and makes it one of this site's.
func (m *Manager) describeLodger(ctx context.Context, caller identity.Caller, in vmi.Initialize) ([]vee.Descriptor, error) {
	v := in.VEEs[0]
	d := v.Descriptor
	const where = "vees[0]."
	id, err := vee.ParseID(string(v.ID))
	switch {
	case len(in.VEEs) != 1 || v.Count > 1:
		return nil, malformed("vees", "%d of them: a partner hands over one at a time", len(in.VEEs))
	case in.Model != vmi.TwoPhase:
		return nil, malformed("model", "%s: a partner reserves (%s) before it commits", in.Model, vmi.TwoPhase)
	case err != nil:
		return nil, malformed(where+"id", "%v", err)
	case id.Site() != caller.Site:
		return nil, fault.New(fault.Denied, "VEE %s is of site %s: site %s cannot hand it over", id, id.Site(), caller.Site)
	case v.Custody == nil:
		return nil, malformed(where+"custody", "say under which epoch it is handed over")
	case !vee.ValidName(d.Customer):
		return nil, malformed(where+"descriptor.customer", "%q: want a DNS label such as \"acme\"", d.Customer)
	case d.Seed != nil:
		return nil, fault.New(fault.Unsupported, "VEE %s begins with a checkpoint, which its own site alone has", id)
	case !dnsLabel.MatchString(d.Name):
		return nil, malformed(where+"descriptor.name", "%q: want a DNS label such as \"web-1\"", d.Name)
	}
	for _, check := range []func(string, *vee.Descriptor) error{checkHardware, checkLabels, checkGivenNICs, checkNaming, checkFirewall, m.checkRaw} {
		if err := check(where+"descriptor.", &d); err != nil {
			return nil, err
		}
	}
	if err := m.checkDisks(ctx, where+"descriptor.", m.importing(ctx, caller.Site, &d)); err != nil {
		return nil, err
	}
	if d.NICs, err = m.ownPublic(d.NICs); err != nil {
		return nil, err
	}
	d.Customer, d.GroupID = foreign(caller.Site, d.Customer), foreign(caller.Site, d.GroupID)
	return []vee.Descriptor{d}, nil
}

// importing begins to bring the images of d that are not here: they come ahead of its
// deployment. The answer is d with what can be checked already.
func (m *Manager) importing(ctx context.Context, site string, d *vee.Descriptor) *vee.Descriptor {
	if m.cfg.Import == nil {
		return d
	}
	known := *d
	known.Disks = slices.DeleteFunc(slices.Clone(d.Disks), func(k vee.Disk) bool {
		return k.Image != "" && m.cfg.Import(ctx, site, k.Image) != nil
	})
	return &known
}

// imported checks that the images of a partner's VEEs are here before they are to run.
func (m *Manager) imported(ctx context.Context, site string, ids []vee.ID) error {
	if m.cfg.Import == nil {
		return nil
	}
	for _, id := range ids {
		r, ok := m.ledger.vee(id)
		if !ok || !r.lodges() || id.Site() != site || r.Assigned {
			continue
		}
		for _, k := range r.Descriptor.Disks {
			if k.Image == "" {
				continue
			}
			if err := m.cfg.Import(ctx, site, k.Image); err != nil {
				return fmt.Errorf("VEE %s: its image %s: %w", id, orElse(k.Source, k.Image), err)
			}
		}
	}
	return nil
}

// ownPublic plugs what is on a public network of its own site into one of this site's, which
// gives it another address there.
func (m *Manager) ownPublic(nics []vee.NIC) ([]vee.NIC, error) {
	nics = slices.Clone(nics)
	for i, n := range nics {
		if !n.Public {
			continue
		}
		names := m.networkNames()
		if len(names) == 0 {
			return nil, fault.New(fault.Unsupported, "nics[%d]: site %s has no public network", i, m.cfg.Site)
		}
		nics[i] = vee.NIC{Network: names[0], Target: n.Target, Public: true}
		if slices.Contains(names, n.Network) {
			nics[i].Network = n.Network
		}
	}
	return nics, nil
}

// checkGivenNICs of a VEE whose addresses are its own site's to give.
func checkGivenNICs(where string, d *vee.Descriptor) error {
	if len(d.NICs) > maxNICs {
		return malformed(where+"nics", "%d: at most %d", len(d.NICs), maxNICs)
	}
	for i, n := range d.NICs {
		where := fmt.Sprintf("%snics[%d].", where, i)
		if n.Public {
			continue // this site gives it one of its own
		}
		if mac, err := net.ParseMAC(n.MAC); err != nil || len(mac) != 6 || mac[0]&1 != 0 {
			return malformed(where+"mac", "%q: want the unicast address that its own site has given it", n.MAC)
		}
		for field, cidr := range map[string]string{"address": n.Address, "address6": n.Address6} {
			p, err := netip.ParsePrefix(cidr)
			if cidr == "" && field == "address6" {
				continue
			}
			if err != nil || p.Addr().Is4() != (field == "address") {
				return malformed(where+field, "%q: want an address with the length of its network, such as \"10.1.0.5/24\"", cidr)
			}
		}
		switch {
		case !networkName.MatchString(n.Network):
			return malformed(where+"network", "%q: want a letter, then letters, digits, and . _ -", n.Network)
		case !deviceName.MatchString(n.Target):
			return malformed(where+"target", "%q: want a device such as \"eth0\"", n.Target)
		case n.MTU < 0 || n.MTU > maxVANMTU:
			return malformed(where+"mtu", "%d: want at most %d", n.MTU, maxVANMTU)
		}
	}
	return nil
}

// lodge makes the record of another site's VEE and reserves a place for it. One that is here
// already is answered as it is.
func (m *Manager) lodge(t *tx, caller identity.Caller, in vmi.Initialize, wanted []vee.Descriptor) (record, error) {
	v := in.VEEs[0]
	old, known := t.vee(v.ID)
	if known && !old.lodges() {
		return record{}, fault.New(fault.Conflict, "VEE %s is this site's now: its service was gone on with here", v.ID)
	}
	if known {
		c := v.Custody.Compare(*old.Custody)
		switch {
		case c < 0, c == 0 && old.State == vee.Destroyed:
			return record{}, errStale(v.ID, *v.Custody, old)
		case old.State != vee.Destroyed:
			return old, nil
		}
	}
	rs := m.scoped(in, wanted, string(v.ID))
	r := &rs[0]
	r.ID, r.Custody, r.Site = v.ID, v.Custody, m.cfg.Site
	// It goes on from its own site's epochs, so that a host there can tell what comes from here
	// as newer than all before.
	if r.Epoch = v.Custody.Epoch; known && old.Epoch.Compare(r.Epoch) >= 0 {
		r.Epoch = vee.Epoch{Generation: old.Epoch.Generation, Term: old.Epoch.Term + 1}
	}
	if err := unique(t, rs); err != nil {
		return *r, err
	}
	if err := m.admitLodger(t, caller.Site, *r); err != nil {
		return *r, err
	}
	if err := m.fill(t, rs); err != nil {
		return *r, err
	}
	c := m.choose(t, rs)[0]
	if c.Host == "" {
		return *r, fault.New(fault.NoResources, "VEE %q: %s", r.Descriptor.Name, c.Why)
	}
	until := t.now.Add(m.hold(in))
	r.reserve(c)
	r.ReservedUntil = &until
	return *r, nil
}

func errStale(id vee.ID, c vmi.Custody, r record) error {
	return fault.New(fault.StaleEpoch, "VEE %s: custody %s/%d is no newer than %s/%d, under which it is %s here", id, c.Epoch, c.Seq, r.Custody.Epoch, r.Custody.Seq, r.State)
}

// admitLodger by what was agreed with its site.
func (m *Manager) admitLodger(t *tx, site string, r record) error {
	if m.cfg.Partnership == nil {
		return fault.New(fault.Denied, "site %s lends nothing to site %s", m.cfg.Site, site)
	}
	if r.Descriptor.Where.Reservation != "" { // its place is counted already
		return m.cfg.Partnership.Admit(site, nil, r.Descriptor)
	}
	return t.within(lentTo(site), m.lodging(t, site, r.ID), t.now, time.Time{}, "", func(has []vee.Descriptor) error {
		return m.cfg.Partnership.Admit(site, has, r.Descriptor)
	})
}

// obey a partner's action on one of its VEEs, under the custody that it names.
func (m *Manager) obey(caller identity.Caller, t *tx, id vee.ID, u vmi.UpdateState) (seq uint64, err error) {
	c, named := u.Custody[id]
	r, known := t.vee(id)
	if !known && named && u.Action == vee.Destroy && id.Site() == caller.Site {
		// It never came, or is forgotten; and it shall not come by a call that is on its way.
		r = record{Seq: 1, VEE: vmi.VEE{ID: id, Site: m.cfg.Site, Epoch: vee.Epoch{Generation: m.gen, Term: 1}, Custody: &c,
			Descriptor: vee.Descriptor{Customer: foreign(caller.Site, "")}}}
		r.finish()
		t.putVEE(r)
		return r.Seq, nil
	}
	if err := visible(caller, id, r, known); err != nil {
		return 0, err
	}
	switch {
	case !named:
		return 0, malformed("custody", "VEE %s: say under which epoch that is", id)
	case c.Compare(*r.Custody) < 0:
		return 0, errStale(id, c, r)
	}
	to := map[vee.Action]vee.State{vee.Activate: vee.Active, vee.Pause: vee.Paused, vee.Suspend: vee.Suspended, vee.Shutdown: vee.Defined, vee.Destroy: vee.Destroyed}[u.Action]
	if r.State == vee.Destroyed && to != vee.Destroyed {
		return 0, fault.New(fault.WrongState, "VEE %s: it is destroyed here", id)
	}
	if r.Target != to {
		if to != vee.Destroyed {
			if m.mustLeave(caller.Site, t.now) {
				// Its own site learns by the eviction that this wish, and every older one, is refused.
				m.overstayed(&r, t.now)
				r.Custody = &c
				t.putVEE(r)
				return r.Seq, nil
			}
			if r.Evicted != nil { // the sites have agreed again
				r.Evicted, r.Phase = nil, vee.PhaseProlog
				t.putVEE(r)
			}
		}
		if to == vee.Active {
			if err := networksShared(t, r); err != nil {
				return 0, err
			}
		}
		if _, err := m.apply(caller, t, id, u.Action); err != nil {
			return 0, err
		}
		r, _ = t.vee(id)
	}
	if r.moving() && r.Move.Cold != "" && !r.Move.Cancelling { // a live one is overtaken by what is wanted now
		r.cancelMove("its own site wants something else of it")
	}
	r.Custody = &c
	t.putVEE(r)
	return r.Seq, nil
}

// told to its own site: without what is this site's affair.
func (m *Manager) told(c identity.Caller, v vmi.VEE) vmi.VEE {
	if !c.Is(identity.Partner) {
		return v
	}
	own := func(s string) string { return strings.TrimPrefix(s, foreign(c.Site, "")) }
	v.Descriptor.Customer, v.Descriptor.GroupID = own(v.Descriptor.Customer), own(v.Descriptor.GroupID)
	v.Host, v.Why = "", ""
	steps := make([]vmi.Step, len(v.History))
	for i, s := range v.History {
		s.Host = ""
		steps[i] = s
	}
	v.History = steps
	return v
}
