package books

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/reservoir-cloud/reservoir/account/billing"
	"github.com/reservoir-cloud/reservoir/account/money"
	"github.com/reservoir-cloud/reservoir/account/settlement"
	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/internal/identity"
	"github.com/reservoir-cloud/reservoir/vee"
	"github.com/reservoir-cloud/reservoir/vmi/peer"
)

// Settlement of a month under an agreement, as far as both books know it.
type Settlement struct {
	Agreement string    `json:"agreement"`
	Partner   string    `json:"partner"`
	Lender    string    `json:"lender"`
	Borrower  string    `json:"borrower"`
	Period    string    `json:"period"` // a month by the lender's clock: 2026-11
	Until     time.Time `json:"until"`  // the books are compared until then
	Complete  bool      `json:"complete"`
	// Bill of the lender for the borrower, by our book; the one that was issued, if it was.
	Bill billing.Invoice `json:"bill"`
	// Statement is the number that the bill was issued under; empty: it was not.
	Statement string `json:"statement,omitempty"`
	// Theirs is the total by the partner's book; nil: Why it is not known.
	Theirs *money.Amount `json:"theirs,omitempty"`
	Why    string        `json:"why,omitempty"`
	// Agree: both books have the same, to the unit.
	Agree       bool                    `json:"agree"`
	Differences []settlement.Difference `json:"differences"`
	More        int                     `json:"moreDifferences,omitempty"` // that are left out
}

// maxDifferences that are shown.
const maxDifferences = 1000

// Statement is a bill that was issued, once for an agreement and a month.
type Statement struct {
	Number  string          `json:"number"`
	Issued  time.Time       `json:"issued"`
	Invoice billing.Invoice `json:"invoice"`
	// Disputed: the partner's book was another, or was not seen.
	Disputed bool `json:"disputed,omitempty"`
}

// terms of an agreement, as far as they are about money.
func terms(a peer.Agreement) settlement.Terms {
	return settlement.Terms{Agreement: a.ID, Lender: a.Lender, Borrower: a.Borrower, Currency: a.Currency, Places: a.Places, Prices: a.Prices,
		Availability: exact(a.SLA.Availability), CreditPercent: exact(a.SLA.CreditPercent)}
}

// exact is the number that a person wrote.
func exact(f float64) money.Amount {
	a, err := money.Parse(strconv.FormatFloat(f, 'f', -1, 64))
	if err != nil {
		return money.Amount{} // no agreement has such a one
	}
	return a
}

// agreement of that identifier between us and another.
func (k *Keeper) agreement(id string) (peer.Agreement, bool) {
	all := k.cfg.Agreements()
	i := slices.IndexFunc(all, func(a peer.Agreement) bool { return a.ID == id && a.Signed() })
	if i < 0 {
		return peer.Agreement{}, false
	}
	return all[i], true
}

func noAgreement(id string) error {
	return fault.New(fault.NotFound, "there is no agreement %s that both sites have signed", id).Try("reservoir agreement list")
}

// lines of our book about an agreement, from one moment until before another, or as far as it
// is known.
func (k *Keeper) lines(ctx context.Context, a peer.Agreement, from, until time.Time) (lines []settlement.Line, through time.Time, err error) {
	b := k.of(a)
	b.mu.Lock()
	err = k.open(ctx, b)
	through = b.last.through()
	b.mu.Unlock()
	if err != nil {
		return nil, through, err
	}
	logs, err := k.logs(ctx, b)
	if err != nil {
		return nil, through, err
	}
	if through.Before(until) {
		until = through
	}
	for _, e := range logs {
		lines = append(lines, e.Log.Lines(e.VEE, e.Name, a.ID, from.UnixMilli(), until.UnixMilli())...)
	}
	return lines, through, nil
}

// fresh looks at a book before it is used; a partner that is not reached leaves it as it was.
func (k *Keeper) fresh(ctx context.Context, a peer.Agreement) {
	if err := k.look(ctx, k.of(a)); err != nil {
		k.cfg.Log.Debug("look at VEEs before the book is used", "book", k.of(a).key(), "err", err)
	}
}

