// Package store is a site's record of truth: typed collections of JSON objects over etcd,
// which runs inside the site's process by default, or elsewhere (Config.Endpoints). It is
// the only package that knows etcd. What the objects mean is none of its business.
//
// Every object has a version, which grows at each change of anything in the store. A write
// that names the version it was decided on is refused with fault.Conflict when the object
// has changed since; nothing else is needed to keep two writers from losing each other's
// work. Writes are on disk when they return. A write that fails with fault.Unavailable or
// fault.Timeout may still have happened: read before repeating it.
package store

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/reservoir-cloud/reservoir/internal/fault"
)

// Config says where the record is kept.
type Config struct {
	// Dir holds the embedded record (made with mode 0700), for one process at a time.
	// Ignored with Endpoints.
	Dir string
	// Endpoints of an etcd cluster to use instead, "https://10.0.0.1:2379". Its quota and
	// compaction are its operator's, though Compact works there too.
	Endpoints []string
	// TLS for Endpoints; nil: plain text.
	TLS *tls.Config
	// Cluster makes the embedded record one of several; nil: it is the only one.
	Cluster *Cluster
	// Alone: the record was one of several, and goes on without the others, which are lost.
	// They must never come back (see Member).
	Alone bool
	// Prefix of every key, so that sites can share a cluster; empty: "/reservoir/".
	Prefix string
	// QuotaBytes that the embedded record may take on disk; 0: 1 GiB. Beyond it writes
	// fail with fault.StoreFull, deletions do not.
	QuotaBytes int64
	// Migrations from schema 1 on, in order. See Migration.
	Migrations []Migration
	// Logger gets etcd's warnings too; nil: slog.Default().
	Logger *slog.Logger
}

// opTimeout bounds each call to etcd, which by itself would wait for ever for a cluster
// that does not answer.
const opTimeout = 10 * time.Second

// Store is an open record. Its methods and those of its collections may be called
// concurrently.
type Store struct {
	records    records
	client     *clientv3.Client // nil in memory
	members    []string         // addresses for maintenance; the embedded one needs none
	prefix     string
	log        *slog.Logger
	generation uint64
	embedded   *embedded // nil with Endpoints, and in memory
	borrowed   bool      // a Term's: others close what is below it

	// ctx ends the watches at Close, which waits for them.
	ctx     context.Context
	cancel  context.CancelFunc
	watches sync.WaitGroup
}

// Open starts the embedded record or connects to the one at cfg.Endpoints, waits until it
// answers and brings its schema up to date. Errors are *fault.Error: fault.InUse when
// another process has cfg.Dir, fault.Unsupported when a newer Reservoir wrote it,
// fault.Unavailable when it cannot be opened, read or reached.
func Open(ctx context.Context, cfg Config) (*Store, error) {
	if cfg.Prefix == "" {
		cfg.Prefix = "/reservoir/"
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	s := &Store{prefix: cfg.Prefix, log: cfg.Logger}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	if err := s.connect(ctx, cfg); err != nil {
		s.cancel()
		return nil, err
	}
	s.records = inEtcd{s.client, s.log}
	if err := s.migrate(ctx, cfg.Migrations); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

func (s *Store) connect(ctx context.Context, cfg Config) (err error) {
	if len(cfg.Endpoints) == 0 {
		if s.embedded, err = startEmbedded(ctx, cfg); err == nil {
			s.client, s.members = s.embedded.client, []string{""}
		}
		return err
	}
	s.members = cfg.Endpoints
	where := strings.Join(cfg.Endpoints, ", ")
	s.client, err = clientv3.New(clientv3.Config{
		Endpoints:            cfg.Endpoints,
		TLS:                  cfg.TLS,
		DialTimeout:          opTimeout,
		DialKeepAliveTime:    opTimeout,
		DialKeepAliveTimeout: opTimeout,
		Logger:               zap.New(logCore{log: cfg.Logger}),
	})
	if err == nil {
		s.records = inEtcd{s.client, s.log}
		if err = s.Barrier(ctx); err != nil {
			err = errors.Join(err, s.client.Close())
		}
	}
	if err != nil {
		return fault.New(fault.Unavailable, "connect to etcd at %s: %w", where, err).
			Try("check --etcd-endpoints and the certificates given for them")
	}
	return nil
}

// Close ends all watches and stops the embedded record.
func (s *Store) Close() error {
	s.cancel()
	s.watches.Wait()
	switch {
	case s.client == nil, s.borrowed:
		return nil
	case s.embedded != nil:
		return s.embedded.close()
	}
	if err := s.client.Close(); err != nil && !errors.Is(err, context.Canceled) {
		return fmt.Errorf("close the connection to etcd: %w", err)
	}
	return nil
}

// Barrier returns after a linearisable read that began after the call: the record was
// alive then, and no other control plane can have taken its place before. It writes
// nothing. Who vouches for a host calls it first.
func (s *Store) Barrier(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, opTimeout)
	defer cancel()
	_, _, err := s.records.get(ctx, s.prefix+metaName+"/"+metaKey)
	return explain(ctx, err, "confirm that the site's record of truth is current")
}

// Ended is closed when the embedded record ends by itself: its member was removed, or its
// disk failed. It is never closed elsewhere.
func (s *Store) Ended() <-chan struct{} {
	if s.embedded == nil {
		return nil
	}
	return s.embedded.etcd.Server.StopNotify()
}

// Generation of the record: 1 at first, one more after each restore from a backup. It is
// the first part of every epoch.
func (s *Store) Generation() uint64 { return s.generation }

// explain makes a *fault.Error of what etcd answered to an attempt to do what; nil of nil.
func explain(ctx context.Context, err error, what string, args ...any) error {
	if err == nil {
		return nil
	}
	what = fmt.Sprintf(what, args...)
	switch {
	case errors.Is(err, rpctypes.ErrNoSpace):
		return fault.New(fault.StoreFull, "%s: the site's record of truth has reached its quota: %w", what, err)
	case errors.Is(err, rpctypes.ErrRequestTooLarge), errors.Is(err, rpctypes.ErrTooManyOps):
		return fault.New(fault.TooLarge, "%s: %w", what, err)
	case errors.Is(err, rpctypes.ErrCorrupt):
		return fault.New(fault.Unavailable, "%s: the site's record of truth is damaged: %w", what, err).Try(restoreAdvice)
	case errors.Is(err, errDeposed):
		return fault.New(fault.Unavailable, "%s: %w", what, err).Try("repeat it: it goes to whoever leads now")
	case errors.Is(ctx.Err(), context.Canceled):
		return fault.New(fault.Unavailable, "%s: %w", what, context.Canceled)
	case errors.Is(err, context.DeadlineExceeded), errors.Is(ctx.Err(), context.DeadlineExceeded):
		return fault.New(fault.Timeout, "%s: the site's record of truth did not answer in time: %w", what, context.DeadlineExceeded)
	}
	return fault.New(fault.Unavailable, "%s: %w", what, err)
}

const restoreAdvice = "put the directory back from a backup, or move it away to start an empty record: running guests are not touched"
