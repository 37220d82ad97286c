// Package cgroup bounds what one guest's process takes of its host: CPU, memory, number
// of threads. It speaks both versions of the kernel's interface (Documentation/
// admin-guide/cgroup-v2.rst and cgroup-v1/), because hosts still come with either, and
// works with whichever controllers are writable.
package cgroup

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// Root is where hosts mount the hierarchy.
const Root = "/sys/fs/cgroup"

// period of the CPU quota, µs: the kernel's own default.
const period = 100_000

// Limits of one group. Zero values set no limit.
type Limits struct {
	Weight int     // relative, 100 is usual
	CPUs   float64 // most that may be used, 1.5 is one CPU and a half
	Memory int64   // bytes
	Tasks  int     // processes and threads
}

// Tree is the place where groups are made: one directory per controller (version 1) or
// one for all (version 2).
type Tree struct {
	parents map[string]string // controller → directory that holds our groups
	v2      bool
}

// controllers that limits are made of, in the order they are told.
var controllers = []string{"cpu", "memory", "pids"}

// Find looks under root for controllers in which it can make the group called parent, and
// makes it.
func Find(root, parent string) *Tree {
	if _, err := os.Stat(filepath.Join(root, "cgroup.controllers")); err == nil {
		return findV2(root, parent)
	}
	t := &Tree{parents: map[string]string{}}
	for _, c := range controllers {
		dir := filepath.Join(root, c, parent)
		if os.MkdirAll(filepath.Dir(dir), 0o755) == nil && makeGroup(dir) == nil {
			t.parents[c] = dir
		}
	}
	return t
}

func findV2(root, parent string) *Tree {
	t := &Tree{parents: map[string]string{}, v2: true}
	dir := filepath.Join(root, parent)
	if makeGroup(dir) != nil {
		return t
	}
	for _, c := range controllers {
		// Handed down one by one: one that is missing does not spoil the others.
		_ = write(filepath.Join(root, "cgroup.subtree_control"), "+"+c)
		if write(filepath.Join(dir, "cgroup.subtree_control"), "+"+c) == nil {
			t.parents[c] = dir
		}
	}
	return t
}

// Missing names the controllers that are not to be had.
func (t *Tree) Missing() []string {
	var missing []string
	for _, c := range controllers {
		if t.parents[c] == "" {
			missing = append(missing, c)
		}
	}
	return missing
}

// Place puts a process, with all its threads, into the group called name, under limits l.
// Called again it changes the limits.
func (t *Tree) Place(name string, pid int, l Limits) error {
	for _, dir := range t.groups(name) {
		if err := makeGroup(dir); err != nil {
			return fmt.Errorf("make the cgroup %s: %w", dir, err)
		}
	}
	for _, f := range t.files(l) {
		if dir, ok := t.parents[f.controller]; ok {
			path := filepath.Join(dir, name, f.name)
			if err := write(path, f.value); err != nil {
				return fmt.Errorf("limit %s to %s: %w", path, f.value, err)
			}
		}
	}
	if err := t.weigh(); err != nil {
		return err
	}
	for _, dir := range t.groups(name) {
		if err := write(filepath.Join(dir, "cgroup.procs"), strconv.Itoa(pid)); err != nil {
			return fmt.Errorf("put process %d into the cgroup %s: %w", pid, dir, err)
		}
	}
	return nil
}

// setting of one controller.
type setting struct{ controller, name, value string }

// files that make l true.
func (t *Tree) files(l Limits) []setting {
	var s []setting
	if l.Weight > 0 {
		if t.v2 {
			s = append(s, setting{"cpu", "cpu.weight", strconv.Itoa(min(max(l.Weight, 1), 10_000))})
		} else {
			s = append(s, setting{"cpu", "cpu.shares", strconv.Itoa(min(max(l.Weight*1024/100, 2), 262_144))})
		}
	}
	if l.CPUs > 0 {
		quota := strconv.Itoa(max(int(l.CPUs*period), 1000)) // the kernel takes no less than 1 ms
		if t.v2 {
			s = append(s, setting{"cpu", "cpu.max", quota + " " + strconv.Itoa(period)})
		} else {
			s = append(s, setting{"cpu", "cpu.cfs_period_us", strconv.Itoa(period)}, setting{"cpu", "cpu.cfs_quota_us", quota})
		}
	}
	if l.Memory > 0 {
		name := "memory.limit_in_bytes"
		if t.v2 {
			name = "memory.max"
		}
		s = append(s, setting{"memory", name, strconv.FormatInt(l.Memory, 10)})
	}
	if l.Tasks > 0 {
		s = append(s, setting{"pids", "pids.max", strconv.Itoa(l.Tasks)})
	}
	return s
}

// OutOfMemory reports whether the kernel killed a process of the group because the
// group's memory was used up.
func (t *Tree) OutOfMemory(name string) bool {
	file := "memory.oom_control"
	if t.v2 {
		file = "memory.events"
	}
	b, err := os.ReadFile(filepath.Join(t.parents["memory"], name, file))
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(b)) {
		if key, n, _ := strings.Cut(strings.TrimSpace(line), " "); key == "oom_kill" && n != "0" {
			return true
		}
	}
	return false
}

// weigh gives the group above the guests' groups the sum of their weights: beside the rest
// of the host each guest counts as if it were no member of a group, and twenty of them do
// not share what one process gets.
func (t *Tree) weigh() error {
	parent, ok := t.parents["cpu"]
	if !ok {
		return nil
	}
	file, most := "cpu.shares", 262_144
	if t.v2 {
		file, most = "cpu.weight", 10_000
	}
	entries, err := os.ReadDir(parent)
	if err != nil {
		return fmt.Errorf("weigh the guests under %s: %w", parent, err)
	}
	sum := 0
	for _, e := range entries {
		if b, err := os.ReadFile(filepath.Join(parent, e.Name(), file)); err == nil { // else it is no group, or gone
			n, _ := strconv.Atoi(strings.TrimSpace(string(b)))
			sum += n
		}
	}
	if sum == 0 {
		return nil
	}
	return write(filepath.Join(parent, file), strconv.Itoa(min(sum, most)))
}

// Remove deletes the group called name, which must have no process left. That there is
// none is no error.
func (t *Tree) Remove(name string) error {
	var errs []error
	for _, dir := range t.groups(name) {
		if err := os.Remove(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(append(errs, t.weigh())...)
}

// Names of the groups there are.
func (t *Tree) Names() []string {
	seen := map[string]bool{}
	var names []string
	for _, dir := range t.groups("") {
		entries, _ := os.ReadDir(dir)
		for _, e := range entries {
			if e.IsDir() && !seen[e.Name()] {
				seen[e.Name()] = true
				names = append(names, e.Name())
			}
		}
	}
	return names
}

// groups are the directories of the group called name: under version 2 only one.
func (t *Tree) groups(name string) []string {
	var dirs []string
	for _, c := range controllers {
		if p, ok := t.parents[c]; ok && (len(dirs) == 0 || !t.v2) {
			dirs = append(dirs, filepath.Join(p, name))
		}
	}
	return dirs
}

func makeGroup(dir string) error {
	if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return nil
}

// write needs the file to be there: cgroupfs makes them, and a file of another name would
// be one that sets nothing.
func write(path, value string) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_TRUNC, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(value)
	return errors.Join(err, f.Close())
}
