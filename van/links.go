package van

import (
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/reservoir-cloud/reservoir/van/plan"
	"github.com/reservoir-cloud/reservoir/vee"
)

// links is the part of the plan that is network devices and their forwarding entries, in
// the network namespace that its handle was made in.
type links struct {
	h      *netlink.Handle
	ns     *space
	bridge string            // public networks'
	border bool              // TAPs lead to other sites
	spaces map[string]*space // of gateways, by the device's name
	gates  map[string]plan.Gateway
	detour bool // tunnels pass on what came by a tunnel
}

// port flags of a bridge (linux/if_link.h, IFLA_BRPORT_*). Nothing is learned anywhere
// and no unknown address flooded; broadcast, which only the host's agent sends in a private
// network, reaches guests and does not leave the host.
//
// Nothing passes between two isolated ports.
type portFlags struct{ broadcast, hairpin, isolated bool }

func (l *links) setPort(index int, f portFlags) error {
	req := nl.NewNetlinkRequest(unix.RTM_SETLINK, unix.NLM_F_ACK)
	msg := nl.NewIfInfomsg(unix.AF_BRIDGE)
	msg.Index = int32(index)
	req.AddData(msg)
	info := nl.NewRtAttr(unix.IFLA_PROTINFO|unix.NLA_F_NESTED, nil)
	for attr, on := range map[int]bool{
		nl.IFLA_BRPORT_LEARNING: false, nl.IFLA_BRPORT_UNICAST_FLOOD: false, nl.IFLA_BRPORT_NEIGH_SUPPRESS: false,
		nl.IFLA_BRPORT_MCAST_FLOOD: f.broadcast, nl.IFLA_BRPORT_BCAST_FLOOD: f.broadcast, nl.IFLA_BRPORT_MODE: f.hairpin, unix.IFLA_BRPORT_ISOLATED: f.isolated,
	} {
		info.AddRtAttr(attr, flag(on))
	}
	req.AddData(info)
	return l.ns.request(req)
}

// callNetfilter makes what a bridge forwards pass the inet family's rules (br_netfilter),
// whatever the machine's sysctl says.
func (l *links) callNetfilter(index int) error {
	req := nl.NewNetlinkRequest(unix.RTM_NEWLINK, unix.NLM_F_ACK)
	msg := nl.NewIfInfomsg(unix.AF_UNSPEC)
	msg.Index = int32(index)
	req.AddData(msg)
	info := nl.NewRtAttr(unix.IFLA_LINKINFO, nil)
	info.AddRtAttr(nl.IFLA_INFO_KIND, nl.NonZeroTerminated("bridge"))
	data := info.AddRtAttr(nl.IFLA_INFO_DATA, nil)
	data.AddRtAttr(nl.IFLA_BR_NF_CALL_IPTABLES, flag(true))
	data.AddRtAttr(nl.IFLA_BR_NF_CALL_IP6TABLES, flag(true))
	req.AddData(info)
	return l.ns.request(req)
}

func flag(on bool) []byte {
	if on {
		return []byte{1}
	}
	return []byte{0}
}

// addrGenNone keeps the host from having an address of its own on a device
// (IN6_ADDR_GEN_MODE_NONE).
const addrGenNone = 1

// quiet device: one that the host never speaks on itself.
func (l *links) quiet(d netlink.Link) error {
	return l.h.LinkSetIP6AddrGenMode(d, addrGenNone)
}

// add a device, silent and down; one of the name that is not as wanted must have gone before.
func (l *links) add(d netlink.Link) (netlink.Link, error) {
	err := l.ns.do(func() error { return l.h.LinkAdd(d) })
	if err != nil && !errors.Is(err, unix.EEXIST) {
		return nil, fmt.Errorf("make %s %s: %w", d.Type(), d.Attrs().Name, err)
	}
	made, err := l.h.LinkByName(d.Attrs().Name)
	if err != nil {
		return nil, fmt.Errorf("find %s %s: %w", d.Type(), d.Attrs().Name, err)
	}
	if made.Type() != d.Type() {
		return nil, fmt.Errorf("make %s %s: there is a %s of that name", d.Type(), d.Attrs().Name, made.Type())
	}
	if err := l.quiet(made); err != nil {
		return nil, fmt.Errorf("%s: keep it from having an address: %w", d.Attrs().Name, err)
	}
	return made, nil
}

