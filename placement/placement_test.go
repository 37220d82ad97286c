package placement

import (
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/reservoir-cloud/reservoir/vee"
)

// size is n vCPUs, n GiB of memory and of disk.
func size(n int64) vee.Resources {
	return vee.Resources{MilliCPU: 1000 * n, Memory: vee.Bytes(n) * vee.GiB, Disk: vee.Bytes(n) * vee.GiB}
}

func host(name string, capacity, used int64, tags ...string) Host {
	h := Host{Name: name, Capacity: size(capacity), Used: size(used), Drivers: []string{"qemu"}}
	for _, t := range tags {
		h.VEEs = append(h.VEEs, Label{"g", []string{t}})
	}
	return h
}

func request(name string, n int64, tags ...string) Request {
	return Request{Name: name, Needs: size(n), Label: Label{"g", tags}}
}

func rule(k Kind, tag string) Rule { return Rule{Group: "g", Kind: k, Tag: tag} }

func soft(r Rule) Rule { r.Soft = true; return r }

func TestPlace(t *testing.T) {
	two := []Host{host("h1", 4, 0), host("h2", 4, 2)}
	for name, c := range map[string]struct {
		hosts    []Host
		requests []Request
		rules    []Rule
		policy   Policy
		want     string // hosts of the requests, in order
		why      string // part of the first's Why
	}{
		"balance takes the emptiest":     {two, []Request{request("a", 1)}, nil, Balance, "h1", "emptiest"},
		"pack takes the fullest":         {two, []Request{request("a", 1)}, nil, Pack, "h2", "fullest"},
		"balance alternates":             {[]Host{host("h1", 4, 0), host("h2", 4, 0)}, []Request{request("a", 1), request("b", 1)}, nil, Balance, "h1 h2", ""},
		"no host":                        {nil, []Request{request("a", 1)}, nil, Balance, "-", "no host"},
		"no request":                     {two, nil, nil, Balance, "", ""},
		"too large":                      {two, []Request{request("a", 5)}, nil, Balance, "-", "h1: 5 vCPU needed and 4 vCPU free"},
		"closed":                         {[]Host{{Name: "h1", Closed: "it is draining"}}, []Request{request("a", 1)}, nil, Balance, "-", "h1: it is draining"},
		"without hypervisor":             {[]Host{{Name: "h1", Capacity: size(4)}}, []Request{request("a", 1)}, nil, Balance, "-", "no hypervisor"},
		"another hypervisor":             {two, []Request{{Name: "a", Driver: "xen"}}, nil, Balance, "-", `no hypervisor "xen" (it has qemu)`},
		"reasons are gathered":           {[]Host{host("h1", 1, 1), host("h2", 1, 1), host("h3", 1, 1), host("h4", 1, 1)}, []Request{request("a", 1)}, nil, Balance, "-", "h1, h2 and 2 more: 1 vCPU needed"},
		"anti-affinity in a batch":       {two, []Request{request("a", 1, "w"), request("b", 1, "w"), request("c", 1, "w")}, []Rule{rule(AntiAffinity, "w")}, Pack, "h2 h1 -", ""},
		"anti-affinity to those there":   {[]Host{host("h1", 4, 0, "w"), host("h2", 4, 3)}, []Request{request("a", 1, "w")}, []Rule{rule(AntiAffinity, "w")}, Balance, "h2", ""},
		"soft anti-affinity":             {two, []Request{request("a", 1, "w"), request("b", 1, "w"), request("c", 1, "w")}, []Rule{soft(rule(AntiAffinity, "w"))}, Balance, "h1 h2 h1", ""},
		"affinity to those there":        {[]Host{host("h1", 4, 0), host("h2", 4, 2, "w")}, []Request{request("a", 1, "w")}, []Rule{rule(Affinity, "w")}, Balance, "h2", ""},
		"affinity binds a batch":         {[]Host{host("h1", 4, 2), host("h2", 4, 0)}, []Request{request("a", 2, "w"), request("b", 2, "w")}, []Rule{rule(Affinity, "w")}, Pack, "h2 h2", ""},
		"affinity and anti-affinity":     {two, []Request{request("a", 1, "w"), request("b", 1, "w")}, []Rule{rule(Affinity, "w"), rule(AntiAffinity, "w")}, Balance, "- -", "another rule binds a and b together"},
		"another group's rule":           {two, []Request{request("a", 1, "w"), request("b", 1, "w"), request("c", 1, "w")}, []Rule{{Group: "x", Kind: AntiAffinity, Tag: "w"}}, Pack, "h2 h2 h1", ""},
		"the large go first":             {[]Host{host("h1", 3, 0), host("h2", 2, 0)}, []Request{request("s", 1), request("m", 2), request("s2", 1), request("s3", 1)}, nil, Balance, "h2 h1 h2 h1", ""},
		"another order when it is short": {[]Host{host("h1", 3, 0), host("h2", 3, 0, "w")}, []Request{request("a", 3), request("b", 2, "w")}, []Rule{rule(AntiAffinity, "w")}, Balance, "h2 h1", ""},
	} {
		t.Run(name, func(t *testing.T) {
			choices := Place(c.hosts, c.requests, c.rules, c.policy)
			got := []string{}
			for _, x := range choices {
				got = append(got, strings.ReplaceAll(x.Host+"-", "-", "")+map[bool]string{true: "-"}[x.Host == ""])
			}
			if s := strings.Join(got, " "); s != c.want {
				t.Errorf("placed on %s, want %s: %+v", s, c.want, choices)
			}
			if c.why != "" && !strings.Contains(choices[0].Why, c.why) {
				t.Errorf("why: %q, want it to say %q", choices[0].Why, c.why)
			}
		})
	}
}

