// Package ve tracks virtual environments on behalf of a site's hosts (the VET of seed 4): a VE
// is the VEEs of one service on one site, and what is tracked of each of them is its image
// layer, its network layer and its reliability layer, which are its checkpoints.
//
// Every host says, again and again, what it has of a VE: the VEEs that run there and the
// checkpoints that it keeps. It says so to the first two hosts in the VE's line, which each
// host works out by itself (Line). The first of them is the VE's tracker: it has the
// checkpoints taken, copied and given up. The second has the same record, made of the same
// presences, and adopts the tracking as soon as the first is doubted. No site takes part in
// that, so it goes on while the control plane is down; and none of it is a right to run a VEE,
// which is ownership's: two hosts that both believe to be first take a checkpoint too many.
//
// A checkpoint is one moment of the whole VE: all its guests stand still, then each is saved,
// then all go on. What was on its way between two of them is lost or will be sent again, as on
// any network. It counts when every part of it lies on two hosts, where there are two.
package ve

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/vee"
	"github.com/reservoir-cloud/reservoir/vhi/peer"
)

// Here is a VEE of this host.
type Here struct {
	VE string // empty: it belongs to none, and is not tracked
	peer.Member
	Gone bool // it was removed for good
}

// Neighbour is another host of the site.
type Neighbour struct {
	Host, Address string
	Doubted       bool // it does not answer
}

// Guests of this host, as a checkpoint needs them.
type Guests interface {
	// Freeze stops the vCPUs for checkpoint n. The guest goes on at Thaw, or by itself when
	// nothing was said for limit.
	Freeze(ctx context.Context, id vee.ID, e vee.Epoch, n int, limit time.Duration) error
	Take(ctx context.Context, id vee.ID, n int) error
	Thaw(ctx context.Context, id vee.ID, n int) error
	// Pack what Take has saved; Forget it, taken or not.
	Pack(ctx context.Context, id vee.ID, n int, w io.Writer) error
	Forget(ctx context.Context, id vee.ID, e vee.Epoch, n int) error
}

// Config of a Tracker. All fields are needed.
type Config struct {
	Host       string
	Store      *Store
	Here       func() []Here
	Guests     Guests
	Neighbours func() []Neighbour
	Dial       func(host, address string) peer.Trackers
	Every      time.Duration // between presences: 2 s
	Now        func() time.Time
	Log        *slog.Logger
}

// Times in Every.
const (
	forgetAfter = 15 // presences that were not said again
	frozenLimit = 15 // silence of a tracker after which a guest goes on
	answerIn    = 3  // a host that is told or asked something small
)

// atOnce is how many VEs this host has checkpoints taken of at the same time.
const atOnce = 4

// Tracker of VEs on one host. It implements peer.Trackers.
type Tracker struct {
	cfg Config

	mu  sync.Mutex
	ves map[string]*known
}

// known VE: what is said of it, since when, and whether a checkpoint of it is being taken.
type known struct {
	record
	since time.Time
	busy  bool
}

var _ peer.Trackers = (*Tracker)(nil)

// New tracker; Run runs it.
func New(cfg Config) *Tracker { return &Tracker{cfg: cfg, ves: map[string]*known{}} }

