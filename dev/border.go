package dev

import (
	"context"
	"fmt"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/vishvananda/netlink"

	"github.com/reservoir-cloud/reservoir/internal/durable"
)

// Between sites there are their VAN proxies alone:
//
//	 namespace PREFIX-alpha-proxy                namespace PREFIX-wan
//	│ up0  10.80.0.2/16 ── site's bridge │
//	│ wan  198.18.80.1/24 ───────────────┼─ alpha ─ bridge wan0 ─ beta ── … ─ 198.18.80.2/24
//
// Control planes and hosts have no route to anywhere but their own site, and nobody forwards:
// a proxy is a process at both ends. (This machine has a leg in each site's network, so that
// people reach them; guests of several sites have no way out, which would lead there.)

// proxyName of a site's proxy, where hosts are h1, h2 and so on.
const proxyName = "proxy"

// Ports of a proxy.
const (
	proxyPort   = 8442
	outsidePort = 8443
	insidePort  = 8444
)

// outside address of site i's proxy, of a network that is for tests (RFC 2544, section C.2.2).
func (c Config) outside(i int) string { return fmt.Sprintf("198.18.%d.%d", c.Subnet, i+1) }

// proxy of site i.
func (c Config) proxy(i int, site node) node {
	n := node{site: site.site, host: proxyName, proxy: true, netns: site.netns + "-" + proxyName, address: c.address(i, 2), dir: filepath.Join(c.Dir, site.site, proxyName)}
	at := func(address string, port int) string { return address + ":" + strconv.Itoa(port) }
	n.args = append([]string{"proxy", "--dir", n.dir, "--site", strings.Join(c.urls(i), ","), "--join-file", filepath.Join(c.Dir, site.site, proxyName+".token"),
		"--listen", at(n.address, proxyPort), "--inside", at(n.address, insidePort), "--outside", at(c.outside(i), outsidePort)}, c.ProxyArgs...)
	return n
}

// wan is the namespace of the wire between sites.
func (l layout) wan() string { return l.cfg.Prefix + "-wan" }

const wanBridge = "wan0"

func (l layout) makeWAN() error {
	if err := newNetns(l.wan()); err != nil {
		return err
	}
	w, err := openNetns(l.wan())
	if err != nil {
		return err
	}
	defer w.Close()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = wanBridge
	if err := w.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}); err != nil {
		return fmt.Errorf("make bridge %s: %w", wanBridge, err)
	}
	return w.up(wanBridge, "")
}

// makeProxy gives a proxy its two legs.
func (l layout) makeProxy(n node) error {
	if err := newNetns(n.netns); err != nil {
		return err
	}
	h, err := openNetns(n.netns)
	if err != nil {
		return err
	}
	defer h.Close()
	site, err := openNetns(l.cfg.Prefix + "-" + n.site)
	if err != nil {
		return err
	}
	defer site.Close()
	w, err := openNetns(l.wan())
	if err != nil {
		return err
	}
	defer w.Close()
	if err := addVeth(site.Handle, proxyName, h.fd, "up0"); err != nil {
		return err
	}
	if err := site.enslaveTo(Bridge, proxyName); err != nil {
		return err
	}
	if err := addVeth(w.Handle, n.site, h.fd, "wan"); err != nil {
		return err
	}
	if err := w.enslaveTo(wanBridge, n.site); err != nil {
		return err
	}
	for link, cidr := range map[string]string{"lo": "", "up0": n.address + "/16", "wan": l.cfg.outside(siteIndex(n.site)) + "/24"} {
		if err := h.up(link, cidr); err != nil {
			return err
		}
	}
	return nil
}

// inviteProxy writes a join token for a site's proxy.
func (l layout) inviteProxy(ctx context.Context, client Client, s Site, n node) error {
	return retry(ctx, func() error {
		token, err := client.InviteProxy(ctx, s)
		if err != nil {
			return err
		}
		return durable.WriteFile(filepath.Join(l.cfg.Dir, n.site, n.host+".token"), []byte(token+"\n"), 0o600)
	})
}
