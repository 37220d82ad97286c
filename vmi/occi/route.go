package occi

import (
	"errors"
	"io"
	"mime"
	"net/http"
	"slices"
	"strings"

	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/internal/identity"
	"github.com/reservoir-cloud/reservoir/vee"
	"github.com/reservoir-cloud/reservoir/vmi"
	"github.com/reservoir-cloud/reservoir/vmi/occi/rendering"
)

// route finds what a request is about: the query interface, an entity at a kind's location,
// or a collection.
func (q *request) route(reads bool) (answer, error) {
	path := q.URL.Path
	if path == WellKnown || path == QueryPath {
		path = Base + QueryPath
	}
	rest, ok := strings.CutPrefix(path, Base+"/")
	if !ok {
		return answer{}, fault.New(fault.NotFound, "there is nothing at %s", path).Try("GET %s/-/", Base)
	}
	if rest == "-/" || rest == "-" {
		if !reads {
			return q.onQuery()
		}
		return q.discover()
	}
	if kind, name, ok := strings.Cut(rest, "/"); ok && name != "" && kind != "mixin" && !strings.Contains(name, "/") {
		if k := q.c.at(Base + "/" + kind + "/"); k != nil {
			return q.onEntity(reads, k.Type, name)
		}
	}
	if rest == "" {
		if !reads {
			return answer{}, notAllowed(q.Request, "GET, HEAD", "it is no collection of one kind")
		}
		return q.list(nil)
	}
	of := q.c.at(strings.TrimSuffix(path, "/") + "/")
	if of == nil {
		return answer{}, fault.New(fault.NotFound, "there is no collection at %s", path).Try("see what there is: GET %s/-/", Base)
	}
	if reads {
		return q.list(of)
	}
	return q.onCollection(of)
}

func (q *request) discover() (answer, error) {
	if q.media == rendering.URIList {
		return answer{}, refuse(http.StatusBadRequest, "%s lists entities; categories come in the other media types", q.media)
	}
	types, _, err := rendering.ReadFilter(q.Header)
	if err != nil {
		return answer{}, fault.New(fault.Malformed, "the filter in the request's header: %w", err)
	}
	list := q.c.list
	if len(types) > 0 {
		list = nil
		for _, t := range types {
			for _, k := range q.c.related(t) {
				if !slices.ContainsFunc(list, func(x rendering.Category) bool { return x.Type == k.Type }) {
					list = append(list, k)
				}
			}
		}
	}
	return answer{status: http.StatusOK, Payload: rendering.Of(q.media).Categories(list)}, nil
}

// base of absolute locations.
func (q *request) base() string {
	if q.TLS != nil {
		return "https://" + q.Host
	}
	return "http://" + q.Host
}

func (q *request) list(of *rendering.Category) (answer, error) {
	s, err := selectionOf(q.Request)
	if err != nil {
		return answer{}, err
	}
	es, err := q.h.collection(q.Context(), q.c, of, s)
	return answer{status: http.StatusOK, Payload: rendering.Of(q.media).Collection(es, q.base())}, err
}

func (q *request) show(e rendering.Entity) (answer, error) {
	switch reads := q.Method == http.MethodGet || q.Method == http.MethodHead; {
	case q.media != rendering.URIList:
	case !reads:
		return answer{status: http.StatusOK, Payload: rendering.Of(q.media).Collection([]rendering.Entity{e}, q.base())}, nil
	default: // GFD.229, "URI Listing Rendering"
		return answer{}, refuse(http.StatusBadRequest, "%s lists collections; an entity comes in the other media types", q.media)
	}
	return answer{status: http.StatusOK, Payload: rendering.Of(q.media).Entity(e)}, nil
}

// input is the request's rendering and what it carries.
func (q *request) input() (rendering.Rendering, rendering.Payload, error) {
	p := rendering.Payload{Header: q.Header}
	var err error
	if p.Body, err = io.ReadAll(q.Body); err != nil {
		var large *http.MaxBytesError
		if errors.As(err, &large) {
			return nil, p, fault.New(fault.TooLarge, "the body has more than %d bytes", large.Limit)
		}
		return nil, p, fault.New(fault.Malformed, "read the body: %w", err)
	}
	kind, _, err := mime.ParseMediaType(q.Header.Get("Content-Type"))
	if len(p.Body) == 0 && (err != nil || kind == "application/x-www-form-urlencoded") {
		kind = string(rendering.Header) // everything is in the header, and the client says nothing of it
	}
	if r := rendering.Of(rendering.Media(kind)); r != nil {
		return r, p, nil
	}
	return nil, p, refuse(http.StatusUnsupportedMediaType, "Content-Type %q: want one of %v", q.Header.Get("Content-Type"), rendering.All)
}

