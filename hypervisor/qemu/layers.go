package qemu

import (
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/reservoir-cloud/reservoir/hypervisor"
	"github.com/reservoir-cloud/reservoir/hypervisor/disk"
	"github.com/reservoir-cloud/reservoir/internal/durable"
	"github.com/reservoir-cloud/reservoir/vee"
)

// layers of a guest's disks: what of its record is about snapshots. A disk is written in
// its top file; a snapshot freezes that and puts a new, empty top over it. Files are never
// renamed: which file is what, only the record says, so that its write is the one commit
// point of everything here, and files that it does not name are rests to delete.
type layers struct {
	Tops      map[string]string   `json:"tops,omitempty"`  // by disk; else the planned file
	Under     map[string][]string `json:"under,omitempty"` // by disk: frozen files under its top, next first
	Snapshots []snapshot          `json:"snapshots,omitempty"`
	Frozen    int                 `json:"frozen,omitempty"` // snapshots and restores so far: numbers new files
	// MemoryFrom is the file to wake from, where it is a snapshot's and not memoryFile.
	MemoryFrom string `json:"memoryFrom,omitempty"`
}

// snapshot as it is kept.
type snapshot struct {
	vee.Snapshot
	Layers     map[string][]string `json:"layers,omitempty"` // by disk: frozen files, next first
	MemoryFile string              `json:"memoryFile,omitempty"`

	// What it was then; saved memory fits nothing else.
	Guest       hypervisor.Guest `json:"guest"`
	Machine     string           `json:"machine,omitempty"`
	CPU         string           `json:"cpu,omitempty"`
	Accelerator string           `json:"accelerator,omitempty"`
}

// topOf is the file that a disk is written in.
func (l layers) topOf(k disk.Disk) string {
	if f, ok := l.Tops[k.Name]; ok {
		return f
	}
	return k.File
}

// kept is l when these are the disks: what one that is gone was written in is not that of a
// new one by its name.
func (l layers) kept(disks []disk.Disk) layers {
	c := l.clone()
	gone := func(name string) bool {
		return !slices.ContainsFunc(disks, func(k disk.Disk) bool { return k.Name == name })
	}
	maps.DeleteFunc(c.Tops, func(name, _ string) bool { return gone(name) })
	maps.DeleteFunc(c.Under, func(name string, _ []string) bool { return gone(name) })
	return c
}

func (l layers) snapshot(name string) (snapshot, bool) {
	i := slices.IndexFunc(l.Snapshots, func(s snapshot) bool { return s.Name == name })
	if i < 0 {
		return snapshot{}, false
	}
	return l.Snapshots[i], true
}

// clone so that it may be changed: records share what they point to.
func (l layers) clone() layers {
	c := l
	c.Tops, c.Under = maps.Clone(l.Tops), maps.Clone(l.Under)
	if c.Tops == nil {
		c.Tops, c.Under = map[string]string{}, map[string][]string{}
	}
	c.Snapshots = slices.Clone(l.Snapshots)
	return c
}

// freeze the disks: each top goes under a new one, whose file is named in return by disk.
func (l layers) freeze(disks []disk.Disk) (frozen layers, chains map[string][]string) {
	frozen, chains = l.clone(), map[string][]string{}
	frozen.Frozen++
	for _, k := range disks {
		if k.Kind == disk.Medium {
			continue
		}
		chains[k.Name] = append([]string{l.topOf(k)}, l.Under[k.Name]...)
		frozen.Under[k.Name] = chains[k.Name]
		frozen.Tops[k.Name] = frozen.newTop(k.Name)
	}
	return frozen, chains
}

// restore the disks as chains have them, each under a new top.
func (l layers) restore(chains map[string][]string) layers {
	r := l.clone()
	r.Frozen++
	clear(r.Tops)
	clear(r.Under)
	for name, chain := range chains {
		r.Under[name] = chain
		r.Tops[name] = r.newTop(name)
	}
	return r
}

// newTop has a character that no disk's name has, so that it is never a planned file.
func (l layers) newTop(name string) string { return fmt.Sprintf("disk-%s@%d.qcow2", name, l.Frozen) }

// files that the disks and snapshots need.
func (l layers) files(disks []disk.Disk) map[string]bool {
	need := map[string]bool{l.MemoryFrom: true}
	for _, k := range disks {
		need[l.topOf(k)] = true
	}
	for _, chain := range l.chains(disks) {
		for _, f := range chain {
			need[f] = true
		}
	}
	for _, s := range l.Snapshots {
		need[s.MemoryFile] = true
	}
	return need
}

// chains of files, from the one that is looked at down to the last frozen one.
func (l layers) chains(disks []disk.Disk) [][]string {
	var all [][]string
	for _, k := range disks {
		all = append(all, append([]string{l.topOf(k)}, l.Under[k.Name]...))
	}
	for _, s := range l.Snapshots {
		for _, name := range slices.Sorted(maps.Keys(s.Layers)) {
			all = append(all, s.Layers[name])
		}
	}
	return all
}

