package trade

import (
	"strings"
	"testing"
	"time"

	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/smi"
)

func contains(s, part string) bool { return strings.Contains(s, part) }

func TestPricesStayThatWereTold(t *testing.T) {
	m := open(t, nil)
	_, err := m.desk.Prices(acme)
	wants(t, "before any", err, fault.NotFound, "has no price list")
	_, err = m.desk.SetPrices(acme, prices, 0)
	wants(t, "by a provider", err, fault.Denied, "may not set prices")
	_, err = m.desk.SetPrices(operator, "currency: EUR\nlists: [{name: a, from: 2026-01-01, prices: {vcpu: -1}}]", 0)
	wants(t, "negative", err, fault.Malformed, "below nothing")
	m.price(t, prices)
	list := func(name, from, vcpu string) string {
		return "  - {name: \"" + name + "\", from: " + from + ", prices: {vcpu: " + vcpu + "}}\n"
	}
	for what, c := range map[string]struct {
		file string
		code fault.Code
		says string
	}{
		"another currency": {strings.Replace(prices, "EUR", "USD", 1), fault.WrongState, "another site's"},
		"a changed price":  {strings.Replace(prices, "60", "61", 1), fault.WrongState, "cannot be changed"},
		"a missing list":   {"currency: EUR\nlists:\n" + list("later", "2026-02-01", "1"), fault.WrongState, "and was not known until now"},
		"from the past":    {prices + list("b", "2026-02-01", "1"), fault.WrongState, "was not known until now"},
	} {
		_, err := m.desk.SetPrices(operator, c.file, 0)
		wants(t, what, err, c.code, c.says)
	}
	p, err := m.desk.SetPrices(operator, prices+list("next", "2026-04-01", "70"), 0)
	if err != nil || len(p.Tariff.Lists) != 2 {
		t.Fatalf("a later list: %+v, %v", p, err)
	}
	_, err = m.desk.SetPrices(operator, prices, p.Version-1)
	wants(t, "another version", err, fault.Conflict, "have version")
	if _, err := m.desk.SetPrices(operator, prices+list("next", "2026-05-01", "80"), p.Version); err != nil {
		t.Errorf("a list that is not in force yet may change: %v", err)
	}
	if _, err := m.desk.SetPrices(operator, "currency: EUR\nlists:\n"+list("before", "2020-01-01", "1")+strings.TrimPrefix(prices, "currency: EUR\nlists:\n"), 0); err != nil {
		t.Errorf("a list of before all others may be added: %v", err)
	}
}

const promise = "availability: {window: 1h, percentile: 99, penalty: 0.1 * price + 1 EUR}\n"

func TestOfferAndContract(t *testing.T) {
	m := open(t, nil)
	_, err := m.desk.Offer(acme, web(""))
	wants(t, "without prices", err, fault.WrongState, "has no price list")
	m.price(t, prices)
	o, err := m.desk.Offer(acme, web(promise+"restartTime: {within: 2m, penalty: 1 EUR}\noffer: {validity: 2h, maxPrice: 66 EUR/h, terms: [{key: support, value: mail}]}\n"))
	if err != nil {
		t.Fatal(err)
	}
	if o.Status != smi.Open || o.Customer != "acme" || o.Service != "shop" || o.Hour.Initial.String() != "66" || o.Hour.Most.String() != "198" || len(o.Promises) != 2 ||
		!o.Expires.Equal(begin.Add(2*time.Hour)) || len(o.Terms) != 1 || !strings.HasPrefix(o.ID, "alpha.o-") {
		t.Errorf("%+v", o)
	}
	svc, err := m.desk.Accept(acme, o.ID)
	if err != nil {
		t.Fatal(err)
	}
	again, err := m.desk.Accept(acme, o.ID)
	if err != nil || again.ID != svc.ID {
		t.Errorf("accepted again: %+v, %v", again, err)
	}
	if o, err = m.desk.GetOffer(acme, o.ID); err != nil || o.Status != smi.Accepted || !o.Accepted.Equal(begin) {
		t.Errorf("%+v, %v", o, err)
	}
	// The same words may be deployed again; others need another offer.
	same := web(promise + "restartTime: {within: 2m, penalty: 1 EUR}\ncontract: {offer: " + o.ID + "}\n")
	same.Replace = true
	if _, err := m.Deploy(acme, same); err != nil {
		t.Errorf("the same manifest: %v", err)
	}
	other := web("")
	other.Replace = true
	_, err = m.Deploy(acme, other)
	wants(t, "another manifest", err, fault.WrongState, "runs under contract "+o.ID+", which is about another manifest")

	m.at = begin.Add(30 * time.Minute)
	second, err := m.desk.Offer(acme, web(""))
	if err != nil {
		t.Fatal(err)
	}
	m.at = begin.Add(-time.Hour) // the clock is set back
	if again, err = m.desk.Accept(acme, second.ID); err != nil || again.ID != svc.ID || again.Revision != 4 {
		t.Errorf("the second offer: %+v, %v", again, err)
	}
	list, err := m.desk.Offers(acme, "")
	if err != nil || len(list) != 2 || list[0].Ended.IsZero() || !list[0].Ended.After(list[0].Accepted) || !list[1].Accepted.Equal(list[0].Ended) || !list[1].Ended.IsZero() {
		t.Errorf("contracts do not follow each other: %+v, %v", list, err)
	}
	if list, err = m.desk.Offers(rival, ""); err != nil || len(list) != 0 {
		t.Errorf("a rival's offers: %+v, %v", list, err)
	}
}

