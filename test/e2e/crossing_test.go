package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/reservoir-cloud/reservoir/smi"
	"github.com/reservoir-cloud/reservoir/vee"
	"github.com/reservoir-cloud/reservoir/vmi"
)

// union is a federation of two sites beside the stage, with real guests: alpha may have VEEs
// at beta.
type union struct {
	t   *testing.T
	dir string
	env []string
}

func newUnion(t *testing.T) *union {
	t.Helper()
	u := &union{t: t, dir: filepath.Join(t.TempDir(), "dev"), env: append(os.Environ(), "RESERVOIR_CONFIG="+filepath.Join(t.TempDir(), "contexts.yaml"))}
	t.Cleanup(func() { u.at("", "dev", "down", "--dir", u.dir) })
	u.at("", "dev", "up", "--detach", "--dir", u.dir, "--prefix", "e2u", "--subnet", "126", "--sites", "2", "--hosts", "1")
	u.at("alpha", "federation", "accept", strings.TrimSpace(u.at("beta", "federation", "invite")))
	u.at("alpha", "agreement", "propose", "beta", filepath.Join("..", "..", "examples", "federation", "agreement.yaml"))
	agreement := strings.TrimSpace(u.at("alpha", "agreement", "list", "-o", "name"))
	u.until("beta has the proposal", func() bool { _, err := u.try("beta", "agreement", "show", agreement); return err == nil })
	u.at("beta", "agreement", "sign", agreement)
	u.at("alpha", "image", "push", filepath.Join("..", "..", ".cache", "images", "appliance"), "appliance")
	u.until("beta is a place for VEEs", func() bool { return strings.Contains(u.at("alpha", "host", "list", "-o", "name"), "@beta") })
	return u
}

func (u *union) try(site string, args ...string) (string, error) {
	if site != "" {
		args = append([]string{"--context", "dev-" + site}, args...)
	}
	cmd := exec.Command(stage.binary, args...)
	cmd.Env = u.env
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("reservoir %s: %w\n%s%s", strings.Join(args, " "), err, out, errs.String())
	}
	return string(out), nil
}

// at a site: what a command prints.
func (u *union) at(site string, args ...string) string {
	u.t.Helper()
	out, err := u.try(site, args...)
	if err != nil {
		u.t.Fatal(err)
	}
	return out
}

func (u *union) until(what string, ok func() bool) {
	u.t.Helper()
	for end := time.Now().Add(2 * time.Minute); !ok(); time.Sleep(100 * time.Millisecond) {
		if time.Now().After(end) {
			u.t.Fatalf("not in two minutes: %s", what)
		}
	}
}

// vee of a site by its name, without what has left it.
func (u *union) vee(site, name string) (found *vmi.VEE) {
	u.t.Helper()
	var list []vmi.VEE
	if err := json.Unmarshal([]byte(u.at(site, "vee", "list", "-o", "json")), &list); err != nil {
		u.t.Fatal(err)
	}
	for i := range list {
		if list[i].Descriptor.Name == name {
			found = &list[i]
		}
	}
	return found
}

// fetch a page on a connection of its own, with patience.
func fetch(ctx context.Context, url string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return "", err
	}
	r.Close = true
	answer, err := http.DefaultClient.Do(r)
	if err != nil {
		return "", err
	}
	defer answer.Body.Close()
	page, err := io.ReadAll(answer.Body)
	return string(page), err
}

