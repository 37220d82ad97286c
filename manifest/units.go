package manifest

import (
	"encoding/hex"
	"errors"
	"fmt"
	"math"
	"math/big"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/reservoir-cloud/reservoir/vee"
)

// What is wanted where a value with a unit cannot be read.
var (
	errSize     = errors.New("want a size such as 512MiB")
	errTooLarge = errors.New("want less than 8EiB")
	errMHz      = errors.New("want a frequency such as 500MHz or 2.4GHz")
	errClock    = errors.New("want a time of the day such as 09:00 or 24:00")
	errDuration = errors.New("want a duration such as 90s, 5m, 24h or 30d")
	errDistance = errors.New("want a distance such as 300km")
	errDigest   = errors.New("want sha256: and 64 hexadecimal digits, or sha512: and 128")
	errWeak     = errors.New("MD5 and SHA-1 are too weak, want sha256: and 64 hexadecimal digits")
)

// parseSize reads "512MiB" as vee.ParseBytes does.
func parseSize(s string) (vee.Bytes, error) {
	b, err := vee.ParseBytes(s)
	switch {
	case err == nil:
		return b, nil
	case strings.Contains(err.Error(), "8 EiB"):
		return 0, errTooLarge
	}
	return 0, errSize
}

// formatSize is exact, unlike vee.Bytes.String.
func formatSize(b vee.Bytes) string {
	for _, u := range []struct {
		size vee.Bytes
		name string
	}{{vee.TiB, "TiB"}, {vee.GiB, "GiB"}, {vee.MiB, "MiB"}, {vee.KiB, "KiB"}} {
		if b != 0 && b%u.size == 0 {
			return strconv.FormatInt(int64(b/u.size), 10) + u.name
		}
	}
	return strconv.FormatInt(int64(b), 10)
}

// programmatic is a unit of DSP0004, annex C, as far as OVF uses them: a base, perhaps
// times a power ("byte * 2^20", "hertz * 10^6", "byte * 1024").
var programmatic = regexp.MustCompile(`^\s*(byte|hertz|count)\s*(?:\*\s*(\d{1,19})(?:\s*\^\s*(\d{1,2}))?)?\s*$`)

// scale gives the multiplier of a programmatic unit of the wanted base.
func scale(base, unit string) (*big.Int, bool) {
	m := programmatic.FindStringSubmatch(unit)
	if m == nil || m[1] != base {
		return nil, false
	}
	factor := big.NewInt(1)
	if m[2] != "" {
		factor.SetString(m[2], 10)
	}
	if m[3] != "" {
		exponent, _ := strconv.ParseInt(m[3], 10, 64) // two digits
		factor.Exp(factor, big.NewInt(exponent), nil)
	}
	return factor, true
}

// sizeIn reads an amount in a unit: one of DSP0004, or one of the words from before it
// ("MegaBytes", "MB"). An amount may carry its own unit when there is no other ("1536MB").
func sizeIn(amount, unit string) (vee.Bytes, error) {
	amount, unit = strings.TrimSpace(amount), strings.TrimSpace(unit)
	factor, ok := scale("byte", unit)
	if !ok {
		return parseSize(amount + unit)
	}
	n, isInt := new(big.Int).SetString(amount, 10)
	if !isInt || n.Sign() < 0 {
		return 0, errSize
	}
	if n.Mul(n, factor); !n.IsInt64() {
		return 0, errTooLarge
	}
	return vee.Bytes(n.Int64()), nil
}

// MHz is a frequency in millions a second.
type MHz int

// UnmarshalText reads "500MHz" and "2.4GHz".
func (f *MHz) UnmarshalText(text []byte) (err error) {
	*f, err = mhzIn(string(text), "")
	return err
}

// MarshalText is the way back.
func (f MHz) MarshalText() ([]byte, error) { return []byte(strconv.Itoa(int(f)) + "MHz"), nil }

