package site

import (
	"time"

	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/vhi"
)

// Relief is when hosts relieve each other of VEEs by themselves (docs/dvms.md).
type Relief struct {
	// Overload and Underload are parts of a host's physical CPUs that its guests take: above
	// the one it asks its neighbours to take some, below the other to take all. 0: never.
	Overload, Underload float64
	Calm                float64       // that an overloaded host is brought to
	Lasts               time.Duration // before anything is done
}

func (r Relief) check() error {
	bad := func(format string, args ...any) error {
		return fault.New(fault.Malformed, format, args...).Try("reservoir site --help")
	}
	switch {
	case !(r.Overload >= 0) || r.Overload > 1 || !(r.Underload >= 0) || r.Underload > 1:
		return bad("overload %v, underload %v: want parts of a host's CPUs, from 0 to 1", r.Overload, r.Underload)
	case r.Overload > 0 && (!(r.Calm > 0) || r.Calm > r.Overload):
		return bad("hosts are overloaded above %v and brought to %v: want no more than the former", r.Overload, r.Calm)
	case r.Overload > 0 && r.Underload >= r.Calm:
		return bad("hosts with less than %v of their CPUs taken give their VEEs away, and those that are overloaded are brought to %v: VEEs would go back and forth", r.Underload, r.Calm)
	case r.Lasts < 0:
		return bad("overload that lasts %v: want no negative time", r.Lasts)
	}
	return nil
}

// relief as hosts are told of it.
func (c Config) relief() vhi.Relief {
	r := c.Relief
	return vhi.Relief{Overload: r.Overload, Calm: r.Calm, Underload: r.Underload, LastsMS: int64(float64(r.Lasts.Milliseconds()) * c.HAScale)}
}
