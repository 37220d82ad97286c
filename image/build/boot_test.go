package build

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/pem"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/diskfs/go-diskfs/backend/file"
	"github.com/diskfs/go-diskfs/filesystem/iso9660"
	"golang.org/x/crypto/ssh"

	"github.com/reservoir-cloud/reservoir/vhi/guest"
)

// cache of what is downloaded, that of make images.
const cache = "../../.cache/images"

const mac = "52:54:00:00:00:01"

// network-config for QEMU's user-mode network.
const networkConfig = `version: 2
ethernets:
  eth0:
    match: {macaddress: "` + mac + `"}
    set-name: eth0
    addresses: [10.0.2.15/24]
    gateway4: 10.0.2.2
    nameservers: {addresses: [10.0.2.3]}
`

// vm is a guest in QEMU with what the qemu driver gives one. It needs QEMU and fails
// without; it needs no KVM.
type vm struct {
	dir  string
	port int // of this machine, forwarded to the guest's
	done chan struct{}
	err  error // of the process, once done
}

func boot(t *testing.T, a Artifact, memoryMiB, guestPort int, seed map[string]string, more ...string) *vm {
	t.Helper()
	return bootMedium(t, a, memoryMiB, guestPort, "cidata", "if=virtio", seed, more...)
}

// bootMedium with the label and on the bus that the seed medium is to have.
func bootMedium(t *testing.T, a Artifact, memoryMiB, guestPort int, label, bus string, seed map[string]string, more ...string) *vm {
	t.Helper()
	m := &vm{dir: t.TempDir(), done: make(chan struct{})}
	iso := filepath.Join(m.dir, "seed.iso")
	writeSeed(t, iso, label, seed)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	m.port = l.Addr().(*net.TCPAddr).Port
	l.Close()
	args := []string{
		"-machine", "pc", "-accel", fmt.Sprintf("tcg,tb-size=%d", max(16, memoryMiB/8)), "-m", fmt.Sprint(memoryMiB),
		"-nodefaults", "-display", "none", "-no-reboot",
		"-kernel", a.Kernel, "-initrd", a.Initrd, "-append", a.Image.Config.Cmdline,
		"-netdev", fmt.Sprintf("user,id=net,hostfwd=tcp:127.0.0.1:%d-:%d", m.port, guestPort),
		"-device", "virtio-net-pci,netdev=net,romfile=,mac=" + mac,
		"-device", "virtio-rng-pci", "-device", "virtio-balloon-pci", "-device", "virtio-serial-pci",
		"-device", "virtserialport,chardev=guest,name=" + guest.PortName, "-serial", "chardev:console",
		"-qmp", "unix:" + m.socket("qmp") + ",server=on,wait=off",
	}
	for _, c := range []string{"guest", "console"} {
		args = append(args, "-chardev", fmt.Sprintf("socket,id=%s,path=%s,server=on,wait=off,logfile=%s.log", c, m.socket(c), m.socket(c)))
	}
	if a.Disk != "" {
		overlay := filepath.Join(m.dir, "overlay.qcow2")
		if _, err := run(t.Context(), "", nil, "qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", a.Disk, overlay); err != nil {
			t.Fatal(err)
		}
		args = append(args, "-drive", "if=virtio,format=qcow2,cache=unsafe,file="+overlay)
	}
	args = append(args, "-drive", bus+",format=raw,readonly=on,file="+iso)
	args = append(args, more...)
	cmd := exec.Command("qemu-system-x86_64", args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		t.Fatalf("starting QEMU (apt-get install qemu-system-x86): %v", err)
	}
	go func() {
		m.err = cmd.Wait()
		close(m.done)
	}()
	t.Cleanup(func() {
		cmd.Process.Kill()
		<-m.done
		if t.Failed() {
			log, _ := os.ReadFile(m.socket("console") + ".log")
			t.Logf("QEMU: %s\nconsole:\n%s", stderr.Bytes(), log[max(0, len(log)-4096):])
		}
	})
	return m
}

func (m *vm) socket(name string) string { return filepath.Join(m.dir, name) }

// dial one of the guest's sockets as soon as QEMU has made it.
func (m *vm) dial(ctx context.Context, t *testing.T, name string) net.Conn {
	t.Helper()
	for {
		c, err := net.Dial("unix", m.socket(name))
		if err == nil {
			deadline, _ := ctx.Deadline()
			if err := c.SetDeadline(deadline); err != nil {
				t.Fatal(err)
			}
			return c
		}
		m.pause(ctx, t, "its socket "+name, err)
	}
}

