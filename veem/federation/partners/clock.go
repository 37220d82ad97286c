package partners

import "time"

// sample of the offset of a partner's clock, from the four times of a greeting (RFC 5905,
// section 8): sent (ours), received and answered (theirs), back (ours).
type sample struct {
	offset time.Duration // theirs − ours
	delay  time.Duration // of the way there and back
}

func measure(sent, received, answered, back time.Time) sample {
	return sample{
		offset: (received.Sub(sent) + answered.Sub(back)) / 2,
		delay:  max(0, back.Sub(sent)-answered.Sub(received)),
	}
}

// clock of a partner: its newest samples, of which the one that was the least under way is
// the best (RFC 5905, section 10). The newest come last.
type clock struct{ samples []sample }

// window of samples that are compared. A clock that is set shows as soon as the samples
// from before are out of it.
const window = 8

func (c *clock) add(s sample) {
	if len(c.samples) == window {
		c.samples = append(c.samples[:0:0], c.samples[1:]...)
	}
	c.samples = append(c.samples, s)
	// A clock that was set: what no longer overlaps with the newest is of another clock.
	keep := c.samples[:0]
	for _, old := range c.samples {
		if d := old.offset - s.offset; d.Abs() <= (old.delay+s.delay)/2+drift {
			keep = append(keep, old)
		}
	}
	c.samples = keep
}

// drift of two clocks against each other within the window.
const drift = 50 * time.Millisecond

// best estimate and how wrong it may be; zero and zero when nothing is known.
func (c *clock) best() (offset, within time.Duration) {
	for i, s := range c.samples {
		if i == 0 || s.delay/2 < within {
			offset, within = s.offset, s.delay/2
		}
	}
	return offset, within
}
