package settlement

import (
	"bytes"
	"encoding/json"
	"flag"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/reservoir-cloud/reservoir/account"
	"github.com/reservoir-cloud/reservoir/account/billing"
	"github.com/reservoir-cloud/reservoir/account/focus"
	"github.com/reservoir-cloud/reservoir/account/money"
	"github.com/reservoir-cloud/reservoir/vee"
	"github.com/reservoir-cloud/reservoir/vmi"
)

var update = flag.Bool("update", false, "rewrite the golden files")

var t0 = time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC)

const (
	hour  = 3_600_000
	deal  = "beta.xsfew2b63m"
	web1  = vee.ID("alpha.aaaaaaaaaa")
	web2  = vee.ID("alpha.bbbbbbbbbb")
	month = 30 * 24 * hour
)

var small = account.Size{VCPUs: 1, MemoryMiB: 512, DiskMiB: 1024}

func at(ms int64) time.Time { return t0.Add(time.Duration(ms) * time.Millisecond) }

func step(ms int64, s vee.State, wanted bool, z account.Size) vmi.Step {
	return vmi.Step{At: at(ms), State: s, Counted: &vmi.Counted{Agreement: deal, Wanted: wanted, Size: z}}
}

func ms(after int64) int64 { return at(after).UnixMilli() }

// drawLife of a VEE at a lender, a month at most.
func drawLife(t *rapid.T) (steps []vmi.Step) {
	now := int64(0)
	for range rapid.IntRange(1, 20).Draw(t, "steps") {
		now += rapid.Int64Range(0, month/20).Draw(t, "ms")
		z := account.Size{VCPUs: rapid.Int64Range(1, 8).Draw(t, "vcpus"), MemoryMiB: rapid.Int64Range(1, 4096).Draw(t, "MiB")}
		s := step(now, rapid.SampledFrom(vee.States).Draw(t, "state"), rapid.Bool().Draw(t, "wanted"), z)
		s.At = s.At.Add(time.Duration(len(steps))) // within one ms
		steps = append(steps, s)
	}
	return steps
}

// heardInLooks is the log of who looks now and then, and sees the newest steps alone.
func heardInLooks(t *rapid.T, steps []vmi.Step, seen int, sight Sight) (l Log) {
	var last vmi.Step
	for n := 0; n < len(steps); {
		n = min(len(steps), n+rapid.IntRange(0, seen).Draw(t, "until the next look"))
		l, last, _ = l.Hear(steps[max(0, n-seen):n], last, sight)
	}
	return l
}

// However often each of two sites looks, and whatever it hears again, their books agree to the
// unit, and so do the bills. What is cut at any moment sums up to the whole.
func TestBooksOfTheSameLifeAgree(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		steps := drawLife(t)
		ours := heardInLooks(t, steps, 8, Own())
		theirs := heardInLooks(t, steps, 5, Sight{AfterMS: ms(0), BeforeMS: ms(month), Most: &account.Size{VCPUs: 8, MemoryMiB: 4096}})
		until := ms(rapid.Int64Range(1, month).Draw(t, "until"))
		a, b := ours.Lines(web1, "web-1", deal, ms(0), ms(month)), theirs.Lines(web1, "web-1", deal, ms(0), ms(month))
		if err := Check(b, "alpha", ms(0), ms(month)); err != nil {
			t.Fatal(err)
		}
		if d := Compare(a, b); d != nil {
			t.Fatalf("%+v", d)
		}
		if d := Compare(Clip(a, until), ours.Lines(web1, "", deal, ms(0), until)); d != nil {
			t.Fatalf("clipped: %+v", d)
		}
		for k := 1; k < len(a); k++ {
			if a[k].FromMS < a[k-1].ToMS {
				t.Fatalf("%+v overlaps %+v", a[k], a[k-1])
			}
		}
		x, err := terms().Bill("", a, t0, at(month))
		y, err2 := terms().Bill("", b, t0, at(month))
		if err != nil || err2 != nil || x.Total.Compare(y.Total) != 0 {
			t.Fatalf("%v, %v: %v and %v", err, err2, x.Total, y.Total)
		}
	})
}