// Run until ctx is done; it returns when all that it began has ended.
func (t *Tracker) Run(ctx context.Context) error {
	tick := time.NewTicker(t.cfg.Every)
	defer tick.Stop()
	var working sync.WaitGroup
	defer working.Wait()
	free := make(chan struct{}, atOnce)
	for {
		t.present(ctx)
		t.sweep(ctx)
		for _, ve := range t.dueNow() {
			working.Go(func() {
				select {
				case free <- struct{}{}:
					t.checkpoint(ctx, ve)
					<-free
				case <-ctx.Done():
				}
				t.idle(ve)
			})
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// hosts that are there, this one among them.
func (t *Tracker) hosts() (names []string, at map[string]Neighbour) {
	names, at = []string{t.cfg.Host}, map[string]Neighbour{t.cfg.Host: {Host: t.cfg.Host}}
	for _, n := range t.cfg.Neighbours() {
		if !n.Doubted {
			names, at[n.Host] = append(names, n.Host), n
		}
	}
	return names, at
}

// at a host: its client, or this tracker itself.
func (t *Tracker) at(n Neighbour) peer.Trackers {
	if n.Host == t.cfg.Host {
		return t
	}
	return t.cfg.Dial(n.Host, n.Address)
}

// presences of all VEs of which this host has something.
func (t *Tracker) presences() map[string]peer.Presence {
	all := map[string]peer.Presence{}
	add := func(ve string, f func(*peer.Presence)) {
		p := all[ve]
		p.VE, p.Host = ve, t.cfg.Host
		f(&p)
		all[ve] = p
	}
	for _, h := range t.cfg.Here() {
		switch {
		case h.VE == "":
		case h.Gone:
			add(h.VE, func(p *peer.Presence) { p.Gone = append(p.Gone, peer.Departed{VEE: h.VEE, Epoch: h.Epoch}) })
		default:
			add(h.VE, func(p *peer.Presence) { p.Members = append(p.Members, h.Member) })
		}
	}
	for ve, list := range t.cfg.Store.All() {
		add(ve, func(p *peer.Presence) { p.Kept = list })
	}
	return all
}

// present what is here to those who track it.
func (t *Tracker) present(ctx context.Context) {
	names, at := t.hosts()
	var telling sync.WaitGroup
	ctx, cancel := context.WithTimeout(ctx, answerIn*t.cfg.Every)
	defer cancel()
	for ve, p := range t.presences() {
		line := Line(ve, names)
		for _, host := range line[:min(standBy, len(line))] {
			telling.Go(func() {
				if err := t.at(at[host]).Present(ctx, p); err != nil && ctx.Err() == nil {
					t.cfg.Log.Debug("present a VE", "ve", ve, "to", host, "err", err)
				}
			})
		}
	}
	telling.Wait()
}

// Present implements peer.Trackers.
func (t *Tracker) Present(_ context.Context, p peer.Presence) error {
	now := t.cfg.Now()
	t.mu.Lock()
	k := t.ves[p.VE]
	if k == nil {
		k = &known{record: record{at: map[string]heard{}}, since: now}
		t.ves[p.VE] = k
	}
	k.hear(p, now)
	t.mu.Unlock()
	return nil
}

// sweep out the checkpoints of VEEs that are gone, wherever they are kept.
func (t *Tracker) sweep(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, answerIn*t.cfg.Every)
	defer cancel()
	_, at := t.hosts()
	t.mu.Lock()
	type drop struct {
		host string
		peer.Kept
	}
	var drops []drop
	for _, k := range t.ves {
		if !k.tracked {
			continue
		}
		for host, list := range k.useless() {
			for _, c := range list {
				drops = append(drops, drop{host, c})
			}
		}
	}
	t.mu.Unlock()
	for _, d := range drops {
		n, there := at[d.host]
		if !there || ctx.Err() != nil {
			continue
		}
		if err := t.at(n).Do(ctx, t.cfg.Host, peer.Drop, peer.Order{VE: d.VE, VEE: d.VEE, Epoch: d.Epoch, N: d.N}); err != nil {
			t.cfg.Log.Warn("drop a checkpoint of a VEE that is gone", "vee", d.VEE, "host", d.host, "err", err)
		}
	}
}

// dueNow are the VEs that this host tracks and that want a checkpoint; they are busy then.
func (t *Tracker) dueNow() (due []string) {
	names, _ := t.hosts()
	now := t.cfg.Now()
	t.mu.Lock()
	defer t.mu.Unlock()
	for ve, k := range t.ves {
		if k.forget(now, forgetAfter*t.cfg.Every); len(k.at) == 0 && !k.busy {
			delete(t.ves, ve)
			continue
		}
		first := Line(ve, names)[0] == t.cfg.Host
		if first && !k.tracked && now.Sub(k.since) > t.cfg.Every {
			t.cfg.Log.Info("the tracking of a VE is adopted", "ve", ve, "veeRunning", len(k.parts()))
		}
		k.tracked = first
		at := k.due(k.parts(), k.since)
		if first && !k.busy && !at.IsZero() && !now.Before(at) {
			k.busy, k.tried = true, now
			due = append(due, ve)
		}
	}
	slices.Sort(due)
	return due
}

func (t *Tracker) idle(ve string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if k := t.ves[ve]; k != nil {
		k.busy = false
	}
}

// Tracked are the VEs that this host tracks.
func (t *Tracker) Tracked() (list []string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for ve, k := range t.ves {
		if k.tracked {
			list = append(list, ve)
		}
	}
	slices.Sort(list)
	return list
}

// checkpoint of a VE, or none: its commit point is the first Settle. Before it, every guest
// goes on and everything of it is dropped; what cannot be reached then is dropped with the
// next one, since it never was whole.
func (t *Tracker) checkpoint(ctx context.Context, ve string) {
	t.mu.Lock()
	k := t.ves[ve]
	if k == nil {
		t.mu.Unlock()
		return
	}
	parts, n := k.parts(), k.next()
	t.mu.Unlock()
	_, keep := interval(parts)
	began := t.cfg.Now()
	still, err := t.take(ctx, ve, parts, n)
	if err == nil {
		err = t.copy(ctx, ve, parts, n)
	}
	if err == nil {
		err = t.settle(ctx, ve, parts, n, keep)
	}
	if err != nil {
		t.cfg.Log.Warn("a checkpoint was not taken", "ve", ve, "checkpoint", n, "err", err)
		_ = t.each(context.WithoutCancel(ctx), parts, func(ctx context.Context, to peer.Trackers, p part) error {
			return to.Do(ctx, t.cfg.Host, peer.Drop, peer.Order{VE: ve, VEE: p.VEE, Epoch: p.Epoch, N: n})
		})
		return
	}
	t.cfg.Log.Info("checkpoint", "ve", ve, "checkpoint", n, "vees", len(parts), "stoodStill", still.Round(time.Millisecond), "took", t.cfg.Now().Sub(began).Round(time.Millisecond))
	t.present(ctx) // so that the next number is known
}

// take one moment of all parts. Whatever happens, all go on.
func (t *Tracker) take(ctx context.Context, ve string, parts []part, n int) (still time.Duration, err error) {
	deed := func(d peer.Deed) func(context.Context, peer.Trackers, part) error {
		return func(ctx context.Context, to peer.Trackers, p part) error {
			return to.Do(ctx, t.cfg.Host, d, peer.Order{VE: ve, VEE: p.VEE, Epoch: p.Epoch, N: n, LimitMS: (frozenLimit * t.cfg.Every).Milliseconds()})
		}
	}
	from := t.cfg.Now()
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), answerIn*t.cfg.Every)
		defer cancel()
		err = errors.Join(err, t.each(ctx, parts, deed(peer.Thaw)))
		still = t.cfg.Now().Sub(from)
	}()
	frozen, cancel := context.WithTimeout(ctx, answerIn*t.cfg.Every)
	defer cancel()
	if err := t.each(frozen, parts, deed(peer.Freeze)); err != nil {
		return 0, err
	}
	return 0, t.each(ctx, parts, deed(peer.Take))
}

