package cli

import (
	"context"
	"errors"
	"io"
	"net/http"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/internal/httpapi"
	"github.com/reservoir-cloud/reservoir/internal/identity"
	"github.com/reservoir-cloud/reservoir/monitor"
	"github.com/reservoir-cloud/reservoir/monitor/promapi"
	"github.com/reservoir-cloud/reservoir/monitor/wire"
	"github.com/reservoir-cloud/reservoir/site/admin"
	"github.com/reservoir-cloud/reservoir/smi"
	"github.com/reservoir-cloud/reservoir/van/border"
	"github.com/reservoir-cloud/reservoir/vmi"
)

// remote is a site, seen from here through each of its interfaces.
type remote struct {
	smi         smi.Manager
	trade       smi.Trade
	elastic     smi.Elasticity
	vmi         vmi.Service
	site        admin.Service
	border      border.Keeper
	federation  admin.Federation
	settlements admin.Settlements
	cooperation admin.Cooperation
	probes      monitor.Control
	metrics     monitor.Querier
	http        *httpapi.Client
}

// connect makes the clients for a context; nothing is sent yet.
func connect(x siteContext) (*remote, error) {
	tls, err := identity.BundleTLS([]byte(x.CA), x.Site, time.Now)
	if err != nil {
		return nil, fault.New(fault.Malformed, "context %s: %w", x.Name, err).Try("reservoir context add %s --url … --ca-file … --token-file …", x.Name)
	}
	at := []string{hostPort(x.URL)}
	for _, u := range x.Others {
		at = append(at, hostPort(u))
	}
	c := &httpapi.Client{Base: x.URL, Token: x.Token, HTTP: &http.Client{Transport: httpapi.NewMembers(tls, at...).Transport()}}
	return &remote{smi: smi.NewClient(c), trade: smi.NewTradeClient(c), elastic: smi.NewElasticityClient(c), vmi: vmi.NewClient(c), site: admin.NewClient(c), border: border.NewKeeperClient(c), federation: admin.NewFederationClient(c), settlements: admin.NewSettlementClient(c), cooperation: admin.NewCooperationClient(c),
		probes: wire.NewClient(c), metrics: promapi.Client{Base: c.Base + promapi.Prefix, HTTP: c.HTTP, Token: c.Token}, http: c}, nil
}

// onSite makes a command's function of one that needs the chosen site.
func (a *app) onSite(f func(ctx context.Context, r *remote, args []string) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		x, err := a.chosen()
		if err != nil {
			return err
		}
		r, err := connect(x)
		if err != nil {
			return err
		}
		return f(cmd.Context(), r, args)
	}
}

// names completes an argument by what list finds at the chosen site; only the first
// arguments of a command, as many as lists are given.
func (a *app) names(lists ...func(ctx context.Context, r *remote, args []string) ([]string, error)) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		if len(args) >= len(lists) {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		var found []string
		ctx, cancel := context.WithTimeout(cmd.Context(), 2*time.Second)
		defer cancel()
		cmd.SetContext(ctx)
		err := a.onSite(func(ctx context.Context, r *remote, _ []string) (err error) {
			found, err = lists[len(args)](ctx, r, args)
			return err
		})(cmd, args)
		if err != nil {
			cobra.CompDebugln(err.Error(), false)
		}
		slices.Sort(found)
		return found, cobra.ShellCompDirectiveNoFileComp
	}
}

// follow gives each value of a watch to f until f says it is done, opening the watch anew
// when it ends or the site does not answer for a while.
func follow[T any](ctx context.Context, open func(context.Context) (<-chan T, error), f func(T) (done bool, err error)) error {
	for pause := 200 * time.Millisecond; ; pause = min(2*pause, 5*time.Second) {
		done, err := followOnce(ctx, open, func(v T) (bool, error) {
			pause = 200 * time.Millisecond
			return f(v)
		})
		switch {
		case done || err != nil && !fault.Has(err, fault.Unavailable):
			return err
		case ctx.Err() != nil:
			return ctx.Err()
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pause):
		}
	}
}

