package manifest

import (
	"archive/tar"
	"bytes"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"testing"

	"github.com/rogpeppe/go-internal/txtar"
)

func seeds(f *testing.F, extension string) {
	f.Helper()
	for _, pattern := range []string{"testdata/valid/*", "testdata/golden/*", "../examples/web/*"} {
		files, err := filepath.Glob(pattern + extension)
		if err != nil {
			f.Fatal(err)
		}
		for _, file := range files {
			text, err := os.ReadFile(file)
			if err != nil {
				f.Fatal(err)
			}
			f.Add(text)
		}
	}
	broken, err := txtar.ParseFile("testdata/errors.txtar")
	if err != nil {
		f.Fatal(err)
	}
	for _, x := range broken.Files {
		if filepath.Ext(x.Name) == extension {
			f.Add(x.Data)
		}
	}
	for name, c := range hostile() {
		if filepath.Ext(name) == extension && len(c[0]) < 10_000 {
			f.Add([]byte(c[0]))
		}
	}
}

// accepted holds what is true of every manifest that is accepted: it is valid, converts
// both ways without loss, and can be deployed.
func accepted(t *testing.T, s *Service) {
	for form, write := range map[string]func() ([]byte, error){"yaml": s.YAML, "ovf": s.OVF} {
		text, err := write()
		if err != nil {
			t.Fatal(err)
		}
		got, err := Parse("written."+form, text)
		if err != nil {
			t.Fatalf("%v\n%s", err, text)
		}
		if !reflect.DeepEqual(got, s) {
			t.Fatalf("%s: %s\n%s", form, difference("", reflect.ValueOf(*s), reflect.ValueOf(*got)), text)
		}
	}
	if _, err := s.StartOrder(); err != nil {
		t.Fatal(err)
	}
	s.NotInEffect()
	s.Warnings()
	s.Ignored()
	for i := range s.Components {
		s.Descriptor(&s.Components[i], 1, Owner{})
	}
}

func FuzzYAML(f *testing.F) {
	seeds(f, ".yaml")
	f.Fuzz(func(t *testing.T, text []byte) {
		if s, err := Parse("fuzz.yaml", text); err == nil {
			accepted(t, s)
		}
	})
}

func FuzzOVF(f *testing.F) {
	seeds(f, ".ovf")
	f.Fuzz(func(t *testing.T, text []byte) {
		if s, err := Parse("fuzz.ovf", text); err == nil {
			accepted(t, s)
		}
	})
}

func FuzzArchive(f *testing.F) {
	f.Add([]byte(nil))
	f.Add(bytes.Repeat([]byte{0}, 1024))
	for _, h := range []tar.Header{
		{Name: "box.ovf", Typeflag: tar.TypeReg, Size: 5},
		{Name: "./box.mf", Typeflag: tar.TypeReg, Size: 5, PAXRecords: map[string]string{"comment": "x"}},
		{Name: "link", Linkname: "/etc/passwd", Typeflag: tar.TypeSymlink},
	} {
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		if err := w.WriteHeader(&h); err != nil {
			f.Fatal(err)
		}
		if _, err := io.WriteString(w, "<a/>\n"[:h.Size]); err != nil {
			f.Fatal(err)
		}
		if err := w.Close(); err != nil {
			f.Fatal(err)
		}
		f.Add(b.Bytes())
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		p, err := readArchive(bytes.NewReader(text), int64(len(text)))
		if err != nil {
			return
		}
		for _, name := range p.Files {
			if !safePath(name) {
				t.Fatalf("file %q", name)
			}
			r, err := p.Open(name)
			if err != nil {
				t.Fatal(err)
			}
			if n, err := io.Copy(io.Discard, r); err != nil || n > int64(len(text)) {
				t.Fatalf("%s: %d bytes, %v", name, n, err)
			}
		}
		if s, err := p.sibling(".mf"); err {
			text, _ := p.read(s, maxIntegrity)
			_, _ = readLines(s, text)
		}
	})
}

func FuzzIntegrity(f *testing.F) {
	f.Add([]byte("SHA256(box.ovf)= 00ff\nSHA1(x)= 00\n-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		head, rest := splitPEM(text)
		_, _ = readLines("x.cert", head)
		_, _ = certificates(rest)
	})
}
