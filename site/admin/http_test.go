package admin_test

import (
	"context"
	"net/http"
	"net/http/httptest"
	"reflect"
	"testing"
	"time"

	"github.com/reservoir-cloud/reservoir/internal/audit"
	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/internal/httpapi"
	"github.com/reservoir-cloud/reservoir/internal/identity"
	"github.com/reservoir-cloud/reservoir/site/admin"
	"github.com/reservoir-cloud/reservoir/vee"
)

// echo answers with what it was asked, so that a field lost on the way shows.
type echo struct{ revoked string }

var at = time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)

func (e *echo) Site(context.Context) (admin.Site, error) {
	return admin.Site{Name: "alpha", Started: at, HAScale: 0.1, Store: admin.Store{Quota: vee.GiB}}, nil
}
func (e *echo) CreateToken(_ context.Context, r admin.NewToken) (admin.CreatedToken, error) {
	return admin.CreatedToken{Token: identity.Token{Name: r.Name, Role: r.Role, Customer: r.Customer,
		Expires: at.Add(time.Duration(r.TTLMS) * time.Millisecond)}, Secret: "s3"}, nil
}
func (e *echo) ListTokens(context.Context) ([]identity.Token, error) {
	return []identity.Token{{Name: "ci", Role: identity.Provider, Customer: "acme", Created: at}}, nil
}
func (e *echo) RevokeToken(_ context.Context, name string) error {
	if name == "nobody" {
		return fault.New(fault.NotFound, "no token %q", name)
	}
	e.revoked = name
	return nil
}
func (e *echo) InviteHost(_ context.Context, r admin.NewInvite) (admin.Invite, error) {
	return admin.Invite{Token: "t", Host: r.Host, Expires: at.Add(time.Duration(r.TTLMS) * time.Millisecond)}, nil
}
func (e *echo) Members(context.Context) ([]admin.Member, error) {
	return []admin.Member{{Name: "m1", Address: "a:1", Own: "a:2", Store: "a:3", Leads: true, Healthy: true, Problem: "p", Version: "v", Started: at, Size: vee.MiB, Missing: 4}}, nil
}
func (e *echo) InviteMember(_ context.Context, r admin.NewMember) (admin.Invite, error) {
	return admin.Invite{Token: "t", Host: r.Name, Expires: at.Add(time.Duration(r.TTLMS) * time.Millisecond)}, nil
}
func (e *echo) RemoveMember(_ context.Context, name string) error {
	return e.RevokeToken(context.Background(), name)
}
func (e *echo) JoinMember(_ context.Context, r admin.MemberJoin) (admin.MemberPapers, error) {
	return admin.MemberPapers{Site: r.Token + r.Member, Certificate: r.CSR, Bundle: []byte(r.Address), Record: []admin.MemberRecord{{Name: r.Own, Address: r.Store}}}, nil
}
func (e *echo) Compact(context.Context) (admin.Compacted, error) {
	return admin.Compacted{Before: 2 * vee.GiB, After: vee.MiB}, nil
}

func (e *echo) Audit(_ context.Context, f audit.Filter) ([]audit.Entry, error) {
	return []audit.Entry{{Seq: f.After, At: f.Since, By: f.By, Object: f.Object, Outcome: f.Outcome, Status: f.Limit}}, nil
}

func serve(t *testing.T, a admin.Service, as identity.Caller) *admin.Client {
	t.Helper()
	s := httpapi.NewServer("test", "0", nil)
	admin.Register(s, a)
	if j, ok := a.(admin.Joining); ok {
		admin.RegisterJoining(s, j)
	}
	ts := httptest.NewServer(s.Handler(func(*http.Request) (identity.Caller, error) { return as, nil }))
	t.Cleanup(ts.Close)
	return admin.NewClient(&httpapi.Client{Base: ts.URL, HTTP: ts.Client()})
}

