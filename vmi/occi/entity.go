package occi

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/vee"
	"github.com/reservoir-cloud/reservoir/vmi"
	"github.com/reservoir-cloud/reservoir/vmi/occi/rendering"
)

// noteFile of a VEE's context keeps what the VMI has no field for. The guest can read it.
const noteFile = "occi.json"

// userDataFile of a VEE's context, where cloud-init looks for it.
const userDataFile = "user-data"

type note struct {
	Title    string `json:"title,omitempty"`
	Summary  string `json:"summary,omitempty"`
	Hostname string `json:"hostname,omitempty"`
	SSHKey   string `json:"ssh_key,omitempty"`
	UserData bool   `json:"user_data,omitempty"` // the client gave some
}

// noteOf is zero for a VEE that was not made over OCCI.
func noteOf(d vee.Descriptor) (n note) {
	_ = json.Unmarshal([]byte(d.Context[noteFile]), &n) // the context is its maker's: it may say anything
	return n
}

// gone VEEs are not shown, from the moment on at which they are to go.
func gone(v vmi.VEE) bool { return v.State == vee.Destroyed || v.Target == vee.Destroyed }

const urn = "urn:reservoir:"

// place gives an entity its identifier and its path. The path also answers with the whole
// identifier at its end, for clients that put the two together themselves.
func place(e *rendering.Entity, name string) {
	kind := e.Kind.Term()
	e.ID, e.Location = urn+kind+":"+name, path(kind, name)
}

func path(kind, name string) string { return Base + "/" + kind + "/" + name }

// computeState maps the VMI's states (GFD.224, "Compute"): what failed or is on a host that
// does not answer is an error.
func computeState(v vmi.VEE) string {
	switch {
	case v.Phase == vee.PhaseFailed || v.Phase == vee.PhaseUnknown:
		return "error"
	case v.State == vee.Active:
		return "active"
	case v.State == vee.Paused || v.State == vee.Suspended:
		return "suspended"
	}
	return "inactive"
}

// message about a compute's state.
func message(v vmi.VEE) string {
	switch {
	case v.Error != "":
		return v.Error
	case v.Progress != nil && v.Progress.Total > 0:
		return fmt.Sprintf("%s: %s %d of %d %s", v.Phase, v.Progress.What, v.Progress.Done, v.Progress.Total, v.Progress.Unit)
	case v.State != v.Target:
		return fmt.Sprintf("%s, on its way to %s", v.Phase, v.Target)
	case len(v.NextBoot) > 0:
		return fmt.Sprintf("%s; from the next boot on: %s", v.Phase, strings.Join(v.NextBoot, "; "))
	}
	return string(v.Phase)
}

// with is the state of something that lives and stops with its compute.
func with(v vmi.VEE, active, inactive string) string {
	switch computeState(v) {
	case "active":
		return active
	case "error":
		return "error"
	}
	return inactive
}

// possible actions of a compute.
func possible(v vmi.VEE) []rendering.TypeID {
	var ts []rendering.TypeID
	for _, x := range []struct {
		term   string
		action vee.Action
	}{{"start", vee.Activate}, {"stop", vee.Shutdown}, {"suspend", vee.Suspend}} {
		if _, err := v.State.After(x.action); err == nil || x.term == "start" && v.State == vee.Initial && !v.Submitted {
			ts = append(ts, actionType("compute", x.term))
		}
	}
	if v.State == vee.Active {
		ts = append(ts, actionType("compute", "restart"))
	}
	return ts
}

func (c *catalogue) compute(v vmi.VEE) rendering.Entity {
	d, n := v.Descriptor, noteOf(v.Descriptor)
	e := rendering.Entity{Kind: kindCompute, Title: d.Name, Summary: n.Summary, Actions: possible(v), Attributes: rendering.Attributes{
		"occi.compute.cores": float64(d.VCPUs), "occi.compute.memory": gibibytes(d.Memory), "occi.compute.hostname": d.Name,
		"occi.compute.state": computeState(v), "occi.compute.state.message": message(v),
	}}
	place(&e, string(v.ID))
	if n.Title != "" {
		e.Title = n.Title
	}
	if n.Hostname != "" {
		e.Attributes["occi.compute.hostname"] = n.Hostname
	}
	if d.CPU.Weight > 0 {
		e.Attributes["occi.compute.share"] = float64(d.CPU.Weight)
	}
	if len(d.Disks) > 0 {
		if t, ok := c.madeOf(d.Disks[0]); ok {
			e.Mixins = append(e.Mixins, t.mixin())
			if a := architecture(t); a != "" {
				e.Attributes["occi.compute.architecture"] = a
			}
		}
	}
	for _, s := range sizes { // it has the template whose size it has, also after a change
		if s.cores == d.VCPUs && s.memory == d.Memory {
			e.Mixins = append(e.Mixins, s.mixin())
		}
	}
	e.Mixins = append(e.Mixins, c.tagsOf(d)...)
	if n.SSHKey != "" {
		e.Mixins = append(e.Mixins, mixinSSHKey)
		e.Attributes["occi.credentials.ssh.publickey"] = n.SSHKey
	}
	if n.UserData {
		e.Mixins = append(e.Mixins, mixinUserData)
		e.Attributes["occi.compute.userdata"] = base64.StdEncoding.EncodeToString([]byte(d.Context[userDataFile]))
	}
	e.Links = append(nics(v), diskLinks(v)...)
	return e
}

// architecture in OCCI's words; empty for one that it has none for.
func architecture(t template) string {
	return map[string]string{"amd64": "x64", "386": "x86"}[t.Arch]
}

