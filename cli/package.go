package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/reservoir-cloud/reservoir/image"
	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/manifest"
	"github.com/reservoir-cloud/reservoir/sm/rules"
	"github.com/reservoir-cloud/reservoir/vee"
	"github.com/reservoir-cloud/reservoir/veem/federation/broker"
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

// readPackage reads a manifest; "-" is stdin. Close it.
func (a *app) readPackage(ctx context.Context, file string) (*pkg, error) {
	if file == "-" {
		text, err := a.readFile(file)
		if err != nil {
			return nil, err
		}
		s, err := manifest.Parse("stdin", text)
		if err != nil {
			return nil, manifestFault(err, file)
		}
		return &pkg{name: "stdin", text: string(text), service: s}, checkRules(s, file)
	}
	m, err := manifest.Load(ctx, file, manifest.Options{})
	if err != nil {
		return nil, manifestFault(err, file)
	}
	if err := checkRules(m.Service, file); err != nil {
		return nil, errors.Join(err, m.Close())
	}
	p := &pkg{name: m.Name, text: string(m.Text), service: m.Service}
	err = errors.Join(p.collect(m, file), m.Close())
	if err != nil {
		return nil, errors.Join(err, p.Close())
	}
	return p, nil
}

// under has the replicas of a manifest placed under a reservation, but for components that name
// one themselves.
func (p *pkg) under(reservation string) error {
	if p.service.Sites == nil {
		p.service.Sites = &manifest.Sites{}
	}
	p.service.Sites.Reservation = reservation
	text, err := p.service.YAML()
	p.text = string(text)
	return err
}

// checkRules finds mistakes in conditions and requirements, which a manifest carries as texts.
func checkRules(s *manifest.Service, file string) error {
	wishes := map[string]*manifest.Sites{"sites": s.Sites}
	for _, c := range s.Components {
		wishes["component "+c.Name+": sites"] = c.Sites
	}
	for where, w := range wishes {
		if w == nil || w.Require == "" {
			continue
		}
		q := broker.Question{Requirement: w.Require, Users: &vee.Point{}} // where they are is checked with all the rest
		if _, err := broker.New(q); err != nil {
			return fault.New(fault.Malformed, "%s: %s.require: %w", file, where, err).Try("what it may read: reservoir federation find --help; then: reservoir manifest check %s", file)
		}
	}
	if _, err := rules.Compile(s); err != nil {
		return fault.New(fault.Malformed, "%s: %w", file, err).Try("correct it, then: reservoir manifest check %s", file)
	}
	return nil
}

func manifestFault(err error, file string) error {
	var mistakes *manifest.Errors
	if errors.As(err, &mistakes) {
		return fault.New(fault.Malformed, "%w", err).Try("correct it, then: reservoir manifest check %s", file)
	}
	return err
}

// collect the image files of a package; those of an archive are unpacked.
func (p *pkg) collect(m *manifest.Package, file string) error {
	for _, f := range m.Service.Files {
		if !slices.Contains(m.Files, f.Href) {
			continue // a name in the site's registry, which the site will look for
		}
		found := filepath.Join(filepath.Dir(file), filepath.FromSlash(f.Href))
		if strings.EqualFold(filepath.Ext(file), ".ova") {
			var err error
			if found, err = p.unpack(m, f.Href); err != nil {
				return fmt.Errorf("unpack %s of %s: %w", f.Href, file, err)
			}
		}
		info, err := os.Stat(found)
		if err != nil {
			return fileFault(err)
		}
		p.files = append(p.files, pkgFile{href: f.Href, path: found, size: vee.Bytes(info.Size())})
	}
	return nil
}

// unpack one file into the scratch directory, under its base name.
func (p *pkg) unpack(m *manifest.Package, href string) (_ string, err error) {
	if p.scratch == "" {
		if p.scratch, err = os.MkdirTemp("", "reservoir-ova-*"); err != nil {
			return "", err
		}
	}
	in, err := m.Open(href)
	if err != nil {
		return "", err
	}
	defer in.Close()
	dir, err := os.MkdirTemp(p.scratch, "")
	if err != nil {
		return "", err
	}
	out, err := os.Create(filepath.Join(dir, path.Base(href)))
	if err != nil {
		return "", err
	}
	_, err = io.Copy(out, in)
	return out.Name(), errors.Join(err, out.Close())
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
