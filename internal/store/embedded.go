package store

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"syscall"
	"time"

	"go.etcd.io/bbolt"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3client"
	"go.etcd.io/etcd/server/v3/storage/datadir"
	"go.etcd.io/etcd/server/v3/storage/wal"
	"go.uber.org/zap"

	"github.com/reservoir-cloud/reservoir/internal/fault"
)

// startTimeout is far more than reading the fullest record takes.
const startTimeout = 2 * time.Minute

// snapshotCount is how many writes etcd keeps in memory, and reads again at its start.
const snapshotCount = 5000

// segmentBytes of the write-ahead log are preallocated at a time, twice. etcd's own 64 MB
// is for far more writes than a site makes.
const segmentBytes = 16 << 20

func init() { wal.SegmentSizeBytes = segmentBytes } // etcd has no other way to set it

// embedded is an etcd member inside this process. Calls go straight into it; it listens for
// the other members alone, and where there are none, on nothing.
type embedded struct {
	etcd   *embed.Etcd
	client *clientv3.Client
	lock   *os.File
	shared bool // there are other members, or may be
}

func startEmbedded(ctx context.Context, cfg Config) (*embedded, error) {
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, unusable(cfg.Dir, err)
	}
	lock, err := lockDir(cfg.Dir)
	if err != nil {
		return nil, err
	}
	e := &embedded{lock: lock, shared: cfg.Cluster != nil}
	if err := e.start(ctx, cfg); err != nil {
		return nil, errors.Join(err, e.close())
	}
	return e, nil
}

func (e *embedded) start(ctx context.Context, cfg Config) error {
	ec := etcdConfig(cfg)
	if err := os.MkdirAll(ec.Dir, 0o700); err != nil {
		return unusable(cfg.Dir, err)
	}
	var err error
	if e.etcd, err = startRecovered(ec); err != nil {
		switch {
		case errors.Is(err, fs.ErrPermission):
			return unusable(cfg.Dir, err)
		case strings.Contains(err.Error(), syscall.ENOSPC.Error()): // it may have been a panic's text
			return fault.New(fault.DiskFull, "open the site's record of truth in %s: %w", cfg.Dir, err).Try("make room on that disk")
		}
		return fault.New(fault.Unavailable, "open the site's record of truth in %s: it is damaged or cannot be read: %w", cfg.Dir, err).Try(restoreAdvice)
	}
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	select {
	case <-e.etcd.Server.ReadyNotify():
	case err := <-e.etcd.Err():
		return fault.New(fault.Unavailable, "start the site's record of truth in %s: %w", cfg.Dir, err)
	case <-ctx.Done():
		return fault.New(fault.Timeout, "start the site's record of truth in %s: %w", cfg.Dir, ctx.Err())
	}
	e.client = v3client.New(e.etcd.Server)
	if cfg.Cluster != nil {
		return e.settle(ctx, *cfg.Cluster)
	}
	return nil
}

func etcdConfig(cfg Config) *embed.Config {
	ec := embed.NewConfig()
	ec.Name = "site"
	ec.Dir = filepath.Join(cfg.Dir, "etcd")
	ec.ListenPeerUrls, ec.ListenClientUrls, ec.AdvertiseClientUrls = nil, nil, nil
	ec.AdvertisePeerUrls = []url.URL{{Scheme: "http", Host: "localhost:2380"}} // a name only
	ec.InitialCluster = ec.InitialClusterFromName(ec.Name)
	ec.EnableGRPCGateway = false
	ec.ForceNewCluster = cfg.Alone

	// A single member elects itself after one election timeout: this is the start-up time.
	ec.TickMs, ec.ElectionMs = 50, 500

	// Memory: what is kept for followers that do not exist, and between commits of the
	// back end, whose safety does not depend on them (the log is synced at every write).
	ec.SnapshotCount, ec.SnapshotCatchUpEntries = snapshotCount, 100
	ec.BackendBatchLimit, ec.BackendBatchInterval = 1000, 100*time.Millisecond

	ec.QuotaBackendBytes = cfg.QuotaBytes
	if ec.QuotaBackendBytes == 0 {
		ec.QuotaBackendBytes = 1 << 30
	}
	ec.AutoCompactionMode, ec.AutoCompactionRetention = embed.CompactorModePeriodic, "10m"
	ec.BootstrapDefragThresholdMegabytes = 64
	ec.MaxRequestBytes = 8 << 20 // a manifest of 4 MiB, escaped as JSON
	ec.MaxTxnOps = etcdOps
	ec.WarningApplyDuration, ec.WarningUnaryRequestDuration = time.Second, time.Second
	if cfg.Cluster != nil {
		cfg.Cluster.configure(ec)
	}
	ec.ZapLoggerBuilder = embed.NewZapLoggerBuilder(zap.New(logCore{log: cfg.Logger}, zap.WithFatalHook(giveUp{}), zap.WithPanicHook(giveUp{})))
	return ec
}

// startRecovered makes an error of the ways in which etcd ends a process whose files are
// damaged: panics, Fatal log entries (see giveUp), and reads past the end of a
// truncated file that is mapped into memory.
func startRecovered(ec *embed.Config) (e *embed.Etcd, err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if r := recover(); r != nil {
			e, err = nil, fmt.Errorf("etcd gave up: %v", r)
		}
	}()
	if err := checkFiles(ec); err != nil {
		return nil, err
	}
	return embed.StartEtcd(ec)
}

// checkFiles finds what etcd would not survive, or not notice, at its start.
func checkFiles(ec *embed.Config) error {
	path := datadir.ToBackendFileName(ec.Dir)
	if info, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) || err == nil && info.Size() == 0 {
		return nil // a first start, or one that was cut short
	}
	objects, err := countObjects(path)
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	// Without its log etcd would begin a new one and wait until that has caught up.
	if logs := datadir.ToWALDir(ec.Dir); objects > 0 && !wal.Exist(logs) {
		return fmt.Errorf("%s is there, its log in %s is not", path, logs)
	}
	return nil
}

// countObjects walks through the whole database, as etcd does at its start, but there in a
// goroutine whose panic cannot be recovered.
func countObjects(path string) (n int, err error) {
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{ReadOnly: true, PreLoadFreelist: true, Timeout: time.Second})
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	return n, db.View(func(tx *bbolt.Tx) error {
		return tx.ForEach(func(bucket []byte, b *bbolt.Bucket) error {
			return b.ForEach(func(_, _ []byte) error {
				if string(bucket) == "key" {
					n++
				}
				return nil
			})
		})
	})
}

// close may be called at any stage of the start.
func (e *embedded) close() error {
	var err error
	if e.client != nil {
		if err = e.client.Close(); errors.Is(err, context.Canceled) {
			err = nil
		}
	}
	if e.etcd != nil {
		e.etcd.Close()
	}
	return errors.Join(err, e.lock.Close())
}

func unusable(dir string, err error) error {
	return fault.New(fault.Unavailable, "open the site's record of truth in %s: %w", dir, err).
		Try("run the site as the user that owns the directory, or give another one")
}
