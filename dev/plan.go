package dev

import (
	"fmt"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/reservoir-cloud/reservoir/internal/libvirtd"
	"github.com/reservoir-cloud/reservoir/vee"
)

// siteNames in the order in which sites come up; their number bounds the federation.
var siteNames = []string{"alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta"}

// Bounds on a federation: of the names above, and of addresses below 10.x.0.253.
const (
	maxSites = 8
	maxHosts = 99
)

// Ports of the processes, the same in every namespace.
const (
	sitePort = 8440
	hostPort = 8441
)

// Bridge is the name of the bridge in each namespace.
const Bridge = "rsv0"

// Site of a federation, as a client needs it.
type Site struct {
	Name      string
	URL       string
	Others    []string // URLs of its other members
	Members   []string // names of its members beside the first
	TokenFile string   // the operator's first token, written by the site
	CAFile    string   // PEM
	Hosts     []string
}

// node is one process with its namespace and its place on the site's network.
type node struct {
	site    string
	host    string // empty: the site's control plane
	netns   string // name under /run/netns
	address string // without prefix length
	dir     string // state
	args    []string

	libvirtd string // state of the libvirtd beside a host's agent; empty: there is none
	program  string // that runs; empty: reservoir

	proxy  bool // the site's VAN proxy; host is its name
	member bool // of the control plane, beside its first

	guard []string // arguments of the guard beside a host's agent; nil: there is none
}

// daemon is the libvirtd beside a host's agent, as a process of its own.
func (n node) daemon() node {
	args := libvirtd.Args(n.libvirtd)
	n.host, n.program, n.args, n.libvirtd = n.host+"-libvirtd", args[0], args[1:], ""
	return n
}

// guardian is the guard beside a host's agent, as a process of its own.
func (n node) guardian() node {
	n.host, n.args, n.guard = n.host+"-guard", n.guard, nil
	return n
}

// name of the process, for people, logs and pid files: "alpha", "alpha-h1".
func (n node) name() string {
	if n.host == "" {
		return n.site
	}
	return n.site + "-" + n.host
}

// layout is the whole federation, computed from the configuration alone, so that `down`
// and `status` know what `up` made.
type layout struct {
	cfg   Config
	nodes []node // each site before its hosts
}

func (c Config) layout() layout {
	l := layout{cfg: c}
	for i, name := range siteNames[:c.Sites] {
		site := node{site: name, netns: c.Prefix + "-" + name, address: c.address(i, 1), dir: filepath.Join(c.Dir, name, "site")}
		site.args = []string{"site", "--dir", site.dir, "--name", name,
			"--listen", "0.0.0.0:" + strconv.Itoa(sitePort), "--advertise", site.address + ":" + strconv.Itoa(sitePort),
			"--vee-network", c.address(i, 0x8000) + "/17", "--vee-prefix-len", "16"}
		if c.Sites == 1 {
			site.args = append(site.args, "--vee-gateway", c.address(i, 254))
		}
		site.args = append(site.args, c.SiteArgs...)
		l.nodes = append(l.nodes, c.control(i, site)...)
		for k := 1; k <= c.Hosts; k++ {
			h := node{site: name, host: "h" + strconv.Itoa(k), address: c.address(i, 10+k)}
			h.netns, h.dir = site.netns+"-"+h.host, filepath.Join(c.Dir, name, h.host)
			driver := c.Hypervisor
			if driver == "libvirt" {
				h.libvirtd = filepath.Join(h.dir, "libvirtd")
				driver += ":" + libvirtd.URI(h.libvirtd)
			}
			h.args = []string{"host", "--dir", h.dir, "--name", h.host, "--site", strings.Join(c.urls(i), ","),
				"--join-file", filepath.Join(c.Dir, name, h.host+".token"),
				"--listen", "0.0.0.0:" + strconv.Itoa(hostPort), "--advertise", h.address + ":" + strconv.Itoa(hostPort),
				"--bridge", Bridge, "--driver", driver,
				"--memory", strconv.FormatInt(int64(c.Memory/vee.MiB), 10) + "MiB", "--disk", strconv.FormatInt(int64(c.Disk/vee.MiB), 10) + "MiB"}
			h.args = append(h.args, c.HostArgs...)
			if c.Hypervisor != "sim" {
				h.guard = append([]string{"guard", "--dir", h.dir}, c.GuardArgs...)
			}
			l.nodes = append(l.nodes, h)
		}
		if c.Sites > 1 {
			l.nodes = append(l.nodes, c.proxy(i, site))
		}
	}
	return l
}

// address number n of site i's network 10.(Subnet+i).0.0/16.
func (c Config) address(i, n int) string {
	return fmt.Sprintf("10.%d.%d.%d", c.Subnet+i, n>>8&0xff, n&0xff)
}

// siteIndex of a name, for its network.
func siteIndex(name string) int {
	for i, n := range siteNames {
		if n == name {
			return i
		}
	}
	return -1
}

// sites as clients need them.
func (l layout) sites() []Site {
	var list []Site
	for _, n := range l.nodes {
		if n.proxy {
			continue
		}
		if n.host != "" {
			if at := &list[len(list)-1]; n.member {
				at.Members = append(at.Members, n.host)
			} else {
				at.Hosts = append(at.Hosts, n.host)
			}
			continue
		}
		all := l.cfg.urls(siteIndex(n.site))
		list = append(list, Site{Name: n.site, URL: all[0], Others: all[1:],
			TokenFile: filepath.Join(n.dir, "admin-token"), CAFile: filepath.Join(n.dir, "ca.pem")})
	}
	return list
}

// log and pid file of a process.
func (l layout) log(n node) string { return filepath.Join(l.cfg.Dir, "log", n.name()+".log") }
func (l layout) pid(n node) string { return filepath.Join(l.cfg.Dir, "run", n.name()+".json") }

// netnsPattern that every namespace of the prefix matches.
func (c Config) ownsNetns(name string) bool { return strings.HasPrefix(name, c.Prefix+"-") }
