package hypervisor

import (
	"context"
	"math"
	"time"

	"github.com/reservoir-cloud/reservoir/vee"
)

const (
	balloonPoll = 50 * time.Millisecond
	// balloonPatience is how long the balloon may stand still on its way: a guest that has
	// nothing to give, or no driver.
	balloonPatience = 10 * time.Second
)

// AwaitMemory waits until a guest that was asked to has so much memory, or does not come
// nearer any more. It returns what the guest has; now asks the hypervisor for that.
func AwaitMemory(ctx context.Context, want vee.Bytes, now func(context.Context) (vee.Bytes, error)) (vee.Bytes, error) {
	tick := time.NewTicker(balloonPoll)
	defer tick.Stop()
	// A guest that is asked for more than it can spare gives and takes back without end:
	// what counts is how near it ever came.
	nearest := vee.Bytes(math.MaxInt64)
	for still := time.Duration(0); ; still += balloonPoll {
		has, err := now(ctx)
		if err != nil {
			return 0, err
		}
		if off := max(has-want, want-has); off < nearest {
			nearest, still = off, 0
		}
		if has == want || still >= balloonPatience {
			return has, nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return 0, context.Cause(ctx)
		}
	}
}
