package store

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"

	"github.com/reservoir-cloud/reservoir/internal/fault"
)

func TestFullStore(t *testing.T) {
	ctx := t.Context()
	s := open(t, Config{Dir: t.TempDir(), QuotaBytes: 4 << 20})
	things := NewCollection[thing](s, "thing")
	big := thing{Text: strings.Repeat("x", 100<<10)}

	var err error
	n := 0
	for ; err == nil && n < 1000; n++ {
		_, err = things.Put(ctx, fmt.Sprint(n), big)
	}
	if !fault.Has(err, fault.StoreFull) || !strings.Contains(fault.From(err).NextStep(), "reservoir site compact") {
		t.Fatalf("after %d writes: %v", n, err)
	}
	if st, err := s.Status(ctx); !st.Full || st.Quota != 4<<20 || err != nil {
		t.Errorf("Status = %+v, %v", st, err)
	}
	// Reading, deleting and the confirmation for hosts go on.
	if _, _, err := things.Get(ctx, "0"); err != nil {
		t.Error(err)
	}
	if err := s.Barrier(ctx); err != nil {
		t.Error(err)
	}
	// With everything in use there is at most what the refused write was too large for.
	if st, err := s.Compact(ctx); !fault.Has(err, fault.StoreFull) && (err != nil || st.Quota-st.Size > 200<<10) {
		t.Errorf("Compact = %+v, %v", st, err)
	}
	for i := range n - 10 { // etcd notices that it is full some time after it is
		if err := things.Delete(ctx, fmt.Sprint(i), 0); err != nil {
			t.Fatal(err)
		}
	}
	st, err := s.Compact(ctx)
	if err != nil || st.Full || st.Size >= 4<<20 {
		t.Fatalf("Compact = %+v, %v", st, err)
	}
	if _, err := things.Put(ctx, "again", big); err != nil {
		t.Errorf("the store does not recover: %v", err)
	}
	if _, err := s.Compact(ctx); err != nil {
		t.Errorf("Compact of a store that is not full: %v", err)
	}
}

func TestMigrations(t *testing.T) {
	ctx, dir := t.Context(), t.TempDir()
	var ran []string
	step := func(name string, err error) Migration {
		return Migration{Name: name, Apply: func(ctx context.Context, s *Store) error {
			ran = append(ran, name)
			if err != nil {
				return err
			}
			_, err := NewCollection[thing](s, "thing").Put(ctx, name, thing{})
			return err
		}}
	}
	run := func(migrations ...Migration) error {
		t.Helper()
		ran = nil
		s, err := Open(ctx, Config{Dir: dir, Migrations: migrations, Logger: slog.New(slog.DiscardHandler)})
		if err != nil {
			return err
		}
		return s.Close()
	}
	errStep := errors.New("step failed")
	for _, tt := range []struct {
		name       string
		migrations []Migration
		ran        []string
		code       fault.Code
	}{
		{"a new record needs none", []Migration{step("2", nil)}, nil, ""},
		{"the new ones, in order", []Migration{step("2", nil), step("3", nil), step("4", nil)}, []string{"3", "4"}, ""},
		{"once only", []Migration{step("2", nil), step("3", nil), step("4", nil)}, nil, ""},
		{"older program", []Migration{step("2", nil)}, nil, fault.Unsupported},
		{"one fails", []Migration{step("2", nil), step("3", nil), step("4", nil), step("5", nil), step("6", errStep)}, []string{"5", "6"}, fault.Internal},
		{"and is repeated", []Migration{step("2", nil), step("3", nil), step("4", nil), step("5", nil), step("6", nil)}, []string{"6"}, ""},
	} {
		err := run(tt.migrations...)
		if tt.code == "" && err != nil || tt.code != "" && !fault.Has(err, tt.code) {
			t.Errorf("%s: %v", tt.name, err)
		}
		if !slices.Equal(ran, tt.ran) {
			t.Errorf("%s: ran %v, want %v", tt.name, ran, tt.ran)
		}
	}
}
