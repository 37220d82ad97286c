package qemu

import (
	"bufio"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"slices"
	"testing"
	"time"

	"github.com/reservoir-cloud/reservoir/hypervisor"
	"github.com/reservoir-cloud/reservoir/vee"
)

// crashingDir makes this test binary an agent on that directory, to be killed.
const crashingDir = "RESERVOIR_TEST_CRASHING_AGENT"

// crashingAgent gives commands without end, one after the other, and says each before.
func crashingAgent(dir string) {
	ctx := context.Background()
	d, err := New(ctx, Config{Dir: dir, Accelerator: "tcg"})
	if err != nil {
		fmt.Println("error:", err)
		os.Exit(1)
	}
	g := sectorGuestOn(hypervisor.LocalImage{Digest: "sha256:sector", Disk: os.Getenv("RESERVOIR_TEST_IMAGE"), Format: "raw"})
	if o, err := d.Inspect(ctx, g.ID); err == nil && o.Condition == hypervisor.Suspended {
		d.Wake(ctx, g)
	}
	for {
		for _, step := range []struct {
			name string
			do   func() error
		}{
			{"prepare", func() error { return d.Prepare(ctx, g) }},
			{"start", func() error { return d.Start(ctx, g) }},
			{"pause", func() error { return d.Pause(ctx, g.ID, g.Epoch) }},
			{"resume", func() error { return d.Resume(ctx, g.ID, g.Epoch) }},
			{"suspend", func() error { return d.Suspend(ctx, g.ID, g.Epoch, nil) }},
			{"wake", func() error { return d.Wake(ctx, g) }},
			{"stop", func() error { return d.Stop(ctx, g.ID, g.Epoch, 0) }},
			{"start", func() error { return d.Start(ctx, g) }},
			{"destroy", func() error { return d.Destroy(ctx, g.ID, g.Epoch) }},
		} {
			fmt.Println(step.name)
			if err := step.do(); err != nil {
				fmt.Println("error:", step.name, err)
				os.Exit(1)
			}
		}
	}
}

// An agent that is killed at any moment leaves what the next one makes sense of: at most
// one process per guest, the one that is observed, and a guest that obeys.
func TestAnAgentKilledAtAnyMoment(t *testing.T) {
	needsRoot(t)
	dir, image := t.TempDir(), sectorImage(t, t.TempDir())
	t.Cleanup(func() { sweep(t, dir) })
	const seed = 7
	random := rand.New(rand.NewPCG(seed, seed))
	t.Logf("seed %d", seed)
	for round := range 12 {
		last := agentUntilKilled(t, dir, image.Disk, 1+random.IntN(18), time.Duration(random.IntN(60))*time.Millisecond)
		d, err := New(t.Context(), Config{Dir: dir, Accelerator: "tcg"})
		if err != nil {
			t.Fatalf("round %d, killed in %s: %v", round, last, err)
		}
		all, err := d.Observe(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		processes, err := findProcesses("reservoir:" + dir + ":")
		if err != nil {
			t.Fatal(err)
		}
		var owned, running []int
		for _, o := range all {
			if o.PID != 0 {
				owned = append(owned, o.PID)
			}
			if o.Condition == hypervisor.Halted {
				t.Errorf("round %d, killed in %s: %s", round, last, o.Reason)
			}
		}
		for _, pids := range processes {
			running = append(running, pids...)
		}
		slices.Sort(owned)
		slices.Sort(running)
		if !slices.Equal(owned, running) {
			t.Errorf("round %d, killed in %s: processes %v run, %v are owned", round, last, running, owned)
		}
		t.Logf("killed in %s: %+v", last, all)
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	}
	d := newDriver(t, dir)
	defer d.Close()
	if err := d.Destroy(t.Context(), "alpha.aaaaaaaaaa", vee.Epoch{Generation: 1}); err != nil {
		t.Error(err)
	}
	if rest, err := os.ReadDir(dir + "/vees"); err != nil || len(rest) != 0 {
		t.Errorf("after destroy %v is left in vees (%v)", rest, err)
	}
}

// agentUntilKilled runs one and kills it so long after it gave its n-th command. It says
// which that was.
func agentUntilKilled(t *testing.T, dir, image string, n int, delay time.Duration) string {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), crashingDir+"="+dir, "RESERVOIR_TEST_IMAGE="+image)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	last := "nothing"
	lines := bufio.NewScanner(out)
	for i := 0; i < n && lines.Scan(); i++ {
		last = lines.Text()
		if len(last) > 5 && last[:5] == "error" {
			t.Errorf("the agent: %s", last)
		}
	}
	time.Sleep(delay)
	cmd.Process.Kill()
	cmd.Wait()
	return last
}
