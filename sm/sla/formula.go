package sla

import (
	"errors"
	"fmt"
	"regexp"
	"strings"
	"time"

	"github.com/reservoir-cloud/reservoir/account/money"
)

// Formula of a price: numbers with + - * / and parentheses, amounts ("2 EUR"), percentages
// ("10%"), and the names
//
//	price    what the service was charged in the window
//	minutes  for which the objective was broken beyond its budget
//
// such as "0.1 * price" or "1 EUR + 0.05 EUR * minutes". Its arithmetic is exact. The zero
// value is a penalty of nothing.
type Formula struct {
	text string
	root node
}

// node of the formula: a value, a name, or an operation on two.
type node struct {
	op          byte // 0: value, 'p': price, 'm': minutes, or + - * /
	value       money.Amount
	left, right *node
}

// token of a formula, with the spaces before it.
var token = regexp.MustCompile(`^\s*([0-9]+(?:\.[0-9]+)?|[A-Za-z]+|[-+*/()%])`)

// depth of parentheses that somebody who means well does not reach; the same bound is put on
// the number of tokens times four.
const depth = 50

// ParseFormula reads a formula, in which amounts are in that currency.
func ParseFormula(text, currency string) (Formula, error) {
	if strings.TrimSpace(text) == "" {
		return Formula{}, nil
	}
	p := parser{currency: currency}
	for rest := text; strings.TrimSpace(rest) != ""; {
		m := token.FindStringSubmatch(rest)
		if m == nil || len(p.tokens) == 4*depth {
			return Formula{}, fmt.Errorf("formula %q: cannot read %q: want numbers, amounts such as 2 %s, price, minutes, + - * / and ( )", text, strings.TrimSpace(rest), currency)
		}
		p.tokens, rest = append(p.tokens, m[1]), rest[len(m[0]):]
	}
	root, err := p.sum(0)
	if err == nil && len(p.tokens) > 0 {
		err = fmt.Errorf("%q is one too many", p.tokens[0])
	}
	if err != nil {
		return Formula{}, fmt.Errorf("formula %q: %w", text, err)
	}
	return Formula{text, root}, nil
}

type parser struct {
	currency string
	tokens   []string
}

// accept the next token if it is one of those.
func (p *parser) accept(any ...string) string {
	for _, t := range any {
		if len(p.tokens) > 0 && p.tokens[0] == t {
			p.tokens = p.tokens[1:]
			return t
		}
	}
	return ""
}

func (p *parser) sum(deep int) (node, error) { return p.chain(deep, p.product, "+", "-") }

func (p *parser) product(deep int) (node, error) { return p.chain(deep, p.operand, "*", "/") }

// chain of operations of one rank, from left to right.
func (p *parser) chain(deep int, part func(int) (node, error), ops ...string) (node, error) {
	left, err := part(deep)
	for err == nil {
		op := p.accept(ops...)
		if op == "" {
			break
		}
		l := left
		var right node
		right, err = part(deep)
		left = node{op: op[0], left: &l, right: &right}
	}
	return left, err
}

func (p *parser) operand(deep int) (node, error) {
	if deep > depth {
		return node{}, errors.New("too many parentheses")
	}
	if len(p.tokens) == 0 {
		return node{}, errors.New("it ends too soon")
	}
	t := p.tokens[0]
	p.tokens = p.tokens[1:]
	switch t {
	case "(":
		n, err := p.sum(deep + 1)
		if err == nil && p.accept(")") == "" {
			err = errors.New("a ) is missing")
		}
		return n, err
	case "price", "minutes":
		return node{op: t[0]}, nil
	}
	value, err := money.Parse(t)
	if err != nil {
		return node{}, fmt.Errorf("%q: want a number, price or minutes", t)
	}
	if p.accept("%") != "" {
		value = value.Over(money.Of(100, 1))
	} else {
		p.accept(p.currency)
	}
	return node{value: value}, nil
}

// String is the formula as it was written.
func (f Formula) String() string { return f.text }

// Of a price and the time beyond the budget. Less than nothing is nothing.
func (f Formula) Of(price money.Amount, beyond time.Duration) (money.Amount, error) {
	due, err := f.root.of(price, money.Of(int64(beyond), int64(time.Minute)))
	if err != nil {
		return money.Amount{}, fmt.Errorf("formula %q: %w", f.text, err)
	}
	if due.Sign() < 0 {
		return money.Amount{}, nil
	}
	return due, nil
}

func (n node) of(price, minutes money.Amount) (money.Amount, error) {
	switch n.op {
	case 0:
		return n.value, nil
	case 'p':
		return price, nil
	case 'm':
		return minutes, nil
	}
	a, err := n.left.of(price, minutes)
	if err != nil {
		return a, err
	}
	b, err := n.right.of(price, minutes)
	if err != nil {
		return b, err
	}
	switch n.op {
	case '+':
		return a.Plus(b), nil
	case '-':
		return a.Minus(b), nil
	case '*':
		return a.Times(b), nil
	}
	if b.Sign() == 0 {
		return b, errors.New("division by zero")
	}
	return a.Over(b), nil
}
