package veem

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/reservoir-cloud/reservoir/account"
	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/internal/identity"
	"github.com/reservoir-cloud/reservoir/vee"
	"github.com/reservoir-cloud/reservoir/vmi"
)

// Bounds of accounting. A listener costs a goroutine, a registration some bytes of the store.
const (
	minIntervalMS = 1000
	maxIntervalMS = 31 * 24 * 3600 * 1000
	maxListeners  = 256
	// messages in one call of a listener, and in one write of the ledger.
	accountBatch = 64
	// keepEnded is how long the last message for a destroyed VEE waits for a listener that
	// does not confirm it.
	keepEnded = 30 * 24 * time.Hour
)

// registration of a listener for one VEE. A message is written here before it is sent, and
// sent as it is until it is confirmed; so what a listener hears adjoins, whenever the site
// or the listener fails, and what it can miss for however long is one message here and one
// meter in the VEE's record.
type registration struct {
	VEE        vee.ID `json:"vee"`
	Listener   string `json:"listener"`
	URL        string `json:"url,omitempty"`
	IntervalMS int64  `json:"intervalMs"`
	AnchorMS   int64  `json:"anchorMs"` // messages are due at this hour and whole intervals after it
	Seq        uint64 `json:"seq"`      // of the last message
	// Through is the meter at the end of the last message.
	Through account.Meter          `json:"through"`
	Pending *vmi.AccountingMessage `json:"pending,omitempty"`
	// Ended has the last reading of a VEE whose record was dropped.
	Ended *ended `json:"ended,omitempty"`
}

type ended struct {
	Meter    account.Meter `json:"meter"`
	Customer string        `json:"customer,omitempty"`
	GroupID  string        `json:"groupID,omitempty"`
}

func registrationKey(listener string, id vee.ID) string { return string(id) + "/" + listener }

// listenerOf names the caller as a listener: who it is, not where it listens.
func listenerOf(c identity.Caller) string { return string(c.Role) + "/" + c.ID }

// tick is the newest hour at which a message is due, at or before now.
func (g *registration) tick(now int64) int64 {
	return g.AnchorMS + (now-g.AnchorMS)/g.IntervalMS*g.IntervalMS
}

// due is the next hour at which there is something to do. Sends that failed are repeated
// with the interval's next message.
func (g *registration) due(tried int64) int64 {
	after := max(g.Through.AtMS, tried, g.AnchorMS)
	return g.tick(after) + g.IntervalMS
}

// reading of the meter of g's VEE, and whether it is the last one.
func (g *registration) reading(s *state, ms int64) (m account.Meter, of ended, final bool) {
	if r := s.vees.get(string(g.VEE)); r != nil {
		return r.meterAt(ms), ended{Customer: r.Descriptor.Customer, GroupID: r.Descriptor.GroupID}, r.State == vee.Destroyed
	}
	if g.Ended != nil {
		return g.Ended.Meter, *g.Ended, true
	}
	return g.Through, ended{}, true
}

// meterAt is r's meter at ms; for an earlier hour than r's last change, as of that. That of
// a destroyed VEE stands.
func (r *record) meterAt(ms int64) account.Meter {
	if r.State == vee.Destroyed {
		return r.Meter
	}
	return r.Meter.To(ms, account.RateOf(r.State, r.Descriptor))
}

// cut makes the message for the time up to the newest tick.
func (g registration) cut(s *state, now int64) registration {
	m, of, final := g.reading(s, g.tick(now))
	g.Seq++
	g.Pending = &vmi.AccountingMessage{
		VEE: g.VEE, Customer: of.Customer, GroupID: of.GroupID, Seq: g.Seq, FromMS: g.Through.AtMS, ToMS: m.AtMS, Final: final, Used: m.Used.Minus(g.Through.Used),
	}
	g.Through = m
	return g
}

// Attach a listener of this process: what the caller with this identity registers for is
// handed to l. It must be called before Run.
func (m *Manager) Attach(c identity.Caller, l vmi.AccountingListener) {
	m.accountant.attached[listenerOf(c)] = l
}

