package occi

import (
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/internal/identity"
	"github.com/reservoir-cloud/reservoir/vee"
	"github.com/reservoir-cloud/reservoir/vmi"
	"github.com/reservoir-cloud/reservoir/vmi/occi/rendering"
)

var update = flag.Bool("update", false, "rewrite the golden files")

func golden(t *testing.T, name, got string) {
	t.Helper()
	file := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s is now (go test -update rewrites it)\n%s", file, got)
	}
}

// What a client discovers and reads, in full.
func TestGolden(t *testing.T) {
	b := newBench(t)
	golden(t, "discovery.txt", b.want(200, "GET", Base+"/-/", ""))
	golden(t, "discovery.json", b.want(200, "GET", Base+"/-/", "", inJSON))
	at := b.make("Category: small; scheme=\"https://github.com/reservoir-cloud/reservoir/occi/resource_tpl#\"; class=\"mixin\"\n" +
		"X-OCCI-Attribute: occi.core.title=\"Front desk\", occi.compute.hostname=\"desk.example.org\"\n")
	golden(t, "compute.txt", b.want(200, "GET", at, ""))
	golden(t, "compute.json", b.want(200, "GET", at, "", inJSON))
	golden(t, "everything.txt", b.want(200, "GET", Base+"/", ""))
}

// GFD.223, "HTTP Methods Applied to Query Interface": both paths that it names, its three
// methods, and what does not change.
func TestDiscovery(t *testing.T) {
	b := newBench(t)
	all := b.want(200, "GET", Base+"/-/", "")
	for _, path := range []string{QueryPath, WellKnown} {
		if b.want(200, "GET", path, "") != all {
			t.Errorf("%s differs from %s/-/", path, Base)
		}
	}
	for _, want := range []string{`compute; scheme=`, `storagelink; scheme=`, `os_tpl; scheme=`, `appliance; scheme=`, `team.debian_13; scheme=`, `sha256-cccccccccccc; scheme=`,
		`tiny; scheme=`, `ssh_key; scheme=`, `user_data; scheme=`, `start; scheme=`} {
		if !strings.Contains(all, "Category: "+want) {
			t.Errorf("discovery has no %s", want)
		}
	}
	if strings.Contains(all, "broken") {
		t.Error("an image that cannot be used is offered")
	}
	resp := b.ask("GET", QueryPath, "", inOCCI)
	if cs, err := rendering.Of(rendering.Header).ReadCategories(rendering.Payload{Header: resp.Header}); err != nil || len(cs) != strings.Count(all, "Category: ") {
		t.Errorf("in headers: %d categories, %v", len(cs), err)
	}
	b.want(405, "PUT", QueryPath, "", asText)
	b.want(400, "GET", QueryPath, "", inList)
}

// GFD.223, "Filtering": of categories.
func TestDiscoveryFilter(t *testing.T) {
	b := newBench(t)
	got := b.want(200, "GET", QueryPath, "", `Category: resource_tpl; scheme="http://schemas.ogf.org/occi/infrastructure#"; class="mixin"`)
	if strings.Count(got, "Category: ") != 1+len(sizes) || !strings.Contains(got, "medium; ") {
		t.Errorf("resource templates:\n%s", got)
	}
	got = b.want(200, "GET", QueryPath, "", `Category: network; scheme="http://schemas.ogf.org/occi/infrastructure#"; class="kind"`)
	if strings.Count(got, "Category: ") != 4 { // itself, up, down, ipnetwork
		t.Errorf("network:\n%s", got)
	}
	if got = b.want(200, "GET", QueryPath, "", `Category: x; scheme="http://example.com/#"; class="kind"`); got != "" {
		t.Errorf("an unknown category: %s", got)
	}
	b.want(400, "GET", QueryPath, "", `Category: x`)
}

