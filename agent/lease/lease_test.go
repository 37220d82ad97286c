package lease

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/reservoir-cloud/reservoir/agent/guard"
	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/ownership"
	"github.com/reservoir-cloud/reservoir/vee"
	"github.com/reservoir-cloud/reservoir/vhi"
)

const id = vee.ID("alpha.aaaaaaaaaa")

var (
	first = vee.Epoch{Generation: 1, Term: 1}
	three = ownership.WitnessSet{Config: 1, Members: []string{"h1", "h2", "h3"}}
)

// stage is a keeper with a guard in memory, and a site that is the test. Time stands still
// unless the test moves it.
type stage struct {
	t   *testing.T
	k   *Keeper
	cfg Config
	now ownership.Time

	state guard.State
	fail  error // of the guard
	words int   // witnesses that say "lost"
}

func newStage(t *testing.T) *stage {
	s := &stage{t: t, now: time.Hour, state: guard.State{Boot: "b", Armed: true}}
	s.cfg = Config{Dir: t.TempDir(), Host: "h1", Guard: s, Timings: ownership.DefaultTimings(), Changed: func() {},
		Now: func() ownership.Time { return s.now }, Log: slog.New(slog.DiscardHandler),
		Ask: func(_ context.Context, w, at string, a ownership.Ask) (ownership.Lost, bool) {
			if at != w+":1" || s.words == 0 {
				return ownership.Lost{}, false
			}
			return ownership.Lost{Witness: w, Host: a.Host, Boot: a.Boot, Asked: a.Sent}, true
		}}
	s.open()
	return s
}

func (s *stage) open() {
	s.t.Helper()
	var err error
	if s.k, err = Open(s.cfg); err != nil {
		s.t.Fatal(err)
	}
}

func (s *stage) answer() (guard.State, error) {
	s.state.Now = s.now
	if s.state.Expired() {
		s.state.Guests = nil
	}
	out := s.state
	out.Guests = slices.Clone(s.state.Guests)
	return out, s.fail
}

func (s *stage) Show(context.Context) (guard.State, error) { return s.answer() }
func (s *stage) Hold(_ context.Context, v string, pid int) (guard.State, error) {
	if out, err := s.answer(); err != nil || out.Expired() {
		return out, errors.Join(err, guard.ErrRefused)
	}
	s.state.Guests = append(s.state.Guests, guard.Guest{VEE: v, PID: pid, Start: start(pid)})
	return s.answer()
}
func (s *stage) Extend(_ context.Context, until time.Duration) (guard.State, error) {
	if s.fail == nil {
		s.state.Deadline = max(s.state.Deadline, until)
	}
	return s.answer()
}
func (s *stage) Arm(_ context.Context, armed bool) (guard.State, error) {
	if s.fail == nil {
		s.state.Armed = armed
	}
	return s.answer()
}
func (s *stage) Kill(_ context.Context, v string) (guard.State, error) {
	if s.fail == nil {
		s.state.Guests = slices.DeleteFunc(s.state.Guests, func(g guard.Guest) bool { return g.VEE == v })
	}
	return s.answer()
}

func start(pid int) uint64 { n, _ := guard.StartTime(pid); return n }

// renew once; the site vouches, with these verdicts.
func (s *stage) renew(verdicts ...ownership.Verdict) error {
	s.t.Helper()
	r := s.k.Renewal(s.t.Context())
	if r == nil {
		return errors.New("no renewal")
	}
	_, err := s.k.Heed(s.t.Context(), vhi.LeaseReply{
		Answer: ownership.Answer{Host: "h1", Boot: r.Boot, Sent: r.Sent, Nonce: ownership.Nonce{Generation: 1, Leader: 1, Issued: 1},
			Vouch: true, Witnesses: three, Verdicts: verdicts, Generation: 1},
		Addresses: map[string]string{"h2": "h2:1", "h3": "h3:1"},
	})
	return err
}

func own(e vee.Epoch) ownership.Verdict {
	return ownership.Verdict{VEE: id, Word: ownership.Own, Epoch: e}
}

func (s *stage) runs() {
	s.t.Helper()
	if err := s.renew(own(first)); err != nil {
		s.t.Fatal(err)
	}
	if err := s.k.May(s.t.Context(), id, first); err != nil {
		s.t.Fatal(err)
	}
	if err := s.k.Hold(s.t.Context(), id, os.Getpid()); err != nil {
		s.t.Fatal(err)
	}
}

