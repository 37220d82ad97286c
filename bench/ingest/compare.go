package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"time"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/tsdb"
	"github.com/prometheus/prometheus/util/compression"
	"golang.org/x/sys/unix"

	"github.com/reservoir-cloud/reservoir/bench/figure"
	"github.com/reservoir-cloud/reservoir/monitor"
	"github.com/reservoir-cloud/reservoir/monitor/store"
	"github.com/reservoir-cloud/reservoir/vee"
)

const (
	fields = 10  // of each subject
	batch  = 100 // subjects in one append: a host's report
	every  = 10 * time.Second
)

// way to write a round of samples.
type way struct {
	name  string
	open  func(dir string, now func() time.Time) error
	write func(ctx context.Context, at time.Time, value float64) error
	close func() error

	took  []time.Duration
	bytes float64 // of memory for each series
}

func compare(ctx context.Context) (err error) {
	dir, err := os.MkdirTemp("", "bench-ingest")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	all := make([]monitor.Subject, *subjects)
	for i := range all {
		all[i] = monitor.Subject{Site: "alpha", Customer: fmt.Sprint("c", i%10), Service: fmt.Sprint("s", i%50), Component: "web", Replica: fmt.Sprint(i), VEE: vee.ID(fmt.Sprintf("alpha.%010d", i))}
	}
	at := time.Now().Truncate(time.Second).Add(-time.Duration(*rounds) * every)
	now := func() time.Time { return at }
	ways := []*way{direct(all), ours(all)}
	for _, w := range ways {
		before := heap()
		if err := w.open(filepath.Join(dir, w.name), now); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, w.close()) }()
		if err := w.write(ctx, at, 0); err != nil { // makes the series
			return err
		}
		w.bytes = float64(heap()-before) / float64(len(all)*fields)
	}
	for i := range *rounds {
		at = at.Add(every)
		order := slices.Clone(ways)
		if i%2 == 1 {
			slices.Reverse(order)
		}
		for _, w := range order {
			runtime.GC() // what the other has left is not on this one's account
			begin, err := used()
			if err != nil {
				return err
			}
			if err := w.write(ctx, at, float64(i)*1.5); err != nil {
				return fmt.Errorf("%s: %w", w.name, err)
			}
			end, err := used()
			if err != nil {
				return err
			}
			w.took = append(w.took, end-begin)
		}
		if err := ctx.Err(); err != nil {
			return err
		}
	}
	n := float64(len(all) * fields)
	fmt.Printf("%-10s %14s %16s    %.0f series, %d samples in an append, median of %d turns\n", "", "samples/CPU-s", "bytes/series", n, batch*fields, *rounds)
	for _, w := range ways {
		fmt.Printf("%-10s %14.0f %16.0f\n", w.name, n/figure.Median(w.took).Seconds(), w.bytes)
	}
	figure.Line("ingest_ratio", figure.Median(ways[0].took).Seconds()/figure.Median(ways[1].took).Seconds(), "x", ">=", 0.7)
	figure.Line("ingest_bytes_per_series", ways[1].bytes, "B", "<=", 4096)
	return nil
}

// used by this process of CPU time: what else the machine does is not measured.
func used() (time.Duration, error) {
	var u unix.Rusage
	err := unix.Getrusage(unix.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano()), err
}

// heap that is in use after a collection, bytes.
func heap() int64 {
	runtime.GC()
	runtime.GC() // what finalisers held
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

func names() []string {
	list := make([]string, fields)
	for i := range list {
		list[i] = fmt.Sprintf("vee_field_%d_total", i)
	}
	return list
}

// ours is monitor/store as a site has it.
func ours(all []monitor.Subject) *way {
	var s *store.Store
	ms := make([]monitor.Measurement, batch) // as a report that was decoded
	for i := range ms {
		ms[i] = monitor.Measurement{Kind: monitor.VEEKind, Values: make([]monitor.Value, fields)}
		for k, name := range names() {
			ms[i].Values[k].Field = name
		}
	}
	return &way{
		name: "ours",
		open: func(dir string, now func() time.Time) (err error) {
			s, err = store.Open(store.Config{Dir: dir, Now: now, ServiceSeries: 1 << 20, Series: 1 << 20, ServiceRate: 1e9})
			return err
		},
		write: func(ctx context.Context, at time.Time, value float64) error {
			for part := range slices.Chunk(all, batch) {
				ms := ms[:len(part)]
				for i := range part {
					ms[i].Subject, ms[i].At = part[i], at
					for k := range ms[i].Values {
						ms[i].Values[k].Value = value + float64(k)
					}
				}
				r, err := s.Append(ctx, ms)
				if err != nil {
					return err
				}
				if r.Stored != len(part)*fields {
					return fmt.Errorf("stored %+v", r)
				}
			}
			return nil
		},
		close: func() error { return s.Close() },
	}
}

// direct is the database itself, with the options that ours has.
func direct(all []monitor.Subject) *way {
	type series struct {
		ref    storage.SeriesRef
		labels labels.Labels
	}
	var db *tsdb.DB
	kept := make([]series, 0, len(all)*fields)
	return &way{
		name: "direct",
		open: func(dir string, _ func() time.Time) (err error) {
			o := tsdb.DefaultOptions()
			o.RetentionDuration, o.MaxBytes = store.DefaultRetention.Milliseconds(), int64(store.DefaultDisk)
			o.OutOfOrderTimeWindow, o.WALCompression, o.StripeSize = store.DefaultLate.Milliseconds(), compression.Snappy, 1<<12
			if db, err = tsdb.Open(dir, slog.New(slog.DiscardHandler), nil, o, nil); err != nil {
				return err
			}
			for _, of := range all {
				base := of.Labels()
				for _, name := range names() {
					base[monitor.LabelName] = name
					kept = append(kept, series{labels: labels.FromMap(base)})
				}
			}
			return nil
		},
		write: func(ctx context.Context, at time.Time, value float64) error {
			ms := at.UnixMilli()
			for part := range slices.Chunk(kept, batch*fields) {
				app := db.AppenderV2(ctx)
				for i := range part {
					x := &part[i]
					var err error
					if x.ref, err = app.Append(x.ref, x.labels, 0, ms, value+float64(i%fields), nil, nil, storage.AOptions{}); err != nil {
						return errors.Join(err, app.Rollback())
					}
				}
				if err := app.Commit(); err != nil {
					return err
				}
			}
			return nil
		},
		close: func() error { return db.Close() },
	}
}
