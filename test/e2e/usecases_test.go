package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/internal/httpapi"
	"github.com/reservoir-cloud/reservoir/internal/identity"
	"github.com/reservoir-cloud/reservoir/vee"
	"github.com/reservoir-cloud/reservoir/vmi"
)

// The nine use cases of the VMI white paper (seed 5, section 2.2) on real guests. Each is one
// play below, under the white paper's own words. The Service Manager of the story is this
// test: it holds a provider's token and a VMI client, and nothing else of the site. What the
// provider itself does, it does with the command line.
//
// They are one story and follow one another. Alone (make usecase N=2.2.6), a use case is
// preceded by those that lead to the scene that it begins in.
func TestUseCases(t *testing.T) {
	s := newShop(t)
	for _, u := range useCases {
		t.Run(u.section+" "+u.title, func(t *testing.T) {
			s.t = t
			s.lead(u.begins)
			u.play(s)
			s.scene = u.ends
		})
		if t.Failed() {
			return
		}
	}
}

// scene of the story: what of the service there is.
type scene string

const (
	nothing    scene = "nothing"
	simple     scene = "one VEE"
	split      scene = "a front end and a database"
	replicated scene = "a front end, a database and its replica"
	shut       scene = "all shut down, disks kept"
	single     scene = "the replica is stopped"
)

var useCases = []struct {
	section, title string
	begins         scene
	play           func(*shop)
	ends           scene
}{
	{"2.2.1", "Simple Service Deployment", nothing, (*shop).simpleDeployment, simple},
	{"2.2.2", "Service Redeployment", simple, (*shop).redeployment, split},
	{"2.2.3", "Service Component Replication", split, (*shop).replication, replicated},
	{"2.2.4", "Service Shutdown", replicated, (*shop).shutdown, shut},
	{"2.2.5", "Service Restart", shut, (*shop).restart, replicated},
	{"2.2.6", "Update VEEs", replicated, (*shop).updateVEEs, replicated},
	{"2.2.7", "Stopping a Replicated VEE", replicated, (*shop).stopReplica, single},
	{"2.2.8", "Restarting a Stopped VEE", single, (*shop).restartReplica, replicated},
	{"2.2.9", "Removing All Data Related to a Service", replicated, (*shop).removeAll, nothing},
}

// lead the story to a scene: on from where it is, or from the beginning.
func (s *shop) lead(to scene) {
	s.t.Helper()
	if s.scene == to {
		return
	}
	if s.scene != nothing {
		s.t.Fatalf("the story is at %q and should be at %q", s.scene, to)
	}
	path := map[scene][]func(*shop){simple: {(*shop).simpleDeployment}}
	path[split] = append(slices.Clip(path[simple]), (*shop).redeployment)
	path[replicated] = append(slices.Clip(path[split]), (*shop).replication)
	path[shut] = append(slices.Clip(path[replicated]), (*shop).shutdown)
	path[single] = append(slices.Clip(path[replicated]), (*shop).stopReplica)
	for _, play := range path[to] {
		play(s)
	}
	s.scene = to
}

// 2.2.1: a single service component should be started (very "small" service, runs in a
// single VEE).
func (s *shop) simpleDeployment() {
	s.push("shop:1", s.disk("everything in one place"))
	s.front = s.initialize(nil, s.component("shop", "shop:1", "release 1"))[0]
	s.submit(s.front)
	s.expose("shop")
	s.answers("release 1")
}

// 2.2.2: two new images that they want to replace the first one with (now, the database is to
// run in a separate service component). This should be performed with as little downtime as
// possible, and once the service goes offline, it MUST be replaced within few seconds. The
// database server is accessible only from the other service component, not the Internet:
// it gets no access point. (Not shown here: that the wire between VEEs keeps others out.)
func (s *shop) redeployment() {
	s.push("web:2", s.disk("pages"))
	s.push("db:2", s.disk(rows))
	visitors := s.visit()
	old := s.front
	made := s.initialize(nil, s.component("web", "web:2", "release 2"), s.component("db", "db:2", "rows"))
	s.front, s.db = made[0], made[1]
	s.submit(s.db, s.front)
	s.expose("web")
	s.order(vee.Shutdown, true, old)
	s.order(vee.Destroy, false, old)
	s.answers("release 2")
	missed, gap := visitors()
	s.t.Logf("of the visitors %d were not answered; the longest time without an answer was %v", missed, gap.Round(time.Millisecond))
	if missed > 1 { // the one who was being answered when the old guest stopped
		s.t.Errorf("%d visitors were not answered", missed)
	}
	points, err := s.vmi.ListAccessPoints(s.t.Context(), shopGroup)
	if err != nil || len(points) != 1 || points[0].Tag != "web" {
		s.t.Errorf("access points %+v, %v; want one, to the front end", points, err)
	}
}

