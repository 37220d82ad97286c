// Package store keeps measurements in Prometheus's time series database, embedded, and
// answers PromQL about them. It is the only package that knows Prometheus, whose API is 0.x;
// what it takes and gives are monitor's types.
//
// Memory is bounded from all sides: series of one service and of all, samples a second of
// one service, how late a sample may come, how much a query may touch and how many queries
// run. What goes beyond is refused and counted by reason; nobody's excess keeps another's
// measurements out. Disk is bounded by age and size.
//
// A series is a field of a subject. Its labels are the subject's, none of which is the host
// for a VEE's series, so that it goes on when the VEE moves.
package store

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/promql"
	"github.com/prometheus/prometheus/promql/parser"
	"github.com/prometheus/prometheus/storage/remote"
	"github.com/prometheus/prometheus/tsdb"
	"github.com/prometheus/prometheus/tsdb/chunks"
	"github.com/prometheus/prometheus/util/compression"

	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/monitor"
	"github.com/reservoir-cloud/reservoir/monitor/export"
	"github.com/reservoir-cloud/reservoir/vee"
)

// Defaults of a Config.
const (
	DefaultRetention     = 7 * 24 * time.Hour
	DefaultDisk          = 4 * vee.GiB
	DefaultLate          = 30 * time.Minute
	DefaultAhead         = time.Minute
	DefaultSeries        = 250_000
	DefaultServiceSeries = 50_000
	DefaultServiceRate   = 10_000
)

// Bounds of queries.
const (
	maxSamples = 5_000_000 // of one query in memory at once, 16 bytes each
	maxQueries = 4         // at once; others wait
	maxPoints  = 11_000    // of each series of a range, as Prometheus itself has it
	maxQuery   = 16 << 10  // bytes of an expression
	queryTime  = 30 * time.Second
)

// Config of a Store. Zero values are the defaults, and zero limits not "none".
type Config struct {
	Dir       string        // all that it keeps; made if it is not there
	Retention time.Duration // samples are kept so long
	Disk      vee.Bytes     // and no more than that, but for the newest two hours
	Late      time.Duration // a sample may come after newer ones of any series
	Ahead     time.Duration // a sample may be before the site's clock

	Series        int     // in memory: that had a sample in the last three hours or so
	ServiceSeries int     // of these, of one service
	ServiceRate   float64 // samples a second of one service, over ten seconds

	// WriteTo is a remote-write URL that all samples go to as well; empty: none.
	WriteTo string

	Metrics *export.Registry // for the database's own; nil: none
	Now     func() time.Time
	Log     *slog.Logger
}

func (c *Config) defaults() {
	def(&c.Retention, DefaultRetention)
	def(&c.Disk, DefaultDisk)
	def(&c.Late, DefaultLate)
	def(&c.Ahead, DefaultAhead)
	def(&c.Series, DefaultSeries)
	def(&c.ServiceSeries, DefaultServiceSeries)
	def(&c.ServiceRate, DefaultServiceRate)
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
}

func def[T comparable](to *T, value T) {
	var zero T
	if *to == zero {
		*to = value
	}
}

// Store is a monitor.Sink and a monitor.Library. All methods may be called concurrently.
type Store struct {
	cfg    Config
	db     *tsdb.DB
	engine *promql.Engine
	gate   gate
	parser parser.Parser
	census *census
	remote *remote.WriteStorage // nil: none

	mu       sync.Mutex
	subjects map[monitor.Subject]*subject
	vees     map[vee.ID]*subject // those of VEEs again
	rates    map[service]*bucket
	keys     map[key]*key // of series, each once in memory
	swept    time.Time
	total    monitor.Receipt
}

var (
	_ monitor.Sink    = (*Store)(nil)
	_ monitor.Library = (*Store)(nil)
)

