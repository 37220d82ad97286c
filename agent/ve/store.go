package ve

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/reservoir-cloud/reservoir/hypervisor/disk"
	"github.com/reservoir-cloud/reservoir/internal/durable"
	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/vee"
	"github.com/reservoir-cloud/reservoir/vhi/peer"
)

// Store of checkpoints on this host's disk: in a folder for each VEE, N.pack and, written
// last, N.json with what is known of it. A pack without a JSON is a rest of a crash.
type Store struct {
	dir  string
	log  *slog.Logger
	free func() (vee.Bytes, error) // on its disk

	mu   sync.Mutex
	kept map[vee.ID]map[int]peer.Kept
}

// OpenStore reads what dir has.
func OpenStore(dir string, log *slog.Logger) (*Store, error) {
	s := &Store{dir: dir, log: log, free: func() (vee.Bytes, error) { return disk.Free(dir) }, kept: map[vee.ID]map[int]peer.Kept{}}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the folder of checkpoints: %w", err)
	}
	folders, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("list checkpoints: %w", err)
	}
	for _, f := range folders {
		id, err := vee.ParseID(f.Name())
		if err != nil {
			continue
		}
		if err := s.read(id); err != nil {
			return nil, err
		}
	}
	return s, nil
}

func (s *Store) folder(id vee.ID) string { return filepath.Join(s.dir, string(id)) }

func (s *Store) file(id vee.ID, n int, ending string) string {
	return filepath.Join(s.folder(id), strconv.Itoa(n)+ending)
}

// read one VEE's folder, and tidy it up.
func (s *Store) read(id vee.ID) error {
	entries, err := os.ReadDir(s.folder(id))
	if err != nil {
		return fmt.Errorf("list the checkpoints of VEE %s: %w", id, err)
	}
	whole := map[string]bool{}
	for _, e := range entries {
		name, isHead := strings.CutSuffix(e.Name(), ".json")
		if !isHead {
			continue
		}
		var k peer.Kept
		if err := durable.ReadJSON(filepath.Join(s.folder(id), e.Name()), &k); err != nil || strconv.Itoa(k.N) != name {
			s.log.Warn("a checkpoint is damaged and given up", "vee", id, "file", e.Name(), "err", err)
			continue
		}
		s.put(k)
		whole[e.Name()], whole[name+".pack"] = true, true
	}
	for _, e := range entries {
		if !whole[e.Name()] {
			_ = os.Remove(filepath.Join(s.folder(id), e.Name()))
		}
	}
	return nil
}

// put k into the index. s.mu is held, or nobody else is there yet.
func (s *Store) put(k peer.Kept) {
	if s.kept[k.VEE] == nil {
		s.kept[k.VEE] = map[int]peer.Kept{}
	}
	s.kept[k.VEE][k.N] = k
}

// leaves is what a checkpoint leaves free on the disk: a guest whose disk cannot grow stands
// still, which is worse than a checkpoint that is missing. It is looked at every so many bytes.
const (
	leaves    = 256 * vee.MiB
	lookEvery = 16 * vee.MiB
)

// room is an error where the disk is too full to go on.
func (s *Store) room() error {
	free, err := s.free()
	if err == nil && free < leaves {
		err = fault.New(fault.DiskFull, "%s are free, and %s are left for the guests", free, leaves).
			Try("keep fewer checkpoints (reliability.keep), or give the host more disk: reservoir host list -o wide")
	}
	return err
}

// Add a checkpoint, whose content write brings; its size and digest are filled in. Where k
// names a digest, the content must have it.
func (s *Store) Add(ctx context.Context, k peer.Kept, write func(io.Writer) error) (err error) {
	if err := os.MkdirAll(s.folder(k.VEE), 0o700); err != nil {
		return noSpace(fmt.Errorf("keep a checkpoint of VEE %s: %w", k.VEE, err))
	}
	f, err := os.CreateTemp(s.folder(k.VEE), "new-*")
	if err != nil {
		return noSpace(fmt.Errorf("keep a checkpoint of VEE %s: %w", k.VEE, err))
	}
	defer os.Remove(f.Name()) //nolint:errcheck // it has another name when all went well
	sum := &counted{ctx: ctx, w: f, sum: sha256.New(), room: s.room}
	if err = s.room(); err == nil {
		err = write(sum)
	}
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return noSpace(fmt.Errorf("keep checkpoint %d of VEE %s: %w", k.N, k.VEE, err))
	}
	digest := "sha256:" + hex.EncodeToString(sum.sum.Sum(nil))
	if k.Digest != "" && k.Digest != digest {
		return fault.New(fault.DigestMismatch, "checkpoint %d of VEE %s is %s and should be %s", k.N, k.VEE, digest, k.Digest)
	}
	k.Digest, k.Size = digest, vee.Bytes(sum.n)
	if err := os.Rename(f.Name(), s.file(k.VEE, k.N, ".pack")); err != nil {
		return fmt.Errorf("keep checkpoint %d of VEE %s: %w", k.N, k.VEE, err)
	}
	return s.write(k)
}