// The life of a compute in each rendering: created, read, stopped, started, suspended in both
// ways, restarted, deleted (GFD.224, "Compute").
func TestLifeOfACompute(t *testing.T) {
	create := map[rendering.Media][2]string{ // body, header
		rendering.Plain:  {compute + onDisk + "X-OCCI-Attribute: occi.compute.cores=2\nX-OCCI-Attribute: occi.compute.memory=1.5\n", ""},
		rendering.Header: {"", strings.TrimSpace(compute) + ", " + strings.TrimPrefix(strings.TrimSpace(onDisk), "Category: ")},
		rendering.JSON: {`{"kind": "` + kindCompute + `", "mixins": ["` + schemaOurs + `os_tpl#appliance"],
			"attributes": {"occi.compute.cores": 2, "occi.compute.memory": 1.5}}`, ""},
	}
	for m, in := range create {
		b := newBench(t)
		headers := []string{"Content-Type: " + string(m), "Accept: " + string(m)}
		made := headers
		if m == rendering.Header {
			made = append(made, in[1], `X-OCCI-Attribute: occi.compute.cores=2, occi.compute.memory=1.5`)
		}
		resp := b.ask("POST", Base+"/compute/", in[0], made...)
		at := strings.TrimPrefix(resp.Header.Get("Location"), "https://site.example:8443")
		if resp.StatusCode != 201 || !strings.HasPrefix(at, Base+"/compute/alpha.") || resp.Header.Get("Content-Type") != string(m) {
			t.Fatalf("%s: %d %v", m, resp.StatusCode, resp.Header)
		}
		if m == rendering.Header && resp.Header.Get("X-OCCI-Location") != resp.Header.Get("Location") {
			t.Errorf("X-OCCI-Location %q", resp.Header.Get("X-OCCI-Location"))
		}
		d := b.vmi.vees[b.vmi.order[0]].Descriptor
		if d.VCPUs != 2 || d.Memory != 1536*vee.MiB || d.Name != "appliance" || len(d.NICs) != 1 || d.Disks[0].Image != someImages[0].Digest {
			t.Errorf("%s: %+v", m, d)
		}
		state := func(want string) {
			t.Helper()
			resp := b.ask("GET", at, "", inOCCI)
			es, err := rendering.Of(rendering.Header).ReadEntities(rendering.Payload{Header: resp.Header})
			if err != nil || es[0].Attributes["occi.compute.state"] != want {
				t.Fatalf("%s: %+v, %v; want it %s", m, es, err, want)
			}
		}
		act := func(status int, term, method string) {
			t.Helper()
			p := map[rendering.Media]string{
				rendering.Plain: actionText(term, `method="`+method+`"`),
				rendering.JSON:  `{"action": "http://schemas.ogf.org/occi/infrastructure/compute/action#` + term + `", "attributes": {"method": "` + method + `"}}`,
			}
			hs := headers
			if m == rendering.Header {
				hs = append(hs, `Category: `+term+`; scheme="http://schemas.ogf.org/occi/infrastructure/compute/action#"; class="action"`)
				if method != "" {
					hs = append(hs, `X-OCCI-Attribute: method="`+method+`"`)
				}
			}
			body := p[m]
			if method == "" {
				body = strings.NewReplacer(`X-OCCI-Attribute: method=""`, "", `, "attributes": {"method": ""}`, "").Replace(body)
			}
			b.want(status, "POST", at+"?action="+term, body, hs...)
		}
		state("active")
		act(200, "stop", "graceful")
		state("inactive")
		act(409, "stop", "")
		act(409, "suspend", "")
		act(200, "start", "")
		act(400, "start", "warm")
		act(200, "suspend", "suspend")
		if got := b.vmi.vees[b.vmi.order[0]].State; got != vee.Paused {
			t.Errorf("suspend leaves it %s", got)
		}
		state("suspended")
		act(200, "start", "")
		act(400, "suspend", "never")
		act(200, "suspend", "hibernate")
		if got := b.vmi.vees[b.vmi.order[0]].State; got != vee.Suspended {
			t.Errorf("hibernate leaves it %s", got)
		}
		act(409, "restart", "")
		act(200, "start", "")
		act(200, "restart", "cold")
		state("active")
		act(501, "save", "hot")
		b.want(204, "DELETE", at, "")
		b.want(404, "GET", at, "")
		if got := b.want(200, "GET", Base+"/compute/", "", inList); got != "" {
			t.Errorf("after deletion: %s", got)
		}
	}
}

