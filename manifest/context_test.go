package manifest

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/reservoir-cloud/reservoir/vee"
)

// shop is a service of two tiers.
const shop = `
service: shop
properties:
  - {key: stage, value: test}
  - {key: me, value: "@VmId", cloudConfigurable: true}
components:
  - name: db
    image: debian
    memory: 512MiB
    replicas: 2
    networks: [back]
    properties:
      - {key: password, value: geheim, password: true}
      - {key: listen, value: "@IP(back)/@Netmask(back)", cloudConfigurable: true}
  - name: web
    image: debian
    memory: 512MiB
    networks: [front, {network: back, alias: inner}]
    startAfter: [db]
    sshKeys: [ssh-ed25519 AAAA dev@example]
    userData: |
      #cloud-config
      runcmd: [[touch, /run/mine]]
    properties:
      - {key: stage, value: production}
      - {key: db, value: "tcp://@PrecedentTierEntryPoint(back,db):5432?node=@id(10)", cloudConfigurable: true}
      - {key: dns, value: "@DNSServer(back) @Gateway(front) @IP(back,inner) @Domain", cloudConfigurable: true}
      - {key: plain, value: "@IP(back)"}
    software:
      packages: [nginx]
      files: [{path: /etc/motd, mode: "0644", text: "Welcome\n"}]
      commands: [systemctl restart nginx, "true"]
networks:
  - {name: front, public: true}
  - {name: back}
`

func shopAround() Around {
	back := func(n int) vee.NIC {
		return vee.NIC{Network: "back", Address: fmt.Sprintf("10.9.0.%d/20", n), DNS: []string{"10.9.0.1"}}
	}
	return Around{
		ServiceID: "alpha.s-abc", Domain: "shop.alpha.internal", Channel: "/dev/channel",
		Replicas: []Replica{
			{"db", 1, "alpha.db1", []vee.NIC{back(2)}},
			{"db", 2, "alpha.db2", []vee.NIC{back(3)}},
			{"web", 1, "alpha.web1", []vee.NIC{{Network: "front", Address: "10.80.0.2/16", Gateway: "10.80.0.1"}, back(4)}},
		},
	}
}

func TestContext(t *testing.T) {
	s := mustParse(t, "shop.yaml", []byte(shop))
	around := shopAround()
	var text strings.Builder
	for _, i := range []int{1, 2} {
		files, err := s.Context(around.Replicas[i], around)
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range slices.Sorted(maps.Keys(files)) {
			fmt.Fprintf(&text, "-- %s: %s --\n%s", around.Replicas[i].name(), name, files[name])
		}
	}
	golden(t, "testdata/golden/context.txt", []byte(text.String()))
}

func TestContextErrors(t *testing.T) {
	s := mustParse(t, "shop.yaml", []byte(shop))
	around := shopAround()
	around.Replicas = around.Replicas[2:]
	_, err := s.Context(around.Replicas[0], around)
	const want = "component web: property db: @PrecedentTierEntryPoint(back,db): component db has no replica"
	if err == nil || err.Error() != want {
		t.Errorf("without the tier before it: got %v, want %s", err, want)
	}
	if _, err := s.Context(Replica{Component: "cache"}, around); err == nil {
		t.Error("a component that is not there has a context")
	}
}

func TestMacrosAreChecked(t *testing.T) {
	for value, want := range map[string]string{
		"@IP(side)":                         "components[1].properties[1].value: property db: @IP(side): it is not on network side",
		"@Gateway(back)":                    "there is no gateway: nothing is routed on network back",
		"@PrecedentTierEntryPoint(back,xx)": "component xx has no replica",
		"@id(ten)":                          `offset "ten": want a whole number`,
	} {
		text := strings.Replace(shop, "tcp://@PrecedentTierEntryPoint(back,db):5432?node=@id(10)", value, 1)
		if _, err := Parse("shop.yaml", []byte(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want %s", value, err, want)
		}
	}
	text := strings.Replace(shop, `"@VmId"`, `"@IP(front)"`, 1)
	if _, err := Parse("shop.yaml", []byte(text)); err == nil || !strings.Contains(err.Error(), "properties[1].value: component db, property me: @IP(front): it is not on network front") {
		t.Errorf("a property of the service: %v", err)
	}
}

// Of a large service a guest is told of as many siblings as fit its medium.
func TestContextIsBounded(t *testing.T) {
	s := mustParse(t, "shop.yaml", []byte(shop))
	around := shopAround()
	for i := range 2000 {
		around.Replicas = append(around.Replicas, Replica{"db", i + 3, "alpha.more", around.Replicas[0].NICs})
	}
	files, err := s.Context(around.Replicas[2], around)
	if err != nil {
		t.Fatal(err)
	}
	if n := len(files["ovf-env.xml"]); n > 100<<10 || !strings.Contains(files["ovf-env.xml"], `oe:id="db-2"`) {
		t.Errorf("an environment of %d bytes", n)
	}
}

func TestToldChangesWithWhatIsTold(t *testing.T) {
	told := func(text string) string {
		s := mustParse(t, "shop.yaml", []byte(text))
		return fmt.Sprint(s.Told(s.Component("web")))
	}
	for _, c := range [][2]string{
		{"@VmId", "@ServiceId"}, {"nginx]", "apache2]"}, {"AAAA", "BBBB"}, {"/run/mine", "/run/yours"},
		{`"@IP(back)"}`, `"@IP(back)", cloudConfigurable: true}`},
	} {
		if told(strings.Replace(shop, c[0], c[1], 1)) == told(shop) {
			t.Errorf("%s for %s makes no difference", c[1], c[0])
		}
	}
	if told(strings.Replace(shop, "value: geheim", "value: secret", 1)) != told(shop) {
		t.Error("a property of db makes a difference for web")
	}
}
