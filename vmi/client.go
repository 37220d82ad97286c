package vmi

import (
	"context"
	"io"
	"net/http"
	"net/url"
	"strconv"

	"github.com/reservoir-cloud/reservoir/internal/httpapi"
	"github.com/reservoir-cloud/reservoir/vee"
	"github.com/reservoir-cloud/reservoir/vhi/guest"
)

type client struct{ c *httpapi.Client }

// NewClient speaks to the VEE Manager behind c.
func NewClient(c *httpapi.Client) Service { return client{c} }

func veePath(id vee.ID, sub string) string { return "/vmi/v1/vees/" + url.PathEscape(string(id)) + sub }

func hostPath(name, sub string) string { return "/vmi/v1/hosts/" + url.PathEscape(name) + sub }

func pointURL(group, name string) string {
	return "/vmi/v1/groups/" + url.PathEscape(group) + "/access-points/" + url.PathEscape(name)
}

func (f Filter) query() url.Values {
	q := url.Values{}
	for k, v := range map[string]string{"customer": f.Customer, "group": f.GroupID, "host": f.Host, "state": string(f.State), "continue": string(f.Continue)} {
		if v != "" {
			q.Set(k, v)
		}
	}
	if f.Destroyed {
		q.Set("destroyed", "true")
	}
	if f.Limit > 0 {
		q.Set("limit", strconv.Itoa(f.Limit))
	}
	return q
}

func (c client) InitializeVEEs(ctx context.Context, r Initialize) (out Initialized, err error) {
	err = c.c.Call(ctx, http.MethodPost, "/vmi/v1/vees", nil, r, &out, "Idempotency-Key", r.IdempotencyKey)
	return out, err
}

func (c client) Plan(ctx context.Context, r Initialize) (out []Placement, err error) {
	err = c.c.Call(ctx, http.MethodPost, "/vmi/v1/plan", nil, r, &out)
	return out, err
}

func (c client) SubmitVEEs(ctx context.Context, ids []vee.ID) (out []Outcome, err error) {
	err = c.c.Call(ctx, http.MethodPost, "/vmi/v1/submit", nil, idsBody{ids}, &out)
	return out, err
}

func (c client) UpdateState(ctx context.Context, r UpdateState) (out []Outcome, err error) {
	err = c.c.Call(ctx, http.MethodPost, "/vmi/v1/state", nil, r, &out, "Idempotency-Key", r.IdempotencyKey)
	return out, err
}

func (c client) GetVEE(ctx context.Context, id vee.ID) (out VEE, err error) {
	err = c.c.Call(ctx, http.MethodGet, veePath(id, ""), nil, nil, &out)
	return out, err
}

func (c client) ListVEEs(ctx context.Context, f Filter) (out []VEE, err error) {
	err = c.c.Call(ctx, http.MethodGet, "/vmi/v1/vees", f.query(), nil, &out)
	return out, err
}

func (c client) WatchVEEs(ctx context.Context, f Filter) (<-chan Change, error) {
	return httpapi.Stream[Change](ctx, c.c, "/vmi/v1/watch/vees", f.query())
}

func (c client) Console(ctx context.Context, id vee.ID) (io.ReadWriteCloser, error) {
	return c.c.Upgrade(ctx, veePath(id, "/console"))
}

func (c client) Tell(ctx context.Context, id vee.ID, cmd guest.Command) (out guest.Reply, err error) {
	err = c.c.Call(ctx, http.MethodPost, veePath(id, "/tell"), nil, cmd, &out)
	return out, err
}

func (c client) PutAccessPoint(ctx context.Context, a AccessPoint) (out AccessPoint, err error) {
	err = c.c.Call(ctx, http.MethodPut, pointURL(a.GroupID, a.Name), nil, a, &out)
	return out, err
}

func (c client) DeleteAccessPoint(ctx context.Context, groupID, name string) error {
	return c.c.Call(ctx, http.MethodDelete, pointURL(groupID, name), nil, nil, nil)
}

func (c client) ListAccessPoints(ctx context.Context, groupID string) (out []AccessPoint, err error) {
	q := url.Values{}
	if groupID != "" {
		q.Set("group", groupID)
	}
	err = c.c.Call(ctx, http.MethodGet, "/vmi/v1/access-points", q, nil, &out)
	return out, err
}

func (c client) ListHosts(ctx context.Context) (out []Host, err error) {
	err = c.c.Call(ctx, http.MethodGet, "/vmi/v1/hosts", nil, nil, &out)
	return out, err
}

func (c client) GetHost(ctx context.Context, name string) (out Host, err error) {
	err = c.c.Call(ctx, http.MethodGet, hostPath(name, ""), nil, nil, &out)
	return out, err
}

func (c client) SetHostState(ctx context.Context, name string, s HostState) (out Host, err error) {
	err = c.c.Call(ctx, http.MethodPut, hostPath(name, "/state"), nil, stateBody{s}, &out)
	return out, err
}

func (c client) RemoveHost(ctx context.Context, name string) error {
	return c.c.Call(ctx, http.MethodDelete, hostPath(name, ""), nil, nil, nil)
}
