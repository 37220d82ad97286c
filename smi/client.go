package smi

import (
	"context"
	"net/http"
	"net/url"
	"strconv"

	"github.com/reservoir-cloud/reservoir/internal/httpapi"
)

type client struct{ c *httpapi.Client }

// NewClient speaks to a Service Manager over HTTP.
func NewClient(c *httpapi.Client) Manager { return client{c} }

func serviceURL(name, sub string) string { return "/smi/v1/services/" + url.PathEscape(name) + sub }

// query makes parameters of name, value pairs, leaving out empty values.
func query(pairs ...string) url.Values {
	q := url.Values{}
	for i := 0; i+1 < len(pairs); i += 2 {
		if pairs[i+1] != "" {
			q.Set(pairs[i], pairs[i+1])
		}
	}
	return q
}

func (f EventFilter) query() url.Values {
	q := query("customer", f.Customer, "object", f.Object, "service", f.Service)
	if f.Before > 0 {
		q.Set("before", strconv.FormatUint(f.Before, 10))
	}
	if f.Since > 0 {
		q.Set("since", strconv.FormatUint(f.Since, 10))
	}
	if f.Limit > 0 {
		q.Set("limit", strconv.Itoa(f.Limit))
	}
	return q
}

func (c client) Plan(ctx context.Context, d Deploy) (p Plan, err error) {
	err = c.c.Call(ctx, http.MethodPost, "/smi/v1/plan", nil, d, &p)
	return p, err
}

func (c client) Deploy(ctx context.Context, d Deploy) (s Service, err error) {
	err = c.c.Call(ctx, http.MethodPost, "/smi/v1/services", nil, d, &s, "Idempotency-Key", d.IdempotencyKey)
	return s, err
}

func (c client) Scale(ctx context.Context, customer, name, component string, n int) (s Service, err error) {
	path := serviceURL(name, "/components/"+url.PathEscape(component)+"/replicas")
	err = c.c.Call(ctx, http.MethodPut, path, query("customer", customer), replicas{n}, &s)
	return s, err
}

func (c client) Get(ctx context.Context, customer, name string) (s Service, err error) {
	err = c.c.Call(ctx, http.MethodGet, serviceURL(name, ""), query("customer", customer), nil, &s)
	return s, err
}

func (c client) List(ctx context.Context, customer string) (list []Service, err error) {
	err = c.c.Call(ctx, http.MethodGet, "/smi/v1/services", query("customer", customer), nil, &list)
	return list, err
}

func (c client) Manifest(ctx context.Context, customer, name string) (string, error) {
	var t text
	err := c.c.Call(ctx, http.MethodGet, serviceURL(name, "/manifest"), query("customer", customer), nil, &t)
	return t.Manifest, err
}

func (c client) Usage(ctx context.Context, customer, name string) (u ServiceUsage, err error) {
	err = c.c.Call(ctx, http.MethodGet, serviceURL(name, "/usage"), query("customer", customer), nil, &u)
	return u, err
}

func (c client) Delete(ctx context.Context, customer, name string) error {
	return c.c.Call(ctx, http.MethodDelete, serviceURL(name, ""), query("customer", customer), nil, nil)
}

func (c client) Sleep(ctx context.Context, customer, name string) (s Service, err error) {
	err = c.c.Call(ctx, http.MethodPost, serviceURL(name, "/sleep"), query("customer", customer), nil, &s)
	return s, err
}

func (c client) Wake(ctx context.Context, customer, name string) (s Service, err error) {
	err = c.c.Call(ctx, http.MethodPost, serviceURL(name, "/wake"), query("customer", customer), nil, &s)
	return s, err
}

func (c client) Watch(ctx context.Context, customer, name string) (<-chan Service, error) {
	return httpapi.Stream[Service](ctx, c.c, "/smi/v1/watch/services", query("customer", customer, "name", name))
}

func (c client) Events(ctx context.Context, f EventFilter) (list []Event, err error) {
	err = c.c.Call(ctx, http.MethodGet, "/smi/v1/events", f.query(), nil, &list)
	return list, err
}

func (c client) WatchEvents(ctx context.Context, f EventFilter) (<-chan Event, error) {
	return httpapi.Stream[Event](ctx, c.c, "/smi/v1/watch/events", f.query())
}
