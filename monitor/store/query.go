package store

import (
	"context"
	"errors"
	"math"
	"regexp"
	"strings"
	"time"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/promql"
	"github.com/prometheus/prometheus/promql/parser"

	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/monitor"
)

// Querier implements monitor.Repository.
func (s *Store) Querier(scope monitor.Scope) monitor.Querier { return querier{s, scope} }

type querier struct {
	s     *Store
	scope monitor.Scope
}

// Query implements monitor.Querier.
func (q querier) Query(ctx context.Context, expr string, at time.Time) ([]monitor.Series, error) {
	confined, err := confine(q.s.parser, q.scope, expr)
	if err != nil {
		return nil, err
	}
	p, err := q.s.engine.NewInstantQuery(ctx, q.s.db, nil, confined, at)
	return run(ctx, p, expr, err)
}

// QueryRange implements monitor.Querier.
func (q querier) QueryRange(ctx context.Context, expr string, from, to time.Time, step time.Duration) ([]monitor.Series, error) {
	if err := checkRange(from, to, step); err != nil {
		return nil, err
	}
	confined, err := confine(q.s.parser, q.scope, expr)
	if err != nil {
		return nil, err
	}
	p, err := q.s.engine.NewRangeQuery(ctx, q.s.db, nil, confined, from, to, step)
	return run(ctx, p, expr, err)
}

func checkRange(from, to time.Time, step time.Duration) error {
	switch {
	case step < time.Millisecond:
		return fault.New(fault.Malformed, "a step of %v: want at least 1ms", step)
	case to.Before(from):
		return fault.New(fault.Malformed, "a range from %s to %s ends before it starts", from.UTC().Format(time.RFC3339), to.UTC().Format(time.RFC3339))
	case to.Sub(from)/step >= maxPoints:
		return fault.New(fault.TooLarge, "%d points for each series: at most %d", to.Sub(from)/step+1, maxPoints).Try("reservoir metric query EXPR --range DURATION --step DURATION")
	}
	return nil
}

// run a query, if there is one.
func run(ctx context.Context, p promql.Query, expr string, err error) ([]monitor.Series, error) {
	if err != nil {
		return nil, queryFault(expr, err)
	}
	defer p.Close()
	r := p.Exec(ctx)
	if r.Err != nil {
		return nil, queryFault(expr, r.Err)
	}
	switch v := r.Value.(type) {
	case promql.Vector:
		out := make([]monitor.Series, len(v))
		for i, x := range v {
			out[i] = monitor.Series{Labels: x.Metric.Map(), Points: []monitor.Point{{At: time.UnixMilli(x.T), Value: number(x.F, x.H != nil)}}}
		}
		return out, nil
	case promql.Matrix:
		out := make([]monitor.Series, len(v))
		for i, x := range v {
			out[i] = monitor.Series{Labels: x.Metric.Map(), Points: make([]monitor.Point, len(x.Floats))}
			for k, f := range x.Floats {
				out[i].Points[k] = monitor.Point{At: time.UnixMilli(f.T), Value: f.F}
			}
		}
		return out, nil
	case promql.Scalar:
		return []monitor.Series{{Points: []monitor.Point{{At: time.UnixMilli(v.T), Value: v.V}}}}, nil
	}
	return nil, fault.New(fault.Malformed, "%q is a text, not a measurement", expr)
}

// number of a sample; a histogram, of which none is stored, is none.
func number(f float64, histogram bool) float64 {
	if histogram {
		return math.NaN()
	}
	return f
}

