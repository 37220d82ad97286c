// Package dnt is the discovery network tracker of a host's agent (seed 4): it knows which
// other hosts of the site there are, which of them are doubted, how far away each is, and so
// who is the nearest outside some set. Hosts find each other by the few that the site names to
// each, and by those that they have kept on disk: for what follows they need no site.
//
// Membership and doubt are SWIM's (Das, Gupta, Motivala, DSN 2002; hashicorp/memberlist),
// distances Vivaldi's (Dabek et al., SIGCOMM 2004; serf/coordinate). All of it travels over
// the agents' mutual TLS (pipes.go), so that nobody but a host of this site has a say.
//
// A doubt never is a reason to start a VEE elsewhere: that is ownership's alone.
package dnt

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log"
	"log/slog"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"
	"github.com/hashicorp/serf/coordinate"

	"github.com/reservoir-cloud/reservoir/dvms"
	"github.com/reservoir-cloud/reservoir/internal/durable"
	"github.com/reservoir-cloud/reservoir/vhi"
)

// Config of a Tracker. Fields without a word about their zero value are needed.
type Config struct {
	Dir     string // for the addresses of the others
	Host    string
	Address netip.AddrPort // where the others reach this host's agent
	// Underlay address of this host, which the others are told; zero: it has none.
	Underlay netip.Addr
	Dial     Dial
	Scale    float64 // of all timings
	// Doubted is told, by Run, of a host that does not answer any more.
	Doubted func(host string)
	// Changed: what is known of the others has; it must not block.
	Changed func()
	Log     *slog.Logger
}

// Member is another host.
type Member struct {
	Host     string
	Address  string     // of its agent, host:port
	Underlay netip.Addr // zero: it has none
	// Doubted: it does not answer, or somebody says so of it.
	Doubted bool
	// Distance is an estimate of the round-trip time to it; Far: nothing is known of it yet.
	Distance time.Duration
	Far      bool
}

const (
	// lookEvery so often those are looked for that are known from disk or by the site's word
	// and are not there; at most lookFor of them at once.
	lookEvery = 10 * time.Second
	lookFor   = 3
	// forget a host that was not there for so long.
	forget = 24 * time.Hour
)

// Tracker of the other hosts.
type Tracker struct {
	cfg    Config
	pipes  *pipes
	list   *memberlist.Memberlist
	coords *coordinate.Client

	mu    sync.Mutex
	known map[string]*acquaintance // by host; outlives its being there
	near  map[string]*coordinate.Coordinate
	news  chan struct{}  // of size one: look for others now
	gone  []string       // since Run looked last
	kept  []acquaintance // as it is on disk; Run's alone
}

// acquaintance is what is kept on disk of another host.
type acquaintance struct {
	Host     string     `json:"host"`
	Address  string     `json:"address"`
	Underlay netip.Addr `json:"underlay,omitzero"`
	Seen     time.Time  `json:"seen"` // there, by this host's clock
	there    bool
}

// Open begins to listen and reads whom this host knew before; Run looks for them.
func Open(cfg Config) (*Tracker, error) {
	coords, err := coordinate.NewClient(coordinate.DefaultConfig())
	if err != nil {
		return nil, fmt.Errorf("network coordinates: %w", err)
	}
	t := &Tracker{cfg: cfg, pipes: newPipes(cfg), coords: coords, known: map[string]*acquaintance{}, near: map[string]*coordinate.Coordinate{}, news: make(chan struct{}, 1)}
	var kept []acquaintance
	if err := durable.ReadJSON(t.file(), &kept); err != nil && !errors.Is(err, fs.ErrNotExist) {
		cfg.Log.Warn("the addresses of the other hosts are damaged; the site will tell", "err", err)
	}
	for _, k := range kept {
		if k.Host != cfg.Host {
			t.known[k.Host] = &k
		}
	}
	t.kept = kept
	c := memberlist.DefaultLANConfig()
	c.Name, c.Transport, c.RequireNodeNames, c.DisableTcpPings = cfg.Host, t.pipes, true, true
	c.BindAddr, c.BindPort = cfg.Address.Addr().String(), int(cfg.Address.Port())
	c.AdvertiseAddr, c.AdvertisePort = c.BindAddr, c.BindPort
	c.Delegate, c.Events, c.Ping = meta{t}, (*events)(t), (*pings)(t)
	c.UDPBufferSize, c.TCPTimeout = largestPacket, 3*time.Second
	for _, d := range []*time.Duration{&c.TCPTimeout, &c.PushPullInterval, &c.ProbeTimeout, &c.ProbeInterval, &c.GossipInterval, &c.GossipToTheDeadTime} {
		*d = time.Duration(float64(*d) * cfg.Scale)
	}
	c.Logger = log.New(logLines{cfg.Log}, "", 0)
	if t.list, err = memberlist.Create(c); err != nil {
		return nil, fmt.Errorf("membership of host %s: %w", cfg.Host, err)
	}
	return t, nil
}