// Lines implements peer.Books.
func (k *Keeper) Lines(ctx context.Context, q peer.LinesAsked) (peer.Page, error) {
	caller := identity.From(ctx)
	a, ok := k.agreement(q.Agreement)
	if !caller.Is(identity.Partner) || !ok || a.Other(k.cfg.Site) != caller.Site {
		return peer.Page{}, fault.New(fault.NotFound, "sites %s and %s have no agreement %s", k.cfg.Site, caller.Site, q.Agreement).Try("reservoir agreement list")
	}
	from, until, err := settlement.Month(q.Period)
	if err != nil {
		return peer.Page{}, fault.New(fault.Malformed, "%w", err)
	}
	after, err := parsePosition(q.After)
	if err != nil {
		return peer.Page{}, err
	}
	b := k.of(a)
	lines, through, shown := b.goOn(q)
	if !shown {
		if q.After == "" {
			k.fresh(ctx, a)
		}
		if lines, through, err = k.lines(ctx, a, from, until); err != nil {
			return peer.Page{}, err
		}
	}
	p := peer.Page{Lines: []settlement.Line{}, ThroughMS: through.UnixMilli()}
	first := 0
	if q.After != "" {
		at, found := slices.BinarySearchFunc(lines, after, settlement.Order)
		if first = at; found {
			first++
		}
	}
	last := min(len(lines), first+peer.MaxLines)
	if p.Lines = append(p.Lines, lines[first:last]...); last < len(lines) {
		p.Next = position(lines[last-1])
	}
	b.show(q, lines, through, p.Next)
	if s, _, err := k.statements.Get(ctx, statementKey(a.ID, q.Period)); err == nil {
		p.Statement = s.Number
	}
	return p, nil
}

// showing is a book that a partner reads page by page: all of it as it was at the first.
type showing struct {
	agreement, period, next string
	lines                   []settlement.Line
	through                 time.Time
}

// goOn with what is being shown, if that is what is asked for.
func (b *book) goOn(q peer.LinesAsked) ([]settlement.Line, time.Time, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	s := b.showing
	return s.lines, s.through, q.After != "" && s.agreement == q.Agreement && s.period == q.Period && s.next == q.After
}

// show the rest with the next page.
func (b *book) show(q peer.LinesAsked, lines []settlement.Line, through time.Time, next string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.showing = (showing{}); next != "" {
		b.showing = showing{q.Agreement, q.Period, next, lines, through}
	}
}

// position after a line.
func position(l settlement.Line) string { return fmt.Sprintf("%s/%d", l.VEE, l.FromMS) }

func parsePosition(text string) (l settlement.Line, err error) {
	if text == "" {
		return l, nil
	}
	id, ms, _ := strings.Cut(text, "/")
	l.VEE = vee.ID(id)
	if l.FromMS, err = strconv.ParseInt(ms, 10, 64); err != nil {
		return l, fault.New(fault.Malformed, "after %q: want next of the page before", text)
	}
	return l, nil
}

// maxLines of a partner's book that are read.
const maxLines = 200_000

// theirs is the partner's book about an agreement in a month, checked.
func (k *Keeper) theirs(ctx context.Context, a peer.Agreement, period string, from, until time.Time) (lines []settlement.Line, first peer.Page, err error) {
	x, err := k.cfg.Partners.Partner(a.Other(k.cfg.Site))
	if err == nil {
		err = x.Down
	}
	if err == nil {
		err = x.Hello.Needs(peer.CanAccount)
	}
	if err != nil {
		return nil, first, err
	}
	q := peer.LinesAsked{Agreement: a.ID, Period: period}
	for {
		p, err := x.Site.Lines(ctx, q)
		if err != nil {
			return nil, first, err
		}
		if q.After == "" {
			first = p
		}
		lines = append(lines, p.Lines...)
		switch {
		case len(lines) > maxLines:
			return nil, first, fault.New(fault.TooLarge, "the book of site %s has more than %d lines for %s", x.Name, maxLines, period)
		case p.Next == "":
			if err := settlement.Check(lines, a.Borrower, from.UnixMilli(), until.UnixMilli()); err != nil {
				return nil, first, fault.New(fault.Malformed, "the book of site %s makes no sense: %w", x.Name, err)
			}
			return lines, first, nil
		case len(p.Lines) == 0:
			return nil, first, fault.New(fault.Malformed, "the book of site %s has an empty page, and goes on", x.Name)
		}
		q.After = p.Next
	}
}

// Asked for are settlements: of all partners and agreements where none is named, of this month
// where none is.
type Asked struct {
	Partner   string `query:"partner" doc:"of one partner"`
	Agreement string `query:"agreement" doc:"of one agreement"`
	Period    string `query:"period" doc:"a month, 2026-11; none: this one"`
}

