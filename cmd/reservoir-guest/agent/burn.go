package agent

import (
	"context"
	"fmt"
	"math"
	"time"

	"golang.org/x/sys/unix"
)

// slice of time within which a part of a core is burnt.
const slice = 20 * time.Millisecond

// maxCores that one command may ask for.
const maxCores = 256

// BurnCPU keeps that many cores busy for that long; 0.5 is half a core. It returns at once.
func (a *Agent) BurnCPU(ctx context.Context, cores float64, length time.Duration) error {
	if !(cores > 0 && cores <= maxCores) {
		return fmt.Errorf("burning %g cores: want more than 0 and at most %d", cores, maxCores)
	}
	whole, part := math.Modf(cores)
	for range int(whole) {
		a.burn(ctx, length, func(ctx context.Context) { spin(ctx, 1) })
	}
	if part > 0 {
		a.burn(ctx, length, func(ctx context.Context) { spin(ctx, part) })
	}
	return nil
}

// BurnMemory holds that many bytes for that long and writes to all of them about once a
// second, over and over. It returns once they are held.
func (a *Agent) BurnMemory(ctx context.Context, bytes float64, length time.Duration) error {
	if free := a.machine.FreeMemory(); !(bytes >= 1) || bytes > float64(free) {
		return fmt.Errorf("burning %g bytes of memory: want 1 to %d, which is what can be spared", bytes, free)
	}
	held, err := unix.Mmap(-1, 0, int(bytes), unix.PROT_READ|unix.PROT_WRITE,
		unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_POPULATE)
	if err != nil {
		return fmt.Errorf("burning %g bytes of memory: %w", bytes, err)
	}
	for i := 0; i < len(held); i += unix.Getpagesize() {
		held[i] = byte(i>>12) | 1 // no page of zeroes that the host could share
	}
	a.burn(ctx, length, func(ctx context.Context) {
		rewrite(ctx, held)
		_ = unix.Munmap(held) // cannot fail on what Mmap returned
	})
	return nil
}

// rewrite writes to each page of held about once a second, evenly, until ctx ends.
func rewrite(ctx context.Context, held []byte) {
	page := unix.Getpagesize()
	pages := (len(held) + page - 1) / page
	each := max(1, pages*int(slice)/int(time.Second)) // in a slice
	tick := time.NewTicker(slice)
	defer tick.Stop()
	for n := 0; ; {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		for range each {
			held[n%pages*page] += 2 // an odd number stays one: no page of zeroes
			n++
		}
	}
}

// burn runs do until length is over or ctx ends. A guest that burns is not idle.
func (a *Agent) burn(ctx context.Context, length time.Duration, do func(context.Context)) {
	ctx, cancel := context.WithTimeout(ctx, length)
	a.change(func() { a.burns++ })
	a.burning.Go(func() {
		defer cancel()
		do(ctx)
		a.change(func() { a.burns-- })
	})
}

// spin is busy for that part of the time.
func spin(ctx context.Context, part float64) {
	busy := time.Duration(part * float64(slice))
	for ctx.Err() == nil {
		for end := time.Now().Add(busy); time.Now().Before(end); {
			for n := 0; n < 10_000; n++ { // between two looks at the clock
			}
		}
		if busy < slice {
			time.Sleep(slice - busy)
		}
	}
}
