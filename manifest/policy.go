package manifest

import "github.com/reservoir-cloud/reservoir/vee"

// Group of components that a rule of affinity or anti-affinity holds between. One that
// names a single component holds between that component's replicas.
type Group struct {
	Scope      Scope    `yaml:"scope" enum:"physical,datacenter,domain"`
	Components []string `yaml:"components"`
}

// Scope of a Group.
type Scope string

// Scopes: a host, a data centre, an administrative domain (a site).
const (
	Physical   Scope = "physical"
	Datacenter Scope = "datacenter"
	Domain     Scope = "domain"
)

// KPI is a name for a measurement.
type KPI struct {
	Name      string `yaml:"name" ovf:"@KPIname"`
	Query     string `yaml:"query" ovf:"Query"` // PromQL; empty: the measure of that name
	Unit      string `yaml:"unit" ovf:"@unit"`
	Type      string `yaml:"type" ovf:"@KPItype" enum:"AGENT,VEEHW"` // empty: AGENT
	Component string `yaml:"component" ovf:"@KPIVmname"`             // that is measured; empty: the service
}

// Metrics is where a component's guests tell their measurements in Prometheus's text format,
// for the host of each to ask. What they push themselves needs no declaration.
type Metrics struct {
	Port  int      `yaml:"port" ovf:"@port"`
	Path  string   `yaml:"path" ovf:"Path"`   // empty: /metrics
	Every Duration `yaml:"every" ovf:"Every"` // 0: 15 s
}

// ElasticRule keeps a KPI's average per replica near a quota.
type ElasticRule struct {
	KPI       string   `yaml:"kpi" ovf:"KPIName"`
	Window    Duration `yaml:"window" ovf:"Window"`
	Frequency Duration `yaml:"frequency" ovf:"Frequency"` // how often it is looked at; a plain number is seconds
	Quota     float64  `yaml:"quota" ovf:"Quota"`
	Tolerance float64  `yaml:"tolerance" ovf:"Tolerance"`             // %
	Type      string   `yaml:"type" ovf:"KPIType" enum:"AGENT,VEEHW"` // empty: AGENT
}

// Cooldown is how long nothing is decided after a change of size.
type Cooldown struct {
	Up   Duration `yaml:"up" ovf:"Up"`
	Down Duration `yaml:"down" ovf:"Down"`
}

// Schedule sets other bounds of the replicas at some hours. Where several are in force, the
// last one counts.
type Schedule struct {
	Name     string   `yaml:"name" ovf:"@name"`
	Days     []string `yaml:"days" ovf:"Day" enum:"mon,tue,wed,thu,fri,sat,sun"` // on which it begins; none: every day
	From     Clock    `yaml:"from" ovf:"From"`
	To       Clock    `yaml:"to" ovf:"To"`             // at or before From: on the next day
	Timezone string   `yaml:"timezone" ovf:"Timezone"` // "Europe/Rome"; empty: UTC
	Min      int      `yaml:"min" ovf:"@min"`
	Max      int      `yaml:"max" ovf:"@max"`
}

// Update says how replicas are replaced when what they are made of has changed: one by one,
// each new one watched before the next is replaced.
type Update struct {
	// Watch a new replica for so long after it is ready. The update is undone when it is
	// lost meanwhile, or a KPI leaves the range that is promised for it.
	Watch Duration `yaml:"watch" ovf:"Watch"`
	// Patience with a new replica that is not ready yet; 0: 15 min.
	Patience Duration `yaml:"patience" ovf:"Patience"`
}

// Reliability says how replicas are kept from losing what they have done when they are started
// again, and when a guest that answers nobody counts as dead.
type Reliability struct {
	Checkpoint Duration        `yaml:"checkpoint" ovf:"Checkpoint"` // time between two, of disks and memory; 0: none are taken
	Keep       int             `yaml:"keep" ovf:"Keep"`             // newest checkpoints; 0: 2
	From       vee.RestartFrom `yaml:"from" ovf:"From" enum:"disk,checkpoint"`
	Heartbeat  Duration        `yaml:"heartbeat" ovf:"Heartbeat"` // silence of the agent in the guest; 0: for ever
}