func followOnce[T any](ctx context.Context, open func(context.Context) (<-chan T, error), f func(T) (bool, error)) (done bool, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	ch, err := open(ctx)
	if err != nil {
		return false, err
	}
	for v := range ch {
		if done, err := f(v); done || err != nil {
			return done, err
		}
	}
	return false, nil
}

// snapshots runs produce in a goroutine that ends with stop, and gives what it sends. The
// newest is what counts: a slow reader does not see every one.
func snapshots[T any](ctx context.Context, produce func(ctx context.Context, send func([]T)) error) (ch <-chan []T, stop func() error) {
	ctx, cancel := context.WithCancel(ctx)
	out := make(chan []T, 1)
	ended := make(chan error, 1)
	go func() {
		defer close(out)
		ended <- produce(ctx, func(items []T) {
			items = slices.Clone(items)
			select {
			case out <- items:
			default:
				select { // replace the one that nobody has taken yet
				case <-out:
				default:
				}
				out <- items
			}
		})
	}()
	return out, func() error {
		cancel()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			return err
		}
		return nil
	}
}

// poll lists every two seconds, for what has no watch.
func poll[T any](list func(context.Context) ([]T, error)) func(context.Context, func([]T)) error {
	return func(ctx context.Context, send func([]T)) error {
		for {
			items, err := list(ctx)
			if err != nil && !fault.Has(err, fault.Unavailable) {
				return err
			}
			if err == nil {
				send(items)
			}
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-time.After(2 * time.Second):
			}
		}
	}
}

// showWatch shows what produce sends until the user has seen enough.
func showWatch[T any](ctx context.Context, a *app, l listing[T], f format, produce func(context.Context, func([]T)) error) error {
	ch, stop := snapshots(ctx, produce)
	err := l.watch(ctx, a, f, ch)
	if ended := stop(); ended != nil {
		return ended
	}
	return err
}

// waiting are the flags of a command that can wait for its effect.
type waiting struct {
	wait    bool
	timeout time.Duration
}

func waitFlags(cmd *cobra.Command) *waiting {
	w := &waiting{}
	cmd.Flags().BoolVar(&w.wait, "wait", false, "wait until it is so, and show how it gets on")
	cmd.Flags().DurationVar(&w.timeout, "timeout", 10*time.Minute, "with --wait: give up after this `DURATION`")
	return w
}

// until runs f for at most the timeout; what says in words what was waited for.
func (w *waiting) until(ctx context.Context, what string, f func(context.Context) error) error {
	limited, cancel := context.WithTimeout(ctx, w.timeout)
	defer cancel()
	err := f(limited)
	if err != nil && limited.Err() != nil && ctx.Err() == nil {
		return timeoutFault(err, w.timeout, "%s: not so", what)
	}
	return err
}

// readFile reads a file that the user named; "-" is stdin.
func (a *app) readFile(path string) ([]byte, error) {
	if path == "-" {
		b, err := io.ReadAll(a.in)
		if err != nil {
			return nil, fault.New(fault.Malformed, "read stdin: %w", err)
		}
		return b, nil
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, fileFault(err)
	}
	return b, nil
}

func fileFault(err error) error {
	var pe *os.PathError
	if errors.As(err, &pe) {
		err = errors.New(pe.Path + ": " + pe.Err.Error())
	}
	return fault.New(fault.Malformed, "%w", err).Try("name a file that is there and may be read")
}

// splitPair takes "KEY=VALUE" apart.
func splitPair(s string) (key, value string, err error) {
	key, value, ok := strings.Cut(s, "=")
	if !ok || key == "" {
		return "", "", fault.New(fault.Malformed, "%q: want KEY=VALUE", s)
	}
	return key, value, nil
}
