package build

import (
	"crypto/ed25519"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/reservoir-cloud/reservoir/manifest"
	"github.com/reservoir-cloud/reservoir/vee"
	"github.com/reservoir-cloud/reservoir/vhi/guest"
)

// second NIC of a guest, beside the one that boot gives it.
const mac2 = "52:54:00:00:00:02"

var secondNIC = []string{"-netdev", "user,id=net2,net=10.0.3.0/24,restrict=on", "-device", "virtio-net-pci,netdev=net2,romfile=,mac=" + mac2}

// twoNICs is the network configuration that an agent would write for them.
const twoNICs = `{"version": 2, "ethernets": {
  "eth0": {"match": {"macaddress": "` + mac + `"}, "set-name": "eth0", "dhcp4": false, "dhcp6": false, "addresses": ["10.0.2.15/24"],
    "routes": [{"to": "0.0.0.0/0", "via": "10.0.2.2"}], "nameservers": {"addresses": ["10.0.2.3"], "search": ["shop.alpha.internal", "alpha.internal"]}},
  "back": {"match": {"macaddress": "` + mac2 + `"}, "set-name": "back", "mtu": 1370, "dhcp4": false, "dhcp6": false, "accept-ra": false,
    "addresses": ["10.0.3.15/24", "fd00:9::2/64"], "nameservers": {"addresses": ["10.0.3.3"], "search": ["shop.alpha.internal", "alpha.internal"]}}}}`

// patience with a Debian on a busy machine; on a quiet one it takes half a minute.
const patience = 9 * time.Minute

