package store

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/reservoir-cloud/reservoir/internal/fault"
)

// lockDir takes dir for this process until the returned file is closed or the process
// ends, however it ends. The file tells the next one who has it.
func lockDir(dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, unusable(dir, err)
	}
	err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	if errors.Is(err, syscall.EWOULDBLOCK) {
		pid, _ := io.ReadAll(io.LimitReader(f, 20)) // a message without it is still true
		f.Close()
		return nil, fault.New(fault.InUse, "open the site's record of truth in %s: another process has it (pid %s)", dir, strings.TrimSpace(string(pid))).
			Try("stop that process, or give this one a directory of its own")
	}
	if err == nil {
		err = f.Truncate(0)
	}
	if err == nil {
		_, err = f.WriteAt(fmt.Appendln(nil, os.Getpid()), 0)
	}
	if err != nil {
		f.Close()
		return nil, unusable(dir, err)
	}
	return f, nil
}