// Rule is a trigger and an action: every so often, if the condition holds, do it. The
// condition is an expression over KPIs and COMPONENT.instances.size.
type Rule struct {
	Name      string   `yaml:"name" ovf:"@name"`
	Every     Duration `yaml:"every" ovf:"Every"`
	Condition string   `yaml:"condition" ovf:"Condition"`
	Do        Action   `yaml:"do" ovf:"Action"`
}

// Action of a Rule.
type Action struct {
	Kind      string    `yaml:"action" ovf:"@kind" enum:"scaleUp,scaleDown,resize"`
	Component string    `yaml:"component" ovf:"@component"`
	By        int       `yaml:"by" ovf:"@by"`         // replicas; 0: one
	CPU       int       `yaml:"cpu" ovf:"@cpu"`       // resize: vCPUs; 0: as before
	Memory    vee.Bytes `yaml:"memory" ovf:"@memory"` // resize; 0: as before
}

// Deployment says where in the world. A replica must be in one of the places of each
// restriction; replicas are spread over the balance's places in the given shares.
type Deployment struct {
	Restrictions []Restriction `yaml:"restrictions" ovf:"Restriction"`
	Balance      []Balance     `yaml:"balance" ovf:"Balance"`
}

// Restriction to any of its places.
type Restriction struct {
	Places
}

// Balance puts a share of the replicas into any of its places.
type Balance struct {
	Percent float64 `yaml:"percent" ovf:"@prod"`
	Places
}

// Places of four kinds, each inside or, where it says so, outside of it.
type Places struct {
	Positions []Position `yaml:"positions" ovf:"Position"`
	Countries []Area     `yaml:"countries" ovf:"Country"` // ISO 3166
	Timezones []Area     `yaml:"timezones" ovf:"Timezone"`
	Areas     []Area     `yaml:"areas" ovf:"Area"`
}

// Position within a distance of a location.
type Position struct {
	Outside  bool       `yaml:"outside" ovf:"@inside,not"`
	Location Location   `yaml:"location" ovf:"Location"`
	Distance Kilometres `yaml:"distance" ovf:"Distance"`
}

// Location in degrees.
type Location struct {
	Latitude  float64 `yaml:"latitude" ovf:"@latitude"`
	Longitude float64 `yaml:"longitude" ovf:"@longitude"`
}

// Area by name. `countries: [DE]` is inside of it.
type Area struct {
	Name    string `yaml:"name" ovf:"."`
	Outside bool   `yaml:"outside" ovf:"@inside,not"`
}

// Sites says at which sites replicas may run, and which of them comes first. What a component
// does not say, the service does; what neither does, the site.
type Sites struct {
	Policy        string    `yaml:"policy" ovf:"@policy" enum:"never,overflow,cost,location,spread,energy,heat"`
	Allow         []string  `yaml:"allow" ovf:"Allow"`   // any of these; none: any
	Forbid        []string  `yaml:"forbid" ovf:"Forbid"` // none of these
	Countries     []Area    `yaml:"countries" ovf:"Country"`
	Jurisdictions []Area    `yaml:"jurisdictions" ovf:"Jurisdiction"` // as sites name them
	Require       string    `yaml:"require" ovf:"Require"`            // expression over what a site tells of itself
	Users         *Location `yaml:"users" ovf:"Users"`                // where most of them are
	Reservation   string    `yaml:"reservation" ovf:"@reservation"`   // of capacity, that replicas run under
}

// Availability that is promised: so many percent of every window.
type Availability struct {
	Window     Duration `yaml:"window" ovf:"Window"`
	Percentile float64  `yaml:"percentile" ovf:"Percentile"`
	Remedy
}

