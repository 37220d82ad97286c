// Package reservoir holds no code: this folder's test checks the rules that hold between
// all packages of the module (who may import whom, one package comment each).
package reservoir

import (
	"bytes"
	"encoding/json"
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/reservoir-cloud/reservoir"

// rule forbids imports. From and imports are paths below the module's, or whole import
// paths of others; each stands for itself and everything below it.
type rule struct {
	from    []string // packages the rule is about; "*" is every package
	except  []string // of those, the ones it does not hold for
	forbids []string
	only    []string // instead of forbids: of the module's own packages, these alone are allowed
	why     string
}

// pure cores: step(state, event) → (state, actions).
var cores = []string{"placement", "ownership", "dvms", "elastic"}

// upper floors of the house, which nothing below may look up to.
var upper = []string{"cmd", "cli", "dev", "sim", "site", "web"}

// lower is everything that a floor of the middle or the ground may not reach above.
var lower = []string{"sm", "veem", "agent", "smi", "vmi", "vhi", "hypervisor", "van", "image", "monitor", "account",
	"placement", "ownership", "dvms", "elastic", "manifest", "vee", "internal"}

var rules = []rule{
	{from: lower, forbids: upper,
		why: "upper floors import lower ones, never the other way"},
	{from: []string{"site", "web", "dev", "sim"}, forbids: []string{"cmd", "cli"},
		why: "the command line is the top floor: nothing is built on it"},
	{from: []string{"cmd/reservoir"}, only: []string{"cli", "cmd/reservoir"},
		why: "main hands over to cli and holds nothing else"},
	{from: []string{"cmd/reservoir-guest"}, only: []string{"cmd/reservoir-guest", "vhi/guest", "vee", "internal"},
		why: "the guest's agent runs in other people's machines: it knows the guest channel and nothing of the site"},
	{from: []string{"dev"}, only: []string{"dev", "vee", "internal"},
		why: "a federation on one machine is made of real processes, never of parts called in process"},
	{from: []string{"sm"}, forbids: []string{"veem", "agent", "hypervisor", "placement", "van"},
		why: "the SM knows the VMI only, so that its VEEM may be that of another site or product"},
	{from: []string{"veem"}, forbids: []string{"sm", "smi", "agent", "manifest", "hypervisor"},
		why: "the VEEM knows VEEs and hosts: no service, no manifest, no hypervisor"},
	{from: []string{"agent"}, forbids: []string{"veem", "sm", "smi", "vmi", "manifest", "internal/store"},
		why: "a host obeys assignments (vhi) and never touches the store"},
	{from: []string{"hypervisor", "van", "image"}, forbids: []string{"sm", "smi", "veem", "vmi", "agent", "manifest", "internal/store"},
		why: "drivers, networks and images serve whoever calls them and know nothing of the managers"},
	{from: []string{"smi", "vmi", "vhi"}, forbids: []string{"sm", "veem", "agent", "site", "hypervisor", "internal/store"},
		why: "an interface does not know its implementations"},
	{from: cores, only: []string{"placement", "ownership", "dvms", "elastic", "vee"},
		why: "pure cores import the vocabulary and each other's data at most"},
	{from: cores, forbids: []string{"os", "net", "net/http", "time/tzdata", "os/exec", "syscall"},
		why: "pure cores do no I/O"},
	{from: []string{"agent/guard"}, only: []string{},
		why: "the guard ends guests when everything else does not work: it stands on the kernel alone"},
	{from: []string{"vee"}, only: []string{},
		why: "the vocabulary stands on the ground"},
	{from: []string{"manifest"}, only: []string{"vee", "manifest", "internal/fault", "internal/golden"},
		why: "a manifest is text and a model: it can be checked without a site"},
	{from: []string{"internal"}, except: []string{"internal/event"}, forbids: []string{"manifest", "image", "hypervisor", "van", "sm", "veem", "agent", "smi", "vmi", "vhi"},
		why: "plumbing has no word of the field in it, but for the identifiers in vee (internal/event keeps the SMI's events)"},
	{from: []string{"*"}, except: []string{"internal/store", "bench"}, forbids: []string{"go.etcd.io/etcd"},
		why: "there is one record of truth and one door to it"},
	{from: []string{"*"}, except: []string{"monitor", "bench"}, forbids: []string{"github.com/prometheus"},
		why: "Prometheus's API is 0.x: it changes behind monitor and nowhere else"},
}

// pkg is what `go list -json` tells of a package.
type pkg struct {
	ImportPath   string
	Dir          string
	GoFiles      []string
	TestGoFiles  []string
	XTestGoFiles []string
	Imports      []string
	TestImports  []string
	XTestImports []string
}

// path below the module's root; "." is the root itself.
func (p pkg) path() string {
	if p.ImportPath == module {
		return "."
	}
	return strings.TrimPrefix(p.ImportPath, module+"/")
}

func packages(t *testing.T) []pkg {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", "list", "-e", "-json=ImportPath,Dir,GoFiles,TestGoFiles,XTestGoFiles,Imports,TestImports,XTestImports", "./...")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v\n%s", err, stderr.Bytes())
	}
	var all []pkg
	for d := json.NewDecoder(bytes.NewReader(out)); ; {
		var p pkg
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			return all
		} else if err != nil {
			t.Fatal(err)
		}
		all = append(all, p)
	}
}

