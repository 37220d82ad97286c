// Command broker measures how fast a site's broker answers over many partners, and how old
// what it answers by is. The sites are simulated: each has its own authority, certificates,
// registry of partners, connector and HTTPS listener, but no hosts, and all are in this
// process on the loopback interface, reached without proxies.
//
// What it is compared with, in the same run, is the same question with every site asked at
// its time, as a broker without a connector's notifications has to.
package main

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/reservoir-cloud/reservoir/bench/figure"
	"github.com/reservoir-cloud/reservoir/vee"
	"github.com/reservoir-cloud/reservoir/veem/federation/broker"
)

func main() {
	sites := flag.Int("sites", 100, "partners")
	questions := flag.Int("questions", 1000, "of each kind")
	asked := flag.Int("asked", 50, "questions with every site asked at its time")
	flag.Parse()
	if err := run(context.Background(), *sites, *questions, *asked); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// question that about half of the sites fit.
var question = broker.Question{Requirement: `country in ["SE", "FI"] && free.vcpus >= 8 && load < 0.8 && energy != "failing"`, Order: broker.Location,
	Users: &vee.Point{Latitude: 59.3, Longitude: 18.1}}

func run(ctx context.Context, n, questions, asked int) (err error) {
	fmt.Printf("%d simulated sites on the loopback interface, in one process: real HTTPS and certificates, no hosts, no proxies\n\n", n)
	w := &world{}
	defer w.stop()
	home, err := w.site("home")
	if err != nil {
		return err
	}
	start := time.Now()
	for i := range n {
		s, err := w.site(fmt.Sprintf("s%03d", i))
		if err != nil {
			return err
		}
		if err := home.join(ctx, s); err != nil {
			return fmt.Errorf("site %d: %w", i, err)
		}
	}
	fmt.Printf("partners after %v\n", time.Since(start).Round(time.Millisecond))
	if err := home.wait(ctx, n); err != nil {
		return err
	}

	told := measure(questions, func() broker.Answer { return home.answer(ctx) })
	fresh := measure(asked, func() broker.Answer { return home.askAll(ctx) })
	before := home.answer(ctx)
	lost := w.sites[1+rand.IntN(n)]
	lost.close()
	if err := home.wait(ctx, n-1); err != nil {
		return err
	}
	after := measure(questions, func() broker.Answer { return home.answer(ctx) })
	missing := differ(before, home.answer(ctx), lost.name)

	fmt.Printf("\n%-34s %10s %10s %10s %12s\n", "", "median", "p99", "worst", "oldest")
	for _, row := range []struct {
		name string
		r    result
	}{{"told by connectors", told}, {"the same, one site lost", after}, {"every site asked each time", fresh}} {
		fmt.Printf("%-34s %10s %10s %10s %12s\n", row.name, ms(row.r.at(0.5)), ms(row.r.at(0.99)), ms(row.r.at(1)), ms(row.r.oldest))
	}
	fmt.Printf("\nattributes are good for %v; sites change what they have free ten times a second\n", good)
	fmt.Printf("answers by older ones: %d; of the %d sites that are left, %d were missing after one was lost\n\n", told.over+after.over, n-1, missing)
	figure.Line("broker_p99_ms", milli(told.at(0.99)), "ms", "<", 50)
	figure.Line("broker_lost_p99_ms", milli(after.at(0.99)), "ms", "<", 50)
	figure.Line("broker_too_old", float64(told.over+after.over), "answers", "<=", 0)
	figure.Line("broker_lost_missing", float64(missing), "sites", "<=", 0)
	return nil
}

// result of many questions.
type result struct {
	took   []time.Duration // sorted
	oldest time.Duration   // attributes that a site fitted by
	over   int             // answers with attributes beyond their bound
}

func (r result) at(part float64) time.Duration {
	return r.took[min(len(r.took)-1, int(part*float64(len(r.took))))]
}

func measure(n int, ask func() broker.Answer) (r result) {
	for range n {
		start := time.Now()
		a := ask()
		r.took = append(r.took, time.Since(start))
		for _, m := range a.Fit {
			age := time.Duration(m.AgeMS) * time.Millisecond
			r.oldest = max(r.oldest, age)
			if m.AgeMS > m.Offer.GoodMS {
				r.over++
			}
		}
		time.Sleep(time.Millisecond) // questions come one by one, while sites tell
	}
	slices.Sort(r.took)
	return r
}

// differ counts the sites that were answered about and no longer are.
func differ(before, after broker.Answer, lost string) (missing int) {
	has := map[string]bool{lost: true}
	for _, m := range after.Fit {
		has[m.Site] = true
	}
	silent := "does not answer"
	for _, r := range after.Refused {
		has[r.Site] = !slices.ContainsFunc(r.Why, func(w string) bool { return strings.Contains(w, silent) }) || r.Site == lost
	}
	for _, m := range before.Fit {
		if !has[m.Site] {
			missing++
		}
	}
	for _, r := range before.Refused {
		if !has[r.Site] {
			missing++
		}
	}
	return missing
}

func ms(d time.Duration) string     { return fmt.Sprintf("%.2f ms", milli(d)) }
func milli(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
