// Package deploy is the Service Manager's pure core: given what a service should be (Goal),
// what was recorded of it (State) and what there is (World), Next says what to do now. It
// does no I/O, has no clock and starts nothing; the shell in package sm records the state
// that a step returns, then does its actions, and asks again at each change.
//
// A service's replicas live in slots. A slot is recorded before the InitializeVEEs call
// that fills it, under the number of that call, which is never used twice and is the
// call's idempotency key; a call whose answer is not known is repeated, word for word,
// until it is answered. So a crash between the call and its record leaves no VEE behind,
// and a VEE of the group that is in no slot can safely be destroyed.
package deploy

import (
	"fmt"
	"slices"
	"time"

	"github.com/reservoir-cloud/reservoir/smi"
	"github.com/reservoir-cloud/reservoir/vee"
	"github.com/reservoir-cloud/reservoir/vmi"
)

// Patience with a guest that was told to shut down, before its VEE is destroyed as it is.
const Patience = 45 * time.Second

// UpdatePatience with a new replica that takes the place of an outdated one.
const UpdatePatience = 15 * time.Minute

// Drain is how long a replica that leaves keeps its connections, unless its component says
// otherwise, and drainPoll how often access points are looked at that one waits for.
const (
	Drain     = 10 * time.Second
	drainPoll = 250 * time.Millisecond
)

// Goal is what the provider wants.
type Goal struct {
	Components []Component
	Networks   []Network // of its own; there before its VEEs and until after them
	Revision   int       // of the manifest; new slots carry it
	BestEffort bool      // start what there is room for, instead of all or nothing
	Deleting   bool
	Asleep     bool // its VEEs are to sleep
	// Undo: there is an earlier revision to go back to when an update fails.
	Undo bool
}

// Component of a service, as far as its deployment is concerned.
type Component struct {
	Name         string
	Group        int    // start group; lower ones start first and stop last
	Desired      int    // replicas
	Spec         string // what its VEEs are made of; replicas with another one are replaced
	Fit          Fit    // what is changed of replicas that run, where it can be
	Ports        []Port // that the site balances over its replicas
	StartDelay   time.Duration
	StopDelay    time.Duration
	WaitForGuest bool // the next group starts when every replica has been ready
	// Drain bounds the wait for a leaving replica's connections and work to end; 0: Drain.
	Drain time.Duration
	// Watch a new replica for so long before the next outdated one goes; Patience with one
	// that is not ready yet, 0: UpdatePatience.
	Watch, Patience time.Duration
}

// Fit is what of a replica can be changed while it runs.
type Fit struct {
	VCPUs    int       `json:"vcpus,omitempty"`
	Memory   vee.Bytes `json:"memory,omitempty"`   // bytes
	Firewall string    `json:"firewall,omitempty"` // fingerprint of its rules
}

// Port of an access point.
type Port struct {
	Number    int
	Scheme    string
	Algorithm string // of spreading
	Health    string // path that is asked
	Partners  bool   // those that have replicas have an access point too
}

// State is what has to be remembered. The zero value is that of a new service.
type State struct {
	Slots []Slot `json:"slots,omitempty"`
	Calls int    `json:"calls,omitempty"` // number of the newest InitializeVEEs call
	// Limit says of a component that is replaced one by one how many VEEs it may have at
	// once, old and new together.
	Limit       map[string]int `json:"limit,omitempty"`
	Established bool           `json:"established,omitempty"` // was once all that was desired
	Settled     bool           `json:"settled,omitempty"`     // and has been since the goal changed last
	StopNext    time.Time      `json:"stopNext,omitzero"`     // deletion: the next group stops no sooner
	// Slept: its VEEs were put to sleep, and not all are awake again. Asked is when they were
	// last asked to sleep or wake, while some have not.
	Slept   bool      `json:"slept,omitempty"`
	Asked   time.Time `json:"asked,omitzero"`
	Waiting string    `json:"waiting,omitempty"` // what the start of the next group waits for
	Phase   smi.Phase `json:"phase,omitempty"`
	Message string    `json:"message,omitempty"`
}

// Slot of a replica.
type Slot struct {
	Component string    `json:"component"`
	Number    int       `json:"number"` // from 1; free for reuse when the VEE is destroyed
	Revision  int       `json:"revision"`
	Spec      string    `json:"spec"`
	Fit       Fit       `json:"fit,omitzero"`
	Resized   bool      `json:"resized,omitempty"` // was it while it ran
	Misfit    Fit       `json:"misfit,omitzero"`   // that its VEE cannot take while it runs
	Made      time.Time `json:"made,omitzero"`
	Call      int       `json:"call"`              // the InitializeVEEs call that makes its VEE
	Model     vmi.Model `json:"model"`             // of that call
	VEE       vee.ID    `json:"vee,omitempty"`     // empty until that call is answered
	Started   time.Time `json:"started,omitzero"`  // first seen ACTIVE
	Ready     time.Time `json:"ready,omitzero"`    // first seen ready
	Retiring  time.Time `json:"retiring,omitzero"` // on its way out since
	Idles     bool      `json:"idles,omitempty"`   // its guest has said once that it is idle: it says when it is not
}

