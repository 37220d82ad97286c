package e2e

import (
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/reservoir-cloud/reservoir/account/billing"
	"github.com/reservoir-cloud/reservoir/smi"
)

// A service runs under a contract; its only replica is killed. The lost availability shows at
// once, and when the service has gone the invoice has what it used and the credit.
func TestAServiceUnderAContract(t *testing.T) {
	reservoir(t, "account", "prices", "set", write(t, `currency: EUR
lists:
  - {name: "2000", from: 2000-01-01, prices: {vee: 3600 EUR per VEE-hour, memory: 0.01}}
`))
	file := manifest(t, "contract", 1, "    availability: {window: 1m, percentile: 99, penalty: 50% * price}\n    restartTime: {within: 1m, penalty: 1 EUR}\n")
	offer := jsonOf[smi.Offer](t, "service", "offer", "-f", file)
	if offer.Status != smi.Open || len(offer.Promises) != 2 || offer.Hour.Initial.Fixed(2) != "3600.00" {
		t.Fatalf("offer %+v", offer)
	}
	there := true
	t.Cleanup(func() {
		if there {
			remove(t, "contract")
		}
	})
	reservoir(t, "service", "accept", offer.ID, "--wait", "--timeout", "230s")
	if out, err := cli("service", "redeploy", manifest(t, "contract", 2, "")); err == nil || !strings.Contains(err.Error(), "runs under contract "+offer.ID) {
		t.Errorf("another manifest: %v\n%s", err, out)
	}
	v := only(t, "web-1")
	objective := func() smi.Objective {
		for _, s := range jsonOf[[]smi.SLA](t, "service", "sla", "contract") {
			for _, o := range s.Objectives {
				if o.Kind == "availability" && s.Contract == offer.ID && !s.Ended {
					return o
				}
			}
		}
		return smi.Objective{}
	}
	eventually(t, "its promises are watched", func() bool { return objective().Now == "kept" })
	if err := syscall.Kill(pidOf(t, v.ID), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the loss is seen", func() bool { return objective().Now == "broken" })
	eventually(t, "the service is ready again", ready(t, "contract"))
	eventually(t, "that is seen too", func() bool { return objective().Now == "kept" })
	lost := func(o smi.Objective) (ms int64) {
		for _, w := range o.Past {
			ms += w.BrokenMS
		}
		if o.Window != nil {
			ms += o.Window.BrokenMS
		}
		return ms
	}
	ms := lost(objective())
	if ms < time.Second.Milliseconds() {
		t.Errorf("%d ms were lost, the guest takes longer than that to boot", ms)
	}
	t.Logf("lost %d ms\n%s", ms, reservoir(t, "service", "sla", "contract"))
	if page := reservoir(t, "service", "sla", "contract", "--html"); !strings.Contains(page, "</html>") {
		t.Errorf("report: %s", page)
	}
	remove(t, "contract")
	there = false
	credited := func() bool {
		d := jsonOf[billing.Invoice](t, "account", "invoice", "draft")
		return len(d.Credits) > 0 && d.Credited.Sign() > 0
	}
	eventually(t, "what it used is known", credited)
	invoice := jsonOf[billing.Invoice](t, "account", "invoice", "issue")
	text := reservoir(t, "account", "invoice", "show", invoice.Number)
	if !strings.Contains(text, "VEE-Hours") || !strings.Contains(text, "Credit for contract: web availability: 99 % was promised") || invoice.Total.Sign() <= 0 || invoice.Total.Compare(invoice.Subtotal) >= 0 {
		t.Errorf("invoice\n%s", text)
	}
	t.Log(text)
	if rows := reservoir(t, "account", "focus", invoice.Number); !strings.Contains(rows, "web-1,VEE,Compute") || !strings.Contains(rows, ",Credit,") {
		t.Errorf("FOCUS:\n%s", rows)
	}
	if again := jsonOf[billing.Invoice](t, "account", "invoice", "draft"); len(again.Lines)+len(again.Credits) > 0 {
		t.Errorf("left over: %s", again)
	}
}

// A promise that is in danger is protected on what really runs: a replica that serves no more is
// moved to another host, live, and one that has been gone for half of its time is started again.
func TestPromisesAreProtected(t *testing.T) {
	deploy(t, write(t, `service: protected
networks: [{name: public, public: true}]
components:
  - name: moved
    image: appliance
    memory: 128MiB
    networks: [public]
    availability: {window: 1m, percentile: 99, protection: migrate}
  - name: again
    image: appliance
    memory: 128MiB
    networks: [public]
    restartTime: {within: 20s, protection: restart}
`), "protected")
	moved, again := only(t, "moved-1"), only(t, "again-1")
	eventually(t, "its promises are watched", func() bool {
		list := jsonOf[[]smi.SLA](t, "service", "sla", "protected")
		return len(list) == 1 && len(list[0].Objectives) == 2 && list[0].Objectives[0].Now == "kept" && list[0].Objectives[1].Now == "kept"
	})
	pid := pidOf(t, again.ID)
	for _, id := range []string{string(moved.ID), string(again.ID)} {
		reservoir(t, "vee", "tell", id, "ready", "amount=0")
	}
	eventually(t, "the one is on another host", func() bool {
		v := only(t, "moved-1")
		return v.ID == moved.ID && v.Host != moved.Host && v.Restarts == moved.Restarts
	})
	reservoir(t, "vee", "tell", string(moved.ID), "ready", "amount=1") // it is well there
	eventually(t, "the other was started again", func() bool { p := pidOf(t, again.ID); return p != 0 && p != pid })
	eventually(t, "all is well", ready(t, "protected"))
	if v := only(t, "again-1"); v.ID != again.ID {
		t.Errorf("another VEE has its name: %s", v.ID)
	}
	said := reservoir(t, "event", "list", "--service", "protected")
	for _, want := range []string{"availability is in danger: migrate of moved " + string(moved.ID), "restart of again " + string(again.ID)} {
		if !strings.Contains(said, want) {
			t.Errorf("no event says %q:\n%s", want, said)
		}
	}
}
