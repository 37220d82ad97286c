package standby

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/reservoir-cloud/reservoir/internal/durable"
	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/internal/httpapi"
	"github.com/reservoir-cloud/reservoir/internal/identity"
	"github.com/reservoir-cloud/reservoir/internal/store"
	"github.com/reservoir-cloud/reservoir/vee"
	"github.com/reservoir-cloud/reservoir/vmi/peer"
)

// Successor is this site, as far as it goes on with services of others.
type Successor interface {
	// TakeOver the VEEs of a partner's service that are here, and its networks: they are of that
	// customer of this site's from then on, and the partner has nothing to say about them. The
	// group is what the service's VEEs are in here. It may be called again, and answers the
	// same.
	TakeOver(ctx context.Context, site, service, customer string) (group string, lodgers []vee.ID, err error)
	// Adopt the service. It may be called again.
	Adopt(ctx context.Context, a Adoption) error
	// Yield a service that was adopted to another standby that was promoted too.
	Yield(ctx context.Context, group string, to peer.Promotion) error
	// Seeds are the checkpoints that VEEs of adopted services may begin with again, by digest.
	Seeds(ctx context.Context) (map[string]bool, error)
}

// Adoption of a service.
type Adoption struct {
	From           string
	At             time.Time
	Group          string
	Customer, Name string
	Definition     []byte
	Lodgers        []vee.ID
	Seeds          map[vee.ID]vee.Seed
}

// Event for people.
type Event struct {
	Reason, Object, Message string
	Warning                 bool
}

// ShelfConfig of a Shelf. Every field is needed.
type ShelfConfig struct {
	Site     string
	Dir      string // of the checkpoints
	Store    *store.Store
	Partners peer.Partners
	// Blob of a partner's registry, verified.
	Blob func(ctx context.Context, site, digest string, size vee.Bytes) (*os.File, error)
	// Image of a partner's: nil when it is here, else why it is not; asking brings it.
	Image func(ctx context.Context, site, digest string) error
	// Lodging is the disk of a partner's VEEs here.
	Lodging   func(site string) vee.Bytes
	Successor Successor
	Record    func(Event)
	Every     time.Duration // between two looks at what is to be done
	// Silent so long a site must have been before it is succeeded on the word that it is lost.
	Silent time.Duration
	Now    func() time.Time
	Log    *slog.Logger
}

// Shelf is what this site keeps of partners' services as their standby, and what it goes on with.
// It implements peer.Cooperation.
type Shelf struct {
	cfg    ShelfConfig
	rows   store.Collection[row]
	images store.Collection[[]string] // by site, that may be needed here
	news   chan struct{}

	opened time.Time  // who was silent before is not known
	files  sync.Mutex // a checkpoint comes or goes
	mu     sync.Mutex // guards what follows
	busy   map[string]bool
	shut   map[string]bool // sites that have not given way yet
	said   map[string]string
	heard  map[string]time.Time // when a site asked last how far its services are here
}

var _ peer.Cooperation = (*Shelf)(nil)

// OpenShelf reads what was kept. Nothing is fetched before Run.
func OpenShelf(ctx context.Context, cfg ShelfConfig) (*Shelf, error) {
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the folder of partners' checkpoints: %w", err)
	}
	h := &Shelf{cfg: cfg, opened: cfg.Now(), rows: store.NewCollection[row](cfg.Store, "standby"), images: store.NewCollection[[]string](cfg.Store, "standby-images"),
		news: make(chan struct{}, 1), busy: map[string]bool{}, shut: map[string]bool{}, said: map[string]string{}, heard: map[string]time.Time{}}
	rows, err := h.rows.Values(ctx, "")
	if err != nil {
		return nil, err
	}
	h.close(rows)
	return h, nil
}

func (h *Shelf) poke() {
	select {
	case h.news <- struct{}{}:
	default:
	}
}

