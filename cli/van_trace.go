package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"

	"github.com/spf13/cobra"

	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/van/plan"
	"github.com/reservoir-cloud/reservoir/vee"
	"github.com/reservoir-cloud/reservoir/vmi"
)

func (a *app) vanTrace() *cobra.Command {
	cmd := &cobra.Command{Use: "trace VEE TO", Short: "Show where a packet from a VEE goes, and what drops it",
		Long: `Show where a packet from a VEE goes, hop by hop, and what drops it, by what the hosts are
told of the networks. TO is a VEE or an address. Nothing is sent; what a guest itself does
is not known here.`,
		Example:           "  reservoir van trace web-1 app-1 --port 8080\n  reservoir van trace web-1 10.128.1.64 --protocol icmp",
		ValidArgsFunction: a.names(veeNames, veeNames)}
	q := plan.Question{}
	cmd.Flags().StringVar(&q.Protocol, "protocol", "tcp", "tcp, udp or icmp")
	cmd.Flags().Uint16Var(&q.Port, "port", 80, "destination `PORT`")
	f := outputFlag(cmd)
	cmd.RunE = a.onSite(func(ctx context.Context, r *remote, args []string) error {
		switch q.Protocol {
		case "icmp":
			q.Port = 0
		case "tcp", "udp":
		default:
			return fault.New(fault.Malformed, "--protocol %q: want tcp, udp or icmp", q.Protocol)
		}
		ids, err := r.findVEEs(ctx, args[:1])
		if err != nil {
			return err
		}
		from, err := r.vmi.GetVEE(ctx, ids[0])
		if err != nil {
			return err
		}
		networks, err := r.networksOf(ctx, from.Descriptor.GroupID)
		if err != nil {
			return err
		}
		q.From = from.ID
		if q.To, err = r.aim(ctx, networks, q.From, args[1]); err != nil {
			return err
		}
		t := plan.Find(networks, q)
		if *f == "json" || *f == "yaml" {
			return writeObject(a.out, *f, t)
		}
		for _, h := range t.Hops {
			fmt.Fprintln(a.out, h)
		}
		if t.Dropped != "" {
			fmt.Fprintln(a.out, "dropped", t.Dropped)
		}
		return nil
	})
	return cmd
}

// networksOf a group, as hosts are told of them.
func (r *remote) networksOf(ctx context.Context, group string) ([]plan.Segment, error) {
	list, err := r.vmi.ListNetworks(ctx, group)
	if err != nil {
		return nil, err
	}
	var all []plan.Segment
	for _, n := range list {
		v, err := r.vmi.GetNetwork(ctx, group, n.Name)
		if err != nil {
			return nil, err
		}
		all = append(all, segmentOf(v))
	}
	return all, nil
}

func segmentOf(v vmi.NetworkView) plan.Segment {
	return plan.Segment{ID: vanName(v.Network), Public: v.Public, VNI: v.VNI, Domain: v.Domain, Subnets: v.Subnets, Gateways: v.Gateways, MTU: v.MTU, Ports: v.Ports}
}

// aim finds the address that to means: one, or that of a VEE on a network that from is on
// too; else any of that VEE's.
func (r *remote) aim(ctx context.Context, networks []plan.Segment, from vee.ID, to string) (netip.Addr, error) {
	if at, err := netip.ParseAddr(to); err == nil {
		return at, nil
	}
	ids, err := r.findVEEs(ctx, []string{to})
	if err != nil {
		return netip.Addr{}, err
	}
	var any netip.Addr
	for _, n := range networks {
		on := func(id vee.ID) (netip.Addr, bool) {
			for _, p := range n.Ports {
				if p.VEE == id && len(p.Addresses) > 0 {
					return p.Addresses[0], true
				}
			}
			return netip.Addr{}, false
		}
		at, there := on(ids[0])
		if !there {
			continue
		}
		if _, shared := on(from); shared {
			return at, nil
		}
		any = at
	}
	if !any.IsValid() {
		return any, fault.New(fault.NotFound, "VEE %s has no address on the networks of %s's service", ids[0], from).Try("reservoir van list")
	}
	return any, nil
}

func (a *app) vanCapture() *cobra.Command {
	cmd := &cobra.Command{Use: "capture VEE", Short: "Write what passes a VEE's NIC to a pcap file (Ctrl-C to end)",
		Example:           "  reservoir van capture web-1 -w web-1.pcap\n  reservoir van capture web-1 -w - | tcpdump -nr -",
		ValidArgsFunction: a.names(veeNames)}
	nic := cmd.Flags().Int("nic", 0, "`NUMBER` of the NIC")
	file := cmd.Flags().StringP("write", "w", "", "`FILE` that gets the frames; - is the standard output")
	_ = cmd.MarkFlagRequired("write")
	cmd.RunE = a.onSite(func(ctx context.Context, r *remote, args []string) error {
		ids, err := r.findVEEs(ctx, args)
		if err != nil {
			return err
		}
		stream, err := r.vmi.Capture(ctx, ids[0], *nic)
		if err != nil {
			return err
		}
		defer stream.Close()
		out := a.out
		if *file != "-" {
			f, err := os.OpenFile(*file, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
			if err != nil {
				return fmt.Errorf("capture: %w", err)
			}
			defer f.Close()
			out = f
		}
		fmt.Fprintf(a.err, "capturing NIC %d of %s; Ctrl-C ends it\n", *nic, ids[0])
		stop := context.AfterFunc(ctx, func() { stream.Close() })
		defer stop()
		n, err := io.Copy(out, stream)
		switch {
		case ctx.Err() != nil || errors.Is(err, net.ErrClosed):
			fmt.Fprintf(a.err, "%v\n", vee.Bytes(n))
			return nil
		case err != nil:
			return fault.New(fault.Unavailable, "capture: the connection was lost: %w", err)
		}
		return nil
	})
	return cmd
}
