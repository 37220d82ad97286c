package vhi

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

// Reach is what lets people look into a guest's network from afar.
type Reach interface {
	// Connect opens a TCP connection to a port of the guest from inside its network: as its
	// neighbours would, without the public access points. Errors: fault.NotFound,
	// fault.Unavailable when the guest does not accept it.
	Connect(ctx context.Context, id vee.ID, port uint16) (io.ReadWriteCloser, error)
	// Capture is a pcap file of the frames that pass the guest's NIC of that number, written
	// as they do, until the reader closes it.
	Capture(ctx context.Context, id vee.ID, nic int) (io.ReadWriteCloser, error)
}

func registerReach(s *httpapi.Server, h Reach) {
	s.HandleUpgrade("GET /vhi/v1/vees/{id}/ports/{number}", siteOnly, func(r *http.Request) (io.ReadWriteCloser, error) {
		id, port, err := numbered(r, 1, 65535)
		if err != nil {
			return nil, err
		}
		return h.Connect(r.Context(), id, uint16(port))
	})
	s.HandleUpgrade("GET /vhi/v1/vees/{id}/nics/{number}/capture", siteOnly, func(r *http.Request) (io.ReadWriteCloser, error) {
		id, nic, err := numbered(r, 0, 15)
		if err != nil {
			return nil, err
		}
		return h.Capture(r.Context(), id, nic)
	})
}

// numbered reads a VEE and a number from a path.
func numbered(r *http.Request, least, most int) (vee.ID, int, error) {
	id, err := veePath{r.PathValue("id")}.id()
	if err != nil {
		return "", 0, err
	}
	n, err := strconv.Atoi(r.PathValue("number"))
	if err != nil || n < least || n > most {
		return "", 0, fault.New(fault.Malformed, "%q in %s: want a number from %d to %d", r.PathValue("number"), r.URL.Path, least, most)
	}
	return id, n, nil
}

func (h hostClient) Connect(ctx context.Context, id vee.ID, port uint16) (io.ReadWriteCloser, error) {
	return h.c.Upgrade(ctx, veeURL(id, fmt.Sprintf("/ports/%d", port)))
}

func (h hostClient) Capture(ctx context.Context, id vee.ID, nic int) (io.ReadWriteCloser, error) {
	return h.c.Upgrade(ctx, veeURL(id, fmt.Sprintf("/nics/%d/capture", nic)))
}
