// Package federation makes a partner site a place where this site's VEEs run: to the VEE
// Manager it is one more host, "@beta" (ADR 22), whose vhi.Host is made of VMI calls to the
// partner's VEE Manager.
//
//   - step.go is the pure core: an assignment and what the partner shows of the VEE in, the
//     next call out; and the partner's word as a host's report.
//   - place.go is the shell: it makes the calls, watches the partner's VEEs that are ours, and
//     renews the host as long as the partner answers. When it does not, nothing is renewed, and
//     the manager knows no more of its VEEs than that.
//   - places.go has a Place for each partner that lends to us.
//
// Every wish carries its custody (vmi.Custody), by which the partner knows what comes late.
// So any call may be lost, repeated or overtaken, and nothing need be remembered here.
package federation

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/internal/identity"
	"github.com/reservoir-cloud/reservoir/van/border"
	"github.com/reservoir-cloud/reservoir/van/plan"
	"github.com/reservoir-cloud/reservoir/vee"
	"github.com/reservoir-cloud/reservoir/veem/federation/agreement"
	"github.com/reservoir-cloud/reservoir/vhi"
	"github.com/reservoir-cloud/reservoir/vhi/guest"
	"github.com/reservoir-cloud/reservoir/vmi"
	"github.com/reservoir-cloud/reservoir/vmi/peer"
)

// Manager is this site's VEE Manager, as a host sees it.
type Manager interface {
	Renew(ctx context.Context, r vhi.Renewal) (vhi.RenewalReply, error)
	// RulesOf a VEE that are kept where it goes.
	RulesOf(id vee.ID) []vmi.PlacementRule
}

// Config of a Place. Every field is needed.
type Config struct {
	Partner     string // its name
	Partners    peer.Partners
	Manager     Manager
	Incarnation string        // drawn for each Place
	Every       time.Duration // the manager is renewed at least so often
	Call        time.Duration // the patience with one call
	Hold        time.Duration // a reservation that is to be committed at once
	Now         func() time.Time
	Log         *slog.Logger
}

// Place is a partner as a host. It implements vhi.Host and veem.Sharing.
type Place struct {
	cfg  Config
	name string

	mu         sync.Mutex
	seq        uint64
	generation uint64
	told       peer.Attributes   // last
	held       map[string]uint64 // networks that the partner had when it was asked last, and since
}

// New makes the place that a partner is. Run keeps it current.
func New(cfg Config) *Place {
	return &Place{cfg: cfg, name: border.SiteHost(cfg.Partner), held: map[string]uint64{}}
}

// partner as it is now; Unavailable while it is not reached.
func (p *Place) partner() (peer.Partner, error) {
	x, err := p.cfg.Partners.Partner(p.cfg.Partner)
	if err == nil && x.Down != nil {
		err = fault.New(fault.Unavailable, "site %s is not reached: %w", p.cfg.Partner, x.Down).Try("reservoir federation show %s", p.cfg.Partner)
	}
	return x, err
}

// maxSteps from anything to any assignment: reserve, fit, activate, pause, and as many that
// others have got in between.
const maxSteps = 10

// Assign brings the partner to accept the assignment: what it has accepted is in its own
// record of truth.
func (p *Place) Assign(ctx context.Context, a vhi.Assignment) (vhi.Report, error) {
	return p.lead(ctx, a, p.cfg.Hold)
}

// Reserve a place at the partner for a VEE that may be submitted until then. Errors: those of
// InitializeVEEs.
func (p *Place) Reserve(ctx context.Context, a vhi.Assignment, hold time.Duration) error {
	a.Power = vhi.Stopped
	r, err := p.lead(ctx, a, hold)
	if err == nil && r.Power == vhi.Absent {
		err = fault.New(fault.Code(r.Code), "%s", r.Error)
	}
	return err
}

