package image

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/internal/identity"
	"github.com/reservoir-cloud/reservoir/vee"
)

func newCache(t testing.TB, dir string, site Remote, o CacheOptions) *Cache {
	t.Helper()
	if o.Wait == nil {
		o.Wait = func(ctx context.Context, _ int) error { return ctx.Err() }
	}
	c, err := OpenCache(dir, site, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// unruly is a site's registry with something done to each request for a blob.
type unruly struct {
	requests atomic.Int64 // for blobs
	mu       sync.Mutex
	around   func(w http.ResponseWriter, r *http.Request, serve http.HandlerFunc)
}

func (u *unruly) do(f func(w http.ResponseWriter, r *http.Request, serve http.HandlerFunc)) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.around = f
}

func (u *unruly) serve(t testing.TB, s *Store) Remote {
	t.Helper()
	h := s.Handler(Allow)
	serve := func(w http.ResponseWriter, r *http.Request) {
		h.ServeHTTP(w, r.WithContext(identity.With(r.Context(), identity.Caller{ID: "host", Role: identity.HostRole})))
	}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		u.mu.Lock()
		around := u.around
		u.mu.Unlock()
		if !strings.Contains(r.URL.Path, "/blobs/") || around == nil {
			serve(w, r)
			return
		}
		u.requests.Add(1)
		around(w, r, serve)
	}))
	t.Cleanup(server.Close)
	return Remote{Base: server.URL, HTTP: server.Client()}
}

// cutting lets only the next n bytes of a body through, then cuts the connection.
type cutting struct {
	http.ResponseWriter
	n int
}

func (c *cutting) Write(p []byte) (int, error) {
	if len(p) > c.n {
		_, _ = c.ResponseWriter.Write(p[:c.n])
		if f, ok := c.ResponseWriter.(http.Flusher); ok {
			f.Flush()
		}
		panic(http.ErrAbortHandler)
	}
	c.n -= len(p)
	return c.ResponseWriter.Write(p)
}

func TestFetch(t *testing.T) {
	s := newStore(t, t.TempDir(), Options{})
	var u unruly
	site := u.serve(t, s)
	kernel, disk := kernelImage(t, 1, 1<<20), diskImage(t, 2, 1<<20)
	push(t, s, kernel, "app")
	push(t, s, disk, "debian")
	dir := t.TempDir()
	c := newCache(t, dir, site, CacheOptions{})

	var last vee.Progress
	l, err := c.Fetch(t.Context(), kernel.image.Digest, func(p vee.Progress) { last = p })
	if err != nil {
		t.Fatal(err)
	}
	if l.Digest != kernel.image.Digest || l.Cmdline != "console=ttyS0" || l.Disk != "" || l.Format != "" {
		t.Errorf("kernel image: %+v", l)
	}
	if got, err := os.ReadFile(l.Initrd); err != nil || !bytes.Equal(got, content(1, 1<<20)) {
		t.Errorf("initrd: %d bytes, %v", len(got), err)
	}
	if last.Total == 0 || last.Done != last.Total {
		t.Errorf("last progress %+v", last)
	}
	if l, err = c.Fetch(t.Context(), disk.image.Digest, nil); err != nil || l.Format != FormatQCOW2 || l.Disk == "" || l.Kernel != "" {
		t.Errorf("disk image: %+v, %v", l, err)
	}
	err = filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		info, _ := e.Info()
		if want := map[bool]fs.FileMode{true: 0o755, false: 0o644}[e.IsDir()]; info.Mode().Perm() != want && e.Name() != "lock" {
			t.Errorf("%s has mode %v; want %v", path, info.Mode().Perm(), want)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}

	// What is here needs no site, also after a restart.
	for range 2 {
		away := Remote{Base: "http://127.0.0.1:1", HTTP: http.DefaultClient}
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
		c = newCache(t, dir, away, CacheOptions{})
		if _, err := c.Fetch(t.Context(), disk.image.Digest, nil); err != nil {
			t.Errorf("with the site away: %v", err)
		}
	}
	_, err = c.Fetch(t.Context(), someDigest, nil)
	wantFault(t, err, fault.Unavailable, someDigest)
	if _, err := OpenCache(dir, site, CacheOptions{}); !fault.Has(err, fault.Exists) {
		t.Errorf("a second process on one cache: %v", err)
	}
}

