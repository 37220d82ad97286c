package main

import (
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// spared is memory that is never burnt, in bytes: the appliance has no second process that
// the kernel could end instead of it.
const spared = 16 << 20

func hostname() string {
	name, err := os.Hostname()
	if err != nil {
		return ""
	}
	return name
}

func uptime() time.Duration {
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &now); err != nil {
		return 0
	}
	return time.Duration(now.Nano())
}

// freeMemory that can be burnt, in bytes; 0 where /proc/meminfo does not say.
func freeMemory() int64 {
	return max(0, availableMemory()-spared)
}

// availableMemory as the kernel estimates it, in bytes.
func availableMemory() int64 { return meminfo("MemAvailable:") }

// meminfo is a line of /proc/meminfo in bytes; 0 where it is not there.
func meminfo(name string) int64 {
	text, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return 0
	}
	_, rest, _ := strings.Cut(string(text), name)
	var kib int64
	for _, c := range strings.TrimLeft(rest, " ") {
		if c < '0' || c > '9' {
			break
		}
		kib = kib*10 + int64(c-'0')
	}
	return kib << 10
}