// join puts a device into a bridge and brings it up.
func (l *links) join(d netlink.Link, bridge string, f portFlags) error {
	b, err := l.h.LinkByName(bridge)
	if err != nil {
		return fmt.Errorf("bridge %s: %w", bridge, err)
	}
	if d.Attrs().MasterIndex != b.Attrs().Index {
		if err := l.h.LinkSetMaster(d, b); err != nil {
			return fmt.Errorf("%s into bridge %s: %w", d.Attrs().Name, bridge, err)
		}
	}
	if err := l.setPort(d.Attrs().Index, f); err != nil {
		return fmt.Errorf("%s: flags of its port in bridge %s: %w", d.Attrs().Name, bridge, err)
	}
	if err := l.h.LinkSetUp(d); err != nil {
		return fmt.Errorf("bring up %s: %w", d.Attrs().Name, err)
	}
	return nil
}

// remove a device. That there is none is no error.
func (l *links) remove(name string) error {
	d, err := l.h.LinkByName(name)
	if err == nil {
		err = l.h.LinkDel(d)
	}
	if err != nil && !missing(err) {
		return fmt.Errorf("remove %s: %w", name, err)
	}
	return nil
}

func missing(err error) bool {
	return errors.As(err, new(netlink.LinkNotFoundError)) || errors.Is(err, unix.ENODEV)
}

// errLater is the answer to a change that has to wait for a TAP.
var errLater = errors.New("the TAP is not there yet")

func (l *links) apply(c plan.Change) error {
	switch e := c.Want.(type) {
	case nil:
		return l.drop(c.Have)
	case plan.Bridge:
		return l.makeBridge(e)
	case plan.Tunnel:
		return l.makeTunnel(e, c.Have != nil)
	case plan.Gateway:
		return l.makeGateway(e)
	case plan.Member:
		d, err := l.h.LinkByName(e.Tap)
		if missing(err) {
			return errLater
		} else if err != nil {
			return err
		}
		return l.join(d, e.Bridge, portFlags{broadcast: !l.border, isolated: l.border})
	case plan.Forward:
		return l.forward(e)
	}
	panic(fmt.Sprintf("entry %T is no device", c.Want))
}

func (l *links) drop(e plan.Entry) error {
	switch e := e.(type) {
	case plan.Bridge:
		return l.remove(e.Name)
	case plan.Tunnel:
		return l.remove(e.Name)
	case plan.Gateway:
		return l.dropGateway(e.Name)
	case plan.Member:
		d, err := l.h.LinkByName(e.Tap)
		if err == nil {
			err = l.h.LinkSetNoMaster(d)
		}
		if err != nil && !missing(err) {
			return fmt.Errorf("take %s out of bridge %s: %w", e.Tap, e.Bridge, err)
		}
		return nil
	case plan.Forward:
		return l.forget(e)
	}
	panic(fmt.Sprintf("entry %T is no device", e))
}

func (l *links) makeBridge(e plan.Bridge) error {
	a := netlink.NewLinkAttrs()
	a.Name, a.MTU = e.Name, plan.DeviceMTU
	snoop := false
	d, err := l.add(&netlink.Bridge{LinkAttrs: a, MulticastSnooping: &snoop})
	if err != nil {
		return err
	}
	if !l.border { // where there is no firewall of connections
		if err := l.callNetfilter(d.Attrs().Index); err != nil {
			return fmt.Errorf("bridge %s: let its frames pass the packet filter: %w", e.Name, err)
		}
	}
	if err := l.h.LinkSetUp(d); err != nil {
		return fmt.Errorf("bring up bridge %s: %w", e.Name, err)
	}
	return nil
}

func (l *links) makeTunnel(e plan.Tunnel, there bool) error {
	if there { // with another VNI or address, which cannot be changed
		if err := l.remove(e.Name); err != nil {
			return err
		}
	}
	a := netlink.NewLinkAttrs()
	a.Name, a.MTU = e.Name, plan.DeviceMTU
	d, err := l.add(&netlink.Vxlan{LinkAttrs: a, VxlanId: int(e.VNI), SrcAddr: e.Local.AsSlice(), Port: plan.VXLANPort, UDPCSum: true})
	if err != nil {
		return err
	}
	return l.join(d, e.Bridge, portFlags{hairpin: l.detour})
}

