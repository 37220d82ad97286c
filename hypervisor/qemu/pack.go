package qemu

import (
	"archive/tar"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/reservoir-cloud/reservoir/hypervisor"
	"github.com/reservoir-cloud/reservoir/hypervisor/disk"
	"github.com/reservoir-cloud/reservoir/internal/durable"
	"github.com/reservoir-cloud/reservoir/vee"
)

var _ hypervisor.Packer = (*Driver)(nil)

// A packed snapshot is a tar stream: packHead, the memory if it has one, and a qcow2 file for
// each disk, which has what differs from the disk's image, or all where it is no clone. A
// packed guest is what a snapshot of it would be.
const (
	packHead   = "snapshot.json"
	packMemory = "memory"
	packDisk   = "disk-" // NAME.qcow2
)

// maxPackHead bounds the first entry, bytes.
const maxPackHead = 1 << 20

// Pack implements hypervisor.Packer. Frozen layers do not change, but they are merged, and
// given up by name, by commands: so it takes its turn.
func (d *Driver) Pack(ctx context.Context, id vee.ID, name string, w io.Writer) error {
	g, err := d.existing(id)
	if err != nil {
		return fmt.Errorf("pack snapshot %q: %w", name, err)
	}
	files, head, err := g.packed(ctx, name)
	defer func() {
		for _, f := range files {
			_ = f.Close()
		}
	}()
	if err == nil {
		err = writePack(w, head, files)
	}
	if err != nil {
		return disk.NoSpace(fmt.Errorf("pack snapshot %q of %s: %w", name, id, err))
	}
	return nil
}

// packed files of a snapshot, which have no name any more but that of their entry.
func (g *guest) packed(ctx context.Context, name string) (files []packedFile, head snapshot, err error) {
	ctx, done, err := g.d.turns.Take(ctx, g.id, g.d.turns.Obeyed(g.id))
	if err != nil {
		return nil, head, err
	}
	defer done()
	rec := g.record()
	head, ok := rec.snapshot(name)
	switch {
	case name == "":
		if head, err = g.itself(); err != nil {
			return nil, head, err
		}
	case !ok:
		return nil, head, hypervisor.ErrNotFound
	}
	if head.MemoryFile != "" {
		f, err := os.Open(filepath.Join(g.dir, head.MemoryFile))
		if err != nil {
			return nil, head, err
		}
		files = append(files, packedFile{f, packMemory})
	}
	for _, k := range disk.Plan(head.Guest) {
		chain := head.Layers[k.Name]
		if k.Kind == disk.Medium || len(chain) == 0 {
			continue
		}
		f, err := g.flatten(ctx, k, g.local(chain[0]))
		if err != nil {
			return files, head, err
		}
		files = append(files, packedFile{f, packDisk + k.Name + ".qcow2"})
	}
	return files, head, nil
}

// itself as a snapshot of it would be.
func (g *guest) itself() (s snapshot, err error) {
	c, rec := g.condition(), g.record()
	if c != hypervisor.Stopped && c != hypervisor.Suspended {
		return s, g.wrongState("pack")
	}
	s = snapshot{Layers: map[string][]string{}, Guest: rec.Guest, Machine: rec.Machine, CPU: rec.CPU, Accelerator: rec.Accelerator}
	for _, k := range disk.Plan(rec.Guest) {
		if k.Kind != disk.Medium {
			s.Layers[k.Name] = []string{rec.topOf(k)}
		}
	}
	if c == hypervisor.Suspended {
		s.MemoryFile = rec.memory()
	}
	return s, hypervisor.SnapshotsStay(len(rec.Snapshots))
}

type packedFile struct {
	*os.File
	entry string
}

// flatten a frozen disk down to its image.
func (g *guest) flatten(ctx context.Context, k disk.Disk, from hypervisor.LocalImage) (_ *os.File, err error) {
	f, err := os.CreateTemp(g.dir, "export-*.qcow2")
	if err != nil {
		return nil, err
	}
	defer func() {
		_ = os.Remove(f.Name())
		if err != nil {
			_ = f.Close()
		}
	}()
	args := []string{"convert", "-q", "-f", from.Format, "-O", "qcow2"}
	if k.Kind == disk.Clone {
		args = append(args, "-B", k.Base.Disk, "-F", k.Base.Format)
	}
	return f, disk.Run(ctx, g.d.cfg.ImageTool, append(args, from.Disk, f.Name())...)
}

func writePack(w io.Writer, head snapshot, files []packedFile) error {
	text, err := json.Marshal(head)
	if err != nil {
		return err
	}
	out := tar.NewWriter(w)
	if err := out.WriteHeader(&tar.Header{Name: packHead, Mode: 0o600, Size: int64(len(text))}); err != nil {
		return err
	}
	if _, err := out.Write(text); err != nil {
		return err
	}
	for _, f := range files {
		st, err := f.Stat()
		if err != nil {
			return err
		}
		if err := out.WriteHeader(&tar.Header{Name: f.entry, Mode: 0o600, Size: st.Size()}); err != nil {
			return err
		}
		if _, err := io.Copy(out, f); err != nil {
			return err
		}
	}
	return out.Close()
}

// Unpack implements hypervisor.Packer. Its commit point is the record.
func (d *Driver) Unpack(ctx context.Context, gs hypervisor.Guest, r io.Reader) error {
	return d.fromPack(ctx, "unpack", gs, r, false)
}

