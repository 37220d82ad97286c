package cli

import (
	"context"
	"time"

	"github.com/reservoir-cloud/reservoir/account"
	"github.com/reservoir-cloud/reservoir/account/billing"
	"github.com/reservoir-cloud/reservoir/account/money"
	"github.com/reservoir-cloud/reservoir/account/settlement"
	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/vee"
	"github.com/reservoir-cloud/reservoir/veem/federation/books"
)

// Settlements of the fake: beta lends under an agreement, and agrees; gamma borrows, and its
// book differs or, in another month, is not seen.
func (f fakeFederation) Settlements(_ context.Context, q books.Asked) ([]books.Settlement, error) {
	from, until, err := settlement.Month(q.Period)
	if q.Period == "" {
		from, until, err = settlement.Month("2030-05")
	}
	if err != nil {
		return nil, fault.New(fault.Malformed, "%w", err)
	}
	price, _ := money.Parse("0.02")
	settled := func(agreement, lender, borrower, partner string, hours int64) books.Settlement {
		terms := settlement.Terms{Agreement: agreement, Lender: lender, Borrower: borrower, Currency: "EUR", Places: 2, Prices: map[billing.Meter]money.Amount{billing.VCPUs: price}}
		ms := hours * 3_600_000
		line := settlement.Line{VEE: vee.ID(borrower + ".aaaaaaaaaa"), Name: "web-1", Interval: account.Interval{FromMS: from.UnixMilli(), ToMS: from.UnixMilli() + ms, Used: account.Usage{ActiveMS: ms, VCPUMS: 2 * ms}}}
		bill, err := terms.Bill("", []settlement.Line{line}, from, until)
		if err != nil {
			panic(err)
		}
		return books.Settlement{Agreement: agreement, Partner: partner, Lender: lender, Borrower: borrower, Period: settlement.MonthOf(from), Until: until, Complete: true,
			Bill: bill, Theirs: &bill.Total, Agree: true, Differences: []settlement.Difference{}}
	}
	list := []books.Settlement{settled("beta.k3v9q2m7xd", "beta", "alpha", "beta", 100), settled("alpha.g3v9q2m7xd", "alpha", "gamma", "gamma", 50)}
	list[0].Statement = "beta.k3v9q2m7xd-" + list[0].Period
	less, _ := money.Parse("1.96")
	at := from.Add(7 * time.Hour).UnixMilli()
	if g := &list[1]; q.Period == "2030-04" {
		g.Theirs, g.Agree, g.Why = nil, false, "site gamma does not answer: connection refused"
	} else {
		g.Theirs, g.Agree = &less, false
		g.Differences = []settlement.Difference{{VEE: "gamma.aaaaaaaaaa", Name: "web-1", FromMS: at, ToMS: at + 3_600_001, Meter: billing.VCPUs, Ours: 7_200_002, Theirs: 0}}
	}
	switch q.Partner {
	case "":
		return list, nil
	case "beta":
		return list[:1], nil
	case "gamma":
		return list[1:], nil
	}
	return nil, notThere("partner", q.Partner)
}

func (f fakeFederation) Settle(ctx context.Context, o books.Order) (books.Settlement, error) {
	list, err := f.Settlements(ctx, books.Asked{Partner: "gamma", Period: o.Period})
	if err != nil {
		return books.Settlement{}, err
	}
	s := list[0]
	if !o.Disputed {
		return s, fault.New(fault.Conflict, "the books of the two sites differ (1 times)").Try("reservoir account settlement gamma --period %s, or --disputed", o.Period)
	}
	s.Statement = o.Agreement + "-" + o.Period
	s.Bill.Number = s.Statement
	return s, nil
}
