package sm

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/manifest"
	"github.com/reservoir-cloud/reservoir/sm/deploy"
	"github.com/reservoir-cloud/reservoir/sm/trade"
	"github.com/reservoir-cloud/reservoir/smi"
	"github.com/reservoir-cloud/reservoir/vee"
	"github.com/reservoir-cloud/reservoir/vmi"
)

// A service may have standbys: sites that can go on with it when this one is lost. This
// manager says what it would take (Cooperating), goes on with a service of another site
// (Adopt), and gives way where one of its own was taken over (Cede). Who ships what to whom,
// and who may take what over, is not its affair (veem/federation/standby).

// Cooperating is a service of which other sites are to have something.
type Cooperating struct {
	ID, Customer, Name string
	Standbys           []string // in the order of precedence
	// Sites that its VEEs may go to, or are at.
	Sites []string
	// Images that its VEEs are made of, or are about to be: digests of manifests.
	Images []string
	// Definition is for Adopt, at another site's manager; nil where it has no standby.
	Definition []byte
	Replicas   []Replica
}

// Replica of a service and the VEE that it is.
type Replica struct {
	Name string
	VEE  vee.ID
}

// definition of a service: what another site's manager needs to go on with it. The other may
// be of another version: what it does not know it passes over.
type definition struct {
	ID       string              `json:"id"`
	Revision int                 `json:"revision"`
	Manifest string              `json:"manifest"`
	File     string              `json:"file,omitempty"`
	Images   map[string]imageRef `json:"images,omitempty"`
	Desired  map[string]int      `json:"desired"`
	Sizes    map[string]size     `json:"sizes,omitempty"`
	Scaled   map[string]scaled   `json:"scaled,omitempty"`
	Paused   map[string]bool     `json:"paused,omitempty"`
	Asleep   bool                `json:"asleep,omitempty"`
	Created  time.Time           `json:"created"`
	Slots    []deploy.Slot       `json:"slots,omitempty"`
	Calls    int                 `json:"calls,omitempty"`
	Accounts []trade.Account     `json:"accounts,omitempty"`
}

// ceded is whose a service is that was this manager's.
type ceded struct {
	To       string    `json:"to"`
	At       time.Time `json:"at"`
	Customer string    `json:"customer"`
	Name     string    `json:"name"`
}

// adopted is whose a service was that is this manager's now.
type adopted struct {
	From     string              `json:"from"`
	At       time.Time           `json:"at"`
	Revision int                 `json:"revision"`
	Seeds    map[string]vee.Seed `json:"seeds,omitempty"` // by replica
}

// Cooperating services of this manager's.
func (m *Manager) Cooperating(ctx context.Context) ([]Cooperating, error) {
	list, err := m.records.Values(ctx, "")
	if err != nil {
		return nil, err
	}
	var all []Cooperating
	for _, rec := range list {
		if rec.Deleting || rec.Ceded != nil {
			continue
		}
		d, err := m.loadDesign(ctx, rec.ID, rec.Revision)
		if fault.Has(err, fault.NotFound) || fault.Has(err, fault.Malformed) {
			continue // redeployed meanwhile, or of another version
		}
		if err != nil {
			return nil, err
		}
		c, err := m.cooperating(ctx, rec, d)
		if err != nil {
			return nil, err
		}
		if len(c.Standbys)+len(c.Sites) > 0 {
			all = append(all, c)
		}
	}
	return all, nil
}

