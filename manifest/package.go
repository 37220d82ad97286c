package manifest

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/reservoir-cloud/reservoir/internal/fault"
)

const (
	maxPackageFiles = 1000
	maxIntegrity    = 1 << 20 // bytes of a .mf or .cert
)

// Options of Load: the site's policy.
type Options struct {
	// Require a .mf and a valid .cert. Where they are present they are verified anyhow.
	Require bool
	// Trust says who may have signed. Nil accepts any certificate that fits the signature.
	Trust *Trust
}

// Package is a manifest with its files: an .ova, or an .ovf or YAML file with what lies
// beside it. Close lets go of them.
type Package struct {
	Service *Service
	Name    string // of the manifest's file, without directory
	Text    []byte // of the manifest
	Files   []string
	Digests map[string]Digest // of the files that the .mf lists, as verified
	Signer  string            // subject of the certificate that signed; empty: not signed

	open  func(name string) (io.ReadCloser, error)
	close func() error
}

// Open a file of the package by its name in the manifest (File.Href).
func (p *Package) Open(name string) (io.ReadCloser, error) {
	if !slices.Contains(p.Files, name) {
		return nil, fmt.Errorf("open %s in package %s: %w", name, p.Name, fs.ErrNotExist)
	}
	return p.open(name)
}

// Close the package's files.
func (p *Package) Close() error { return p.close() }

// Load reads a manifest and its files, and verifies them. Mistakes in the manifest are
// *Errors; a file that is not what the package says refuses the whole package with
// fault.DigestMismatch, and one that is missing or unsigned against the policy with
// fault.Denied.
func Load(ctx context.Context, file string, o Options) (*Package, error) {
	var (
		p   *Package
		err error
	)
	if strings.EqualFold(filepath.Ext(file), ".ova") {
		p, err = openArchive(file)
	} else {
		p, err = openBeside(file)
	}
	if err != nil {
		return nil, err
	}
	if err := p.load(ctx, file, o); err != nil {
		return nil, errors.Join(err, p.Close())
	}
	return p, nil
}

// load verifies first: a manifest that was changed is not even parsed.
func (p *Package) load(ctx context.Context, file string, o Options) (err error) {
	if err := p.verify(ctx, o); err != nil {
		return err
	}
	if p.Text, err = p.read(p.Name, MaxText); err != nil {
		return err
	}
	if p.Service, err = Parse(file, p.Text); err != nil {
		return err
	}
	return p.verifyFiles(ctx)
}

// read a small file of the package.
func (p *Package) read(name string, limit int64) ([]byte, error) {
	f, err := p.open(name)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	if int64(len(text)) > limit {
		return nil, fault.New(fault.TooLarge, "read %s: more than %d bytes", name, limit).Try("make it smaller")
	}
	return text, nil
}

// openBeside opens a manifest in a directory. Nothing outside of the directory can be
// reached, not by a symbolic link either. Files are those that the manifest's .mf and
// References may name: all regular files beside it and below are too many to list, so a
// file is there when it can be opened.
func openBeside(file string) (*Package, error) {
	root, err := os.OpenRoot(filepath.Dir(file))
	if err != nil {
		return nil, fault.New(fault.NotFound, "open manifest %s: %w", file, err).Try("look for the file: ls %s", filepath.Dir(file))
	}
	p := &Package{Name: filepath.Base(file), close: root.Close}
	p.open = func(name string) (io.ReadCloser, error) {
		if !safePath(name) {
			return nil, fmt.Errorf("open %s: outside of the package", name)
		}
		f, err := root.Open(filepath.FromSlash(name))
		if err != nil {
			return nil, err
		}
		if i, err := f.Stat(); err != nil || !i.Mode().IsRegular() {
			return nil, errors.Join(fmt.Errorf("open %s: not a regular file", name), f.Close())
		}
		return f, nil
	}
	base := strings.TrimSuffix(p.Name, filepath.Ext(p.Name))
	for _, name := range []string{p.Name, base + ".mf", base + ".cert"} {
		if i, err := root.Stat(name); err == nil && i.Mode().IsRegular() {
			p.Files = append(p.Files, name)
		}
	}
	if !slices.Contains(p.Files, p.Name) {
		return nil, errors.Join(fault.New(fault.NotFound, "open manifest %s: no such file", file).Try("look for the file: ls %s", filepath.Dir(file)), root.Close())
	}
	return p, nil
}

// openArchive lists an .ova. Files are read where they lie in the archive.
func openArchive(file string) (*Package, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, fault.New(fault.NotFound, "open package %s: %w", file, err).Try("look for the file: ls %s", filepath.Dir(file))
	}
	info, err := f.Stat()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open package %s: %w", file, err), f.Close())
	}
	p, err := readArchive(f, info.Size())
	if err != nil {
		return nil, errors.Join(fault.New(fault.Malformed, "package %s: %w", file, err).Try("make the .ova again"), f.Close())
	}
	p.close = f.Close
	return p, nil
}