// 2.2.3: the database service component must be replicated (load balancing). The replica must
// run the same master image as the original but may not run on the same physical host.
func (s *shop) replication() {
	apart := []vmi.PlacementRule{{Kind: "anti-affinity", Scope: "host", Tag: "db"}}
	image := s.get(s.db).Descriptor.Disks[0].Source
	s.replica = s.initialize(apart, s.component("db-2", image, "rows"))[0]
	s.submit(s.replica)
	a, b := s.get(s.db), s.get(s.replica)
	if a.Descriptor.Disks[0].Image != b.Descriptor.Disks[0].Image {
		s.t.Errorf("images %s and %s, want the same", a.Descriptor.Disks[0].Image, b.Descriptor.Disks[0].Image)
	}
	s.apart()
}

// 2.2.4: the service has been compromised, and the customer has required it to be shutdown
// immediately. The (virtual) hard drive contents must be saved so it can be sent to the
// owners for analysis and damage estimation.
func (s *shop) shutdown() {
	all := []vee.ID{s.front, s.db, s.replica}
	s.order(vee.Shutdown, true, all...)
	for _, id := range all {
		if v := s.get(id); v.State != vee.Defined || pidOf(s.t, id) != 0 {
			s.t.Errorf("VEE %s is %s, process %d; want it DEFINED without a process", v.Descriptor.Name, v.State, pidOf(s.t, id))
		}
	}
	if ask(s.url) != "" {
		s.t.Error("somebody still answers")
	}
	for _, id := range []vee.ID{s.db, s.replica} {
		s.evidence = filepath.Join(s.dir, string(id)+".qcow2")
		printed := s.reservoir("vee", "disk", "export", string(id), "root", "-o", s.evidence)
		if !strings.HasPrefix(printed, "sha256:") {
			s.t.Errorf("printed %q, want the file's digest", printed)
		}
		if got := s.content(s.evidence); !bytes.HasPrefix(got, []byte(rows)) {
			s.t.Errorf("the hard drive of %s begins with %q, want %q", id, got[:32], rows)
		}
	}
}

// 2.2.5: the contents of the hard drive have been analyzed, the security holes have been
// patched, and a new version shall be uploaded and then be put into use immediately.
func (s *shop) restart() {
	patched := filepath.Join(s.dir, "patched.raw")
	content := s.content(s.evidence)
	copy(content[len(rows):], patch)
	if err := os.WriteFile(patched, content, 0o600); err != nil {
		s.t.Fatal(err)
	}
	s.push("db:3", patched)
	s.order(vee.Destroy, false, s.front, s.db, s.replica) // their names are free again
	apart := []vmi.PlacementRule{{Kind: "anti-affinity", Scope: "host", Tag: "db"}}
	made := s.initialize(apart, s.component("web", "web:2", "release 3"), s.component("db", "db:3", "rows"), s.component("db-2", "db:3", "rows"))
	s.front, s.db, s.replica = made[0], made[1], made[2]
	s.submit(made...)
	s.answers("release 3")
	s.apart()
	for _, id := range []vee.ID{s.db, s.replica} {
		if got := s.get(id).Descriptor.Disks[0].Image; got != s.digest["db:3"] {
			s.t.Errorf("VEE %s is made of %s, want %s, which was uploaded", id, got, s.digest["db:3"])
		}
	}
	now := filepath.Join(s.dir, "now.qcow2") // what the database runs on
	s.reservoir("vee", "snapshot", "create", string(s.db), "now")
	s.reservoir("vee", "disk", "export", string(s.db), "root", "--snapshot", "now", "-o", now)
	s.reservoir("vee", "snapshot", "delete", string(s.db), "now")
	if got := s.content(now); !bytes.HasPrefix(got, []byte(rows+patch)) {
		s.t.Errorf("its hard drive begins with %q, want %q", got[:64], rows+patch)
	}
}

