package site

import (
	"sync"

	"golang.org/x/time/rate"
)

// limits of the calls of each partner; "" stands for all strangers together.
type limits struct {
	mu sync.Mutex
	of map[string]*rate.Limiter
}

func newLimits() *limits { return &limits{of: map[string]*rate.Limiter{}} }

// allow one more call now. There are as few names as there are partners.
func (l *limits) allow(site string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	x := l.of[site]
	if x == nil {
		if x = rate.NewLimiter(partnerRate, partnerBurst); site == "" {
			x = rate.NewLimiter(strangerRate, strangerBurst)
		}
		l.of[site] = x
	}
	return x.Allow()
}
