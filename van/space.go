package van

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strings"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/reservoir-cloud/reservoir/van/plan"
)

// space is a network namespace that is held open. One without a name lives as long as
// somebody holds it: a gateway's namespace ends with the agent that answers in it.
type space struct{ ns netns.NsHandle }

// here is the namespace of the calling thread.
func here() (*space, error) {
	ns, err := netns.Get()
	if err != nil {
		return nil, fmt.Errorf("hold the network namespace: %w", err)
	}
	return &space{ns}, nil
}

// newSpace makes a namespace in which every device is born without an address of its own,
// and nobody's advertisements are believed.
func newSpace() (*space, error) {
	var s *space
	err := onThread(func() error {
		ns, err := netns.New()
		if err != nil {
			return err
		}
		s = &space{ns}
		for _, set := range [][2]string{
			{"ipv4/ip_forward", "0"}, {"ipv6/conf/all/forwarding", "0"},
			{"ipv6/conf/default/accept_ra", "0"}, {"ipv6/conf/default/dad_transmits", "0"}, {"ipv6/conf/default/accept_dad", "0"},
		} {
			if err := os.WriteFile("/proc/sys/net/"+set[0], []byte(set[1]), 0o644); err != nil && !errors.Is(err, os.ErrNotExist) {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("make a network namespace: %w", err)
	}
	return s, nil
}

// onThread runs f on a thread of its own, whose namespace f may change: the thread ends
// with it. The process's first thread is not taken, because others tell by its namespace
// where a process is, and it does not end.
func onThread(f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			err := onThread(f) // on another, while this one is held
			runtime.UnlockOSThread()
			done <- err
			return
		}
		done <- f()
	}()
	return <-done
}

// do runs f in the namespace. Sockets that f opens stay in it.
func (s *space) do(f func() error) error {
	return onThread(func() error {
		if err := netns.Set(s.ns); err != nil {
			return fmt.Errorf("enter a network namespace: %w", err)
		}
		return f()
	})
}

func (s *space) request(r *nl.NetlinkRequest) error {
	return s.do(func() error {
		_, err := r.Execute(unix.NETLINK_ROUTE, 0)
		return err
	})
}

// clone is the same namespace, held once more.
func (s *space) clone() (*space, error) {
	fd, err := unix.FcntlInt(uintptr(s.ns), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("hold a network namespace: %w", err)
	}
	return &space{netns.NsHandle(fd)}, nil
}

func (s *space) close() error { return s.ns.Close() }

// gatewayDevice is the veth's end in the gateway's namespace.
const gatewayDevice = "gw0"

// makeGateway makes the veth anew, and the namespace behind it.
func (l *links) makeGateway(e plan.Gateway) error {
	if err := l.dropGateway(e.Name); err != nil {
		return err
	}
	s, err := newSpace()
	if err != nil {
		return err
	}
	l.spaces[e.Name] = s
	a := netlink.NewLinkAttrs()
	a.Name, a.MTU = e.Name, plan.DeviceMTU
	d, err := l.add(&netlink.Veth{LinkAttrs: a, PeerName: gatewayDevice, PeerHardwareAddr: mac(e.MAC), PeerNamespace: netlink.NsFd(int(s.ns)), PeerMTU: plan.DeviceMTU})
	if err != nil {
		return err
	}
	if err := s.do(func() error { return address(e) }); err != nil {
		return fmt.Errorf("gateway %s: %w", e.Name, err)
	}
	if err := l.join(d, e.Bridge, portFlags{}); err != nil {
		return err
	}
	l.gates[e.Name] = e
	return nil
}

// address gives the gateway's end its addresses, in its namespace. It is not asked whether
// somebody else has them: every host's gateway does.
func address(e plan.Gateway) error {
	for _, name := range []string{"lo", gatewayDevice} {
		d, err := netlink.LinkByName(name)
		if err == nil {
			err = netlink.LinkSetUp(d)
		}
		if err != nil {
			return fmt.Errorf("bring up %s: %w", name, err)
		}
		if name == "lo" {
			continue
		}
		for _, text := range strings.Fields(e.Addresses) {
			p, err := netip.ParsePrefix(text)
			if err != nil {
				return err
			}
			flags := 0
			if p.Addr().Is6() {
				flags = unix.IFA_F_NODAD
			}
			n := &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
			if err := netlink.AddrAdd(d, &netlink.Addr{IPNet: n, Flags: flags}); err != nil && !errors.Is(err, unix.EEXIST) {
				return fmt.Errorf("address %s: %w", p, err)
			}
		}
	}
	return nil
}

func (l *links) dropGateway(name string) error {
	err := l.remove(name)
	delete(l.gates, name)
	if s := l.spaces[name]; s != nil {
		delete(l.spaces, name)
		err = errors.Join(err, s.close())
	}
	return err
}
