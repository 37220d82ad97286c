package balance

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/reservoir-cloud/reservoir/van/plan"
)

// Door leads connections, or datagrams, to one address on to another, and their answers back.
type Door struct {
	At  netip.AddrPort
	UDP bool
	To  netip.AddrPort
}

// doorTable of the rules, which are those of access points with one backend.
const doorTable = "reservoir-doors"

// PutDoors makes these the doors of the calling thread's network namespace, and there are no
// others. A connection that is led goes on whatever becomes of its door; what is led by none is
// not forwarded, where this namespace forwarded nothing before. fault.Unsupported when this
// process may not change the firewall.
func PutDoors(doors []Door) error {
	k := newKernel(doorTable)
	if len(doors) == 0 && !k.there() {
		return nil
	}
	if err := k.open(); err != nil {
		return err
	}
	keep := make(map[target]string, len(doors))
	var errs []error
	for _, d := range doors {
		t := target{d.At, d.UDP}
		if keep[t] != "" {
			return fmt.Errorf("there are two doors at %v", t)
		}
		keep[t] = chainOf(t.String())
		errs = append(errs, k.put(t.String(), t, plan.RoundRobin, []netip.AddrPort{d.To}))
	}
	return errors.Join(append(errs, k.sweep(keep))...)
}