// told is the context that a manifest gives its component web.
func told(t *testing.T, text string) map[string]string {
	t.Helper()
	s, err := manifest.Parse("shop.yaml", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	self := manifest.Replica{Component: "web", Number: 1, ID: "alpha.web1", NICs: []vee.NIC{{Network: "front", Address: "10.0.2.15/24"}}}
	files, err := s.Context(self, manifest.Around{ServiceID: "alpha.s-1", Domain: "shop.alpha.internal", Replicas: []manifest.Replica{self}})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

// failed waits for the word on a first boot that went wrong, and checks that the guest does
// not say that it is ready.
func (c channel) failed(t *testing.T, want string) {
	t.Helper()
	c.until(t, "the failure of the first boot", func(m any) bool {
		s, ok := m.(*guest.Status)
		if ok && s.Ready {
			t.Error("it says that it is ready")
		}
		if ok && s.Failure != "" && !strings.Contains(s.Failure, want) {
			t.Errorf("failure %q, want %q", s.Failure, want)
		}
		return ok && s.Failure != ""
	})
}

func testKey(t *testing.T) (authorized string, private ed25519.PrivateKey) {
	t.Helper()
	public, private, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	key, err := ssh.NewPublicKey(public)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(ssh.MarshalAuthorizedKey(key))), private
}

func TestApplianceOnTwoNetworks(t *testing.T) {
	a, err := Appliance(t.Context(), Options{Out: t.TempDir(), Cache: cache, Progress: t.Output()})
	if err != nil {
		t.Fatal(err)
	}
	ctx := limited(t, time.Minute)
	files := told(t, `{service: shop, networks: [{name: front, public: true}], components: [{name: web, image: appliance, memory: 64MiB, networks: [front],
		products: [{class: reservoir, properties: [{key: greeting, value: "I am @VmId at @IP(front)", cloudConfigurable: true}]}], software: {files: [{path: /etc/note, text: hello}]}}]}`)
	files["network-config"] = twoNICs
	m := boot(t, a, 128, 80, files, secondNIC...)
	page := m.get(ctx, t, "/")
	for _, want := range []string{"I am alpha.web1 at 10.0.2.15", "hostname: web-1", "10.0.2.15/24", "10.0.3.15/24", "fd00:9::2/64"} {
		if !strings.Contains(page, want) {
			t.Errorf("the page has no %q:\n%s", want, page)
		}
	}
	m.channel(ctx, t).until(t, "ready", isReady)
	m.powerDown(ctx, t)
}

// An OVF environment alone, on a CD-ROM as other platforms hand it over: the address comes
// by DHCP. What the appliance cannot do is told.
func TestApplianceByEnvironment(t *testing.T) {
	a, err := Appliance(t.Context(), Options{Out: t.TempDir(), Cache: cache, Progress: t.Output()})
	if err != nil {
		t.Fatal(err)
	}
	ctx := limited(t, time.Minute)
	files := told(t, `{service: shop, networks: [{name: front, public: true}], components: [{name: web, image: appliance, memory: 64MiB, networks: [front], software: {commands: ["true"]}}]}`)
	m := bootMedium(t, a, 128, 80, "OVF ENV", "if=ide,media=cdrom", map[string]string{"ovf-env.xml": files["ovf-env.xml"]})
	page := m.get(ctx, t, "/")
	for _, want := range []string{"hostname: web-1", "10.0.2.15/24"} {
		if !strings.Contains(page, want) {
			t.Errorf("the page has no %q:\n%s", want, page)
		}
	}
	m.channel(ctx, t).failed(t, "the appliance installs no software and runs no commands: a script for /bin/sh")
	m.powerDown(ctx, t)
}

// onTwoNetworks boots from a NoCloud medium as an agent makes it.
func onTwoNetworks(t *testing.T, a Artifact) {
	authorized, private := testKey(t)
	ctx := limited(t, patience)
	files := told(t, `
service: shop
networks: [{name: front, public: true}]
components:
  - name: web
    image: debian
    memory: 512MiB
    networks: [front]
    sshKeys: ["`+authorized+`"]
    userData: |
      #cloud-config
      write_files: [{path: /etc/mine, content: "mine"}]
      runcmd: [[cp, /etc/note, /run/later]]
    software:
      files: [{path: /etc/note, mode: "0600", text: "from the software"}]
      commands: ["cat /etc/mine > /run/first", "test -s /etc/note"]
`)
	files["network-config"] = twoNICs
	m := boot(t, a, 512, 22, files, secondNIC...)
	started := time.Now()
	c := m.channel(ctx, t)
	c.until(t, "hello", isHello)
	t.Logf("hello after %.1f s", time.Since(started).Seconds())
	c.until(t, "ready, which is cloud-init's end", isReady)
	t.Logf("ready after %.1f s", time.Since(started).Seconds())
	out := m.ssh(ctx, t, private, `hostname; sudo stat -c %a /etc/note; sudo cat /run/later /run/first; echo
ip -json address show; resolvectl domain; resolvectl dns; echo units that failed:; sudo systemctl --failed --no-legend --plain`)
	for _, want := range []string{"web-1\n600\nfrom the softwaremine\n", `"10.0.3.15"`, `"fd00:9::2"`, `"ifname":"back"`, `"mtu":1370`, "shop.alpha.internal", "10.0.2.3", "10.0.3.3"} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in:\n%s", want, out)
		}
	}
	if _, failed, _ := strings.Cut(out, "units that failed:"); strings.TrimSpace(failed) != "" {
		t.Errorf("units that failed: %s", failed)
	}
	c.tell(t, guest.Command{Type: "shutdown"})
	m.off(ctx, t)
}

// byEnvironment boots from an OVF environment alone, with a command that fails.
func byEnvironment(t *testing.T, a Artifact) {
	authorized, private := testKey(t)
	key, _ := json.Marshal(authorized)
	ctx := limited(t, patience)
	files := told(t, `{service: shop, networks: [{name: front, public: true}], components: [{name: web, image: debian, memory: 512MiB, networks: [front],
		sshKeys: [`+string(key)+`], software: {files: [{path: /etc/note, text: hello}], commands: ["echo this goes wrong", "false", "touch /etc/never"]}}]}`)
	m := bootMedium(t, a, 512, 22, "OVF ENV", "if=ide,media=cdrom", map[string]string{"ovf-env.xml": files["ovf-env.xml"]})
	m.channel(ctx, t).failed(t, "this goes wrong")
	out := m.ssh(ctx, t, private, "hostname; cat /etc/note; echo; ls /etc/never; ip -brief address show eth0; true")
	for _, want := range []string{"web-1\nhello\n", "cannot access", "10.0.2.15/24"} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in:\n%s", want, out)
		}
	}
}
