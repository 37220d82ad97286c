package image

import (
	"bufio"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/reservoir-cloud/reservoir/internal/durable"
	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/vee"
)

// blobs is a directory of files that are named by the SHA-256 of their content, as in the
// OCI image layout: DIR/sha256/HEX. A file there is whole, durable and never written
// again; it comes there by the rename in partial.commit only. Its modification time is
// when somebody last relied on it, for the grace of a collection.
type blobs struct {
	dir      string
	keepFree vee.Bytes // that a write leaves free on the file system
	now      func() time.Time
}

func (b blobs) path(d digest.Digest) string {
	return filepath.Join(b.dir, string(d.Algorithm()), d.Encoded())
}

// open is an opener of the blobs here. Errors: fault.NotFound.
func (b blobs) open(d digest.Digest) (io.ReadCloser, int64, error) {
	f, err := os.Open(b.path(d))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, 0, fault.New(fault.NotFound, "blob %s is not here", d)
	} else if err != nil {
		return nil, 0, fmt.Errorf("open blob: %w", err)
	}
	info, err := f.Stat()
	if err != nil {
		f.Close()
		return nil, 0, fmt.Errorf("open blob: %w", err)
	}
	return f, info.Size(), nil
}

// read gives the whole of a small blob, verified.
func (b blobs) read(d digest.Digest) ([]byte, error) {
	r, size, err := b.open(d)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	if size > maxMetadata {
		return nil, fmt.Errorf("read blob %s: %d bytes: want at most %d", d, size, maxMetadata)
	}
	data, err := io.ReadAll(r)
	if err != nil {
		return nil, fmt.Errorf("read blob %s: %w", d, err)
	}
	if digest.FromBytes(data) != d {
		return nil, mismatch(d)
	}
	return data, nil
}

// verify reads a blob and compares it with its name. Errors: fault.NotFound,
// fault.DigestMismatch.
func (b blobs) verify(d digest.Digest) error {
	r, _, err := b.open(d)
	if err != nil {
		return err
	}
	defer r.Close()
	sum := sha256.New()
	if _, err := io.Copy(sum, r); err != nil {
		return fmt.Errorf("read blob %s: %w", d, err)
	}
	if digest.NewDigest(digest.SHA256, sum) != d {
		return mismatch(d)
	}
	return nil
}

func mismatch(d digest.Digest) error {
	return fault.New(fault.DigestMismatch, "content of blob %s does not match its digest", d)
}

// touch says that somebody relies on a blob from now on, and whether it is there.
func (b blobs) touch(d digest.Digest) (bool, error) {
	now := b.now()
	err := os.Chtimes(b.path(d), now, now)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

// remove is idempotent.
func (b blobs) remove(d digest.Digest) error {
	if err := os.Remove(b.path(d)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove blob: %w", err)
	}
	return nil
}

// each calls f for every blob until it fails. Files of other names are passed over.
func (b blobs) each(f func(d digest.Digest, info fs.FileInfo) error) error {
	entries, err := os.ReadDir(filepath.Join(b.dir, string(digest.SHA256)))
	if err != nil {
		return fmt.Errorf("list blobs: %w", err)
	}
	for _, e := range entries {
		d, err := parseDigest(string(digest.SHA256) + ":" + e.Name())
		if err != nil {
			continue
		}
		info, err := e.Info()
		if errors.Is(err, fs.ErrNotExist) {
			continue
		} else if err != nil {
			return fmt.Errorf("list blobs: %w", err)
		}
		if err := f(d, info); err != nil {
			return err
		}
	}
	return nil
}

// room fails when writing n more bytes would leave less free than is to be kept.
func (b blobs) room(n int) error {
	if b.keepFree <= 0 {
		return nil
	}
	var st syscall.Statfs_t
	if err := syscall.Statfs(b.dir, &st); err != nil {
		return fmt.Errorf("free space of %s: %w", b.dir, err)
	}
	if free := vee.Bytes(st.Bavail) * vee.Bytes(st.Bsize); free-vee.Bytes(n) < b.keepFree {
		return fault.New(fault.DiskFull, "%s has %s free, of which %s are kept for the rest of the machine", b.dir, free, b.keepFree)
	}
	return nil
}

// partial is a file on its way to become a blob, and the digest of what is in it so far.
// It is used by one goroutine at a time.
type partial struct {
	blobs blobs
	f     *os.File
	sum   hash.Hash
	size  int64
	limit int64 // of size
}

// resume opens the partial file at path, or makes it. What a process that was killed left
// there is read again, since its digest is not known.
func (b blobs) resume(path string, limit int64) (*partial, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return nil, diskFault(err, "make a partial blob")
	}
	p := &partial{blobs: b, f: f, sum: sha256.New(), limit: limit}
	if p.size, err = io.Copy(p.sum, bufio.NewReaderSize(f, 1<<20)); err != nil {
		f.Close()
		return nil, fmt.Errorf("read partial blob: %w", err)
	}
	return p, nil
}

