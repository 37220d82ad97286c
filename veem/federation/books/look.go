package books

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/reservoir-cloud/reservoir/account"
	"github.com/reservoir-cloud/reservoir/account/settlement"
	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/internal/identity"
	"github.com/reservoir-cloud/reservoir/vee"
	"github.com/reservoir-cloud/reservoir/vmi"
	"github.com/reservoir-cloud/reservoir/vmi/peer"
)

// look at all VEEs of a book that was heard to its end.
type look struct {
	Asked time.Time `json:"asked"` // by our clock
	// Offset of the lender's clock from ours, and how wrong that may be.
	Offset time.Duration `json:"offsetNs"`
	Within time.Duration `json:"withinNs"`
}

// lender's clock when it was asked.
func (l look) lender() time.Time { return l.Asked.Add(l.Offset) }

const (
	// visible is how long after its time a change may be seen, since it is on record by then;
	// compared is what is older than the usual.
	visible  = 10 * time.Second
	compared = 2 * time.Second
	// unsteady is how much two clocks may run apart between two looks beside what is known of
	// their offset: so much, and one part in a thousand.
	unsteady = time.Second
	// saveLooks so often where nothing changes.
	saveLooks = 5 * time.Minute
)

// through which the book is known after a look, by the lender's clock.
func (l look) through() time.Time { return l.lender().Add(-l.Within - compared) }

// sight of what is new in a look, after the one before it.
func (l look) sight(before look, answered time.Time) settlement.Sight {
	s := settlement.Sight{BeforeMS: answered.Add(l.Offset + l.Within + unsteady).UnixMilli()}
	if !before.Asked.IsZero() {
		s.AfterMS = before.lender().Add(-before.Within - visible).UnixMilli()
	}
	return s
}

// jump of the lender's clock between two looks, if it was set ahead: the hours from one moment
// to the other never were.
func (l look) jump(before look) (fromMS, toMS int64, jumped bool) {
	if before.Asked.IsZero() {
		return 0, 0, false
	}
	own := l.Asked.Sub(before.Asked)
	ahead := l.lender().Sub(before.lender()) - own
	if ahead <= unsteady+l.Within+before.Within+max(0, own)/1000 {
		return 0, 0, false
	}
	return before.lender().Add(own).UnixMilli(), l.lender().UnixMilli(), true
}

// look at the VEEs that a book is about, and write down what is new. It is complete or fails;
// what was written down stays.
func (k *Keeper) look(ctx context.Context, b *book) error {
	ctx, cancel := context.WithTimeout(ctx, k.cfg.Call)
	defer cancel()
	b.mu.Lock()
	defer b.mu.Unlock()
	if err := k.open(ctx, b); err != nil {
		return err
	}
	// Our own VEEs' affairs are asked for as the partner is told of them.
	from, source := identity.With(ctx, identity.Caller{ID: b.partner, Role: identity.Partner, Site: b.partner}), k.cfg.Home
	now := look{Asked: k.cfg.Now()}
	if !b.lent {
		x, err := k.cfg.Partners.Partner(b.partner)
		if err != nil {
			return err
		}
		if x.Down != nil {
			return x.Down
		}
		from, source, now.Offset, now.Within = ctx, x.VMI, x.Offset, x.OffsetError
	}
	list, err := source.ListVEEs(from, vmi.Filter{Destroyed: true})
	if err != nil {
		return fmt.Errorf("look at the VEEs of book %s: %w", b.key(), err)
	}
	sight := settlement.Own()
	if !b.lent {
		sight = now.sight(b.last, k.cfg.Now())
		if b.last.Asked.IsZero() {
			sight.AfterMS = k.begins(b)
		}
	}
	news := map[string]entry{}
	write := func(t *tail, log settlement.Log) {
		for _, e := range t.add(log) {
			t.entry, news[b.entryKey(e)] = e, e
		}
	}
	if from, to, jumped := now.jump(b.last); jumped && !b.lent {
		k.cfg.Record(Event{Warning: true, Reason: "ClockJumped", Object: "site/" + b.partner,
			Message: fmt.Sprintf("the clock of site %s was set ahead by %v: that time is not in our book", b.partner, time.Duration(to-from)*time.Millisecond)})
		for _, t := range b.tails {
			if !t.Log.Ended() {
				write(t, t.Log.Skip(from, to))
			}
		}
		b.last.Offset += time.Duration(to-from) * time.Millisecond // also if this look comes to nothing
	}
	err = k.hearAll(ctx, from, source, b, list, sight, write)
	if len(news) > 0 { // what was heard before something failed, too
		if err := k.entries.PutAll(ctx, news); err != nil {
			b.opened, b.tails = false, map[vee.ID]*tail{} // what is on record is read again
			return fmt.Errorf("write down what was seen for book %s: %w", b.key(), err)
		}
	}
	if err != nil {
		return err
	}
	b.last = now
	if len(news) > 0 || now.Asked.Sub(b.saved) > saveLooks {
		if _, err := k.looks.Put(ctx, b.key(), now); err != nil {
			return err
		}
		b.saved = now.Asked
	}
	return nil
}

