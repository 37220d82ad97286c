package disk

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"github.com/diskfs/go-diskfs/backend/file"
	"github.com/diskfs/go-diskfs/filesystem/iso9660"
)

// SeedFile holds Descriptor.Context in a guest's folder.
const SeedFile = "seed.iso"

// SeedLabel is what cloud-init's NoCloud source and our appliance look for.
const SeedLabel = "cidata"

// MakeSeed writes an ISO 9660 image with Rock Ridge names: the files of context, in the
// root folder. Names come from outside, so one that is not a plain name is refused.
func MakeSeed(path string, context map[string]string) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("make the seed Medium: %w", err)
		}
	}()
	// The library builds in a folder first; kept beside the image, so that nothing is left
	// elsewhere when we are killed.
	work, err := os.MkdirTemp(filepath.Dir(path), ".seed")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(work) }()
	temporary := work + ".iso"
	defer func() { _ = os.Remove(temporary) }()
	f, err := os.OpenFile(temporary, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	iso, err := iso9660.Create(file.New(f, false), 0, 0, 2048, work)
	if err != nil {
		return err
	}
	for _, name := range slices.Sorted(maps.Keys(context)) {
		if name == "" || name == "." || name == ".." || name != filepath.Base(name) {
			return fmt.Errorf("context file %q: want a plain file name", name)
		}
		if err := os.WriteFile(filepath.Join(iso.Workspace(), name), []byte(context[name]), 0o644); err != nil {
			return err
		}
	}
	if err := iso.Finalize(iso9660.FinalizeOptions{RockRidge: true, VolumeIdentifier: SeedLabel}); err != nil {
		return err
	}
	return errors.Join(f.Sync(), os.Rename(temporary, path))
}
