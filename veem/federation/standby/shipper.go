package standby

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/internal/httpapi"
	"github.com/reservoir-cloud/reservoir/internal/store"
	"github.com/reservoir-cloud/reservoir/vee"
	"github.com/reservoir-cloud/reservoir/vmi/peer"
)

// ShipperConfig of a Shipper. Every field is needed.
type ShipperConfig struct {
	Site     string
	Store    *store.Store
	Partners peer.Partners
	// Services of which others are to have something.
	Services func(ctx context.Context) ([]Service, error)
	// Checkpoint is the newest whole one of a VEE that its host has; nil: none.
	Checkpoint func(ctx context.Context, id vee.ID) *vee.Checkpoint
	// Read a VEE's checkpoint n from a byte on.
	Read func(ctx context.Context, id vee.ID, n int, from int64) (io.ReadWriteCloser, error)
	// GiveUp a service that a partner goes on with: when it returns, that is on record. At is
	// by our clock. It may be called again.
	GiveUp func(ctx context.Context, p peer.Promotion, at time.Time) error
	Record func(Event)
	Every  time.Duration // between two looks
	// Late is how old what a standby has may be, beside what was told it, before people hear of it.
	Late time.Duration
	Now  func() time.Time
	Log  *slog.Logger
}

// Shipper ships this site's services to their standbys, and gives up those that one of them has
// gone on with.
type Shipper struct {
	cfg  ShipperConfig
	rows store.Collection[shipped] // by service

	mu     sync.Mutex
	parts  map[string]map[string]peer.CheckpointPart // by site and digest: what it may fetch
	shown  map[string]Shown                          // by service and site
	late   map[string]time.Time                      // since when a standby has not what it was told
	told   map[string]bool                           // of a standby that it is late
	denied map[string]refusal                        // by service and site
	images map[string]images                         // by site
}

// refusal of a shipment, which is not tried again at once.
type refusal struct {
	number uint64
	at     time.Time
	why    string
}

// images that a site has of those that it is to have.
type images struct {
	wanted, here []string
	at           time.Time
}

// NewShipper makes one, which does nothing before Run.
func NewShipper(cfg ShipperConfig) *Shipper {
	return &Shipper{cfg: cfg, rows: store.NewCollection[shipped](cfg.Store, "shipment"), parts: map[string]map[string]peer.CheckpointPart{},
		shown: map[string]Shown{}, late: map[string]time.Time{}, told: map[string]bool{}, denied: map[string]refusal{}, images: map[string]images{}}
}

// Run until ctx is done.
func (s *Shipper) Run(ctx context.Context) error {
	tick := time.NewTicker(s.cfg.Every)
	defer tick.Stop()
	for {
		if err := s.round(ctx); err != nil && ctx.Err() == nil {
			s.cfg.Log.Warn("ship services to their standbys", "err", err)
		}
		changed := s.cfg.Partners.Changed() // who is back is asked at once what it has gone on with
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		case <-changed:
		}
	}
}

// round of all partners that can, each with a patience of its own.
func (s *Shipper) round(ctx context.Context) error {
	services, err := s.cfg.Services(ctx)
	if err != nil {
		return err
	}
	made := map[string]peer.Shipment{}
	for _, v := range services {
		if len(v.Standbys) > 0 {
			if made[v.ID], err = s.make(ctx, v); err != nil {
				return fmt.Errorf("service %s: %w", v.Name, err)
			}
		}
	}
	if err := s.forget(ctx, made); err != nil {
		return err
	}
	s.offer(made)
	ahead := wanted(services)
	var mu sync.Mutex
	var promoted []promotionSeen
	var asking sync.WaitGroup
	for _, x := range s.cfg.Partners.Partners() {
		if x.Hello.Needs(peer.CanCooperate) != nil {
			continue
		}
		if x.Down != nil {
			s.unreached(x, services, made)
			continue
		}
		asking.Go(func() {
			ctx, cancel := context.WithTimeout(ctx, askPatience)
			defer cancel()
			list, err := s.meet(ctx, x, services, made, ahead[x.Name])
			if err != nil && ctx.Err() == nil {
				s.cfg.Log.Info("ship services to a standby", "site", x.Name, "err", err)
			}
			mu.Lock()
			defer mu.Unlock()
			promoted = append(promoted, list...)
		})
	}
	asking.Wait()
	return s.giveWay(ctx, services, promoted)
}

