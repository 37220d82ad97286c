// Package handover is the pure core of a planned handover: how the right to run a VEE
// passes from one live host to another, so that at no moment both have it. No I/O, no
// clock; agent/vet brings those.
//
// The source writes down that it may give the guest away (Offer) while that still runs,
// stops it, and gives it (Give). From then on it only repeats the gift until the destination
// has answered. The destination decides once, writes its decision down and answers the same
// for ever (Take): taken, or void. That write is the commit point, and the only one while
// the guest stands still. On void the source has it back (Answer). A source that has
// forgotten whether it gave what it offered, and whose guest does not run, goes on as if it
// had (Recall): it asks. Each change of hands counts the epoch's hop up, so that whatever is
// late is refused by its age.
package handover

import "github.com/reservoir-cloud/reservoir/vee"

// State of one host's part in a handover.
type State string

// States. The zero State: no part in any. Offered: the source may give it at any moment.
// Given: it waits for the answer; this is never on disk. Gone: it was taken. Back: it was
// not, and is the source's again. Taken, Void: what the destination has decided.
const (
	Offered State = "offered"
	Given   State = "given"
	Gone    State = "gone"
	Back    State = "back"
	Taken   State = "taken"
	Void    State = "void"
)

// Part is what a host remembers durably of the newest handover of a VEE.
type Part struct {
	Move  string `json:"move,omitempty"` // which one
	State State  `json:"state,omitempty"`
	// Epoch of the gift; of Back, the one that the source goes on under.
	Epoch vee.Epoch `json:"epoch,omitzero"`
	// Asked is the gift's epoch, for Back too.
	Asked vee.Epoch `json:"asked,omitzero"`
	// Newest epoch of all gifts that were taken here. It stays when the VEE goes on.
	Newest vee.Epoch `json:"newest,omitzero"`
}

// Word is what a destination says to a gift.
type Word string

// Words. Silence is for gifts of long ago, whose answer is not remembered: a wrong one
// could make the VEE run twice.
const (
	Yes     Word = "taken"
	No      Word = "void"
	Silence Word = ""
)

// Offer what is held under epoch now. It is on disk before a Give.
func (p Part) Offer(move string, now vee.Epoch) Part {
	asked := now
	asked.Hop++
	return Part{Move: move, State: Offered, Epoch: now, Asked: asked, Newest: p.Newest}
}

// Give away what was offered.
func (p Part) Give() Part {
	if p.State == Offered {
		p.State, p.Epoch = Given, p.Asked
	}
	return p
}

// Ungiven is the offer of what was given, which is what is on disk of it.
func (p Part) Ungiven() Part {
	if p.State == Given {
		p.State = Offered
		p.Epoch.Hop--
	}
	return p
}

// Withdraw an offer that led to no gift.
func (p Part) Withdraw() Part {
	if p.State == Offered {
		return Part{Newest: p.Newest}
	}
	return p
}

// Recall is what a source goes on with that has read p from its disk. runs says that the
// guest's vCPUs run, or could without anybody's word: then it was not given.
func (p Part) Recall(runs bool) Part {
	if runs {
		return p.Withdraw()
	}
	return p.Give()
}

// Answer of the destination to the gift of epoch e. One that is late or about another
// gift changes nothing.
func (p Part) Answer(move string, e vee.Epoch, taken bool) Part {
	switch {
	case p.State != Given || p.Move != move || p.Asked != e:
		return p
	case taken:
		p.State = Gone
	default:
		p.State = Back
		p.Epoch.Hop++
	}
	return p
}

// Take decides about a gift of epoch e, once. complete says that the guest is all here and
// could run; obeyed is the newest epoch that this host has obeyed for the VEE. What comes
// back is to be on disk before the word is said.
func (p Part) Take(move string, e, obeyed vee.Epoch, complete bool) (Part, Word) {
	switch c := e.Compare(p.Newest); {
	case c == 0 && e != (vee.Epoch{}):
		return p, Yes // decided, and repeated
	case c < 0:
		return p, Silence
	case p.State == Given || e.Compare(obeyed) <= 0:
		return p, No // refused by its age, for ever
	case complete:
		return Part{Move: move, State: Taken, Epoch: e, Asked: e, Newest: e}, Yes
	}
	return Part{Move: move, State: Void, Epoch: e, Asked: e, Newest: p.Newest}, No
}

// Undecided reports whether the VEE may be elsewhere: neither run nor remove it.
func (p Part) Undecided() bool { return p.State == Given }
