package trade

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"math"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/reservoir-cloud/reservoir/account"
	"github.com/reservoir-cloud/reservoir/account/money"
	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/internal/identity"
	"github.com/reservoir-cloud/reservoir/internal/store"
	"github.com/reservoir-cloud/reservoir/manifest"
	"github.com/reservoir-cloud/reservoir/smi"
	"github.com/reservoir-cloud/reservoir/vee"
)

// shop is a site's Service Manager in memory, over a desk that it asks before it deploys.
type shop struct {
	desk *Desk

	mu       sync.Mutex
	services map[string]smi.Service // by CUSTOMER/NAME
	texts    map[string]string
	ids      int
	kpi      float64
	did      []string // what was done to protect promises
	watcher  chan smi.Service
}

func (s *shop) Quote(ctx context.Context, d smi.Deploy) (Quote, error) {
	m, err := manifest.Parse("test.yaml", []byte(d.Manifest))
	if err != nil {
		return Quote{}, fault.New(fault.Malformed, "%w", err)
	}
	q := Quote{Customer: d.Customer, Service: d.Name, Manifest: m, Sizes: map[string]vee.Descriptor{}}
	if q.Customer == "" {
		q.Customer = identity.From(ctx).Customer
	}
	if q.Service == "" {
		q.Service = m.Name
	}
	for i := range m.Components {
		q.Sizes[m.Components[i].Name] = m.Descriptor(&m.Components[i], 0, manifest.Owner{})
	}
	return q, nil
}

