package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/reservoir-cloud/reservoir/image"
	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/internal/httpapi"
	"github.com/reservoir-cloud/reservoir/internal/identity"
	"github.com/reservoir-cloud/reservoir/manifest"
	"github.com/reservoir-cloud/reservoir/site/admin"
	"github.com/reservoir-cloud/reservoir/smi"
	"github.com/reservoir-cloud/reservoir/van/border"
	"github.com/reservoir-cloud/reservoir/vee"
	"github.com/reservoir-cloud/reservoir/vhi"
	"github.com/reservoir-cloud/reservoir/vhi/guest"
	"github.com/reservoir-cloud/reservoir/vmi"
)

const fakeToken = "rsv_operator.secret"

// fake is a site as a client sees it: real TLS, HTTP faces and registry, over a few
// services and VEEs in memory. Services become ready when somebody watches them.
type fake struct {
	url, ca string

	mu       sync.Mutex
	services map[string]smi.Service
	texts    map[string]string
	vees     map[vee.ID]vmi.VEE
	hosts    []vmi.Host
	tokens   []identity.Token
	images   *image.Store
	born     time.Time
	version  uint64
	quotas   map[string]vmi.Quota

	snapshots []vee.Snapshot
}

func startFake(e *testscript.Env) (*fake, error) {
	dir := filepath.Join(e.WorkDir, ".site")
	ca, err := identity.NewCA("alpha", time.Now, nil)
	if err != nil {
		return nil, err
	}
	keys, err := identity.OpenKeypair(filepath.Join(dir, "keys"), time.Now)
	if err != nil {
		return nil, err
	}
	csr, err := keys.CSR()
	if err != nil {
		return nil, err
	}
	id, err := identity.SiteID("alpha")
	if err != nil {
		return nil, err
	}
	chain, err := ca.Issue(csr, id)
	if err != nil {
		return nil, err
	}
	if err := keys.Install(chain, ca.Bundle()); err != nil {
		return nil, err
	}
	f := &fake{ca: string(ca.Bundle()), born: time.Now(), services: map[string]smi.Service{}, texts: map[string]string{}, vees: map[vee.ID]vmi.VEE{}}
	if f.images, err = image.OpenStore(filepath.Join(dir, "images"), image.Options{}); err != nil {
		return nil, err
	}
	f.furnish()
	s := httpapi.NewServer("fake", "0", nil)
	smi.Register(s, fakeSM{f})
	smi.RegisterTrade(s, &fakeTrade{f: f})
	smi.RegisterElasticity(s, &fakeRules{})
	vmi.Register(s, fakeVEEM{f})
	admin.Register(s, fakeAdmin{f})
	admin.RegisterFederation(s, fakeFederation{f})
	admin.RegisterCooperation(s, fakeCooperation{f})
	admin.RegisterSettlements(s, fakeFederation{f})
	registerFakeMonitoring(s, f)
	border.RegisterKeeper(s, fakeKeeper{f})
	s.Handle("/v2/", f.images.Handler(image.Allow))
	ts := httptest.NewUnstartedServer(s.Handler(func(r *http.Request) (identity.Caller, error) {
		if r.Header.Get("Authorization") != "Bearer "+fakeToken {
			return identity.Caller{}, fault.New(fault.TokenInvalid, "the API token is not valid at this site")
		}
		return identity.Caller{ID: "operator", Role: identity.Operator}, nil
	}))
	ts.TLS = keys.ServerTLS()
	ts.StartTLS()
	f.url = ts.URL
	e.Defer(func() {
		ts.CloseClientConnections()
		ts.Close()
		if err := f.images.Close(); err != nil {
			e.T().Log(err)
		}
	})
	return f, nil
}

// ago is a time that a table shows as a round age.
func (f *fake) ago(d time.Duration) time.Time { return f.born.Add(-d) }

