// Package vhi is the interface between a site's VEE Manager and its hosts (the VHI of
// seed 2's figure 1): the types, the two Go interfaces, and for each an HTTP server and
// client over mutual TLS.
//
// It is level-triggered. The manager assigns a VEE to a host with the power it should
// have; the host converges to that, also when it was restarted in between, and reports
// what it sees. Nothing here is a command that must arrive exactly once.
package vhi

import (
	"context"
	"io"
	"net/netip"
	"time"

	"github.com/reservoir-cloud/reservoir/ownership"
	"github.com/reservoir-cloud/reservoir/vee"
	"github.com/reservoir-cloud/reservoir/vhi/guest"
)

// Power is the condition that a host should bring a VEE into, and the one it sees.
type Power string

// Powers. Unprepared and Failed are only observed.
const (
	Running    Power = "running"
	Paused     Power = "paused"
	Suspended  Power = "suspended"
	Stopped    Power = "stopped"
	Absent     Power = "absent"
	Unprepared Power = "unprepared" // assigned, its disks are not there yet
	Failed     Power = "failed"     // ended by itself and is not restarted
)

// Assignment says what one host should do about one VEE. A host obeys the newest by
// (Epoch, Seq) and keeps it on disk before it answers.
type Assignment struct {
	VEE   vee.ID    `json:"vee"`
	Epoch vee.Epoch `json:"epoch"`
	Seq   uint64    `json:"seq"` // grows with every change within an epoch: the record's version
	// Generation of the site's record, where it is not the epoch's: the epochs of a VEE of
	// another site are counted there.
	Generation uint64         `json:"generation,omitempty"`
	Power      Power          `json:"power"`
	Descriptor vee.Descriptor `json:"descriptor"`
	// GraceMS a guest has to shut down by itself before its process is ended, ms.
	GraceMS int64 `json:"graceMs,omitempty"`
	// Move is the live migration that the VEE is part of, nil for none.
	Move *Move `json:"move,omitempty"`
	// Leased: it may be restarted elsewhere, so it runs only while the host has the right to
	// (docs/ownership.md), and its guest is under guard.
	Leased bool `json:"leased,omitempty"`
	// Apart and Together name what binds it, so that hosts that move it by themselves know:
	// VEEs that share a name of Apart are on distinct hosts, those of one of Together on one.
	Apart    []string `json:"apart,omitempty"`
	Together []string `json:"together,omitempty"`
}

// Report of one VEE by its host.
type Report struct {
	VEE        vee.ID        `json:"vee"`
	Epoch      vee.Epoch     `json:"epoch"` // of the assignment that is being obeyed
	Seq        uint64        `json:"seq"`
	Power      Power         `json:"power"` // as observed
	Phase      vee.Phase     `json:"phase"`
	Progress   *vee.Progress `json:"progress,omitempty"`
	GuestReady bool          `json:"guestReady,omitempty"` // the guest's own word
	GuestSeen  bool          `json:"guestSeen,omitempty"`  // an agent answers in the guest
	GuestIdle  bool          `json:"guestIdle,omitempty"`
	// GuestFailure is what went wrong in the guest's first boot, in its own words.
	GuestFailure string    `json:"guestFailure,omitempty"`
	Restarts     int       `json:"restarts,omitempty"` // in place, since it was assigned
	Error        string    `json:"error,omitempty"`    // the last one, while it stands
	Code         string    `json:"code,omitempty"`     // fault.Code of Error
	Since        time.Time `json:"since"`              // of Power, host's clock
	DiskUsed     vee.Bytes `json:"diskUsedBytes,omitempty"`
	// Fitted: the guest that runs is as the assignment's descriptor says, but for NextBoot,
	// which says in words what waits for its next boot.
	Fitted   bool     `json:"fitted,omitempty"`
	NextBoot []string `json:"nextBoot,omitempty"`
	// Freed on the host's disk, by the removal of a VEE that is gone.
	Freed vee.Bytes   `json:"freedBytes,omitempty"`
	Move  *MoveReport `json:"move,omitempty"` // of the newest Move
	// Evicted: the other site that it was at has stopped it, since nothing agreed covers it.
	Evicted bool `json:"evicted,omitempty"`
	// Guarded: it is assigned under lease, and if it has a process, that is under guard.
	Guarded bool `json:"guarded,omitempty"`
	// Checkpoint is the newest whole one that the host keeps of it.
	Checkpoint *vee.Checkpoint `json:"checkpoint,omitempty"`
}

