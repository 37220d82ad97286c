package sm

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/internal/identity"
	"github.com/reservoir-cloud/reservoir/smi"
	"github.com/reservoir-cloud/reservoir/vee"
	"github.com/reservoir-cloud/reservoir/vmi"
)

// deploy for customer acme, which must be taken.
func (b *bench) deploy(d smi.Deploy) smi.Service {
	b.t.Helper()
	s, err := b.m.Deploy(b.acme(), d)
	if err != nil {
		b.t.Fatal(err)
	}
	return s
}

func (b *bench) scale(name string, n int) {
	b.t.Helper()
	if _, err := b.m.Scale(b.acme(), "", name, "web", n); err != nil {
		b.t.Fatal(err)
	}
}

// vanish deletes a service and waits until nothing is left of it.
func (b *bench) vanish(name string) {
	b.t.Helper()
	id := b.get(name).ID
	ctx, cancel := context.WithTimeout(b.acme(), 30*time.Second)
	defer cancel()
	changes, err := b.m.Watch(ctx, "", name)
	if err != nil {
		b.t.Fatal(err)
	}
	if err := b.m.Delete(b.acme(), "", name); err != nil {
		b.t.Fatal(err)
	}
	for s := range changes {
		if gone(s) {
			b.nothingLeft(id)
			return
		}
	}
	b.t.Fatalf("service %s was never gone", name)
}

func (b *bench) nothingLeft(id string) {
	b.t.Helper()
	for _, v := range b.group(id) {
		b.t.Errorf("VEE %s (%s) of a deleted service is %s", v.ID, v.Descriptor.Name, v.State)
	}
	if points, _ := b.vmi.ListAccessPoints(b.t.Context(), id); len(points) > 0 {
		b.t.Errorf("access points of a deleted service: %v", points)
	}
	if revisions, err := b.m.revisions.List(b.t.Context(), id+"/"); err != nil || len(revisions) > 0 {
		b.t.Errorf("manifests of a deleted service: %d, %v", len(revisions), err)
	}
}

// group are the VEEs of a service that are not destroyed, by name.
func (b *bench) group(id string) map[string]vmi.VEE {
	list := map[string]vmi.VEE{}
	b.vmi.with(func() {
		for _, v := range b.vmi.vees {
			if v.Descriptor.GroupID == id && v.State != vee.Destroyed {
				list[v.Descriptor.Name+" "+string(v.ID)] = v
			}
		}
	})
	return list
}

func TestLife(t *testing.T) {
	b := newBench(t, 1)
	made := b.deploy(smi.Deploy{Manifest: yaml("shop", "web:1", 2)})
	if made.Name != "shop" || made.Customer != "acme" || made.Revision != 1 || !strings.HasPrefix(made.ID, "alpha.s-") {
		t.Errorf("deployed: %+v", made)
	}
	s := b.ready("shop")
	if len(s.Components) != 2 || s.Components[1].Ready != 2 || s.Components[1].Order != 2 || len(s.URLs) != 1 || s.URLs[0].URL != "http://192.0.2.1:20000" || s.URLs[0].Backends != 2 {
		t.Errorf("ready: %+v", s)
	}
	for _, v := range b.group(s.ID) {
		d := v.Descriptor
		if want := vee.FQN("alpha", "acme", "shop", d.Tags[0], 1); d.Name == "web-1" && d.FQNPrefix != want {
			t.Errorf("FQN prefix of %s: %s, want %s", d.Name, d.FQNPrefix, want)
		}
		if d.Disks[0].Size != vee.GiB || !strings.HasPrefix(d.Disks[0].Image, "sha256:1") || d.Customer != "acme" {
			t.Errorf("descriptor of %s: %+v", d.Name, d)
		}
		if d.Name == "web-1" && (len(d.NICs) != 2 || d.NICs[0].Network != "site" || d.NICs[1].Network != "back" || d.Naming.Domain != "shop.alpha.internal") {
			t.Errorf("%s answers on a port and has NICs %+v", d.Name, d.NICs)
		}
	}
	if n := b.m.ServiceName(s.ID); n != "shop" {
		t.Errorf("service of group %s: %s", s.ID, n)
	}
	b.scale("shop", 4)
	if s = b.ready("shop"); s.Components[1].Ready != 4 {
		t.Errorf("scaled up: %+v", s.Components[1])
	}
	b.scale("shop", 1)
	if s = b.ready("shop"); s.Components[1].Ready != 1 || len(b.group(s.ID)) != 2 {
		t.Errorf("scaled down: %+v", s.Components[1])
	}
	db := s.Components[0].Replicas[0].VEE
	b.deploy(smi.Deploy{Manifest: yaml("shop", "web:2", 1), Replace: true})
	s = b.ready("shop")
	if web := s.Components[1].Replicas; s.Revision != 2 || s.Components[0].Replicas[0].VEE != db || len(web) != 1 || web[0].Revision != 2 {
		t.Errorf("redeployed: %+v", s)
	}
	text, err := b.m.Manifest(b.acme(), "", "shop")
	if err != nil || text != yaml("shop", "web:2", 1) {
		t.Errorf("manifest: %v\n%s", err, text)
	}
	b.vanish("shop")
	for _, want := range []string{"Deployed", "Waiting", "ReplicaReady", "Ready", "Scaled", "Redeployed", "Deleting", "Deleted"} {
		if !slices.Contains(b.reasons("shop"), want) {
			t.Errorf("no event %s among %v", want, b.reasons("shop"))
		}
	}
	again := b.deploy(smi.Deploy{Manifest: yaml("shop", "web:1", 1)})
	if again.ID == made.ID {
		t.Error("an identifier was used again")
	}
}

