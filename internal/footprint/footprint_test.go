package footprint

import (
	"os"
	"strconv"
	"strings"
	"testing"
)

// resident pages of files, KiB.
func resident(t *testing.T) int {
	t.Helper()
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(status)) {
		if rest, is := strings.CutPrefix(line, "RssFile:"); is {
			n, err := strconv.Atoi(strings.Fields(rest)[0])
			if err != nil {
				t.Fatal(err)
			}
			return n
		}
	}
	t.Fatal("no RssFile in /proc/self/status")
	return 0
}

func TestTrim(t *testing.T) {
	before := resident(t)
	if err := Trim(); err != nil {
		t.Fatal(err)
	}
	if after := resident(t); after >= before {
		t.Errorf("%d KiB of files are resident, and were %d before", after, before)
	}
	if strings.Repeat("ab", 2) != "abab" { // what was let go of is there
		t.Error("this process is not what it was")
	}
}

func TestConstant(t *testing.T) {
	for line, want := range map[string]bool{
		"00400000-02440000 r-xp 00000000 fe:00 11068572                           /usr/bin/reservoir": true,
		"02440000-0468e000 r--p 02040000 fe:00 11068572                           /usr/bin/reservoir": true,
		"0468e000-04779000 rw-p 0428e000 fe:00 11068572                           /usr/bin/reservoir": false,
		"00400000-02440000 r--s 00000000 fe:00 11068572                           /usr/bin/reservoir": false,
		"7f0000000000-7f0000001000 r-xp 00000000 fe:00 77                         /usr/lib/libc.so.6": false,
		"c000000000-c004000000 rw-p 00000000 00:00 0":                                                 false,
		"7ffd0000-7ffd1000 r-xp 00000000 00:00 0                                  [vdso]":             false,
		"02440000-00400000 r-xp 00000000 fe:00 11068572                           /usr/bin/reservoir": false,
		"nonsense": false, "": false,
	} {
		if _, _, ok := constant(line, "/usr/bin/reservoir"); ok != want {
			t.Errorf("%q: %v", line, ok)
		}
	}
}
