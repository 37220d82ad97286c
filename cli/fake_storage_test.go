package cli

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"io"
	"net"
	"slices"
	"time"

	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/vee"
	"github.com/reservoir-cloud/reservoir/vhi"
	"github.com/reservoir-cloud/reservoir/vmi"
)

func (f fakeVEEM) UpdateVEEs(_ context.Context, us []vmi.VEEUpdate) (out []vmi.Outcome, err error) {
	for _, u := range us {
		o := vmi.Outcome{ID: u.ID, OK: true, Detail: "applied live"}
		switch {
		case u.VCPUs != nil && *u.VCPUs > 1:
			o.Detail = "applied at next boot: 2 vCPUs (it was started with at most 1)"
		case u.Disks["root"] != 0 && u.Disks["root"] < vee.GiB:
			o = vmi.Outcome{ID: u.ID, Code: string(fault.Malformed), Detail: `disks: "root" has 1GiB, and a disk can only grow`}
		}
		out = append(out, o)
	}
	return out, nil
}

func (f fakeVEEM) ListDisks(context.Context, vee.ID) ([]vee.DiskInfo, error) {
	return []vee.DiskInfo{
		{Name: "root", Size: vee.GiB, Used: 12 * vee.MiB, Format: "qcow2", Source: "appliance", Layers: 1},
		{Name: "data", Size: 64 * vee.MiB, Used: vee.MiB, Format: "qcow2", Persistent: true},
	}, nil
}

// ExportDisk gives the same few bytes for every disk.
func (f fakeVEEM) ExportDisk(_ context.Context, id vee.ID, disk, snapshot string) (io.ReadWriteCloser, error) {
	v, err := f.GetVEE(context.Background(), id)
	if err != nil {
		return nil, err
	}
	if v.State == vee.Active && snapshot == "" {
		return nil, fault.New(fault.WrongState, "disk %q of VEE %s is in use", disk, id).Try("stop it, or name a snapshot: reservoir vee snapshot create %s NAME", id)
	}
	content := []byte("the content of " + disk + "\n")
	sum := sha256.Sum256(content)
	near, far := net.Pipe()
	go func() {
		defer far.Close()
		head, _ := json.Marshal(vhi.ExportHeader{Digest: "sha256:" + hex.EncodeToString(sum[:]), Size: int64(len(content))})
		_, _ = far.Write(append(append(head, '\n'), content...))
	}()
	return near, nil
}

func (f fakeVEEM) CreateSnapshot(_ context.Context, id vee.ID, name string, memory bool) (vee.Snapshot, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if slices.ContainsFunc(f.snapshots, func(s vee.Snapshot) bool { return s.Name == name }) {
		return vee.Snapshot{}, fault.New(fault.Exists, "VEE %s has a snapshot %q already", id, name)
	}
	s := vee.Snapshot{Name: name, Memory: memory, Created: f.ago(5 * time.Minute), Disks: []string{"root", "data"}, Size: 40 * vee.MiB}
	f.snapshots = append(f.snapshots, s)
	return s, nil
}

func (f fakeVEEM) ListSnapshots(context.Context, vee.ID) ([]vee.Snapshot, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]vee.Snapshot{}, f.snapshots...), nil
}

func (f fakeVEEM) RestoreSnapshot(_ context.Context, id vee.ID, name string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !slices.ContainsFunc(f.snapshots, func(s vee.Snapshot) bool { return s.Name == name }) {
		return fault.New(fault.NotFound, "VEE %s has no snapshot %q", id, name).Try("reservoir vee snapshot list %s", id)
	}
	return nil
}

func (f fakeVEEM) DeleteSnapshot(_ context.Context, _ vee.ID, name string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.snapshots = slices.DeleteFunc(f.snapshots, func(s vee.Snapshot) bool { return s.Name == name })
	return nil
}
