package peer_test

import (
	"context"
	"reflect"
	"testing"

	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/internal/identity"
	"github.com/reservoir-cloud/reservoir/vmi/peer"
)

// cooperative answers with something of every field.
type cooperative struct{ echo }

var (
	shipment = peer.Shipment{Service: "beta/beta.s-1", Customer: "acme", Name: "shop", Number: 7, At: at, Definition: []byte("{}"), Digest: "sha256:1", Images: []string{"sha256:2"},
		Parts: []peer.CheckpointPart{{VEE: "alpha.aaaaaaaaaa", Name: "web-1", N: 3, At: at, Size: 9, Digest: "sha256:3"}}, Standbys: []string{"beta"}}
	promotion = peer.Promotion{Service: "beta/beta.s-1", By: "beta", Number: 7, At: at, Customer: "alpha-acme", Name: "shop"}
	standing  = peer.Standing{Service: "beta/beta.s-1", Number: 6, At: at, Coming: 7, Missing: 8, MissingImages: 1, Problem: "none", Promoted: &promotion, Known: true}
)

func (c *cooperative) PutShipment(_ context.Context, s peer.Shipment) (peer.Standing, error) {
	c.got(s)
	return standing, nil
}
func (c *cooperative) DropShipments(_ context.Context, but []string) error {
	c.got(but)
	return nil
}
func (c *cooperative) Standings(context.Context) ([]peer.Standing, error) {
	return []peer.Standing{standing}, nil
}
func (c *cooperative) GaveWay(_ context.Context, services []string) error {
	c.got(services)
	return nil
}
func (c *cooperative) Succeeded(_ context.Context, site string) ([]peer.Promotion, error) {
	c.got(site)
	return []peer.Promotion{promotion}, nil
}
func (c *cooperative) PutImages(_ context.Context, digests []string) ([]string, error) {
	c.got(digests)
	return digests[:1], nil
}

func cooperate(ctx context.Context, s peer.Site) (out []any, errs []error) {
	add := func(v any, err error) { out, errs = append(out, v), append(errs, err) }
	st, err := s.PutShipment(ctx, shipment)
	add(st, err)
	add(nil, s.DropShipments(ctx, []string{"beta/beta.s-1"}))
	list, err := s.Standings(ctx)
	add(list, err)
	add(nil, s.GaveWay(ctx, []string{"beta/beta.s-1"}))
	promoted, err := s.Succeeded(ctx, "gamma")
	add(promoted, err)
	here, err := s.PutImages(ctx, []string{"sha256:1", "sha256:2"})
	add(here, err)
	return out, errs
}

// TestCooperation: local and remote alike, and for partners alone.
func TestCooperation(t *testing.T) {
	local, behind := &cooperative{}, &cooperative{}
	remote, _ := serve(t, behind, identity.Caller{Role: identity.Partner, Site: "alpha"})
	want, _ := cooperate(t.Context(), local)
	got, errs := cooperate(t.Context(), remote)
	for i, err := range errs {
		if err != nil || !reflect.DeepEqual(got[i], want[i]) {
			t.Errorf("%d: got %+v, %v, want %+v", i, got[i], err, want[i])
		}
	}
	if !reflect.DeepEqual(behind.calls, local.calls) {
		t.Errorf("calls arrived as\n%+v, want\n%+v", behind.calls, local.calls)
	}
	for _, role := range []identity.Role{identity.Operator, identity.Provider, identity.Auditor, identity.SiteRole, identity.HostRole, ""} {
		svc := &cooperative{}
		remote, _ := serve(t, svc, identity.Caller{Role: role, Site: "alpha"})
		_, errs := cooperate(t.Context(), remote)
		for i, err := range errs {
			if !fault.Has(err, fault.Denied) {
				t.Errorf("role %q, call %d: %v", role, i, err)
			}
		}
	}
}
