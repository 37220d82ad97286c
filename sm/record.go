package sm

import (
	"fmt"
	"time"

	"github.com/reservoir-cloud/reservoir/sm/deploy"
	"github.com/reservoir-cloud/reservoir/vee"
)

// record of a service: what its provider wants and how far it is.
type record struct {
	ID       string `json:"id"` // never reused; the GroupID of its VEEs
	Customer string `json:"customer"`
	Name     string `json:"name"`
	Revision int    `json:"revision"`
	Oldest   int    `json:"oldest"` // revision that is kept
	// Generation grows at each change of goal.
	Generation int            `json:"generation"`
	Desired    map[string]int `json:"desired"` // replicas by component
	BestEffort bool           `json:"bestEffort,omitempty"`
	Deleting   bool           `json:"deleting,omitempty"`
	Asleep     bool           `json:"asleep,omitempty"`
	DeployKey  string         `json:"deployKey,omitempty"` // idempotency key of the newest Deploy
	Created    time.Time      `json:"created"`
	Changed    time.Time      `json:"changed"` // of goal or phase
	State      deploy.State   `json:"state"`

	// Update that may be undone; nil: none is under way. Undone is why the last one was.
	Update *updating `json:"update,omitempty"`
	Undone string    `json:"undone,omitempty"`

	// Ceded: it is another site's now. Adopted: it was another site's.
	Ceded   *ceded   `json:"ceded,omitempty"`
	Adopted *adopted `json:"adopted,omitempty"`

	// Of components that change their size by rules.
	Sizes  map[string]size   `json:"sizes,omitempty"`  // of each replica, where it is not the manifest's
	Scaled map[string]scaled `json:"scaled,omitempty"` // when their size changed last
	Paused map[string]bool   `json:"paused,omitempty"` // rules that do not decide
}

// size of each replica of a component.
type size struct {
	VCPUs  int       `json:"vcpus,omitempty"`  // 0: the manifest's
	Memory vee.Bytes `json:"memory,omitempty"` // bytes; 0: the manifest's
}

// scaled is a change of a component's size. A rule's cool-down goes on after a restart.
type scaled struct {
	At   time.Time `json:"at"`
	Kind string    `json:"kind"`
	Rule string    `json:"rule,omitempty"` // empty: a person
	To   int       `json:"to"`             // replicas
	size
	Why string `json:"why"`
}

// resized notes a change of a component's size.
func (r *record) resized(component string, s scaled) {
	m := map[string]scaled{component: s} // the maps of a record may be shared
	for k, v := range r.Scaled {
		if k != component {
			m[k] = v
		}
	}
	r.Scaled = m
}

func (r record) key() string { return recordKey(r.Customer, r.Name) }

func recordKey(customer, name string) string { return customer + "/" + name }

// revisionKey sorts by number.
func revisionKey(id string, n int) string { return fmt.Sprintf("%s/%08d", id, n) }

// revision of a manifest, as it was handed in. It is never changed: a call to the VMI that
// was decided upon it can be repeated word for word.
type revision struct {
	Text   string              `json:"text"`
	File   string              `json:"file,omitempty"`
	Images map[string]imageRef `json:"images"` // by reference as the manifest has it
	Specs  map[string]string   `json:"specs"`  // by component: what its VEEs are made of
}

// imageRef is what a reference meant when the manifest was handed in.
type imageRef struct {
	Digest string    `json:"digest"`
	Size   vee.Bytes `json:"sizeBytes"`
}

// newGoal starts another generation: everything that was reached has to be reached anew.
func (r *record) newGoal(now time.Time) {
	r.Generation++
	r.Changed = now
	r.State.Settled = false
}
