package sla

import (
	"strings"
	"testing"
	"time"

	"github.com/reservoir-cloud/reservoir/account/money"
)

func TestFormulas(t *testing.T) {
	for text, want := range map[string]string{
		"":                            "0",
		"1 EUR":                       "1",
		"0.1 * price":                 "3",
		"10% * price + 2 EUR":         "5",
		"price - 2*(price - 25 EUR)":  "20",
		"8 / 2 / 2":                   "2",
		"10 - 2 - 3":                  "5",
		"1 EUR + 0.05 EUR * minutes":  "1.625",
		"price - 100 EUR":             "0",
		"1/3*price":                   "10",
		" ( ( 2 EUR ) ) ":             "2",
		"0.5EUR * minutes / minutes ": "0.5",
	} {
		f := formula(t, text)
		got, err := f.Of(money.Of(30, 1), 12*time.Minute+30*time.Second)
		if err != nil || got.String() != want {
			t.Errorf("%q is %s, %v; want %s", text, got, err, want)
		}
	}
	for text, says := range map[string]string{
		"1 USD":                          `"USD" is one too many`,
		"0.1 *":                          "ends too soon",
		"(1 EUR":                         "a ) is missing",
		"2 2":                            `"2" is one too many`,
		"cost * 2":                       `"cost"`,
		"-1":                             `"-"`,
		"1e9":                            `"e"`,
		"price; drop":                    "cannot read",
		strings.Repeat("(", 100) + "1":   "too many parentheses",
		strings.Repeat("1+", 1000) + "1": "cannot read",
	} {
		if _, err := ParseFormula(text, "EUR"); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%q: %v, want it to say %s", text, err, says)
		}
	}
	if due, err := formula(t, "price / minutes").Of(money.Of(1, 1), 0); err == nil {
		t.Errorf("division by zero is %s", due)
	}
}

func FuzzFormula(f *testing.F) {
	for _, s := range []string{"1 EUR", "0.1 * price", "(1+2)*minutes/3%", "((", "1//2"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		x, err := ParseFormula(s, "EUR")
		if err != nil {
			return
		}
		if due, err := x.Of(money.Of(7, 3), time.Minute); err == nil && due.Sign() < 0 {
			t.Errorf("%q is %s", s, due)
		}
	})
}