// 2.2.6: the allotted RAM for the database service component VEEs is too low. The maximum
// size must be set to 8GB for both the original and the replica (preferably) without
// restarting the component and disrupting the service. (Here 256 MiB instead of 128: both
// fit beside each other on a small machine.)
func (s *shop) updateVEEs() {
	size := 256 * vee.MiB
	var updates []vmi.VEEUpdate
	before := map[vee.ID]int{}
	for _, id := range []vee.ID{s.db, s.replica} {
		s.kpi(id, "memory_total_bytes", func(n float64) bool { return n > 0 && n < 128<<20 })
		before[id] = pidOf(s.t, id)
		updates = append(updates, vmi.VEEUpdate{ID: id, Memory: &size})
	}
	outs, err := s.vmi.UpdateVEEs(s.t.Context(), updates)
	s.all(outs, err)
	for _, o := range outs {
		if o.Detail != "applied live" {
			s.t.Errorf("VEE %s: %s, want it applied live", o.ID, o.Detail)
		}
	}
	for id, pid := range before {
		s.kpi(id, "memory_total_bytes", func(n float64) bool { return n > 192<<20 })
		if now := s.get(id); pidOf(s.t, id) != pid || now.Restarts != 0 {
			s.t.Errorf("VEE %s was restarted: process %d before, %d now, %d restarts", id, pid, pidOf(s.t, id), now.Restarts)
		}
	}
	s.answers("")
}

// 2.2.7: due to a drop in demand, the database service component no longer needs an active
// replica. The customers require that it be shut down to minimize costs, but in such a way
// that it can easily be restarted should the need arise.
func (s *shop) stopReplica() {
	held := func() vee.Resources {
		return jsonOf[vmi.Host](s.t, "host", "show", s.get(s.replica).Host).Used
	}
	before := held()
	s.order(vee.Shutdown, false, s.replica)
	if freed := before.Minus(held()); freed.MilliCPU != 1000 || freed.Memory < 128*vee.MiB {
		s.t.Errorf("its host has %d thousandths of a CPU and %s of memory more, want what the replica had", freed.MilliCPU, freed.Memory)
	}
	if v := s.get(s.replica); v.State != vee.Defined || pidOf(s.t, v.ID) != 0 {
		s.t.Errorf("the replica is %s, process %d; want it DEFINED without one", v.State, pidOf(s.t, v.ID))
	}
	disks, err := s.vmi.ListDisks(s.t.Context(), s.replica)
	if err != nil || len(disks) != 1 || disks[0].Name != "root" {
		s.t.Errorf("disks %+v, %v; want its hard drive kept", disks, err)
	}
	s.answers("")
	if got := s.get(s.db).State; got != vee.Active {
		s.t.Errorf("the original is %s", got)
	}
}

// 2.2.8: the need for restarting the service component from the previous section arose. Again,
// it must run on a different physical host than the original.
func (s *shop) restartReplica() {
	s.order(vee.Activate, false, s.replica)
	s.ready(s.replica)
	s.apart()
}

// 2.2.9: the service is no longer required, and the service provider is no longer a customer.
// All data related to the service must be removed to reclaim resources (e.g. storage).
func (s *shop) removeAll() {
	all := []vee.ID{s.front, s.db, s.replica}
	before := s.stored(all)
	if err := s.vmi.DeleteAccessPoint(s.t.Context(), shopGroup, "front"); err != nil {
		s.t.Error(err)
	}
	s.order(vee.Destroy, false, all...)
	freed := vee.Bytes(0)
	for _, id := range all {
		v := s.get(id)
		if freed += v.Freed; v.State != vee.Destroyed || v.Freed == 0 {
			s.t.Errorf("VEE %s is %s, %s reclaimed", v.Descriptor.Name, v.State, v.Freed)
		}
	}
	after := s.stored(all)
	s.t.Logf("on the hosts' disks: %s before, %s after; the site says that %s were reclaimed", before, after, freed)
	if before == 0 || after != 0 {
		s.t.Errorf("%s before and %s after on the hosts' disks, want all of it reclaimed", before, after)
	}
	for name := range s.digest {
		s.reservoir("image", "remove", name)
		delete(s.digest, name)
	}
	if left, err := s.vmi.ListVEEs(s.t.Context(), vmi.Filter{GroupID: shopGroup}); err != nil || len(left) != 0 {
		s.t.Errorf("left: %+v, %v", left, err)
	}
	nothingLeft(s.t)
}

