package hypervisor

import (
	"fmt"
	"regexp"
	"slices"

	"github.com/reservoir-cloud/reservoir/vee"
)

// diskName keeps the names of disks usable as names of files.
var diskName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$`)

// Check says what is wrong with a description, whichever driver gets it.
func (g Guest) Check() error {
	if _, err := vee.ParseID(string(g.ID)); err != nil {
		return err
	}
	if g.Descriptor.Memory <= 0 {
		return fmt.Errorf("memory is %s: want at least 1MiB", g.Descriptor.Memory)
	}
	seen := map[string]bool{}
	for _, k := range g.Descriptor.Disks {
		image := slices.IndexFunc(g.Images, func(i LocalImage) bool { return i.Digest == k.Image })
		switch {
		case !diskName.MatchString(k.Name):
			return fmt.Errorf("disk %q: want a name of letters, digits, dots and hyphens", k.Name)
		case seen[k.Name]:
			return fmt.Errorf("disk %q is there twice", k.Name)
		case k.Size < 0:
			return fmt.Errorf("disk %q: size %s is negative", k.Name, k.Size)
		case k.Image == "" && k.Size == 0:
			return fmt.Errorf("disk %q has neither an image nor a size", k.Name)
		case k.Image != "" && image < 0:
			return fmt.Errorf("disk %q: its image %s is not on this host", k.Name, k.Image)
		case k.CDROM && (k.Image == "" || g.Images[image].Disk == ""):
			return fmt.Errorf("disk %q: a CD-ROM needs an image with a disk", k.Name)
		}
		seen[k.Name] = true
	}
	return nil
}