func (m *Manager) cooperating(ctx context.Context, rec record, d *design) (Cooperating, error) {
	c := Cooperating{ID: rec.ID, Customer: rec.Customer, Name: rec.Name}
	images, sites := map[string]bool{}, map[string]bool{}
	for _, ref := range d.Images {
		images[ref.Digest] = true
	}
	for i := range d.manifest.Components {
		for _, s := range d.manifest.Descriptor(&d.manifest.Components[i], 0, manifest.Owner{}).Where.Sites {
			sites[s] = true
		}
	}
	vees, _ := m.group(rec.ID)
	for _, v := range vees {
		if site, away := strings.CutPrefix(v.Host, partnerPrefix); away {
			sites[site] = true
		}
	}
	delete(sites, m.cfg.Site)
	c.Images, c.Sites = slices.Sorted(maps.Keys(images)), slices.Sorted(maps.Keys(sites))
	for _, s := range d.manifest.Standby {
		if s != m.cfg.Site {
			c.Standbys = append(c.Standbys, s)
		}
	}
	if len(c.Standbys) == 0 {
		return c, nil
	}
	def := definition{ID: rec.ID, Revision: rec.Revision, Manifest: d.Text, File: d.File, Images: d.Images, Desired: rec.Desired, Sizes: rec.Sizes,
		Scaled: rec.Scaled, Paused: rec.Paused, Asleep: rec.Asleep, Created: rec.Created, Slots: rec.State.Slots, Calls: rec.State.Calls}
	var err error
	if def.Accounts, err = m.usages.Values(ctx, usageKey(rec.Customer, rec.ID, "")); err != nil {
		return c, err
	}
	for _, l := range rec.State.Slots {
		if l.VEE != "" && l.Retiring.IsZero() {
			c.Replicas = append(c.Replicas, Replica{l.Name(), l.VEE})
		}
	}
	c.Definition, err = json.Marshal(def)
	if err != nil {
		return c, fmt.Errorf("write the definition of service %s: %w", rec.key(), err)
	}
	return c, nil
}

// partnerPrefix of a VMI host that is another site.
const partnerPrefix = "@"

// Adoption of a service that was another site's.
type Adoption struct {
	From string    // that site
	At   time.Time // the service is ours from then on
	ID   string    // of the service here, and the group of those of its VEEs that are here already
	// Customer and Name of the service here.
	Customer, Name string
	Definition     []byte
	Lodgers        []vee.ID            // its VEEs that are here already
	Seeds          map[vee.ID]vee.Seed // what others of its VEEs left, for those that take their places
}

// Adopt a service. It may be called again. Errors: Exists (another service has the name),
// NotFound (an image), Malformed.
func (m *Manager) Adopt(ctx context.Context, a Adoption) error {
	var def definition
	if err := json.Unmarshal(a.Definition, &def); err != nil {
		return fault.New(fault.Malformed, "the definition of service %s from site %s: %w", a.ID, a.From, err)
	}
	if old, _, err := m.records.Get(ctx, recordKey(a.Customer, a.Name)); err == nil && old.ID == a.ID {
		return nil
	} else if err == nil {
		return fault.New(fault.Exists, "service %s of customer %s is another one here", a.Name, a.Customer).
			Try("choose another customer: reservoir federation promote %s --customer NAME", a.From)
	} else if !fault.Has(err, fault.NotFound) {
		return err
	}
	d, err := newDesign(revision{Text: def.Manifest, File: def.File, Images: def.Images}, def.Revision)
	if err != nil {
		return err
	}
	for _, ref := range d.Images {
		if _, _, err := m.cfg.Images.Resolve(ctx, ref.Digest); err != nil {
			return fmt.Errorf("service %s from site %s: its image %s: %w", a.Name, a.From, ref.Digest, err)
		}
	}
	d.Specs = map[string]string{}
	for i := range d.manifest.Components {
		c := &d.manifest.Components[i]
		d.Specs[c.Name] = d.fingerprint(c)
	}
	rec := record{ID: a.ID, Customer: a.Customer, Name: a.Name, Revision: def.Revision, Oldest: def.Revision, Desired: def.Desired,
		// A partner may have less room than the site that is lost: what there is room for starts.
		BestEffort: true,
		Asleep:     def.Asleep, Created: def.Created, Sizes: def.Sizes, Scaled: def.Scaled, Paused: def.Paused,
		Adopted: &adopted{From: a.From, At: a.At, Revision: def.Revision}}
	rec.newGoal(m.cfg.Now())
	rec.State.Calls = def.Calls
	for _, l := range def.Slots {
		if l.VEE != "" && slices.Contains(a.Lodgers, l.VEE) {
			if l.Revision == def.Revision && d.manifest.Component(l.Component) != nil {
				l.Spec = d.Specs[l.Component] // as this version reads it
			}
			l.Revision = def.Revision
			rec.State.Slots = append(rec.State.Slots, l)
		}
	}
	rec.Adopted.Seeds = sow(def.Slots, rec.State.Slots, a.Seeds)
	accounts := map[string]trade.Account{}
	for _, u := range def.Accounts {
		u.Customer, u.Service, u.Site, u.Ended = a.Customer, a.Name, cmp.Or(u.Site, a.From), true
		accounts[usageKey(a.Customer, u.ServiceID, u.VEE)] = u
	}
	if err := m.usages.PutAll(ctx, accounts); err != nil {
		return err
	}
	if _, err := m.cfg.Store.Txn(ctx, m.revisions.OpCreate(revisionKey(rec.ID, rec.Revision), d.revision), m.records.OpCreate(rec.key(), rec)); err != nil {
		return err
	}
	m.said(rec, "Adopted", "from site %s, revision %d: %d of its VEEs are here, %d begin with their last checkpoints", a.From, rec.Revision, len(rec.State.Slots), len(rec.Adopted.Seeds))
	return nil
}

