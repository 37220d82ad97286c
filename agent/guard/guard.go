// Package guard is the killer beside a host's agent: a process of its own (`reservoir
// guard`) that holds the guests under lease by their pidfds and kills them when a deadline
// passes on CLOCK_BOOTTIME. The agent may move the deadline on and hand it more guests, and
// nothing else: an agent that is stopped, hangs or is dead cannot keep a guest alive for
// longer than it has proof that nobody else runs it (docs/ownership.md).
//
// It speaks one line of JSON each way over a socket in the host's directory, to processes
// of its own user alone. What it holds it keeps in a file beside that: a guard that is
// started again takes up the same guests and the same deadline, and kills at once when that
// has passed meanwhile. The file is of this boot only, so nothing needs to be flushed.
//
// It depends on nothing but the kernel, so that it works when everything else does not.
package guard

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Files in a host's directory.
const (
	socketFile = "guard.sock"
	stateFile  = "guard.json"
)

// maxLine of the protocol, bytes; maxGuests that one guard holds.
const (
	maxLine   = 4 << 10
	maxGuests = 4096
)

// keptKills is how many of the last kills are shown.
const keptKills = 64

// Op is what an agent asks for.
type Op string

// Operations. Show changes nothing. Hold takes a process, before it runs a guest; it is
// refused when the deadline has passed. Extend moves the deadline on, never back, and never
// further than one lease from now. Arm says whether a deadline that passes kills. Kill ends
// the processes of one VEE and answers when they are gone.
const (
	Show   Op = "show"
	Hold   Op = "hold"
	Extend Op = "extend"
	Arm    Op = "arm"
	Kill   Op = "kill"
)

// Request is one line to the guard.
type Request struct {
	Op    Op            `json:"op"`
	VEE   string        `json:"vee,omitempty"`   // Hold, Kill
	PID   int           `json:"pid,omitempty"`   // Hold
	Start uint64        `json:"start,omitempty"` // Hold: of the process, clock ticks since boot
	Until time.Duration `json:"until,omitempty"` // Extend: CLOCK_BOOTTIME, ns
	Armed bool          `json:"armed,omitempty"` // Arm
}

// Guest is a process that the guard holds.
type Guest struct {
	VEE   string `json:"vee"`
	PID   int    `json:"pid"`
	Start uint64 `json:"start"`
}

// Killed tells of a guest that the guard has ended. Times are of CLOCK_BOOTTIME.
type Killed struct {
	VEE      string        `json:"vee"`
	PID      int           `json:"pid"`
	Deadline time.Duration `json:"deadline,omitempty"` // that had passed; 0: the agent asked for it
	Gone     time.Duration `json:"gone"`               // the process had ended
}

// State is the guard's answer to everything.
type State struct {
	Boot     string        `json:"boot"` // the kernel's boot_id
	Now      time.Duration `json:"now"`
	Armed    bool          `json:"armed"`
	Deadline time.Duration `json:"deadline"`
	Guests   []Guest       `json:"guests,omitempty"`
	Killed   []Killed      `json:"killed,omitempty"` // the last ones, the newest last
	// Watchdog is the hardware that resets the machine when this process does not run;
	// empty: there is none.
	Watchdog string `json:"watchdog,omitempty"`
	Error    string `json:"error,omitempty"` // why the request was refused
}

// Expired reports whether the guard kills what it holds, and takes nothing.
func (s State) Expired() bool { return s.Armed && s.Now >= s.Deadline }

// Config of a guard.
type Config struct {
	Dir   string        // of the host
	Lease time.Duration // no deadline is further away than this
	// Watchdog is a device like /dev/watchdog that is kept quiet while the guard runs and
	// resets the machine WatchdogTime after it has stopped; empty: none.
	Watchdog     string
	WatchdogTime time.Duration
	Log          *slog.Logger
}

// held is a guest with the handle on its process: whatever happens to the PID, signals
// reach this process or nobody.
type held struct {
	Guest
	pidfd *os.File
}

