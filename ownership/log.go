package ownership

import (
	"slices"

	"github.com/reservoir-cloud/reservoir/vee"
)

// Record of one VEE in a site's log.
type Record struct {
	VEE   vee.ID    `json:"vee"`
	Epoch vee.Epoch `json:"epoch"`
	Host  string    `json:"host,omitempty"` // empty: not here, and nothing up to Epoch is taken
	Taken vee.Epoch `json:"taken"`          // the newest under which it was here

	// Sealing: a give-away at Next is open. Next is never used for two of them.
	Sealing bool      `json:"sealing,omitempty"`
	Next    vee.Epoch `json:"next"`

	// Away is the partner site that may have custody, under the ticket AwayEpoch. With a
	// Host it is open: the VEE is there or here. Without one it is there.
	Away      string    `json:"away,omitempty"`
	AwayEpoch vee.Epoch `json:"awayEpoch,omitzero"`
	AwayDoor  uint64    `json:"awayDoor,omitempty"` // Ticket.Door

	Heard int `json:"heard,omitempty"` // partners that have spoken about it since a restore
}

// Member is a host of the site.
type Member struct {
	Host      string `json:"host"`
	Witnesses uint64 `json:"witnesses"`         // configuration that it has acknowledged
	Awaited   bool   `json:"awaited,omitempty"` // has not reported since a restore
	Fenced    bool   `json:"fenced,omitempty"`  // a person or a power fence says that it is off
	// Upkeep is odd while the host is in maintenance (Disk.Upkeep); Heeded is the newest that
	// it has acknowledged.
	Upkeep uint64 `json:"upkeep,omitempty"`
	Heeded uint64 `json:"heeded,omitempty"`
}

// mortal: the host's guard is armed for certain, so that its guests end with its lease.
func (m Member) mortal() bool { return m.Upkeep%2 == 0 && m.Heeded == m.Upkeep }

// Log is a site's record of truth: linearisable, durable, changed by Apply alone.
type Log struct {
	Site       string       `json:"site"`
	Generation uint64       `json:"generation"`
	Leader     uint64       `json:"leader"`    // grows with each election
	Witnesses  []WitnessSet `json:"witnesses"` // the newest last; older ones until nobody uses them
	Members    []Member     `json:"members"`
	Partners   []string     `json:"partners,omitempty"`
	Restored   bool         `json:"restored,omitempty"` // this generation began from a backup
	Records    []Record     `json:"records"`
}

// Commit is a transaction: it takes place if Leader leads and Old is still what the log
// says. Exactly one of the pairs is set.
type Commit struct {
	Leader     uint64
	Generation uint64
	Old, New   Record  // of one VEE; the zero Old: there is none
	OldM, NewM *Member // of one host; nil OldM: there is none
	For        ReadLog // what to go on with, in a ReadDone, whether it took place or not
}

// Record of a VEE, or the zero one.
func (l Log) Record(id vee.ID) Record {
	for _, r := range l.Records {
		if r.VEE == id {
			return r
		}
	}
	return Record{}
}

func (l Log) member(host string) (Member, bool) {
	for _, m := range l.Members {
		if m.Host == host {
			return m, true
		}
	}
	return Member{}, false
}

// recovering reports whether a restored log still waits for hosts.
func (l Log) recovering() bool {
	return slices.ContainsFunc(l.Members, func(m Member) bool { return m.Awaited && !m.Fenced })
}

// Apply a commit; false and the same log when its conditions do not hold.
func (l Log) Apply(c Commit) (Log, bool) {
	if c.Leader != l.Leader || c.Generation != l.Generation {
		return l, false
	}
	if c.NewM != nil {
		m, ok := l.member(c.NewM.Host)
		if ok != (c.OldM != nil) || ok && m != *c.OldM {
			return l, false
		}
		return l.withMember(*c.NewM), true
	}
	if l.Record(c.New.VEE) != c.Old {
		return l, false
	}
	records := slices.Clone(l.Records)
	i := slices.IndexFunc(records, func(r Record) bool { return r.VEE == c.New.VEE })
	if i < 0 {
		records, i = append(records, Record{}), len(records)
	}
	records[i] = c.New
	l.Records = records
	return l, true
}

func (l Log) withMember(n Member) Log {
	members := slices.Clone(l.Members)
	if i := slices.IndexFunc(members, func(m Member) bool { return m.Host == n.Host }); i >= 0 {
		members[i] = n
	} else {
		members = append(members, n)
	}
	l.Members = members
	// A witness set that no member uses any more has no say any more.
	for len(l.Witnesses) > 1 && !slices.ContainsFunc(members, func(m Member) bool { return m.Witnesses < l.Witnesses[1].Config }) {
		l.Witnesses = l.Witnesses[1:]
	}
	return l
}

// Elect is a new leader's first write.
func (l Log) Elect() Log {
	l.Leader++
	return l
}

// Reconfigure puts a new witness set beside the ones in force.
func (l Log) Reconfigure(members []string) Log {
	last := l.Witnesses[len(l.Witnesses)-1]
	l.Witnesses = append(slices.Clone(l.Witnesses), WitnessSet{Config: last.Config + 1, Members: slices.Clone(members)})
	return l
}

// Restore makes the log of a new generation from a backup. Generation is larger than any
// that the site ever had; who restores takes it from the clock or from the hosts. Every VEE
// is in doubt: a give-away is open for each, and none happens before the hosts have spoken.
func Restore(backup Log, generation uint64) Log {
	l := backup
	l.Generation, l.Restored = generation, true
	l.Leader++
	l.Members = slices.Clone(backup.Members)
	for i := range l.Members {
		l.Members[i].Awaited, l.Members[i].Fenced = true, false
	}
	l.Records = slices.Clone(backup.Records)
	for i := range l.Records {
		r := &l.Records[i]
		r.Heard = 0
		if r.Host != "" {
			r.Sealing, r.Next = true, l.next(*r)
		}
	}
	return l
}

// next epoch of a give-away: newer than all before it, and never proposed before.
func (l Log) next(r Record) vee.Epoch {
	e := vee.Epoch{Generation: max(l.Generation, r.Epoch.Generation, r.Next.Generation), Term: max(r.Epoch.Term, r.Next.Term) + 1}
	return e
}
