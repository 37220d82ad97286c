package ve

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/vee"
	"github.com/reservoir-cloud/reservoir/vhi/peer"
)

// lab is a site of hosts whose trackers call each other directly.
type lab struct {
	t     *testing.T
	hosts map[string]*labHost
}

// labHost plays the guests of a host; what a guest has in memory is a number that grows while
// it runs.
type labHost struct {
	lab  *lab
	name string
	dir  string
	tr   *Tracker
	stop func()
	down atomic.Bool
	full atomic.Bool // its disk: no Take succeeds

	mu     sync.Mutex
	guests map[vee.ID]*labGuest
	gone   []peer.Departed
}

type labGuest struct {
	member peer.Member
	frozen int
	saved  map[int]time.Time // by checkpoint: when it stood still
	since  time.Time
	thawed int
}

const every = time.Second

func newLab(t *testing.T, n int) *lab {
	l := &lab{t: t, hosts: map[string]*labHost{}}
	for i := range n {
		name := fmt.Sprintf("h%d", i+1)
		h := &labHost{lab: l, name: name, dir: t.TempDir(), guests: map[vee.ID]*labGuest{}}
		l.hosts[name] = h
	}
	for _, h := range l.hosts {
		h.start()
	}
	return l
}

func (h *labHost) start() {
	store, err := OpenStore(filepath.Join(h.dir, "checkpoints"), slog.New(slog.DiscardHandler))
	if err != nil {
		h.lab.t.Fatal(err)
	}
	h.tr = New(Config{Host: h.name, Store: store, Here: h.here, Guests: h, Neighbours: h.neighbours, Every: every, Now: time.Now,
		Dial: func(host, address string) peer.Trackers { return call{h, h.lab.hosts[address]} }, Log: slog.New(slog.DiscardHandler)})
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	tr := h.tr
	wg.Go(func() { _ = tr.Run(ctx) })
	h.stop = func() { cancel(); wg.Wait() }
}

func (l *lab) close() {
	for _, h := range l.hosts {
		h.stop()
	}
}

// call from one host to another.
type call struct{ from, to *labHost }

func (c call) up() error {
	if c.from.down.Load() || c.to.down.Load() {
		return fault.New(fault.Unavailable, "no route from %s to %s", c.from.name, c.to.name)
	}
	return nil
}

func (c call) Present(ctx context.Context, p peer.Presence) error {
	if err := c.up(); err != nil {
		return err
	}
	return c.to.tr.Present(ctx, p)
}

func (c call) Do(ctx context.Context, from string, d peer.Deed, o peer.Order) error {
	if err := c.up(); err != nil {
		return err
	}
	return c.to.tr.Do(ctx, from, d, o)
}

func (c call) Kept(ctx context.Context, id vee.ID) ([]peer.Kept, error) {
	if err := c.up(); err != nil {
		return nil, err
	}
	return c.to.tr.Kept(ctx, id)
}

func (c call) Read(ctx context.Context, id vee.ID, n int) (io.ReadWriteCloser, error) {
	if err := c.up(); err != nil {
		return nil, err
	}
	return c.to.tr.Read(ctx, id, n)
}

func (h *labHost) neighbours() (list []Neighbour) {
	for _, o := range h.lab.hosts {
		if o != h {
			list = append(list, Neighbour{Host: o.name, Address: o.name, Doubted: o.down.Load()})
		}
	}
	return list
}

func (h *labHost) here() (list []Here) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, g := range h.guests {
		list = append(list, Here{VE: "shop", Member: g.member})
	}
	for _, g := range h.gone {
		list = append(list, Here{VE: "shop", Member: peer.Member{VEE: g.VEE, Epoch: g.Epoch}, Gone: true})
	}
	return list
}

func (h *labHost) run(id vee.ID, term uint64, p vee.Reliability) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.guests[id] = &labGuest{member: peer.Member{VEE: id, Name: string(id), Epoch: vee.Epoch{Generation: 1, Term: term}, Running: true, Policy: p}, saved: map[int]time.Time{}}
}

func (h *labHost) guest(id vee.ID) (*labGuest, func(), error) {
	h.mu.Lock()
	g := h.guests[id]
	if g == nil {
		h.mu.Unlock()
		return nil, nil, fault.New(fault.NotFound, "VEE %s is not on this host", id)
	}
	return g, h.mu.Unlock, nil
}