// The connection is cut at random offsets, the site restarts, and so does the host.
func TestFetchResumes(t *testing.T) {
	s := newStore(t, t.TempDir(), Options{})
	var u unruly
	site := u.serve(t, s)
	src := kernelImage(t, 1, 4<<20)
	push(t, s, src, "app")
	rng := rand.New(rand.NewPCG(7, 7))
	var rmu sync.Mutex
	var sent, ranges atomic.Int64
	u.do(func(w http.ResponseWriter, r *http.Request, serve http.HandlerFunc) {
		rmu.Lock()
		n := 1 + rng.IntN(1<<20)
		rmu.Unlock()
		if r.Header.Get("Range") != "" {
			ranges.Add(1)
		}
		cut := &cutting{w, n}
		defer func() { sent.Add(int64(n - cut.n)) }()
		serve(cut, r)
	})

	// An agent that gives up in the middle and comes again keeps what it has.
	dir := t.TempDir()
	ctx, cancel := context.WithCancel(t.Context())
	c := newCache(t, dir, site, CacheOptions{})
	_, err := c.Fetch(ctx, src.image.Digest, func(p vee.Progress) {
		if p.Done > 1<<20 {
			cancel()
		}
	})
	if err == nil {
		t.Fatal("a fetch whose context ended succeeded")
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(filepath.Join(dir, "partial", src.image.Initrd.Digest.Encoded()))
	if err != nil || info.Size() == 0 {
		t.Fatalf("nothing was kept: %v, %v", info, err)
	}

	c = newCache(t, dir, site, CacheOptions{})
	l, err := c.Fetch(t.Context(), src.image.Digest, nil)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(l.Initrd); err != nil || !bytes.Equal(got, content(1, 4<<20)) {
		t.Errorf("initrd: %d bytes, %v", len(got), err)
	}
	if ranges.Load() < 2 {
		t.Errorf("%d requests for a range; want several", ranges.Load())
	}
	if left := files(t, filepath.Join(dir, "partial")); len(left) > 0 {
		t.Errorf("left over: %v", left)
	}
}

func TestFetchGivesUpOnASiteThatIsAway(t *testing.T) {
	s := newStore(t, t.TempDir(), Options{})
	var u unruly
	site := u.serve(t, s)
	src := kernelImage(t, 1, 1000)
	push(t, s, src, "app")
	u.do(func(w http.ResponseWriter, _ *http.Request, _ http.HandlerFunc) { panic(http.ErrAbortHandler) })
	var waits []int
	c := newCache(t, t.TempDir(), site, CacheOptions{Retries: 3, Wait: func(_ context.Context, n int) error {
		waits = append(waits, n)
		return nil
	}})
	_, err := c.Fetch(t.Context(), src.image.Digest, nil)
	wantFault(t, err, fault.Unavailable, src.image.Digest)
	if !slices.Equal(waits, []int{1, 2, 3}) {
		t.Errorf("waits %v", waits)
	}
	u.do(nil)
	if _, err := c.Fetch(t.Context(), src.image.Digest, nil); err != nil {
		t.Errorf("when it is back: %v", err)
	}
}

// A site that accepts and then says nothing.
func TestFetchCutsAStalledTransfer(t *testing.T) {
	s := newStore(t, t.TempDir(), Options{})
	var u unruly
	site := u.serve(t, s)
	src := kernelImage(t, 1, 1000)
	push(t, s, src, "app")
	u.do(func(w http.ResponseWriter, r *http.Request, serve http.HandlerFunc) {
		if u.requests.Load() == 1 {
			<-r.Context().Done()
			return
		}
		serve(w, r)
	})
	c := newCache(t, t.TempDir(), site, CacheOptions{Stall: 20 * time.Millisecond})
	if _, err := c.Fetch(t.Context(), src.image.Digest, nil); err != nil {
		t.Error(err)
	}
}

func TestFetchRefuses(t *testing.T) {
	src := kernelImage(t, 1, 1000)
	other := func(data []byte) func(http.ResponseWriter, *http.Request, http.HandlerFunc) {
		return func(w http.ResponseWriter, r *http.Request, serve http.HandlerFunc) {
			if strings.HasSuffix(r.URL.Path, src.image.Initrd.Digest.String()) {
				_, _ = w.Write(data)
				return
			}
			serve(w, r)
		}
	}
	for _, tt := range []struct {
		name   string
		digest string
		o      CacheOptions
		around func(http.ResponseWriter, *http.Request, http.HandlerFunc)
		code   fault.Code
		words  string
	}{
		{"other content", src.image.Digest, CacheOptions{}, other(content(2, 1000)), fault.DigestMismatch, src.image.Initrd.Digest.String()},
		{"too much content", src.image.Digest, CacheOptions{}, other(content(1, 2000)), fault.DigestMismatch, src.image.Initrd.Digest.String()},
		{"no such image", someDigest, CacheOptions{}, nil, fault.NotFound, someDigest},
		{"no digest", "app:v1", CacheOptions{}, nil, fault.Malformed, "app:v1"},
		{"no room on the disk", src.image.Digest, CacheOptions{KeepFree: 1 << 60}, nil, fault.DiskFull, "kept for"},
		{"no room in the cache", src.image.Digest, CacheOptions{Limit: 500}, nil, fault.DiskFull, "500B"},
		{"blob is missing", src.image.Digest, CacheOptions{}, func(w http.ResponseWriter, r *http.Request, _ http.HandlerFunc) {
			http.NotFound(w, r)
		}, fault.NotFound, src.image.Digest},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := newStore(t, t.TempDir(), Options{})
			push(t, s, src, "app")
			var u unruly
			site := u.serve(t, s)
			u.do(tt.around)
			dir := t.TempDir()
			c := newCache(t, dir, site, tt.o)
			_, err := c.Fetch(t.Context(), tt.digest, nil)
			wantFault(t, err, tt.code, tt.words)
			if left := files(t, filepath.Join(dir, "partial")); len(left) > 0 {
				t.Errorf("left over: %v", left)
			}
			if _, err := os.Stat(c.blobs.path(src.image.Initrd.Digest)); err == nil {
				t.Error("the refused blob is there")
			}
			if tt.digest != src.image.Digest || tt.code == fault.DiskFull {
				return
			}
			u.do(nil)
			if _, err := c.Fetch(t.Context(), tt.digest, nil); err != nil {
				t.Errorf("when the site is in order again: %v", err)
			}
		})
	}
}

