package sm

import (
	"fmt"
	"testing"
	"time"

	"github.com/reservoir-cloud/reservoir/sm/deploy"
	"github.com/reservoir-cloud/reservoir/vee"
	"github.com/reservoir-cloud/reservoir/vmi"
)

func TestAround(t *testing.T) {
	d, err := newDesign(revision{Text: `
service: shop
components:
  - {name: web, image: debian, memory: 64MiB, networks: [front, back], startAfter: [db]}
  - {name: db, image: debian, memory: 64MiB, networks: [back]}
networks: [{name: front, public: true}, {name: back}]
`}, 1)
	if err != nil {
		t.Fatal(err)
	}
	vees := map[vee.ID]vmi.VEE{}
	put := func(id vee.ID, s vee.State, nics ...vee.NIC) {
		vees[id] = vmi.VEE{ID: id, State: s, Descriptor: vee.Descriptor{NICs: nics, Naming: vee.Naming{Domain: "shop.alpha.internal"}}}
		v := vees[id]
		kept := seenOf(&v, 1) // what the manager remembers of it is enough
		vees[id] = kept.vee(id)
	}
	put("web2", vee.Initial, vee.NIC{Network: "site", Address: "10.80.0.3/16"}, vee.NIC{Network: "alpha.s-1.back", Address: "10.9.0.5/24"})
	put("web1", vee.Active, vee.NIC{Network: "site"}, vee.NIC{Network: "alpha.s-1.back"})
	put("db1", vee.Active, vee.NIC{Network: "alpha.s-1.back", Address: "10.9.0.2/24"})
	put("db2", vee.Active)
	put("db3", vee.Destroyed)
	slot := func(component string, n int, id vee.ID) deploy.Slot {
		return deploy.Slot{Component: component, Number: n, VEE: id}
	}
	leaving := slot("db", 2, "db2")
	leaving.Retiring = time.Unix(1, 0)
	rec := record{ID: "alpha.s-1", State: deploy.State{Slots: []deploy.Slot{
		slot("web", 2, "web2"), slot("web", 1, "web1"), slot("web", 3, ""), slot("db", 1, "db1"), leaving, slot("db", 3, "db3"),
	}}}
	a := d.around(rec, vees)
	var got string
	for _, r := range a.Replicas {
		got += fmt.Sprintf("%s-%d %s:", r.Component, r.Number, r.ID)
		for _, n := range r.NICs {
			got += " " + n.Network + " " + n.Address
		}
		got += "\n"
	}
	const want = "db-1 db1: back 10.9.0.2/24\nweb-1 web1: front  back \nweb-2 web2: front 10.80.0.3/16 back 10.9.0.5/24\n"
	if got != want || a.Domain != "shop.alpha.internal" || a.ServiceID != "alpha.s-1" {
		t.Errorf("got %+v\n%swant\n%s", a, got, want)
	}
	if vees["db1"].Descriptor.NICs[0].Network != "alpha.s-1.back" {
		t.Error("the VEE itself was changed")
	}
}