func TestOffersThatAreRefused(t *testing.T) {
	m := open(t, nil)
	m.price(t, prices)
	for what, c := range map[string]struct {
		more string
		code fault.Code
		says string
	}{
		"dear":            {"offer: {maxPrice: 65.99 EUR}\n", fault.WrongState, "costs 66.000000 EUR at this site, the manifest wants at most 65.99 EUR"},
		"other money":     {"offer: {maxPrice: 65 USD}\n", fault.Malformed, "prices are in EUR"},
		"no money":        {"offer: {maxPrice: NaN}\n", fault.Malformed, "want a number"},
		"other sites":     {"offer: {sites: [beta, gamma]}\n", fault.WrongState, "wants offers of beta, gamma, this is site alpha"},
		"formula":         {"availability: {window: 1h, percentile: 99, penalty: price price}\n", fault.Malformed, "penalty of availability"},
		"by zero":         {"availability: {window: 1h, percentile: 99, penalty: 1 / (1 - 1)}\n", fault.Malformed, "division by zero"},
		"short window":    {"availability: {window: 10s, percentile: 99}\n", fault.Malformed, "a window of a minute at least"},
		"protection":      {"availability: {window: 1h, percentile: 99, protection: prayer}\n", fault.Malformed, "want one of scaleUp, spare, migrate, restart"},
		"not a manifest":  {"components: 7\n", fault.Malformed, ""},
		"penalty in gold": {"restartTime: {within: 1m, penalty: 1 XAU}\n", fault.Malformed, "penalty of restart time"},
	} {
		_, err := m.desk.Offer(acme, web(c.more))
		wants(t, what, err, c.code, c.says)
	}
	ask := func() smi.Offer {
		t.Helper()
		o, err := m.desk.Offer(acme, web(promise))
		if err != nil {
			t.Fatal(err)
		}
		return o
	}
	accept := func(id string) error { _, err := m.desk.Accept(acme, id); return err }
	wants(t, "unknown", accept("alpha.o-aaaaaaaaaa"), fault.NotFound, "does not exist")
	wants(t, "no offer", accept("junk"), fault.NotFound, "want one such as alpha.o-")
	wants(t, "foreign", accept("beta.o-aaaaaaaaaa"), fault.Denied, "was made by site beta: this is site alpha")
	o := ask()
	_, err := m.desk.Accept(rival, o.ID)
	wants(t, "another's", err, fault.NotFound, "does not exist")
	changed := web("")
	changed.Offer = o.ID
	_, err = m.Deploy(acme, changed)
	wants(t, "changed", err, fault.WrongState, "is about another manifest: it was changed since")
	named := web(promise)
	named.Offer, named.Name = o.ID, "other"
	_, err = m.Deploy(acme, named)
	wants(t, "another service", err, fault.WrongState, "is about service shop of customer acme, not about other")
	two := web(promise + "contract: {offer: alpha.o-bbbbbbbbbb}\n")
	two.Offer = o.ID
	_, err = m.Deploy(acme, two)
	wants(t, "two offers", err, fault.Malformed, "the manifest is about alpha.o-bbbbbbbbbb")
	_, err = m.Deploy(acme, web(promise+"contract: {offer: "+o.ID+", site: beta}\n"))
	wants(t, "another site's contract", err, fault.Denied, "with site beta")
	m.at = m.at.Add(25 * time.Hour)
	wants(t, "expired", accept(o.ID), fault.WrongState, "was open until 2026-03-05T05:00:00Z")
	if o, err := m.desk.GetOffer(acme, o.ID); err != nil || o.Status != smi.Expired {
		t.Errorf("%+v, %v", o, err)
	}
	if len(m.services) != 0 {
		t.Errorf("deployed all the same: %+v", m.services)
	}
	// An offer binds, whatever the price lists say since.
	o = ask()
	m.price(t, prices+"  - {name: dear, from: 2026-03-05T07:00:00Z, prices: {vcpu: 1000}}\n")
	m.at = m.at.Add(3 * time.Hour)
	if err := accept(o.ID); err != nil {
		t.Error(err)
	}
	m.at = m.at.Add(40 * 24 * time.Hour)
	m.desk.forgetOffers(operator)
	if list, err := m.desk.Offers(acme, ""); err != nil || len(list) != 1 || list[0].ID != o.ID {
		t.Errorf("offers that are remembered: %+v, %v", list, err)
	}
}