// Settlements of a month. Errors: NotFound, Malformed.
func (k *Keeper) Settlements(ctx context.Context, q Asked) ([]Settlement, error) {
	q.Period = cmp.Or(q.Period, settlement.MonthOf(k.cfg.Now()))
	from, until, err := settlement.Month(q.Period)
	if err != nil {
		return nil, fault.New(fault.Malformed, "%w", err).Try("reservoir account settlement --period %s", settlement.MonthOf(k.cfg.Now()))
	}
	if q.Partner != "" {
		if _, err := k.cfg.Partners.Partner(q.Partner); err != nil && !slices.ContainsFunc(k.cfg.Agreements(), func(a peer.Agreement) bool { return a.Other(k.cfg.Site) == q.Partner }) {
			return nil, err
		}
	}
	all := []Settlement{}
	found := false
	for _, a := range k.cfg.Agreements() {
		if !a.Signed() || q.Partner != "" && a.Other(k.cfg.Site) != q.Partner || q.Agreement != "" && a.ID != q.Agreement {
			continue
		}
		found = true
		if q.Agreement == "" && !until.After(a.From) {
			continue
		}
		s, err := k.settle(ctx, a, q.Period, from, until)
		if err != nil {
			return nil, err
		}
		if over := !from.Before(a.Leave()); over && q.Agreement == "" && len(s.Bill.Charges) == 0 && len(s.Differences) == 0 {
			continue
		}
		all = append(all, s)
	}
	if !found && q.Agreement != "" {
		return nil, noAgreement(q.Agreement)
	}
	return all, nil
}

// settle a month under an agreement: our book, and what the partner's has against it. Nothing
// of ours is changed by what the partner says.
func (k *Keeper) settle(ctx context.Context, a peer.Agreement, period string, from, until time.Time) (Settlement, error) {
	s := Settlement{Agreement: a.ID, Partner: a.Other(k.cfg.Site), Lender: a.Lender, Borrower: a.Borrower, Period: period, Until: until, Differences: []settlement.Difference{}}
	k.fresh(ctx, a)
	ours, through, err := k.lines(ctx, a, from, until)
	if err != nil {
		return s, err
	}
	call, cancel := context.WithTimeout(ctx, k.cfg.Call)
	defer cancel()
	theirs, page, err := k.theirs(call, a, period, from, until)
	if err != nil {
		s.Why = fault.From(err).Message
	} else if known := time.UnixMilli(page.ThroughMS); known.Before(through) {
		through = known
	}
	if through.Before(s.Until) {
		s.Until = through.UTC()
	}
	if s.Until.Before(from) {
		s.Until = from
	}
	s.Complete = !s.Until.Before(until)
	ours = settlement.Clip(ours, s.Until.UnixMilli())
	if s.Bill, err = terms(a).Bill("", ours, from, s.Until); err != nil {
		return s, fault.New(fault.WrongState, "%w", err)
	}
	if s.Why == "" {
		theirs = settlement.Clip(theirs, s.Until.UnixMilli())
		bill, err := terms(a).Bill("", theirs, from, s.Until)
		if err != nil {
			return s, fault.New(fault.WrongState, "by the book of site %s: %w", s.Partner, err)
		}
		s.Theirs = &bill.Total
		s.Differences = append(s.Differences, settlement.Compare(ours, theirs)...)
		s.Agree = len(s.Differences) == 0
		if a.Lender == s.Partner {
			s.Statement = page.Statement
		}
		if n := len(s.Differences); n > maxDifferences {
			s.Differences, s.More = s.Differences[:maxDifferences], n-maxDifferences
		}
	}
	issued, there, err := k.statement(ctx, a.ID, period)
	if there {
		s.Statement, s.Bill = issued.Number, issued.Invoice
	}
	return s, err
}

func statementKey(agreement, period string) string { return agreement + "/" + period }

// statement that was issued, with its charges.
func (k *Keeper) statement(ctx context.Context, agreement, period string) (s Statement, there bool, err error) {
	key := statementKey(agreement, period)
	s, _, err = k.statements.Get(ctx, key)
	if fault.Has(err, fault.NotFound) {
		return s, false, nil
	}
	if err != nil {
		return s, false, err
	}
	parts, err := k.charges.Values(ctx, key+"/")
	for _, p := range parts {
		s.Invoice.Charges = append(s.Invoice.Charges, p...)
	}
	return s, err == nil, err
}

