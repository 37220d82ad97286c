package agent

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/reservoir-cloud/reservoir/internal/durable"
	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/van"
	"github.com/reservoir-cloud/reservoir/van/plan"
	"github.com/reservoir-cloud/reservoir/vee"
	"github.com/reservoir-cloud/reservoir/vhi"
)

// datapath makes the kernel hold what the segments ask; van.Network is one.
type datapath interface {
	Apply(segments []plan.Segment) error
	Mend() ([]plan.Change, error)
	Show() (have, want plan.HostPlan, err error)
	Plug(id vee.ID, nic int) (tap string, err error)
	Unplug(id vee.ID) error
	Sweep(keep []vee.ID) error
	Release(id vee.ID, to netip.Addr) error
	Announce(id vee.ID) error
	Inside(segment string, f func(device string) error) error
	Traffic(id vee.ID, nics int) (van.Traffic, error)
	Close() error
}

// answering of what guests ask their networks for, by the segments that are in effect.
type answering interface {
	Set(segments []plan.Segment)
	Close() error
}

const (
	// plugPatience is how long a NIC waits for the site to tell of its network. The site puts
	// that at the same time as it assigns the VEE.
	plugPatience = 10 * time.Second
	// mendEvery so often the kernel is compared with what it should have.
	mendEvery = time.Minute
)

// networks of a host: the segments that the site has put, on disk and in effect.
type networks struct {
	dir     string
	host    string
	path    datapath
	answers answering
	changed func() // the report has; must not block
	log     *slog.Logger

	applying sync.Mutex // held while path is told, so that the newest comes last

	mu     sync.Mutex
	kept   map[string]plan.Segment // by ID
	puts   uint64                  // of changes of kept
	effect map[string]plan.Segment // what of it is in effect
	done   uint64                  // puts that are in effect
	news   chan struct{}           // closed when effect changes
}

// openNetworks that were kept, and puts them into effect as far as they can be.
func openNetworks(dir, host string, path datapath, answers answering, changed func(), log *slog.Logger) (*networks, error) {
	n := &networks{dir: filepath.Join(dir, "segments"), host: host, path: path, answers: answers, changed: changed, log: log,
		kept: map[string]plan.Segment{}, effect: map[string]plan.Segment{}, news: make(chan struct{})}
	if err := os.MkdirAll(n.dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the directory of networks: %w", err)
	}
	files, err := os.ReadDir(n.dir)
	if err != nil {
		return nil, fmt.Errorf("list the networks of this host: %w", err)
	}
	for _, f := range files {
		name := filepath.Join(n.dir, f.Name())
		if strings.HasPrefix(f.Name(), ".") {
			_ = os.Remove(name) // a write that a crash cut off
			continue
		}
		var s plan.Segment
		err := durable.ReadJSON(name, &s)
		if err == nil {
			err = s.Check()
		}
		if err != nil { // the site puts it again
			log.Warn("a network that was kept is damaged", "file", f.Name(), "err", err)
			_ = os.Remove(name)
			continue
		}
		n.kept[s.ID] = s
	}
	n.puts++
	if err := n.apply(); err != nil {
		log.Error("networks of this host", "err", err) // the site, which is not told that they are in effect, puts them again
	}
	return n, nil
}

func (n *networks) file(id string) string {
	sum := sha256.Sum256([]byte(id))
	return filepath.Join(n.dir, hex.EncodeToString(sum[:16])+".json")
}

// put implements vhi.Networks.
func (n *networks) put(s plan.Segment) error {
	if err := s.Check(); err != nil {
		return fault.New(fault.Malformed, "%w", err)
	}
	n.mu.Lock()
	if old, there := n.kept[s.ID]; there && old.Version >= s.Version && n.effect[s.ID].Version == old.Version {
		n.mu.Unlock()
		return nil
	} else if !there || old.Version < s.Version {
		if err := durable.WriteJSON(n.file(s.ID), s, 0o600); err != nil {
			n.mu.Unlock()
			return fmt.Errorf("keep network %s: %w", s.ID, err)
		}
		n.kept[s.ID] = s
		n.puts++
	}
	n.mu.Unlock()
	return n.apply()
}

func (n *networks) remove(id string) error {
	n.mu.Lock()
	if _, there := n.kept[id]; there {
		if err := durable.Remove(n.file(id)); err != nil {
			n.mu.Unlock()
			return fmt.Errorf("remove network %s: %w", id, err)
		}
		delete(n.kept, id)
		n.puts++
	}
	n.mu.Unlock()
	return n.apply()
}

// apply what is kept, unless somebody else has meanwhile: calls that come together are one.
func (n *networks) apply() error {
	n.mu.Lock()
	wanted := n.puts
	n.mu.Unlock()
	n.applying.Lock()
	defer n.applying.Unlock()
	n.mu.Lock()
	if n.done >= wanted {
		n.mu.Unlock()
		return nil
	}
	puts, effect := n.puts, make(map[string]plan.Segment, len(n.kept))
	all := make([]plan.Segment, 0, len(n.kept))
	for id, s := range n.kept {
		effect[id] = s
		all = append(all, s)
	}
	n.mu.Unlock()
	slices.SortFunc(all, func(a, b plan.Segment) int { return strings.Compare(a.ID, b.ID) })
	if err := n.path.Apply(all); err != nil {
		return fmt.Errorf("networks of host %s: %w", n.host, err)
	}
	n.answers.Set(all)
	n.mu.Lock()
	n.effect, n.done = effect, puts
	close(n.news)
	n.news = make(chan struct{})
	n.mu.Unlock()
	n.changed()
	return nil
}