func TestBudgets(t *testing.T) {
	m := open(t, nil)
	_, err := m.desk.SetBudget(operator, smi.Budget{Customer: "acme", Limit: amount("100")})
	wants(t, "without prices", err, fault.WrongState, "no price list")
	m.price(t, prices)
	for what, b := range map[string]smi.Budget{"negative": {Customer: "acme", Limit: amount("-1")}, "policy": {Customer: "acme", Policy: "hope"}, "nobody's": {Customer: "No"}} {
		if _, err := m.desk.SetBudget(operator, b); !fault.Has(err, fault.Malformed) {
			t.Errorf("%s: %v", what, err)
		}
	}
	_, err = m.desk.SetBudget(acme, smi.Budget{Customer: "acme", Limit: amount("1000000")})
	wants(t, "one's own", err, fault.Denied, "may not set budgets")
	b, err := m.desk.SetBudget(operator, smi.Budget{Customer: "acme", Limit: amount("100")})
	if err != nil || b.Policy != smi.Refuse || b.Spent.Sign() != 0 {
		t.Fatalf("%+v, %v", b, err)
	}
	if _, err := m.Deploy(acme, web("")); err != nil { // 66 an hour
		t.Fatal(err)
	}
	m.use(t, "alpha.s-1", "alpha.web1", begin, begin.Add(20*time.Minute), false)
	m.at = begin.Add(30 * time.Minute) // the account is ten minutes behind
	if list, err := m.desk.Budgets(acme, ""); err != nil || len(list) != 1 || list[0].Spent.String() != "33" || list[0].Hour.String() != "66" {
		t.Errorf("%+v, %v", list, err)
	}
	second := web("")
	second.Name = "second"
	_, err = m.Deploy(acme, second)
	wants(t, "over the budget", err, fault.QuotaExceeded, "budget of customer acme is 100.00 EUR in this month: 33.00 is spent, and an hour would cost 132.0000")
	_, err = m.Deploy(acme, smi.Deploy{Manifest: second.Manifest, Name: "shop", Replace: true})
	if err != nil {
		t.Errorf("what does not grow is refused: %v", err)
	}
	d := m.services["acme/shop"]
	wants(t, "more replicas", m.desk.AffordScale(acme, "acme", "web", vee1(), 1), fault.QuotaExceeded, "budget")
	if err := m.desk.AffordScale(rival, "rival", "web", vee1(), 100); err != nil {
		t.Errorf("who has no budget: %v", err)
	}
	if _, err := m.desk.SetBudget(operator, smi.Budget{Customer: "acme", Limit: amount("100"), Policy: smi.Warn}); err != nil {
		t.Fatal(err)
	}
	if err := m.desk.AffordScale(acme, "acme", "web", vee1(), 1); err != nil {
		t.Errorf("a budget that only warns: %v", err)
	}
	for i := range 3 {
		m.at = begin.Add(time.Duration(75+i*10) * time.Minute) // 82.5, 93.5, 104.5
		m.desk.watchBudgets(operator)
		m.desk.watchBudgets(operator)
	}
	var said []string
	for _, e := range m.events {
		said = append(said, e.Reason)
	}
	if got := strings.Join(said, " "); got != "BudgetNearlyUsedUp BudgetUsedUp" {
		t.Errorf("events %s", got)
	}
	d.Components[0].Desired = 3
	m.services["acme/shop"] = d
	if _, err := m.desk.SetBudget(operator, smi.Budget{Customer: "acme", Limit: amount("100"), Policy: smi.Shrink}); err != nil {
		t.Fatal(err)
	}
	m.desk.watchBudgets(operator)
	m.desk.watchBudgets(operator)
	if len(m.did) != 1 || m.did[0] != "scale web to 1" {
		t.Errorf("shrunk: %v", m.did)
	}
	m.at = time.Date(2026, 4, 1, 0, 0, 0, 0, time.UTC) // another month
	m.use(t, "alpha.s-1", "alpha.web1", begin.Add(20*time.Minute), begin.Add(time.Hour), true)
	if list, err := m.desk.Budgets(operator, ""); err != nil || list[0].Spent.Sign() != 0 || list[0].Hour.Sign() != 0 {
		t.Errorf("in another month: %+v, %v", list, err)
	}
	if err := m.desk.DeleteBudget(operator, "acme"); err != nil {
		t.Error(err)
	}
	wants(t, "again", m.desk.DeleteBudget(operator, "acme"), fault.NotFound, "has no budget")
}
