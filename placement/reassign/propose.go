package reassign

import "math/rand/v2"

// proposer draws the moves of one worker. Shares of them are chains and shifts, changes of
// place within a service, and changes of place of VEEs of about the same size.
type proposer struct {
	*terrain
	random *rand.PCG
}

const (
	chains   = .4
	shifts   = .3
	siblings = .1
)

// propose a move that costs limit at most; false: it found none.
func (p *proposer) propose(s *state, limit int64) (m move, ok bool) {
	v := p.movable[p.below(len(p.movable))]
	service, a := s.Service[v], int(s.at[v])
	switch kind := p.uniform(); {
	case kind < chains:
		b := p.host(v)
		w := s.on(service, b)
		if w == none {
			guests := s.guests[b]
			if len(guests) == 0 {
				return m, false
			}
			w = int(guests[p.below(len(guests))])
		}
		c := int(s.Initial[w])
		if c == b || p.below(4) == 0 {
			c = p.host(w)
		}
		return p.replace(s, v, w, c, limit)
	case kind < chains+shifts:
		b := p.host(v)
		if w := s.on(service, b); w != none {
			return p.replace(s, v, w, a, limit)
		}
		if !p.reaches(v, b) {
			return m, false
		}
		return s.shift(v, b, limit)
	case kind < chains+shifts+siblings && len(p.family[service]) > 1:
		family := p.family[service]
		return p.replace(s, v, int(family[p.below(len(family))]), a, limit)
	default:
		w := p.peer(v)
		if u := s.on(service, int(s.at[w])); u != none {
			w = u
		}
		return p.replace(s, v, w, a, limit)
	}
}

func (p *proposer) replace(s *state, v, w, c int, limit int64) (m move, ok bool) {
	if !p.reaches(v, int(s.at[w])) || !p.reaches(w, c) {
		return m, false
	}
	return s.replace(v, w, c, limit)
}

// host for v, which it may not reach if it reaches most.
func (p *proposer) host(v int) int {
	if few := p.few[v]; few != nil {
		return int(few[p.below(len(few))])
	}
	return p.below(p.problem.Hosts)
}

// peer of v to change places with: mostly one of about its size.
func (p *proposer) peer(v int) int {
	if p.random.Uint64()&3 == 0 {
		return p.below(len(p.bySize))
	}
	const reach = 32
	i := p.rank[v] + p.below(2*reach+1) - reach
	return p.bySize[min(max(i, 0), len(p.bySize)-1)]
}

// below is a random number in [0, n).
func (p *proposer) below(n int) int {
	return int((p.random.Uint64() >> 32) * uint64(n) >> 32)
}

// uniform in [0, 1).
func (p *proposer) uniform() float64 { return float64(p.random.Uint64()>>11) / (1 << 53) }
