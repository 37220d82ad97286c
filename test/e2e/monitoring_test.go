package e2e

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/reservoir-cloud/reservoir/vmi"
)

// series of a query's answer.
type series struct {
	Metric map[string]string `json:"metric"`
	Value  []any             `json:"value"`
	Values [][]any           `json:"values"`
}

// value of a sample in Prometheus's JSON: a time and a number in quotes.
func value(sample []any) float64 {
	if len(sample) != 2 {
		return 0
	}
	text, _ := sample[1].(string)
	v, _ := strconv.ParseFloat(text, 64) // 0 is no value that is waited for
	return v
}

func measured(t *testing.T, expr string, more ...string) (list []series) {
	t.Helper()
	out := reservoir(t, append([]string{"metric", "query", expr, "-o", "json"}, more...)...)
	if err := json.Unmarshal([]byte(out), &list); err != nil {
		t.Fatalf("metric query %s: %v\n%s", expr, err, out)
	}
	return list
}

// post through a guest: what the URL answers it, with its status.
func post(t *testing.T, v vmi.VEE, target, body string) (status int, answer string) {
	t.Helper()
	at := "http://" + address(v) + "/ask?url=" + url.QueryEscape(target)
	eventually(t, v.Descriptor.Name+" posts to "+target, func() bool {
		r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, at, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Content-Type", "text/plain")
		reply, err := web.Do(r)
		if err != nil {
			return false
		}
		defer reply.Body.Close()
		b, err := io.ReadAll(reply.Body)
		status, answer = reply.StatusCode, string(b)
		return err == nil && status != http.StatusBadGateway
	})
	return status, answer
}

// metering is a service that tells its measurements by every way that there is.
func metering(t *testing.T, name string) string {
	t.Helper()
	return write(t, fmt.Sprintf(`service: %s
networks:
  - {name: public, public: true}
  - {name: back, subnet: 10.1.0.0/24}
kpis:
  - {name: queue, component: web}
components:
  - name: web
    image: appliance
    memory: 128MiB
    networks: [public, back]
    ports: [http:80]
    metrics: {port: 80, path: /kpis, every: 1s}
    products:
      - class: reservoir
        properties:
          - {key: channel, value: "@MonitoringChannel", cloudConfigurable: true}
`, name))
}

