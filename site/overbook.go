package site

import (
	"context"
	"fmt"
	"math"
	"sync"
	"time"

	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/monitor"
	"github.com/reservoir-cloud/reservoir/placement/overbook"
)

// Overbooking of CPUs from history. The zero value leaves it to what hosts declare.
type Overbooking struct {
	History  time.Duration // of a VEE that must be known before less than all its vCPUs count
	Headroom float64       // part of a host's CPUs that stays free; 0: 0.2
}

const (
	defaultHeadroom = 0.2
	leastHistory    = 10 * time.Minute
	mostHistory     = 30 * 24 * time.Hour
	demandEvery     = time.Minute
	needPercentile  = 0.99
)

func (o *Overbooking) check() error {
	if o.Headroom == 0 {
		o.Headroom = defaultHeadroom
	}
	if o.History != 0 && (o.History < leastHistory || o.History > mostHistory) {
		return fault.New(fault.Malformed, "overbooking from a history of %s: want %s to %s, or 0 for what hosts declare", o.History, leastHistory, mostHistory).
			Try("reservoir site --overbook-history 24h")
	}
	if err := (overbook.Policy{Headroom: o.Headroom}).Check(); err != nil {
		return fault.New(fault.Malformed, "overbooking: %w", err).Try("reservoir site --overbook-headroom 0.2")
	}
	return nil
}

// demand is what each VEE has needed, as far as that is known.
type demand struct {
	mu   sync.Mutex
	need map[string]int64 // thousandths of a CPU
}

func (d *demand) of(vee string) (int64, bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	n, known := d.need[vee]
	return n, known
}

// booking is what the VEE Manager asks; nil without overbooking from history.
func (s *site) booking() func(overbook.Machine) int64 {
	o := s.cfg.Overbooking
	if o.History == 0 {
		return nil
	}
	return func(m overbook.Machine) int64 {
		return overbook.Policy{Headroom: o.Headroom}.Capacity(m, s.demand.of)
	}
}

// followDemand asks for the history of every VEE's CPU, until ctx ends. While it cannot be
// asked for, what was known is forgotten: VEEs count in full then.
func (s *site) followDemand(ctx context.Context) {
	if s.cfg.Overbooking.History == 0 {
		return
	}
	tick := time.NewTicker(demandEvery)
	defer tick.Stop()
	for {
		need, err := askDemand(ctx, s.metering.repository.Querier(monitor.Scope{}), s.cfg.Overbooking.History, time.Now())
		if err != nil && ctx.Err() == nil {
			s.cfg.Log.Warn("ask for what VEEs have needed: until it is known, their vCPUs count in full", "err", err)
		}
		s.demand.mu.Lock()
		s.demand.need = need
		s.demand.mu.Unlock()
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// askDemand for the CPU that each VEE needed in nearly all of a history, of those VEEs that
// were measured in most of it.
func askDemand(ctx context.Context, q monitor.Querier, history time.Duration, at time.Time) (map[string]int64, error) {
	series, err := q.Query(ctx, demandQuery(history), at)
	if err != nil {
		return nil, fmt.Errorf("the CPU of VEEs in %s: %w", history, err)
	}
	need := map[string]int64{}
	for _, x := range series {
		id := x.Labels[monitor.LabelVEE]
		if id == "" || len(x.Points) == 0 {
			continue
		}
		if v := x.Points[len(x.Points)-1].Value; v >= 0 && v < 1<<20 { // not NaN, not infinite
			need[id] = int64(math.Ceil(v * 1000))
		}
	}
	return need, nil
}

func demandQuery(history time.Duration) string {
	step := min(max(history/100, 30*time.Second), 5*time.Minute).Round(time.Second)
	window := max(step, time.Minute)
	least := int(0.8 * float64(history) / float64(step))
	seconds := func(d time.Duration) string { return fmt.Sprintf("%ds", int(d.Seconds())) }
	rates := fmt.Sprintf("rate(vee_cpu_seconds_total[%s])[%s:%s]", seconds(window), seconds(history), seconds(step))
	return fmt.Sprintf("max by (vee) (quantile_over_time(%g, %s) and count_over_time(%s) >= %d)", needPercentile, rates, rates, least)
}
