package post

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/reservoir-cloud/reservoir/van/border"
	"github.com/reservoir-cloud/reservoir/van/border/relay"
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// clock of a test.
type clock struct{ now time.Time }

func (c *clock) time() time.Time { return c.now }

func open(t *testing.T, file string, c *clock) *routes {
	t.Helper()
	r, err := openRoutes(file, c.time)
	must(t, err)
	return r
}

// led tells where a ticket leads, or why nowhere.
func led(r *routes, side relay.Side, ticket string) string {
	g, done, err := r.lead(side, ticket)
	if err != nil {
		return err.Error()
	}
	done()
	return strings.TrimSpace(g.Address + " " + g.Show)
}

func TestTickets(t *testing.T) {
	c := &clock{time.Date(2030, 1, 1, 12, 0, 0, 0, time.UTC)}
	file := filepath.Join(t.TempDir(), "used.json")
	r := open(t, file, c)
	peers := []border.Peer{{Site: "beta", Relay: "192.0.2.2:8443"}, {Site: "gamma"}}
	list := []border.Route{
		{Ticket: "site", For: "this site", To: "10.0.0.1:8440"},
		{Ticket: "out", For: "out", Peer: "beta", Show: "in"},
		{Ticket: "lost", For: "lost", Peer: "gamma", Show: "in"},
		{Ticket: "once", For: "once", To: "10.0.0.5:8441", Once: true},
		{Ticket: "soon", For: "soon", To: "10.0.0.6:8441", Expires: c.now.Add(time.Minute)},
	}
	must(t, r.put(peers, list))
	expect := func(side relay.Side, ticket, want string) {
		t.Helper()
		if got := led(r, side, ticket); !strings.Contains(got, want) {
			t.Errorf("ticket %q from %s: %q, want %q", ticket, side, got, want)
		}
	}
	expect(relay.Outside, "site", "10.0.0.1:8440")
	expect(relay.Inside, "out", "192.0.2.2:8443 in")
	expect(relay.Inside, "site", "not known")
	expect(relay.Outside, "out", "not known")
	expect(relay.Outside, "none", "not known")
	expect(relay.Inside, "lost", "where the proxy of site gamma is")
	expect(relay.Outside, "soon", "10.0.0.6:8441")
	expect(relay.Outside, "once", "10.0.0.5:8441")
	expect(relay.Outside, "once", "has been used")
	c.now = c.now.Add(time.Minute)
	expect(relay.Outside, "soon", "has expired at 2030-01-01T12:01:00Z")

	// A used ticket is used after a restart too, and when the site puts the same again.
	r = open(t, file, c)
	must(t, r.put(peers, list))
	expect(relay.Outside, "once", "has been used")
	must(t, r.put(peers, list))
	expect(relay.Outside, "once", "has been used")
	for _, s := range r.status() {
		if s.For == "once" && (s.Used != 1 || s.From != "outside" || s.Digest != border.TicketDigest("once")) {
			t.Errorf("told as %+v", s)
		}
	}
	// Once the site does not put it any more, nothing is kept of it.
	must(t, r.put(peers, list[:1]))
	expect(relay.Outside, "once", "not known")
	if b, err := os.ReadFile(file); err != nil || strings.Contains(string(b), border.TicketDigest("once")) {
		t.Errorf("%s, %v: the digest of a route that is gone is kept", b, err)
	}
}

func TestATicketThatCannotBeWrittenDownLeadsNowhere(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "gone")
	r := open(t, filepath.Join(dir, "used.json"), &clock{time.Now()})
	must(t, r.put(nil, []border.Route{{Ticket: "once", To: "10.0.0.5:8441", Once: true}}))
	if got := led(r, relay.Outside, "once"); !strings.Contains(got, "cannot write down") {
		t.Errorf("it leads to %q", got)
	}
	must(t, os.Mkdir(dir, 0o700))
	if got := led(r, relay.Outside, "once"); got != "10.0.0.5:8441" {
		t.Errorf("then it leads to %q", got)
	}
}