func TestNothingRunsBeforeTheLogHasSaidSo(t *testing.T) {
	s := newStage(t)
	if err := s.k.May(t.Context(), id, first); !fault.Has(err, fault.Unavailable) {
		t.Errorf("before any answer: %v", err)
	}
	if err := s.renew(ownership.Verdict{VEE: id, Word: ownership.Not, Epoch: first}); err != nil {
		t.Fatal(err)
	}
	if err := s.k.May(t.Context(), id, first); err == nil {
		t.Error("somebody else's VEE may run")
	}
	s.runs2(t)
}

// runs2: the next epoch is ours, and the one before is not any more.
func (s *stage) runs2(t *testing.T) {
	next := first
	next.Term++
	if err := s.renew(own(next)); err != nil {
		t.Fatal(err)
	}
	if err := s.k.May(t.Context(), id, next); err != nil {
		t.Error(err)
	}
	if err := s.k.May(t.Context(), id, first); err == nil {
		t.Error("it may run under an epoch that has passed")
	}
}

func TestWhatIsPromisedOutlivesTheAgent(t *testing.T) {
	s := newStage(t)
	s.runs()
	s.open()
	if err := s.k.May(t.Context(), id, first); err != nil {
		t.Errorf("after a restart of the agent: %v", err)
	}
	r := s.k.Renewal(t.Context())
	if r == nil || len(r.Holds) != 1 || r.Holds[0].State != ownership.Held || !r.Holds[0].Running {
		t.Errorf("it reports %+v", r)
	}
	s.now += s.cfg.Timings.Lease
	if err := s.k.May(t.Context(), id, first); err == nil {
		t.Error("it may run after the lease")
	}
}

func TestDamagedPromisesStopTheAgent(t *testing.T) {
	s := newStage(t)
	if err := os.WriteFile(filepath.Join(s.cfg.Dir, "leases.json"), []byte(`{"gen`), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(s.cfg); !fault.Has(err, fault.Internal) || fault.From(err).Next == "" {
		t.Errorf("damaged promises: %v", err)
	}
}

// Without a guard the host asks for no lease, and lets nothing run.
func TestWithoutAGuard(t *testing.T) {
	s := newStage(t)
	s.runs()
	s.fail = errors.New("connection refused")
	if r := s.k.Renewal(t.Context()); r != nil {
		t.Errorf("it renews: %+v", r)
	}
	if err := s.k.May(t.Context(), id, first); err == nil {
		t.Error("a VEE may run")
	}
	if st := s.k.Status(); st.Guarded || st.Degraded == "" {
		t.Errorf("status %+v", st)
	}
}

// A guard that has lost its memory is told again what it held, and until when.
func TestAForgetfulGuardIsReminded(t *testing.T) {
	s := newStage(t)
	s.runs()
	before := s.state
	s.state = guard.State{Boot: "b", Armed: true}
	if r := s.k.Renewal(t.Context()); r == nil {
		t.Fatal("no renewal")
	}
	if s.state.Deadline != before.Deadline || !slices.Equal(s.state.Guests, before.Guests) {
		t.Errorf("the guard has %+v, had %+v", s.state, before)
	}
}

// What cannot be written down is not promised, and no lease is taken for it.
func TestAFullDiskEndsTheLease(t *testing.T) {
	s := newStage(t)
	s.runs()
	deadline := s.state.Deadline
	s.now += 5 * time.Second
	s.k.cfg.Dir = filepath.Join(s.cfg.Dir, "not", "there")
	err := s.renew(ownership.Verdict{VEE: "alpha.bbbbbbbbbb", Word: ownership.Seal, Epoch: first})
	if err == nil || s.state.Deadline != deadline {
		t.Errorf("a seal that was not written: %v; the deadline went from %v to %v", err, deadline, s.state.Deadline)
	}
	if r := s.k.Renewal(t.Context()); r == nil || len(r.Holds) != 1 {
		t.Errorf("it reports a promise that it has not kept: %+v", r)
	}
	s.k.cfg.Dir = s.cfg.Dir
	if err := s.renew(ownership.Verdict{VEE: "alpha.bbbbbbbbbb", Word: ownership.Seal, Epoch: first}); err != nil || s.state.Deadline <= deadline {
		t.Errorf("with room again: %v, deadline %v", err, s.state.Deadline)
	}
}

// A seal for what runs here changes nothing, one for what does not is a promise; a VEE that
// went elsewhere is ended before that is said.
func TestSealsAndLosses(t *testing.T) {
	s := newStage(t)
	s.runs()
	next := first
	next.Term++
	if err := s.renew(ownership.Verdict{VEE: id, Word: ownership.Seal, Epoch: next}); err != nil || len(s.state.Guests) != 1 {
		t.Fatalf("a guest that runs was sealed: %v, %+v", err, s.state.Guests)
	}
	if err := s.renew(ownership.Verdict{VEE: id, Word: ownership.Not, Epoch: next}); err != nil || len(s.state.Guests) != 0 {
		t.Fatalf("a guest that is another's lives: %v, %+v", err, s.state.Guests)
	}
	if err := s.k.Open(t.Context(), id, first); !fault.Has(err, fault.StaleEpoch) {
		t.Errorf("a gift of an epoch that it refuses: %v", err)
	}
}

func TestAGiftGoesThereAndBack(t *testing.T) {
	s := newStage(t)
	s.runs()
	hop := first
	hop.Hop++
	for range 2 { // repeated
		if given, err := s.k.Give(t.Context(), id, "h2"); !given || err != nil {
			t.Fatalf("give: %v, %v", given, err)
		}
	}
	if err := s.k.May(t.Context(), id, first); err == nil {
		t.Error("what was given away may run")
	}
	if err := s.k.Void(t.Context(), id, hop); err != nil {
		t.Fatal(err)
	}
	hop.Hop++
	if err := s.k.May(t.Context(), id, hop); err != nil {
		t.Errorf("what came back: %v", err)
	}

	to := newStage(t)
	if err := to.k.Open(t.Context(), id, hop); err == nil {
		t.Error("a host without a lease takes a gift")
	}
	if err := to.renew(); err != nil {
		t.Fatal(err)
	}
	if err := to.k.Open(t.Context(), id, hop); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := to.k.Take(t.Context(), id, "h1", hop); err != nil {
			t.Fatal(err)
		}
	}
	if err := to.k.May(t.Context(), id, hop); err != nil {
		t.Errorf("what was taken: %v", err)
	}
}

