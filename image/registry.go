package image

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/internal/identity"
)

// Access that a request to the registry needs.
type Access string

// The three kinds of access.
const (
	Pull   Access = "pull"
	Push   Access = "push"
	Delete Access = "delete"
)

// Allow is who may do what in a site's registry: everybody whom the site knows pulls, its
// operator, its own control plane and service providers push and delete. Errors:
// fault.Unauthenticated, fault.Denied.
func Allow(ctx context.Context, a Access) error {
	c := identity.From(ctx)
	switch {
	case c.Role == "":
		return fault.New(fault.Unauthenticated, "%s images: nobody has said who calls", a)
	case a == Pull || c.Is(identity.Operator, identity.Provider, identity.SiteRole):
		return nil
	}
	return fault.New(fault.Denied, "%s images: role %s may only pull", a, c.Role)
}

// Codes of the OCI distribution spec 1.1, "Error codes".
const (
	codeBlobUnknown         = "BLOB_UNKNOWN"
	codeBlobUploadInvalid   = "BLOB_UPLOAD_INVALID"
	codeBlobUploadUnknown   = "BLOB_UPLOAD_UNKNOWN"
	codeDigestInvalid       = "DIGEST_INVALID"
	codeManifestBlobUnknown = "MANIFEST_BLOB_UNKNOWN"
	codeManifestInvalid     = "MANIFEST_INVALID"
	codeManifestUnknown     = "MANIFEST_UNKNOWN"
	codeNameInvalid         = "NAME_INVALID"
	codeNameUnknown         = "NAME_UNKNOWN"
	codeSizeInvalid         = "SIZE_INVALID"
	codeUnauthorized        = "UNAUTHORIZED"
	codeDenied              = "DENIED"
	codeUnsupported         = "UNSUPPORTED"
	codeUnknown             = "UNKNOWN"
)

// listPath answers with all Info as JSON, or with one where the query has a ref. It is in
// the part of the name space that the spec leaves to extensions ("/v2/_<extension>/").
const listPath = "_reservoir/images"

// forceQuery on the DELETE of a manifest removes it although it is in use.
const forceQuery = "force"

// registry serves a Store by the OCI distribution spec 1.1. Manifests and blobs are one
// pool for all names: by digest they are found under any name (docs/adr/0003).
type registry struct {
	store *Store
	allow func(context.Context, Access) error
}

// Handler serves the store as an OCI registry under /v2/. allow is asked with the
// request's context for each request; Allow is the usual one.
func (s *Store) Handler(allow func(context.Context, Access) error) http.Handler {
	return &registry{s, allow}
}

// accessOf a method.
var accessOf = map[string]Access{
	http.MethodGet: Pull, http.MethodHead: Pull,
	http.MethodPost: Push, http.MethodPatch: Push, http.MethodPut: Push,
	http.MethodDelete: Delete,
}

// request is one request, taken apart.
type request struct {
	http.ResponseWriter
	req  *http.Request
	name string // of the repository
	arg  string // a tag, a digest or an upload
}

// ServeHTTP finds what a request is about. Names have slashes, so the path is read from
// its end.
func (g *registry) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	access, known := accessOf[r.Method]
	path, ok := strings.CutPrefix(r.URL.Path, "/v2/")
	if !ok || !known {
		g.fail(w, "", errUnsupported(r))
		return
	}
	if err := g.allow(r.Context(), access); err != nil {
		g.fail(w, "", err)
		return
	}
	w.Header().Set("Docker-Distribution-Api-Version", "registry/2.0")
	q := request{ResponseWriter: w, req: r}
	read := r.Method == http.MethodGet || r.Method == http.MethodHead
	switch {
	case path == "" && read:
		g.reply(w, http.StatusOK, struct{}{})
		return
	case path == "_catalog" && read:
		g.catalog(q)
		return
	case path == listPath && read:
		g.list(q)
		return
	}

	var handle func(request)
	for _, k := range []struct {
		part    string
		methods map[string]func(request)
	}{
		{"/blobs/uploads/", map[string]func(request){
			http.MethodPost: g.startUpload, http.MethodGet: g.upload, http.MethodPatch: g.upload,
			http.MethodPut: g.upload, http.MethodDelete: g.upload,
		}},
		{"/blobs/", map[string]func(request){http.MethodGet: g.blob, http.MethodHead: g.blob}},
		{"/manifests/", map[string]func(request){
			http.MethodGet: g.manifest, http.MethodHead: g.manifest,
			http.MethodPut: g.putManifest, http.MethodDelete: g.deleteManifest,
		}},
		{"/tags/list", map[string]func(request){http.MethodGet: g.tags}},
	} {
		i := strings.LastIndex(path, k.part)
		if i < 0 || strings.Contains(path[i+len(k.part):], "/") {
			continue
		}
		q.name, q.arg = path[:i], path[i+len(k.part):]
		handle = k.methods[r.Method]
		break
	}
	switch {
	case handle == nil:
		g.fail(w, "", errUnsupported(r))
	case !isName(q.name):
		g.fail(w, codeNameInvalid, fault.New(fault.Malformed, "repository name %.300q: want lower-case letters and digits, parted by '.', '_', '-' or '/'", q.name))
	default:
		handle(q)
	}
}