// HostReport is all that a host says of itself.
type HostReport struct {
	Host        string        `json:"host"`
	Incarnation string        `json:"incarnation"` // drawn at each start of the agent
	Seq         uint64        `json:"seq"`         // grows within an incarnation; an older one that comes late is dropped
	Address     string        `json:"address"`     // where its VHI listens, host:port
	Version     string        `json:"version"`
	Capacity    vee.Resources `json:"capacity"` // what VEEs may take
	DiskFree    vee.Bytes     `json:"diskFreeBytes"`
	Drivers     []DriverInfo  `json:"drivers"`
	CPUs        int           `json:"cpus"`            // physical; Capacity may be overbooked
	Price       float64       `json:"price,omitempty"` // per hour while it has VEEs; of no currency
	VEEs        []Report      `json:"vees"`
	// Segments that are in effect here, and their versions.
	Segments map[string]uint64 `json:"segments,omitempty"`
	// Underlay address, where other hosts send the traffic of networks; none where guests
	// are simulated.
	Underlay   netip.Addr  `json:"underlay,omitzero"`
	Generation uint64      `json:"generation"` // newest seen; the host refuses older
	Lease      LeaseStatus `json:"lease,omitzero"`
	// Peering is absent where the host knows of no others.
	Peering *Peering `json:"peering,omitempty"`
}

// DriverInfo is what hypervisor.Capabilities tells of a driver.
type DriverInfo struct {
	Name        string   `json:"name"`
	Version     string   `json:"version,omitempty"`
	Accelerator string   `json:"accelerator,omitempty"`
	Why         string   `json:"why,omitempty"`
	Operations  []string `json:"operations,omitempty"`
	Simulated   bool     `json:"simulated,omitempty"`
}

// Host is one host's agent, as the VEE Manager sees it.
type Host interface {
	Storage
	Networks
	Reach
	Machine
	// Assign is durable when it returns. It answers with the VEE's report as of now, not
	// with the result, which comes by Renew. Errors: fault.StaleEpoch.
	Assign(ctx context.Context, a Assignment) (Report, error)
	// Report asks for the whole, for a manager that has just started.
	Report(ctx context.Context) (HostReport, error)
	// Console attaches to the serial console.
	Console(ctx context.Context, id vee.ID) (io.ReadWriteCloser, error)
	// Tell passes a command to the agent in the guest and waits for its reply.
	Tell(ctx context.Context, id vee.ID, c guest.Command) (guest.Reply, error)
}

// JoinRequest is a host's first word, over TLS pinned to the token's fingerprint.
type JoinRequest struct {
	Token string `json:"token"` // one time
	Host  string `json:"host"`
	CSR   []byte `json:"csr"` // PKCS #10, PEM
}

// JoinReply carries what the host needs to be part of the site.
type JoinReply struct {
	Site        string `json:"site"`
	Certificate []byte `json:"certificate"` // PEM chain, SPIFFE ID spiffe://SITE/host/NAME
	Bundle      []byte `json:"bundle"`      // PEM of the site's CA
}

// Renewal keeps a host current. It is sent every five seconds and at once when something
// changed; the whole report each time, so that none may be lost.
type Renewal struct {
	Report HostReport `json:"report"`
	// Lease is what the host asks the site's log to vouch for; nil from a host that cannot
	// end its guests in time, which runs no VEE under lease.
	Lease *ownership.Renew `json:"lease,omitempty"`
}

// RenewalReply answers after a linearisable read of the record of truth.
type RenewalReply struct {
	Generation uint64      `json:"generation"`
	Lease      *LeaseReply `json:"lease,omitempty"`
	Company    Company     `json:"company,omitzero"`
	// Members of the site's control plane answer at these addresses; none: at the one that the
	// host knows.
	Members []string `json:"members,omitempty"`
}

// Manager is a site's VEE Manager, as a host sees it.
type Manager interface {
	Join(ctx context.Context, r JoinRequest) (JoinReply, error)
	Renew(ctx context.Context, r Renewal) (RenewalReply, error)
	// Renewing the host's certificate before it expires, over mutual TLS.
	RenewCertificate(ctx context.Context, csr []byte) (JoinReply, error)
}
