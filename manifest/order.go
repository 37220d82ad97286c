package manifest

import (
	"slices"
	"strings"
)

// CycleError says that components wait for each other.
type CycleError struct{ Components []string } // the first is not repeated at the end

func (e *CycleError) String() string {
	return strings.Join(append(slices.Clone(e.Components), e.Components[0]), " → ")
}

func (e *CycleError) Error() string { return "start order has a cycle: " + e.String() }

// StartOrder groups the components by when they may start: those of a group together,
// each group after the one before. A component waits for those that it names in
// StartAfter, and one with an order number above 0 for those with a smaller number above
// 0 (DSP0243, section 9.6). The reverse is the order of stop. The error, if any, is a
// *CycleError.
func (s *Service) StartOrder() ([][]string, error) {
	waits := map[string][]string{} // component → those that it waits for
	for _, c := range s.Components {
		waits[c.Name] = slices.Clone(c.StartAfter)
		if c.order() == 0 {
			continue
		}
		for _, o := range s.Components {
			if o.order() > 0 && o.order() < c.order() {
				waits[c.Name] = append(waits[c.Name], o.Name)
			}
		}
	}
	level := map[string]int{} // 1 for those that wait for nobody
	var trail []string
	var visit func(name string) error
	visit = func(name string) error {
		if i := slices.Index(trail, name); i >= 0 {
			return &CycleError{slices.Clone(trail[i:])}
		}
		if level[name] > 0 {
			return nil
		}
		trail = append(trail, name)
		depth := 1
		for _, w := range waits[name] {
			if err := visit(w); err != nil {
				return err
			}
			depth = max(depth, level[w]+1)
		}
		trail = trail[:len(trail)-1]
		level[name] = depth
		return nil
	}
	var groups [][]string
	for _, c := range s.Components {
		if err := visit(c.Name); err != nil {
			return nil, err
		}
	}
	for _, c := range s.Components {
		for len(groups) < level[c.Name] {
			groups = append(groups, nil)
		}
		groups[level[c.Name]-1] = append(groups[level[c.Name]-1], c.Name)
	}
	return groups, nil
}

func (c *Component) order() int {
	if c.Startup == nil {
		return 0
	}
	return c.Startup.Order
}
