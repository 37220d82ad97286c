package agent

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/reservoir-cloud/reservoir/van/plan"
	"github.com/reservoir-cloud/reservoir/van/responder"
)

func TestAnswersFollowTheSegments(t *testing.T) {
	var where atomic.Pointer[net.UDPAddr]
	var fails atomic.Int32
	fails.Store(1) // the first attempt
	log := slog.New(slog.DiscardHandler)
	open := func(context.Context, []plan.Segment) (service, error) {
		if fails.Add(-1) >= 0 {
			return nil, errors.New("the device is not there yet")
		}
		c, err := net.ListenPacket("udp4", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		where.Store(c.LocalAddr().(*net.UDPAddr))
		return responder.New(responder.Config{Host: "h1", Sockets: &responder.Sockets{DNS: []net.PacketConn{c}}, Log: log}), nil
	}
	a := newAnswers("DHCP and DNS", open, log)
	defer a.Close()
	segment := func(version uint64, gateway string, names ...string) plan.Segment {
		return plan.Segment{ID: "back", Version: version, VNI: 1, Domain: "shop.internal",
			Subnets: []netip.Prefix{netip.MustParsePrefix("10.9.0.0/24")}, Gateways: []netip.Addr{netip.MustParseAddr(gateway)},
			Ports: []plan.Port{{VEE: "a.web1", Addresses: []netip.Addr{netip.MustParseAddr("127.0.0.1")}, Names: names}}}
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	until := func(what string, reached func() bool) {
		t.Helper()
		for !reached() {
			select {
			case <-ctx.Done():
				t.Fatal(what)
			case <-time.After(5 * time.Millisecond):
			}
		}
	}
	found := func(name string) func() bool {
		return func() bool {
			if where.Load() == nil {
				return false
			}
			client := dns.Client{Timeout: 200 * time.Millisecond}
			m, _, err := client.ExchangeContext(ctx, new(dns.Msg).SetQuestion(name+".shop.internal.", dns.TypeA), where.Load().String())
			return err == nil && len(m.Answer) == 1
		}
	}
	a.Set([]plan.Segment{segment(1, "10.9.0.1", "web-1.web")})
	until("a network that could not be listened in is not tried again", found("web-1.web"))
	first := where.Load()
	a.Set([]plan.Segment{segment(2, "10.9.0.1", "web-1.web", "web")})
	until("a new name is not found", found("web"))
	if where.Load() != first {
		t.Error("a change of names opened other sockets")
	}
	a.Set([]plan.Segment{segment(3, "10.9.0.254", "web-1.web")})
	until("other gateways did not open other sockets", func() bool { return where.Load() != first && found("web-1.web")() })
	// All public segments share the bridge's sockets.
	public := []plan.Segment{segment(1, "10.9.0.1", "one"), segment(1, "10.9.0.1", "two")}
	for i := range public {
		public[i].Public, public[i].VNI, public[i].ID = true, 0, string(rune('a'+i))
		public[i].Ports[0].Addresses = []netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, byte(2 - i)})}
	}
	a.Set(public)
	until("the second public segment is not answered in", found("two"))
	last := where.Load()
	a.Set(nil)
	until("a network that is gone is still answered in", func() bool {
		c, err := net.ListenUDP("udp4", last)
		if err == nil {
			c.Close()
		}
		return err == nil
	})
}

// heard is a service that remembers what it was told.
type heard struct{ versions chan uint64 }

func (h heard) Set(segments ...plan.Segment) { h.versions <- segments[0].Version }
func (heard) Close() error                   { return nil }

// A proxy that cannot be opened keeps nobody from DHCP and DNS, and is there, with the newest
// segment, once it can.
func TestAProxyThatIsDown(t *testing.T) {
	log := slog.New(slog.DiscardHandler)
	names, measurements := heard{make(chan uint64, 10)}, heard{make(chan uint64, 10)}
	down := make(chan struct{})
	all := several{
		newAnswers("DHCP and DNS", func(context.Context, []plan.Segment) (service, error) { return names, nil }, log),
		newAnswers("measurements", func(context.Context, []plan.Segment) (service, error) {
			select {
			case <-down:
				return measurements, nil
			default:
				return nil, errors.New("address already in use")
			}
		}, log),
	}
	defer all.Close()
	for v := range uint64(2) {
		all.Set([]plan.Segment{{ID: "back", Version: v + 1, Gateways: []netip.Addr{netip.MustParseAddr("10.9.0.1")}}})
		if got := <-names.versions; got != v+1 {
			t.Fatalf("DHCP and DNS are told of version %d, want %d", got, v+1)
		}
	}
	select {
	case v := <-measurements.versions:
		t.Fatalf("a proxy that is down was told of version %d", v)
	default:
	}
	close(down)
	if v := <-measurements.versions; v != 2 {
		t.Errorf("the proxy is told of version %d", v)
	}
}
