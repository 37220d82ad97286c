package site

import (
	"context"
	"time"

	"github.com/reservoir-cloud/reservoir/smi"
	"github.com/reservoir-cloud/reservoir/veem/federation/books"
	"github.com/reservoir-cloud/reservoir/vmi/peer"
)

// openBooks keeps the books about VEEs of partners here, and of ours at partners.
func (s *site) openBooks() *books.Keeper {
	every := time.Duration(float64(15*time.Second) * s.cfg.HAScale)
	return books.New(books.Config{
		Site: s.cfg.Name, Store: s.store, Partners: s.partners, Agreements: s.allAgreements, Home: s.veem,
		Every: max(leastHello, every), Call: 30 * time.Second,
		Record: func(e books.Event) {
			kind := "normal"
			if e.Warning {
				kind = "warning"
			}
			s.events.Record(smi.Event{Type: kind, Reason: e.Reason, Object: e.Object, Message: e.Message})
		},
		Now: time.Now, Log: s.cfg.Log,
	})
}

func (s *site) allAgreements() []peer.Agreement {
	list := s.partners.Agreements()
	all := make([]peer.Agreement, len(list))
	for i, a := range list {
		all[i] = a.Agreement
	}
	return all
}

// Settlements implements admin.Settlements.
func (s *site) Settlements(ctx context.Context, q books.Asked) ([]books.Settlement, error) {
	return s.books.Settlements(ctx, q)
}

// Settle implements admin.Settlements.
func (s *site) Settle(ctx context.Context, o books.Order) (books.Settlement, error) {
	return s.books.Issue(ctx, o)
}
