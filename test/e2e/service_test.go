package e2e

import (
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/reservoir-cloud/reservoir/smi"
	"github.com/reservoir-cloud/reservoir/vee"
)

// The README's example: deploy, spread over replicas, scale, delete.
func TestDeployScaleAndDelete(t *testing.T) {
	s := deploy(t, "../../examples/web/web.yaml", "web")
	if s.Phase != smi.Ready || len(s.URLs) != 1 || s.URLs[0].Backends != 2 {
		t.Fatalf("%+v, want ready with one URL over two replicas", s)
	}
	url := s.URLs[0].URL
	are := func(want ...string) func() bool { return func() bool { return slices.Equal(answering(url), want) } }
	eventually(t, "both replicas answer", are("web-1", "web-2"))
	reservoir(t, "service", "scale", "web", "web", "3", "--wait")
	eventually(t, "three replicas answer", are("web-1", "web-2", "web-3"))
	reservoir(t, "service", "scale", "web", "web", "1", "--wait")
	if got := answering(url); len(got) != 1 {
		t.Errorf("scaled down: %v answer, want one", got)
	}
	if out, err := cli("service", "scale", "web", "web", "99"); err == nil || !strings.Contains(err.Error(), "6") || !strings.Contains(err.Error(), "try:") {
		t.Errorf("scale beyond max: %v\n%s; want an error that names the maximum and what to try", err, out)
	}
	if out, err := cli("service", "deploy", "../../examples/web/web.yaml"); err == nil || !strings.Contains(err.Error(), "exists") {
		t.Errorf("deploy a second time: %v\n%s; want an error that it exists", err, out)
	}
}

// Every VMI action on a guest, with what it does to the guest's memory and disks.
func TestTheLifeOfAVEE(t *testing.T) {
	deploy(t, manifest(t, "life", 1, ""), "life")
	v := only(t, "web-1")
	id, url := string(v.ID), "http://"+address(v)+"/"
	count := func() string { return field(ask(url), "request") }
	if count() != "1" || count() != "2" {
		t.Fatal("the appliance does not count its requests")
	}
	state := func(want vee.State) {
		t.Helper()
		eventually(t, "state "+string(want), func() bool { return only(t, "web-1").State == want })
	}

	reservoir(t, "vee", "pause", id)
	state(vee.Paused)
	if count() != "" {
		t.Error("a paused guest answers")
	}
	reservoir(t, "vee", "activate", id)
	state(vee.Active)
	eventually(t, "an answer after the pause", func() bool { return ask(url) != "" })
	before := pidOf(t, v.ID)

	reservoir(t, "vee", "suspend", id)
	state(vee.Suspended)
	if pid := pidOf(t, v.ID); pid != 0 {
		t.Errorf("a suspended guest has process %d", pid)
	}
	reservoir(t, "vee", "activate", id)
	state(vee.Active)
	var page string
	eventually(t, "an answer after waking", func() bool { page = ask(url); return page != "" })
	if n := field(page, "request"); n == "1" {
		t.Error("the guest has forgotten its requests: it was booted, not woken")
	}
	if pid := pidOf(t, v.ID); pid == before || pid == 0 {
		t.Errorf("process %d after waking, %d before", pid, before)
	}
}

// What waits for another component's guest starts after that guest says that it is ready.
func TestStartOrderWaitsForTheGuest(t *testing.T) {
	file := write(t, `service: order
networks:
  - {name: public, public: true}
components:
  - name: db
    replicas: {min: 1, max: 1, initial: 1}
    image: appliance
    memory: 128MiB
    networks: [public]
    startup: {order: 1, waitingForGuest: true}
    products:
      - {class: reservoir, properties: [{key: ready-delay, value: "3"}]}
  - name: app
    replicas: {min: 1, max: 1, initial: 1}
    image: appliance
    memory: 128MiB
    networks: [public]
    startup: {order: 2}
`)
	deploy(t, file, "order")
	events := jsonOf[[]smi.Event](t, "event", "list")
	var ready, submitted time.Time
	db, app := "vee/"+string(only(t, "db-1").ID), "vee/"+string(only(t, "app-1").ID)
	for _, e := range events {
		switch {
		case e.Object == db && e.Reason == "Ready":
			ready = e.At
		case e.Object == app && e.Reason == "Submitted":
			submitted = e.At
		}
	}
	if ready.IsZero() || submitted.IsZero() || submitted.Before(ready) {
		t.Errorf("app was submitted at %s, db ready at %s", submitted, ready)
	}
	if lag := submitted.Sub(ready); lag > 2*time.Second {
		t.Logf("app was submitted %s after db was ready", lag)
	}
}

