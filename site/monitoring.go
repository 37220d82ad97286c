package site

import (
	"context"
	"io"
	"net/http"
	"net/url"
	"path/filepath"
	"time"

	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/internal/httpapi"
	"github.com/reservoir-cloud/reservoir/internal/identity"
	"github.com/reservoir-cloud/reservoir/internal/store"
	"github.com/reservoir-cloud/reservoir/monitor"
	"github.com/reservoir-cloud/reservoir/monitor/export"
	"github.com/reservoir-cloud/reservoir/monitor/hub"
	"github.com/reservoir-cloud/reservoir/monitor/promapi"
	measurements "github.com/reservoir-cloud/reservoir/monitor/store"
	"github.com/reservoir-cloud/reservoir/monitor/wire"
	"github.com/reservoir-cloud/reservoir/vee"
	"github.com/reservoir-cloud/reservoir/veem"
	"github.com/reservoir-cloud/reservoir/vmi"
)

// Monitoring of a site. Zero values are the defaults of monitor/store.
type Monitoring struct {
	Retention     time.Duration // measurements are kept so long
	Disk          vee.Bytes     // and no more than that
	Series        int           // in memory
	ServiceSeries int           // of one service
	ServiceRate   float64       // samples a second of one service
	Rate          float64       // samples a second of all hosts, above which they are slowed down; 0: 50,000
	WriteURL      string        // remote write to it as well; empty: none
	QueryURL      string        // a Prometheus-compatible server that is asked instead; empty: none
}

// defaultRate of all hosts together, values a second.
const defaultRate = 50_000

// metering is the monitoring part of a site.
type metering struct {
	store      *measurements.Store
	repository monitor.Library // that queries go to
	hub        *hub.Hub
	export     *export.Registry
}

func (c *Config) checkMonitoring() error {
	if c.Monitoring.Rate == 0 {
		c.Monitoring.Rate = defaultRate
	}
	if u, err := url.Parse(c.Monitoring.QueryURL); c.Monitoring.QueryURL != "" && (err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "") {
		return fault.New(fault.Malformed, "query measurements at %q: want an http or https URL", c.Monitoring.QueryURL).
			Try("reservoir site --metrics-query-url https://HOST:9090")
	}
	return nil
}

// openMeasurements opens the store of what is measured.
func (s *site) openMeasurements() (err error) {
	c, m := s.cfg, s.cfg.Monitoring
	s.metering.export = export.New("site", c.Version)
	if s.metering.store, err = measurements.Open(measurements.Config{
		Dir: filepath.Join(c.Dir, "measurements"), Retention: m.Retention, Disk: m.Disk, Series: m.Series, ServiceSeries: m.ServiceSeries,
		ServiceRate: m.ServiceRate, WriteTo: m.WriteURL, Metrics: s.metering.export, Now: time.Now, Log: c.Log,
	}); err != nil {
		return err
	}
	s.metering.repository = s.metering.store
	if m.QueryURL != "" {
		s.metering.repository = measurements.Elsewhere(promapi.Client{Base: m.QueryURL, HTTP: &http.Client{Timeout: time.Minute}})
	}
	return nil
}

// openHub once there is a VEE Manager that knows whose a VEE is.
func (s *site) openHub(ctx context.Context) (err error) {
	s.metering.hub, err = hub.New(ctx, hub.Config{
		Site: s.cfg.Name, Sink: told{s.metering.store, s.veem}, Keeper: store.NewCollection[hub.KeptOrder](s.store, "probe"), Limits: monitor.Limits{ValuesPerSecond: s.cfg.Monitoring.Rate},
		Owner: func(host string, id vee.ID) (monitor.Subject, bool) {
			of, at, ok := subjectOf(s.veem, s.self(), id)
			if ok && at != host { // it may be there already, and the site not know yet
				m, moves := s.veem.NewestMigration(id)
				ok = moves && m.To == host && m.State == vmi.MigrationRunning
			}
			return of, ok
		},
		Former: func(host string, id vee.ID) bool {
			m, moves := s.veem.NewestMigration(id)
			return moves && m.From == host
		},
		Whose: func(id vee.ID) (monitor.Subject, bool) {
			of, _, ok := subjectOf(s.veem, s.self(), id)
			return of, ok
		},
		Now: time.Now, Log: s.cfg.Log,
	})
	if err != nil {
		return err
	}
	x := s.metering.export
	x.Gauge("reservoir_site_series", "Series of measurements in memory.", nil, func() float64 { return float64(s.metering.store.Stats().Series) })
	x.Gauge("reservoir_site_stretch", "What the intervals of all probes are multiplied by.", nil, func() float64 { return max(1, s.metering.hub.Regulation().Stretch) })
	x.Counter("reservoir_site_samples_total", "Samples that hosts have sent and that were stored.", nil, func() float64 { return float64(s.metering.hub.Total().Stored) })
	x.Counters("reservoir_site_samples_refused_total", "Samples that were not stored, and why.", "reason", func() map[string]float64 {
		n := map[string]float64{}
		for why, k := range s.metering.hub.Total().Refused {
			n[string(why)] = float64(k)
		}
		return n
	})
	return nil
}

