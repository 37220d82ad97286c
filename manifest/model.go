package manifest

import "github.com/reservoir-cloud/reservoir/vee"

// Service is a manifest's content. It is plain data: two manifests that mean the same are
// deeply equal, whichever form they were read from.
type Service struct {
	Name        string      `yaml:"service"`
	Description string      `yaml:"description"`
	Components  []Component `yaml:"components"`
	Networks    []Network   `yaml:"networks"`
	Files       []File      `yaml:"files"`
	Properties  []Property  `yaml:"properties"` // every component gets these too
	Products    []Product   `yaml:"products"`

	AntiAffinity []Group `yaml:"antiAffinity"` // AffinitySection, by hand in OVF
	Affinity     []Group `yaml:"affinity"`

	KPIs         []KPI         `yaml:"kpis" ovf:"KPISection>KPI"`
	Rules        []Rule        `yaml:"rules" ovf:"RuleSection>Rule"`
	Deployment   *Deployment   `yaml:"deployment" ovf:"DeploymentSection"`
	Sites        *Sites        `yaml:"sites" ovf:"SitesSection"`
	Availability *Availability `yaml:"availability" ovf:"AvailabilitySection"`
	Performance  []Constraint  `yaml:"performance" ovf:"PerformanceObjectiveSection>Constraint"`
	RestartTime  *RestartTime  `yaml:"restartTime" ovf:"RestartTimeSection"`
	Offer        *Offer        `yaml:"offer" ovf:"OfferSection"`
	Contract     *Contract     `yaml:"contract" ovf:"ContractSection"`
	// Standby are partner sites that keep what it takes to go on with the service when its own
	// site is lost, in the order of precedence.
	Standby []string `yaml:"standby" ovf:"StandbySection>Site"`

	Extra []Extra `yaml:"extra"`
}

// Component is a VirtualSystem of OVF: replicas of one kind of VEE.
type Component struct {
	Name        string   `yaml:"name"`
	Description string   `yaml:"description"`
	Replicas    Replicas `yaml:"replicas"`
	Hypervisor  string   `yaml:"hypervisor"` // "qemu", "kvm", "sim"; empty: any
	CPU         CPU      `yaml:"cpu"`
	Memory      Memory   `yaml:"memory"`
	// Disks in order; the image of the first says how the VEE boots. In YAML `image: x` is
	// short for one clone of x named "root".
	Disks    []Disk `yaml:"disks"`
	NICs     []NIC  `yaml:"networks"`
	Ports    []Port `yaml:"ports" ovf:"PortSection>Port"` // that it answers on; a plain one is @lbport in OVF
	Balancer bool   `yaml:"balancer" ovf:"@balancer"`
	Balanced string `yaml:"balanced" ovf:"@balanced"` // the component that balances this one

	Metrics *Metrics `yaml:"metrics" ovf:"MetricsSection"`

	Restart vee.RestartPolicy `yaml:"restart" ovf:"@restart" enum:"in-place,never,elsewhere"`
	// Reliability beyond being started again.
	Reliability *Reliability `yaml:"reliability" ovf:"ReliabilitySection"`
	Startup     *Startup     `yaml:"startup"`
	StartAfter  []string     `yaml:"startAfter"` // components that must be there first
	Tags        []string     `yaml:"tags" ovf:"TagSection>Tag"`
	Raw         []Pair       `yaml:"raw" ovf:"RawSection>Raw"` // for the driver of that name

	Properties []Property `yaml:"properties"`
	Products   []Product  `yaml:"products"`
	OS         *OS        `yaml:"os"`
	SSHKeys    []string   `yaml:"sshKeys" ovf:"AccessSection>SSHKey"`
	UserData   string     `yaml:"userData" ovf:"UserDataSection>UserData"`
	Software   *Software  `yaml:"software" ovf:"SoftwareSection"`

	Elastic      []ElasticRule  `yaml:"elastic" ovf:"ElasticArraySection>Rule"`
	Cooldown     *Cooldown      `yaml:"cooldown" ovf:"CooldownSection"`
	Schedules    []Schedule     `yaml:"schedules" ovf:"ScheduleSection>Schedule"`
	Update       *Update        `yaml:"update" ovf:"UpdateSection"`
	Deployment   *Deployment    `yaml:"deployment" ovf:"DeploymentSection"`
	Sites        *Sites         `yaml:"sites" ovf:"SitesSection"`
	Availability *Availability  `yaml:"availability" ovf:"AvailabilitySection"`
	Performance  []Constraint   `yaml:"performance" ovf:"PerformanceObjectiveSection>Constraint"`
	RestartTime  *RestartTime   `yaml:"restartTime" ovf:"RestartTimeSection"`
	LoadBalancer *LoadBalancer  `yaml:"loadBalancer" ovf:"LoadBalancerSection"`
	Firewall     []FirewallRule `yaml:"firewall" ovf:"FirewallSection>Rule"`
	DiskMapping  []DiskMapping  `yaml:"diskMapping" ovf:"DiskMappingSection>Mapping"`
	Aspects      *Aspects       `yaml:"aspects" ovf:"AspectsSection"`

	Extra []Extra `yaml:"extra"`
}

// Replicas bounds and starts a component: min ≤ initial ≤ max. `replicas: 3` is all three.
type Replicas struct {
	Initial int `yaml:"initial"`
	Min     int `yaml:"min"`
	Max     int `yaml:"max"`
}

