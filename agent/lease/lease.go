// Package lease keeps a host's right to run the VEEs that may be restarted elsewhere: it is
// the shell around ownership.Host, which decides. It brings the disk, the clock, the guard
// (agent/guard) and the other hosts' words; the agent carries its renewals and answers.
//
// What the core asks for is done in the order in which it asks, and nothing after what
// failed: a host that cannot write, or whose guard does not answer, is not vouched for, and
// its guests die in time. A VEE that is under no lease is none of this package's business.
package lease

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"io/fs"
	"log/slog"
	"maps"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/reservoir-cloud/reservoir/agent/guard"
	"github.com/reservoir-cloud/reservoir/internal/durable"
	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/ownership"
	"github.com/reservoir-cloud/reservoir/vee"
	"github.com/reservoir-cloud/reservoir/vhi"
)

// Guard is the killer process, as guard.Client speaks to it.
type Guard interface {
	Show(ctx context.Context) (guard.State, error)
	Hold(ctx context.Context, vee string, pid int) (guard.State, error)
	Extend(ctx context.Context, until time.Duration) (guard.State, error)
	Arm(ctx context.Context, armed bool) (guard.State, error)
	Kill(ctx context.Context, vee string) (guard.State, error)
}

// Config of a Keeper. All fields are needed.
type Config struct {
	Dir     string // of the host
	Host    string
	Guard   Guard
	Timings ownership.Timings
	// Ask a witness at its address; false: it is silent.
	Ask func(ctx context.Context, witness, address string, a ownership.Ask) (ownership.Lost, bool)
	// Changed: what this host may run is not as before; must not block.
	Changed func()
	Now     func() ownership.Time // CLOCK_BOOTTIME
	Log     *slog.Logger
}

// kept is what is on disk.
type kept struct {
	ownership.Disk
	// Addresses of the witnesses.
	Addresses map[string]string `json:"addresses,omitempty"`
}

// Keeper of a host's leases.
type Keeper struct {
	cfg Config

	mu       sync.Mutex
	host     ownership.Host
	disk     kept // as it is on the disk
	guard    guard.State
	blind    error // why the guard did not answer when it was asked last
	answered ownership.Time
}

func file(dir string) string { return filepath.Join(dir, "leases.json") }

// Open reads what the host has promised. It does not need the guard yet.
func Open(cfg Config) (*Keeper, error) {
	k := &Keeper{cfg: cfg, answered: cfg.Now(), blind: errors.New("it has not been asked yet")}
	if err := durable.ReadJSON(file(cfg.Dir), &k.disk); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fault.New(fault.Internal, "what this host has promised about VEEs is damaged: %w", err).
			Try("drain or fence this host, and give it a new directory; the file is %s", file(cfg.Dir))
	}
	k.host, _ = ownership.Host{ID: cfg.Host, Disk: k.disk.Disk}.Step(k.protocol(), cfg.Now(), ownership.AgentStarted{})
	return k, nil
}

func (k *Keeper) protocol() ownership.Protocol { return ownership.Protocol{Timings: k.cfg.Timings} }

// see what the guard holds, and have it armed as the witness set says. k.mu is held.
func (k *Keeper) see(ctx context.Context) error {
	s, err := k.cfg.Guard.Show(ctx)
	if want := k.host.Disk.Armed(); err == nil && s.Armed != want {
		s, err = k.cfg.Guard.Arm(ctx, want)
	}
	if err == nil && s.Boot == k.guard.Boot {
		s, err = k.remind(ctx, s)
	}
	if k.blind = err; err != nil {
		return err
	}
	k.adopt(s)
	return nil
}

// remind a guard whose deadline has gone back, which means that it has lost its memory, of
// what it had. k.mu is held.
func (k *Keeper) remind(ctx context.Context, s guard.State) (guard.State, error) {
	if s.Deadline >= k.guard.Deadline {
		return s, nil
	}
	s, err := k.cfg.Guard.Extend(ctx, k.guard.Deadline)
	for _, x := range k.guard.Guests {
		if start, gone := guard.StartTime(x.PID); err != nil || gone != nil || start != x.Start {
			continue
		}
		s, err = k.cfg.Guard.Hold(ctx, x.VEE, x.PID)
	}
	return s, err
}

