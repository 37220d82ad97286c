package build

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"
)

// release of the machine's distribution, from /etc/os-release.
type release struct{ id, codename string }

func parseRelease(text string) release {
	var r release
	for line := range strings.Lines(text) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), "=")
		value = strings.Trim(value, `"'`)
		switch key {
		case "ID":
			r.id = value
		case "VERSION_CODENAME":
			r.codename = value
		}
	}
	return r
}

// debianSources are the lines, for a sources.list, of those of the machine's apt sources
// that are Debian's own for its release. etc is /etc/apt. Others', such as a vendor's, are
// passed over: their suites are called otherwise, or have no component main.
func debianSources(etc fs.FS, codename string) ([]string, error) {
	files := []string{"sources.list"}
	for _, ext := range []string{"list", "sources"} {
		more, err := fs.Glob(etc, "sources.list.d/*."+ext)
		if err != nil {
			return nil, err
		}
		files = append(files, more...)
	}
	var lines []string
	for _, file := range files {
		text, err := fs.ReadFile(etc, file)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("reading apt's sources: %w", err)
		}
		entries := parseList(string(text))
		if path.Ext(file) == ".sources" {
			entries = parseDeb822(string(text))
		}
		for _, e := range entries {
			if e.isDebian(codename) && !slices.Contains(lines, e.String()) {
				lines = append(lines, e.String())
			}
		}
	}
	if len(lines) == 0 {
		return nil, fmt.Errorf("no source of Debian %s in /etc/apt: want one with the component main", codename)
	}
	return lines, nil
}

// source is one line of a sources.list (sources.list(5)).
type source struct {
	options    string // in brackets, may be empty
	uri, suite string
	components []string
}

func (s source) isDebian(codename string) bool {
	_, variant, _ := strings.Cut(strings.ReplaceAll(s.suite, "/", "-"), "-")
	name, _, _ := strings.Cut(strings.ReplaceAll(s.suite, "/", "-"), "-")
	return name == codename && slices.Contains([]string{"", "updates", "security"}, variant) &&
		slices.Contains(s.components, "main")
}

func (s source) String() string {
	line := "deb "
	if s.options != "" {
		line += "[" + s.options + "] "
	}
	return line + s.uri + " " + s.suite + " main"
}

// parseList reads the one-line style.
func parseList(text string) []source {
	var found []source
	for line := range strings.Lines(text) {
		line, _, _ = strings.Cut(line, "#")
		rest, ok := strings.CutPrefix(strings.TrimSpace(line), "deb ")
		if !ok {
			continue
		}
		var s source
		rest = strings.TrimSpace(rest)
		if inner, ok := strings.CutPrefix(rest, "["); ok {
			s.options, rest, _ = strings.Cut(inner, "]")
			s.options = strings.TrimSpace(s.options)
		}
		if words := strings.Fields(rest); len(words) > 2 {
			s.uri, s.suite, s.components = words[0], words[1], words[2:]
			found = append(found, s)
		}
	}
	return found
}

// parseDeb822 reads the style of stanzas.
func parseDeb822(text string) []source {
	var found []source
	for stanza := range strings.SplitSeq(text, "\n\n") {
		fields := map[string]string{}
		key := ""
		for line := range strings.Lines(stanza) {
			switch {
			case strings.HasPrefix(line, "#"):
			case strings.HasPrefix(line, " ") || strings.HasPrefix(line, "\t"):
				fields[key] += " " + strings.TrimSpace(line)
			default:
				var value string
				key, value, _ = strings.Cut(line, ":")
				key = strings.ToLower(strings.TrimSpace(key))
				fields[key] = strings.TrimSpace(value)
			}
		}
		if !slices.Contains(strings.Fields(fields["types"]), "deb") || strings.EqualFold(fields["enabled"], "no") {
			continue
		}
		var options []string
		if by := fields["signed-by"]; strings.HasPrefix(by, "/") { // else the key itself
			options = append(options, "signed-by="+by)
		}
		if trusted := fields["trusted"]; trusted != "" {
			options = append(options, "trusted="+trusted)
		}
		for _, uri := range strings.Fields(fields["uris"]) {
			for _, suite := range strings.Fields(fields["suites"]) {
				found = append(found, source{strings.Join(options, " "), uri, suite, strings.Fields(fields["components"])})
			}
		}
	}
	return found
}
