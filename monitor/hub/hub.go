// Package hub is where a site's measurements come together. It takes the reports of the
// sources, says of each measurement whose it is, and appends it to a sink; it keeps what
// each source told of its probes, and what people have ordered them to be; and it regulates
// them all when more comes than the site wants to take.
//
// A source is believed only about VEEs that are its own: on its host, or at its proxy. What
// a hub knows of sources is lost with its process, and back with their next reports; the
// orders are kept.
package hub

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/internal/identity"
	"github.com/reservoir-cloud/reservoir/monitor"
	"github.com/reservoir-cloud/reservoir/vee"
)

// Bounds of what is remembered of sources.
const (
	maxSources = 10_000
	maxShared  = 1000           // dictionaries
	silent     = 24 * time.Hour // a source that has not reported for so long is forgotten
)

// Keeper keeps the orders, by KeptOrder.key.
type Keeper interface {
	Values(ctx context.Context, prefix string) ([]KeptOrder, error)
	Put(ctx context.Context, key string, o KeptOrder) (uint64, error)
	Delete(ctx context.Context, key string, version uint64) error
}

// KeptOrder is what was ordered of one probe. That of a VEE's probe has no source: it goes
// with the VEE when that moves.
type KeptOrder struct {
	Source string `json:"source,omitempty"`
	monitor.Order
}

func kept(source string, o monitor.Order) KeptOrder {
	if o.VEE != "" {
		source = ""
	}
	return KeptOrder{source, o}
}

func (k KeptOrder) key() string { return k.Source + "/" + k.String() }

// Sink of a hub.
type Sink interface {
	monitor.Sink
	// End the series of a subject that is gone, at that time: later queries do not see them.
	End(ctx context.Context, of monitor.Subject, at time.Time) error
}

// Config of a Hub.
type Config struct {
	Site string
	Sink Sink
	// Owner of a VEE that a host reports about: false when it is not on that host, as far as
	// the site knows.
	Owner func(host string, id vee.ID) (monitor.Subject, bool)
	// Former reports whether a VEE has moved away from a host: what that host measured before
	// is still to be taken. nil: VEEs do not move.
	Former func(host string, id vee.ID) bool
	// Whose is a VEE that people ask about, on whatever host.
	Whose  func(id vee.ID) (monitor.Subject, bool)
	Keeper Keeper
	Limits monitor.Limits // of all sources together
	Load   func() float64 // of this machine for each CPU; nil: not looked at
	Now    func() time.Time
	Log    *slog.Logger
}

// Hub of a site.
type Hub struct {
	cfg Config

	mu         sync.Mutex
	sources    map[string]*source
	orders     map[string]map[monitor.Ref]monitor.Settings // by source; of VEEs under ""
	total      monitor.Receipt
	regulator  monitor.Regulator
	regulation monitor.Regulation
	looked     time.Time
	values     int                        // since
	live       map[vee.ID]monitor.Subject // VEEs that have measurements
	shared     map[string]monitor.Dictionary
	tenures    map[vee.ID]tenure
}

// tenure of the host that measures a VEE now.
type tenure struct {
	host  string
	since int64 // its first measurement, ms
}

type source struct {
	incarnation string
	seen        time.Time
	probes      map[monitor.Ref]monitor.Status
}

// New reads the orders that were kept.
func New(ctx context.Context, cfg Config) (*Hub, error) {
	h := &Hub{cfg: cfg, sources: map[string]*source{}, orders: map[string]map[monitor.Ref]monitor.Settings{},
		regulator: monitor.Regulator{Limits: cfg.Limits}, looked: cfg.Now(), live: map[vee.ID]monitor.Subject{}, shared: map[string]monitor.Dictionary{}, tenures: map[vee.ID]tenure{}}
	all, err := cfg.Keeper.Values(ctx, "")
	if err != nil {
		return nil, fmt.Errorf("read what probes were ordered to be: %w", err)
	}
	for _, k := range all {
		h.order(k)
	}
	return h, nil
}

func (h *Hub) order(k KeptOrder) {
	if h.orders[k.Source] == nil {
		h.orders[k.Source] = map[monitor.Ref]monitor.Settings{}
	}
	h.orders[k.Source][k.Ref] = k.Settings
}

// Report of the host that is the caller. The measurements are stored when it returns; when
// the sink fails, the source sends them again.
func (h *Hub) Report(ctx context.Context, r monitor.Report) (monitor.Orders, error) {
	host := identity.From(ctx).Host
	if host == "" {
		return monitor.Orders{}, fault.New(fault.Denied, "measurements are taken from the site's hosts alone")
	}
	ms, receipt := h.resolve(host, r)
	stored, err := h.cfg.Sink.Append(ctx, ms)
	if err != nil {
		return monitor.Orders{}, fmt.Errorf("store the measurements of host %s: %w", host, err)
	}
	receipt.Add(stored)
	h.mu.Lock()
	defer h.mu.Unlock()
	h.total.Add(receipt)
	now := h.cfg.Now()
	for _, m := range ms {
		h.values += len(m.Values)
		if id := m.Subject.VEE; id != "" {
			h.live[id] = m.Subject
		}
	}
	met := h.remember(host, now, r)
	o := h.ordersOf(host)
	o.Tell = met
	if o.Version == r.Orders {
		o.Orders, o.Same = nil, true
	}
	return o, nil
}

