package manifest

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"maps"
	"math/big"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/reservoir-cloud/reservoir/internal/fault"
)

var now = time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)

// signer is an authority that signs packages itself.
type signer struct {
	key  crypto.Signer
	cert *x509.Certificate
}

func newSigner(t *testing.T, key crypto.Signer) signer {
	t.Helper()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "Packages Inc."},
		NotBefore: now.Add(-time.Hour), NotAfter: now.Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return signer{key, cert}
}

// sign gives the .cert of a .mf.
func (s signer) sign(t *testing.T, name, mf string) string {
	t.Helper()
	sum := sha256.Sum256([]byte(mf))
	signature, err := s.key.Sign(rand.Reader, sum[:], crypto.SHA256)
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("SHA256(%s)= %x\n%s", name, signature, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.cert.Raw}))
}

func ecdsaKey(t *testing.T) crypto.Signer {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// box is a small package: an envelope, its disk and their .mf.
func box(t *testing.T) map[string]string {
	t.Helper()
	s := mustParse(t, "box.yaml", []byte(`
service: box
components:
  - {name: web, image: root, memory: 64MiB}
files:
  - {id: root, href: disks/root.qcow2}
`))
	ovf, err := s.OVF()
	if err != nil {
		t.Fatal(err)
	}
	files := map[string]string{"box.ovf": string(ovf), "disks/root.qcow2": "QFI and more"}
	files["box.mf"] = fmt.Sprintf("SHA256(box.ovf)= %x\nSHA512(disks/root.qcow2)= %x\n",
		sha256.Sum256(ovf), sha512.Sum512([]byte(files["disks/root.qcow2"])))
	return files
}

// pack writes files as an .ova, the envelope first.
func pack(t *testing.T, files map[string]string, more ...*tar.Header) string {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	names := slices.SortedFunc(maps.Keys(files), func(a, b string) int {
		return strings.Compare(strings.TrimSuffix(a, ".ovf"), b)
	})
	for _, name := range names {
		more = append(more, &tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(files[name]))})
	}
	for _, h := range more {
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, files[h.Name]); h.Typeflag == tar.TypeReg && err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "box.ova")
	if err := os.WriteFile(file, b.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
	return file
}

// unpack writes files beside each other and gives the envelope's name.
func unpack(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return filepath.Join(dir, "box.ovf")
}

func TestPackage(t *testing.T) {
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	one, other := newSigner(t, rsaKey), newSigner(t, ecdsaKey(t))
	trust := func(s signer) *Trust {
		pool := x509.NewCertPool()
		pool.AddCert(s.cert)
		return &Trust{Roots: pool, Now: now}
	}
	signed := func(s signer) func(map[string]string) {
		return func(f map[string]string) { f["box.cert"] = s.sign(t, "box.mf", f["box.mf"]) }
	}
	for name, c := range map[string]struct {
		change func(files map[string]string)
		o      Options
		code   fault.Code // empty: accepted
		says   string     // in the error, or the signer
	}{
		"as it should be":        {change: func(map[string]string) {}},
		"without .mf":            {change: func(f map[string]string) { delete(f, "box.mf") }},
		"signed with RSA":        {change: signed(one), o: Options{Require: true, Trust: trust(one)}, says: "CN=Packages Inc."},
		"signed with ECDSA":      {change: signed(other), o: Options{Require: true}, says: "CN=Packages Inc."},
		"not trusted":            {change: signed(other), o: Options{Trust: trust(one)}, code: fault.Denied, says: "its signer CN=Packages Inc. is not trusted here"},
		"expired":                {change: signed(one), o: Options{Trust: &Trust{trust(one).Roots, now.Add(48 * time.Hour)}}, code: fault.Denied, says: "expired"},
		"required, no .mf":       {change: func(f map[string]string) { delete(f, "box.mf") }, o: Options{Require: true}, code: fault.Denied, says: "signed packages only, and there is no box.mf"},
		"required, no .cert":     {change: func(map[string]string) {}, o: Options{Require: true}, code: fault.Denied, says: "signed packages only, and there is no box.cert"},
		".cert without .mf":      {change: func(f map[string]string) { signed(one)(f); delete(f, "box.mf") }, code: fault.Denied, says: "box.cert signs box.mf, which is not there"},
		"a byte of the disk":     {change: func(f map[string]string) { f["disks/root.qcow2"] = "QFI and mOre" }, code: fault.DigestMismatch, says: "file disks/root.qcow2 was changed"},
		"a byte of the envelope": {change: func(f map[string]string) { f["box.ovf"] += " " }, code: fault.DigestMismatch, says: "file box.ovf was changed"},
		"a byte of the .mf":      {change: func(f map[string]string) { signed(one)(f); f["box.mf"] += "\n" }, code: fault.Denied, says: "the signature in box.cert does not fit box.mf"},
		"a file that is missing": {change: func(f map[string]string) { delete(f, "disks/root.qcow2") }, code: fault.Denied, says: "box.mf lists disks/root.qcow2, which cannot be read"},
		"not all is listed":      {change: func(f map[string]string) { f["box.mf"] = f["box.mf"][strings.Index(f["box.mf"], "\n"):] }, code: fault.Denied, says: "box.ovf is not listed in box.mf"},
		"SHA-1":                  {change: func(f map[string]string) { f["box.mf"] = "SHA1(box.ovf)= da39a3ee5e6b4b0d3255bfef95601890afd80709" }, code: fault.Malformed, says: "box.mf:1: SHA1(box.ovf): SHA-1 is too weak"},
		"no .mf at all":          {change: func(f map[string]string) { f["box.mf"] = "hello\n" }, code: fault.Malformed, says: `box.mf:1: "hello": want SHA256(FILE)=`},
		"a signature of nothing": {change: func(f map[string]string) { f["box.cert"] = "-----BEGIN NONE-----" }, code: fault.Denied, says: "box.cert does not hold one signature, of box.mf"},
		"a huge .mf":             {change: func(f map[string]string) { f["box.mf"] = strings.Repeat("\n", maxIntegrity+1) }, code: fault.TooLarge, says: "read box.mf: more than"},
		"the way out":            {change: func(f map[string]string) { f["box.mf"] += "SHA256(../../etc/passwd)= 00\n" }, code: fault.Denied, says: "box.mf lists ../../etc/passwd, which cannot be read"},
	} {
		files := box(t)
		c.change(files)
		for kind, file := range map[string]string{"ova": pack(t, files), "ovf": unpack(t, files)} {
			t.Run(name+"/"+kind, func(t *testing.T) {
				p, err := Load(context.Background(), file, c.o)
				if c.code != "" {
					if err == nil || !fault.Has(err, c.code) || !strings.Contains(err.Error(), c.says) {
						t.Fatalf("got %v, want %s: %s", err, c.code, c.says)
					}
					return
				}
				if err != nil {
					t.Fatal(err)
				}
				defer p.Close()
				if p.Signer != c.says {
					t.Errorf("signer %q, want %q", p.Signer, c.says)
				}
				f, err := p.Open(p.Service.Files[0].Href)
				if err != nil {
					t.Fatal(err)
				}
				defer f.Close()
				if text, err := io.ReadAll(f); err != nil || string(text) != "QFI and more" {
					t.Errorf("disk %q, %v", text, err)
				}
				if _, err := p.Open("../box.ovf"); err == nil {
					t.Error("opened a file outside of the package")
				}
			})
		}
	}
}