// sow says which of the replicas to come begins with what: the replicas of a component that
// left something are followed in their order by those that get its lowest free numbers.
func sow(were, here []deploy.Slot, seeds map[vee.ID]vee.Seed) map[string]vee.Seed {
	were = slices.Clone(were)
	slices.SortFunc(were, func(a, b deploy.Slot) int {
		return cmp.Or(cmp.Compare(a.Component, b.Component), cmp.Compare(a.Number, b.Number))
	})
	taken := map[string]bool{}
	for _, l := range here {
		taken[l.Name()] = true
	}
	all := map[string]vee.Seed{}
	for _, l := range were {
		seed, left := seeds[l.VEE]
		if !left || taken[l.Name()] && slices.ContainsFunc(here, func(h deploy.Slot) bool { return h.VEE == l.VEE }) || !l.Retiring.IsZero() {
			continue
		}
		n := deploy.Slot{Component: l.Component, Number: 1}
		for taken[n.Name()] {
			n.Number++
		}
		taken[n.Name()] = true
		all[n.Name()] = seed
	}
	return all
}

// seed of a replica's VEE; nil: it begins with its images.
func (r *record) seed(l deploy.Slot) *vee.Seed {
	if r.Adopted == nil || l.Revision != r.Adopted.Revision {
		return nil
	}
	if s, left := r.Adopted.Seeds[l.Name()]; left {
		return &s
	}
	return nil
}

// Seeds are the checkpoints that VEEs of adopted services begin with, or may begin with again,
// by digest; only those of services that are there.
func (m *Manager) Seeds(ctx context.Context) (map[string]bool, error) {
	list, err := m.records.Values(ctx, "")
	if err != nil {
		return nil, err
	}
	used := map[string]bool{}
	for _, r := range list {
		if r.Adopted != nil && r.Revision == r.Adopted.Revision {
			for _, s := range r.Adopted.Seeds {
				used[s.Digest] = true
			}
		}
	}
	return used, nil
}

