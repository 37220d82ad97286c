package rules

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/common/ast"
	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/common/types/ref"

	"github.com/reservoir-cloud/reservoir/elastic"
	"github.com/reservoir-cloud/reservoir/manifest"
)

// costLimit of one evaluation, in CEL's units: some thousand operations. What is dearer is an
// error of that evaluation, so that none takes for ever.
const costLimit = 10_000

// size is what follows a component's name: how many of its replicas serve.
const size = ".instances.size"

// compiler of one manifest's rules.
type compiler struct {
	m       *manifest.Service
	env     *cel.Env
	spelt   map[string]string // variable as CEL can write it, to its name
	ofHosts []KPI
}

// divide takes the place of CEL's division, for which what is divided by zero is infinite,
// and so above every threshold.
const divide = "divide"

// declare the variables: KPIs, and the sizes of components. All are floating-point numbers,
// and so are the whole numbers of an expression.
func (c *compiler) declare() (err error) {
	c.spelt = map[string]string{}
	options := []cel.EnvOption{
		cel.ParserExpressionSizeLimit(4096), cel.ParserRecursionLimit(64),
		cel.Function(divide, cel.Overload("divide_double", []*cel.Type{cel.DoubleType, cel.DoubleType}, cel.DoubleType,
			cel.BinaryBinding(func(a, b ref.Val) ref.Val {
				if b.(types.Double) == 0 {
					return types.NewErr("division by zero")
				}
				return a.(types.Double) / b.(types.Double)
			}))),
	}
	declare := func(name string) error {
		as := strings.ReplaceAll(name, "-", "_")
		if other, twice := c.spelt[as]; twice {
			return fmt.Errorf("%s and %s cannot be told apart in a condition: rename one", other, name)
		}
		c.spelt[as] = name
		options = append(options, cel.Variable(as, cel.DoubleType))
		return nil
	}
	var problems []error
	for _, k := range c.m.KPIs {
		problems = append(problems, declare(k.Name))
	}
	for _, x := range c.m.Components {
		problems = append(problems, declare(x.Name+size))
	}
	if err := errors.Join(problems...); err != nil {
		return err
	}
	if c.env, err = cel.NewEnv(options...); err != nil {
		return fmt.Errorf("names of KPIs and components: %w", err)
	}
	return nil
}

// dashed names, where they stand by themselves: an expression would take the dash for a minus.
var dashed = regexp.MustCompile(`[A-Za-z_][A-Za-z0-9_.-]*`)

// spell a condition with its names as CEL can write them. No character moves.
func (c *compiler) spell(text string) string {
	return dashed.ReplaceAllStringFunc(text, func(word string) string {
		if as := strings.ReplaceAll(word, "-", "_"); c.spelt[as] == word {
			return as
		}
		return word
	})
}

// condition compiled, and the KPIs that it reads.
func (c *compiler) condition(text string) (holds func(elastic.Values) (bool, error), kpis []string, err error) {
	parsed, issues := c.env.Parse(c.spell(text))
	if issues.Err() != nil {
		return nil, nil, c.explain(issues)
	}
	floats(parsed.NativeRep())
	checked, issues := c.env.Check(parsed)
	if issues.Err() != nil {
		return nil, nil, c.explain(issues)
	}
	if checked.OutputType() != cel.BoolType {
		return nil, nil, fmt.Errorf("it is a %s: want a comparison such as \"queue > 4\"", checked.OutputType())
	}
	var sizes []string
	for _, r := range checked.NativeRep().ReferenceMap() {
		name, is := c.spelt[r.Name]
		component, isSize := strings.CutSuffix(name, size)
		switch {
		case !is:
		case isSize:
			sizes = append(sizes, component)
		case !slices.Contains(kpis, name):
			kpis = append(kpis, name)
		}
	}
	slices.Sort(kpis)
	program, err := c.env.Program(checked, cel.CostLimit(costLimit))
	if err != nil {
		return nil, nil, err
	}
	return func(v elastic.Values) (bool, error) {
		in := map[string]any{}
		for _, k := range kpis {
			in[strings.ReplaceAll(k, "-", "_")] = v.KPIs[k]
		}
		for _, x := range sizes {
			in[strings.ReplaceAll(x+size, "-", "_")] = float64(v.Sizes[x])
		}
		out, _, err := program.Eval(in)
		if err != nil {
			return false, err
		}
		is, ok := out.Value().(bool)
		if !ok {
			return false, fmt.Errorf("it is %v, not true or false", out.Value())
		}
		return is, nil
	}, kpis, nil
}

// floats makes every whole number of an expression a floating-point one, and every division
// the one that fails at zero.
func floats(tree *ast.AST) {
	factory := ast.NewExprFactory()
	ast.PostOrderVisit(tree.Expr(), ast.NewExprVisitor(func(e ast.Expr) {
		switch e.Kind() {
		case ast.LiteralKind:
			if n, whole := e.AsLiteral().(types.Int); whole {
				e.SetKindCase(factory.NewLiteral(e.ID(), types.Double(n)))
			}
		case ast.CallKind:
			if call := e.AsCall(); call.FunctionName() == "_/_" {
				e.SetKindCase(factory.NewCall(e.ID(), divide, call.Args()...))
			}
		}
	}))
}

// explain what is wrong with a condition in one line each, and what could have been meant.
func (c *compiler) explain(issues *cel.Issues) error {
	var problems []error
	unknown := false
	for _, e := range issues.Errors() {
		problems = append(problems, fmt.Errorf("column %d: %s", e.Location.Column()+1, strings.ReplaceAll(e.Message, " (in container '')", "")))
		unknown = unknown || strings.Contains(e.Message, "undeclared reference")
	}
	if err := errors.Join(problems...); unknown {
		names := make([]string, 0, len(c.spelt))
		for _, name := range c.spelt {
			names = append(names, name)
		}
		slices.Sort(names)
		return fmt.Errorf("%w; there are %s", err, strings.Join(names, ", "))
	}
	return errors.Join(problems...)
}
