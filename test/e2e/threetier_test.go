package e2e

import (
	"strings"
	"testing"
	"time"
)

// The example of three tiers on Debian guests: one command deploys it, it answers with data
// from its database through two web servers, and nobody but the application reaches that.
func TestThreeTier(t *testing.T) {
	for _, image := range []string{"debian", "debian-postgresql"} {
		reservoir(t, "image", "push", "../../.cache/images/"+image)
	}
	t.Cleanup(func() { remove(t, "three-tier") })
	// Four guests that boot Debian by emulation take their time.
	if _, err := cliWithin(15*time.Minute, "service", "deploy", "../../examples/three-tier/three-tier.yaml", "--wait", "--timeout", "870s"); err != nil {
		dump(t)
		t.Fatal(err)
	}
	s := service(t, "three-tier")
	url := s.URLs[0].URL
	eventually(t, "data from the database, by way of both web servers", func() bool {
		page := ask(url)
		return field(page, "greeting") == "hello from the database" && field(page, "webs") == "2"
	})

	db := only(t, "db-1")
	address, _, _ := strings.Cut(db.Descriptor.NICs[0].Address, "/")
	for _, c := range []struct {
		from, port string
		delivered  bool
	}{{"app-1", "5432", true}, {"app-1", "22", false}, {"web-1", "5432", false}} {
		out := reservoir(t, "van", "trace", c.from, address, "--port", c.port)
		if delivered := strings.Contains(out, "\n"+string(db.ID)+" NIC"); delivered != c.delivered {
			t.Errorf("from %s to port %s of the database: delivered %v, want %v\n%s", c.from, c.port, delivered, c.delivered, out)
		}
	}
	if page := ask("http://" + address + ":5432/"); page != "" {
		t.Error("the database answers on the site's network")
	}
}
