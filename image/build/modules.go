package build

import (
	"bytes"
	"debug/elf"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"
)

// Modules by set, as the appliance's init asks for them (cmd/reservoir-guest/boot). What
// they depend on is found here.
var moduleSets = map[string][]string{
	"boot.list":  {"virtio_pci", "virtio_blk", "isofs", "virtio_net"},
	"late.list":  {"virtio_console", "button", "evdev", "virtio_rng", "virtio_balloon"},
	"cdrom.list": {"ata_piix", "sr_mod"},
	"root.list":  {"virtio_pci", "virtio_blk"},
}

// module of the kernel, as its file describes it in the section .modinfo.
type module struct {
	name    string
	path    string
	depends []string
}

// modulesIn finds the loadable modules of a tree, by name. The kernel says "_" where file
// names may say "-".
func modulesIn(tree fs.FS) (map[string]module, error) {
	found := map[string]module{}
	err := fs.WalkDir(tree, ".", func(file string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || path.Ext(file) != ".ko" {
			return err
		}
		name := strings.ReplaceAll(strings.TrimSuffix(path.Base(file), ".ko"), "-", "_")
		found[name] = module{name: name, path: file}
		return nil
	})
	return found, err
}

// loadOrder of the wanted modules and all that they depend on: each after what it needs.
// info reads a module's dependencies.
func loadOrder(all map[string]module, wanted []string, info func(path string) ([]string, error)) ([]module, error) {
	var order []module
	done := map[string]bool{}
	var add func(name string, chain []string) error
	add = func(name string, chain []string) error {
		if slices.Contains(chain, name) {
			return fmt.Errorf("kernel modules depend on each other: %s", strings.Join(append(chain, name), " → "))
		}
		if done[name] {
			return nil
		}
		m, ok := all[name]
		if !ok {
			return fmt.Errorf("kernel module %s, needed by %s: not in this kernel's package", name, strings.Join(append(chain, "the image"), ", "))
		}
		var err error
		if m.depends, err = info(m.path); err != nil {
			return fmt.Errorf("kernel module %s: %w", name, err)
		}
		for _, d := range m.depends {
			if err := add(d, append(chain, name)); err != nil {
				return err
			}
		}
		done[name] = true
		order = append(order, m)
		return nil
	}
	for _, w := range wanted {
		if err := add(w, nil); err != nil {
			return nil, err
		}
	}
	return order, nil
}

// moduleDepends reads the names after depends= in a module's .modinfo section, which is
// strings that end in a zero byte.
func moduleDepends(ko []byte) ([]string, error) {
	f, err := elf.NewFile(bytes.NewReader(ko))
	if err != nil {
		return nil, err
	}
	section := f.Section(".modinfo")
	if section == nil {
		return nil, errors.New("it has no section .modinfo")
	}
	info, err := section.Data()
	if err != nil {
		return nil, err
	}
	for line := range bytes.SplitSeq(info, []byte{0}) {
		if names, ok := strings.CutPrefix(string(line), "depends="); ok {
			return strings.FieldsFunc(strings.ReplaceAll(names, "-", "_"), func(r rune) bool { return r == ',' }), nil
		}
	}
	return nil, nil
}
