package managers

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/reservoir-cloud/reservoir/sim"
	"github.com/reservoir-cloud/reservoir/smi"
	"github.com/reservoir-cloud/reservoir/vee"
)

var begin = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

const web = `service: web
components:
  - {name: db, image: db, memory: 128MiB, networks: [back], startup: {order: 1, waitingForGuest: true}}
  - {name: web, image: web, memory: 128MiB, replicas: {initial: 2, min: 1, max: 6}, networks: [public, back], startup: {order: 2}}
networks:
  - {name: public, public: true}
  - {name: back}
`

// bench is a site with three hosts that is run for some time.
type bench struct {
	*testing.T
	sim  *sim.Sim
	site *Site
}

func newBench(t *testing.T, seed uint64, change func(*Config)) *bench {
	t.Helper()
	k := sim.New(seed, begin)
	cfg := Config{Sim: k, Hosts: 3, Capacity: vee.Resources{MilliCPU: 8000, Memory: 8 * vee.GiB, Disk: 100 * vee.GiB},
		Times: Times{Fetch: constant(10 * time.Second), Boot: constant(20 * time.Second), Stop: constant(2 * time.Second)}}
	if change != nil {
		change(&cfg)
	}
	s, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	b := &bench{t, k, s}
	b.run(time.Second) // the hosts are heard
	return b
}

func constant(d time.Duration) func() time.Duration { return func() time.Duration { return d } }

// run for some time, in which nothing must happen that never may.
func (b *bench) run(d time.Duration) {
	b.Helper()
	if err := b.sim.Run(b.sim.Now().Add(d)); err != nil {
		b.Fatal(err)
	}
	if err := b.site.Err(); err != nil {
		b.Fatal(err)
	}
}

// do a call of the Service Manager as its customer, again and again while the site is down.
func (b *bench) do(call func() error) {
	b.Helper()
	for range 1000 {
		if b.site.Manager() != nil {
			err := call()
			b.site.Poke()
			if err == nil {
				return
			}
			if b.site.ctx.Err() == nil {
				b.Fatal(err)
			}
			b.site.down()
		}
		b.run(time.Second)
	}
	b.Fatal("the site was down all the time")
}

func (b *bench) deploy(text string) {
	b.Helper()
	key := "deploy"
	b.do(func() error {
		_, err := b.site.Manager().Deploy(b.site.As("acme"), smi.Deploy{Manifest: text, IdempotencyKey: key})
		return err
	})
}

func (b *bench) get(name string) (s smi.Service) {
	b.Helper()
	b.do(func() (err error) {
		s, err = b.site.Manager().Get(b.site.As("acme"), "", name)
		return err
	})
	return s
}

func TestServiceInVirtualTime(t *testing.T) {
	b := newBench(t, 1, nil)
	b.deploy(web)
	b.run(29 * time.Second)
	if s := b.get("web"); s.Phase != smi.Deploying {
		t.Errorf("after 29 s it is %s", s.Phase)
	}
	b.run(34 * time.Second) // 10 s for each image and 20 s for each boot, one after the other
	if s := b.get("web"); s.Phase != smi.Ready {
		t.Fatalf("after 63 s it is %s: %+v", s.Phase, s)
	}
	if serving, others := b.site.Running("web"); serving != 2 || others != 0 {
		t.Errorf("%d of web serve, and there are %d others", serving, others)
	}
	b.do(func() error { _, err := b.site.Manager().Scale(b.site.As("acme"), "", "web", "web", 5); return err })
	b.run(40 * time.Second)
	if s := b.get("web"); s.Phase != smi.Ready || len(s.Components[1].Replicas) != 5 {
		t.Fatalf("after it was scaled it is %+v", s)
	}
	if !b.site.Kill(b.get("web").Components[1].Replicas[0].VEE) {
		t.Error("there was no guest to kill")
	}
	b.run(10 * time.Second)
	if serving, _ := b.site.Running("web"); serving != 4 {
		t.Errorf("%d serve while one starts again", serving)
	}
	b.run(20 * time.Second)
	if serving, _ := b.site.Running("web"); serving != 5 {
		t.Errorf("%d serve", serving)
	}
	b.do(func() error { return b.site.Manager().Delete(b.site.As("acme"), "", "web") })
	b.run(2 * time.Minute)
	if serving, others := b.site.Running(""); serving+others != 0 {
		t.Errorf("%d guests are left", serving+others)
	}
}

// transcript of the events of a run.
func transcript(t *testing.T, seed uint64) string {
	b := newBench(t, seed, func(c *Config) {
		r := c.Sim.Stream("boot")
		c.Times.Boot = func() time.Duration { return 10*time.Second + time.Duration(r.Int64N(int64(30*time.Second))) }
	})
	b.sim.ShuffleTies()
	crash := b.sim.Stream("crash")
	b.site.Chances(func() bool { return crash.IntN(60) == 0 }, func() time.Duration { return time.Duration(crash.Int64N(int64(20 * time.Second))) })
	b.deploy(web)
	b.run(3 * time.Minute)
	var out strings.Builder
	for _, e := range b.site.Events() {
		fmt.Fprintf(&out, "%s %s %s %s\n", e.At.Sub(begin), e.Reason, e.Object, e.Message)
	}
	return out.String()
}

func TestARunFollowsFromItsSeed(t *testing.T) {
	for seed := range uint64(10) {
		one, two := transcript(t, seed), transcript(t, seed)
		if one != two {
			t.Fatalf("seed %d, one run:\n%s\nand again:\n%s", seed, one, two)
		}
	}
	if transcript(t, 1) == transcript(t, 2) {
		t.Error("two seeds gave the same run")
	}
}
