package smi

import (
	"context"
	"net/http"
	"net/url"
	"time"

	"github.com/reservoir-cloud/reservoir/account/billing"
	"github.com/reservoir-cloud/reservoir/internal/httpapi"
)

type tradeClient struct{ c *httpapi.Client }

// NewTradeClient speaks over HTTP to who serves a Trade.
func NewTradeClient(c *httpapi.Client) Trade { return tradeClient{c} }

const v1 = "/smi/v1"

func (c tradeClient) get(ctx context.Context, path string, q url.Values, out any) error {
	return c.c.Call(ctx, http.MethodGet, v1+path, q, nil, out)
}

func (c tradeClient) Prices(ctx context.Context) (p Prices, err error) {
	err = c.get(ctx, "/prices", nil, &p)
	return p, err
}

func (c tradeClient) SetPrices(ctx context.Context, file string, version uint64) (p Prices, err error) {
	err = c.c.Call(ctx, http.MethodPut, v1+"/prices", nil, priceFile{file}, &p, "If-Match", httpapi.Match(version))
	return p, err
}

func (c tradeClient) Offer(ctx context.Context, d Deploy) (o Offer, err error) {
	err = c.c.Call(ctx, http.MethodPost, v1+"/offers", nil, d, &o)
	return o, err
}

func (c tradeClient) GetOffer(ctx context.Context, id string) (o Offer, err error) {
	err = c.get(ctx, "/offers/"+url.PathEscape(id), nil, &o)
	return o, err
}

func (c tradeClient) Offers(ctx context.Context, customer string) (list []Offer, err error) {
	err = c.get(ctx, "/offers", query("customer", customer), &list)
	return list, err
}

func (c tradeClient) Accept(ctx context.Context, id string) (s Service, err error) {
	err = c.c.Call(ctx, http.MethodPost, v1+"/offers/"+url.PathEscape(id)+"/accept", nil, nil, &s)
	return s, err
}

func (c tradeClient) SLA(ctx context.Context, customer, name string) (list []SLA, err error) {
	err = c.get(ctx, "/sla", query("customer", customer, "service", name), &list)
	return list, err
}

func (c tradeClient) Draft(ctx context.Context, customer string, until time.Time) (v billing.Invoice, err error) {
	q := query("customer", customer)
	if !until.IsZero() {
		q.Set("until", until.UTC().Format(time.RFC3339Nano))
	}
	err = c.get(ctx, "/draft", q, &v)
	return v, err
}

func (c tradeClient) Issue(ctx context.Context, customer string, until time.Time) (v billing.Invoice, err error) {
	err = c.c.Call(ctx, http.MethodPost, v1+"/invoices", nil, issue{customer, until}, &v)
	return v, err
}

func (c tradeClient) Invoices(ctx context.Context, customer string) (list []billing.Invoice, err error) {
	err = c.get(ctx, "/invoices", query("customer", customer), &list)
	return list, err
}

func (c tradeClient) Invoice(ctx context.Context, customer, number string) (v billing.Invoice, err error) {
	err = c.get(ctx, "/invoices/"+url.PathEscape(number), query("customer", customer), &v)
	return v, err
}

func (c tradeClient) Budgets(ctx context.Context, customer string) (list []Budget, err error) {
	err = c.get(ctx, "/budgets", query("customer", customer), &list)
	return list, err
}

func (c tradeClient) SetBudget(ctx context.Context, b Budget) (out Budget, err error) {
	err = c.c.Call(ctx, http.MethodPut, v1+"/budgets/"+url.PathEscape(b.Customer), nil, limit{b.Limit, b.Policy}, &out)
	return out, err
}

func (c tradeClient) DeleteBudget(ctx context.Context, customer string) error {
	return c.c.Call(ctx, http.MethodDelete, v1+"/budgets/"+url.PathEscape(customer), nil, nil, nil)
}