// copy every part to the store of its host, and to that of a second one.
func (t *Tracker) copy(ctx context.Context, ve string, parts []part, n int) error {
	names, at := t.hosts()
	return t.each(ctx, parts, func(ctx context.Context, to peer.Trackers, p part) error {
		o := peer.Order{VE: ve, VEE: p.VEE, Epoch: p.Epoch, N: n, From: p.host}
		if err := to.Do(ctx, t.cfg.Host, peer.Fetch, o); err != nil {
			return err
		}
		if other := second(p.VEE, p.host, names); other != "" {
			return t.at(at[other]).Do(ctx, t.cfg.Host, peer.Fetch, o)
		}
		return nil
	})
}

// settle a checkpoint of which all copies are there. A host that does not hear of it keeps a
// part that is not whole; the other copy of it is.
func (t *Tracker) settle(ctx context.Context, ve string, parts []part, n, keep int) error {
	names, at := t.hosts()
	return t.each(ctx, parts, func(ctx context.Context, to peer.Trackers, p part) error {
		o := peer.Order{VE: ve, VEE: p.VEE, Epoch: p.Epoch, N: n, Keep: keep}
		err := to.Do(ctx, t.cfg.Host, peer.Settle, o)
		if other := second(p.VEE, p.host, names); other != "" {
			if e := t.at(at[other]).Do(ctx, t.cfg.Host, peer.Settle, o); e == nil {
				err = nil
			}
		}
		return err
	})
}