// Run fetches what is to come and carries promotions out, until ctx is done.
func (h *Shelf) Run(ctx context.Context) error {
	var working sync.WaitGroup
	defer working.Wait()
	tick := time.NewTicker(h.cfg.Every)
	defer tick.Stop()
	for {
		rows, err := h.rows.Values(ctx, "")
		if err != nil && ctx.Err() == nil {
			h.cfg.Log.Warn("look at what partners have shipped", "err", err)
		}
		for _, r := range rows {
			if h.begin(r) {
				working.Go(func() {
					defer h.end(r)
					if err := h.work(ctx, r); err != nil && ctx.Err() == nil {
						h.problem(ctx, r, err)
					}
				})
			}
		}
		h.agreed(ctx, rows)
		if err := h.ahead(ctx); err != nil && ctx.Err() == nil {
			h.cfg.Log.Debug("images that partners may need here", "err", err)
		}
		if err := h.sweep(ctx); err != nil && ctx.Err() == nil {
			h.cfg.Log.Warn("drop old checkpoints of partners", "err", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		case <-h.news:
		}
	}
}

// begin reports whether there is work on r that nobody does yet.
func (h *Shelf) begin(r row) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	key := rowKey(r.Site, r.Service)
	if h.busy[key] || r.Coming == nil && r.Promoted == nil {
		return false
	}
	h.busy[key] = true
	return true
}

func (h *Shelf) end(r row) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.busy, rowKey(r.Site, r.Service))
}

func (h *Shelf) work(ctx context.Context, r row) error {
	if r.Promoted != nil {
		return h.carryOut(ctx, r)
	}
	return h.fetch(ctx, r)
}

// problem is noted with r, and told once.
func (h *Shelf) problem(ctx context.Context, r row, why error) {
	text := fault.From(why).Message
	_, _, err := h.rows.Modify(ctx, rowKey(r.Site, r.Service), func(now *row) error {
		if now.Coming == nil && now.Promoted == nil || r.Coming != nil && (now.Coming == nil || now.Coming.Number != r.Coming.Number) {
			return errOvertaken
		}
		now.Problem = text
		return nil
	})
	if err == nil && r.Problem == "" {
		h.cfg.Record(Event{Warning: true, Reason: "StandbyFails", Object: "site/" + r.Site, Message: fmt.Sprintf("standby for service %s of site %s: %s", r.Service, r.Site, text)})
	}
}

var errOvertaken = errors.New("something newer was told meanwhile")

// fetch what is coming, as far as it is not here.
func (h *Shelf) fetch(ctx context.Context, r row) error {
	parts, images := r.missing(h.has, func(d string) bool { return h.cfg.Image(ctx, r.Site, d) == nil })
	for _, p := range parts {
		if err := h.bring(ctx, r.Site, p); err != nil {
			return fmt.Errorf("checkpoint %d of %s: %w", p.N, p.Name, err)
		}
	}
	if len(images) > 0 {
		if err := h.cfg.Image(ctx, r.Site, images[0]); !fault.Has(err, fault.Unavailable) { // that is: on its way
			return err
		}
		return nil
	}
	now, _, err := h.rows.Modify(ctx, rowKey(r.Site, r.Service), func(now *row) error {
		if now.Promoted != nil || now.Coming == nil || now.Coming.Number != r.Coming.Number {
			return errOvertaken
		}
		*now = now.arrived()
		return nil
	})
	if errors.Is(err, errOvertaken) {
		return nil
	}
	if err == nil && r.Whole == nil {
		h.cfg.Record(Event{Reason: "Standby", Object: "site/" + r.Site, Message: fmt.Sprintf("this site can go on with service %s of site %s: checkpoints of %d VEEs, %s", now.Whole.Name, r.Site, len(now.Whole.Parts), holds([]row{now}))})
	}
	return err
}

var digestForm = regexp.MustCompile(`^sha256:[0-9a-f]{64}$`)

func (h *Shelf) file(digest string) string {
	return filepath.Join(h.cfg.Dir, strings.TrimPrefix(digest, "sha256:"))
}

func (h *Shelf) has(digest string) bool {
	_, err := os.Stat(h.file(digest))
	return err == nil
}

// Open a checkpoint that is here. Errors: NotFound.
func (h *Shelf) Open(digest string) (*os.File, error) {
	if digestForm.MatchString(digest) {
		if f, err := os.Open(h.file(digest)); err == nil {
			return f, nil
		}
	}
	return nil, fault.New(fault.NotFound, "no checkpoint %s is kept here", digest)
}

