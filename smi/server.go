package smi

import (
	"cmp"
	"context"
	"slices"
	"strings"

	"github.com/reservoir-cloud/reservoir/internal/httpapi"
	"github.com/reservoir-cloud/reservoir/internal/identity"
)

// The roles that may read and those that may change. A provider reaches its own customer's
// services only, which the Manager sees to.
var (
	readers = []identity.Role{identity.Operator, identity.Provider, identity.Auditor, identity.SiteRole}
	writers = []identity.Role{identity.Operator, identity.Provider, identity.SiteRole}
)

// named is a service in a request: its customer is a query parameter, since it is the
// caller's own in almost every call.
type named struct {
	Name     string `path:"name" maxLength:"32"`
	Customer string `query:"customer" doc:"empty: the caller's own"`
}

// replicas is the body of a scaling.
type replicas struct {
	Replicas int `json:"replicas" minimum:"0" maximum:"1000"`
}

// text is the body that carries a manifest.
type text struct {
	Manifest string `json:"manifest"`
}

// Register serves m on s.
func Register(s *httpapi.Server, m Manager) {
	registerServices(s, m)
	registerWatches(s, m)
	httpapi.Register(s, httpapi.Op{Method: "GET", Path: "/smi/v1/events", Summary: "What happened, oldest first", Roles: readers},
		func(ctx context.Context, in *EventFilter) ([]Event, error) {
			list, err := m.Events(ctx, *in)
			return orEmpty(list), err
		})
}

func registerServices(s *httpapi.Server, m Manager) {
	httpapi.Register(s, httpapi.Op{Method: "POST", Path: "/smi/v1/plan", Summary: "What a deployment would do; changes nothing", Roles: writers},
		func(ctx context.Context, in *struct{ Body Deploy }) (Plan, error) { return m.Plan(ctx, in.Body) })
	httpapi.Register(s, httpapi.Op{Method: "POST", Path: "/smi/v1/services", Summary: "Deploy a manifest, or redeploy it with replace", Roles: writers, Status: 202},
		func(ctx context.Context, in *struct{ Body Deploy }) (Service, error) {
			in.Body.IdempotencyKey = httpapi.Key(ctx)
			out, err := m.Deploy(ctx, in.Body)
			if name := cmp.Or(out.Name, in.Body.Name); name != "" {
				httpapi.Concerns(ctx, "service/"+name)
			}
			return out, err
		})
	httpapi.Register(s, httpapi.Op{Method: "GET", Path: "/smi/v1/services", Summary: "The services of a customer", Roles: readers},
		func(ctx context.Context, in *struct {
			Customer string `query:"customer" doc:"empty: the caller's own, or all for who may see all"`
			Limit    int    `query:"limit" minimum:"0" doc:"at most so many; 0: all"`
			Continue string `query:"continue" doc:"CUSTOMER/NAME of the last service of the page before"`
		}) ([]Service, error) {
			list, err := m.List(ctx, in.Customer)
			return orEmpty(pageOf(list, in.Continue, in.Limit)), err
		})
	httpapi.Register(s, httpapi.Op{Method: "GET", Path: "/smi/v1/services/{name}", Summary: "One service, desired and observed", Roles: readers},
		func(ctx context.Context, in *named) (Service, error) { return m.Get(ctx, in.Customer, in.Name) })
	httpapi.Register(s, httpapi.Op{Method: "GET", Path: "/smi/v1/services/{name}/manifest", Summary: "The manifest as it was handed in", Roles: readers},
		func(ctx context.Context, in *named) (text, error) {
			t, err := m.Manifest(ctx, in.Customer, in.Name)
			return text{t}, err
		})
	httpapi.Register(s, httpapi.Op{Method: "GET", Path: "/smi/v1/services/{name}/usage", Summary: "What the VEEs of a service have used", Roles: readers},
		func(ctx context.Context, in *named) (ServiceUsage, error) { return m.Usage(ctx, in.Customer, in.Name) })
	httpapi.Register(s, httpapi.Op{Method: "PUT", Path: "/smi/v1/services/{name}/components/{component}/replicas", Summary: "Scale a component", Roles: writers, Status: 202},
		func(ctx context.Context, in *struct {
			Name      string `path:"name" maxLength:"32"`
			Customer  string `query:"customer" doc:"empty: the caller's own"`
			Component string `path:"component" maxLength:"32"`
			Body      replicas
		}) (Service, error) {
			return m.Scale(ctx, in.Customer, in.Name, in.Component, in.Body.Replicas)
		})
	for verb, do := range map[string]func(context.Context, string, string) (Service, error){"sleep": m.Sleep, "wake": m.Wake} {
		httpapi.Register(s, httpapi.Op{Method: "POST", Path: "/smi/v1/services/{name}/" + verb, Summary: "All VEEs of a service together: " + verb, Roles: writers, Status: 202},
			func(ctx context.Context, in *named) (Service, error) { return do(ctx, in.Customer, in.Name) })
	}
	httpapi.RegisterNoBody(s, httpapi.Op{Method: "DELETE", Path: "/smi/v1/services/{name}", Summary: "Delete a service; answered when that is recorded, done soon after", Roles: writers, Status: 202},
		func(ctx context.Context, in *named) error { return m.Delete(ctx, in.Customer, in.Name) })
}

func registerWatches(s *httpapi.Server, m Manager) {
	httpapi.RegisterStream(s, httpapi.Op{Method: "GET", Path: "/smi/v1/watch/services", Summary: "Services as they are, then each change", Roles: readers},
		func(ctx context.Context, in *struct {
			Name     string `query:"name" doc:"empty: every service of the customer"`
			Customer string `query:"customer" doc:"empty: the caller's own"`
		}) (<-chan Service, error) {
			return m.Watch(ctx, in.Customer, in.Name)
		})
	httpapi.RegisterStream(s, httpapi.Op{Method: "GET", Path: "/smi/v1/watch/events", Summary: "Events as a list gives them, then each new one", Roles: readers},
		func(ctx context.Context, in *EventFilter) (<-chan Event, error) { return m.WatchEvents(ctx, *in) })
}

// pageOf a list of services, in the order of customers and names: at most limit (0: all)
// after the service CUSTOMER/NAME, whether that is still there or not.
func pageOf(list []Service, after string, limit int) []Service {
	key := func(s Service) string { return s.Customer + "/" + s.Name }
	slices.SortFunc(list, func(a, b Service) int { return strings.Compare(key(a), key(b)) })
	if after != "" {
		i, found := slices.BinarySearchFunc(list, after, func(s Service, after string) int { return strings.Compare(key(s), after) })
		if found {
			i++
		}
		list = list[i:]
	}
	if limit > 0 && len(list) > limit {
		list = list[:limit]
	}
	return list
}

// orEmpty makes [] of a nil list, which JSON would call null.
func orEmpty[T any](list []T) []T {
	if list == nil {
		return []T{}
	}
	return list
}
