package revert

import (
	"context"
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

var errWork = errors.New("work failed")

func TestFail(t *testing.T) {
	errUndo := errors.New("disk is busy")
	for _, tt := range []struct {
		name    string
		work    func(*Reverter) error
		undone  []string
		is      []error
		message string
	}{
		{
			name:   "nothing was done",
			work:   func(*Reverter) error { return errWork },
			is:     []error{errWork},
			undone: nil, message: "work failed",
		}, {
			name:   "committed",
			work:   func(r *Reverter) error { r.Success(); return nil },
			undone: nil,
		}, {
			name:   "fails after the commit point",
			work:   func(r *Reverter) error { r.Success(); return errWork },
			undone: nil, is: []error{errWork}, message: "work failed",
		}, {
			name:   "undone in reverse",
			work:   func(*Reverter) error { return errWork },
			undone: []string{"c", "b", "a"}, is: []error{errWork}, message: "work failed",
		}, {
			name: "a clean-up fails and the others run",
			work: func(r *Reverter) error {
				r.Add("remove the disk", func(context.Context) error { return errUndo })
				return errWork
			},
			undone: []string{"c", "b", "a"}, is: []error{errWork, errUndo},
			message: "work failed\ncould not remove the disk: disk is busy",
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var undone []string
			err := func() (err error) {
				r := New(t.Context(), &err)
				defer r.Fail()
				if tt.name != "nothing was done" {
					for _, s := range []string{"a", "b", "c"} {
						r.Add("undo "+s, func(context.Context) error {
							undone = append(undone, s)
							return nil
						})
					}
				}
				return tt.work(r)
			}()
			if !slices.Equal(undone, tt.undone) {
				t.Errorf("undone %q, want %q", undone, tt.undone)
			}
			for _, is := range tt.is {
				if !errors.Is(err, is) {
					t.Errorf("error %v is not %v", err, is)
				}
			}
			if err != nil && err.Error() != tt.message {
				t.Errorf("error %q, want %q", err, tt.message)
			}
			if err == nil && tt.message != "" {
				t.Errorf("no error, want %q", tt.message)
			}
		})
	}
}

func TestCleanUpOutlivesItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		type key struct{}
		ctx, cancel := context.WithCancel(context.WithValue(t.Context(), key{}, "value"))
		var during, value any
		err := func() (err error) {
			r := New(ctx, &err)
			defer r.Fail()
			r.Add("stop the guest", func(ctx context.Context) error {
				during, value = ctx.Err(), ctx.Value(key{})
				<-ctx.Done() // hangs
				return ctx.Err()
			})
			cancel()
			return ctx.Err()
		}()
		if during != nil || value != "value" {
			t.Errorf("clean-up ran with error %v and value %v", during, value)
		}
		if !errors.Is(err, context.Canceled) || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("error %v names not both the work's and the clean-up's", err)
		}
	})
}

func TestPanicIsUndone(t *testing.T) {
	undone := false
	func() {
		defer func() {
			if recover() == nil {
				t.Error("the panic was swallowed")
			}
		}()
		var err error
		r := New(t.Context(), &err)
		defer r.Fail()
		r.Add("undo", func(context.Context) error { undone = true; return nil })
		panic("bug")
	}()
	if !undone {
		t.Error("not undone")
	}
}

func TestFailTwiceUndoesOnce(t *testing.T) {
	n := 0
	var err error
	r := New(t.Context(), &err)
	r.Add("undo", func(context.Context) error { n++; time.Sleep(0); return nil })
	r.Fail()
	r.Fail()
	if n != 1 || err != nil {
		t.Errorf("undone %d times, error %v", n, err)
	}
}
