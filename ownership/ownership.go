// Package ownership is the protocol by which a VEE never runs twice: who may run it, for
// how long that right lasts without being renewed, and how it passes to somebody else.
//
// It is a pure core. Host (a machine's agent and its guard), Control (the leader of a
// site's control plane), Log (the site's record of truth, as an abstract linearisable
// object) and the messages between them live here; each role takes an event and its own
// clock and answers with its next state and the actions to carry out, in order. Sockets,
// files, clocks, timers and processes do not: agent, agent/guard and veem bring those.
//
// docs/ownership.md tells the protocol; the exhaustive check of this code is in the tests.
package ownership

import (
	"time"

	"github.com/reservoir-cloud/reservoir/vee"
)

// Time is a reading of the node's own CLOCK_BOOTTIME. Times of two nodes are never compared.
type Time = time.Duration

// Nonce names an answer: the leader that gave it and when, by the leader's clock. The leader
// needs no table to know how old an echo is.
type Nonce struct {
	Generation uint64 `json:"generation"`
	Leader     uint64 `json:"leader"` // 0: no answer yet
	Issued     Time   `json:"issued"`
	// Silent: the log vouches for nobody yet (a restore); an echo of it makes nobody current.
	Silent bool `json:"silent,omitempty"`
}

// Message travels between nodes. It may be lost, late, or come twice.
type Message interface{ message() }

// Renew is a host's report, sent every Timings.Renew.
type Renew struct {
	Host      string    `json:"host"`
	Boot      uint64    `json:"boot"`
	Sent      Time      `json:"sent"` // host's clock; comes back in the answer
	Echo      Nonce     `json:"echo"` // of the last answer received
	Witnesses uint64    `json:"witnesses"`
	Upkeep    uint64    `json:"upkeep,omitempty"`  // as Disk.Upkeep
	Members   []string  `json:"members,omitempty"` // hosts that it knows by its own membership
	Holds     []Holding `json:"holds,omitempty"`
}

// Holding is what a Renew says of one VEE.
type Holding struct {
	VEE     vee.ID    `json:"vee"`
	Epoch   vee.Epoch `json:"epoch"`
	State   HoldState `json:"state"`
	To      string    `json:"to,omitempty"` // of a Given one
	Running bool      `json:"running,omitempty"`
	Door    uint64    `json:"door,omitempty"` // of an Offered one: Ticket.Door
}

// Answer to a Renew, after a linearisable read that began after the Renew arrived.
type Answer struct {
	Host       string     `json:"host"`
	Boot       uint64     `json:"boot"`
	Sent       Time       `json:"sent"`
	Nonce      Nonce      `json:"nonce"`
	Vouch      bool       `json:"vouch"` // extends the lease; without it only Nonce counts
	Witnesses  WitnessSet `json:"witnesses"`
	Upkeep     uint64     `json:"upkeep,omitempty"`
	Verdicts   []Verdict  `json:"verdicts,omitempty"`
	Generation uint64     `json:"generation"`
}

// Verdict of the site's log about one VEE, for the host that asked.
type Verdict struct {
	VEE   vee.ID    `json:"vee"`
	Word  Word      `json:"word"`
	Epoch vee.Epoch `json:"epoch"`
	Door  uint64    `json:"door,omitempty"` // of Export: for the ticket
}

// Word of a verdict.
type Word string

// Words. Own: run it at Epoch. Export: as Own, and it may be given to a partner site.
// Seal: a give-away at Epoch is open; if you run the VEE go on, else never touch anything
// older than Epoch. Not: it is somebody else's at Epoch.
const (
	Own    Word = "own"
	Export Word = "export"
	Seal   Word = "seal"
	Not    Word = "not"
)

// Ask is a host's question to a witness: have you lost the control plane?
type Ask struct {
	Host string `json:"host"`
	Boot uint64 `json:"boot"`
	Sent Time   `json:"sent"`
}

// Lost is a witness's word that it has; silence is the other answer.
type Lost struct {
	Witness string `json:"witness"`
	Host    string `json:"host"`
	Boot    uint64 `json:"boot"`
	Asked   Time   `json:"asked"`
}

// Ticket is the right to run a VEE, given by From to To with a hop more. The sender has
// stopped the guest and written the gift to disk before.
type Ticket struct {
	VEE     vee.ID    `json:"vee"`
	From    string    `json:"from"`
	To      string    `json:"to"`
	Epoch   vee.Epoch `json:"epoch"`
	Foreign bool      `json:"foreign,omitempty"` // To is at a partner site
	// Door is the generation of the partner's log that has let it in. One that was restored
	// since does not know what it has refused meanwhile, and takes nothing of before.
	Door uint64 `json:"door,omitempty"`
}

