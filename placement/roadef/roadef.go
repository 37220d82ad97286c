// Package roadef reads and writes the files of the Google ROADEF/EURO challenge 2012
// (machine reassignment): numbers apart by white space, in an order that the challenge's
// subject fixes. A process is a VEE, a machine a host.
package roadef

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"math"
	"strconv"

	"github.com/reservoir-cloud/reservoir/placement/reassign"
)

// maxCount bounds the counts of a file, so that a wrong one asks for no absurd memory.
const maxCount = 1 << 20

// numbers reads integers until one is missing or wrong, which err then tells.
type numbers struct {
	words *bufio.Scanner
	err   error
}

func newNumbers(r io.Reader) *numbers {
	s := bufio.NewScanner(r)
	s.Split(bufio.ScanWords)
	return &numbers{words: s}
}

func (n *numbers) int64(what string) int64 {
	if n.err != nil {
		return 0
	}
	if !n.words.Scan() {
		n.err = fmt.Errorf("%s is missing: %w", what, errors.Join(n.words.Err(), io.ErrUnexpectedEOF))
		return 0
	}
	v, err := strconv.ParseInt(n.words.Text(), 10, 64)
	if err != nil || v < 0 {
		n.err = fmt.Errorf("%s is %q: not a number from 0 on", what, n.words.Text())
	}
	return v
}

// index reads a number below limit.
func (n *numbers) index(what string, limit int) int32 {
	v := n.int64(what)
	if n.err == nil && v >= int64(min(limit, math.MaxInt32)) {
		n.err = fmt.Errorf("%s is %d: not below %d", what, v, limit)
		return 0
	}
	return int32(v)
}

func (n *numbers) count(what string) int { return int(n.index(what, maxCount)) }

// fill appends count numbers.
func (n *numbers) fill(to *[]int64, count int, what string) {
	for i := 0; i < count && n.err == nil; i++ {
		*to = append(*to, n.int64(what))
	}
}

// Read a problem from a model file and an assignment file.
func Read(model, assignment io.Reader) (*reassign.Problem, error) {
	p := &reassign.Problem{}
	n := newNumbers(model)
	p.Resources = n.count("number of resources")
	for i := 0; i < p.Resources && n.err == nil; i++ {
		p.Transient = append(p.Transient, n.int64("transient flag") != 0)
		p.LoadWeight = append(p.LoadWeight, n.int64("load cost weight"))
	}
	p.Hosts = n.count("number of machines")
	for i := 0; i < p.Hosts && n.err == nil; i++ {
		near, at := n.index("neighbourhood", maxCount), n.index("location", maxCount)
		p.Neighbourhoods, p.Locations = max(p.Neighbourhoods, int(near)+1), max(p.Locations, int(at)+1)
		p.Nearby, p.Location = append(p.Nearby, near), append(p.Location, at)
		n.fill(&p.Capacity, p.Resources, "capacity")
		n.fill(&p.Safety, p.Resources, "safety capacity")
		n.fill(&p.Distance, p.Hosts, "machine move cost")
	}
	p.Services = n.count("number of services")
	for i := 0; i < p.Services && n.err == nil; i++ {
		p.SpreadMin = append(p.SpreadMin, n.index("spread", maxCount))
		var on []int32
		for range n.count("number of dependencies") {
			on = append(on, n.index("dependency", p.Services))
		}
		p.DependsOn = append(p.DependsOn, on)
	}
	p.VEEs = n.count("number of processes")
	for i := 0; i < p.VEEs && n.err == nil; i++ {
		p.Service = append(p.Service, n.index("service", p.Services))
		n.fill(&p.Demand, p.Resources, "requirement")
		p.MoveCost = append(p.MoveCost, n.int64("process move cost"))
	}
	for range n.count("number of balance objectives") {
		p.Balances = append(p.Balances, reassign.Balance{
			A: int(n.index("first resource", p.Resources)), B: int(n.index("second resource", p.Resources)),
			Target: n.int64("target"), Weight: n.int64("balance cost weight")})
	}
	p.MoveWeight, p.ServiceWeight, p.DistanceWeight = n.int64("process move weight"), n.int64("service move weight"), n.int64("machine move weight")
	if n.err != nil {
		return nil, fmt.Errorf("read the model: %w", n.err)
	}
	a := newNumbers(assignment)
	for range p.VEEs {
		p.Initial = append(p.Initial, a.index("machine of a process", p.Hosts))
	}
	if a.err != nil {
		return nil, fmt.Errorf("read the assignment: %w", a.err)
	}
	if err := p.Validate(); err != nil {
		return nil, fmt.Errorf("read the model: %w", err)
	}
	return p, nil
}

// WriteAssignment writes the host of each VEE as the challenge wants it.
func WriteAssignment(w io.Writer, at []int32) error {
	var line []byte
	for i, h := range at {
		if i > 0 {
			line = append(line, ' ')
		}
		line = strconv.AppendInt(line, int64(h), 10)
	}
	if _, err := w.Write(append(line, '\n')); err != nil {
		return fmt.Errorf("write the assignment: %w", err)
	}
	return nil
}
