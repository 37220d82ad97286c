package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/reservoir-cloud/reservoir/vee"
	"github.com/reservoir-cloud/reservoir/vmi"
)

const withDisk = `    disks:
      - {name: data, size: 64MiB}
`

// elsewhere is a host that v is not on.
func elsewhere(v vmi.VEE) string {
	if v.Host == "h1" {
		return "h2"
	}
	return "h1"
}

// guestsOf counts the guest processes of a VEE, on all hosts.
func guestsOf(t *testing.T, id vee.ID) (n int) {
	t.Helper()
	for _, g := range guests(t) {
		if g.vee == string(id) {
			n++
		}
	}
	return n
}

func requests(t *testing.T, url string) int {
	t.Helper()
	page := ""
	eventually(t, "its page", func() bool { page = ask(url); return page != "" })
	n, err := strconv.Atoi(field(page, "request"))
	if err != nil {
		t.Fatalf("page %q: %v", page, err)
	}
	return n
}

func migration(t *testing.T, id vee.ID) vmi.Migration {
	t.Helper()
	return jsonOf[vmi.Migration](t, "vee", "migration", "show", string(id))
}

// settled: the VEE runs at one place, and no other host has anything of it.
func settled(t *testing.T, id vee.ID) vmi.VEE {
	t.Helper()
	var v vmi.VEE
	eventually(t, "the VEE is at exactly one place", func() bool {
		v = only(t, "web-1")
		dirs, _ := filepath.Glob(filepath.Join(stage.dir, "alpha", "h*", "qemu", "vees", string(id)))
		return v.Phase == vee.PhaseRunning && v.GuestReady && len(dirs) == 1 &&
			dirs[0] == filepath.Join(stage.dir, "alpha", v.Host, "qemu", "vees", string(id)) && guestsOf(t, id) == 1
	})
	return v
}

// migrate once both hosts have been heard of.
func migrate(t *testing.T, v vmi.VEE, to string, more ...string) {
	t.Helper()
	eventually(t, "the site hears of both hosts", func() bool {
		alive := 0
		for _, h := range jsonOf[[]vmi.Host](t, "host", "list") {
			if h.Alive && (h.Name == to || h.Name == v.Host) {
				alive++
			}
		}
		return alive == 2
	})
	reservoir(t, append([]string{"vee", "migrate", string(v.ID), "--to", to}, more...)...)
}

// awaited is long enough for a migration on a busy machine.
var awaited = []string{"--wait", "--timeout", "2m"}

// Memory, address and connections go along, with and without a disk; the source keeps
// nothing.
func TestMigration(t *testing.T) {
	for name, more := range map[string]string{"diskless": "", "withdisk": withDisk} {
		t.Run(name, func(t *testing.T) {
			s := deploy(t, manifest(t, name, 1, more), name)
			v := only(t, "web-1")
			url := "http://" + address(v) + "/"
			for range 3 {
				requests(t, url)
			}
			before := requests(t, url)
			to := elsewhere(v)
			migrate(t, v, to, awaited...)
			// A request whose answer came too late was counted too.
			last := requests(t, url)
			if last <= before {
				t.Errorf("request %d before and %d after: its memory is another", before, last)
			}
			now := settled(t, v.ID)
			if now.Host != to || now.Restarts != 0 || now.Epoch.Hop != v.Epoch.Hop+1 || address(now) != address(v) {
				t.Errorf("%+v, want it on host %s without a restart, a hop further", now, to)
			}
			if m := migration(t, v.ID); m.State != vmi.MigrationDone || m.DowntimeMS == 0 || m.Total == 0 || m.Took.MemoryBytes == 0 || m.Took.PrepareMS == 0 ||
				(m.Took.DiskBytes > 0) != (more != "") || m.Took.DiskBytes > vee.MiB { // nobody has written to its disk
				t.Errorf("migration %+v", m)
			}
			eventually(t, "its public URL answers", func() bool { return ask(s.URLs[0].URL) != "" })
			migrate(t, now, v.Host, awaited...) // and back
			if n := requests(t, url); n <= last {
				t.Errorf("request %d after request %d", n, last)
			}
			reservoir(t, "vee", "pause", string(v.ID), "--wait") // it obeys where it is now
			reservoir(t, "vee", "activate", string(v.ID), "--wait")
		})
	}
}

// A migration that is cancelled leaves the VEE where it was, and it can go later.
func TestMigrationCancelled(t *testing.T) {
	deploy(t, manifest(t, "cancel", 1, withDisk), "cancel")
	v := only(t, "web-1")
	url := "http://" + address(v) + "/"
	before := requests(t, url)
	migrate(t, v, elsewhere(v), "--bandwidth", "1MiB")
	eventually(t, "memory is on its way", func() bool { m := migration(t, v.ID); return m.Stage == "memory" && m.Left > 0 })
	if _, err := cli("vee", "migrate", string(v.ID)); err == nil || !strings.Contains(err.Error(), "on its way") {
		t.Errorf("a second migration at the same time: %v", err)
	}
	reservoir(t, "vee", "migration", "cancel", string(v.ID))
	eventually(t, "it is cancelled", func() bool { return migration(t, v.ID).State == vmi.MigrationCancelled })
	if now := settled(t, v.ID); now.Host != v.Host {
		t.Errorf("it is on host %s, was on %s", now.Host, v.Host)
	}
	if n := requests(t, url); n <= before {
		t.Errorf("request %d before and %d after", before, n)
	}
	migrate(t, v, elsewhere(v), awaited...)
	settled(t, v.ID)
	if _, err := cli("vee", "migration", "cancel", string(v.ID)); err == nil || !strings.Contains(err.Error(), "ended") {
		t.Errorf("cancelling what is done: %v", err)
	}
}