// resolve whose measurements these are.
func (h *Hub) resolve(host string, r monitor.Report) (ms []monitor.Measurement, receipt monitor.Receipt) {
	for why, n := range r.Lost {
		receipt.Refuse(why, max(n, 0))
	}
	type owner struct {
		subject    monitor.Subject
		ok, former bool
	}
	owners := map[vee.ID]owner{"": {subject: monitor.HostSubject(h.cfg.Site, host), ok: true}}
	ms = make([]monitor.Measurement, 0, len(r.Measurements))
	for _, m := range r.Measurements {
		o, asked := owners[m.VEE]
		if !asked {
			if o.subject, o.ok = h.cfg.Owner(host, m.VEE); !o.ok && h.cfg.Former != nil && h.cfg.Former(host, m.VEE) {
				o.subject, o.former = h.cfg.Whose(m.VEE)
			}
			owners[m.VEE] = o
		}
		if m.VEE != "" {
			o.ok = h.inTenure(host, m, o.ok, o.former)
		}
		ofHost := m.Kind == monitor.HostKind
		if !o.ok || ofHost != (m.VEE == "") || !ofHost && m.Kind != monitor.VEEKind && m.Kind != monitor.KPIKind {
			receipt.Refuse(monitor.Foreign, len(m.Values))
			continue
		}
		ms = append(ms, monitor.Measurement{Subject: o.subject, Kind: m.Kind, At: time.UnixMilli(m.AtMS), Values: m.Values})
	}
	return ms, receipt
}

// inTenure reports whether a measurement of a VEE counts: one of the host that has it now, or
// of one that it has left, from before the first of the one that has it. So what a VEE has
// used is counted by one host at any time, however late a report comes.
func (h *Hub) inTenure(host string, m monitor.Reported, present, former bool) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	t, known := h.tenures[m.VEE]
	if present && (!known || t.host != host) {
		h.tenures[m.VEE] = tenure{host, m.AtMS}
	}
	return present || former && (!known || t.host == host || m.AtMS < t.since)
}

// lookEvery so often at what comes and whether what it is about is still there.
const lookEvery = 10 * time.Second

// Run looks after what comes until ctx ends.
func (h *Hub) Run(ctx context.Context) {
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		h.regulate(h.cfg.Now())
		h.end(ctx)
	}
}

// end the series of VEEs that are gone: a KPI of a replica that was removed shall not count
// for as long as a query looks back.
func (h *Hub) end(ctx context.Context) {
	h.mu.Lock()
	live := maps.Clone(h.live)
	h.mu.Unlock()
	for id, of := range live {
		if _, there := h.cfg.Whose(id); there {
			continue
		}
		if err := h.cfg.Sink.End(ctx, of, h.cfg.Now()); err != nil {
			h.cfg.Log.Warn("end the series of a VEE that is gone", "vee", id, "err", err)
			continue
		}
		h.mu.Lock()
		delete(h.live, id)
		delete(h.tenures, id)
		h.mu.Unlock()
	}
}

func (h *Hub) regulate(now time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	seen := monitor.Seen{Values: h.values, Elapsed: now.Sub(h.looked)}
	if h.cfg.Load != nil {
		seen.Load = h.cfg.Load()
	}
	h.looked, h.values = now, 0
	if to := h.regulator.Step(seen); to != h.regulation {
		h.cfg.Log.Warn("all sources are regulated", "intervals times", to.Of(monitor.VEEKind), "because", to.Why)
		h.regulation = to
	}
}

// remember what a source tells of its probes; it is met for the first time since it, or
// this hub, has started.
func (h *Hub) remember(host string, now time.Time, r monitor.Report) (met bool) {
	s := h.sources[host]
	if s == nil || s.incarnation != r.Incarnation {
		maps.DeleteFunc(h.sources, func(_ string, s *source) bool { return now.Sub(s.seen) > silent })
		if len(h.sources) >= maxSources {
			return false
		}
		s, met = &source{incarnation: r.Incarnation, probes: map[monitor.Ref]monitor.Status{}}, true
		h.sources[host] = s
	}
	s.seen = now
	for _, p := range r.Probes {
		if _, known := s.probes[p.Ref]; !known && len(s.probes) >= monitor.MaxProbes {
			continue
		}
		p.Fields = h.share(p.Name, p.Fields)
		s.probes[p.Ref] = p
	}
	for _, ref := range r.Gone {
		delete(s.probes, ref)
	}
	return met
}

// share a dictionary: all probes of one name have the same, and it is kept once.
func (h *Hub) share(name string, d monitor.Dictionary) monitor.Dictionary {
	if one := h.shared[name]; slices.Equal(one, d) {
		return one
	}
	if len(h.shared) < maxShared {
		h.shared[name] = d
	}
	return d
}

