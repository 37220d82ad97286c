package e2e

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/reservoir-cloud/reservoir/site/admin"
	"github.com/reservoir-cloud/reservoir/vee"
)

// members of the site's control plane; none when nobody answers.
func members(t *testing.T) (list []admin.Member) {
	t.Helper()
	out, err := cliWithin(20*time.Second, "site", "member", "list", "-o", "json")
	if err != nil {
		return nil
	}
	return decode[[]admin.Member](t, out)
}

// leading member, or "".
func leading(t *testing.T) string {
	t.Helper()
	for _, m := range members(t) {
		if m.Leads {
			return m.Name
		}
	}
	return ""
}

func allWell(t *testing.T) bool {
	t.Helper()
	well := 0
	for _, m := range members(t) {
		if m.Healthy && m.Missing == 0 {
			well++
		}
	}
	return well == 3
}

// memberProcess is a member's name in `dev status`.
func memberProcess(m string) string {
	if m == "m1" {
		return "alpha"
	}
	return "alpha-" + m
}

// answersAgain, after something was lost.
func answersAgain(t *testing.T, url string, lost time.Duration) {
	t.Helper()
	eventually(t, "the access point answers again", func() bool { return ask(url) != "" })
	t.Logf("the access point answers: %s after the leader was lost", seconds(boottime()-lost))
}

// A control plane of three machines. Its leader is started again (as for an upgrade), then
// lost and replaced: another leads, no guest dies or moves, access points go on at their
// address, a deployment goes on, and images are on all machines.
func TestThreeControlMachines(t *testing.T) {
	w := owned(t, 2, "--control", "3")
	url := service(t, "ha").URLs[0].URL
	before := vees(t)
	if !strings.Contains(url, ".250:") {
		t.Errorf("the access point is at %s, an address of one machine", url)
	}
	eventually(t, "the access point answers", func() bool { return ask(url) != "" })
	eventually(t, "three members are well", func() bool { return allWell(t) })

	// The first member is the one that began the site. Its process is started again by itself.
	lost := boottime()
	kill(t, memberProcess("m1"))
	eventually(t, "another member leads", func() bool {
		l := leading(t)
		if l == "m1" { // it was back before anybody else had a turn
			kill(t, memberProcess(l))
		}
		return l != "" && l != "m1"
	})
	answersAgain(t, url, lost)
	eventually(t, "the one that led is back and follows", func() bool { return allWell(t) })

	// A deployment is under way when the second one is lost, with its machine.
	second := leading(t)
	reservoir(t, "service", "deploy", manifest(t, "later", 1, ""))
	supervisor := process(t, "dev")
	signal(t, "dev", syscall.SIGSTOP)
	wake := func() { _ = syscall.Kill(supervisor, syscall.SIGCONT) }
	t.Cleanup(wake)
	lost = boottime()
	kill(t, memberProcess(second))
	eventually(t, "a third member leads", func() bool { l := leading(t); return l != "" && l != second })
	t.Logf("the site answers again: %s after the leader was lost", seconds(boottime()-lost))
	answersAgain(t, url, lost)
	eventually(t, "the deployment has gone on", func() bool {
		s := service(t, "later")
		return len(s.URLs) > 0 && ask(s.URLs[0].URL) != ""
	})

	// It is replaced by a machine with nothing on it but the unseal key and a token.
	reservoir(t, "site", "member", "remove", second)
	token := reservoir(t, "site", "member", "add", second)
	dir := filepath.Join(stage.dir, "alpha")
	if err := errors.Join(os.RemoveAll(filepath.Join(dir, second)), os.WriteFile(filepath.Join(dir, second+".token"), []byte(token), 0o600)); err != nil {
		t.Fatal(err)
	}
	wake()
	eventually(t, "three members are well, and have all images", func() bool { return allWell(t) })

	for _, v := range before {
		if n := only(t, v.Descriptor.Name); n.Host != v.Host || n.State != vee.Active || len(w.lives(v.ID)) != 1 {
			t.Errorf("%s: guests %+v, now %s on %s; before on %s", v.Descriptor.Name, w.lives(v.ID), n.State, n.Host, v.Host)
		}
	}
	if k := killed(t); len(k) > 0 {
		t.Errorf("guests were killed: %s", fmt.Sprint(k))
	}
}
