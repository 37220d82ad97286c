package guard

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// The test's own binary is the guard, so that it can be killed.
func TestMain(m *testing.M) {
	if dir := os.Getenv("GUARD_DIR"); dir != "" {
		log := slog.New(slog.NewTextHandler(os.Stderr, nil))
		if err := Run(context.Background(), Config{Dir: dir, Lease: time.Hour, Log: log}); err != nil {
			log.Error("guard", "err", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// stage is a guard process in a short directory (a socket's name has a bound).
type stage struct {
	Client
	t   *testing.T
	cmd *exec.Cmd
}

func newStage(t *testing.T) *stage {
	t.Helper()
	dir, err := os.MkdirTemp("", "guard")
	if err != nil {
		t.Fatal(err)
	}
	s := &stage{Client: Client{dir}, t: t}
	s.start()
	t.Cleanup(func() { s.kill(); os.RemoveAll(dir) })
	return s
}

func (s *stage) start() {
	s.t.Helper()
	s.cmd = exec.Command(os.Args[0])
	s.cmd.Env = append(os.Environ(), "GUARD_DIR="+s.Dir)
	if err := s.cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	eventually(s.t, "the guard answers", func() bool { _, err := s.Show(s.t.Context()); return err == nil })
}

func (s *stage) kill() {
	_ = s.cmd.Process.Kill()
	_ = s.cmd.Wait()
}

func (s *stage) show() State {
	s.t.Helper()
	st, err := s.Show(s.t.Context())
	if err != nil {
		s.t.Fatal(err)
	}
	return st
}

func (s *stage) must(st State, err error) State {
	s.t.Helper()
	if err != nil {
		s.t.Fatal(err)
	}
	return st
}

// guest is a process that does nothing.
func guest(t *testing.T) *exec.Cmd {
	t.Helper()
	cmd := exec.Command("sleep", "1000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	return cmd
}

func alive(cmd *exec.Cmd) bool { _, err := StartTime(cmd.Process.Pid); return err == nil }

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within a minute", what)
		}
	}
}

func TestKillsAtTheDeadlineAndNotBefore(t *testing.T) {
	s, g := newStage(t), guest(t)
	if _, err := s.Hold(t.Context(), "a.1", g.Process.Pid); !errors.Is(err, ErrRefused) {
		t.Fatalf("a new guard, whose deadline has passed, takes a guest: %v", err)
	}
	far := Now() + time.Minute
	s.must(s.Extend(t.Context(), far))
	s.must(s.Hold(t.Context(), "a.1", g.Process.Pid))
	if st := s.must(s.Extend(t.Context(), far-time.Second)); st.Deadline != far {
		t.Errorf("the deadline went back from %v to %v", far, st.Deadline)
	}
	if _, err := s.Extend(t.Context(), Now()+2*time.Hour); !errors.Is(err, ErrRefused) {
		t.Errorf("a deadline further away than a lease: %v", err)
	}
	if !alive(g) {
		t.Fatal("the guest is dead before the deadline")
	}
}

func TestKillsWhatItHoldsAndNothingElse(t *testing.T) {
	s, a, b, free := newStage(t), guest(t), guest(t), guest(t)
	soon := Now() + 300*time.Millisecond
	s.must(s.Extend(t.Context(), soon))
	for id, g := range map[string]*exec.Cmd{"a.1": a, "a.2": b} {
		if _, err := s.Hold(t.Context(), id, g.Process.Pid); err != nil && !errors.Is(err, ErrRefused) {
			t.Fatal(err) // refused: this machine is slow, and the deadline has passed
		}
	}
	held := len(s.show().Guests) + len(s.show().Killed)
	eventually(t, "what is held is dead", func() bool { return len(s.show().Guests) == 0 && len(s.show().Killed) >= min(held, 2) })
	for _, k := range s.show().Killed {
		if k.Deadline != soon || k.Gone < k.Deadline {
			t.Errorf("killed at %v, the deadline was %v", k.Gone, soon)
		}
	}
	if !alive(free) {
		t.Error("a process that it did not hold is dead")
	}
	if _, err := s.Hold(t.Context(), "a.3", free.Process.Pid); !errors.Is(err, ErrRefused) {
		t.Errorf("an expired guard takes a guest: %v", err)
	}
	s.must(s.Extend(t.Context(), Now()+time.Minute))
	s.must(s.Hold(t.Context(), "a.3", free.Process.Pid))
}

func TestUnarmedLetsDeadlinesPass(t *testing.T) {
	s, g := newStage(t), guest(t)
	s.must(s.Arm(t.Context(), false))
	s.must(s.Hold(t.Context(), "a.1", g.Process.Pid))
	if !alive(g) || len(s.show().Guests) != 1 {
		t.Fatal("an unarmed guard has killed")
	}
	s.must(s.Arm(t.Context(), true))
	eventually(t, "armed again, it kills: no deadline was ever set", func() bool { return !alive(g) })
}

func TestAgentMayKillOneVEE(t *testing.T) {
	s, a, b := newStage(t), guest(t), guest(t)
	s.must(s.Extend(t.Context(), Now()+time.Minute))
	s.must(s.Hold(t.Context(), "a.1", a.Process.Pid))
	s.must(s.Hold(t.Context(), "a.2", b.Process.Pid))
	st := s.must(s.Kill(t.Context(), "a.1"))
	if alive(a) || !alive(b) || len(st.Guests) != 1 || st.Guests[0].VEE != "a.2" {
		t.Errorf("after the kill of a.1: %+v", st)
	}
	s.must(s.Kill(t.Context(), "a.1")) // again: nothing
}

func TestForgetsAGuestThatEnds(t *testing.T) {
	s, g := newStage(t), guest(t)
	s.must(s.Extend(t.Context(), Now()+time.Minute))
	s.must(s.Hold(t.Context(), "a.1", g.Process.Pid))
	s.must(s.Hold(t.Context(), "a.1", g.Process.Pid)) // the same again
	if n := len(s.show().Guests); n != 1 {
		t.Fatalf("%d guests are held, want 1", n)
	}
	_ = g.Process.Kill()
	eventually(t, "it is forgotten", func() bool { return len(s.show().Guests) == 0 })
	if k := s.show().Killed; len(k) != 0 {
		t.Errorf("it says that it has killed %+v", k)
	}
}

// A guard that is killed and started again goes on with the same guests and deadline.
func TestRestartAdopts(t *testing.T) {
	s, g := newStage(t), guest(t)
	until := Now() + time.Minute
	s.must(s.Extend(t.Context(), until))
	s.must(s.Hold(t.Context(), "a.1", g.Process.Pid))
	s.kill()
	if !alive(g) {
		t.Fatal("the guest ended with its guard")
	}
	s.start()
	if st := s.show(); len(st.Guests) != 1 || st.Guests[0].PID != g.Process.Pid || st.Deadline != until || !st.Armed {
		t.Fatalf("after a restart it holds %+v", st)
	}
}

// What passes while no guard runs is made up for at its start.
func TestRestartAfterTheDeadlineKills(t *testing.T) {
	s, g := newStage(t), guest(t)
	s.must(s.Extend(t.Context(), Now()+time.Minute))
	s.must(s.Hold(t.Context(), "a.1", g.Process.Pid))
	s.kill()
	rewrite(t, s.Dir, func(st *State) { st.Deadline = Now() })
	s.start()
	eventually(t, "the guest is dead", func() bool { return !alive(g) })
}

func TestStateOfAnotherBootOrDamagedIsNotTaken(t *testing.T) {
	for name, spoil := range map[string]func(dir string){
		"another boot":    func(dir string) { rewrite(t, dir, func(st *State) { st.Boot = "another" }) },
		"cut off":         func(dir string) { _ = os.WriteFile(filepath.Join(dir, stateFile), []byte(`{"boot":"`), 0o600) },
		"another process": func(dir string) { rewrite(t, dir, func(st *State) { st.Guests[0].Start++ }) },
	} {
		t.Run(name, func(t *testing.T) {
			s, g := newStage(t), guest(t)
			s.must(s.Extend(t.Context(), Now()+time.Minute))
			s.must(s.Hold(t.Context(), "a.1", g.Process.Pid))
			s.kill()
			spoil(s.Dir)
			s.start()
			if st := s.show(); len(st.Guests) != 0 || !alive(g) {
				t.Errorf("it holds %+v; the process lives: %v", st.Guests, alive(g))
			}
			if name != "another process" && !s.show().Expired() {
				t.Error("a guard that knows nothing does not count as expired")
			}
		})
	}
}

func rewrite(t *testing.T, dir string, change func(*State)) {
	t.Helper()
	path := filepath.Join(dir, stateFile)
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var st State
	if err := json.Unmarshal(b, &st); err != nil {
		t.Fatal(err)
	}
	change(&st)
	if b, err = json.Marshal(st); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

// A guard that was frozen over the deadline kills as soon as it goes on, whatever its agent
// says first.
func TestFrozenGuardKillsBeforeItObeys(t *testing.T) {
	s, g := newStage(t), guest(t)
	s.must(s.Arm(t.Context(), false))
	s.must(s.Hold(t.Context(), "a.1", g.Process.Pid))
	if err := s.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	answered := make(chan State, 1)
	go func() {
		st, _ := s.Arm(context.WithoutCancel(t.Context()), true)
		answered <- st
	}()
	if err := s.cmd.Process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	if st := <-answered; len(st.Guests) != 0 || alive(g) {
		t.Errorf("it answers %+v and holds the guest still", st)
	}
}

func TestASecondGuardIsRefused(t *testing.T) {
	s := newStage(t)
	err := Run(t.Context(), Config{Dir: s.Dir, Lease: time.Hour, Log: slog.New(slog.DiscardHandler)})
	if err == nil || !strings.Contains(err.Error(), "another guard") {
		t.Errorf("a second guard: %v", err)
	}
}

// Callers that say nothing, nonsense or too much get nowhere, and nobody waits for them long.
func TestBadCallers(t *testing.T) {
	s := newStage(t)
	for _, line := range []string{"\n", "{\n", "[]\n", `{"op":"show"}{"op":"show"}` + "\n", `{"op":"drop"}` + "\n", `{"op":"hold","vee":"a.1","pid":1,"start":5}` + "\n",
		`{"op":"extend","until":-5}` + "\n", `{"op":"show","more":1}` + "\n", `{"op":"kill","vee":"` + strings.Repeat("x", 5000) + `"}` + "\n"} {
		c, err := net.Dial("unix", filepath.Join(s.Dir, socketFile))
		if err != nil {
			t.Fatal(err)
		}
		_, _ = c.Write([]byte(line))
		b, _ := io.ReadAll(c)
		c.Close()
		if !strings.Contains(string(b), "bad request") {
			t.Errorf("%.60q is answered by %.200q", line, b)
		}
	}
	silent, err := net.Dial("unix", filepath.Join(s.Dir, socketFile))
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	s.show()
}

func FuzzDecode(f *testing.F) {
	for _, r := range []Request{{Op: Show}, {Op: Hold, VEE: "a.1", PID: 7, Start: 9}, {Op: Extend, Until: 5}, {Op: Arm, Armed: true}, {Op: Kill, VEE: "a.1"}} {
		b, _ := json.Marshal(r)
		f.Add(b)
	}
	f.Add([]byte(`{"op":"hold","pid":-1}`))
	f.Fuzz(func(t *testing.T, line []byte) {
		r, err := decode(line)
		if err != nil {
			return
		}
		if !slices.Contains([]Op{Show, Hold, Extend, Arm, Kill}, r.Op) || r.Op == Hold && (r.PID <= 1 || r.VEE == "") || r.Op == Extend && r.Until <= 0 {
			t.Errorf("%q is taken as %+v", line, r)
		}
		b, _ := json.Marshal(r)
		if again, err := decode(b); err != nil || again != r {
			t.Errorf("%+v comes back as %+v, %v", r, again, err)
		}
	})
}
