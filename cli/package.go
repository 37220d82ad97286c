package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/reservoir-cloud/reservoir/image"
	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/manifest"
	"github.com/reservoir-cloud/reservoir/vee"
)

// pkg is a manifest with the image files that came with it.
type pkg struct {
	name    string // of the manifest's file
	text    string
	service *manifest.Service
	files   []pkgFile
	scratch string // directory of what was unpacked; empty: nothing was
}

// pkgFile is an image file beside the manifest.
type pkgFile struct {
	href string // as the manifest has it
	path string
	size vee.Bytes
}

// Close deletes what was unpacked.
func (p *pkg) Close() error {
	if p.scratch == "" {
		return nil
	}
	return os.RemoveAll(p.scratch)
}

// readPackage reads a manifest, with its files where path is an .ova or they lie beside it.
func (a *app) readPackage(file string) (*pkg, error) {
	if filepath.Ext(file) == ".ova" {
		return openOVA(file)
	}
	text, err := a.readFile(file)
	if err != nil {
		return nil, err
	}
	p := &pkg{name: filepath.Base(file), text: string(text)}
	if p.service, err = parseManifest(file, text); err != nil {
		return nil, err
	}
	if file == "-" {
		return p, nil
	}
	return p, p.collect(filepath.Dir(file))
}

func parseManifest(name string, text []byte) (*manifest.Service, error) {
	s, err := manifest.Parse(name, text)
	if err != nil {
		return nil, fault.New(fault.Malformed, "%w", err).Try("correct the places named, then: reservoir manifest check %s", name)
	}
	return s, nil
}

// collect finds the files of the manifest below dir.
func (p *pkg) collect(dir string) error {
	for _, f := range p.service.Files {
		if f.Href == f.ID || strings.Contains(f.Href, "://") {
			continue // a name in the site's registry, or elsewhere
		}
		found := filepath.Join(dir, filepath.FromSlash(f.Href))
		info, err := os.Stat(found)
		switch {
		case errors.Is(err, fs.ErrNotExist) && isReference(f.Href):
			continue // it may be a name in the registry after all
		case err != nil:
			return fault.New(fault.NotFound, "%s: file %s: %w", p.name, f.Href, err).Try("put the file beside the manifest, or correct its href")
		}
		p.files = append(p.files, pkgFile{href: f.Href, path: found, size: vee.Bytes(info.Size())})
	}
	return nil
}

// isReference tells a name in a registry from a file name.
func isReference(href string) bool {
	_, err := image.ParseReference(href)
	return err == nil && !isDisk(href)
}

func isDisk(name string) bool {
	switch path.Ext(name) {
	case ".qcow2", ".img", ".raw", ".vmdk", ".vhd", ".vdi", ".iso":
		return true
	}
	return false
}

// digests of the images that the package's files are, without sending any.
func (p *pkg) digests(ctx context.Context) (map[string]string, error) {
	return p.eachFile(ctx, func(_ pkgFile, src *image.Source) (string, error) { return src.Image().Digest, nil })
}

// pushFiles sends the package's files to the site's registry, each as the image
// SERVICE/FILE.
func (a *app) pushFiles(ctx context.Context, r *remote, p *pkg) (map[string]string, error) {
	return p.eachFile(ctx, func(f pkgFile, src *image.Source) (string, error) {
		return a.push(ctx, r, src, imageName(p.service.Name, f.href))
	})
}

func (p *pkg) eachFile(ctx context.Context, digest func(pkgFile, *image.Source) (string, error)) (map[string]string, error) {
	images := map[string]string{}
	for _, f := range p.files {
		src, err := openSource(ctx, image.Files{Disk: f.path})
		if err != nil {
			return nil, fmt.Errorf("%s: file %s: %w", p.name, f.href, err)
		}
		if images[f.href], err = digest(f, src); err != nil {
			return nil, err
		}
	}
	return images, nil
}

// imageName of a file: "web" and "disks/Root_1.qcow2" make "web/root-1".
func imageName(service, href string) string {
	base := strings.TrimSuffix(path.Base(href), path.Ext(href))
	word := strings.Trim(strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z', r >= '0' && r <= '9':
			return r
		case r >= 'A' && r <= 'Z':
			return r + 'a' - 'A'
		}
		return '-'
	}, base), "-")
	return service + "/" + cmp.Or(word, "disk")
}