// pause between two tries, while the guest runs and there is time.
func (m *vm) pause(ctx context.Context, t *testing.T, what string, err error) {
	t.Helper()
	select {
	case <-time.After(20 * time.Millisecond):
	case <-m.done:
		t.Fatalf("waiting for %s: QEMU ended: %v", what, m.err)
	case <-ctx.Done():
		t.Fatalf("waiting for %s: %v", what, err)
	}
}

// get a page from the guest's HTTP server, once there is one.
func (m *vm) get(ctx context.Context, t *testing.T, path string) string {
	t.Helper()
	client := http.Client{Timeout: time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	for {
		r, err := client.Get(fmt.Sprintf("http://127.0.0.1:%d%s", m.port, path))
		if err == nil {
			text, readErr := io.ReadAll(r.Body)
			r.Body.Close()
			if readErr == nil && r.StatusCode == http.StatusOK {
				return string(text)
			}
			err = fmt.Errorf("HTTP %s %w", r.Status, readErr)
		}
		m.pause(ctx, t, path, err)
	}
}

// powerDown presses the ACPI power button and waits for the machine to be off.
func (m *vm) powerDown(ctx context.Context, t *testing.T) {
	t.Helper()
	c := m.dial(ctx, t, "qmp")
	defer c.Close()
	if _, err := io.WriteString(c, `{"execute":"qmp_capabilities"}{"execute":"system_powerdown"}`); err != nil {
		t.Fatal(err)
	}
	var drained sync.WaitGroup
	drained.Go(func() { _, _ = io.Copy(io.Discard, c) })
	defer drained.Wait()
	m.off(ctx, t)
}

func (m *vm) off(ctx context.Context, t *testing.T) {
	t.Helper()
	select {
	case <-m.done:
		if m.err != nil {
			t.Errorf("QEMU ended with %v", m.err)
		}
	case <-ctx.Done():
		t.Fatal("the machine does not switch itself off")
	}
}

// channel is the host's end of the guest channel.
type channel struct {
	net.Conn
	*guest.Reader
}

func (m *vm) channel(ctx context.Context, t *testing.T) channel {
	c := m.dial(ctx, t, "guest")
	t.Cleanup(func() { c.Close() })
	return channel{c, guest.NewReader(c)}
}

// until a message is what is wanted.
func (c channel) until(t *testing.T, what string, wanted func(any) bool) {
	t.Helper()
	for {
		msg, err := c.Next()
		if err != nil {
			t.Fatalf("waiting for %s on the guest channel: %v", what, err)
		}
		if wanted(msg) {
			return
		}
	}
}

func isHello(m any) bool { _, ok := m.(*guest.Hello); return ok }
func isReady(m any) bool { s, ok := m.(*guest.Status); return ok && s.Ready }

func (c channel) tell(t *testing.T, cmd guest.Command) {
	t.Helper()
	cmd.ID = cmd.Type
	line, err := guest.Encode(cmd)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Write(line); err != nil {
		t.Fatal(err)
	}
	c.until(t, "the reply to "+cmd.Type, func(m any) bool {
		r, ok := m.(*guest.Reply)
		if ok && !r.OK {
			t.Errorf("%s: %s", cmd.Type, r.Error)
		}
		return ok && r.ID == cmd.ID
	})
}

func writeSeed(t *testing.T, path, label string, files map[string]string) {
	t.Helper()
	const size = 1 << 20
	f, err := file.CreateFromPath(path, size)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	iso, err := iso9660.Create(f, size, 0, 2048, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range files {
		w, err := iso.OpenFile("/"+name, os.O_CREATE|os.O_RDWR)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte(text)); err != nil {
			t.Fatal(err)
		}
		w.Close()
	}
	if err := iso.Finalize(iso9660.FinalizeOptions{RockRidge: true, VolumeIdentifier: label}); err != nil {
		t.Fatal(err)
	}
}

// limited is how long a guest may take here: ten times what it does on a quiet machine.
func limited(t *testing.T, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

func TestAppliance(t *testing.T) {
	o := Options{Out: t.TempDir(), Cache: cache, Progress: t.Output()}
	a, err := Appliance(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	again, err := Appliance(t.Context(), o)
	if err != nil || !again.Kept || again.Image.Digest != a.Image.Digest {
		t.Errorf("built again: kept %v, %s, %v; want %s", again.Kept, again.Image.Digest, err, a.Image.Digest)
	}
	o.Out = t.TempDir()
	if other, err := Appliance(t.Context(), o); err != nil || other.Kept || other.Image.Digest != a.Image.Digest {
		t.Errorf("built elsewhere: %s, %v; want the same %s", other.Image.Digest, err, a.Image.Digest)
	}

	ctx := limited(t, time.Minute)
	started := time.Now()
	m := boot(t, a, 128, 80, map[string]string{
		"meta-data": "instance-id: a/1\nlocal-hostname: web-1\n", "network-config": networkConfig,
		"ovf-env.xml": `<Environment xmlns:oe="http://schemas.dmtf.org/ovf/environment/1" oe:id="web-1"><PropertySection>
			<Property oe:key="reservoir.greeting" oe:value="good morning"/>
			<Property oe:key="reservoir.kpi.queue" oe:value="3"/></PropertySection></Environment>`,
	})
	page := m.get(ctx, t, "/")
	t.Logf("HTTP 200 after %.2f s", time.Since(started).Seconds())
	for _, want := range []string{"good morning", "hostname: web-1", "address: 10.0.2.15/24", "request: "} {
		if !strings.Contains(page, want) {
			t.Errorf("the page has no %q:\n%s", want, page)
		}
	}
	m.get(ctx, t, "/healthz")

	c := m.channel(ctx, t)
	c.until(t, "hello", isHello)
	c.until(t, "ready", isReady)
	t.Logf("ready on the guest channel after %.2f s", time.Since(started).Seconds())
	c.tell(t, guest.Command{Type: "kpi", Name: "queue", Amount: 7})
	c.tell(t, guest.Command{Type: "burn-cpu", Amount: 0.5, Seconds: 0.1})
	c.tell(t, guest.Command{Type: "burn-memory", Amount: 8 << 20, Seconds: 0.1})
	c.Close()
	if kpis := m.get(ctx, t, "/kpis"); !strings.Contains(kpis, "\nqueue 7\n") {
		t.Errorf("measurements without queue 7:\n%s", kpis)
	}

	// A host's agent that starts again asks who is there. It may be back before the guest
	// has noticed that it was away.
	c = m.channel(ctx, t)
	line, err := guest.Encode(guest.Command{Type: "hello?"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Write(line); err != nil {
		t.Fatal(err)
	}
	c.until(t, "hello on the second connection", isHello)

	console := m.dial(ctx, t, "console")
	defer console.Close()
	if _, err := io.WriteString(console, "ip\n"); err != nil {
		t.Fatal(err)
	}
	for lines := bufio.NewScanner(console); ; {
		if !lines.Scan() {
			t.Fatalf("the console ends without an answer: %v", lines.Err())
		}
		if strings.TrimSpace(lines.Text()) == "10.0.2.15/24" {
			break
		}
	}
	m.powerDown(ctx, t)
}

func TestDebian(t *testing.T) {
	a, err := Debian(t.Context(), Options{Out: t.TempDir(), Cache: cache, Progress: t.Output()})
	if err != nil {
		t.Fatal(err)
	}
	t.Run("on two networks", func(t *testing.T) { onTwoNetworks(t, a) })
	t.Run("by environment", func(t *testing.T) { byEnvironment(t, a) })
}

// ssh runs a command as the image's user.
func (m *vm) ssh(ctx context.Context, t *testing.T, key ed25519.PrivateKey, command string) string {
	t.Helper()
	block, err := ssh.MarshalPrivateKey(key, "")
	if err != nil {
		t.Fatal(err)
	}
	signer, err := ssh.ParsePrivateKey(pem.EncodeToMemory(block))
	if err != nil {
		t.Fatal(err)
	}
	config := &ssh.ClientConfig{
		User: "debian", Auth: []ssh.AuthMethod{ssh.PublicKeys(signer)},
		HostKeyCallback: ssh.InsecureIgnoreHostKey(), // drawn at its first boot
	}
	for {
		client, err := ssh.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", m.port), config)
		if err != nil {
			m.pause(ctx, t, "SSH", err)
			continue
		}
		defer client.Close()
		session, err := client.NewSession()
		if err != nil {
			t.Fatal(err)
		}
		out, err := session.CombinedOutput(command)
		if err != nil {
			t.Fatalf("%s: %v\n%s", command, err, out)
		}
		return string(out)
	}
}
