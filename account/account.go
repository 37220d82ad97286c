// Package account is what VEEs have used: the meter that runs with a VEE's life and the
// usage between two of its readings. It is pure: no clock, no I/O, no prices.
//
// Everything is counted in whole milliseconds and whole MiB (rounded up), so that the usages
// of adjoining intervals sum up to the usage of the whole, exactly. An int64 of MiB·ms
// overflows after 290,000 years of 1 GiB, or one year of 256 TiB.
package account

import "github.com/reservoir-cloud/reservoir/vee"

// Usage of a VEE in some time: how long it was in each state, and what was allocated to it.
type Usage struct {
	InitialMS   int64 `json:"initialMs,omitempty"`
	DefinedMS   int64 `json:"definedMs,omitempty"`
	ActiveMS    int64 `json:"activeMs,omitempty"`
	PausedMS    int64 `json:"pausedMs,omitempty"`
	SuspendedMS int64 `json:"suspendedMs,omitempty"`

	VCPUMS      int64 `json:"vcpuMs,omitempty" doc:"vCPUs × ms while ACTIVE or PAUSED"`
	MemoryMiBMS int64 `json:"memoryMiBMs,omitempty" doc:"MiB of memory × ms while ACTIVE or PAUSED"`
	DiskMiBMS   int64 `json:"diskMiBMs,omitempty" doc:"MiB of disk × ms; a suspended VEE's saved memory is on disk"`
}

// Plus adds, field by field.
func (u Usage) Plus(o Usage) Usage {
	return Usage{
		u.InitialMS + o.InitialMS, u.DefinedMS + o.DefinedMS, u.ActiveMS + o.ActiveMS, u.PausedMS + o.PausedMS, u.SuspendedMS + o.SuspendedMS,
		u.VCPUMS + o.VCPUMS, u.MemoryMiBMS + o.MemoryMiBMS, u.DiskMiBMS + o.DiskMiBMS,
	}
}

// times n, field by field.
func (u Usage) times(n int64) Usage {
	return Usage{
		u.InitialMS * n, u.DefinedMS * n, u.ActiveMS * n, u.PausedMS * n, u.SuspendedMS * n,
		u.VCPUMS * n, u.MemoryMiBMS * n, u.DiskMiBMS * n,
	}
}

// Minus subtracts, field by field.
func (u Usage) Minus(o Usage) Usage { return u.Plus(o.times(-1)) }

// BilledMS is the time in states in which something is allocated, ms.
func (u Usage) BilledMS() int64 { return u.DefinedMS + u.ActiveMS + u.PausedMS + u.SuspendedMS }

// Rate is the usage of one millisecond.
type Rate struct{ ms Usage }

// Size of a VEE, as far as it is counted.
type Size struct {
	VCPUs     int64 `json:"vcpus,omitempty"`
	MemoryMiB int64 `json:"memoryMiB,omitempty"`
	DiskMiB   int64 `json:"diskMiB,omitempty"` // of all disks
}

// SizeOf a VEE with descriptor d.
func SizeOf(d vee.Descriptor) Size {
	z := Size{VCPUs: int64(d.VCPUs), MemoryMiB: mebibytes(d.Memory)}
	for _, k := range d.Disks {
		z.DiskMiB += mebibytes(k.Size)
	}
	return z
}

// Within reports whether z is no larger than o in anything.
func (z Size) Within(o Size) bool {
	return z.VCPUs <= o.VCPUs && z.MemoryMiB <= o.MemoryMiB && z.DiskMiB <= o.DiskMiB
}

// Valid reports whether a VEE can have that size.
func (z Size) Valid() bool { return z.VCPUs >= 0 && z.MemoryMiB >= 0 && z.DiskMiB >= 0 }

// RateOf a VEE in state s with descriptor d.
func RateOf(s vee.State, d vee.Descriptor) Rate { return SizeOf(d).Rate(s) }

// Rate of a VEE of that size in state s. Running and paused VEEs hold their vCPUs, memory and
// disks; a suspended one its disks and, on disk too, its memory; a defined one its disks. One
// that has no place yet, or is destroyed, holds nothing.
func (z Size) Rate(s vee.State) Rate {
	switch s {
	case vee.Initial:
		return Rate{Usage{InitialMS: 1}}
	case vee.Defined:
		return Rate{Usage{DefinedMS: 1, DiskMiBMS: z.DiskMiB}}
	case vee.Active:
		return Rate{Usage{ActiveMS: 1, VCPUMS: z.VCPUs, MemoryMiBMS: z.MemoryMiB, DiskMiBMS: z.DiskMiB}}
	case vee.Paused:
		return Rate{Usage{PausedMS: 1, VCPUMS: z.VCPUs, MemoryMiBMS: z.MemoryMiB, DiskMiBMS: z.DiskMiB}}
	case vee.Suspended:
		return Rate{Usage{SuspendedMS: 1, DiskMiBMS: z.DiskMiB + z.MemoryMiB}}
	}
	return Rate{}
}

func mebibytes(b vee.Bytes) int64 { return int64((b + vee.MiB - 1) / vee.MiB) }

// Meter is a reading: all that was used up to a moment.
type Meter struct {
	AtMS int64 `json:"atMs"` // ms since 1970 UTC
	Used Usage `json:"used"`
}

// To is the reading at a later moment, when usage went on at rate r in between. A clock
// that was set back does not turn a meter back: it stands until the hour has come again.
func (m Meter) To(ms int64, r Rate) Meter {
	if ms <= m.AtMS {
		return m
	}
	return Meter{AtMS: ms, Used: m.Used.Plus(r.ms.times(ms - m.AtMS))}
}
