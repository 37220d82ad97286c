package occi

import (
	"strings"
	"testing"

	"github.com/reservoir-cloud/reservoir/internal/identity"
)

const (
	myStuff = `Category: my_stuff; scheme="http://example.com/occi/my_stuff#"; class="mixin"; title="Mine"; location="` + Base + `/mixin/my_stuff/"` + "\n"
	another = `Category: another; scheme="http://example.com/occi/my_stuff#"; class="mixin"` + "\n"
)

// The examples of GFD.223 about mixins that clients define: added at the query interface, found
// there, given to computes and taken from them in each rendering, removed.
func TestTags(t *testing.T) {
	b := newBench(t)
	b.want(200, "POST", QueryPath, myStuff, asText)
	b.want(200, "POST", Base+"/-/", another, asText)
	if got := b.want(200, "GET", QueryPath, "", strings.TrimSpace(strings.Split(myStuff, "; title")[0])); !strings.Contains(got, `my_stuff; scheme="http://example.com/occi/my_stuff#"; class="mixin"; title="Mine"`) || strings.Count(got, "Category: ") != 1 {
		t.Errorf("found: %s", got)
	}
	one := b.make(`Category: my_stuff; scheme="http://example.com/occi/my_stuff#"; class="mixin"` + "\n")
	two, three := b.make(""), b.make("")
	has := func(at string, want ...string) {
		t.Helper()
		got := b.want(200, "GET", at, "", inList)
		if strings.Count(got, "\n") != len(want) {
			t.Errorf("%s has\n%swant %v", at, got, want)
		}
		for _, w := range want {
			if !strings.Contains(got, w+"\n") {
				t.Errorf("%s has\n%swithout %s", at, got, w)
			}
		}
	}
	mine, other := Base+"/mixin/my_stuff/", Base+"/mixin/tag/another/"
	has(mine, one)
	if got := b.want(200, "GET", one, ""); !strings.Contains(got, "Category: my_stuff;") {
		t.Errorf("its tag is not shown:\n%s", got)
	}
	// Added, in each rendering.
	b.want(200, "POST", mine, "X-OCCI-Location: https://site.example:8443"+two+"\n", asText)
	b.want(200, "POST", other, "", "Content-Type: text/occi", "X-OCCI-Location: "+two+", "+three)
	b.want(200, "POST", mine, "# a comment\r\nhttps://site.example:8443"+three+"\r\n", "Content-Type: text/uri-list")
	b.want(200, "POST", mine, `{"resources": [{"kind": "`+kindCompute+`", "id": "urn:reservoir:compute:`+strings.TrimPrefix(one, Base+"/compute/")+`"}]}`, asJSON)
	has(mine, one, two, three)
	has(other, two, three)
	// With the entity's own representation.
	b.want(200, "POST", one, compute+another, asText)
	has(other, one, two, three)
	// Replaced, taken from one, taken from all.
	b.want(200, "PUT", mine, "X-OCCI-Location: "+two+"\n", asText)
	has(mine, two)
	b.want(200, "DELETE", other, "X-OCCI-Location: "+two+"\n", asText)
	has(other, one, three)
	b.want(200, "DELETE", other, "")
	has(other)
	// An action on all that have it.
	b.want(200, "POST", mine+"?action=stop", actionText("stop"), asText)
	if got := b.want(200, "GET", two, ""); !strings.Contains(got, `state="inactive"`) {
		t.Errorf("the action did nothing:\n%s", got)
	}
	// Removed: it is gone, and no compute has it.
	b.want(200, "DELETE", QueryPath, myStuff, asText)
	b.want(404, "GET", mine, "")
	b.want(404, "DELETE", QueryPath, myStuff, asText)
	if got := b.want(200, "GET", two, ""); strings.Contains(got, "my_stuff") {
		t.Errorf("still there:\n%s", got)
	}
	for _, v := range b.vmi.vees {
		if len(v.Descriptor.Tags) != 0 {
			t.Errorf("VEE %s has tags %q", v.ID, v.Descriptor.Tags)
		}
	}
}

func TestTagsThatAreRefused(t *testing.T) {
	b := newBench(t)
	b.want(200, "POST", QueryPath, myStuff, asText)
	at := b.make("")
	for body, status := range map[string]int{
		myStuff: 409, // twice
		`Category: x; scheme="http://example.com/a#"; class="mixin"; location="` + Base + `/mixin/my_stuff/"`:                 409, // its location is taken
		`Category: compute; scheme="http://schemas.ogf.org/occi/infrastructure#"; class="kind"`:                               400,
		`Category: os_tpl; scheme="http://schemas.ogf.org/occi/infrastructure#"; class="mixin"`:                               409,
		`Category: x; scheme="http://example.com/a#"; class="mixin"; location="/elsewhere/"`:                                  400,
		`Category: x; scheme="http://example.com/a#"; class="mixin"; location="` + Base + `/mixin/../compute/"`:               400,
		`Category: x; scheme="http://example.com/a#"; class="mixin"; attributes="com.example.a"`:                              400,
		`Category: x; scheme="http://example.com/a#"; class="action"`:                                                         400,
		`Category: x; scheme="http://example.com/a#"; class="mixin"; rel="http://schemas.ogf.org/occi/infrastructure#os_tpl"`: 400,
		`Category: x; scheme="http://example.com/` + strings.Repeat("a", 200) + `#"; class="mixin"`:                           400,
		``: 400,
	} {
		b.want(status, "POST", QueryPath, body, asText)
	}
	b.want(404, "DELETE", QueryPath, another, asText)
	b.want(404, "DELETE", QueryPath, `Category: os_tpl; scheme="http://schemas.ogf.org/occi/infrastructure#"; class="mixin"`, asText)
	mine := Base + "/mixin/my_stuff/"
	b.want(400, "POST", mine, "", asText)
	b.want(404, "POST", mine, "X-OCCI-Location: "+Base+"/compute/alpha.zzzzzzzzzz\n", asText)
	b.want(400, "POST", mine, "X-OCCI-Location: "+Base+"/network/site\n", asText)
	b.want(405, "PATCH", mine, "X-OCCI-Location: "+at+"\n", asText)

	// Another customer's tags are its own, and it cannot tag what is not its.
	b.want(200, "POST", mine, "X-OCCI-Location: "+at+"\n", asText)
	b.caller = identity.Caller{ID: "other", Role: identity.Provider, Customer: "other"}
	b.want(404, "GET", mine, "")
	b.want(200, "POST", QueryPath, myStuff, asText)
	b.want(403, "POST", mine, "X-OCCI-Location: "+at+"\n", asText)
	b.want(200, "DELETE", QueryPath, myStuff, asText)
	b.caller = identity.Caller{ID: "auditor", Role: identity.Auditor}
	b.want(403, "POST", QueryPath, another, asText)
	b.caller = identity.Caller{ID: "acme", Role: identity.Provider, Customer: "acme"}
	if got := b.want(200, "GET", mine, "", inList); strings.TrimSpace(got) != "https://site.example:8443"+at {
		t.Errorf("after what another customer did: %s", got)
	}
}
