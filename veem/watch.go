package veem

import (
	"cmp"
	"context"
	"maps"
	"slices"
	"sync"

	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/internal/identity"
	"github.com/reservoir-cloud/reservoir/vee"
	"github.com/reservoir-cloud/reservoir/vmi"
)

// hub tells watchers which VEEs have changed. It never waits for one: what a slow watcher
// has not taken yet is one entry a VEE.
type hub struct {
	closed chan struct{}
	wg     sync.WaitGroup // goroutines of WatchVEEs

	mu       sync.Mutex
	watchers map[*watcher]struct{}
}

type watcher struct {
	only   vee.ID        // empty: all
	signal chan struct{} // of size one: there is something to take

	mu    sync.Mutex
	dirty map[vee.ID]struct{}
}

func (h *hub) watch(only vee.ID) *watcher {
	w := &watcher{only: only, signal: make(chan struct{}, 1), dirty: map[vee.ID]struct{}{}}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.watchers[w] = struct{}{}
	return w
}

func (h *hub) leave(w *watcher) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.watchers, w)
}

func (h *hub) changed(id vee.ID) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for w := range h.watchers {
		if w.only != "" && w.only != id {
			continue
		}
		w.mu.Lock()
		w.dirty[id] = struct{}{}
		w.mu.Unlock()
		select {
		case w.signal <- struct{}{}:
		default:
		}
	}
}

// take what has changed since the last time, in order.
func (w *watcher) take() []vee.ID {
	w.mu.Lock()
	defer w.mu.Unlock()
	ids := slices.Sorted(maps.Keys(w.dirty))
	clear(w.dirty)
	return ids
}

// close ends all watches and waits for them.
func (h *hub) close() {
	close(h.closed)
	h.wg.Wait()
}

// show r as a caller sees it: with what its host said last and is not stored, and without
// its history.
func (m *Manager) show(r record) vmi.VEE { return m.showAll([]*record{&r})[0] }

func (m *Manager) showAll(rs []*record) []vmi.VEE {
	list := make([]vmi.VEE, len(rs))
	queue := m.queued(rs)
	m.hosts.mu.Lock()
	defer m.hosts.mu.Unlock()
	for i, r := range rs {
		v := &list[i]
		*v = r.VEE
		v.History, v.Move = nil, m.crossed(r)
		v.Queue = queue[r.ID]
		h := m.hosts.known[r.Host]
		if !r.Assigned || h == nil {
			continue
		}
		if w := h.vees[r.ID]; w != nil && w.report != nil {
			v.Progress, v.GuestIdle, v.DiskUsed = w.report.Progress, w.report.GuestIdle, w.report.DiskUsed
			v.NextBoot, v.Checkpoint = w.report.NextBoot, w.report.Checkpoint
		}
		if v.Error == "" {
			v.Error = h.troubles[r.ID]
		}
	}
	return list
}

// queued are the places of those of rs that wait for room.
func (m *Manager) queued(rs []*record) (at map[vee.ID]int) {
	if slices.ContainsFunc(rs, func(r *record) bool { return r.Switch != "" || r.State == vee.Initial }) {
		m.ledger.read(func(s *state) { at = s.inQueue() })
	}
	return at
}

// GetVEE: vmi.Service.
func (m *Manager) GetVEE(ctx context.Context, id vee.ID) (vmi.VEE, error) {
	r, ok := m.ledger.vee(id)
	if err := visible(identity.From(ctx), id, r, ok); err != nil {
		return vmi.VEE{}, err
	}
	v := m.show(r)
	v.History = r.History
	return m.told(identity.From(ctx), v), nil
}

func matches(f vmi.Filter, c identity.Caller, r *record) bool {
	return c.Sees(r.Descriptor.Customer) &&
		(f.Customer == "" || f.Customer == r.Descriptor.Customer) &&
		(f.GroupID == "" || f.GroupID == r.Descriptor.GroupID) &&
		(f.Host == "" || f.Host == r.Host) &&
		(f.State == "" || f.State == r.State) &&
		(f.Destroyed || f.State == vee.Destroyed || r.State != vee.Destroyed)
}

