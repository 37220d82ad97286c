package e2e

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/reservoir-cloud/reservoir/dev"
	"github.com/reservoir-cloud/reservoir/van/border"
)

// twoSites is a federation of its own beside the stage: two sites whose proxies alone reach
// each other, with simulated guests.
type twoSites struct {
	t   *testing.T
	dir string
	env []string
}

func newTwoSites(t *testing.T) *twoSites {
	t.Helper()
	f := &twoSites{t: t, dir: filepath.Join(t.TempDir(), "dev"), env: append(os.Environ(), "RESERVOIR_CONFIG="+filepath.Join(t.TempDir(), "contexts.yaml"))}
	t.Cleanup(func() { f.do("dev", "down", "--dir", f.dir) })
	f.do("dev", "up", "--detach", "--dir", f.dir, "--prefix", "e2f", "--subnet", "124", "--sites", "2", "--hosts", "1", "--hypervisor", "sim", "--memory", "256MiB", "--disk", "1GiB")
	return f
}

func (f *twoSites) do(args ...string) string {
	f.t.Helper()
	cmd := exec.Command(stage.binary, args...)
	cmd.Env = f.env
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		f.t.Fatalf("reservoir %s: %v\n%s%s", strings.Join(args, " "), err, out, errs.String())
	}
	return string(out)
}

// tunnel waits until a site's proxy has had a handshake with its one partner.
func (f *twoSites) tunnel(site, partner string) border.ProxyStatus {
	f.t.Helper()
	var s border.ProxyStatus
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		s = border.ProxyStatus{}
		cmd := exec.Command(stage.binary, "--context", "dev-"+site, "site", "proxy", "show", "-o", "json")
		cmd.Env = f.env
		if out, err := cmd.Output(); err == nil && json.Unmarshal(out, &s) == nil && len(s.Peers) == 1 && s.Peers[0].Site == partner && !s.Peers[0].Handshake.IsZero() && s.Error == "" {
			return s
		}
	}
	f.t.Fatalf("the proxy of %s never reached that of %s: %+v", site, partner, s)
	return s
}

// TestSitesMeetAtTheirProxies: two sites become partners by what their proxies pass on; the
// tunnel stands; and a proxy that is killed takes all of it up again by itself.
func TestSitesMeetAtTheirProxies(t *testing.T) {
	f := newTwoSites(t)
	token := strings.TrimSpace(f.do("--context", "dev-alpha", "federation", "invite"))
	f.do("--context", "dev-beta", "federation", "accept", token)
	before := f.tunnel("alpha", "beta")
	f.tunnel("beta", "alpha")
	f.do("--context", "dev-alpha", "federation", "preflight", "beta")

	c, err := dev.Load(f.dir)
	if err != nil {
		t.Fatal(err)
	}
	all, err := dev.Status(c)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range all {
		if p.Name == "alpha-proxy" {
			if err := syscall.Kill(p.Pid, syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
		}
	}
	for end := time.Now().Add(time.Minute); ; time.Sleep(100 * time.Millisecond) {
		after := f.tunnel("alpha", "beta")
		if after.Started.After(before.Started) && after.Key == before.Key {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("the proxy is not back: %+v", after)
		}
	}
	f.do("--context", "dev-alpha", "federation", "preflight", "beta")
}
