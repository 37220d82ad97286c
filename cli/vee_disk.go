package cli

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/vee"
	"github.com/reservoir-cloud/reservoir/vhi"
)

func (a *app) veeDisk() *cobra.Command {
	return noun("disk", "The disks of a VEE", a.veeDiskList(), a.veeDiskExport())
}

func (a *app) veeSnapshot() *cobra.Command {
	return noun("snapshot", "Frozen states of a VEE's disks and memory",
		a.veeSnapshotCreate(), a.veeSnapshotList(),
		a.veeSnapshotDo("restore", "Bring a VEE back to a snapshot", "What the VEE is now is given up. One that is active goes on from the snapshot's memory, or boots from its disks.",
			func(ctx context.Context, r *remote, id vee.ID, name string) error {
				return r.vmi.RestoreSnapshot(ctx, id, name)
			}),
		a.veeSnapshotDo("delete", "Delete a snapshot", "The VEE stays as it is, and what only the snapshot needs is freed.",
			func(ctx context.Context, r *remote, id vee.ID, name string) error {
				return r.vmi.DeleteSnapshot(ctx, id, name)
			}))
}

// oneVEE that an argument names.
func (r *remote) oneVEE(ctx context.Context, arg string) (vee.ID, error) {
	ids, err := r.findVEEs(ctx, []string{arg})
	if err != nil {
		return "", err
	}
	return ids[0], nil
}

func (a *app) veeDiskList() *cobra.Command {
	cmd := &cobra.Command{Use: "list VEE", Aliases: []string{"ls"}, Short: "List the disks of a VEE", Args: cobra.ExactArgs(1), ValidArgsFunction: a.names(veeNames)}
	f := outputFlag(cmd)
	cmd.RunE = a.onSite(func(ctx context.Context, r *remote, args []string) error {
		id, err := r.oneVEE(ctx, args[0])
		if err != nil {
			return err
		}
		list, err := r.vmi.ListDisks(ctx, id)
		if err != nil {
			return err
		}
		return listing[vee.DiskInfo]{
			columns: []column[vee.DiskInfo]{
				{head: "DISK", cell: func(d vee.DiskInfo) string { return d.Name }},
				{head: "SIZE", cell: func(d vee.DiskInfo) string { return d.Size.String() }},
				{head: "USED", cell: func(d vee.DiskInfo) string { return d.Used.String() }},
				{head: "KIND", cell: diskKind},
				{head: "IMAGE", cell: func(d vee.DiskInfo) string {
					if d.Source == "" {
						return short(d.Image)
					}
					return d.Source
				}},
				{head: "LAYERS", cell: func(d vee.DiskInfo) string { return strconv.Itoa(d.Layers) }, wide: true},
				{head: "FORMAT", cell: func(d vee.DiskInfo) string { return d.Format }, wide: true},
			},
			name: func(d vee.DiskInfo) string { return d.Name },
			none: "it has no disks",
		}.print(a, *f, list)
	})
	return cmd
}

func diskKind(d vee.DiskInfo) string {
	switch {
	case d.CDROM:
		return "cdrom"
	case d.Persistent:
		return "persistent"
	case d.Image == "":
		return "blank"
	}
	return "clone"
}

func (a *app) veeDiskExport() *cobra.Command {
	cmd := &cobra.Command{Use: "export VEE DISK", Short: "Save a disk as a qcow2 file",
		Long:    "Save a disk as a qcow2 file that needs no other, and print its digest. The VEE must be stopped or suspended, or a snapshot be named.",
		Example: "  reservoir vee disk export db-1 data -o data.qcow2\n  reservoir vee disk export db-1 data --snapshot before -o data.qcow2",
		Args:    cobra.ExactArgs(2), ValidArgsFunction: a.names(veeNames)}
	out := cmd.Flags().StringP("output", "o", "", "file to write (default: DISK.qcow2)")
	from := cmd.Flags().String("snapshot", "", "the disk as this snapshot has it")
	cmd.RunE = a.onSite(func(ctx context.Context, r *remote, args []string) error {
		id, err := r.oneVEE(ctx, args[0])
		if err != nil {
			return err
		}
		path := *out
		if path == "" {
			path = args[1] + ".qcow2"
		}
		h, err := r.exportDisk(ctx, id, args[1], *from, path)
		if err != nil {
			return err
		}
		a.printf("%s  %s  %s\n", h.Digest, vee.Bytes(h.Size), path)
		return nil
	})
	return cmd
}

