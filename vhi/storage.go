package vhi

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"

	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/internal/httpapi"
	"github.com/reservoir-cloud/reservoir/vee"
)

// Storage of the VEEs on a host: their disks and snapshots. What changes something carries
// the VEE's epoch, is done when it returns, and may be sent again.
type Storage interface {
	Disks(ctx context.Context, id vee.ID) ([]vee.DiskInfo, error)
	// ExportDisk gives a disk out, as it is or as a snapshot has it; read it with
	// OpenExport. Errors: WrongState while it is being written, DiskFull.
	ExportDisk(ctx context.Context, id vee.ID, disk, snapshot string) (io.ReadWriteCloser, error)
	Snapshots(ctx context.Context, id vee.ID) ([]vee.Snapshot, error)
	// CreateSnapshot errors: Exists, WrongState, DiskFull.
	CreateSnapshot(ctx context.Context, id vee.ID, e vee.Epoch, name string, memory bool) (vee.Snapshot, error)
	RestoreSnapshot(ctx context.Context, id vee.ID, e vee.Epoch, name string) error
	DeleteSnapshot(ctx context.Context, id vee.ID, e vee.Epoch, name string) error
	// Checkpoint gives the packed checkpoint n of a VEE out that this host keeps, from a byte
	// on. The stream ends with it.
	Checkpoint(ctx context.Context, id vee.ID, n int, from int64) (io.ReadWriteCloser, error)
}

// ExportHeader is the first line of an exported disk's stream, in JSON; the bytes of a
// qcow2 file follow.
type ExportHeader struct {
	Size   int64  `json:"size"`   // bytes that follow
	Digest string `json:"digest"` // "sha256:…" of them
}

// maxHeader bounds that line, bytes.
const maxHeader = 4 << 10

// NewExport is the stream of content, which it closes.
func NewExport(h ExportHeader, content io.ReadCloser) (io.ReadWriteCloser, error) {
	line, err := json.Marshal(h)
	if err != nil {
		return nil, fmt.Errorf("begin an export: %w", err)
	}
	r, w := io.Pipe()
	sent := make(chan struct{})
	go func() {
		defer close(sent)
		_, err := w.Write(append(line, '\n'))
		if err == nil {
			_, err = io.Copy(w, content)
		}
		_ = w.CloseWithError(err)
	}()
	return &export{r, content, sent}, nil
}

// export is a stream in one direction. Its goroutine ends with it, at Close.
type export struct {
	*io.PipeReader
	content io.Closer
	sent    chan struct{}
}

func (*export) Write(p []byte) (int, error) { return len(p), nil } // nobody listens

func (e *export) Close() error {
	_ = e.PipeReader.Close()
	<-e.sent
	return e.content.Close()
}

// OpenExport reads the header of a stream; content ends after Size bytes, with
// io.ErrUnexpectedEOF where the stream ends before.
func OpenExport(stream io.Reader) (h ExportHeader, content io.Reader, err error) {
	in := bufio.NewReaderSize(stream, maxHeader)
	line, err := in.ReadSlice('\n')
	if err == nil {
		err = json.Unmarshal(line, &h)
	}
	if err != nil || h.Size < 0 {
		return h, nil, fault.New(fault.Unavailable, "the export ended before it began: %v", err).Try("try again")
	}
	return h, &exactly{in, h.Size}, nil
}

type exactly struct {
	r    io.Reader
	left int64
}

func (x *exactly) Read(p []byte) (int, error) {
	if x.left == 0 {
		return 0, io.EOF
	}
	n, err := x.r.Read(p[:min(int64(len(p)), x.left)])
	if x.left -= int64(n); err == io.EOF && x.left > 0 {
		err = io.ErrUnexpectedEOF
	}
	return n, err
}

type snapshotBody struct {
	Epoch  vee.Epoch `json:"epoch"`
	Memory bool      `json:"memory,omitempty"`
}