func (p *Place) lead(ctx context.Context, a vhi.Assignment, hold time.Duration) (vhi.Report, error) {
	x, err := p.partner()
	if err != nil {
		return vhi.Report{}, err
	}
	if crossing(a, nil) {
		return p.move(ctx, x, a)
	}
	for range maxSteps {
		var v *vmi.VEE
		switch got, err := x.VMI.GetVEE(ctx, a.VEE); {
		case err == nil:
			v = &got
		case !fault.Has(err, fault.NotFound):
			return vhi.Report{}, fmt.Errorf("ask site %s for VEE %s: %w", x.Name, a.VEE, err)
		}
		if crossing(a, v) {
			return p.move(ctx, x, a)
		}
		s := next(a, v)
		switch s.do {
		case rest:
			return report(*v), nil
		case refuse:
			return refusal(a, "site "+x.Name+": "+s.why, string(fault.WrongState)), nil
		case reserve:
			if err := p.reserve(ctx, x, a, s.part, hold); refuses(err) {
				f := fault.From(err)
				return refusal(a, "site "+x.Name+": "+f.Message, string(f.Code)), nil
			} else if err != nil {
				return vhi.Report{}, err
			}
		case act:
			c := custody(a, p.agreement(x))
			c.Part = s.part
			outs, err := x.VMI.UpdateState(ctx, vmi.UpdateState{Collection: vmi.Collection{IDs: []vee.ID{a.VEE}}, Action: s.action,
				Custody: map[vee.ID]vmi.Custody{a.VEE: c}})
			if err := failure(outs, err); err != nil {
				return vhi.Report{}, fmt.Errorf("%s VEE %s at site %s: %w", s.action, a.VEE, x.Name, err)
			}
		case fit:
			if err := failure(x.VMI.UpdateVEEs(ctx, []vmi.VEEUpdate{s.update})); err != nil {
				return vhi.Report{}, fmt.Errorf("change VEE %s at site %s: %w", a.VEE, x.Name, err)
			}
		}
	}
	return vhi.Report{}, fault.New(fault.Conflict, "VEE %s at site %s: others change it at the same time", a.VEE, x.Name)
}

// refuses: the partner has answered that it does not take the VEE, and has done nothing.
func refuses(err error) bool {
	for _, c := range []fault.Code{fault.NoResources, fault.Denied, fault.QuotaExceeded, fault.Unsupported, fault.Malformed, fault.Exists, fault.TooLarge} {
		if fault.Has(err, c) {
			return true
		}
	}
	return false
}

// reserve at the partner, in the first of two phases.
func (p *Place) reserve(ctx context.Context, x peer.Partner, a vhi.Assignment, part bool, hold time.Duration) error {
	agreed, err := x.Lends(p.cfg.Now())
	if err != nil {
		return fault.New(fault.Denied, "%w", err)
	}
	c := custody(a, agreed.ID)
	c.Part = part
	_, err = x.VMI.InitializeVEEs(ctx, vmi.Initialize{Model: vmi.TwoPhase, HoldMS: hold.Milliseconds(), Rules: p.cfg.Manager.RulesOf(a.VEE),
		VEEs: []vmi.InitializeVEE{{Descriptor: a.Descriptor, ID: a.VEE, Custody: &c}}})
	if err != nil {
		return fmt.Errorf("reserve a place for VEE %s at site %s: %w", a.VEE, x.Name, err)
	}
	return nil
}

func (p *Place) agreement(x peer.Partner) string {
	a, _ := p.stays(x) // one that has ended needs no name to be obeyed to its end
	return a.ID
}

// stays is the agreement under which ours are there, also while its notice runs.
func (p *Place) stays(x peer.Partner) (peer.Agreement, bool) {
	for _, a := range x.Agreements {
		if a.Lender == x.Name {
			return agreement.Stays(x.Agreements, x.Name, a.Borrower, p.cfg.Now())
		}
	}
	return peer.Agreement{}, false
}

// Book capacity at the partner for a later time. It implements veem.Booking.
func (p *Place) Book(ctx context.Context, r vmi.Reserve) (vmi.Reservation, error) {
	x, err := p.keeping()
	if err != nil {
		return vmi.Reservation{}, err
	}
	return x.VMI.Reserve(ctx, r)
}

// keeping is the partner, if it keeps capacity for a later time.
func (p *Place) keeping() (peer.Partner, error) {
	x, err := p.partner()
	if err == nil {
		err = x.Hello.Needs(peer.CanReserve)
	}
	return x, err
}

// CommitBooking at the partner.
func (p *Place) CommitBooking(ctx context.Context, id string) (vmi.Reservation, error) {
	x, err := p.keeping()
	if err != nil {
		return vmi.Reservation{}, err
	}
	return x.VMI.CommitReservation(ctx, id)
}

