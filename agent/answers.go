package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"

	"github.com/reservoir-cloud/reservoir/monitor"
	"github.com/reservoir-cloud/reservoir/monitor/intake"
	"github.com/reservoir-cloud/reservoir/van/plan"
	"github.com/reservoir-cloud/reservoir/van/proxy"
	"github.com/reservoir-cloud/reservoir/van/responder"
	"github.com/reservoir-cloud/reservoir/vee"
)

// answerAgain after a network could not be listened in.
const answerAgain = time.Second

// service that guests find in their networks, on one device: it answers by the segments
// that it was told of last.
type service interface {
	Set(segments ...plan.Segment)
	Close() error
}

// opening of a service for segments that share a device.
type opening func(ctx context.Context, segments []plan.Segment) (service, error)

// answers runs a service for each private network, and one for all segments on the host's
// bridge.
type answers struct {
	what string // is answered, for logs
	open opening
	log  *slog.Logger

	running map[string]answered // the loop's own, by device
	news    chan struct{}       // holds at most one
	stop    context.CancelFunc
	done    chan struct{}

	mu     sync.Mutex
	wanted map[string][]plan.Segment // likewise, sorted
}

// answered device: where its sockets are, and what it was told last.
type answered struct {
	service
	at, told string
}

// at tells apart what needs other sockets.
func at(segments []plan.Segment) string {
	var addresses []string
	for _, s := range segments {
		if s.Public {
			addresses = append(addresses, fmt.Sprint(s.Subnets))
		} else {
			addresses = append(addresses, fmt.Sprint(s.Gateways))
		}
	}
	slices.Sort(addresses)
	return strings.Join(slices.Compact(addresses), " ")
}

// versions of segments, to tell whether they have changed.
func versions(segments []plan.Segment) string {
	var b strings.Builder
	for _, s := range segments {
		fmt.Fprintf(&b, "%s %d\n", s.ID, s.Version)
	}
	return b.String()
}

// newAnswers starts without a segment. Close ends it.
func newAnswers(what string, open opening, log *slog.Logger) *answers {
	ctx, stop := context.WithCancel(context.Background())
	a := &answers{what: what, open: open, log: log, stop: stop,
		running: map[string]answered{}, news: make(chan struct{}, 1), done: make(chan struct{}), wanted: map[string][]plan.Segment{}}
	go a.run(ctx)
	return a
}

// Set makes these the segments that are answered in. It does not wait.
func (a *answers) Set(segments []plan.Segment) {
	wanted := map[string][]plan.Segment{}
	for _, s := range segments {
		device := s.ID
		if s.Public {
			device = "" // the host's bridge
		}
		wanted[device] = append(wanted[device], s)
	}
	for _, list := range wanted {
		slices.SortFunc(list, func(a, b plan.Segment) int { return strings.Compare(a.ID, b.ID) })
	}
	a.mu.Lock()
	a.wanted = wanted
	a.mu.Unlock()
	select {
	case a.news <- struct{}{}:
	default:
	}
}

// Close ends all of them.
func (a *answers) Close() error {
	a.stop()
	<-a.done
	var errs []error
	for _, r := range a.running {
		errs = append(errs, r.Close())
	}
	return errors.Join(errs...)
}

func (a *answers) run(ctx context.Context) {
	defer close(a.done)
	for {
		var again <-chan time.Time
		if !a.converge(ctx) {
			again = time.After(answerAgain)
		}
		select {
		case <-ctx.Done():
			return
		case <-a.news:
		case <-again:
		}
	}
}

// converge reports whether every segment is answered in as it is wanted.
func (a *answers) converge(ctx context.Context) bool {
	a.mu.Lock()
	wanted := a.wanted
	a.mu.Unlock()
	for device, r := range a.running {
		if list, stays := wanted[device]; stays && at(list) == r.at {
			continue
		}
		if err := r.Close(); err != nil {
			a.log.Debug(a.what+" ended badly", "network", device, "error", err)
		}
		delete(a.running, device)
	}
	whole := true
	for device, list := range wanted {
		r, there := a.running[device]
		if !there {
			opened, err := a.open(ctx, list)
			if err != nil {
				a.log.Warn(a.what+" are not answered, will try again", "network", list[0].ID, "error", err)
				whole = false
				continue
			}
			r = answered{service: opened, at: at(list)}
		}
		if told := versions(list); told != r.told {
			r.Set(list...)
			r.told = told
		}
		a.running[device] = r
	}
	return whole
}

