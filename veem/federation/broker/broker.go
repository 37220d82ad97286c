// Package broker answers which sites fit a requirement, in which order, and why the others
// do not: the broker of RVWS over what sites publish of themselves. It is pure: the
// attributes of the moment are given to it, with their age.
//
// A requirement is an expression in CEL over what Fields names, for example
//
//	country in ["SE", "FI"] && free.vcpus >= 8 && hour < 0.5
//
// Its parts between && are judged one by one, so that a refusal says which did not hold.
package broker

import (
	"cmp"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/common/ast"
	"cel.dev/cel-go/common/operators"
	"cel.dev/cel-go/parser"

	"github.com/reservoir-cloud/reservoir/account/billing"
	"github.com/reservoir-cloud/reservoir/account/money"
	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/vee"
	"github.com/reservoir-cloud/reservoir/vmi/peer"
)

// Candidate is a site as it is known at the moment of the question.
type Candidate struct {
	peer.Attributes
	Here bool          // this very site
	Age  time.Duration // of the attributes
	// Agreement under which it lends to us; nil: none is in force.
	Agreement *peer.Agreement
	// Silent says why nothing current is known of it; nil: it is.
	Silent error
}

// Order of the sites that fit.
type Order string

// Orders. Overflow: this site while it has room, then whoever has the most. The default is
// Cost where a VEE is asked for, and Overflow else.
const (
	Overflow Order = "overflow"
	Cost     Order = "cost"
	Location Order = "location" // near the users first, seed 4
	Energy   Order = "energy"   // little CO₂, and no trouble with power
	Heat     Order = "heat"     // where waste heat is wanted, seed 4
)

// Orders that there are.
var Orders = []Order{Overflow, Cost, Location, Energy, Heat}

// Question to the broker.
type Question struct {
	Requirement string // CEL; empty: every site that may be asked
	Order       Order  // empty: see Overflow
	// VEE of that size, and how many, that the sites are to have room for; none: no VEE.
	VEE   Size
	Count int
	// Users are where a service's users are.
	Users *vee.Point
}

// Size of a VEE.
type Size struct {
	VCPUs  int
	Memory vee.Bytes
	Disk   vee.Bytes
}

// Match is a site that fits. The first is the best.
type Match struct {
	Site string `json:"site"`
	Here bool   `json:"here,omitempty"`
	// Why it is at its place, in the terms of the order.
	Why  string        `json:"why"`
	Hour *money.Amount `json:"hour,omitempty"` // of all VEEs that were asked for
	// Currency of Hour.
	Currency string          `json:"currency,omitempty"`
	KM       *float64        `json:"km,omitempty"` // to the users
	AgeMS    int64           `json:"ageMs"`        // of what is known
	Offer    peer.Attributes `json:"offer"`
}

// Refusal is a site that does not fit.
type Refusal struct {
	Site string   `json:"site"`
	Why  []string `json:"why"`
}

// Answer of the broker.
type Answer struct {
	Order   Order     `json:"order"`
	Fit     []Match   `json:"fit"`
	Refused []Refusal `json:"refused"`
}

// Broker is a question that was understood; it may be asked of any candidates.
type Broker struct {
	q     Question
	parts []part
}

// part of a requirement, between &&.
type part struct {
	text    string
	program cel.Program
	reads   []string // fields, at their first name
}

// costLimit of one part for one site, in CEL's units: some thousand operations.
const costLimit = 10_000

// maxText of a requirement, bytes.
const maxText = 4096

// Fields of a site that a requirement may read, and what they are.
var Fields = []struct{ Name, Is string }{
	{"site", "its name"},
	{"here", "it is this very site"},
	{"country", "ISO 3166, such as \"SE\""},
	{"region", "as it names it"},
	{"jurisdiction", "as it names it"},
	{"hypervisors", "list of names"},
	{"images", "list of digests that are there"},
	{"types", "list of instance types"},
	{"fits", "VEEs of each instance type that there is room for: fits[\"small\"]"},
	{"free", "free.vcpus, free.memory and free.disk, in GiB"},
	{"hosts", "number of them"},
	{"vees", "number of them"},
	{"queue", "VEEs that wait for room"},
	{"load", "part of the vCPUs that is taken, 0 to 1"},
	{"availability", "that it promises, 0 to 1"},
	{"energy", "normal, scarce or failing"},
	{"co2", "grams for each kWh"},
	{"heat", "how much its waste heat is wanted, 0 to 1"},
	{"currency", "three letters"},
	{"price", "for an hour of each meter: price[\"vcpu\"]"},
	{"hour", "price for an hour of the VEEs that are asked for"},
	{"km", "from the users; needs where they are"},
	{"agreement", "we have an agreement to borrow there"},
	{"age", "seconds since it was so"},
}

