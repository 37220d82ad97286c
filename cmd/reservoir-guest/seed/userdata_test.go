package seed

import (
	"encoding/base64"
	"reflect"
	"strings"
	"testing"
)

func TestUserData(t *testing.T) {
	const config = "#cloud-config\nwrite_files:\n- {path: /etc/motd, content: hello}\n- {path: /run/x, permissions: '0600', encoding: b64, content: aGk=}\n"
	files := []File{{"/etc/motd", 0o644, []byte("hello")}, {"/run/x", 0o600, []byte("hi")}}
	for name, c := range map[string]struct {
		text   string
		files  []File
		undone []string
	}{
		"nothing":        {"", nil, nil},
		"an empty one":   {"#cloud-config\n{}\n", nil, nil},
		"a cloud-config": {config, files, nil},
		"a script":       {"#!/bin/sh\ntrue\n", nil, []string{"a script for /bin/sh"}},
		"something else": {"Content-Type: multipart/mixed\n", nil, []string{`user data that begins with "Content-Type: multip"`}},
		"what it cannot": {"#cloud-config\npackages: [a, b]\nruncmd: [x]\n", nil, []string{"packages (2)", "runcmd (1)"}},
		"an archive": {`#cloud-config-archive
[{"type": "text/cloud-config", "content": "` + strings.ReplaceAll(config, "\n", `\n`) + `"}, {"type": "text/x-shellscript", "content": "#!/bin/sh\nset -e\n"}]`, files, []string{"a script for /bin/sh"}},
	} {
		got, err := Read(medium(map[string]string{"user-data": c.text}))
		if err != nil || !reflect.DeepEqual(got.Files, c.files) || !reflect.DeepEqual(got.Undone, c.undone) {
			t.Errorf("%s: got %+v, %v", name, got, err)
		}
	}
	for text, want := range map[string]string{
		"#cloud-config\nwrite_files: [{path: motd}]":                           `file "motd": want a full path`,
		"#cloud-config\nwrite_files: [{path: /a, permissions: rw}]":            `permissions "rw"`,
		"#cloud-config\nwrite_files: [{path: /a, encoding: gzip}]":             `encoding "gzip"`,
		"#cloud-config-archive\n- content: \"#cloud-config\\nwrite_files: 3\"": "part 1",
	} {
		if got, err := Read(medium(map[string]string{"user-data": text})); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %+v, %v; want %s", text, got, err, want)
		}
	}
}

// An OVF environment that comes alone is enough.
func TestEnvironmentAlone(t *testing.T) {
	data := base64.StdEncoding.EncodeToString([]byte("#cloud-config\nwrite_files: [{path: /a, content: b}]"))
	got, err := Read(medium(map[string]string{"ovf-env.xml": `<Environment xmlns:oe="http://schemas.dmtf.org/ovf/environment/1"><PropertySection>
		<Property oe:key="instance-id" oe:value="i-1"/><Property oe:key="hostname" oe:value="web-1"/><Property oe:key="user-data" oe:value="` + data + `"/>
		</PropertySection></Environment>`}))
	if err != nil || got.InstanceID != "i-1" || got.Hostname != "web-1" || !got.Ask || len(got.Files) != 1 {
		t.Errorf("got %+v, %v", got, err)
	}
}
