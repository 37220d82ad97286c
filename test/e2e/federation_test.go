package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/reservoir-cloud/reservoir/smi"
	"github.com/reservoir-cloud/reservoir/vee"
	"github.com/reservoir-cloud/reservoir/veem/federation/books"
	"github.com/reservoir-cloud/reservoir/veem/federation/standby"
	"github.com/reservoir-cloud/reservoir/vmi"
)

// pairOfSites is a federation of its own: two sites that reach each other by their proxies
// alone.
type pairOfSites struct {
	t      *testing.T
	dir    string
	config string
}

func openSites(t *testing.T) *pairOfSites {
	t.Helper()
	f := &pairOfSites{t: t, dir: filepath.Join(stage.tmp, "sites"), config: filepath.Join(stage.tmp, "sites.yaml")}
	t.Cleanup(func() { f.run("dev", "down", "--dir", f.dir) })
	f.run("dev", "up", "--detach", "--sites", "2", "--hosts", "1", "--memory", "256MiB", "--dir", f.dir, "--prefix", "e2s", "--subnet", "124", "--accounting-interval", "5s")
	return f
}

// run the command line with contexts of its own.
func (f *pairOfSites) run(args ...string) string {
	f.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 4*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, stage.binary, args...)
	cmd.Env = append(os.Environ(), "RESERVOIR_CONFIG="+f.config)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		logs, _ := filepath.Glob(filepath.Join(f.dir, "log", "*.log"))
		for _, l := range logs {
			b, _ := os.ReadFile(l)
			lines := strings.Split(strings.TrimSpace(string(b)), "\n")
			f.t.Logf("%s\n%s", filepath.Base(l), strings.Join(lines[max(0, len(lines)-12):], "\n"))
		}
		f.t.Fatalf("reservoir %s: %v\n%s", strings.Join(args, " "), err, errs.String())
	}
	return strings.TrimSpace(out.String())
}

// at a site.
func (f *pairOfSites) at(site string, args ...string) string {
	f.t.Helper()
	return f.run(append(args, "--context", "dev-"+site)...)
}

func jsonAt[T any](f *pairOfSites, site string, args ...string) (v T) {
	f.t.Helper()
	if err := json.Unmarshal([]byte(f.at(site, append(args, "-o", "json")...)), &v); err != nil {
		f.t.Fatalf("reservoir %s -o json at %s: %v", strings.Join(args, " "), site, err)
	}
	return v
}

// Two sites become partners and sign an agreement; a service that has no room at its own
// overflows to the other, whose image comes from the first, and stays one: one private
// network, one access point, one bill. When it is deleted nothing of it is left at either.
func TestFederation(t *testing.T) {
	f := openSites(t)
	f.at("alpha", "image", "push", "../../.cache/images/appliance", "appliance")
	invitation := jsonAt[struct{ Token string }](f, "alpha", "federation", "invite")
	f.at("beta", "federation", "accept", invitation.Token)
	deal := write(t, `lend: true
until: 2100-01-01
notice: 24h
ceiling: {vees: 4, vcpus: 8, memory: 8GiB, disk: 100GiB}
types: [{name: small, vcpus: 1, memory: 1GiB, disk: 10GiB}]
currency: EUR
prices: {vee: 0.001, vcpu: 0.02, memory: 0.005}
`)
	id := f.at("beta", "agreement", "propose", "alpha", deal, "-o", "name")
	eventually(t, "the proposal is at alpha", func() bool { return strings.Contains(f.at("alpha", "agreement", "list"), id) })
	f.at("alpha", "agreement", "sign", id)
	eventually(t, "the partner is a place", func() bool { return strings.Contains(f.at("alpha", "host", "list"), "@beta  on") })

	f.at("alpha", "service", "deploy", write(t, `service: shop
components:
  - name: web
    image: appliance
    replicas: {initial: 3, min: 1, max: 4}
    memory: 128MiB
    networks: [public, back]
    ports: [http:80]
networks:
  - {name: public, public: true}
  - {name: back}
`), "--wait", "--timeout", "230s")
	deployed := jsonAt[smi.Service](f, "alpha", "service", "show", "shop")
	var here, there vmi.VEE
	for _, v := range jsonAt[[]vmi.VEE](f, "alpha", "vee", "list") {
		if v.Host == "@beta" {
			there = v
		} else {
			here = v
		}
	}
	if there.ID == "" || here.ID == "" {
		t.Fatalf("the service is not at both sites:\n%s", f.at("alpha", "vee", "list"))
	}
	lodging := jsonAt[[]vmi.VEE](f, "beta", "vee", "list")
	if len(lodging) != 1 || lodging[0].ID != there.ID || lodging[0].Descriptor.Customer != "alpha/"+there.Descriptor.Customer {
		t.Fatalf("beta has %+v", lodging)
	}

	// One private network, by address and by name, in both directions.
	private := func(v vmi.VEE) string { a, _, _ := strings.Cut(v.Descriptor.NICs[1].Address, "/"); return a }
	asks := func(v vmi.VEE, target, want string) {
		t.Helper()
		page := ""
		eventually(t, target+" is reached", func() bool {
			page = ask("http://" + address(v) + "/ask?url=" + url.QueryEscape("http://"+target+"/"))
			return strings.Contains(page, want)
		})
	}
	asks(here, private(there), "hostname: "+there.Descriptor.Name)
	asks(here, there.Descriptor.Name+".shop.alpha.internal", "hostname: "+there.Descriptor.Name)
	asks(lodging[0], private(here), "hostname: "+here.Descriptor.Name)

	// One access point, which leads to both.
	answered := map[string]bool{}
	eventually(t, "the access point leads to every replica", func() bool {
		first, _, _ := strings.Cut(ask(deployed.URLs[0].URL), "\n")
		if first != "" {
			answered[first] = true
		}
		return len(answered) == 3
	})

	// What is measured of it there is asked for here.
	eventually(t, "measurements from the partner are at the primary", func() bool {
		found := jsonAt[[]series](f, "alpha", "metric", "query", fmt.Sprintf("vee_cpu_seconds_total{vee=%q}", there.ID))
		return len(found) == 1 && value(found[0].Value) > 0
	})

	f.at("alpha", "service", "delete", "shop", "--wait")
	eventually(t, "nothing is left at beta", func() bool {
		return len(jsonAt[[]vmi.VEE](f, "beta", "vee", "list")) == 0 && !strings.Contains(f.at("beta", "van", "list"), fmt.Sprint("alpha/", deployed.ID))
	})

	// Each site has kept its own book of it: they are the same, to the unit, and so is the bill.
	bills := map[string]books.Settlement{}
	for _, site := range []string{"alpha", "beta"} {
		eventually(t, "the books agree at "+site, func() bool {
			all := jsonAt[[]books.Settlement](f, site, "account", "settlement")
			if len(all) != 1 || !all[0].Agree || len(all[0].Bill.Charges) != 3 {
				return false
			}
			bills[site] = all[0]
			return true
		})
	}
	ours, theirs := bills["alpha"].Bill, bills["beta"].Bill
	if !reflect.DeepEqual(ours.Charges, theirs.Charges) || ours.Charges[0].VEE != there.ID || ours.Site != "beta" || ours.Customer != "alpha" {
		t.Errorf("alpha says\n%s\nbeta says\n%s", ours, theirs)
	}
	f.outlive(t)
}

