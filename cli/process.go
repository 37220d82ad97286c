package cli

import (
	"cmp"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/reservoir-cloud/reservoir/agent"
	"github.com/reservoir-cloud/reservoir/agent/guard"
	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/internal/footprint"
	"github.com/reservoir-cloud/reservoir/ownership"
	"github.com/reservoir-cloud/reservoir/site"
	"github.com/reservoir-cloud/reservoir/vee"
)

// siteProcess makes `reservoir site --dir …` be the site.
func (a *app) siteProcess(cmd *cobra.Command) {
	cmd.Use = "site [--dir DIRECTORY …]"
	cmd.Long = `Speak to a site as its operator; or, with --dir, be its control plane: Service Manager,
VEE Manager, images and store in one process. On its first start it writes admin-token
and ca.pem into its directory, for: reservoir context add.`
	cmd.Example = `  reservoir site --dir /var/lib/reservoir --name alpha --advertise 10.0.0.5:8440 --vee-network 10.0.128.0/17 \
      --vee-prefix-len 16 --vee-gateway 10.0.0.1`
	c := site.Config{Version: version}
	var network, gateway, access, ports, pool, vans, link string
	fl := cmd.Flags()
	control := controlFlags(fl, &c)
	fl.StringVar(&c.Dir, "dir", "", "`DIRECTORY` of everything that the site keeps")
	fl.StringVar(&c.Name, "name", "", "of the site: a DNS label")
	fl.StringVar(&c.Listen, "listen", "0.0.0.0:8440", "address and port to listen on")
	fl.StringVar(&c.Advertise, "advertise", "", "address and port that hosts and people reach it by (as --listen)")
	fl.StringVar(&network, "vee-network", "", "addresses that VEEs get, 10.0.128.0/17")
	fl.IntVar(&c.VEEBits, "vee-prefix-len", 0, "prefix length that VEEs configure (as --vee-network)")
	fl.StringVar(&gateway, "vee-gateway", "", "the VEEs' way out (none)")
	fl.StringVar(&access, "access-address", "", "address of access points (as --advertise)")
	fl.StringVar(&ports, "access-points", "20000-29999", "ports of access points on that address")
	fl.StringVar(&vans, "van-subnets", "", "addresses `CIDR` that private networks get their subnets from (10.128.0.0/9)")
	fl.StringVar(&pool, "access-pool", "", "addresses `CIDR` that services get for their own access points")
	fl.DurationVar(&c.AccountingInterval, "accounting-interval", 5*time.Minute, "how often VEEs tell what they have used")
	fl.StringArrayVar(&c.AccountingListeners, "accounting-listener", nil, "`URL` that accounting information may be sent to (repeatable)")
	fl.DurationVar(&c.Overbooking.History, "overbook-history", 0, "count of a VEE's vCPUs what it needed in this time (all; hosts bound it: --cpu-overbook)")
	fl.Float64Var(&c.Overbooking.Headroom, "overbook-headroom", 0.2, "part of a host's CPUs that stays free of that")
	fl.StringVar(&c.Placement, "placement", "", "of new VEEs: balance or pack (balance; pack with --rebalance consolidate or cost)")
	fl.StringVar((*string)(&c.Rebalance.Policy), "rebalance", "", "keep moving VEEs that run by this `POLICY`: balance, consolidate or cost (none)")
	fl.DurationVar(&c.Rebalance.Every, "rebalance-every", 0, "time between two plans (5m)")
	fl.Float64Var(&c.Rebalance.PerMove, "rebalance-per-move", 0, "what a single move must gain of the policy's score (0.01)")
	fl.Float64Var(&c.Rebalance.Gain, "rebalance-gain", 0, "part of the score that a plan must gain to be worth it (0.05)")
	fl.StringVar(&link, "migration-link", "", "`SIZE` that each host's link sends migrations in a second: plans share it out among them (unknown: two at a host)")
	fl.Float64Var(&c.Relief.Overload, "overload", 0.9, "`PART` of a host's CPUs above which other hosts relieve it of VEEs by themselves; 0: never")
	fl.Float64Var(&c.Relief.Calm, "overload-calm", 0.75, "part that it is brought to")
	fl.DurationVar(&c.Relief.Lasts, "overload-for", 3*time.Minute, "how long it must last")
	fl.Float64Var(&c.Relief.Underload, "underload", 0, "part below which a host hands its VEEs to others; 0: never")
	fl.StringVar(&c.Federation.Listen, "federation-listen", "", "address and port that the site's proxy brings partners to (the host of --listen, a free port)")
	fl.StringVar((*string)(&c.Federation.Partnering), "partnering", "", "policy by which VEEs are placed over sites: overflow, cost, location, spread, energy, heat; never: not at partners (overflow)")
	var partnerings []string
	fl.StringSliceVar(&partnerings, "partnering-allow", nil, "policies that manifests may choose instead (all)")
	l := &c.Federation.Location
	fl.StringVar(&l.Country, "country", "", "where the machines are, ISO 3166: SE")
	fl.StringVar(&l.Region, "region", "", "part of it, as you name it")
	fl.StringVar(&l.Jurisdiction, "jurisdiction", "", "whose law holds, as you name it")
	fl.Float64Var(&l.Latitude, "latitude", 0, "degrees, north positive")
	fl.Float64Var(&l.Longitude, "longitude", 0, "degrees, east positive")
	fl.StringVar(&c.Federation.Energy.Condition, "power", "", "how it is: normal, scarce or failing (normal)")
	fl.Float64Var(&c.Federation.Energy.GramsKWh, "co2", 0, "grams for each kWh")
	fl.Float64Var(&c.Federation.HeatWanted, "heat-wanted", 0, "part of the waste heat that somebody wants, 0 to 1")
	var metricsDisk string
	fl.DurationVar(&c.Monitoring.Retention, "metrics-retention", 7*24*time.Hour, "measurements are kept this long")
	fl.StringVar(&metricsDisk, "metrics-disk", "4GiB", "`SIZE` that measurements may have on disk")
	fl.IntVar(&c.Monitoring.Series, "metrics-series", 250_000, "series in memory, about 3 KB each")
	fl.IntVar(&c.Monitoring.ServiceSeries, "metrics-service-series", 50_000, "series in memory of one service")
	fl.Float64Var(&c.Monitoring.ServiceRate, "metrics-service-rate", 10_000, "samples a second that one service may send")
	fl.Float64Var(&c.Monitoring.Rate, "metrics-rate", 50_000, "samples a second of all hosts above which they are slowed down")
	fl.StringVar(&c.Monitoring.WriteURL, "metrics-write-url", "", "send measurements there too: `URL` of a remote-write receiver")
	fl.StringVar(&c.Monitoring.QueryURL, "metrics-query-url", "", "query there instead: `URL` of a Prometheus-compatible server")
	fl.Float64Var(&c.HAScale, "ha-scale", 1, "scale every timing by this")
	fl.StringVar(&c.FenceDir, "fence", "", "`DIR` of programs that switch hosts off that do not answer (none)")
	onProcess(cmd, func(cmd *cobra.Command) (err error) {
		for _, p := range partnerings {
			c.Federation.Partnerings = append(c.Federation.Partnerings, vee.Partnering(p))
		}
		if c.Monitoring.Disk, err = parse(vee.ParseBytes, "--metrics-disk", metricsDisk); err != nil {
			return err
		}
		if c.Rebalance.Link, err = parse(parseBandwidth, "--migration-link", link); err != nil {
			return err
		}
		if c.VEENetwork, err = parse(netip.ParsePrefix, "--vee-network", network); err != nil {
			return err
		}
		if c.VEEGateway, err = parse(netip.ParseAddr, "--vee-gateway", gateway); err != nil {
			return err
		}
		if c.AccessAddress, err = parse(netip.ParseAddr, "--access-address", access); err != nil {
			return err
		}
		if c.VANs, err = parse(netip.ParsePrefix, "--van-subnets", vans); err != nil {
			return err
		}
		if c.AccessPool, err = parse(netip.ParsePrefix, "--access-pool", pool); err != nil {
			return err
		}
		if c.AccessFirst, c.AccessLast, err = portRange(ports); err != nil {
			return err
		}
		if err := control(); err != nil {
			return err
		}
		c.Log = a.log()
		trim(c.Log)
		return site.Run(cmd.Context(), c)
	})
}

