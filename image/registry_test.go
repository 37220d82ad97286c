package image

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"oras.land/oras-go/v2"
	"oras.land/oras-go/v2/content/memory"
	"oras.land/oras-go/v2/errdef"
	"oras.land/oras-go/v2/registry/remote"

	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/internal/identity"
	"github.com/reservoir-cloud/reservoir/vee"
)

// serve gives a site's registry to callers of one role.
func serve(t testing.TB, s *Store, role identity.Role) Remote {
	t.Helper()
	h := s.Handler(Allow)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h.ServeHTTP(w, r.WithContext(identity.With(r.Context(), identity.Caller{ID: "test", Role: role})))
	}))
	t.Cleanup(server.Close)
	return Remote{Base: server.URL, HTTP: server.Client()}
}

// repository of a registry, as a stock client has it.
func repository(t testing.TB, r Remote, name string) *remote.Repository {
	t.Helper()
	repo, err := remote.NewRepository(strings.TrimPrefix(r.Base, "http://") + "/" + name)
	if err != nil {
		t.Fatal(err)
	}
	repo.PlainHTTP, repo.Client = true, r
	return repo
}

func TestStockClient(t *testing.T) {
	s := newStore(t, t.TempDir(), Options{})
	site := serve(t, s, identity.Operator)
	repo := repository(t, site, "acme/app")
	src := kernelImage(t, 1, 1<<20)

	d, err := oras.Copy(t.Context(), src, "", repo, "v1", oras.DefaultCopyOptions)
	if err != nil || d.Digest.String() != src.image.Digest {
		t.Fatalf("push: %v, %v", d, err)
	}
	for _, tag := range []string{"v2", "v3", "v4"} {
		if err := repo.Tag(t.Context(), d, tag); err != nil {
			t.Fatal(err)
		}
	}
	back := memory.New()
	if _, err := oras.Copy(t.Context(), repo, "v3", back, "v3", oras.DefaultCopyOptions); err != nil {
		t.Fatalf("pull: %v", err)
	}
	for _, p := range src.image.parts() {
		if ok, err := back.Exists(t.Context(), p); err != nil || !ok {
			t.Errorf("pulled image has no %s: %v", p.MediaType, err)
		}
	}

	// A blob by range.
	r, err := repo.Blobs().Fetch(t.Context(), *src.image.Initrd)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if _, err := r.(io.Seeker).Seek(1<<19, io.SeekStart); err != nil {
		t.Fatal(err)
	}
	half, err := io.ReadAll(r)
	if err != nil || !bytes.Equal(half, content(1, 1<<20)[1<<19:]) {
		t.Fatalf("second half: %d bytes, %v", len(half), err)
	}

	// Lists, by pages.
	repo.TagListPageSize = 3
	var tags []string
	var pages int
	if err := repo.Tags(t.Context(), "", func(page []string) error {
		pages++
		tags = append(tags, page...)
		return nil
	}); err != nil || pages != 2 || !slices.Equal(tags, []string{"v1", "v2", "v3", "v4"}) {
		t.Errorf("tags %v in %d pages, %v", tags, pages, err)
	}
	reg, err := remote.NewRegistry(repo.Reference.Registry)
	if err != nil {
		t.Fatal(err)
	}
	reg.PlainHTTP, reg.Client = true, site
	var names []string
	if err := reg.Repositories(t.Context(), "", func(page []string) error {
		names = append(names, page...)
		return nil
	}); err != nil || !slices.Equal(names, []string{"acme/app"}) {
		t.Errorf("catalog %v, %v", names, err)
	}

	// What is not there, and taking away.
	if _, err := repo.Resolve(t.Context(), "v9"); !isNotFound(err) {
		t.Errorf("resolve v9: %v", err)
	}
	if ok, err := repo.Exists(t.Context(), ocispec.Descriptor{MediaType: MediaTypeDiskRaw, Digest: someDigest, Size: 1}); ok || err != nil {
		t.Errorf("blob that is not there: %v, %v", ok, err)
	}
	if err := repo.Delete(t.Context(), d); err != nil {
		t.Errorf("delete: %v", err)
	}
	if _, err := repo.Resolve(t.Context(), "v1"); !isNotFound(err) {
		t.Errorf("resolve v1 after delete: %v", err)
	}
	// A container image is refused with the reason.
	err = oras.CopyGraph(t.Context(), containerImage(t), repo, containerRoot, oras.DefaultCopyGraphOptions)
	if err == nil || !strings.Contains(err.Error(), "artifact type") {
		t.Errorf("pushing a container image: %v", err)
	}
}

func isNotFound(err error) bool {
	return err != nil && (strings.Contains(err.Error(), errdef.ErrNotFound.Error()) || strings.Contains(err.Error(), "404"))
}

