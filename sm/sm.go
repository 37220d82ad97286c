// Package sm is the Service Manager: it takes manifests, and keeps services as their
// providers want them with nothing but the VMI. What to do next is decided in sm/deploy;
// here are the records in the store, the watches, one worker for each service, and the
// smi.Manager that providers speak to.
//
// A change of goal (Deploy, Scale, Delete) only writes the record. The service's worker
// sees that, as it sees each change of a VEE, and closes the difference; so what was begun
// goes on after a restart, from the record and from what the VMI says there is.
package sm

import (
	"context"
	"io"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/reservoir-cloud/reservoir/internal/identity"
	"github.com/reservoir-cloud/reservoir/internal/store"
	"github.com/reservoir-cloud/reservoir/monitor"
	"github.com/reservoir-cloud/reservoir/sm/trade"
	"github.com/reservoir-cloud/reservoir/smi"
	"github.com/reservoir-cloud/reservoir/vee"
	"github.com/reservoir-cloud/reservoir/vmi"
)

// Resolver finds an image in the site's registry. Errors: fault.NotFound.
type Resolver interface {
	// Resolve returns the digest of the image's manifest, "sha256:…", and how large its
	// disk is for the guest; 0 where it has none.
	Resolve(ctx context.Context, reference string) (digest string, virtualSize vee.Bytes, err error)
}

// EventLog keeps what happened, for people.
type EventLog interface {
	Record(e smi.Event)
	List(f smi.EventFilter) []smi.Event
	Watch(ctx context.Context, f smi.EventFilter) <-chan smi.Event
}

// Config of a Manager.
type Config struct {
	Site   string
	Store  *store.Store
	VMI    vmi.Service
	Images Resolver
	Events EventLog
	// Monitor answers the queries of KPIs; nil: nothing is measured, and no rule that reads a
	// KPI decides.
	Monitor monitor.Repository
	// Sink takes what KPIs that are queries come to; nil: that is not recorded.
	Sink monitor.Sink
	// Network of the site, which a public network of a manifest stands for.
	Network string
	// Trade admits what is to be paid for; nil: everything is.
	Trade Trade
	// Standings of a service at its standbys; nil: nobody knows.
	Standings func(ctx context.Context, service string) []smi.Standby
	// AccountingInterval is how often the VMI tells what VEEs have used; 0: 5 min.
	AccountingInterval time.Duration
	Now                func() time.Time
	Random             io.Reader // for identifiers; nil: crypto/rand
	Log                *slog.Logger
}

// Manager of the services of one site. It implements smi.Manager.
type Manager struct {
	cfg       Config
	records   store.Collection[record]        // CUSTOMER/NAME
	revisions store.Collection[revision]      // ID/REVISION
	usages    store.Collection[trade.Account] // CUSTOMER/ID/VEE

	mu      sync.Mutex
	world   world
	workers map[string]*worker // by the record's key
	views   *views
	stepped map[string]uint64 // versions of the records at the last Step, by key

	measurements measurements
}

var _ smi.Manager = (*Manager)(nil)

// New makes a manager, which does nothing by itself before Run.
func New(cfg Config) *Manager {
	if cfg.AccountingInterval == 0 {
		cfg.AccountingInterval = usageInterval
	}
	return &Manager{
		cfg:       cfg,
		records:   store.NewCollection[record](cfg.Store, "service"),
		revisions: store.NewCollection[revision](cfg.Store, "manifest"),
		usages:    trade.Accounts(cfg.Store),
		world:     newWorld(),
		workers:   map[string]*worker{},
		stepped:   map[string]uint64{},
		views:     newViews(),

		measurements: newMeasurements(),
	}
}

// Run keeps the services as they should be until ctx ends; it returns when all its workers
// and watches have. It may be called once.
func (m *Manager) Run(ctx context.Context) error {
	ctx = identity.With(ctx, m.Identity())
	ctx, cancel := context.WithCancel(ctx)
	var running sync.WaitGroup
	defer m.views.close()
	defer running.Wait()
	defer cancel()
	running.Go(func() { m.followVEEs(ctx) })
	running.Go(func() { m.followMonitoring(ctx) })
	running.Go(func() { m.forgetUsage(ctx) })
	if m.cfg.Monitor != nil && m.cfg.Sink != nil {
		running.Go(func() { m.derive(ctx) })
	}
	for c := range m.records.Watch(ctx, "") {
		switch c.Kind {
		case store.Changed:
			m.wake(ctx, &running, c.Key)
		case store.Deleted:
			m.wakeKnown(c.Key)
		}
	}
	return nil
}

// wake tells the service's worker that something has changed, and hires one where there is
// none.
func (m *Manager) wake(ctx context.Context, running *sync.WaitGroup, key string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	w := m.workers[key]
	if w == nil {
		w = newWorker(m, key)
		m.workers[key] = w
		running.Go(func() { w.run(ctx) })
	}
	w.poke()
}

func (m *Manager) wakeKnown(key string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if w := m.workers[key]; w != nil {
		w.poke()
	}
}

// ServiceName is the name of the service whose VEEs have this GroupID, or the GroupID where
// there is none: events of VEEs are told under their service's name.
func (m *Manager) ServiceName(group string) string {
	m.mu.Lock()
	defer m.mu.Unlock()
	for key, w := range m.workers {
		if group != "" && w.group.Load() == group {
			_, name, _ := strings.Cut(key, "/")
			return name
		}
	}
	return group
}

// retire ends a worker whose service is gone, unless it has been told of news meanwhile.
func (m *Manager) retire(w *worker) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(w.news) > 0 {
		return false
	}
	delete(m.workers, w.key)
	return true
}

// pause for d, or until ctx ends.
func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}