// CPU of each replica. `cpu: 2` is two vCPUs without bounds.
type CPU struct {
	Count       int `yaml:"count"`
	Max         int `yaml:"max"` // that may be plugged in while it runs; 0: Count
	Reservation MHz `yaml:"reservation"`
	Limit       MHz `yaml:"limit"`
	Weight      int `yaml:"weight"` // relative to other VEEs; 100 is usual
}

// Memory of each replica. `memory: 512MiB` is a fixed size.
type Memory struct {
	Size vee.Bytes `yaml:"size"`
	Max  vee.Bytes `yaml:"max"` // upper end of a range; 0: Size
}

// Disk of each replica: a clone of an image, unless it is persistent or blank.
type Disk struct {
	Name       string    `yaml:"name"`
	Image      string    `yaml:"image"` // id of a File, or a reference in the site's registry
	Size       vee.Bytes `yaml:"size"`  // 0: the image's
	Target     string    `yaml:"target"`
	Format     string    `yaml:"format"` // URI of the image's format, as OVF gives it
	Persistent bool      `yaml:"persistent"`
	CDROM      bool      `yaml:"cdrom"`
}

// NIC of each replica. `networks: [public]` is one that has no wishes.
type NIC struct {
	Network string `yaml:"network"`
	Target  string `yaml:"target"` // device in the guest, "eth0"
	MAC     string `yaml:"mac"`    // not honoured with more than one replica
	Alias   string `yaml:"alias"`  // name that macros may ask for the address by
	// Address is IPv4; empty: the site gives out one. Of a component of one replica.
	Address string `yaml:"address"`
}

// Port that a component answers on. `ports: [http:80]` is scheme and number.
type Port struct {
	Port   int    `yaml:"port" ovf:"@port"`
	Scheme string `yaml:"scheme" ovf:"@scheme" enum:"http,https,tcp,udp"` // empty: http
	Health string `yaml:"health" ovf:"@health"`                           // path that answers 200 when the replica is well
}

// Startup is the component's item of OVF's StartupSection. Order 0 has no place in the order.
type Startup struct {
	Order           int      `yaml:"order"`
	StartDelay      Duration `yaml:"startDelay"` // before the next order starts
	WaitingForGuest bool     `yaml:"waitingForGuest"`
	StopDelay       Duration `yaml:"stopDelay"`
	StartAction     string   `yaml:"startAction" enum:"powerOn,none"`               // empty: powerOn
	StopAction      string   `yaml:"stopAction" enum:"powerOff,guestShutdown,none"` // empty: guestShutdown
}

// Network that components are on: the service's own, or, where it is public, the site's.
type Network struct {
	Name   string `yaml:"name"`
	Public bool   `yaml:"public"`
	// Access points lead into it, as they lead to public networks: by the site's VAN proxy, to
	// whichever site a replica is at.
	Access      bool   `yaml:"access"`
	Description string `yaml:"description"`
	// Subnet is IPv4, CIDR. One that is asked for may be one that other services have too;
	// empty: the site gives out one that nobody else has.
	Subnet string `yaml:"subnet"`
	IPv6   bool   `yaml:"ipv6"` // a subnet of IPv6 too
	MTU    int    `yaml:"mtu"`  // bytes; 0: the site's
}

// File of the package, or elsewhere by URL, or in the site's registry. A file that is only
// a name in the registry (its Href is its ID) need not be listed.
type File struct {
	ID          string    `yaml:"id"`
	Href        string    `yaml:"href"`
	Digest      Digest    `yaml:"digest"`
	Size        vee.Bytes `yaml:"size"`
	Compression string    `yaml:"compression" enum:"identity,gzip"`
}

// Property of the guest's environment. Macros in the value are kept as they are written.
type Property struct {
	Key               string `yaml:"key"`
	Value             string `yaml:"value"`
	Type              string `yaml:"type"` // empty: string
	Label             string `yaml:"label"`
	Description       string `yaml:"description"`
	Qualifiers        string `yaml:"qualifiers"`
	CloudConfigurable bool   `yaml:"cloudConfigurable"`
	UserConfigurable  bool   `yaml:"userConfigurable"`
	Password          bool   `yaml:"password"`
}

// Product is a ProductSection that says more than properties do. The properties of one
// with a class or an instance are called CLASS.KEY.INSTANCE in the guest.
type Product struct {
	Class       string     `yaml:"class"`
	Instance    string     `yaml:"instance"`
	Name        string     `yaml:"name"`
	Vendor      string     `yaml:"vendor"`
	Version     string     `yaml:"version"`
	FullVersion string     `yaml:"fullVersion"`
	ProductURL  string     `yaml:"productUrl"`
	VendorURL   string     `yaml:"vendorUrl"`
	AppURL      string     `yaml:"appUrl"`
	Properties  []Property `yaml:"properties"`
}

// OS is OVF's OperatingSystemSection: CIM's number of the kind of system.
type OS struct {
	ID          int    `yaml:"id"`
	Version     string `yaml:"version"`
	Description string `yaml:"description"`
}

// Pair of a key and a text.
type Pair struct {
	Key   string `yaml:"key" ovf:"@key"`
	Value string `yaml:"value" ovf:"."`
}

// Extra is an OVF element that this version does not know and was allowed to ignore
// (ovf:required="false"). It is kept so that conversion loses nothing.
type Extra struct {
	In  string `yaml:"in" enum:"envelope,collection,component,hardware"`
	XML string `yaml:"xml"` // one element that declares every namespace that it uses
}