// What a compute is made with, and reads back as (GFD.224, templates, credentials and
// contextualisation).
func TestWhatAComputeIsMadeWith(t *testing.T) {
	b := newBench(t)
	at := b.make(`Category: medium; scheme="https://github.com/reservoir-cloud/reservoir/occi/resource_tpl#"; class="mixin"
Category: ssh_key; scheme="http://schemas.ogf.org/occi/infrastructure/credentials#"; class="mixin"
Category: user_data; scheme="http://schemas.ogf.org/occi/infrastructure/compute#"; class="mixin"
Link: </occi/v1.2/network/site>; rel="http://schemas.ogf.org/occi/infrastructure#network"; category="http://schemas.ogf.org/occi/infrastructure#networkinterface"; occi.networkinterface.interface="eth7"
X-OCCI-Attribute: occi.compute.cores=8, occi.compute.share=200, occi.compute.architecture="x64"
X-OCCI-Attribute: occi.core.title="Shop: front", occi.core.summary="for the winter"
X-OCCI-Attribute: occi.credentials.ssh.publickey="ssh-ed25519 AAAA me@here"
X-OCCI-Attribute: occi.compute.userdata="IyEvYmluL3NoCmVjaG8gaGkK"
`)
	d := b.vmi.vees[b.vmi.order[0]].Descriptor
	if d.Name != "shop--front" || d.VCPUs != 2 || d.Memory != 2*vee.GiB || d.CPU.Weight != 200 || d.NICs[0].Target != "eth7" {
		t.Errorf("%+v", d)
	}
	if d.Context["user-data"] != "#!/bin/sh\necho hi\n" || !strings.Contains(d.Context["meta-data"], `"public-keys":["ssh-ed25519 AAAA me@here"]`) {
		t.Errorf("context: %v", d.Context)
	}
	var e struct {
		Mixins     []string
		Attributes map[string]any
		Title      string
		Summary    string
		Links      []struct{ Kind string }
	}
	if err := json.Unmarshal([]byte(b.want(200, "GET", at, "", inJSON)), &e); err != nil {
		t.Fatal(err)
	}
	if len(e.Mixins) != 4 || e.Title != "Shop: front" || e.Summary != "for the winter" || len(e.Links) != 2 ||
		e.Attributes["occi.compute.userdata"] != "IyEvYmluL3NoCmVjaG8gaGkK" || e.Attributes["occi.credentials.ssh.publickey"] != "ssh-ed25519 AAAA me@here" ||
		e.Attributes["occi.compute.share"] != 200.0 {
		t.Errorf("%+v", e)
	}
}

