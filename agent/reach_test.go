package agent

import (
	"bufio"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"testing"

	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/van/plan"
	"github.com/reservoir-cloud/reservoir/vee"
)

// inside notes where it was asked to go.
type inside struct {
	noNetwork
	been []string
}

func (i *inside) Inside(segment string, f func(string) error) error {
	i.been = append(i.been, segment)
	return f("eth0")
}

func TestAConnectionIsMadeFromInsideTheGuestsNetwork(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	go func() {
		c, err := ln.Accept()
		if err == nil {
			fmt.Fprintln(c, "hello")
			c.Close()
		}
	}()
	port := netip.MustParseAddrPort(ln.Addr().String()).Port()
	id := vee.ID("alpha.aaaaaaaaaa")
	path := &inside{}
	n, err := openNetworks(t.TempDir(), "h1", path, noAnswers{}, func() {}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := n.connect(t.Context(), id, port); !fault.Has(err, fault.NotFound) {
		t.Errorf("to a VEE without a network: %v", err)
	}
	segment := func(id string, vni uint32, at string, v vee.ID) plan.Segment {
		return plan.Segment{ID: id, Version: 1, VNI: vni, Public: vni == 0, Subnets: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}, MTU: 1400,
			Ports: []plan.Port{{VEE: v, MAC: "02:00:00:00:00:01", Addresses: []netip.Addr{netip.MustParseAddr(at)}, Host: "h1", Underlay: netip.MustParseAddr("10.0.0.1")}}}
	}
	n.mu.Lock()
	n.effect = map[string]plan.Segment{
		"alpha.back":  segment("alpha.back", 7, "127.0.0.1", id),
		"alpha.front": segment("alpha.front", 0, "127.0.0.2", id),
		"alpha.other": segment("alpha.other", 9, "127.0.0.1", "alpha.bbbbbbbbbb"),
	}
	n.mu.Unlock()
	c, err := n.connect(t.Context(), id, port) // nobody listens at 127.0.0.2
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if line, err := bufio.NewReader(c).ReadString('\n'); line != "hello\n" {
		t.Errorf("heard %q, %v", line, err)
	}
	if len(path.been) != 2 || path.been[0] != "alpha.front" || path.been[1] != "alpha.back" {
		t.Errorf("tried %v, want the public network and then the private one", path.been)
	}
}
