package qemu

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/reservoir-cloud/reservoir/hypervisor"
	"github.com/reservoir-cloud/reservoir/vee"
)

// crashingDir makes this test binary an agent on that directory, to be killed; crashingTool
// is its image tool, and crashingScript what it does.
const (
	crashingDir    = "RESERVOIR_TEST_CRASHING_AGENT"
	crashingTool   = "RESERVOIR_TEST_IMAGE_TOOL"
	crashingScript = "RESERVOIR_TEST_SCRIPT"
)

// command of a crashingAgent.
type crashingStep struct {
	name string
	do   func() error
}

// crashingAgent gives commands without end, one after the other, and says each before.
func crashingAgent(dir string) {
	ctx := context.Background()
	d, err := New(ctx, Config{Dir: dir, Accelerator: "tcg", ImageTool: os.Getenv(crashingTool)})
	if err != nil {
		fmt.Println("error:", err)
		os.Exit(1)
	}
	g := sectorGuestOn(hypervisor.LocalImage{Digest: "sha256:sector", Disk: os.Getenv("RESERVOIR_TEST_IMAGE"), Format: "raw"})
	if o, err := d.Inspect(ctx, g.ID); err == nil { // a life begins with a guest that runs or does not
		switch o.Condition {
		case hypervisor.Suspended:
			err = d.Wake(ctx, g)
		case hypervisor.Paused:
			err = d.Resume(ctx, g.ID, g.Epoch)
		}
		if err != nil {
			fmt.Println("error:", o.Condition, err)
			os.Exit(1)
		}
	}
	life := []crashingStep{
		{"prepare", func() error { return d.Prepare(ctx, g) }},
		{"start", func() error { return d.Start(ctx, g) }},
		{"pause", func() error { return d.Pause(ctx, g.ID, g.Epoch) }},
		{"resume", func() error { return d.Resume(ctx, g.ID, g.Epoch) }},
		{"suspend", func() error { return d.Suspend(ctx, g.ID, g.Epoch, nil) }},
		{"wake", func() error { return d.Wake(ctx, g) }},
		{"stop", func() error { return d.Stop(ctx, g.ID, g.Epoch, 0) }},
		{"start", func() error { return d.Start(ctx, g) }},
		{"destroy", func() error { return d.Destroy(ctx, g.ID, g.Epoch) }},
	}
	if os.Getenv(crashingScript) == "disks" {
		life = diskSteps(ctx, d, g)
	}
	for {
		for _, step := range life {
			fmt.Println(step.name)
			if err := step.do(); err != nil {
				fmt.Println("error:", step.name, err)
				os.Exit(1)
			}
		}
	}
}

// diskSteps are a life of snapshots, disks that grow, and exports. Each may have been done
// before by an agent that was killed.
func diskSteps(ctx context.Context, d *Driver, g hypervisor.Guest) []crashingStep {
	snapshot := func(name string, memory bool) func() error {
		return func() error {
			_, err := d.Snapshot(ctx, g, name, memory)
			if errors.Is(err, hypervisor.ErrExists) {
				return nil
			}
			return err
		}
	}
	larger := g.Descriptor
	larger.Disks = slices.Clone(larger.Disks)
	larger.Disks[0].Size = 8 * vee.MiB
	export := func(snapshot string) func() error {
		return func() error {
			x, err := d.Export(ctx, g.ID, "root", snapshot)
			if err != nil {
				return err
			}
			return x.Close()
		}
	}
	return []crashingStep{
		{"prepare", func() error { return d.Prepare(ctx, g) }},
		{"start", func() error { return d.Start(ctx, g) }},
		{"snapshot with memory", snapshot("one", true)},
		{"grow", func() error { _, err := d.Resize(ctx, g.ID, g.Epoch, larger); return err }},
		{"snapshot of the disks", snapshot("two", false)},
		{"export of a snapshot", export("one")},
		{"delete", func() error { return d.DeleteSnapshot(ctx, g.ID, g.Epoch, "two") }},
		{"restore", func() error { return d.Restore(ctx, g.ID, g.Epoch, "one") }},
		{"wake", func() error { return d.Wake(ctx, g) }},
		{"stop", func() error { return d.Stop(ctx, g.ID, g.Epoch, 0) }},
		{"export", export("")},
		{"snapshot at rest", snapshot("two", false)},
		{"delete at rest", func() error { return d.DeleteSnapshot(ctx, g.ID, g.Epoch, "one") }},
		{"restore at rest", func() error { return d.Restore(ctx, g.ID, g.Epoch, "two") }},
		{"start again", func() error { return d.Start(ctx, g) }},
		{"destroy", func() error { return d.Destroy(ctx, g.ID, g.Epoch) }},
	}
}