// A changed component is replaced, with the new replica ready before the old one goes; an
// unchanged one keeps its VEEs.
func TestRedeployReplacesWhatChanged(t *testing.T) {
	two := func(greeting string) string {
		return write(t, fmt.Sprintf(`service: two
networks:
  - {name: public, public: true}
components:
  - name: web
    replicas: {min: 1, max: 2, initial: 1}
    image: appliance
    memory: 128MiB
    networks: [public]
    ports: [http:80]
    products:
      - {class: reservoir, properties: [{key: greeting, value: %q}]}
  - name: db
    replicas: {min: 1, max: 1, initial: 1}
    image: appliance
    memory: 128MiB
    networks: [public]
`, greeting))
	}
	s := deploy(t, two("first"), "two")
	url, oldWeb, oldDB := s.URLs[0].URL, only(t, "web-1").ID, only(t, "db-1").ID
	visitors := startAsking(url)
	reservoir(t, "service", "redeploy", two("second"), "--wait", "--timeout", "230s")
	visitors.end(t, "the service was redeployed")
	eventually(t, "an answer of the second revision", func() bool { return strings.Contains(ask(url), "second") })
	// The new replica was there beside the old one and so has a name of its own.
	if only(t, "web-2").ID == oldWeb {
		t.Error("the changed component kept its VEE")
	}
	if only(t, "db-1").ID != oldDB {
		t.Error("the unchanged component lost its VEE")
	}
	if r := service(t, "two").Revision; r != 2 {
		t.Errorf("revision %d, want 2", r)
	}
}

func TestConsole(t *testing.T) {
	deploy(t, manifest(t, "console", 1, ""), "console")
	cmd := exec.Command(stage.binary, "vee", "console", string(only(t, "web-1").ID))
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out := &buffer{}
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { in.Close(); _ = cmd.Process.Kill(); _ = cmd.Wait() }()
	eventually(t, "an answer on the console", func() bool {
		fmt.Fprint(in, "uptime\n")
		time.Sleep(300 * time.Millisecond)
		return strings.Contains(out.String(), "up ") || strings.Contains(out.String(), "uptime")
	})
}

// A stock distribution boots under the same driver: cloud-init takes its name, address and
// key from the seed medium, and the agent in the guest says when that is done.
func TestDebianConfiguresItself(t *testing.T) {
	image, err := filepath.Abs("../../.cache/images/debian")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(image); err != nil {
		t.Fatalf("the Debian image is missing (make images): %v", err)
	}
	reservoir(t, "image", "push", image, "debian")
	deploy(t, write(t, `service: debian
components:
  - name: db
    image: debian
    memory: 512MiB
    networks: [public]
    ports: [tcp:22]
    startup: {order: 1, waitingForGuest: true}
networks:
  - {name: public, public: true}
`), "debian")
	v := only(t, "db-1")
	// The agent is ready when cloud-init is; the SSH server may be a moment behind.
	eventually(t, "the guest's SSH server", func() bool {
		conn, err := net.DialTimeout("tcp", net.JoinHostPort(address(v), "22"), 5*time.Second)
		if err != nil {
			return false
		}
		defer conn.Close()
		_ = conn.SetReadDeadline(time.Now().Add(20 * time.Second))
		greeting := make([]byte, 8)
		_, err = io.ReadFull(conn, greeting)
		return err == nil && string(greeting) == "SSH-2.0-"
	})
}