func errUnsupported(r *http.Request) error {
	return fault.New(fault.Unsupported, "the registry has no %s %.300s", r.Method, r.URL.Path)
}

// reference that a manifest request names; beside a digest the name counts for nothing.
func (q request) reference() (Reference, error) {
	if strings.HasPrefix(q.arg, "sha256:") {
		return ParseReference(q.arg)
	}
	return ParseReference(q.name + ":" + q.arg)
}

func (g *registry) manifest(q request) {
	r, err := q.reference()
	if err != nil {
		g.fail(q, codeManifestInvalid, err)
		return
	}
	img, err := g.store.Resolve(q.req.Context(), r.String())
	if fault.Has(err, fault.DigestMismatch) {
		// To a client that pushes it is not there, so that pushing heals it.
		err = fault.New(fault.NotFound, "%w", err).Try("reservoir image push")
	}
	if err == nil {
		_, err = g.store.blobs.touch(img.manifest.Digest) // as with blobs
	}
	if err != nil {
		g.fail(q, codeManifestUnknown, err)
		return
	}
	raw, err := g.store.blobs.read(img.manifest.Digest)
	if err != nil {
		g.fail(q, codeManifestUnknown, err)
		return
	}
	q.Header().Set("Content-Type", img.manifest.MediaType)
	q.Header().Set("Content-Length", strconv.Itoa(len(raw)))
	q.Header().Set("Docker-Content-Digest", img.Digest)
	q.WriteHeader(http.StatusOK)
	if q.req.Method == http.MethodGet {
		_, _ = q.Write(raw) // a client that has gone away is told nothing
	}
}

func (g *registry) putManifest(q request) {
	r, err := q.reference()
	if err != nil {
		g.fail(q, codeManifestInvalid, err)
		return
	}
	raw, err := io.ReadAll(http.MaxBytesReader(q, q.req.Body, maxMetadata))
	if err != nil {
		if errors.As(err, new(*http.MaxBytesError)) {
			err = fault.New(fault.TooLarge, "manifest of %s has more than %d bytes", r, maxMetadata)
		}
		g.fail(q, codeManifestInvalid, err)
		return
	}
	img, err := g.store.PutManifest(q.req.Context(), raw, r.String())
	if err != nil {
		code := codeManifestInvalid
		if missing := errors.Unwrap(err); fault.Has(missing, fault.NotFound) {
			code = codeManifestBlobUnknown
		}
		g.fail(q, code, err)
		return
	}
	q.Header().Set("Location", "/v2/"+q.name+"/manifests/"+img.Digest)
	q.Header().Set("Docker-Content-Digest", img.Digest)
	q.WriteHeader(http.StatusCreated)
}

func (g *registry) deleteManifest(q request) {
	r, err := q.reference()
	if err != nil {
		g.fail(q, codeManifestInvalid, err)
		return
	}
	if err := g.store.Remove(q.req.Context(), r.String(), q.req.URL.Query().Get(forceQuery) == "true"); err != nil {
		g.fail(q, codeManifestUnknown, err)
		return
	}
	q.WriteHeader(http.StatusAccepted)
}

// blob serves a blob or a range of it. A client that asks whether a blob is there relies
// on it in the push that follows, so asking renews its grace.
func (g *registry) blob(q request) {
	d, err := parseDigest(q.arg)
	if err != nil {
		g.fail(q, codeDigestInvalid, err)
		return
	}
	if _, err := g.store.blobs.touch(d); err != nil {
		g.fail(q, "", fmt.Errorf("blob %s: %w", d, err))
		return
	}
	f, err := os.Open(g.store.blobs.path(d))
	if err != nil {
		g.fail(q, codeBlobUnknown, fault.New(fault.NotFound, "blob %s is not here", d))
		return
	}
	defer f.Close()
	h := q.Header()
	h.Set("Content-Type", "application/octet-stream")
	h.Set("Docker-Content-Digest", d.String())
	h.Set("ETag", strconv.Quote(d.String()))
	http.ServeContent(q.ResponseWriter, q.req, "", time.Time{}, f)
}

