package e2e

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/reservoir-cloud/reservoir/smi"
	"github.com/reservoir-cloud/reservoir/vee"
	"github.com/reservoir-cloud/reservoir/vmi"
)

// checkpointed waits for a checkpoint of a VEE that is newer than n, and returns its number.
func checkpointed(t *testing.T, name string, n int) int {
	t.Helper()
	var k *vee.Checkpoint
	eventually(t, "a checkpoint", func() bool {
		k = jsonOf[vmi.VEE](t, "vee", "show", string(only(t, name).ID)).Checkpoint
		return k != nil && k.N > n
	})
	return k.N
}

// count asks the appliance's page until it has been asked n times in all: what only its
// memory remembers.
func count(t *testing.T, v vmi.VEE, n int) {
	t.Helper()
	for requests(t, "http://"+address(v)+"/") < n {
	}
}

// remembers: a guest goes on with its memory, as it was after n requests at least. One that
// has booted begins with one.
func remembers(t *testing.T, v vmi.VEE, n int) {
	t.Helper()
	if got := requests(t, "http://"+address(v)+"/"); got <= n {
		t.Errorf("%s was asked %d times, by its own count, and should remember %d", v.Descriptor.Name, got, n)
	}
}

// The three scenes of the DISCOVERY initiative, one after the other on one site: a person
// takes a host away, a VM crashes, a node crashes. In each the VE goes on where it was; and
// before them all of it sleeps and wakes as one.
func TestThreeScenes(t *testing.T) {
	ownedWith(t, 2, "    reliability: {checkpoint: 10s, from: checkpoint}\n")
	for _, name := range []string{"web-1", "web-2"} {
		count(t, only(t, name), 20)
	}

	began := boottime()
	reservoir(t, "service", "sleep", "ha", "--wait")
	asleep := boottime()
	if s := service(t, "ha"); s.Phase != smi.Sleeping || len(guests(t)) != 0 {
		t.Errorf("asleep it is %s, %d guests run", s.Phase, len(guests(t)))
	}
	reservoir(t, "service", "wake", "ha", "--wait")
	t.Logf("all VEEs asleep after %s, awake after another %s", seconds(asleep-began), seconds(boottime()-asleep))
	for _, name := range []string{"web-1", "web-2"} {
		remembers(t, only(t, name), 20)
	}

	// Human removal: what runs on the host moves off it while it runs, with checkpoints being
	// taken, and the host is switched off.
	v := only(t, "web-1")
	n := checkpointed(t, "web-1", 0)
	began = boottime()
	reservoir(t, "host", "drain", v.Host, "--wait", "--timeout", "220s")
	t.Logf("human removal: host %s was empty after %s", v.Host, seconds(boottime()-began))
	if now := only(t, "web-1"); now.Host == v.Host || now.Restarts != 0 {
		t.Errorf("after the drain it is on %s, restarts %d", now.Host, now.Restarts)
	}
	remembers(t, only(t, "web-1"), 20)
	n = checkpointed(t, "web-1", n+1) // one that began where it is now
	reservoir(t, "host", "on", v.Host)

	// VM crash: its process is killed; it goes on from its last checkpoint, where it was.
	v = only(t, "web-1")
	began = boottime()
	if err := syscall.Kill(pidOf(t, v.ID), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it is started again", func() bool {
		now := only(t, "web-1")
		return now.Restarts == v.Restarts+1 && now.State == vee.Active && now.GuestReady && pidOf(t, v.ID) != 0
	})
	t.Logf("VM crash: ready again, from a checkpoint, after %s", seconds(boottime()-began))
	remembers(t, only(t, "web-1"), 20)

	// Node crash: everything on it ends; it goes on elsewhere from the copy of its last
	// checkpoint, once ownership allows it.
	n = checkpointed(t, "web-1", n)
	v = only(t, "web-1")
	began = boottime()
	boot := killMachine(t, v.Host)
	eventually(t, "it runs elsewhere", runsElsewhere(t, v))
	took := boottime() - began
	t.Logf("node crash: ready on %s after %s, from a checkpoint; times × %g", only(t, "web-1").Host, seconds(took), haScale)
	if took < haTimings.GiveAway {
		t.Errorf("it was started elsewhere within %v, before it could be given away", took)
	}
	remembers(t, only(t, "web-1"), 20)
	checkpointed(t, "web-1", n) // whoever tracked the VE, it is tracked
	boot()
	eventually(t, "nothing of the VEE is left on the host that was lost", func() bool {
		_, err := os.Stat(filepath.Join(stage.dir, "alpha", v.Host, "qemu", "vees", string(v.ID)))
		return os.IsNotExist(err)
	})
}
