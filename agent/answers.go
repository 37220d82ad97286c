package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/miekg/dns"

	"github.com/reservoir-cloud/reservoir/van/plan"
	"github.com/reservoir-cloud/reservoir/van/responder"
)

// answerAgain after a network could not be listened in.
const answerAgain = time.Second

// answers what guests ask their networks for: a responder for each segment.
type answers struct {
	host    string
	listen  func(ctx context.Context, s plan.Segment) (*responder.Sockets, []netip.Addr, error)
	resolve func(ctx context.Context, q *dns.Msg) (*dns.Msg, error)
	log     *slog.Logger

	directory responder.Directory
	running   map[string]answered // the loop's own
	news      chan struct{}       // holds at most one
	stop      context.CancelFunc
	done      chan struct{}

	mu     sync.Mutex
	wanted map[string]plan.Segment
}

// answered segment, and where it was when its sockets were opened.
type answered struct {
	*responder.Responder
	version  uint64
	gateways []netip.Addr
	public   bool
}

// newAnswers starts without a segment. Close ends it.
func newAnswers(host string, listen func(ctx context.Context, s plan.Segment) (*responder.Sockets, []netip.Addr, error),
	resolve func(ctx context.Context, q *dns.Msg) (*dns.Msg, error), log *slog.Logger,
) *answers {
	ctx, stop := context.WithCancel(context.Background())
	a := &answers{host: host, listen: listen, resolve: resolve, log: log, stop: stop,
		running: map[string]answered{}, news: make(chan struct{}, 1), done: make(chan struct{}), wanted: map[string]plan.Segment{}}
	go a.run(ctx)
	return a
}

// Set makes these the segments that are answered in. It does not wait.
func (a *answers) Set(segments []plan.Segment) {
	wanted := make(map[string]plan.Segment, len(segments))
	for _, s := range segments {
		wanted[s.ID] = s
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
	for id, r := range a.running {
		if s, stays := wanted[id]; stays && s.Public == r.public && slices.Equal(s.Gateways, r.gateways) {
			continue
		}
		if err := r.Close(); err != nil {
			a.log.Debug("DHCP and DNS of a network ended badly", "network", id, "error", err)
		}
		delete(a.running, id)
	}
	whole := true
	for id, s := range wanted {
		r, there := a.running[id]
		if !there {
			sockets, servers, err := a.listen(ctx, s)
			if err != nil {
				a.log.Warn("DHCP and DNS are not answered, will try again", "network", id, "error", err)
				whole = false
				continue
			}
			r = answered{gateways: s.Gateways, public: s.Public, Responder: responder.New(responder.Config{
				Host: a.host, Sockets: sockets, Servers: servers, Directory: &a.directory, Resolve: a.resolve, Log: a.log,
			})}
		}
		if r.version != s.Version || !there {
			r.Set(s)
		}
		r.version = s.Version
		a.running[id] = r
	}
	return whole
}

// listenInside opens a segment's sockets where the data path answers it: at the gateway's
// addresses, and in a public network at those that this host has there.
func listenInside(path datapath) func(ctx context.Context, s plan.Segment) (*responder.Sockets, []netip.Addr, error) {
	return func(ctx context.Context, s plan.Segment) (sockets *responder.Sockets, servers []netip.Addr, err error) {
		err = path.Inside(s.ID, func(device string) (err error) {
			servers = s.Gateways
			if s.Public {
				if servers, err = addressesOn(device, s.Subnets); err != nil {
					return err
				}
			}
			sockets, err = responder.Listen(ctx, device, servers)
			return err
		})
		return sockets, servers, err
	}
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
