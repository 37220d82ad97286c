package vmi_test

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/reservoir-cloud/reservoir/account"
	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/internal/httpapi"
	"github.com/reservoir-cloud/reservoir/internal/identity"
	"github.com/reservoir-cloud/reservoir/vee"
	"github.com/reservoir-cloud/reservoir/vmi"
)

var (
	limit    = 3
	someMore = vmi.Quota{Customer: "acme", Version: 4, Limits: vmi.Limits{VEEs: &limit}, Used: vmi.Holdings{VEEs: 2, Memory: vee.GiB}}
	messages = []vmi.AccountingMessage{{VEE: id, Seq: 3, FromMS: 10, ToMS: 20, Final: true, Used: account.Usage{ActiveMS: 10, VCPUMS: 20}}}
	measured = []vmi.MonitoringEvent{{Type: vmi.Agent, T0: 5, FQN: "alpha.customers.acme.x", Value: 1.5, VEE: id}, {Type: vmi.VeeHw, T0: 6, DT: 1, FQN: "y", Text: "ACTIVE", Lost: 2}}
)

func (r *recorder) RegisterAccountingInformationListener(_ context.Context, in vmi.AccountingRegistration) error {
	return r.got(in)
}
func (r *recorder) DeregisterAccountingInformationListener(_ context.Context, ids []vee.ID) error {
	return r.got(ids)
}
func (r *recorder) ReceiveAccountingInformation(_ context.Context, m []vmi.AccountingMessage) error {
	return r.got(m)
}
func (r *recorder) PutMonitoringInformation(_ context.Context, e []vmi.MonitoringEvent) error {
	return r.got(e)
}
func (r *recorder) WatchMonitoring(_ context.Context, f vmi.EventFilter) (<-chan vmi.MonitoringEvent, error) {
	ch := make(chan vmi.MonitoringEvent, len(measured))
	for _, e := range measured {
		ch <- e
	}
	close(ch)
	return ch, r.got(f)
}
func (r *recorder) SetQuota(_ context.Context, q vmi.SetQuota) (vmi.Quota, error) {
	return someMore, r.got(q)
}
func (r *recorder) GetQuota(_ context.Context, c string) (vmi.Quota, error) {
	return someMore, r.got(c)
}
func (r *recorder) ListQuotas(context.Context) ([]vmi.Quota, error) {
	return []vmi.Quota{someMore}, r.got()
}
func (r *recorder) Reserve(_ context.Context, q vmi.Reserve) (vmi.Reservation, error) {
	return someRoom, r.got(q)
}
func (r *recorder) CommitReservation(_ context.Context, id string) (vmi.Reservation, error) {
	return someRoom, r.got(id)
}
func (r *recorder) CancelReservation(_ context.Context, id string) (vmi.Reservation, error) {
	return someRoom, r.got(id)
}
func (r *recorder) GetReservation(_ context.Context, id string) (vmi.Reservation, error) {
	return someRoom, r.got(id)
}
func (r *recorder) ListReservations(context.Context) ([]vmi.Reservation, error) {
	return []vmi.Reservation{someRoom}, r.got()
}
func (r *recorder) DeleteQuota(_ context.Context, c string) error { return r.got(c) }

var someRoom = vmi.Reservation{Reserve: vmi.Reserve{ID: "alpha.aaaaaaaaaa", At: "beta", Customer: "acme", VEEs: 2, VCPUs: 1, Memory: vee.GiB, Disk: vee.GiB,
	From: time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC), Until: time.Date(2030, 1, 2, 0, 0, 0, 0, time.UTC), UseWithinMS: 5}, State: vmi.ReservationActive, Agreement: "beta.a", PerHour: 0.5, Currency: "EUR", Used: 1, Note: "n"}

