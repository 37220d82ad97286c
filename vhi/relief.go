package vhi

import "time"

// Relief is how the hosts of a site relieve each other (docs/dvms.md), as the site wants it.
type Relief struct {
	// Overload is the part of a host's physical CPUs above which what its guests take is too
	// much; 0: hosts do not look. Calm is the part that hosts are brought to, and below which
	// the trouble is over.
	Overload float64 `json:"overload,omitempty"`
	Calm     float64 `json:"calm,omitempty"`
	// Underload is the part below which a host hands its guests to others; 0: never.
	Underload float64 `json:"underload,omitempty"`
	// LastsMS is for how long it has to be so, ms.
	LastsMS int64 `json:"lastsMs,omitempty"`
}

// Neighbour is another host of the site: where its agent listens, host:port.
type Neighbour struct {
	Host    string `json:"host"`
	Address string `json:"address"`
}

// Company is what a site tells a host of the others, with each answer to a renewal. The host
// keeps it, and goes by it while the site does not answer.
type Company struct {
	// Neighbours are a few that are current: others are known by them.
	Neighbours []Neighbour `json:"neighbours,omitempty"`
	Relief     Relief      `json:"relief,omitzero"`
	// Draining: its VEEs are to leave this host; the site sees to that while it can.
	Draining bool `json:"draining,omitempty"`
}

// Peering is a host's word on the others, and on what it does with them by itself.
type Peering struct {
	// Known hosts beside itself that answer, and those that do not or are doubted. Nothing
	// follows from a doubt but that partitions shrink.
	Known   int      `json:"known"`
	Doubted []string `json:"doubted,omitempty"`
	// Load is the part of its CPUs that guests take, smoothed. Trouble, empty: none.
	Load    float64    `json:"load"`
	Trouble string     `json:"trouble,omitempty"` // "overloaded", "idle", "draining"
	In      *Partition `json:"in,omitempty"`
	// Past partitions that it began, the newest last; a few.
	Past []PastPartition `json:"past,omitempty"`
}

// Partition of hosts that relieve one of them together.
type Partition struct {
	ID      string    `json:"id"`
	Reason  string    `json:"reason"`
	State   string    `json:"state"`
	Leader  string    `json:"leader"`
	Members []string  `json:"members"` // the first began it
	Since   time.Time `json:"since"`   // this host is in it
}

// PastPartition and how it ended.
type PastPartition struct {
	ID      string    `json:"id"`
	Reason  string    `json:"reason"`
	Members []string  `json:"members"` // the most that it had
	Began   time.Time `json:"began"`
	Ended   time.Time `json:"ended"`
	// Helpless: every host was asked, and together they found no way.
	Helpless bool `json:"helpless,omitempty"`
}
