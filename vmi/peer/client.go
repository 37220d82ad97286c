package peer

import (
	"context"
	"net/http"
	"net/url"
	"strings"

	"github.com/reservoir-cloud/reservoir/internal/httpapi"
	"github.com/reservoir-cloud/reservoir/vee"
	"github.com/reservoir-cloud/reservoir/vmi"
)

type client struct{ c *httpapi.Client }

// NewClient speaks to a partner.
func NewClient(c *httpapi.Client) Site { return client{c} }

// NewHostClient speaks to a site that is to become one.
func NewHostClient(c *httpapi.Client) Host { return client{c} }

func (c client) Accept(ctx context.Context, a Acceptance) (out Introduction, err error) {
	err = c.c.Call(ctx, http.MethodPost, AcceptPath, nil, a, &out)
	return out, err
}

func (c client) Hello(ctx context.Context, h Hello) (out Hello, err error) {
	err = c.c.Call(ctx, http.MethodPost, base+"/hello", nil, h, &out)
	return out, err
}

func (c client) Bundle(ctx context.Context) (out Bundle, err error) {
	err = c.c.Call(ctx, http.MethodGet, base+"/bundle", nil, nil, &out)
	return out, err
}

func (c client) Leave(ctx context.Context) error {
	return c.c.Call(ctx, http.MethodPost, base+"/leave", nil, nil, nil)
}

func one(kind, id string) string { return base + "/" + kind + "/" + url.PathEscape(id) }

func (c client) PutAgreement(ctx context.Context, a Agreement) (out Agreement, err error) {
	err = c.c.Call(ctx, http.MethodPut, one("agreements", a.ID), nil, a, &out)
	return out, err
}

func (c client) EndAgreement(ctx context.Context, e End) (out Agreement, err error) {
	err = c.c.Call(ctx, http.MethodPost, one("agreements", e.Agreement)+"/end", nil, e, &out)
	return out, err
}

func (c client) Attributes(ctx context.Context) (out Attributes, err error) {
	err = c.c.Call(ctx, http.MethodGet, base+"/attributes", nil, nil, &out)
	return out, err
}

func (c client) WatchAttributes(ctx context.Context) (<-chan Attributes, error) {
	return httpapi.Stream[Attributes](ctx, c.c, base+"/attributes/watch", nil)
}

func (c client) PutNetwork(ctx context.Context, n Network) error {
	return c.c.Call(ctx, http.MethodPut, one("networks", n.ID), nil, n, nil)
}

func (c client) RemoveNetwork(ctx context.Context, id string) error {
	return c.c.Call(ctx, http.MethodDelete, one("networks", id), nil, nil, nil)
}

func (c client) PutMove(ctx context.Context, o MoveOrder) (out vmi.VEE, err error) {
	err = c.c.Call(ctx, http.MethodPut, one("moves", string(o.VEE)), nil, o, &out)
	return out, err
}

func (c client) HeldNetworks(ctx context.Context) (out map[string]uint64, err error) {
	err = c.c.Call(ctx, http.MethodGet, base+"/networks", nil, nil, &out)
	return out, err
}

func (c client) Lines(ctx context.Context, q LinesAsked) (out Page, err error) {
	v := url.Values{"period": {q.Period}}
	if q.After != "" {
		v.Set("after", q.After)
	}
	err = c.c.Call(ctx, http.MethodGet, one("books", q.Agreement), v, nil, &out)
	return out, err
}

func (c client) Measurements(ctx context.Context, ids []vee.ID) (<-chan vmi.MonitoringEvent, error) {
	q := url.Values{}
	if len(ids) > 0 {
		text := make([]string, len(ids))
		for i, id := range ids {
			text[i] = string(id)
		}
		q.Set("vees", strings.Join(text, ","))
	}
	return httpapi.Stream[vmi.MonitoringEvent](ctx, c.c, base+"/measurements", q)
}