type guard struct {
	cfg  Config
	boot string
	dog  *watchdog // nil: none

	mu       sync.Mutex
	armed    bool
	deadline time.Duration
	guests   []held
	killed   []Killed
	timer    *alarm
	wg       sync.WaitGroup // goroutines that wait for processes
}

// Run guards until ctx is done. Guests go on then, and nobody is left who would end them in
// time: it is for whoever starts the guard again at once.
func Run(ctx context.Context, cfg Config) error {
	if cfg.Lease <= 0 {
		return fmt.Errorf("guard of %s: a lease of %v: want a positive time", cfg.Dir, cfg.Lease)
	}
	g := &guard{cfg: cfg, armed: true}
	var err error
	if g.boot, err = bootID(); err != nil {
		return fmt.Errorf("which boot is this: %w", err)
	}
	steady(cfg.Log)
	lock, err := lockFile(filepath.Join(cfg.Dir, "guard.lock"))
	if err != nil {
		return err
	}
	defer lock.Close()
	if g.timer, err = newAlarm(); err != nil {
		return err
	}
	defer g.timer.close()
	if cfg.Watchdog != "" {
		if g.dog, err = openWatchdog(cfg.Watchdog, cfg.WatchdogTime); err != nil {
			return err
		}
		defer g.dog.close()
	}
	g.adopt()
	ln, err := listen(filepath.Join(cfg.Dir, socketFile))
	if err != nil {
		return err
	}
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	var wg sync.WaitGroup
	wg.Go(func() { stop(g.serve(ctx, ln)) })
	wg.Go(func() { stop(g.watch(ctx)) })
	if g.dog != nil {
		wg.Go(func() { stop(g.dog.quiet(ctx)) })
	}
	cfg.Log.Info("guard is up", "dir", cfg.Dir, "lease", cfg.Lease, "guests", len(g.guests), "watchdog", cfg.Watchdog)
	<-ctx.Done()
	ln.Close()
	g.timer.wake()
	wg.Wait()
	g.release()
	if err := context.Cause(ctx); !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

// adopt what an earlier guard of this boot held. A file that cannot be read says nothing:
// the agent hands its guests over again.
func (g *guard) adopt() {
	b, err := os.ReadFile(filepath.Join(g.cfg.Dir, stateFile))
	if errors.Is(err, fs.ErrNotExist) {
		return
	}
	var s State
	if err == nil {
		err = json.Unmarshal(b, &s)
	}
	if err != nil {
		g.cfg.Log.Error("what an earlier guard held cannot be read; the agent says it again", "err", err)
		return
	}
	if s.Boot != g.boot {
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.armed, g.deadline, g.killed = s.Armed, min(s.Deadline, Now()+g.cfg.Lease), s.Killed
	for _, x := range s.Guests {
		if err := g.take(x); err != nil {
			g.cfg.Log.Info("a guest has ended meanwhile", "vee", x.VEE, "pid", x.PID, "why", err)
		}
	}
	g.arm()
}

// take a process. g.mu is held.
func (g *guard) take(x Guest) error {
	for _, h := range g.guests {
		if h.Guest == x {
			return nil
		}
	}
	if len(g.guests) >= maxGuests {
		return fmt.Errorf("%d guests are held already", len(g.guests))
	}
	fd, err := unix.PidfdOpen(x.PID, unix.PIDFD_NONBLOCK)
	if err != nil {
		return fmt.Errorf("process %d of VEE %s: %w", x.PID, x.VEE, err)
	}
	h := held{x, os.NewFile(uintptr(fd), "pidfd")}
	// Compared after the handle is held, so that it cannot be another process.
	if start, err := StartTime(x.PID); err != nil || start != x.Start {
		h.pidfd.Close()
		return fmt.Errorf("process %d of VEE %s has ended", x.PID, x.VEE)
	}
	g.guests = append(g.guests, h)
	g.wg.Go(func() { g.await(h) })
	return nil
}

// await the end of a process, and let go of it.
func (g *guard) await(h held) {
	raw, err := h.pidfd.SyscallConn()
	if err == nil {
		// Readable when its process ends (pidfd_open(2)); an error when it is let go of before.
		err = raw.Read(func(fd uintptr) bool { return readable(int(fd), 0) })
	}
	if err != nil {
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	i := slices.IndexFunc(g.guests, func(o held) bool { return o.Guest == h.Guest })
	if i < 0 {
		return // it was killed
	}
	g.guests = slices.Delete(g.guests, i, i+1)
	h.pidfd.Close()
	_ = g.save() // it says itself what went wrong
}

// release the handles, as the last thing.
func (g *guard) release() {
	g.mu.Lock()
	for _, h := range g.guests {
		h.pidfd.Close()
	}
	g.mu.Unlock()
	g.wg.Wait()
}

// watch the clock.
func (g *guard) watch(ctx context.Context) error {
	for {
		if err := g.timer.wait(); err != nil || ctx.Err() != nil {
			return err
		}
		g.mu.Lock()
		if g.expired() {
			g.end(func(held) bool { return true }, g.deadline)
		}
		g.mu.Unlock()
	}
}

func (g *guard) expired() bool { return g.armed && Now() >= g.deadline }

// arm sets the alarm for what comes next. g.mu is held.
func (g *guard) arm() {
	if g.armed && len(g.guests) > 0 {
		g.timer.set(g.deadline)
	} else {
		g.timer.set(0)
	}
}

// killPatience is how long an end that was asked for is waited for.
const killPatience = 5 * time.Second

// end the guests that match: all get the signal first, then they are waited for. One that
// does not go (it sleeps in the kernel) stays held. g.mu is held.
func (g *guard) end(match func(held) bool, deadline time.Duration) (left int) {
	var doomed []held
	for _, h := range g.guests {
		if match(h) {
			if err := h.kill(); err != nil {
				g.cfg.Log.Error("kill a guest", "vee", h.VEE, "pid", h.PID, "err", err)
			}
			doomed = append(doomed, h)
		}
	}
	until := Now() + killPatience
	for _, h := range doomed {
		if !h.ended(until - Now()) {
			left++
			g.cfg.Log.Error("a guest that was killed does not end", "vee", h.VEE, "pid", h.PID)
			g.timer.set(Now() + time.Second) // try again
			continue
		}
		k := Killed{VEE: h.VEE, PID: h.PID, Deadline: deadline, Gone: Now()}
		g.killed = append(g.killed, k)
		g.guests = slices.DeleteFunc(g.guests, func(o held) bool { return o.Guest == h.Guest })
		h.pidfd.Close()
		g.cfg.Log.Warn("killed a guest", "vee", k.VEE, "pid", k.PID, "deadline", k.Deadline, "gone", k.Gone, "asked", deadline == 0)
	}
	g.killed = g.killed[max(0, len(g.killed)-keptKills):]
	if len(doomed) > 0 {
		_ = g.save() // it says itself what went wrong
	}
	return left
}

func (h held) kill() error {
	raw, err := h.pidfd.SyscallConn()
	if err != nil {
		return err
	}
	if cerr := raw.Control(func(fd uintptr) { err = unix.PidfdSendSignal(int(fd), unix.SIGKILL, nil, 0) }); cerr != nil {
		return cerr
	}
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	return err
}

// ended waits for a process to end.
func (h held) ended(patience time.Duration) (gone bool) {
	raw, err := h.pidfd.SyscallConn()
	if err != nil {
		return false
	}
	err = raw.Control(func(fd uintptr) { gone = readable(int(fd), patience) })
	return gone && err == nil
}

// serve the agent, one connection after the other: each is one line each way.
func (g *guard) serve(ctx context.Context, ln *net.UnixListener) error {
	for {
		c, err := ln.AcceptUnix()
		if ctx.Err() != nil {
			return nil //nolint:nilerr // it was closed for that
		}
		if err != nil {
			return fmt.Errorf("the guard's socket: %w", err)
		}
		g.talk(c)
		c.Close()
	}
}

// talkTime bounds a conversation: a caller that hangs must not keep others waiting.
const talkTime = time.Second

func (g *guard) talk(c *net.UnixConn) {
	_ = c.SetDeadline(time.Now().Add(talkTime))
	if err := sameUser(c); err != nil {
		g.cfg.Log.Warn("a caller was refused", "err", err)
		return
	}
	line, err := bufio.NewReader(io.LimitReader(c, maxLine+1)).ReadBytes('\n')
	if err != nil && len(line) == 0 {
		return
	}
	r, err := decode(line)
	s := State{}
	if err == nil {
		s = g.obey(r)
	} else {
		s.Error = err.Error()
	}
	b, err := json.Marshal(s)
	if err == nil {
		_ = c.SetDeadline(time.Now().Add(talkTime))
		_, _ = c.Write(append(b, '\n')) // a caller that has gone away asks again
	}
}

// decode one line.
func decode(line []byte) (r Request, err error) {
	bad := func(format string, args ...any) (Request, error) {
		return Request{}, fmt.Errorf("bad request: "+format, args...)
	}
	if len(line) > maxLine {
		return bad("more than %d bytes", maxLine)
	}
	d := json.NewDecoder(bytes.NewReader(line))
	d.DisallowUnknownFields()
	if err := d.Decode(&r); err != nil {
		return bad("%w", err)
	}
	if d.More() {
		return bad("more than one")
	}
	named := r.VEE != "" && len(r.VEE) <= 200 && !strings.ContainsFunc(r.VEE, func(c rune) bool { return c <= ' ' || c > '~' })
	switch {
	case r.Op == Show, r.Op == Arm:
	case r.Op == Extend && r.Until > 0, r.Op == Kill && named:
	case r.Op == Hold && named && r.PID > 1 && r.Start > 0:
	default:
		return bad("%+v", r)
	}
	return r, nil
}

// obey a request and answer with what is so then.
func (g *guard) obey(r Request) State {
	g.mu.Lock()
	defer g.mu.Unlock()
	err := g.do(r)
	if err == nil && r.Op != Show {
		g.arm()
		err = g.save()
	}
	s := g.state()
	if err != nil {
		s.Error = err.Error()
	}
	return s
}

func (g *guard) do(r Request) error {
	now := Now()
	if g.expired() && r.Op != Show {
		// The alarm may be a moment late; what is held goes before anything else counts.
		g.end(func(held) bool { return true }, g.deadline)
	}
	switch r.Op {
	case Hold:
		if g.expired() {
			return fmt.Errorf("the lease has expired %v ago", now-g.deadline)
		}
		return g.take(Guest{r.VEE, r.PID, r.Start})
	case Extend:
		if r.Until > now+g.cfg.Lease {
			return fmt.Errorf("a deadline in %v is further away than the lease of %v", r.Until-now, g.cfg.Lease)
		}
		g.deadline = max(g.deadline, r.Until)
	case Arm:
		g.armed = r.Armed
		if g.expired() {
			g.end(func(held) bool { return true }, g.deadline)
		}
	case Kill:
		if left := g.end(func(h held) bool { return h.VEE == r.VEE }, 0); left > 0 {
			return fmt.Errorf("the guest of VEE %s does not end", r.VEE)
		}
	}
	return nil
}

func (g *guard) state() State {
	s := State{Boot: g.boot, Now: Now(), Armed: g.armed, Deadline: g.deadline, Killed: slices.Clone(g.killed), Watchdog: g.cfg.Watchdog}
	for _, h := range g.guests {
		s.Guests = append(s.Guests, h.Guest)
	}
	return s
}

// save what another guard would have to know. g.mu is held.
func (g *guard) save() error {
	b, err := json.Marshal(g.state())
	if err != nil {
		return fmt.Errorf("encode what the guard holds: %w", err)
	}
	path := filepath.Join(g.cfg.Dir, stateFile)
	if err = os.WriteFile(path+".new", b, 0o600); err == nil {
		err = os.Rename(path+".new", path)
	}
	if err != nil {
		err = fmt.Errorf("note what the guard holds: %w", err)
		g.cfg.Log.Error("guard", "err", err)
	}
	return err
}