// CancelBooking at the partner.
func (p *Place) CancelBooking(ctx context.Context, id string) (vmi.Reservation, error) {
	x, err := p.keeping()
	if err != nil {
		return vmi.Reservation{}, err
	}
	return x.VMI.CancelReservation(ctx, id)
}

// Booked is how a reservation is at the partner.
func (p *Place) Booked(ctx context.Context, id string) (vmi.Reservation, error) {
	x, err := p.keeping()
	if err != nil {
		return vmi.Reservation{}, err
	}
	return x.VMI.GetReservation(ctx, id)
}

// failure of a call about one VEE.
func failure(outs []vmi.Outcome, err error) error {
	if err != nil || len(outs) != 1 || outs[0].OK {
		return err
	}
	return fault.New(fault.Code(outs[0].Code), "%s", outs[0].Detail)
}

// Report asks the partner for all of ours.
func (p *Place) Report(ctx context.Context) (vhi.HostReport, error) {
	x, err := p.partner()
	if err != nil {
		return vhi.HostReport{}, err
	}
	list, err := x.VMI.ListVEEs(ctx, vmi.Filter{Destroyed: true})
	if err != nil {
		return vhi.HostReport{}, fmt.Errorf("ask site %s for our VEEs: %w", x.Name, err)
	}
	held, err := x.Site.HeldNetworks(ctx)
	if err != nil {
		return vhi.HostReport{}, fmt.Errorf("ask site %s for our networks: %w", x.Name, err)
	}
	p.mu.Lock()
	p.hold(held)
	p.mu.Unlock()
	return p.compose(x, list), nil
}

// hold what the partner has of our networks. p.mu is held.
func (p *Place) hold(held map[string]uint64) {
	p.held = map[string]uint64{}
	maps.Copy(p.held, held)
}

// compose the host's report.
func (p *Place) compose(x peer.Partner, list []vmi.VEE) vhi.HostReport {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.seq++
	r := vhi.HostReport{Host: p.name, Incarnation: p.cfg.Incarnation, Seq: p.seq, Address: p.name, Version: x.Hello.Version,
		Segments: maps.Clone(p.held), Underlay: x.Underlay, Generation: p.generation, Drivers: p.drivers(x)}
	var used vee.Resources
	for _, v := range list {
		if v.Custody == nil {
			continue
		}
		w := report(v)
		w.Since = x.OurTime(w.Since)
		r.VEEs = append(r.VEEs, w)
		if v.State != vee.Destroyed {
			used = used.Plus(v.Descriptor.Resources())
		}
	}
	r.Capacity = p.capacity(x, used)
	r.DiskFree = r.Capacity.Minus(used).Disk
	return r
}

// drivers of the partner's hosts: VEEs that want a certain one go where it is.
func (p *Place) drivers(x peer.Partner) (list []vhi.DriverInfo) {
	for _, name := range p.told.Characteristics.Hypervisors {
		list = append(list, vhi.DriverInfo{Name: name})
	}
	if len(list) == 0 {
		list = append(list, vhi.DriverInfo{Name: "partner", Why: "site " + x.Name + " does not say what it has"})
	}
	a, _ := p.stays(x) // the zero one lets nothing move
	for i := range list {
		if a.Movable.Live && x.Hello.Can(peer.CanMove) {
			list[i].Operations = append(list[i].Operations, opMigrate)
		}
		if a.Movable.Cold && x.Hello.Can(peer.CanMoveCold) {
			list[i].Operations = append(list[i].Operations, opMigrateCold)
		}
	}
	return list
}

// capacity that is ours there: what the agreement has, and no more than the partner says that
// it has free.
func (p *Place) capacity(x peer.Partner, used vee.Resources) vee.Resources {
	a, ok := p.stays(x)
	if !ok {
		return vee.Resources{}
	}
	c := vee.Resources{MilliCPU: int64(a.Ceiling.VCPUs) * 1000, Memory: a.Ceiling.Memory, Disk: a.Ceiling.Disk}
	if p.told.Site != "" {
		most := used.Plus(p.told.State.Free)
		c.MilliCPU, c.Memory, c.Disk = min(c.MilliCPU, most.MilliCPU), min(c.Memory, most.Memory), min(c.Disk, most.Disk)
	}
	return c
}