const (
	shopGroup = "shop"
	// rows are what the database's hard drive begins with.
	rows = "customers: 1000, orders: 4711, "
	// patch is what the owners write after them.
	patch = "without the hole"
)

// shop is the service of the story, as its Service Manager knows it.
type shop struct {
	t     *testing.T // of the use case under way
	vmi   vmi.Service
	scene scene
	dir   string

	digest             map[string]string // of the images that were uploaded
	front, db, replica vee.ID
	url                string
	evidence           string // file of a hard drive that was saved
}

func newShop(t *testing.T) *shop {
	t.Helper()
	s := &shop{t: t, scene: nothing, dir: t.TempDir(), digest: map[string]string{}}
	token := jsonOf[struct{ Secret string }](t, "site", "token", "create", "shop", "--role", "provider", "--customer", "acme")
	t.Cleanup(func() { reservoir(t, "site", "token", "revoke", "shop") })
	secret := filepath.Join(s.dir, "token")
	if err := os.WriteFile(secret, []byte(token.Secret), 0o600); err != nil {
		t.Fatal(err)
	}
	ca, err := os.ReadFile(caFile())
	if err != nil {
		t.Fatal(err)
	}
	tls, err := identity.BundleTLS(ca, "alpha", time.Now)
	if err != nil {
		t.Fatal(err)
	}
	hc := &http.Client{Transport: &http.Transport{TLSClientConfig: tls, ForceAttemptHTTP2: true}}
	t.Cleanup(hc.CloseIdleConnections)
	s.vmi = vmi.NewClient(&httpapi.Client{Base: siteURL(t), HTTP: hc, Token: token.Secret})
	reservoir(t, "context", "add", "shop", "--site", "alpha", "--url", siteURL(t), "--ca-file", caFile(), "--token-file", secret)
	t.Cleanup(func() { reservoir(t, "context", "remove", "shop") })
	t.Cleanup(s.clear)
	return s
}

// reservoir is the command line in the provider's hands.
func (s *shop) reservoir(args ...string) string {
	s.t.Helper()
	return reservoir(s.t, append([]string{"--context", "shop"}, args...)...)
}

// caFile has the certificate of the stage's site's authority.
func caFile() string { return filepath.Join(stage.dir, "alpha", "site", "ca.pem") }

// siteURL is where the stage's site answers.
func siteURL(t *testing.T) string {
	t.Helper()
	for _, c := range jsonOf[[]struct{ Name, URL string }](t, "context", "list") {
		if c.Name == "dev-alpha" {
			return c.URL
		}
	}
	t.Fatal("there is no context dev-alpha")
	return ""
}

// clear what a use case that failed has left.
func (s *shop) clear() {
	ctx := context.Background() // the test's has ended
	left, _ := s.vmi.ListVEEs(ctx, vmi.Filter{GroupID: shopGroup})
	for _, v := range left {
		_, _ = s.vmi.UpdateState(ctx, vmi.UpdateState{Collection: vmi.Collection{IDs: []vee.ID{v.ID}}, Action: vee.Destroy, Wait: true})
	}
	_ = s.vmi.DeleteAccessPoint(ctx, shopGroup, "front")
	for name := range s.digest {
		_, _ = cli("image", "remove", "--force", name)
	}
}