func queryFault(expr string, err error) error {
	var (
		tooMany  promql.ErrTooManySamples
		timeout  promql.ErrQueryTimeout
		canceled promql.ErrQueryCanceled
		storage  promql.ErrStorage
	)
	switch {
	case errors.Is(err, context.Canceled), errors.As(err, &canceled):
		return fault.New(fault.Unavailable, "query %q was given up: %w", expr, err)
	case errors.Is(err, context.DeadlineExceeded), errors.As(err, &timeout):
		return fault.New(fault.Timeout, "query %q took too long", expr).Try("ask for fewer series or a shorter range: reservoir metric query EXPR --range 1h")
	case errors.As(err, &tooMany):
		return fault.New(fault.TooLarge, "query %q touches more than %d samples", expr, maxSamples).Try("ask for fewer series or a shorter range: reservoir metric query EXPR --range 1h")
	case errors.As(err, &storage):
		return fault.New(fault.Internal, "query %q: %w", expr, err)
	}
	return fault.New(fault.Malformed, "query %q: %w", expr, err).Try("reservoir metric query --help")
}

// confine an expression to a scope: every selector in it gets the scope's matchers besides
// those that are written. Matchers of one selector must all hold, so that nothing which is
// written can widen it; and only selectors read what is stored.
func confine(p parser.Parser, scope monitor.Scope, expr string) (string, error) {
	if len(expr) > maxQuery {
		return "", fault.New(fault.TooLarge, "a query of %d bytes: at most %d", len(expr), maxQuery)
	}
	tree, err := p.ParseExpr(expr)
	if err != nil {
		return "", queryFault(expr, err)
	}
	if scope == (monitor.Scope{}) {
		return expr, nil
	}
	must, err := scoped(scope)
	if err != nil {
		return "", err
	}
	parser.Inspect(tree, func(n parser.Node, _ []parser.Node) error {
		if v, ok := n.(*parser.VectorSelector); ok {
			v.LabelMatchers = append(v.LabelMatchers, must...)
		}
		return nil
	})
	return tree.String(), nil
}

// scoped are the matchers of a scope: none for everything.
func scoped(scope monitor.Scope) ([]*labels.Matcher, error) {
	if scope == (monitor.Scope{}) {
		return nil, nil
	}
	if scope.Customer == "" {
		return nil, fault.New(fault.Denied, "measurements of service %q of no customer", scope.Service)
	}
	must := []*labels.Matcher{labels.MustNewMatcher(labels.MatchEqual, monitor.LabelCustomer, scope.Customer)}
	if scope.Service != "" {
		must = append(must, labels.MustNewMatcher(labels.MatchEqual, monitor.LabelService, scope.Service))
	}
	if scope.VEEs != "" {
		pattern := ""
		for _, id := range strings.Fields(scope.VEEs) {
			pattern += "|" + regexp.QuoteMeta(id) // after the empty one, which is that of no VEE
		}
		must = append(must, labels.MustNewMatcher(labels.MatchRegexp, monitor.LabelVEE, pattern))
	}
	return must, nil
}

// Server that speaks Prometheus's query API.
type Server interface {
	monitor.Querier
	monitor.Catalogue
}

// Elsewhere is a library whose measurements are at another server that speaks
// Prometheus's query API, to which they get by remote write. What is asked is confined here,
// before it leaves.
func Elsewhere(at Server) monitor.Library {
	return elsewhere{at, parser.NewParser(parser.Options{})}
}

type elsewhere struct {
	at     Server
	parser parser.Parser
}

// Querier implements monitor.Repository.
func (e elsewhere) Querier(scope monitor.Scope) monitor.Querier { return confined{e, scope} }

type confined struct {
	elsewhere
	scope monitor.Scope
}

// Query implements monitor.Querier.
func (c confined) Query(ctx context.Context, expr string, at time.Time) ([]monitor.Series, error) {
	expr, err := confine(c.parser, c.scope, expr)
	if err != nil {
		return nil, err
	}
	return c.at.Query(ctx, expr, at)
}

// QueryRange implements monitor.Querier.
func (c confined) QueryRange(ctx context.Context, expr string, from, to time.Time, step time.Duration) ([]monitor.Series, error) {
	if err := checkRange(from, to, step); err != nil {
		return nil, err
	}
	expr, err := confine(c.parser, c.scope, expr)
	if err != nil {
		return nil, err
	}
	return c.at.QueryRange(ctx, expr, from, to, step)
}