func TestScaledSizeSurvivesRedeployment(t *testing.T) {
	b := newBench(t, 1)
	b.deploy(smi.Deploy{Manifest: yaml("shop", "web:1", 1)})
	b.scale("shop", 3)
	b.deploy(smi.Deploy{Manifest: yaml("shop", "web:2", 1), Replace: true})
	if s := b.ready("shop"); s.Components[1].Desired != 3 {
		t.Errorf("same initial size: %d replicas, want 3", s.Components[1].Desired)
	}
	b.deploy(smi.Deploy{Manifest: yaml("shop", "web:2", 2), Replace: true})
	if s := b.ready("shop"); s.Components[1].Desired != 2 {
		t.Errorf("another initial size: %d replicas, want 2", s.Components[1].Desired)
	}
}

func TestRefusals(t *testing.T) {
	b := newBench(t, 1)
	b.deploy(smi.Deploy{Manifest: yaml("shop", "web:1", 1)})
	digest := strings.Repeat("a", 64)
	withDigest := yaml("other", "disk", 1) + "files:\n  - {id: disk, href: web.qcow2, digest: \"sha256:" + digest + "\"}\n"
	deploy := func(d smi.Deploy) func(context.Context) error {
		return func(ctx context.Context) error { _, err := b.m.Deploy(ctx, d); return err }
	}
	scale := func(name, component string, n int) func(context.Context) error {
		return func(ctx context.Context) error { _, err := b.m.Scale(ctx, "", name, component, n); return err }
	}
	acme := b.acme()
	rival := as(t.Context(), identity.Provider, "rival")
	for name, c := range map[string]struct {
		ctx  context.Context
		do   func(context.Context) error
		code fault.Code
		says string
	}{
		"malformed":         {acme, deploy(smi.Deploy{Manifest: "service: x\ncomponents:\n  - name: web\n    memory: lots\n", File: "x.yaml"}), fault.Malformed, "x.yaml:4"},
		"exists":            {acme, deploy(smi.Deploy{Manifest: yaml("shop", "web:1", 1)}), fault.Exists, "exists already"},
		"no such image":     {acme, deploy(smi.Deploy{Manifest: yaml("other", "missing", 1)}), fault.NotFound, "image missing is not in the registry"},
		"other digest":      {acme, deploy(smi.Deploy{Manifest: withDigest}), fault.DigestMismatch, "file disk"},
		"bad name":          {acme, deploy(smi.Deploy{Manifest: yaml("other", "web:1", 1), Name: "No Name"}), fault.Malformed, `"No Name"`},
		"other customer":    {acme, deploy(smi.Deploy{Manifest: yaml("other", "web:1", 1), Customer: "rival"}), fault.Denied, "rival"},
		"looks on":          {as(t.Context(), identity.Auditor, ""), deploy(smi.Deploy{Manifest: yaml("other", "web:1", 1)}), fault.Denied, "auditor"},
		"nobody":            {t.Context(), deploy(smi.Deploy{Manifest: yaml("other", "web:1", 1)}), fault.Denied, ""},
		"too many":          {acme, scale("shop", "web", 7), fault.Malformed, "allows 1 to 6"},
		"too few":           {acme, scale("shop", "web", 0), fault.Malformed, "allows 1 to 6"},
		"unknown component": {acme, scale("shop", "cache", 1), fault.NotFound, "it has db, web"},
		"unknown service":   {acme, scale("ship", "web", 1), fault.NotFound, "service ship"},
		"not one's own":     {rival, func(ctx context.Context) error { _, err := b.m.Get(ctx, "acme", "shop"); return err }, fault.NotFound, "shop"},
		"not to delete":     {rival, func(ctx context.Context) error { return b.m.Delete(ctx, "acme", "shop") }, fault.NotFound, "shop"},
		"not to watch":      {rival, func(ctx context.Context) error { _, err := b.m.Watch(ctx, "acme", ""); return err }, fault.Denied, "acme"},
		"not its events": {rival, func(ctx context.Context) error {
			_, err := b.m.Events(ctx, smi.EventFilter{Customer: "acme"})
			return err
		}, fault.Denied, "acme"},
	} {
		err := c.do(c.ctx)
		if !fault.Has(err, c.code) || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v (%+v): want %s with %q", name, err, err, c.code, c.says)
		}
	}
	if list, err := b.m.List(rival, ""); err != nil || len(list) != 0 {
		t.Errorf("a rival's list: %v, %v", list, err)
	}
	for _, role := range []identity.Role{identity.Operator, identity.Auditor} {
		if list, err := b.m.List(as(t.Context(), role, ""), ""); err != nil || len(list) != 1 {
			t.Errorf("list for %s: %v, %v", role, list, err)
		}
	}
}

