package occi

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/reservoir-cloud/reservoir/image"
	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/internal/identity"
	"github.com/reservoir-cloud/reservoir/vee"
	"github.com/reservoir-cloud/reservoir/vmi"
)

// fakeVMI is a VEE Manager whose VEEs do at once what they are told. Methods that OCCI has
// no use for are not there.
type fakeVMI struct {
	vmi.Service
	order []vee.ID
	vees  map[vee.ID]*vmi.VEE
	full  bool     // refuses to submit
	nets  []string // customers that have a network
}

func (f *fakeVMI) InitializeVEEs(ctx context.Context, in vmi.Initialize) (out vmi.Initialized, err error) {
	for _, i := range in.VEEs {
		d := i.Descriptor
		d.Customer = identity.From(ctx).Customer
		for n := range d.NICs {
			d.NICs[n].MAC, d.NICs[n].Address, d.NICs[n].Gateway = "52:54:00:00:00:01", fmt.Sprintf("10.80.128.%d/16", len(f.order)+1), "10.80.0.1"
		}
		for n := range d.Disks {
			d.Disks[n].Size = 2 * vee.GiB
		}
		v := vmi.VEE{ID: vee.ID(fmt.Sprintf("alpha.aaaaaaaaa%c", 'a'+len(f.order))), Descriptor: d, State: vee.Defined, Target: vee.Defined, Phase: vee.PhaseStopped}
		f.order = append(f.order, v.ID)
		f.vees[v.ID] = &v
		out.VEEs = append(out.VEEs, v)
	}
	return out, nil
}

func (f *fakeVMI) ListNetworks(ctx context.Context, _ string) ([]vmi.Network, error) {
	list := []vmi.Network{{Name: "site", Public: true}}
	for _, customer := range f.nets {
		if identity.From(ctx).Sees(customer) {
			list = append(list, vmi.Network{Name: "back", GroupID: "s-" + customer, Customer: customer, VNI: 7, Subnets: []netip.Prefix{netip.MustParsePrefix("10.128.0.0/24")}})
		}
	}
	return list, nil
}

func (f *fakeVMI) see(ctx context.Context, id vee.ID) (*vmi.VEE, error) {
	v := f.vees[id]
	if v == nil {
		return nil, fault.New(fault.NotFound, "VEE %s is not known", id)
	}
	if !identity.From(ctx).Sees(v.Descriptor.Customer) {
		return nil, fault.New(fault.Denied, "VEE %s belongs to another customer", id)
	}
	return v, nil
}

func (f *fakeVMI) SubmitVEEs(ctx context.Context, ids []vee.ID) (outs []vmi.Outcome, err error) {
	for _, id := range ids {
		v, err := f.see(ctx, id)
		if err == nil && f.full {
			err = fault.New(fault.NoResources, "no host has room")
		}
		if err == nil {
			v.Submitted, v.State, v.Target, v.Phase = true, vee.Active, vee.Active, vee.PhaseRunning
		}
		outs = append(outs, outcome(id, err))
	}
	return outs, nil
}

func outcome(id vee.ID, err error) vmi.Outcome {
	if err == nil {
		return vmi.Outcome{ID: id, OK: true}
	}
	return vmi.Outcome{ID: id, Code: string(fault.From(err).Code), Detail: err.Error()}
}

var phases = map[vee.State]vee.Phase{vee.Active: vee.PhaseRunning, vee.Defined: vee.PhaseStopped, vee.Paused: vee.PhaseHold, vee.Suspended: vee.PhaseSuspended, vee.Destroyed: vee.PhaseDone}

func (f *fakeVMI) UpdateState(ctx context.Context, u vmi.UpdateState) (outs []vmi.Outcome, err error) {
	for _, id := range u.IDs {
		v, err := f.see(ctx, id)
		if err == nil {
			var to vee.State
			if to, err = v.State.After(u.Action); err == nil {
				v.State, v.Target, v.Phase = to, to, phases[to]
			} else {
				err = fault.New(fault.WrongState, "VEE %s: %w", id, err)
			}
		}
		outs = append(outs, outcome(id, err))
	}
	return outs, nil
}

func (f *fakeVMI) UpdateVEEs(ctx context.Context, us []vmi.VEEUpdate) (outs []vmi.Outcome, err error) {
	for _, u := range us {
		v, err := f.see(ctx, u.ID)
		if err == nil {
			d := &v.Descriptor
			if u.VCPUs != nil {
				d.VCPUs = *u.VCPUs
			}
			if u.Memory != nil {
				d.Memory = *u.Memory
			}
			if u.CPU != nil {
				d.CPU = *u.CPU
			}
			if u.Tags != nil {
				d.Tags = *u.Tags
			}
			for i := range d.Disks {
				if size, ok := u.Disks[d.Disks[i].Name]; ok && size < d.Disks[i].Size {
					err = fault.New(fault.Malformed, "disk %s: it can only grow", d.Disks[i].Name)
				} else if ok {
					d.Disks[i].Size = size
				}
			}
		}
		outs = append(outs, outcome(u.ID, err))
	}
	return outs, nil
}