func (f *fake) furnish() {
	qemu := []vhi.DriverInfo{{Name: "qemu", Version: "7.2.15", Accelerator: "tcg", Why: "kvm did not boot within 3s"}}
	room := vee.Resources{MilliCPU: 8000, Memory: 4 * vee.GiB, Disk: 40 * vee.GiB}
	for i, h := range []vmi.Host{{Name: "h1", Alive: true, VEEs: 1, Used: vee.Resources{MilliCPU: 1000, Memory: 128 * vee.MiB}}, {Name: "h2", Alive: true, State: vmi.HostDraining}, {Name: "h3"}} {
		if h.State == "" {
			h.State = vmi.HostOn
		}
		h.Capacity, h.Drivers, h.CPUs, h.DiskFree, h.Version = room, qemu, 2, 30*vee.GiB, "v0.1"
		h.Address, h.Joined, h.LastSeen = fmt.Sprintf("10.80.0.%d:8441", 11+i), f.ago(3*time.Hour), f.ago(-time.Hour)
		h.HA = vmi.HostHA{Witness: i < 2}
		f.hosts = append(f.hosts, h)
	}
	f.hosts[0].HA.Degraded = "no hardware watchdog resets it when agent and guard stand still together"
	f.hosts[2].HA.Fenced = true
	f.hosts[2].LastSeen = f.ago(5 * time.Minute)
	in := vhi.Partition{ID: "h1#4", Reason: "overloaded", State: "solving", Leader: "h1", Members: []string{"h1", "h2"}, Since: f.ago(5 * time.Minute)}
	f.hosts[0].Peering = &vhi.Peering{Known: 1, Doubted: []string{"h3"}, Load: 0.97, Trouble: "overloaded", In: &in, Past: []vhi.PastPartition{
		{ID: "h1#3", Reason: "overloaded", Members: []string{"h1", "h2"}, Began: f.ago(10 * time.Minute), Ended: f.ago(10*time.Minute - 6*time.Second)}}}
	f.hosts[1].Peering = &vhi.Peering{Known: 1, Load: 0.2, In: &in, Past: []vhi.PastPartition{
		{ID: "h2#1", Reason: "draining", Members: []string{"h2", "h1"}, Began: f.ago(time.Hour), Ended: f.ago(time.Hour - time.Second), Helpless: true}}}
	for i, v := range []vmi.VEE{
		{ID: "alpha.aaaaaaaaaa", State: vee.Active, Phase: vee.PhaseRunning, GuestReady: true, GuestSeen: true, Host: "h1"},
		{ID: "alpha.bbbbbbbbbb", State: vee.Initial, Target: vee.Active, Phase: vee.PhasePending, Error: "no host has 128MiB of memory free"},
	} {
		v.Descriptor = vee.Descriptor{Name: fmt.Sprintf("db-%d", i+1), Customer: "acme", GroupID: "s-db", VCPUs: 1, Memory: 128 * vee.MiB,
			Disks: []vee.Disk{{Name: "root", Source: "appliance", Image: "sha256:" + strings.Repeat("ab", 32), Size: vee.GiB}},
			NICs:  []vee.NIC{{Network: "public", Address: fmt.Sprintf("10.80.128.%d/16", i+2), MAC: "52:54:00:00:00:01"}}, Tags: []string{"db"}}
		if v.Target == "" {
			v.Target = v.State
		}
		v.Version, v.Site, v.Created, v.Changed, v.DiskUsed = 1, "alpha", f.ago(5*time.Minute), f.ago(4*time.Minute), 12*vee.MiB
		f.vees[v.ID] = v
	}
	f.tokens = []identity.Token{{Name: "operator", Role: identity.Operator, Created: f.ago(3 * time.Hour), Expires: f.born.Add(90*24*time.Hour + time.Minute)}}
}

type fakeSM struct{ *fake }

func (f fakeSM) key(customer, name string) string {
	if customer == "" {
		customer = "acme"
	}
	return customer + "/" + name
}

func notThere(what, name string) error {
	return fault.New(fault.NotFound, "there is no %s %q", what, name).Try("reservoir %s list", what)
}

func (f fakeSM) Plan(_ context.Context, d smi.Deploy) (smi.Plan, error) {
	m, err := manifest.Parse(d.File, []byte(d.Manifest))
	if err != nil {
		return smi.Plan{}, fault.New(fault.Malformed, "%w", err)
	}
	p := smi.Plan{Name: m.Name, Feasible: true, NotInEffect: m.NotInEffect()}
	for _, c := range m.Components {
		for i := range c.Replicas.Initial {
			s := smi.PlanStep{Action: "create", Object: fmt.Sprintf("vee %s-%d", c.Name, i+1), Component: c.Name, Order: 1, Where: "h1", Why: "least used", Size: "1 vCPU, " + c.Memory.Size.String()}
			if i >= 4 {
				s.Where, s.Why, p.Feasible = "", "no host has that much memory free", false
			}
			p.Steps = append(p.Steps, s)
			p.Total = p.Total.Plus(vee.Resources{MilliCPU: 1000, Memory: c.Memory.Size})
		}
	}
	return p, nil
}