var containerRoot = ocispec.Descriptor{
	MediaType: ocispec.MediaTypeImageManifest, Digest: digest.FromString(containerManifest), Size: int64(len(containerManifest)),
}

const containerManifest = `{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json",` +
	`"config":{"mediaType":"application/vnd.oci.empty.v1+json","digest":"sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a","size":2},"layers":[]}`

func containerImage(t *testing.T) oras.Target {
	m := memory.New()
	if err := m.Push(t.Context(), ocispec.DescriptorEmptyJSON, strings.NewReader("{}")); err != nil {
		t.Fatal(err)
	}
	if err := m.Push(t.Context(), containerRoot, strings.NewReader(containerManifest)); err != nil {
		t.Fatal(err)
	}
	return m
}

func TestRemote(t *testing.T) {
	used := map[string][]string{}
	s := newStore(t, t.TempDir(), Options{InUse: func(context.Context) (map[string][]string, error) { return used, nil }})
	site := serve(t, s, identity.Provider)
	src := kernelImage(t, 1, 1<<20)
	var seen []vee.Progress
	d, err := site.Push(t.Context(), src, "app:v1", func(p vee.Progress) { seen = append(seen, p) })
	if err != nil || d != src.image.Digest {
		t.Fatalf("push: %s, %v", d, err)
	}
	last := seen[len(seen)-1]
	if !slices.IsSortedFunc(seen, func(a, b vee.Progress) int { return int(a.Done - b.Done) }) || last.Done != last.Total || last.Total != int64(src.image.Size()) {
		t.Errorf("progress %v", seen)
	}
	seen = nil
	if _, err := site.Push(t.Context(), src, "app:v2", func(p vee.Progress) { seen = append(seen, p) }); err != nil {
		t.Fatal(err)
	}
	if last := seen[len(seen)-1]; last.Done != last.Total {
		t.Errorf("progress of an image that is there: %v", seen)
	}

	if l, err := site.List(t.Context()); err != nil || len(l) != 2 || l[1].Tag != "v2" {
		t.Errorf("list %+v, %v", l, err)
	}
	used[d] = []string{"alpha.aaaaaaaaaa"}
	if i, err := site.Show(t.Context(), "app:v1"); err != nil || i.Digest != d || len(i.UsedBy) != 1 {
		t.Errorf("show %+v, %v", i, err)
	}
	_, err = site.Show(t.Context(), "app:v9")
	wantFault(t, err, fault.NotFound, "app:v9")
	_, err = site.Push(t.Context(), src, "App:v9", nil)
	wantFault(t, err, fault.Malformed)

	// A Provider without a customer of its own may change nothing that is there.
	wantFault(t, site.Remove(t.Context(), "app:v1", false), fault.Denied)
	operator := serve(t, s, identity.Operator)
	if err := operator.Remove(t.Context(), "app:v1", false); err != nil {
		t.Errorf("one of two tags: %v", err)
	}
	err = operator.Remove(t.Context(), "app:v2", false)
	wantFault(t, err, fault.InUse, "alpha.aaaaaaaaaa")
	if next := fault.From(err).NextStep(); !strings.Contains(next, "--force") {
		t.Errorf("next step %q", next)
	}
	if err := operator.Remove(t.Context(), d, true); err != nil {
		t.Errorf("force: %v", err)
	}
	wantFault(t, operator.Remove(t.Context(), "app:v2", false), fault.NotFound)
}

func TestRoles(t *testing.T) {
	s := newStore(t, t.TempDir(), Options{})
	src := kernelImage(t, 1, 10)
	push(t, s, src, "app:v1")
	for _, tt := range []struct {
		role       identity.Role
		pull, push fault.Code
	}{
		{identity.Operator, "", ""},
		{identity.SiteRole, "", ""},
		{identity.HostRole, "", fault.Denied},
		{identity.Partner, "", fault.Denied},
		{identity.Auditor, "", fault.Denied},
		{"", fault.Unauthenticated, fault.Unauthenticated},
	} {
		site := serve(t, s, tt.role)
		_, pullErr := site.Show(t.Context(), "app:v1")
		_, pushErr := site.Push(t.Context(), src, "app:new", nil)
		for what, e := range map[string]struct {
			err  error
			want fault.Code
		}{"pull": {pullErr, tt.pull}, "push": {pushErr, tt.push}, "delete": {site.Remove(t.Context(), "app:new", false), tt.push}} {
			if e.want == "" && e.err != nil || e.want != "" && !fault.Has(e.err, e.want) {
				t.Errorf("role %q, %s: %v; want %q", tt.role, what, e.err, e.want)
			}
		}
	}
}

// call makes a bare request and returns its answer with the body read.
func call(t *testing.T, site Remote, method, path string, body []byte, header ...string) (*http.Response, []byte) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, site.Base+path, bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := site.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp, data
}

