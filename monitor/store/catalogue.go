package store

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/promql/parser"
	"github.com/prometheus/prometheus/storage"

	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/monitor"
)

// maxSelectors of one question.
const maxSelectors = 32

// LabelNames implements monitor.Catalogue.
func (s *Store) LabelNames(ctx context.Context, sel monitor.Selection) ([]string, bool, error) {
	return s.texts(ctx, sel, func(ctx context.Context, q storage.Querier, hints *storage.LabelHints, must []*labels.Matcher) ([]string, error) {
		names, _, err := q.LabelNames(ctx, hints, must...)
		return names, err
	})
}

// LabelValues implements monitor.Catalogue.
func (s *Store) LabelValues(ctx context.Context, label string, sel monitor.Selection) ([]string, bool, error) {
	return s.texts(ctx, sel, func(ctx context.Context, q storage.Querier, hints *storage.LabelHints, must []*labels.Matcher) ([]string, error) {
		values, _, err := q.LabelValues(ctx, label, hints, must...)
		return values, err
	})
}

// texts of all selectors together.
func (s *Store) texts(ctx context.Context, sel monitor.Selection, ask func(context.Context, storage.Querier, *storage.LabelHints, []*labels.Matcher) ([]string, error)) ([]string, bool, error) {
	found := map[string]bool{}
	err := s.each(ctx, sel, func(ctx context.Context, q storage.Querier, must []*labels.Matcher) error {
		list, err := ask(ctx, q, &storage.LabelHints{Limit: limit(sel) + 1}, must)
		for _, text := range list {
			if !found[text] {
				found[strings.Clone(text)] = true // the querier's memory is not ours
			}
		}
		return err
	})
	if err != nil {
		return nil, false, err
	}
	list := slices.AppendSeq([]string{}, maps.Keys(found)) // none is an empty list
	slices.Sort(list)
	list, more := cut(list, limit(sel))
	return list, more, nil
}

// Series implements monitor.Catalogue.
func (s *Store) Series(ctx context.Context, sel monitor.Selection) ([]map[string]string, bool, error) {
	found := map[string]labels.Labels{}
	err := s.each(ctx, sel, func(ctx context.Context, q storage.Querier, must []*labels.Matcher) error {
		hints := &storage.SelectHints{Start: sel.From.UnixMilli(), End: sel.To.UnixMilli(), Limit: limit(sel) + 1, Func: "series"} // no samples
		set := q.Select(ctx, true, hints, must...)
		for n := 0; n <= limit(sel) && set.Next(); n++ {
			l := set.At().Labels().Copy()
			found[l.String()] = l
		}
		return set.Err()
	})
	if err != nil {
		return nil, false, err
	}
	all := slices.SortedFunc(maps.Values(found), labels.Compare)
	all, more := cut(all, limit(sel))
	list := make([]map[string]string, len(all))
	for i, l := range all {
		list[i] = l.Map()
	}
	return list, more, nil
}

// each selector of sel, confined. It counts as one query.
func (s *Store) each(ctx context.Context, sel monitor.Selection, ask func(context.Context, storage.Querier, []*labels.Matcher) error) error {
	selectors, err := selectorsOf(s.parser, sel)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, queryTime)
	defer cancel()
	turn, err := s.gate.Insert(ctx, "")
	if err != nil {
		return queryFault(strings.Join(sel.Match, " "), err)
	}
	defer s.gate.Delete(turn)
	q, err := s.db.Querier(sel.From.UnixMilli(), sel.To.UnixMilli())
	if err != nil {
		return fmt.Errorf("read the measurements from %s to %s: %w", sel.From.Format(time.RFC3339), sel.To.Format(time.RFC3339), err)
	}
	for _, must := range selectors {
		if err = ask(ctx, q, must); err != nil {
			err = fmt.Errorf("read what there is: %w", err)
			if ctx.Err() != nil {
				err = queryFault(strings.Join(sel.Match, " "), ctx.Err())
			}
			break
		}
	}
	return errors.Join(err, q.Close())
}

// selectorsOf sel, each confined to its scope.
func selectorsOf(p parser.Parser, sel monitor.Selection) (all [][]*labels.Matcher, err error) {
	if sel.To.Before(sel.From) {
		return nil, fault.New(fault.Malformed, "a range from %s to %s ends before it starts", sel.From.UTC().Format(time.RFC3339), sel.To.UTC().Format(time.RFC3339))
	}
	if len(sel.Match) > maxSelectors {
		return nil, fault.New(fault.TooLarge, "%d selectors: at most %d", len(sel.Match), maxSelectors)
	}
	must, err := scoped(sel.Scope)
	if err != nil {
		return nil, err
	}
	if len(sel.Match) == 0 {
		return [][]*labels.Matcher{must}, nil
	}
	for _, text := range sel.Match {
		if len(text) > maxQuery {
			return nil, fault.New(fault.TooLarge, "a selector of %d bytes: at most %d", len(text), maxQuery)
		}
		written, err := p.ParseMetricSelector(text)
		if err != nil {
			return nil, queryFault(text, err)
		}
		all = append(all, slices.Concat(written, must))
	}
	return all, nil
}

func limit(sel monitor.Selection) int {
	if sel.Limit <= 0 {
		return monitor.MaxListed
	}
	return min(sel.Limit, monitor.MaxListed)
}

func cut[T any](list []T, most int) ([]T, bool) {
	return list[:min(len(list), most)], len(list) > most
}

// LabelNames implements monitor.Catalogue.
func (e elsewhere) LabelNames(ctx context.Context, sel monitor.Selection) ([]string, bool, error) {
	sel, err := e.confined(sel)
	if err != nil {
		return nil, false, err
	}
	return e.at.LabelNames(ctx, sel)
}

// LabelValues implements monitor.Catalogue.
func (e elsewhere) LabelValues(ctx context.Context, label string, sel monitor.Selection) ([]string, bool, error) {
	sel, err := e.confined(sel)
	if err != nil {
		return nil, false, err
	}
	return e.at.LabelValues(ctx, label, sel)
}

// Series implements monitor.Catalogue.
func (e elsewhere) Series(ctx context.Context, sel monitor.Selection) ([]map[string]string, bool, error) {
	sel, err := e.confined(sel)
	if err != nil {
		return nil, false, err
	}
	return e.at.Series(ctx, sel)
}

// confined selection, with its scope in its selectors.
func (e elsewhere) confined(sel monitor.Selection) (monitor.Selection, error) {
	selectors, err := selectorsOf(e.parser, sel)
	if err != nil || sel.Scope == (monitor.Scope{}) {
		return sel, err
	}
	sel.Match, sel.Scope = nil, monitor.Scope{}
	for _, must := range selectors {
		texts := make([]string, len(must))
		for i, m := range must {
			texts[i] = m.String()
		}
		sel.Match = append(sel.Match, "{"+strings.Join(texts, ",")+"}")
	}
	return sel, nil
}
