package main

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/reservoir-cloud/reservoir/internal/httpapi"
	"github.com/reservoir-cloud/reservoir/internal/identity"
	"github.com/reservoir-cloud/reservoir/internal/store"
	"github.com/reservoir-cloud/reservoir/vee"
	"github.com/reservoir-cloud/reservoir/veem/federation/broker"
	"github.com/reservoir-cloud/reservoir/veem/federation/connector"
	"github.com/reservoir-cloud/reservoir/veem/federation/partners"
	"github.com/reservoir-cloud/reservoir/vmi/peer"
)

// good bounds the age of attributes.
const good = 10 * time.Second

// world of simulated sites; the first one asks.
type world struct {
	dir   string
	sites []*aSite
}

func (w *world) stop() {
	for _, s := range w.sites {
		s.close()
	}
	if w.dir != "" {
		os.RemoveAll(w.dir)
	}
}

// aSite is what partners see of one.
type aSite struct {
	*partners.Registry
	name   string
	ca     *identity.CA
	keys   *identity.Keypair
	offers *connector.Connector
	close  func()
}

// offered is served to partners beside the registry.
type offered struct {
	*partners.Registry
	*connector.Connector
	peer.Networks
	peer.Moves
	peer.Books
	peer.Cooperation
	peer.Gauges
}

func (w *world) site(name string) (s *aSite, err error) {
	if w.dir == "" {
		if w.dir, err = os.MkdirTemp("", "bench-broker"); err != nil {
			return nil, err
		}
	}
	s = &aSite{name: name}
	dir, log := filepath.Join(w.dir, name), slog.New(slog.DiscardHandler)
	if s.ca, err = identity.NewCA(name, time.Now, nil); err != nil {
		return nil, err
	}
	if s.keys, err = identity.OpenKeypair(filepath.Join(dir, "id"), time.Now); err != nil {
		return nil, err
	}
	if err := s.certify(); err != nil {
		return nil, err
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	trust := identity.NewTrust(time.Now)
	s.offers = connector.New(connector.Config{Look: simulated(name), Every: 100 * time.Millisecond, Good: good, Now: time.Now})
	records := store.InMemory(log, nil)
	s.Registry, err = partners.Open(context.Background(), partners.Config{Site: name, Version: "bench", Capabilities: []peer.Capability{peer.CanPublish},
		CA: s.ca, Keys: s.keys, Trust: trust, Store: records, Recertify: s.certify,
		Border: func() peer.Border { return peer.Border{Relay: ln.Addr().String()} },
		Dial: func(ctx context.Context, _ string, b peer.Border) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "tcp", b.Relay)
		},
		Timing: partners.Timing{Hello: 2 * time.Second}, Record: func(partners.Event) {}, Now: time.Now, Log: log})
	if err != nil {
		return nil, err
	}
	api := httpapi.NewServer(name, "bench", log)
	peer.RegisterHost(api, s.Registry)
	peer.Register(api, offered{Registry: s.Registry, Connector: s.offers})
	l := &httpapi.Listener{Handler: api.Handler(trust.Caller, peer.AcceptPath), TLS: s.keys.FederationTLS(trust, s.Strangers, nil), Log: log}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { _ = l.Serve(ctx, ln) })
	wg.Go(func() { _ = s.Run(ctx) })
	s.close = sync.OnceFunc(func() {
		cancel()
		wg.Wait()
		_ = records.Close()
	})
	w.sites = append(w.sites, s)
	return s, nil
}

func (s *aSite) certify() error {
	id, err := identity.SiteID(s.name)
	if err != nil {
		return err
	}
	csr, err := s.keys.CSR()
	if err != nil {
		return err
	}
	chain, err := s.ca.Issue(csr, id)
	if err != nil {
		return err
	}
	return s.keys.Install(chain, s.ca.Bundle())
}

// simulated is a site somewhere in the north whose load wanders.
func simulated(name string) func(context.Context) (peer.Attributes, error) {
	random := rand.New(rand.NewPCG(uint64(name[len(name)-1]), uint64(len(name)))) //nolint:gosec // simulated loads
	countries := []string{"SE", "FI", "NO", "DE"}
	at := peer.Location{Country: countries[random.IntN(len(countries))], Latitude: 50 + 20*random.Float64(), Longitude: 5 + 25*random.Float64()}
	var mu sync.Mutex
	free := 16.
	return func(context.Context) (peer.Attributes, error) {
		mu.Lock()
		defer mu.Unlock()
		free = min(32, max(0, free+4*(random.Float64()-0.5)))
		return peer.Attributes{Site: name, Characteristics: peer.Characteristics{Location: at, Hypervisors: []string{"qemu"}},
			State: peer.State{Hosts: 8, Load: 1 - free/32, Free: vee.Resources{MilliCPU: int64(1000 * free), Memory: 64 * vee.GiB, Disk: vee.TiB}}}, nil
	}
}

// join s by a token of its.
func (s *aSite) join(ctx context.Context, other *aSite) error {
	i, err := other.Invite(ctx, s.name, time.Hour)
	if err != nil {
		return err
	}
	_, err = s.AcceptToken(ctx, i.Token)
	return err
}

// wait until exactly so many partners are reached and have told what they have.
func (s *aSite) wait(ctx context.Context, n int) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	for {
		reached := 0
		for _, c := range s.Candidates(ctx, nil) {
			if c.Silent == nil {
				reached++
			}
		}
		if reached == n {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%d of %d partners are reached: %w", reached, n, ctx.Err())
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// answer the question by what partners have told.
func (s *aSite) answer(ctx context.Context) broker.Answer {
	b, err := broker.New(question)
	if err != nil {
		panic(err) // it is a constant
	}
	return b.Answer(s.Candidates(ctx, s.offers))
}

// askAll answers it by what each says now.
func (s *aSite) askAll(ctx context.Context) broker.Answer {
	b, err := broker.New(question)
	if err != nil {
		panic(err)
	}
	list := s.Partners()
	candidates := make([]broker.Candidate, len(list))
	var wg sync.WaitGroup
	for i, p := range list {
		wg.Go(func() {
			a, err := s.Ask(ctx, p.Name)
			a.Site = cmp.Or(a.Site, p.Name)
			candidates[i] = broker.Candidate{Attributes: a, Silent: err}
		})
	}
	wg.Wait()
	return b.Answer(candidates)
}
