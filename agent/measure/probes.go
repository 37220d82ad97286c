package measure

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/reservoir-cloud/reservoir/monitor"
	"github.com/reservoir-cloud/reservoir/vee"
)

// Rates that probes come with.
const (
	usual   = 10 * time.Second
	seldom  = time.Minute // the dirty-page rate, which is off until somebody asks for it
	pushed  = time.Second // of what is pushed, the newest in that time
	watched = time.Second // for the dirty-page rate
)

// Names of the probes by which KPIs come.
const (
	byAgent  = "agent"
	byPush   = "push"
	byScrape = "scrape"
)

// probe with what collects its values.
type probe struct {
	monitor.Probe
	collect monitor.Collect
}

func every(d time.Duration) monitor.Settings {
	return monitor.Settings{On: true, EveryMS: d.Milliseconds()}
}

func gauge(name, unit, help string) monitor.Field {
	return monitor.Field{Name: name, Type: monitor.Gauge, Unit: unit, Help: help}
}

func counter(name, unit, help string) monitor.Field {
	return monitor.Field{Name: name, Type: monitor.Counter, Unit: unit, Help: help}
}

// in the order of the fields of a dictionary.
func in(d monitor.Dictionary, values ...float64) []monitor.Value {
	list := make([]monitor.Value, len(d))
	for i, f := range d {
		list[i] = monitor.Value{Field: f.Name, Value: values[i]}
	}
	return list
}

// hostProbes measure the machine.
func hostProbes(cfg Config) []probe {
	m := cfg.Machine
	of := func(name string, d monitor.Dictionary, measure func() ([]float64, error)) probe {
		return probe{
			monitor.Probe{Ref: monitor.Ref{Name: name}, Kind: monitor.HostKind, Fields: d, Settings: every(usual)},
			func(context.Context) ([]monitor.Value, error) {
				values, err := measure()
				if err != nil {
					return nil, err
				}
				return in(d, values...), nil
			},
		}
	}
	return []probe{
		of("cpu", monitor.Dictionary{
			counter("host_cpu_user_seconds_total", "seconds", "CPU time of programs, guests included"),
			counter("host_cpu_system_seconds_total", "seconds", "CPU time of the kernel"),
			counter("host_cpu_wait_seconds_total", "seconds", "CPU time idle while disks were waited for"),
			counter("host_cpu_stolen_seconds_total", "seconds", "CPU time that a hypervisor below had for others"),
			counter("host_cpu_idle_seconds_total", "seconds", "CPU time idle"),
			gauge("host_load", "", "runnable tasks for each CPU, over a minute"),
		}, func() ([]float64, error) {
			c, err := m.CPU()
			load, lerr := m.Load()
			return []float64{c.User, c.System, c.Wait, c.Stolen, c.Idle, load}, errors.Join(err, lerr)
		}),
		of("memory", monitor.Dictionary{
			gauge("host_memory_total_bytes", "bytes", "memory of the machine"),
			gauge("host_memory_available_bytes", "bytes", "that new processes could have"),
			gauge("host_swap_used_bytes", "bytes", "swap space in use"),
		}, func() ([]float64, error) {
			u, err := m.Memory()
			return []float64{float64(u.Total), float64(u.Available), float64(u.SwapUsed)}, err
		}),
		of("disk", monitor.Dictionary{
			gauge("host_disk_total_bytes", "bytes", "file system of VEEs' disks"),
			gauge("host_disk_free_bytes", "bytes", "free there"),
			counter("host_disk_read_bytes_total", "bytes", "read from all disks"),
			counter("host_disk_written_bytes_total", "bytes", "written to all disks"),
		}, func() ([]float64, error) {
			d, err := m.Disk()
			return []float64{float64(d.Total), float64(d.Free), float64(d.Read), float64(d.Written)}, err
		}),
		of("network", monitor.Dictionary{
			counter("host_network_received_bytes_total", "bytes", "by the devices that lead out of the machine"),
			counter("host_network_sent_bytes_total", "bytes", "by the devices that lead out of the machine"),
		}, func() ([]float64, error) {
			t, err := m.Network(cfg.Own)
			return []float64{float64(t.Received), float64(t.Sent)}, err
		}),
		of("energy", monitor.Dictionary{
			counter("host_energy_joules_total", "joules", "of processor packages and their memory (RAPL)"),
		}, func() ([]float64, error) {
			j, err := m.Energy()
			return []float64{j}, err
		}),
	}
}