// component is the description of a VEE. Its tag is its name without the replica's number.
func (s *shop) component(name, image, release string) vee.Descriptor {
	tag, _, _ := strings.Cut(name, "-")
	return vee.Descriptor{
		Name: name, GroupID: shopGroup, FQNPrefix: "alpha.customers.acme.services.shop.vees." + tag,
		VCPUs: 1, Memory: 128 * vee.MiB, MemoryMax: 256 * vee.MiB,
		Disks: []vee.Disk{{Name: "root", Image: s.digest[image], Source: image}},
		NICs:  []vee.NIC{{Network: "site"}}, Tags: []string{tag}, Ports: []int{80},
		Context: map[string]string{"ovf-env.xml": `<Environment><PropertySection><Property key="reservoir.greeting" value="` + release + `"/></PropertySection></Environment>`},
	}
}

// initialize in two phases: there is a place for all, or an error.
func (s *shop) initialize(rules []vmi.PlacementRule, ds ...vee.Descriptor) (ids []vee.ID) {
	s.t.Helper()
	call := vmi.Initialize{Model: vmi.TwoPhase, Rules: rules}
	for _, d := range ds {
		call.VEEs = append(call.VEEs, vmi.InitializeVEE{Descriptor: d})
	}
	out, err := s.vmi.InitializeVEEs(s.t.Context(), call)
	if err != nil {
		s.t.Fatal(err)
	}
	for _, v := range out.VEEs {
		if v.State != vee.Defined {
			s.t.Errorf("VEE %s is %s, want DEFINED", v.Descriptor.Name, v.State)
		}
		ids = append(ids, v.ID)
	}
	return ids
}

func (s *shop) submit(ids ...vee.ID) {
	s.t.Helper()
	s.all(s.vmi.SubmitVEEs(s.t.Context(), ids))
	for _, id := range ids {
		s.ready(id)
	}
}

func (s *shop) ready(id vee.ID) {
	s.t.Helper()
	eventually(s.t, "VEE "+string(id)+" is ready", func() bool { v := s.get(id); return v.State == vee.Active && v.GuestReady })
}

// order an action, and wait until all have reached their state.
func (s *shop) order(a vee.Action, ordered bool, ids ...vee.ID) {
	s.t.Helper()
	s.all(s.vmi.UpdateState(s.t.Context(), vmi.UpdateState{Collection: vmi.Collection{IDs: ids, Ordered: ordered}, Action: a, Wait: true}))
}

// all outcomes are good ones.
func (s *shop) all(outs []vmi.Outcome, err error) {
	s.t.Helper()
	for _, o := range outs {
		if !o.OK {
			dump(s.t)
			s.t.Fatalf("VEE %s: %s (%s)", o.ID, o.Detail, o.Code)
		}
	}
	if err != nil {
		dump(s.t)
		s.t.Fatal(err)
	}
}

func (s *shop) get(id vee.ID) vmi.VEE {
	s.t.Helper()
	v, err := s.vmi.GetVEE(s.t.Context(), id)
	if err != nil {
		s.t.Fatal(err)
	}
	return v
}

// expose the VEEs with this tag, and no others, to the Internet.
func (s *shop) expose(tag string) {
	s.t.Helper()
	p, err := s.vmi.PutAccessPoint(s.t.Context(), vmi.AccessPoint{Name: "front", GroupID: shopGroup, Tag: tag, Port: 80, Scheme: "http"})
	if err != nil {
		s.t.Fatal(err)
	}
	s.url = "http://" + p.Address + "/"
}

// answers: the service does, with this on its page.
func (s *shop) answers(release string) {
	s.t.Helper()
	eventually(s.t, "an answer of "+release, func() bool { page := ask(s.url); return page != "" && strings.Contains(page, release) })
}

func (s *shop) kpi(id vee.ID, name string, ok func(float64) bool) {
	s.t.Helper()
	at := address(s.get(id))
	eventually(s.t, name+" of VEE "+string(id), func() bool { return ok(kpi(at, name)) })
}

// apart: the database and its replica run, and on two hosts.
func (s *shop) apart() {
	s.t.Helper()
	if a, b := s.get(s.db), s.get(s.replica); a.Host == b.Host || a.State != vee.Active || b.State != vee.Active {
		s.t.Errorf("the original is %s on host %s, the replica %s on %s; want both ACTIVE on two hosts", a.State, a.Host, b.State, b.Host)
	}
}