func environment() (*cel.Env, error) {
	text, number, list := cel.StringType, cel.DoubleType, cel.ListType(cel.StringType)
	numbers := cel.MapType(text, number)
	kind := map[string]*cel.Type{
		"here": cel.BoolType, "agreement": cel.BoolType, "hypervisors": list, "images": list, "types": list, "fits": numbers, "free": numbers, "price": numbers,
		"hosts": number, "vees": number, "queue": number, "load": number, "availability": number, "co2": number, "heat": number, "hour": number, "km": number, "age": number,
	}
	options := []cel.EnvOption{cel.ParserExpressionSizeLimit(maxText), cel.ParserRecursionLimit(64), cel.CrossTypeNumericComparisons(true), cel.EnableMacroCallTracking()}
	for _, f := range Fields {
		options = append(options, cel.Variable(f.Name, cmp.Or(kind[f.Name], text)))
	}
	return cel.NewEnv(options...)
}

// New understands a question. fault.Malformed.
func New(q Question) (*Broker, error) {
	b := &Broker{q: q}
	bad := func(format string, args ...any) (*Broker, error) {
		return nil, fault.New(fault.Malformed, format, args...).Try("reservoir federation find --help")
	}
	if q.VEE.VCPUs < 0 || q.VEE.Memory < 0 || q.VEE.Disk < 0 || q.Count < 0 || q.Count > 10_000 {
		return bad("%d VEEs of %d vCPUs, %v of memory and %v of disk", q.Count, q.VEE.VCPUs, q.VEE.Memory, q.VEE.Disk)
	}
	if b.q.Count == 0 && q.VEE.VCPUs > 0 {
		b.q.Count = 1
	}
	if u := q.Users; u != nil && !(math.Abs(u.Latitude) <= 90 && math.Abs(u.Longitude) <= 180) {
		return bad("users at %v, %v: want degrees of latitude and longitude", u.Latitude, u.Longitude)
	}
	if q.Order == "" {
		b.q.Order = Overflow
		if b.q.Count > 0 {
			b.q.Order = Cost
		}
	} else if !slices.Contains(Orders, q.Order) {
		return bad("order %q: want one of %v", q.Order, Orders)
	}
	if b.q.Order == Location && q.Users == nil {
		return bad("the order %q needs to know where the users are", Location)
	}
	if strings.TrimSpace(q.Requirement) == "" {
		return b, nil
	}
	if len(q.Requirement) > maxText {
		return bad("the requirement has %d bytes, more than %d", len(q.Requirement), maxText)
	}
	env, err := environment()
	if err != nil {
		return nil, err
	}
	whole, issues := env.Parse(q.Requirement)
	if issues.Err() != nil {
		return bad("the requirement: %w", issues.Err())
	}
	for _, e := range conjuncts(whole.NativeRep().Expr()) {
		text, err := parser.Unparse(e, whole.NativeRep().SourceInfo())
		if err != nil {
			return bad("the requirement: %w", err)
		}
		checked, issues := env.Compile(text)
		if issues.Err() != nil {
			return bad("the requirement %q: %w", text, issues.Err())
		}
		if checked.OutputType() != cel.BoolType {
			return bad("%q is a %s: want a comparison such as \"free.vcpus >= 4\"", text, checked.OutputType())
		}
		program, err := env.Program(checked, cel.CostLimit(costLimit))
		if err != nil {
			return bad("the requirement %q: %w", text, err)
		}
		p := part{text: text, program: program}
		for _, r := range checked.NativeRep().ReferenceMap() {
			if r.Name != "" && !slices.Contains(p.reads, r.Name) {
				p.reads = append(p.reads, r.Name)
			}
		}
		slices.Sort(p.reads)
		if slices.Contains(p.reads, "km") && q.Users == nil {
			return bad("%q needs to know where the users are", text)
		}
		b.parts = append(b.parts, p)
	}
	return b, nil
}

// conjuncts of an expression, from left to right.
func conjuncts(e ast.Expr) []ast.Expr {
	if e.Kind() != ast.CallKind || e.AsCall().FunctionName() != operators.LogicalAnd {
		return []ast.Expr{e}
	}
	var list []ast.Expr
	for _, arg := range e.AsCall().Args() {
		list = append(list, conjuncts(arg)...)
	}
	return list
}

// Answer the question for these sites.
func (b *Broker) Answer(candidates []Candidate) Answer {
	a := Answer{Order: b.q.Order, Fit: []Match{}, Refused: []Refusal{}}
	ranks := map[string][]float64{}
	for _, c := range candidates {
		m := b.match(c)
		if why := b.refuse(c, m); len(why) > 0 {
			a.Refused = append(a.Refused, Refusal{c.Site, why})
			continue
		}
		ranks[c.Site], m.Why = b.rank(c, m)
		a.Fit = append(a.Fit, m)
	}
	slices.SortFunc(a.Fit, func(x, y Match) int {
		return cmp.Or(slices.Compare(ranks[x.Site], ranks[y.Site]), strings.Compare(x.Site, y.Site))
	})
	slices.SortFunc(a.Refused, func(x, y Refusal) int { return strings.Compare(x.Site, y.Site) })
	return a
}