// adopt the guard's state as the core's. A guest counts as running while its process is
// there and the VEE is ours, also when its vCPUs stand still: what is said of it to others
// errs on that side.
func (k *Keeper) adopt(s guard.State) {
	k.guard = s
	boot := fnv.New64a()
	boot.Write([]byte(s.Boot))
	g := ownership.Guard{Boot: boot.Sum64() >> 1, Armed: s.Armed, Deadline: s.Deadline}
	for _, x := range s.Guests {
		id := vee.ID(x.VEE)
		g.Guests = append(g.Guests, ownership.Guest{VEE: id, Running: k.host.Hold(id).State == ownership.Held})
	}
	k.host.Guard = g
}

// step of the core, and all that it asks for. Messages to the site and to other hosts are
// returned. k.mu is held.
func (k *Keeper) step(ctx context.Context, e ownership.Event) (sent []ownership.Message, err error) {
	if err := k.see(ctx); err != nil {
		return nil, err
	}
	before := k.host
	next, actions := k.host.Step(k.protocol(), k.cfg.Now(), e)
	for _, a := range actions {
		switch a := a.(type) {
		case ownership.Send:
			sent = append(sent, a.Message)
		case ownership.Persist:
			err = k.persist(kept{a.Disk, k.disk.Addresses})
		case ownership.Stop:
			if a.Kill {
				_, err = k.cfg.Guard.Kill(ctx, string(a.VEE))
			} // else it stands still already: the tracker has stopped it
		case ownership.Extend:
			_, err = k.cfg.Guard.Extend(ctx, a.Until)
		}
		if err != nil {
			// As if the agent had crashed here: what is on disk stays.
			k.host = before
			k.host.Disk = k.disk.Disk
			return nil, err
		}
	}
	k.host = next
	if len(actions) > 0 {
		// The guard was told; a new witness set may have to arm it.
		if err := k.see(ctx); err != nil {
			return nil, err
		}
	}
	return sent, nil
}

func (k *Keeper) persist(d kept) error {
	if err := durable.WriteJSON(file(k.cfg.Dir), d, 0o600); err != nil {
		return fmt.Errorf("keep what this host promises about VEEs: %w", err)
	}
	k.disk = d
	return nil
}

// Renewal is this host's report to the site's log; nil while the guard does not answer: a
// host without one is not to be vouched for.
func (k *Keeper) Renewal(ctx context.Context) *ownership.Renew {
	k.mu.Lock()
	defer k.mu.Unlock()
	sent, err := k.step(ctx, ownership.RenewDue{})
	if err != nil || len(sent) != 1 {
		k.cfg.Log.Warn("no lease is asked for", "err", err)
		return nil
	}
	r := sent[0].(ownership.Renew)
	return &r
}

// Heed what the site answers. again: another renewal at once would make this host current.
func (k *Keeper) Heed(ctx context.Context, l vhi.LeaseReply) (again bool, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	before, late := k.host.Disk, k.host.Guard.Expired(k.cfg.Now())
	if _, err := k.step(ctx, l.Answer); err != nil {
		return false, fmt.Errorf("heed the site's answer: %w", err)
	}
	if !l.Answer.Nonce.Silent {
		k.answered = k.cfg.Now()
	}
	if err := k.tidy(l); err != nil {
		return false, err
	}
	if !slices.Equal(before.Holds, k.host.Disk.Holds) || before.Witnesses.Config != k.host.Disk.Witnesses.Config {
		again = true // what is promised now is to be known soon
	}
	if again || late && !k.host.Guard.Expired(k.cfg.Now()) {
		k.cfg.Changed()
	}
	return again || !l.Answer.Vouch && !l.Answer.Nonce.Silent, nil
}