// A step that one of them never saw is a difference, in the time that it is about and nowhere
// else, and all differences sum up to that of the totals.
func TestALostStepIsFound(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		steps := drawLife(t)
		ours, _, _ := Log(nil).Hear(steps, vmi.Step{}, Own())
		k := rapid.IntRange(0, len(steps)-1).Draw(t, "lost")
		theirs, _, _ := Log(nil).Hear(slices.Delete(slices.Clone(steps), k, k+1), vmi.Step{}, Own())
		from, until := steps[k].At.UnixMilli(), ms(month)
		if k+1 < len(steps) {
			until = steps[k+1].At.UnixMilli()
		}
		a, b := ours.Lines(web1, "", deal, ms(0), ms(month)), theirs.Lines(web1, "", deal, ms(0), ms(month))
		sum := map[billing.Meter]int64{}
		for _, l := range a {
			for _, m := range meters {
				sum[m] += l.of(m)
			}
		}
		for _, l := range b {
			for _, m := range meters {
				sum[m] -= l.of(m)
			}
		}
		for _, d := range Compare(a, b) {
			sum[d.Meter] -= d.Ours - d.Theirs
			// An outage lasts on: whether a VEE had run before is what the lost step said.
			if d.FromMS < from || d.ToMS > until && d.Meter != Outage || d.Ours == d.Theirs || d.VEE != web1 {
				t.Fatalf("step %d, from %d until %d: %+v", k, from, until, d)
			}
		}
		for m, v := range sum {
			if v != 0 {
				t.Fatalf("%s: %d are not told of", m, v)
			}
		}
	})
}

// What cannot have been so is not believed.
func TestWhatIsNotBelieved(t *testing.T) {
	sight := Sight{AfterMS: ms(10 * hour), BeforeMS: ms(11 * hour), Most: &small}
	base, heard, doubted := Log(nil).Hear([]vmi.Step{step(10*hour, vee.Active, true, small)}, vmi.Step{}, sight)
	if doubted != 0 || len(base) != 1 {
		t.Fatalf("%+v, %d", base, doubted)
	}
	large := small
	large.VCPUs = 64
	for name, c := range map[string]struct {
		told vmi.Step
		want Event
	}{
		"dated back":    {step(2*hour, vee.Defined, false, small), Event{ms(10 * hour), vee.Defined, vmi.Counted{Agreement: deal, Size: small}}},
		"dated ahead":   {step(20*hour, vee.Defined, false, small), Event{ms(11 * hour), vee.Defined, vmi.Counted{Agreement: deal, Size: small}}},
		"larger":        {step(10*hour+5, vee.Active, true, large), Event{}},
		"less than nil": {step(10*hour+5, vee.Paused, true, account.Size{VCPUs: -1}), Event{ms(10*hour + 5), vee.Paused, vmi.Counted{Agreement: deal, Wanted: true, Size: small}}},
	} {
		got, _, doubted := base.Hear([]vmi.Step{step(10*hour, vee.Active, true, small), c.told}, heard, sight)
		if doubted != 1 {
			t.Errorf("%s: %d doubted", name, doubted)
		}
		if c.want == (Event{}) && len(got) != 1 || c.want != (Event{}) && (len(got) != 2 || got[1] != c.want) {
			t.Errorf("%s: %+v", name, got)
		}
	}
	// What was smaller and was told so before stays believed while it is made smaller.
	got, _, doubted := base.Hear([]vmi.Step{step(10*hour+5, vee.Paused, true, small)}, heard, Sight{AfterMS: ms(0), BeforeMS: ms(11 * hour), Most: &account.Size{VCPUs: 1}})
	if doubted != 0 || len(got) != 2 {
		t.Errorf("made smaller: %+v, %d doubted", got, doubted)
	}
}