// Judge one site: by what it ranks (less is better, the first number before the others), why
// it does, and all of the requirement that does not hold. Whether there is an agreement, and
// room, is for others to say.
func (b *Broker) Judge(c Candidate) (rank []float64, why string, refused []string) {
	m := b.match(c)
	stale := b.stale(c)
	switch {
	case stale != "" && len(b.parts) > 0:
		return nil, "", []string{stale}
	case stale != "":
		c.Attributes = peer.Attributes{Site: c.Site}
		m.KM = nil
	}
	if refused = b.unmet(c, m); refused != nil {
		return nil, "", refused
	}
	rank, why = b.rank(c, m)
	if stale != "" {
		rank = append([]float64{math.Inf(1)}, rank...)
		return rank, stale, nil
	}
	return append([]float64{0}, rank...), why, nil
}

func (b *Broker) match(c Candidate) Match {
	m := Match{Site: c.Site, Here: c.Here, AgeMS: c.Age.Milliseconds(), Offer: c.Attributes}
	if b.q.Count > 0 {
		if prices, currency := prices(c); prices != nil {
			hour := money.Of(int64(b.q.Count), 1).Times(hour(prices, b.q.VEE))
			m.Hour, m.Currency = &hour, currency
		}
	}
	if l := c.Characteristics.Location; b.q.Users != nil && (l.Latitude != 0 || l.Longitude != 0) {
		km := distance(*b.q.Users, vee.Point{Latitude: l.Latitude, Longitude: l.Longitude})
		m.KM = &km
	}
	return m
}

// prices that hold for us: those agreed, else those of anybody.
func prices(c Candidate) (map[billing.Meter]money.Amount, string) {
	if c.Agreement != nil {
		return c.Agreement.Prices, c.Agreement.Currency
	}
	return c.Characteristics.Prices, c.Characteristics.Currency
}

// hour of a VEE that is ACTIVE.
func hour(prices map[billing.Meter]money.Amount, s Size) money.Amount {
	gib := func(b vee.Bytes) money.Amount { return money.Of(int64(b), int64(vee.GiB)) }
	return money.Sum([]money.Amount{
		prices[billing.VEEs], prices[billing.VCPUs].Times(money.Of(int64(s.VCPUs), 1)),
		prices[billing.Memory].Times(gib(s.Memory)), prices[billing.Disk].Times(gib(s.Disk)),
	})
}

// stale says why nothing current is known of a site, or "".
func (b *Broker) stale(c Candidate) string {
	if c.Silent != nil {
		return c.Silent.Error()
	}
	if good := time.Duration(c.GoodMS) * time.Millisecond; c.Age > good {
		return fmt.Sprintf("what it has told is %v old; it is good for %v", c.Age.Round(time.Millisecond), good)
	}
	return ""
}

// refuse says all that keeps a site from fitting.
func (b *Broker) refuse(c Candidate, m Match) (why []string) {
	if stale := b.stale(c); stale != "" {
		return []string{stale}
	}
	if n := b.q.Count; n > 0 {
		want := vee.Resources{MilliCPU: int64(b.q.VEE.VCPUs) * 1000 * int64(n), Memory: b.q.VEE.Memory * vee.Bytes(n), Disk: b.q.VEE.Disk * vee.Bytes(n)}
		if free := c.State.Free; !want.Fits(free) {
			why = append(why, fmt.Sprintf("no room: %.4g vCPUs, %v of memory and %v of disk are free; %.4g, %v and %v are asked for",
				float64(free.MilliCPU)/1000, free.Memory, free.Disk, float64(want.MilliCPU)/1000, want.Memory, want.Disk))
		}
		if !c.Here && c.Agreement == nil {
			why = append(why, "no agreement in force lets us have VEEs there")
		}
	}
	return append(why, b.unmet(c, m)...)
}

// unmet parts of the requirement.
func (b *Broker) unmet(c Candidate, m Match) (why []string) {
	if len(b.parts) == 0 {
		return nil
	}
	values := fields(c, m)
	for _, p := range b.parts {
		out, _, err := p.program.Eval(values)
		switch {
		case err != nil:
			why = append(why, fmt.Sprintf("%s cannot be answered: %v", p.text, err))
		case out.Value() != true:
			why = append(why, p.text+" does not hold: "+p.said(values))
		}
	}
	return why
}