// outlive: a service goes on at its standby, from its last checkpoint, when all of its own site
// stands still; and its site gives it up when it is back.
func (f *pairOfSites) outlive(t *testing.T) {
	f.at("alpha", "service", "deploy", write(t, `service: kept
standby: [beta]
components:
  - name: web
    memory: 128MiB
    disks: [{name: root, image: appliance}, {name: data, size: 16MiB}]
    networks: [public, back]
    ports: [http:80]
    reliability: {checkpoint: 5s}
networks: [{name: public, public: true}, {name: back}]
`), "--wait", "--timeout", "120s")
	was := jsonAt[[]vmi.VEE](f, "alpha", "vee", "list")[0].ID
	eventually(t, "a checkpoint is at the standby", func() bool {
		list := jsonAt[[]standby.Shown](f, "beta", "federation", "standby")
		return len(list) == 1 && list[0].Number > 0 && list[0].VEEs == 1 && list[0].Size > 0
	})
	f.signal("alpha", unix.SIGSTOP)
	t.Cleanup(func() { f.signal("alpha", unix.SIGCONT) }) // or it could not be taken down
	eventually(t, "alpha is lost", func() bool { return strings.Contains(f.at("beta", "federation", "list"), "lost") })
	f.at("beta", "federation", "promote", "alpha", "--i-am-sure", "--fenced")
	var there smi.Service
	eventually(t, "the service answers at beta", func() bool {
		list := jsonAt[[]smi.Service](f, "beta", "service", "list", "--customer", "alpha-house")
		if len(list) != 1 || list[0].Phase != smi.Ready || len(list[0].URLs) != 1 {
			return false
		}
		there = list[0]
		return strings.Contains(ask(there.URLs[0].URL), "hostname: web-1")
	})
	now := jsonAt[[]vmi.VEE](f, "beta", "vee", "list")[0]
	if now.Descriptor.Seed == nil || now.Descriptor.Seed.Of != was || now.ID.Site() != "beta" {
		t.Errorf("at beta %s begins with %+v, want the disks of %s", now.ID, now.Descriptor.Seed, was)
	}
	f.signal("alpha", unix.SIGCONT)
	eventually(t, "alpha gives it up", func() bool {
		vees := jsonAt[[]vmi.VEE](f, "alpha", "vee", "list")
		return jsonAt[smi.Service](f, "alpha", "service", "show", "kept").Phase == smi.Ceded && vees[0].State == vee.Defined
	})
	if ask(there.URLs[0].URL) == "" {
		t.Error("it does not answer at beta any more")
	}
}

// signal all processes of a site: its control plane, its proxy, its hosts and their guests.
func (f *pairOfSites) signal(site string, s unix.Signal) {
	own := []byte(filepath.Join(f.dir, site) + "/")
	all, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, file := range all {
		if line, err := os.ReadFile(file); err != nil || !bytes.Contains(line, own) {
			continue
		}
		if pid, err := strconv.Atoi(filepath.Base(filepath.Dir(file))); err == nil {
			_ = unix.Kill(pid, s)
		}
	}
}