// visit the service all the time, until the function that it returns is called: that tells
// how many visitors were not answered and the longest time without an answer.
func (s *shop) visit() func() (missed int, gap time.Duration) {
	var stop atomic.Bool
	done := make(chan struct{})
	missed, gap := 0, time.Duration(0)
	url := s.url
	go func() {
		defer close(done)
		for last := time.Now(); !stop.Load(); time.Sleep(20 * time.Millisecond) {
			if ask(url) == "" {
				missed++
				continue
			}
			gap = max(gap, time.Since(last))
			last = time.Now()
		}
	}()
	return func() (int, time.Duration) {
		stop.Store(true)
		<-done
		return missed, gap
	}
}

// disk is a file with a hard drive that begins with text.
func (s *shop) disk(text string) string {
	s.t.Helper()
	content := make([]byte, 16<<20)
	copy(content, text)
	f := filepath.Join(s.dir, "disk.raw")
	if err := os.WriteFile(f, content, 0o600); err != nil {
		s.t.Fatal(err)
	}
	return f
}

// content of a hard drive in a qcow2 file.
func (s *shop) content(file string) []byte {
	s.t.Helper()
	raw := filepath.Join(s.dir, "content.raw")
	if out, err := exec.Command("qemu-img", "convert", "-O", "raw", file, raw).CombinedOutput(); err != nil {
		s.t.Fatalf("%v: %s", err, out)
	}
	b, err := os.ReadFile(raw)
	if err != nil {
		s.t.Fatal(err)
	}
	return b
}

// push an image: a hard drive, booted with the appliance's kernel.
func (s *shop) push(name, disk string) {
	s.t.Helper()
	blobs := applianceBlobs(s.t)
	var config struct{ Cmdline string }
	text, err := os.ReadFile(blobs["config"])
	if err == nil {
		err = json.Unmarshal(text, &config)
	}
	if err != nil {
		s.t.Fatal(err)
	}
	made := jsonOf[struct{ Digest string }](s.t, "--context", "shop", "image", "push", disk, name, "--kernel", blobs["kernel"], "--initrd", blobs["initrd"], "--cmdline", config.Cmdline)
	s.digest[name] = made.Digest
}

// applianceBlobs are the files of the appliance's image: config, kernel, initrd.
func applianceBlobs(t *testing.T) map[string]string {
	t.Helper()
	layout := "../../.cache/images/appliance"
	blob := func(digest string) string {
		return filepath.Join(layout, "blobs", strings.Replace(digest, ":", "/", 1))
	}
	read := func(file string, v any) {
		t.Helper()
		b, err := os.ReadFile(file)
		if err == nil {
			err = json.Unmarshal(b, v)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	type descriptor struct{ MediaType, Digest string }
	var index struct{ Manifests []descriptor }
	read(filepath.Join(layout, "index.json"), &index)
	if len(index.Manifests) == 0 {
		t.Fatal(fault.New(fault.NotFound, "%s has no image", layout))
	}
	var manifest struct {
		Config descriptor
		Layers []descriptor
	}
	read(blob(index.Manifests[0].Digest), &manifest)
	files := map[string]string{"config": blob(manifest.Config.Digest)}
	for _, l := range manifest.Layers {
		files[l.MediaType[strings.LastIndexByte(l.MediaType, '.')+1:]] = blob(l.Digest)
	}
	return files
}

// stored is what the VEEs have on the hosts' disks.
func (s *shop) stored(ids []vee.ID) (sum vee.Bytes) {
	s.t.Helper()
	for _, id := range ids {
		dirs, err := filepath.Glob(filepath.Join(stage.dir, "alpha", "h*", "qemu", "vees", string(id)))
		if err != nil {
			s.t.Fatal(err)
		}
		for _, d := range dirs {
			out, err := exec.Command("du", "-sk", d).Output()
			if err != nil {
				continue // removed while it was counted
			}
			var k int64
			if _, err := fmt.Sscan(string(out), &k); err != nil {
				s.t.Fatal(err)
			}
			sum += vee.Bytes(k) * vee.KiB
		}
	}
	return sum
}