// responders answer DHCP and DNS. resolve is the host's own resolver; nil: there is none.
func responders(host string, path datapath, resolve func(ctx context.Context, q *dns.Msg) (*dns.Msg, error), log *slog.Logger) opening {
	directory := &responder.Directory{}
	return func(ctx context.Context, segments []plan.Segment) (service, error) {
		var sockets *responder.Sockets
		servers, err := listenInside(path, segments, func(device string, servers []netip.Addr) (err error) {
			sockets, err = responder.Listen(ctx, device, servers)
			return err
		})
		if err != nil {
			return nil, err
		}
		return responder.New(responder.Config{Host: host, Sockets: sockets, Servers: servers, Directory: directory, Resolve: resolve, Log: log}), nil
	}
}

// taking what a VEE's programs push: measure.Measurer.Pushed.
type taking = func(id vee.ID, values []monitor.Value, dropped intake.Dropped) (here bool, refused int)

// proxies take measurements.
func proxies(path datapath, take taking, log *slog.Logger) opening {
	return func(ctx context.Context, segments []plan.Segment) (service, error) {
		var listeners []net.Listener
		_, err := listenInside(path, segments, func(device string, servers []netip.Addr) (err error) {
			listeners, err = proxy.Listen(ctx, device, servers)
			return err
		})
		if err != nil {
			return nil, err
		}
		return proxy.New(proxy.Config{Listeners: listeners, Take: take, Now: time.Now, Log: log}), nil
	}
}

// listenInside a network, at the addresses that this host has there: the gateway's, and in
// public networks those of its bridge.
func listenInside(path datapath, segments []plan.Segment, listen func(device string, servers []netip.Addr) error) (servers []netip.Addr, err error) {
	err = path.Inside(segments[0].ID, func(device string) (err error) {
		servers = segments[0].Gateways
		if segments[0].Public {
			var subnets []netip.Prefix
			for _, s := range segments {
				subnets = append(subnets, s.Subnets...)
			}
			if servers, err = addressesOn(device, subnets); err != nil {
				return err
			}
		}
		return listen(device, servers)
	})
	return servers, err
}

// several services, each of which does without the others.
type several []answering

func (all several) Set(segments []plan.Segment) {
	for _, a := range all {
		a.Set(segments)
	}
}

func (all several) Close() error {
	var errs []error
	for _, a := range all {
		errs = append(errs, a.Close())
	}
	return errors.Join(errs...)
}

// addressesOn a device that are in one of the subnets.
func addressesOn(device string, subnets []netip.Prefix) (found []netip.Addr, err error) {
	link, err := net.InterfaceByName(device)
	if err != nil {
		return nil, fmt.Errorf("device %s: %w", device, err)
	}
	all, err := link.Addrs()
	if err != nil {
		return nil, fmt.Errorf("addresses of device %s: %w", device, err)
	}
	for _, a := range all {
		p, err := netip.ParsePrefix(a.String())
		if err == nil && slices.ContainsFunc(subnets, func(s netip.Prefix) bool { return s.Contains(p.Addr()) }) {
			found = append(found, p.Addr())
		}
	}
	return found, nil
}

// nameServers of a NIC of a public network: this host's addresses there.
func nameServers(cfg Config) func(vee.NIC) []string {
	return func(n vee.NIC) (servers []string) {
		p, err := netip.ParsePrefix(n.Address)
		if !n.Public || err != nil || cfg.Bridge == "" {
			return nil
		}
		found, err := addressesOn(cfg.Bridge, []netip.Prefix{p.Masked()})
		if err != nil {
			cfg.Log.Warn("a guest is told of no name server", "network", n.Network, "error", err)
		}
		for _, a := range found {
			servers = append(servers, a.String())
		}
		return servers
	}
}
