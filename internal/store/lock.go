package store

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/reservoir-cloud/reservoir/internal/durable"
	"github.com/reservoir-cloud/reservoir/internal/fault"
)

// Lock keeps every record out of dir until it is closed: for who copies it.
func Lock(dir string) (io.Closer, error) { return lockDir(dir) }

// lockDir takes dir for this process until the returned file is closed or the process
// ends, however it ends. The file tells the next one who has it.
func lockDir(dir string) (*os.File, error) {
	path := filepath.Join(dir, "lock")
	f, err := durable.Lock(path)
	if errors.Is(err, durable.ErrLocked) {
		pid, _ := os.ReadFile(path) // a message without it is still true
		return nil, fault.New(fault.InUse, "open the site's record of truth in %s: another process has it (pid %s)", dir, bytes.TrimSpace(pid)).
			Try("stop that process, or give this one a directory of its own")
	}
	if err != nil {
		return nil, unusable(dir, err)
	}
	if err = f.Truncate(0); err == nil {
		_, err = f.WriteAt(fmt.Appendln(nil, os.Getpid()), 0)
	}
	if err != nil {
		f.Close()
		return nil, unusable(dir, err)
	}
	return f, nil
}