// Open reads what there is, and repairs what a crash has cut off.
func Open(cfg Config) (*Store, error) {
	cfg.defaults()
	if cfg.Retention < 2*time.Hour || cfg.Late < 0 || cfg.Ahead < 0 || cfg.Series < 0 || cfg.ServiceSeries < 0 || !(cfg.ServiceRate > 0) || cfg.Disk < 0 {
		return nil, fault.New(fault.Malformed, "measurements kept for %v: want at least 2h, and no limit below zero", cfg.Retention).Try("reservoir site --help")
	}
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the folder of measurements: %w", err)
	}
	s := &Store{
		cfg: cfg, parser: parser.NewParser(parser.Options{}), census: newCensus(cfg.Series, cfg.ServiceSeries),
		subjects: map[monitor.Subject]*subject{}, vees: map[vee.ID]*subject{}, rates: map[service]*bucket{}, keys: map[key]*key{}, swept: cfg.Now(),
	}
	o := tsdb.DefaultOptions()
	o.RetentionDuration = cfg.Retention.Milliseconds()
	o.MaxBytes = int64(cfg.Disk)
	o.MinBlockDuration = (2 * time.Hour).Milliseconds()
	o.MaxBlockDuration = max(o.MinBlockDuration, o.RetentionDuration/10)
	o.OutOfOrderTimeWindow = cfg.Late.Milliseconds()
	o.WALCompression = compression.Snappy
	o.StripeSize = 1 << 12
	o.SeriesLifecycleCallback = s.census
	log := slog.New(warnings{cfg.Log.With("part", "tsdb").Handler()})
	metrics := cfg.Metrics.Registerer()
	s.gate = make(gate, maxQueries)
	var err error
	if s.db, err = tsdb.Open(cfg.Dir, log, metrics, o, nil); err != nil {
		return nil, fmt.Errorf("open the measurements in %s: %w", cfg.Dir, err)
	}
	s.census.open()
	s.engine = promql.NewEngine(promql.EngineOpts{
		Logger: log, Reg: metrics, MaxSamples: maxSamples, Timeout: queryTime, ActiveQueryTracker: s.gate, Parser: s.parser,
		EnableAtModifier: true, EnableNegativeOffset: true,
		NoStepSubqueryIntervalFn: func(int64) int64 { return (10 * time.Second).Milliseconds() },
	})
	if cfg.WriteTo != "" {
		if s.remote, err = writeTo(cfg.WriteTo, cfg.Dir, metrics, log); err != nil {
			return nil, errors.Join(err, s.Close())
		}
		s.db.SetWriteNotified(s.remote)
	}
	return s, nil
}

// Close writes out what is in memory. No other method may be running or be called after it.
func (s *Store) Close() error {
	var errs []error
	if s.remote != nil {
		errs = append(errs, s.remote.Close())
	}
	errs = append(errs, s.engine.Close(), s.db.Close())
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("close the measurements in %s: %w", filepath.Clean(s.cfg.Dir), err)
	}
	return nil
}

// warnings and worse of the database are a site's concern; its daily round is not.
type warnings struct{ slog.Handler }

func (w warnings) Enabled(ctx context.Context, l slog.Level) bool {
	return l >= slog.LevelWarn && w.Handler.Enabled(ctx, l)
}

func (w warnings) WithAttrs(a []slog.Attr) slog.Handler { return warnings{w.Handler.WithAttrs(a)} }
func (w warnings) WithGroup(g string) slog.Handler      { return warnings{w.Handler.WithGroup(g)} }

// gate lets so many queries run at once: promql.QueryTracker.
type gate chan struct{}

var _ io.Closer = gate(nil)

func (g gate) GetMaxConcurrent() int { return cap(g) }
func (g gate) Close() error          { return nil }
func (g gate) Delete(int)            { <-g }
func (g gate) Insert(ctx context.Context, _ string) (int, error) {
	select {
	case g <- struct{}{}:
		return 0, nil
	case <-ctx.Done():
		return 0, ctx.Err()
	}
}

// service that series are counted by; what is of no service counts as one.
type service struct{ customer, name string }

func serviceOf(l labels.Labels) service {
	return service{l.Get(monitor.LabelCustomer), l.Get(monitor.LabelService)}
}

// errTooWide: one more series is too many.
var errTooWide = errors.New("too many series")

// census counts the series in memory by service, and refuses too many. The database calls
// it at each creation and deletion, also while it reads its log after a restart.
type census struct {
	most, mostOfService int

	mu       sync.Mutex
	refusing bool // not while the log is read: what is there is there
	all      int
	services map[service]int
}

func newCensus(most, mostOfService int) *census {
	return &census{most: most, mostOfService: mostOfService, services: map[service]int{}}
}

func (c *census) open() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.refusing = true
}

// PreCreation implements tsdb.SeriesLifecycleCallback.
func (c *census) PreCreation(l labels.Labels) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	of := serviceOf(l)
	// A site's and its hosts' own series are no service's.
	if c.refusing && (c.all >= c.most || of != (service{}) && c.services[of] >= c.mostOfService) {
		return errTooWide
	}
	return nil
}

// PostCreation implements tsdb.SeriesLifecycleCallback.
func (c *census) PostCreation(l labels.Labels) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.all++
	c.services[serviceOf(l)]++
}

// PostDeletion implements tsdb.SeriesLifecycleCallback.
func (c *census) PostDeletion(gone map[chunks.HeadSeriesRef]labels.Labels) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, l := range gone {
		of := serviceOf(l)
		c.all--
		if c.services[of]--; c.services[of] <= 0 {
			delete(c.services, of)
		}
	}
}

// series in memory.
func (c *census) series() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.all
}