// RegisterAccountingInformationListener: vmi.Service.
func (m *Manager) RegisterAccountingInformationListener(ctx context.Context, in vmi.AccountingRegistration) error {
	caller := identity.From(ctx)
	if err := mayWrite(caller); err != nil {
		return err
	}
	name := listenerOf(caller)
	if err := m.checkRegistration(in, name); err != nil {
		return err
	}
	if err := m.known(caller, in.IDs, ""); err != nil {
		return err
	}
	defer m.accountant.poke()
	for part := range slices.Chunk(in.IDs, accountBatch) {
		err := m.ledger.do(ctx, func(t *tx) error {
			if err := roomFor(t, name); err != nil {
				return err
			}
			for _, id := range part {
				r, err := find(caller, t, id)
				if err != nil {
					return err
				}
				key := registrationKey(name, id)
				g := registration{VEE: id, Listener: name, Through: account.Meter{AtMS: r.Created.UnixMilli()}}
				if old := t.accounts.get(key); old != nil {
					if old.IntervalMS == in.IntervalMS && old.URL == in.URL {
						continue
					}
					g = *old
				}
				if g.IntervalMS != in.IntervalMS {
					g.IntervalMS, g.AnchorMS = in.IntervalMS, t.now.UnixMilli()
				}
				g.URL = in.URL
				put(t, &t.accounts, key, &g)
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func (m *Manager) checkRegistration(in vmi.AccountingRegistration, listener string) error {
	switch {
	case len(in.IDs) == 0 || len(in.IDs) > maxVEEs:
		return malformed("ids", "%d: want 1 to %d", len(in.IDs), maxVEEs)
	case in.IntervalMS < minIntervalMS || in.IntervalMS > maxIntervalMS:
		return malformed("intervalMs", "%d: want %d to %d", in.IntervalMS, minIntervalMS, maxIntervalMS)
	case in.URL == "" && m.accountant.attached[listener] == nil:
		return malformed("url", "say where the messages should go").Try("a URL that the site's operator has allowed: reservoir site --accounting-listener URL")
	case in.URL != "" && m.cfg.Listener == nil:
		return fault.New(fault.Denied, "url: this site sends accounting information to nobody outside").Try("reservoir site --accounting-listener URL")
	}
	if in.URL != "" {
		_, err := m.cfg.Listener(in.URL)
		return err
	}
	return nil
}

// known checks that the caller may know each of ids; those for which a listener is
// registered count as known.
func (m *Manager) known(caller identity.Caller, ids []vee.ID, listener string) (err error) {
	m.ledger.read(func(s *state) {
		for _, id := range ids {
			r := s.vees.rows[string(id)]
			if r == nil {
				if s.accounts.rows[registrationKey(listener, id)] == nil && err == nil {
					err = fault.New(fault.NotFound, "VEE %s is not known at this site", id)
				}
			} else if err == nil {
				err = visible(caller, id, *r, true)
			}
		}
	})
	return err
}

func roomFor(t *tx, listener string) error {
	names := map[string]bool{listener: true}
	for _, g := range t.accounts.all() {
		names[g.Listener] = true
	}
	if len(names) > maxListeners {
		return fault.New(fault.TooLarge, "this site has %d accounting listeners: that is all that it takes", maxListeners)
	}
	return nil
}

// DeregisterAccountingInformationListener: vmi.Service.
func (m *Manager) DeregisterAccountingInformationListener(ctx context.Context, ids []vee.ID) error {
	caller := identity.From(ctx)
	if err := mayWrite(caller); err != nil {
		return err
	}
	name := listenerOf(caller)
	if err := m.known(caller, ids, name); err != nil {
		return err
	}
	defer m.accountant.poke()
	for part := range slices.Chunk(ids, accountBatch) {
		err := m.ledger.do(ctx, func(t *tx) error {
			for _, id := range part {
				if key := registrationKey(name, id); t.accounts.get(key) != nil {
					put(t, &t.accounts, key, nil)
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// endAccounts keeps the last reading of a VEE whose record is dropped for those who listen.
func endAccounts(t *tx, r record) {
	for key, g := range t.accounts.all() {
		if g.VEE == r.ID && g.Ended == nil {
			n := *g
			n.Ended = &ended{Meter: r.Meter, Customer: r.Descriptor.Customer, GroupID: r.Descriptor.GroupID}
			put(t, &t.accounts, key, &n)
		}
	}
}

// accountant has a courier for each listener, so that none waits for another.
type accountant struct {
	attached map[string]vmi.AccountingListener // by name; not changed after Run has begun
	stepped  map[string]*courier               // by listener, where the manager is stepped
	news     chan struct{}                     // of size one
}

func newAccountant() accountant {
	return accountant{attached: map[string]vmi.AccountingListener{}, stepped: map[string]*courier{}, news: make(chan struct{}, 1)}
}

func (a *accountant) poke() {
	select {
	case a.news <- struct{}{}:
	default:
	}
}

// account hires couriers and dismisses them, until ctx is done.
func (m *Manager) account(ctx context.Context) {
	var wg sync.WaitGroup
	defer wg.Wait()
	couriers := map[string]*courier{}
	for {
		wanted := m.listeners()
		for name := range wanted {
			if c := couriers[name]; c != nil {
				c.poke()
				continue
			}
			own, dismiss := context.WithCancel(ctx)
			c := newCourier(m, name)
			c.dismiss = dismiss
			couriers[name] = c
			wg.Go(func() { c.run(own) })
		}
		for name, c := range couriers {
			if !wanted[name] {
				c.dismiss()
				delete(couriers, name)
			}
		}
		select {
		case <-m.accountant.news:
		case <-ctx.Done():
			for _, c := range couriers {
				c.dismiss()
			}
			return
		}
	}
}

// listeners that somebody is registered for.
func (m *Manager) listeners() map[string]bool {
	wanted := map[string]bool{}
	m.ledger.read(func(s *state) {
		for _, g := range s.accounts.rows {
			wanted[g.Listener] = true
		}
	})
	return wanted
}

// courier brings one listener its messages.
type courier struct {
	m        *Manager
	listener string
	news     chan struct{} // of size one: registrations have changed
	dismiss  context.CancelFunc

	tried     map[string]int64  // by key: the tick at which Pending was last sent, when that failed
	confirmed map[string]uint64 // by key: Seq of the message that was confirmed; written with the next one
}

func newCourier(m *Manager, listener string) *courier {
	return &courier{m: m, listener: listener, news: make(chan struct{}, 1), tried: map[string]int64{}, confirmed: map[string]uint64{}}
}

func (c *courier) poke() {
	select {
	case c.news <- struct{}{}:
	default:
	}
}

func (c *courier) run(ctx context.Context) {
	c.work(ctx) // what was due while the site was down
	for ctx.Err() == nil {
		var wake <-chan time.Time
		var t *time.Timer
		if next, any := c.next(); any {
			t = time.NewTimer(time.UnixMilli(next).Sub(c.m.cfg.Now()))
			wake = t.C
		}
		select {
		case <-wake:
			c.work(ctx)
		case <-c.news:
		case <-ctx.Done():
		}
		if t != nil {
			t.Stop()
		}
	}
}

// mine is c's registrations, by key.
func (c *courier) mine(s *state) map[string]*registration {
	mine := map[string]*registration{}
	for key, g := range s.accounts.rows {
		if g.Listener == c.listener {
			mine[key] = g
		}
	}
	return mine
}

// next hour at which one of c's registrations is due.
func (c *courier) next() (ms int64, any bool) {
	c.m.ledger.read(func(s *state) {
		for key, g := range c.mine(s) {
			if d := g.due(c.tried[key]); !any || d < ms {
				ms, any = d, true
			}
		}
	})
	return ms, any
}

// work does what is due: sends again what was not confirmed, then what has been used since.
func (c *courier) work(ctx context.Context) {
	now := c.m.cfg.Now().UnixMilli()
	var again, fresh []string
	c.m.ledger.read(func(s *state) {
		for key, g := range c.mine(s) {
			switch {
			case g.due(c.tried[key]) > now:
			case g.Pending != nil && c.confirmed[key] != g.Pending.Seq:
				again = append(again, key)
			default:
				fresh = append(fresh, key)
			}
		}
	})
	slices.Sort(again)
	for part := range slices.Chunk(again, accountBatch) {
		if c.send(ctx, part, now) {
			fresh = append(fresh, part...)
		}
	}
	slices.Sort(fresh)
	for part := range slices.Chunk(fresh, accountBatch) {
		if err := c.cut(ctx, part, now); err != nil {
			c.m.cfg.Log.Warn("write what an accounting listener is to be sent", "listener", c.listener, "err", err)
			c.failed(part, now)
			continue
		}
		c.send(ctx, part, now)
	}
	if len(again)+len(fresh) > 0 {
		c.forget()
	}
}

// cut writes the next message of each registration, or its end.
func (c *courier) cut(ctx context.Context, keys []string, now int64) error {
	return c.m.ledger.do(ctx, func(t *tx) error {
		for _, key := range keys {
			switch g := t.accounts.get(key); {
			case g == nil:
			case g.Pending != nil && g.Pending.Seq != c.confirmed[key]: // written by this very function before
			case g.Pending != nil && g.Pending.Final:
				put(t, &t.accounts, key, nil)
				c.m.accountant.poke()
			default:
				n := g.cut(t.state, now)
				put(t, &t.accounts, key, &n)
			}
		}
		return nil
	})
}

// send the pending messages of keys in one call; true: confirmed.
func (c *courier) send(ctx context.Context, keys []string, now int64) bool {
	byURL := map[string][]vmi.AccountingMessage{}
	seqs := map[string]map[string]uint64{}
	c.m.ledger.read(func(s *state) {
		for _, key := range keys {
			if g := s.accounts.rows[key]; g != nil && g.Pending != nil {
				byURL[g.URL] = append(byURL[g.URL], *g.Pending)
				if seqs[g.URL] == nil {
					seqs[g.URL] = map[string]uint64{}
				}
				seqs[g.URL][key] = g.Pending.Seq
			}
		}
	})
	all := true
	for url, messages := range byURL {
		err := c.deliver(ctx, url, messages)
		for key, seq := range seqs[url] {
			if err == nil {
				c.confirmed[key] = seq
				delete(c.tried, key)
			} else {
				c.tried[key] = now
			}
		}
		if err != nil {
			all = false
			c.m.cfg.Log.Info("accounting information was not confirmed: it will be sent again", "listener", c.listener, "messages", len(messages), "err", err)
		}
	}
	return all
}

func (c *courier) deliver(ctx context.Context, url string, messages []vmi.AccountingMessage) error {
	l := c.m.accountant.attached[c.listener]
	if url != "" {
		var err error
		if l, err = c.m.cfg.Listener(url); err != nil {
			return err
		}
	}
	if l == nil {
		return fault.New(fault.Unavailable, "listener %s is not there", c.listener)
	}
	ctx, cancel := context.WithTimeout(ctx, c.m.cfg.Timing.Call)
	defer cancel()
	return l.ReceiveAccountingInformation(ctx, messages)
}

func (c *courier) failed(keys []string, now int64) {
	for _, key := range keys {
		c.tried[key] = now
	}
}

// forget what is remembered of registrations that are gone.
func (c *courier) forget() {
	c.m.ledger.read(func(s *state) {
		for key := range c.confirmed {
			if s.accounts.rows[key] == nil {
				delete(c.confirmed, key)
			}
		}
		for key := range c.tried {
			if s.accounts.rows[key] == nil {
				delete(c.tried, key)
			}
		}
	})
}

// dropAccounts forgets listeners that have not confirmed a VEE's last message for too long.
func dropAccounts(t *tx) (more bool) {
	n := 0
	for key, g := range t.accounts.all() {
		if g.Ended != nil && t.now.Sub(time.UnixMilli(g.Ended.Meter.AtMS)) > keepEnded && n < accountBatch {
			put(t, &t.accounts, key, nil)
			n++
		}
	}
	return n == accountBatch
}
