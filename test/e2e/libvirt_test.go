package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/reservoir-cloud/reservoir/vee"
)

// TestLibvirt has a federation of its own, whose one host runs its guests through a libvirtd
// in the host's namespace. Not shown here: several hosts that share one libvirtd.
func TestLibvirt(t *testing.T) {
	on := stage
	t.Cleanup(func() { stage = on })
	tmp, err := os.MkdirTemp("", "rsv-e2e-lv")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(tmp) })
	if err := os.Chmod(tmp, 0o711); err != nil { // guests' users pass through
		t.Fatal(err)
	}
	t.Setenv("RESERVOIR_CONFIG", filepath.Join(tmp, "contexts.yaml"))
	stage.dir = filepath.Join(tmp, "dev")
	t.Cleanup(func() {
		if _, err := cli("dev", "down", "--dir", stage.dir); err != nil {
			t.Error(err)
		}
	})
	reservoir(t, "dev", "up", "--detach", "--hypervisor", "libvirt", "--hosts", "1", "--dir", stage.dir, "--prefix", "elv", "--subnet", "122")
	image, err := filepath.Abs("../../.cache/images/appliance")
	if err != nil {
		t.Fatal(err)
	}
	reservoir(t, "image", "push", image, "appliance")

	reservoir(t, "service", "deploy", manifest(t, "lv", 1, ""), "--wait", "--timeout", "180s")
	v := only(t, "web-1")
	url := "http://" + address(v) + "/"
	if ask(url) == "" {
		t.Error("a guest that libvirt runs does not answer")
	}
	if out := reservoir(t, "host", "list", "-o", "json"); !strings.Contains(out, "libvirt 9") && !strings.Contains(out, "libvirt 1") {
		t.Errorf("the host does not say that libvirt runs its guests:\n%s", out)
	}

	agent := process(t, "alpha-h1")
	kill(t, "alpha-h1")
	if ask(url) == "" {
		t.Error("the guest does not answer while its agent is dead")
	}
	eventually(t, "the agent is back", func() bool { p := process(t, "alpha-h1"); return p != 0 && p != agent })
	eventually(t, "the guest is adopted", func() bool { n := only(t, "web-1"); return n.Phase == vee.PhaseRunning && n.GuestReady })
	if n := only(t, "web-1").Restarts; n != 0 {
		t.Errorf("%d restarts, want none", n)
	}
	reservoir(t, "vee", "pause", string(v.ID)) // the adopted guest obeys
	eventually(t, "the adopted guest is paused", func() bool { return only(t, "web-1").State == vee.Paused })
	reservoir(t, "vee", "resume", string(v.ID))
	reservoir(t, "service", "delete", "lv", "--wait")
	if disks, _ := filepath.Glob(filepath.Join(stage.dir, "alpha", "h1", "libvirt", "vees", "*")); len(disks) > 0 {
		t.Errorf("left behind: %v", disks)
	}
}
