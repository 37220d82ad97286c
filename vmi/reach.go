package vmi

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strconv"

	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/internal/httpapi"
	"github.com/reservoir-cloud/reservoir/vee"
)

// Reach is what lets the owner of a VEE look into its network. It is not of the white
// paper.
type Reach interface {
	// Connect opens a TCP connection to a port of the guest, as its neighbours on its network
	// would; no access point is needed. The guest's firewall rules hold for it.
	Connect(ctx context.Context, id vee.ID, port uint16) (io.ReadWriteCloser, error)
	// Capture is a pcap file of the frames that pass the guest's NIC of that number, written
	// as they do, until the reader closes it.
	Capture(ctx context.Context, id vee.ID, nic int) (io.ReadWriteCloser, error)
}

func registerReach(s *httpapi.Server, svc Reach) {
	s.HandleUpgrade("GET /vmi/v1/vees/{id}/ports/{number}", commanders, func(r *http.Request) (io.ReadWriteCloser, error) {
		id, port, err := numbered(r, 1, 65535)
		if err != nil {
			return nil, err
		}
		return svc.Connect(r.Context(), id, uint16(port))
	})
	s.HandleUpgrade("GET /vmi/v1/vees/{id}/nics/{number}/capture", commanders, func(r *http.Request) (io.ReadWriteCloser, error) {
		id, nic, err := numbered(r, 0, 15)
		if err != nil {
			return nil, err
		}
		return svc.Capture(r.Context(), id, nic)
	})
}

// numbered reads a VEE and a number from a path.
func numbered(r *http.Request, least, most int) (vee.ID, int, error) {
	id, err := parseID(r.PathValue("id"))
	if err != nil {
		return "", 0, err
	}
	n, err := strconv.Atoi(r.PathValue("number"))
	if err != nil || n < least || n > most {
		return "", 0, fault.New(fault.Malformed, "%q in %s: want a number from %d to %d", r.PathValue("number"), r.URL.Path, least, most)
	}
	return id, n, nil
}

func (c client) Connect(ctx context.Context, id vee.ID, port uint16) (io.ReadWriteCloser, error) {
	return c.c.Upgrade(ctx, veePath(id, fmt.Sprintf("/ports/%d", port)))
}

func (c client) Capture(ctx context.Context, id vee.ID, nic int) (io.ReadWriteCloser, error) {
	return c.c.Upgrade(ctx, veePath(id, fmt.Sprintf("/nics/%d/capture", nic)))
}
