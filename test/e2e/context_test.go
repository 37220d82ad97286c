package e2e

import (
	"strings"
	"testing"

	"github.com/reservoir-cloud/reservoir/smi"
)

// Macros of a property become what they stand for: addresses of the guest and of the tier
// before it, which only the site could know.
func TestContext(t *testing.T) {
	t.Cleanup(func() { noNetworks(t) }) // after the service is deleted
	deploy(t, write(t, `service: told
networks:
  - {name: public, public: true}
  - {name: back}
components:
  - name: db
    image: appliance
    memory: 128MiB
    networks: [back]
  - name: web
    image: appliance
    memory: 128MiB
    networks: [public, back]
    ports: [http:80]
    startAfter: [db]
    products:
      - class: reservoir
        properties:
          - {key: greeting, value: "@VmId at @IP(public) asks @PrecedentTierEntryPoint(back,db) node @id(10) of @Domain by @DNSServer(back)", cloudConfigurable: true}
    software:
      files: [{path: /etc/note, text: hello}]
`), "told")
	web, db := replica(t, "told", "web-1"), replica(t, "told", "db-1")
	dbAddress, _, _ := strings.Cut(db.Descriptor.NICs[0].Address, "/")
	want := string(web.ID) + " at " + address(web) + " asks " + dbAddress + " node 11 of told.alpha.internal by " + web.Descriptor.NICs[1].DNS[0]
	reaches(t, web, "http://127.0.0.1/", want)
	if !strings.Contains(web.Descriptor.Context["ovf-env.xml"], `<Entity oe:id="db-1"`) {
		t.Errorf("it is not told of its sibling: %s", web.Descriptor.Context["ovf-env.xml"])
	}
}

// A first boot that fails is an event of its VEE, and the replica is not ready.
func TestFirstBootFails(t *testing.T) {
	t.Cleanup(func() { remove(t, "clumsy") })
	reservoir(t, "service", "deploy", write(t, `service: clumsy
components:
  - name: web
    image: appliance
    memory: 128MiB
    software: {commands: ["true"]}
`))
	const why = "the appliance installs no software and runs no commands"
	eventually(t, "the event of the first boot that failed", func() bool {
		for _, e := range jsonOf[[]smi.Event](t, "event", "list") {
			if e.Reason == "FirstBootFailed" && strings.Contains(e.Message, why) {
				return true
			}
		}
		return false
	})
	if v := replica(t, "clumsy", "web-1"); v.GuestReady || !strings.Contains(v.GuestFailure, why) {
		t.Errorf("ready %v, failure %q", v.GuestReady, v.GuestFailure)
	}
}
