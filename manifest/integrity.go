package manifest

import (
	"bufio"
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"hash"
	"io"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/reservoir-cloud/reservoir/internal/fault"
)

// Trust is a set of authorities and the time at which their word is asked for.
type Trust struct {
	Roots *x509.CertPool
	Now   time.Time
}

// digestLine of a .mf or .cert (DSP0243, section 5.1): SHA256(name)= hexadecimal.
var digestLine = regexp.MustCompile(`^SHA-?(1|256|512)\s*\((.+)\)\s*=\s*([0-9A-Fa-f]+)$`)

// line is one digest, or signature, of a file.
type line struct {
	algorithm string // "sha256", "sha512"
	name      string
	value     []byte
}

// readLines reads the digests of a .mf, or the signature of a .cert.
func readLines(file string, text []byte) ([]line, error) {
	var list []line
	scan := bufio.NewScanner(bytes.NewReader(text))
	for n := 1; scan.Scan(); n++ {
		s := strings.TrimSpace(scan.Text())
		if s == "" {
			continue
		}
		m := digestLine.FindStringSubmatch(s)
		if m == nil {
			return nil, &Error{File: file, Line: n, Found: quote(s), Want: "want SHA256(FILE)= and hexadecimal digits"}
		}
		if m[1] == "1" {
			return nil, &Error{File: file, Line: n, Found: "SHA1(" + m[2] + ")", Want: "SHA-1 is too weak to tell a changed file: want SHA256 or SHA512"}
		}
		value, err := hex.DecodeString(m[3])
		if err != nil {
			return nil, &Error{File: file, Line: n, Found: quote(m[3]), Want: "want an even number of hexadecimal digits"}
		}
		list = append(list, line{"sha" + m[1], m[2], value})
	}
	if err := scan.Err(); err != nil {
		return nil, &Error{File: file, Found: err.Error(), Want: "want short lines"}
	}
	return list, nil
}

func newHash(algorithm string) (hash.Hash, crypto.Hash) {
	if algorithm == "sha512" {
		return sha512.New(), crypto.SHA512
	}
	return sha256.New(), crypto.SHA256
}

// digestOf reads r to its end.
func digestOf(ctx context.Context, algorithm string, r io.Reader) (Digest, int64, error) {
	h, _ := newHash(algorithm)
	var n int64
	buffer := make([]byte, 256<<10)
	for {
		if err := ctx.Err(); err != nil {
			return "", n, err
		}
		k, err := r.Read(buffer)
		h.Write(buffer[:k])
		n += int64(k)
		if err == io.EOF {
			return Digest(algorithm + ":" + hex.EncodeToString(h.Sum(nil))), n, nil
		}
		if err != nil {
			return "", n, err
		}
	}
}

// verify the .mf against the files, and the .cert against the .mf.
func (p *Package) verify(ctx context.Context, o Options) error {
	mf, hasMF := p.sibling(".mf")
	cert, hasCert := p.sibling(".cert")
	switch {
	case hasCert && !hasMF:
		return p.refused("%s signs %s, which is not there", cert, mf)
	case o.Require && !hasMF:
		return p.refused("this site takes signed packages only, and there is no %s", mf)
	case o.Require && !hasCert:
		return p.refused("this site takes signed packages only, and there is no %s", cert)
	case !hasMF:
		return nil
	}
	text, err := p.read(mf, maxIntegrity)
	if err != nil {
		return err
	}
	if hasCert {
		if err := p.verifySignature(mf, text, cert, o.Trust); err != nil {
			return err
		}
	}
	return p.verifyDigests(ctx, mf, text)
}

func (p *Package) refused(format string, args ...any) error {
	return fault.New(fault.Denied, "package %s is refused: %s", p.Name, fmt.Sprintf(format, args...)).
		Try("get a signed package from who made it, or ask the site's operator")
}

func (p *Package) verifyDigests(ctx context.Context, mf string, text []byte) error {
	lines, err := readLines(mf, text)
	if err != nil {
		return fault.New(fault.Malformed, "package %s: %w", p.Name, err)
	}
	p.Digests = map[string]Digest{}
	for _, l := range lines {
		f, err := p.open(l.name)
		if err != nil {
			return p.refused("%s lists %s, which cannot be read (%v)", mf, l.name, err)
		}
		sum, _, err := digestOf(ctx, l.algorithm, f)
		if cerr := f.Close(); err == nil {
			err = cerr
		}
		if err != nil {
			return fmt.Errorf("read %s of package %s: %w", l.name, p.Name, err)
		}
		if want := Digest(l.algorithm + ":" + hex.EncodeToString(l.value)); sum != want {
			return p.changed(l.name, string(sum), fmt.Sprintf("%s by %s", want, mf))
		}
		p.Digests[l.name] = sum
		if !slices.Contains(p.Files, l.name) {
			p.Files = append(p.Files, l.name)
		}
	}
	cert, _ := p.sibling(".cert")
	for _, name := range p.Files {
		if _, listed := p.Digests[name]; !listed && name != mf && name != cert {
			return p.refused("%s is not listed in %s", name, mf)
		}
	}
	return nil
}

// verifySignature checks the X.509 signature of the .mf.
func (p *Package) verifySignature(mf string, text []byte, cert string, trust *Trust) error {
	signed, err := p.read(cert, maxIntegrity)
	if err != nil {
		return err
	}
	head, rest := splitPEM(signed)
	lines, err := readLines(cert, head)
	if err != nil {
		return fault.New(fault.Malformed, "package %s: %w", p.Name, err)
	}
	if len(lines) != 1 || lines[0].name != mf {
		return p.refused("%s does not hold one signature, of %s", cert, mf)
	}
	chain, err := certificates(rest)
	if err != nil {
		return p.refused("%s: %v", cert, err)
	}
	h, kind := newHash(lines[0].algorithm)
	h.Write(text)
	ok := false
	switch key := chain[0].PublicKey.(type) {
	case *rsa.PublicKey:
		ok = rsa.VerifyPKCS1v15(key, kind, h.Sum(nil), lines[0].value) == nil
	case *ecdsa.PublicKey:
		ok = ecdsa.VerifyASN1(key, h.Sum(nil), lines[0].value)
	default:
		return p.refused("%s has a key of type %T, want RSA or ECDSA", cert, key)
	}
	if !ok {
		return p.refused("the signature in %s does not fit %s: one of them was changed", cert, mf)
	}
	if trust != nil {
		between := x509.NewCertPool()
		for _, c := range chain[1:] {
			between.AddCert(c)
		}
		_, err := chain[0].Verify(x509.VerifyOptions{
			Roots: trust.Roots, Intermediates: between, CurrentTime: trust.Now,
			KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny},
		})
		if err != nil {
			return p.refused("its signer %s is not trusted here (%v)", chain[0].Subject, err)
		}
	}
	p.Signer = chain[0].Subject.String()
	return nil
}

func certificates(text []byte) ([]*x509.Certificate, error) {
	var chain []*x509.Certificate
	for {
		block, rest := pem.Decode(text)
		if block == nil {
			break
		}
		text = rest
		if block.Type != "CERTIFICATE" {
			continue
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("unreadable certificate: %w", err)
		}
		chain = append(chain, c)
	}
	if len(chain) == 0 {
		return nil, fmt.Errorf("no certificate in it")
	}
	return chain, nil
}