func (f fakeSM) Deploy(_ context.Context, d smi.Deploy) (smi.Service, error) {
	m, err := manifest.Parse(d.File, []byte(d.Manifest))
	if err != nil {
		return smi.Service{}, fault.New(fault.Malformed, "%w", err)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	k := f.key(d.Customer, m.Name)
	old, exists := f.services[k]
	if exists && !d.Replace {
		return smi.Service{}, fault.New(fault.Exists, "deploy service %s: there is one of that name", m.Name).Try("reservoir service redeploy FILE, or: reservoir service delete %s", m.Name)
	}
	f.version++
	s := smi.Service{Name: m.Name, Customer: "acme", ID: "s-1", Version: f.version, Revision: old.Revision + 1, Phase: smi.Deploying, Created: f.ago(5 * time.Minute), Changed: f.ago(0), NotInEffect: m.NotInEffect()}
	for _, c := range m.Components {
		s.Components = append(s.Components, fakeComponent(c.Name, c.Replicas.Initial, c.Replicas.Max))
	}
	f.services[k], f.texts[k] = s, d.Manifest
	return s, nil
}

func fakeComponent(name string, n, most int) smi.Component {
	c := smi.Component{Name: name, Min: 1, Max: most, Desired: n}
	for i := range n {
		c.Replicas = append(c.Replicas, smi.Replica{Number: i + 1, State: vee.Initial, Phase: vee.PhasePending, Revision: 1})
	}
	return c
}

// step brings a service one step nearer to what is desired.
func step(s smi.Service) smi.Service {
	s.Components = slices.Clone(s.Components)
	all := true
	for i := range s.Components {
		c := &s.Components[i]
		c.Replicas, c.Ready = slices.Clone(c.Replicas), 0
		for j := range c.Replicas {
			r := &c.Replicas[j]
			r.Host, r.Address = fmt.Sprintf("h%d", j%3+1), fmt.Sprintf("10.80.128.%d/16", j+2)
			r.VEE = vee.ID(fmt.Sprintf("alpha.aaaaaaaaa%c", 'a'+j))
			switch r.Phase {
			case vee.PhasePending:
				r.Phase, r.State, r.Progress = vee.PhaseProlog, vee.Defined, &vee.Progress{Done: 10 << 20, Total: 40 << 20, Unit: "bytes", What: "fetch appliance"}
			case vee.PhaseProlog:
				r.Phase, r.State, r.Progress = vee.PhaseBoot, vee.Active, nil
			default:
				r.Phase, r.Ready = vee.PhaseRunning, true
				c.Ready++
			}
			all = all && r.Ready
		}
	}
	if all {
		s.Phase, s.URLs = smi.Ready, []smi.URL{{Component: s.Components[0].Name, URL: "http://10.80.0.1:20000", Backends: s.Components[0].Ready}}
	}
	return s
}

func (f fakeSM) Scale(_ context.Context, customer, name, component string, n int) (smi.Service, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	s, ok := f.services[f.key(customer, name)]
	if !ok {
		return s, notThere("service", name)
	}
	i := slices.IndexFunc(s.Components, func(c smi.Component) bool { return c.Name == component })
	if i < 0 {
		return s, notThere("component", component)
	}
	if n > s.Components[i].Max {
		return s, fault.New(fault.Malformed, "scale component %s to %d: the manifest allows 1 to %d", component, n, s.Components[i].Max).Try("reservoir service scale %s %s %d", name, component, s.Components[i].Max)
	}
	f.version++
	s.Version, s.Phase, s.Components = f.version, smi.Deploying, slices.Clone(s.Components)
	s.Components[i] = fakeComponent(component, n, s.Components[i].Max)
	f.services[f.key(customer, name)] = s
	return s, nil
}

func (f fakeSM) Get(_ context.Context, customer, name string) (smi.Service, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	s, ok := f.services[f.key(customer, name)]
	if !ok {
		return s, notThere("service", name)
	}
	return s, nil
}

func (f fakeSM) List(context.Context, string) ([]smi.Service, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return sorted(f.services), nil
}

func (f fakeSM) Manifest(_ context.Context, customer, name string) (string, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	t, ok := f.texts[f.key(customer, name)]
	if !ok {
		return "", notThere("service", name)
	}
	return t, nil
}

func (f fakeSM) Delete(_ context.Context, customer, name string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	s, ok := f.services[f.key(customer, name)]
	if !ok {
		return notThere("service", name)
	}
	s.Phase = smi.Deleting
	f.services[f.key(customer, name)] = s
	return nil
}

func (f fakeSM) Sleep(_ context.Context, customer, name string) (smi.Service, error) {
	return f.as(customer, name, smi.Sleeping)
}

func (f fakeSM) Wake(_ context.Context, customer, name string) (smi.Service, error) {
	return f.as(customer, name, smi.Deploying)
}

// as another phase.
func (f fakeSM) as(customer, name string, phase smi.Phase) (smi.Service, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	s, ok := f.services[f.key(customer, name)]
	if !ok {
		return s, notThere("service", name)
	}
	f.version++
	s.Version, s.Phase = f.version, phase
	f.services[f.key(customer, name)] = s
	return s, nil
}

// Watch a service until it is ready or deleted, a step at each message; then the channel
// closes, as it may.
func (f fakeSM) Watch(ctx context.Context, customer, name string) (<-chan smi.Service, error) {
	k := f.key(customer, name)
	if _, err := f.Get(ctx, customer, name); err != nil {
		return nil, err
	}
	ch := make(chan smi.Service)
	go func() {
		defer close(ch)
		for {
			f.mu.Lock()
			s := f.services[k]
			f.mu.Unlock()
			select {
			case ch <- s:
			case <-ctx.Done():
				return
			}
			if s.Phase == smi.Ready || deleted(s) {
				return
			}
			f.mu.Lock()
			if s.Phase == smi.Deleting {
				s.Components = nil
				delete(f.services, k)
			} else {
				s = step(s)
				f.services[k] = s
			}
			f.mu.Unlock()
			if deleted(s) {
				select {
				case ch <- s:
				case <-ctx.Done():
				}
				return
			}
		}
	}()
	return ch, nil
}

func (f fakeSM) Events(context.Context, smi.EventFilter) ([]smi.Event, error) {
	at := time.Date(2030, 5, 6, 7, 8, 9, 0, time.UTC)
	return []smi.Event{
		{Seq: 7, At: at, Type: "normal", Reason: "Placed", Object: "vee/alpha.aaaaaaaaaa", Customer: "acme", Service: "db", Message: "on host h1: least used"},
		{Seq: 9, At: at.Add(time.Second), Type: "warning", Reason: "GuestExited", Object: "vee/alpha.aaaaaaaaaa", Customer: "acme", Service: "db", Message: "killed by signal 9\n(SIGKILL)"},
	}, nil
}

func (f fakeSM) WatchEvents(ctx context.Context, q smi.EventFilter) (<-chan smi.Event, error) {
	list, err := f.Events(ctx, q)
	ch := make(chan smi.Event, len(list))
	for _, e := range list {
		if e.Seq > q.Since {
			ch <- e
		}
	}
	if q.Since > 0 {
		return nil, fault.New(fault.Internal, "the fake has no more events")
	}
	close(ch)
	return ch, err
}

type fakeVEEM struct{ *fake }

func (f fakeVEEM) unused() error { return errors.New("the command line does not call this") }

func (f fakeVEEM) InitializeVEEs(context.Context, vmi.Initialize) (vmi.Initialized, error) {
	return vmi.Initialized{}, f.unused()
}
func (f fakeVEEM) Plan(context.Context, vmi.Initialize) ([]vmi.Placement, error) {
	return nil, f.unused()
}
func (f fakeVEEM) SubmitVEEs(context.Context, []vee.ID) ([]vmi.Outcome, error) {
	return nil, f.unused()
}
func (f fakeVEEM) PutAccessPoint(context.Context, vmi.AccessPoint) (vmi.AccessPoint, error) {
	return vmi.AccessPoint{}, f.unused()
}
func (f fakeVEEM) DeleteAccessPoint(context.Context, string, string) error { return f.unused() }
func (f fakeVEEM) ListAccessPoints(context.Context, string) ([]vmi.AccessPoint, error) {
	return []vmi.AccessPoint{
		{Name: "web-80", Port: 80, Scheme: "http", Address: "10.80.0.1:20000", Health: "/health", Backends: 1, Serving: []vmi.Backend{
			{VEE: "alpha.aaaaaaaaaa", Address: "10.80.128.2:80", Healthy: true, Connections: 3},
			{VEE: "alpha.bbbbbbbbbb", Address: "10.80.128.3:80", Healthy: true, Draining: true, Connections: 1},
			{VEE: "alpha.cccccccccc", Address: "10.80.128.4:80", Why: "answers /health with 500"},
		}, Elsewhere: []vmi.PartnerPoint{
			{Site: "beta", Address: "10.81.0.1:20000", Backends: 1, Serving: []vmi.Backend{{VEE: "alpha.dddddddddd", Address: "10.81.128.2:80", Healthy: true}}},
			{Site: "gamma", Why: "agreement gamma.a1 lets site alpha have no access points here"},
		}},
		{Name: "web-53-udp", Port: 53, Scheme: "udp", Address: "10.80.0.1:20000"},
	}, nil
}

func (f fakeVEEM) UpdateState(_ context.Context, r vmi.UpdateState) ([]vmi.Outcome, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	var out []vmi.Outcome
	for _, id := range r.IDs {
		v, ok := f.vees[id]
		to, err := v.State.After(r.Action)
		switch {
		case !ok:
			out = append(out, vmi.Outcome{ID: id, Detail: "there is no such VEE", Code: string(fault.NotFound)})
		case err != nil:
			out = append(out, vmi.Outcome{ID: id, Detail: err.Error(), Code: string(fault.WrongState)})
		default:
			v.Target = to
			f.vees[id] = v
			out = append(out, vmi.Outcome{ID: id, OK: true, Detail: "on its way to " + string(to)})
		}
	}
	return out, nil
}

func (f fakeVEEM) GetVEE(_ context.Context, id vee.ID) (vmi.VEE, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	v, ok := f.vees[id]
	if !ok {
		return v, notThere("vee", string(id))
	}
	return v, nil
}

func (f fakeVEEM) ListVEEs(_ context.Context, q vmi.Filter) ([]vmi.VEE, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	var list []vmi.VEE
	for _, id := range []vee.ID{"alpha.aaaaaaaaaa", "alpha.bbbbbbbbbb"} {
		if v := f.vees[id]; (q.Host == "" || v.Host == q.Host) && (q.State == "" || v.State == q.State) {
			list = append(list, v)
		}
	}
	return list, nil
}

// WatchVEEs shows each VEE as it is, then as it becomes.
func (f fakeVEEM) WatchVEEs(ctx context.Context, q vmi.Filter) (<-chan vmi.Change, error) {
	list, err := f.ListVEEs(ctx, q)
	ch := make(chan vmi.Change, 2*len(list)+1)
	for _, v := range list {
		ch <- vmi.Change{VEE: &v}
	}
	ch <- vmi.Change{Synced: true}
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, v := range list {
		if v.State != v.Target && v.Error == "" {
			v.State, v.Phase = v.Target, map[vee.State]vee.Phase{vee.Paused: vee.PhaseHold, vee.Active: vee.PhaseRunning, vee.Suspended: vee.PhaseSuspended}[v.Target]
			f.vees[v.ID] = v
			ch <- vmi.Change{VEE: &v}
		}
	}
	close(ch)
	return ch, err
}

// Connect answers as an SSH server would, and repeats what it is told.
func (f fakeVEEM) Connect(context.Context, vee.ID, uint16) (io.ReadWriteCloser, error) {
	r, w := io.Pipe()
	return &echoConsole{bytes.NewReader([]byte("SSH-2.0-fake\r\n")), r, w}, nil
}

// Capture is a pcap file without a frame.
func (f fakeVEEM) Capture(context.Context, vee.ID, int) (io.ReadWriteCloser, error) {
	return capture{bytes.NewReader([]byte("pcap"))}, nil
}

type capture struct{ io.Reader }

func (capture) Write(b []byte) (int, error) { return len(b), nil }
func (capture) Close() error                { return nil }

// Console greets, and repeats what is typed.
func (f fakeVEEM) Console(context.Context, vee.ID) (io.ReadWriteCloser, error) {
	r, w := io.Pipe()
	return &echoConsole{bytes.NewReader([]byte("appliance login: ")), r, w}, nil
}

type echoConsole struct {
	greeting *bytes.Reader
	r        *io.PipeReader
	w        *io.PipeWriter
}

func (c *echoConsole) Read(p []byte) (int, error) {
	if c.greeting.Len() > 0 {
		return c.greeting.Read(p)
	}
	return c.r.Read(p)
}
func (c *echoConsole) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	if bytes.Contains(p, []byte("exit")) {
		err = errors.Join(err, c.w.Close())
	}
	return n, err
}
func (c *echoConsole) Close() error { return errors.Join(c.r.Close(), c.w.Close()) }

