package hypervisor

import (
	"bytes"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/reservoir-cloud/reservoir/internal/durable"
	"github.com/reservoir-cloud/reservoir/vee"
)

// fenceRoom is set aside for lines to come, and how long a log grows before it is written
// anew, bytes: about a thousand lines.
const fenceRoom = 64 << 10

// Fence remembers the newest epoch that was obeyed for each VEE, also of those that are
// long destroyed: a command that was delayed for a week must still be refused.
//
// On disk it is a log of one line per newer epoch, "ID G.T.H CRC32", written through
// before the command is carried out. Only the last line can be torn by a crash, and a torn
// line was never acknowledged, so it is dropped; damage anywhere else is an error, because
// losing a line would let an old command through. Room for the lines to come is set aside,
// so that a full disk can still be told to stop and destroy what fills it.
type Fence struct {
	mu     sync.Mutex
	obeyed map[vee.ID]vee.Epoch
	file   *os.File // nil: kept in memory only
	size   int64    // of the lines that are whole
}

// OpenFence reads the fence at path, or makes an empty one. An empty path keeps it in
// memory only, for simulated guests, which do not outlive their process either.
func OpenFence(path string) (*Fence, error) {
	if path == "" {
		return &Fence{obeyed: map[vee.ID]vee.Epoch{}}, nil
	}
	log, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("open the epoch fence: %w", err)
	}
	obeyed, size, err := decodeFence(log)
	if err != nil {
		return nil, fmt.Errorf("open the epoch fence %s: %w", path, err)
	}
	if size > fenceRoom {
		var compact []byte // one line per VEE
		for id, e := range obeyed {
			compact = append(compact, fenceLine(id, e)...)
		}
		if len(compact) < size/2 && durable.WriteFile(path, compact, 0o600) == nil {
			size = len(compact) // or else the long one goes on
		}
	}
	file, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open the epoch fence: %w", err)
	}
	if err := file.Truncate(int64(size)); err != nil {
		file.Close()
		return nil, fmt.Errorf("open the epoch fence: %w", err)
	}
	// Best effort: not all file systems can.
	_ = unix.Fallocate(int(file.Fd()), unix.FALLOC_FL_KEEP_SIZE, 0, int64(size)+fenceRoom)
	if err := durable.SyncDir(filepath.Dir(path)); err != nil {
		file.Close()
		return nil, fmt.Errorf("open the epoch fence: %w", err)
	}
	return &Fence{obeyed: obeyed, file: file, size: int64(size)}, nil
}

// Obey lets a command of epoch e pass, or refuses it with ErrStaleEpoch. A newer epoch is
// on disk when it returns.
func (f *Fence) Obey(id vee.ID, e vee.Epoch) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.check(id, e); err != nil {
		return err
	}
	if old, known := f.obeyed[id]; known && old == e {
		return nil
	}
	if f.file != nil {
		line := fenceLine(id, e)
		// At f.size, so that what is left of a failed write is overwritten.
		if _, err := f.file.WriteAt(line, f.size); err != nil {
			return errors.Join(fmt.Errorf("remember epoch %s of %s: %w", e, id, err), f.file.Truncate(f.size))
		}
		if err := f.file.Sync(); err != nil {
			return fmt.Errorf("remember epoch %s of %s: %w", e, id, err)
		}
		f.size += int64(len(line))
	}
	f.obeyed[id] = e
	return nil
}

// Check refuses an older epoch as Obey does, and writes nothing.
func (f *Fence) Check(id vee.ID, e vee.Epoch) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.check(id, e)
}

func (f *Fence) check(id vee.ID, e vee.Epoch) error {
	if old := f.obeyed[id]; e.Compare(old) < 0 {
		return fmt.Errorf("command for %s of epoch %s refused: %w (%s)", id, e, ErrStaleEpoch, old)
	}
	return nil
}

// Obeyed is the newest epoch obeyed for id, the zero epoch when there was none.
func (f *Fence) Obeyed(id vee.ID) vee.Epoch {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.obeyed[id]
}

// Close lets go of the file.
func (f *Fence) Close() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.file == nil {
		return nil
	}
	return f.file.Close()
}

func fenceLine(id vee.ID, e vee.Epoch) []byte {
	text := fmt.Sprintf("%s %s", id, e)
	return fmt.Appendf(nil, "%s %08x\n", text, crc32.ChecksumIEEE([]byte(text)))
}

// decodeFence reads a log; size is that of the lines that are whole.
func decodeFence(log []byte) (obeyed map[vee.ID]vee.Epoch, size int, err error) {
	obeyed = map[vee.ID]vee.Epoch{}
	for n := 1; size < len(log); n++ {
		line, rest, whole := bytes.Cut(log[size:], []byte("\n"))
		id, e, ok := parseFenceLine(line)
		if !whole || !ok {
			if len(rest) == 0 {
				break // the last line: torn
			}
			return nil, 0, fmt.Errorf("line %d is damaged; restore the file, or drain this host and give it a new directory", n)
		}
		if e.Compare(obeyed[id]) >= 0 {
			obeyed[id] = e
		}
		size += len(line) + 1
	}
	return obeyed, size, nil
}

func parseFenceLine(line []byte) (id vee.ID, e vee.Epoch, ok bool) {
	var sum uint32
	n, err := fmt.Sscanf(string(line), "%s %d.%d.%d %x", &id, &e.Generation, &e.Term, &e.Hop, &sum)
	if n != 5 || err != nil || string(line)+"\n" != string(fenceLine(id, e)) {
		return "", vee.Epoch{}, false
	}
	return id, e, true
}
