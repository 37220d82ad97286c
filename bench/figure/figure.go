// Package figure prints what benchmarks measured: tables for people and, last, one line
// for each figure that has a target.
package figure

import (
	"fmt"
	"slices"
	"strconv"
	"time"
)

// Line prints "figure NAME VALUE UNIT target OP NUMBER". Whether the target was met is for
// the reader to see; a benchmark fails only where it could not measure.
func Line(name string, value float64, unit, op string, target float64) {
	fmt.Printf("figure %s %s %s target %s %s\n", name, number(value), unit, op, number(target))
}

func number(v float64) string {
	if v == float64(int64(v)) || v >= 1000 {
		return strconv.FormatFloat(v, 'f', 0, 64)
	}
	return strconv.FormatFloat(v, 'g', 3, 64)
}

// Median of at least one duration.
func Median(d []time.Duration) time.Duration {
	s := slices.Sorted(slices.Values(d))
	n := len(s)
	return (s[(n-1)/2] + s[n/2]) / 2
}
