package vee

import (
	"fmt"
	"slices"
	"strings"
)

// Descriptor is everything a VEE Manager needs to know of a VEE to place and run it
// (seed 5, table 2.2). The VEEM knows no service and no component: what it has to carry of
// them is opaque (FQNPrefix, GroupID, Customer, Tags).
type Descriptor struct {
	Name     string `json:"name"`               // component and replica number, "web-1"; unique within GroupID
	Customer string `json:"customer,omitempty"` // whose quota and bill it counts to
	GroupID  string `json:"groupID,omitempty"`  // VEEs that belong together (a service); opaque
	// FQNPrefix goes before the measure in the name of each of its measurements; opaque.
	FQNPrefix string `json:"fqnPrefix,omitempty"`

	Hypervisor string   `json:"hypervisor,omitempty"` // driver that must run it ("qemu", "sim"); empty: any
	VCPUs      int      `json:"vcpus"`
	CPU        CPUShare `json:"cpu,omitzero"`
	Memory     Bytes    `json:"memoryBytes"`
	MemoryMax  Bytes    `json:"memoryMaxBytes,omitempty"` // upper end of the declared range; 0: Memory
	VCPUsMax   int      `json:"vcpusMax,omitempty"`       // that may be plugged in while it runs; 0: VCPUs

	Disks []Disk   `json:"disks,omitempty"`
	NICs  []NIC    `json:"nics,omitempty"`
	Tags  []string `json:"tags,omitempty"` // labels that placement rules and access points name
	// Raw is handed to the driver that is its key, where the site's policy allows it.
	Raw map[string]string `json:"raw,omitempty"`

	Restart     RestartPolicy `json:"restart,omitempty"`
	Reliability Reliability   `json:"reliability,omitzero"`
	// Context is what the guest is told at boot: file name to content, written to a
	// read-only medium with the volume label "cidata" (meta-data, user-data,
	// network-config, ovf-env.xml).
	Context map[string]string `json:"context,omitempty"`
	// Ports that the guest answers on when it is ready; informative to the VEEM.
	Ports []int `json:"ports,omitempty"`
	// Metrics is where its guest tells measurements; zero: nowhere.
	Metrics Metrics `json:"metrics,omitzero"`
	// Naming is how the VEEs of its group find it.
	Naming Naming `json:"naming,omitzero"`
	// Seed is what its disks begin with in the place of its images; nil: those.
	Seed *Seed `json:"seed,omitempty"`
	// Where it may run; zero: at its own site, and at partners as its site has it.
	Where Where `json:"where,omitzero"`
	// Firewall of every NIC, tried in order. What no rule of a direction that has rules
	// speaks of is denied; a direction without rules is open.
	Firewall []FirewallRule `json:"firewall,omitempty"`
}

// Where in the world a VEE may run.
type Where struct {
	// Partners says when it goes to another site; empty: as its own site has it.
	Partners Partnering `json:"partners,omitempty"`
	Sites    []string   `json:"sites,omitempty"`   // any of these; none: any
	Without  []string   `json:"without,omitempty"` // none of these
	// Countries by ISO 3166: in one of those, where any is not Outside; in none that is.
	// Jurisdictions likewise, as sites name them.
	Countries     []Area `json:"countries,omitempty"`
	Jurisdictions []Area `json:"jurisdictions,omitempty"`
	// Requirement that a site meets, CEL over what it tells of itself.
	Requirement string `json:"requirement,omitempty"`
	// Users are where most of those are that it serves; nil: not known.
	Users *Point `json:"users,omitempty"`
	// Reservation of capacity that it is placed under; then nowhere else.
	Reservation string `json:"reservation,omitempty"`
}

// Point on Earth, degrees.
type Point struct {
	Latitude  float64 `json:"latitude"`
	Longitude float64 `json:"longitude"`
}

// Place is what a site says of where it is; what is empty, it does not say.
type Place struct{ Site, Country, Jurisdiction string }

// Area by name.
type Area struct {
	Name    string `json:"name"`
	Outside bool   `json:"outside,omitempty"`
}

// Allows a place. The reason is for people, and empty where it is allowed.
func (w Where) Allows(p Place) (why string) {
	switch {
	case len(w.Sites) > 0 && !slices.Contains(w.Sites, p.Site):
		return fmt.Sprintf("it may run at %s alone", strings.Join(w.Sites, ", "))
	case slices.Contains(w.Without, p.Site):
		return "it may not run at " + p.Site
	}
	if why := allows(w.Countries, p.Country, p.Site, "it may run in %s alone", "it may not run in %s", "where it is"); why != "" {
		return why
	}
	return allows(w.Jurisdictions, p.Jurisdiction, p.Site, "it may run under the law of %s alone", "it may not run under the law of %s", "whose law holds")
}

