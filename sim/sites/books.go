package sites

import (
	"context"
	"maps"
	"slices"
	"time"

	"github.com/reservoir-cloud/reservoir/vee"
	"github.com/reservoir-cloud/reservoir/veem"
	"github.com/reservoir-cloud/reservoir/veem/federation/books"
	"github.com/reservoir-cloud/reservoir/vmi"
	sitepeer "github.com/reservoir-cloud/reservoir/vmi/peer"
)

// openBooks of a site, on what its store has.
func (s *Site) openBooks(m *veem.Manager) *books.Keeper {
	return books.New(books.Config{Site: s.Name, Store: s.store, Partners: readers{partners{s}}, Agreements: s.u.agreements, Home: m,
		Every: 5 * time.Second, Call: 10 * time.Second, Now: time.Now, Log: s.log,
		Record: func(e books.Event) { s.log.Info(e.Message, "reason", e.Reason, "object", e.Object) }})
}

func (s *Site) keeper() *books.Keeper {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.books
}

// agreements between any two sites.
func (u *Union) agreements() (all []sitepeer.Agreement) {
	names := slices.Sorted(maps.Keys(u.Sites))
	for _, lender := range names {
		for _, borrower := range names {
			if lender != borrower {
				all = append(all, u.agreement(lender, borrower))
			}
		}
	}
	return all
}

// Settlement of this month between a lender and us, or us and a borrower.
func (s *Site) Settlement(lender, borrower string) (books.Settlement, error) {
	all, err := s.keeper().Settlements(context.Background(), books.Asked{Agreement: agreement(lender, borrower).ID})
	if err != nil {
		return books.Settlement{}, err
	}
	return all[0], nil
}

// readers are partners as who keeps the books reaches them: its crossings are "book", so that
// who strikes the first "call" of a migration hits that.
type readers struct{ partners }

func (p readers) Partner(name string) (sitepeer.Partner, error) {
	x, err := p.partners.Partner(name)
	r := reader{r: remote{from: p.s, to: p.s.u.Sites[name]}}
	x.VMI, x.Site = r, bookReader{r: r.r}
	x.Hello.Capabilities = append(x.Hello.Capabilities, sitepeer.CanAccount)
	return x, err
}

type reader struct {
	vmi.Service // nil: no reader has a use for it
	r           remote
}

func (r reader) ListVEEs(ctx context.Context, f vmi.Filter) ([]vmi.VEE, error) {
	return callAs(ctx, r.r, "book", func(ctx context.Context, m *veem.Manager) ([]vmi.VEE, error) { return m.ListVEEs(ctx, f) })
}

func (r reader) GetVEE(ctx context.Context, id vee.ID) (vmi.VEE, error) {
	return callAs(ctx, r.r, "book", func(ctx context.Context, m *veem.Manager) (vmi.VEE, error) { return m.GetVEE(ctx, id) })
}

type bookReader struct {
	sitepeer.Site // likewise
	r             remote
}

func (b bookReader) Lines(ctx context.Context, q sitepeer.LinesAsked) (sitepeer.Page, error) {
	return callAs(ctx, b.r, "book", func(ctx context.Context, _ *veem.Manager) (sitepeer.Page, error) {
		return b.r.to.keeper().Lines(ctx, q)
	})
}