// Run keeps the manager current until ctx is done.
func (p *Place) Run(ctx context.Context) {
	for ctx.Err() == nil {
		if err := p.follow(ctx); err != nil && ctx.Err() == nil {
			p.cfg.Log.Info("a partner is not followed", "site", p.cfg.Partner, "err", err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(p.cfg.Every / 4):
		}
	}
}

// follow the partner's word on our VEEs until it ends, and renew with each change.
func (p *Place) follow(ctx context.Context) error {
	x, err := p.partner()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	changes, err := x.VMI.WatchVEEs(ctx, vmi.Filter{Destroyed: true})
	if err != nil {
		return err
	}
	beat := time.NewTicker(p.cfg.Every)
	defer beat.Stop()
	mirror, synced, asked := map[vee.ID]vmi.VEE{}, false, false
	for {
		beats := false
		select {
		case <-ctx.Done():
			return nil
		case c, open := <-changes:
			switch {
			case !open:
				return fault.New(fault.Unavailable, "the watch of our VEEs at site %s has ended", p.cfg.Partner)
			case c.VEE != nil:
				mirror[c.VEE.ID] = *c.VEE
			case c.Purged != "":
				delete(mirror, c.Purged)
			}
			if synced = synced || c.Synced; !synced || len(changes) > 0 {
				continue
			}
		case <-beat.C:
			if !synced {
				continue
			}
			beats = true
		}
		// What a change of a VEE waits for is not asked about anything else first.
		if beats || !asked {
			if err := p.ask(ctx); err != nil {
				return err
			}
			asked = true
		}
		if err := p.renew(ctx, slices.Collect(maps.Values(mirror))); err != nil {
			return err
		}
	}
}

// ask the partner what it does not tell by itself: the networks that it has of ours, and what
// it is like.
func (p *Place) ask(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, p.cfg.Call)
	defer cancel()
	x, err := p.partner()
	if err != nil {
		return err
	}
	held, err := x.Site.HeldNetworks(ctx)
	if err != nil {
		return err
	}
	told, err := x.Site.Attributes(ctx)
	if err != nil && !fault.Has(err, fault.Unsupported) {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.hold(held); err == nil {
		p.told = told
	}
	return nil
}

// renew the host with what the partner says of our VEEs.
func (p *Place) renew(ctx context.Context, list []vmi.VEE) error {
	ctx, cancel := context.WithTimeout(ctx, p.cfg.Call)
	defer cancel()
	x, err := p.partner()
	if err != nil {
		return err
	}
	slices.SortFunc(list, func(a, b vmi.VEE) int { return a.Created.Compare(b.Created) })
	own := identity.With(ctx, identity.Caller{ID: p.name, Role: identity.HostRole, Host: p.name})
	out, err := p.cfg.Manager.Renew(own, vhi.Renewal{Report: p.compose(x, list)})
	if err != nil {
		return fmt.Errorf("renew %s: %w", p.name, err)
	}
	p.mu.Lock()
	p.generation = max(p.generation, out.Generation)
	p.mu.Unlock()
	return nil
}

// PutNetwork shares a network with the partner.
func (p *Place) PutNetwork(ctx context.Context, n peer.Network) error {
	x, err := p.partner()
	if err == nil {
		err = x.Hello.Needs(peer.CanNetwork)
	}
	if err != nil {
		return err
	}
	if err := x.Site.PutNetwork(ctx, n); err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.held[n.ID] = n.Version
	return nil
}

// RemoveNetwork shares a network no longer.
func (p *Place) RemoveNetwork(ctx context.Context, id string) error {
	x, err := p.partner()
	if err != nil {
		return err
	}
	if err := x.Site.RemoveNetwork(ctx, id); err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.held, id)
	return nil
}

// OpenAccess opens an access point of this site's at the partner, for those of its VEEs that the
// partner has.
func (p *Place) OpenAccess(ctx context.Context, a vmi.AccessPoint) (vmi.AccessPoint, error) {
	x, err := p.partner()
	if err == nil {
		err = x.Hello.Needs(peer.CanAccess)
	}
	if err != nil {
		return a, err
	}
	return x.VMI.PutAccessPoint(ctx, a)
}

// CloseAccess closes one.
func (p *Place) CloseAccess(ctx context.Context, groupID, name string) error {
	x, err := p.partner()
	if err != nil {
		return err
	}
	return x.VMI.DeleteAccessPoint(ctx, groupID, name)
}

