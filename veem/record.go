package veem

import (
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/reservoir-cloud/reservoir/account"
	"github.com/reservoir-cloud/reservoir/placement"
	"github.com/reservoir-cloud/reservoir/vee"
	"github.com/reservoir-cloud/reservoir/vhi"
	"github.com/reservoir-cloud/reservoir/vmi"
)

// record of one VEE, as it is stored: what callers see and what the manager needs beside
// it. Records are values; the ones in the ledger are never changed in place. Progress,
// GuestIdle and DiskUsed are not stored: they are filled in from the host's last report.
type record struct {
	vmi.VEE
	// Seq of the assignment. It grows when what the host should do changes, unlike Version,
	// which grows with everything.
	Seq uint64 `json:"seq"`
	// Assigned: the host was told of it, or may have been. Until then the place is only
	// reserved, and can be given up without asking the host.
	Assigned bool `json:"assigned,omitempty"`
	// Settled: the host has confirmed that it is as Target asks.
	Settled bool `json:"settled,omitempty"`
	// Holds processors and memory of its host, and not only disk: from its reservation until
	// the host has confirmed that it has stopped. It gets them back only where there is room.
	Holds bool `json:"holds,omitempty"`
	// Scope of its placement rules: the group, or the call where there is none.
	Scope string `json:"scope"`
	// Failure of the last action, kept in Error until the next action.
	Failure     string `json:"failure,omitempty"`
	FailureCode string `json:"failureCode,omitempty"`
	// HostRestarts as the host counted them last; Restarts is the sum.
	HostRestarts int `json:"hostRestarts,omitempty"`
	// Move is the last live migration.
	Move *migration `json:"move,omitempty"`
	// Meter of what it has used, read at the last change.
	Meter account.Meter `json:"meter"`
	// Lease under which it runs, so that it may be restarted elsewhere; nil: none. It stays.
	Lease *lease `json:"lease,omitempty"`
	// Offered: it has no lease, and its host was told to put its guest under guard so that it
	// may get one.
	Offered bool `json:"offered,omitempty"`
	// Switch is the context switch that it is part of.
	Switch string `json:"switch,omitempty"`
	// Withdraw: its partner, which has refused it or given it up, is told to have nothing of
	// it; then it is placed anew.
	Withdraw bool `json:"withdraw,omitempty"`
	// Refused by partners, by host.
	Refused map[string]refusal `json:"refused,omitempty"`
}

// retarget is a new wish: the old one's failure is forgotten.
func (r *record) retarget(to vee.State) {
	r.Target = to
	r.Seq++
	r.Settled = false
	r.Failure, r.FailureCode, r.Error = "", "", ""
}

// release gives up its place.
func (r *record) release() {
	r.Host, r.Why, r.Assigned, r.Holds, r.ReservedUntil = "", "", false, false, nil
	r.GuestReady, r.GuestSeen, r.GuestFailure = false, false, ""
}

// finish its life: the identifier stays, everything else is free.
func (r *record) finish() {
	r.State, r.Target, r.Phase = vee.Destroyed, vee.Destroyed, vee.PhaseDone
	r.Assigned, r.Holds, r.ReservedUntil = false, false, nil
	r.GuestReady, r.GuestSeen, r.GuestFailure, r.Error, r.Failure, r.FailureCode = false, false, "", "", "", ""
}

// usage is what r takes of its host now. A suspended one keeps its memory on disk.
func (r *record) usage() vee.Resources {
	all := r.Descriptor.Resources()
	switch {
	case r.Host == "" || r.State == vee.Destroyed:
		return vee.Resources{}
	case r.Holds:
		return all
	case r.State == vee.Suspended:
		return vee.Resources{Disk: all.Disk + r.Descriptor.Memory}
	}
	return vee.Resources{Disk: all.Disk}
}

func (r *record) label() placement.Label {
	return placement.Label{Group: r.Scope, Tags: r.Descriptor.Tags}
}

func (r *record) request() placement.Request {
	return placement.Request{Name: r.Descriptor.Name, Label: r.label(), Needs: r.Descriptor.Resources(), Driver: r.Descriptor.Hypervisor}
}

var powers = map[vee.State]vhi.Power{
	vee.Active: vhi.Running, vee.Paused: vhi.Paused, vee.Suspended: vhi.Suspended, vee.Defined: vhi.Stopped, vee.Destroyed: vhi.Absent,
}

func (r *record) assignment(grace time.Duration) vhi.Assignment {
	a := vhi.Assignment{VEE: r.ID, Epoch: r.Epoch, Seq: r.Seq, Power: powers[r.Target], Descriptor: r.Descriptor, GraceMS: grace.Milliseconds(), Leased: r.Lease != nil || r.Offered && !r.moving()}
	a.Apart, a.Together = r.bonds()
	if r.Withdraw {
		a.Power = vhi.Absent
	}
	if r.moving() && !r.Move.Cancelling && r.Move.By == "" {
		if a.Move = r.Move.move(); r.Move.Cold != "" {
			a.Power = r.Move.Cold
		}
	}
	return a
}