// startUpload answers POST: a session for the chunks to come, or at once the blob, where
// it is here already (mount) or comes in this request (digest).
func (g *registry) startUpload(q request) {
	query := q.req.URL.Query()
	if m := query.Get("mount"); m != "" {
		d, err := parseDigest(m)
		if err != nil {
			g.fail(q, codeDigestInvalid, err)
			return
		}
		if here, err := g.store.blobs.touch(d); err == nil && here {
			g.created(q, d)
			return
		}
	}
	id, u, err := g.store.uploads.start()
	if err != nil {
		g.fail(q, "", err)
		return
	}
	defer g.store.uploads.give(id, u)
	if query.Get("digest") != "" {
		g.finish(q, u)
		return
	}
	g.accepted(q, id, u)
}

// upload answers GET, PATCH, PUT and DELETE of a session.
func (g *registry) upload(q request) {
	u, err := g.store.uploads.take(q.arg)
	if err != nil {
		g.fail(q, codeBlobUploadUnknown, err)
		return
	}
	defer g.store.uploads.give(q.arg, u)
	switch q.req.Method {
	case http.MethodGet:
		g.progress(q, q.arg, u)
		q.WriteHeader(http.StatusNoContent)
	case http.MethodPatch:
		if g.receive(q, u) {
			g.accepted(q, q.arg, u)
		}
	case http.MethodPut:
		g.finish(q, u)
	case http.MethodDelete:
		u.abort()
		q.WriteHeader(http.StatusNoContent)
	}
}

// receive appends the request's body. What came before the client went away is kept, for
// it to come back; on any fault of ours the upload is dropped.
func (g *registry) receive(q request, u *upload) bool {
	if s := q.req.Header.Get("Content-Range"); s != "" {
		first, _, ok := strings.Cut(strings.TrimPrefix(s, "bytes="), "-")
		start, err := strconv.ParseInt(first, 10, 64)
		if !ok || err != nil || start != u.partial.size {
			q.Header().Set("Range", rangeOf(u.partial.size))
			g.failStatus(q, http.StatusRequestedRangeNotSatisfiable, codeBlobUploadInvalid,
				fault.New(fault.Malformed, "upload %s has %d bytes, the chunk has range %.100q", q.arg, u.partial.size, s))
			return false
		}
	}
	body := &failing{r: q.req.Body}
	_, err := io.Copy(u.partial, body)
	if err == nil {
		return true
	}
	if body.err == nil { // not the client's end
		u.abort()
	}
	g.fail(q, codeBlobUploadInvalid, fmt.Errorf("receive blob: %w", err))
	return false
}

// failing remembers whether it was the reader that failed a copy.
type failing struct {
	r   io.Reader
	err error
}

func (f *failing) Read(p []byte) (int, error) {
	n, err := f.r.Read(p)
	if err != nil && err != io.EOF {
		f.err = err
	}
	return n, err
}

// finish takes the last chunk, if any, and makes the upload the blob that it should be.
func (g *registry) finish(q request, u *upload) {
	d, err := parseDigest(q.req.URL.Query().Get("digest"))
	if err != nil {
		g.fail(q, codeDigestInvalid, err)
		return
	}
	if !g.receive(q, u) {
		return
	}
	if err := u.commit(d); err != nil {
		g.fail(q, codeDigestInvalid, err)
		return
	}
	g.created(q, d)
}

func (g *registry) created(q request, d digest.Digest) {
	q.Header().Set("Location", "/v2/"+q.name+"/blobs/"+d.String())
	q.Header().Set("Docker-Content-Digest", d.String())
	q.WriteHeader(http.StatusCreated)
}

func (g *registry) accepted(q request, id string, u *upload) {
	g.progress(q, id, u)
	q.WriteHeader(http.StatusAccepted)
}

// progress says where the next chunk goes.
func (g *registry) progress(q request, id string, u *upload) {
	q.Header().Set("Location", "/v2/"+q.name+"/blobs/uploads/"+id)
	q.Header().Set("Range", rangeOf(u.partial.size))
	q.Header().Set("Docker-Upload-UUID", id)
}