// setDetour lets tunnels pass on what came by a tunnel, or not. It is on only while a VEE
// has left this host and others may not know yet: two hosts that each take the other for
// the place of a MAC would send a frame to and fro for ever.
func (l *links) setDetour(on bool, tunnels []plan.Tunnel) error {
	if l.detour == on {
		return nil
	}
	var errs []error
	for _, t := range tunnels {
		d, err := l.h.LinkByName(t.Name)
		if err == nil {
			err = l.setPort(d.Attrs().Index, portFlags{hairpin: on})
		}
		if err != nil && !missing(err) {
			errs = append(errs, fmt.Errorf("%s: pass frames on: %w", t.Name, err))
		}
	}
	if len(errs) == 0 {
		l.detour = on
	}
	return errors.Join(errs...)
}

// forward makes a static entry: in the bridge, and for a tunnel in the tunnel too.
func (l *links) forward(e plan.Forward) error {
	d, err := l.h.LinkByName(e.Device)
	if missing(err) && strings.HasPrefix(e.Device, plan.TapPrefix) {
		return errLater
	} else if err != nil {
		return fmt.Errorf("forward %s to %s: %w", e.MAC, e.Device, err)
	}
	if e.To.IsValid() {
		if err := l.h.NeighSet(l.far(d, e)); err != nil {
			return fmt.Errorf("forward %s to host %s: %w", e.MAC, e.To, err)
		}
	}
	if err := l.h.NeighSet(l.near(d, e)); err != nil {
		return fmt.Errorf("forward %s to %s: %w", e.MAC, e.Device, err)
	}
	return nil
}

func (l *links) forget(e plan.Forward) error {
	d, err := l.h.LinkByName(e.Device)
	if missing(err) {
		return nil // its entries went with it
	} else if err != nil {
		return fmt.Errorf("forward %s no longer to %s: %w", e.MAC, e.Device, err)
	}
	entries := []*netlink.Neigh{l.near(d, e)}
	if strings.HasPrefix(e.Device, plan.TunnelPrefix) {
		entries = append(entries, l.far(d, e))
	}
	for _, n := range entries {
		if err := l.h.NeighDel(n); err != nil && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("forward %s no longer to %s: %w", e.MAC, e.Device, err)
		}
	}
	return nil
}

func (l *links) near(d netlink.Link, e plan.Forward) *netlink.Neigh {
	return &netlink.Neigh{LinkIndex: d.Attrs().Index, Family: unix.AF_BRIDGE, State: netlink.NUD_NOARP, Flags: netlink.NTF_MASTER, HardwareAddr: mac(e.MAC)}
}

func (l *links) far(d netlink.Link, e plan.Forward) *netlink.Neigh {
	n := &netlink.Neigh{LinkIndex: d.Attrs().Index, Family: unix.AF_BRIDGE, State: netlink.NUD_PERMANENT, Flags: netlink.NTF_SELF, HardwareAddr: mac(e.MAC)}
	if e.To.IsValid() {
		n.IP = e.To.AsSlice()
	}
	return n
}

// retries of a dump that changed while it was taken.
const retries = 10

func complete[T any](dump func() (T, error)) (T, error) {
	for i := 0; ; i++ {
		got, err := dump()
		if !errors.Is(err, netlink.ErrDumpInterrupted) || i == retries {
			return got, err
		}
	}
}

// read what the kernel has of what a plan speaks of, whoever made it.
func (l *links) read(into plan.HostPlan) error {
	all, err := complete(l.h.LinkList)
	if err != nil {
		return fmt.Errorf("list network devices: %w", err)
	}
	names := make(map[int]string, len(all))
	for _, d := range all {
		names[d.Attrs().Index] = d.Attrs().Name
	}
	for _, d := range all {
		if e := l.entry(d, names); e != nil {
			into.Add(e)
		}
	}
	entries, err := complete(func() ([]netlink.Neigh, error) { return l.h.NeighList(0, unix.AF_BRIDGE) })
	if err != nil {
		return fmt.Errorf("list forwarding entries: %w", err)
	}
	type behind struct {
		device, mac string
	}
	near, far := map[behind]bool{}, map[behind]netip.Addr{}
	for _, n := range entries {
		k := behind{names[n.LinkIndex], n.HardwareAddr.String()}
		if !isPort(k.device) {
			continue
		}
		switch {
		case n.Flags&netlink.NTF_SELF != 0 && n.IP != nil:
			far[k] = addr(n.IP).Unmap()
		case n.MasterIndex != 0 && n.State&netlink.NUD_NOARP != 0:
			near[k] = true
		}
	}
	for k := range near {
		f := plan.Forward{Device: k.device, MAC: k.mac, To: far[k]}
		into.Add(f)
	}
	for k := range far {
		if !near[k] { // half of an entry: not what anybody wants
			f := plan.Forward{Device: k.device, MAC: k.mac}
			into.Add(f)
		}
	}
	return nil
}

