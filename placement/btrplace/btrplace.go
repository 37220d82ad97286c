// Package btrplace reads the JSON instances of BtrPlace (github.com/btrplace/scheduler), as
// its published workloads have them: a model, the constraints, durations of actions.
package btrplace

import (
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strconv"
	"time"

	"github.com/reservoir-cloud/reservoir/placement/model"
)

// instance as it is written. Nodes and VMs are numbers, as keys of objects in quotes.
type instance struct {
	Model struct {
		Mapping struct {
			ReadyVMs     []int
			OfflineNodes []int
			OnlineNodes  map[string]struct{ RunningVMs, SleepingVMs []int }
		}
		Attributes struct {
			VMs   map[string]attributes
			Nodes map[string]attributes
		}
		Views []struct {
			ID    string
			RcID  string
			VMs   map[string]int64
			Nodes map[string]int64

			DefConsumption, DefCapacity int64
		}
	}
	Constraints []constraint
}

// attributes that give durations, in seconds.
type attributes struct {
	Boot, Shutdown, Suspend, Resume *int64
	Clone                           bool
}

type constraint struct {
	ID         string
	VM         *int
	VMs        []int
	Node       *int
	Nodes      []int
	Parts      [][]int // of nodes; of VMs in a split
	PParts     [][]int // of nodes
	VParts     [][]int // of VMs
	VM1, VM2   *int
	RC         string
	Amount     int64
	Ratio      float64
	Continuous bool
}

// seconds of an action, or one where nothing is said: BtrPlace's default.
func seconds(s *int64) time.Duration {
	if s == nil {
		return time.Second
	}
	return time.Duration(*s) * time.Second
}

// reader turns an instance into a model.
type reader struct {
	m           *model.Model
	nodes, vms  map[int]int32
	dimension   map[string]int
	sharedParts map[string][][]int32
}

// Read an instance. Deadlines, which it has by the wall clock, do not map. A migration lasts a second for each 100 units of memory, which is how
// BtrPlace's bench sets it.
func Read(from io.Reader) (*model.Model, error) {
	var in instance
	if err := json.NewDecoder(from).Decode(&in); err != nil {
		return nil, fmt.Errorf("read a BtrPlace instance: %w", err)
	}
	r := &reader{nodes: map[int]int32{}, vms: map[int]int32{}, dimension: map[string]int{}, sharedParts: map[string][][]int32{}}
	if err := r.read(&in); err != nil {
		return nil, fmt.Errorf("read a BtrPlace instance: %w", err)
	}
	if err := r.m.Validate(); err != nil {
		return nil, fmt.Errorf("read a BtrPlace instance: %w", err)
	}
	return r.m, nil
}

func (r *reader) read(in *instance) error {
	var names []model.Dimension
	views := in.Model.Views[:0:0]
	for _, v := range in.Model.Views {
		if v.ID == "shareableResource" {
			r.dimension[v.RcID] = len(names)
			names = append(names, model.Dimension(v.RcID))
			views = append(views, v)
		}
	}
	r.m = model.New(names...)
	r.m.Migration = model.Migration{MiBs: 100, Least: time.Second, Allocation: time.Second}

	off := map[int]bool{}
	var nodes []int
	for _, n := range in.Model.Mapping.OfflineNodes {
		off[n] = true
		nodes = append(nodes, n)
	}
	state, at := map[int]model.State{}, map[int]int{}
	for _, v := range in.Model.Mapping.ReadyVMs {
		state[v] = model.Ready
	}
	for key, on := range in.Model.Mapping.OnlineNodes {
		n, err := strconv.Atoi(key)
		if err != nil {
			return fmt.Errorf("node %q is no number", key)
		}
		nodes = append(nodes, n)
		for _, v := range on.RunningVMs {
			state[v], at[v] = model.Running, n
		}
		for _, v := range on.SleepingVMs {
			state[v], at[v] = model.Sleeping, n
		}
	}
	slices.Sort(nodes)
	for _, n := range nodes {
		key := strconv.Itoa(n)
		a := in.Model.Attributes.Nodes[key]
		var capacity []int64
		for _, v := range views {
			c, ok := v.Nodes[key]
			if !ok {
				c = v.DefCapacity
			}
			capacity = append(capacity, c)
		}
		r.nodes[n] = r.m.AddHost(model.Host{Name: "node-" + key, Off: off[n], Boot: seconds(a.Boot), Shutdown: seconds(a.Shutdown)}, capacity...)
	}
	var vms []int
	for v := range state {
		vms = append(vms, v)
	}
	slices.Sort(vms)
	for _, v := range vms {
		key := strconv.Itoa(v)
		a := in.Model.Attributes.VMs[key]
		var demand []int64
		for _, view := range views {
			d, ok := view.VMs[key]
			if !ok {
				d = view.DefConsumption
			}
			demand = append(demand, d)
		}
		x := model.VEE{Name: "vm-" + key, State: state[v], Start: seconds(a.Boot), Stop: seconds(a.Shutdown),
			Suspend: seconds(a.Suspend), Resume: seconds(a.Resume), Clonable: a.Clone}
		if d, ok := r.dimension["memory"]; ok {
			x.MemoryMiB = demand[d]
		}
		if x.State != model.Ready {
			x.Host = r.nodes[at[v]]
		}
		r.vms[v] = r.m.AddVEE(x, demand...)
	}
	return r.constraints(in.Constraints)
}

