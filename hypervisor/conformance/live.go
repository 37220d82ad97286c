package conformance

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"io"
	"slices"

	"github.com/reservoir-cloud/reservoir/hypervisor"
	"github.com/reservoir-cloud/reservoir/vee"
)

// offers reports whether the driver says that it can do op; who does is held to it.
func (b *bench) offers(op string) bool {
	b.Helper()
	c, err := b.d.Capabilities(b.Context())
	b.must("capabilities", err)
	b.notDeclared = !slices.Contains(c.Operations, op)
	return !b.notDeclared
}

// resizer of the driver; nil where it declares no change of a guest that runs, and then it
// need not be one.
func (b *bench) resizer(ops ...string) hypervisor.Resizer {
	b.Helper()
	d, is := b.d.(hypervisor.Resizer)
	if !slices.ContainsFunc(ops, b.offers) {
		return nil
	}
	if !is {
		b.Fatalf("it declares %q and is no Resizer", ops)
	}
	return d
}

// liveChanges that cannot be made while a guest runs wait, and say so; and what was changed
// is idempotent. Guests of the suite have no balloon driver: memory is not touched.
func liveChanges(b *bench) {
	d := b.resizer(hypervisor.OpDisks, hypervisor.OpMemory, hypervisor.OpVCPUs)
	if d == nil {
		return
	}
	g := b.running(one)
	want := g.Descriptor
	want.Memory, want.VCPUs = 2*want.Memory, want.VCPUs+7
	for range 2 {
		waiting, err := d.Resize(b.Context(), one, epoch(1), want)
		b.must("resize", err)
		if len(waiting) != 2 {
			b.Errorf("%q wait for the next boot, want memory and vCPUs", waiting)
		}
	}
	_, err := d.Resize(b.Context(), one, epoch(0), want)
	b.refused("resize under a stale epoch", err, hypervisor.ErrStaleEpoch)
	b.must("stop", b.d.Stop(b.Context(), one, epoch(1), 0))
	_, err = d.Resize(b.Context(), one, epoch(1), want)
	b.refused("resize a stopped guest", err, hypervisor.ErrWrongState)
}

// taken resizes a guest that runs to what it was declared to take, twice, and once more
// through a driver that was opened anew: nothing may wait. Then the guest still runs.
func (b *bench) taken(want vee.Descriptor) {
	b.Helper()
	for i := range 3 {
		waiting, err := b.d.(hypervisor.Resizer).Resize(b.Context(), one, epoch(1), want)
		b.must("resize", err)
		if len(waiting) > 0 {
			b.Errorf("%q wait for the next boot, and the driver declares that it can change them", waiting)
		}
		if i == 1 {
			b.reopen()
		}
	}
	b.is(one, hypervisor.Running)
}

// vcpusPlugged in while the guest runs, up to the number that was declared.
func vcpusPlugged(b *bench) {
	if b.resizer(hypervisor.OpVCPUs) == nil {
		return
	}
	g := b.guest(one, 1)
	g.Descriptor.VCPUsMax = g.Descriptor.VCPUs + 1
	b.must("prepare", b.d.Prepare(b.Context(), g))
	b.must("start", b.d.Start(b.Context(), g))
	g.Descriptor.VCPUs++
	b.taken(g.Descriptor)
}

// disksGrown while the guest runs, and as large after its next boot.
func disksGrown(b *bench) {
	if b.resizer(hypervisor.OpDisks) == nil {
		return
	}
	g := b.running(one)
	g.Descriptor.Disks = slices.Clone(g.Descriptor.Disks)
	g.Descriptor.Disks[0].Size = 64 * vee.MiB
	large := func() {
		b.Helper()
		x, tells := b.d.(hypervisor.DiskExporter)
		if !tells {
			return
		}
		list, err := x.Disks(b.Context(), one)
		b.must("list disks", err)
		if list[0].Size != 64*vee.MiB {
			b.Errorf("the disk has %s", list[0].Size)
		}
	}
	b.taken(g.Descriptor)
	large()
	b.must("stop", b.d.Stop(b.Context(), one, epoch(1), 0))
	b.must("start", b.d.Start(b.Context(), g))
	large()
}

