package focus

import (
	"bytes"
	"encoding/csv"
	"flag"
	"os"
	"slices"
	"strconv"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/reservoir-cloud/reservoir/account"
	"github.com/reservoir-cloud/reservoir/account/billing"
	"github.com/reservoir-cloud/reservoir/account/money"
	"github.com/reservoir-cloud/reservoir/vee"
)

var update = flag.Bool("update", false, "rewrite testdata/invoice.csv")

var tariff = billing.Tariff{Currency: "EUR", Places: 2, Lists: []billing.PriceList{{Name: "2026",
	From:   time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC),
	Prices: map[billing.Meter]money.Amount{billing.VCPUs: money.Of(2, 100), billing.Memory: money.Of(4, 1000), billing.Disk: money.Of(1, 10_000)}}}}

func invoice(t interface{ Fatal(...any) }, vcpus, mib, ms int64, credit money.Amount, vees int) billing.Invoice {
	from := time.Date(2026, 2, 3, 4, 5, 6, 789_000_000, time.UTC).UnixMilli()
	var list []billing.Account
	for n := range vees {
		list = append(list, billing.Account{Service: "shop", VEE: vee.ID("alpha.web" + strconv.Itoa(n)), Name: "web-" + strconv.Itoa(n+1), Intervals: account.Series{{
			FromMS: from, ToMS: from + ms, Used: account.Usage{ActiveMS: ms, VCPUMS: vcpus * ms, MemoryMiBMS: mib * ms, DiskMiBMS: 2048 * ms}}}})
	}
	v, _, err := tariff.Bill(billing.Head{Number: "2026-002", Site: "alpha", Customer: "acme",
		From: time.Date(2026, 2, 1, 0, 0, 0, 0, time.UTC), Until: time.Date(2026, 3, 1, 0, 0, 0, 0, time.UTC)},
		list, []billing.Credit{{Service: "shop", Reason: "not available, \"down\"", Due: credit}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func TestRows(t *testing.T) {
	var b bytes.Buffer
	if err := Write(&b, invoice(t, 2, 1500, 100_000_001, money.Of(1, 2), 2)); err != nil {
		t.Fatal(err)
	}
	if *update {
		if err := os.WriteFile("testdata/invoice.csv", b.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile("testdata/invoice.csv")
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(want, b.Bytes()) {
		t.Errorf("differs (go test -update rewrites it); now:\n%s", b.String())
	}
}

// The rows sum up to the invoice, and each has what FOCUS makes mandatory.
func TestRowsSumUpToTheInvoice(t *testing.T) {
	mandatory := []string{"BilledCost", "BillingAccountId", "BillingCurrency", "BillingPeriodEnd", "BillingPeriodStart", "ChargeCategory",
		"ChargePeriodEnd", "ChargePeriodStart", "ContractedCost", "EffectiveCost", "InvoiceIssuerName", "ListCost", "ProviderName", "PublisherName", "ServiceCategory", "ServiceName"}
	rapid.Check(t, func(t *rapid.T) {
		v := invoice(t, rapid.Int64Range(0, 64).Draw(t, "vcpus"), rapid.Int64Range(0, 1<<20).Draw(t, "mib"), rapid.Int64Range(1, 1e9).Draw(t, "ms"),
			money.Of(rapid.Int64Range(0, 1000).Draw(t, "credit"), 7), rapid.IntRange(0, 5).Draw(t, "vees"))
		var b bytes.Buffer
		if err := Write(&b, v); err != nil {
			t.Fatal(err)
		}
		lines, err := csv.NewReader(&b).ReadAll()
		if err != nil {
			t.Fatal(err)
		}
		var sum money.Amount
		for _, line := range lines[1:] {
			for _, c := range mandatory {
				if line[slices.Index(Columns, c)] == "" {
					t.Fatalf("%s is null in %v", c, line)
				}
			}
			a, err := money.Parse(line[0])
			if err != nil {
				t.Fatal(err)
			}
			sum = sum.Plus(a)
		}
		if sum.Compare(v.Total) != 0 {
			t.Fatalf("rows %s, invoice %s", sum, v.Total)
		}
	})
}

func TestNoFormulas(t *testing.T) {
	for in, want := range map[string]string{"=1+1": "'=1+1", "@x": "'@x", "+1": "'+1", "-0.5": "-0.5", "": "", "web": "web"} {
		if got := safe(in); got != want {
			t.Errorf("%q is written %q", in, got)
		}
	}
}
