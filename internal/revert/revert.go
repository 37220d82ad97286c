// Package revert undoes work of many steps that could not be finished. It knows nothing
// of the steps.
//
//	func make(ctx context.Context) (err error) {
//		r := revert.New(ctx, &err)
//		defer r.Fail()
//		// ... make a disk ...
//		r.Add("remove the disk", removeDisk)
//		// ... start a guest ...
//		r.Success() // the commit point: from here on only forward
//		return nil
//	}
package revert

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// Patience is how long all clean-ups of one Fail together may take.
const Patience = 30 * time.Second

// Reverter collects the clean-ups of the steps done so far. It is for one goroutine.
type Reverter struct {
	ctx   context.Context
	err   *error
	steps []step
}

type step struct {
	what string
	undo func(context.Context) error
}

// New is a reverter for work under ctx whose error is *err when Fail runs: a named result.
func New(ctx context.Context, err *error) *Reverter {
	return &Reverter{ctx: ctx, err: err}
}

// Add tells how to undo the step that was just done; what completes "could not ..." where
// that fails. undo gets a context that lives on when the work's own has ended.
func (r *Reverter) Add(what string, undo func(context.Context) error) {
	r.steps = append(r.steps, step{what, undo})
}

// Success forgets the clean-ups: the work has reached its commit point, and Fail does
// nothing any more.
func (r *Reverter) Success() { r.steps = nil }

// Fail undoes the steps, last first, each even if another fails, and joins what could not
// be undone to the work's error. Deferred, it does so after a panic too. The clean-ups
// have the values of the work's context but not its end, which often is what made the
// work fail; they get Patience of their own.
func (r *Reverter) Fail() {
	if len(r.steps) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.ctx), Patience)
	defer cancel()
	errs := []error{*r.err}
	for len(r.steps) > 0 {
		s := r.steps[len(r.steps)-1]
		r.steps = r.steps[:len(r.steps)-1]
		if err := s.undo(ctx); err != nil {
			errs = append(errs, fmt.Errorf("could not %s: %w", s.what, err))
		}
	}
	if len(errs) > 1 {
		*r.err = errors.Join(errs...)
	}
}