func TestWhatCannotBeMade(t *testing.T) {
	b := newBench(t)
	our := "https://github.com/reservoir-cloud/reservoir/occi/"
	for _, c := range []struct {
		body, want string
	}{
		{"", "kind"},
		{compute, "OS template"},
		{compute + onDisk + onDisk, "two OS templates"},
		{compute + `Category: nix; scheme="` + our + `os_tpl#"; class="mixin"`, "no mixin"},
		{compute + onDisk + `Category: ipnetwork; scheme="http://schemas.ogf.org/occi/infrastructure/network#"; class="mixin"`, "does not apply"},
		{compute + onDisk + `Category: ssh_key; scheme="http://schemas.ogf.org/occi/infrastructure/credentials#"; class="mixin"`, "required"},
		{compute + onDisk + `X-OCCI-Attribute: occi.compute.state="active"`, "set by the site"},
		{compute + onDisk + `X-OCCI-Attribute: occi.compute.userdata="x"`, "not defined"},
		{compute + onDisk + `X-OCCI-Attribute: occi.compute.cores=1.5`, "whole number"},
		{compute + onDisk + `X-OCCI-Attribute: occi.compute.memory=-1`, "GiB"},
		{compute + onDisk + `X-OCCI-Attribute: occi.compute.memory=0.01`, "needs 64MiB"},
		{compute + onDisk + `X-OCCI-Attribute: occi.compute.hostname="-x"`, "DNS name"},
		{compute + onDisk + `X-OCCI-Attribute: occi.compute.architecture="x86"`, "amd64"},
		{compute + onDisk + `Link: </occi/v1.2/network/other>; rel="http://schemas.ogf.org/occi/infrastructure#network"; category="` + kindNIC + `"`, "no such network"},
		{compute + onDisk + `Link: </occi/v1.2/storage/x>; rel="http://schemas.ogf.org/occi/infrastructure#storage"; category="` + kindDiskLink + `"`, "no storage"},
		{compute + onDisk + `Link: </occi/v1.2/network/site>; rel="http://schemas.ogf.org/occi/infrastructure#network"; category="` + kindNIC + `"; occi.networkinterface.mac="00:00:00:00:00:01"`, "set by the site"},
		{strings.ReplaceAll(compute, "compute;", "storage;"), "this collection"},
	} {
		if got := b.want(400, "POST", Base+"/compute/", c.body, asText); !strings.Contains(got, c.want) || !strings.Contains(got, "next: ") {
			t.Errorf("%q: %s; want %q and what to do next", c.body, got, c.want)
		}
	}
	b.want(400, "POST", Base+"/compute/", `{"resources": []}`, asJSON)
	b.want(415, "POST", Base+"/compute/", "<x/>", "Content-Type: text/xml")
	b.want(400, "POST", Base+"/compute/", "", "Content-Type: application/x-www-form-urlencoded")
	if len(b.vmi.order) != 0 {
		t.Errorf("%d VEEs were made", len(b.vmi.order))
	}
	b.vmi.full = true
	b.want(409, "POST", Base+"/compute/", compute+onDisk, asText)
	if v := b.vmi.vees[b.vmi.order[0]]; v.State != vee.Destroyed {
		t.Errorf("what could not be started is left %s", v.State)
	}
}

func TestACollectionIsMadeAtOnce(t *testing.T) {
	b := newBench(t)
	one := `{"kind": "` + kindCompute + `", "mixins": ["` + schemaOurs + `os_tpl#appliance"]}`
	got := b.want(201, "POST", Base+"/compute/", `{"resources": [`+one+`, `+one+`]}`, asJSON, inList)
	if strings.Count(got, "https://site.example:8443"+Base+"/compute/alpha.") != 2 {
		t.Error(got)
	}
}

// Networks of groups are shown to who owns them.
func TestNetworksOfGroups(t *testing.T) {
	b := newBench(t)
	b.vmi.nets = []string{"acme", "other"}
	if got := b.want(200, "GET", Base+"/network/", "", inList); strings.Count(got, "\n") != 2 || !strings.Contains(got, "/network/s-acme.back") {
		t.Errorf("networks:\n%s", got)
	}
	if got := b.want(200, "GET", Base+"/network/s-acme.back", ""); !strings.Contains(got, `occi.network.address="10.128.0.0/24"`) || strings.Contains(got, "gateway") {
		t.Errorf("a network of a group:\n%s", got)
	}
	b.want(404, "GET", Base+"/network/s-other.back", "")
}

