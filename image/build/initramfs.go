package build

import (
	"bytes"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"

	"github.com/u-root/u-root/pkg/cpio"
)

// initramfs makes an uncompressed archive with the guest as /init and sets of modules
// beside their lists. Uncompressed, because an emulated CPU takes longer to inflate it than
// QEMU to copy it. The same inputs give the same bytes.
func initramfs(guest []byte, modules fs.FS, sets ...string) ([]byte, error) {
	all, err := modulesIn(modules)
	if err != nil {
		return nil, fmt.Errorf("looking for kernel modules: %w", err)
	}
	const dir = "lib/modules"
	records := []cpio.Record{
		cpio.CharDev("dev/console", 0o600, 5, 1), // opened by the kernel for init
		cpio.StaticRecord(guest, cpio.Info{Name: "init", Mode: cpio.S_IFREG | 0o755}),
	}
	for _, d := range []string{"dev", "lib", dir, "proc", "root", "run", "sys"} {
		records = append(records, cpio.Directory(d, 0o755))
	}
	packed := map[string]bool{}
	for _, set := range sets {
		order, err := loadOrder(all, moduleSets[set], func(path string) ([]string, error) {
			ko, err := fs.ReadFile(modules, path)
			if err != nil {
				return nil, err
			}
			return moduleDepends(ko)
		})
		if err != nil {
			return nil, err
		}
		var list strings.Builder
		for _, m := range order {
			file := path.Base(m.path)
			fmt.Fprintln(&list, file)
			if packed[file] {
				continue
			}
			packed[file] = true
			ko, err := fs.ReadFile(modules, m.path)
			if err != nil {
				return nil, err
			}
			records = append(records, cpio.StaticRecord(ko, cpio.Info{Name: path.Join(dir, file), Mode: cpio.S_IFREG | 0o644}))
		}
		records = append(records, cpio.StaticFile(path.Join(dir, set), list.String(), 0o644))
	}
	slices.SortFunc(records, func(a, b cpio.Record) int { return strings.Compare(a.Name, b.Name) })
	cpio.MakeAllReproducible(records)
	var archive bytes.Buffer
	w := cpio.Newc.Writer(&archive)
	if err := cpio.WriteRecords(w, records); err != nil {
		return nil, fmt.Errorf("writing the initramfs: %w", err)
	}
	if err := cpio.WriteTrailer(w); err != nil {
		return nil, fmt.Errorf("writing the initramfs: %w", err)
	}
	return archive.Bytes(), nil
}
