package hypervisor

import (
	"context"
	"io"
	"net"
	"time"

	"github.com/reservoir-cloud/reservoir/vee"
)

// OpMigrate in Capabilities.Operations says that the driver is a Migrator.
const OpMigrate = "migrate"

// Conditions of a live migration. Incoming: a process waits for memory and disks from
// another host, its vCPUs never ran here. Sent: memory and disks are complete at another
// host; the vCPUs stand still, and Resume lets them run here again.
const (
	Incoming Condition = "incoming"
	Sent     Condition = "sent"
)

// MemoryStream is the stream that carries a guest's memory; the others are named after
// the disks that they carry.
const MemoryStream = "memory"

// Migrator is what a driver implements that declares OpMigrate. It moves a running guest
// from one host to another without shared storage and decides nothing about who may run
// it: between Send's end and Take at the other side the vCPUs stand still on both, and
// whoever calls has to see that exactly one goes on.
type Migrator interface {
	// Shape of a running guest's machine: what the other side must start, beside the
	// description, so that memory fits. Only drivers of the same name read it.
	Shape(ctx context.Context, id vee.ID) ([]byte, error)
	// Receive starts a process that waits for the guest (absent → incoming) with empty
	// disks, or clones of images. A guest that is incoming already is an error: an attempt
	// is made once, and Destroy ends it.
	Receive(ctx context.Context, g Guest, shape []byte) error
	// Inlet opens one of the streams into an incoming guest.
	Inlet(ctx context.Context, id vee.ID, stream string) (net.Conn, error)
	// Loaded returns when the memory of an incoming guest is all there.
	Loaded(ctx context.Context, id vee.ID) error
	// Take lets an incoming guest's vCPUs run (incoming → running) and says since when they
	// do. There is no way back.
	Take(ctx context.Context, id vee.ID, e vee.Epoch) (ran time.Time, err error)

	// Send moves disks and memory (running → sent). When it fails, or ctx ends, the guest
	// runs on here as if nothing had been tried. Of a guest that was sent already it knows
	// nothing to tell.
	Send(ctx context.Context, id vee.ID, e vee.Epoch, s Sending) (Passage, error)
}

// Passage is what a Send took.
type Passage struct {
	Disks, Memory vee.Bytes // that went over
	// DisksTook until they were the same at both hosts, MemoryTook from then to Stopped.
	DisksTook, MemoryTook time.Duration
	Stopped               time.Time // since when the vCPUs stand still, by this host's clock
}

// Sending says how Send goes about it.
type Sending struct {
	// Dial opens a stream to the inlet of that name at the other host. Send closes it.
	Dial func(ctx context.Context, stream string) (io.ReadWriteCloser, error)
	// Bandwidth is the limit per second of memory, and of each disk, as it is at the moment; 0:
	// none. nil: there is never one. It is asked again and again, and must not wait.
	Bandwidth func() vee.Bytes
	// AutoConverge slows the guest down if it changes its memory faster than it can be sent.
	AutoConverge bool
	Progress     func(Transfer) // called from Send's goroutine; nil: nobody wants to know
}

// Transfer is how far a Send is.
type Transfer struct {
	What      string        // "disks", "memory" or "switchover"
	Total     vee.Bytes     // of disks or of memory
	Left      vee.Bytes     // to be sent, as far as it is known now
	DirtyRate vee.Bytes     // memory changed per second, 0 before it is known
	Downtime  time.Duration // predicted
}
