package qmp

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// pair is a client's connection and the other end, where the test plays QEMU.
func pair(t testing.TB) (client, qemu *net.UnixConn) {
	t.Helper()
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	var ends [2]*net.UnixConn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "pair")
		c, err := net.FileConn(f)
		f.Close()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		ends[i] = c.(*net.UnixConn)
	}
	return ends[0], ends[1]
}

const greeting = `{"QMP": {"version": {"qemu": {"major": 7}}, "capabilities": ["oob"]}}` + "\n"

// play answers each command with what script says; "" is no answer.
func play(t testing.TB, qemu *net.UnixConn, script func(command string, id uint64) string) {
	var wg sync.WaitGroup
	wg.Go(func() {
		io.WriteString(qemu, greeting)
		lines := bufio.NewScanner(qemu)
		for lines.Scan() {
			var c struct {
				Execute string
				ID      uint64
			}
			if err := json.Unmarshal(lines.Bytes(), &c); err != nil {
				t.Errorf("the client sent %q: %v", lines.Text(), err)
				return
			}
			answer := fmt.Sprintf(`{"return": {}, "id": %d}`, c.ID)
			if c.Execute != "qmp_capabilities" {
				answer = script(c.Execute, c.ID)
			}
			if answer != "" {
				io.WriteString(qemu, answer+"\n")
			}
		}
	})
	t.Cleanup(func() { qemu.Close(); wg.Wait() })
}

func connect(t testing.TB, conn *net.UnixConn, onEvent func(Event)) *Client {
	t.Helper()
	c, err := Connect(t.Context(), conn, onEvent)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

func TestCommandsAndEvents(t *testing.T) {
	conn, qemu := pair(t)
	play(t, qemu, func(command string, id uint64) string {
		switch command {
		case "query-status":
			return fmt.Sprintf(`{"event": "STOP", "data": {}}`+"\n"+`{"return": {"status": "paused"}, "id": %d}`, id)
		case "cont":
			return fmt.Sprintf(`{"error": {"class": "GenericError", "desc": "no"}, "id": %d}`, id)
		}
		return ""
	})
	events := make(chan Event, 1)
	c := connect(t, conn, func(e Event) { events <- e })
	var st struct{ Status string }
	if err := c.Do(t.Context(), "query-status", nil, &st); err != nil || st.Status != "paused" {
		t.Errorf("status %q, %v; want paused", st.Status, err)
	}
	if e := <-events; e.Event != "STOP" {
		t.Errorf("event %q, want STOP", e.Event)
	}
	var refused *Error
	if err := c.Do(t.Context(), "cont", nil, nil); !errors.As(err, &refused) || refused.Class != "GenericError" {
		t.Errorf("refused command: %v, want *Error", err)
	}
}

func TestAContextEndsTheWaitAndNotTheConnection(t *testing.T) {
	conn, qemu := pair(t)
	asked := make(chan struct{}, 1)
	play(t, qemu, func(command string, id uint64) string {
		if command == "hang" {
			asked <- struct{}{}
			return ""
		}
		return fmt.Sprintf(`{"return": {}, "id": %d}`, id)
	})
	c := connect(t, conn, func(Event) {})
	ctx, cancel := context.WithCancel(t.Context())
	go func() { <-asked; cancel() }()
	if err := c.Do(ctx, "hang", nil, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled command: %v, want context.Canceled", err)
	}
	if err := c.Do(t.Context(), "cont", nil, nil); err != nil {
		t.Errorf("the next command: %v", err)
	}
}

func TestEndsWithoutQEMU(t *testing.T) {
	for name, says := range map[string]string{
		"silence":           "",
		"no JSON":           "hello\n",
		"endless":           greeting + strings.Repeat("x", maxMessage+10),
		"unasked answers":   greeting + `{"return": {}, "id": 77}` + "\n" + `{"id": 1, "error": {"desc": "x"}}` + "\n",
		"wrong shape of id": greeting + `{"return": {}, "id": "x"}` + "\n",
	} {
		t.Run(name, func(t *testing.T) {
			conn, qemu := pair(t)
			var wg sync.WaitGroup
			wg.Go(func() { io.WriteString(qemu, says); qemu.CloseWrite(); io.Copy(io.Discard, qemu) })
			if c, err := Connect(t.Context(), conn, func(Event) {}); err == nil {
				c.Close()
				t.Error("connected")
			}
			wg.Wait()
		})
	}
	t.Run("after death", func(t *testing.T) {
		conn, qemu := pair(t)
		play(t, qemu, func(string, uint64) string { qemu.Close(); return "" })
		c := connect(t, conn, func(Event) {})
		for range 2 {
			if err := c.Do(t.Context(), "cont", nil, nil); !errors.Is(err, ErrClosed) {
				t.Errorf("command to a dead QEMU: %v, want ErrClosed", err)
			}
		}
		<-c.Done()
	})
}

func FuzzRead(f *testing.F) {
	f.Add([]byte(`{"event": "STOP"}`))
	f.Add([]byte(`{"return": [], "id": 2}` + "\n" + `{"QMP": {}}`))
	f.Fuzz(func(t *testing.T, says []byte) {
		conn, qemu := pair(t)
		var wg sync.WaitGroup
		wg.Go(func() {
			io.WriteString(qemu, greeting)
			qemu.Write(says)
			qemu.CloseWrite()
			io.Copy(io.Discard, qemu)
		})
		if c, err := Connect(t.Context(), conn, func(Event) {}); err == nil {
			c.Close()
		}
		wg.Wait()
	})
}
