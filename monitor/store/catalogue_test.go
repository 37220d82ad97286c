package store

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/monitor"
)

func TestWhatThereIs(t *testing.T) {
	s, _ := open(t, Config{})
	for k := range 3 {
		put(t, s, kpi(replica("acme", "shop", k), start, "queue_size", 1), kpi(replica("acme", "shop", k), start, fmt.Sprint("load", k), 1))
	}
	put(t, s, kpi(monitor.ServiceSubject("alpha", "acme", "blog"), start, "posts", 1))
	all := monitor.Selection{To: start}
	at := func(limit int, match ...string) monitor.Selection {
		sel := all
		sel.Limit, sel.Match = limit, match
		return sel
	}
	names := func(sel monitor.Selection) ([]string, bool, error) { return s.LabelNames(t.Context(), sel) }
	values := func(label string) func(monitor.Selection) ([]string, bool, error) {
		return func(sel monitor.Selection) ([]string, bool, error) { return s.LabelValues(t.Context(), label, sel) }
	}
	for what, c := range map[string]struct {
		ask  func(monitor.Selection) ([]string, bool, error)
		sel  monitor.Selection
		want string
		more bool
	}{
		"names":                 {names, all, "__name__ component customer replica service site vee", false},
		"names of some":         {names, at(0, "posts"), "__name__ customer service site", false},
		"names of several":      {names, at(0, "posts", "queue_size"), "__name__ component customer replica service site vee", false},
		"names, some":           {names, at(2), "__name__ component", true},
		"fields":                {values("__name__"), all, "load0 load1 load2 posts queue_size", false},
		"fields, as many":       {values("__name__"), at(5), "load0 load1 load2 posts queue_size", false},
		"fields, some":          {values("__name__"), at(3), "load0 load1 load2", true},
		"fields of several":     {values("__name__"), at(2, "posts", "load1", `{replica="2"}`), "load1 load2", true},
		"services":              {values("service"), all, "blog shop", false},
		"services of a field":   {values("service"), at(0, `{__name__=~"queue.*"}`), "shop", false},
		"nothing":               {values("service"), at(0, "nothing"), "", false},
		"a label that is none":  {values("nothing"), all, "", false},
		"a label of no service": {values("host"), all, "", false},
	} {
		got, more, err := c.ask(c.sel)
		if err != nil || strings.Join(got, " ") != c.want || more != c.more || got == nil {
			t.Errorf("%s: %q, more %v, %v; want %q, more %v", what, got, more, err, c.want, c.more)
		}
	}
	series, more, err := s.Series(t.Context(), at(0, "posts", "queue_size", `{replica="0"}`))
	if err != nil || len(series) != 5 || more {
		t.Errorf("%d series: %v, %v, %v", len(series), series, more, err)
	}
	if series, more, err = s.Series(t.Context(), at(2, "queue_size", "posts")); err != nil || len(series) != 2 || !more {
		t.Errorf("%d series: %v, %v, %v", len(series), series, more, err)
	}
	sel := at(0, "posts")
	if sel.To = start.Add(-time.Hour); true {
		if series, _, err := s.Series(t.Context(), sel); err != nil || len(series) != 0 {
			t.Errorf("an hour before: %v, %v", series, err)
		}
	}
	for what, c := range map[string]struct {
		sel  monitor.Selection
		want fault.Code
	}{
		"an expression": {at(0, "sum(posts)"), fault.Malformed}, "half a selector": {at(0, "posts{"), fault.Malformed}, "long": {at(0, strings.Repeat("a", 20_000)), fault.TooLarge},
		"many": {at(0, slices.Repeat([]string{"a"}, 50)...), fault.TooLarge}, "backwards": {monitor.Selection{From: start, To: start.Add(-1)}, fault.Malformed},
		"a service of nobody": {monitor.Selection{To: start, Scope: monitor.Scope{Service: "shop"}}, fault.Denied},
	} {
		_, _, e1 := s.LabelNames(t.Context(), c.sel)
		_, _, e2 := s.LabelValues(t.Context(), "service", c.sel)
		_, _, e3 := s.Series(t.Context(), c.sel)
		for _, err := range []error{e1, e2, e3} {
			if !fault.Has(err, c.want) {
				t.Errorf("%s: %v, want %s", what, errors.Join(e1, e2, e3), c.want)
			}
		}
	}
}

// TestCatalogueIsolation tries to learn of another's series in every way that selectors have:
// names of labels, their values, and the series themselves.
func TestCatalogueIsolation(t *testing.T) {
	s, _ := open(t, Config{})
	put(t, s, kpi(replica("acme", "shop", 0), start, "queue_size", 1))
	secret := []string{"rival", "bank", "vault_keys", "secret", "h1", "host", "blog"}
	stolen := kpi(replica("rival", "bank", 1), start, "vault_keys", 1)
	stolen.Values[0].Labels = `secret="secret"`
	host := kpi(monitor.HostSubject("alpha", "h1"), start, "host_load", 1)
	host.Kind = monitor.HostKind
	put(t, s, stolen, host, kpi(replica("acme", "blog", 0), start, "queue_size", 1))
	tries := [][]string{nil, {}, {"queue_size"}, {"vault_keys"}, {`{customer="rival"}`}, {`{customer=~".*"}`}, {`{customer!="acme"}`}, {`{customer=""}`}, {`{customer=~"acme|rival"}`},
		{`{__name__=~".+"}`}, {`{host="h1"}`}, {`{host!=""}`}, {"queue_size", "vault_keys"}, {`{customer="acme",customer="rival"}`}, {`{"vault_keys"}`}, {`vault_keys{secret!=""}`},
		{"vault_keys # acme"}, {`{vee!=""}`}, {`{service!~"shop"}`}, {`{service=~"bank|"}`}, {`vault_keys offset 1s`}, {`vault_keys[5m]`}, {`queue_size or vault_keys`}}
	for _, scope := range []monitor.Scope{{Customer: "acme", Service: "shop"}, {Customer: "acme", Service: "shop", VEEs: "-"}, {Customer: `x",customer=~".*`}, {Customer: "acme", Service: "shop|bank"}, {Customer: "nobody"}} {
		for _, match := range tries {
			for _, sel := range []monitor.Selection{{Scope: scope, Match: match, To: start}, {Scope: scope, Match: match, From: start.Add(-time.Hour), To: start.Add(time.Hour), Limit: 1}} {
				var told []string
				names, _, _ := s.LabelNames(t.Context(), sel) // one that does not parse tells nothing
				told = append(told, names...)
				for _, label := range append(names, "customer", "service", "host", "vee", "secret", "__name__", "") {
					values, _, _ := s.LabelValues(t.Context(), label, sel)
					told = append(told, values...)
				}
				series, _, _ := s.Series(t.Context(), sel)
				for _, l := range series {
					told = append(told, slices.Concat(slices.Collect(maps.Keys(l)), slices.Collect(maps.Values(l)))...)
				}
				for _, word := range told {
					if slices.Contains(secret, word) {
						t.Errorf("%+v tells %q", sel, word)
					}
				}
			}
		}
	}
}
