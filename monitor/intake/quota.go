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

	seen map[monitor.Value]time.Time // by series: the key's own value is 0
}

// Admit those values whose series are known or still have room; refused is how many are
// not. The result shares memory with values.
func (q *Quota) Admit(values []monitor.Value, now time.Time) (admitted []monitor.Value, refused int) {
	if q.seen == nil {
		q.seen = map[monitor.Value]time.Time{}
	}
	admitted = values[:0]
	swept := false
	for _, v := range values {
		series := monitor.Value{Field: v.Field, Labels: v.Labels}
		_, known := q.seen[series]
		if !known && len(q.seen) >= q.Most && !swept {
			swept = true
			for s, at := range q.seen {
				if now.Sub(at) > q.Keep {
					delete(q.seen, s)
				}
			}
		}
		if !known && len(q.seen) >= q.Most {
			refused++
			continue
		}
		q.seen[series] = now
		admitted = append(admitted, v)
	}
	return admitted, refused
}