// hostProcess makes `reservoir host --dir …` be the host's agent.
func (a *app) hostProcess(cmd *cobra.Command) {
	cmd.Use = "host [--dir DIRECTORY …]"
	cmd.Long = `Look after the hosts of a site; or, with --dir, be the agent of this one. It joins with a
one-time token (on the site: reservoir host invite) and needs none when it starts again.`
	cmd.Example = `  reservoir host --dir /var/lib/reservoir --name h1 --site https://10.0.0.5:8440 --advertise 10.0.0.11:8441 --join TOKEN`
	c := agent.Config{Version: version}
	var joinFile, memory, disk, underlay string
	fl := cmd.Flags()
	fl.StringVar(&c.Dir, "dir", "", "`DIRECTORY` of everything that the agent keeps")
	fl.StringVar(&c.Name, "name", "", "of the host: a DNS label (the machine's name)")
	fl.StringSliceVar(&c.Sites, "site", nil, "where the site answers, https://HOST:PORT; of several members, all or some")
	fl.StringVar(&c.JoinToken, "join", "", "one-time `TOKEN`")
	fl.StringVar(&joinFile, "join-file", "", "`FILE` with the token: keeps it out of the list of processes")
	fl.StringVar(&c.Listen, "listen", "0.0.0.0:8441", "address and port to listen on")
	fl.StringVar(&c.Advertise, "advertise", "", "address and port that the site reaches it by (as --listen)")
	fl.StringVar(&c.Bridge, "bridge", "rsv0", "bridge of public networks; made if it is not there")
	fl.StringVar(&underlay, "underlay", "", "`ADDRESS` that the traffic of private networks goes from and to (as --advertise)")
	fl.StringVar(&c.Driver, "driver", "qemu", "qemu, libvirt, libvirt:URI (of a libvirtd on this host) or sim")
	fl.Float64Var(&c.Offer.CPUOverbook, "cpu-overbook", 0, "virtual to physical CPUs (4)")
	fl.StringVar(&memory, "memory", "", "memory for VEEs (all but a reserve)")
	fl.StringVar(&disk, "disk", "", "disk for VEEs (all but a reserve)")
	fl.Float64Var(&c.Price, "price", 0, "what it costs per hour while it has VEEs; for the site's policy cost")
	fl.Float64Var(&c.Overload, "overload", 0, "`PART` of its CPUs above which other hosts relieve it (as the site says; -1: never)")
	fl.StringVar(&c.PowerOff, "power-off", "", "`COMMAND` that switches the machine off, for: reservoir host off (only the agent ends)")
	fl.Float64Var(&c.HAScale, "ha-scale", 1, "scale every timing by this; as the site's")
	onProcess(cmd, func(cmd *cobra.Command) (err error) {
		if c.Offer.Memory, err = parse(vee.ParseBytes, "--memory", memory); err != nil {
			return err
		}
		if c.Underlay, err = parse(netip.ParseAddr, "--underlay", underlay); err != nil {
			return err
		}
		if c.Offer.Disk, err = parse(vee.ParseBytes, "--disk", disk); err != nil {
			return err
		}
		if joinFile != "" {
			token, err := os.ReadFile(joinFile)
			if err != nil {
				return fileFault(err)
			}
			c.JoinToken = strings.TrimSpace(string(token))
		}
		if c.Name == "" {
			name, err := os.Hostname()
			if err != nil {
				return fmt.Errorf("this machine's name: %w", err)
			}
			c.Name, _, _ = strings.Cut(name, ".")
		}
		for i, u := range c.Sites {
			c.Sites[i] = hostPort(u)
		}
		c.Log = a.log()
		return agent.Run(cmd.Context(), c)
	})
}

