// Package focus writes invoices as rows of FOCUS, the FinOps Open Cost and Usage
// Specification, version 1.2 (https://focus.finops.org/focus-specification/v1-2/), as CSV: a
// row for what each VEE used of each meter at each price, one for each credit, and one for
// what rounding changed, so that the sum of BilledCost is the invoice's total, to the last
// place. A null is an empty field, as the specification says for CSV.
package focus

import (
	"encoding/csv"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/reservoir-cloud/reservoir/account/billing"
	"github.com/reservoir-cloud/reservoir/account/money"
)

// places of numbers that are no amount on an invoice.
const places = 10

// row is one column's value by its name; what is not in it is null.
type row map[string]string

// Columns in their order: those that FOCUS makes mandatory, and those that a site can tell.
var Columns = []string{
	"BilledCost", "BillingAccountId", "BillingAccountName", "BillingCurrency", "BillingPeriodEnd", "BillingPeriodStart",
	"ChargeCategory", "ChargeClass", "ChargeDescription", "ChargeFrequency", "ChargePeriodEnd", "ChargePeriodStart",
	"ConsumedQuantity", "ConsumedUnit", "ContractedCost", "ContractedUnitPrice", "EffectiveCost", "InvoiceId", "InvoiceIssuerName",
	"ListCost", "ListUnitPrice", "PricingCategory", "PricingQuantity", "PricingUnit", "ProviderName", "PublisherName",
	"RegionId", "RegionName", "ResourceId", "ResourceName", "ResourceType", "ServiceCategory", "ServiceName", "ServiceSubcategory",
	"SkuId", "SkuMeter", "SkuPriceId", "SubAccountId", "SubAccountName", "Tags",
}

// Write the rows of invoices, under one line of column names.
func Write(w io.Writer, invoices ...billing.Invoice) error {
	out := csv.NewWriter(w)
	lines := [][]string{Columns}
	for _, v := range invoices {
		for _, r := range rows(v) {
			line := make([]string, len(Columns))
			for i, c := range Columns {
				line[i] = safe(r[c])
			}
			lines = append(lines, line)
		}
	}
	if err := out.WriteAll(lines); err != nil {
		return fmt.Errorf("write FOCUS rows of %d invoices: %w", len(invoices), err)
	}
	return nil
}

// safe keeps a spreadsheet from taking a text for a formula. Numbers may begin with a minus.
func safe(s string) string {
	if strings.ContainsAny(s[:min(1, len(s))], "=+@\t\r") {
		return "'" + s
	}
	return s
}

func rows(v billing.Invoice) (all []row) {
	exact := make([]money.Amount, len(v.Charges))
	for i, c := range v.Charges {
		exact[i] = c.Cost
	}
	var sum money.Amount
	for i, cost := range money.Round(exact, places) {
		all = append(all, usage(v, v.Charges[i], cost))
		sum = sum.Plus(cost)
	}
	for _, c := range v.Credits {
		if c.Amount.Sign() != 0 {
			r := other(v, "Credit", c.Amount.Negative(), "Credit of the service level agreement: "+c.Reason)
			r["SubAccountId"], r["SubAccountName"] = c.Service, c.Service
			all = append(all, r)
		}
	}
	if change := v.Subtotal.Minus(sum); change.Sign() != 0 {
		all = append(all, other(v, "Adjustment", change, fmt.Sprintf("Rounding to %d decimal places on the invoice", v.Places)))
	}
	return all
}

// head of every row.
func head(v billing.Invoice, cost money.Amount, from, until time.Time) row {
	c := cost.Fixed(places)
	return row{
		"BilledCost": c, "EffectiveCost": c, "ListCost": c, "ContractedCost": c,
		"BillingAccountId": v.Customer, "BillingAccountName": v.Customer, "BillingCurrency": v.Currency,
		"BillingPeriodStart": stamp(v.From), "BillingPeriodEnd": stamp(v.Until),
		"ChargePeriodStart": stamp(from), "ChargePeriodEnd": stamp(until),
		"InvoiceId": v.Number, "InvoiceIssuerName": v.Site, "ProviderName": v.Site, "PublisherName": v.Site,
		"RegionId": v.Site, "RegionName": v.Site,
		"ServiceCategory": "Compute", "ServiceSubcategory": "Virtual Machines", "ServiceName": "Reservoir",
	}
}

// other charges than for usage.
func other(v billing.Invoice, category string, cost money.Amount, text string) row {
	r := head(v, cost, v.From, v.Until)
	r["ChargeCategory"], r["ChargeFrequency"], r["ChargeDescription"] = category, "One-Time", text
	return r
}

func usage(v billing.Invoice, c billing.Charge, cost money.Amount) row {
	until := time.UnixMilli(c.ToMS + 999) // periods are whole seconds
	r := head(v, cost, time.UnixMilli(c.FromMS), until)
	r["ChargeCategory"], r["ChargeFrequency"] = "Usage", "Usage-Based"
	r["ChargeDescription"] = fmt.Sprintf("%s of VEE %s, %s %s per %s", c.Meter, c.Name, c.Price, v.Currency, strings.TrimSuffix(c.Meter.Unit(), "s"))
	quantity := c.Meter.Quantity(c.Raw).Fixed(places)
	r["ConsumedQuantity"], r["ConsumedUnit"] = quantity, c.Meter.Unit()
	r["PricingQuantity"], r["PricingUnit"], r["PricingCategory"] = quantity, c.Meter.Unit(), "Standard"
	r["ListUnitPrice"], r["ContractedUnitPrice"] = c.Price.String(), c.Price.String()
	r["ResourceId"], r["ResourceName"], r["ResourceType"] = string(c.VEE), c.Name, "VEE"
	r["SkuId"], r["SkuMeter"], r["SkuPriceId"] = string(c.Meter), string(c.Meter), c.List+"/"+string(c.Meter)
	r["SubAccountId"], r["SubAccountName"] = c.Service, c.Service
	if c.Meter == billing.Disk {
		r["ServiceCategory"], r["ServiceSubcategory"] = "Storage", "Block Storage"
	}
	tags, err := json.Marshal(map[string]string{"reservoir.service": c.Service})
	if err == nil {
		r["Tags"] = string(tags)
	}
	return r
}

func stamp(t time.Time) string { return t.UTC().Format("2006-01-02T15:04:05Z") }
