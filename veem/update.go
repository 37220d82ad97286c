package veem

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/internal/identity"
	"github.com/reservoir-cloud/reservoir/vee"
	"github.com/reservoir-cloud/reservoir/vmi"
)

// fitPatience is how long UpdateVEEs waits, in calls to a host, for a guest to be fitted to
// its new descriptor: it may have to give memory back first.
const fitPatience = 6

// UpdateVEEs: vmi.Service. The descriptors are changed at once, each VEE in a change of its
// own; then it waits for the hosts to say what has become of it.
func (m *Manager) UpdateVEEs(ctx context.Context, us []vmi.VEEUpdate) ([]vmi.Outcome, error) {
	caller := identity.From(ctx)
	if err := mayCommand(caller); err != nil {
		return nil, err
	}
	if err := m.ready(ctx); err != nil {
		return nil, err
	}
	outs := make([]vmi.Outcome, len(us))
	m.each(len(us), func(i int) {
		u := us[i]
		var before, now record
		var host hostRecord
		err := m.ledger.do(ctx, func(t *tx) (err error) {
			if r, exists := t.vee(u.ID); exists {
				before = r
			}
			if caller.Is(identity.Partner) {
				if err := m.mayStay(caller.Site, t.now); err != nil {
					return err
				}
			}
			if now, err = m.update(caller, t, u); err == nil && now.Host != "" {
				host = *t.hosts.get(now.Host)
			}
			return err
		})
		switch {
		case err != nil:
			outs[i] = outcome(u.ID, "", err)
		case now.State != vee.Active && now.State != vee.Paused:
			outs[i] = outcome(u.ID, vmi.AtNextBoot, nil)
		case sameHardware(before.Descriptor, now.Descriptor):
			outs[i] = outcome(u.ID, "applied live", nil)
		case !slices.ContainsFunc(liveChanges, host.can):
			outs[i] = outcome(u.ID, vmi.AtNextBoot+": the hypervisor of host "+host.Name+" changes nothing of a guest that runs", nil)
		default:
			outs[i] = m.awaitFit(ctx, now)
		}
	})
	return outs, nil
}

// each calls do with 0 to n-1, all at the same time unless the manager is stepped.
func (m *Manager) each(n int, do func(int)) {
	if m.cfg.Stepped {
		for i := range n {
			do(i)
		}
		return
	}
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() { do(i) })
	}
	wg.Wait()
}

// liveChanges are the operations of a driver that changes guests while they run. One that
// declares none of them will not say what became of a change.
var liveChanges = []string{"memory-hotplug", "vcpu-hotplug", "disk-grow"}

// sameHardware reports whether a guest of one descriptor is as one of the other.
func sameHardware(a, b vee.Descriptor) bool {
	return a.Memory == b.Memory && a.MemoryMax == b.MemoryMax && a.VCPUs == b.VCPUs && a.VCPUsMax == b.VCPUsMax &&
		a.CPU == b.CPU && slices.Equal(a.Disks, b.Disks)
}

// update one VEE's descriptor. What it takes of its host and of its customer's quota is
// checked in the same change.
func (m *Manager) update(caller identity.Caller, t *tx, u vmi.VEEUpdate) (record, error) {
	r, err := find(caller, t, u.ID)
	switch {
	case err != nil:
		return r, err
	case r.Target == vee.Destroyed || r.State == vee.Destroyed:
		return r, fault.New(fault.WrongState, "VEE %s: it is destroyed", u.ID)
	case u.Version != 0 && u.Version != r.Version:
		return r, fault.New(fault.Conflict, "VEE %s: version %d was to be changed, and it is %d by now", u.ID, u.Version, r.Version)
	case u.Context != nil && r.Submitted && !maps.Equal(u.Context, r.Descriptor.Context):
		return r, fault.New(fault.WrongState, "VEE %s: it was submitted, and what its guest is told cannot be changed any more", u.ID)
	}
	before := r.Descriptor
	if r.Descriptor, err = changed(before, u); err != nil {
		return r, fault.New(fault.Malformed, "VEE %s: %w", u.ID, err)
	}
	if err := checkHardware("", &r.Descriptor); err != nil {
		return r, err
	}
	if err := checkLabels("", &r.Descriptor); err != nil {
		return r, err
	}
	if err := checkFirewall("", &r.Descriptor); err != nil {
		return r, err
	}
	had, has := vmi.HoldingsOf(before), vmi.HoldingsOf(r.Descriptor)
	if err := admit(t, map[string]vmi.Holdings{before.Customer: {
		VCPUs: has.VCPUs - had.VCPUs, Memory: has.Memory - had.Memory, Disk: has.Disk - had.Disk,
	}}); err != nil {
		return r, err
	}
	for _, h := range m.board(t) {
		old, _ := t.vee(u.ID)
		more := r.usage().Minus(old.usage())
		more.MilliCPU, more.Memory, more.Disk = max(0, more.MilliCPU), max(0, more.Memory), max(0, more.Disk)
		if free := h.Capacity.Minus(h.Used); h.Name == r.Host && !more.Fits(free) {
			return r, fault.New(fault.NoResources, "VEE %s: host %s has no room for it to grow (free %d vCPUs, %s of memory, %s of disk)",
				u.ID, h.Name, free.MilliCPU/1000, free.Memory, free.Disk).Try("reservoir host list")
		}
	}
	r.Seq++
	t.putVEE(r)
	return r, nil
}

