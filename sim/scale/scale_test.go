package scale

import (
	"fmt"
	"reflect"
	"slices"
	"testing"
	"time"
)

func run(t *testing.T, c Config) (Result, *world) {
	t.Helper()
	r, w, err := play(c)
	if err != nil {
		t.Fatal(err)
	}
	return r, w
}

// TestBooks: after any experiment each VEE is at one host, hosts carry what their VEEs need,
// memory holds, and the same seed gives the same result.
func TestBooks(t *testing.T) {
	for _, a := range []Algorithm{Ring, Locality, Central} {
		c := Dense(a, 200)
		c.Sites, c.Duration = 4, 10*time.Minute
		r, w := run(t, c)
		if r.Violations.N == 0 || r.Migrations == 0 || r.Messages == 0 || len(r.Curve) != 100 {
			t.Errorf("%s: nothing happened: %+v", a, r)
		}
		for h := range w.on {
			used := int32(0)
			for _, v := range w.on[h] {
				used += int32(w.load[v])
				if w.at[v] != int32(h) {
					t.Errorf("%s: VEE %d is on the list of host %d, and at %d", a, v, h, w.at[v])
				}
			}
			if used != w.used[h] || int64(len(w.on[h]))*c.VEEMemoryMiB > c.HostMemoryMiB {
				t.Errorf("%s: host %d carries %d, counted %d, with %d VEEs", a, h, used, w.used[h], len(w.on[h]))
			}
		}
		if again, _ := run(t, c); !reflect.DeepEqual(r, again) {
			t.Errorf("%s: the same seed gives two results:\n%+v\n%+v", a, r, again)
		}
	}
}

// TestSameTrace: what a VEE needs at the end does not depend on who schedules.
func TestSameTrace(t *testing.T) {
	var loads [][]int16
	for _, a := range []Algorithm{Ring, Locality, Central} {
		c := Published(a, 50)
		c.Duration = 5 * time.Minute
		_, w := run(t, c)
		loads = append(loads, w.load)
	}
	if !slices.Equal(loads[0], loads[1]) || !slices.Equal(loads[0], loads[2]) {
		t.Error("the algorithms do not see the same loads")
	}
}

// TestLocality keeps VEEs at their site; the ring does not.
func TestLocality(t *testing.T) {
	inter := map[Algorithm]float64{}
	for _, a := range []Algorithm{Ring, Locality} {
		c := Dense(a, 400)
		c.Sites, c.Duration = 4, 20*time.Minute
		r, _ := run(t, c)
		inter[a] = r.InterSite()
	}
	if inter[Locality] > .1 || inter[Ring] < .3 {
		t.Errorf("between sites: %v", inter)
	}
}

// TestCrowded: hosts that cannot all be well ask for help, and nothing stands still.
func TestCrowded(t *testing.T) {
	for _, a := range []Algorithm{Ring, Locality, Central} {
		c := Dense(a, 20)
		c.VEEs, c.Mean, c.Duration = 120, 90, 25*time.Minute
		r, _ := run(t, c)
		if a != Central && r.Help == 0 || a == Central && r.NoPlan == 0 {
			t.Errorf("%s: nobody has said that there is no room: %+v", a, r)
		}
	}
}

func TestCheck(t *testing.T) {
	for i, harm := range []func(*Config){
		func(c *Config) { c.Algorithm = "magic" },
		func(c *Config) { c.Hosts = 1 },
		func(c *Config) { c.Sites = 0 },
		func(c *Config) { c.VEEs = 10_000_001 },
		func(c *Config) { c.VEEs = 32*c.Hosts + 1 },
		func(c *Config) { c.Duration = 0 },
		func(c *Config) { c.Levels = 0 },
		func(c *Config) { c.Std = -1 },
	} {
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			c := Published(Ring, 10)
			harm(&c)
			if _, err := Run(c); err == nil {
				t.Errorf("%+v was taken", c)
			}
		})
	}
}

func BenchmarkThousand(b *testing.B) {
	for _, a := range []Algorithm{Ring, Locality, Central} {
		b.Run(string(a), func(b *testing.B) {
			b.ReportAllocs()
			for range b.N {
				if _, err := Run(Dense(a, 1000)); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