// allows is, of site, by a list of areas.
func allows(list []Area, is, site, alone, not, what string) (why string) {
	var inside []string
	for _, a := range list {
		switch {
		case !a.Outside:
			inside = append(inside, a.Name)
		case is == "":
			return fmt.Sprintf(not+", and site %s does not say "+what, a.Name, site)
		case a.Name == is:
			return fmt.Sprintf(not, a.Name)
		}
	}
	if len(inside) > 0 && !slices.Contains(inside, is) {
		said := "says " + is
		if is == "" {
			said = "does not say " + what
		}
		return fmt.Sprintf(alone+", and site %s "+said, strings.Join(inside, ", "), site)
	}
	return ""
}

// Partnering is when a VEE goes to a partner site, and to which.
type Partnering string

// Policies over sites: at its own site alone; at partners where its own has no place; where it
// costs least; near the users; evenly over sites; where power is no trouble and clean; where
// heat is wanted.
const (
	PartnersNever    Partnering = "never"
	PartnersOverflow Partnering = "overflow"
	PartnersCost     Partnering = "cost"
	PartnersLocation Partnering = "location"
	PartnersSpread   Partnering = "spread"
	PartnersEnergy   Partnering = "energy"
	PartnersHeat     Partnering = "heat"
)

// Partnerings there are.
var Partnerings = []Partnering{PartnersNever, PartnersOverflow, PartnersCost, PartnersLocation, PartnersSpread, PartnersEnergy, PartnersHeat}

// Metrics is an HTTP endpoint in the guest that answers in Prometheus's text format, and how
// often it is asked.
type Metrics struct {
	Port    int    `json:"port"`
	Path    string `json:"path"` // "/metrics"
	EveryMS int64  `json:"everyMs"`
}

// Naming of a VEE in the DNS of its networks. The names are relative to Domain.
type Naming struct {
	Domain string   `json:"domain,omitempty"` // "shop.alpha.internal"; empty: no names
	Own    []string `json:"own,omitempty"`    // while it runs: "web-1.web", "web-1"
	Shared []string `json:"shared,omitempty"` // while it is ready, beside others: "web"
}

// FirewallRule of a VEE. At most one of the three kinds of peers is named; none: anybody.
type FirewallRule struct {
	Allow bool `json:"allow"`
	Out   bool `json:"out,omitempty"` // direction, as the guest sees it
	// Protocol is "tcp", "udp", "icmp" (ICMPv6 too) or "any".
	Protocol string `json:"protocol"`
	// First to Last are destination ports; zero: all.
	First uint16 `json:"first,omitempty"`
	Last  uint16 `json:"last,omitempty"`
	// PeerTag: the VEEs of the group that carry it, wherever they are and as they come and go.
	PeerTag string `json:"peerTag,omitempty"`
	// PeerNetwork: every address of that network of the group.
	PeerNetwork string `json:"peerNetwork,omitempty"`
	PeerPrefix  string `json:"peerPrefix,omitempty"` // CIDR
}

// Where programs in guests push their measurements: a port of the host's, in every network,
// which is the one of OTLP over HTTP, and a name for the host in the group's domain.
const (
	MonitoringPort = 4318
	MonitoringName = "monitoring-channel"
)

// MonitoringChannel is the URL that the guest's programs push their measurements to: in a
// private network the gateway's, which is the same wherever the VEE is; else the one of
// whoever answers the guest for MonitoringName. Empty where it has neither.
func (d Descriptor) MonitoringChannel() string {
	host := ""
	if d.Naming.Domain != "" {
		host = MonitoringName + "." + d.Naming.Domain
	}
	for _, n := range d.NICs {
		if !n.Public && len(n.DNS) > 0 {
			host = n.DNS[0]
			break
		}
	}
	switch {
	case host == "":
		return ""
	case strings.Contains(host, ":"): // IPv6
		host = "[" + host + "]"
	}
	return fmt.Sprintf("http://%s:%d", host, MonitoringPort)
}

// CPUShare bounds what the vCPUs may take of their host. Zero values: no bound.
type CPUShare struct {
	ReservationMHz int `json:"reservationMHz,omitempty"`
	LimitMHz       int `json:"limitMHz,omitempty"`
	Weight         int `json:"weight,omitempty"` // relative; 100 is usual
}

