package site

import (
	"context"
	"log/slog"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/reservoir-cloud/reservoir/monitor"
	"github.com/reservoir-cloud/reservoir/vee"
	"github.com/reservoir-cloud/reservoir/vmi"
	"github.com/reservoir-cloud/reservoir/vmi/peer"
)

// A partner tells measurements of our VEEs that it has, and nothing else is taken from it:
// no other VEE's, no state, no word of a guest under the name of its host's. Times are ours.
func TestMeasurementsFromAPartner(t *testing.T) {
	prefix := vee.FQN("alpha", "acme", "shop", "web", 1)
	ours := vmi.VEE{ID: "alpha.aaaaaaaaaa", Descriptor: vee.Descriptor{Customer: "acme", GroupID: "g", FQNPrefix: prefix}}
	event := func(id vee.ID, kind vmi.EventType, fqn, text string) vmi.MonitoringEvent {
		return vmi.MonitoringEvent{Type: kind, T0: 10_000, FQN: fqn, VEE: id, Value: 7, Text: text}
	}
	ms := translate([]vmi.VEE{ours}, []vmi.MonitoringEvent{
		event(ours.ID, vmi.Agent, prefix+".requests", ""),
		event(ours.ID, vmi.VeeHw, prefix+".vee_cpu_seconds_total", ""),
		event(ours.ID, vmi.VeeHw, prefix+".state", "ACTIVE"),
		event(ours.ID, vmi.VeeHw, prefix+".ready", ""),
		event(ours.ID, vmi.Agent, prefix+".vee_cpu_seconds_total", ""),
		event(ours.ID, vmi.Agent, "beta.customers.x.services.y.vees.z.replicas.1.requests", ""),
		event("alpha.bbbbbbbbbb", vmi.Agent, prefix+".requests", ""),
	}, func(theirs time.Time) time.Time { return theirs.Add(-3 * time.Second) })
	if len(ms) != 2 {
		t.Fatalf("%d measurements of 2: %+v", len(ms), ms)
	}
	for i, want := range []struct {
		field string
		kind  monitor.Kind
	}{{"requests", monitor.KPIKind}, {"vee_cpu_seconds_total", monitor.VEEKind}} {
		m := ms[i]
		if m.Values[0] != (monitor.Value{Field: want.field, Value: 7}) || m.Kind != want.kind || m.At.UnixMilli() != 7_000 || m.Subject.Customer != "acme" {
			t.Errorf("%+v, want %+v", m, want)
		}
	}
}

// oneSite is a partner whose measurements are followed, or not.
type oneSite struct {
	peer.Site
	about  peer.Partner
	events chan vmi.MonitoringEvent
	open   atomic.Int32 // gateways to it
	opened atomic.Int32 // in all
}

func (o *oneSite) Measurements(ctx context.Context, _ []vee.ID) (<-chan vmi.MonitoringEvent, error) {
	o.open.Add(1)
	o.opened.Add(1)
	context.AfterFunc(ctx, func() { o.open.Add(-1) })
	return o.events, nil
}

func (o *oneSite) partner() peer.Partner {
	p := o.about
	p.Site = o
	return p
}

func (o *oneSite) get(string) (peer.Partner, error) { return o.partner(), nil }

// fewSites implements peer.Partners with one.
type fewSites struct{ *oneSite }

func (f fewSites) Partner(name string) (peer.Partner, error) { return f.get(name) }
func (f fewSites) Partners() []peer.Partner                  { return []peer.Partner{f.partner()} }
func (f fewSites) Changed() <-chan struct{}                  { return nil }

// notebook has the measurements that were stored.
type notebook struct {
	mu  sync.Mutex
	all []monitor.Measurement
}

func (m *notebook) Append(_ context.Context, ms []monitor.Measurement) (monitor.Receipt, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.all = append(m.all, ms...)
	return monitor.Receipt{}, nil
}

// The gateway to a partner opens with the first VEE that goes there and closes with the last
// that is back, once for all that are there meanwhile; times come by our clock.
func TestGatewayOpensWithTheFirstAndClosesWithTheLast(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		prefix := vee.FQN("alpha", "acme", "shop", "web", 1)
		var mu sync.Mutex
		var there []vmi.VEE
		put := func(ids ...vee.ID) {
			mu.Lock()
			there = nil
			for _, id := range ids {
				there = append(there, vmi.VEE{ID: id, Descriptor: vee.Descriptor{Customer: "acme", GroupID: "g", FQNPrefix: prefix}})
			}
			mu.Unlock()
			time.Sleep(time.Minute)
			synctest.Wait()
		}
		beta := &oneSite{about: peer.Partner{Name: "beta", Offset: 3 * time.Second}, events: make(chan vmi.MonitoringEvent)}
		stored := &notebook{}
		g := &gateway{partners: fewSites{beta}, sink: stored, every: time.Second, log: slog.New(slog.DiscardHandler), away: func(context.Context, string) ([]vmi.VEE, error) {
			mu.Lock()
			defer mu.Unlock()
			return there, nil
		}}
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); g.Run(ctx) }()
		put()
		if beta.opened.Load() != 0 {
			t.Error("it is open while no VEE is there")
		}
		put("alpha.aaaaaaaaaa")
		put("alpha.aaaaaaaaaa", "alpha.bbbbbbbbbb")
		put("alpha.bbbbbbbbbb")
		if beta.open.Load() != 1 || beta.opened.Load() != 1 {
			t.Errorf("%d open, opened %d times, while VEEs are there: want one", beta.open.Load(), beta.opened.Load())
		}
		beta.events <- vmi.MonitoringEvent{Type: vmi.Agent, T0: 10_000, FQN: prefix + ".requests", VEE: "alpha.bbbbbbbbbb", Value: 7}
		time.Sleep(time.Second)
		synctest.Wait()
		if len(stored.all) != 1 || stored.all[0].At.UnixMilli() != 7_000 {
			t.Errorf("stored %+v: want one, three seconds earlier by our clock", stored.all)
		}
		put()
		if beta.open.Load() != 0 {
			t.Error("it is open after the last is back")
		}
		put("alpha.aaaaaaaaaa")
		if beta.open.Load() != 1 || beta.opened.Load() != 2 {
			t.Error("it does not open again")
		}
		stop()
		<-done
	})
}