// tidy up what the site knows to be over: VEEs that are no more, and have no process here.
func (k *Keeper) tidy(l vhi.LeaseReply) error {
	d := kept{k.host.Disk, k.disk.Addresses}
	if l.Answer.Vouch && len(l.Addresses) > 0 {
		d.Addresses = l.Addresses
		d.Members = k.host.Disk.Witnesses.Members // whom a restored log has to hear
	}
	d.Holds = slices.DeleteFunc(slices.Clone(d.Holds), func(h ownership.Hold) bool {
		return slices.Contains(l.Over, h.VEE) && !slices.ContainsFunc(k.host.Guard.Guests, func(g ownership.Guest) bool { return g.VEE == h.VEE })
	})
	if len(d.Holds) == len(k.host.Disk.Holds) && maps.Equal(d.Addresses, k.disk.Addresses) && slices.Equal(d.Members, k.host.Disk.Members) {
		return nil
	}
	if err := k.persist(d); err != nil {
		return err
	}
	k.host.Disk = d.Disk
	return nil
}

// Asked by another host, as a witness: the word that the control plane is lost, or silence.
func (k *Keeper) Asked(a ownership.Ask) (ownership.Lost, bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	_, actions := k.host.Step(k.protocol(), k.cfg.Now(), a) // it changes nothing
	for _, x := range actions {
		if s, ok := x.(ownership.Send); ok {
			l, ok := s.Message.(ownership.Lost)
			return l, ok
		}
	}
	return ownership.Lost{}, false
}

// Run asks the witnesses while the site is silent, and stands in for a guard that does not
// answer when its deadline passes, until ctx is done.
func (k *Keeper) Run(ctx context.Context) {
	timer := time.NewTimer(k.cfg.Timings.Renew / 2)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		}
		if k.lonely() {
			k.ask(ctx)
		}
		timer.Reset(k.standIn(ctx))
	}
}

// standIn ends the guests when their deadline has passed and the guard does not answer, and
// says when to look again.
func (k *Keeper) standIn(ctx context.Context) time.Duration {
	k.mu.Lock()
	defer k.mu.Unlock()
	next := k.cfg.Timings.Renew / 2
	if k.see(ctx) == nil || !k.guard.Armed {
		return next
	}
	left := k.guard.Deadline - k.cfg.Now()
	if left > 0 {
		return min(left, next)
	}
	for _, x := range k.guard.Guests {
		k.cfg.Log.Warn("the guard does not answer and the lease has run out: the guest is ended", "vee", x.VEE, "pid", x.PID)
		if err := x.End(); err != nil {
			k.cfg.Log.Error("end a guest", "vee", x.VEE, "pid", x.PID, "err", err)
		}
	}
	return next
}

// lonely: two renewals were not answered.
func (k *Keeper) lonely() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.cfg.Now()-k.answered >= 2*k.cfg.Timings.Renew && k.host.Disk.Witnesses.Leases()
}

// ask every witness at once, and count the words that come in time.
func (k *Keeper) ask(ctx context.Context) {
	k.mu.Lock()
	asks, err := k.step(ctx, ownership.AskDue{})
	members, addresses := k.host.Disk.Witnesses.Members, k.disk.Addresses
	k.mu.Unlock()
	if err != nil || len(asks) == 0 {
		return
	}
	a := asks[0].(ownership.Ask)
	ctx, cancel := context.WithTimeout(ctx, k.cfg.Timings.WordGood)
	defer cancel()
	var wg sync.WaitGroup
	for _, w := range members {
		wg.Go(func() {
			l, ok := ownership.Lost{}, false
			if w == k.cfg.Host {
				l, ok = k.Asked(a)
			} else if addresses[w] != "" {
				l, ok = k.cfg.Ask(ctx, w, addresses[w], a)
			}
			if !ok || l.Witness != w {
				return
			}
			k.mu.Lock()
			defer k.mu.Unlock()
			before := k.guard.Deadline
			if _, err := k.step(ctx, l); err != nil {
				k.cfg.Log.Warn("count a witness's word", "witness", w, "err", err)
			} else if k.guard.Deadline > before {
				k.cfg.Log.Info("the site is lost to a majority of the witnesses too; guests go on", "lease", k.guard.Deadline-k.cfg.Now())
			}
		})
	}
	wg.Wait()
}

