package event

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/reservoir-cloud/reservoir/internal/journal"
	"github.com/reservoir-cloud/reservoir/smi"
)

// memory is a Sink that can refuse.
type memory struct {
	mu      sync.Mutex
	events  map[string]smi.Event
	refuses error
	writes  int
}

func (m *memory) refuse(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.refuses = err
}

func (m *memory) Values(context.Context, string) ([]smi.Event, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	var es []smi.Event
	for _, k := range slices.Sorted(maps.Keys(m.events)) {
		es = append(es, m.events[k])
	}
	return es, m.refuses
}

func (m *memory) PutAll(_ context.Context, es map[string]smi.Event) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.refuses != nil {
		return m.refuses
	}
	if m.events == nil {
		m.events = map[string]smi.Event{}
	}
	maps.Copy(m.events, es)
	m.writes++
	return nil
}

func (m *memory) DeleteRange(_ context.Context, from, to string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	maps.DeleteFunc(m.events, func(k string, _ smi.Event) bool { return from <= k && k < to })
	return m.refuses
}

func open(t *testing.T, sink Sink, keep int) *Log {
	t.Helper()
	l, err := Open(t.Context(), Config{Sink: sink, Keep: keep, Now: time.Now, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func messages(es []smi.Event) []string {
	var ms []string
	for i, e := range es {
		if i > 0 && e.Seq <= es[i-1].Seq {
			ms = append(ms, "OUT OF ORDER")
		}
		ms = append(ms, e.Message)
	}
	return ms
}

func TestList(t *testing.T) {
	l := open(t, &memory{}, 0)
	defer l.Close()
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	l.Record(smi.Event{Object: "host/h1", Message: "joined", At: at})
	l.Record(smi.Event{Object: "service/web", Customer: "acme", Service: "web", Message: "deployed"})
	l.Record(smi.Event{Object: "vee/alpha.1", Customer: "acme", Service: "web", Message: "placed"})
	l.Record(smi.Event{Object: "host/h2", Message: "joined too"})

	all := l.List(smi.EventFilter{})
	if !all[0].At.Equal(at) || all[1].At.IsZero() {
		t.Errorf("times %s, %s", all[0].At, all[1].At)
	}
	for _, tt := range []struct {
		name   string
		filter smi.EventFilter
		want   []string
	}{
		{"all", smi.EventFilter{}, []string{"joined", "deployed", "placed", "joined too"}},
		{"object", smi.EventFilter{Object: "host/h1"}, []string{"joined"}},
		{"kind", smi.EventFilter{Object: "host"}, []string{"joined", "joined too"}},
		{"half a kind", smi.EventFilter{Object: "ho"}, nil},
		{"half an object", smi.EventFilter{Object: "host/h"}, nil},
		{"customer", smi.EventFilter{Customer: "acme"}, []string{"deployed", "placed"}},
		{"service and kind", smi.EventFilter{Service: "web", Object: "vee"}, []string{"placed"}},
		{"newest", smi.EventFilter{Limit: 2}, []string{"placed", "joined too"}},
		{"newest of a kind", smi.EventFilter{Limit: 1, Object: "vee"}, []string{"placed"}},
		{"since", smi.EventFilter{Since: all[2].Seq}, []string{"joined too"}},
		{"since now", smi.EventFilter{Since: all[3].Seq}, nil},
	} {
		if got := messages(l.List(tt.filter)); !slices.Equal(got, tt.want) {
			t.Errorf("%s: %q, want %q", tt.name, got, tt.want)
		}
	}
}

func TestRestart(t *testing.T) {
	var sink memory
	var want []string
	var last uint64
	for run := range 3 {
		l := open(t, &sink, 1000)
		if got := messages(l.List(smi.EventFilter{})); !slices.Equal(got, want) {
			t.Fatalf("restart %d: %d events, want %d", run, len(got), len(want))
		}
		for i := range 2*batch + 5 {
			m := fmt.Sprintf("%d.%d", run, i)
			want = append(want, m)
			l.Record(smi.Event{Message: m})
		}
		if first := l.List(smi.EventFilter{Since: last})[0].Seq; first <= last {
			t.Errorf("Seq %d after %d", first, last)
		}
		last = l.List(smi.EventFilter{Limit: 1})[0].Seq
		l.Close()
		if len(sink.events) != len(want) {
			t.Errorf("%d of %d events were written", len(sink.events), len(want))
		}
	}
	sink.refuse(errors.New("store is down"))
	if _, err := Open(t.Context(), Config{Sink: &sink}); err == nil {
		t.Error("opened without reading")
	}
}

// A Seq that somebody has seen is not given out again, even if a crash kept its event from
// the sink.
func TestSeqAfterACrash(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var sink memory
		l := open(t, &sink, 10)
		l.Record(smi.Event{Message: "written"})
		synctest.Wait()
		sink.refuse(errors.New("store is down"))
		for range 10 {
			l.Record(smi.Event{Message: "seen and lost"})
		}
		seen := l.List(smi.EventFilter{Limit: 1})[0].Seq
		l.Close()
		sink.refuse(nil)
		l = open(t, &sink, 10)
		defer l.Close()
		l.Record(smi.Event{Message: "after"})
		if got := l.List(smi.EventFilter{Limit: 1})[0].Seq; got <= seen {
			t.Errorf("Seq %d after %d was seen", got, seen)
		}
	})
}

func TestSinkIsBoundedAndBatched(t *testing.T) {
	const keep, n = 1000, 20_000
	var sink memory
	l := open(t, &sink, keep)
	for i := range n {
		l.Record(smi.Event{Message: fmt.Sprint(i)})
		if i%keep/2 == 0 { // let the writer come along
			time.Sleep(time.Millisecond)
		}
	}
	l.Close()
	if len(sink.events) > keep+keep/10+batch {
		t.Errorf("the sink has %d events", len(sink.events))
	}
	if got := l.List(smi.EventFilter{Limit: n}); len(got) != keep || got[keep-1].Message != fmt.Sprint(n-1) {
		t.Errorf("memory has %d events", len(got))
	}
	if got := open(t, &sink, keep); len(got.List(smi.EventFilter{Limit: n})) != keep {
		t.Error("a restart has fewer")
	} else {
		got.Close()
	}
}

func TestFullSink(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const keep = 100
		var sink memory
		l := open(t, &sink, keep)
		l.Record(smi.Event{Message: "before"})
		synctest.Wait()
		sink.refuse(errors.New("store is full"))
		for i := range keep / 2 {
			l.Record(smi.Event{Message: fmt.Sprint(i)})
		}
		time.Sleep(time.Minute)
		if got := l.List(smi.EventFilter{}); len(got) != 1+keep/2 || l.Dropped() != 0 {
			t.Errorf("%d events in memory, %d dropped", len(got), l.Dropped())
		}
		for i := range keep {
			l.Record(smi.Event{Message: fmt.Sprint(i)})
		}
		if l.Dropped() != keep/2 {
			t.Errorf("%d dropped, want %d", l.Dropped(), keep/2)
		}
		sink.refuse(nil)
		time.Sleep(2 * retry)
		newest := l.List(smi.EventFilter{Limit: 1})[0]
		if want := "events could not be written for a while; 50 were lost since the site started"; newest.Message != want || newest.Type != "warning" {
			t.Errorf("told %+v, want %q", newest, want)
		}
		l.Close()
		if _, ok := sink.events[key(newest.Seq)]; !ok {
			t.Error("the sink has not got the newest")
		}
	})
}

func TestWatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := open(t, &memory{}, 100)
		for i := range 5 {
			l.Record(smi.Event{Object: "host/h1", Message: fmt.Sprint(i)})
			l.Record(smi.Event{Object: "host/h2", Message: "other"})
		}
		ctx, cancel := context.WithCancel(t.Context())
		events := l.Watch(ctx, smi.EventFilter{Object: "host/h1", Limit: 2})
		untilEnd := l.Watch(t.Context(), smi.EventFilter{})
		var got []string
		got = append(got, (<-events).Message, (<-events).Message)
		for i := 5; i < 50; i++ { // more than Limit
			l.Record(smi.Event{Object: "host/h1", Message: fmt.Sprint(i)})
		}
		for range 45 {
			got = append(got, (<-events).Message)
		}
		var want []string
		for i := 3; i < 50; i++ {
			want = append(want, fmt.Sprint(i))
		}
		if !slices.Equal(got, want) {
			t.Errorf("watched %q", got)
		}
		cancel()
		if e, ok := <-events; ok {
			t.Errorf("%+v after the end", e)
		}
		l.Close()
		if e, ok := <-untilEnd; ok {
			t.Errorf("%+v after the log's end", e)
		}
	})
}

func TestRecordFromManyPlaces(t *testing.T) {
	var sink memory
	l := open(t, &sink, 10_000)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 200 {
				l.Record(smi.Event{})
			}
		})
	}
	wg.Wait()
	l.Close()
	if len(sink.events) != 1600 || l.Dropped() != 0 {
		t.Errorf("%d written, %d dropped", len(sink.events), l.Dropped())
	}
}

// silent is a Sink that takes nothing and says nothing.
type silent struct{ memory }

func (*silent) PutAll(ctx context.Context, _ map[string]smi.Event) error {
	<-ctx.Done()
	return ctx.Err()
}

// A log whose sink does not answer any more ends all the same.
func TestCloseDoesNotWaitForEver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := open(t, &silent{}, 100)
		for i := range 3 * batch {
			l.Record(smi.Event{Message: fmt.Sprint(i)})
		}
		synctest.Wait()
		began := time.Now()
		l.Close()
		if took := time.Since(began); took > journal.Patience {
			t.Errorf("closed after %s", took)
		}
	})
}