// Name of the replica and of its VEE.
func (s Slot) Name() string { return fmt.Sprintf("%s-%d", s.Component, s.Number) }

// World is what there is.
type World struct {
	VEEs         map[vee.ID]vmi.VEE         // of the service's group, complete; destroyed ones may be among them
	AccessPoints map[string]vmi.AccessPoint // of the group, by name
	Networks     map[string]vmi.Network     // of the group, by name
	// Troubles that stand: what failed is left alone until then. Keys are components, Stop,
	// Access, Networks, Fitting, or Switch.
	Troubles map[string]Trouble
	// Objections to the new replicas of a component, by it: KPIs that are not as promised
	// since they are there.
	Objections map[string]string
	Now        time.Time
}

// Keys of troubles that are not with the making or starting of a component's replicas.
const (
	Stop     = "/stop"
	Access   = "/access"
	Networks = "/networks"
	Fitting  = "/fit"
	Switch   = "/switch"
)

// Trouble is a failed action.
type Trouble struct {
	Message string
	Until   time.Time // try again then
	Stuck   bool      // it takes somebody's help: a refusal, no room
}

// Kind of an action.
type Kind string

// Kinds of actions.
const (
	Initialize        Kind = "initialize" // Call, Slots: all of one model and revision
	Submit            Kind = "submit"     // Slots
	Shutdown          Kind = "shutdown"   // VEEs
	Destroy           Kind = "destroy"    // VEEs
	Sleep             Kind = "sleep"      // VEEs, all of them or none
	Wake              Kind = "wake"       // VEEs, likewise
	PutAccessPoint    Kind = "put access point"
	DeleteAccessPoint Kind = "delete access point"
	PutNetwork        Kind = "put network"
	DeleteNetwork     Kind = "delete network"
	Adjust            Kind = "adjust" // Slots, with the Fit that they get
	Undo              Kind = "undo"   // the revision, because of Why
	Finish            Kind = "finish" // nothing is left: make sure of it and drop the record
)

// Action that the shell should do. Each may be repeated without harm.
type Action struct {
	Kind    Kind
	Call    int
	Slots   []Slot
	VEEs    []vee.ID
	Why     string
	Network vmi.Network     // Name, Wish
	Access  vmi.AccessPoint // Name, Tag, Port, Scheme, Algorithm, Health, Draining
}

// Event for people.
type Event struct {
	Warning bool
	Reason  string
	Message string
}

// Step is Next's answer.
type Step struct {
	State   State // to be recorded before the actions are done
	Actions []Action
	Events  []Event
	Wake    time.Time         // ask again then at the latest; zero: at the next change
	Waiting map[string]string // by component: what its start waits for
}

// planner is the work on one step.
type planner struct {
	goal  Goal
	w     World
	s     State
	out   Step
	known map[vee.ID]bool // in a slot
	lost  []Slot          // in this step
}

// Next says what to do. The maps and slices of its arguments are not changed.
func Next(g Goal, s State, w World) Step {
	p := &planner{goal: g, w: w, s: s.clone(), known: map[vee.ID]bool{}}
	p.out.Waiting = map[string]string{}
	p.observe()
	switch {
	case g.Deleting:
		p.delete()
	case g.Asleep:
		p.sleep()
		p.access()
	case p.undo(): // what comes next is the goal of before
	default:
		p.rise()
		p.replace()
		p.removeForeign()
		p.create()
		p.access()
		if p.networks() {
			p.settle()
		}
		p.adjust()
		p.start()
	}
	p.leave()
	p.strays()
	p.status()
	p.out.State = p.s
	return p.out
}

func (s State) clone() State {
	s.Slots = slices.Clone(s.Slots)
	if s.Limit != nil {
		limit := make(map[string]int, len(s.Limit))
		for k, v := range s.Limit {
			limit[k] = v
		}
		s.Limit = limit
	}
	return s
}

// Initialized records the VEEs that a call has made, in the order of its slots.
func (s State) Initialized(call int, ids []vee.ID) State {
	s = s.clone()
	for i := range s.Slots {
		if s.Slots[i].Call == call && s.Slots[i].VEE == "" && len(ids) > 0 {
			s.Slots[i].VEE, ids = ids[0], ids[1:]
		}
	}
	return s
}