// Seed implements hypervisor.Packer. Its commit point is the record.
func (d *Driver) Seed(ctx context.Context, gs hypervisor.Guest, r io.Reader) error {
	return d.fromPack(ctx, "seed", gs, r, true)
}

// fromPack makes a guest; disksAlone: as gs describes it, of the disks alone.
func (d *Driver) fromPack(ctx context.Context, what string, gs hypervisor.Guest, r io.Reader, disksAlone bool) error {
	g, ctx, done, err := d.command(ctx, gs.ID, gs.Epoch)
	if err != nil {
		return fmt.Errorf("%s %s: %w", what, gs.ID, err)
	}
	defer done()
	if c := g.condition(); c != hypervisor.Absent {
		return g.wrongState(what)
	}
	if err := g.unpack(ctx, gs, r, disksAlone); err != nil {
		return disk.NoSpace(fmt.Errorf("%s %s: %w", what, gs.ID, err))
	}
	return nil
}

func (g *guest) unpack(ctx context.Context, gs hypervisor.Guest, r io.Reader, disksAlone bool) (err error) {
	if err := os.RemoveAll(g.dir); err != nil { // a rest of an earlier failure
		return err
	}
	defer func() {
		if err != nil {
			_ = os.RemoveAll(g.dir)
		}
	}()
	if err := os.Mkdir(g.dir, 0o700); err != nil {
		return err
	}
	in := tar.NewReader(r)
	head, err := readPackHead(in)
	if err != nil {
		return err
	}
	is, remembers := head.Guest, head.MemoryFile != "" && !disksAlone
	is.ID, is.Epoch, is.Images, is.NICs = gs.ID, gs.Epoch, gs.Images, gs.NICs
	if disksAlone {
		is = gs
	}
	if err := g.d.check(is); err != nil {
		return err
	}
	l, err := g.unpackFiles(ctx, in, is, head.MemoryFile != "", remembers)
	if err != nil {
		return err
	}
	if len(is.Descriptor.Context) > 0 {
		if err := disk.MakeSeed(filepath.Join(g.dir, disk.SeedFile), is.Descriptor.Context); err != nil {
			return err
		}
	}
	if err := errors.Join(durable.SyncDir(g.dir), durable.SyncDir(filepath.Dir(g.dir))); err != nil {
		return err
	}
	want := hypervisor.Stopped
	if remembers {
		want = hypervisor.Suspended
	}
	uid := g.d.users.take(g.id, g.d.token(g.id))
	if err := g.save(func(r *record) {
		*r = record{Guest: is, UID: uid, Want: want, layers: l}
		if !disksAlone {
			r.Machine, r.CPU, r.Accelerator = head.Machine, head.CPU, head.Accelerator
		}
	}); err != nil {
		return err
	}
	g.setCondition(want, "")
	return nil
}

func readPackHead(in *tar.Reader) (head snapshot, err error) {
	h, err := in.Next()
	if err != nil || h.Name != packHead || h.Size > maxPackHead {
		return head, fmt.Errorf("this is no packed snapshot: %w", errors.Join(err, errPack))
	}
	text, err := io.ReadAll(in)
	if err == nil {
		err = json.Unmarshal(text, &head)
	}
	if err != nil {
		return head, fmt.Errorf("read a packed snapshot: %w", err)
	}
	return head, nil
}

var errPack = errors.New("it is damaged, or of another driver")

// unpackFiles writes memory, if it is wanted, and disks, each of which has to be there.
func (g *guest) unpackFiles(ctx context.Context, in *tar.Reader, gs hypervisor.Guest, memory, wantMemory bool) (l layers, err error) {
	l = layers{Frozen: 1}.clone()
	missing := map[string]disk.Disk{}
	for _, k := range disk.Plan(gs) {
		if k.Kind != disk.Medium {
			missing[k.Name] = k
		}
	}
	for {
		h, err := in.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return l, fmt.Errorf("read a packed snapshot: %w", err)
		}
		name, isDisk := strings.CutPrefix(strings.TrimSuffix(h.Name, ".qcow2"), packDisk)
		k, wanted := missing[name]
		file := memoryFile
		switch {
		case isDisk && wanted:
			file = l.newTop(name)
		case h.Name != packMemory || !memory:
			return l, fmt.Errorf("a packed snapshot has %q: %w", h.Name, errPack)
		default:
			if memory = false; !wantMemory {
				continue
			}
		}
		if err := writeFrom(filepath.Join(g.dir, file), in); err != nil {
			return l, err
		}
		if isDisk {
			delete(missing, name)
			l.Tops[name], l.Under[name] = file, nil
			if k.Kind == disk.Clone {
				err = disk.Run(ctx, g.d.cfg.ImageTool, "rebase", "-u", "-q", "-f", "qcow2", "-F", k.Base.Format, "-b", k.Base.Disk, filepath.Join(g.dir, file))
			}
			if err != nil {
				return l, err
			}
		}
	}
	if len(missing) > 0 || memory {
		return l, fmt.Errorf("a packed snapshot ends before it has %d disks and its memory: %w", len(missing), errPack)
	}
	return l, nil
}

// writeFrom r, through.
func writeFrom(path string, r io.Reader) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, r)
	return errors.Join(err, f.Sync(), f.Close())
}