// GFD.223, "Namespace", "Filtering" and "Pagination".
func TestCollections(t *testing.T) {
	b := newBench(t)
	first := b.make("X-OCCI-Attribute: occi.core.title=\"one\"\n")
	b.make("")
	b.make("Category: tiny; scheme=\"https://github.com/reservoir-cloud/reservoir/occi/resource_tpl#\"; class=\"mixin\"\n")
	for path, want := range map[string]int{
		"/compute/": 3, "/compute": 3, "/storage/": 3, "/network/": 1, "/storagelink/": 3, "/networkinterface/": 3, "/": 13, "/resource/": 7, "/link/": 6,
		"/mixin/os_tpl/": 3, "/mixin/os_tpl/appliance/": 3, "/mixin/resource_tpl/tiny/": 1, "/mixin/resource_tpl/": 3, "/mixin/ipnetwork/": 1,
		"/mixin/ipnetworkinterface/": 3, "/mixin/ssh_key/": 0,
		"/compute/?page=1&number=2": 2, "/compute/?page=2;number=2": 1, "/compute/?page=3&number=2": 0, "/compute/?page=9000000000000000000&number=2": 0,
	} {
		if got := strings.Count(b.want(200, "GET", Base+path, "", inList), "\n"); got != want {
			t.Errorf("%s: %d entities, want %d", path, got, want)
		}
	}
	for filter, want := range map[string]int{
		`X-OCCI-Attribute: occi.core.title="one"`:                                                                 1,
		`X-OCCI-Attribute: occi.compute.cores=1`:                                                                  3,
		`X-OCCI-Attribute: occi.compute.memory=0.125`:                                                             1,
		`X-OCCI-Attribute: occi.compute.state="error"`:                                                            0,
		`Category: tiny; scheme="https://github.com/reservoir-cloud/reservoir/occi/resource_tpl#"; class="mixin"`: 1,
	} {
		if got := strings.Count(b.want(200, "GET", Base+"/compute/", "", filter), "X-OCCI-Location: "); got != want {
			t.Errorf("%s: %d entities, want %d", filter, got, want)
		}
	}
	b.want(413, "GET", Base+"/compute/?page=1&number=100000", "")
	b.want(400, "GET", Base+"/compute/?page=1", "")
	b.want(404, "GET", Base+"/volume/", "")
	var all struct{ Resources, Links []json.RawMessage }
	if err := json.Unmarshal([]byte(b.want(200, "GET", Base+"/", "", inJSON)), &all); err != nil || len(all.Resources) != 7 || len(all.Links) != 6 {
		t.Errorf("%d resources, %d links, %v", len(all.Resources), len(all.Links), err)
	}
	if got := b.want(200, "GET", Base+"/mixin/ssh_key/", "", inJSON); !strings.Contains(got, `"resources": []`) {
		t.Errorf("an empty collection: %s", got)
	}
	// The identifier at the end of the kind's location is an address too.
	name := strings.TrimPrefix(first, Base+"/compute/")
	b.want(200, "GET", Base+"/compute/urn:reservoir:compute:"+name, "")
	for _, part := range []string{"/storage/" + name + ".root", "/storagelink/" + name + ".root", "/networkinterface/" + name + ".eth0", "/network/site"} {
		b.want(200, "GET", Base+part, "")
		b.want(400, "GET", Base+part, "", inList)
		b.want(405, "DELETE", Base+part, "")
	}
	for _, part := range []string{"/storage/" + name + ".data", "/storage/x", "/compute/alpha.zzzzzzzzzz", "/network/other", "/compute/" + name + "/x"} {
		b.want(404, "GET", Base+part, "")
	}
	// A collection as a whole: actions and deletion.
	b.want(200, "POST", Base+"/mixin/os_tpl/appliance/?action=stop", actionText("stop"), asText)
	for _, v := range b.vmi.vees {
		if v.State != vee.Defined {
			t.Errorf("%s is %s", v.ID, v.State)
		}
	}
	b.want(204, "DELETE", Base+"/compute/", "")
	if got := b.want(200, "GET", Base+"/compute/", ""); got != "" {
		t.Error(got)
	}
}