// Disk of a VEE. The image of the first disk says how the VEE boots: an image that has a
// kernel is booted directly, any other from the disk.
type Disk struct {
	Name   string `json:"name"`                // unique within the VEE, "root"
	Image  string `json:"image,omitempty"`     // manifest digest "sha256:…"; empty: a blank disk of Size
	Source string `json:"source,omitempty"`    // the reference that Image was resolved from, for people
	Size   Bytes  `json:"sizeBytes,omitempty"` // virtual size; 0: that of the image
	Target string `json:"target,omitempty"`    // device in the guest, "vda"; empty: in order
	// Persistent disks are written in place and outlive the VEE's image; the others are
	// clones: overlays on the shared image, deleted with the VEE.
	Persistent bool `json:"persistent,omitempty"`
	CDROM      bool `json:"cdrom,omitempty"` // read-only medium
}

// NIC of a VEE. What is not the caller's to choose is filled by the VEEM when the VEE is
// initialised: it is what the guest is told, by DHCP and on its seed medium.
type NIC struct {
	Network string `json:"network"`
	Target  string `json:"target,omitempty"` // device in the guest, "eth0"; empty: in order
	MAC     string `json:"mac,omitempty"`
	// Address is IPv4, CIDR: "10.80.128.7/16". A caller may ask for one, as "10.1.0.5".
	Address  string   `json:"address,omitempty"`
	Address6 string   `json:"address6,omitempty"` // IPv6, CIDR
	Gateway  string   `json:"gateway,omitempty"`  // of the default route; empty where nothing is routed
	Gateway6 string   `json:"gateway6,omitempty"`
	DNS      []string `json:"dns,omitempty"`    // name servers
	Domain   string   `json:"domain,omitempty"` // searched for short names, "shop.alpha.internal"
	MTU      int      `json:"mtu,omitempty"`    // bytes; 0: the guest's own
	Public   bool     `json:"public,omitempty"`
}

// RestartPolicy says what happens to a VEE whose guest ended without being told to.
type RestartPolicy string

// Restart policies. The empty one means RestartInPlace.
const (
	RestartInPlace RestartPolicy = "in-place" // start it again on the same host, with growing pauses
	RestartNever   RestartPolicy = "never"    // show it as failed, for somebody to look at
	RestartElse    RestartPolicy = "elsewhere"
)

// Reliability says what is done so that a VEE, when it is started again, goes on where it was,
// and when its guest counts as dead.
type Reliability struct {
	// CheckpointMS is the time between two checkpoints (disks and memory) of the VE that the
	// VEE is part of, ms; 0: none. Keep is how many of them are kept; 0: UsualKeep.
	CheckpointMS int64 `json:"checkpointMs,omitempty"`
	Keep         int   `json:"keep,omitempty"`
	// From is what it is started from again after its guest has ended by itself or its host
	// was lost; empty: FromDisk.
	From RestartFrom `json:"from,omitempty"`
	// HeartbeatMS is how long the agent in the guest may be silent, once it has spoken, before
	// the guest is taken for dead, ms; 0: for ever.
	HeartbeatMS int64 `json:"heartbeatMs,omitempty"`
}

// UsualKeep of checkpoints.
const UsualKeep = 2

// RestartFrom says what a VEE is started from again.
type RestartFrom string

// FromDisk boots from the disks as they are, on another host from its images; FromCheckpoint
// goes on from the newest checkpoint, and from the disks where there is none.
const (
	FromDisk       RestartFrom = "disk"
	FromCheckpoint RestartFrom = "checkpoint"
)

// Resources that VEEs take and hosts have. Used as one value so that sums and
// comparisons are written once.
type Resources struct {
	MilliCPU int64 `json:"milliCPU"` // 1000 is one vCPU
	Memory   Bytes `json:"memoryBytes"`
	Disk     Bytes `json:"diskBytes"`
}

// Resources that d takes of a host while it is placed there.
func (d Descriptor) Resources() Resources {
	r := Resources{MilliCPU: int64(d.VCPUs) * 1000, Memory: max(d.Memory, d.MemoryMax)}
	for _, k := range d.Disks {
		r.Disk += k.Size
	}
	return r
}

// Plus adds, Minus subtracts, dimension by dimension.
func (r Resources) Plus(o Resources) Resources {
	return Resources{r.MilliCPU + o.MilliCPU, r.Memory + o.Memory, r.Disk + o.Disk}
}

// Minus subtracts o dimension by dimension; the result may be negative.
func (r Resources) Minus(o Resources) Resources {
	return Resources{r.MilliCPU - o.MilliCPU, r.Memory - o.Memory, r.Disk - o.Disk}
}

// Fits reports whether r can be taken out of free.
func (r Resources) Fits(free Resources) bool {
	return r.MilliCPU <= free.MilliCPU && r.Memory <= free.Memory && r.Disk <= free.Disk
}