// hearAll that is new of the VEEs that a lender shows, and end the logs of those that it does
// not show any more.
func (k *Keeper) hearAll(ctx, from context.Context, source Source, b *book, list []vmi.VEE, sight settlement.Sight, write func(*tail, settlement.Log)) error {
	shown := map[vee.ID]bool{}
	for _, v := range list {
		if v.Custody == nil || v.ID.Site() != borrower(b, k.cfg.Site) {
			continue
		}
		t := b.tails[v.ID]
		if t == nil || t.version != v.Version || !t.created.Equal(v.Created) {
			var err error
			if t, err = k.hear(ctx, from, source, b, v, t, sight, write); err != nil {
				return err
			}
		}
		if t != nil {
			b.tails[v.ID], shown[v.ID] = t, true
		}
	}
	for id, t := range b.tails {
		switch {
		case shown[id]:
		case t.Log.Ended():
			delete(b.tails, id)
		default:
			write(t, t.Log.Gone(b.last.lender().UnixMilli()))
		}
	}
	return nil
}

func borrower(b *book, us string) string {
	if b.lent {
		return b.partner
	}
	return us
}

// begins is the first moment at which anything can have been lent under an agreement.
func (k *Keeper) begins(b *book) int64 {
	first := k.cfg.Now()
	for _, a := range k.cfg.Agreements() {
		if a.Signed() && a.Lender == b.lender(k.cfg.Site) && a.Other(k.cfg.Site) == b.partner && a.From.Before(first) {
			first = a.From
		}
	}
	return first.UnixMilli()
}

// hear what has become of a VEE since the look before. nil: of one that we never had, nothing
// is believed.
func (k *Keeper) hear(ctx, from context.Context, source Source, b *book, v vmi.VEE, t *tail, sight settlement.Sight, write func(*tail, settlement.Log)) (*tail, error) {
	name := v.Descriptor.Name
	if !b.lent {
		own, err := k.cfg.Home.GetVEE(identity.With(ctx, identity.Caller{ID: k.cfg.Site, Role: identity.SiteRole}), v.ID)
		switch {
		case err == nil:
			most := account.SizeOf(own.Descriptor)
			name, sight.Most = own.Descriptor.Name, &most
		case !fault.Has(err, fault.NotFound):
			return nil, err
		case t == nil:
			return nil, nil
		default:
			sight.Most = &account.Size{} // no larger than it was
		}
	}
	whole, err := source.GetVEE(from, v.ID)
	if fault.Has(err, fault.NotFound) {
		return t, nil
	}
	if err != nil {
		return nil, fmt.Errorf("ask for the history of VEE %s: %w", v.ID, err)
	}
	if t == nil {
		if t, err = k.again(ctx, b, v.ID); err != nil {
			return nil, err
		}
	}
	t.Name = name
	if b.lent {
		whole.History = k.named(b, whole.History)
	}
	log, heard, doubted := t.Log.Hear(whole.History, t.Heard, sight)
	if doubted > 0 {
		k.cfg.Record(Event{Warning: true, Reason: "NotBelieved", Object: "vee/" + string(v.ID),
			Message: fmt.Sprintf("what site %s tells of VEE %s cannot have been so (%d times): our book has what can", b.partner, v.ID, doubted)})
	}
	if !settlement.Same(heard, t.Heard) {
		t.Heard = heard
		write(t, log)
	}
	t.version, t.created = whole.Version, whole.Created
	return t, nil
}

// named are the steps of a VEE that lodges here under agreements that there are: the borrower
// names one, and does not get rid of its bill by naming another.
func (k *Keeper) named(b *book, steps []vmi.Step) []vmi.Step {
	all := k.cfg.Agreements()
	holds := func(id string, at time.Time) bool {
		return slices.ContainsFunc(all, func(a peer.Agreement) bool {
			return a.ID == id && a.Lender == k.cfg.Site && a.Borrower == b.partner && a.Signed() && !at.Before(a.From) && at.Before(a.Leave())
		})
	}
	out := slices.Clone(steps)
	for i, s := range out {
		if s.Counted == nil || holds(s.Counted.Agreement, s.At) {
			continue
		}
		c := *s.Counted
		for _, a := range all { // the last one that was signed, where none holds
			if a.Lender != k.cfg.Site || a.Borrower != b.partner || !a.Signed() {
				continue
			}
			if c.Agreement = a.ID; holds(a.ID, s.At) {
				break
			}
		}
		out[i].Counted = &c
	}
	return out
}

// again is the tail of a VEE that the book has had before, or a new one.
func (k *Keeper) again(ctx context.Context, b *book, id vee.ID) (*tail, error) {
	t := &tail{entry: entry{VEE: id}}
	list, err := k.entries.Values(ctx, b.key()+"/"+string(id)+"/")
	for _, e := range list {
		t.entry = e
	}
	return t, err
}
