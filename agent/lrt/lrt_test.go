package lrt

import (
	"testing"

	"github.com/reservoir-cloud/reservoir/vee"
)

func TestCapacity(t *testing.T) {
	const mem, disk = 16 * vee.GiB, 100 * vee.GiB
	for name, c := range map[string]struct {
		offer Offer
		want  vee.Resources
		fails bool
	}{
		"nothing said":     {Offer{}, vee.Resources{MilliCPU: 8 * 4000, Memory: mem - memoryReserve, Disk: disk - diskReserve}, false},
		"all said":         {Offer{CPUOverbook: 1, Memory: vee.GiB, Disk: 2 * vee.GiB}, vee.Resources{MilliCPU: 8000, Memory: vee.GiB, Disk: 2 * vee.GiB}, false},
		"too much memory":  {Offer{Memory: mem + 1}, vee.Resources{}, true},
		"too much disk":    {Offer{Disk: disk + 1}, vee.Resources{}, true},
		"underbooked":      {Offer{CPUOverbook: 0.5}, vee.Resources{}, true},
		"absurdly booked":  {Offer{CPUOverbook: 1e9}, vee.Resources{}, true},
		"negative booking": {Offer{CPUOverbook: -1}, vee.Resources{}, true},
	} {
		got, err := capacity(c.offer, 8, mem, disk)
		if got != c.want || (err != nil) != c.fails {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
	}
	if _, _, err := Capacity(Offer{}, t.TempDir()); err != nil {
		t.Error("this machine:", err)
	}
}