// accounts runs the methods of accounting, monitoring and quotas in a fixed order.
func accounts(ctx context.Context, s vmi.Service) (results []any, errs []error) {
	add := func(v any, err error) { results, errs = append(results, v), append(errs, err) }
	add(nil, s.RegisterAccountingInformationListener(ctx, vmi.AccountingRegistration{IDs: []vee.ID{id}, IntervalMS: 5000, URL: "https://bill.example/x"}))
	add(nil, s.DeregisterAccountingInformationListener(ctx, []vee.ID{id}))
	var events []vmi.MonitoringEvent
	ch, err := s.WatchMonitoring(ctx, vmi.EventFilter{Customer: "acme", GroupID: "g&", VEE: id, Type: vmi.Agent, Prefix: "alpha."})
	if err == nil {
		for e := range ch {
			events = append(events, e)
		}
	}
	add(events, err)
	q, err := s.SetQuota(ctx, vmi.SetQuota{Customer: "acme", Limits: vmi.Limits{VEEs: &limit}, Version: 3})
	add(q, err)
	q, err = s.GetQuota(ctx, "acme")
	add(q, err)
	l, err := s.ListQuotas(ctx)
	add(l, err)
	add(nil, s.DeleteQuota(ctx, "acme"))
	page, err := s.ListVEEs(ctx, vmi.Filter{Limit: 10, Continue: id})
	add(page, err)
	room, err := s.Reserve(ctx, someRoom.Reserve)
	add(room, err)
	room, err = s.CommitReservation(ctx, "alpha.a/b")
	add(room, err)
	room, err = s.CancelReservation(ctx, "alpha.a")
	add(room, err)
	room, err = s.GetReservation(ctx, "alpha.a")
	add(room, err)
	rooms, err := s.ListReservations(ctx)
	add(rooms, err)
	return results, errs
}

func TestAccountsLocalAndRemoteAlike(t *testing.T) {
	local, behind := &recorder{}, &recorder{}
	remote, _ := serve(t, behind, identity.Operator)
	want, _ := accounts(t.Context(), local)
	got, errs := accounts(t.Context(), remote)
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got\n%+v, want\n%+v", got, want)
	}
	if !reflect.DeepEqual(behind.calls, local.calls) {
		t.Errorf("calls arrived as\n%+v, want\n%+v", behind.calls, local.calls)
	}
}

func TestAccountsRoles(t *testing.T) {
	for role, want := range map[identity.Role]string{
		identity.Operator: "xxxxxxxxxxxxx",
		identity.SiteRole: "xxxxxxxxxxxxx",
		identity.Provider: "xxx.x..xxxxxx",
		identity.Auditor:  "..x.xx.x...xx",
		identity.Partner:  ".......xxxxxx",
		identity.HostRole: ".............",
	} {
		remote, _ := serve(t, &recorder{}, role)
		_, errs := accounts(t.Context(), remote)
		var got strings.Builder
		for _, err := range errs {
			got.WriteByte(map[bool]byte{true: '.', false: 'x'}[fault.Has(err, fault.Denied)])
		}
		if got.String() != want {
			t.Errorf("role %q may %s, want %s", role, got.String(), want)
		}
	}
}

// TestReceivers: the receivers' sides are served to a site alone, and say what arrived.
func TestReceivers(t *testing.T) {
	for _, role := range []identity.Role{identity.SiteRole, identity.Provider, identity.HostRole} {
		r := &recorder{}
		s := httpapi.NewServer("test", "1", slog.New(slog.DiscardHandler))
		vmi.RegisterAccountingListener(s, r)
		vmi.RegisterMonitoringReceiver(s, r)
		srv := httptest.NewServer(s.Handler(func(*http.Request) (identity.Caller, error) { return identity.Caller{ID: "x", Role: role}, nil }))
		c := &httpapi.Client{Base: srv.URL, HTTP: srv.Client()}
		e1 := vmi.NewAccountingListener(c, "").ReceiveAccountingInformation(t.Context(), messages)
		e2 := vmi.NewMonitoringReceiver(c).PutMonitoringInformation(t.Context(), measured)
		if role == identity.SiteRole {
			if err := errors.Join(e1, e2); err != nil || !reflect.DeepEqual(r.calls, []any{messages, measured}) {
				t.Errorf("%v, got %+v", err, r.calls)
			}
		} else if !fault.Has(e1, fault.Denied) || !fault.Has(e2, fault.Denied) || r.calls != nil {
			t.Errorf("role %q: %v, %v", role, e1, e2)
		}
		srv.Close()
	}
}

func TestIfMatch(t *testing.T) {
	for header, want := range map[string]uint64{"": 0, "*": 0, `"7"`: 7, ` "12" `: 12, "7": 7} {
		if n, err := httpapi.ParseMatch(header); err != nil || n != want {
			t.Errorf("%s: %d, %v", header, n, err)
		}
	}
	for _, bad := range []string{`"x"`, `"-1"`, `"1`, `1"`, `W/"1"`, `"1", "2"`, `"0"`} {
		if n, err := httpapi.ParseMatch(bad); !fault.Has(err, fault.Malformed) {
			t.Errorf("%s: %d, %v", bad, n, err)
		}
	}
}
