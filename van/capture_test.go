package van

import (
	"bytes"
	"encoding/binary"
	"io"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/van/plan"
	"github.com/reservoir-cloud/reservoir/vee"
)

func TestACaptureIsAPcapFile(t *testing.T) {
	inNamespace(t, func() {
		id := vee.ID("alpha.aaaaaaaaaa")
		if _, err := Capture(t.Context(), id, 0); !fault.Has(err, fault.NotFound) {
			t.Errorf("of a NIC that is not there: %v", err)
		}
		a := netlink.NewLinkAttrs()
		a.Name = plan.TapName(id, 0)
		if err := netlink.LinkAdd(&netlink.Bridge{LinkAttrs: a}); err != nil {
			t.Fatal(err)
		}
		link, err := netlink.LinkByName(a.Name)
		if err != nil {
			t.Fatal(err)
		}
		if err := netlink.LinkSetUp(link); err != nil {
			t.Fatal(err)
		}
		r, err := Capture(t.Context(), id, 0)
		if err != nil {
			t.Fatal(err)
		}
		head := make([]byte, 24)
		if _, err := io.ReadFull(r, head); err != nil {
			t.Fatal(err)
		}
		if binary.LittleEndian.Uint32(head) != 0xa1b23c4d || binary.LittleEndian.Uint32(head[20:]) != 1 {
			t.Errorf("head %x: no pcap file of Ethernet frames", head)
		}
		fd, err := packetSocket(link.Attrs().Index)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(fd)
		frame := append(bytes.Repeat([]byte{0xff}, 12), 0x88, 0xb5, 'h', 'e', 'l', 'l', 'o')
		if err := unix.Sendto(fd, frame, 0, &unix.SockaddrLinklayer{Ifindex: link.Attrs().Index}); err != nil {
			t.Fatal(err)
		}
		for { // frames of the kernel's own may come before
			record := make([]byte, 16)
			if _, err := io.ReadFull(r, record); err != nil {
				t.Fatal(err)
			}
			got := make([]byte, binary.LittleEndian.Uint32(record[8:]))
			if _, err := io.ReadFull(r, got); err != nil {
				t.Fatal(err)
			}
			if bytes.Equal(got, frame) {
				break
			}
		}
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	})
}