func (t *Tracker) file() string { return filepath.Join(t.cfg.Dir, "neighbours.json") }

// Meet hosts that the site names.
func (t *Tracker) Meet(neighbours []vhi.Neighbour) {
	t.mu.Lock()
	fresh := false
	for _, n := range neighbours {
		k := t.known[n.Host]
		if n.Host == t.cfg.Host || k != nil && (k.there || k.Address == n.Address) {
			continue
		}
		t.known[n.Host] = &acquaintance{Host: n.Host, Address: n.Address, Seen: time.Now()}
		fresh = true
	}
	t.mu.Unlock()
	if fresh {
		t.poke()
	}
}

func (t *Tracker) poke() {
	select {
	case t.news <- struct{}{}:
	default:
	}
}

// Run looks for the other hosts until ctx is done, and then ends all that Open began. It does
// not take leave: an agent that ends will be back.
func (t *Tracker) Run(ctx context.Context) error {
	tick := time.NewTicker(time.Duration(float64(lookEvery) * t.cfg.Scale))
	defer tick.Stop()
	for {
		t.look()
		select {
		case <-ctx.Done():
			err := t.list.Shutdown()
			t.pipes.end()
			return err
		case <-t.news:
		case <-tick.C:
		}
		t.mu.Lock()
		gone := t.gone
		t.gone = nil
		t.mu.Unlock()
		for _, host := range gone {
			t.cfg.Doubted(host)
		}
		t.keep()
	}
}

// look for some that are not there.
func (t *Tracker) look() {
	t.mu.Lock()
	var missing []*acquaintance
	for _, k := range t.known {
		if !k.there {
			missing = append(missing, k)
		}
	}
	// Who was there last, first; and not always the same.
	slices.SortFunc(missing, func(a, b *acquaintance) int { return b.Seen.Compare(a.Seen) })
	var names []string
	for i, k := range missing {
		if i >= lookFor {
			break
		}
		names = append(names, k.Host+"/"+k.Address)
		if time.Since(k.Seen) > forget {
			delete(t.known, k.Host)
		}
	}
	t.mu.Unlock()
	if len(names) == 0 {
		return
	}
	if n, err := t.list.Join(names); err != nil && n == 0 {
		t.cfg.Log.Debug("look for other hosts", "hosts", names, "err", err)
	}
}

// keep the addresses of the others on disk, where they have changed.
func (t *Tracker) keep() {
	t.mu.Lock()
	kept := make([]acquaintance, 0, len(t.known))
	for _, k := range t.known {
		if k.there {
			k.Seen = time.Now().Truncate(time.Hour) // so that the file seldom changes
		}
		kept = append(kept, *k)
	}
	t.mu.Unlock()
	slices.SortFunc(kept, func(a, b acquaintance) int { return strings.Compare(a.Host, b.Host) })
	for i := range kept {
		kept[i].there = false
	}
	if slices.EqualFunc(t.kept, kept, func(a, b acquaintance) bool {
		return a.Host == b.Host && a.Address == b.Address && a.Underlay == b.Underlay && a.Seen.Equal(b.Seen)
	}) {
		return
	}
	if err := durable.WriteJSON(t.file(), kept, 0o600); err != nil {
		t.cfg.Log.Warn("keep the addresses of the other hosts", "err", err)
		return
	}
	t.kept = kept
}