// each part's host does something, all at once; the first error ends the others.
func (t *Tracker) each(ctx context.Context, parts []part, do func(ctx context.Context, to peer.Trackers, p part) error) error {
	_, at := t.hosts()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var working sync.WaitGroup
	errs := make([]error, len(parts))
	for i, p := range parts {
		working.Go(func() {
			n, there := at[p.host]
			if !there {
				errs[i] = fault.New(fault.Unavailable, "host %s is not there", p.host)
			} else if err := do(ctx, t.at(n), p); err != nil && !errors.Is(err, context.Canceled) {
				errs[i] = fmt.Errorf("%s at host %s: %w", p.Name, p.host, err)
			}
		})
	}
	working.Wait()
	return errors.Join(errs...)
}

// Do implements peer.Trackers.
func (t *Tracker) Do(ctx context.Context, from string, d peer.Deed, o peer.Order) error {
	names, _ := t.hosts()
	if !slices.Contains(names, from) {
		names = append(names, from)
	}
	if i := slices.Index(Line(o.VE, names), from); i >= standBy {
		return fault.New(fault.Denied, "host %s is number %d in line to track VE %s", from, i+1, o.VE)
	}
	switch d {
	case peer.Freeze:
		return t.cfg.Guests.Freeze(ctx, o.VEE, o.Epoch, o.N, time.Duration(o.LimitMS)*time.Millisecond)
	case peer.Take:
		return t.cfg.Guests.Take(ctx, o.VEE, o.N)
	case peer.Thaw:
		return t.cfg.Guests.Thaw(ctx, o.VEE, o.N)
	case peer.Fetch:
		return t.fetch(ctx, o)
	case peer.Settle:
		return t.cfg.Store.Settle(o.VEE, o.N, max(1, o.Keep))
	case peer.Drop:
		return errors.Join(t.cfg.Guests.Forget(ctx, o.VEE, o.Epoch, o.N), t.cfg.Store.Drop(o.VEE, o.N))
	}
	return fault.New(fault.Malformed, "deed %q is not known", d)
}

// fetch a checkpoint into this host's store: from its own guest, whose snapshot is not needed
// any more then, or from the host that has done so.
func (t *Tracker) fetch(ctx context.Context, o peer.Order) error {
	if o.From != t.cfg.Host {
		_, at := t.hosts()
		n, there := at[o.From]
		if !there {
			return fault.New(fault.Unavailable, "host %s, which has checkpoint %d of VEE %s, is not known here", o.From, o.N, o.VEE)
		}
		return t.copyFrom(ctx, n, o.VEE, o.N)
	}
	k := peer.Kept{VEE: o.VEE, VE: o.VE, N: o.N, Epoch: o.Epoch, At: t.cfg.Now()}
	err := t.cfg.Store.Add(ctx, k, func(w io.Writer) error { return t.cfg.Guests.Pack(ctx, o.VEE, o.N, w) })
	return errors.Join(err, t.cfg.Guests.Forget(context.WithoutCancel(ctx), o.VEE, o.Epoch, o.N))
}