// snapshots are taken of guests that run and of stopped ones, survive the driver, and what
// is not there or not possible is refused.
func snapshots(b *bench) {
	if !b.offers(hypervisor.OpSnapshot) {
		return
	}
	g := b.running(one)
	s := func() hypervisor.Snapshotter { return b.d.(hypervisor.Snapshotter) }
	take := func(name string, memory bool) error {
		_, err := s().Snapshot(b.Context(), g, name, memory)
		return err
	}
	b.must("snapshot of a guest that runs", take("one", true))
	b.is(one, hypervisor.Running)
	b.refused("a name twice", take("one", false), hypervisor.ErrExists)
	if err := take("Not A Name", false); err == nil {
		b.Error("a bad name was taken")
	}
	b.must("pause", b.d.Pause(b.Context(), one, epoch(1)))
	b.must("snapshot of a paused guest", take("two", false))
	b.is(one, hypervisor.Paused)
	b.reopen()
	all, err := s().Snapshots(b.Context(), one)
	b.must("list", err)
	if len(all) != 2 || all[0].Name != "one" || !all[0].Memory || all[1].Name != "two" || all[1].Memory {
		b.Errorf("snapshots are %+v", all)
	}
	b.refused("restore an unknown one", s().Restore(b.Context(), one, epoch(1), "none"), hypervisor.ErrNotFound)
	b.is(one, hypervisor.Paused)
	b.must("restore with memory", s().Restore(b.Context(), one, epoch(1), "one"))
	b.is(one, hypervisor.Suspended)
	b.must("wake", b.d.Wake(b.Context(), g))
	b.is(one, hypervisor.Running)
	b.must("restore the disks", s().Restore(b.Context(), one, epoch(1), "two"))
	b.is(one, hypervisor.Stopped)
	b.refused("memory of a stopped guest", take("three", true), hypervisor.ErrWrongState)
	b.must("snapshot of a stopped guest", take("three", false))
	for _, name := range []string{"one", "two", "three", "three"} {
		b.must("delete", s().DeleteSnapshot(b.Context(), one, epoch(1), name))
	}
	b.must("start after all", b.d.Start(b.Context(), g))
	b.refused("stale epoch", s().DeleteSnapshot(b.Context(), one, epoch(0), "one"), hypervisor.ErrStaleEpoch)
}

// exports have the digest that they name, and are refused while the disk is written.
func exports(b *bench) {
	if !b.offers(hypervisor.OpExport) {
		return
	}
	d := b.d.(hypervisor.DiskExporter)
	b.running(one)
	list, err := d.Disks(b.Context(), one)
	b.must("list disks", err)
	if len(list) == 0 {
		b.Fatal("it has no disks")
	}
	name := list[0].Name
	_, err = d.Export(b.Context(), one, name, "")
	b.refused("export a disk in use", err, hypervisor.ErrWrongState)
	b.must("stop", b.d.Stop(b.Context(), one, epoch(1), 0))
	x, err := d.Export(b.Context(), one, name, "")
	b.must("export", err)
	defer x.Close()
	content, err := io.ReadAll(x)
	b.must("read", err)
	if sum := sha256.Sum256(content); int64(len(content)) != x.Size || x.Digest != "sha256:"+hex.EncodeToString(sum[:]) || bytes.Equal(content, nil) {
		b.Errorf("%d bytes of digest %x, announced were %d of %s", len(content), sum, x.Size, x.Digest)
	}
	_, err = d.Export(b.Context(), one, "none", "")
	b.refused("export an unknown disk", err, hypervisor.ErrNotFound)
	_, err = d.Export(b.Context(), one, name, "none")
	b.refused("export of an unknown snapshot", err, hypervisor.ErrNotFound)
	_, err = d.Disks(b.Context(), vee.ID("alpha.aaaaaaaaaa"))
	b.refused("disks of nobody", err, hypervisor.ErrNotFound)
}
