// Package file reads placement problems that people write: a JSON document with hosts, VEEs
// and rules by name (schema.json says what may be in it), and solves them: the plan, who
// stands against a VEE that has no place, and why a host takes a VEE or not, all in the
// document's own names. It is pure: what a document costs to solve is bounded by the
// caller's Stop.
package file

import (
	"bytes"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/santhosh-tekuri/jsonschema/v6"
	"github.com/santhosh-tekuri/jsonschema/v6/kind"
	"golang.org/x/text/language"
	"golang.org/x/text/message"

	"github.com/reservoir-cloud/reservoir/placement/model"
	"github.com/reservoir-cloud/reservoir/placement/solve"
)

// Schema of documents: JSON Schema, draft 2020-12.
//
//go:embed schema.json
var Schema []byte

// MaxSize of a document, bytes: room for a million VEEs.
const MaxSize = 1 << 30

// Document is a placement problem. Amounts are whole numbers in the dimensions' own units,
// times are seconds.
type Document struct {
	Dimensions []string  `json:"dimensions"`
	Hosts      []Host    `json:"hosts"`
	VEEs       []VEE     `json:"vees"`
	Rules      []Rule    `json:"rules"`
	Migration  Migration `json:"migration"`
	Objective  Objective `json:"objective"`
}

// Migration says how long live migrations take: see model.Migration.
type Migration struct {
	MiBPerSecond      float64 `json:"mibPerSecond"`
	Parallel          int     `json:"parallel"`
	LeastSeconds      float64 `json:"leastSeconds"`
	AllocationSeconds float64 `json:"allocationSeconds"`
	Shared            bool    `json:"shared"`
	Links             []Link  `json:"links"`
}

// Link between some hosts and all others: see model.Link.
type Link struct {
	Hosts        []string `json:"hosts"`
	MiBPerSecond float64  `json:"mibPerSecond"`
}

// Objective weighs what is wanted of the placement: see solve.Objective. All zero: only
// what is broken moves.
type Objective struct {
	Balance     float64 `json:"balance"`
	Consolidate float64 `json:"consolidate"`
	Cost        float64 `json:"cost"`
	Energy      float64 `json:"energy"`
	Distance    float64 `json:"distance"`
	Migrations  float64 `json:"migrations"`
	Time        float64 `json:"time"`
	SwitchOff   bool    `json:"switchOff"`
}

// Host of a document.
type Host struct {
	Name            string           `json:"name"`
	Capacity        map[string]int64 `json:"capacity"`
	State           string           `json:"state"` // "on" (or empty), "off", "draining"
	Rack            string           `json:"rack"`
	Room            string           `json:"room"`
	Site            string           `json:"site"`
	Jurisdiction    string           `json:"jurisdiction"`
	Labels          []string         `json:"labels"`
	Hypervisors     []string         `json:"hypervisors"`
	Price           float64          `json:"price"`
	DistanceMS      float64          `json:"distanceMs"`
	Watts           float64          `json:"watts"`
	HeatWanted      float64          `json:"heatWanted"`
	BootSeconds     float64          `json:"bootSeconds"`
	ShutdownSeconds float64          `json:"shutdownSeconds"`

	MigrationMiBPerSecond float64 `json:"migrationMiBPerSecond"`
}

// VEE of a document. Without a state it runs where it has a host, and is ready to be
// started where it has none.
type VEE struct {
	Name              string           `json:"name"`
	Customer          string           `json:"customer"`
	Tags              []string         `json:"tags"`
	State             string           `json:"state"`
	Host              string           `json:"host"`
	Demand            map[string]int64 `json:"demand"`
	Promised          map[string]int64 `json:"promised"`
	MemoryMiB         int64            `json:"memoryMiB"`
	DirtyMiBPerSecond float64          `json:"dirtyMiBPerSecond"`
	HotMiB            int64            `json:"hotMiB"`
	StartSeconds      float64          `json:"startSeconds"`
	StopSeconds       float64          `json:"stopSeconds"`
	SuspendSeconds    float64          `json:"suspendSeconds"`
	ResumeSeconds     float64          `json:"resumeSeconds"`
	Clonable          bool             `json:"clonable"`
}

// Problem is a document as a model.
type Problem struct {
	Model     *model.Model
	Objective solve.Objective
	rules     []Rule // of each of the model's rules
}