// exportDisk to a file, which is there when all of it is and has its digest.
func (r *remote) exportDisk(ctx context.Context, id vee.ID, disk, snapshot, path string) (h vhi.ExportHeader, err error) {
	stream, err := r.vmi.ExportDisk(ctx, id, disk, snapshot)
	if err != nil {
		return h, err
	}
	defer stream.Close()
	defer context.AfterFunc(ctx, func() { stream.Close() })()
	h, content, err := vhi.OpenExport(stream)
	if err != nil {
		return h, err
	}
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-")
	if err != nil {
		return h, fileFault(err)
	}
	defer func() { _ = os.Remove(f.Name()) }()
	sum := sha256.New()
	_, err = io.Copy(io.MultiWriter(f, sum), content)
	if err = errors.Join(err, f.Close()); err != nil {
		return h, fault.New(fault.Unavailable, "export disk %q of VEE %s: %w", disk, id, err).Try("try again")
	}
	if got := "sha256:" + hex.EncodeToString(sum.Sum(nil)); got != h.Digest {
		return h, fault.New(fault.Unavailable, "export disk %q of VEE %s: what came has digest %s, the host sent %s", disk, id, got, h.Digest).Try("try again")
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return h, fileFault(err)
	}
	return h, nil
}

// borrowDisk exports a disk to a file that drop removes.
func (r *remote) borrowDisk(ctx context.Context, name, disk, snapshot string) (file string, drop func(), err error) {
	id, err := r.oneVEE(ctx, name)
	if err != nil {
		return "", nil, err
	}
	dir, err := os.MkdirTemp("", "reservoir-disk-")
	if err != nil {
		return "", nil, fileFault(err)
	}
	drop = func() { _ = os.RemoveAll(dir) }
	file = filepath.Join(dir, disk+".qcow2")
	if _, err := r.exportDisk(ctx, id, disk, snapshot, file); err != nil {
		drop()
		return "", nil, err
	}
	return file, drop, nil
}

func (a *app) veeSnapshotCreate() *cobra.Command {
	cmd := &cobra.Command{Use: "create VEE NAME", Short: "Freeze the disks of a VEE, and its memory",
		Long:    "Freeze the disks of a VEE. One that runs stands still meanwhile, as long as it takes to write its memory, and goes on.",
		Example: "  reservoir vee snapshot create web-1 before-upgrade --memory",
		Args:    cobra.ExactArgs(2), ValidArgsFunction: a.names(veeNames)}
	memory := cmd.Flags().Bool("memory", false, "its memory too: restored, it goes on from there")
	cmd.RunE = a.onSite(func(ctx context.Context, r *remote, args []string) error {
		id, err := r.oneVEE(ctx, args[0])
		if err != nil {
			return err
		}
		s, err := r.vmi.CreateSnapshot(ctx, id, args[1], *memory)
		if err != nil {
			return err
		}
		a.printf("%s  %s\n", s.Name, s.Size)
		return nil
	})
	return cmd
}

func (a *app) veeSnapshotList() *cobra.Command {
	cmd := &cobra.Command{Use: "list VEE", Aliases: []string{"ls"}, Short: "List the snapshots of a VEE", Args: cobra.ExactArgs(1), ValidArgsFunction: a.names(veeNames)}
	f := outputFlag(cmd)
	cmd.RunE = a.onSite(func(ctx context.Context, r *remote, args []string) error {
		id, err := r.oneVEE(ctx, args[0])
		if err != nil {
			return err
		}
		list, err := r.vmi.ListSnapshots(ctx, id)
		if err != nil {
			return err
		}
		return listing[vee.Snapshot]{
			columns: []column[vee.Snapshot]{
				{head: "SNAPSHOT", cell: func(s vee.Snapshot) string { return s.Name }},
				{head: "MEMORY", cell: func(s vee.Snapshot) string { return yes(s.Memory) }},
				{head: "SIZE", cell: func(s vee.Snapshot) string { return s.Size.String() }},
				{head: "AGE", cell: func(s vee.Snapshot) string { return a.since(s.Created) }},
				{head: "DISKS", cell: func(s vee.Snapshot) string { return strings.Join(s.Disks, " ") }},
			},
			name: func(s vee.Snapshot) string { return s.Name },
			none: fmt.Sprintf("no snapshots; take one: reservoir vee snapshot create %s NAME", args[0]),
		}.print(a, *f, list)
	})
	return cmd
}

func (a *app) veeSnapshotDo(verb, shortHelp, long string, do func(context.Context, *remote, vee.ID, string) error) *cobra.Command {
	cmd := &cobra.Command{Use: verb + " VEE NAME", Short: shortHelp, Long: long, Args: cobra.ExactArgs(2), ValidArgsFunction: a.names(veeNames)}
	cmd.RunE = a.onSite(func(ctx context.Context, r *remote, args []string) error {
		id, err := r.oneVEE(ctx, args[0])
		if err != nil {
			return err
		}
		return do(ctx, r, id, args[1])
	})
	return cmd
}
