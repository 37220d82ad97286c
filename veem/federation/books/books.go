// Package books keeps a site's books about VEEs that run at one site and belong to another
// (account/settlement has what they mean): one about each partner that borrows here, and one
// about each that lends. Both are kept in the same way, by looking at VEEs through the VMI: at
// our own manager's as the partner is told of them, or at the partner's. So the borrower's book
// is what it saw, and not what the lender's says; and a look that is lost costs nothing, since
// a VEE's history is in the next one.
//
//   - books.go: the keeper, and what it has on record.
//   - look.go: a look, and what of it is believed.
//   - settle.go: what is shown to a partner, the comparison with its book, and statements.
package books

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/reservoir-cloud/reservoir/account/billing"
	"github.com/reservoir-cloud/reservoir/account/settlement"
	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/internal/store"
	"github.com/reservoir-cloud/reservoir/vee"
	"github.com/reservoir-cloud/reservoir/vmi"
	"github.com/reservoir-cloud/reservoir/vmi/peer"
)

// Event is something that people should know of.
type Event struct {
	Reason, Object, Message string
	Warning                 bool
}

// Source of what VEEs are: a VEE Manager.
type Source interface {
	ListVEEs(ctx context.Context, f vmi.Filter) ([]vmi.VEE, error)
	GetVEE(ctx context.Context, id vee.ID) (vmi.VEE, error)
}

// Config of a Keeper. Every field is needed.
type Config struct {
	Site     string
	Store    *store.Store
	Partners peer.Partners
	// Agreements that there are and were, by identifier, with partners that are and were.
	Agreements func() []peer.Agreement
	Home       Source        // this site's manager
	Every      time.Duration // from one look to the next
	Call       time.Duration // the patience with one look
	Record     func(Event)
	Now        func() time.Time
	Log        *slog.Logger
}

// Keeper of a site's books. It implements peer.Books.
type Keeper struct {
	cfg        Config
	entries    store.Collection[entry]
	looks      store.Collection[look]
	statements store.Collection[Statement]
	charges    store.Collection[[]billing.Charge]

	issuing sync.Mutex // one statement at a time

	mu    sync.Mutex
	books map[string]*book
}

var _ peer.Books = (*Keeper)(nil)

// New keeper, which looks at nothing before Run.
func New(cfg Config) *Keeper {
	return &Keeper{cfg: cfg, books: map[string]*book{},
		entries: store.NewCollection[entry](cfg.Store, "partner-log"), looks: store.NewCollection[look](cfg.Store, "partner-look"),
		statements: store.NewCollection[Statement](cfg.Store, "statement"), charges: store.NewCollection[[]billing.Charge](cfg.Store, "statement-charge"),
	}
}

// entry is a part of the log of a VEE in a book: its next part goes on from the last event.
type entry struct {
	VEE   vee.ID         `json:"vee"`
	Name  string         `json:"name"`
	Part  int            `json:"part"`
	Heard vmi.Step       `json:"heard"` // the VEE's last step that is in it
	Log   settlement.Log `json:"log"`
}

// maxEvents of an entry.
const maxEvents = 200

// add what was heard: e as it is now, and the parts that have come after it, of which the last
// one is to be gone on with.
func (e entry) add(log settlement.Log) (parts []entry) {
	for len(log) > maxEvents {
		e.Log = log[:maxEvents]
		parts = append(parts, e)
		log = log[maxEvents-1:]
		e.Part++
	}
	e.Log = log
	return append(parts, e)
}

// book about one partner: what it borrows here, or lends.
type book struct {
	partner string
	lent    bool // by us
	looking atomic.Bool

	mu      sync.Mutex // one look at a time
	opened  bool
	last    look
	saved   time.Time // when last was put on record
	showing showing
	tails   map[vee.ID]*tail // of VEEs that are at the lender or are still shown by it
}

// tail of a VEE's log: its last entry, and the VEE's version that it has.
type tail struct {
	entry
	version uint64
	created time.Time
}

func (b *book) key() string {
	if b.lent {
		return "lent/" + b.partner
	}
	return "borrowed/" + b.partner
}

func (b *book) entryKey(e entry) string { return fmt.Sprintf("%s/%s/%06d", b.key(), e.VEE, e.Part) }