func (q *request) inputEntities() ([]rendering.Entity, error) {
	r, p, err := q.input()
	if err != nil {
		return nil, err
	}
	es, err := r.ReadEntities(p)
	if err != nil {
		return nil, fault.New(fault.Malformed, "the entity in the request: %w", err)
	}
	return es, nil
}

// act is the action that the query asks for; false where it asks for none. The body names
// the same action (GFD.223, "Trigger Action").
func (q *request) act(kind rendering.TypeID) (in rendering.Invocation, asked bool, err error) {
	term := q.URL.Query().Get("action")
	if term == "" {
		return in, false, nil
	}
	want := actionType(kind.Term(), term)
	if q.c.byType[want] == nil {
		return in, true, fault.New(fault.Malformed, "there is no action %q on a %s", term, kind.Term()).Try("see which there are: GET %s/-/", Base)
	}
	r, p, err := q.input()
	if err != nil {
		return in, true, err
	}
	if in, err = r.ReadInvocation(p); err != nil {
		return in, true, fault.New(fault.Malformed, "the action in the request: %w", err)
	}
	if in.Action != want {
		return in, true, fault.New(fault.Malformed, "the query asks for action %s, the request is %s", want, in.Action)
	}
	return in, true, nil
}

const entityMethods = "GET, HEAD, POST, PUT, DELETE"

func (q *request) onEntity(reads bool, kind rendering.TypeID, name string) (answer, error) {
	ctx := q.Context()
	e, v, err := q.h.entity(ctx, q.c, kind, name)
	switch {
	case fault.Has(err, fault.NotFound) && q.Method == http.MethodPut:
		return answer{}, notAllowed(q.Request, "GET, HEAD", "identifiers are drawn by the site: POST to the collection")
	case err != nil:
		return answer{}, err
	case reads:
		return q.show(e)
	case q.Method == http.MethodPost:
		in, asked, err := q.act(kind)
		if err != nil {
			return answer{}, err
		}
		if asked {
			return q.actOn(kind, []vmi.VEE{v}, in, &name)
		}
	}
	changes := q.Method == http.MethodPost || q.Method == http.MethodPut
	switch {
	case kind != kindCompute && (kind != kindStorage || !changes):
		return answer{}, notAllowed(q.Request, "GET, HEAD", "it is made, changed and deleted with what it is a part of")
	case q.Method == http.MethodDelete:
		return answer{status: http.StatusNoContent}, q.h.update(ctx, ids(v), vee.Destroy, false, q.key())
	case changes:
		es, err := q.inputEntities()
		if err != nil {
			return answer{}, err
		}
		if len(es) != 1 || es[0].Kind == "" && q.Method == http.MethodPut {
			return answer{}, fault.New(fault.Malformed, "want one entity, with its kind")
		}
		if kind == kindStorage {
			err = q.h.grow(ctx, v, e, es[0])
		} else {
			err = q.h.change(ctx, q.c, v, es[0])
		}
		if err != nil {
			return answer{}, err
		}
		return q.showAgain(kind, name)
	}
	return answer{}, notAllowed(q.Request, entityMethods, "no such method")
}

func (q *request) showAgain(kind rendering.TypeID, name string) (answer, error) {
	e, _, err := q.h.entity(q.Context(), q.c, kind, name)
	if err != nil {
		return answer{}, err
	}
	return q.show(e)
}

