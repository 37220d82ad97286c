// Package console is the driver's end of a guest's serial console: one line to the guest,
// the end of what it said on disk, and at most one who is attached. How the line to the
// guest is opened is the driver's.
package console

import (
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"
)

const (
	// File in the guest's folder.
	File = "console.log"
	// Kept is how much of a console's output is on disk at most, bytes, in two
	// halves: console.log and the older console.log.1.
	Kept = 1 << 20
	// Replay is the recent output that one who attaches sees first, bytes.
	Replay = 16 << 10
	// Behind is how far one who is attached may be behind the guest, bytes. The
	// guest is not held up for him: what is older is lost to him.
	Behind = 256 << 10
)

// Console reads a guest's serial console all the time, keeps the end of it on disk, and
// passes it on to the one who is attached.
type Console struct {
	conn net.Conn
	dir  string
	done chan struct{}

	mu       sync.Mutex
	log      *os.File
	size     int64
	attached *Attachment
	ended    bool
}

// Open takes over conn.
func Open(dir string, conn net.Conn) (*Console, error) {
	log, err := os.OpenFile(filepath.Join(dir, File), os.O_CREATE|os.O_RDWR|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	st, err := log.Stat()
	if err != nil {
		log.Close()
		return nil, err
	}
	c := &Console{conn: conn, dir: dir, done: make(chan struct{}), log: log, size: st.Size()}
	go c.copy()
	return c, nil
}

func (c *Console) copy() {
	defer close(c.done)
	buffer := make([]byte, 4096)
	for {
		n, err := c.conn.Read(buffer)
		c.mu.Lock()
		c.keep(buffer[:n])
		if c.attached != nil {
			c.attached.put(buffer[:n])
		}
		if err != nil {
			c.ended = true
			if c.attached != nil {
				c.attached.end()
			}
			c.log.Close()
			c.mu.Unlock()
			return
		}
		c.mu.Unlock()
	}
}

// keep appends to the log. A log that cannot be written (a full disk) loses output, and
// the console goes on.
func (c *Console) keep(b []byte) {
	if c.size+int64(len(b)) > Kept/2 {
		path := filepath.Join(c.dir, File)
		if os.Rename(path, path+".1") == nil {
			if log, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR|os.O_APPEND, 0o600); err == nil {
				c.log.Close()
				c.log, c.size = log, 0
			}
		}
	}
	n, _ := c.log.Write(b)
	c.size += int64(n)
}

// Attach puts a new reader and writer in the place of the one before.
func (c *Console) Attach() *Attachment {
	a := &Attachment{console: c}
	a.filled.L = &a.mu
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.attached != nil {
		c.attached.end()
	}
	c.attached = a
	if c.ended {
		a.end()
		return a
	}
	recent := make([]byte, min(c.size, Replay))
	if n, err := c.log.ReadAt(recent, c.size-int64(len(recent))); err == nil {
		a.put(recent[:n])
	}
	return a
}

// Close hangs up.
func (c *Console) Close() {
	c.conn.Close()
	<-c.done
}

// Attachment is one caller's side of a console.
type Attachment struct {
	console *Console

	mu     sync.Mutex
	filled sync.Cond
	buffer []byte
	ended  bool
}

func (a *Attachment) put(b []byte) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.buffer = append(a.buffer, b...)
	if over := len(a.buffer) - Behind; over > 0 {
		a.buffer = append(a.buffer[:0], a.buffer[over:]...)
	}
	a.filled.Broadcast()
}

func (a *Attachment) end() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.ended = true
	a.filled.Broadcast()
}

// Read waits for output; io.EOF when the guest's process ended or another took over.
func (a *Attachment) Read(b []byte) (int, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for len(a.buffer) == 0 {
		if a.ended {
			return 0, io.EOF
		}
		a.filled.Wait()
	}
	n := copy(b, a.buffer)
	a.buffer = a.buffer[n:]
	return n, nil
}

// Write is what is typed.
func (a *Attachment) Write(b []byte) (int, error) {
	a.mu.Lock()
	ended := a.ended
	a.mu.Unlock()
	if ended {
		return 0, errors.New("detached from the console")
	}
	return a.console.conn.Write(b)
}

// Close detaches.
func (a *Attachment) Close() error {
	a.console.mu.Lock()
	if a.console.attached == a {
		a.console.attached = nil
	}
	a.console.mu.Unlock()
	a.end()
	return nil
}
