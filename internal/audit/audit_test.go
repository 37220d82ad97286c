package audit_test

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/reservoir-cloud/reservoir/internal/audit"
	"github.com/reservoir-cloud/reservoir/internal/store"
)

var noon = time.Date(2030, 1, 2, 12, 0, 0, 0, time.UTC)

// calls of an afternoon, one every ten minutes.
var calls = []audit.Entry{
	{By: "ann", Object: "vee/a", Outcome: audit.OK},
	{By: "bob", Object: "vee/b", Outcome: audit.Denied},
	{By: "ann", Object: "service/shop", Outcome: audit.Failed},
	{By: "bob", Object: "vee/a vee/b", Outcome: audit.OK},
	{By: "ann", Object: "vee/a", Outcome: audit.OK},
}

func open(t *testing.T, s *store.Store) *audit.Log {
	t.Helper()
	l, err := audit.Open(t.Context(), store.NewCollection[audit.Entry](s, "audit"), func() time.Time { return noon }, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// TestList: each filter, alone and together; and the same after a restart.
func TestList(t *testing.T) {
	s, err := store.Open(context.Background(), store.Config{Dir: t.TempDir(), Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	l := open(t, s)
	for i, e := range calls {
		e.At = noon.Add(time.Duration(i) * 10 * time.Minute)
		l.Record(e)
	}
	l.Close() // what was recorded is written
	l = open(t, s)
	defer l.Close()
	for _, c := range []struct {
		filter audit.Filter
		want   string // seqs
	}{
		{audit.Filter{}, "1 2 3 4 5"},
		{audit.Filter{By: "ann"}, "1 3 5"},
		{audit.Filter{Object: "vee/b"}, "2 4"},
		{audit.Filter{Outcome: audit.Denied}, "2"},
		{audit.Filter{Since: noon.Add(20 * time.Minute)}, "3 4 5"},
		{audit.Filter{After: 3}, "4 5"},
		{audit.Filter{Limit: 2}, "4 5"},
		{audit.Filter{By: "ann", Limit: 1}, "5"},
		{audit.Filter{By: "bob", Object: "vee/a", Outcome: audit.OK, After: 1, Since: noon}, "4"},
		{audit.Filter{By: "carol"}, ""},
		{audit.Filter{After: 99}, ""},
	} {
		var seqs []string
		list := l.List(c.filter)
		for _, e := range list {
			seqs = append(seqs, fmt.Sprint(e.Seq))
		}
		if got := strings.Join(seqs, " "); got != c.want {
			t.Errorf("%+v: %q, want %q", c.filter, got, c.want)
		}
		if !slices.IsSortedFunc(list, func(a, b audit.Entry) int { return a.At.Compare(b.At) }) {
			t.Errorf("%+v: not the oldest first", c.filter)
		}
	}
	l.Record(audit.Entry{At: noon.Add(time.Hour), By: "ann", Outcome: audit.OK})
	if got := l.List(audit.Filter{After: 5}); len(got) != 1 || got[0].Seq <= 5 {
		t.Errorf("after a restart: %+v, want one with a larger seq", got)
	}
}
