package conformance

import (
	"errors"
	"time"

	"github.com/reservoir-cloud/reservoir/hypervisor"
	"github.com/reservoir-cloud/reservoir/vee"
)

// meters: a Meter tells what a guest takes while it has a process, and nothing after.
func meters(b *bench) {
	m, is := b.d.(hypervisor.Meter)
	if !is {
		b.notDeclared = true
		return
	}
	g := b.running(one)
	_, err := m.CPUUse(b.Context(), one)
	if errors.Is(err, hypervisor.ErrUnsupported) {
		b.notDeclared = true
		return
	}
	b.must("CPU time", err)
	used := time.Duration(0)
	for deadline := time.Now().Add(patience); used == 0 && time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		used, err = m.CPUUse(b.Context(), one)
		b.must("CPU time", err)
	}
	if used <= 0 {
		b.Errorf("its process has used %v of CPU time", used)
	}
	memory, err := m.MemoryUse(b.Context(), one)
	b.must("memory", err)
	if memory.Resident <= 0 || memory.Guest <= 0 || memory.Guest > g.Descriptor.Memory+vee.MiB { // some of its firmware counts too
		b.Errorf("memory %+v of a guest of %s", memory, g.Descriptor.Memory)
	}
	_, err = m.BlockUse(b.Context(), one)
	b.must("disks", err)
	if _, err = m.DirtyRate(b.Context(), one, time.Second); err != nil && !errors.Is(err, hypervisor.ErrUnsupported) {
		b.Errorf("dirty rate: %v", err)
	}
	b.must("stop", b.d.Stop(b.Context(), one, epoch(1), 0))
	for name, ask := range map[string]func(vee.ID) error{
		"CPU time": func(id vee.ID) error { _, err := m.CPUUse(b.Context(), id); return err },
		"memory":   func(id vee.ID) error { _, err := m.MemoryUse(b.Context(), id); return err },
		"disks":    func(id vee.ID) error { _, err := m.BlockUse(b.Context(), id); return err },
	} {
		b.refused(name+" of a stopped guest", ask(one), hypervisor.ErrWrongState)
		b.refused(name+" of none", ask("alpha.unknownaaa"), hypervisor.ErrNotFound)
	}
}