// TestPlaceHolds draws clusters and batches and checks what must hold of every answer.
func TestPlaceHolds(t *testing.T) {
	tags := rapid.SliceOfNDistinct(rapid.SampledFrom([]string{"a", "b", "c"}), 0, 2, rapid.ID[string])
	labels := rapid.Custom(func(t *rapid.T) Label {
		return Label{rapid.SampledFrom([]string{"g", "x"}).Draw(t, "group"), tags.Draw(t, "tags")}
	})
	rapid.Check(t, func(t *rapid.T) {
		n := 0
		hosts := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) Host {
			n++
			h := host(fmt.Sprint("h", n), rapid.Int64Range(0, 8).Draw(t, "capacity"), rapid.Int64Range(0, 3).Draw(t, "used"))
			h.VEEs = rapid.SliceOfN(labels, 0, 3).Draw(t, "vees")
			h.Closed = rapid.SampledFrom([]string{"", "", "", "it is draining"}).Draw(t, "closed")
			return h
		}), 0, 5).Draw(t, "hosts")
		requests := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) Request {
			return Request{Name: "q", Label: labels.Draw(t, "label"), Needs: size(rapid.Int64Range(0, 4).Draw(t, "needs"))}
		}), 0, 8).Draw(t, "requests")
		rules := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) Rule {
			return Rule{rapid.SampledFrom([]string{"g", "x"}).Draw(t, "group"), rapid.SampledFrom([]Kind{Affinity, AntiAffinity}).Draw(t, "kind"),
				rapid.SampledFrom([]string{"a", "b", "c"}).Draw(t, "tag"), rapid.Bool().Draw(t, "soft")}
		}), 0, 3).Draw(t, "rules")
		policy := rapid.SampledFrom([]Policy{Balance, Pack}).Draw(t, "policy")

		before := fmt.Sprintf("%+v %+v", hosts, requests)
		choices := Place(hosts, requests, rules, policy)
		if again := Place(hosts, requests, rules, policy); !reflect.DeepEqual(choices, again) {
			t.Fatalf("not deterministic: %+v then %+v", choices, again)
		}
		if after := fmt.Sprintf("%+v %+v", hosts, requests); after != before {
			t.Fatalf("input changed from %s to %s", before, after)
		}
		check(t, hosts, requests, rules, choices)
	})
}

// check replays choices without the solver's code.
func check(t *rapid.T, hosts []Host, requests []Request, rules []Rule, choices []Choice) {
	if len(choices) != len(requests) {
		t.Fatalf("%d choices for %d requests", len(choices), len(requests))
	}
	used := map[string]vee.Resources{}
	for i, c := range choices {
		if c.Why == "" {
			t.Fatalf("choice %d says no reason", i)
		}
		if c.Host != "" {
			used[c.Host] = used[c.Host].Plus(requests[i].Needs)
		}
	}
	for _, h := range hosts {
		u, taken := used[h.Name]
		free := h.Capacity.Minus(h.Used)
		if u == (vee.Resources{}) {
			free = u // what needs nothing may go to a host that is overdrawn
		}
		if taken && (h.Closed != "" || !u.Fits(free)) {
			t.Fatalf("host %+v was given %+v", h, u)
		}
	}
	for _, r := range rules {
		if r.Soft {
			continue
		}
		old, fresh := map[string]int{}, map[string]int{}
		for _, h := range hosts {
			for _, l := range h.VEEs {
				if l.Group == r.Group && slices.Contains(l.Tags, r.Tag) {
					old[h.Name]++
				}
			}
		}
		for i, c := range choices {
			if c.Host != "" && requests[i].Label.Group == r.Group && slices.Contains(requests[i].Label.Tags, r.Tag) {
				fresh[c.Host]++
			}
		}
		for h, n := range fresh {
			if r.Kind == AntiAffinity && n+old[h] > 1 {
				t.Fatalf("rule %+v broken on %s: %+v", r, h, choices)
			}
		}
		if r.Kind == Affinity {
			together := maps.Clone(old)
			maps.Copy(together, fresh)
			if len(fresh) > 0 && len(together) > max(1, len(old)) || len(fresh) > 0 && len(old) > 1 {
				t.Fatalf("rule %+v broken: %+v", r, choices)
			}
		}
	}
}
