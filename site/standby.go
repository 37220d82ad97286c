package site

import (
	"context"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/internal/httpapi"
	"github.com/reservoir-cloud/reservoir/internal/identity"
	"github.com/reservoir-cloud/reservoir/site/admin"
	"github.com/reservoir-cloud/reservoir/sm"
	"github.com/reservoir-cloud/reservoir/smi"
	"github.com/reservoir-cloud/reservoir/vee"
	"github.com/reservoir-cloud/reservoir/veem/federation/standby"
	"github.com/reservoir-cloud/reservoir/vmi/peer"
)

// cooperation of this site with others for the sake of services: what it ships to their
// standbys, and what it keeps as one.
type cooperation struct {
	shelf   *standby.Shelf
	shipper *standby.Shipper
}

// leastShip is the shortest time between two looks at what is to be shipped.
const leastShip = time.Second

func (s *site) openCooperation(ctx context.Context) (err error) {
	of := func(d time.Duration) time.Duration { return max(leastShip, time.Duration(s.cfg.HAScale*float64(d))) }
	record := func(e standby.Event) {
		kind := "normal"
		if e.Warning {
			kind = "warning"
		}
		s.events.Record(smi.Event{Type: kind, Reason: e.Reason, Object: e.Object, Message: e.Message})
	}
	s.cooperation.shelf, err = standby.OpenShelf(ctx, standby.ShelfConfig{
		Site: s.cfg.Name, Dir: filepath.Join(s.cfg.Dir, "standby"), Store: s.store, Partners: s.partners,
		Blob: s.abroad.images.Blob, Image: s.abroad.images.Import, Lodging: s.veem.Lodging, Successor: successor{s}, Record: record,
		Every: of(5 * time.Second), Silent: of(time.Minute), Now: time.Now, Log: s.cfg.Log,
	})
	if err != nil {
		return err
	}
	s.cooperation.shipper = standby.NewShipper(standby.ShipperConfig{
		Site: s.cfg.Name, Store: s.store, Partners: s.partners, Services: s.cooperating,
		Checkpoint: func(ctx context.Context, id vee.ID) *vee.Checkpoint {
			v, err := s.veem.GetVEE(identity.With(ctx, s.self()), id)
			if err != nil {
				return nil
			}
			return v.Checkpoint
		},
		Read: func(ctx context.Context, id vee.ID, n int, from int64) (io.ReadWriteCloser, error) {
			return s.veem.ReadCheckpoint(identity.With(ctx, s.self()), id, n, from) // who asks for it was told of it
		},
		GiveUp: s.giveUp, Record: record, Every: of(5 * time.Second), Late: of(5 * time.Minute), Now: time.Now, Log: s.cfg.Log,
	})
	return nil
}

// cooperating are the services of which partners are to have something.
func (s *site) cooperating(ctx context.Context) (list []standby.Service, err error) {
	all, err := s.sm.Cooperating(ctx)
	for _, c := range all {
		v := standby.Service{ID: c.ID, Customer: c.Customer, Name: c.Name, Standbys: c.Standbys, Sites: c.Sites, Images: c.Images, Definition: c.Definition}
		for _, r := range c.Replicas {
			v.Replicas = append(v.Replicas, standby.Replica{Name: r.Name, VEE: r.VEE})
		}
		list = append(list, v)
	}
	return list, err
}

// giveUp a service of this site's that a partner goes on with. The Service Manager first: it
// would start anew what it misses.
func (s *site) giveUp(ctx context.Context, p peer.Promotion, at time.Time) error {
	if err := s.sm.Cede(ctx, p.Service, p.By, at, p.Customer, p.Name); err != nil {
		return err
	}
	return s.veem.GiveUp(identity.With(ctx, s.self()), p.Service, p.By)
}

// successor is this site as it goes on with partners' services: standby.Successor.
type successor struct{ s *site }

