package partners

import (
	"context"
	"sync"
	"time"

	"github.com/reservoir-cloud/reservoir/veem/federation/broker"
	"github.com/reservoir-cloud/reservoir/vmi/peer"
)

// askWithin is how long a question waits for partners whose attributes have grown old.
const askWithin = 2 * time.Second

// Candidates are this site, as here says, and every partner, as current as each has
// promised: one whose attributes have grown old is asked now, all at the same time. here may
// be nil.
func (r *Registry) Candidates(ctx context.Context, here peer.Publisher) []broker.Candidate {
	var list []broker.Candidate
	if here != nil {
		a, err := here.Attributes(ctx)
		a.Site = r.cfg.Site
		list = append(list, broker.Candidate{Attributes: a, Here: true, Silent: err})
	}
	first, now := len(list), r.cfg.Now()
	for _, p := range r.Partners() {
		c := broker.Candidate{Attributes: peer.Attributes{Site: p.Name}, Silent: p.Down}
		if a, err := p.Lends(now); err == nil {
			c.Agreement = &a
		}
		list = append(list, c)
	}
	ctx, cancel := context.WithTimeout(ctx, askWithin)
	defer cancel()
	var asking sync.WaitGroup
	for i := first; i < len(list); i++ {
		c := &list[i]
		if c.Silent != nil {
			continue
		}
		if a, age, ok := r.Offer(c.Site); ok && age <= time.Duration(a.GoodMS)*time.Millisecond {
			c.Attributes, c.Age = a, age
			continue
		}
		asking.Go(func() {
			var a peer.Attributes
			if a, c.Silent = r.Ask(ctx, c.Site); c.Silent == nil {
				c.Attributes = a
			}
		})
	}
	asking.Wait()
	return list
}