// said is what the fields that a part reads were.
func (p part) said(values map[string]any) string {
	var list []string
	for _, name := range p.reads {
		switch v := values[name].(type) {
		case nil: // a function
		case string:
			list = append(list, fmt.Sprintf("%s is %q", name, v))
		case float64:
			list = append(list, fmt.Sprintf("%s is %.6g", name, v))
		case map[string]float64:
			var parts []string
			for _, k := range slices.Sorted(maps.Keys(v)) {
				parts = append(parts, fmt.Sprintf("%s %.6g", k, v[k]))
			}
			list = append(list, fmt.Sprintf("%s is {%s}", name, strings.Join(parts, ", ")))
		default:
			list = append(list, fmt.Sprintf("%s is %v", name, v))
		}
	}
	return strings.Join(list, ", ")
}

func fields(c Candidate, m Match) map[string]any {
	x, s := c.Characteristics, c.State
	names := []string{}
	for _, t := range x.Types {
		names = append(names, t.Name)
	}
	fits := map[string]float64{}
	for t, n := range s.FreeByType {
		fits[t] = float64(n)
	}
	price := map[string]float64{}
	agreed, currency := prices(c)
	for meter, p := range agreed {
		price[string(meter)] = number(p)
	}
	out := map[string]any{
		"site": c.Site, "here": c.Here, "country": x.Location.Country, "region": x.Location.Region, "jurisdiction": x.Location.Jurisdiction,
		"hypervisors": x.Hypervisors, "images": x.Images, "types": names, "fits": fits,
		"free":  map[string]float64{"vcpus": float64(s.Free.MilliCPU) / 1000, "memory": float64(s.Free.Memory) / float64(vee.GiB), "disk": float64(s.Free.Disk) / float64(vee.GiB)},
		"hosts": float64(s.Hosts), "vees": float64(s.VEEs), "queue": float64(s.Queue), "load": s.Load, "availability": x.Availability,
		"energy": cmp.Or(s.Energy.Condition, "normal"), "co2": s.Energy.GramsKWh, "heat": s.HeatWanted, "currency": currency, "price": price,
		"agreement": c.Agreement != nil, "age": c.Age.Seconds(),
	}
	if m.Hour != nil {
		out["hour"] = number(*m.Hour)
	}
	if m.KM != nil {
		out["km"] = *m.KM
	}
	return out
}

// rank of a site that fits: less is better, the first number before the others.
func (b *Broker) rank(c Candidate, m Match) (by []float64, why string) {
	load, free := c.State.Load, float64(c.State.Free.MilliCPU)/1000
	trouble := map[string]float64{"scarce": 1, "failing": 2}[c.State.Energy.Condition]
	switch b.q.Order {
	case Cost:
		if m.Hour == nil {
			return []float64{math.Inf(1), load}, "it has no price list"
		}
		return []float64{number(*m.Hour), load}, fmt.Sprintf("%s %s an hour", m.Hour.Round(6), m.Currency)
	case Location:
		if m.KM == nil {
			return []float64{math.Inf(1), load}, "it does not tell where it is"
		}
		return []float64{*m.KM, load}, fmt.Sprintf("%.0f km from the users", *m.KM)
	case Energy:
		if c.State.Energy.GramsKWh == 0 {
			return []float64{trouble, math.Inf(1), load}, fmt.Sprintf("power is %s, CO₂ not told", cmp.Or(c.State.Energy.Condition, "normal"))
		}
		return []float64{trouble, c.State.Energy.GramsKWh, load}, fmt.Sprintf("power is %s, %.4g g CO₂/kWh", cmp.Or(c.State.Energy.Condition, "normal"), c.State.Energy.GramsKWh)
	case Heat:
		return []float64{-c.State.HeatWanted, trouble, load}, fmt.Sprintf("%.0f%% of its heat is wanted", 100*c.State.HeatWanted)
	}
	if c.Here {
		return []float64{0, 0}, fmt.Sprintf("this site, %.4g vCPUs free", free)
	}
	return []float64{1, trouble, -free}, fmt.Sprintf("%.4g vCPUs free", free)
}

// number near an amount, for comparisons; nothing is billed by it.
func number(a money.Amount) float64 {
	f, _ := strconv.ParseFloat(a.Fixed(15), 64) // Fixed writes a decimal number
	return f
}

// distance of two points along the Earth's surface, km (haversine).
func distance(a, b vee.Point) float64 {
	const radius, degree = 6371, math.Pi / 180
	sin := func(d float64) float64 { s := math.Sin(d * degree / 2); return s * s }
	h := sin(b.Latitude-a.Latitude) + math.Cos(a.Latitude*degree)*math.Cos(b.Latitude*degree)*sin(b.Longitude-a.Longitude)
	return 2 * radius * math.Asin(math.Sqrt(min(1, h)))
}
