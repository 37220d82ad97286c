package image

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/reservoir-cloud/reservoir/internal/fault"
)

// uploads are the pushes under way, each a file DIR/ID that becomes a blob. One that the
// process has not open, because it has been restarted, is opened when its client comes
// back to it.
type uploads struct {
	dir   string
	blobs blobs
	limit int64 // of each, bytes
	mu    sync.Mutex
	open  map[string]*upload
}

// upload is one of them. Who has taken it may use ended and partial.
type upload struct {
	taken   bool // guarded by uploads.mu
	ended   bool // its file is gone, as a blob or for good
	partial *partial
}

var uploadID = regexp.MustCompile(`^[A-Z2-7]{26}$`)

// start makes a new, empty upload, taken by the caller.
func (us *uploads) start() (id string, u *upload, err error) {
	us.mu.Lock() // no collection between the file and its entry
	defer us.mu.Unlock()
	id = rand.Text()
	p, err := us.blobs.resume(filepath.Join(us.dir, id), us.limit)
	if err != nil {
		return "", nil, err
	}
	u = &upload{partial: p, taken: true}
	us.open[id] = u
	return id, u, nil
}

// take gives an upload to one caller until give. Errors: fault.NotFound, fault.WrongState
// where another has it.
func (us *uploads) take(id string) (*upload, error) {
	path := filepath.Join(us.dir, id)
	us.mu.Lock()
	u, ok := us.open[id]
	if !ok {
		if _, err := os.Stat(path); err != nil || !uploadID.MatchString(id) {
			us.mu.Unlock()
			return nil, fault.New(fault.NotFound, "there is no upload %.50q", id).Try("start the push again")
		}
		u = &upload{}
		us.open[id] = u
	}
	if u.taken {
		us.mu.Unlock()
		return nil, fault.New(fault.WrongState, "another request writes to upload %s", id).Try("wait a moment and repeat")
	}
	u.taken = true
	us.mu.Unlock()
	if u.partial == nil { // from before a restart; reading it again may take long
		p, err := us.blobs.resume(path, us.limit)
		if err != nil {
			u.ended = true
			us.give(id, u)
			return nil, err
		}
		u.partial = p
	}
	return u, nil
}

// give ends a take.
func (us *uploads) give(id string, u *upload) {
	us.mu.Lock()
	defer us.mu.Unlock()
	u.taken = false
	if u.ended {
		delete(us.open, id)
	}
}

// commit makes the upload a blob; it ends in any case.
func (u *upload) commit(d digest.Digest) error {
	u.ended = true
	return u.partial.commit(d)
}

// abort drops the upload.
func (u *upload) abort() {
	u.ended = true
	u.partial.drop()
}

// collect drops those that nobody has written to since before, and other files left by a
// crash.
func (us *uploads) collect(before time.Time) (freed int64, err error) {
	us.mu.Lock()
	defer us.mu.Unlock()
	entries, err := os.ReadDir(us.dir)
	if err != nil {
		return 0, fmt.Errorf("list uploads: %w", err)
	}
	for _, e := range entries {
		info, err := e.Info()
		if err != nil || !info.ModTime().Before(before) {
			continue
		}
		if u := us.open[e.Name()]; u != nil {
			if u.taken {
				continue
			}
			u.partial.close()
			delete(us.open, e.Name())
		}
		if err := os.Remove(filepath.Join(us.dir, e.Name())); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return freed, fmt.Errorf("remove upload: %w", err)
		}
		freed += info.Size()
	}
	return freed, nil
}

func (us *uploads) close() {
	us.mu.Lock()
	defer us.mu.Unlock()
	for id, u := range us.open {
		if u.partial != nil {
			u.partial.close()
		}
		delete(us.open, id)
	}
}