// changed is d with the fields that u names. The declared ranges stay: what goes beyond
// them moves their upper end.
func changed(d vee.Descriptor, u vmi.VEEUpdate) (vee.Descriptor, error) {
	if u.Memory != nil {
		most := max(d.Memory, d.MemoryMax)
		if d.Memory = *u.Memory; d.Memory != most {
			d.MemoryMax = max(d.Memory, most)
		}
	}
	if u.VCPUs != nil {
		most := max(d.VCPUs, d.VCPUsMax)
		if d.VCPUs = *u.VCPUs; d.VCPUs != most && d.VCPUsMax != 0 {
			d.VCPUsMax = max(d.VCPUs, most)
		}
	}
	if u.CPU != nil {
		d.CPU = *u.CPU
	}
	if u.Tags != nil {
		d.Tags = slices.Clone(*u.Tags)
	}
	if u.Firewall != nil {
		d.Firewall = slices.Clone(*u.Firewall)
	}
	if u.Context != nil {
		d.Context = maps.Clone(u.Context)
	}
	d.Disks = slices.Clone(d.Disks)
	for name, size := range u.Disks {
		i := slices.IndexFunc(d.Disks, func(k vee.Disk) bool { return k.Name == name })
		switch {
		case i < 0:
			return d, fmt.Errorf("disks: there is no disk %q", name)
		case d.Disks[i].CDROM:
			return d, fmt.Errorf("disks: %q is a CD-ROM", name)
		case size < d.Disks[i].Size:
			return d, fmt.Errorf("disks: %q has %s, and a disk can only grow", name, d.Disks[i].Size)
		case size > maxDisk:
			return d, fmt.Errorf("disks: %q of %s: want at most %s", name, size, maxDisk)
		}
		d.Disks[i].Size = size
	}
	return d, nil
}

// awaitFit waits until the host says how far the guest that runs is as r describes it.
func (m *Manager) awaitFit(ctx context.Context, r record) vmi.Outcome {
	w := m.hub.watch(r.ID)
	defer m.hub.leave(w)
	patience := time.NewTimer(fitPatience * m.cfg.Timing.Call)
	defer patience.Stop()
	why := "its host has not said yet what became of it"
	for {
		now, ok := m.ledger.vee(r.ID)
		p := m.hosts.view(r.Host, r.ID).report
		switch {
		case !ok || now.Target == vee.Destroyed || now.State != vee.Active && now.State != vee.Paused:
			return outcome(r.ID, vmi.AtNextBoot, nil)
		case p == nil || p.Seq < r.Seq:
		case !p.Fitted && p.Error != "":
			why = p.Error // and it tries again
		case !p.Fitted:
		case len(p.NextBoot) > 0:
			return outcome(r.ID, vmi.AtNextBoot+": "+strings.Join(p.NextBoot, "; "), nil)
		default:
			return outcome(r.ID, "applied live", nil)
		}
		if m.cfg.Stepped { // nothing happens while this waits
			return outcome(r.ID, "will be applied: "+why, nil)
		}
		select {
		case <-w.signal:
			w.take()
		case <-patience.C:
			return outcome(r.ID, "will be applied: "+why, nil)
		case <-m.hub.closed:
			return outcome(r.ID, "", errStopped())
		case <-ctx.Done():
			return outcome(r.ID, "", fault.New(fault.Timeout, "VEE %s: its host has not said yet what became of the change", r.ID))
		}
	}
}
