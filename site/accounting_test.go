package site

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/reservoir-cloud/reservoir/image"
	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/smi"
)

// The Service Manager hears from the VEE Manager what a service uses, over a restart of both,
// until it is gone: one life without a gap. (There is no host: the VEE waits for one, which
// is accounted too.)
func TestUsageReachesTheServiceManager(t *testing.T) {
	cfg := config(t)
	cfg.AccountingInterval = time.Second
	r := start(t, cfg)
	disk := filepath.Join(t.TempDir(), "disk.raw")
	if err := os.WriteFile(disk, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	src, err := image.FromFiles(t.Context(), image.Files{Disk: disk})
	if err != nil {
		t.Fatal(err)
	}
	hc := r.operator(t)
	if _, err := (image.Remote{Base: hc.Base, HTTP: hc.HTTP, Token: hc.Token}).Push(t.Context(), src, "empty", nil); err != nil {
		t.Fatal(err)
	}
	manifest := "service: shop\ncomponents:\n  - {name: web, image: empty, memory: 128MiB}\n"
	if _, err := smi.NewClient(hc).Deploy(t.Context(), smi.Deploy{Manifest: manifest, BestEffort: true}); err != nil {
		t.Fatal(err)
	}
	eventually := func(what string, ok func(smi.VEEUsage) bool) smi.VEEUsage {
		t.Helper()
		var u smi.ServiceUsage
		for deadline := time.Now().Add(time.Minute); ; time.Sleep(50 * time.Millisecond) {
			var err error
			u, err = smi.NewClient(r.operator(t)).Usage(t.Context(), "", "shop")
			if err != nil && !fault.Has(err, fault.NotFound) {
				t.Fatal(err)
			}
			if len(u.VEEs) == 1 && ok(u.VEEs[0]) {
				return u.VEEs[0]
			}
			if time.Now().After(deadline) {
				t.Fatalf("%s: not within a minute; %+v", what, u)
			}
		}
	}
	before := eventually("two intervals", func(v smi.VEEUsage) bool { return v.Total.InitialMS > 2000 })
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}
	r = start(t, cfg)
	eventually("more after a restart", func(v smi.VEEUsage) bool { return v.Total.InitialMS > before.Total.InitialMS+2000 })
	if err := smi.NewClient(r.operator(t)).Delete(t.Context(), "", "shop"); err != nil {
		t.Fatal(err)
	}
	end := eventually("the last message", func(v smi.VEEUsage) bool { return v.Ended })
	if n := len(end.Intervals); n != 1 || end.Intervals[0].ToMS-end.Intervals[0].FromMS != end.Total.InitialMS {
		t.Errorf("%d intervals: %+v; want one without a gap", n, end)
	}
}
