package trade

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/reservoir-cloud/reservoir/account"
	"github.com/reservoir-cloud/reservoir/account/billing"
	"github.com/reservoir-cloud/reservoir/account/money"
	"github.com/reservoir-cloud/reservoir/manifest"
	"github.com/reservoir-cloud/reservoir/sm/sla"
	"github.com/reservoir-cloud/reservoir/smi"
	"github.com/reservoir-cloud/reservoir/vee"
)

// Kinds of promises.
const (
	availability = "availability"
	onKPI        = "kpi"
	restart      = "restart"
)

// protections are what may be done for a promise before it is broken.
var protections = []string{"", "scaleUp", "spare", "migrate", "restart"}

// promises of a manifest: those of the service, then those of its components.
func promises(s *manifest.Service) (list []smi.Promise) {
	of := func(component string, a *manifest.Availability, kpis []manifest.Constraint, r *manifest.RestartTime) {
		name := func(n string) string { return strings.TrimSpace(component + " " + n) }
		if a != nil {
			list = append(list, smi.Promise{Name: name(availability), Kind: availability, Component: component,
				WindowMS: time.Duration(a.Window).Milliseconds(), Percent: a.Percentile, Penalty: a.Penalty, Protection: a.Protection})
		}
		for i, c := range kpis {
			p := smi.Promise{Name: name(c.Name), Kind: onKPI, Component: component, KPI: c.KPI, Min: c.Range.Min, Max: c.Range.Max,
				WindowMS: time.Duration(c.Window).Milliseconds(), Percent: c.Percentage, Penalty: c.Penalty, Protection: c.Protection}
			if c.Name == "" {
				p.Name = name(c.KPI)
			}
			if slices.ContainsFunc(list, func(o smi.Promise) bool { return o.Name == p.Name }) {
				p.Name = fmt.Sprintf("%s %d", p.Name, i+1)
			}
			list = append(list, p)
		}
		if r != nil {
			list = append(list, smi.Promise{Name: name("restart time"), Kind: restart, Component: component,
				WithinMS: time.Duration(r.Within).Milliseconds(), Penalty: r.Penalty, Protection: r.Protection})
		}
	}
	of("", s.Availability, s.Performance, s.RestartTime)
	for _, c := range s.Components {
		of(c.Name, c.Availability, c.Performance, c.RestartTime)
	}
	return list
}

// objective that keeps the score of a promise of availability or on a KPI. One observation
// stands for gap.
func objective(p smi.Promise, gap time.Duration) sla.Objective {
	return sla.Objective{Name: p.Name, Window: ms(p.WindowMS), Percent: p.Percent, Min: p.Min, Max: p.Max, Gap: gap}
}

func formula(p smi.Promise, currency string) (sla.Formula, error) {
	f, err := sla.ParseFormula(p.Penalty, currency)
	if err != nil {
		return f, fmt.Errorf("penalty of %s: %w", p.Name, err)
	}
	// A division by zero is told now, not when it is due.
	if _, err := f.Of(money.Of(1, 1), time.Minute); err != nil {
		return f, fmt.Errorf("penalty of %s: %w", p.Name, err)
	}
	return f, nil
}

// check what no site can promise.
func check(p smi.Promise, currency string) error {
	if !slices.Contains(protections, p.Protection) {
		return fmt.Errorf("protection of %s: %q: want one of %s", p.Name, p.Protection, strings.Join(protections[1:], ", "))
	}
	if p.Kind != restart {
		if err := objective(p, 0).Check(); err != nil {
			return err
		}
	}
	_, err := formula(p, currency)
	return err
}

func ms(n int64) time.Duration { return time.Duration(n) * time.Millisecond }

// hourly price of running VEEs: by component what one is made of, and how many.
func hourly(list billing.PriceList, sizes map[string]vee.Descriptor, replicas func(component string) int) (sum money.Amount) {
	const hour = 3_600_000
	for component, d := range sizes {
		used := account.Meter{}.To(hour, account.RateOf(vee.Active, d)).Used
		for _, m := range billing.Meters {
			cost := m.Quantity(m.Of(used)).Times(list.Prices[m])
			sum = sum.Plus(cost.Times(money.Of(int64(replicas(component)), 1)))
		}
	}
	return sum
}

// price of an hour of a service at its least, initial and most replicas.
func price(list billing.PriceList, q Quote) smi.HourlyPrice {
	of := func(n func(manifest.Replicas) int) money.Amount {
		return hourly(list, q.Sizes, func(component string) int {
			if c := q.Manifest.Component(component); c != nil {
				return n(c.Replicas)
			}
			return 0
		})
	}
	return smi.HourlyPrice{
		Least:   of(func(r manifest.Replicas) int { return r.Min }),
		Initial: of(func(r manifest.Replicas) int { return r.Initial }),
		Most:    of(func(r manifest.Replicas) int { return r.Max }),
	}
}

// words of a manifest that a contract is about: all but what it says of offers and contracts.
func words(s *manifest.Service) (string, error) {
	bare := *s
	bare.Offer, bare.Contract = nil, nil
	text, err := bare.YAML()
	return string(text), err
}