// guardCmd is the killer beside a host's agent.
func (a *app) guardCmd() *cobra.Command {
	cmd := &cobra.Command{Use: "guard", Short: "Run beside a host's agent, and end its guests when it may not vouch for them",
		Long: `Be the guard of this host: a process beside the agent, with the same directory, that ends
the guests of VEEs that may be restarted elsewhere when nobody has vouched for the host for
too long. Without it the host runs no such VEE. It is started before the agent and stays when
that is restarted (docs/operations.md).`,
		Example: `  reservoir guard --dir /var/lib/reservoir
  reservoir guard --dir /var/lib/reservoir --watchdog /dev/watchdog`}
	var dir, watchdog string
	var scale float64
	fl := cmd.Flags()
	fl.StringVar(&dir, "dir", "", "`DIRECTORY` of the host's agent")
	fl.StringVar(&watchdog, "watchdog", "", "`DEVICE` that resets this machine when the guard does not run any more (none)")
	fl.Float64Var(&scale, "ha-scale", 1, "scale every timing by this; as the site's")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		t := ownership.DefaultTimings().Scale(scale)
		if err := t.Check(); err != nil {
			return fault.New(fault.Malformed, "%w", err).Try("reservoir guard --ha-scale 1")
		}
		if dir == "" {
			return fault.New(fault.Malformed, "a guard needs the directory of the host's agent").Try("reservoir guard --dir /var/lib/reservoir")
		}
		if err := os.MkdirAll(dir, 0o711); err != nil {
			return fileFault(err)
		}
		log := a.log()
		trim(log)
		return guard.Run(cmd.Context(), guard.Config{Dir: dir, Lease: t.Lease, Watchdog: watchdog, WatchdogTime: t.Watchdog - t.Lease, Log: log})
	}
	return cmd
}

