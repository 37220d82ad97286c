package image

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"oras.land/oras-go/v2"
	"oras.land/oras-go/v2/registry/remote"
	"oras.land/oras-go/v2/registry/remote/errcode"

	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/vee"
)

// Remote is a site's registry as its clients see it. HTTP carries TLS and its
// certificates, and must have no timeout for a whole request; Token, if any, goes along as
// a bearer token.
type Remote struct {
	Base  string // "https://host:port"
	HTTP  *http.Client
	Token string
}

// Do sends a request as every other of r; it makes r a client for oras.
func (r Remote) Do(req *http.Request) (*http.Response, error) {
	if r.Token != "" {
		req.Header.Set("Authorization", "Bearer "+r.Token)
	}
	return r.HTTP.Do(req)
}

// do sends a request for path under /v2/. The caller closes the body of an answer that is
// no error. Errors are faults: the site's own, or fault.Unavailable.
func (r Remote) do(ctx context.Context, method, path string, query url.Values, header http.Header) (*http.Response, error) {
	u := strings.TrimSuffix(r.Base, "/") + "/v2/" + path
	if len(query) > 0 {
		u += "?" + query.Encode()
	}
	req, err := http.NewRequestWithContext(ctx, method, u, nil)
	if err != nil {
		return nil, fault.New(fault.Malformed, "address of the site: %w", err)
	}
	for k, v := range header {
		req.Header[k] = v
	}
	resp, err := r.Do(req)
	if err != nil {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		return nil, fault.New(fault.Unavailable, "the site does not answer: %w", err)
	}
	if resp.StatusCode < 300 {
		return resp, nil
	}
	defer resp.Body.Close()
	return nil, faultOf(resp)
}

// faultOf reads the error that an answer carries: of our own registry with code and next
// step, of any other by its status.
func faultOf(resp *http.Response) error {
	raw, err := io.ReadAll(io.LimitReader(resp.Body, maxMetadata))
	var body errorBody
	if err == nil && json.Unmarshal(raw, &body) == nil && len(body.Errors) > 0 {
		e := body.Errors[0]
		if e.Detail.Code != "" {
			return fault.New(e.Detail.Code, "%s", e.Message).Try("%s", e.Detail.Next)
		}
		return fault.New(codeOf(resp.StatusCode), "the site answered %s: %s", resp.Status, e.Message)
	}
	return fault.New(codeOf(resp.StatusCode), "the site answered %s", resp.Status)
}

// codeOf a status that came without a fault of ours.
func codeOf(status int) fault.Code {
	switch {
	case status == http.StatusUnauthorized:
		return fault.Unauthenticated
	case status == http.StatusForbidden:
		return fault.Denied
	case status == http.StatusNotFound:
		return fault.NotFound
	case status == http.StatusRequestEntityTooLarge:
		return fault.TooLarge
	case status == http.StatusInsufficientStorage:
		return fault.DiskFull
	case status >= 500 || status == http.StatusTooManyRequests:
		return fault.Unavailable
	}
	return fault.Malformed
}

// List shows all images of the site, as Store.List.
func (r Remote) List(ctx context.Context) ([]Info, error) {
	var infos []Info
	err := r.info(ctx, nil, &infos)
	return infos, err
}

// Show is List for one reference. Errors: fault.Malformed, fault.NotFound.
func (r Remote) Show(ctx context.Context, ref string) (Info, error) {
	var i Info
	err := r.info(ctx, url.Values{"ref": {ref}}, &i)
	return i, err
}

