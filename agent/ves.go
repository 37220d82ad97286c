package agent

import (
	"context"
	"io"
	"path/filepath"
	"time"

	"github.com/reservoir-cloud/reservoir/agent/ve"
	"github.com/reservoir-cloud/reservoir/image"
	"github.com/reservoir-cloud/reservoir/vee"
	"github.com/reservoir-cloud/reservoir/vhi"
	"github.com/reservoir-cloud/reservoir/vhi/peer"
)

// presentEvery so often a host says what it has of VEs of which checkpoints are taken.
const presentEvery = 2 * time.Second

// openVEs reads the checkpoints that this host keeps.
func (a *agent) openVEs() error {
	store, err := ve.OpenStore(filepath.Join(a.cfg.Dir, "checkpoints"), a.cfg.Log)
	if err != nil {
		return err
	}
	a.ves = ve.New(ve.Config{
		Host: a.cfg.Name, Store: store, Here: a.veMembers, Guests: a.tracker, Neighbours: a.neighbours, Every: a.renewer.scaled(presentEvery),
		Dial: func(host, address string) peer.Trackers { return peer.NewTrackersClient(a.toPeer(host, address)) },
		Now:  time.Now, Log: a.cfg.Log,
	})
	return nil
}

// neighbours are the other hosts, as the discovery network tracker has them.
func (a *agent) neighbours() (list []ve.Neighbour) {
	for _, m := range a.company.others.Members() {
		list = append(list, ve.Neighbour{Host: m.Host, Address: m.Address, Doubted: m.Doubted})
	}
	return list
}

// veMembers are the VEEs here of which checkpoints are taken, as members of their VEs. One
// that belongs to no group is a VE by itself.
func (a *agent) veMembers() (list []ve.Here) {
	for _, l := range a.tracker.Locals() {
		d := l.Descriptor
		if d.Reliability.CheckpointMS == 0 {
			continue
		}
		h := ve.Here{VE: d.GroupID, Gone: l.Gone, Member: peer.Member{VEE: l.VEE, Name: d.Name, Epoch: l.Epoch, Running: l.Running, Policy: d.Reliability}}
		if h.VE == "" {
			h.VE = string(l.VEE)
		}
		for _, k := range d.Disks {
			if k.Image != "" {
				h.Images = append(h.Images, k.Image)
			}
		}
		for _, n := range d.NICs {
			h.Networks = append(h.Networks, n.Network+" "+n.Address)
		}
		list = append(list, h)
	}
	return list
}

// lastCheckpoints fills in the newest whole checkpoint of each VEE that this host keeps.
func (a *agent) lastCheckpoints(reports []vhi.Report) []vhi.Report {
	for i := range reports {
		if k, found := a.ves.Last(reports[i].VEE); found {
			reports[i].Checkpoint = &vee.Checkpoint{N: k.N, At: k.At, Size: k.Size, Digest: k.Digest}
		}
	}
	return reports
}

// seeds come the way that images do. It implements vet.Seeds.
type seeds struct{ images *image.Cache }

func (s seeds) Open(ctx context.Context, of vee.Seed, progress func(vee.Progress)) (io.ReadCloser, error) {
	return s.images.Blob(ctx, of.Digest, of.Size, progress)
}

// newest checkpoint that a VEE goes on from. It implements vet.Checkpoints.
type newest struct{ a *agent }

func (n newest) Newest(ctx context.Context, id vee.ID) (io.ReadCloser, int, bool, error) {
	return n.a.ves.Newest(ctx, id)
}
