package federation

import (
	"context"
	"crypto/rand"
	"log/slog"
	"sync"
	"time"

	"github.com/reservoir-cloud/reservoir/vhi"
	"github.com/reservoir-cloud/reservoir/vmi/peer"
)

// Home is this site's VEE Manager, where partners become places.
type Home interface {
	Manager
	// PartnerJoined makes a partner a place; one that is there stays.
	PartnerJoined(ctx context.Context, site string) error
}

// Places are the partners as hosts. Dial finds them, Run keeps them current.
type Places struct {
	partners peer.Partners
	scale    float64 // of every timing
	log      *slog.Logger

	mu    sync.Mutex
	home  Home
	known map[string]*Place
}

// NewPlaces of the partners that there are and will be. Scale shortens every timing; 1 is
// that of a real site.
func NewPlaces(partners peer.Partners, scale float64, log *slog.Logger) *Places {
	return &Places{partners: partners, scale: scale, log: log, known: map[string]*Place{}}
}

// Serve home, which must be set before a place is used.
func (p *Places) Serve(home Home) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.home = home
}

// Place of a partner.
func (p *Places) Place(partner string) *Place {
	p.mu.Lock()
	defer p.mu.Unlock()
	x := p.known[partner]
	if x == nil {
		of := func(d time.Duration) time.Duration { return time.Duration(float64(d) * p.scale) }
		x = New(Config{Partner: partner, Partners: p.partners, Manager: p.home, Incarnation: rand.Text(),
			Every: of(5 * time.Second), Call: 10 * time.Second, Hold: time.Minute, Now: time.Now, Log: p.log})
		p.known[partner] = x
	}
	return x
}

// Dial the host that a partner is; false: that is no partner's name.
func (p *Places) Dial(host string) (vhi.Host, bool) {
	site := vhi.SiteOf(host)
	if site == "" {
		return nil, false
	}
	return p.Place(site), true
}

// Run a place for each partner, those that come too, until ctx is done.
func (p *Places) Run(ctx context.Context) {
	var wg sync.WaitGroup
	defer wg.Wait()
	running := map[string]context.CancelFunc{}
	for ctx.Err() == nil {
		changed := p.partners.Changed()
		there := map[string]bool{}
		again := false
		for _, x := range p.partners.Partners() {
			there[x.Name] = true
			if running[x.Name] != nil {
				continue
			}
			if _, err := x.Lends(time.Now()); err != nil {
				continue // nothing of ours can be there yet
			}
			if err := p.home.PartnerJoined(ctx, x.Name); err != nil {
				p.log.Warn("make a partner a place for VEEs", "site", x.Name, "err", err)
				again = true
				continue
			}
			own, stop := context.WithCancel(ctx)
			running[x.Name] = stop
			place := p.Place(x.Name)
			wg.Go(func() { place.Run(own) })
		}
		for name, stop := range running {
			if !there[name] {
				stop()
				delete(running, name)
			}
		}
		var retry <-chan time.Time
		if again {
			retry = time.After(time.Second)
		}
		select {
		case <-ctx.Done():
		case <-changed:
		case <-retry:
		}
	}
	for _, stop := range running {
		stop()
	}
}