// Cede a service to the site that has taken it over: from a moment on it is that site's,
// where it is called so. Its VEEs here are shut down and not destroyed, for somebody to look at.
// It may be called again; of a service that is gone it does nothing.
func (m *Manager) Cede(ctx context.Context, id, to string, at time.Time, customer, name string) error {
	list, err := m.records.Values(ctx, "")
	if err != nil {
		return err
	}
	i := slices.IndexFunc(list, func(r record) bool { return r.ID == id })
	if i < 0 || list[i].Ceded != nil && list[i].Ceded.To == to {
		return nil
	}
	rec, _, err := m.records.Modify(ctx, list[i].key(), func(r *record) error {
		if r.ID == id {
			r.Ceded = &ceded{To: to, At: at, Customer: customer, Name: name}
			r.newGoal(m.cfg.Now())
		}
		return nil
	})
	if err != nil {
		return err
	}
	m.cfg.Events.Record(smi.Event{Type: "warning", Reason: "Ceded", Object: "service/" + rec.Name, Customer: rec.Customer, Service: rec.Name, Message: rec.Ceded.words()})
	return nil
}

func (c *ceded) words() string {
	return fmt.Sprintf("it is site %s's since %s, as %s of customer %s: what runs here is shut down", c.To, c.At.UTC().Format(time.RFC3339), c.Name, c.Customer)
}

// mayGoOn refuses what only a service's own site may do with it.
func (r *record) mayGoOn() error {
	if r.Ceded == nil {
		return nil
	}
	return fault.New(fault.WrongState, "service %s: %s", r.Name, r.Ceded.words()).
		Try("remove what is left of it here: reservoir service delete %s", r.Name)
}

// giveWay takes down what runs of a service that is another site's. What is left are stopped
// VEEs with their disks, and an account that ends when the other's begins.
func (w *worker) giveWay(ctx context.Context, rec record, version uint64, vees map[vee.ID]vmi.VEE) (wake time.Time, err error) {
	if err := w.m.closeAccounts(ctx, rec); err != nil {
		return wake, err
	}
	for name := range w.access {
		if err := w.m.cfg.VMI.DeleteAccessPoint(ctx, rec.ID, name); err != nil && !fault.Has(err, fault.NotFound) {
			return wake, fmt.Errorf("take access point %s of a service that is another site's away: %w", name, err)
		}
		delete(w.access, name)
	}
	down := map[vee.Action][]vee.ID{}
	for _, id := range slices.Sorted(maps.Keys(vees)) {
		v := vees[id]
		switch {
		case v.Host == partnerPrefix+rec.Ceded.To: // it runs on there, and is that site's
		case v.State == vee.Destroyed:
		case v.State == vee.Initial:
			down[vee.Destroy] = append(down[vee.Destroy], id)
		case v.Target == vee.Active || v.Target == vee.Paused:
			down[vee.Shutdown] = append(down[vee.Shutdown], id)
		case v.State == vee.Active || v.State == vee.Paused:
			wake = w.m.cfg.Now().Add(lastPause) // on its way down
		}
	}
	for action, ids := range down {
		outcomes, err := w.m.cfg.VMI.UpdateState(ctx, vmi.UpdateState{Collection: vmi.Collection{IDs: ids}, Action: action})
		if err != nil {
			return wake, err
		}
		wake = w.m.cfg.Now().Add(lastPause)
		for _, o := range outcomes {
			if !o.OK {
				w.m.cfg.Log.Warn("shut down a VEE of a service that is another site's: will try again", "vee", o.ID, "why", o.Detail)
				wake = w.m.cfg.Now().Add(firstPause)
			}
		}
	}
	state := rec.State
	state.Phase, state.Message, state.Settled = smi.Ceded, rec.Ceded.words(), false
	rec, version, err = w.recordStep(ctx, rec, version, state)
	if err == nil {
		w.m.publish(w.m.show(rec, version, w.design, vees, w.access, nil))
	}
	return wake, err
}

// closeAccounts of a service when it became another site's.
func (m *Manager) closeAccounts(ctx context.Context, rec record) error {
	list, err := m.usages.List(ctx, usageKey(rec.Customer, rec.ID, ""))
	if err != nil {
		return err
	}
	for _, u := range list {
		if u.Value.CloseAt(rec.Ceded.At.UnixMilli()) {
			if _, err := m.usages.Update(ctx, u.Key, u.Value, u.Version); err != nil {
				return err
			}
		}
	}
	return nil
}
