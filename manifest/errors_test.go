package manifest

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/txtar"
)

// TestErrors holds what is said of each broken manifest in testdata/errors.txtar against
// the file that follows it there.
func TestErrors(t *testing.T) {
	const file = "testdata/errors.txtar"
	a := txtar.Parse(read(t, file))
	out := &txtar.Archive{Comment: a.Comment}
	for _, f := range a.Files {
		if strings.HasSuffix(f.Name, ".errors") {
			continue
		}
		_, err := Parse(f.Name, f.Data)
		if err == nil {
			t.Errorf("%s: no error", f.Name)
			continue
		}
		var list *Errors
		if !errors.As(err, &list) {
			t.Errorf("%s: error of type %T", f.Name, err)
		}
		out.Files = append(out.Files, f, txtar.File{Name: f.Name + ".errors", Data: []byte(err.Error() + "\n")})
	}
	golden(t, file, txtar.Format(out))
}

// hostile inputs are too large or too odd for the archive.
func hostile() map[string][2]string {
	deep := func(open, close string, n int) string { return strings.Repeat(open, n) + strings.Repeat(close, n) }
	bomb := "a0: &a0 [x]\n"
	for i := 1; i < 12; i++ {
		bomb += fmt.Sprintf("a%d: &a%d [%s]\n", i, i, strings.TrimSuffix(strings.Repeat(fmt.Sprintf("*a%d,", i-1), 10), ","))
	}
	return map[string][2]string{
		"entities.ovf": {
			`<!DOCTYPE x [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]><Envelope>&b;</Envelope>`,
			"entities.ovf:1:1: a DOCTYPE: want none: entities and external definitions are not read",
		},
		"external.ovf": {
			"<?xml version=\"1.0\"?>\n<!DOCTYPE x SYSTEM \"file:///etc/passwd\">\n<Envelope/>",
			"external.ovf:2:1: a DOCTYPE: want none: entities and external definitions are not read",
		},
		"undeclared.ovf": {"<Envelope>&lol;</Envelope>", "undeclared.ovf:1: invalid character entity &lol;: want well-formed XML in UTF-8"},
		"truncated.ovf":  {"<Envelope>\n<References>", "truncated.ovf:2: unexpected EOF: want well-formed XML in UTF-8"},
		"latin.ovf": {
			`<?xml version="1.0" encoding="ISO-8859-1"?><Envelope/>`,
			`latin.ovf:1:1: encoding "ISO-8859-1": want well-formed XML in UTF-8`,
		},
		"attribute.ovf": {
			`<Envelope a="` + strings.Repeat("x", 100<<20) + `"/>`,
			"attribute.ovf: 104857616 bytes of text: want at most 4194304",
		},
		"attributes.ovf": {
			"<Envelope" + func() (s string) {
				for i := range 300 {
					s += fmt.Sprintf(" a%d=''", i)
				}
				return s
			}() + "/>",
			"attributes.ovf:1:1: too many attributes in Envelope: want at most 256",
		},
		"deep.ovf":    {deep("<a>", "</a>", 100_000), "deep.ovf:1:193: nested too deeply: want at most 64 levels"},
		"many.ovf":    {"<a>" + strings.Repeat("<b/>", 150_000) + "</a>", "too many elements: want at most 100000"},
		"twice.ovf":   {`<Envelope a="1" a="2"/>`, "twice.ovf:1:1: attribute a twice: want it once"},
		"two.ovf":     {`<a/><b/>`, "two.ovf:1:9: 2 root elements: want one"},
		"deep.yaml":   {"service: " + deep("[", "]", 1000), "deep.yaml:1:74: nested too deeply: want at most 64 levels, and no alias inside of what it stands for"},
		"bomb.yaml":   {bomb, "too many values: want at most 100000, aliases followed"},
		"cycle.yaml":  {"service: &a [*a]", "nested too deeply"},
		"deeper.yaml": {"service: " + deep("[", "]", 100_000), "want one YAML document"},
		"binary.yaml": {"service: \xff\xfe", "binary.yaml: bytes that are not UTF-8: want text in UTF-8"},
		"empty.yaml":  {"", "want one YAML document"},
		"web.ova":     {strings.Repeat("\x00", 257) + "ustar" + strings.Repeat("\x00", 250), "web.ova: an .ova archive: want manifest text; give the .ova by its file name"},
	}
}

func TestHostileInput(t *testing.T) {
	for name, c := range hostile() {
		_, err := Parse(name, []byte(c[0]))
		if err == nil {
			t.Errorf("%s: no error", name)
		} else if !strings.Contains(err.Error(), c[1]) {
			t.Errorf("%s:\n got %v\nwant %s", name, err, c[1])
		} else if len(err.Error()) > 4000 {
			t.Errorf("%s: an error of %d bytes", name, len(err.Error()))
		}
	}
}

func TestErrorsAreBounded(t *testing.T) {
	text := "service: web\ncomponents:\n" + strings.Repeat("- {nome: x}\n", 100)
	_, err := Parse("many.yaml", []byte(text))
	var list *Errors
	if !errors.As(err, &list) || len(list.List) != maxErrors || list.More < 80 {
		t.Fatalf("got %v", err)
	}
	if !strings.HasSuffix(err.Error(), " more") || strings.Count(err.Error(), "\n") != maxErrors {
		t.Errorf("got %v", err)
	}
	var one *Error
	if !errors.As(err, &one) || one.Line != 3 || one.Column != 4 || one.Path != "components[0].nome" {
		t.Errorf("got %#v", one)
	}
}