// rangeOf the first n bytes, both ends counted; of none it is "0-0", as registries say it.
func rangeOf(n int64) string { return fmt.Sprintf("0-%d", max(n-1, 0)) }

func (g *registry) tags(q request) {
	g.store.mu.RLock()
	var all []string
	for r := range g.store.index.tags {
		if r.Name == q.name {
			all = append(all, r.Tag)
		}
	}
	g.store.mu.RUnlock()
	if len(all) == 0 {
		g.fail(q, codeNameUnknown, fault.New(fault.NotFound, "there is no image named %s", q.name))
		return
	}
	page, err := g.page(q, all)
	if err != nil {
		g.fail(q, codeUnsupported, err)
		return
	}
	g.reply(q, http.StatusOK, map[string]any{"name": q.name, "tags": page})
}

func (g *registry) catalog(q request) {
	g.store.mu.RLock()
	var all []string
	for r := range g.store.index.tags {
		all = append(all, r.Name)
	}
	g.store.mu.RUnlock()
	page, err := g.page(q, all)
	if err != nil {
		g.fail(q, codeUnsupported, err)
		return
	}
	g.reply(q, http.StatusOK, map[string]any{"repositories": page})
}

// page sorts names, drops doubles, and gives the n of them that follow last; a Link header
// leads to the next page.
func (g *registry) page(q request, names []string) ([]string, error) {
	slices.Sort(names)
	names = slices.Compact(names)
	query := q.req.URL.Query()
	if last := query.Get("last"); last != "" {
		i, found := slices.BinarySearch(names, last)
		if found {
			i++
		}
		names = names[i:]
	}
	if s := query.Get("n"); s != "" {
		n, err := strconv.Atoi(s)
		if err != nil || n < 0 {
			return nil, fault.New(fault.Malformed, "page size %.20q: want a number", s)
		}
		if n < len(names) {
			names = names[:n]
			if n > 0 {
				next := url.URL{Path: q.req.URL.Path, RawQuery: url.Values{"n": {s}, "last": {names[n-1]}}.Encode()}
				q.Header().Set("Link", fmt.Sprintf("<%s>; rel=\"next\"", next.String()))
			}
		}
	}
	return append([]string{}, names...), nil // [], not null
}

func (g *registry) list(q request) {
	var out any
	var err error
	if ref := q.req.URL.Query().Get("ref"); ref != "" {
		out, err = g.store.Show(q.req.Context(), ref)
	} else {
		out, err = g.store.List(q.req.Context())
	}
	if err != nil {
		g.fail(q, codeManifestUnknown, err)
		return
	}
	g.reply(q, http.StatusOK, out)
}

func (g *registry) reply(w http.ResponseWriter, status int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(body) // a client that has gone away is told nothing
}

// errorBody is the spec's. Detail carries our own code and next step, for our own client.
type errorBody struct {
	Errors []errorItem `json:"errors"`
}

type errorItem struct {
	Code    string      `json:"code"`
	Message string      `json:"message"`
	Detail  errorDetail `json:"detail"`
}

type errorDetail struct {
	Code fault.Code `json:"code"`
	Next string     `json:"next"`
}

// faultCodes go before what a handler says.
var faultCodes = map[fault.Code]string{
	fault.Internal:        codeUnknown,
	fault.DiskFull:        codeUnknown,
	fault.Unavailable:     codeUnknown,
	fault.Unauthenticated: codeUnauthorized,
	fault.Denied:          codeDenied,
	fault.InUse:           codeDenied,
	fault.TooLarge:        codeSizeInvalid,
	fault.Unsupported:     codeUnsupported,
}

func (g *registry) fail(w http.ResponseWriter, code string, err error) {
	f := fault.From(err)
	if c, ok := faultCodes[f.Code]; ok {
		code = c
	}
	status := f.Status()
	switch {
	case f.Code == fault.DigestMismatch && code == codeDigestInvalid:
		status = http.StatusBadRequest // as the spec has it for uploads
	case f.Code == fault.Unsupported:
		status = http.StatusMethodNotAllowed
	}
	g.failStatus(w, status, code, f)
}

func (g *registry) failStatus(w http.ResponseWriter, status int, code string, f *fault.Error) {
	g.reply(w, status, errorBody{[]errorItem{{code, f.Message, errorDetail{f.Code, f.NextStep()}}}})
}
