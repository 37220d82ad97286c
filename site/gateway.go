package site

import (
	"context"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/reservoir-cloud/reservoir/internal/identity"
	"github.com/reservoir-cloud/reservoir/monitor"
	"github.com/reservoir-cloud/reservoir/vee"
	"github.com/reservoir-cloud/reservoir/veem"
	"github.com/reservoir-cloud/reservoir/vhi"
	"github.com/reservoir-cloud/reservoir/vmi"
	"github.com/reservoir-cloud/reservoir/vmi/peer"
)

// measured are the measurements of partners' VEEs here, for their own sites (peer.Gauges).
type measured struct{ veem *veem.Manager }

// Measurements implements peer.Gauges: what is measured in the caller's VEEs and of them. A
// slow reader loses the oldest.
func (b measured) Measurements(ctx context.Context, ids []vee.ID) (<-chan vmi.MonitoringEvent, error) {
	in, err := b.veem.WatchMonitoring(ctx, vmi.EventFilter{})
	if err != nil || len(ids) == 0 {
		return in, err
	}
	out := make(chan vmi.MonitoringEvent)
	go func() {
		defer close(out)
		for e := range in {
			if !slices.Contains(ids, e.VEE) {
				continue
			}
			select {
			case out <- e:
			case <-ctx.Done():
				return
			}
		}
	}()
	return out, nil
}

// gateway brings the measurements of our VEEs at partners into this site's own store, where
// they are as any others. It is open to a partner from the first VEE that goes there until
// the last one is back.
type gateway struct {
	partners peer.Partners
	away     func(ctx context.Context, host string) ([]vmi.VEE, error) // VEEs at a host
	sink     monitor.Sink
	every    time.Duration
	log      *slog.Logger
}

const (
	// gatewayBatch of measurements in one append, and how long the first of them waits.
	gatewayBatch = 256
	gatewayWait  = 200 * time.Millisecond
)

// Run until ctx is done.
func (g *gateway) Run(ctx context.Context) {
	var wg sync.WaitGroup
	defer wg.Wait()
	open := map[string]context.CancelFunc{}
	ended := make(chan string)
	tick := time.NewTicker(g.every)
	defer tick.Stop()
	for {
		for _, p := range g.partners.Partners() {
			vees, err := g.away(ctx, vhi.AtSite(p.Name))
			switch stop := open[p.Name]; {
			case err != nil:
			case len(vees) == 0 && stop != nil:
				stop() // last back
			case len(vees) > 0 && stop == nil && p.Down == nil:
				own, stop := context.WithCancel(ctx) // first out
				open[p.Name] = stop
				wg.Go(func() {
					g.follow(own, p)
					select {
					case ended <- p.Name:
					case <-ctx.Done():
					}
				})
			}
		}
		select {
		case <-ctx.Done():
			for _, stop := range open {
				stop()
			}
			return
		case name := <-ended:
			open[name]()
			delete(open, name) // opened again by the next look, where it is still needed
			select {
			case <-ctx.Done():
			case <-tick.C:
			}
		case <-tick.C:
		}
	}
}

// follow a partner's measurements until they end.
func (g *gateway) follow(ctx context.Context, p peer.Partner) {
	events, err := p.Site.Measurements(ctx, nil)
	if err != nil {
		g.log.Debug("measurements from a partner", "site", p.Name, "err", err)
		return
	}
	var batch []vmi.MonitoringEvent
	var due <-chan time.Time
	for {
		select {
		case <-ctx.Done():
			return
		case e, more := <-events:
			if !more {
				return
			}
			if batch = append(batch, e); len(batch) == 1 {
				due = time.After(gatewayWait)
			}
			if len(batch) < gatewayBatch {
				continue
			}
		case <-due:
		}
		g.put(ctx, p.Name, batch)
		batch, due = nil, nil
	}
}

// put what is about VEEs of ours that are at the partner, under their own names and by our
// clock. What comes late or twice the store knows.
func (g *gateway) put(ctx context.Context, partner string, events []vmi.MonitoringEvent) {
	p, err := g.partners.Partner(partner)
	if err != nil {
		return
	}
	vees, err := g.away(ctx, vhi.AtSite(partner))
	if err != nil {
		return
	}
	ms := translate(vees, events, p.OurTime)
	if len(ms) == 0 {
		return
	}
	if _, err := g.sink.Append(ctx, ms); err != nil && ctx.Err() == nil {
		g.log.Info("measurements from a partner were not stored", "site", partner, "err", err)
	}
}

// translate events about vees into measurements of theirs.
func translate(vees []vmi.VEE, events []vmi.MonitoringEvent, ours func(time.Time) time.Time) (ms []monitor.Measurement) {
	ofVEE := map[vee.ID]vmi.VEE{}
	for _, v := range vees {
		ofVEE[v.ID] = v
	}
	for _, e := range events {
		v, known := ofVEE[e.VEE]
		field, named := strings.CutPrefix(e.FQN, v.Descriptor.FQNPrefix+".")
		if !known || !named || e.Text != "" {
			continue
		}
		of := monitor.VEESubject(v.ID.Site(), v.ID, v.Descriptor.Customer, v.Descriptor.GroupID, v.Descriptor.FQNPrefix)
		m := monitor.Measurement{Subject: of, Kind: monitor.KPIKind, At: ours(time.UnixMilli(e.T0)), Values: []monitor.Value{{Field: field, Value: e.Value}}}
		if hardware := strings.HasPrefix(field, "vee_"); hardware != (e.Type == vmi.VeeHw) {
			continue // a guest that speaks for its host, or a word that is our own manager's
		} else if hardware {
			m.Kind = monitor.VEEKind
		}
		ms = append(ms, m)
	}
	return ms
}

// openGateway of the site.
func (s *site) openGateway() *gateway {
	return &gateway{partners: s.partners, sink: told{s.metering.store, s.veem}, log: s.cfg.Log,
		every: max(500*time.Millisecond, time.Duration(s.cfg.HAScale*float64(2*time.Second))),
		away: func(ctx context.Context, host string) ([]vmi.VEE, error) {
			return s.veem.ListVEEs(identity.With(ctx, s.self()), vmi.Filter{Host: host})
		}}
}