// mayRead refuses callers who see nothing at all, so that an empty list means empty.
func mayRead(c identity.Caller) error {
	if c.Is(identity.Operator, identity.Provider, identity.Auditor, identity.SiteRole) {
		return nil
	}
	return fault.New(fault.Denied, "role %q may not see VEEs", c.Role)
}

// mayFollow VEEs: those who may read what is the site's, and partners what is theirs.
func mayFollow(c identity.Caller) error {
	if c.Is(identity.Partner) {
		return nil
	}
	return mayRead(c)
}

// ListVEEs: vmi.Service. The oldest come first.
func (m *Manager) ListVEEs(ctx context.Context, f vmi.Filter) ([]vmi.VEE, error) {
	c := identity.From(ctx)
	if err := mayFollow(c); err != nil {
		return nil, err
	}
	var found []*record
	var after *record
	m.ledger.read(func(s *state) {
		after = s.vees.rows[string(f.Continue)]
		found = make([]*record, 0, len(s.vees.rows))
		for _, r := range s.vees.rows { // which are never changed in place
			if matches(f, c, r) && (after == nil || inOrder(after, r) < 0) {
				found = append(found, r)
			}
		}
	})
	if f.Continue != "" && (after == nil || !c.Sees(after.Descriptor.Customer)) {
		return nil, fault.New(fault.NotFound, "continue the list after VEE %s: it is not remembered any more", f.Continue).Try("list again from the beginning")
	}
	slices.SortFunc(found, inOrder)
	if f.Limit > 0 && len(found) > f.Limit {
		found = found[:f.Limit]
	}
	list := m.showAll(found)
	for i := range list {
		list[i] = m.told(c, list[i])
	}
	return list, nil
}

// inOrder is the order of lists.
func inOrder(a, b *record) int {
	return cmp.Or(a.Created.Compare(b.Created), cmp.Compare(a.Descriptor.GroupID, b.Descriptor.GroupID),
		cmp.Compare(len(a.Descriptor.Name), len(b.Descriptor.Name)), cmp.Compare(a.Descriptor.Name, b.Descriptor.Name), cmp.Compare(a.ID, b.ID))
}

// WatchVEEs: vmi.Service. A VEE that no longer matches is sent a last time.
func (m *Manager) WatchVEEs(ctx context.Context, f vmi.Filter) (<-chan vmi.Change, error) {
	c := identity.From(ctx)
	if err := mayFollow(c); err != nil {
		return nil, err
	}
	w := m.hub.watch("")
	list, err := m.ListVEEs(ctx, f)
	if err != nil {
		m.hub.leave(w)
		return nil, err
	}
	ch := make(chan vmi.Change)
	send := func(x vmi.Change) bool {
		select {
		case ch <- x:
			return true
		case <-ctx.Done():
		case <-m.hub.closed:
		}
		return false
	}
	m.hub.wg.Go(func() {
		defer close(ch)
		defer m.hub.leave(w)
		sent := map[vee.ID]bool{}
		for i := range list {
			sent[list[i].ID] = true
			if !send(vmi.Change{VEE: &list[i]}) {
				return
			}
		}
		if !send(vmi.Change{Synced: true}) {
			return
		}
		for {
			select {
			case <-w.signal:
			case <-ctx.Done():
				return
			case <-m.hub.closed:
				return
			}
			for _, id := range w.take() {
				if x, news := m.changeOf(id, f, c, sent); news && !send(x) {
					return
				}
			}
		}
	})
	return ch, nil
}

// changeOf is what a watcher must be told of a VEE. sent has the VEEs that it was told of;
// true: as they are now, false: that they do not match any more.
func (m *Manager) changeOf(id vee.ID, f vmi.Filter, c identity.Caller, sent map[vee.ID]bool) (vmi.Change, bool) {
	r, ok := m.ledger.vee(id)
	current, known := sent[id]
	if !ok {
		delete(sent, id)
		return vmi.Change{Purged: id}, known
	}
	match := matches(f, c, &r)
	if !match && !current {
		return vmi.Change{}, false
	}
	sent[id] = match
	v := m.told(c, m.show(r))
	return vmi.Change{VEE: &v}, true
}
