// Package dvms is the protocol by which hosts solve placement problems among themselves,
// without a centre: a host that has too much, too little or must be emptied gathers its
// neighbours one by one into a partition, until what the partition has is enough to solve
// its problem. Partitions are disjoint, so that many problems are solved at once.
//
// The protocol is that of DVMS (Quesnel, Lèbre, Südholt, "Cooperative and reactive
// scheduling in large-scale virtualized platforms with DVMS", Concurrency and Computation:
// Practice and Experience 25, 2013), with the locality of its successor (Pastor, Bertier,
// Desprez, Lèbre, Quesnel, Tedeschi, "Locality-aware Cooperation for VM Scheduling in
// Distributed Clouds", Euro-Par 2014). docs/dvms.md tells it, and where it differs.
//
// It is a pure core: a Node takes an event and its own clock and answers with its next state
// and the actions to carry out. Solving and moving are actions whose results are events.
// The agent of a host and the simulator run the same code.
package dvms

import (
	"fmt"
	"slices"
	"time"
)

// Time is a reading of the node's own monotonic clock. Times of two nodes are never compared.
type Time = time.Duration

// Reason why a partition is there.
type Reason string

// Reasons. Only an idle host's partition stays small and is given up in silence.
const (
	Overloaded Reason = "overloaded"
	Idle       Reason = "idle" // its VEEs could be elsewhere and the host asleep
	Draining   Reason = "draining"
)

// ID of a partition. Number grows with each that the initiator begins, also when its agent
// was restarted in between.
type ID struct {
	Initiator string `json:"initiator"`
	Number    uint64 `json:"number"`
}

// Before is the total order in which partitions merge: the earlier one absorbs the later.
func (i ID) Before(o ID) bool {
	if i.Initiator != o.Initiator {
		return i.Initiator < o.Initiator
	}
	return i.Number < o.Number
}

func (i ID) String() string { return fmt.Sprintf("%s#%d", i.Initiator, i.Number) }

// Version of a partition. Only the leader counts up; a new term begins when the initiator
// takes the lead over from one that is lost, so that two leaders never write the same one.
type Version struct {
	Term  uint64 `json:"term"`
	Count uint64 `json:"count"`
}

// Newer tells whether v comes after o.
func (v Version) Newer(o Version) bool {
	return v.Term > o.Term || v.Term == o.Term && v.Count > o.Count
}

// State of a partition.
type State string

// States. Growing: on its way to the next node. Blocked: has gone round once. Solving:
// the leader computes. Applying: VEEs are moved.
const (
	Growing  State = "growing"
	Blocked  State = "blocked"
	Solving  State = "solving"
	Applying State = "applying"
)

// Partition is a set of nodes that solves one problem. The leader alone changes it.
type Partition struct {
	ID      ID       `json:"id"`
	Reason  Reason   `json:"reason"`
	Version Version  `json:"version"`
	Plan    Version  `json:"plan"` // under which the moves that are applied were planned
	Leader  string   `json:"leader"`
	Members []string `json:"members"` // as they joined: the initiator is the first
	State   State    `json:"state"`
}

// Has tells whether a node is a member.
func (p Partition) Has(node string) bool { return slices.Contains(p.Members, node) }

// Overlay knows the other nodes and an order among them.
type Overlay interface {
	// Next node for self to turn to, outside members and tried; "" where there is none. The
	// slices are not kept.
	Next(self string, members, tried []string) string
}

// Protocol is what the nodes of a site have in common.
type Protocol struct {
	// Stay: the leader of a partition stays what it is and pulls the nearest nodes in
	// (locality), rather than handing the lead to each node that joins, along the ring.
	Stay bool

	Answer  Time // what is asked is asked elsewhere, or again, after this
	Beat    Time // between two words of a leader to its members
	Silence Time // who says nothing for this long is taken for dead
	Rest    Time // after a failure, before the next try; up to twice as long, by node
	Tries   int  // unanswered questions in a row before a partition gives up (ring)
	Hops    int  // a problem on its way round the ring is dropped after so many
	Most    int  // members of an idle host's partition

	without rule // a rule that a mutant breaks; none outside the tests
}

// DefaultProtocol are the timings of a site; 4.5 s of silence is DVMS's own time-out.
func DefaultProtocol(stay bool) Protocol {
	return Protocol{Stay: stay, Answer: 2 * time.Second, Beat: time.Second, Silence: 4500 * time.Millisecond,
		Rest: 5 * time.Second, Tries: 3, Hops: 100_000, Most: 4}
}

// rule of the protocol that the mutants of the tests take away one by one.
type rule string

