package relay

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"testing"
)

// greeter answers each line with its name, until the test ends.
func greeter(t *testing.T, ln net.Listener, name string) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				lines := bufio.NewScanner(c)
				for lines.Scan() {
					fmt.Fprintln(c, name, lines.Text())
				}
				fmt.Fprintln(c, "bye") // the other half is closed
			}()
		}
	}()
	t.Cleanup(func() { ln.Close(); <-done })
}

func listen(t *testing.T) net.Listener {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return ln
}

// talker is a connection to the relay.
type talker struct {
	*testing.T
	net.Conn
	r *bufio.Reader
}

func talk(t *testing.T, to net.Addr) talker {
	t.Helper()
	c, err := net.Dial("tcp", to.String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return talker{t, c, bufio.NewReader(c)}
}

func (k talker) say(word string) string {
	fmt.Fprintln(k, word)
	line, err := k.r.ReadString('\n')
	if err != nil {
		return ""
	}
	return line
}

func TestConnectionsGoToWhoeverLeads(t *testing.T) {
	front := listen(t)
	r := &Relay{Here: NewFeed(front.Addr()), Log: slog.New(slog.DiscardHandler)}
	r.Nobody()
	b, c := listen(t), listen(t)
	greeter(t, b, "b")
	greeter(t, c, "c")
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- r.Serve(ctx, front) }()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()

	if got := talk(t, front.Addr()).say("hi"); got != "" {
		t.Errorf("nobody leads, and it answers %q", got)
	}
	r.Follow(b.Addr().String())
	old := talk(t, front.Addr())
	if got := old.say("hi"); got != "b hi\n" {
		t.Errorf("%q", got)
	}
	r.Follow(b.Addr().String()) // no news
	if got := old.say("again"); got != "b again\n" {
		t.Errorf("%q", got)
	}
	half := talk(t, front.Addr())
	half.say("first")
	if err := half.Conn.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if rest, err := io.ReadAll(half.r); err != nil || string(rest) != "bye\n" {
		t.Errorf("after one half was closed: %q, %v", rest, err)
	}
	r.Follow(c.Addr().String())
	if got := old.say("still?"); got != "" {
		t.Errorf("a connection to who led before answers %q", got)
	}
	if got := talk(t, front.Addr()).say("hi"); got != "c hi\n" {
		t.Errorf("%q", got)
	}
	r.Lead()
	here := r.Here.Listener()
	greeter(t, here, "here")
	if got := talk(t, front.Addr()).say("hi"); got != "here hi\n" {
		t.Errorf("%q", got)
	}
	// Another serves what comes from now on.
	here.Close()
	greeter(t, r.Here.Listener(), "anew")
	if got := talk(t, front.Addr()).say("hi"); got != "anew hi\n" {
		t.Errorf("%q", got)
	}
	gone := listen(t)
	gone.Close()
	r.Follow(gone.Addr().String())
	if got := talk(t, front.Addr()).say("hi"); got != "" {
		t.Errorf("a leader that is not there answers %q", got)
	}
}