// make the shipment of a service as it is now.
func (s *Shipper) make(ctx context.Context, v Service) (peer.Shipment, error) {
	was, version, err := s.rows.Get(ctx, v.ID)
	if err != nil && !fault.Has(err, fault.NotFound) {
		return peer.Shipment{}, err
	}
	now, out, fresh := was.next(v, func(id vee.ID) *vee.Checkpoint { return s.cfg.Checkpoint(ctx, id) }, s.cfg.Now(), patience*s.cfg.Every)
	switch {
	case !fresh && now.Uneven.Equal(was.Uneven):
	case version == 0:
		_, err = s.rows.Create(ctx, v.ID, now)
	default:
		_, err = s.rows.Update(ctx, v.ID, now, version)
	}
	if fault.Has(err, fault.NotFound) {
		err = nil
	}
	return out, err
}

// patience with checkpoints of which not all parts are there, in looks.
const patience = 6

// offer the parts of the shipments to their standbys, and what was offered before as long as one
// of them may be fetching it: its host may have it still.
func (s *Shipper) offer(made map[string]peer.Shipment) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, m := range made {
		for _, site := range m.Standbys {
			if s.parts[site] == nil || len(s.parts[site]) > maxOffered {
				s.parts[site] = map[string]peer.CheckpointPart{}
			}
			for _, p := range m.Parts {
				s.parts[site][p.Digest] = p
			}
		}
	}
}

// maxOffered parts are remembered for a site.
const maxOffered = 10_000

type promotionSeen struct {
	peer.Promotion
	at    time.Time // by our clock
	known bool
}

// meet a partner: hear what it has gone on with, and tell it what it lacks.
func (s *Shipper) meet(ctx context.Context, x peer.Partner, services []Service, made map[string]peer.Shipment, ahead []string) (promoted []promotionSeen, err error) {
	standings, err := x.Site.Standings(ctx)
	if err != nil {
		return nil, err
	}
	has := map[string]peer.Standing{}
	for _, st := range standings {
		has[st.Service] = st
		if p := st.Promoted; p != nil {
			p.By = x.Name // it speaks for itself alone
			promoted = append(promoted, promotionSeen{*p, x.OurTime(p.At), st.Known})
		}
	}
	var errs []error
	var kept []string
	for _, v := range services {
		if !slices.Contains(v.Standbys, x.Name) {
			continue
		}
		kept = append(kept, v.ID)
		m, st := made[v.ID], has[v.ID]
		if st.Promoted == nil && st.Number != m.Number && (st.Coming != m.Number || st.Problem != "") {
			var err error
			if st, err = s.put(ctx, x, m, st); err != nil {
				errs = append(errs, err)
			}
		}
		s.note(x.Name, v, m, st)
	}
	if slices.ContainsFunc(standings, func(st peer.Standing) bool { return st.Promoted == nil && !slices.Contains(kept, st.Service) }) {
		errs = append(errs, x.Site.DropShipments(ctx, kept))
	}
	return promoted, errors.Join(append(errs, s.tellImages(ctx, x, ahead))...)
}

// put a shipment to a standby that has the standing st of it.
func (s *Shipper) put(ctx context.Context, x peer.Partner, m peer.Shipment, st peer.Standing) (peer.Standing, error) {
	key, now := m.Service+" "+x.Name, s.cfg.Now()
	s.mu.Lock()
	was := s.denied[key]
	s.mu.Unlock()
	if was.number == m.Number && now.Sub(was.at) < againAfter*s.cfg.Every {
		st.Service, st.Problem = m.Service, was.why
		return st, nil
	}
	got, err := x.Site.PutShipment(ctx, m)
	s.mu.Lock()
	defer s.mu.Unlock()
	if err == nil {
		delete(s.denied, key)
		return got, nil
	}
	st.Service, st.Problem = m.Service, fault.From(err).Message
	if !fault.Has(err, fault.Unavailable) && !fault.Has(err, fault.Timeout) {
		s.denied[key] = refusal{m.Number, now, st.Problem}
	}
	return st, err
}

// againAfter so many looks a shipment that was refused is tried again.
const againAfter = 12