// bring a part from the primary, resumed and verified. It has its name when it is whole.
func (h *Shelf) bring(ctx context.Context, site string, p peer.CheckpointPart) error {
	f, err := h.cfg.Blob(ctx, site, p.Digest, p.Size)
	if err != nil {
		return err
	}
	defer f.Close()
	h.files.Lock()
	defer h.files.Unlock()
	err = os.Link(f.Name(), h.file(p.Digest))
	if err == nil || errors.Is(err, fs.ErrExist) {
		return durable.SyncDir(h.cfg.Dir)
	}
	// The cache has dropped its name meanwhile, or lies on another disk.
	to, err := os.CreateTemp(h.cfg.Dir, "new-*")
	if err != nil {
		return fmt.Errorf("keep it: %w", err)
	}
	defer os.Remove(to.Name()) //nolint:errcheck // it has another name when all went well
	_, err = io.Copy(to, f)
	if err = errors.Join(err, to.Sync(), to.Close()); err == nil {
		err = os.Rename(to.Name(), h.file(p.Digest))
	}
	if err != nil {
		return fmt.Errorf("keep it: %w", err)
	}
	return durable.SyncDir(h.cfg.Dir)
}

// sweep away what no row names and no service may begin with again.
func (h *Shelf) sweep(ctx context.Context) error {
	h.files.Lock()
	defer h.files.Unlock()
	rows, err := h.rows.Values(ctx, "")
	if err != nil {
		return err
	}
	kept, err := h.cfg.Successor.Seeds(ctx)
	if err != nil {
		return err
	}
	named := map[string]bool{}
	for d := range kept {
		named[filepath.Base(h.file(d))] = true
	}
	for _, r := range rows {
		if r.Promoted == nil || !r.Promoted.Done {
			for _, p := range r.parts() {
				named[filepath.Base(h.file(p.Digest))] = true
			}
		}
	}
	entries, err := os.ReadDir(h.cfg.Dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if !named[e.Name()] {
			if err := os.Remove(filepath.Join(h.cfg.Dir, e.Name())); err != nil {
				return err
			}
		}
	}
	return nil
}

// ahead has the images brought that partners may need here.
func (h *Shelf) ahead(ctx context.Context) error {
	list, err := h.images.List(ctx, "")
	if err != nil {
		return err
	}
	var errs []error
	for _, o := range list {
		for _, d := range o.Value {
			errs = append(errs, h.cfg.Image(ctx, o.Key, d))
		}
	}
	return errors.Join(errs...)
}

// ImagesInUse are those that may be needed here, with what for.
func (h *Shelf) ImagesInUse(ctx context.Context) (map[string][]string, error) {
	used := map[string][]string{}
	list, err := h.images.List(ctx, "")
	if err != nil {
		return nil, err
	}
	for _, o := range list {
		for _, d := range o.Value {
			used[d] = append(used[d], "site/"+o.Key)
		}
	}
	rows, err := h.rows.Values(ctx, "")
	if err != nil {
		return nil, err
	}
	for _, r := range rows {
		for _, s := range []*peer.Shipment{r.Whole, r.Coming} {
			if s != nil && (r.Promoted == nil || !r.Promoted.Done) {
				for _, d := range s.Images {
					used[d] = append(used[d], "standby/"+r.Service)
				}
			}
		}
	}
	return used, nil
}

// PutShipment implements peer.Cooperation.
func (h *Shelf) PutShipment(ctx context.Context, s peer.Shipment) (peer.Standing, error) {
	site, err := partner(ctx)
	if err != nil {
		return peer.Standing{}, err
	}
	if err := h.check(site, s); err != nil {
		return peer.Standing{}, err
	}
	var out row
	err = h.change(ctx, site, s.Service, func(was row, rows []row) (row, bool, error) {
		now, changed, err := was.announce(s, h.cfg.Now())
		out = now
		if err != nil || !changed {
			return now, false, err
		}
		deal, err := h.agreement(site)
		if err != nil {
			return now, false, err
		}
		rows = slices.DeleteFunc(rows, func(r row) bool { return r.Service == s.Service || r.Promoted != nil })
		return now, true, within(append(rows, now), h.cfg.Lodging(site), deal)
	})
	if err != nil {
		return peer.Standing{}, err
	}
	h.poke()
	return h.tell(ctx, out), nil
}

