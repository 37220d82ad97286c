package vhi_test

import (
	"context"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"reflect"
	"testing"

	"github.com/reservoir-cloud/reservoir/internal/httpapi"
	"github.com/reservoir-cloud/reservoir/internal/identity"
	"github.com/reservoir-cloud/reservoir/van/plan"
	"github.com/reservoir-cloud/reservoir/vhi"
)

// host is told of segments, and of nothing else.
type host struct {
	vhi.Host
	put []plan.Segment
}

func (h *host) PutSegment(_ context.Context, s plan.Segment) error {
	h.put = append(h.put, s)
	return nil
}

// A host whose guests are simulated has no underlay address: its ports are told all the same.
func TestSegmentsGoOver(t *testing.T) {
	h := &host{}
	api := httpapi.NewServer("test", "1", slog.New(slog.DiscardHandler))
	vhi.RegisterHost(api, h)
	server := httptest.NewServer(api.Handler(func(*http.Request) (identity.Caller, error) {
		return identity.Caller{Role: identity.SiteRole}, nil
	}))
	defer server.Close()
	port := plan.Port{VEE: "alpha.aaaaaaaaaa", MAC: "52:54:00:00:00:01", Addresses: []netip.Addr{netip.MustParseAddr("10.0.0.1")}, Host: "h1"}
	segment := plan.Segment{ID: "alpha.net", Version: 1, Public: true, MTU: 1500, Subnets: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/24")}, Ports: []plan.Port{port}}
	c := vhi.NewHostClient(&httpapi.Client{Base: server.URL, HTTP: server.Client()})
	for _, underlay := range []netip.Addr{{}, netip.MustParseAddr("192.0.2.1")} {
		segment.Ports[0].Underlay = underlay
		if err := c.PutSegment(t.Context(), segment); err != nil {
			t.Errorf("underlay %q: %v", underlay, err)
			continue
		}
		if got := h.put[len(h.put)-1]; !reflect.DeepEqual(got, segment) {
			t.Errorf("arrived as %+v, want %+v", got, segment)
		}
	}
}