// guestProbes measure a VEE.
func (m *Measurer) guestProbes(v VEE, g *measured) []probe {
	of := func(name string, kind monitor.Kind, d monitor.Dictionary, s monitor.Settings, collect monitor.Collect) probe {
		p := probe{Probe: monitor.Probe{Ref: monitor.Ref{Name: name, VEE: v.ID}, Kind: kind, Fields: d, Settings: s}}
		if collect != nil {
			p.collect = func(ctx context.Context) ([]monitor.Value, error) {
				values, err := collect(ctx)
				if !m.cfg.Runs(v.ID) { // it has left meanwhile: another host measures it
					return nil, nil
				}
				return values, err
			}
		}
		return p
	}
	list := []probe{
		of(byAgent, monitor.KPIKind, nil, every(pushed), nil),
		of(byPush, monitor.KPIKind, nil, every(pushed), nil),
	}
	if s := v.Descriptor.Metrics; s.Port != 0 {
		list = append(list, of(byScrape, monitor.KPIKind, nil, every(time.Duration(s.EveryMS)*time.Millisecond),
			func(ctx context.Context) ([]monitor.Value, error) { return m.scrape(ctx, v, g) }))
	}
	add := func(name string, d monitor.Dictionary, s monitor.Settings, measure func(context.Context) ([]float64, error)) {
		list = append(list, of(name, monitor.VEEKind, d, s, func(ctx context.Context) ([]monitor.Value, error) {
			values, err := measure(ctx)
			if err != nil {
				return nil, err
			}
			return in(d, values...), nil
		}))
	}
	if m.cfg.Meter != nil {
		m.hypervisorProbes(v.ID, add)
	}
	if nics := len(v.Descriptor.NICs); nics > 0 && m.cfg.Traffic != nil {
		add("network", monitor.Dictionary{
			counter("vee_network_received_bytes_total", "bytes", "by all its NICs"),
			counter("vee_network_sent_bytes_total", "bytes", "by all its NICs"),
		}, every(usual), func(context.Context) ([]float64, error) {
			t, err := m.cfg.Traffic(v.ID, nics)
			return []float64{float64(t.Received), float64(t.Sent)}, err
		})
	}
	return list
}

func (m *Measurer) hypervisorProbes(id vee.ID, add func(string, monitor.Dictionary, monitor.Settings, func(context.Context) ([]float64, error))) {
	meter := m.cfg.Meter
	add("cpu", monitor.Dictionary{
		counter("vee_cpu_seconds_total", "seconds", "CPU time of its process, the hypervisor's part included"),
	}, every(usual), func(ctx context.Context) ([]float64, error) {
		used, err := meter.CPUUse(ctx, id)
		return []float64{used.Seconds()}, err
	})
	add("memory", monitor.Dictionary{
		gauge("vee_memory_resident_bytes", "bytes", "of its process in the host's memory"),
		gauge("vee_memory_guest_bytes", "bytes", "that the balloon leaves the guest"),
	}, every(usual), func(ctx context.Context) ([]float64, error) {
		u, err := meter.MemoryUse(ctx, id)
		return []float64{float64(u.Resident), float64(u.Guest)}, err
	})
	add("block", monitor.Dictionary{
		counter("vee_block_read_bytes_total", "bytes", "from all its disks"),
		counter("vee_block_written_bytes_total", "bytes", "to all its disks"),
		counter("vee_block_reads_total", "", "operations"),
		counter("vee_block_writes_total", "", "operations"),
	}, every(usual), func(ctx context.Context) ([]float64, error) {
		u, err := meter.BlockUse(ctx, id)
		return []float64{float64(u.Read), float64(u.Written), float64(u.Reads), float64(u.Writes)}, err
	})
	off := every(seldom)
	off.On = false
	add("dirty", monitor.Dictionary{
		gauge("vee_memory_dirty_bytes_per_second", "bytes per second", "memory that the guest changes"),
	}, off, func(ctx context.Context) ([]float64, error) {
		rate, err := meter.DirtyRate(ctx, id, watched)
		if err != nil {
			err = fmt.Errorf("watch which memory it changes: %w", err)
		}
		return []float64{float64(rate)}, err
	})
}