// onProcess lets a noun be a process when it is called with flags and no verb.
func onProcess(cmd *cobra.Command, run func(*cobra.Command) error) {
	alone := cmd.RunE
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if len(args) > 0 || cmd.Flags().NFlag() == 0 {
			return alone(cmd, args)
		}
		return run(cmd)
	}
}

// log of a process: lines of key=value on stderr, where systemd or dev keep it.
func (a *app) log() *slog.Logger { return slog.New(slog.NewTextHandler(a.err, nil)) }

// parse a flag's value, the zero value of an empty one.
func parse[T any](f func(string) (T, error), flag, s string) (T, error) {
	var zero T
	if s == "" {
		return zero, nil
	}
	v, err := f(s)
	if err != nil {
		return zero, fault.New(fault.Malformed, "%s %q: %w", flag, s, err).Try("see what it takes: --help")
	}
	return v, nil
}

func portRange(s string) (first, last uint16, err error) {
	from, to, _ := strings.Cut(s, "-")
	f, err1 := strconv.ParseUint(from, 10, 16)
	l, err2 := strconv.ParseUint(cmp.Or(to, from), 10, 16)
	if err1 != nil || err2 != nil || f == 0 || l < f {
		return 0, 0, fault.New(fault.Malformed, "--access-points %q: want FIRST-LAST", s)
	}
	return uint16(f), uint16(l), nil
}

// trim what a process that will run for long has read of its binary to start.
func trim(log *slog.Logger) {
	if err := footprint.Trim(); err != nil {
		log.Debug("this process stays larger than it need be", "err", err)
	}
}