// A partner's site may not have checked what ours checks.
func TestFetchRefusesADiskThatNamesAnotherFile(t *testing.T) {
	evil := qcow2Head(vee.GiB)
	evil[15] = 1
	good := diskImage(t, 1, 0)
	manifest := bytes.ReplaceAll(good.manifest, []byte(good.image.Disk.Digest), []byte(digest.FromBytes(evil)))
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch d := digest.Digest(r.URL.Path[strings.LastIndex(r.URL.Path, "/")+1:]); d {
		case digest.FromBytes(manifest):
			_, _ = w.Write(manifest)
		case digest.FromBytes(evil):
			_, _ = w.Write(evil)
		default:
			rc, _, err := good.open(d)
			if err != nil {
				http.NotFound(w, r)
				return
			}
			defer rc.Close()
			_, _ = io.Copy(w, rc)
		}
	}))
	defer server.Close()
	c := newCache(t, t.TempDir(), Remote{Base: server.URL, HTTP: server.Client()}, CacheOptions{})
	_, err := c.Fetch(t.Context(), digest.FromBytes(manifest).String(), nil)
	wantFault(t, err, fault.Malformed, "backing file")
}

func TestFetchRepairsADamagedBlob(t *testing.T) {
	s := newStore(t, t.TempDir(), Options{})
	src := kernelImage(t, 1, 1000)
	push(t, s, src, "app")
	dir := t.TempDir()
	site := serve(t, s, identity.HostRole)
	c := newCache(t, dir, site, CacheOptions{})
	l, err := c.Fetch(t.Context(), src.image.Digest, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(l.Initrd, content(5, 1000), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(c.manifests.path(digest.Digest(src.image.Digest)), []byte("{"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	c = newCache(t, dir, site, CacheOptions{})
	if _, err := c.Fetch(t.Context(), src.image.Digest, nil); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(l.Initrd); err != nil || !bytes.Equal(got, content(1, 1000)) {
		t.Errorf("initrd: %d bytes, %v", len(got), err)
	}
}

// Twenty VEEs of one image start at once; the first of them is cancelled half-way.
func TestConcurrentFetchesTransferOnce(t *testing.T) {
	s := newStore(t, t.TempDir(), Options{})
	var u unruly
	site := u.serve(t, s)
	src := kernelImage(t, 1, 1<<20)
	push(t, s, src, "app")
	arrived, release := make(chan struct{}), make(chan struct{})
	var once sync.Once
	u.do(func(w http.ResponseWriter, r *http.Request, serve http.HandlerFunc) {
		once.Do(func() { close(arrived); <-release })
		serve(w, r)
	})
	c := newCache(t, t.TempDir(), site, CacheOptions{})
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		if _, err := c.Fetch(ctx, src.image.Digest, nil); err == nil {
			t.Error("the cancelled fetch succeeded")
		}
	})
	<-arrived
	var done atomic.Int64
	for range 20 {
		wg.Go(func() {
			var last vee.Progress
			_, err := c.Fetch(t.Context(), src.image.Digest, func(p vee.Progress) { last = p })
			if err != nil || last.Done != last.Total || last.Total == 0 {
				t.Errorf("fetch: %v, last progress %+v", err, last)
			}
			done.Add(1)
		})
	}
	cancel()
	close(release)
	wg.Wait()
	// Config, kernel and initrd, and one more where the cancelled one did not get its answer.
	if n := u.requests.Load(); done.Load() != 20 || n < 3 || n > 4 {
		t.Errorf("%d fetches by %d requests; want 3 or 4", done.Load(), n)
	}
}

func TestCacheCollects(t *testing.T) {
	s := newStore(t, t.TempDir(), Options{})
	site := serve(t, s, identity.HostRole)
	a, b := kernelImage(t, 1, 1000), kernelImage(t, 2, 1000)
	push(t, s, a, "a")
	push(t, s, b, "b")
	k := &clock{time.Now()}
	inUse := []string{}
	dir := t.TempDir()
	c := newCache(t, dir, site, CacheOptions{Now: k.Now, KeepUnused: time.Hour, InUse: func() []string { return inUse }})
	for _, src := range []*Source{a, b} {
		if _, err := c.Fetch(t.Context(), src.image.Digest, nil); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "partial", strings.Repeat("a", 64)), make([]byte, 7), 0o644); err != nil {
		t.Fatal(err)
	}
	collect := func(want vee.Bytes) {
		t.Helper()
		if got, err := c.Collect(t.Context()); err != nil || got != want {
			t.Errorf("collected %d, %v; want %d", got, err, want)
		}
	}
	collect(7) // nobody's partial file
	k.now = k.now.Add(2 * time.Hour)
	inUse = []string{a.image.Digest}
	collect(1000) // b's initrd; kernel and config are a's too
	if _, err := os.Stat(c.blobs.path(a.image.Kernel.Digest)); err != nil {
		t.Error(err)
	}
	inUse = nil
	collect(a.image.Size() - vee.Bytes(a.image.manifest.Size))
	if left := files(t, dir); len(left) > 0 {
		t.Errorf("left over: %v", left)
	}
}

// The limit holds by evicting the image not used for longest; what is in use stays.
func TestCacheLimit(t *testing.T) {
	s := newStore(t, t.TempDir(), Options{})
	site := serve(t, s, identity.HostRole)
	k := &clock{time.Now()}
	var inUse []string
	c := newCache(t, t.TempDir(), site, CacheOptions{Limit: 25_000, Now: k.Now, InUse: func() []string { return inUse }})
	var images []string
	for i := range 4 {
		src := kernelImage(t, uint64(i), 10_000)
		push(t, s, src, fmt.Sprintf("app%d", i))
		images = append(images, src.image.Digest)
	}
	fetch := func(i int) error {
		t.Helper()
		k.now = k.now.Add(time.Minute)
		_, err := c.Fetch(t.Context(), images[i], nil)
		return err
	}
	here := func() (l []int) {
		for i, d := range images {
			if _, err := os.Stat(c.manifests.path(digest.Digest(d))); err == nil {
				l = append(l, i)
			}
		}
		return l
	}
	for _, step := range []struct {
		fetch int
		inUse []int
		code  fault.Code
		here  []int
	}{
		{0, nil, "", []int{0}},
		{1, nil, "", []int{0, 1}},
		{0, nil, "", []int{0, 1}},
		{2, nil, "", []int{0, 2}}, // 1 was not used for longest
		{3, []int{0}, "", []int{0, 3}},
		{1, []int{0, 3}, fault.DiskFull, []int{0, 3}},
		{1, []int{3}, "", []int{1, 3}},
	} {
		inUse = nil
		for _, i := range step.inUse {
			inUse = append(inUse, images[i])
		}
		err := fetch(step.fetch)
		if step.code == "" && err != nil || step.code != "" && !fault.Has(err, step.code) {
			t.Fatalf("fetch %d: %v; want %q", step.fetch, err, step.code)
		}
		if got := here(); !slices.Equal(got, step.here) {
			t.Fatalf("after fetching %d: %v are here; want %v", step.fetch, got, step.here)
		}
	}
}

// TestBlob: what belongs to no image comes in the same way, resumed after a cut, and what is not
// what its digest says is never handed out.
func TestBlob(t *testing.T) {
	content := bytes.Repeat([]byte("a packed checkpoint "), 1<<15)
	d := digest.FromBytes(content)
	served, cut := content, len(content)/2
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !strings.HasSuffix(r.URL.Path, "/blobs/"+d.String()) {
			http.NotFound(w, r)
			return
		}
		if cut > 0 {
			w = &cutting{w, cut}
			cut = 0
		}
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(served))
	}))
	defer srv.Close()
	c := newCache(t, t.TempDir(), Remote{Base: srv.URL, HTTP: srv.Client()}, CacheOptions{})
	f, err := c.Blob(t.Context(), d.String(), vee.Bytes(len(content)), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if got, err := io.ReadAll(f); err != nil || !bytes.Equal(got, content) {
		t.Errorf("read %d bytes, %v", len(got), err)
	}
	if _, err := c.Collect(t.Context()); err != nil {
		t.Fatal(err)
	}
	served = bytes.Repeat([]byte("something else alike"), 1<<15)
	if _, err := c.Blob(t.Context(), d.String(), vee.Bytes(len(content)), nil); !fault.Has(err, fault.DigestMismatch) {
		t.Errorf("another content: %v", err)
	}
	if _, err := c.Blob(t.Context(), digest.FromString("gone").String(), 4, nil); !fault.Has(err, fault.NotFound) {
		t.Errorf("one that is not there: %v", err)
	}
}