func (f fakeVEEM) Tell(_ context.Context, _ vee.ID, c guest.Command) (guest.Reply, error) {
	if c.Type == "burn-cpu" && c.Amount == 1 && c.Seconds == 30 {
		return guest.Reply{OK: true}, nil
	}
	return guest.Reply{Error: "not one of my commands"}, nil
}

func (f fakeVEEM) ListHosts(context.Context) ([]vmi.Host, error) { return f.hosts, nil }

func (f fakeVEEM) GetHost(_ context.Context, name string) (vmi.Host, error) {
	for _, h := range f.hosts {
		if h.Name == name {
			return h, nil
		}
	}
	return vmi.Host{}, notThere("host", name)
}

func (f fakeVEEM) SetHostState(ctx context.Context, name string, s vmi.HostState) (vmi.Host, error) {
	h, err := f.GetHost(ctx, name)
	h.State = s
	return h, err
}

func (f fakeVEEM) RemoveHost(_ context.Context, name string) error {
	if name == "h1" {
		return fault.New(fault.InUse, "remove host h1: it runs 1 VEE").Try("reservoir host drain h1")
	}
	return nil
}

type fakeAdmin struct{ *fake }

func (f fakeAdmin) Site(context.Context) (admin.Site, error) {
	return admin.Site{Name: "alpha", Version: "v0.1", Started: f.ago(3 * time.Hour), Address: "10.80.0.1:8440", Generation: 1, Placement: "balance",
		VEENetwork: "10.80.128.0/17", HAScale: 0.1, Members: 3, Leader: "m1", Hosts: 3, VEEs: 2, Services: 1, Images: 1,
		Store: admin.Store{Kind: "embedded", Size: 2 * vee.MiB, Quota: 2 * vee.GiB, Alarm: "full"}}, nil
}