func (s *Store) write(k peer.Kept) error {
	if err := durable.WriteJSON(s.file(k.VEE, k.N, ".json"), k, 0o600); err != nil {
		return noSpace(fmt.Errorf("keep checkpoint %d of VEE %s: %w", k.N, k.VEE, err))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.put(k)
	return nil
}

// counted writes and sums up until ctx is done.
type counted struct {
	ctx    context.Context
	w      io.Writer
	sum    hash.Hash
	n      int64
	room   func() error
	looked int64
}

func (c *counted) Write(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	if c.n-c.looked >= int64(lookEvery) {
		if err := c.room(); err != nil {
			return 0, err
		}
		c.looked = c.n
	}
	n, err := c.w.Write(p)
	c.sum.Write(p[:n])
	c.n += int64(n)
	return n, err
}

func noSpace(err error) error {
	if errors.Is(err, unix.ENOSPC) {
		return fault.New(fault.DiskFull, "%w", err).Try("keep fewer checkpoints (reliability.keep), or give the host more disk: reservoir host list -o wide")
	}
	return err
}

// List of one VEE's, oldest first.
func (s *Store) List(id vee.ID) []peer.Kept {
	s.mu.Lock()
	defer s.mu.Unlock()
	list := []peer.Kept{}
	for _, k := range s.kept[id] {
		list = append(list, k)
	}
	slices.SortFunc(list, func(a, b peer.Kept) int { return a.N - b.N })
	return list
}

// All by VE.
func (s *Store) All() map[string][]peer.Kept {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := map[string][]peer.Kept{}
	for _, of := range s.kept {
		for _, k := range of {
			all[k.VE] = append(all[k.VE], k)
		}
	}
	return all
}

// Settle checkpoint n of a VEE as whole, and give up what more than keep are.
func (s *Store) Settle(id vee.ID, n, keep int) error {
	list := s.List(id)
	i := slices.IndexFunc(list, func(k peer.Kept) bool { return k.N == n })
	if i < 0 {
		return fault.New(fault.NotFound, "checkpoint %d of VEE %s is not on this host", n, id)
	}
	list[i].Whole = true
	if err := s.write(list[i]); err != nil {
		return err
	}
	for _, k := range outdated(list, n, keep) {
		if err := s.Drop(id, k.N); err != nil {
			return err
		}
	}
	return nil
}

// Drop a checkpoint; one that is not there is dropped already.
func (s *Store) Drop(id vee.ID, n int) error {
	s.mu.Lock()
	delete(s.kept[id], n)
	if len(s.kept[id]) == 0 {
		delete(s.kept, id)
	}
	s.mu.Unlock()
	err := errors.Join(durable.Remove(s.file(id, n, ".json")), durable.Remove(s.file(id, n, ".pack")))
	_ = os.Remove(s.folder(id)) // if it is empty
	if err != nil {
		return fmt.Errorf("drop checkpoint %d of VEE %s: %w", n, id, err)
	}
	return nil
}

// OpenWhole is Open of one whose content was read and is what it should be.
func (s *Store) OpenWhole(k peer.Kept) (*os.File, error) {
	f, err := s.Open(k.VEE, k.N)
	if err != nil {
		return nil, err
	}
	sum := sha256.New()
	if _, err = io.Copy(sum, f); err == nil {
		_, err = f.Seek(0, io.SeekStart)
	}
	if digest := "sha256:" + hex.EncodeToString(sum.Sum(nil)); err == nil && digest != k.Digest {
		err = fault.New(fault.DigestMismatch, "checkpoint %d of VEE %s is %s here and should be %s", k.N, k.VEE, digest, k.Digest)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// Open the content of one.
func (s *Store) Open(id vee.ID, n int) (*os.File, error) {
	f, err := os.Open(s.file(id, n, ".pack"))
	if err != nil {
		return nil, fault.New(fault.NotFound, "checkpoint %d of VEE %s is not on this host", n, id)
	}
	return f, nil
}