func (r Remote) info(ctx context.Context, query url.Values, out any) error {
	resp, err := r.do(ctx, http.MethodGet, listPath, query, nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if err := json.NewDecoder(io.LimitReader(resp.Body, 64<<20)).Decode(out); err != nil {
		return fault.New(fault.Unavailable, "read the list of images: %w", err)
	}
	return nil
}

// Remove takes away a tag or an image, as Store.Remove. Errors: fault.NotFound,
// fault.InUse, fault.Denied.
func (r Remote) Remove(ctx context.Context, ref string, force bool) error {
	parsed, err := ParseReference(ref)
	if err != nil {
		return err
	}
	arg := parsed.Tag
	if parsed.Digest != "" {
		arg = parsed.Digest.String()
	}
	query := url.Values{}
	if force {
		query.Set(forceQuery, "true")
	}
	resp, err := r.do(ctx, http.MethodDelete, nameOr(parsed)+"/manifests/"+arg, query, nil)
	if err != nil {
		return err
	}
	return resp.Body.Close()
}

// poolName stands for the name of a repository where only a digest is known.
const poolName = "by-digest"

func nameOr(r Reference) string {
	if r.Name == "" {
		return poolName
	}
	return r.Name
}

// Push copies an image into the site under ref, a name and a tag, and answers with its
// digest. What the site has is not sent again, so that a push that was cut is repeated.
// progress, unless nil, is called one call at a time. Errors are the site's faults,
// fault.Unavailable, or fault.Malformed for ref.
func (r Remote) Push(ctx context.Context, src *Source, ref string, progress func(vee.Progress)) (string, error) {
	parsed, err := ParseReference(ref)
	if err != nil {
		return "", err
	}
	if parsed.Tag == "" {
		return "", fault.New(fault.Malformed, "push image %s: want a name and a tag, not a digest", ref)
	}
	base, err := url.Parse(r.Base)
	if err != nil {
		return "", fault.New(fault.Malformed, "address of the site: %w", err)
	}
	repo, err := remote.NewRepository(base.Host + "/" + parsed.Name)
	if err != nil {
		return "", fault.New(fault.Malformed, "push image %s: %w", ref, err)
	}
	repo.Client, repo.PlainHTTP = r, base.Scheme == "http"
	meter := &meter{Source: src, report: progress, Progress: vee.Progress{
		Total: int64(src.image.Size()), Unit: "bytes", What: "push " + parsed.String(),
	}}
	_, err = oras.Copy(ctx, meter, parsed.Tag, repo, parsed.Tag, oras.CopyOptions{CopyGraphOptions: oras.CopyGraphOptions{
		OnCopySkipped: func(_ context.Context, d ocispec.Descriptor) error {
			meter.add(d.Size)
			return nil
		},
	}})
	if err != nil {
		return "", pushFault(ctx, parsed, err)
	}
	meter.add(meter.Total - meter.Done) // of an image that was there as a whole
	return src.image.Digest, nil
}

// pushFault finds the site's fault in what oras says.
func pushFault(ctx context.Context, r Reference, err error) error {
	if ctx.Err() != nil {
		return fmt.Errorf("push image %s: %w", r, context.Cause(ctx))
	}
	var resp *errcode.ErrorResponse
	if !errors.As(err, &resp) {
		return fault.New(fault.Unavailable, "push image %s: %w", r, err).Try("repeat it: what has arrived is not sent again")
	}
	if len(resp.Errors) == 0 { // the answer to a HEAD has no body
		return fault.New(codeOf(resp.StatusCode), "push image %s: the site answered %s", r, http.StatusText(resp.StatusCode))
	}
	f := fault.New(codeOf(resp.StatusCode), "push image %s: %s", r, resp.Errors[0].Message)
	if detail, ok := resp.Errors[0].Detail.(map[string]any); ok {
		if code, ok := detail["code"].(string); ok {
			f.Code = fault.Code(code)
		}
		f.Next, _ = detail["next"].(string)
	}
	return f
}

// meter counts what is read of a source.
type meter struct {
	*Source
	report func(vee.Progress)

	mu sync.Mutex
	vee.Progress
}

// Fetch is Source.Fetch, counted.
func (m *meter) Fetch(ctx context.Context, d ocispec.Descriptor) (io.ReadCloser, error) {
	r, err := m.Source.Fetch(ctx, d)
	if err != nil {
		return nil, err
	}
	return &metered{r, m}, nil
}

func (m *meter) add(n int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.Done += n
	if m.report != nil {
		m.report(m.Progress)
	}
}

type metered struct {
	io.ReadCloser
	m *meter
}

func (r *metered) Read(p []byte) (int, error) {
	n, err := r.ReadCloser.Read(p)
	if n > 0 {
		r.m.add(int64(n))
	}
	return n, err
}