func TestDeployTwiceWithOneKey(t *testing.T) {
	b := newBench(t, 1)
	first := b.deploy(smi.Deploy{Manifest: yaml("shop", "web:1", 1), IdempotencyKey: "k"})
	if again := b.deploy(smi.Deploy{Manifest: yaml("shop", "web:1", 1), IdempotencyKey: "k"}); again.ID != first.ID || again.Revision != 1 {
		t.Errorf("repeated: %+v", again)
	}
}

func TestNoRoom(t *testing.T) {
	b := newBench(t, 1)
	b.vmi.with(func() { b.vmi.room = 2 })
	_, err := b.m.Deploy(b.acme(), smi.Deploy{Manifest: yaml("shop", "web:1", 2)})
	if !fault.Has(err, fault.NoResources) || !strings.Contains(err.Error(), "web-2: h1: memory is taken") {
		t.Errorf("deployed without room: %v", err)
	}
	if list, err := b.m.List(b.acme(), ""); err != nil || len(list) != 0 {
		t.Errorf("something was recorded: %v, %v", list, err)
	}
	b.deploy(smi.Deploy{Manifest: yaml("shop", "web:1", 2), BestEffort: true})
	b.reach("shop", "waiting for room", func(s smi.Service) bool { return s.Components[0].Ready == 1 && s.Components[1].Ready == 1 })
	b.vmi.with(func() { b.vmi.room = 3 })
	b.ready("shop")

	b.deploy(smi.Deploy{Manifest: yaml("small", "web:1", 1), BestEffort: true})
	_, err = b.m.Scale(b.acme(), "", "shop", "web", 3)
	if err != nil {
		t.Errorf("a service that may wait for room cannot be scaled: %v", err)
	}
}

// TestReplacesOneByOne where there is no room for the old and the new.
func TestReplacesOneByOne(t *testing.T) {
	b := newBench(t, 1)
	b.vmi.with(func() { b.vmi.room = 4 })
	b.deploy(smi.Deploy{Manifest: yaml("shop", "web:1", 3)})
	b.ready("shop")
	b.deploy(smi.Deploy{Manifest: yaml("shop", "web:2", 3), Replace: true})
	s := b.ready("shop")
	for _, r := range s.Components[1].Replicas {
		if r.Revision != 2 {
			t.Errorf("replica %d is of revision %d", r.Number, r.Revision)
		}
	}
	if !slices.Contains(b.reasons("shop"), "ReplacingOneByOne") {
		t.Errorf("nobody was told: %v", b.reasons("shop"))
	}
}