// actOn invokes an action, and shows the entity or the collection as it is then.
func (q *request) actOn(kind rendering.TypeID, vees []vmi.VEE, in rendering.Invocation, name *string) (answer, error) {
	if kind != kindCompute {
		return answer{}, fixed(kind)
	}
	if err := q.h.invoke(q.Context(), vees, in, q.key()); err != nil {
		return answer{}, err
	}
	if name != nil {
		return q.showAgain(kind, *name)
	}
	es := []rendering.Entity{}
	for _, v := range vees {
		v, err := q.h.Service.GetVEE(q.Context(), v.ID)
		if err != nil {
			return answer{}, err
		}
		es = append(es, q.c.compute(v))
	}
	return answer{status: http.StatusOK, Payload: rendering.Of(q.media).Collection(es, q.base())}, nil
}

// key makes a repeated call return the first one's result, as on the VMI.
func (q *request) key() string { return q.Header.Get("Idempotency-Key") }

// onCollection changes a collection: it creates in one of a kind, invokes an action on all of
// its members, or deletes them.
func (q *request) onCollection(of *rendering.Category) (answer, error) {
	creates := of.Type == kindCompute
	switch {
	case q.c.tags[of.Type] && !q.URL.Query().Has("action"):
		return q.associate(of)
	case q.Method == http.MethodPost && q.URL.Query().Has("action"):
		in, _, err := q.act(actor(of))
		if err != nil {
			return answer{}, err
		}
		if actor(of) != kindCompute {
			return answer{}, fixed(actor(of))
		}
		vees, err := q.members(of)
		if err != nil {
			return answer{}, err
		}
		return q.actOn(kindCompute, vees, in, nil)
	case q.Method == http.MethodPost && creates:
		return q.createAll()
	case q.Method == http.MethodDelete && creates:
		vees, err := q.members(of)
		if err != nil {
			return answer{}, err
		}
		return answer{status: http.StatusNoContent}, q.h.update(q.Context(), ids(vees...), vee.Destroy, false, q.key())
	case creates:
		return answer{}, notAllowed(q.Request, "GET, HEAD, POST, DELETE", "no such method on a collection")
	case of.Class == rendering.Mixin:
		return answer{}, notAllowed(q.Request, "GET, HEAD", "mixins are chosen when a compute is created")
	}
	return answer{}, notAllowed(q.Request, "GET, HEAD", "only computes are created and deleted by themselves")
}

// actor is the kind whose actions a collection's members have.
func actor(of *rendering.Category) rendering.TypeID {
	if of.Class == rendering.Mixin {
		return of.Applies[0]
	}
	return of.Type
}

// members of a collection of computes that is changed as a whole. Who sees all customers'
// computes does not change them all with one slip of the hand.
func (q *request) members(of *rendering.Category) ([]vmi.VEE, error) {
	if c := identity.From(q.Context()); c.Role != identity.Provider {
		return nil, fault.New(fault.Denied, "%s %s: role %s sees every customer's computes and changes them one by one", q.Method, q.URL.Path, c.Role).
			Try("name the compute: %s %s/compute/ID", q.Method, Base)
	}
	s, err := selectionOf(&http.Request{URL: q.URL, Header: http.Header{}})
	if err != nil {
		return nil, err
	}
	vees, err := q.h.vees(q.Context())
	if err != nil {
		return nil, err
	}
	vees = slices.DeleteFunc(vees, func(v vmi.VEE) bool {
		e := q.c.compute(v)
		return !q.c.member(e, of.Type) || !s.matches(q.c, e)
	})
	return vees, nil
}

func (q *request) createAll() (answer, error) {
	wanted, err := q.inputEntities()
	if err != nil {
		return answer{}, err
	}
	if len(wanted) == 0 {
		return answer{}, fault.New(fault.Malformed, "the collection in the request is empty")
	}
	for _, e := range wanted {
		if e.Kind != kindCompute {
			return answer{}, fault.New(fault.Malformed, "kind %q: this collection is of %s", e.Kind, kindCompute)
		}
	}
	made, err := q.h.create(q.Context(), q.c, wanted, q.key())
	if err != nil {
		return answer{}, err
	}
	var es []rendering.Entity
	for _, v := range made {
		es = append(es, q.c.compute(v))
	}
	a := answer{status: http.StatusCreated, location: q.base() + es[0].Location}
	if q.media == rendering.JSON && len(es) == 1 {
		a.Payload = rendering.Of(q.media).Entity(es[0])
	} else {
		a.Payload = rendering.Of(q.media).Collection(es, q.base())
	}
	return a, nil
}
