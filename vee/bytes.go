package vee

import (
	"fmt"
	"math"
	"strconv"
	"strings"
)

// Bytes is an amount of memory or disk.
type Bytes int64

// Binary multiples.
const (
	KiB Bytes = 1 << 10
	MiB Bytes = 1 << 20
	GiB Bytes = 1 << 30
	TiB Bytes = 1 << 40
)

// String prints the largest binary unit that leaves a whole number or at most two
// decimals: 512MiB, 1.5GiB.
func (b Bytes) String() string {
	for _, u := range []struct {
		size Bytes
		name string
	}{{TiB, "TiB"}, {GiB, "GiB"}, {MiB, "MiB"}, {KiB, "KiB"}} {
		if b >= u.size || b <= -u.size {
			s := strconv.FormatFloat(float64(b)/float64(u.size), 'f', 2, 64)
			return strings.TrimSuffix(strings.TrimRight(s, "0"), ".") + u.name
		}
	}
	return strconv.FormatInt(int64(b), 10) + "B"
}

var byteUnits = map[string]Bytes{
	"": 1, "b": 1, "byte": 1, "bytes": 1,
	"k": KiB, "kb": KiB, "kib": KiB, "kilobytes": KiB,
	"m": MiB, "mb": MiB, "mib": MiB, "megabytes": MiB,
	"g": GiB, "gb": GiB, "gib": GiB, "gigabytes": GiB,
	"t": TiB, "tb": TiB, "tib": TiB, "terabytes": TiB,
}

// ParseBytes reads "512MiB", "1536MB", "1.5 GB" or a plain number of bytes. As OVF and
// the virtualisation world do, it takes MB and MiB alike for 2^20. The result is never
// negative.
func ParseBytes(s string) (Bytes, error) {
	t := strings.TrimSpace(s)
	i := strings.IndexFunc(t, func(r rune) bool { return (r < '0' || r > '9') && r != '.' })
	if i < 0 {
		i = len(t)
	}
	num, unit := t[:i], strings.ToLower(strings.TrimSpace(t[i:]))
	mul, known := byteUnits[unit]
	if num == "" || !known {
		return 0, fmt.Errorf("size %q: want a number and a unit, such as 512MiB or 10GiB", s)
	}
	if n, err := strconv.ParseInt(num, 10, 64); err == nil {
		if n > math.MaxInt64/int64(mul) {
			return 0, fmt.Errorf("size %q: larger than 8 EiB", s)
		}
		return Bytes(n) * mul, nil
	}
	f, err := strconv.ParseFloat(num, 64)
	if err != nil {
		return 0, fmt.Errorf("size %q: want a number and a unit, such as 512MiB or 10GiB", s)
	}
	if f*float64(mul) >= math.MaxInt64 {
		return 0, fmt.Errorf("size %q: larger than 8 EiB", s)
	}
	return Bytes(f * float64(mul)), nil
}