func TestLostVEEIsReplaced(t *testing.T) {
	b := newBench(t, 1)
	b.deploy(smi.Deploy{Manifest: yaml("shop", "web:1", 2)})
	s := b.ready("shop")
	lost := s.Components[1].Replicas[0].VEE
	if _, err := b.vmi.UpdateState(t.Context(), vmi.UpdateState{Collection: vmi.Collection{IDs: []vee.ID{lost}}, Action: vee.Destroy}); err != nil {
		t.Fatal(err)
	}
	s = b.reach("shop", "ready again", func(s smi.Service) bool {
		return s.Phase == smi.Ready && s.Components[1].Replicas[0].VEE != lost
	})
	if s.Components[1].Replicas[0].Number != 1 || len(b.group(s.ID)) != 3 {
		t.Errorf("replaced: %+v", s.Components[1])
	}
}

// TestWatch shows a customer's services as they are, then each change, and of a deleted one
// a last word; the newest state of each reaches a slow reader.
func TestWatch(t *testing.T) {
	b := newBench(t, 1)
	b.deploy(smi.Deploy{Manifest: yaml("shop", "web:1", 1)})
	b.ready("shop")
	ctx, cancel := context.WithCancel(b.acme())
	defer cancel()
	mine, err := b.m.Watch(ctx, "", "")
	if err != nil {
		t.Fatal(err)
	}
	rivals, err := b.m.Watch(identity.With(ctx, identity.Caller{Role: identity.Provider, Customer: "rival"}), "", "")
	if err != nil {
		t.Fatal(err)
	}
	if s := <-mine; s.Name != "shop" || s.Phase != smi.Ready {
		t.Errorf("at first: %+v", s)
	}
	b.deploy(smi.Deploy{Manifest: yaml("other", "web:1", 1)})
	b.ready("other")
	b.vanish("shop")
	last := map[string]smi.Service{}
	for s := range mine {
		if last[s.Name] = s; gone(last["shop"]) && last["other"].Phase == smi.Ready {
			break
		}
	}
	select {
	case s := <-rivals:
		t.Errorf("a rival has seen %+v", s)
	default:
	}
	cancel()
	for range mine { // closes with its context
	}
	if _, err := b.m.Watch(b.acme(), "", "shop"); !fault.Has(err, fault.NotFound) {
		t.Errorf("watch of a deleted service: %v", err)
	}
}

// TestDamagedManifestCanBeDeleted says that no service is stuck for a manifest that this
// version cannot read.
func TestDamagedManifestCanBeDeleted(t *testing.T) {
	b := newBench(t, 1)
	s := b.deploy(smi.Deploy{Manifest: yaml("shop", "web:1", 1)})
	b.ready("shop")
	b.stop()
	if _, err := b.m.revisions.Put(t.Context(), revisionKey(s.ID, 1), revision{Text: "service: [", Images: map[string]imageRef{}}); err != nil {
		t.Fatal(err)
	}
	b.start()
	if err := b.m.Delete(b.acme(), "", "shop"); err != nil {
		t.Fatal(err)
	}
	for _, _, err := b.m.find(b.acme(), "", "shop"); !fault.Has(err, fault.NotFound); _, _, err = b.m.find(b.acme(), "", "shop") {
		time.Sleep(time.Millisecond)
	}
	b.nothingLeft(s.ID)
}

func TestPlan(t *testing.T) {
	b := newBench(t, 1)
	show := func(p smi.Plan) string {
		var out strings.Builder
		fmt.Fprintf(&out, "%s feasible=%v %s\n", p.Name, p.Feasible, p.Total.Memory)
		for _, s := range p.Steps {
			fmt.Fprintf(&out, "%d %s %s %s %s\n", s.Order, s.Action, s.Object, s.Where, s.Size)
		}
		return out.String()
	}
	check := func(what string, d smi.Deploy, want string) {
		t.Helper()
		p, err := b.m.Plan(b.acme(), d)
		if got := show(p); err != nil || got != want {
			t.Errorf("%s: %v\n%swant\n%s", what, err, got, want)
		}
	}
	check("new", smi.Deploy{Manifest: yaml("shop", "web:1", 2)}, `shop feasible=true 384MiB
0 create network back  
1 create vee db-1 h1 1 vCPU, 128MiB
2 create access point web:80  
2 create vee web-1 h1 1 vCPU, 128MiB
2 create vee web-2 h1 1 vCPU, 128MiB
`)
	if list, err := b.m.List(b.acme(), ""); err != nil || len(list) != 0 {
		t.Errorf("a plan has left something: %v, %v", list, err)
	}
	b.deploy(smi.Deploy{Manifest: yaml("shop", "web:1", 2)})
	b.ready("shop")
	check("again", smi.Deploy{Manifest: yaml("shop", "web:2", 1)}, `shop feasible=true 256MiB
0 keep network back  
1 keep vee db-1  1 vCPU, 128MiB
2 keep access point web:80  
2 replace vee web-1 h1 1 vCPU, 128MiB
2 remove vee web-2  1 vCPU, 128MiB
`)
	b.vmi.with(func() { b.vmi.room = 3 })
	check("no room", smi.Deploy{Manifest: yaml("other", "web:1", 1)}, `other feasible=false 256MiB
0 create network back  
1 create vee db-1  1 vCPU, 128MiB
2 create access point web:80  
2 create vee web-1  1 vCPU, 128MiB
`)
}