// The hour that the lender's clock has jumped over is in its own book and not in ours; one
// that it was set back by is in neither.
func TestAClockThatIsSet(t *testing.T) {
	steps := []vmi.Step{step(0, vee.Active, true, small), step(2*hour, vee.Defined, false, small)}
	theirs, _, _ := Log(nil).Hear(steps, vmi.Step{}, Own())
	ours, heard, _ := Log(nil).Hear(steps[:1], vmi.Step{}, Own())
	ours = ours.Skip(ms(hour/2), ms(hour/2+hour))
	ours, _, _ = ours.Hear(steps, heard, Own())
	var found []string
	for _, d := range Compare(ours.Lines(web1, "", deal, ms(0), ms(3*hour)), theirs.Lines(web1, "", deal, ms(0), ms(3*hour))) {
		found = append(found, string(d.Meter))
		if d.FromMS != ms(hour/2) || d.ToMS != ms(hour/2+hour) || d.Ours != 0 {
			t.Errorf("%+v", d)
		}
	}
	if !slices.Equal(found, []string{"vee", "vcpu", "memory", "disk"}) {
		t.Errorf("found %v", found)
	}
	back := []vmi.Step{step(2*hour, vee.Active, true, small), step(hour, vee.Paused, false, small), step(3*hour, vee.Destroyed, false, small)}
	l, _, _ := Log(nil).Hear(back, vmi.Step{}, Own())
	again, _, _ := Log(nil).Hear(back[:2], vmi.Step{}, Own())
	again, _, _ = again.Hear(back, back[1], Own())
	want := []Line{{VEE: web1, Interval: account.Interval{FromMS: ms(2 * hour), ToMS: ms(3 * hour), Used: account.Meter{AtMS: 0}.To(hour, small.Rate(vee.Paused)).Used}}}
	if got := l.Lines(web1, "", deal, ms(0), ms(month)); !slices.Equal(got, want) || Compare(got, again.Lines(web1, "", deal, ms(0), ms(month))) != nil {
		t.Errorf("set back: %+v", got)
	}
}

// Two steps at one moment, between which somebody looked.
func TestStepsAtOneMoment(t *testing.T) {
	steps := []vmi.Step{step(0, vee.Active, true, small), step(hour, vee.Active, false, small), step(hour, vee.Defined, false, small)}
	l, heard, _ := Log(nil).Hear(steps[:2], vmi.Step{}, Own())
	l, heard, _ = l.Hear(steps, heard, Own())
	again, _, _ := l.Hear(steps, heard, Own())
	if len(l) != 3 || l[2].State != vee.Defined || len(again) != 3 {
		t.Errorf("%+v, then %+v", l, again)
	}
}

func TestALenderThatShowsAVEENoLonger(t *testing.T) {
	l, _, _ := Log(nil).Hear([]vmi.Step{step(0, vee.Active, true, small)}, vmi.Step{}, Own())
	l = l.Gone(ms(hour))
	if lines := l.Lines(web1, "", deal, ms(0), ms(month)); len(lines) != 1 || lines[0].ToMS != ms(hour) || !l.Ended() || len(l.Gone(ms(2*hour))) != 2 {
		t.Errorf("%+v", l)
	}
}

