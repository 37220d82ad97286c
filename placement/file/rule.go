package file

import (
	"fmt"
	"strings"

	"github.com/reservoir-cloud/reservoir/placement/model"
)

// Rule of a document. Which fields it has depends on its kind (schema.json). VEEs are named
// by name, or with "#" before it by tag.
type Rule struct {
	Kind       string     `json:"kind"`
	Name       string     `json:"name"`   // for people
	Weight     float64    `json:"weight"` // 0: it must hold
	VEEs       []string   `json:"vees"`
	On         []string   `json:"on"`    // near: VEEs that are needed; after: those that come after
	Hosts      []string   `json:"hosts"` // none: all
	Groups     [][]string `json:"groups"`
	Sets       [][]string `json:"sets"`
	Scope      string     `json:"scope"` // "host" (or empty), "rack", "room", "site"
	Continuous bool       `json:"continuous"`
	Sites      []string   `json:"sites"`
	Laws       []string   `json:"jurisdictions"`
	Label      string     `json:"label"`
	Hypervisor string     `json:"hypervisor"`
	Dimension  string     `json:"dimension"`
	Amount     int64      `json:"amount"`
	Ratio      float64    `json:"ratio"`
	Max        float64    `json:"max"`
	Min        int        `json:"min"`
	State      string     `json:"state"`
	Seconds    float64    `json:"seconds"`
}

var scopes = map[string]model.Scope{"": model.OnHost, "host": model.OnHost, "rack": model.InRack, "room": model.InRoom, "site": model.InSite}

// constraint of the model that r means.
func (r Rule) constraint(n *names) (model.Constraint, error) {
	vees, err := n.veeList(r.VEEs)
	if err != nil {
		return nil, err
	}
	on, err := n.veeList(r.On)
	if err != nil {
		return nil, err
	}
	hosts, err := n.hostList(r.Hosts)
	if err != nil {
		return nil, err
	}
	hosts = unique(hosts)
	if len(r.Hosts) == 0 {
		for h := range n.m.Hosts {
			hosts = append(hosts, int32(h))
		}
	}
	var groups, sets [][]int32
	for _, g := range r.Groups {
		list, err := n.hostList(g)
		if err != nil {
			return nil, err
		}
		groups = append(groups, unique(list))
	}
	for _, s := range r.Sets {
		list, err := n.veeList(s)
		if err != nil {
			return nil, err
		}
		sets = append(sets, list)
	}
	dimension, known := n.dimensions[r.Dimension]
	if r.Dimension != "" && !known {
		return nil, fmt.Errorf("there is no dimension %q", r.Dimension)
	}
	scope, always := scopes[r.Scope], model.Always{Continuous: r.Continuous}
	switch r.Kind {
	case "fence":
		return model.Fence{VEEs: vees, Hosts: hosts}, nil
	case "ban":
		return model.Ban{VEEs: vees, Hosts: hosts, Always: always}, nil
	case "located":
		return model.Located{VEEs: vees, Sites: r.Sites, Jurisdictions: r.Laws}, nil
	case "labelled":
		return model.Labelled{VEEs: vees, Label: r.Label}, nil
	case "hypervised":
		return model.Hypervised{VEEs: vees, Hypervisor: r.Hypervisor}, nil
	case "cost-ceiling":
		return model.CostCeiling{VEEs: vees, Max: r.Max}, nil
	case "spread":
		return model.Spread{VEEs: vees, Scope: scope, Always: always}, nil
	case "gather":
		return model.Gather{VEEs: vees, Scope: scope, Always: always}, nil
	case "lonely":
		return model.Lonely{VEEs: vees, Always: always}, nil
	case "split":
		return model.Split{Groups: sets, Always: always}, nil
	case "among":
		return model.Among{VEEs: vees, Groups: groups, Always: always}, nil
	case "split-among":
		return model.SplitAmong{Sets: sets, Groups: groups, Always: always}, nil
	case "preserve":
		return model.Preserve{VEEs: vees, Dimension: dimension, Amount: r.Amount}, nil
	case "overbook":
		return model.Overbook{Hosts: hosts, Dimension: dimension, Ratio: r.Ratio, Always: always}, nil
	case "resource-capacity":
		return model.ResourceCapacity{Hosts: hosts, Dimension: dimension, Max: int64(r.Max), Always: always}, nil
	case "running-capacity":
		return model.RunningCapacity{Hosts: hosts, Max: int(r.Max), Always: always}, nil
	case "max-online":
		return model.MaxOnline{Hosts: hosts, Max: int(r.Max), Always: always}, nil
	case "state":
		return model.InState{VEEs: vees, State: states[r.State]}, nil
	case "power":
		return model.Power{Hosts: hosts, On: r.State == "on"}, nil
	case "min-places":
		return model.MinPlaces{VEEs: vees, Scope: scope, Min: r.Min}, nil
	case "near":
		return model.Near{VEEs: vees, On: on, Scope: scope}, nil
	case "root":
		return model.Root{VEEs: vees}, nil
	case "quarantine":
		return model.Quarantine{Hosts: hosts}, nil
	case "seq":
		return model.Seq{VEEs: vees}, nil
	case "no-delay":
		return model.NoDelay{VEEs: vees}, nil
	case "deadline":
		return model.Deadline{VEEs: vees, By: seconds(r.Seconds)}, nil
	case "precedence":
		return model.Precedence{Before: vees, After: on}, nil
	case "serialize":
		return model.Serialize{VEEs: vees}, nil
	case "sync":
		return model.Sync{VEEs: vees}, nil
	}
	return nil, fmt.Errorf("there is no kind of rule %q", r.Kind)
}

// String of a rule, for people: its name, or its kind and whom it is about.
func (r Rule) String() string {
	text := r.Kind
	for _, of := range [][]string{r.VEEs, r.On, r.Hosts, r.Sites, r.Laws} {
		if len(of) > 4 {
			of = append(of[:3:3], fmt.Sprintf("and %d more", len(of)-3))
		}
		if len(of) > 0 {
			text += " " + strings.Join(of, ", ")
		}
	}
	for _, of := range []string{r.Scope, r.Label, r.Hypervisor, r.State, r.Dimension} {
		if of != "" {
			text += " " + of
		}
	}
	if r.Kind == "deadline" {
		text += fmt.Sprintf(" by %gs", r.Seconds)
	}
	if r.Max > 0 {
		text += fmt.Sprintf(" at most %g", r.Max)
	}
	if r.Name != "" {
		text = fmt.Sprintf("%q (%s)", r.Name, text)
	}
	return text
}
