package vhi

import (
	"net/netip"
	"strings"
	"time"

	"github.com/reservoir-cloud/reservoir/vee"
)

// Incoming is the power of a VEE at the destination of a live migration: a place and an
// open door for it, and nothing that runs.
const Incoming Power = "incoming"

// Move is a migration, in the assignments of both hosts that take part. The source gets it
// beside the power Running (or Cold), the destination with the power Incoming. To cancel it,
// the source gets an assignment without it, and obeys unless it has given the VEE away.
type Move struct {
	ID string `json:"id"` // one attempt; never used again
	// Cold is the power that it goes over in and has at its end, Stopped or Suspended; empty: it
	// goes over while it runs.
	Cold Power `json:"cold,omitempty"`
	// From and To are hosts; one of another site is "@" and that site's name (AtSite).
	From    string `json:"from"`
	To      string `json:"to"`
	Address string `json:"address,omitempty"` // of To's VHI, host:port; for the source
	// Door is the way to To where that is at another site; for the source.
	Door *Door `json:"door,omitempty"`
	// Origin is whom To lets in where From is at another site.
	Origin *Origin `json:"origin,omitempty"`
	// Underlay address of To, where the source sends what still comes for the VEE; of the
	// site's own proxy where To is at another site.
	Underlay netip.Addr `json:"underlay,omitzero"`
	// Ticket proves to To that the site sent From. It opens the door once.
	Ticket       string    `json:"ticket"`
	Bandwidth    vee.Bytes `json:"bandwidthBytes,omitempty"` // limit per second; 0: none
	AutoConverge bool      `json:"autoConverge,omitempty"`
	// By is why the hosts move it by themselves: "overload of h1"; empty: the site wants it.
	By string `json:"by,omitempty"`
}

// Report of the move at its beginning. Of one that the site has not ordered, everything that
// the site has to know is in it.
func (m Move) Report(s MoveStage) MoveReport {
	r := MoveReport{ID: m.ID, Stage: s}
	if m.By != "" {
		r.From, r.To, r.By = m.From, m.To, m.By
	}
	return r
}

// Door is the way into another site for the source of a Move: a connection to its own site's
// VAN proxy, which passes it on to the other site's for a ticket (van/border). What goes
// through it is TLS between the two hosts, which no proxy can read.
type Door struct {
	Site string `json:"site"` // that it leads into
	// Route is the ticket: of Site's proxy when Site tells of its door, and of the source's own
	// site's proxy when the source is told.
	Route string `json:"route"`
	Proxy string `json:"proxy,omitempty"` // of the source's own site, host:port; for the source
	// Host that opens, by its SPIFFE ID, and Bundle (SPIFFE JWKS) of its site, for the source.
	Host   string `json:"host"`
	Bundle []byte `json:"bundle,omitempty"`
}

// Origin of a Move that comes from another site: its hosts may open the door, with the
// move's ticket, and nobody but the one that opened it comes through.
type Origin struct {
	Site   string `json:"site"`
	Bundle []byte `json:"bundle"` // SPIFFE JWKS
}

const atSite = "@"

// AtSite is a place at another site, as From and To of a Move name it.
func AtSite(site string) string { return atSite + site }

// SiteOf is the site of a place that AtSite has made; "" for a host.
func SiteOf(place string) string {
	if site, ok := strings.CutPrefix(place, atSite); ok {
		return site
	}
	return ""
}

// MoveStage is how far a host is with its part of a Move.
type MoveStage string

// Stages. Up to MoveSwitchover the VEE is the source's and everything can be undone.
// MoveGiven is past the commit point: the source has given it away and waits for the
// destination's word. MoveTaken (destination), MoveFailed and MoveVoid (source) are ends.
const (
	MoveWaiting    MoveStage = "waiting"    // destination: for the source
	MoveReceiving  MoveStage = "receiving"  // destination
	MovePreparing  MoveStage = "preparing"  // source: the destination makes room
	MoveDisks      MoveStage = "disks"      // source
	MoveMemory     MoveStage = "memory"     // source
	MoveSwitchover MoveStage = "switchover" // source: the vCPUs stand still
	MoveGiven      MoveStage = "given"      // source
	MoveTaken      MoveStage = "taken"      // destination: it runs there, or is there in the power Cold
	MoveVoid       MoveStage = "void"       // source: given, not taken, and ours again
	MoveFailed     MoveStage = "failed"     // it stays where it was
)

// MoveReport is a host's word on its part of a Move.
type MoveReport struct {
	ID         string    `json:"id"`
	Stage      MoveStage `json:"stage"`
	Total      vee.Bytes `json:"totalBytes,omitempty"` // of the stage
	Left       vee.Bytes `json:"leftBytes,omitempty"`
	DirtyRate  vee.Bytes `json:"dirtyBytesPerSecond,omitempty"`
	DowntimeMS int64     `json:"downtimeMs,omitempty"` // predicted
	// Took is known in part since given, and in full with taken.
	Took  MoveFigures `json:"took,omitzero"`
	Error string      `json:"error,omitempty"`
	Code  string      `json:"code,omitempty"`
	// From, To and By are set where hosts move it by themselves: see Move.
	From string `json:"from,omitempty"`
	To   string `json:"to,omitempty"`
	By   string `json:"by,omitempty"`
	// Door is told by a destination that is another site, when a host of it waits.
	Door *Door `json:"door,omitempty"`
}

// Over reports whether nothing more comes of it at this host.
func (r MoveReport) Over() bool {
	switch r.Stage {
	case MoveTaken, MoveVoid, MoveFailed:
		return true
	}
	return false
}

// MoveFigures is what a Move took. Times are rounded up, so that 0 means not known.
type MoveFigures struct {
	DiskBytes   vee.Bytes `json:"diskBytes,omitempty"` // that went over
	MemoryBytes vee.Bytes `json:"memoryBytes,omitempty"`
	PrepareMS   int64     `json:"prepareMs,omitempty"` // the destination made room
	DisksMS     int64     `json:"disksMs,omitempty"`
	MemoryMS    int64     `json:"memoryMs,omitempty"` // until the vCPUs were stopped
	// DowntimeMS is how long no vCPU ran: from the source's stop to the destination's go, but
	// for the way of the gift from the one to the other.
	DowntimeMS int64 `json:"downtimeMs,omitempty"`
}

// Milliseconds of d, rounded up and at least one: for what was measured.
func Milliseconds(d time.Duration) int64 {
	return max(1, int64((d+time.Millisecond-1)/time.Millisecond))
}