// forget what is known of services that are shipped no more.
func (s *Shipper) forget(ctx context.Context, made map[string]peer.Shipment) error {
	rows, err := s.rows.List(ctx, "")
	if err != nil {
		return err
	}
	for _, o := range rows {
		if _, is := made[o.Value.Service]; !is {
			if err := s.rows.Delete(ctx, o.Key, o.Version); err != nil && !fault.Has(err, fault.NotFound) && !fault.Has(err, fault.Conflict) {
				return err
			}
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	gone := func(key string) bool {
		service, _, _ := strings.Cut(key, " ")
		_, is := made[service]
		return !is
	}
	maps.DeleteFunc(s.shown, func(k string, _ Shown) bool { return gone(k) })
	maps.DeleteFunc(s.late, func(k string, _ time.Time) bool { return gone(k) })
	maps.DeleteFunc(s.told, func(k string, _ bool) bool { return gone(k) })
	maps.DeleteFunc(s.denied, func(k string, _ refusal) bool { return gone(k) })
	return nil
}

// tellImages that are to be at a partner ahead.
func (s *Shipper) tellImages(ctx context.Context, x peer.Partner, ahead []string) error {
	now := s.cfg.Now()
	s.mu.Lock()
	was := s.images[x.Name]
	s.mu.Unlock()
	all := slices.Equal(was.wanted, ahead) && len(was.here) == len(ahead)
	if all && (len(ahead) == 0 || now.Sub(was.at) < imagesAgain*s.cfg.Every) {
		return nil
	}
	if _, err := x.Lends(now); err != nil { // it would take none
		return nil //nolint:nilerr // and says so where a service names it
	}
	here, err := x.Site.PutImages(ctx, ahead)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.images[x.Name] = images{ahead, here, now}
	return nil
}

// imagesAgain is how often, in looks, a site that has all images is asked whether it has them still.
const imagesAgain = 30

// Images of this site's that partners were asked to have, with the sites that do.
func (s *Shipper) Images() map[string][]string {
	s.mu.Lock()
	defer s.mu.Unlock()
	at := map[string][]string{}
	for _, site := range slices.Sorted(maps.Keys(s.images)) {
		for _, d := range s.images[site].here {
			at[d] = append(at[d], site)
		}
	}
	return at
}

// note how far a standby is, and tell people when it does not follow.
func (s *Shipper) note(site string, v Service, m peer.Shipment, st peer.Standing) {
	key := v.ID + " " + site
	now := s.cfg.Now()
	shown := Shown{Service: v.ID, Customer: v.Customer, Name: v.Name, Primary: s.cfg.Site, Standby: site, Standing: st, Shipment: m.Number, VEEs: len(m.Parts)}
	shown.Service = v.ID
	for _, p := range m.Parts {
		shown.Size += p.Size
	}
	var event *Event
	s.mu.Lock()
	s.shown[key] = shown
	switch behind := st.Number != m.Number && st.Promoted == nil; {
	case !behind:
		if s.told[key] {
			event = &Event{Reason: "StandbyFollows", Object: "service/" + v.Name, Message: fmt.Sprintf("site %s has all that it takes to go on with service %s", site, v.Name)}
		}
		delete(s.late, key)
		delete(s.told, key)
	case s.late[key].IsZero():
		s.late[key] = now
	case now.Sub(s.late[key]) > s.cfg.Late && !s.told[key]:
		s.told[key] = true
		has := "nothing whole"
		if st.Number > 0 {
			has = "what it was at " + st.At.UTC().Format(time.RFC3339)
		}
		event = &Event{Warning: true, Reason: "StandbyLate", Object: "service/" + v.Name, Message: fmt.Sprintf("standby %s of service %s has %s; %s", site, v.Name, has, why(st))}
	}
	s.mu.Unlock()
	if event != nil {
		s.cfg.Record(*event)
	}
}

func why(st peer.Standing) string {
	switch {
	case st.Problem != "":
		return st.Problem
	case st.Coming > 0:
		return fmt.Sprintf("%s and %d images are to come", st.Missing, st.MissingImages)
	}
	return "it does not say why"
}

// unreached standbys are late, too.
func (s *Shipper) unreached(x peer.Partner, services []Service, made map[string]peer.Shipment) {
	for _, v := range services {
		if slices.Contains(v.Standbys, x.Name) {
			s.mu.Lock()
			st := s.shown[v.ID+" "+x.Name].Standing
			s.mu.Unlock()
			st.Problem = x.Down.Error()
			s.note(x.Name, v, made[v.ID], st)
		}
	}
}

// List how far the standbys of this site's services are.
func (s *Shipper) List(ctx context.Context) ([]Shown, error) {
	services, err := s.cfg.Services(ctx)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	list := []Shown{}
	for _, v := range services {
		for _, site := range v.Standbys {
			shown, met := s.shown[v.ID+" "+site]
			if !met {
				shown = Shown{Service: v.ID, Customer: v.Customer, Name: v.Name, Primary: s.cfg.Site, Standby: site, Standing: peer.Standing{Service: v.ID, Problem: s.unmet(site)}}
			}
			list = append(list, shown)
		}
	}
	return list, nil
}

// unmet is why a standby was not spoken to.
func (s *Shipper) unmet(site string) string {
	x, err := s.cfg.Partners.Partner(site)
	if err == nil {
		err = x.Hello.Needs(peer.CanCooperate)
	}
	if err == nil {
		err = x.Down
	}
	if err == nil {
		return ""
	}
	return fault.From(err).Message
}

// giveWay to who has gone on with services of ours: it hears so when that is on record here. Of
// two the first that the service names has it.
func (s *Shipper) giveWay(ctx context.Context, services []Service, promoted []promotionSeen) error {
	by := map[string][]promotionSeen{}
	for _, p := range promoted {
		by[p.Service] = append(by[p.Service], p)
	}
	var errs []error
	for _, id := range slices.Sorted(maps.Keys(by)) {
		var list []peer.Promotion
		for _, p := range by[id] {
			list = append(list, p.Promotion)
		}
		var standbys []string
		for _, v := range services {
			if v.ID == id {
				standbys = v.Standbys
			}
		}
		to := first(standbys, list)
		i := slices.IndexFunc(by[id], func(p promotionSeen) bool { return p.By == to.By })
		if err := s.cfg.GiveUp(ctx, to, by[id][i].at); err != nil {
			errs = append(errs, fmt.Errorf("give service %s up to site %s: %w", id, to.By, err))
			continue
		}
		for _, p := range by[id] {
			if !p.known {
				errs = append(errs, s.gaveWay(ctx, p.By, id))
			}
		}
	}
	return errors.Join(errs...)
}

func (s *Shipper) gaveWay(ctx context.Context, site, service string) error {
	x, err := s.cfg.Partners.Partner(site)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, askPatience)
	defer cancel()
	return x.Site.GaveWay(ctx, []string{service})
}

// Registry is next, and beside it the checkpoints that the calling partner was told of, as blobs
// that can be had from any byte on.
func (s *Shipper) Registry(next http.Handler, siteOf func(*http.Request) string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, digest, isBlob := strings.Cut(r.URL.Path, "/blobs/")
		s.mu.Lock()
		p, offered := s.parts[siteOf(r)][digest]
		s.mu.Unlock()
		if !isBlob || !offered || r.Method != http.MethodGet && r.Method != http.MethodHead {
			next.ServeHTTP(w, r)
			return
		}
		// The first byte shows whether it can be had: after that only a cut says that it cannot.
		content := &part{ctx: r.Context(), read: s.cfg.Read, of: p}
		defer content.Close()
		if err := content.try(); err != nil {
			httpapi.Refuse(w, err)
			return
		}
		w.Header().Set("Content-Type", "application/octet-stream")
		http.ServeContent(w, r, "", time.Time{}, content)
	})
}

