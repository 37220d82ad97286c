package disk

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"

	"github.com/reservoir-cloud/reservoir/hypervisor"
)

// Update brings the disks and the seed medium of a guest at rest from one description to a
// newer one: new disks are made, those whose size grew are grown; the image of a disk cannot
// change. top is the file that a disk is written to now, in dir.
func Update(ctx context.Context, imageTool, dir string, old, to hypervisor.Guest, top func(Disk) string) error {
	had := map[string]Disk{}
	for _, k := range Plan(old) {
		had[k.File] = k
	}
	for _, k := range Plan(to) {
		was, there := had[k.File]
		switch {
		case k.Kind == Medium:
		case there && was.Image != k.Image:
			return fmt.Errorf("disk %q is made from %s and cannot become %s: %w; destroy the VEE and submit it again",
				k.Name, was.Image, k.Image, hypervisor.ErrWrongState)
		case there && k.Size > was.Size:
			if err := k.Grow(ctx, imageTool, filepath.Join(dir, top(k))); err != nil {
				return err
			}
		case !there:
			if err := os.Remove(filepath.Join(dir, k.File)); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
			if err := k.Make(ctx, imageTool, dir); err != nil {
				return err
			}
		}
	}
	if len(to.Descriptor.Context) > 0 && !reflect.DeepEqual(old.Descriptor.Context, to.Descriptor.Context) {
		return MakeSeed(filepath.Join(dir, SeedFile), to.Descriptor.Context)
	}
	return nil
}