func (s *shop) Deploy(ctx context.Context, d smi.Deploy) (smi.Service, error) {
	q, err := s.Quote(ctx, d)
	if err != nil {
		return smi.Service{}, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	key := q.Customer + "/" + q.Service
	old, exists := s.services[key]
	if exists && !d.Replace {
		return old, fault.New(fault.Exists, "service %s exists", key)
	}
	svc := old
	if !exists {
		s.ids++
		svc = smi.Service{Customer: q.Customer, Name: q.Service, ID: fmt.Sprintf("alpha.s-%d", s.ids)}
	}
	a := Admission{Deploy: d, ServiceID: svc.ID, Exists: exists, Quote: q, Desired: map[string]int{}, Running: map[string]int{}}
	svc.Components = nil
	for _, c := range q.Manifest.Components {
		a.Desired[c.Name] = c.Replicas.Initial
		sc := smi.Component{Name: c.Name, Min: c.Replicas.Min, Max: c.Replicas.Max, Desired: c.Replicas.Initial, Ready: c.Replicas.Initial}
		for n := range sc.Desired {
			sc.Replicas = append(sc.Replicas, smi.Replica{Number: n + 1, VEE: vee.ID(fmt.Sprintf("alpha.%s%d", c.Name, n+1)), Ready: true})
		}
		svc.Components = append(svc.Components, sc)
	}
	for _, c := range old.Components {
		a.Running[c.Name] = c.Desired
	}
	ops, err := s.desk.Admit(ctx, a)
	if err != nil {
		return smi.Service{}, err
	}
	if len(ops) > 0 {
		if _, err := s.desk.cfg.Store.Txn(ctx, ops...); err != nil {
			return smi.Service{}, err
		}
	}
	svc.Revision++
	svc.Phase = smi.Ready
	s.services[key], s.texts[key] = svc, d.Manifest
	return svc, nil
}

func (s *shop) Scale(_ context.Context, customer, name, component string, n int) (smi.Service, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	svc := s.services[customer+"/"+name]
	svc.Components = slices.Clone(svc.Components)
	for i := range svc.Components {
		if svc.Components[i].Name == component {
			svc.Components[i].Desired = n
		}
	}
	s.services[customer+"/"+name] = svc
	s.did = append(s.did, fmt.Sprintf("scale %s to %d", component, n))
	return svc, nil
}

func (s *shop) List(_ context.Context, customer string) (list []smi.Service, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, svc := range s.services {
		if customer == "" || svc.Customer == customer {
			list = append(list, svc)
		}
	}
	return list, nil
}

func (s *shop) Manifest(_ context.Context, customer, name string) (string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	text, ok := s.texts[customer+"/"+name]
	if !ok {
		return "", fault.New(fault.NotFound, "service %s", name)
	}
	return text, nil
}

func (s *shop) Watch(context.Context, string, string) (<-chan smi.Service, error) {
	return s.watcher, nil
}

func (s *shop) KPI(context.Context, smi.Service, manifest.KPI) float64 { return s.kpi }

func (s *shop) Restart(_ context.Context, id vee.ID) error {
	s.did = append(s.did, "restart "+string(id))
	return nil
}

func (s *shop) Move(_ context.Context, id vee.ID) error {
	s.did = append(s.did, "move "+string(id))
	return fault.New(fault.NoResources, "no other host")
}

// market is a desk on a store in memory, with a clock that stands until it is set.
type market struct {
	*shop
	store  *store.Store
	at     time.Time
	events []smi.Event
	every  time.Duration
}

var begin = time.Date(2026, 3, 4, 5, 0, 0, 0, time.UTC)

// testing is what tests and properties have in common.
type reporter interface {
	Helper()
	Fatal(...any)
	Fatalf(string, ...any)
}

func open(t reporter, fail func(bool) error) *market {
	t.Helper()
	m := &market{store: store.InMemory(slog.New(slog.DiscardHandler), fail), at: begin, every: 5 * time.Second,
		shop: &shop{services: map[string]smi.Service{}, texts: map[string]string{}, kpi: math.NaN(), watcher: make(chan smi.Service)}}
	m.restart()
	return m
}

// restart the process: all that a desk remembers is gone.
func (m *market) restart() {
	m.desk = New(Config{Site: "alpha", Store: m.store, Services: m.shop, Record: func(e smi.Event) { m.events = append(m.events, e) }, Every: m.every,
		Now: func() time.Time { return m.at }, Log: slog.New(slog.NewTextHandler(io.Discard, nil))})
}

func as(ctx context.Context, role identity.Role, customer string) context.Context {
	return identity.With(ctx, identity.Caller{ID: "test", Role: role, Customer: customer})
}

var (
	operator = as(context.Background(), identity.Operator, "")
	acme     = as(context.Background(), identity.Provider, "acme")
	rival    = as(context.Background(), identity.Provider, "rival")
)

const prices = `currency: EUR
lists:
  - name: "2026"
    from: 2026-01-01
    prices: {vee: 6, vcpu: 60}
`

func (m *market) price(t reporter, file string) {
	t.Helper()
	if _, err := m.desk.SetPrices(operator, file, 0); err != nil {
		t.Fatal(err)
	}
}

// web is a manifest with one component, and more lines.
func web(more string) smi.Deploy {
	return smi.Deploy{Manifest: "service: shop\ncomponents:\n  - {name: web, image: web, memory: 128MiB, replicas: {initial: 1, min: 1, max: 3}}\n" + more, File: "shop.yaml"}
}

// use tells that a VEE of a service ran from one moment to another.
func (m *market) use(t reporter, service, id string, from, to time.Time, ended bool) {
	t.Helper()
	if err := m.told(service, id, run(from, to, 1), ended); err != nil {
		t.Fatal(err)
	}
}

// told adds to an account as the accounting listener does: the error is that of a write.
func (m *market) told(service, id string, i account.Interval, ended bool) error {
	ctx := context.Background()
	key := "acme/" + service + "/" + id
	_, _, err := m.desk.accounts.Modify(ctx, key, func(a *Account) error {
		a.Add(i)
		a.Ended = a.Ended || ended
		return nil
	})
	if fault.Has(err, fault.NotFound) {
		a := Account{Customer: "acme", Service: "shop", ServiceID: service, VEE: vee.ID(id), Name: id, Ended: ended}
		a.Add(i)
		_, err = m.desk.accounts.Create(ctx, key, a)
	}
	return err
}

func run(from, to time.Time, vcpus int64) account.Interval {
	ms := to.Sub(from).Milliseconds()
	return account.Interval{FromMS: from.UnixMilli(), ToMS: to.UnixMilli(), Used: account.Usage{ActiveMS: ms, VCPUMS: vcpus * ms}}
}

func amount(s string) money.Amount {
	a, err := money.Parse(s)
	if err != nil {
		panic(err)
	}
	return a
}

func wants(t *testing.T, what string, err error, code fault.Code, says string) {
	t.Helper()
	if !fault.Has(err, code) || !contains(err.Error(), says) {
		t.Errorf("%s: %v, want %s with %q", what, err, code, says)
	}
}