// entry of the plan that a device is, or nil.
func (l *links) entry(d netlink.Link, names map[int]string) plan.Entry {
	a := d.Attrs()
	master := names[a.MasterIndex]
	if a.Flags&net.FlagUp == 0 {
		master = "" // as nobody wants it
	}
	switch {
	case isTap(a.Name) && master != "":
		return plan.Member{Tap: a.Name, Bridge: master}
	case !isOurs(a.Name):
	case d.Type() == "bridge" && strings.HasPrefix(a.Name, plan.BridgePrefix):
		return plan.Bridge{Name: a.Name, Down: a.Flags&net.FlagUp == 0}
	case d.Type() == "vxlan" && strings.HasPrefix(a.Name, plan.TunnelPrefix):
		v := d.(*netlink.Vxlan)
		if v.Port != plan.VXLANPort || v.Learning {
			master = ""
		}
		return plan.Tunnel{Name: a.Name, Bridge: master, VNI: uint32(v.VxlanId), Local: addr(v.SrcAddr).Unmap()}
	case d.Type() == "veth" && strings.HasPrefix(a.Name, plan.GatewayPrefix):
		g, ok := l.gates[a.Name]
		if !ok || master != g.Bridge {
			g = plan.Gateway{Name: a.Name, Bridge: master} // of an agent that is no more
		}
		return g
	}
	return nil
}

func isTap(name string) bool { return len(name) == 15 && strings.HasPrefix(name, plan.TapPrefix) }

// isOurs reports whether name is that of a private network's bridge, tunnel or gateway.
func isOurs(name string) bool {
	if len(name) != 8 {
		return false
	}
	_, err := hex.DecodeString(name[2:])
	p := name[:2]
	return err == nil && (p == plan.BridgePrefix || p == plan.TunnelPrefix || p == plan.GatewayPrefix)
}

func isPort(name string) bool {
	return isTap(name) || isOurs(name) && !strings.HasPrefix(name, plan.BridgePrefix)
}

// plug makes the TAP of a VEE's NIC. Only root may open it: the driver passes the guest's
// process an open one.
func (l *links) plug(id vee.ID, nic int) (string, error) {
	a := netlink.NewLinkAttrs()
	a.Name = plan.TapName(id, nic)
	d, err := l.h.LinkByName(a.Name)
	if missing(err) {
		t := &netlink.Tuntap{LinkAttrs: a, Mode: netlink.TUNTAP_MODE_TAP, Flags: netlink.TUNTAP_NO_PI | netlink.TUNTAP_VNET_HDR}
		d, err = l.add(t)
	}
	if err == nil {
		err = l.h.LinkSetUp(d)
	}
	if err != nil {
		return "", fmt.Errorf("TAP %s: %w", a.Name, err)
	}
	return a.Name, nil
}

// unplug removes the TAPs that drop says, and tells which.
func (l *links) unplug(drop func(name string) bool) ([]string, error) {
	all, err := complete(l.h.LinkList)
	if err != nil {
		return nil, fmt.Errorf("list network devices: %w", err)
	}
	var gone []string
	var errs []error
	for _, d := range all {
		n := d.Attrs().Name
		if d.Type() != "tuntap" || !isTap(n) || !drop(n) {
			continue
		}
		if err := l.h.LinkDel(d); err != nil && !missing(err) {
			errs = append(errs, fmt.Errorf("remove TAP %s: %w", n, err))
			continue
		}
		gone = append(gone, n)
	}
	return gone, errors.Join(errs...)
}
