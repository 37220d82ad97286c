// Package footprint keeps what a process has of its own binary in memory small. One binary is
// all of Reservoir: while its packages initialise themselves most of it is read once, and the
// kernel maps what lies around each place. A process that runs for long gives that back when it
// has started, and gets what it uses again from the page cache, where all processes of the
// binary share it.
package footprint

import (
	"bufio"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Trim lets go of the pages of the binary that cannot be written to: its code and its
// constants. Nothing is lost; the next access to a page maps it again.
func Trim() error {
	own, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return fmt.Errorf("find this process's binary: %w", err)
	}
	maps, err := os.Open("/proc/self/maps")
	if err != nil {
		return fmt.Errorf("read what this process has mapped: %w", err)
	}
	defer maps.Close()
	lines := bufio.NewScanner(maps)
	for lines.Scan() {
		from, to, ok := constant(lines.Text(), own)
		if !ok {
			continue
		}
		// By number and not by slice: it is no memory of Go's.
		if _, _, errno := unix.Syscall(unix.SYS_MADVISE, from, to-from, unix.MADV_DONTNEED); errno != 0 {
			return fmt.Errorf("let go of %x to %x of %s: %w", from, to, own, errno)
		}
	}
	return lines.Err()
}

// constant part of the binary that a line of proc_pid_maps(5) is about.
func constant(line, binary string) (from, to uintptr, ok bool) {
	f := strings.Fields(line) // address, permissions, offset, device, inode, path
	if len(f) < 6 || f[5] != binary || !strings.HasPrefix(f[1], "r") || f[1][1] == 'w' || !strings.HasSuffix(f[1], "p") {
		return 0, 0, false
	}
	a, b, found := strings.Cut(f[0], "-")
	low, err1 := strconv.ParseUint(a, 16, 64)
	high, err2 := strconv.ParseUint(b, 16, 64)
	return uintptr(low), uintptr(high), found && err1 == nil && err2 == nil && low < high
}