// archive is what readArchive needs of a file.
type archive interface {
	io.Reader
	io.Seeker
	io.ReaderAt
}

// readArchive lists a tar of size bytes. Refused are names that lead out of it or stand
// twice, anything that is not a plain file, and files that the archive is too short for.
func readArchive(a archive, size int64) (*Package, error) {
	type extent struct{ offset, size int64 }
	files := map[string]extent{}
	p := &Package{close: func() error { return nil }}
	t := tar.NewReader(a)
	for {
		h, err := t.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("broken archive: %w", err)
		}
		if h.Typeflag == tar.TypeDir {
			continue
		}
		name := strings.TrimPrefix(h.Name, "./")
		offset, err := a.Seek(0, io.SeekCurrent)
		if err != nil {
			return nil, err
		}
		switch _, twice := files[name]; {
		case !safePath(name) || path.Clean(name) != name:
			return nil, fmt.Errorf("file name %s leads out of the package", quote(h.Name))
		case h.Typeflag != tar.TypeReg || isSparse(h):
			return nil, fmt.Errorf("%s is not a plain file (tar type %q)", quote(name), h.Typeflag)
		case twice:
			return nil, fmt.Errorf("%s is there twice", quote(name))
		case len(files) == maxPackageFiles:
			return nil, fmt.Errorf("more than %d files", maxPackageFiles)
		case h.Size > size-offset:
			return nil, fmt.Errorf("cut off within %s", quote(name))
		}
		files[name] = extent{offset, h.Size}
		p.Files = append(p.Files, name)
		if p.Name == "" && strings.EqualFold(path.Ext(name), ".ovf") {
			p.Name = name
		}
	}
	if p.Name == "" {
		return nil, errors.New("no .ovf file in it")
	}
	p.open = func(name string) (io.ReadCloser, error) {
		x, ok := files[name]
		if !ok {
			return nil, fmt.Errorf("open %s: %w", name, fs.ErrNotExist)
		}
		return io.NopCloser(io.NewSectionReader(a, x.offset, x.size)), nil
	}
	return p, nil
}

// isSparse reports whether a file is larger than what the archive has of it.
func isSparse(h *tar.Header) bool {
	for k := range h.PAXRecords {
		if strings.HasPrefix(k, "GNU.sparse.") {
			return true
		}
	}
	return false
}

// verifyFiles compares the files that the manifest refers to with what it says of them,
// and adds those that lie beside it to Files. One that is nowhere is a name in the site's
// registry or a mistake, which only the site can tell.
func (p *Package) verifyFiles(ctx context.Context) error {
	for _, f := range p.Service.Files {
		r, err := p.open(f.Href)
		if err != nil {
			continue
		}
		if !slices.Contains(p.Files, f.Href) {
			p.Files = append(p.Files, f.Href)
		}
		algorithm := "sha256"
		if f.Digest != "" {
			algorithm, _, _ = strings.Cut(string(f.Digest), ":")
		} else if f.Size == 0 {
			if err := r.Close(); err != nil {
				return err
			}
			continue
		}
		sum, n, err := digestOf(ctx, algorithm, r)
		if err = errors.Join(err, r.Close()); err != nil {
			return fmt.Errorf("read %s: %w", f.Href, err)
		}
		if f.Size != 0 && int64(f.Size) != n {
			return p.changed(f.Href, fmt.Sprintf("%d bytes long", n), fmt.Sprintf("%d by the manifest's References", int64(f.Size)))
		}
		if f.Digest != "" && f.Digest != sum {
			return p.changed(f.Href, string(sum), fmt.Sprintf("%s by the manifest's References", f.Digest))
		}
	}
	return nil
}

func (p *Package) changed(name, found, want string) error {
	return fault.New(fault.DigestMismatch, "package %s is refused: file %s was changed: it is %s, and should be %s", p.Name, name, found, want).
		Try("get the package again from who made it")
}

// sibling is the package's file of that extension, which has the manifest's name.
func (p *Package) sibling(extension string) (string, bool) {
	name := strings.TrimSuffix(p.Name, path.Ext(p.Name)) + extension
	return name, slices.Contains(p.Files, name)
}

// splitPEM separates the lines before the first PEM block.
func splitPEM(text []byte) (head, pem []byte) {
	if i := bytes.Index(text, []byte("-----BEGIN ")); i >= 0 {
		return text[:i], text[i:]
	}
	return text, nil
}