// Measurements of a guest's agent, of its Prometheus endpoint, of what it pushes, and of its
// hypervisor arrive under its service's name; they go on as one series when it moves, and
// nobody can put his under another's name.
func TestMonitoring(t *testing.T) {
	t.Cleanup(func() { noNetworks(t) }) // after the services are deleted
	deploy(t, metering(t, "metered"), "metered")
	deploy(t, metering(t, "thief"), "thief")
	v, thief := replica(t, "metered", "web-1"), replica(t, "thief", "web-1")
	of := func(field string) string {
		return fmt.Sprintf(`%s{service="metered",component="web",replica="1",vee=%q}`, field, v.ID)
	}
	one := func(field string) func() bool { return func() bool { return len(measured(t, of(field))) == 1 } }

	reservoir(t, "vee", "tell", string(v.ID), "kpi", "name=queue", "amount=7")
	eventually(t, "what its agent says", func() bool {
		s := measured(t, of("queue"))
		return len(s) == 1 && value(s[0].Value) == 7
	})
	eventually(t, "what its endpoint is asked for", one("uptime_seconds"))
	eventually(t, "what it pushes", one("pushed_uptime_seconds"))
	eventually(t, "what its hypervisor tells", one("vee_cpu_seconds_total"))
	eventually(t, "what its host tells", func() bool { return len(measured(t, fmt.Sprintf(`host_memory_total_bytes{host=%q}`, v.Host))) == 1 })

	// The other service has the same addresses, and the same proxy's address.
	const channel = "http://10.1.0.1:4318"
	reaches(t, v, channel, string(v.ID))
	reaches(t, thief, channel, string(thief.ID))
	claim := fmt.Sprintf("stolen{customer=%q,service=\"metered\",component=\"web\",vee=%q,site=\"beta\"} 1\nvee_cpu_seconds_total 1e9\n", "house", v.ID)
	if status, answer := post(t, thief, channel+"/metrics", claim); status != http.StatusOK || !strings.Contains(answer, "reserved") {
		t.Errorf("a claim is answered %d %q", status, answer)
	}
	eventually(t, "the claim is its own", func() bool { return len(measured(t, `stolen{service="thief"}`)) == 1 })
	if s := measured(t, "stolen"); len(s) != 1 || s[0].Metric["vee"] != string(thief.ID) || s[0].Metric["site"] != "alpha" || s[0].Metric["exported_service"] != "metered" {
		t.Errorf("stored %v", s)
	}
	if s := measured(t, fmt.Sprintf(`vee_cpu_seconds_total{vee=%q}`, thief.ID)); len(s) > 0 && value(s[0].Value) > 1e6 {
		t.Errorf("its CPU time is %v", s)
	}
	if status, _ := post(t, thief, channel+"/metrics", strings.Repeat("#", 2<<20)); status != http.StatusRequestEntityTooLarge {
		t.Errorf("2 MiB are answered %d", status)
	}
	refused := false
	for range 60 {
		status, _ := post(t, thief, channel+"/metrics", "flood 1\n")
		refused = refused || status == http.StatusTooManyRequests
	}
	t.Logf("60 pushes as fast as they go: refused %v", refused) // not on a machine that is too slow for it

	// It moves, and each series goes on.
	before := map[string]float64{}
	for _, field := range []string{"uptime_seconds", "pushed_uptime_seconds"} {
		before[field] = value(measured(t, of(field))[0].Value)
	}
	to := elsewhere(v)
	migrate(t, v, to, awaited...)
	arrived := time.Now()
	for _, field := range []string{"uptime_seconds", "pushed_uptime_seconds"} {
		eventually(t, field+" goes on", func() bool {
			s := measured(t, of(field))
			return len(s) == 1 && value(s[0].Value) > before[field]+12
		})
		if s := measured(t, "resets("+of(field)+"[5m])"); len(s) != 1 || value(s[0].Value) != 0 {
			t.Errorf("%s starts again: %v", field, s)
		}
		gap := 0.0
		for _, s := range measured(t, "time() - timestamp("+of(field)+")", "--range", "30s", "--step", "1s") {
			for _, x := range s.Values {
				gap = max(gap, value(x))
			}
		}
		t.Logf("%s: the oldest that the newest value became is %.1f s", field, gap)
	}
	eventually(t, "its agent is heard at its new host", func() bool {
		reservoir(t, "vee", "tell", string(v.ID), "kpi", "name=queue", "amount=9")
		s := measured(t, of("queue"))
		return len(s) == 1 && value(s[0].Value) == 9
	})
	eventually(t, "its process there is measured", func() bool {
		s := measured(t, "time() - timestamp("+of("vee_cpu_seconds_total")+")")
		return len(s) == 1 && value(s[0].Value) < time.Since(arrived).Seconds()
	})
	if s := measured(t, "resets("+of("vee_cpu_seconds_total")+"[5m])"); len(s) != 1 || value(s[0].Value) > 1 { // at most once anew
		t.Errorf("its CPU time was counted anew: %v", s)
	}
	if s := measured(t, fmt.Sprintf(`count by (host) ({vee=%q})`, v.ID)); len(s) != 1 || s[0].Metric["host"] != "" {
		t.Errorf("a VEE's series name hosts: %v", s)
	}

	// A probe's rate is changed where the VEE is now, and the order goes with it.
	probe := to + "/scrape@" + string(v.ID)
	reservoir(t, "probe", "off", probe)
	eventually(t, "it is not asked any more", func() bool {
		s := measured(t, "time() - timestamp("+of("uptime_seconds")+")")
		return len(s) == 1 && value(s[0].Value) > 8
	})
	kill(t, "alpha-"+to)
	eventually(t, "its host's agent is back and tells other things", func() bool {
		s := measured(t, "time() - timestamp("+of("pushed_uptime_seconds")+")")
		return len(s) == 1 && value(s[0].Value) < 6
	})
	if s := measured(t, "time() - timestamp("+of("uptime_seconds")+")"); len(s) == 1 && value(s[0].Value) < 8 {
		t.Error("the probe that was switched off is on again after a restart")
	}
}
