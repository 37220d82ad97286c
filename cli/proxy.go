package cli

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/reservoir-cloud/reservoir/van/border"
	"github.com/reservoir-cloud/reservoir/van/border/post"
)

// proxyCmd is the site's VAN proxy as a process.
func (a *app) proxyCmd() *cobra.Command {
	cmd := &cobra.Command{Use: "proxy", Short: "Be the site's VAN proxy: its one way to other sites",
		Long: `Be the VAN proxy of a site: the one process that other sites reach. It needs an address
inside, by which it reaches the site and its hosts, and one outside. It joins with a one-time
token (on the site: reservoir site proxy invite) and needs none when it starts again.

Open towards other sites: TCP and UDP on --outside. Nothing else of the site needs to be.`,
		Example: `  reservoir proxy --dir /var/lib/reservoir-proxy --site https://10.0.0.5:8440 \
      --listen 10.0.0.2:8442 --inside 10.0.0.2:8444 --outside 192.0.2.7:8443 --join TOKEN`}
	c := post.Config{Version: version}
	var joinFile, underlay, sites string
	fl := cmd.Flags()
	fl.StringVar(&c.Dir, "dir", "", "`DIRECTORY` of everything that the proxy keeps")
	fl.StringVar(&sites, "site", "", "where the site answers, https://HOST:PORT; of several members, with commas between")
	fl.StringVar(&c.JoinToken, "join", "", "one-time `TOKEN`")
	fl.StringVar(&joinFile, "join-file", "", "`FILE` with the token: keeps it out of the list of processes")
	fl.StringVar(&c.Listen, "listen", "", "`ADDRESS:PORT` inside, where the site says what to do (8442)")
	fl.StringVar(&c.Inside, "inside", "", "`ADDRESS:PORT` of the relay for the site's own processes (8444)")
	fl.StringVar(&c.Outside, "outside", "", "`ADDRESS:PORT` for other sites: relay by TCP, tunnel by UDP (8443)")
	fl.StringVar(&c.Advertise, "advertise", "", "`HOST:PORT` that other sites reach that by (as --outside)")
	fl.StringVar(&underlay, "underlay", "", "`ADDRESS` that the site's hosts send private networks' traffic to (as --listen)")
	fl.Float64Var(&c.HAScale, "ha-scale", 1, "scale every timing by this; as the site's")
	cmd.RunE = func(cmd *cobra.Command, _ []string) (err error) {
		if c.Underlay, err = parse(netip.ParseAddr, "--underlay", underlay); err != nil {
			return err
		}
		if joinFile != "" {
			token, err := os.ReadFile(joinFile)
			if err != nil {
				return fileFault(err)
			}
			c.JoinToken = strings.TrimSpace(string(token))
		}
		for s := range strings.SplitSeq(sites, ",") {
			if s = strings.TrimSuffix(strings.TrimPrefix(s, "https://"), "/"); s != "" {
				c.Sites = append(c.Sites, s)
			}
		}
		c.Log = a.log()
		return post.Run(cmd.Context(), c)
	}
	return cmd
}

func (a *app) siteProxy() *cobra.Command {
	return noun("proxy", "The site's VAN proxy, its way to other sites", a.proxyInvite(), a.proxyShow())
}

func (a *app) proxyInvite() *cobra.Command {
	cmd := &cobra.Command{Use: "invite", Short: "Print a one-time token with which a machine becomes the site's proxy"}
	f := outputFlag(cmd)
	cmd.RunE = a.onSite(func(ctx context.Context, r *remote, _ []string) error {
		i, err := r.border.InviteProxy(ctx)
		if err != nil {
			return err
		}
		if *f == "json" || *f == "yaml" {
			return writeObject(a.out, *f, i)
		}
		fmt.Fprintln(a.out, i.Token)
		fmt.Fprintf(a.err, "until %s, on a machine with an address inside and one outside: reservoir proxy --site https://%s --join TOKEN …\n", i.Expires.Local().Format(time.DateTime), i.Address)
		return nil
	})
	return cmd
}

func (a *app) proxyShow() *cobra.Command {
	cmd := &cobra.Command{Use: "show", Short: "Show the proxy: tunnels to partners, shared networks, tickets"}
	plan := cmd.Flags().Bool("plan", false, "what its kernel should hold of each network, and what differs")
	f := outputFlag(cmd)
	cmd.RunE = a.onSite(func(ctx context.Context, r *remote, _ []string) error {
		s, err := r.border.ShowProxy(ctx)
		if err != nil {
			return err
		}
		return a.showOne(*f, s, s.Outside, func() error {
			if *plan {
				a.showBorderPlan(s)
				return nil
			}
			return a.describeProxy(s, *f)
		})
	})
	return cmd
}