// What is killed while memory is on its way, and at any moment: the VEE is at one place
// afterwards, with its memory.
func TestMigrationKilled(t *testing.T) {
	deploy(t, manifest(t, "killed", 1, withDisk), "killed")
	v := only(t, "web-1")
	url := "http://" + address(v) + "/"
	last := requests(t, url)
	for _, held := range []bool{true, false} {
		for i, victim := range []string{"source", "destination", "site"} {
			when := "memory"
			if !held {
				when = []string{"preparing", "disks", "given"}[i]
			}
			v = settled(t, v.ID)
			to := elsewhere(v)
			name := map[string]string{"source": "alpha-" + v.Host, "destination": "alpha-" + to, "site": "alpha"}[victim]
			if held {
				migrate(t, v, to, "--bandwidth", "1MiB")
				eventually(t, "memory is on its way", func() bool { return migration(t, v.ID).Stage == "memory" })
			} else {
				migrate(t, v, to)
				for range 40 { // as near to the stage as asking comes
					if m := migration(t, v.ID); string(m.Stage) == when || m.State != vmi.MigrationRunning {
						break
					}
				}
			}
			pid := process(t, name)
			kill(t, name)
			eventually(t, "the "+victim+" is back", func() bool { p := process(t, name); return p != 0 && p != pid })
			var m vmi.Migration
			eventually(t, fmt.Sprintf("the migration has ended (%s killed at %s)", victim, when), func() bool {
				if held { // where it goes on, it need not go slowly
					_, _ = cli("vee", "migration", "limit", string(v.ID), "none")
				}
				out, err := cli("vee", "migration", "show", string(v.ID), "-o", "json")
				return err == nil && json.Unmarshal([]byte(out), &m) == nil && m.State != vmi.MigrationRunning
			})
			if gone := victim == "site"; held && (m.State == vmi.MigrationDone) != gone {
				t.Errorf("%s killed at %s: %+v", victim, when, m)
			}
			if m.State == vmi.MigrationFailed && m.Error == "" {
				t.Errorf("%s killed at %s: it failed, and no reason is told", victim, when)
			}
			now := settled(t, v.ID)
			n := requests(t, url)
			if n <= last || now.Restarts != 0 || (now.Host == to) != (m.State == vmi.MigrationDone) {
				t.Errorf("%s killed at %s: request %d after %d, %d restarts, on %s after %s", victim, when, n, last, now.Restarts, now.Host, m.State)
			}
			last = n
		}
	}
}

// A destination whose disk fills up while it is mirrored: the VEE stays, and says why.
func TestMigrationToAFullHost(t *testing.T) {
	deploy(t, manifest(t, "full", 1, withDisk), "full")
	v := only(t, "web-1")
	to := elsewhere(v)
	small := filepath.Join(stage.dir, "alpha", to, "qemu", "vees")
	// What it has for VEEs' disks becomes a file system that is too small for any.
	if out, err := exec.Command("mount", "-t", "tmpfs", "-o", "size=100k,mode=711", "tmpfs", small).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	t.Cleanup(func() { _ = exec.Command("umount", "-l", small).Run() })
	if err := os.WriteFile(filepath.Join(small, "filler"), make([]byte, 90<<10), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := cli("vee", "migrate", string(v.ID), "--to", to, "--wait", "--timeout", "90s")
	if err == nil || !strings.Contains(err.Error(), "space") {
		t.Errorf("the error says %v, want that there is no space", err)
	}
	if out, err := exec.Command("umount", "-l", small).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if now := settled(t, v.ID); now.Host != v.Host || now.Restarts != 0 {
		t.Errorf("%+v, want it where it was", now)
	}
}

// A client that asks all the time is answered again soon: nobody has to connect anew to
// another address.
func TestMigrationUnderLoad(t *testing.T) {
	deploy(t, manifest(t, "load", 1, ""), "load")
	v := only(t, "web-1")
	url := "http://" + address(v) + "/"
	requests(t, url)
	var stop atomic.Bool
	done := make(chan time.Duration)
	go func() {
		var gap time.Duration
		for last := time.Now(); !stop.Load(); {
			if ask(url) != "" {
				gap = max(gap, time.Since(last))
				last = time.Now()
			}
		}
		done <- gap
	}()
	reservoir(t, "vee", "tell", string(v.ID), "burn-memory", "amount=32MiB", "seconds=60")
	migrate(t, v, elsewhere(v), append(awaited, "--auto-converge")...)
	stop.Store(true)
	t.Logf("the longest time without an answer: %v", <-done)
	settled(t, v.ID)
}