// change one row by what all of the site's are. It is decided anew when somebody was faster.
func (h *Shelf) change(ctx context.Context, site, service string, decide func(was row, all []row) (row, bool, error)) error {
	for {
		all, err := h.rows.Values(ctx, site+"/")
		if err != nil {
			return err
		}
		was, version, err := h.rows.Get(ctx, rowKey(site, service))
		if fault.Has(err, fault.NotFound) {
			was, version, err = row{Site: site, Service: service}, 0, nil
		}
		if err != nil {
			return err
		}
		now, changed, err := decide(was, all)
		if err != nil || !changed {
			return err
		}
		if version == 0 {
			_, err = h.rows.Create(ctx, rowKey(site, service), now)
		} else {
			_, err = h.rows.Update(ctx, rowKey(site, service), now, version)
		}
		if !fault.Has(err, fault.Conflict) && !fault.Has(err, fault.Exists) && !fault.Has(err, fault.NotFound) {
			return err
		}
	}
}

// check what a partner says, before anything is made of it.
func (h *Shelf) check(site string, s peer.Shipment) error {
	bad := func(format string, args ...any) error {
		return fault.New(fault.Malformed, "shipment of service %q: %s", s.Service, fmt.Sprintf(format, args...))
	}
	sum := sha256.Sum256(s.Definition)
	switch {
	case s.Service == "" || len(s.Service) > maxService:
		return bad("want an identifier of at most %d bytes", maxService)
	case !vee.ValidName(s.Customer) || !vee.ValidName(s.Name):
		return bad("customer %q and name %q: want DNS labels", s.Customer, s.Name)
	case s.Number == 0:
		return bad("want a number")
	case len(s.Definition) > peer.MaxDefinition:
		return fault.New(fault.TooLarge, "shipment of service %s: its definition has %d bytes, at most %d", s.Service, len(s.Definition), peer.MaxDefinition)
	case s.Digest != "sha256:"+hex.EncodeToString(sum[:]):
		return fault.New(fault.DigestMismatch, "shipment of service %s: its definition is not what its digest says", s.Service)
	case !slices.Contains(s.Standbys, h.cfg.Site):
		return bad("site %s is none of its standbys", h.cfg.Site)
	}
	for _, d := range s.Images {
		if !digestForm.MatchString(d) {
			return bad("image %q: want a digest", d)
		}
	}
	for _, p := range s.Parts {
		if _, err := vee.ParseID(string(p.VEE)); err != nil || !digestForm.MatchString(p.Digest) || p.Size <= 0 {
			return bad("checkpoint of VEE %q, %q of %d bytes: want an identifier, a digest and a size", p.VEE, p.Digest, p.Size)
		}
	}
	return nil
}

const maxService = 256

// agreement under which a partner may have something here.
func (h *Shelf) agreement(site string) (peer.Agreement, error) {
	x, err := h.cfg.Partners.Partner(site)
	if err != nil {
		return peer.Agreement{}, err
	}
	deal, err := x.Borrows(h.cfg.Now())
	if err != nil {
		return deal, fault.New(fault.Denied, "%w", err)
	}
	return deal, nil
}

func partner(ctx context.Context) (string, error) {
	if c := identity.From(ctx); c.Is(identity.Partner) && c.Site != "" {
		return c.Site, nil
	}
	return "", fault.New(fault.Denied, "only partner sites do that")
}

// tell how far r is.
func (h *Shelf) tell(ctx context.Context, r row) peer.Standing {
	parts, images := r.missing(h.has, func(d string) bool { return h.cfg.Image(ctx, r.Site, d) == nil })
	var missing vee.Bytes
	for _, p := range parts {
		missing += p.Size
	}
	return r.standing(missing, len(images))
}

// DropShipments implements peer.Cooperation.
func (h *Shelf) DropShipments(ctx context.Context, but []string) error {
	site, err := partner(ctx)
	if err != nil {
		return err
	}
	rows, err := h.rows.List(ctx, site+"/")
	if err != nil {
		return err
	}
	for _, o := range rows {
		if o.Value.Promoted != nil || slices.Contains(but, o.Value.Service) {
			continue
		}
		if err := h.rows.Delete(ctx, o.Key, o.Version); err != nil && !fault.Has(err, fault.NotFound) && !fault.Has(err, fault.Conflict) {
			return err
		}
	}
	return nil
}