func (f fakeAdmin) CreateToken(_ context.Context, r admin.NewToken) (admin.CreatedToken, error) {
	return admin.CreatedToken{Token: identity.Token{Name: r.Name, Role: r.Role, Customer: r.Customer, Expires: time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)}, Secret: "rsv_ci.s3cret"}, nil
}
func (f fakeAdmin) ListTokens(context.Context) ([]identity.Token, error) { return f.tokens, nil }
func (f fakeAdmin) RevokeToken(_ context.Context, name string) error     { return notThere("token", name) }
func (f fakeAdmin) InviteHost(_ context.Context, r admin.NewInvite) (admin.Invite, error) {
	return admin.Invite{Token: "FINGERPRINT.SECRET", Host: r.Host, Address: "10.80.0.1:8440"}, nil
}
func (f fakeAdmin) Members(context.Context) ([]admin.Member, error) {
	return []admin.Member{
		{Name: "m1", Address: "10.80.0.1:8440", Own: "10.80.0.1:8442", Store: "10.80.0.1:8443", Leads: true, Healthy: true, Version: "v0.1", Started: f.ago(3 * time.Hour), Size: 2 * vee.MiB},
		{Name: "m2", Address: "10.80.0.2:8440", Own: "10.80.0.2:8442", Store: "10.80.0.2:8443", Problem: "cannot reach https://10.80.0.2:8442"},
		{Name: "m3", Address: "10.80.0.3:8440", Own: "10.80.0.3:8442", Store: "10.80.0.3:8443", Healthy: true, Version: "v0.1", Started: f.ago(2 * time.Hour), Size: 2 * vee.MiB, Missing: 1},
	}, nil
}
func (f fakeAdmin) InviteMember(_ context.Context, r admin.NewMember) (admin.Invite, error) {
	return admin.Invite{Token: "FINGERPRINT.SECRET", Host: r.Name, Address: "10.80.0.1:8440"}, nil
}
func (f fakeAdmin) RemoveMember(_ context.Context, name string) error {
	if name != "m2" {
		return notThere("member", name)
	}
	return nil
}
func (f fakeAdmin) Compact(context.Context) (admin.Compacted, error) {
	return admin.Compacted{Before: 2 * vee.GiB, After: 3 * vee.MiB, Alarm: "full"}, nil
}