// Write appends. Errors: fault.TooLarge, fault.DiskFull; the caller then drops p.
func (p *partial) Write(data []byte) (int, error) {
	if int64(len(data)) > p.limit-p.size {
		return 0, fault.New(fault.TooLarge, "blob has more than the %d bytes that it may have", p.limit)
	}
	if err := p.blobs.room(len(data)); err != nil {
		return 0, err
	}
	n, err := p.f.Write(data)
	p.sum.Write(data[:n])
	p.size += int64(n)
	if err != nil {
		return n, diskFault(err, "write blob")
	}
	return n, nil
}

// reset empties p.
func (p *partial) reset() error {
	if err := p.f.Truncate(0); err != nil {
		return fmt.Errorf("empty partial blob: %w", err)
	}
	if _, err := p.f.Seek(0, io.SeekStart); err != nil {
		return fmt.Errorf("empty partial blob: %w", err)
	}
	p.sum.Reset()
	p.size = 0
	return nil
}

// commit makes p the blob d and closes it: verified, then durable, then visible. What does
// not match, or cannot be made durable, is dropped. Errors: fault.DigestMismatch,
// fault.DiskFull.
func (p *partial) commit(d digest.Digest) error {
	if got := digest.NewDigest(digest.SHA256, p.sum); got != d {
		p.drop()
		return fault.New(fault.DigestMismatch, "%d bytes of blob %s have digest %s", p.size, d, got)
	}
	now := p.blobs.now()
	err := errors.Join(p.f.Chmod(0o644), os.Chtimes(p.f.Name(), now, now), p.f.Sync())
	if err == nil {
		err = os.Rename(p.f.Name(), p.blobs.path(d))
	}
	if err != nil {
		p.drop()
		return diskFault(err, "store blob %s", d)
	}
	p.close()
	return syncDir(filepath.Dir(p.blobs.path(d)))
}

// close leaves the file for a later resume.
func (p *partial) close() { _ = p.f.Close() }

// drop removes the file.
func (p *partial) drop() {
	_ = os.Remove(p.f.Name())
	p.close()
}

// writeFile replaces a small file so that a crash leaves the old or the new one.
func writeFile(path string, data []byte) error {
	f, err := os.OpenFile(path+".new", os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o644)
	if err != nil {
		return diskFault(err, "write %s", path)
	}
	_, err = f.Write(data)
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		_ = os.Remove(f.Name())
		return diskFault(err, "write %s", path)
	}
	return syncDir(filepath.Dir(path))
}

// syncDir makes renames in dir durable.
func syncDir(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("sync directory: %w", err)
	}
	if err := errors.Join(f.Sync(), f.Close()); err != nil {
		return diskFault(err, "sync directory %s", dir)
	}
	return nil
}

// makeDirs makes dirs under root, readable by every user: QEMU runs as one of its own.
func makeDirs(root string, dirs ...string) error {
	for _, d := range append([]string{"."}, dirs...) {
		path := filepath.Join(root, d)
		if err := os.MkdirAll(path, 0o755); err != nil {
			return diskFault(err, "make directory")
		}
		if err := os.Chmod(path, 0o755); err != nil {
			return fmt.Errorf("make directory: %w", err)
		}
	}
	return nil
}

// lockDir takes dir for this process until the file is closed, also by its death. Errors:
// fault.Exists.
func lockDir(dir string) (*os.File, error) {
	f, err := durable.Lock(filepath.Join(dir, "lock"))
	if errors.Is(err, durable.ErrLocked) {
		return nil, fault.New(fault.Exists, "another process uses %s", dir).
			Try("stop the other process, or give this one a directory of its own")
	}
	if err != nil {
		return nil, diskFault(err, "lock %s", dir)
	}
	return f, nil
}

// diskFault gives an error of the file system its code.
func diskFault(err error, format string, args ...any) error {
	doing := fmt.Sprintf(format, args...)
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return fault.New(fault.DiskFull, "%s: %w", doing, err)
	}
	return fmt.Errorf("%s: %w", doing, err)
}
