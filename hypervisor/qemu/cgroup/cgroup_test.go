package cgroup

import (
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// fake makes the files that cgroupfs would have.
func fake(t *testing.T, files ...string) string {
	t.Helper()
	root := t.TempDir()
	for _, f := range files {
		path := filepath.Join(root, f)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

// written are the files under root that are not empty.
func written(t *testing.T, root string) map[string]string {
	t.Helper()
	got := map[string]string{}
	filepath.WalkDir(root, func(path string, e os.DirEntry, err error) error {
		if b, err := os.ReadFile(path); err == nil && len(b) > 0 {
			name, _ := filepath.Rel(root, path)
			got[name] = string(b)
		}
		return nil
	})
	return got
}

var limits = Limits{Weight: 200, CPUs: 1.5, Memory: 1 << 30, Tasks: 132}

func TestVersion1(t *testing.T) {
	root := fake(t,
		"cpu/r/g/cpu.shares", "cpu/r/g/cpu.cfs_period_us", "cpu/r/g/cpu.cfs_quota_us", "cpu/r/g/cgroup.procs",
		"cpu/r/cpu.shares", "cpu/r/other/cpu.shares",
		"memory/r/g/memory.limit_in_bytes", "memory/r/g/cgroup.procs")
	if err := os.WriteFile(filepath.Join(root, "cpu/r/other/cpu.shares"), []byte("1024\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	tree := Find(root, "r")
	// There is a directory for pids now, but in a fake one nothing can be limited.
	delete(tree.parents, "pids")
	if err := tree.Place("g", 42, limits); err != nil {
		t.Fatal(err)
	}
	want := map[string]string{
		"cpu/r/cpu.shares": "3072", "cpu/r/other/cpu.shares": "1024\n", // the sum of the guests
		"cpu/r/g/cpu.shares": "2048", "cpu/r/g/cpu.cfs_period_us": "100000", "cpu/r/g/cpu.cfs_quota_us": "150000",
		"cpu/r/g/cgroup.procs": "42", "memory/r/g/memory.limit_in_bytes": "1073741824", "memory/r/g/cgroup.procs": "42",
	}
	if got := written(t, root); !maps.Equal(got, want) {
		t.Errorf("wrote %v, want %v", got, want)
	}
	if m := tree.Missing(); !slices.Equal(m, []string{"pids"}) {
		t.Errorf("missing %v, want pids", m)
	}
}

func TestVersion2(t *testing.T) {
	root := fake(t, "cgroup.controllers", "cgroup.subtree_control", "r/cgroup.subtree_control",
		"r/cpu.weight", "r/g/cpu.weight", "r/g/cpu.max", "r/g/memory.max", "r/g/pids.max", "r/g/cgroup.procs", "r/g/memory.events")
	tree := Find(root, "r")
	if err := tree.Place("g", 42, limits); err != nil {
		t.Fatal(err)
	}
	got := written(t, root)
	delete(got, "cgroup.subtree_control")
	delete(got, "r/cgroup.subtree_control")
	want := map[string]string{
		"r/cpu.weight": "200", "r/g/cpu.weight": "200", "r/g/cpu.max": "150000 100000", "r/g/memory.max": "1073741824",
		"r/g/pids.max": "132", "r/g/cgroup.procs": "42",
	}
	if !maps.Equal(got, want) {
		t.Errorf("wrote %v, want %v", got, want)
	}
	if tree.OutOfMemory("g") {
		t.Error("out of memory without an event")
	}
	if err := os.WriteFile(filepath.Join(root, "r/g/memory.events"), []byte("low 0\noom 1\noom_kill 1\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if !tree.OutOfMemory("g") {
		t.Error("an oom_kill was not seen")
	}
}

func TestNothingToBeHad(t *testing.T) {
	root := t.TempDir()
	if err := os.WriteFile(filepath.Join(root, "cgroup.controllers"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	tree := Find(root, "r")
	if m := tree.Missing(); len(m) != 3 {
		t.Errorf("missing %v, want all", m)
	}
	if err := tree.Place("g", 42, limits); err != nil {
		t.Errorf("place without a controller: %v", err)
	}
	if err := tree.Remove("g"); err != nil {
		t.Errorf("remove without a controller: %v", err)
	}
}

// On this machine, with a process.
func TestHere(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Fatal("cgroups can be made by root only. Run: sudo make test")
	}
	parent := fmt.Sprintf("reservoir-test-%d", os.Getpid())
	tree := Find(Root, parent)
	t.Cleanup(func() {
		for _, dir := range tree.groups("") {
			if err := os.Remove(dir); err != nil {
				t.Error(err)
			}
		}
	})
	cmd := exec.Command("sleep", "60")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait(); tree.Remove("g") })
	for range 2 {
		if err := tree.Place("g", cmd.Process.Pid, limits); err != nil {
			t.Fatal(err)
		}
	}
	if len(tree.parents) == 0 {
		return // said by Missing
	}
	if names := tree.Names(); !slices.Equal(names, []string{"g"}) {
		t.Errorf("groups %v, want g", names)
	}
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", cmd.Process.Pid))
	if err != nil || !strings.Contains(string(b), parent+"/g") {
		t.Errorf("the process is in (%v)\n%s", err, b)
	}
	cmd.Process.Kill()
	cmd.Wait()
	if err := tree.Remove("g"); err != nil {
		t.Error(err)
	}
	if names := tree.Names(); len(names) != 0 {
		t.Errorf("groups %v are left", names)
	}
}