// Chunks, an interruption, and a site that restarts between two of them.
func TestUploadInChunks(t *testing.T) {
	dir := t.TempDir()
	s := newStore(t, dir, Options{})
	site := serve(t, s, identity.Operator)
	blob := content(1, 1000)
	d := digest.FromBytes(blob)

	expect := func(resp *http.Response, status int, rng string) {
		t.Helper()
		if resp.StatusCode != status || resp.Header.Get("Range") != rng {
			t.Fatalf("status %s, range %q; want %d, %q", resp.Status, resp.Header.Get("Range"), status, rng)
		}
	}
	resp, _ := call(t, site, "POST", "/v2/a/b/blobs/uploads/", nil)
	expect(resp, 202, "0-0")
	at := resp.Header.Get("Location")
	resp, _ = call(t, site, "PATCH", at, blob[:300], "Content-Range", "0-299")
	expect(resp, 202, "0-299")
	resp, body := call(t, site, "PATCH", at, blob[500:], "Content-Range", "500-999")
	expect(resp, 416, "0-299")
	var e errorBody
	if err := json.Unmarshal(body, &e); err != nil || e.Errors[0].Code != codeBlobUploadInvalid {
		t.Errorf("error %s", body)
	}

	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = newStore(t, dir, Options{})
	site = serve(t, s, identity.Operator)
	resp, _ = call(t, site, "GET", at, nil)
	expect(resp, 204, "0-299")
	resp, _ = call(t, site, "PATCH", at, blob[300:900], "Content-Range", "300-899")
	expect(resp, 202, "0-899")
	resp, _ = call(t, site, "PUT", at+"?digest="+d.String(), blob[900:])
	expect(resp, 201, "")
	resp, body = call(t, site, "GET", resp.Header.Get("Location"), nil)
	if resp.StatusCode != 200 || !bytes.Equal(body, blob) {
		t.Errorf("blob: %s, %d bytes", resp.Status, len(body))
	}
	resp, _ = call(t, site, "GET", at, nil)
	expect(resp, 404, "")

	resp, _ = call(t, site, "POST", "/v2/c/blobs/uploads/?from=a/b&mount="+d.String(), nil)
	expect(resp, 201, "")
	resp, _ = call(t, site, "POST", "/v2/c/blobs/uploads/?digest="+d.String(), blob)
	expect(resp, 201, "")
	resp, _ = call(t, site, "POST", "/v2/c/blobs/uploads/", nil)
	resp, _ = call(t, site, "DELETE", resp.Header.Get("Location"), nil)
	expect(resp, 204, "")
	if left := files(t, dir+"/uploads"); len(left) > 0 {
		t.Errorf("left over: %v", left)
	}
}

func TestRegistryErrors(t *testing.T) {
	s := newStore(t, t.TempDir(), Options{MaxBlob: 100})
	site := serve(t, s, identity.Operator)
	push(t, s, kernelImage(t, 1, 10), "app:v1")
	full := newStore(t, t.TempDir(), Options{KeepFree: 1 << 60})
	fullSite := serve(t, full, identity.Operator)
	for _, tt := range []struct {
		site   Remote
		method string
		path   string
		body   string
		status int
		code   string
	}{
		{site, "GET", "/v2/", "", 200, ""},
		{site, "GET", "/v2/app/tags/list", "", 200, ""},
		{site, "GET", "/v2/app/tags/list?n=x", "", 400, codeUnsupported},
		{site, "GET", "/v2/none/tags/list", "", 404, codeNameUnknown},
		{site, "GET", "/v2/App/tags/list", "", 400, codeNameInvalid},
		{site, "GET", "/v2/app/manifests/v2", "", 404, codeManifestUnknown},
		{site, "GET", "/v2/app/manifests/sha256:12", "", 400, codeManifestInvalid},
		{site, "GET", "/v2/app/blobs/sha256:12", "", 400, codeDigestInvalid},
		{site, "GET", "/v2/app/blobs/" + someDigest, "", 404, codeBlobUnknown},
		{site, "GET", "/v2/app/blobs/..%2f..%2fetc%2fpasswd", "", 405, codeUnsupported},
		{site, "DELETE", "/v2/app/blobs/" + someDigest, "", 405, codeUnsupported},
		{site, "PUT", "/v2/app/manifests/v2", "{", 400, codeManifestInvalid},
		{site, "PUT", "/v2/app/manifests/v2", strings.Repeat(" ", maxMetadata+1), 413, codeSizeInvalid},
		{site, "PUT", "/v2/app/manifests/v2", string(diskImage(t, 1, 10).manifest), 400, codeManifestBlobUnknown},
		{site, "DELETE", "/v2/app/manifests/v2", "", 404, codeManifestUnknown},
		{site, "PATCH", "/v2/app/blobs/uploads/..", "x", 404, codeBlobUploadUnknown},
		{site, "POST", "/v2/app/blobs/uploads/?digest=x", "x", 400, codeDigestInvalid},
		{site, "POST", "/v2/app/blobs/uploads/?digest=" + someDigest, "x", 400, codeDigestInvalid},
		{site, "POST", "/v2/app/blobs/uploads/?digest=" + someDigest, strings.Repeat("x", 101), 413, codeSizeInvalid},
		{fullSite, "POST", "/v2/app/blobs/uploads/?digest=" + someDigest, "x", 507, codeUnknown},
		{site, "GET", "/v2/nothing", "", 405, codeUnsupported},
	} {
		resp, raw := call(t, tt.site, tt.method, tt.path, []byte(tt.body))
		var e errorBody
		if err := json.Unmarshal(raw, &e); err != nil {
			t.Errorf("%s %s: answer %q: %v", tt.method, tt.path, raw, err)
			continue
		}
		code := ""
		if len(e.Errors) > 0 {
			code = e.Errors[0].Code
			if e.Errors[0].Message == "" || e.Errors[0].Detail.Next == "" {
				t.Errorf("%s %s: no message or next step: %s", tt.method, tt.path, raw)
			}
		}
		if resp.StatusCode != tt.status || code != tt.code {
			t.Errorf("%s %s: %d %s; want %d %s", tt.method, tt.path, resp.StatusCode, raw, tt.status, tt.code)
		}
	}
	for _, dir := range []string{s.dir, full.dir} {
		if left := files(t, dir+"/uploads"); len(left) > 1 { // the session that got no valid digest goes on
			t.Errorf("left over: %v", left)
		}
	}
}