// perPart charges of a statement are kept in one object: the store bounds an object's size.
const perPart = 2000

// Order to issue a statement.
type Order struct {
	Agreement string `json:"agreement" maxLength:"100"`
	Period    string `json:"period" maxLength:"10" doc:"a month that is over: 2026-10"`
	Disputed  bool   `json:"disputed,omitempty" doc:"by our book, though the partner's differs or is not known"`
}

// Issue the bill of a month that is over to the borrower. What was issued once stays as it is,
// and is the answer to everybody who asks again. Errors: NotFound, Malformed, WrongState (we
// are not the lender, the month is not over or not known yet), Conflict (the books differ).
func (k *Keeper) Issue(ctx context.Context, o Order) (Settlement, error) {
	a, ok := k.agreement(o.Agreement)
	if !ok {
		return Settlement{}, noAgreement(o.Agreement)
	}
	from, until, err := settlement.Month(o.Period)
	if err != nil {
		return Settlement{}, fault.New(fault.Malformed, "%w", err)
	}
	if a.Lender != k.cfg.Site {
		return Settlement{}, fault.New(fault.WrongState, "under agreement %s site %s lends, and issues the statements", a.ID, a.Lender).Try("reservoir account settlement %s", a.Lender)
	}
	s, err := k.settle(ctx, a, o.Period, from, until)
	if err != nil || s.Statement != "" {
		return s, err
	}
	look := fmt.Sprintf("reservoir account settlement %s --period %s", s.Partner, o.Period)
	switch _, through, err := k.lines(ctx, a, from, until); {
	case err != nil:
		return s, err
	case through.Before(until):
		return s, fault.New(fault.WrongState, "%s is known until %s: a statement is issued when the month is over", o.Period, through.UTC().Format(time.RFC3339)).Try("%s", look)
	case !o.Disputed && s.Why != "":
		return s, fault.New(fault.Conflict, "the book of site %s is not known: %s", s.Partner, s.Why).Try("%s, or --disputed", look)
	case !o.Disputed && !s.Complete:
		return s, fault.New(fault.Conflict, "site %s knows its book until %s", s.Partner, s.Until.Format(time.RFC3339)).Try("%s, or --disputed", look)
	case !o.Disputed && !s.Agree:
		return s, fault.New(fault.Conflict, "the books of the two sites differ (%d times)", len(s.Differences)+s.More).Try("%s, or --disputed", look)
	}
	if err := k.issue(ctx, a, o.Period, from, until, !s.Agree); err != nil {
		return s, err
	}
	issued, _, err := k.statement(ctx, a.ID, o.Period)
	s.Statement, s.Bill = issued.Number, issued.Invoice
	return s, err
}

// issue writes the charges, and then the statement: its creation is the commit point. Before it
// nothing was issued, and whoever comes again writes the same charges; after it nothing more is.
func (k *Keeper) issue(ctx context.Context, a peer.Agreement, period string, from, until time.Time, disputed bool) error {
	k.issuing.Lock()
	defer k.issuing.Unlock()
	key := statementKey(a.ID, period)
	if _, _, err := k.statements.Get(ctx, key); !fault.Has(err, fault.NotFound) {
		return err
	}
	ours, _, err := k.lines(ctx, a, from, until)
	if err != nil {
		return err
	}
	st := Statement{Number: a.ID + "-" + period, Issued: k.cfg.Now().UTC(), Disputed: disputed}
	if st.Invoice, err = terms(a).Bill(st.Number, ours, from, until); err != nil {
		return fault.New(fault.WrongState, "%w", err)
	}
	n := 0
	for part := range slices.Chunk(st.Invoice.Charges, perPart) {
		if _, err := k.charges.Put(ctx, fmt.Sprintf("%s/%06d", key, n), part); err != nil {
			return fmt.Errorf("statement %s: write charges: %w", st.Number, err)
		}
		n++
	}
	st.Invoice.Charges = nil
	if _, err := k.statements.Create(ctx, key, st); err != nil && !fault.Has(err, fault.Exists) {
		return fmt.Errorf("statement %s: %w", st.Number, err)
	}
	k.cfg.Record(Event{Reason: "StatementIssued", Object: "agreement/" + a.ID,
		Message: fmt.Sprintf("statement %s for site %s: %s %s", st.Number, a.Borrower, st.Invoice.Total.Fixed(st.Invoice.Places), st.Invoice.Currency)})
	return nil
}