// same reports whether writing o over r would change nothing.
func (r *record) same(o *record) bool {
	return r.State == o.State && r.Target == o.Target && r.Phase == o.Phase && r.Submitted == o.Submitted &&
		r.Error == o.Error && r.Host == o.Host && r.Why == o.Why && r.Epoch == o.Epoch && r.GuestReady == o.GuestReady &&
		r.GuestSeen == o.GuestSeen && r.GuestFailure == o.GuestFailure && r.Restarts == o.Restarts && r.Seq == o.Seq && r.Assigned == o.Assigned && r.Settled == o.Settled && r.Holds == o.Holds &&
		r.Failure == o.Failure && r.FailureCode == o.FailureCode && r.HostRestarts == o.HostRestarts &&
		r.sameCustody(o) && (r.Evicted == nil) == (o.Evicted == nil) && r.Withdraw == o.Withdraw && maps.Equal(r.Refused, o.Refused) && r.Move.same(o.Move) && r.Lease.same(o.Lease) && r.Switch == o.Switch && r.Offered == o.Offered && (r.ReservedUntil == nil) == (o.ReservedUntil == nil)
}

func (r *record) sameCustody(o *record) bool {
	return r.Custody == o.Custody || r.Custody != nil && o.Custody != nil && *r.Custody == *o.Custody
}

// hostRecord is what the store has of a host: what was wanted of it, and what it said last,
// as far as that rarely changes.
type hostRecord struct {
	Name     string           `json:"name"`
	State    vmi.HostState    `json:"state"`
	Joined   time.Time        `json:"joined"`
	Address  string           `json:"address,omitempty"`
	Version  string           `json:"version,omitempty"`
	CPUs     int              `json:"cpus,omitempty"`
	Capacity vee.Resources    `json:"capacity"`
	Drivers  []vhi.DriverInfo `json:"drivers,omitempty"`
	Underlay netip.Addr       `json:"underlay,omitzero"`
	Price    float64          `json:"price,omitempty"`
	// Drain is set while its VEEs are to leave it.
	Drain *drain `json:"drain,omitempty"`
	// Notice that VEEs there have, of a partner; nil: none.
	Notice *Notice `json:"notice,omitempty"`
	// Member of the site's log of ownership.
	Witnesses uint64 `json:"witnesses,omitempty"` // configuration that it has acknowledged
	Awaited   bool   `json:"awaited,omitempty"`   // has not reported since a restore
	Fenced    bool   `json:"fenced,omitempty"`    // a person says that it is off
	Upkeep    uint64 `json:"upkeep,omitempty"`    // odd: in maintenance
	Heeded    uint64 `json:"heeded,omitempty"`    // newest Upkeep that it has acknowledged
	// Guarded: it can run VEEs under lease.
	Guarded bool `json:"guarded,omitempty"`
}

// with is h after a report.
func (h hostRecord) with(r vhi.HostReport) hostRecord {
	h.Address, h.Version, h.CPUs, h.Capacity, h.Drivers, h.Underlay = r.Address, r.Version, r.CPUs, r.Capacity, r.Drivers, r.Underlay
	h.Price, h.Guarded = r.Price, r.Lease.Guarded
	return h
}

func (h hostRecord) same(o hostRecord) bool {
	return h.Address == o.Address && h.Version == o.Version && h.CPUs == o.CPUs && h.Capacity == o.Capacity && h.Underlay == o.Underlay && h.Price == o.Price && h.Guarded == o.Guarded &&
		slices.EqualFunc(h.Drivers, o.Drivers, func(a, b vhi.DriverInfo) bool {
			return a.Name == b.Name && a.Version == b.Version && a.Accelerator == b.Accelerator && a.Why == b.Why &&
				a.Simulated == b.Simulated && slices.Equal(a.Operations, b.Operations)
		})
}

func (h hostRecord) driverNames() (names []string) {
	for _, d := range h.Drivers {
		names = append(names, d.Name)
	}
	return names
}

// pointRecord is an access point; Backends is not stored.
type pointRecord struct {
	vmi.AccessPoint
	// Shared: partners may have been asked to open it too, at some time.
	Shared bool `json:"shared,omitempty"`
}

func pointKey(group, name string) string { return group + "/" + name }

// receipt of a call under an Idempotency-Key: what it answered.
type receipt struct {
	At       time.Time              `json:"at"`
	Request  []byte                 `json:"request"` // SHA-256 of what was asked
	IDs      []vee.ID               `json:"ids,omitempty"`
	Outcomes map[vee.ID]vmi.Outcome `json:"outcomes,omitempty"`
	Seqs     map[vee.ID]uint64      `json:"seqs,omitempty"` // of the assignments that the action led to
}