func (h *labHost) Freeze(_ context.Context, id vee.ID, _ vee.Epoch, n int, _ time.Duration) error {
	time.Sleep(time.Duration(len(h.name)) * 10 * time.Millisecond)
	g, done, err := h.guest(id)
	if err != nil {
		return err
	}
	defer done()
	g.frozen, g.since = n, time.Now()
	return nil
}

func (h *labHost) Take(_ context.Context, id vee.ID, n int) error {
	if h.full.Load() {
		return fault.New(fault.DiskFull, "no space left on device")
	}
	for _, o := range h.lab.hosts { // all stand still before any is saved
		o.mu.Lock()
		for oid, g := range o.guests {
			if g.member.Running && g.frozen != n && o.down.Load() == h.down.Load() {
				h.lab.t.Errorf("%s is saved while %s runs", id, oid)
			}
		}
		o.mu.Unlock()
	}
	g, done, err := h.guest(id)
	if err != nil {
		return err
	}
	defer done()
	g.saved[n] = g.since
	return nil
}

func (h *labHost) Thaw(_ context.Context, id vee.ID, n int) error {
	g, done, err := h.guest(id)
	if err != nil {
		return err
	}
	defer done()
	if g.frozen == n {
		g.frozen = 0
		g.thawed++
	}
	return nil
}

func (h *labHost) Pack(_ context.Context, id vee.ID, n int, w io.Writer) error {
	g, done, err := h.guest(id)
	if err != nil {
		return err
	}
	defer done()
	if g.frozen != 0 {
		h.lab.t.Errorf("%s still stands while its checkpoint is packed", id)
	}
	_, err = fmt.Fprintf(w, "%s at %v", id, g.saved[n].UnixNano())
	return err
}

func (h *labHost) Forget(_ context.Context, id vee.ID, _ vee.Epoch, n int) error {
	g, done, err := h.guest(id)
	if err != nil {
		return nil
	}
	defer done()
	delete(g.saved, n)
	return nil
}

// holders of whole checkpoints of a VEE: "h1:3 h2:3".
func (l *lab) holders(id vee.ID) string {
	var list []string
	for _, h := range l.hosts {
		for _, k := range h.tr.cfg.Store.List(id) {
			if k.Whole {
				list = append(list, fmt.Sprintf("%s:%d", h.name, k.N))
			}
		}
	}
	slices.Sort(list)
	return strings.Join(list, " ")
}

func (l *lab) trackers() (list []string) {
	for _, h := range l.hosts {
		if !h.down.Load() && slices.Contains(h.tr.Tracked(), "shop") {
			list = append(list, h.name)
		}
	}
	slices.Sort(list)
	return list
}

var often = vee.Reliability{CheckpointMS: 10_000}

const web1, web2 = vee.ID("alpha.aaaaaaaaaa"), vee.ID("alpha.bbbbbbbbbb")

func inLab(t *testing.T, n int, f func(l *lab)) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, n)
		defer l.close()
		f(l)
	})
}

func TestCheckpointsOfAVE(t *testing.T) {
	inLab(t, 4, func(l *lab) {
		l.hosts["h1"].run(web1, 1, often)
		l.hosts["h2"].run(web2, 1, vee.Reliability{})
		time.Sleep(12 * time.Second)
		if n := strings.Count(l.holders(web1), ":1"); n != 2 || !strings.Contains(l.holders(web1), "h1:1") {
			t.Fatalf("after one interval: %q", l.holders(web1))
		}
		if n := strings.Count(l.holders(web2), ":1"); n != 2 {
			t.Fatalf("the one without a wish of its own: %q", l.holders(web2))
		}
		time.Sleep(40 * time.Second)
		list := l.hosts["h1"].tr.cfg.Store.List(web1)
		if len(list) != vee.UsualKeep || list[1].N < 4 {
			t.Errorf("kept: %+v", list)
		}
		if g := l.hosts["h1"].guests[web1]; len(g.saved) != 0 || g.frozen != 0 {
			t.Errorf("left with the guest: %+v", g)
		}
		if len(l.trackers()) != 1 {
			t.Errorf("tracked by %v", l.trackers())
		}
		r, n, found, err := l.hosts["h4"].tr.Newest(l.t.Context(), web1)
		if err != nil || !found || n != list[1].N {
			t.Fatalf("newest: %d, %v, %v", n, found, err)
		}
		defer r.Close()
		if b, _ := io.ReadAll(r); !strings.HasPrefix(string(b), string(web1)) {
			t.Errorf("it is %q", b)
		}
	})
}

