package conformance

import (
	"bytes"
	"errors"
	"io"

	"github.com/reservoir-cloud/reservoir/hypervisor"
	"github.com/reservoir-cloud/reservoir/vee"
)

// snapshotsTravel: a guest goes on at another host from the memory and the disks that a
// snapshot of it had, also after its own host has lost everything; what is cut off or of
// nobody leaves nothing behind.
func snapshotsTravel(b *bench) {
	if !b.offers(hypervisor.OpPack) {
		return
	}
	g := b.running(one)
	t := b.terminal(one)
	t.await("B")
	t.count(1)
	t.count(2)
	_, err := b.d.(hypervisor.Snapshotter).Snapshot(b.Context(), g, "one", true)
	b.must("snapshot", err)
	t = b.terminal(one)
	t.count(3)
	var packed bytes.Buffer
	b.refused("an unknown one", b.d.(hypervisor.Packer).Pack(b.Context(), one, "none", &packed), hypervisor.ErrNotFound)
	packed.Reset()
	b.must("pack", b.d.(hypervisor.Packer).Pack(b.Context(), one, "one", &packed))
	b.must("destroy", b.d.Destroy(b.Context(), one, epoch(1)))

	there := &bench{T: b.T, f: b.f, dir: b.TempDir()}
	there.open()
	p := there.d.(hypervisor.Packer)
	g.Epoch = epoch(2)
	for what, cut := range map[string][]byte{"nothing": nil, "half of it": packed.Bytes()[:packed.Len()/2], "rubbish": []byte("this is no snapshot at all")} {
		if err := p.Unpack(b.Context(), g, bytes.NewReader(cut)); err == nil {
			b.Errorf("%s was unpacked", what)
		}
		if o, err := there.d.Inspect(b.Context(), one); !errors.Is(err, hypervisor.ErrNotFound) {
			b.Errorf("after %s there is %+v, %v", what, o, err)
		}
	}
	b.must("unpack", p.Unpack(b.Context(), g, bytes.NewReader(packed.Bytes())))
	there.is(one, hypervisor.Suspended)
	there.refused("unpack over it", p.Unpack(b.Context(), g, bytes.NewReader(packed.Bytes())), hypervisor.ErrWrongState)
	b.must("wake", there.d.Wake(b.Context(), g))
	there.is(one, hypervisor.Running)
	there.terminal(one).count(3)
	b.must("stop", there.d.Stop(b.Context(), one, g.Epoch, 0))
	b.must("start from its disks", there.d.Start(b.Context(), g))
	there.terminal(one).await("B")

	there.guestTravels(g)

	other := g // another VEE begins with these disks
	other.ID = "alpha.conformand"
	if err := p.Seed(b.Context(), other, bytes.NewReader(packed.Bytes()[:packed.Len()/2])); err == nil {
		b.Error("a VEE was made of half a snapshot")
	}
	b.must("seed", p.Seed(b.Context(), other, bytes.NewReader(packed.Bytes())))
	there.is(other.ID, hypervisor.Stopped)
	there.refused("seed over it", p.Seed(b.Context(), other, bytes.NewReader(packed.Bytes())), hypervisor.ErrWrongState)
	b.must("start from another's disks", there.d.Start(b.Context(), other))
	there.terminal(other.ID).await("B")
}

// guestTravels: a guest that runs here, and stands in the way of others by its name, goes to a
// third host suspended, and to a fourth one stopped; snapshots of it do not go.
func (b *bench) guestTravels(g hypervisor.Guest) {
	p := b.d.(hypervisor.Packer)
	b.refused("pack what runs", p.Pack(b.Context(), g.ID, "", io.Discard), hypervisor.ErrWrongState)
	b.terminal(g.ID).count(1)
	b.must("suspend", b.d.Suspend(b.Context(), g.ID, g.Epoch, func(vee.Progress) {}))
	for _, c := range []hypervisor.Condition{hypervisor.Suspended, hypervisor.Stopped} {
		var packed bytes.Buffer
		b.must("pack", p.Pack(b.Context(), g.ID, "", &packed))
		next := &bench{T: b.T, f: b.f, dir: b.TempDir()}
		next.open()
		q := next.d.(hypervisor.Packer)
		b.must("unpack", q.Unpack(b.Context(), g, bytes.NewReader(packed.Bytes())))
		next.is(g.ID, c)
		if c == hypervisor.Suspended {
			b.must("wake", next.d.Wake(b.Context(), g))
			next.terminal(g.ID).count(2)
		} else {
			b.must("start", next.d.Start(b.Context(), g))
			next.terminal(g.ID).await("B")
		}
		b.must("stop", b.d.Stop(b.Context(), g.ID, g.Epoch, 0)) // for the second round
	}
	_, err := b.d.(hypervisor.Snapshotter).Snapshot(b.Context(), g, "stays", false)
	b.must("snapshot", err)
	b.refused("pack with a snapshot", p.Pack(b.Context(), g.ID, "", io.Discard), hypervisor.ErrUnsupported)
	b.must("start again", b.d.Start(b.Context(), g))
}