// diskName is the end of the identifiers of a VEE's disk.
func diskName(v vmi.VEE, d vee.Disk) string { return string(v.ID) + "." + d.Name }

// isDisk leaves out an image that has a kernel and no disk.
func isDisk(d vee.Disk) bool { return d.Size > 0 }

// diskOf a storage: the disk's name.
func diskOf(storage rendering.Entity) string {
	return strings.SplitN(strings.TrimPrefix(storage.ID, urn+"storage:"), ".", 3)[2]
}

func storages(v vmi.VEE) (es []rendering.Entity) {
	for _, d := range v.Descriptor.Disks {
		if !isDisk(d) {
			continue
		}
		e := rendering.Entity{Kind: kindStorage, Title: d.Name, Summary: d.Source, Attributes: rendering.Attributes{
			"occi.storage.size": gibibytes(d.Size), "occi.storage.state": with(v, "online", "offline"),
		}}
		place(&e, diskName(v, d))
		es = append(es, e)
	}
	return es
}

func diskLinks(v vmi.VEE) (es []rendering.Entity) {
	for i, d := range v.Descriptor.Disks {
		device := d.Target
		if !isDisk(d) {
			continue
		}
		if device == "" {
			device = "vd" + string(rune('a'+i%26))
		}
		e := rendering.Entity{Kind: kindDiskLink, Attributes: rendering.Attributes{
			"occi.storagelink.deviceid": device, "occi.storagelink.state": with(v, "active", "inactive"),
		}, Source: rendering.End{Location: path("compute", string(v.ID)), Kind: kindCompute}, Target: rendering.End{Location: path("storage", diskName(v, d)), Kind: kindStorage}}
		place(&e, diskName(v, d))
		es = append(es, e)
	}
	return es
}

func nics(v vmi.VEE) (es []rendering.Entity) {
	for i, n := range v.Descriptor.NICs {
		device := n.Target
		if device == "" {
			device = fmt.Sprintf("eth%d", i)
		}
		e := rendering.Entity{Kind: kindNIC, Attributes: rendering.Attributes{
			"occi.networkinterface.interface": device, "occi.networkinterface.mac": n.MAC, "occi.networkinterface.state": with(v, "active", "inactive"),
		}, Source: rendering.End{Location: path("compute", string(v.ID)), Kind: kindCompute}, Target: rendering.End{Location: path("network", networkOf(v, n)), Kind: kindNetwork}}
		if n.Address != "" {
			e.Mixins = []rendering.TypeID{mixinIPNIC}
			e.Attributes["occi.networkinterface.address"] = n.Address
			e.Attributes["occi.networkinterface.allocation"] = "static" // the guest is told at boot; there is no DHCP
			if n.Gateway != "" {
				e.Attributes["occi.networkinterface.gateway"] = n.Gateway
			}
		}
		place(&e, string(v.ID)+"."+device)
		es = append(es, e)
	}
	return es
}

// networkOf a NIC, as it is called here: that of a group has the group before its name.
func networkOf(v vmi.VEE, n vee.NIC) string {
	if n.Public {
		return n.Network
	}
	return v.Descriptor.GroupID + "." + n.Network
}

// networks that the caller sees: the site's, and those of groups, which computes that are
// made here cannot be plugged into.
func (h *handler) networks(ctx context.Context) ([]Network, error) {
	list, err := h.Service.ListNetworks(ctx, "")
	if err != nil {
		return nil, err
	}
	all := slices.Clone(h.Networks)
	for _, n := range list {
		if n.GroupID != "" && !n.Leaving && len(n.Subnets) > 0 {
			all = append(all, Network{Name: n.GroupID + "." + n.Name, Subnet: n.Subnets[0]})
		}
	}
	return all, nil
}

func (n Network) entity() rendering.Entity {
	e := rendering.Entity{Kind: kindNetwork, Title: n.Name, Attributes: rendering.Attributes{"occi.network.label": n.Name, "occi.network.state": "active"}}
	if n.Subnet.IsValid() {
		e.Mixins = []rendering.TypeID{mixinIP}
		e.Attributes["occi.network.address"] = n.Subnet.String()
		e.Attributes["occi.network.allocation"] = "static"
		if n.Gateway.IsValid() {
			e.Attributes["occi.network.gateway"] = n.Gateway.String()
		}
	}
	place(&e, n.Name)
	return e
}

// of a VEE: the entities of a kind.
func (c *catalogue) of(kind rendering.TypeID, v vmi.VEE) []rendering.Entity {
	switch kind {
	case kindCompute:
		return []rendering.Entity{c.compute(v)}
	case kindStorage:
		return storages(v)
	case kindDiskLink:
		return diskLinks(v)
	case kindNIC:
		return nics(v)
	}
	return nil
}

// veeKinds are the kinds whose entities are parts of a VEE.
var veeKinds = []rendering.TypeID{kindCompute, kindStorage, kindDiskLink, kindNIC}

// veeOf is the VEE that the entity called name is, or is a part of.
func veeOf(name string) (vee.ID, error) {
	parts := strings.SplitN(name, ".", 3)
	if len(parts) < 2 {
		return "", fault.New(fault.NotFound, "there is no entity %q here", name).Try("list the collection that it is in")
	}
	id, err := vee.ParseID(parts[0] + "." + parts[1])
	if err != nil {
		return "", fault.New(fault.NotFound, "there is no entity %q here", name).Try("list the collection that it is in")
	}
	return id, nil
}

// named is the entity that is at a location.
func named(es []rendering.Entity, location string) (rendering.Entity, bool) {
	i := slices.IndexFunc(es, func(e rendering.Entity) bool { return e.Location == location })
	if i < 0 {
		return rendering.Entity{}, false
	}
	return es[i], true
}