func (a *app) describeProxy(s border.ProxyStatus, f format) error {
	relayed := fmt.Sprintf("%d open, %d taken, %d refused", s.Relay.Open, s.Relay.Taken, s.Relay.Refused)
	a.facts([]fact{
		{"outside", s.Outside + " (tcp, udp)"}, {"inside", s.Inside}, {"underlay", s.Underlay.String()}, {"key", s.Key},
		{"version", s.Software}, {"up", a.since(s.Started)}, {"relayed", relayed}, {"dropped", droppedText(s.Dropped)}, {"error", s.Error},
	})
	a.printf("\n")
	if err := a.peerListing().print(a, f, s.Peers); err != nil {
		return err
	}
	if len(s.Segments) > 0 {
		a.printf("\n")
		if err := segmentListing().print(a, f, s.Segments); err != nil {
			return err
		}
	}
	if len(s.Routes) == 0 {
		return nil
	}
	a.printf("\n")
	return a.routeListing().print(a, f, s.Routes)
}

func droppedText(n map[string]uint64) string {
	var all []string
	for _, why := range slices.Sorted(maps.Keys(n)) {
		all = append(all, fmt.Sprintf("%d %s", n[why], why))
	}
	return strings.Join(all, ", ")
}

func (a *app) peerListing() listing[border.PeerStatus] {
	return listing[border.PeerStatus]{
		columns: []column[border.PeerStatus]{
			{head: "SITE", cell: func(p border.PeerStatus) string { return p.Site }},
			{head: "ENDPOINT", cell: func(p border.PeerStatus) string { return p.Endpoint }},
			{head: "HANDSHAKE", cell: func(p border.PeerStatus) string {
				if p.Handshake.IsZero() {
					return "never"
				}
				return a.since(p.Handshake)
			}},
			{head: "RECEIVED", cell: func(p border.PeerStatus) string { return p.Received.String() }},
			{head: "SENT", cell: func(p border.PeerStatus) string { return p.Sent.String() }},
			{head: "MTU", cell: func(p border.PeerStatus) string { return strconv.Itoa(p.MTU) }},
			{head: "KEY", cell: func(p border.PeerStatus) string { return p.Key }, wide: true},
		},
		name: func(p border.PeerStatus) string { return p.Site },
		none: "no tunnel to any site",
	}
}

func segmentListing() listing[border.SegmentStatus] {
	return listing[border.SegmentStatus]{
		columns: []column[border.SegmentStatus]{
			{head: "NETWORK", cell: func(s border.SegmentStatus) string { return s.ID }},
			{head: "VNI", cell: func(s border.SegmentStatus) string { return strconv.Itoa(int(s.VNI)) }},
			{head: "IN-TUNNEL", cell: func(s border.SegmentStatus) string { return strconv.Itoa(int(s.Tunnel)) }},
			{head: "SITES", cell: func(s border.SegmentStatus) string { return strings.Join(s.Sites, " ") }},
			{head: "PORTS", cell: func(s border.SegmentStatus) string { return strconv.Itoa(s.Ports) }},
			{head: "KERNEL", cell: func(s border.SegmentStatus) string { return differs(len(s.Missing), len(s.Surplus)) }},
		},
		name: func(s border.SegmentStatus) string { return s.ID },
	}
}

func differs(missing, surplus int) string {
	if missing+surplus == 0 {
		return "as it should be"
	}
	return fmt.Sprintf("%d missing, %d too many", missing, surplus)
}

func (a *app) routeListing() listing[border.RouteStatus] {
	return listing[border.RouteStatus]{
		columns: []column[border.RouteStatus]{
			{head: "TICKET-FOR", cell: func(r border.RouteStatus) string { return r.For }},
			{head: "FROM", cell: func(r border.RouteStatus) string { return r.From }},
			{head: "TO", cell: func(r border.RouteStatus) string { return r.To }},
			{head: "USED", cell: func(r border.RouteStatus) string {
				if r.Once {
					return fmt.Sprintf("%d of 1", r.Used)
				}
				return strconv.FormatUint(r.Used, 10)
			}},
			{head: "OPEN", cell: func(r border.RouteStatus) string { return strconv.Itoa(r.Open) }},
			{head: "EXPIRES", cell: func(r border.RouteStatus) string {
				switch left := r.Expires.Sub(a.now()); {
				case r.Expires.IsZero():
					return "never"
				case left <= 0:
					return "expired"
				default:
					return "in " + duration(left)
				}
			}},
			{head: "DIGEST", cell: func(r border.RouteStatus) string { return r.Digest }, wide: true},
		},
		name: func(r border.RouteStatus) string { return r.Digest },
	}
}

// showBorderPlan as a difference is shown: "+" is missing, "-" is there and should not.
func (a *app) showBorderPlan(s border.ProxyStatus) {
	if len(s.Segments) == 0 {
		fmt.Fprintln(a.err, "no network is shared with another site")
	}
	for i, g := range s.Segments {
		if i > 0 {
			a.printf("\n")
		}
		a.printf("network %s: %d entries, %s\n", g.ID, len(g.Plan), differs(len(g.Missing), len(g.Surplus)))
		for _, e := range g.Plan {
			mark := " "
			if slices.Contains(g.Missing, e) {
				mark = "+"
			}
			a.printf("  %s %s\n", mark, e)
		}
		for _, e := range g.Surplus {
			a.printf("  - %s\n", e)
		}
	}
}