func (x successor) TakeOver(ctx context.Context, site, service, customer string) (group string, lodgers []vee.ID, err error) {
	return x.s.veem.TakeOver(identity.With(ctx, x.s.self()), site, service, customer)
}

func (x successor) Adopt(ctx context.Context, a standby.Adoption) error {
	return x.s.sm.Adopt(ctx, sm.Adoption{From: a.From, At: a.At, ID: a.Group, Customer: a.Customer, Name: a.Name, Definition: a.Definition, Lodgers: a.Lodgers, Seeds: a.Seeds})
}

func (x successor) Yield(ctx context.Context, group string, to peer.Promotion) error {
	at := to.At
	if p, err := x.s.partners.Partner(to.By); err == nil {
		at = p.OurTime(at)
	}
	return x.s.sm.Cede(ctx, group, to.By, at, to.Customer, to.Name)
}

func (x successor) Seeds(ctx context.Context) (map[string]bool, error) { return x.s.sm.Seeds(ctx) }

// seedsBeside are the checkpoints that this site keeps as a standby, as blobs of its registry for
// its own hosts.
func (s *site) seedsBeside(images http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, digest, isBlob := strings.Cut(r.URL.Path, "/blobs/")
		if reads := r.Method == http.MethodGet || r.Method == http.MethodHead; isBlob && reads && identity.From(r.Context()).Is(identity.HostRole) {
			if f, err := s.cooperation.shelf.Open(digest); err == nil {
				defer f.Close()
				w.Header().Set("Content-Type", "application/octet-stream")
				http.ServeContent(w, r, "", time.Time{}, f)
				return
			}
		}
		images.ServeHTTP(w, r)
	})
}

// forPartnersAlone is what partners are served: their registry with the checkpoints that they
// were told of, and nobody gets in who has to give way first.
func (s *site) forPartnersAlone(api *httpapi.Server) http.Handler {
	return s.cooperation.shelf.Door(api.Handler(s.trust.Caller, peer.AcceptPath), s.trust.Caller)
}

func partnerOf(r *http.Request) string { return identity.From(r.Context()).Site }

// Blob of a partner's registry that belongs to no image.
func (i *importer) Blob(ctx context.Context, site, digest string, size vee.Bytes) (*os.File, error) {
	i.mu.Lock()
	c, err := i.cache(site)
	i.mu.Unlock()
	if err != nil {
		return nil, err
	}
	return c.Blob(ctx, digest, size, nil)
}

// ListStandbys implements admin.Cooperation.
func (s *site) ListStandbys(ctx context.Context) (list []standby.Shown, err error) {
	ours, err := s.cooperation.shipper.List(ctx)
	if err != nil {
		return nil, err
	}
	theirs, err := s.cooperation.shelf.List(ctx)
	return append(ours, theirs...), err
}

// Promote implements admin.Cooperation.
func (s *site) Promote(ctx context.Context, site string, p admin.Promotion) ([]standby.Shown, error) {
	if !p.Sure {
		return nil, fault.New(fault.Malformed, "to go on with services of site %s is for good: say that it is lost", site).Try("reservoir federation promote %s --i-am-sure", site)
	}
	return s.cooperation.shelf.Promote(ctx, standby.Order{Site: site, Service: p.Service, Customer: p.Customer, Fenced: p.Fenced})
}

// standingOf a service at its standbys: sm.Config.Standings.
func (s *site) standingOf(ctx context.Context, id string) (list []smi.Standby) {
	all, err := s.cooperation.shipper.List(ctx)
	if err != nil {
		return nil
	}
	for _, x := range all {
		if x.Service == id {
			list = append(list, smi.Standby{Site: x.Standby, At: x.At, Current: x.Number > 0 && x.Number == x.Shipment, VEEs: x.VEEs, Problem: x.Problem})
		}
	}
	return list
}

// ImagesElsewhere implements admin.Cooperation.
func (s *site) ImagesElsewhere(context.Context) (map[string][]string, error) {
	return s.cooperation.shipper.Images(), nil
}
