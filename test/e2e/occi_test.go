package e2e

import (
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// occi is a client that knows nothing of us but a URL, a certificate authority and a
// password: curl.
type occi struct {
	t        *testing.T
	url, ca  string
	password string
}

func newOCCI(t *testing.T) occi {
	t.Helper()
	var url string
	for _, c := range jsonOf[[]struct{ Name, URL string }](t, "context", "list") {
		if c.Name == "dev-alpha" {
			url = c.URL
		}
	}
	token := jsonOf[struct{ Secret string }](t, "site", "token", "create", "occi", "--role", "provider", "--customer", "acme")
	t.Cleanup(func() { reservoir(t, "site", "token", "revoke", "occi") })
	return occi{t, url, filepath.Join(stage.dir, "alpha", "site", "ca.pem"), token.Secret}
}

// curl returns the answer's header and body. The password goes by a file, not in the table
// of processes.
func (o occi) curl(method, path string, headers ...string) (header, body string) {
	o.t.Helper()
	conf := filepath.Join(o.t.TempDir(), "curl")
	if err := os.WriteFile(conf, []byte("user = \"acme:"+o.password+"\"\n"), 0o600); err != nil {
		o.t.Fatal(err)
	}
	if strings.HasPrefix(path, "/") {
		path = o.url + path
	}
	args := []string{"--config", conf, "--cacert", o.ca, "-sS", "--http1.1", "--max-time", "60", "-i", "-X", method, path}
	for _, h := range headers {
		args = append(args, "-H", h)
	}
	out, err := exec.CommandContext(o.t.Context(), "curl", args...).CombinedOutput()
	if err != nil {
		o.t.Fatalf("curl %s %s: %v\n%s", method, path, err, out)
	}
	header, body, _ = strings.Cut(strings.ReplaceAll(string(out), "\r\n", "\n"), "\n\n")
	return header, body
}

func (o occi) want(status, method, path string, headers ...string) string {
	o.t.Helper()
	header, body := o.curl(method, path, headers...)
	if first, _, _ := strings.Cut(header, "\n"); !strings.HasPrefix(first, "HTTP/1.1 "+status) {
		o.t.Fatalf("%s %s: %s, want %s\n%s", method, path, first, status, body)
	}
	return body
}

// The life of a compute, driven by a client that speaks OCCI 1.2 and nothing else.
func TestOCCI(t *testing.T) {
	t.Cleanup(func() { nothingLeft(t) })
	o := newOCCI(t)
	if got := o.want("200", http.MethodGet, "/-/"); !strings.Contains(got, "Category: appliance; scheme=") {
		t.Fatalf("the image is no OS template:\n%s", got)
	}
	header, body := o.curl(http.MethodPost, "/occi/v1.2/compute/", "Content-Type: text/occi",
		`Category: compute; scheme="http://schemas.ogf.org/occi/infrastructure#"; class="kind", `+
			`appliance; scheme="https://github.com/reservoir-cloud/reservoir/occi/os_tpl#"; class="mixin", `+
			`tiny; scheme="https://github.com/reservoir-cloud/reservoir/occi/resource_tpl#"; class="mixin"`,
		`X-OCCI-Attribute: occi.core.title="Front desk", occi.compute.hostname="desk"`)
	if !strings.HasPrefix(header, "HTTP/1.1 201") {
		t.Fatalf("%s\n%s", header, body)
	}
	at := strings.TrimSpace(strings.TrimPrefix(strings.TrimSpace(body), "X-OCCI-Location:"))
	becomes := func(state string) {
		t.Helper()
		eventually(t, "the compute is "+state, func() bool {
			return strings.Contains(o.want("200", http.MethodGet, at), `occi.compute.state="`+state+`"`)
		})
	}
	act := func(term string) {
		t.Helper()
		o.want("200", http.MethodPost, at+"?action="+term, "Content-Type: text/occi",
			`Category: `+term+`; scheme="http://schemas.ogf.org/occi/infrastructure/compute/action#"; class="action"`)
	}
	becomes("active")
	v := only(t, "desk")
	if !strings.HasSuffix(at, "/compute/"+string(v.ID)) || v.Descriptor.Customer != "acme" {
		t.Errorf("the VEE of %s is %s, customer %q", at, v.ID, v.Descriptor.Customer)
	}
	// A mixin of its own, under which it finds the compute again.
	blue := `Category: blue; scheme="http://acme.example/tags#"; class="mixin"`
	o.want("200", http.MethodPost, "/-/", "Content-Type: text/occi", blue)
	o.want("200", http.MethodPost, "/occi/v1.2/mixin/tag/blue/", "Content-Type: text/occi", "X-OCCI-Location: "+at)
	if got := o.want("200", http.MethodGet, "/occi/v1.2/mixin/tag/blue/", "Accept: text/uri-list"); strings.TrimSpace(got) != at {
		t.Errorf("tagged: %q, want %s", got, at)
	}
	o.want("200", http.MethodDelete, "/-/", "Content-Type: text/occi", blue)
	o.want("404", http.MethodGet, "/occi/v1.2/mixin/tag/blue/")
	act("suspend")
	becomes("suspended")
	act("start")
	becomes("active")
	act("stop")
	becomes("inactive")
	o.want("204", http.MethodDelete, at)
	o.want("404", http.MethodGet, at)
	eventually(t, "the VEE is destroyed", func() bool { return len(vees(t)) == 0 })
}
