package boot

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/reservoir-cloud/reservoir/cmd/reservoir-guest/seed"
)

// Network brings up the loopback device and every link of the seed, and names the machine.
// What fails is reported together; the rest is done all the same.
func Network(ctx context.Context, s seed.Seed) error {
	var errs []error
	if s.Hostname != "" {
		if err := unix.Sethostname([]byte(s.Hostname)); err != nil {
			errs = append(errs, fmt.Errorf("setting the host name %s: %w", s.Hostname, err))
		}
	}
	if lo, err := netlink.LinkByName("lo"); err != nil {
		errs = append(errs, fmt.Errorf("finding the loopback device: %w", err))
	} else if err := netlink.LinkSetUp(lo); err != nil {
		errs = append(errs, fmt.Errorf("bringing up the loopback device: %w", err))
	}
	present, err := netlink.LinkList()
	if err != nil {
		return errors.Join(append(errs, fmt.Errorf("listing network devices: %w", err))...)
	}
	links := s.Links
	if s.Ask {
		links = nil
		for _, link := range present {
			if a := link.Attrs(); len(a.HardwareAddr) == 6 && a.Flags&net.FlagLoopback == 0 {
				links = append(links, seed.Link{ID: a.Name, Name: a.Name, DHCP: true})
			}
		}
	}
	failed := make([]error, len(links))
	var all sync.WaitGroup
	for i := range links { // together: a server that does not answer takes its time
		all.Go(func() {
			if err := configure(ctx, &links[i], present); err != nil {
				failed[i] = fmt.Errorf("setting up network device %s: %w", links[i].ID, err)
			}
		})
	}
	all.Wait()
	errs = append(errs, failed...)
	if text := resolvConf(links); text != "" {
		errs = append(errs, errors.Join(
			os.MkdirAll("/etc", 0o755),
			os.WriteFile("/etc/resolv.conf", []byte(text), 0o644)))
	}
	return errors.Join(errs...)
}

// resolvConf is resolv.conf(5) of all links; empty where none has a name server.
func resolvConf(links []seed.Link) string {
	var servers, search []string
	for _, l := range links {
		for _, a := range l.DNS {
			servers = append(servers, a.String())
		}
		for _, domain := range l.Search {
			if !slices.Contains(search, domain) {
				search = append(search, domain)
			}
		}
	}
	if len(servers) == 0 {
		return ""
	}
	text := ""
	for _, server := range servers {
		text += "nameserver " + server + "\n"
	}
	if len(search) > 0 {
		text += "search " + strings.Join(search, " ") + "\n"
	}
	return text
}

func configure(ctx context.Context, l *seed.Link, present []netlink.Link) error {
	link := find(*l, present)
	switch {
	case link == nil && l.MAC != nil:
		return fmt.Errorf("no device has the address %s", l.MAC)
	case link == nil:
		return fmt.Errorf("no device is called %s", l.Name)
	}
	if l.Name != "" && l.Name != link.Attrs().Name {
		if err := netlink.LinkSetName(link, l.Name); err != nil {
			return fmt.Errorf("calling %s %s: %w", link.Attrs().Name, l.Name, err)
		}
	}
	if l.DHCP {
		if err := netlink.LinkSetUp(link); err != nil {
			return fmt.Errorf("bringing it up: %w", err)
		}
		name := link.Attrs().Name
		if l.Name != "" {
			name = l.Name
		}
		if err := askDHCP(ctx, name, link.Attrs().HardwareAddr, l); err != nil {
			return fmt.Errorf("DHCP: %w", err)
		}
	}
	if l.MTU > 0 {
		if err := netlink.LinkSetMTU(link, l.MTU); err != nil {
			return fmt.Errorf("setting its MTU to %d: %w", l.MTU, err)
		}
	}
	for _, p := range l.Addresses {
		a := &netlink.Addr{IPNet: ipNet(p)}
		if p.Addr().Is6() {
			a.Flags = unix.IFA_F_NODAD // the site hands out each address once
		}
		if err := netlink.AddrReplace(link, a); err != nil {
			return fmt.Errorf("giving it the address %s: %w", p, err)
		}
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return fmt.Errorf("bringing it up: %w", err)
	}
	for _, r := range l.Routes {
		route := &netlink.Route{LinkIndex: link.Attrs().Index, Dst: ipNet(r.To.Masked()), Gw: r.Via.AsSlice()}
		if err := netlink.RouteReplace(route); err != nil {
			return fmt.Errorf("routing %s by %s: %w", r.To, r.Via, err)
		}
	}
	return nil
}

func find(l seed.Link, present []netlink.Link) netlink.Link {
	for _, link := range present {
		a := link.Attrs()
		if l.MAC != nil && bytes.Equal(a.HardwareAddr, l.MAC) || l.MAC == nil && a.Name == l.Name {
			return link
		}
	}
	return nil
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// WriteFiles that the guest is told to have.
func WriteFiles(files []seed.File) error {
	var errs []error
	for _, f := range files {
		err := os.MkdirAll(filepath.Dir(f.Path), 0o755)
		if err == nil {
			err = os.WriteFile(f.Path, f.Content, f.Mode)
		}
		if err == nil {
			err = os.Chmod(f.Path, f.Mode) // one that was there kept its own
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("writing a file of the seed medium: %w", err))
		}
	}
	return errors.Join(errs...)
}

// Addresses of the machine that others can reach, for people to read.
func Addresses() []string {
	all, err := net.InterfaceAddrs()
	if err != nil {
		return nil
	}
	var reachable []string
	for _, a := range all {
		if n, ok := a.(*net.IPNet); ok && !n.IP.IsLoopback() && !n.IP.IsLinkLocalUnicast() {
			reachable = append(reachable, a.String())
		}
	}
	return reachable
}