// part of a checkpoint at its host, from any byte on: io.ReadSeeker.
type part struct {
	ctx  context.Context
	read func(ctx context.Context, id vee.ID, n int, from int64) (io.ReadWriteCloser, error)
	of   peer.CheckpointPart

	at     int64
	stream io.ReadWriteCloser // from at on; nil: none is open
}

// try to open it.
func (p *part) try() (err error) {
	if p.stream == nil && p.at < int64(p.of.Size) {
		p.stream, err = p.read(p.ctx, p.of.VEE, p.of.N, p.at)
	}
	return err
}

// Read implements io.Reader.
func (p *part) Read(b []byte) (int, error) {
	left := int64(p.of.Size) - p.at
	if left <= 0 {
		return 0, io.EOF
	}
	if err := p.try(); err != nil {
		return 0, err
	}
	n, err := p.stream.Read(b[:min(int64(len(b)), left)])
	p.at += int64(n)
	if errors.Is(err, io.EOF) && p.at < int64(p.of.Size) {
		err = io.ErrUnexpectedEOF
	}
	return n, err
}

// Seek implements io.Seeker.
func (p *part) Seek(offset int64, whence int) (int64, error) {
	to := map[int]int64{io.SeekStart: 0, io.SeekCurrent: p.at, io.SeekEnd: int64(p.of.Size)}[whence] + offset
	if to < 0 {
		return p.at, fs.ErrInvalid
	}
	if to != p.at {
		p.Close()
	}
	p.at = to
	return to, nil
}

// Close the stream; the next Read opens another.
func (p *part) Close() {
	if p.stream != nil {
		_ = p.stream.Close()
		p.stream = nil
	}
}