// Draining reports whether a replica is leaving, so that the connections of access points
// matter.
func (s State) Draining() bool {
	return slices.ContainsFunc(s.Slots, func(l Slot) bool { return l.VEE != "" && !l.Retiring.IsZero() })
}

// Refused gives up the slots of a call that has made nothing. Where there was no room for
// replacements beside the replicas they replace, the component goes on one by one.
func (s State) Refused(call int, noRoom bool) State {
	s = s.clone()
	refused := map[string]string{} // component to spec
	s.Slots = slices.DeleteFunc(s.Slots, func(l Slot) bool {
		if l.Call != call || l.VEE != "" {
			return false
		}
		refused[l.Component] = l.Spec
		return true
	})
	for name, spec := range refused {
		live, old := 0, 0
		for _, l := range s.Slots {
			if l.Component != name {
				continue
			}
			live++
			if l.Spec != spec && l.Retiring.IsZero() {
				old++
			}
		}
		if noRoom && old > 0 {
			if s.Limit == nil {
				s.Limit = map[string]int{}
			}
			s.Limit[name] = live
		}
	}
	return s
}

// observe compares the slots with the VEEs that there are: notes first times, and empties
// slots whose VEE is gone.
func (p *planner) observe() {
	keep := p.s.Slots[:0]
	for _, l := range p.s.Slots {
		v, there := p.w.VEEs[l.VEE]
		if l.VEE != "" && (!there || v.State == vee.Destroyed) {
			if l.Retiring.IsZero() && !p.goal.Deleting {
				p.event(true, "ReplicaLost", "%s (VEE %s) is gone and will be replaced", l.Name(), l.VEE)
				p.lost = append(p.lost, l)
			}
			continue
		}
		if l.Started.IsZero() && v.State == vee.Active {
			l.Started = p.w.Now
		}
		if l.Ready.IsZero() && Ready(v) {
			l.Ready = p.w.Now
			p.event(false, "ReplicaReady", "%s (VEE %s) is ready on host %s", l.Name(), l.VEE, v.Host)
		}
		if l.VEE != "" {
			p.known[l.VEE] = true
		}
		if l.Resized && len(v.NextBoot) > 0 {
			l.Misfit = l.Fit
		}
		l.Idles = l.Idles || v.GuestIdle
		keep = append(keep, l)
	}
	p.s.Slots = keep
}

// Ready reports whether a VEE does its work: its guest says so, or it runs and has no
// agent that could.
func Ready(v vmi.VEE) bool {
	return v.State == vee.Active && (v.GuestReady || v.Phase == vee.PhaseRunning && !v.GuestSeen)
}

// current reports whether l is one of those that c wants now.
func (c Component) current(l Slot) bool {
	return c.stays(l) && l.Spec == c.Spec && (l.Misfit == Fit{} || l.Misfit != c.Fit)
}

// outdated reports whether l will have to be replaced.
func (c Component) outdated(l Slot) bool { return c.stays(l) && !c.current(l) }

// stays reports whether l is one of c's that is not on its way out.
func (c Component) stays(l Slot) bool { return l.Component == c.Name && l.Retiring.IsZero() }

// works reports whether the slot's replica is ready.
func (p *planner) works(l Slot) bool { return Ready(p.w.VEEs[l.VEE]) }

func (p *planner) count(match func(Slot) bool) (n int) {
	for _, l := range p.s.Slots {
		if match(l) {
			n++
		}
	}
	return n
}

// complete reports whether c has every replica that it wants, each at work.
func (p *planner) complete(c Component) bool {
	return p.count(func(l Slot) bool { return c.current(l) && p.works(l) }) >= c.Desired
}

// held reports whether an earlier failure keeps what key names from being tried now.
func (p *planner) held(key string) bool {
	t, ok := p.w.Troubles[key]
	if !ok || !p.w.Now.Before(t.Until) {
		return false
	}
	p.wake(t.Until)
	return true
}

func (p *planner) wake(at time.Time) {
	if p.out.Wake.IsZero() || at.Before(p.out.Wake) {
		p.out.Wake = at
	}
}

func (p *planner) event(warning bool, reason, format string, args ...any) {
	p.out.Events = append(p.out.Events, Event{warning, reason, fmt.Sprintf(format, args...)})
}

func (p *planner) do(a Action) { p.out.Actions = append(p.out.Actions, a) }

// unanswered reports whether a call is still to be answered.
func (p *planner) unanswered() bool {
	return slices.ContainsFunc(p.s.Slots, func(l Slot) bool { return l.VEE == "" })
}