// told has those who watch monitoring events (VMI) hear of what is stored, as it comes.
type told struct {
	*measurements.Store
	veem *veem.Manager
}

// Append implements monitor.Sink.
func (t told) Append(ctx context.Context, ms []monitor.Measurement) (monitor.Receipt, error) {
	r, err := t.Store.Append(ctx, ms)
	if err == nil {
		t.veem.Measured(ms)
	}
	return r, err
}

// subjectOf a VEE that is not destroyed, and the host that it is on.
func subjectOf(m *veem.Manager, self identity.Caller, id vee.ID) (of monitor.Subject, host string, ok bool) {
	v, err := m.GetVEE(identity.With(context.Background(), self), id)
	if err != nil || v.State == vee.Destroyed {
		return of, "", false
	}
	return monitor.VEESubject(id.Site(), id, v.Descriptor.Customer, v.Descriptor.GroupID, v.Descriptor.FQNPrefix), v.Host, true
}

// scopeOf what a caller may read: a provider its own, who runs or audits the site all.
func scopeOf(ctx context.Context) (monitor.Scope, error) {
	switch c := identity.From(ctx); {
	case c.Is(identity.Operator, identity.Auditor, identity.SiteRole):
		return monitor.Scope{}, nil
	case c.Is(identity.Provider) && c.Customer != "":
		return monitor.Scope{Customer: c.Customer}, nil
	default:
		return monitor.Scope{}, fault.New(fault.Denied, "role %q may not read measurements", c.Role)
	}
}

// registerMonitoring serves reports, probes, queries and the process's own metrics.
func (s *site) registerMonitoring(api *httpapi.Server) {
	wire.Register(api, s.metering.hub)
	api.HandleStock(promapi.Prefix+"/", promapi.Handler(s.metering.repository, scopeOf, time.Now))
	api.HandleStock(export.Path, s.metering.export.Handler(exportReaders...))
	api.HandleStock("GET "+export.Path+"/hosts/{name}", http.HandlerFunc(s.hostMetrics))
}

var exportReaders = []identity.Role{identity.Operator, identity.Auditor, identity.SiteRole}

// hostMetrics passes on what a host's agent says of its process: agents speak to their site
// alone.
func (s *site) hostMetrics(w http.ResponseWriter, r *http.Request) {
	err := func() error {
		if c := identity.From(r.Context()); !c.Is(exportReaders...) {
			return fault.New(fault.Denied, "role %q may not read the metrics of a process", c.Role)
		}
		name := r.PathValue("name")
		h, err := s.veem.GetHost(identity.With(r.Context(), s.self()), name)
		if err != nil {
			return err
		}
		c := s.toHost(name, h.Address)
		defer c.HTTP.CloseIdleConnections()
		req, err := http.NewRequestWithContext(r.Context(), http.MethodGet, c.Base+export.Path, nil)
		if err != nil {
			return fault.New(fault.Unavailable, "host %s at %q: %w", name, h.Address, err)
		}
		resp, err := c.HTTP.Do(req)
		if err != nil {
			return fault.New(fault.Unavailable, "ask host %s for its metrics: %w", name, err).Try("reservoir host show %s", name)
		}
		defer resp.Body.Close()
		w.Header().Set("Content-Type", resp.Header.Get("Content-Type"))
		w.WriteHeader(resp.StatusCode)
		_, _ = io.Copy(w, resp.Body) // a reader that is gone is no fault of ours
		return nil
	}()
	if err != nil {
		f := fault.From(err)
		http.Error(w, f.Error(), f.Status())
	}
}