// Members that were there lately, by name.
func (t *Tracker) Members() []Member {
	doubted := map[string]bool{}
	for _, n := range t.list.Members() {
		doubted[n.Name] = n.State != memberlist.StateAlive
	}
	own := t.coords.GetCoordinate()
	t.mu.Lock()
	defer t.mu.Unlock()
	list := make([]Member, 0, len(t.known))
	for _, k := range t.known {
		d, listed := doubted[k.Host]
		m := Member{Host: k.Host, Address: k.Address, Underlay: k.Underlay, Doubted: d || !listed, Far: true}
		if c := t.near[k.Host]; c != nil && c.IsCompatibleWith(own) {
			m.Distance, m.Far = own.DistanceTo(c), false
		}
		list = append(list, m)
	}
	slices.SortFunc(list, func(a, b Member) int { return strings.Compare(a.Host, b.Host) })
	return list
}

// Member of that name; false: it is not known.
func (t *Tracker) Member(host string) (Member, bool) {
	for _, m := range t.Members() {
		if m.Host == host {
			return m, true
		}
	}
	return Member{}, false
}

// Overlay of those that are there now, for one step of package dvms.
func (t *Tracker) Overlay() dvms.Overlay { return nearest(t.Members()) }

// met notes that a host is there.
func (t *Tracker) met(n *memberlist.Node) {
	if n.Name == t.cfg.Host {
		return
	}
	var u netip.Addr
	_ = u.UnmarshalText(n.Meta) // nobody's, or garbage: none
	t.mu.Lock()
	t.known[n.Name] = &acquaintance{Host: n.Name, Address: n.Address(), Underlay: u, Seen: time.Now(), there: true}
	t.mu.Unlock()
	t.poke()
	t.cfg.Changed()
}

func (t *Tracker) lost(host string) {
	t.mu.Lock()
	if k := t.known[host]; k != nil {
		k.there, k.Seen = false, time.Now()
	}
	delete(t.near, host)
	t.gone = append(t.gone, host) // the membership is locked now: whom this concerns is told by Run
	t.mu.Unlock()
	t.coords.ForgetNode(host)
	t.poke()
	t.cfg.Changed()
}

// events of the membership.
type events Tracker

func (e *events) NotifyJoin(n *memberlist.Node)   { (*Tracker)(e).met(n) }
func (e *events) NotifyUpdate(n *memberlist.Node) { (*Tracker)(e).met(n) }
func (e *events) NotifyLeave(n *memberlist.Node) {
	if n.Name != e.cfg.Host {
		(*Tracker)(e).lost(n.Name)
	}
}

// meta is what a host says of itself beside its name and address: its underlay address.
type meta struct{ t *Tracker }

func (m meta) NodeMeta(int) []byte {
	if !m.t.cfg.Underlay.IsValid() {
		return nil
	}
	text, _ := m.t.cfg.Underlay.MarshalText() // cannot fail
	return text
}
func (meta) NotifyMsg([]byte)                {}
func (meta) GetBroadcasts(int, int) [][]byte { return nil }
func (meta) LocalState(bool) []byte          { return nil }
func (meta) MergeRemoteState([]byte, bool)   {}

// pings carry coordinates, and measure the way.
type pings Tracker

func (p *pings) AckPayload() []byte {
	b, _ := json.Marshal(p.coords.GetCoordinate()) // a valid one: no NaN
	return b
}

func (p *pings) NotifyPingComplete(n *memberlist.Node, rtt time.Duration, payload []byte) {
	var c coordinate.Coordinate
	if json.Unmarshal(payload, &c) != nil || !c.IsValid() {
		return // it has none yet, or one of another kind
	}
	if _, err := p.coords.Update(n.Name, &c, rtt); err != nil {
		p.cfg.Log.Debug("the coordinate of another host", "host", n.Name, "err", err)
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.near[n.Name] = &c
}

// logLines of memberlist: "[WARN] memberlist: …". What it warns of is usual: hosts go away.
type logLines struct{ log *slog.Logger }

func (l logLines) Write(b []byte) (int, error) {
	text := string(bytes.TrimSpace(b))
	level := slog.LevelDebug
	if strings.HasPrefix(text, "[ERR]") {
		level = slog.LevelInfo
	}
	_, text, _ = strings.Cut(text, "] ")
	l.log.Log(context.Background(), level, text)
	return len(b), nil
}
