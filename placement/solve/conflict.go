package solve

import (
	"errors"
	"slices"

	"github.com/reservoir-cloud/reservoir/placement/model"
)

// Contradiction is a smallest set of m's hard rules, as indices into its rules, with which
// Repair finds no placement: with any one of them dropped, it finds one. Empty: the rules are
// not to blame, since there is none without them either. The error is ErrStopped, or says that
// there is a placement.
//
// It divides the rules as QuickXplain does (Junker, "QUICKXPLAIN: preferred explanations and
// relaxations for over-constrained problems", AAAI 2004), and so repairs a model of n rules of
// which k contradict each other some k·log₂(n/k) times.
func Contradiction(m *model.Model, o Options) ([]int, error) {
	x := &contradiction{m: *m, all: m.Rules, options: o}
	var hard []int
	for i, r := range m.Rules {
		if r.Hard() {
			hard = append(hard, i)
		}
	}
	if x.possible(hard) {
		return nil, errors.Join(x.err, errNone)
	}
	if !x.possible(nil) {
		return nil, x.err
	}
	found := x.explain(nil, false, hard)
	slices.Sort(found)
	return found, x.err
}

var errNone = errors.New("nothing contradicts: there is a placement in which all rules hold")

type contradiction struct {
	m       model.Model // with some of the rules
	all     []model.Rule
	options Options
	err     error
}

// possible tells whether Repair finds a placement with these rules; so it seems once the time
// is over.
func (x *contradiction) possible(rules []int) bool {
	x.m.Rules = x.m.Rules[:0:0]
	for _, i := range rules {
		x.m.Rules = append(x.m.Rules, x.all[i])
	}
	_, err := Repair(&x.m, x.options)
	if errors.Is(err, ErrStopped) {
		x.err = err
		return true
	}
	return err == nil
}

// explain which of rules, of which more are known to be too many beside given ones, it takes
// for a contradiction. Added: given has rules since it was last tried.
func (x *contradiction) explain(given []int, added bool, rules []int) []int {
	if x.err != nil || added && !x.possible(given) {
		return nil
	}
	if len(rules) == 1 {
		return rules
	}
	first, rest := rules[:len(rules)/2], rules[len(rules)/2:]
	second := x.explain(slices.Concat(given, first), true, rest)
	return append(x.explain(slices.Concat(given, second), len(second) > 0, first), second...)
}