// Standings implements peer.Cooperation.
func (h *Shelf) Standings(ctx context.Context) ([]peer.Standing, error) {
	site, err := partner(ctx)
	if err != nil {
		return nil, err
	}
	h.mu.Lock()
	h.heard[site] = h.cfg.Now()
	h.mu.Unlock()
	rows, err := h.rows.Values(ctx, site+"/")
	if err != nil {
		return nil, err
	}
	list := []peer.Standing{}
	for _, r := range rows {
		list = append(list, h.tell(ctx, r))
	}
	return list, nil
}

// PutImages implements peer.Cooperation.
func (h *Shelf) PutImages(ctx context.Context, digests []string) ([]string, error) {
	site, err := partner(ctx)
	if err != nil {
		return nil, err
	}
	if _, err := h.agreement(site); err != nil {
		return nil, err
	}
	for _, d := range digests {
		if !digestForm.MatchString(d) {
			return nil, fault.New(fault.Malformed, "image %q: want a digest", d)
		}
	}
	was, _, err := h.images.Get(ctx, site)
	switch {
	case err != nil && !fault.Has(err, fault.NotFound):
		return nil, err
	case !slices.Equal(was, digests):
		if _, err := h.images.Put(ctx, site, digests); err != nil {
			return nil, err
		}
		h.poke()
	}
	here := []string{}
	for _, d := range digests {
		if h.cfg.Image(ctx, site, d) == nil {
			here = append(here, d)
		}
	}
	return here, nil
}

// Shown is a service at its standby, for the operators of both sites.
type Shown struct {
	Service  string `json:"service"`
	Customer string `json:"customer"`
	Name     string `json:"name"`
	Primary  string `json:"primary"`
	Standby  string `json:"standby"`
	peer.Standing
	Size     vee.Bytes `json:"sizeBytes,omitempty"` // of the checkpoints that are there
	VEEs     int       `json:"vees,omitempty"`      // that have one
	Shipment uint64    `json:"shipment,omitempty"`  // newest that the primary has told of
	Done     bool      `json:"done,omitempty"`      // of a promotion
}

// List what is kept of partners' services, and what was promoted.
func (h *Shelf) List(ctx context.Context) ([]Shown, error) {
	rows, err := h.rows.Values(ctx, "")
	if err != nil {
		return nil, err
	}
	list := []Shown{}
	for _, r := range rows {
		list = append(list, h.show(ctx, r))
	}
	return list, nil
}

func (h *Shelf) show(ctx context.Context, r row) Shown {
	s := Shown{Service: r.Service, Primary: r.Site, Standby: h.cfg.Site, Standing: h.tell(ctx, r), Shipment: r.newest()}
	for _, of := range []*peer.Shipment{r.Coming, r.Whole} {
		if of != nil {
			s.Customer, s.Name, s.VEEs = of.Customer, of.Name, len(of.Parts)
		}
	}
	for _, p := range r.parts() {
		if h.has(p.Digest) {
			s.Size += p.Size
		}
	}
	if r.Promoted != nil {
		s.Done = r.Promoted.Done
	}
	return s
}

// close the door to sites that have not given way yet.
func (h *Shelf) close(rows []row) {
	h.mu.Lock()
	defer h.mu.Unlock()
	clear(h.shut)
	for _, r := range rows {
		if p := r.Promoted; p != nil && !p.Known && p.Yielded == "" {
			h.shut[r.Site] = true
		}
	}
}

// Door lets a site whose services were promoted say and hear nothing else before it has given
// way: it might take what is not its any more for lost, and start it anew.
func (h *Shelf) Door(next http.Handler, callerOf func(*http.Request) (identity.Caller, error)) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c, err := callerOf(r)
		h.mu.Lock()
		shut := err == nil && h.shut[c.Site]
		h.mu.Unlock()
		open := func(path string) bool { return strings.HasPrefix(r.URL.Path, path) }
		if shut && !slices.ContainsFunc(peer.CooperationPaths, open) {
			httpapi.Refuse(w, fault.New(fault.Unavailable, "site %s has gone on with services of site %s, which has not given way yet", h.cfg.Site, c.Site))
			return
		}
		next.ServeHTTP(w, r)
	})
}
