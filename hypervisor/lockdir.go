package hypervisor

import (
	"errors"
	"os"
	"path/filepath"

	"github.com/reservoir-cloud/reservoir/internal/durable"
)

// LockDir keeps a second driver off a directory, until the file is closed.
func LockDir(dir string) (*os.File, error) {
	f, err := durable.Lock(filepath.Join(dir, "lock"))
	if errors.Is(err, durable.ErrLocked) {
		return nil, errors.New("another process is using this directory; end it first, or give this host a directory of its own")
	}
	return f, err
}