// lender of what the book is about.
func (b *book) lender(us string) string {
	if b.lent {
		return us
	}
	return b.partner
}

// book about a partner in one direction.
func (k *Keeper) book(partner string, lent bool) *book {
	k.mu.Lock()
	defer k.mu.Unlock()
	b := &book{partner: partner, lent: lent, tails: map[vee.ID]*tail{}}
	if old := k.books[b.key()]; old != nil {
		return old
	}
	k.books[b.key()] = b
	return b
}

// of an agreement.
func (k *Keeper) of(a peer.Agreement) *book {
	return k.book(a.Other(k.cfg.Site), a.Lender == k.cfg.Site)
}

// Run looks at every book that there is an agreement for, until ctx is done: at what is here
// more often, since it costs little. No book waits for another.
func (k *Keeper) Run(ctx context.Context) {
	var wg sync.WaitGroup
	defer wg.Wait()
	tick := time.NewTicker(k.cfg.Every / ownOften)
	defer tick.Stop()
	forgot := time.Time{}
	for n := 0; ; n++ {
		for _, b := range k.wanted() {
			if !b.lent && n%ownOften != 0 || !b.looking.CompareAndSwap(false, true) {
				continue
			}
			wg.Go(func() {
				defer b.looking.Store(false)
				if err := k.look(ctx, b); err != nil && ctx.Err() == nil {
					k.cfg.Log.Debug("look at VEEs for the books", "book", b.key(), "err", err)
				}
			})
		}
		if now := k.cfg.Now(); now.Sub(forgot) > 24*time.Hour {
			forgot = now
			if err := k.forget(ctx); err != nil && ctx.Err() == nil {
				k.cfg.Log.Warn("drop old entries of the books", "err", err)
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// ownOften as often what is here is looked at.
const ownOften = 5

// wanted are the books of agreements under which VEEs may still be somewhere.
func (k *Keeper) wanted() []*book {
	all := map[string]*book{}
	for _, a := range k.cfg.Agreements() {
		if !a.Signed() || k.cfg.Now().After(a.Leave().Add(lingering)) {
			continue
		}
		b := k.of(a)
		all[b.key()] = b
	}
	return slices.Collect(maps.Values(all))
}

// lingering is how long after the end of an agreement VEEs are looked for that are there though
// they may not be.
const lingering = 31 * 24 * time.Hour

// open reads what is on record. b.mu is held.
func (k *Keeper) open(ctx context.Context, b *book) error {
	if b.opened {
		return nil
	}
	list, err := k.entries.Values(ctx, b.key()+"/")
	if err != nil {
		return err
	}
	for _, e := range list { // parts are in their order
		b.tails[e.VEE] = &tail{entry: e}
	}
	if b.last, _, err = k.looks.Get(ctx, b.key()); err != nil && !fault.Has(err, fault.NotFound) {
		return err
	}
	b.opened = true
	return nil
}

// logs of a book, whole.
func (k *Keeper) logs(ctx context.Context, b *book) ([]entry, error) {
	list, err := k.entries.Values(ctx, b.key()+"/")
	if err != nil {
		return nil, err
	}
	var all []entry
	for _, e := range list {
		if n := len(all); n > 0 && all[n-1].VEE == e.VEE {
			all[n-1].Log = append(all[n-1].Log, e.Log...)
			continue
		}
		all = append(all, e)
	}
	slices.SortFunc(all, func(x, y entry) int { return strings.Compare(string(x.VEE), string(y.VEE)) })
	return all, nil
}

// keepLogs of VEEs that have left, and parts that others have come after.
const keepLogs = 800 * 24 * time.Hour

// forget what is older than that.
func (k *Keeper) forget(ctx context.Context) error {
	list, err := k.entries.List(ctx, "")
	if err != nil {
		return err
	}
	before := k.cfg.Now().Add(-keepLogs).UnixMilli()
	for n, o := range list {
		l := o.Value.Log
		followed := n+1 < len(list) && strings.HasPrefix(list[n+1].Key, o.Key[:strings.LastIndex(o.Key, "/")+1])
		if len(l) > 0 && (l[len(l)-1].AtMS >= before || !followed && !l.Ended()) {
			continue
		}
		if err := k.entries.Delete(ctx, o.Key, o.Version); err != nil {
			return err
		}
	}
	return nil
}