// The tracker's host is lost: the one with the replica goes on where it was, and what the lost
// host kept of its own VEE is on another.
func TestTrackingIsAdopted(t *testing.T) {
	inLab(t, 4, func(l *lab) {
		first := Line("shop", []string{"h1", "h2", "h3", "h4"})
		lost, next := l.hosts[first[0]], l.hosts[first[1]]
		lost.run(web1, 1, often)
		next.run(web2, 1, often)
		time.Sleep(12 * time.Second)
		if got := l.trackers(); !slices.Equal(got, first[:1]) {
			t.Fatalf("tracked by %v, and %v is first", got, first)
		}
		before := next.tr.cfg.Store.List(web2)
		lost.down.Store(true)
		time.Sleep(40 * time.Second)
		if got := l.trackers(); !slices.Equal(got, first[1:2]) {
			t.Fatalf("adopted by %v, and %v is next", got, first)
		}
		after := next.tr.cfg.Store.List(web2)
		if after[len(after)-1].N <= before[len(before)-1].N {
			t.Errorf("no checkpoint since: %+v, before %+v", after, before)
		}
		_, n, found, err := next.tr.Newest(l.t.Context(), web1)
		if !found || err != nil || n < 1 {
			t.Errorf("what the lost host's VEE was: %d, %v, %v", n, found, err)
		}
	})
}

// A part that cannot be saved: nothing of the checkpoint stays, every guest goes on, and the
// ones before are kept.
func TestACheckpointIsWholeOrNone(t *testing.T) {
	inLab(t, 3, func(l *lab) {
		l.hosts["h1"].run(web1, 1, often)
		l.hosts["h2"].run(web2, 1, often)
		time.Sleep(12 * time.Second)
		good := l.holders(web1)
		l.hosts["h2"].full.Store(true)
		time.Sleep(25 * time.Second)
		if l.holders(web1) != good || good == "" {
			t.Errorf("whole are %q, before %q", l.holders(web1), good)
		}
		for _, h := range l.hosts {
			for id, g := range h.guests {
				h.mu.Lock()
				if g.frozen != 0 || len(g.saved) != 0 {
					t.Errorf("%s was left as %+v", id, g)
				}
				h.mu.Unlock()
			}
			for _, k := range h.tr.cfg.Store.List(web1) {
				if !k.Whole {
					t.Errorf("%s keeps a part: %+v", h.name, k)
				}
			}
		}
		l.hosts["h2"].full.Store(false)
		time.Sleep(12 * time.Second)
		if l.holders(web1) == good {
			t.Error("no checkpoint since it can be saved again")
		}
	})
}

func TestCheckpointsOfWhatIsGoneAreDropped(t *testing.T) {
	inLab(t, 4, func(l *lab) {
		h := l.hosts["h1"]
		h.run(web1, 1, often)
		time.Sleep(12 * time.Second)
		if l.holders(web1) == "" {
			t.Fatal("no checkpoint")
		}
		h.mu.Lock()
		delete(h.guests, web1)
		h.gone = []peer.Departed{{VEE: web1, Epoch: vee.Epoch{Generation: 1, Term: 1}}}
		h.mu.Unlock()
		time.Sleep(10 * time.Second)
		if l.holders(web1) != "" {
			t.Errorf("kept of a VEE that is gone: %s", l.holders(web1))
		}
	})
}

func TestADamagedCopyIsRefused(t *testing.T) {
	inLab(t, 3, func(l *lab) {
		l.hosts["h1"].run(web1, 1, often)
		time.Sleep(12 * time.Second)
		for _, h := range l.hosts {
			for _, k := range h.tr.cfg.Store.List(web1) {
				if err := os.WriteFile(h.tr.cfg.Store.file(web1, k.N, ".pack"), []byte("rot"), 0o600); err != nil {
					t.Fatal(err)
				}
			}
		}
		var free *labHost
		for _, h := range l.hosts {
			if len(h.tr.cfg.Store.List(web1)) == 0 {
				free = h
			}
		}
		if _, _, found, err := free.tr.Newest(l.t.Context(), web1); !found || err == nil {
			t.Errorf("rot was taken: %v, %v", found, err)
		}
		time.Sleep(15 * time.Second) // the next one is sound
		own := l.hosts["h1"].tr
		last, _ := own.Last(web1)
		if err := os.WriteFile(own.cfg.Store.file(web1, last.N, ".pack"), []byte("rot"), 0o600); err != nil {
			t.Fatal(err)
		}
		r, n, found, err := own.Newest(l.t.Context(), web1)
		if err != nil || !found || n != last.N {
			t.Fatalf("its own copy has rotted, the other has not: %d of %d, %v, %v", n, last.N, found, err)
		}
		r.Close()
	})
}