// Full and partial updates: what is so already is fine, what the site cannot change says so.
func TestUpdates(t *testing.T) {
	b := newBench(t)
	at := b.make("X-OCCI-Attribute: occi.core.title=\"one\"\n")
	read := b.want(200, "GET", at, "")
	if got := b.want(200, "PUT", at, read, asText); got != read {
		t.Errorf("what was read, sent back:\n%s", got)
	}
	b.want(200, "PUT", at, b.want(200, "GET", at, "", inJSON), asJSON)
	b.want(200, "POST", at, "X-OCCI-Attribute: occi.compute.cores=1", asText)
	if got := b.want(200, "POST", at, "X-OCCI-Attribute: occi.compute.cores=3, occi.compute.memory=1.5, occi.compute.share=50", asText); strings.Contains(got, "resource_tpl") ||
		!strings.Contains(got, "cores=3\n") || !strings.Contains(got, "memory=1.5\n") || !strings.Contains(got, "share=50\n") {
		t.Errorf("another size:\n%s", got)
	}
	if got := b.want(200, "POST", at, `Category: large; scheme="https://github.com/reservoir-cloud/reservoir/occi/resource_tpl#"; class="mixin"`, asText); !strings.Contains(got, "Category: large;") ||
		!strings.Contains(got, "cores=4\n") {
		t.Errorf("another template:\n%s", got)
	}
	disk := strings.Replace(at, "/compute/", "/storage/", 1) + ".root"
	if got := b.want(200, "POST", disk, "X-OCCI-Attribute: occi.storage.size=3.5", asText); !strings.Contains(got, "size=3.5\n") {
		t.Errorf("another size of a disk:\n%s", got)
	}
	b.want(200, "PUT", disk, b.want(200, "GET", disk, ""), asText)
	b.want(400, "POST", disk, "X-OCCI-Attribute: occi.storage.size=1", asText)
	b.want(400, "POST", disk, `X-OCCI-Attribute: occi.storage.size="1"`, asText)
	b.want(400, "POST", disk, `X-OCCI-Attribute: occi.storage.state="offline"`, asText)
	b.want(501, "POST", disk, `X-OCCI-Attribute: occi.core.title="two"`, asText)
	b.want(501, "POST", at, onDisk2, asText)
	b.want(400, "POST", at, `X-OCCI-Attribute: occi.compute.state="inactive"`, asText)
	b.want(400, "POST", at, `X-OCCI-Attribute: occi.core.id="urn:x"`, asText)
	b.want(400, "PUT", at, "X-OCCI-Attribute: occi.compute.cores=1", asText)
	b.want(501, "POST", at, `X-OCCI-Attribute: occi.core.title="two"`, asText)
	b.want(405, "PUT", Base+"/compute/alpha.zzzzzzzzzz", compute+onDisk, asText)
}

// Actions that every implementation names and this one has no use for, and requests that do
// not fit together.
func TestActionsThatAreRefused(t *testing.T) {
	b := newBench(t)
	at := b.make("")
	disk := strings.Replace(at, "/compute/", "/storage/", 1) + ".root"
	b.want(409, "POST", disk+"?action=offline", `Category: offline; scheme="http://schemas.ogf.org/occi/infrastructure/storage/action#"; class="action"`, asText)
	b.want(409, "POST", Base+"/network/site?action=down", `Category: down; scheme="http://schemas.ogf.org/occi/infrastructure/network/action#"; class="action"`, asText)
	b.want(400, "POST", at+"?action=fly", actionText("fly"), asText)
	b.want(400, "POST", at+"?action=stop", actionText("start"), asText)
	b.want(400, "POST", at+"?action=stop", "", asText)
	b.want(405, "POST", Base+"/network/", "", asText)
	b.want(405, "PUT", Base+"/compute/", "", asText)
	b.want(405, "POST", Base+"/mixin/os_tpl/appliance/", "", asText)
	b.want(405, "DELETE", Base+"/", "")
	if resp := b.ask("PATCH", Base+"/network/", ""); resp.Header.Get("Allow") == "" {
		t.Error("405 without Allow")
	}
}

