package relay

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/reservoir-cloud/reservoir/internal/fault"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// book of tickets for a test.
type book struct {
	mu     sync.Mutex
	routes map[string]Goal // by side and ticket
	open   int
}

func (b *book) tickets(side Side, ticket string) (Goal, func(), error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	g, ok := b.routes[string(side)+" "+ticket]
	if !ok {
		return g, nil, errors.New("the ticket is not known here")
	}
	b.open++
	return g, func() { b.mu.Lock(); b.open--; b.mu.Unlock() }, nil
}

func valid(s string) bool { return s != "" && !strings.ContainsAny(s, " \r") }

// start a relay; its addresses inside and outside.
func start(t *testing.T, b *book, l Limits) (r *Relay, inside, outside string) {
	t.Helper()
	r = New(Config{Tickets: b.tickets, Valid: valid, Dial: &net.Dialer{}, Limits: l, Log: slog.New(slog.NewTextHandler(io.Discard, nil))})
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	var at [2]string
	for i, side := range []Side{Inside, Outside} {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		must(t, err)
		at[i] = ln.Addr().String()
		wg.Go(func() {
			if err := r.Serve(ctx, side, ln); err != nil {
				t.Error(err)
			}
		})
	}
	t.Cleanup(func() { cancel(); wg.Wait() })
	return r, at[0], at[1]
}

// echo sends back what it gets, and what it was after the end of it: it needs half-close.
func echo(t *testing.T) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	var wg sync.WaitGroup
	t.Cleanup(func() { ln.Close(); wg.Wait() })
	wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer c.Close()
				n, _ := io.Copy(c, c)
				fmt.Fprintf(c, "and that was %d bytes", n)
			})
		}
	})
	return ln.Addr().String()
}

func TestBytesPassThroughTwoRelaysAndEachDirectionEndsByItself(t *testing.T) {
	end := echo(t)
	_, _, beta := start(t, &book{routes: map[string]Goal{"outside in": {Address: end}}}, Limits{})
	_, alpha, _ := start(t, &book{routes: map[string]Goal{"inside out": {Address: beta, Show: "in"}}}, Limits{})
	c, err := Dial(t.Context(), &net.Dialer{}, alpha, "out")
	must(t, err)
	defer c.Close()
	sent := bytes.Repeat([]byte("0123456789abcdef"), 1<<16) // several chunks
	go func() {
		_, _ = c.Write(sent)
		_ = c.(*net.TCPConn).CloseWrite()
	}()
	got, err := io.ReadAll(c)
	must(t, err)
	if want := fmt.Sprintf("%sand that was %d bytes", sent, len(sent)); string(got) != want {
		t.Errorf("got %d bytes: want %d, the last of them %q", len(got), len(want), want[len(sent):])
	}
}

func TestRefusals(t *testing.T) {
	nobody, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	nobody.Close()
	b := &book{routes: map[string]Goal{"inside out": {Address: echo(t)}, "outside in": {Address: echo(t)}, "outside void": {Address: nobody.Addr().String()}}}
	r, inside, outside := start(t, b, Limits{})
	for _, c := range []struct{ name, at, ticket, why string }{
		{"unknown", outside, "what", "not known"},
		{"one for inside, from outside", outside, "out", "not known"},
		{"one for outside, from inside", inside, "in", "not known"},
		{"nobody at its end", outside, "void", "nobody answers where it leads"},
		{"no ticket", outside, "", "no first line"},
		{"too long", outside, strings.Repeat("x", maxLine), "longer than"},
	} {
		t.Run(c.name, func(t *testing.T) {
			conn, err := Dial(t.Context(), &net.Dialer{}, c.at, c.ticket)
			if err == nil {
				conn.Close()
				t.Fatal("it was let in")
			}
			if !fault.Has(err, fault.Denied) || !strings.Contains(err.Error(), c.why) {
				t.Errorf("refused with %q: want %s, %q", err, fault.Denied, c.why)
			}
		})
	}
	if open, taken, refused := r.Counts(); open != 0 || taken != 0 || refused != 6 {
		t.Errorf("%d open, %d taken, %d refused: want 0, 0, 6", open, taken, refused)
	}
	if b.open != 0 {
		t.Errorf("%d tickets are still in use", b.open)
	}
}

func TestStrangersAreBoundedInTimeAndNumber(t *testing.T) {
	_, inside, outside := start(t, &book{routes: map[string]Goal{"outside in": {Address: echo(t)}, "inside out": {Address: echo(t)}}}, Limits{Strangers: 2, FirstLine: 300 * time.Millisecond})
	var silent []net.Conn
	for range 2 {
		c, err := net.Dial("tcp", outside)
		must(t, err)
		defer c.Close()
		silent = append(silent, c)
	}
	// Who is inside is not kept out by strangers.
	c, err := Dial(t.Context(), &net.Dialer{}, inside, "out")
	must(t, err)
	c.Close()
	// The silent ones are sent away, and then there is room again.
	for _, s := range silent {
		if b, err := io.ReadAll(s); err != nil || !strings.HasPrefix(string(b), no) {
			t.Errorf("a silent one got %q, %v: want a refusal", b, err)
		}
	}
	for {
		if c, err = Dial(t.Context(), &net.Dialer{}, outside, "in"); err == nil {
			break
		}
		if t.Context().Err() != nil {
			t.Fatal(err)
		}
	}
	c.Close()
}

func TestConnectionsAreBoundedAndIdleOnesEnd(t *testing.T) {
	_, _, outside := start(t, &book{routes: map[string]Goal{"outside in": {Address: echo(t)}}}, Limits{Connections: 1, Idle: 200 * time.Millisecond})
	first, err := Dial(t.Context(), &net.Dialer{}, outside, "in")
	must(t, err)
	defer first.Close()
	if c, err := Dial(t.Context(), &net.Dialer{}, outside, "in"); err == nil {
		c.Close() // the first one was idle for long enough already, on a busy machine
	} else if !strings.Contains(err.Error(), "open already") {
		t.Errorf("the second was refused with %q", err)
	}
	if b, err := io.ReadAll(first); len(b) > 0 {
		t.Errorf("an idle connection ended with %q, %v: want nothing", b, err)
	}
}

func TestDialHeedsItsContext(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	defer ln.Close() // it takes connections and says nothing
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(20*time.Millisecond, cancel)
	if c, err := Dial(ctx, &net.Dialer{}, ln.Addr().String(), "x"); !errors.Is(err, context.Canceled) {
		if err == nil {
			c.Close()
		}
		t.Errorf("got %v: want %v", err, context.Canceled)
	}
}

func FuzzFirstLine(f *testing.F) {
	for _, s := range []string{"RESERVOIR 1 site\n", "RESERVOIR 1 \n", "\x16\x03\x01\x02", "GET / HTTP/1.1\r\n\r\n", "RESERVOIR 2 x\n", strings.Repeat("a", 300)} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		r := bytes.NewReader(b)
		line, err := readLine(r)
		if err != nil {
			return
		}
		if rest := len(b) - len(line) - 1; r.Len() != rest {
			t.Fatalf("%d bytes are left behind the line: want %d", r.Len(), rest)
		}
		ticket, err := ticketOf(line, valid)
		if err == nil && greeting+ticket != line {
			t.Fatalf("ticket %q of the line %q", ticket, line)
		}
		if s := oneLine(line); strings.ContainsAny(s, "\n\r") || len(no)+len(s)+1 > maxLine {
			t.Fatalf("%q is told as %q", line, s)
		}
	})
}