// What a partner tells that cannot be a book is refused before anything is made of it.
func TestWhatIsNoBook(t *testing.T) {
	line := func(id vee.ID, from, to, used int64) Line {
		return Line{VEE: id, Interval: account.Interval{FromMS: from, ToMS: to, Used: account.Usage{ActiveMS: used}}}
	}
	for name, c := range map[string][]Line{
		"a VEE of another site":  {line("gamma.aaaaaaaaaa", 0, 10, 10)},
		"no VEE":                 {line("x", 0, 10, 10)},
		"before the time":        {line(web1, -1, 10, 10)},
		"after the time":         {line(web1, 0, 101, 10)},
		"no time":                {line(web1, 5, 5, 0)},
		"out of order":           {line(web2, 0, 10, 0), line(web1, 0, 10, 0)},
		"over another":           {line(web1, 0, 10, 0), line(web1, 9, 20, 0)},
		"twice":                  {line(web1, 0, 10, 0), line(web1, 0, 10, 0)},
		"less than nothing":      {line(web1, 0, 10, -1)},
		"more than there can be": {line(web1, 0, 10, most), line(web1, 10, 20, 1)},
		"an outage too long":     {{VEE: web1, Interval: account.Interval{FromMS: 0, ToMS: 10}, OutMS: 11}},
	} {
		if err := Check(c, "alpha", 0, 100); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
	if err := Check([]Line{line(web1, 0, 10, 10), line(web1, 10, 20, 10), line(web2, 0, 100, 0)}, "alpha", 0, 100); err != nil {
		t.Error(err)
	}
}

// Whatever a partner sends, what passes Check can be compared and billed.
func FuzzTheirBook(f *testing.F) {
	f.Add([]byte(`[{"vee":"alpha.aaaaaaaaaa","fromMs":1,"toMs":9,"used":{"activeMs":8,"vcpuMs":8},"outMs":0}]`))
	f.Add([]byte(`[{"vee":"alpha.aaaaaaaaaa","fromMs":1,"toMs":9,"used":{"diskMiBMs":1152921504606846976}}]`))
	l, _, _ := Log(nil).Hear([]vmi.Step{step(0, vee.Active, true, small)}, vmi.Step{}, Own())
	ours := l.Lines(web1, "", deal, ms(0), ms(month))
	f.Fuzz(func(t *testing.T, text []byte) {
		var lines []Line
		if json.Unmarshal(text, &lines) != nil || Check(lines, "alpha", 0, ms(month)) != nil {
			return
		}
		for _, d := range Compare(ours, lines) {
			if d.FromMS >= d.ToMS || d.Ours == d.Theirs || d.Ours < 0 || d.Theirs < 0 {
				t.Fatalf("%+v", d)
			}
		}
		if _, err := terms().Bill("", lines, time.UnixMilli(0), at(month)); err != nil {
			t.Fatal(err)
		}
	})
}

func price(s string) money.Amount {
	a, err := money.Parse(s)
	if err != nil {
		panic(err)
	}
	return a
}

func terms() Terms {
	return Terms{Agreement: deal, Lender: "beta", Borrower: "alpha", Currency: "EUR", Places: 2,
		Prices:       map[billing.Meter]money.Amount{billing.VEEs: price("0.001"), billing.VCPUs: price("0.02"), billing.Memory: price("0.005")},
		Availability: price("0.999"), CreditPercent: price("10")}
}

// A VEE that broke down for two hours is credited; its first start is nobody's fault.
func TestBill(t *testing.T) {
	one := []vmi.Step{step(0, vee.Defined, true, small), step(hour, vee.Active, true, small), step(101*hour, vee.Defined, true, small), step(103*hour, vee.Active, true, small), step(400*hour, vee.Destroyed, false, small)}
	two := []vmi.Step{step(0, vee.Active, true, small), step(300*hour, vee.Suspended, false, small), step(500*hour, vee.Active, true, small)}
	a, _, _ := Log(nil).Hear(one, vmi.Step{}, Own())
	b, _, _ := Log(nil).Hear(two, vmi.Step{}, Own())
	lines := append(a.Lines(web1, "web-1", deal, ms(0), ms(month)), b.Lines(web2, "web-2", deal, ms(0), ms(month))...)
	v, err := terms().Bill("beta.xsfew2b63m/2026-11", lines, t0, at(month))
	if err != nil {
		t.Fatal(err)
	}
	const file = "testdata/bill.txt"
	if *update {
		if err := os.WriteFile(file, []byte(v.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if want, err := os.ReadFile(file); err != nil || string(want) != v.String() {
		t.Errorf("%v: it is now\n%s", err, v)
	}
	var rows bytes.Buffer
	if err := focus.Write(&rows, v); err != nil || strings.Count(rows.String(), "\n") != 1+6+1+1 {
		t.Errorf("%v\n%s", err, rows.String())
	}
}

func TestMonth(t *testing.T) {
	from, until, err := Month("2026-12")
	if err != nil || MonthOf(from) != "2026-12" || MonthOf(until) != "2027-01" {
		t.Errorf("%v until %v: %v", from, until, err)
	}
	for _, bad := range []string{"", "2026", "2026-13", "2026-11-01", "../x"} {
		if _, _, err := Month(bad); err == nil {
			t.Errorf("%q is taken", bad)
		}
	}
}