// Void is the destination's durable word that it has not taken a ticket and never will.
type Void struct {
	VEE   vee.ID    `json:"vee"`
	To    string    `json:"to"` // the ticket's From
	Epoch vee.Epoch `json:"epoch"`
}

// Query asks a partner's control plane about a VEE: do you hold it at Epoch or later? If
// not, never take it at Epoch or below.
type Query struct {
	VEE   vee.ID    `json:"vee"`
	Epoch vee.Epoch `json:"epoch"`
	From  string    `json:"from"` // sites
	To    string    `json:"to"`
}

// Status answers a Query from the partner's log. Taken false is a durable void.
type Status struct {
	VEE   vee.ID    `json:"vee"`
	Epoch vee.Epoch `json:"epoch"` // of the Query
	From  string    `json:"from"`
	Taken bool      `json:"taken"`
}

func (Renew) message()  {}
func (Answer) message() {}
func (Ask) message()    {}
func (Lost) message()   {}
func (Ticket) message() {}
func (Void) message()   {}
func (Query) message()  {}
func (Status) message() {}

// Event is what a role's Step takes: a message that arrived, or one of the events beside
// the role.
type Event any

// Action is what a role's Step asks for. The shell carries out the actions of a step in
// their order and none after one that failed; a crash between two of them is one of the
// crashes that the check explores.
type Action interface{ action() }

// Send a message; To is a host, or a site for what control planes say to each other, or
// empty for the host's own control plane.
type Send struct {
	To      string
	Message Message
}

// Persist the host's Disk, durably, before the next action.
type Persist struct{ Disk Disk }

// Stop ends a guest's process (Kill) or only its vCPUs, and returns when that is so.
type Stop struct {
	VEE  vee.ID
	Kill bool
}

// Extend the guard's deadline, never back.
type Extend struct{ Until Time }

// Run lets a guest's vCPUs run. The guard holds the process, under the deadline, before.
type Run struct {
	VEE   vee.ID
	Epoch vee.Epoch
}

// ReadLog asks for a linearisable read, begun now; the result is a ReadDone.
type ReadLog struct {
	For    Message // the Renew, Query or Status to go on with
	Fresh  bool    // For is a Renew that makes its host current
	Turned bool    // For is a Renew that has come after an answer of this leader
}

func (Send) action()    {}
func (Persist) action() {}
func (Stop) action()    {}
func (Extend) action()  {}
func (Run) action()     {}
func (ReadLog) action() {}
func (Commit) action()  {}

// Protocol is what all roles share. The zero value of the unexported part is the protocol;
// tests take one rule away at a time to see that the check misses it.
type Protocol struct {
	Timings
	without rule
}

// rule is a safety rule of the protocol.
type rule string

const (
	ruleOldEpoch       rule = "a host refuses an epoch older than one it has obeyed"
	ruleOldGeneration  rule = "a host refuses answers of an older generation"
	ruleFreshEcho      rule = "only a renewal that echoes a fresh answer counts"
	ruleRead           rule = "an answer follows a linearisable read"
	ruleSealDurable    rule = "a seal is on disk before it is reported"
	ruleMajority       rule = "witnesses speak by majority"
	ruleVoid           rule = "the source resumes only on a durable void"
	ruleGuardAtCont    rule = "the destination checks its guard and seal at cont"
	ruleHeard          rule = "every answer that may be echoed silences a witness"
	ruleNoRevival      rule = "words extend a lease and never revive one"
	ruleCustodyFirst   rule = "custody is committed before the ticket"
	ruleSealAll        rule = "every host that is not expired must seal"
	ruleAwait          rule = "recovery waits for every host"
	ruleIntentFirst    rule = "conditions are judged after the intent is committed"
	ruleTaken          rule = "no void for what was once taken"
	ruleCountAnew      rule = "a new leader counts anew"
	rulePartnerHeard   rule = "after a restore every partner is asked"
	ruleRecoveryQuorum rule = "a restored log vouches only with its witnesses' majority"
	ruleSealBeforeCall rule = "no answer grants what is being given away"
	ruleCustodyHolds   rule = "nothing is given away while custody is open"
	ruleCustodyWord    rule = "custody closes by the partner's durable refusal"
	ruleOffered        rule = "a foreign ticket starts nothing before the own log says yes"
	ruleDoor           rule = "a log takes no offer from before it was restored"
)

func (p Protocol) keeps(r rule) bool { return p.without != r }