// merge names a frozen file that nobody looks at by itself and that lies under one other
// file only, and what the other lies on without it: a frozen file or "".
func (l layers) merge(disks []disk.Disk) (child, doomed, onto string, found bool) {
	above, looked := map[string]map[string]bool{}, map[string]bool{}
	next := map[string]string{}
	for _, chain := range l.chains(disks) {
		looked[chain[0]] = true
		for i, f := range chain {
			if i > 0 {
				if above[f] == nil {
					above[f] = map[string]bool{}
				}
				above[f][chain[i-1]] = true
			}
			if i+1 < len(chain) {
				next[f] = chain[i+1]
			}
		}
	}
	for _, f := range slices.Sorted(maps.Keys(above)) {
		if !looked[f] && len(above[f]) == 1 {
			for c := range above[f] {
				return c, f, next[f], true
			}
		}
	}
	return "", "", "", false
}

// without a frozen file that was merged into the one above it.
func (l layers) without(doomed string) layers {
	c := l.clone()
	drop := func(chains map[string][]string) map[string][]string {
		chains = maps.Clone(chains)
		for name, chain := range chains {
			chains[name] = slices.DeleteFunc(slices.Clone(chain), func(f string) bool { return f == doomed })
		}
		return chains
	}
	c.Under = drop(c.Under)
	for i := range c.Snapshots {
		c.Snapshots[i].Layers = drop(c.Snapshots[i].Layers)
	}
	return c
}

// underFile is something that a disk's top lies on.
type underFile struct{ path, format string }

// under a disk's top: frozen layers, then the image that it is a clone of.
func (g *guest) under(rec record, k disk.Disk) []underFile {
	var all []underFile
	for _, f := range rec.Under[k.Name] {
		all = append(all, underFile{filepath.Join(g.dir, f), disk.Format(f)})
	}
	if k.Kind == disk.Clone {
		all = append(all, underFile{k.Base.Disk, k.Base.Format})
	}
	return all
}

// makeTops makes the files of l.Tops that are not there, each over its chain.
func (g *guest) makeTops(ctx context.Context, l layers) error {
	for name, top := range l.Tops {
		path := filepath.Join(g.dir, top)
		if _, err := os.Lstat(path); err == nil {
			continue
		}
		under := l.Under[name][0]
		err := disk.Run(ctx, g.d.cfg.ImageTool, "create", "-q", "-f", "qcow2", "-F", disk.Format(under), "-b", filepath.Join(g.dir, under), path)
		if err == nil {
			err = disk.Sync(path)
		}
		if err != nil {
			return fmt.Errorf("make a layer for disk %q: %w", name, err)
		}
	}
	return durable.SyncDir(g.dir)
}

// sweepFiles deletes disks, layers and memories that the record does not name.
func (g *guest) sweepFiles() {
	rec := g.record()
	entries, err := os.ReadDir(g.dir)
	if err != nil || rec.Guest.ID == "" { // a damaged record names nothing
		return
	}
	need := rec.files(disk.Plan(rec.Guest))
	for _, e := range entries {
		name := e.Name()
		if !need[name] && (strings.Contains(name, "@") || strings.HasPrefix(name, "export-") ||
			strings.HasPrefix(name, "disk-") && len(rec.Tops) > 0) {
			if err := os.Remove(filepath.Join(g.dir, name)); err != nil {
				g.d.cfg.Log.Warn("cannot delete a disk's layer", "vee", g.id, "file", name, "error", err)
			}
		}
	}
}

// tidy merges frozen layers that only lie between others, while no process has them open.
// What was merged, and not yet noted so when a crash came, is the same disk in either case.
func (g *guest) tidy(ctx context.Context) error {
	for {
		rec := g.record()
		child, doomed, onto, found := rec.merge(disk.Plan(rec.Guest))
		if !found {
			return nil
		}
		args := []string{"rebase", "-q", "-f", "qcow2"}
		base := underFile{filepath.Join(g.dir, onto), disk.Format(onto)}
		if onto == "" {
			base = g.imageUnder(rec, doomed)
		}
		if base.path != "" {
			args = append(args, "-F", base.format)
		}
		args = append(args, "-b", base.path, filepath.Join(g.dir, child))
		if err := disk.Run(ctx, g.d.cfg.ImageTool, args...); err != nil {
			return fmt.Errorf("merge layer %s: %w", doomed, err)
		}
		if err := disk.Sync(filepath.Join(g.dir, child)); err != nil {
			return err
		}
		if err := g.save(func(r *record) { r.layers = r.without(doomed) }); err != nil {
			return err
		}
		g.sweepFiles()
	}
}

// imageUnder is the image that the disk, of which file is a layer, is a clone of; or none.
func (g *guest) imageUnder(rec record, file string) underFile {
	for _, k := range disk.Plan(rec.Guest) {
		if k.Kind == disk.Clone && (file == k.File || strings.HasPrefix(file, "disk-"+k.Name+"@")) {
			return underFile{k.Base.Disk, k.Base.Format}
		}
	}
	return underFile{}
}

// used by files in the guest's folder.
func (g *guest) used(files ...string) (sum vee.Bytes) {
	for _, f := range files {
		if f != "" {
			sum += disk.Used(filepath.Join(g.dir, f))
		}
	}
	return sum
}
