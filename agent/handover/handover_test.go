package handover

import (
	"testing"

	"github.com/reservoir-cloud/reservoir/vee"
)

var start = vee.Epoch{Generation: 1, Term: 3, Hop: 7}

func hop(n uint64) vee.Epoch { e := start; e.Hop += n; return e }

func TestTransitions(t *testing.T) {
	offered := Part{}.Offer("m1", start)
	given := offered.Give()
	taken := Part{"m1", Taken, hop(1), hop(1), hop(1)}
	void := Part{"m1", Void, hop(1), hop(1), vee.Epoch{}}
	none := vee.Epoch{}
	for name, c := range map[string]struct{ got, want Part }{
		"an offer changes no epoch":       {offered, Part{"m1", Offered, hop(0), hop(1), none}},
		"give counts a hop":               {given, Part{"m1", Given, hop(1), hop(1), none}},
		"nothing is given unoffered":      {Part{}.Give(), Part{}},
		"withdrawn":                       {offered.Withdraw(), Part{}},
		"a gift cannot be withdrawn":      {given.Withdraw(), given},
		"on disk a gift is an offer":      {given.Ungiven(), offered},
		"recalled, and it runs":           {offered.Recall(true), Part{}},
		"recalled, and nobody knows":      {offered.Recall(false), given},
		"taken":                           {given.Answer("m1", hop(1), true), Part{"m1", Gone, hop(1), hop(1), none}},
		"void: ours, a hop further":       {given.Answer("m1", hop(1), false), Part{"m1", Back, hop(2), hop(1), none}},
		"an answer about another move":    {given.Answer("m0", hop(1), false), given},
		"an answer about another epoch":   {given.Answer("m1", hop(0), false), given},
		"a second answer":                 {given.Answer("m1", hop(1), true).Answer("m1", hop(1), false), Part{"m1", Gone, hop(1), hop(1), none}},
		"an answer that nobody asked for": {Part{}.Answer("m1", hop(1), false), Part{}},
		"given on, it remembers":          {taken.Offer("m2", hop(1)).Give(), Part{"m2", Given, hop(2), hop(2), hop(1)}},
	} {
		if c.got != c.want {
			t.Errorf("%s: %+v, want %+v", name, c.got, c.want)
		}
	}
	for name, c := range map[string]struct {
		p         Part
		move      string
		e, obeyed vee.Epoch
		complete  bool
		want      Part
		word      Word
	}{
		"complete":                       {Part{}, "m1", hop(1), start, true, taken, Yes},
		"not complete":                   {Part{}, "m1", hop(1), start, false, void, No},
		"older than what was obeyed":     {Part{}, "m1", hop(1), hop(2), true, Part{}, No},
		"as old as what was obeyed":      {Part{}, "m1", hop(1), hop(1), true, Part{}, No},
		"taken stays taken":              {taken, "m1", hop(1), hop(1), false, taken, Yes},
		"void stays void":                {void, "m1", hop(1), hop(1), true, void, No},
		"a later gift after a void one":  {void, "m2", hop(3), hop(1), true, Part{"m2", Taken, hop(3), hop(3), hop(3)}, Yes},
		"given on, and asked once more":  {taken.Offer("m2", hop(1)).Give(), "m1", hop(1), hop(2), false, taken.Offer("m2", hop(1)).Give(), Yes},
		"a gift of before the last":      {Part{"m2", Taken, hop(3), hop(3), hop(3)}, "m1", hop(1), hop(3), true, Part{"m2", Taken, hop(3), hop(3), hop(3)}, Silence},
		"a gift while one's own is open": {given, "m2", hop(5), hop(1), true, given, No},
	} {
		got, word := c.p.Take(c.move, c.e, c.obeyed, c.complete)
		if got != c.want || word != c.word {
			t.Errorf("%s: %+v %q, want %+v %q", name, got, word, c.want, c.word)
		}
	}
}

// world is two hosts and the messages between them, which may be lost, late or doubled.
// What a host writes down survives its crash; whether the guest is complete there does not.
type world struct {
	source, destination Part
	halted              bool      // the guest at the source
	obeyed              vee.Epoch // by the destination
	complete            bool
	gifts               bool // a gift is on its way, for ever: any number of copies
	yes, no             bool // answers that are on their way
	crashes             int
}

// TestNeverTwice explores every order of events. The source runs the guest until it stops
// it, and again when its Part lets it; the destination when it has Taken it: never both, and
// somebody in every state from which nothing more can come.
func TestNeverTwice(t *testing.T) {
	seen := map[world]bool{}
	queue := []world{{obeyed: start, complete: true}, {obeyed: start}}
	for len(queue) > 0 {
		w := queue[0]
		queue = queue[1:]
		if seen[w] {
			continue
		}
		seen[w] = true
		here, there := !w.halted, w.destination.State == Taken
		if here && there {
			t.Fatalf("it may run at both: %+v", w)
		}
		next := w.steps()
		if !here && !there && len(next) == 0 {
			t.Fatalf("it runs nowhere, and nothing can change that: %+v", w)
		}
		queue = append(queue, next...)
	}
	t.Logf("%d states", len(seen))
	if len(seen) < 10 {
		t.Error("the exploration has not begun")
	}
}

func (w world) steps() (all []world) {
	add := func(change func(*world)) {
		n := w
		change(&n)
		if n != w {
			all = append(all, n)
		}
	}
	switch w.source.State {
	case "":
		add(func(n *world) { n.source = Part{}.Offer("m1", start) })
	case Offered:
		add(func(n *world) { n.halted = true })
		if w.halted {
			add(func(n *world) { n.source = n.source.Give() })
		}
	case Given:
		add(func(n *world) { n.gifts = true })
	}
	if s := w.source.State; s == "" || s == Offered || s == Back {
		add(func(n *world) { n.halted = false })
	}
	if w.gifts {
		add(func(n *world) {
			var word Word
			if n.destination, word = n.destination.Take("m1", hop(1), n.obeyed, n.complete); n.obeyed.Compare(hop(1)) < 0 {
				n.obeyed = hop(1)
			}
			n.yes = n.yes || word == Yes
			n.no = n.no || word == No
		})
	}
	if w.yes {
		add(func(n *world) { n.source = n.source.Answer("m1", hop(1), true) })
	}
	if w.no {
		add(func(n *world) { n.source = n.source.Answer("m1", hop(1), false) })
	}
	if w.crashes < 2 {
		add(func(n *world) { n.crashes++; n.complete = false })
		add(func(n *world) { n.crashes++; n.gifts, n.yes, n.no = false, false, false })
		add(func(n *world) { n.crashes++; n.source = n.source.Ungiven().Recall(!n.halted) }) // the source's agent
	}
	return all
}
