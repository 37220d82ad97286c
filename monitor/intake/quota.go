package intake

import (
	"time"

	"github.com/reservoir-cloud/reservoir/monitor"
)

// Quota bounds how many series one guest makes over time: a program that puts a counter into
// a label would otherwise fill the site's store, a few values at a time. A series that was
// not heard of for as long as Keep makes room for another. Not for use by several goroutines.
type Quota struct {
	Most int
	Keep time.Duration

	seen map[monitor.Value]*series // by the series, whose own value is 0
}

type series struct {
	monitor.Value
	at time.Time // it was last heard of
}

// Admit those values whose series are known or still have room; refused is how many are
// not. The result shares memory with values; its texts are kept once for each series,
// however often and for however long its values wait.
func (q *Quota) Admit(values []monitor.Value, now time.Time) (admitted []monitor.Value, refused int) {
	if q.seen == nil {
		q.seen = map[monitor.Value]*series{}
	}
	admitted = values[:0]
	swept := false
	for _, v := range values {
		key := monitor.Value{Field: v.Field, Labels: v.Labels}
		s := q.seen[key]
		if s == nil && len(q.seen) >= q.Most && !swept {
			swept = true
			for k, s := range q.seen {
				if now.Sub(s.at) > q.Keep {
					delete(q.seen, k)
				}
			}
		}
		switch {
		case s != nil:
		case len(q.seen) >= q.Most:
			refused++
			continue
		default:
			s = &series{Value: key}
			q.seen[key] = s
		}
		s.at = now
		admitted = append(admitted, monitor.Value{Field: s.Field, Labels: s.Labels, Value: v.Value})
	}
	return admitted, refused
}