// mhzIn reads an amount in a unit of DSP0004 or of old; the default is MHz in OVF only,
// where unit is never empty.
func mhzIn(amount, unit string) (MHz, error) {
	amount, unit = strings.TrimSpace(amount), strings.TrimSpace(unit)
	var perMHz float64 // how many of the unit are one MHz
	if factor, ok := scale("hertz", unit); ok {
		f, _ := new(big.Float).SetInt(factor).Float64()
		perMHz = 1e6 / f
	} else {
		i := strings.IndexFunc(amount, func(r rune) bool { return (r < '0' || r > '9') && r != '.' })
		if i < 0 {
			i = len(amount)
		}
		if unit == "" {
			amount, unit = amount[:i], strings.TrimSpace(amount[i:])
		}
		switch strings.ToLower(unit) {
		case "hz", "hertz":
			perMHz = 1e6
		case "khz", "kilohertz":
			perMHz = 1e3
		case "mhz", "megahertz":
			perMHz = 1
		case "ghz", "gigahertz":
			perMHz = 1e-3
		default:
			return 0, errMHz
		}
	}
	n, err := strconv.ParseFloat(amount, 64)
	if err != nil || n < 0 || n/perMHz > math.MaxInt32 || math.IsNaN(n) {
		return 0, errMHz
	}
	return MHz(math.Round(n / perMHz)), nil
}

// Duration is written with days and weeks too. A month is 30 days, a year 365.
type Duration time.Duration

// second first: it is the unit that a Duration is written in when no larger one is exact.
var durationUnits = []struct {
	size  time.Duration
	short string
	names []string // of the attribute `unit` in OVF; the first is written
}{
	{365 * 24 * time.Hour, "", []string{"year", "years"}},
	{30 * 24 * time.Hour, "", []string{"month", "months"}},
	{7 * 24 * time.Hour, "w", []string{"week", "weeks"}},
	{24 * time.Hour, "d", []string{"day", "days"}},
	{time.Hour, "h", []string{"hour", "hours"}},
	{time.Minute, "m", []string{"minute", "minutes", "min"}},
	{time.Second, "s", []string{"second", "seconds", "sec"}},
	{time.Millisecond, "ms", []string{"millisecond", "milliseconds"}},
	{time.Nanosecond, "ns", []string{"nanosecond", "nanoseconds"}},
}

var number = regexp.MustCompile(`^(\d{1,18}(?:\.\d{1,30})?)\s*([a-zA-Z]*)$`)

// UnmarshalText reads "90s", "1h30m", "30d" and "10 minutes". A plain number is seconds.
func (d *Duration) UnmarshalText(text []byte) error {
	s := strings.TrimSpace(string(text))
	m := number.FindStringSubmatch(s)
	if m == nil {
		t, err := time.ParseDuration(s)
		if err != nil || t < 0 {
			return errDuration
		}
		*d = Duration(t)
		return nil
	}
	size, unit := time.Duration(0), strings.ToLower(m[2])
	if unit == "" {
		size = time.Second
	}
	for _, u := range durationUnits {
		if unit != "" && (unit == u.short || slices.Contains(u.names, unit)) {
			size = u.size
		}
	}
	n, err := strconv.ParseFloat(m[1], 64)
	if size == 0 || err != nil {
		return errDuration
	}
	if i, err := strconv.ParseInt(m[1], 10, 64); err == nil && i <= math.MaxInt64/int64(size) {
		*d = Duration(time.Duration(i) * size)
		return nil
	}
	if n *= float64(size); n >= math.MaxInt64 {
		return errDuration
	}
	*d = Duration(math.Round(n))
	return nil
}

// MarshalText is the way back, in the largest unit that leaves a whole number.
func (d Duration) MarshalText() ([]byte, error) {
	for _, u := range durationUnits {
		if u.short != "" && time.Duration(d)%u.size == 0 && d != 0 {
			return []byte(strconv.FormatInt(int64(d)/int64(u.size), 10) + u.short), nil
		}
	}
	return []byte("0s"), nil
}

// split gives number and unit for an OVF element with the attribute `unit`.
func (d Duration) split() (string, string) {
	for _, u := range durationUnits {
		if u.size <= 24*time.Hour && time.Duration(d)%u.size == 0 && d != 0 {
			return strconv.FormatInt(int64(d)/int64(u.size), 10), u.names[0]
		}
	}
	return "0", "second"
}

// Clock is a time of the day: the time since midnight by the clock on the wall, in whole
// minutes, at most 24 h.
type Clock time.Duration

var clock = regexp.MustCompile(`^([01]?[0-9]|2[0-4]):([0-5][0-9])$`)

// UnmarshalText reads "09:00" and "24:00".
func (c *Clock) UnmarshalText(text []byte) error {
	m := clock.FindStringSubmatch(strings.TrimSpace(string(text)))
	if m == nil {
		return errClock
	}
	h, _ := strconv.Atoi(m[1]) // the pattern has digits
	min, _ := strconv.Atoi(m[2])
	at := time.Duration(h)*time.Hour + time.Duration(min)*time.Minute
	if at > 24*time.Hour {
		return errClock
	}
	*c = Clock(at)
	return nil
}