// versions that are in effect, by segment.
func (n *networks) versions() map[string]uint64 {
	n.mu.Lock()
	defer n.mu.Unlock()
	of := make(map[string]uint64, len(n.effect))
	for id, s := range n.effect {
		of[id] = s.Version
	}
	return of
}

// Plug implements vet.Plugs: it waits until the site has told of the NIC's network, so that
// a guest never sends a frame that nobody looks at.
func (n *networks) Plug(ctx context.Context, id vee.ID, nic int) (tap string, err error) {
	patience := time.NewTimer(plugPatience)
	defer patience.Stop()
	for {
		known, news := n.knows(id, nic)
		if known {
			return n.path.Plug(id, nic)
		}
		select {
		case <-news:
		case <-ctx.Done():
			return "", fmt.Errorf("wait for the network of NIC %d of VEE %s: %w", nic, id, ctx.Err())
		case <-patience.C:
			return "", fault.New(fault.Unavailable, "the site has not told this host of the network of NIC %d of VEE %s", nic, id).Try("reservoir van list")
		}
	}
}

func (n *networks) knows(id vee.ID, nic int) (known bool, news <-chan struct{}) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, s := range n.effect {
		if slices.ContainsFunc(s.Ports, func(p plan.Port) bool { return p.VEE == id && p.NIC == nic }) {
			return true, n.news
		}
	}
	return false, n.news
}

func (n *networks) Unplug(id vee.ID) error    { return n.path.Unplug(id) }
func (n *networks) Announce(id vee.ID) error  { return n.path.Announce(id) }
func (n *networks) Sweep(keep []vee.ID) error { return n.path.Sweep(keep) }
func (n *networks) Release(id vee.ID, to netip.Addr) error {
	return n.path.Release(id, to)
}

// mend repairs now and then what somebody else has done to the kernel.
func (n *networks) mend(ctx context.Context) {
	tick := time.NewTicker(mendEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		amiss, err := n.path.Mend()
		if err != nil {
			n.log.Warn("mend the networks of this host", "err", err)
		}
		for _, c := range amiss {
			n.log.Warn("somebody has changed a network of this host; repaired", "change", c.String())
		}
	}
}

// show implements vhi.Networks.
func (n *networks) show(id string, underlay netip.Addr, bridge string) (vhi.NetworkPlan, error) {
	n.mu.Lock()
	s, there := n.kept[id]
	version := n.effect[id].Version
	n.mu.Unlock()
	if !there {
		return vhi.NetworkPlan{}, fault.New(fault.NotFound, "host %s does not hold network %s", n.host, id)
	}
	have, want, err := n.path.Show()
	if err != nil {
		return vhi.NetworkPlan{}, err
	}
	p := vhi.NetworkPlan{Host: n.host, Version: version, Entries: []string{}}
	own := plan.For(n.host, underlay, bridge, []plan.Segment{s})
	for _, e := range own.Entries() {
		if w := want[plan.KeyOf(e)]; w != nil {
			e = w // as it is with all others, and after moves that the segment does not tell of yet
		}
		p.Entries = append(p.Entries, e.String())
		if h := have[plan.KeyOf(e)]; h == nil || !plan.Same(e, h) {
			p.Missing = append(p.Missing, e.String())
		}
	}
	for _, c := range plan.Diff(have, want) {
		if c.Want == nil && s.VNI != 0 && c.Key().VNI == s.VNI {
			p.Surplus = append(p.Surplus, c.Have.String())
		}
	}
	return p, nil
}

func (n *networks) close() error { return errors.Join(n.answers.Close(), n.path.Close()) }

// underlayOf a host: the address that it advertises, or else the one by which it reaches its
// site.
func underlayOf(ctx context.Context, advertise, site string) (netip.Addr, error) {
	if host, _, err := net.SplitHostPort(advertise); err == nil {
		if a, err := netip.ParseAddr(host); err == nil && !a.IsUnspecified() {
			return a.Unmap(), nil
		}
	}
	c, err := (&net.Dialer{}).DialContext(ctx, "udp", site) // nothing is sent
	if err != nil {
		return netip.Addr{}, fault.New(fault.Unavailable, "find the address that this host has for its neighbours: %w", err).Try("name it: reservoir host --underlay ADDRESS")
	}
	defer c.Close()
	return c.LocalAddr().(*net.UDPAddr).AddrPort().Addr().Unmap(), nil
}

// noNetwork is the data path where guests are simulated: there is none.
type noNetwork struct{}

func (noNetwork) Apply([]plan.Segment) error              { return nil }
func (noNetwork) Mend() ([]plan.Change, error)            { return nil, nil }
func (noNetwork) Plug(vee.ID, int) (string, error)        { return "", nil }
func (noNetwork) Unplug(vee.ID) error                     { return nil }
func (noNetwork) Sweep([]vee.ID) error                    { return nil }
func (noNetwork) Release(vee.ID, netip.Addr) error        { return nil }
func (noNetwork) Announce(vee.ID) error                   { return nil }
func (noNetwork) Inside(string, func(string) error) error { return nil }
func (noNetwork) Traffic(vee.ID, int) (van.Traffic, error) {
	return van.Traffic{}, fault.New(fault.Unsupported, "guests are simulated here: there is no network")
}
func (noNetwork) Close() error { return nil }
func (noNetwork) Show() (have, want plan.HostPlan, e error) {
	return nil, nil, fault.New(fault.Unsupported, "guests are simulated here: there is no network")
}

// noAnswers where there is nobody to ask.
type noAnswers struct{}

func (noAnswers) Set([]plan.Segment) {}
func (noAnswers) Close() error       { return nil }
