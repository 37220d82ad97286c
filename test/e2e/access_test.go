package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"sync"
	"testing"
	"time"
)

// asking sends requests one after the other, by several clients at once, until it is told to
// stop; each on a connection of its own.
type asking struct {
	stop    chan struct{}
	wg      sync.WaitGroup
	mu      sync.Mutex
	good    int
	bad     []string
	slowest time.Duration
}

func startAsking(url string) *asking {
	a := &asking{stop: make(chan struct{})}
	client := &http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	for range 4 {
		a.wg.Go(func() {
			for {
				select {
				case <-a.stop:
					return
				default:
				}
				begun := time.Now()
				err := get(client, url)
				took := time.Since(begun)
				a.mu.Lock()
				a.slowest = max(a.slowest, took)
				if err == nil {
					a.good++
				} else {
					a.bad = append(a.bad, fmt.Sprintf("after %v: %v", took.Round(time.Millisecond), err))
				}
				a.mu.Unlock()
			}
		})
	}
	return a
}

func get(c *http.Client, url string) error {
	r, err := c.Get(url)
	if err != nil {
		return err
	}
	defer r.Body.Close()
	if _, err := io.Copy(io.Discard, r.Body); err != nil {
		return err
	}
	if r.StatusCode != http.StatusOK {
		return fmt.Errorf("status %s", r.Status)
	}
	return nil
}

func (a *asking) end(t *testing.T, while string) {
	t.Helper()
	close(a.stop)
	a.wg.Wait()
	t.Logf("while %s: %d requests answered, %d not; the slowest took %v", while, a.good, len(a.bad), a.slowest.Round(time.Millisecond))
	if len(a.bad) > 0 || a.good == 0 {
		t.Errorf("while %s: %d requests answered, %d not: %v", while, a.good, len(a.bad), a.bad[:min(5, len(a.bad))])
	}
}

// A download goes on to its end while its VEE moves from host to host; its longest stall is
// in the test's log.
func TestADownloadSurvivesAMigration(t *testing.T) {
	const size, seconds = 4 << 20, 8
	s := deploy(t, manifest(t, "load", 1, ""), "load")
	v := only(t, "web-1")
	ask, err := http.NewRequestWithContext(t.Context(), http.MethodGet, fmt.Sprintf("%s/download?bytes=%d&seconds=%d", s.URLs[0].URL, size, seconds), nil)
	if err != nil {
		t.Fatal(err)
	}
	r, err := http.DefaultClient.Do(ask)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	var got bytes.Buffer
	var stall time.Duration
	var broken error
	done := make(chan struct{})
	go func() {
		defer close(done)
		b := make([]byte, 32<<10)
		for last := time.Now(); ; {
			n, err := r.Body.Read(b)
			stall, last = max(stall, time.Since(last)), time.Now()
			got.Write(b[:n])
			if err != nil {
				broken = err
				return
			}
		}
	}()
	reservoir(t, "vee", "migrate", string(v.ID), "--to", elsewhere(v), "--wait", "--timeout", "90s")
	select {
	case <-done:
		t.Error("the download was over before the migration was")
	default:
	}
	<-done
	if !errors.Is(broken, io.EOF) || got.Len() != size {
		t.Fatalf("%d bytes of %d, then %v", got.Len(), size, broken)
	}
	lines := bytes.Split(got.Bytes(), []byte("\n"))
	for n, line := range lines[:len(lines)-1] {
		if string(line) != strconv.Itoa(n) {
			t.Fatalf("line %d is %q", n, line)
		}
	}
	t.Logf("%d bytes in %d s while the VEE moved; the longest stall was %v", size, seconds, stall.Round(time.Millisecond))
}

// No request is lost when a replica is added, drained or moved.
func TestNoRequestIsLost(t *testing.T) {
	s := deploy(t, manifest(t, "steady", 2, ""), "steady")
	url := s.URLs[0].URL
	a := startAsking(url)
	reservoir(t, "service", "scale", "steady", "web", "4", "--wait", "--timeout", "120s")
	reservoir(t, "service", "scale", "steady", "web", "1", "--wait", "--timeout", "120s")
	a.end(t, "replicas came and went")

	v := only(t, "web-1")
	a = startAsking(url)
	reservoir(t, "vee", "migrate", string(v.ID), "--to", elsewhere(v), "--wait", "--timeout", "90s")
	settled(t, v.ID)
	a.end(t, "the only replica moved to another host")
}