func registerStorage(s *httpapi.Server, h Storage) {
	httpapi.Register(s, httpapi.Op{Method: "GET", Path: "/vhi/v1/vees/{id}/disks", Summary: "The disks of a VEE", Roles: siteOnly},
		func(ctx context.Context, in *veePath) ([]vee.DiskInfo, error) {
			id, err := in.id()
			if err != nil {
				return nil, err
			}
			return h.Disks(ctx, id)
		})
	s.HandleUpgrade("GET /vhi/v1/vees/{id}/disks/{disk}/export", siteOnly, func(r *http.Request) (io.ReadWriteCloser, error) {
		id, err := veePath{r.PathValue("id")}.id()
		if err != nil {
			return nil, err
		}
		return h.ExportDisk(r.Context(), id, r.PathValue("disk"), r.URL.Query().Get("snapshot"))
	})
	httpapi.Register(s, httpapi.Op{Method: "GET", Path: "/vhi/v1/vees/{id}/snapshots", Summary: "The snapshots of a VEE", Roles: siteOnly},
		func(ctx context.Context, in *veePath) ([]vee.Snapshot, error) {
			id, err := in.id()
			if err != nil {
				return nil, err
			}
			return h.Snapshots(ctx, id)
		})
	s.HandleUpgrade("GET /vhi/v1/vees/{id}/checkpoints/{n}", siteOnly, func(r *http.Request) (io.ReadWriteCloser, error) {
		id, err := veePath{r.PathValue("id")}.id()
		if err != nil {
			return nil, err
		}
		n, err := strconv.Atoi(r.PathValue("n"))
		from, wrong := strconv.ParseInt(r.URL.Query().Get("from"), 10, 64)
		if err != nil || wrong != nil || n < 0 || from < 0 {
			return nil, fault.New(fault.Malformed, "checkpoint %q from byte %q: want two numbers", r.PathValue("n"), r.URL.Query().Get("from"))
		}
		return h.Checkpoint(r.Context(), id, n, from)
	})
	const path = "/vhi/v1/vees/{id}/snapshots/{name}"
	type body struct {
		ID   string `path:"id"`
		Name string `path:"name"`
		Body snapshotBody
	}
	httpapi.Register(s, httpapi.Op{Method: "PUT", Path: path, Summary: "Take a snapshot", Roles: siteOnly},
		func(ctx context.Context, in *body) (vee.Snapshot, error) {
			id, err := veePath{in.ID}.id()
			if err != nil {
				return vee.Snapshot{}, err
			}
			return h.CreateSnapshot(ctx, id, in.Body.Epoch, in.Name, in.Body.Memory)
		})
	for verb, do := range map[string]func(context.Context, vee.ID, vee.Epoch, string) error{"restore": h.RestoreSnapshot, "delete": h.DeleteSnapshot} {
		httpapi.RegisterNoBody(s, httpapi.Op{Method: "POST", Path: path + "/" + verb, Summary: "A snapshot of a VEE: " + verb, Roles: siteOnly},
			func(ctx context.Context, in *body) error {
				id, err := veePath{in.ID}.id()
				if err != nil {
					return err
				}
				return do(ctx, id, in.Body.Epoch, in.Name)
			})
	}
}

func (h hostClient) Disks(ctx context.Context, id vee.ID) (out []vee.DiskInfo, err error) {
	err = h.c.Call(ctx, http.MethodGet, veeURL(id, "/disks"), nil, nil, &out)
	return out, err
}

func (h hostClient) ExportDisk(ctx context.Context, id vee.ID, disk, snapshot string) (io.ReadWriteCloser, error) {
	return h.c.Upgrade(ctx, veeURL(id, "/disks/"+url.PathEscape(disk)+"/export")+snapshotQuery(snapshot))
}

func snapshotQuery(name string) string {
	if name == "" {
		return ""
	}
	return "?" + url.Values{"snapshot": {name}}.Encode()
}

func (h hostClient) Checkpoint(ctx context.Context, id vee.ID, n int, from int64) (io.ReadWriteCloser, error) {
	return h.c.Upgrade(ctx, veeURL(id, "/checkpoints/"+strconv.Itoa(n)+"?from="+strconv.FormatInt(from, 10)))
}

func (h hostClient) Snapshots(ctx context.Context, id vee.ID) (out []vee.Snapshot, err error) {
	err = h.c.Call(ctx, http.MethodGet, veeURL(id, "/snapshots"), nil, nil, &out)
	return out, err
}

func snapshotURL(id vee.ID, name, sub string) string {
	return veeURL(id, "/snapshots/"+url.PathEscape(name)+sub)
}

func (h hostClient) CreateSnapshot(ctx context.Context, id vee.ID, e vee.Epoch, name string, memory bool) (out vee.Snapshot, err error) {
	err = h.c.Call(ctx, http.MethodPut, snapshotURL(id, name, ""), nil, snapshotBody{e, memory}, &out)
	return out, err
}

func (h hostClient) RestoreSnapshot(ctx context.Context, id vee.ID, e vee.Epoch, name string) error {
	return h.c.Call(ctx, http.MethodPost, snapshotURL(id, name, "/restore"), nil, snapshotBody{Epoch: e}, nil)
}

func (h hostClient) DeleteSnapshot(ctx context.Context, id vee.ID, e vee.Epoch, name string) error {
	return h.c.Call(ctx, http.MethodPost, snapshotURL(id, name, "/delete"), nil, snapshotBody{Epoch: e}, nil)
}