// TestSameOverHTTP: the client says what the implementation says.
func TestSameOverHTTP(t *testing.T) {
	ctx, local := t.Context(), &echo{}
	remote := serve(t, local, identity.Caller{ID: "op", Role: identity.Operator})
	same := func(what string, got, want any, errs ...error) {
		t.Helper()
		for _, err := range errs {
			if err != nil {
				t.Errorf("%s: %v", what, err)
			}
		}
		if !reflect.DeepEqual(got, want) {
			t.Errorf("%s over HTTP: %+v\nwant %+v", what, got, want)
		}
	}
	gs, err := remote.Site(ctx)
	ws, _ := local.Site(ctx)
	same("Site", gs, ws, err)
	nt := admin.NewToken{Name: "ci", Role: identity.Provider, Customer: "acme", TTLMS: 5000}
	gt, err := remote.CreateToken(ctx, nt)
	wt, _ := local.CreateToken(ctx, nt)
	same("CreateToken", gt, wt, err)
	gl, err := remote.ListTokens(ctx)
	wl, _ := local.ListTokens(ctx)
	same("ListTokens", gl, wl, err)
	gi, err := remote.InviteHost(ctx, admin.NewInvite{Host: "h1", TTLMS: 1000})
	wi, _ := local.InviteHost(ctx, admin.NewInvite{Host: "h1", TTLMS: 1000})
	same("InviteHost", gi, wi, err)
	gm, err := remote.Members(ctx)
	wm, _ := local.Members(ctx)
	same("Members", gm, wm, err)
	gv, err := remote.InviteMember(ctx, admin.NewMember{Name: "m2", TTLMS: 1000})
	wv, _ := local.InviteMember(ctx, admin.NewMember{Name: "m2", TTLMS: 1000})
	same("InviteMember", gv, wv, err)
	jr := admin.MemberJoin{Token: "t", Member: "m2", CSR: []byte("c"), Address: "a", Own: "b", Store: "d"}
	gj, err := remote.JoinMember(ctx, jr)
	wj, _ := local.JoinMember(ctx, jr)
	same("JoinMember", gj, wj, err)
	same("RemoveMember", nil, nil, remote.RemoveMember(ctx, "m 3"))
	same("removed", local.revoked, "m 3")
	gc, err := remote.Compact(ctx)
	wc, _ := local.Compact(ctx)
	same("Compact", gc, wc, err)
	f := audit.Filter{Since: at, By: "ci", Object: "vee/x&", Outcome: audit.Denied, After: 7, Limit: 3}
	ga, err := remote.Audit(ctx, f)
	wa, _ := local.Audit(ctx, f)
	same("Audit", ga, wa, err)
	same("RevokeToken", nil, nil, remote.RevokeToken(ctx, "a b"))
	same("revoked", local.revoked, "a b")
	if err := remote.RevokeToken(ctx, "nobody"); !fault.Has(err, fault.NotFound) {
		t.Errorf("RevokeToken of an unknown one: %v, want not-found", err)
	}
}

// TestRoles: what an operator may, others may not.
func TestRoles(t *testing.T) {
	ctx := t.Context()
	for _, role := range []identity.Role{"", identity.Provider, identity.Partner, identity.Auditor, identity.HostRole} {
		c := serve(t, &echo{}, identity.Caller{ID: "x", Role: role})
		_, e1 := c.CreateToken(ctx, admin.NewToken{Name: "x", Role: identity.Operator})
		_, e2 := c.InviteHost(ctx, admin.NewInvite{})
		_, e3 := c.Compact(ctx)
		_, e4 := c.InviteMember(ctx, admin.NewMember{Name: "m2"})
		for i, err := range []error{e1, e2, e3, e4, c.RevokeToken(ctx, "x"), c.RemoveMember(ctx, "x")} {
			if !fault.Has(err, fault.Denied) {
				t.Errorf("role %q, operation %d: %v, want access-denied", role, i, err)
			}
		}
	}
}
