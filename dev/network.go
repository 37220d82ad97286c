package dev

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// The network of one site, all of it on this machine:
//
//	 this machine          namespace PREFIX-alpha           namespace PREFIX-alpha-h1
//	PREFIX-alpha ──veth── root │                        ┌─ up0
//	 10.80.0.254/16            ├─ bridge rsv0 ── h1 ──veth─┤
//	                      h2 … │  10.80.0.1/16             ├─ bridge rsv0 10.80.0.11/16
//	                           └─ proxy (more sites)       └─ TAPs of the guests
//
// Several sites: border.go.

const netnsDir = "/run/netns"

// makeNetwork builds it all. It expects that nothing of it is there.
func (l layout) makeNetwork() error {
	if len(l.sites()) > 1 {
		if err := l.makeWAN(); err != nil {
			return fmt.Errorf("network between sites: %w", err)
		}
	}
	for _, n := range l.nodes {
		if err := l.makeNode(n); err != nil {
			return fmt.Errorf("network of %s: %w", n.name(), err)
		}
	}
	return nil
}

// switchOnly keeps the bridge that stands for the site's cables a mere switch: where the
// kernel's br_netfilter is loaded, a machine's packet filter would judge what passes between
// others. A host asks for that itself, for its own bridges.
func switchOnly() error {
	for _, family := range []string{"iptables", "ip6tables", "arptables"} {
		err := os.WriteFile("/proc/sys/net/bridge/bridge-nf-call-"+family, []byte("0"), 0o644)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("let bridged frames pass: %w", err)
		}
	}
	return nil
}

func (l layout) makeNode(n node) error {
	if n.proxy {
		return l.makeProxy(n)
	}
	if err := newNetns(n.netns); err != nil {
		return err
	}
	if err := inNetns(n.netns, switchOnly); err != nil {
		return fmt.Errorf("namespace %s: %w", n.netns, err)
	}
	h, err := openNetns(n.netns)
	if err != nil {
		return err
	}
	defer h.Close()
	if err := h.bridge(n.address + "/16"); err != nil {
		return err
	}
	i := siteIndex(n.site)
	if n.host == "" {
		return joinRoot(h, l.cfg.Prefix+"-"+n.site, l.cfg.address(i, 254)+"/16")
	}
	site, err := openNetns(l.cfg.Prefix + "-" + n.site)
	if err != nil {
		return err
	}
	defer site.Close()
	return site.veth(n.host, h, "up0")
}

// ns is an open namespace.
type ns struct {
	*netlink.Handle
	fd netns.NsHandle
}

func openNetns(name string) (*ns, error) {
	fd, err := netns.GetFromName(name)
	if err != nil {
		return nil, fmt.Errorf("open network namespace %s: %w", name, err)
	}
	h, err := netlink.NewHandleAt(fd)
	if err != nil {
		fd.Close()
		return nil, fmt.Errorf("open network namespace %s: %w", name, err)
	}
	return &ns{h, fd}, nil
}

func (h *ns) Close() {
	h.Handle.Close()
	h.fd.Close()
}

// bridge makes the site's bridge with this end's address, and brings it and lo up.
func (h *ns) bridge(cidr string) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = Bridge
	if err := h.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}); err != nil {
		return fmt.Errorf("make bridge %s: %w", Bridge, err)
	}
	if err := h.up("lo", ""); err != nil {
		return err
	}
	return h.up(Bridge, cidr)
}

// up brings a link up, with an address unless that is empty.
func (h *ns) up(name, cidr string) error {
	return linkUp(h.Handle, name, cidr)
}

func linkUp(h *netlink.Handle, name, cidr string) error {
	link, err := h.LinkByName(name)
	if err != nil {
		return fmt.Errorf("link %s: %w", name, err)
	}
	if cidr != "" {
		a, err := netlink.ParseAddr(cidr)
		if err != nil {
			return fmt.Errorf("address %s: %w", cidr, err)
		}
		if err := h.AddrReplace(link, a); err != nil {
			return fmt.Errorf("give %s the address %s: %w", name, cidr, err)
		}
	}
	if err := h.LinkSetUp(link); err != nil {
		return fmt.Errorf("bring %s up: %w", name, err)
	}
	return nil
}

