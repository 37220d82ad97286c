package vee

import "fmt"

// State is what a caller of the VMI asked for and sees (seed 5, table 2.1).
type State string

// The six VMI states.
const (
	Initial   State = "INITIAL"   // described, no place found yet
	Defined   State = "DEFINED"   // place reserved, or stopped with its disks kept
	Active    State = "ACTIVE"    // running
	Paused    State = "PAUSED"    // vCPUs stopped, memory resident
	Suspended State = "SUSPENDED" // memory saved to disk, host freed
	Destroyed State = "DESTROYED" // gone; the identifier is never used again
)

// States in the order of a life.
var States = []State{Initial, Defined, Active, Paused, Suspended, Destroyed}

// Action is what UpdateState is asked to do (seed 5, section 2.5.4: VEEControlAction).
type Action string

// The five control actions.
const (
	Activate Action = "ACTIVATE"
	Pause    Action = "PAUSE"
	Suspend  Action = "SUSPEND"
	Shutdown Action = "SHUTDOWN"
	Destroy  Action = "DESTROY"
)

// Actions in the order of the white paper.
var Actions = []Action{Activate, Pause, Suspend, Shutdown, Destroy}

// transitions has a row for each action: the states it may start from and the one it
// leads to. Destroying a destroyed VEE is allowed and changes nothing, so that a retry
// after a lost answer succeeds.
var transitions = map[Action]struct {
	from []State
	to   State
}{
	Activate: {[]State{Defined, Paused, Suspended}, Active},
	Pause:    {[]State{Active}, Paused},
	Suspend:  {[]State{Active, Paused}, Suspended},
	Shutdown: {[]State{Active, Paused, Suspended}, Defined},
	Destroy:  {States, Destroyed},
}

// TransitionError says that an action is not defined in a state.
type TransitionError struct {
	State  State
	Action Action
}

func (e *TransitionError) Error() string {
	return fmt.Sprintf("%s is not possible in state %s", e.Action, e.State)
}

// After is the state that action a leads to from s, or a *TransitionError. An action whose
// result is already there is refused like any other undefined pair (the white paper has no
// ACTIVE → ACTIVE); callers that retry use an idempotency key.
func (s State) After(a Action) (State, error) {
	t, ok := transitions[a]
	if !ok {
		return "", fmt.Errorf("unknown action %q: want one of %v", a, Actions)
	}
	for _, f := range t.from {
		if f == s {
			return t.to, nil
		}
	}
	return "", &TransitionError{s, a}
}

// Phase is the finer, observed life cycle on the host's side, shown beside the State
// (OpenNebula's names; seed 5, table 2.1).
type Phase string

// Phases, and the VMI state that each is seen under.
const (
	PhasePending   Phase = "PENDING"   // INITIAL: waits for a place
	PhaseProlog    Phase = "PROLOG"    // images are fetched, disks are made
	PhaseBoot      Phase = "BOOT"      // guest started, not known to be ready
	PhaseRunning   Phase = "RUNNING"   // ACTIVE
	PhaseHold      Phase = "HOLD"      // PAUSED
	PhaseSave      Phase = "SAVE"      // memory is written to disk
	PhaseSuspended Phase = "SUSPENDED" // SUSPENDED
	PhaseMigrate   Phase = "MIGRATE"   // ACTIVE, on its way to another host
	PhaseEpilog    Phase = "EPILOG"    // being shut down or removed
	PhaseStopped   Phase = "STOPPED"   // DEFINED, disks kept
	PhaseUnknown   Phase = "UNKNOWN"   // its host does not answer
	PhaseDone      Phase = "DONE"      // DESTROYED
	PhaseFailed    Phase = "FAILED"    // ended without being told to, and not restarted
)

// Progress of a phase that takes long. Total is 0 when it is not known.
type Progress struct {
	Done  int64  `json:"done"`
	Total int64  `json:"total,omitempty"`
	Unit  string `json:"unit"` // "bytes", "steps"
	What  string `json:"what,omitempty"`
}
