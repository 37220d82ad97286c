package agreement

import (
	"fmt"
	"time"

	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/vmi/peer"
)

// Notice is the time that VEEs have to leave when nothing that was agreed covers them any more.
type Notice struct {
	Agreement string
	From      time.Time // since when
	By        time.Time // the last must have left
	Why       string
}

// Ending is the notice that the borrower's VEEs at the lender have at that moment; false: an
// agreement covers them, or there never was one. Of several that have ended the one that
// lets them stay longest counts.
func Ending(list []peer.Agreement, lender, borrower string, at time.Time) (n Notice, ending bool) {
	for _, a := range list {
		switch {
		case a.Lender != lender || a.Borrower != borrower || !a.Signed() || at.Before(a.From):
			continue
		case a.Covers(at):
			return Notice{}, false
		}
		if by := a.Leave(); !ending || by.After(n.By) {
			n, ending = Notice{Agreement: a.ID, From: a.Ends(), By: by, Why: why(a)}, true
		}
	}
	return n, ending
}

// Stays is the agreement under which the borrower's VEEs are at the lender at that moment: one
// in force, else the one whose notice runs longest; false: none lets them stay.
func Stays(list []peer.Agreement, lender, borrower string, at time.Time) (best peer.Agreement, ok bool) {
	for _, a := range list {
		switch {
		case a.Lender != lender || a.Borrower != borrower || !a.Signed() || at.Before(a.From) || Over(a, at):
		case a.Covers(at):
			return a, true
		case !ok || a.Leave().After(best.Leave()):
			best, ok = a, true
		}
	}
	return best, ok
}

func why(a peer.Agreement) string {
	if a.End == nil || !a.End.At.Before(a.Until) {
		return fmt.Sprintf("agreement %s ran out on %s", a.ID, day(a.Until))
	}
	text := fmt.Sprintf("agreement %s was ended by site %s", a.ID, a.End.By)
	if a.End.Reason != "" {
		text += " (" + a.End.Reason + ")"
	}
	return text
}

// Covers is nil when one agreement is in force between the two for all of that time, or says
// why none is.
func Covers(list []peer.Agreement, lender, borrower string, from, until time.Time) error {
	var closest error
	for _, a := range list {
		switch {
		case a.Lender != lender || a.Borrower != borrower:
			continue
		case !a.Covers(from):
			closest = InForce(a, from)
		case until.After(a.Until):
			closest = fault.New(fault.Denied, "agreement %s is in force until %s, and not until %s", a.ID, day(a.Until), day(until)).Try("reservoir agreement list")
		default:
			return nil
		}
	}
	if closest != nil {
		return fault.New(fault.Denied, "%w", closest).Try("reservoir agreement list")
	}
	return fault.New(fault.Denied, "there is no agreement by which site %s borrows of site %s", borrower, lender).Try("reservoir agreement list")
}