// veth joins h's bridge to peer's, by links of those names.
func (h *ns) veth(name string, peer *ns, peerName string) error {
	if err := addVeth(h.Handle, name, peer.fd, peerName); err != nil {
		return err
	}
	if err := h.enslave(name); err != nil {
		return err
	}
	return peer.enslave(peerName)
}

func addVeth(h *netlink.Handle, name string, peer netns.NsHandle, peerName string) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = name
	err := h.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: peerName, PeerNamespace: netlink.NsFd(peer)})
	if err != nil {
		return fmt.Errorf("make veth %s–%s: %w", name, peerName, err)
	}
	return nil
}

func (h *ns) enslave(name string) error { return h.enslaveTo(Bridge, name) }

func (h *ns) enslaveTo(to, name string) error {
	bridge, err := h.LinkByName(to)
	if err != nil {
		return fmt.Errorf("bridge %s: %w", to, err)
	}
	link, err := h.LinkByName(name)
	if err != nil {
		return fmt.Errorf("link %s: %w", name, err)
	}
	if err := h.LinkSetMaster(link, bridge); err != nil {
		return fmt.Errorf("put %s into bridge %s: %w", name, to, err)
	}
	return h.up(name, "")
}

// joinRoot gives this machine a leg in the site's network, so that it reaches URLs.
func joinRoot(site *ns, name, cidr string) error {
	root, err := netlink.NewHandle()
	if err != nil {
		return fmt.Errorf("open this machine's network: %w", err)
	}
	defer root.Close()
	if err := addVeth(root, name, site.fd, "root"); err != nil {
		return err
	}
	if err := site.enslave("root"); err != nil {
		return err
	}
	return linkUp(root, name, cidr)
}

// newNetns makes a named namespace, as `ip netns add` does.
func newNetns(name string) error {
	return onOwnThread(func() error {
		fd, err := netns.NewNamed(name)
		if err != nil {
			return fmt.Errorf("make network namespace %s: %w", name, err)
		}
		return fd.Close()
	})
}

// inNetns runs f, and what it starts, inside a namespace.
func inNetns(name string, f func() error) error {
	return onOwnThread(func() error {
		fd, err := netns.GetFromName(name)
		if err != nil {
			return fmt.Errorf("open network namespace %s: %w", name, err)
		}
		defer fd.Close()
		if err := netns.Set(fd); err != nil {
			return fmt.Errorf("enter network namespace %s: %w", name, err)
		}
		return f()
	})
}

// onOwnThread runs f, which may change its thread's namespace, and puts the thread back. A
// thread that cannot be put back ends with its goroutine, since it stays locked to it.
func onOwnThread(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		home, err := netns.Get()
		if err != nil {
			done <- fmt.Errorf("find out the network namespace: %w", err)
			return
		}
		defer home.Close()
		err = f()
		if back := netns.Set(home); back != nil {
			done <- errors.Join(err, fmt.Errorf("return to the network namespace: %w", back))
			return
		}
		runtime.UnlockOSThread()
		done <- err
	}()
	return <-done
}

// removeNetwork takes away every namespace of the prefix, with the links in it and this
// machine's legs. What is not there is no error.
func (c Config) removeNetwork() error {
	names, err := c.namespaces()
	if err != nil {
		return err
	}
	var errs []error
	for _, name := range names {
		path := filepath.Join(netnsDir, name)
		err := unix.Unmount(path, unix.MNT_DETACH)
		if err == nil || errors.Is(err, unix.EINVAL) { // EINVAL: a file without its mount, after a crash
			err = os.Remove(path)
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, fmt.Errorf("delete network namespace %s: %w", name, err))
		}
	}
	// The legs go with the namespaces, but only when the kernel gets round to it.
	for _, site := range siteNames {
		if link, err := netlink.LinkByName(c.Prefix + "-" + site); err == nil {
			if err := netlink.LinkDel(link); err != nil && !errors.As(err, new(netlink.LinkNotFoundError)) && !errors.Is(err, unix.ENODEV) {
				errs = append(errs, fmt.Errorf("delete link %s: %w", c.Prefix+"-"+site, err))
			}
		}
	}
	return errors.Join(errs...)
}

// namespaces of the prefix that are there.
func (c Config) namespaces() ([]string, error) {
	entries, err := os.ReadDir(netnsDir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list network namespaces: %w", err)
	}
	var names []string
	for _, e := range entries {
		if c.ownsNetns(e.Name()) {
			names = append(names, e.Name())
		}
	}
	return names, nil
}