// Pushes, pulls, removals and collections at once: every push that succeeded is whole.
func TestConcurrentPushPullCollect(t *testing.T) {
	s := newStore(t, t.TempDir(), Options{})
	site := serve(t, s, identity.Operator)
	sources := []*Source{kernelImage(t, 1, 50_000), kernelImage(t, 2, 50_000), diskImage(t, 3, 50_000)}
	var wg sync.WaitGroup
	for w, src := range sources {
		wg.Go(func() {
			for i := range 8 {
				ref := fmt.Sprintf("app%d:v%d", w, i%3)
				if _, err := site.Push(t.Context(), src, ref, nil); err != nil {
					t.Errorf("push %s: %v", ref, err)
				}
				back := memory.New()
				if _, err := oras.Copy(t.Context(), repository(t, site, fmt.Sprintf("app%d", w)), fmt.Sprintf("v%d", i%3), back, "", oras.DefaultCopyOptions); err != nil {
					t.Errorf("pull %s: %v", ref, err)
				}
				if i%2 == 1 {
					if err := site.Remove(t.Context(), ref, false); err != nil {
						t.Errorf("remove %s: %v", ref, err)
					}
				}
			}
		})
	}
	wg.Go(func() {
		for range 30 {
			if _, err := s.Collect(t.Context()); err != nil {
				t.Errorf("collect: %v", err)
			}
			if p, err := s.Verify(t.Context()); err != nil || len(p) > 0 {
				t.Errorf("verify: %v, %v", p, err)
			}
		}
	})
	wg.Wait()
	l, err := s.List(t.Context())
	if err != nil || len(l) == 0 {
		t.Fatalf("list %v, %v", l, err)
	}
	for _, i := range l {
		if i.Problem != "" {
			t.Errorf("image %+v", i)
		}
	}
}

// Without any grace a collection may take the blobs of a push that has not named them yet.
// Then the push fails; what can be found is whole all the same.
func TestCollectNeverTakesWhatIsNamed(t *testing.T) {
	s := newStore(t, t.TempDir(), Options{Grace: 1})
	var wg, collector sync.WaitGroup
	ctx, stop := context.WithCancel(t.Context())
	collector.Go(func() {
		for ctx.Err() == nil {
			if _, err := s.Collect(t.Context()); err != nil {
				t.Errorf("collect: %v", err)
			}
		}
	})
	for w := range 3 {
		src := kernelImage(t, uint64(w), 1000)
		wg.Go(func() {
			for i := range 20 {
				ref := fmt.Sprintf("app%d:latest", w)
				if _, err := s.Push(t.Context(), src, ref); err != nil && !fault.Has(err, fault.Malformed) {
					t.Errorf("push: %v", err)
				}
				if i%4 == 3 {
					if err := s.Remove(t.Context(), ref, false); err != nil && !fault.Has(err, fault.NotFound) {
						t.Errorf("remove: %v", err)
					}
				}
				if p, err := s.Verify(t.Context()); err != nil || len(p) > 0 {
					t.Errorf("verify: %v, %v", p, err)
				}
			}
		})
	}
	wg.Wait()
	stop()
	collector.Wait()
}

// httpClient without connections that outlive their requests.
func httpClient() *http.Client {
	return &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
}
