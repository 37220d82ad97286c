package hypervisor

import (
	"bytes"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"os"
	"sync"

	"github.com/reservoir-cloud/reservoir/internal/durable"
	"github.com/reservoir-cloud/reservoir/vee"
)

// Fence remembers the newest epoch that was obeyed for each VEE, also of those that are
// long destroyed: a command that was delayed for a week must still be refused.
//
// On disk it is a log of one line per newer epoch, "ID G.T.H CRC32", written through
// before the command is carried out. Only the last line can be torn by a crash, and a torn
// line was never acknowledged, so it is dropped; damage anywhere else is an error, because
// losing a line would let an old command through.
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
	obeyed, err := decodeFence(log)
	if err != nil {
		return nil, fmt.Errorf("open the epoch fence %s: %w", path, err)
	}
	// Written anew: without the torn line, and one line per VEE.
	var compact []byte
	for id, e := range obeyed {
		compact = append(compact, fenceLine(id, e)...)
	}
	if err := durable.WriteFile(path, compact, 0o600); err != nil {
		return nil, fmt.Errorf("open the epoch fence: %w", err)
	}
	file, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return nil, fmt.Errorf("open the epoch fence: %w", err)
	}
	return &Fence{obeyed: obeyed, file: file, size: int64(len(compact))}, nil
}

// Obey lets a command of epoch e pass, or refuses it with ErrStaleEpoch. A newer epoch is
// on disk when it returns.
func (f *Fence) Obey(id vee.ID, e vee.Epoch) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	old, known := f.obeyed[id]
	switch c := e.Compare(old); {
	case known && c == 0:
		return nil
	case c < 0:
		return fmt.Errorf("command for %s of epoch %s refused: %w (%s)", id, e, ErrStaleEpoch, old)
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

func decodeFence(log []byte) (map[vee.ID]vee.Epoch, error) {
	obeyed := map[vee.ID]vee.Epoch{}
	for n := 1; len(log) > 0; n++ {
		line, rest, whole := bytes.Cut(log, []byte("\n"))
		id, e, ok := parseFenceLine(line)
		switch {
		case whole && ok:
			if e.Compare(obeyed[id]) >= 0 {
				obeyed[id] = e
			}
		case len(rest) == 0: // the last line: torn
		default:
			return nil, fmt.Errorf("line %d is damaged; restore the file, or drain this host and give it a new directory", n)
		}
		log = rest
	}
	return obeyed, nil
}

func parseFenceLine(line []byte) (id vee.ID, e vee.Epoch, ok bool) {
	var sum uint32
	n, err := fmt.Sscanf(string(line), "%s %d.%d.%d %x", &id, &e.Generation, &e.Term, &e.Hop, &sum)
	if n != 5 || err != nil || string(line)+"\n" != string(fenceLine(id, e)) {
		return "", vee.Epoch{}, false
	}
	return id, e, true
}
