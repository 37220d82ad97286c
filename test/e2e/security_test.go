package e2e

import (
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// What listens in the namespaces of a site and its hosts is known, and answers nobody who
// has not proven who they are. The guests' processes have no privileges.
func TestNothingListensWithoutAuthentication(t *testing.T) {
	s := deploy(t, manifest(t, "listen", 1, ""), "listen")
	_, accessPort, _ := strings.Cut(strings.TrimPrefix(s.URLs[0].URL, "http://"), ":")
	accessPort = strings.TrimRight(accessPort, "/")
	spaces := map[string]string{stage.prefix + "-alpha": "10." + stage.subnet + ".0.1"}
	for i := range hosts {
		spaces[fmt.Sprintf("%s-alpha-h%d", stage.prefix, i+1)] = fmt.Sprintf("10.%s.0.%d", stage.subnet, 11+i)
	}
	anonymous := &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, DisableKeepAlives: true}} // a stranger does not know the site's authority
	for ns, addr := range spaces {
		out, err := exec.Command("ip", "netns", "exec", ns, "ss", "-ltnH").Output()
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(out)) {
			f := strings.Fields(line)
			_, port, err := net.SplitHostPort(f[3])
			if err != nil {
				t.Fatalf("%q: %v", line, err)
			}
			switch port {
			case "8440", "8441":
				for _, path := range []string{"/", "/vhi/v1/report", "/vmi/v1/vees", "/smi/v1/services", "/v2/", "/openapi.json", "/site/v1"} {
					resp, err := anonymous.Get("https://" + net.JoinHostPort(addr, port) + path)
					if err != nil {
						t.Errorf("%s port %s %s: %v", ns, port, path, err)
						continue
					}
					resp.Body.Close()
					if resp.StatusCode != http.StatusUnauthorized {
						t.Errorf("%s port %s answers a stranger's GET %s with %s", ns, port, path, resp.Status)
					}
				}
			case accessPort: // the service's own public face
			case "53": // for guests of the host's own; a stranger is refused
				q := new(dns.Msg).SetQuestion("web-1.web.listen.alpha.internal.", dns.TypeA)
				reply, _, err := (&dns.Client{Net: "tcp"}).ExchangeContext(t.Context(), q, net.JoinHostPort(addr, port))
				if err != nil || reply.Rcode != dns.RcodeRefused {
					t.Errorf("%s: a stranger asks for a name: %v, %v", ns, reply, err)
				}
			case "4318": // measurements of the host's own guests; a stranger is refused
				resp, err := (&http.Client{Transport: &http.Transport{}}).Post("http://"+net.JoinHostPort(addr, port)+"/v1/metrics", "application/json", strings.NewReader("{}"))
				if err != nil {
					t.Errorf("%s port %s: %v", ns, port, err)
					continue
				}
				resp.Body.Close()
				if resp.StatusCode != http.StatusForbidden {
					t.Errorf("%s port %s answers a stranger's measurements with %s", ns, port, resp.Status)
				}
			default:
				if ns != stage.prefix+"-alpha" {
					t.Errorf("%s: something listens on %s", ns, f[3])
					continue
				}
				// The site's face for partners is at a port of the kernel's choice: no stranger gets
				// past its handshake.
				resp, err := anonymous.Get("https://" + net.JoinHostPort(addr, port) + "/")
				if err == nil {
					resp.Body.Close()
				}
				if err == nil || !strings.Contains(err.Error(), "tls: ") {
					t.Errorf("%s: something listens on %s, and a stranger hears %v", ns, f[3], err)
				}
			}
		}
	}

	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pidOf(t, only(t, "web-1").ID)))
	if err != nil {
		t.Fatal(err)
	}
	for name, ok := range map[string]func(string) bool{
		"Uid":     func(v string) bool { return !strings.HasPrefix(v, "0") },
		"CapEff":  func(v string) bool { return strings.Trim(v, "0") == "" },
		"Seccomp": func(v string) bool { return v == "2" },
	} {
		for line := range strings.Lines(string(status)) {
			if k, v, _ := strings.Cut(line, ":"); k == name && !ok(strings.TrimSpace(v)) {
				t.Errorf("a guest's process has %s", strings.TrimSpace(line))
			}
		}
	}
}