// A VEE goes to a partner and back while it runs: a download from it, through the access
// point of its own site and over the network that the two sites share, goes on to its end.
func TestCrossSiteMigration(t *testing.T) {
	const size, seconds = 30 << 20, 600 // longer than anybody waits
	u := newUnion(t)
	file := filepath.Join(t.TempDir(), "shop.yaml")
	text, err := os.ReadFile(filepath.Join("..", "..", "examples", "federation", "shop.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, bytes.Replace(text, []byte("initial: 3"), []byte("initial: 1"), 1), 0o600); err != nil {
		t.Fatal(err)
	}
	u.at("alpha", "service", "deploy", file, "--wait", "--timeout", "3m")
	var s smi.Service
	if err := json.Unmarshal([]byte(u.at("alpha", "service", "show", "shop", "-o", "json")), &s); err != nil {
		t.Fatal(err)
	}
	before := u.vee("alpha", "worker-1")
	address, _, _ := strings.Cut(before.Descriptor.NICs[0].Address, "/")
	target := fmt.Sprintf("http://%s/download?bytes=%d&seconds=%d", address, size, seconds)
	ctx, hangUp := context.WithCancel(t.Context())
	defer hangUp()
	ask, err := http.NewRequestWithContext(ctx, http.MethodGet, s.URLs[0].URL+"/ask?seconds=600&url="+url.QueryEscape(target), nil)
	if err != nil {
		t.Fatal(err)
	}
	r, err := http.DefaultClient.Do(ask)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	var got bytes.Buffer
	var count atomic.Int64
	var stall time.Duration
	var broken error
	done := make(chan struct{})
	go func() {
		defer close(done)
		b := make([]byte, 32<<10)
		for last := time.Now(); broken == nil; {
			var n int
			n, broken = r.Body.Read(b)
			stall, last = max(stall, time.Since(last)), time.Now()
			got.Write(b[:n])
			count.Add(int64(n))
		}
	}()
	flows := func(where string) {
		t.Helper()
		before := count.Load()
		u.until("the download goes on "+where, func() bool { return count.Load() > before+100_000 })
	}

	// Meanwhile users ask the worker itself, which is on a private network alone, through its
	// access point, one request after the other.
	asking, stopAsking := context.WithCancel(t.Context())
	var asked atomic.Int64
	var lost atomic.Pointer[error]
	askers := make(chan struct{})
	go func() {
		defer close(askers)
		for asking.Err() == nil {
			page, err := fetch(asking, s.URLs[1].URL)
			if err == nil && !strings.HasPrefix(page, "hostname: worker-1\n") {
				err = fmt.Errorf("the page is %q", page)
			}
			if err != nil && asking.Err() == nil {
				lost.CompareAndSwap(nil, &err)
			}
			asked.Add(1)
		}
	}()
	defer func() { stopAsking(); <-askers }()

	flows("at alpha")
	u.at("alpha", "vee", "migrate", "worker-1", "--to", "beta", "--wait", "--timeout", "2m")
	here, there := u.vee("alpha", "worker-1"), u.vee("beta", "worker-1")
	if here.Host != "@beta" || there == nil || there.ID != before.ID || there.State != vee.Active || here.Restarts != 0 || here.Epoch.Hop != before.Epoch.Hop+1 {
		t.Errorf("at alpha %+v, at beta %+v", here, there)
	}
	flows("from beta")
	u.at("alpha", "vee", "migrate", "worker-1", "--to", "h1", "--wait", "--timeout", "2m")
	flows("back at alpha")
	served := asked.Load()
	u.until("users are served after it is back", func() bool { return asked.Load() > served+10 })
	stopAsking()
	if <-askers; lost.Load() != nil {
		t.Errorf("of %d requests through the access point one was lost: %v", asked.Load(), *lost.Load())
	}
	hangUp()
	<-done
	if !errors.Is(broken, context.Canceled) {
		t.Fatalf("%d bytes, then %v", got.Len(), broken)
	}
	lines := bytes.Split(got.Bytes(), []byte("\n"))
	for n, line := range lines[:len(lines)-1] {
		if string(line) != strconv.Itoa(n) {
			t.Fatalf("line %d is %q", n, line)
		}
	}
	u.until("nothing of it is left at beta", func() bool {
		left, _ := filepath.Glob(filepath.Join(u.dir, "beta", "h*", "qemu", "vees", string(before.ID)))
		return u.vee("beta", "worker-1") == nil && len(left) == 0
	})
	if now := u.vee("alpha", "worker-1"); now.Host != "h1" || now.Restarts != 0 || now.State != vee.Active {
		t.Errorf("%+v", now)
	}
	u.goesCold("worker-1")
	t.Logf("%d requests through the access point, none lost", asked.Load())
	t.Logf("%d bytes while the VEE went to the partner and back; the longest stall was %v", got.Len(), stall.Round(time.Millisecond))
}

// goesCold: a VEE goes to the partner suspended, goes on there with its memory, comes back by a
// restart, and has its addresses.
func (u *union) goesCold(name string) {
	u.t.Helper()
	before := u.vee("alpha", name)
	u.at("alpha", "vee", "suspend", name, "--wait", "--timeout", "1m")
	u.at("alpha", "vee", "migrate", name, "--to", "beta", "--cold", "--wait", "--timeout", "2m")
	if here, there := u.vee("alpha", name), u.vee("beta", name); here.Host != "@beta" || here.State != vee.Suspended || there == nil || there.State != vee.Suspended {
		u.t.Fatalf("suspended, at alpha %+v, at beta %+v", here, there)
	}
	runs := func() bool {
		v := u.vee("alpha", name)
		return v.State == vee.Active && v.GuestReady
	}
	u.at("alpha", "vee", "resume", name, "--wait", "--timeout", "1m")
	u.until("it goes on at beta", runs)
	u.at("alpha", "vee", "migrate", name, "--to", "h1", "--cold", "--wait", "--timeout", "2m")
	u.until("it runs at alpha again", runs)
	if now := u.vee("alpha", name); now.Host != "h1" || now.Descriptor.NICs[0].Address != before.Descriptor.NICs[0].Address {
		u.t.Errorf("back by a restart: %+v", now)
	}
}