// Only who is in line may have guests stopped.
func TestDeedsAreForTrackers(t *testing.T) {
	inLab(t, 4, func(l *lab) {
		line := Line("shop", []string{"h1", "h2", "h3", "h4"})
		l.hosts["h1"].run(web1, 1, often)
		o := peer.Order{VE: "shop", VEE: web1, N: 9}
		for i, host := range line {
			if err := l.hosts["h1"].tr.Do(l.t.Context(), host, peer.Freeze, o); fault.Has(err, fault.Denied) != (i >= standBy) {
				t.Errorf("number %d in line: %v", i+1, err)
			}
			_ = l.hosts["h1"].Thaw(l.t.Context(), web1, 9)
		}
		if err := l.hosts["h1"].tr.Do(l.t.Context(), line[0], "dance", o); !fault.Has(err, fault.Malformed) {
			t.Errorf("an unknown deed: %v", err)
		}
	})
}

// A checkpoint leaves room for what guests write: it is not begun, or given up on its way.
func TestACheckpointLeavesRoom(t *testing.T) {
	s, err := OpenStore(t.TempDir(), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	left := leaves + 40*vee.MiB
	s.free = func() (vee.Bytes, error) { return left, nil }
	block := make([]byte, vee.MiB)
	fill := func(n int) func(io.Writer) error {
		return func(w io.Writer) error {
			for range n {
				if _, err := w.Write(block); err != nil {
					return err
				}
				left -= vee.MiB
			}
			return nil
		}
	}
	if err := s.Add(t.Context(), peer.Kept{VEE: web1, N: 1}, fill(30)); err != nil {
		t.Fatal(err)
	}
	if err := s.Add(t.Context(), peer.Kept{VEE: web1, N: 2}, fill(60)); !fault.Has(err, fault.DiskFull) {
		t.Errorf("on its way: %v", err)
	}
	if err := s.Add(t.Context(), peer.Kept{VEE: web1, N: 3}, fill(1)); !fault.Has(err, fault.DiskFull) {
		t.Errorf("at its beginning: %v", err)
	}
	if files, _ := os.ReadDir(s.folder(web1)); len(files) != 2 || len(s.List(web1)) != 1 {
		t.Errorf("left: %v", files)
	}
}

func TestTheStoreSurvives(t *testing.T) {
	dir := t.TempDir()
	log := slog.New(slog.DiscardHandler)
	s, err := OpenStore(dir, log)
	if err != nil {
		t.Fatal(err)
	}
	for n := 1; n <= 3; n++ {
		if err := s.Add(t.Context(), peer.Kept{VEE: web1, VE: "shop", N: n}, func(w io.Writer) error { _, err := fmt.Fprint(w, n); return err }); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(s.Settle(web1, 2, 1), os.WriteFile(s.file(web1, 7, ".pack"), nil, 0o600), os.WriteFile(s.file(web1, 8, ".json"), []byte("{"), 0o600)); err != nil {
		t.Fatal(err)
	}
	if err := s.Add(t.Context(), peer.Kept{VEE: web1, N: 4, Digest: "sha256:0"}, func(io.Writer) error { return nil }); !fault.Has(err, fault.DigestMismatch) {
		t.Errorf("another digest: %v", err)
	}
	if s, err = OpenStore(dir, log); err != nil {
		t.Fatal(err)
	}
	list := s.List(web1)
	if len(list) != 2 || list[0].N != 2 || !list[0].Whole || list[1].N != 3 || list[1].Whole {
		t.Errorf("read again: %+v", list)
	}
	files, _ := os.ReadDir(s.folder(web1))
	if len(files) != 4 {
		t.Errorf("left in the folder: %v", files)
	}
	if b, found := Best(list); !found || b.N != 2 {
		t.Errorf("best: %+v", b)
	}
}
