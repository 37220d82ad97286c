package vhi

import (
	"github.com/reservoir-cloud/reservoir/ownership"
	"github.com/reservoir-cloud/reservoir/vee"
)

// LeaseReply answers the part of a Renewal that asks for leases.
type LeaseReply struct {
	Answer ownership.Answer `json:"answer"`
	// Addresses of the witnesses' VHI.
	Addresses map[string]string `json:"addresses,omitempty"`
	// Over lists the VEEs of the Renewal that are no more, and that the host may forget.
	Over []vee.ID `json:"over,omitempty"`
}

// LeaseStatus is how well a host can be relied on to end its guests in time.
type LeaseStatus struct {
	// Guarded: its guard answers, so that VEEs may be under lease here.
	Guarded bool `json:"guarded,omitempty"`
	// Degraded says what is missing for guests to be restarted elsewhere whatever happens;
	// empty: nothing.
	Degraded string `json:"degraded,omitempty"`
}