func TestArchiveRefuses(t *testing.T) {
	files := box(t)
	for says, h := range map[string]*tar.Header{
		`file name "../evil" leads out`:  {Name: "../evil", Typeflag: tar.TypeReg},
		`file name "/etc/passwd" leads`:  {Name: "/etc/passwd", Typeflag: tar.TypeReg},
		`file name "a/../../evil" leads`: {Name: "a/../../evil", Typeflag: tar.TypeReg},
		`file name "a\\..\\evil" leads`:  {Name: `a\..\evil`, Typeflag: tar.TypeReg},
		`"link" is not a plain file`:     {Name: "link", Typeflag: tar.TypeSymlink, Linkname: "/etc/passwd"},
		`"hard" is not a plain file`:     {Name: "hard", Typeflag: tar.TypeLink, Linkname: "box.ovf"},
		`"null" is not a plain file`:     {Name: "null", Typeflag: tar.TypeChar},
		`"box.ovf" is there twice`:       {Name: "box.ovf", Typeflag: tar.TypeReg, Size: int64(len(files["box.ovf"]))},
	} {
		_, err := Load(context.Background(), pack(t, files, h), Options{})
		if err == nil || !fault.Has(err, fault.Malformed) || !strings.Contains(err.Error(), says) {
			t.Errorf("got %v, want %s", err, says)
		}
	}
}

func TestTruncatedArchive(t *testing.T) {
	text := read(t, pack(t, box(t)))
	for _, n := range []int{0, 100, 512, 700, 3000} {
		file := filepath.Join(t.TempDir(), "box.ova")
		if err := os.WriteFile(file, text[:n], 0o644); err != nil {
			t.Fatal(err)
		}
		if _, err := Load(context.Background(), file, Options{}); err == nil || !strings.Contains(err.Error(), "box.ova") {
			t.Errorf("cut after %d bytes: %v", n, err)
		}
	}
}

func TestLinkOutOfTheDirectory(t *testing.T) {
	files := box(t)
	delete(files, "box.mf")
	delete(files, "disks/root.qcow2")
	file := unpack(t, files)
	if err := os.MkdirAll(filepath.Join(filepath.Dir(file), "disks"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/etc/passwd", filepath.Join(filepath.Dir(file), "disks/root.qcow2")); err != nil {
		t.Fatal(err)
	}
	p, err := Load(context.Background(), file, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	if slices.Contains(p.Files, "disks/root.qcow2") {
		t.Error("a link led out of the manifest's directory")
	}
}

func TestReferencedDigest(t *testing.T) {
	sum := fmt.Sprintf("%x", sha256.Sum256([]byte("right")))
	text := "service: box\ncomponents: [{name: web, image: d, memory: 64MiB}]\nfiles: [{id: d, href: d.img, size: 5, digest: %s}]\n"
	dir := t.TempDir()
	file := filepath.Join(dir, "box.yaml")
	if err := os.WriteFile(file, fmt.Appendf(nil, text, sum), 0o644); err != nil {
		t.Fatal(err)
	}
	for content, says := range map[string]string{"right": "", "wrong": "file d.img was changed: it is sha256:", "longer": "6 bytes long"} {
		if err := os.WriteFile(filepath.Join(dir, "d.img"), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
		p, err := Load(context.Background(), file, Options{})
		switch {
		case says == "" && err == nil:
			p.Close()
		case says == "" || !fault.Has(err, fault.DigestMismatch) || !strings.Contains(err.Error(), says):
			t.Errorf("%s: got %v, want %s", content, err, says)
		}
	}
	if _, err := Load(context.Background(), filepath.Join(dir, "none.yaml"), Options{}); !fault.Has(err, fault.NotFound) {
		t.Errorf("got %v", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := Load(ctx, file, Options{}); err == nil || !strings.Contains(err.Error(), "canceled") {
		t.Errorf("got %v", err)
	}
}