// compiled schema. It never changes; a mistake in it is found by every test.
var compiled = sync.OnceValue(func() *jsonschema.Schema {
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(Schema))
	if err != nil {
		panic(err)
	}
	c := jsonschema.NewCompiler()
	if err := c.AddResource("schema.json", doc); err != nil {
		panic(err)
	}
	return c.MustCompile("schema.json")
})

// Parse a document and make its model. Errors name the place in the document.
func Parse(text []byte) (*Problem, error) {
	if len(text) > MaxSize {
		return nil, fmt.Errorf("the model has %d bytes: at most %d", len(text), MaxSize)
	}
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(text))
	if err != nil {
		return nil, fmt.Errorf("the model is no JSON (which has no NaN and no infinity): %w", err)
	}
	if err := compiled().Validate(doc); err != nil {
		return nil, fmt.Errorf("the model is not as its schema wants it: %w", places(err))
	}
	var d Document
	if err := json.Unmarshal(text, &d); err != nil {
		return nil, fmt.Errorf("read the model: %w", err)
	}
	return d.problem()
}

// places of what a schema does not allow, the deepest first, one line each.
func places(err error) error {
	var invalid *jsonschema.ValidationError
	if !errors.As(err, &invalid) {
		return err
	}
	var lines []string
	var walk func(e *jsonschema.ValidationError)
	walk = func(e *jsonschema.ValidationError) {
		for _, c := range e.Causes {
			walk(c)
		}
		if _, group := e.ErrorKind.(*kind.Schema); len(e.Causes) == 0 && !group {
			lines = append(lines, fmt.Sprintf("%s: %s", "/"+strings.Join(e.InstanceLocation, "/"), e.ErrorKind.LocalizedString(message.NewPrinter(language.English))))
		}
	}
	walk(invalid)
	if len(lines) > 5 {
		lines = append(lines[:5], fmt.Sprintf("and %d more", len(lines)-5))
	}
	return errors.New(strings.Join(lines, "; "))
}

func seconds(s float64) time.Duration {
	return time.Duration(min(s, math.MaxInt64/4e9) * float64(time.Second))
}

var states = map[string]model.State{"ready": model.Ready, "running": model.Running, "sleeping": model.Sleeping, "killed": model.Killed}

// problem of a document that fits the schema.
func (d *Document) problem() (*Problem, error) {
	p := &Problem{Objective: solve.Objective{Balance: d.Objective.Balance, Consolidate: d.Objective.Consolidate, Cost: d.Objective.Cost,
		Energy: d.Objective.Energy, Distance: d.Objective.Distance, Migrations: d.Objective.Migrations, Time: d.Objective.Time, SwitchOff: d.Objective.SwitchOff}}
	n := &names{hosts: map[string]int32{}, vees: map[string]int32{}, dimensions: map[string]int{}}
	var dimensions []model.Dimension
	for i, name := range d.Dimensions {
		if _, twice := n.dimensions[name]; twice {
			return nil, fmt.Errorf("/dimensions/%d: there are two dimensions %q", i, name)
		}
		n.dimensions[name] = i
		dimensions = append(dimensions, model.Dimension(name))
	}
	m := model.New(dimensions...)
	p.Model, n.m = m, m
	m.Migration = model.Migration{MiBs: d.Migration.MiBPerSecond, Slots: d.Migration.Parallel, Least: seconds(d.Migration.LeastSeconds), Allocation: seconds(d.Migration.AllocationSeconds), Shared: d.Migration.Shared}
	if err := d.addHosts(n); err != nil {
		return nil, err
	}
	for i, l := range d.Migration.Links {
		hosts, err := n.hostList(l.Hosts)
		if err != nil {
			return nil, fmt.Errorf("/migration/links/%d: %w", i, err)
		}
		m.Migration.Links = append(m.Migration.Links, model.Link{Hosts: hosts, MiBs: l.MiBPerSecond})
	}
	if err := d.addVEEs(n); err != nil {
		return nil, err
	}
	for i, r := range d.Rules {
		c, err := r.constraint(n)
		if err != nil {
			return nil, fmt.Errorf("/rules/%d: %w", i, err)
		}
		p.rules = append(p.rules, r)
		m.Rules = append(m.Rules, model.Rule{Constraint: c, Weight: r.Weight})
	}
	if err := m.Validate(); err != nil {
		return nil, fmt.Errorf("the model does not make sense: %w", err)
	}
	return p, nil
}

