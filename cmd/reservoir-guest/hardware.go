package main

import (
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// hardware as the kernel sees it now, as KPIs: what a live change is known by.
func hardware() map[string]float64 {
	kpis := map[string]float64{"memory_total_bytes": float64(meminfo("MemTotal:")), "vcpus_online": float64(vcpus())}
	sizes, _ := filepath.Glob("/sys/class/block/vd[a-d]/size") // the pattern is well formed
	for _, path := range sizes {
		text, err := os.ReadFile(path)
		sectors, bad := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64)
		if err == nil && bad == nil {
			kpis["disk_"+filepath.Base(filepath.Dir(path))+"_bytes"] = float64(sectors * 512)
		}
	}
	return kpis
}

// vcpus in use now; the runtime's own number is that at the start.
func vcpus() int {
	var set unix.CPUSet
	if err := unix.SchedGetaffinity(0, &set); err != nil {
		return runtime.NumCPU()
	}
	return set.Count()
}