// below reports whether path is one of roots or beneath one.
func below(path string, roots []string) bool {
	return slices.ContainsFunc(roots, func(r string) bool {
		return r == "*" || path == r || strings.HasPrefix(path, r+"/")
	})
}

// broken is the reason why p, at path, may not import imp, or "".
func (r rule) broken(path, imp string) string {
	if !below(path, r.from) || below(path, r.except) {
		return ""
	}
	own, isOwn := strings.CutPrefix(imp, module+"/")
	if r.only != nil {
		if isOwn && !below(own, r.only) {
			return r.why
		}
		return ""
	}
	if below(imp, r.forbids) || isOwn && below(own, r.forbids) && !below(own, []string{path}) {
		return r.why
	}
	return ""
}

// TestLayers checks what packages import. Tests may reach further than what they test (an
// SM against a real VEEM), but not to etcd or Prometheus.
func TestLayers(t *testing.T) {
	for _, p := range packages(t) {
		for _, r := range rules {
			imports := p.Imports
			if slices.Contains(r.from, "*") {
				imports = slices.Concat(p.Imports, p.TestImports, p.XTestImports)
			}
			for _, imp := range imports {
				if why := r.broken(p.path(), imp); why != "" {
					t.Errorf("%s imports %s: %s", p.path(), imp, why)
				}
			}
		}
	}
}

// TestRulesBite shows for each kind of rule an import that it refuses.
func TestRulesBite(t *testing.T) {
	for _, c := range []struct{ path, imp string }{
		{"sm", module + "/veem"},
		{"sm/deploy", module + "/veem/reconcile"},
		{"veem", module + "/sm"},
		{"agent", module + "/veem"},
		{"hypervisor/qemu", module + "/agent"},
		{"placement", module + "/vmi"},
		{"elastic", "net/http"},
		{"vee", module + "/internal/fault"},
		{"cmd/reservoir", module + "/site"},
		{"veem", "go.etcd.io/etcd/client/v3"},
		{"cli", "github.com/prometheus/client_golang/prometheus"},
		{"internal/revert", module + "/image"},
		{"smi", module + "/cli"},
	} {
		if !slices.ContainsFunc(rules, func(r rule) bool { return r.broken(c.path, c.imp) != "" }) {
			t.Errorf("no rule keeps %s from importing %s", c.path, c.imp)
		}
	}
}

// TestPackageComments wants exactly one package comment in every package, which starts as
// godoc wants it and says what lives there.
func TestPackageComments(t *testing.T) {
	for _, p := range packages(t) {
		files := p.GoFiles
		if len(files) == 0 { // a package of tests alone
			files = slices.Concat(p.TestGoFiles, p.XTestGoFiles)
		}
		var with []string
		for _, f := range files {
			parsed, err := parser.ParseFile(token.NewFileSet(), filepath.Join(p.Dir, f), nil, parser.PackageClauseOnly|parser.ParseComments)
			if err != nil {
				t.Errorf("%s: %v", p.path(), err)
				continue
			}
			if parsed.Doc == nil {
				continue
			}
			with = append(with, f)
			checkComment(t, p, parsed)
		}
		if len(with) != 1 {
			t.Errorf("%s: package comments in %d files %v: want exactly one", p.path(), len(with), with)
		}
	}
}

func checkComment(t *testing.T, p pkg, f *ast.File) {
	t.Helper()
	want := "Package " + f.Name.Name + " "
	if f.Name.Name == "main" {
		want = "Command " + filepath.Base(p.Dir) + " "
	}
	if text := f.Doc.Text(); !strings.HasPrefix(text, want) {
		t.Errorf("%s: the package comment starts %.40q: want %q", p.path(), text, want)
	}
}