func (d *Document) addHosts(n *names) error {
	for i, h := range d.Hosts {
		where := fmt.Sprintf("/hosts/%d", i)
		if _, twice := n.hosts[h.Name]; twice {
			return fmt.Errorf("%s: there are two hosts %q", where, h.Name)
		}
		capacity, err := n.amounts(where+"/capacity", h.Capacity)
		if err != nil {
			return err
		}
		n.hosts[h.Name] = n.m.AddHost(model.Host{Name: h.Name, Off: h.State == "off", Draining: h.State == "draining", Rack: h.Rack, Room: h.Room, Site: h.Site,
			Jurisdiction: h.Jurisdiction, Labels: h.Labels, Hypervisors: h.Hypervisors, Price: h.Price, Distance: h.DistanceMS, Watts: h.Watts, Heat: h.HeatWanted,
			Boot: seconds(h.BootSeconds), Shutdown: seconds(h.ShutdownSeconds), LinkMiBs: h.MigrationMiBPerSecond}, capacity...)
	}
	return nil
}

func (d *Document) addVEEs(n *names) error {
	for i, v := range d.VEEs {
		where := fmt.Sprintf("/vees/%d", i)
		if _, twice := n.vees[v.Name]; twice {
			return fmt.Errorf("%s: there are two VEEs %q", where, v.Name)
		}
		x := model.VEE{Name: v.Name, Customer: v.Customer, Tags: v.Tags, Host: model.None, MemoryMiB: v.MemoryMiB, DirtyMiBs: v.DirtyMiBPerSecond, HotMiB: v.HotMiB, Clonable: v.Clonable,
			Start: seconds(v.StartSeconds), Stop: seconds(v.StopSeconds), Suspend: seconds(v.SuspendSeconds), Resume: seconds(v.ResumeSeconds)}
		switch {
		case v.State != "":
			x.State = states[v.State]
		case v.Host != "":
			x.State = model.Running
		}
		if v.Host != "" {
			h, known := n.hosts[v.Host]
			if !known {
				return fmt.Errorf("%s/host: there is no host %q", where, v.Host)
			}
			x.Host = h
		}
		if placed := x.State == model.Running || x.State == model.Sleeping; placed != (v.Host != "") {
			return fmt.Errorf("%s: a VEE that is %v %s a host", where, x.State, map[bool]string{true: "needs", false: "has not"}[placed])
		}
		demand, err := n.amounts(where+"/demand", v.Demand)
		if err != nil {
			return err
		}
		n.vees[v.Name] = n.m.AddVEE(x, demand...)
		if v.Promised != nil {
			promised, err := n.amounts(where+"/promised", v.Promised)
			if err != nil {
				return err
			}
			n.m.Promise(n.vees[v.Name], promised...)
		}
	}
	return nil
}

// names of a document, as indices.
type names struct {
	m          *model.Model
	hosts      map[string]int32
	vees       map[string]int32
	dimensions map[string]int
}

func (n *names) amounts(where string, by map[string]int64) ([]int64, error) {
	amounts := make([]int64, len(n.dimensions))
	for name, a := range by {
		d, known := n.dimensions[name]
		if !known {
			return nil, fmt.Errorf("%s: there is no dimension %q", where, name)
		}
		amounts[d] = a
	}
	return amounts, nil
}

func (n *names) hostList(list []string) (hosts []int32, err error) {
	for _, name := range list {
		h, known := n.hosts[name]
		if !known {
			return nil, fmt.Errorf("there is no host %q", name)
		}
		hosts = append(hosts, h)
	}
	return hosts, nil
}

// veeList of names and, with '#' before them, tags. Nobody is in it twice.
func (n *names) veeList(list []string) (vees []int32, err error) {
	for _, name := range list {
		if tag, is := strings.CutPrefix(name, "#"); is {
			tagged := n.m.Tagged(tag)
			if len(tagged) == 0 {
				return nil, fmt.Errorf("no VEE has the tag %q", tag)
			}
			vees = append(vees, tagged...)
			continue
		}
		v, known := n.vees[name]
		if !known {
			return nil, fmt.Errorf("there is no VEE %q", name)
		}
		vees = append(vees, v)
	}
	return unique(vees), nil
}

func unique(list []int32) (out []int32) {
	seen := map[int32]bool{}
	for _, x := range list {
		if !seen[x] {
			seen[x] = true
			out = append(out, x)
		}
	}
	return slices.Clip(out)
}
