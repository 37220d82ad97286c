package admin

import (
	"context"
	"net/http"
	"net/url"

	"github.com/reservoir-cloud/reservoir/internal/httpapi"
	"github.com/reservoir-cloud/reservoir/internal/identity"
	"github.com/reservoir-cloud/reservoir/veem/federation/books"
)

// Settlements are what the site owes its partners and is owed by them.
type Settlements interface {
	// Settlements of a month, by agreement. Errors: NotFound, Malformed.
	Settlements(ctx context.Context, q books.Asked) ([]books.Settlement, error)
	// Settle issues the statement of a month that is over, once. Errors: NotFound, Malformed,
	// WrongState, Conflict (the books differ).
	Settle(ctx context.Context, o books.Order) (books.Settlement, error)
}

const settlementsPath = prefix + "/settlements"

// RegisterSettlements serves s to the site's operators.
func RegisterSettlements(s *httpapi.Server, svc Settlements) {
	httpapi.Register(s, httpapi.Op{Method: http.MethodGet, Path: settlementsPath, Summary: "What is owed to partners and by them in a month, and whether their books agree", Roles: []identity.Role{identity.Operator, identity.Auditor}},
		func(ctx context.Context, in *books.Asked) ([]books.Settlement, error) {
			return svc.Settlements(ctx, *in)
		})
	httpapi.Register(s, httpapi.Op{Method: http.MethodPost, Path: settlementsPath, Summary: "Issue the statement of a month that is over to a partner", Roles: []identity.Role{identity.Operator}},
		func(ctx context.Context, in *struct{ Body books.Order }) (books.Settlement, error) {
			httpapi.Concerns(ctx, "agreement/"+in.Body.Agreement)
			return svc.Settle(ctx, in.Body)
		})
}

// SettlementClient implements Settlements over HTTP.
type SettlementClient struct{ c *httpapi.Client }

// NewSettlementClient speaks to the site that c calls.
func NewSettlementClient(c *httpapi.Client) *SettlementClient { return &SettlementClient{c} }

var _ Settlements = (*SettlementClient)(nil)

// Settlements implements Settlements.
func (c *SettlementClient) Settlements(ctx context.Context, q books.Asked) (out []books.Settlement, err error) {
	v := url.Values{}
	for name, text := range map[string]string{"partner": q.Partner, "agreement": q.Agreement, "period": q.Period} {
		if text != "" {
			v.Set(name, text)
		}
	}
	err = c.c.Call(ctx, http.MethodGet, settlementsPath, v, nil, &out)
	return out, err
}

// Settle implements Settlements.
func (c *SettlementClient) Settle(ctx context.Context, o books.Order) (books.Settlement, error) {
	return ask[books.Settlement](ctx, c.c, http.MethodPost, settlementsPath, o)
}