// killingTool is an image tool that kills who runs it, the n-th time: before it has done its
// work or after it.
func killingTool(t *testing.T, n int, after bool) string {
	t.Helper()
	dir := t.TempDir()
	before, then := `kill -9 $PPID; exit 1`, `:`
	if after {
		before, then = then, before
	}
	script := fmt.Sprintf(`#!/bin/sh
echo >> %[1]s/runs
turn=$(wc -l < %[1]s/runs)
[ $turn -ne %[2]d ] || { %[3]s; }
qemu-img "$@" || exit
[ $turn -ne %[2]d ] || { %[4]s; }
`, dir, n, before, then)
	path := filepath.Join(dir, "qemu-img")
	if err := os.WriteFile(path, []byte(script), 0o700); err != nil { //nolint:gosec // a program
		t.Fatal(err)
	}
	return path
}

// toolsEnded waits until no image tool works under dir: one dies with its agent, and may be
// about it still.
func toolsEnded(t *testing.T, dir string) {
	t.Helper()
	for {
		all, err := filepath.Glob("/proc/[0-9]*/cmdline")
		if err != nil {
			t.Fatal(err)
		}
		if !slices.ContainsFunc(all, func(p string) bool {
			b, err := os.ReadFile(p)
			return err == nil && strings.Contains(string(b), "qemu-img") && strings.Contains(string(b), dir)
		}) {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// An agent that is killed in a snapshot, a restore, an export, while a disk grows or is
// deleted: before and after each run of the image tool, and at moments in between. Its
// successor finds a guest that is what the record says, with sound disks, that goes on, and
// whose snapshots can be restored.
func TestAnAgentKilledAmongDisks(t *testing.T) {
	needsRoot(t)
	dir, image := t.TempDir(), sectorImage(t, t.TempDir())
	t.Cleanup(func() { sweep(t, dir) })
	g := sectorGuestOn(image)
	const seed = 11
	random := rand.New(rand.NewPCG(seed, seed))
	for round := range 26 {
		tool, steps, delay := "qemu-img", 1+random.IntN(15), time.Duration(random.IntN(40))*time.Millisecond
		if round < 16 { // more than one life has
			tool, steps, delay = killingTool(t, 1+round/2, round%2 == 1), 1000, 0
		}
		last := agentUntilKilled(t, dir, image.Disk, steps, delay, crashingScript+"=disks", crashingTool+"="+tool)
		toolsEnded(t, dir)
		d, err := New(t.Context(), Config{Dir: dir, Accelerator: "tcg"})
		if err != nil {
			t.Fatalf("round %d, killed in %s: %v", round, last, err)
		}
		o, err := d.Inspect(t.Context(), g.ID)
		t.Logf("round %d, killed in %s: %s", round, last, o.Condition)
		if errors.Is(err, hypervisor.ErrNotFound) {
			err = errors.Join(d.Prepare(t.Context(), g), d.Start(t.Context(), g))
		}
		if rest := unnamed(t, d.guest(g.ID)); len(rest) > 0 {
			t.Errorf("round %d, killed in %s: %q is left", round, last, rest)
		}
		// It goes on from whatever it is.
		switch o.Condition {
		case hypervisor.Suspended:
			err = errors.Join(err, d.Wake(t.Context(), g))
		case hypervisor.Stopped, hypervisor.Crashed:
			err = errors.Join(err, d.Start(t.Context(), g))
		}
		list, listed := d.Snapshots(t.Context(), g.ID)
		err = errors.Join(err, listed)
		for _, s := range list {
			if err == nil {
				err = d.Restore(t.Context(), g.ID, g.Epoch, s.Name)
			}
			if err == nil && s.Memory {
				err = errors.Join(d.Wake(t.Context(), g), d.Stop(t.Context(), g.ID, g.Epoch, 0))
			}
		}
		err = errors.Join(err, d.Stop(t.Context(), g.ID, g.Epoch, 0))
		sound(t, d.guest(g.ID))
		if round%3 > 0 { // the next one begins with what this one has left
			err = errors.Join(err, d.Start(t.Context(), g))
		} else {
			err = errors.Join(err, d.Destroy(t.Context(), g.ID, g.Epoch))
		}
		if err = errors.Join(err, d.Close()); err != nil {
			t.Fatalf("round %d, killed in %s: %v", round, last, err)
		}
	}
	d := newDriver(t, dir)
	defer d.Close()
	if err := d.Destroy(t.Context(), g.ID, g.Epoch); err != nil {
		t.Error(err)
	}
	if rest, err := os.ReadDir(dir + "/vees"); err != nil || len(rest) != 0 {
		t.Errorf("after destroy %v is left in vees (%v)", rest, err)
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
func agentUntilKilled(t *testing.T, dir, image string, n int, delay time.Duration, env ...string) string {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(append(os.Environ(), crashingDir+"="+dir, "RESERVOIR_TEST_IMAGE="+image), env...)
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