// ordersOf a source, with a version that says what is in them: it is the same after a
// restart.
func (h *Hub) ordersOf(name string) monitor.Orders {
	o := monitor.Orders{Regulation: h.regulation}
	for ref, s := range h.orders[name] {
		o.Orders = append(o.Orders, monitor.Order{Ref: ref, Settings: s})
	}
	for ref, s := range h.orders[""] {
		if _, ok := h.cfg.Owner(name, ref.VEE); ok {
			o.Orders = append(o.Orders, monitor.Order{Ref: ref, Settings: s})
		}
	}
	slices.SortFunc(o.Orders, func(a, b monitor.Order) int {
		return cmp.Or(cmp.Compare(a.VEE, b.VEE), cmp.Compare(a.Name, b.Name))
	})
	text, err := json.Marshal(o.Orders)
	if err != nil { // settings hold no NaN: they were checked
		panic("orders of " + name + ": " + err.Error())
	}
	sum := sha256.Sum256(text)
	o.Version = hex.EncodeToString(sum[:8])
	return o
}

// Probes of all sources that the caller may see, by source, VEE and name.
func (h *Hub) Probes(ctx context.Context) ([]monitor.SourceProbe, error) {
	caller := identity.From(ctx)
	h.mu.Lock()
	var all []monitor.SourceProbe
	for name, s := range h.sources {
		for _, p := range s.probes {
			all = append(all, monitor.SourceProbe{Source: name, SeenMS: s.seen.UnixMilli(), Status: p})
		}
	}
	h.mu.Unlock()
	all = slices.DeleteFunc(all, func(p monitor.SourceProbe) bool { return !h.sees(caller, p.VEE) })
	slices.SortFunc(all, func(a, b monitor.SourceProbe) int {
		return cmp.Or(cmp.Compare(a.Source, b.Source), cmp.Compare(a.VEE, b.VEE), cmp.Compare(a.Name, b.Name))
	})
	return all, nil
}

func (h *Hub) sees(c identity.Caller, id vee.ID) bool {
	if id == "" {
		return c.Sees("")
	}
	s, ok := h.cfg.Whose(id)
	return c.Is(identity.Operator, identity.Auditor, identity.SiteRole) || ok && c.Sees(s.Customer)
}

// SetProbe orders a probe to be otherwise, from its source's next report on; it is kept,
// and holds for a probe of that name after a restart too.
func (h *Hub) SetProbe(ctx context.Context, name string, ref monitor.Ref, change monitor.ProbeChange) (monitor.SourceProbe, error) {
	h.mu.Lock()
	var p monitor.Status
	var there bool
	var seen time.Time
	if s := h.sources[name]; s != nil {
		p, there = s.probes[ref]
		seen = s.seen
	}
	k := kept(name, monitor.Order{Ref: ref})
	var ordered bool
	k.Settings, ordered = h.orders[k.Source][ref]
	h.mu.Unlock()
	if !there || !h.sees(identity.From(ctx), ref.VEE) {
		return monitor.SourceProbe{}, fault.New(fault.NotFound, "no probe %s/%s", name, ref).Try("reservoir probe list")
	}
	if !ordered {
		k.Settings = p.Settings
	}
	var err error
	if k.Settings, err = change.Apply(k.Settings); err != nil {
		return monitor.SourceProbe{}, err
	}
	if _, err := h.cfg.Keeper.Put(ctx, k.key(), k); err != nil {
		return monitor.SourceProbe{}, fmt.Errorf("keep what probe %s/%s was ordered to be: %w", name, ref, err)
	}
	h.forget(ctx)
	h.mu.Lock()
	defer h.mu.Unlock()
	h.order(k)
	return monitor.SourceProbe{Source: name, SeenMS: seen.UnixMilli(), Status: p, Ordered: &k.Settings}, nil
}

// forget the orders of VEEs that are gone. What cannot be deleted now is tried the next time.
func (h *Hub) forget(ctx context.Context) {
	h.mu.Lock()
	var gone []KeptOrder
	for ref, s := range h.orders[""] {
		if _, ok := h.cfg.Whose(ref.VEE); !ok {
			gone = append(gone, KeptOrder{Order: monitor.Order{Ref: ref, Settings: s}})
		}
	}
	h.mu.Unlock()
	for _, k := range gone {
		if err := h.cfg.Keeper.Delete(ctx, k.key(), 0); err != nil && !fault.Has(err, fault.NotFound) {
			h.cfg.Log.Warn("forget the order of a probe whose VEE is gone", "probe", k.String(), "err", err)
			continue
		}
		h.mu.Lock()
		delete(h.orders[""], k.Ref)
		h.mu.Unlock()
	}
}

// Total of what has come since the hub was made.
func (h *Hub) Total() monitor.Receipt {
	h.mu.Lock()
	defer h.mu.Unlock()
	return monitor.Receipt{Stored: h.total.Stored, Refused: maps.Clone(h.total.Refused)}
}

// Regulation in effect.
func (h *Hub) Regulation() monitor.Regulation {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.regulation
}