// copyFrom another host's store.
func (t *Tracker) copyFrom(ctx context.Context, n Neighbour, id vee.ID, number int) error {
	there := t.cfg.Dial(n.Host, n.Address)
	list, err := there.Kept(ctx, id)
	if err != nil {
		return err
	}
	i := slices.IndexFunc(list, func(k peer.Kept) bool { return k.N == number })
	if i < 0 {
		return fault.New(fault.NotFound, "host %s has no checkpoint %d of VEE %s", n.Host, number, id)
	}
	return t.cfg.Store.Add(ctx, list[i], func(w io.Writer) error {
		r, err := there.Read(ctx, id, number)
		if err != nil {
			return err
		}
		stop := context.AfterFunc(ctx, func() { r.Close() })
		defer stop()
		_, err = io.Copy(w, io.LimitReader(r, int64(list[i].Size)))
		return errors.Join(err, r.Close())
	})
}

// Kept implements peer.Trackers.
func (t *Tracker) Kept(_ context.Context, id vee.ID) ([]peer.Kept, error) {
	return t.cfg.Store.List(id), nil
}

// Last whole checkpoint of a VEE that this host keeps.
func (t *Tracker) Last(id vee.ID) (peer.Kept, bool) { return Best(t.cfg.Store.List(id)) }

// Read implements peer.Trackers.
func (t *Tracker) Read(ctx context.Context, id vee.ID, n int) (io.ReadWriteCloser, error) {
	return t.ReadFrom(ctx, id, n, 0)
}

// ReadFrom a byte of a checkpoint on. Errors: NotFound.
func (t *Tracker) ReadFrom(_ context.Context, id vee.ID, n int, from int64) (io.ReadWriteCloser, error) {
	f, err := t.cfg.Store.Open(id, n)
	if err != nil {
		return nil, err
	}
	if _, err := f.Seek(from, io.SeekStart); err != nil {
		f.Close()
		return nil, fmt.Errorf("read checkpoint %d of VEE %s from byte %d: %w", n, id, from, err)
	}
	return reading{f}, nil
}

// reading is a stream in one direction.
type reading struct{ io.ReadCloser }

func (reading) Write(p []byte) (int, error) { return len(p), nil } // nobody listens

// Newest whole checkpoint of a VEE on any host that answers, brought to this one. found is
// false where there is none; an error means that there is one which could not be had.
func (t *Tracker) Newest(ctx context.Context, id vee.ID) (content io.ReadCloser, n int, found bool, err error) {
	_, at := t.hosts()
	var mu sync.Mutex
	var asking sync.WaitGroup
	var list []peer.Kept
	where := map[string][]Neighbour{} // by digest
	ask, cancel := context.WithTimeout(ctx, answerIn*t.cfg.Every)
	defer cancel()
	for _, host := range at {
		asking.Go(func() {
			kept, err := t.at(host).Kept(ask, id)
			if err != nil {
				t.cfg.Log.Warn("ask a host for checkpoints", "vee", id, "host", host.Host, "err", err)
			}
			mu.Lock()
			defer mu.Unlock()
			for _, k := range kept {
				where[k.Digest] = append(where[k.Digest], host)
			}
			list = append(list, kept...)
		})
	}
	asking.Wait()
	best, found := Best(list)
	if !found {
		return nil, 0, false, nil
	}
	// Whoever asks may have nothing else of it soon: what is here is looked at before it is
	// handed out, and what has rotted is had anew from another host.
	f, err := t.cfg.Store.OpenWhole(best)
	for _, host := range where[best.Digest] {
		if err == nil {
			break
		}
		if host.Host != t.cfg.Host {
			if e := t.copyFrom(ctx, host, id, best.N); e != nil {
				err = errors.Join(err, e)
				continue
			}
			f, err = t.cfg.Store.OpenWhole(best)
		}
	}
	if err != nil {
		return nil, best.N, true, fmt.Errorf("checkpoint %d of VEE %s cannot be had from any host: %w", best.N, id, err)
	}
	return f, best.N, true, nil
}
