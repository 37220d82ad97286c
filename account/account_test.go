package account

import (
	"testing"

	"pgregory.net/rapid"

	"github.com/reservoir-cloud/reservoir/vee"
)

func TestRates(t *testing.T) {
	d := vee.Descriptor{VCPUs: 2, Memory: 512 * vee.MiB, Disks: []vee.Disk{{Size: vee.GiB}, {Size: 1}}}
	for state, want := range map[vee.State]Usage{
		vee.Initial:   {InitialMS: 10},
		vee.Defined:   {DefinedMS: 10, DiskMiBMS: 10250},
		vee.Active:    {ActiveMS: 10, VCPUMS: 20, MemoryMiBMS: 5120, DiskMiBMS: 10250},
		vee.Paused:    {PausedMS: 10, VCPUMS: 20, MemoryMiBMS: 5120, DiskMiBMS: 10250},
		vee.Suspended: {SuspendedMS: 10, DiskMiBMS: 15370},
		vee.Destroyed: {},
	} {
		m := Meter{AtMS: 100}.To(110, RateOf(state, d))
		if m.Used != want || m.AtMS != 110 {
			t.Errorf("10 ms %s: %+v, want %+v", state, m, want)
		}
	}
}

// TestReadingsInBetweenChangeNothing: wherever a life is read, the parts sum up to the whole.
func TestReadingsInBetweenChangeNothing(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		whole, read, last, sum := Meter{}, Meter{}, Meter{}, Usage{}
		for range rapid.IntRange(1, 20).Draw(t, "segments") {
			r := RateOf(rapid.SampledFrom(vee.States).Draw(t, "state"),
				vee.Descriptor{VCPUs: rapid.IntRange(1, 64).Draw(t, "vcpus"), Memory: vee.Bytes(rapid.Int64Range(1, 1<<40).Draw(t, "memory"))})
			end := whole.AtMS + rapid.Int64Range(-10, 100_000).Draw(t, "ms")
			whole = whole.To(end, r)
			for range rapid.IntRange(0, 3).Draw(t, "readings") {
				read = read.To(rapid.Int64Range(last.AtMS, max(last.AtMS, end)).Draw(t, "at"), r)
				sum, last = sum.Plus(read.Used.Minus(last.Used)), read
			}
			read = read.To(end, r)
		}
		if sum = sum.Plus(read.Used.Minus(last.Used)); sum != whole.Used {
			t.Fatalf("parts %+v, whole %+v", sum, whole.Used)
		}
	})
}
