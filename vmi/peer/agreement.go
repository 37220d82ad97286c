package peer

import (
	"context"
	"time"

	"github.com/reservoir-cloud/reservoir/account/billing"
	"github.com/reservoir-cloud/reservoir/account/money"
	"github.com/reservoir-cloud/reservoir/vee"
)

// Terms of a framework agreement: what Borrower may have of Lender, and for what. What it
// does not say, it does not allow.
type Terms struct {
	ID       string `json:"id"` // SITE.xxxxxxxxxx: of the site that proposed it
	Lender   string `json:"lender"`
	Borrower string `json:"borrower"`

	From  time.Time `json:"from"`
	Until time.Time `json:"until"` // not part of it
	// NoticeMS is how long VEEs may stay after either site has ended the agreement, and how
	// long before the lender says what it takes back.
	NoticeMS int64 `json:"noticeMs"`

	Ceiling Ceiling        `json:"ceiling"`
	Types   []InstanceType `json:"types"`
	// Currency and Places after its point; Prices for an hour of each meter.
	Currency string                         `json:"currency"`
	Places   int                            `json:"places"`
	Prices   map[billing.Meter]money.Amount `json:"prices,omitempty"`
	// Locations that VEEs may be at.
	Locations []Location `json:"locations,omitempty"`
	SLA       Promise    `json:"sla,omitzero"`
	Movable   Movable    `json:"movable,omitzero"`
	// PromoteMS is how long the borrower must have been silent until the lender goes on by itself
	// with those of its services that it is a standby of; 0: only when an operator says so.
	PromoteMS int64 `json:"promoteMs,omitempty"`
	// Access: the lender's public addresses may lead to the borrower's VEEs there.
	Access bool `json:"access,omitempty"`
}

// Ceiling of all VEEs of the borrower at once.
type Ceiling struct {
	VEEs   int       `json:"vees"`
	VCPUs  int       `json:"vcpus"`
	Memory vee.Bytes `json:"memoryBytes"`
	Disk   vee.Bytes `json:"diskBytes"`
}

// InstanceType is a size of VEE: one that is no larger in anything is of the type.
type InstanceType struct {
	Name   string    `json:"name"`
	VCPUs  int       `json:"vcpus"`
	Memory vee.Bytes `json:"memoryBytes"`
	Disk   vee.Bytes `json:"diskBytes,omitempty"` // 0: as its image is
}

// Location of a site's machines.
type Location struct {
	Country      string  `json:"country,omitempty"` // ISO 3166-1 alpha-2: "SE"
	Jurisdiction string  `json:"jurisdiction,omitempty"`
	Region       string  `json:"region,omitempty"`
	Latitude     float64 `json:"latitude,omitempty"` // degrees, north positive
	Longitude    float64 `json:"longitude,omitempty"`
}

// Promise of the lender.
type Promise struct {
	Availability float64 `json:"availability,omitempty"` // part of the time that a VEE runs, 0 to 1
	// CreditPercent of a month's charge for a VEE that ran less than promised.
	CreditPercent float64 `json:"creditPercent,omitempty"`
}

// Movable says in which ways VEEs may cross between the sites.
type Movable struct {
	Live bool `json:"live,omitempty"` // while they run
	Cold bool `json:"cold,omitempty"` // stopped, with the address kept
}

// Agreement is Terms with what has become of them. It is in force when both have signed.
type Agreement struct {
	Terms
	// Signatures by site: detached JWS (RFC 7515, appendix F) over the Terms' canonical
	// JSON, with the chain of the site's certificate.
	Signatures map[string]string `json:"signatures,omitempty"`
	End        *End              `json:"end,omitempty"`
}

// End of an agreement, by one of its sites.
type End struct {
	Agreement string    `json:"agreement"`
	By        string    `json:"by"`
	At        time.Time `json:"at"`
	Reason    string    `json:"reason,omitempty"`
	// Signature of By over the End without it and Known.
	Signature string `json:"signature,omitempty"`
	// Known is when the other site learned of it, by the clock of whose record this is: the
	// notice runs from then.
	Known time.Time `json:"known,omitzero"`
}

// Signed reports whether both sites have.
func (a Agreement) Signed() bool {
	return a.Signatures[a.Lender] != "" && a.Signatures[a.Borrower] != ""
}

// Covers reports whether new VEEs may be had under it at that moment.
func (a Agreement) Covers(at time.Time) bool {
	return a.Signed() && a.End == nil && !at.Before(a.From) && at.Before(a.Until)
}

// Ends is when the agreement ceases to cover new VEEs: when the other site learned of its end,
// or at Until.
func (a Agreement) Ends() time.Time {
	end := a.Until
	if a.End != nil {
		told := a.End.At
		if !a.End.Known.IsZero() { // At may be by another clock
			told = a.End.Known
		}
		if told.Before(end) {
			end = told
		}
	}
	return end
}

// Leave is when the last VEE must have left: notice after it was ended, or after Until.
func (a Agreement) Leave() time.Time {
	return a.Ends().Add(time.Duration(a.NoticeMS) * time.Millisecond)
}

// Other site of the two.
func (a Agreement) Other(site string) string {
	if site == a.Lender {
		return a.Borrower
	}
	return a.Lender
}

// Agreements between the caller and this site.
type Agreements interface {
	// PutAgreement proposes one, with the caller's signature, or brings the caller's
	// signature to one that this site proposed. The answer has what signatures there are
	// now. Errors: Malformed, Denied (the signature, or not the caller's own), Conflict
	// (other terms under the same ID), WrongState (it has ended).
	PutAgreement(ctx context.Context, a Agreement) (Agreement, error)
	// EndAgreement with the caller's signature. Errors: NotFound, Denied, Malformed.
	EndAgreement(ctx context.Context, e End) (Agreement, error)
}
