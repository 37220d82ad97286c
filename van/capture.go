package van

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/van/plan"
	"github.com/reservoir-cloud/reservoir/vee"
)

// snapLen bounds what is kept of a frame, bytes: segmentation offload makes frames of
// 64 KiB.
const snapLen = 1<<16 + 256

// capturePoll is how often a capture that sees no frame looks whether it is still wanted.
const capturePoll = 200 * time.Millisecond

// Capture the frames that pass a VEE's NIC, both ways, as a pcap file (the format of
// libpcap 2.4, link type Ethernet, times in ns) that is written as they do. It ends when
// the reader is closed or ctx is done. It must be called in the host's network namespace.
func Capture(ctx context.Context, id vee.ID, nic int) (io.ReadCloser, error) {
	name := plan.TapName(id, nic)
	link, err := netlink.LinkByName(name)
	if errors.As(err, new(netlink.LinkNotFoundError)) {
		return nil, fault.New(fault.NotFound, "VEE %s has no NIC %d that is plugged in", id, nic)
	}
	if err != nil {
		return nil, fmt.Errorf("capture: TAP %s: %w", name, err)
	}
	fd, err := packetSocket(link.Attrs().Index)
	if err != nil {
		return nil, fmt.Errorf("capture on %s: %w", name, err)
	}
	ctx, cancel := context.WithCancel(ctx)
	r, w := io.Pipe()
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer unix.Close(fd)
		w.CloseWithError(capture(ctx, fd, w))
	}()
	return &capturing{r, cancel, done}, nil
}

type capturing struct {
	*io.PipeReader
	cancel context.CancelFunc
	done   chan struct{}
}

func (c *capturing) Close() error {
	c.cancel()
	err := c.PipeReader.Close()
	<-c.done
	return err
}

func packetSocket(link int) (int, error) {
	all := uint16(unix.ETH_P_ALL)<<8 | uint16(unix.ETH_P_ALL)>>8 // in the network's byte order
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, int(all))
	if err != nil {
		return -1, err
	}
	wait := unix.NsecToTimeval(capturePoll.Nanoseconds())
	err = errors.Join(
		unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: link}),
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &wait),
	)
	if err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// capture until ctx is done, the link is gone, or w takes no more.
func capture(ctx context.Context, fd int, w io.Writer) error {
	head := binary.LittleEndian.AppendUint32(nil, 0xa1b23c4d) // times in nanoseconds
	head = binary.LittleEndian.AppendUint16(head, 2)
	head = binary.LittleEndian.AppendUint16(head, 4)
	head = append(head, make([]byte, 8)...)
	head = binary.LittleEndian.AppendUint32(head, snapLen)
	head = binary.LittleEndian.AppendUint32(head, 1) // Ethernet
	if _, err := w.Write(head); err != nil {
		return err
	}
	const header = 16
	b := make([]byte, header+snapLen)
	for ctx.Err() == nil {
		n, _, err := unix.Recvfrom(fd, b[header:], unix.MSG_TRUNC)
		switch {
		case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.ENETDOWN):
			return io.EOF // the guest has gone
		case err != nil:
			return fmt.Errorf("capture: %w", err)
		}
		kept, now := min(n, snapLen), time.Now()
		binary.LittleEndian.PutUint32(b[0:], uint32(now.Unix()))
		binary.LittleEndian.PutUint32(b[4:], uint32(now.Nanosecond()))
		binary.LittleEndian.PutUint32(b[8:], uint32(kept))
		binary.LittleEndian.PutUint32(b[12:], uint32(n))
		if _, err := w.Write(b[:header+kept]); err != nil {
			return err
		}
	}
	return io.EOF
}