// Constraint is a promise that a KPI lies within a range for a percentage of a window.
type Constraint struct {
	Name       string   `yaml:"name" ovf:"Name"`
	KPI        string   `yaml:"kpi" ovf:"KPIName"`
	Window     Duration `yaml:"window" ovf:"Window"`
	Range      Range    `yaml:"range" ovf:"Range"`
	Percentage float64  `yaml:"percentage" ovf:"Percentage"`
	Remedy
}

// Range of a KPI; an absent end is open.
type Range struct {
	Min  *float64 `yaml:"min" ovf:"Min"`
	Max  *float64 `yaml:"max" ovf:"Max"`
	Unit string   `yaml:"unit" ovf:"@unit"`
}

// RestartTime is a promise that a lost replica is back in time.
type RestartTime struct {
	Within Duration `yaml:"within" ovf:"Within"`
	Remedy
}

// Remedy for a promise that is not kept.
type Remedy struct {
	Penalty    string `yaml:"penalty" ovf:"Penalty"`       // price formula
	Protection string `yaml:"protection" ovf:"Protection"` // action that keeps it from being broken
}

// LoadBalancer says how the component's access points spread requests.
type LoadBalancer struct {
	Algorithm string `yaml:"algorithm" ovf:"Algorithm" enum:"round-robin,least-connections,source"`
	Sticky    bool   `yaml:"sticky" ovf:"Sticky"`
	// Drain is how long a replica that leaves keeps its connections; 0: 10 s.
	Drain Duration `yaml:"drain" ovf:"Drain"`
	// Partners that have replicas have an access point for them too, where the agreement lets
	// them.
	Partners bool `yaml:"partners" ovf:"Partners"`
}

// FirewallRule lets traffic through or not. Rules are tried in order.
type FirewallRule struct {
	Action    string `yaml:"action" ovf:"@action" enum:"allow,deny"`
	Direction string `yaml:"direction" ovf:"@direction" enum:"in,out"` // empty: in
	Protocol  string `yaml:"protocol" ovf:"Protocol" enum:"tcp,udp,icmp,any"`
	Ports     string `yaml:"ports" ovf:"Ports"` // "443" or "8000-8100"; empty: all
	Peer      string `yaml:"peer" ovf:"Peer"`   // CIDR, component or network; empty: anybody
}

// DiskMapping puts a disk on a kind of storage that the site offers.
type DiskMapping struct {
	Disk    string `yaml:"disk" ovf:"@disk"`
	Storage string `yaml:"storage" ovf:"@storage"`
}

// Aspects that the site takes care of.
type Aspects struct {
	FaultProtection string  `yaml:"faultProtection" ovf:"FaultProtection" enum:"restart,checkpoint,replicate"`
	Backup          *Backup `yaml:"backup" ovf:"Backup"`
}

// Backup of the persistent disks.
type Backup struct {
	Every Duration `yaml:"every" ovf:"Every"`
	Keep  int      `yaml:"keep" ovf:"Keep"` // so many of the newest; 0: all
}

// Software that is installed when the guest starts, in the order packages, files, commands.
type Software struct {
	Packages []string  `yaml:"packages" ovf:"Package"`
	Files    []Content `yaml:"files" ovf:"File"`
	Commands []string  `yaml:"commands" ovf:"Command"`
}

// Content of a file in the guest.
type Content struct {
	Path string `yaml:"path" ovf:"@path"`
	Mode string `yaml:"mode" ovf:"@mode"` // octal, "0644"
	Text string `yaml:"text" ovf:"."`
}

// Offer that sites are asked for.
type Offer struct {
	Sites    []string `yaml:"sites" ovf:"Site"` // empty: any
	MaxPrice string   `yaml:"maxPrice" ovf:"MaxPrice"`
	Validity Duration `yaml:"validity" ovf:"Validity"`
	Terms    []Pair   `yaml:"terms" ovf:"Term"`
}

// Contract that the service runs under: an accepted offer.
type Contract struct {
	Offer string `yaml:"offer" ovf:"@offer"`
	Site  string `yaml:"site" ovf:"@site"`
	Price string `yaml:"price" ovf:"Price"`
	Terms []Pair `yaml:"terms" ovf:"Term"`
}