// What people do with a VEE is passed on.

// Console attaches to the serial console.
func (p *Place) Console(ctx context.Context, id vee.ID) (io.ReadWriteCloser, error) {
	x, err := p.partner()
	if err != nil {
		return nil, err
	}
	return x.VMI.Console(ctx, id)
}

// Tell passes a command to the agent in the guest.
func (p *Place) Tell(ctx context.Context, id vee.ID, c guest.Command) (guest.Reply, error) {
	x, err := p.partner()
	if err != nil {
		return guest.Reply{}, err
	}
	return x.VMI.Tell(ctx, id, c)
}

// Connect to a port of the guest.
func (p *Place) Connect(ctx context.Context, id vee.ID, port uint16) (io.ReadWriteCloser, error) {
	x, err := p.partner()
	if err != nil {
		return nil, err
	}
	return x.VMI.Connect(ctx, id, port)
}

// Capture frames of a NIC.
func (p *Place) Capture(ctx context.Context, id vee.ID, nic int) (io.ReadWriteCloser, error) {
	x, err := p.partner()
	if err != nil {
		return nil, err
	}
	return x.VMI.Capture(ctx, id, nic)
}

// Disks of a VEE.
func (p *Place) Disks(ctx context.Context, id vee.ID) ([]vee.DiskInfo, error) {
	x, err := p.partner()
	if err != nil {
		return nil, err
	}
	return x.VMI.ListDisks(ctx, id)
}

// Checkpoint of a VEE at a partner: it is the partner's affair, and is not given out.
func (p *Place) Checkpoint(_ context.Context, id vee.ID, _ int, _ int64) (io.ReadWriteCloser, error) {
	return nil, fault.New(fault.Unsupported, "checkpoints of VEE %s are at site %s, which takes them for itself", id, p.cfg.Partner)
}

// ExportDisk gives a disk out.
func (p *Place) ExportDisk(ctx context.Context, id vee.ID, disk, snapshot string) (io.ReadWriteCloser, error) {
	x, err := p.partner()
	if err != nil {
		return nil, err
	}
	return x.VMI.ExportDisk(ctx, id, disk, snapshot)
}

// Snapshots of a VEE.
func (p *Place) Snapshots(ctx context.Context, id vee.ID) ([]vee.Snapshot, error) {
	x, err := p.partner()
	if err != nil {
		return nil, err
	}
	return x.VMI.ListSnapshots(ctx, id)
}

// CreateSnapshot under the partner's own epoch.
func (p *Place) CreateSnapshot(ctx context.Context, id vee.ID, _ vee.Epoch, name string, memory bool) (vee.Snapshot, error) {
	x, err := p.partner()
	if err != nil {
		return vee.Snapshot{}, err
	}
	return x.VMI.CreateSnapshot(ctx, id, name, memory)
}

// RestoreSnapshot under the partner's own epoch.
func (p *Place) RestoreSnapshot(ctx context.Context, id vee.ID, _ vee.Epoch, name string) error {
	x, err := p.partner()
	if err != nil {
		return err
	}
	return x.VMI.RestoreSnapshot(ctx, id, name)
}

// DeleteSnapshot under the partner's own epoch.
func (p *Place) DeleteSnapshot(ctx context.Context, id vee.ID, _ vee.Epoch, name string) error {
	x, err := p.partner()
	if err != nil {
		return err
	}
	return x.VMI.DeleteSnapshot(ctx, id, name)
}

// What only a host can do.

func (p *Place) unsupported(what string) error {
	return fault.New(fault.Unsupported, "%s of %s: it is a site, whose hosts are its own affair", what, p.name)
}

// PutSegment is PutNetwork's, between sites.
func (p *Place) PutSegment(context.Context, plan.Segment) error { return p.unsupported("segment") }

// RemoveSegment is RemoveNetwork's, between sites.
func (p *Place) RemoveSegment(context.Context, string) error { return p.unsupported("segment") }

// NetworkPlan is of the partner's hosts.
func (p *Place) NetworkPlan(context.Context, string) (vhi.NetworkPlan, error) {
	return vhi.NetworkPlan{}, p.unsupported("plan of a network")
}

// PowerOff is the partner's own affair.
func (p *Place) PowerOff(context.Context) error { return p.unsupported("power off") }