// MarshalText is the way back.
func (c Clock) MarshalText() ([]byte, error) { return []byte(c.String()), nil }

func (c Clock) String() string {
	d := time.Duration(c)
	return fmt.Sprintf("%02d:%02d", d/time.Hour, d%time.Hour/time.Minute)
}

// Kilometres is a distance on the earth.
type Kilometres float64

// UnmarshalText reads "300km" and "1500 m". A plain number is kilometres.
func (k *Kilometres) UnmarshalText(text []byte) error {
	m := number.FindStringSubmatch(strings.TrimSpace(string(text)))
	if m == nil {
		return errDistance
	}
	n, err := strconv.ParseFloat(m[1], 64)
	if err != nil {
		return errDistance
	}
	switch strings.ToLower(m[2]) {
	case "", "km", "kilometer", "kilometre", "kilometers", "kilometres":
	case "m", "meter", "metre", "meters", "metres":
		n /= 1000
	case "mile", "miles", "mi":
		n *= 1.609344
	default:
		return errDistance
	}
	*k = Kilometres(n)
	return nil
}

// MarshalText is the way back.
func (k Kilometres) MarshalText() ([]byte, error) {
	n, _ := k.split()
	return []byte(n + "km"), nil
}

func (k Kilometres) split() (string, string) {
	return strconv.FormatFloat(float64(k), 'f', -1, 64), "km"
}

// Digest is "sha256:…" or "sha512:…" in lower case.
type Digest string

// UnmarshalText takes a bare hexadecimal sum for what its length says.
func (d *Digest) UnmarshalText(text []byte) error {
	algorithm, sum, named := strings.Cut(strings.ToLower(strings.TrimSpace(string(text))), ":")
	if !named {
		algorithm, sum = "", algorithm
	}
	if _, err := hex.DecodeString(sum); err != nil {
		return errDigest
	}
	switch {
	case len(sum) == 64 && (algorithm == "sha256" || !named):
		*d = Digest("sha256:" + sum)
	case len(sum) == 128 && (algorithm == "sha512" || !named):
		*d = Digest("sha512:" + sum)
	case len(sum) == 40 || len(sum) == 32:
		return errWeak
	default:
		return errDigest
	}
	return nil
}

// MarshalText is the digest itself.
func (d Digest) MarshalText() ([]byte, error) { return []byte(d), nil }

// short forms: a struct that YAML may write as a single text.
type short interface {
	fromShort(string) error
	toShort() (string, bool)
}

func (r *Replicas) fromShort(s string) error {
	n, err := strconv.Atoi(s)
	if err != nil {
		return errors.New("want a number of replicas, or {initial, min, max}")
	}
	*r = Replicas{n, n, n}
	return nil
}

func (r *Replicas) toShort() (string, bool) {
	return strconv.Itoa(r.Initial), r.Initial == r.Min && r.Initial == r.Max
}

func (c *CPU) fromShort(s string) error {
	n, err := strconv.Atoi(s)
	if err != nil {
		return errors.New("want a number of vCPUs, or {count, max, reservation, limit, weight}")
	}
	*c = CPU{Count: n}
	return nil
}

func (c *CPU) toShort() (string, bool) { return strconv.Itoa(c.Count), *c == CPU{Count: c.Count} }

func (m *Memory) fromShort(s string) (err error) {
	m.Size, err = parseSize(s)
	return err
}

func (m *Memory) toShort() (string, bool) { return formatSize(m.Size), m.Max == 0 }

func (n *NIC) fromShort(s string) error {
	*n = NIC{Network: s}
	return nil
}

func (n *NIC) toShort() (string, bool) { return n.Network, *n == NIC{Network: n.Network} }

func (p *Port) fromShort(s string) error {
	scheme, text, ok := strings.Cut(s, ":")
	if !ok {
		scheme, text = "http", s
	}
	n, err := strconv.Atoi(text)
	if err != nil || !slices.Contains([]string{"http", "https", "tcp", "udp"}, scheme) {
		return errors.New("want a port such as 80, http:8080, tcp:5432 or udp:53")
	}
	*p = Port{Port: n, Scheme: scheme}
	return nil
}

func (p *Port) toShort() (string, bool) {
	return fmt.Sprintf("%s:%d", p.Scheme, p.Port), p.Health == "" && p.Scheme != ""
}

func (a *Area) fromShort(s string) error {
	*a = Area{Name: s}
	return nil
}

func (a *Area) toShort() (string, bool) { return a.Name, !a.Outside }
