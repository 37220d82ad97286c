package site

import (
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/reservoir-cloud/reservoir/internal/identity"
	"github.com/reservoir-cloud/reservoir/site/admin"
	"github.com/reservoir-cloud/reservoir/vmi/occi"
)

// Clients of other makers are asked for a password, which is the token; our own interfaces
// ask for the token itself.
func TestStockClientsAreAskedForAPassword(t *testing.T) {
	r := start(t, config(t))
	made, err := r.admin(t).CreateToken(t.Context(), admin.NewToken{Name: "acme", Role: identity.Provider, Customer: "acme"})
	if err != nil {
		t.Fatal(err)
	}
	hc := r.operator(t)
	ask := func(path, password string) (*http.Response, string) {
		req, _ := http.NewRequest(http.MethodGet, hc.Base+path, nil)
		if password != "" {
			req.SetBasicAuth("anybody", password)
		}
		resp, err := hc.HTTP.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		body, _ := io.ReadAll(resp.Body)
		return resp, string(body)
	}
	basic, bearer := `Basic realm="reservoir"`, `Bearer realm="reservoir"`
	for path, want := range map[string][]string{
		"/v2/": {basic, bearer}, occi.QueryPath: {basic, bearer}, occi.WellKnown: {basic, bearer}, occi.Base + "/compute/": {basic, bearer},
		"/vmi/v1/vees": {bearer}, "/nothing": {bearer},
	} {
		if resp, _ := ask(path, ""); resp.StatusCode != http.StatusUnauthorized || !slices.Equal(resp.Header.Values("WWW-Authenticate"), want) {
			t.Errorf("%s: %d, WWW-Authenticate %q; want 401 and %q", path, resp.StatusCode, resp.Header.Values("WWW-Authenticate"), want)
		}
		if resp, _ := ask(path, "rsv_acme.x"); resp.StatusCode != http.StatusUnauthorized {
			t.Errorf("%s with a wrong password: %d", path, resp.StatusCode)
		}
		if resp, body := ask(path, made.Secret); resp.StatusCode != http.StatusOK && path != "/nothing" {
			t.Errorf("%s with the token: %d %s", path, resp.StatusCode, body)
		}
	}
	if resp, body := ask(occi.QueryPath, made.Secret); !strings.Contains(body, "Category: compute;") || !strings.HasSuffix(resp.Header.Get("Server"), "OCCI/1.2") {
		t.Errorf("discovery: Server %q\n%s", resp.Header.Get("Server"), body)
	}
	if _, body := ask(occi.Base+"/network/"+flat, made.Secret); !strings.Contains(body, `occi.network.address="10.80.128.0/17"`) {
		t.Errorf("the site's network:\n%s", body)
	}
}
