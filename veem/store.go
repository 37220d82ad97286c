package veem

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/internal/store"
)

// Records is where the manager keeps what it must remember, as JSON under a kind and a key.
type Records interface {
	// Load returns everything.
	Load(ctx context.Context) ([]Row, error)
	// Write does all ops or none, at most MaxOps, and returns the version that every row
	// written has now. fault.Conflict, NotFound or Exists: a row is not as it was known.
	// After fault.Unavailable or Timeout it may have happened.
	Write(ctx context.Context, ops []Op) (version uint64, err error)
	// Version of a row, 0 where there is none, by a linearisable read that begins after the
	// call.
	Version(ctx context.Context, kind, key string) (uint64, error)
	Generation() uint64
}

// MaxOps of one Write.
const MaxOps = store.MaxOps

// Row of the manager's records.
type Row struct {
	Kind, Key string
	Value     json.RawMessage
	Version   uint64
}

// Op writes Value over the row with Version; 0: the row is new. A nil Value removes it.
type Op Row

// Kinds of rows.
const (
	kindVEE     = "vee"
	kindHost    = "host"
	kindPoint   = "access-point"
	kindReceipt = "vee-call"
	kindIntent  = "vee-intent"
	kindAccount = "accounting-listener"
	kindQuota   = "quota"
	kindNetwork = "network"
	kindRun     = "reconfiguration"
	kindLog     = "ownership"
	kindSwitch  = "context-switch"

	kindReservation = "reservation"
)

// OnStore keeps the records in the site's store.
func OnStore(s *store.Store) Records { return siteRecords{s} }

type siteRecords struct{ *store.Store }

func (s siteRecords) of(kind string) store.Collection[json.RawMessage] {
	return store.NewCollection[json.RawMessage](s.Store, kind)
}

func (s siteRecords) Load(ctx context.Context) (rows []Row, err error) {
	for _, kind := range []string{kindVEE, kindHost, kindPoint, kindReceipt, kindIntent, kindAccount, kindQuota, kindNetwork, kindRun, kindLog, kindSwitch, kindReservation} {
		objects, err := s.of(kind).List(ctx, "")
		if err != nil {
			return nil, fmt.Errorf("list each %s: %w", kind, err)
		}
		for _, o := range objects {
			rows = append(rows, Row{kind, o.Key, o.Value, o.Version})
		}
	}
	return rows, nil
}

func (s siteRecords) Write(ctx context.Context, ops []Op) (uint64, error) {
	txn := make([]store.Op, len(ops))
	for i, o := range ops {
		switch c := s.of(o.Kind); {
		case o.Value == nil:
			txn[i] = c.OpDelete(o.Key, o.Version)
		case o.Version == 0:
			txn[i] = c.OpCreate(o.Key, o.Value)
		default:
			txn[i] = c.OpUpdate(o.Key, o.Value, o.Version)
		}
	}
	return s.Txn(ctx, txn...)
}

// Version implements Records.
func (s siteRecords) Version(ctx context.Context, kind, key string) (uint64, error) {
	_, v, err := s.of(kind).Get(ctx, key)
	if fault.Has(err, fault.NotFound) {
		return 0, nil
	}
	return v, err
}

// overtaken reports whether a write was refused because a row is not as it was known.
func overtaken(err error) bool {
	return fault.Has(err, fault.Conflict) || fault.Has(err, fault.NotFound) || fault.Has(err, fault.Exists)
}