func (f *fakeVMI) GetVEE(ctx context.Context, id vee.ID) (vmi.VEE, error) {
	v, err := f.see(ctx, id)
	if err != nil {
		return vmi.VEE{}, err
	}
	return *v, nil
}

func (f *fakeVMI) ListVEEs(ctx context.Context, _ vmi.Filter) (list []vmi.VEE, err error) {
	for _, id := range f.order {
		if v, err := f.see(ctx, id); err == nil {
			list = append(list, *v)
		}
	}
	return list, nil
}

type fakeImages []image.Info

func (f fakeImages) List(context.Context) ([]image.Info, error) { return f, nil }

var someImages = fakeImages{
	{Name: "appliance", Tag: "latest", Digest: "sha256:" + strings.Repeat("a", 64), Arch: "amd64", MinMemory: 64 * vee.MiB},
	{Name: "team/debian", Tag: "13", Digest: "sha256:" + strings.Repeat("b", 64), Arch: "amd64", MinMemory: vee.GiB},
	{Digest: "sha256:" + strings.Repeat("c", 64), Arch: "arm64"},
	{Name: "broken", Tag: "latest", Digest: "sha256:" + strings.Repeat("d", 64), Problem: "damaged"},
}

// fakeTags keeps tags in memory.
type fakeTags map[string]Tag

func (f fakeTags) Values(_ context.Context, prefix string) (ts []Tag, err error) {
	for _, key := range slices.Sorted(maps.Keys(f)) {
		if strings.HasPrefix(key, prefix) {
			ts = append(ts, f[key])
		}
	}
	return ts, nil
}

func (f fakeTags) Create(_ context.Context, key string, t Tag) (uint64, error) {
	if _, there := f[key]; there {
		return 0, fault.New(fault.Exists, "tag %s exists", key)
	}
	f[key] = t
	return 1, nil
}

func (f fakeTags) Delete(_ context.Context, key string, _ uint64) error {
	if _, there := f[key]; !there {
		return fault.New(fault.NotFound, "tag %s does not exist", key)
	}
	delete(f, key)
	return nil
}

// bench is a handler over a fake, asked as one caller.
type bench struct {
	t      *testing.T
	vmi    *fakeVMI
	caller identity.Caller
	h      http.Handler
}

func newBench(t *testing.T) *bench {
	f := &fakeVMI{vees: map[vee.ID]*vmi.VEE{}}
	return &bench{t: t, vmi: f, caller: identity.Caller{ID: "acme", Role: identity.Provider, Customer: "acme"},
		h: Handler(Config{Service: f, Images: someImages, Tags: fakeTags{}, Version: "1.0", Log: slog.New(slog.DiscardHandler),
			Networks: []Network{{"site", netip.MustParsePrefix("10.80.0.0/16"), netip.MustParseAddr("10.80.0.1")}}})}
}

// ask makes a request; headers come as "Name: value".
func (b *bench) ask(method, path, body string, headers ...string) *http.Response {
	b.t.Helper()
	r := httptest.NewRequest(method, "https://site.example:8443"+path, strings.NewReader(body))
	r = r.WithContext(identity.With(r.Context(), b.caller))
	for _, h := range headers {
		name, value, _ := strings.Cut(h, ": ")
		r.Header.Add(name, value)
	}
	w := httptest.NewRecorder()
	b.h.ServeHTTP(w, r)
	return w.Result()
}

// want asks, checks the status and returns the body.
func (b *bench) want(status int, method, path, body string, headers ...string) string {
	b.t.Helper()
	resp := b.ask(method, path, body, headers...)
	text, _ := io.ReadAll(resp.Body)
	if resp.StatusCode != status {
		b.t.Fatalf("%s %s: %d, want %d: %s", method, path, resp.StatusCode, status, text)
	}
	return strings.ReplaceAll(string(text), "\r\n", "\n")
}

const (
	asText  = "Content-Type: text/plain"
	asJSON  = "Content-Type: application/occi+json"
	inJSON  = "Accept: application/occi+json"
	inList  = "Accept: text/uri-list"
	inOCCI  = "Accept: text/occi"
	compute = `Category: compute; scheme="http://schemas.ogf.org/occi/infrastructure#"; class="kind"` + "\n"
	onDisk  = `Category: appliance; scheme="https://github.com/reservoir-cloud/reservoir/occi/os_tpl#"; class="mixin"` + "\n"
)

const onDisk2 = `Category: team.debian_13; scheme="https://github.com/reservoir-cloud/reservoir/occi/os_tpl#"; class="mixin"` + "\n"

func actionText(term string, attributes ...string) string {
	s := `Category: ` + term + `; scheme="http://schemas.ogf.org/occi/infrastructure/compute/action#"; class="action"` + "\n"
	for _, a := range attributes {
		s += "X-OCCI-Attribute: " + a + "\n"
	}
	return s
}

// make a compute of the appliance and return its path.
func (b *bench) make(more string) string {
	b.t.Helper()
	resp := b.ask("POST", Base+"/compute/", compute+onDisk+more, asText)
	if resp.StatusCode != http.StatusCreated {
		text, _ := io.ReadAll(resp.Body)
		b.t.Fatalf("create: %d %s", resp.StatusCode, text)
	}
	return strings.TrimPrefix(resp.Header.Get("Location"), "https://site.example:8443")
}