// constraints of the instance; those that name one VM or node each are joined.
func (r *reader) constraints(of []constraint) error {
	states := map[string]model.State{"running": model.Running, "ready": model.Ready, "sleeping": model.Sleeping, "killed": model.Killed}
	inState, power := map[model.State][]int32{}, map[bool][]int32{}
	for i, c := range of {
		vms, err := r.indices(r.vms, c.VM, c.VMs, "VM")
		if err != nil {
			return fmt.Errorf("constraint %d: %w", i, err)
		}
		nodes, err := r.indices(r.nodes, c.Node, c.Nodes, "node")
		if err != nil {
			return fmt.Errorf("constraint %d: %w", i, err)
		}
		dimension, known := r.dimension[c.RC]
		if c.RC != "" && !known {
			return fmt.Errorf("constraint %d: there is no resource %q", i, c.RC)
		}
		always := model.Always{Continuous: c.Continuous}
		switch c.ID {
		case "running", "ready", "sleeping", "killed":
			inState[states[c.ID]] = append(inState[states[c.ID]], vms...)
		case "online", "offline":
			power[c.ID == "online"] = append(power[c.ID == "online"], nodes...)
		case "spread":
			r.m.Require(model.Spread{VEEs: vms, Always: always})
		case "gather":
			r.m.Require(model.Gather{VEEs: vms, Always: always})
		case "lonely":
			r.m.Require(model.Lonely{VEEs: vms, Always: always})
		case "among":
			groups, err := r.groups(r.nodes, c.Parts, "node")
			if err != nil {
				return fmt.Errorf("constraint %d: %w", i, err)
			}
			r.m.Require(model.Among{VEEs: vms, Groups: groups, Always: always})
		case "split":
			groups, err := r.groups(r.vms, c.Parts, "VM")
			if err != nil {
				return fmt.Errorf("constraint %d: %w", i, err)
			}
			r.m.Require(model.Split{Groups: groups, Always: always})
		case "splitAmong":
			groups, err := r.groups(r.nodes, c.PParts, "node")
			if err != nil {
				return fmt.Errorf("constraint %d: %w", i, err)
			}
			sets, err := r.groups(r.vms, c.VParts, "VM")
			if err != nil {
				return fmt.Errorf("constraint %d: %w", i, err)
			}
			r.m.Require(model.SplitAmong{Sets: sets, Groups: groups, Always: always})
		case "fence":
			r.m.Require(model.Fence{VEEs: vms, Hosts: nodes})
		case "ban":
			r.m.Require(model.Ban{VEEs: vms, Hosts: nodes, Always: always})
		case "root":
			r.m.Require(model.Root{VEEs: vms})
		case "quarantine":
			r.m.Require(model.Quarantine{Hosts: nodes})
		case "preserve":
			r.m.Require(model.Preserve{VEEs: vms, Dimension: dimension, Amount: c.Amount})
		case "overbook":
			r.m.Require(model.Overbook{Hosts: nodes, Dimension: dimension, Ratio: c.Ratio, Always: always})
		case "resourceCapacity":
			r.m.Require(model.ResourceCapacity{Hosts: nodes, Dimension: dimension, Max: c.Amount, Always: always})
		case "runningCapacity":
			r.m.Require(model.RunningCapacity{Hosts: nodes, Max: int(c.Amount), Always: always})
		case "maxOnline":
			r.m.Require(model.MaxOnline{Hosts: nodes, Max: int(c.Amount), Always: always})
		case "seq":
			r.m.Require(model.Seq{VEEs: vms})
		case "noDelay":
			r.m.Require(model.NoDelay{VEEs: vms})
		case "Serialize":
			r.m.Require(model.Serialize{VEEs: vms})
		case "Sync":
			r.m.Require(model.Sync{VEEs: vms})
		case "Precedence":
			before, err := r.indices(r.vms, c.VM1, nil, "VM")
			if err != nil {
				return fmt.Errorf("constraint %d: %w", i, err)
			}
			after, err := r.indices(r.vms, c.VM2, nil, "VM")
			if err != nil {
				return fmt.Errorf("constraint %d: %w", i, err)
			}
			r.m.Require(model.Precedence{Before: before, After: after})
		default:
			return fmt.Errorf("constraint %d: %q does not map to one of ours", i, c.ID)
		}
	}
	for _, s := range []model.State{model.Ready, model.Running, model.Sleeping, model.Killed} {
		if len(inState[s]) > 0 {
			r.m.Require(model.InState{VEEs: unique(inState[s]), State: s})
		}
	}
	for _, on := range []bool{true, false} {
		if len(power[on]) > 0 {
			r.m.Require(model.Power{Hosts: unique(power[on]), On: on})
		}
	}
	return nil
}

func unique(of []int32) []int32 {
	slices.Sort(of)
	return slices.Compact(of)
}

// indices of one or many in the model.
func (r *reader) indices(known map[int]int32, one *int, many []int, what string) (found []int32, err error) {
	if one != nil {
		many = append(many, *one)
	}
	for _, id := range many {
		i, ok := known[id]
		if !ok {
			return nil, fmt.Errorf("there is no %s %d", what, id)
		}
		found = append(found, i)
	}
	return found, nil
}

// groups of nodes or VMs; constraints with the same groups share them.
func (r *reader) groups(known map[int]int32, parts [][]int, what string) (groups [][]int32, err error) {
	key := what + fmt.Sprint(parts)
	if shared, ok := r.sharedParts[key]; ok {
		return shared, nil
	}
	for _, part := range parts {
		group, err := r.indices(known, nil, part, what)
		if err != nil {
			return nil, err
		}
		groups = append(groups, group)
	}
	r.sharedParts[key] = groups
	return groups, nil
}