const (
	ruleConfirm rule = "every member confirms before VEEs are moved"
	ruleVersion rule = "an older version of a partition is not taken"
	ruleLeave   rule = "a member that hears nothing leaves"
	ruleTerm    rule = "who takes the lead over begins a term"
)

func (p Protocol) keeps(r rule) bool { return p.without != r }

// Message travels between nodes. It may be lost, late, or come twice; none is sent to self.
type Message interface{ message() }

// Problem looks for one more node.
type Problem struct {
	Partition Partition `json:"partition"`
	Hops      int       `json:"hops"` // nodes that have passed it on
}

// Willing answers it: From has promised itself.
type Willing struct {
	ID   ID     `json:"id"`
	From string `json:"from"`
}

// Busy says no to a Problem that is not passed on, or to an Offer.
type Busy struct {
	ID   ID     `json:"id"`
	From string `json:"from"`
}

// Round tells the leader that its problem has gone round the ring.
type Round struct {
	ID      ID      `json:"id"`
	Version Version `json:"version"`
}

// Update is the leader's word on its partition, also its sign of life.
type Update struct {
	Partition Partition `json:"partition"`
	// Absorbed is the partition whose members come over, if any, and Offered the version in
	// which it was offered: those that know of a later one stay where they are.
	Absorbed ID      `json:"absorbed,omitzero"`
	Offered  Version `json:"offered,omitzero"`
}

// Here answers an Update: From is a member, of this version.
type Here struct {
	ID      ID      `json:"id"`
	Version Version `json:"version"`
	From    string  `json:"from"`
}

// Gone: From is not, or not any more. From a leader to somebody willing: not needed.
type Gone struct {
	ID   ID     `json:"id"`
	From string `json:"from"`
}

// Meet tells the leader of a blocked partition of another one. Back: it answers one.
type Meet struct {
	Partition Partition `json:"partition"`
	Back      bool      `json:"back"`
}

// Offer of a blocked partition to be absorbed by an earlier one. It is locked meanwhile.
type Offer struct {
	Partition Partition `json:"partition"`
	To        ID        `json:"to"`
}

// Dissolve: everybody is free. Failed: the problem is not solved.
type Dissolve struct {
	ID      ID      `json:"id"`
	Version Version `json:"version"`
	Failed  bool    `json:"failed"`
}

// Over tells the leader that its initiator is out of trouble.
type Over struct {
	ID ID `json:"id"`
}

func (Problem) message()  {}
func (Willing) message()  {}
func (Busy) message()     {}
func (Round) message()    {}
func (Update) message()   {}
func (Here) message()     {}
func (Gone) message()     {}
func (Meet) message()     {}
func (Offer) message()    {}
func (Dissolve) message() {}
func (Over) message()     {}

// Event is what a Node's Step takes: a Message that arrived, or one of these.
type Event any

// Events beside messages.
type (
	// Violated: this host has too much or too little, or must be emptied. It is told again
	// and again while that is so.
	Violated struct{ Reason Reason }
	// Calm: it is so no more.
	Calm struct{}
	// Suspect: the membership takes a node for dead.
	Suspect struct{ Node string }
	// Tick is due at the node's Deadline.
	Tick struct{}
	// Solved is the result of a Solve.
	Solved struct {
		ID      ID
		Version Version
		Outcome Outcome
	}
	// Applied is the result of an Apply: all moves are over. Failed: not all took place.
	Applied struct {
		ID     ID
		Failed bool
	}
	// Reserved: somebody else (the site's VEEM, a person, a migration that still runs) moves
	// VEEs to or from this host, or has ended: it takes no part in a partition meanwhile.
	Reserved struct{ By bool }
)

// Outcome of solving.
type Outcome string

// Outcomes. NoWay: the partition is too small. Nothing: there is no problem any more.
const (
	NoWay   Outcome = "no way"
	Planned Outcome = "planned"
	Nothing Outcome = "nothing"
)

// Action is what a Node's Step asks for, to be carried out in order.
type Action interface{ action() }

// Send a message.
type Send struct {
	To      string
	Message Message
}

// Solve the placement of the partition's members, moving as little as needed (repair). The
// result is a Solved with the same ID and version; a later Solve makes it worthless.
type Solve struct{ Partition Partition }

// Apply what was planned under the partition's Plan. Every member has confirmed; each
// still checks with Allows when a VEE is to leave or to come. The result is an Applied.
type Apply struct{ Partition Partition }

// Escalate: the partition has gone round twice; the site's VEEM or a partner is to help.
type Escalate struct{ Partition Partition }

func (Send) action()     {}
func (Solve) action()    {}
func (Apply) action()    {}
func (Escalate) action() {}
