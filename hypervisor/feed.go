package hypervisor

import "sync"

// feedLength bounds the events that wait for a slow reader.
const feedLength = 1024

// Feed is what a driver's Events are made of: it never blocks the one who sends, and
// drops the oldest event when its reader is too slow, since Observe tells the whole truth.
type Feed struct {
	mu     sync.Mutex
	events chan Event
	closed bool
}

// NewFeed makes an open feed.
func NewFeed() *Feed { return &Feed{events: make(chan Event, feedLength)} }

// Send appends an event. After Close it does nothing.
func (f *Feed) Send(e Event) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for !f.closed {
		select {
		case f.events <- e:
			return
		default:
		}
		select {
		case <-f.events:
		default:
		}
	}
}

// Events is the reader's end.
func (f *Feed) Events() <-chan Event { return f.events }

// Close ends the stream. It may be called twice.
func (f *Feed) Close() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.closed {
		f.closed = true
		close(f.events)
	}
}