// With the site silent a majority of the witnesses lets guests live on; a lease that has run
// out stays so.
func TestWitnesses(t *testing.T) {
	s := newStage(t)
	s.runs()
	s.now += 25 * time.Second
	if !s.k.lonely() {
		t.Fatal("25 s without an answer, and it asks nobody")
	}
	before := s.state.Deadline
	s.k.ask(t.Context())
	if s.state.Deadline != before {
		t.Fatal("silence has extended the lease")
	}
	s.words = 2
	s.k.ask(t.Context())
	if want := s.now + s.cfg.Timings.Lease; s.state.Deadline != want {
		t.Errorf("deadline %v, want %v", s.state.Deadline, want)
	}
	s.now += s.cfg.Timings.Lease + time.Second
	s.k.ask(t.Context())
	if s.state.Deadline > s.now {
		t.Error("witnesses have revived a lease")
	}
	if _, lost := s.k.Asked(ownership.Ask{Host: "h2", Sent: 7}); !lost {
		t.Error("as a witness it does not say that it has lost the control plane")
	}
}

// VEEs that are no more are forgotten, but not while a process of one is there.
func TestForgets(t *testing.T) {
	s := newStage(t)
	s.runs()
	over := vhi.LeaseReply{Over: []vee.ID{id}, Answer: ownership.Answer{Host: "h1", Boot: s.k.host.Guard.Boot, Vouch: true, Witnesses: three, Generation: 1, Sent: s.now}}
	if _, err := s.k.Heed(t.Context(), over); err != nil || len(s.k.disk.Holds) != 1 {
		t.Fatalf("%v: %+v", err, s.k.disk.Holds)
	}
	s.state.Guests = nil
	if _, err := s.k.Heed(t.Context(), over); err != nil || len(s.k.disk.Holds) != 0 {
		t.Errorf("%v: %+v", err, s.k.disk.Holds)
	}
}
