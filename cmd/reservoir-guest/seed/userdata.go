package seed

import (
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v4"
)

// depth that archives may be nested to.
const depth = 4

// cloudConfig is the part of cloud-init's that the appliance obeys, and what it must say
// that it does not.
type cloudConfig struct {
	Files []struct {
		Path     string `yaml:"path"`
		Mode     string `yaml:"permissions"`
		Encoding string `yaml:"encoding"`
		Content  string `yaml:"content"`
	} `yaml:"write_files"`
	Packages []any `yaml:"packages"`
	Run      []any `yaml:"runcmd"`
	Boot     []any `yaml:"bootcmd"`
}

// userData takes a cloud-config, a script or an archive of them.
func (s *Seed) userData(text []byte) error { return s.part(string(text), depth) }

func (s *Seed) part(text string, deep int) error {
	head, _, _ := strings.Cut(text, "\n")
	switch head = strings.TrimSpace(head); {
	case head == "#cloud-config":
		return s.cloudConfig(text)
	case head == "#cloud-config-archive":
		var parts []struct {
			Content string `yaml:"content"`
		}
		if deep == 0 {
			return errors.New("an archive in an archive in an archive")
		}
		if err := yaml.Unmarshal([]byte(text), &parts); err != nil {
			return err
		}
		var errs []error
		for i, p := range parts {
			if err := s.part(p.Content, deep-1); err != nil {
				errs = append(errs, fmt.Errorf("part %d: %w", i+1, err))
			}
		}
		return errors.Join(errs...)
	case strings.HasPrefix(head, "#!"):
		s.Undone = append(s.Undone, "a script for "+strings.TrimSpace(head[2:]))
	case strings.TrimSpace(text) != "":
		s.Undone = append(s.Undone, fmt.Sprintf("user data that begins with %.20q", head))
	}
	return nil
}

func (s *Seed) cloudConfig(text string) error {
	var c cloudConfig
	if err := yaml.Unmarshal([]byte(text), &c); err != nil {
		return err
	}
	for _, u := range []struct {
		what string
		list []any
	}{{"packages", c.Packages}, {"runcmd", c.Run}, {"bootcmd", c.Boot}} {
		if n := len(u.list); n > 0 {
			s.Undone = append(s.Undone, fmt.Sprintf("%s (%d)", u.what, n))
		}
	}
	var errs []error
	for _, f := range c.Files {
		file := File{Path: path.Clean(f.Path), Mode: 0o644, Content: []byte(f.Content)}
		if !path.IsAbs(f.Path) {
			errs = append(errs, fmt.Errorf("file %q: want a full path", f.Path))
			continue
		}
		if f.Mode != "" {
			mode, err := strconv.ParseUint(strings.TrimPrefix(f.Mode, "0o"), 8, 32)
			if err != nil || mode > 0o7777 {
				errs = append(errs, fmt.Errorf("file %s: permissions %q: want octal such as 0644", f.Path, f.Mode))
				continue
			}
			file.Mode = fs.FileMode(mode & 0o777)
		}
		switch f.Encoding {
		case "", "text/plain":
		case "b64", "base64":
			var err error
			if file.Content, err = base64.StdEncoding.DecodeString(f.Content); err != nil {
				errs = append(errs, fmt.Errorf("file %s: %w", f.Path, err))
				continue
			}
		default:
			errs = append(errs, fmt.Errorf("file %s: encoding %q: want b64 or none", f.Path, f.Encoding))
			continue
		}
		s.Files = append(s.Files, file)
	}
	return errors.Join(errs...)
}
