package main

import (
	"bytes"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/reservoir-cloud/reservoir/cmd/reservoir-guest/agent"
)

func TestParseSettings(t *testing.T) {
	got, err := parseSettings(map[string]string{
		"reservoir.ready-delay": "1.5", "reservoir.port": "8080", "reservoir.greeting": "hello",
		"reservoir.kpi.queue": "-3", "somebody.else": "x",
	})
	want := settings{readyDelay: 1500 * time.Millisecond, idleAfter: 30 * time.Second, port: 8080, greeting: "hello",
		kpis: map[string]float64{"queue": -3}}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, %v; want %+v", got, err, want)
	}
	for key, value := range map[string]string{
		"reservoir.ready-delay": "-1", "reservoir.idle-after": "soon", "reservoir.port": "0", "reservoir.kpi.q": "NaN",
	} {
		got, err := parseSettings(map[string]string{key: value})
		if err == nil || !strings.Contains(err.Error(), key) || got.port != 80 {
			t.Errorf("%s=%s: %+v, %v", key, value, got, err)
		}
	}
}

func TestReadKPIs(t *testing.T) {
	got := readKPIs(fstest.MapFS{
		"queue": {Data: []byte(" 4.5\n")}, "half": {Data: []byte("4.")}, "written": {Data: nil},
		"bad name": {Data: []byte("1")}, "dir/x": {Data: []byte("1")},
	})
	if want := map[string]float64{"queue": 4.5, "half": 4}; !reflect.DeepEqual(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	if got := readKPIs(fstest.MapFS{}); len(got) != 0 {
		t.Errorf("of nothing: %v", got)
	}
}

func testAgent(t *testing.T) *agent.Agent {
	return agent.New(agent.Machine{
		Hostname: func() string { return "web-1" }, Uptime: func() time.Duration { return time.Minute },
		FreeMemory: func() int64 { return 0 }, Shutdown: func() error { return nil },
		KPIs: func() map[string]float64 { return nil }, Idle: func() bool { return false },
	}, "v1", t.Logf)
}

func TestConsole(t *testing.T) {
	shut := false
	c := console{
		agent: testAgent(t), hostname: func() string { return "web-1" },
		addresses: func() []string { return []string{"10.0.0.5/24"} },
		uptime:    func() time.Duration { return 90 * time.Second }, shutdown: func() { shut = true },
	}
	in := strings.NewReader("\nip\nuptime\nkpi queue 3\nkpi queue x\nkpi\ndance\nhelp\npoweroff\nip\n")
	var out bytes.Buffer
	if err := c.serve(struct {
		io.Reader
		io.Writer
	}{in, &out}); err != nil {
		t.Fatal(err)
	}
	const want = `web-1> web-1> 10.0.0.5/24
web-1> 1m30s
web-1> web-1> kpi queue: "x" is not a number
web-1> ready 0
uptime_seconds 60
queue 3
web-1> dance: not a command; try help
web-1> ` + consoleHelp + `web-1> shutting down
`
	if got := out.String(); got != want || !shut {
		t.Errorf("shut down %v, got\n%s\nwant\n%s", shut, got, want)
	}
}

func TestFirstBoot(t *testing.T) {
	log := filepath.Join(t.TempDir(), "log")
	long := strings.Repeat("x", lastWords)
	for name, c := range map[string]struct{ result, log, want string }{
		"nothing wrong":     {`{"v1": {"datasource": "DataSourceNoCloud", "errors": []}}`, "all is well\n", ""},
		"nothing of that":   {"", "", ""},
		"an error":          {`{"v1": {"errors": ["('scripts-user', RuntimeError('1 failures'))"]}}`, "", "cloud-init: ('scripts-user', RuntimeError('1 failures'))"},
		"with a log":        {`{"v1": {"errors": ["a", "b"]}}`, "+ false\n\n  failed  \n", "cloud-init: a; b; its log ends: + false | failed"},
		"with a longer log": {`{"v1": {"errors": ["a"]}}`, long + "\nlast\n", "cloud-init: a; its log ends: last"},
	} {
		if err := os.WriteFile(log, []byte(c.log), 0o600); err != nil {
			t.Fatal(err)
		}
		if got := firstBoot([]byte(c.result), tail(log)); got != c.want {
			t.Errorf("%s: got %q, want %q", name, got, c.want)
		}
	}
	if got := tail(log + ".none"); got != "" {
		t.Errorf("a log that is not there: %q", got)
	}
}
