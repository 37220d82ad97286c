// Package money is exact amounts of money. An amount is a rational number, because an hour's
// price for a millisecond is no decimal one; it is rounded once, where it is written on an
// invoice, and Round does that to a list so that the rounded parts still sum up to the
// rounded whole. There is no floating point in it.
package money

import (
	"fmt"
	"math/big"
	"regexp"
	"strings"
)

// Amount of money, or a price. The zero value is nothing. Amounts are never changed.
type Amount struct{ rat *big.Rat }

func (a Amount) get() *big.Rat {
	if a.rat == nil {
		return new(big.Rat)
	}
	return a.rat
}

// decimal number of at most 18 digits on each side.
var decimal = regexp.MustCompile(`^-?[0-9]{1,18}(\.[0-9]{1,18})?$`)

// fraction as String writes what is no decimal number.
var fraction = regexp.MustCompile(`^-?[0-9]{1,60}/[1-9][0-9]{0,60}$`)

// Parse reads "12", "-0.05" or what String wrote.
func Parse(s string) (Amount, error) {
	if !decimal.MatchString(s) && !fraction.MatchString(s) {
		return Amount{}, fmt.Errorf("amount %q: want a number such as 12 or 0.05", s)
	}
	r, ok := new(big.Rat).SetString(s)
	if !ok {
		return Amount{}, fmt.Errorf("amount %q: want a number such as 12 or 0.05", s)
	}
	return Amount{r}, nil
}

// Of n/d. d is not zero.
func Of(n, d int64) Amount { return Amount{big.NewRat(n, d)} }

// Plus is a + b.
func (a Amount) Plus(b Amount) Amount { return Amount{new(big.Rat).Add(a.get(), b.get())} }

// Minus is a − b.
func (a Amount) Minus(b Amount) Amount { return Amount{new(big.Rat).Sub(a.get(), b.get())} }

// Times is a × b.
func (a Amount) Times(b Amount) Amount { return Amount{new(big.Rat).Mul(a.get(), b.get())} }

// Over is a ÷ b. b is not zero.
func (a Amount) Over(b Amount) Amount { return Amount{new(big.Rat).Quo(a.get(), b.get())} }

// Negative is −a.
func (a Amount) Negative() Amount { return Amount{new(big.Rat).Neg(a.get())} }

// Sign is -1, 0 or 1.
func (a Amount) Sign() int { return a.get().Sign() }

// Compare is negative when a < b, zero when they are the same.
func (a Amount) Compare(b Amount) int { return a.get().Cmp(b.get()) }

// Round to so many decimal places, halves away from zero.
func (a Amount) Round(places int) Amount {
	s, _ := new(big.Rat).SetString(a.get().FloatString(places)) // rounds so
	return Amount{s}
}

// String is exact: a decimal number, or a fraction where there is none.
func (a Amount) String() string {
	if n, exact := a.get().FloatPrec(); exact {
		return a.get().FloatString(n)
	}
	return a.get().RatString()
}

// Fixed is the decimal number with so many places, rounded: "12.50".
func (a Amount) Fixed(places int) string {
	s := a.get().FloatString(places)
	if strings.Trim(s, "-0.") == "" {
		return strings.TrimPrefix(s, "-") // no minus before zero
	}
	return s
}

// MarshalText writes String.
func (a Amount) MarshalText() ([]byte, error) { return []byte(a.String()), nil }

// UnmarshalText reads it.
func (a *Amount) UnmarshalText(text []byte) (err error) {
	*a, err = Parse(string(text))
	return err
}

// Sum of all.
func Sum(list []Amount) (s Amount) {
	for _, a := range list {
		s = s.Plus(a)
	}
	return s
}

// Round each of the list, so that the results sum up to the rounded sum of the list. Each is
// at most one unit of the last place away from its own amount.
func Round(list []Amount, places int) []Amount {
	out := make([]Amount, len(list))
	var exact, told Amount
	for i, a := range list {
		exact = exact.Plus(a)
		out[i] = exact.Round(places).Minus(told)
		told = told.Plus(out[i])
	}
	return out
}