// May the VEE run here, under that epoch? Errors: Unavailable while the site's log has not
// said so, or the lease has run out.
func (k *Keeper) May(ctx context.Context, id vee.ID, e vee.Epoch) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if err := k.see(ctx); err != nil {
		return fault.New(fault.Unavailable, "VEE %s may not run while this host's guard does not answer: %w", id, err).Try("start it: reservoir guard --dir %s", k.cfg.Dir)
	}
	h := k.host.Hold(id)
	switch {
	case h.State != ownership.Held || h.Epoch != e:
		return fault.New(fault.Unavailable, "VEE %s waits for the word of the site's log that it is this host's under epoch %s (here it is %s under %s)", id, e, h.State, h.Epoch)
	case k.host.Guard.Expired(k.cfg.Now()):
		return fault.New(fault.Unavailable, "VEE %s may not run: this host's lease has run out, since the site has not answered for %v", id, (k.cfg.Now() - k.answered).Round(time.Second))
	}
	return nil
}

// Hold has the guard hold a process that is to run a guest, before it does.
func (k *Keeper) Hold(ctx context.Context, id vee.ID, pid int) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if _, err := k.cfg.Guard.Hold(ctx, string(id), pid); err != nil {
		return fault.New(fault.Unavailable, "the guest of VEE %s is not under guard: %w", id, err)
	}
	return k.see(ctx)
}

// Give the VEE, whose guest stands still, to another host: on disk when it returns. Again
// for the same host it does nothing. It is false where the VEE is this host's and no process
// of it is left that could have been given.
func (k *Keeper) Give(ctx context.Context, id vee.ID, to string) (given bool, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if _, err := k.step(ctx, ownership.Give{VEE: id, To: to}); err != nil {
		return false, err
	}
	switch h := k.host.Hold(id); {
	case h.State == ownership.Given && h.To == to:
		return true, nil
	case h.State == ownership.Held:
		return false, nil
	default:
		return false, fault.New(fault.Conflict, "VEE %s is not this host's to give: it is %s under epoch %s", id, h.State, h.Epoch)
	}
}

// Void: the destination has not taken the gift of epoch e and never will.
func (k *Keeper) Void(ctx context.Context, id vee.ID, e vee.Epoch) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	_, err := k.step(ctx, ownership.Void{VEE: id, To: k.cfg.Host, Epoch: e})
	return err
}

// Open reports whether a gift of epoch e could be taken now.
func (k *Keeper) Open(ctx context.Context, id vee.ID, e vee.Epoch) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if err := k.see(ctx); err != nil {
		return fault.New(fault.Unavailable, "this host's guard does not answer: %w", err)
	}
	h := k.host.Hold(id)
	switch {
	case k.host.Guard.Expired(k.cfg.Now()):
		return fault.New(fault.Unavailable, "this host's lease has run out")
	case e.Compare(h.Epoch) <= 0 && (h.State != ownership.Held || h.Epoch != e):
		return fault.New(fault.StaleEpoch, "VEE %s: this host has promised to refuse epoch %s", id, e)
	}
	return nil
}

// Take a gift that Open has let through. It may be repeated. An error means that the VEE
// must not run here under that epoch.
func (k *Keeper) Take(ctx context.Context, id vee.ID, from string, e vee.Epoch) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if h := k.host.Hold(id); h.State != ownership.Held || h.Epoch != e {
		if _, err := k.step(ctx, ownership.Ticket{VEE: id, From: from, To: k.cfg.Host, Epoch: e}); err != nil {
			return err
		}
	}
	if h := k.host.Hold(id); h.State != ownership.Held || h.Epoch != e {
		return fault.New(fault.StaleEpoch, "VEE %s: the gift of epoch %s was refused: here it is %s under %s", id, e, h.State, h.Epoch)
	}
	return nil
}

// Status for people and for the site.
func (k *Keeper) Status() vhi.LeaseStatus {
	k.mu.Lock()
	defer k.mu.Unlock()
	s := vhi.LeaseStatus{Guarded: k.blind == nil}
	switch {
	case k.blind != nil:
		s.Degraded = "its guard does not answer"
	case k.host.Disk.Upkeep%2 == 1:
		s.Degraded = "it is in maintenance: its guard lets guests live"
	case !k.host.Disk.Witnesses.Leases():
		s.Degraded = "the site has fewer than three witnesses"
	case k.guard.Watchdog == "":
		s.Degraded = "no hardware watchdog resets it when agent and guard stand still together"
	}
	return s
}