var seeds = flag.Uint64("seeds", 4, "of TestConvergesThroughFaults: so many runs")

// TestConvergesThroughFaults deploys, scales, redeploys and deletes at random while calls
// fail, answers are lost, watches break, VEEs vanish and the manager is killed; in the end
// every service is as desired, and nothing is there that no service owns.
func TestConvergesThroughFaults(t *testing.T) {
	for seed := range *seeds {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			converges(t, seed)
		})
	}
}

func converges(t *testing.T, seed uint64) {
	b := newBench(t, seed)
	rnd := rand.New(rand.NewPCG(seed, 2))
	b.vmi.with(func() { b.vmi.faults, b.vmi.room = true, 16 })
	names := []string{"a", "b", "c"}
	var ids []string
	for range 60 {
		name := names[rnd.IntN(len(names))]
		switch rnd.IntN(8) {
		case 0, 1, 2:
			s, err := b.m.Deploy(b.acme(), smi.Deploy{
				Manifest: yaml(name, fmt.Sprintf("web:%d", 1+rnd.IntN(2)), 1+rnd.IntN(3)), Replace: true, BestEffort: rnd.IntN(2) == 0,
			})
			if err == nil {
				ids = append(ids, s.ID)
			}
		case 3, 4:
			_, _ = b.m.Scale(b.acme(), "", name, "web", 1+rnd.IntN(5))
		case 5:
			_ = b.m.Delete(b.acme(), "", name)
		case 6:
			b.stop()
			b.start()
		case 7:
			b.vmi.with(func() {
				for _, v := range b.vmi.vees {
					if v.State == vee.Active {
						v.Target = vee.Destroyed
						b.vmi.set(v)
						return
					}
				}
			})
		}
		time.Sleep(time.Duration(rnd.IntN(10)) * time.Millisecond)
	}
	b.stop()
	b.vmi.with(func() {
		b.vmi.faults, b.vmi.room = false, 100
		for _, v := range b.vmi.vees { // what is on its way out is gone before the end is looked at
			if v.Target == vee.Destroyed {
				v.State = vee.Destroyed
				b.vmi.set(v)
			}
		}
	})
	b.start()
	b.allAsDesired(names, ids)
}

func (b *bench) allAsDesired(names, ids []string) {
	b.t.Helper()
	alive := map[string]bool{}
	for _, name := range names {
		s, err := b.m.Get(b.acme(), "", name)
		for err == nil && s.Phase == smi.Deleting {
			time.Sleep(time.Millisecond)
			s, err = b.m.Get(b.acme(), "", name)
		}
		if fault.Has(err, fault.NotFound) {
			continue
		}
		if err != nil {
			b.t.Fatal(err)
		}
		s = b.ready(name)
		alive[s.ID] = true
		count := map[string]int{}
		for _, v := range b.group(s.ID) {
			count[v.Descriptor.Tags[0]]++
		}
		for _, c := range s.Components {
			if count[c.Name] != c.Desired {
				b.t.Errorf("service %s has %d VEEs of %s, wants %d: %v", name, count[c.Name], c.Name, c.Desired, b.group(s.ID))
			}
		}
	}
	for _, id := range ids {
		if !alive[id] {
			b.nothingLeft(id)
		}
	}
	b.vmi.with(func() {
		for _, v := range b.vmi.vees {
			if v.State != vee.Destroyed && !alive[v.Descriptor.GroupID] {
				b.t.Errorf("VEE %s of %s has no service", v.ID, v.Descriptor.GroupID)
			}
		}
		for _, what := range b.vmi.broken {
			b.t.Error(what)
		}
	})
}