func TestWhoMay(t *testing.T) {
	b := newBench(t)
	at := b.make("")
	b.caller = identity.Caller{ID: "globex", Role: identity.Provider, Customer: "globex"}
	if got := b.want(200, "GET", Base+"/", ""); strings.Contains(got, "alpha.") {
		t.Errorf("another customer sees\n%s", got)
	}
	b.want(403, "GET", at, "")
	b.want(403, "DELETE", at, "")
	b.want(204, "DELETE", Base+"/compute/", "") // of its own there are none
	b.caller = identity.Caller{ID: "audit", Role: identity.Auditor}
	b.want(200, "GET", at, "")
	b.want(403, "DELETE", at, "")
	b.want(403, "POST", Base+"/compute/", compute+onDisk, asText)
	b.caller = identity.Caller{ID: "op", Role: identity.Operator}
	b.want(403, "DELETE", Base+"/compute/", "") // everybody's
	b.want(403, "POST", Base+"/compute/?action=stop", actionText("stop"), asText)
	for _, role := range []identity.Role{"", identity.HostRole, identity.Partner} {
		b.caller = identity.Caller{Role: role}
		b.want(403, "GET", QueryPath, "")
	}
	if v := b.vmi.vees[b.vmi.order[0]]; v.State != vee.Active {
		t.Errorf("the compute is %s", v.State)
	}
}

// GFD.223, "Versioning" and "Headers and Status Codes".
func TestProtocol(t *testing.T) {
	b := newBench(t)
	for agent, want := range map[string]int{"curl/8": 200, "x OCCI/1.1": 200, "x (linux) OCCI/1.2": 200, "x OCCI/1.3": 501, "OCCI/2.0": 501} {
		b.want(want, "GET", QueryPath, "", "User-Agent: "+agent)
	}
	resp := b.ask("GET", Base+"/nothing/here", "")
	if got := resp.Header.Get("Server"); got != "reservoir/1.0 OCCI/1.2" || resp.StatusCode != 404 || len(resp.Header.Values("Accept")) != len(rendering.All) {
		t.Errorf("%d, Server %q, Accept %v", resp.StatusCode, got, resp.Header.Values("Accept"))
	}
	b.want(406, "GET", QueryPath, "", "Accept: text/html")
	for range 25 {
		b.make(`X-OCCI-Attribute: occi.core.summary="` + strings.Repeat("x", 900) + `"`)
	}
	b.want(200, "GET", Base+"/compute/", "", inOCCI)
	for range 800 {
		b.vmi.order = append(b.vmi.order, b.vmi.order[0])
	}
	b.want(413, "GET", Base+"/compute/", "", inOCCI)
	b.want(200, "GET", Base+"/compute/?page=1&number=50", "", inOCCI)
}

// Every state of the VMI in OCCI's words.
func TestStates(t *testing.T) {
	for _, c := range []struct {
		state   vee.State
		phase   vee.Phase
		want    string
		actions string
	}{
		{vee.Initial, vee.PhasePending, "inactive", "start"},
		{vee.Defined, vee.PhaseStopped, "inactive", "start"},
		{vee.Active, vee.PhaseRunning, "active", "stop suspend restart"},
		{vee.Active, vee.PhaseUnknown, "error", "stop suspend restart"},
		{vee.Active, vee.PhaseMigrate, "active", "stop suspend restart"},
		{vee.Paused, vee.PhaseHold, "suspended", "start stop suspend"},
		{vee.Suspended, vee.PhaseSuspended, "suspended", "start stop"},
		{vee.Defined, vee.PhaseFailed, "error", "start"},
	} {
		v := vmi.VEE{ID: "alpha.aaaaaaaaaa", State: c.state, Target: c.state, Phase: c.phase}
		e := newCatalogue(nil, nil).compute(v)
		var terms []string
		for _, a := range e.Actions {
			terms = append(terms, a.Term())
		}
		if got := strings.Join(terms, " "); e.Attributes["occi.compute.state"] != c.want || got != c.actions {
			t.Errorf("%s/%s: %v with %q; want %s with %q", c.state, c.phase, e.Attributes["occi.compute.state"], got, c.want, c.actions)
		}
	}
}

// Every error of ours comes in a status that the protocol's clients must understand
// (GFD.223, "Status Codes").
func TestStatusesAreThoseOfTheProtocol(t *testing.T) {
	known := []int{400, 401, 403, 404, 405, 406, 409, 413, 500, 501, 503}
	for code := range fault.Codes() {
		if got := statusOf(fault.New(code, "x")); !slices.Contains(known, got) {
			t.Errorf("%s: %d", code, got)
		}
	}
}
