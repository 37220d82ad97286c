package cli

import (
	"context"
	"maps"
	"slices"
	"time"

	"github.com/reservoir-cloud/reservoir/account"
	"github.com/reservoir-cloud/reservoir/internal/audit"
	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/smi"
	"github.com/reservoir-cloud/reservoir/vee"
	"github.com/reservoir-cloud/reservoir/vmi"
)

func (f fakeVEEM) RegisterAccountingInformationListener(context.Context, vmi.AccountingRegistration) error {
	return f.unused()
}
func (f fakeVEEM) DeregisterAccountingInformationListener(context.Context, []vee.ID) error {
	return f.unused()
}
func (f fakeVEEM) WatchMonitoring(context.Context, vmi.EventFilter) (<-chan vmi.MonitoringEvent, error) {
	return nil, f.unused()
}

func (f fakeSM) Usage(_ context.Context, _, name string) (smi.ServiceUsage, error) {
	if name != "web" {
		return smi.ServiceUsage{}, notThere("service", name)
	}
	at := time.Date(2030, 5, 6, 7, 0, 0, 0, time.UTC)
	hour := account.Usage{ActiveMS: 3_600_000, VCPUMS: 3_600_000, MemoryMiBMS: 128 * 3_600_000, DiskMiBMS: 1024 * 3_600_000}
	one := account.Interval{FromMS: at.UnixMilli(), ToMS: at.Add(time.Hour).UnixMilli(), Used: hour}
	v := smi.VEEUsage{VEE: "alpha.aaaaaaaaaa", Name: "web-1", ServiceID: "s-1", From: at, Through: at.Add(time.Hour), Ended: true, Total: hour, Intervals: account.Series{one}}
	return smi.ServiceUsage{Customer: "acme", Service: name, VEEs: []smi.VEEUsage{v}, Total: hour}, nil
}

func (f fakeVEEM) reservations() []vmi.Reservation {
	from := time.Date(2030, 6, 1, 8, 0, 0, 0, time.UTC)
	return []vmi.Reservation{
		{Reserve: vmi.Reserve{ID: "alpha.r2v9q2m7xd", At: "beta", Customer: "acme", VEEs: 4, VCPUs: 2, Memory: 4 * vee.GiB, From: from, Until: from.Add(8 * time.Hour)},
			State: vmi.ReservationReserved, Agreement: "beta.k3v9q2m7xd", PerHour: 0.16, Currency: "EUR"},
		{Reserve: vmi.Reserve{ID: "alpha.w5b2c8n4kq", VEEs: 2, VCPUs: 1, Memory: vee.GiB, Disk: 10 * vee.GiB, From: from.Add(-24 * time.Hour), Until: from},
			State: vmi.ReservationExpired, Note: "no VEE was placed under it within 1h0m0s of its beginning"},
	}
}

func (f fakeVEEM) Reserve(_ context.Context, r vmi.Reserve) (vmi.Reservation, error) {
	out := f.reservations()[0]
	r.ID = out.ID
	out.Reserve = r
	return out, nil
}
func (f fakeVEEM) CommitReservation(ctx context.Context, id string) (vmi.Reservation, error) {
	return f.GetReservation(ctx, id)
}
func (f fakeVEEM) CancelReservation(ctx context.Context, id string) (vmi.Reservation, error) {
	r, err := f.GetReservation(ctx, id)
	r.State, r.Note = vmi.ReservationCancelled, "by operator"
	return r, err
}
func (f fakeVEEM) GetReservation(_ context.Context, id string) (vmi.Reservation, error) {
	for _, r := range f.reservations() {
		if r.ID == id {
			return r, nil
		}
	}
	return vmi.Reservation{}, notThere("reservation", id)
}
func (f fakeVEEM) ListReservations(context.Context) ([]vmi.Reservation, error) {
	return f.reservations(), nil
}

func (f fakeVEEM) SetQuota(_ context.Context, q vmi.SetQuota) (vmi.Quota, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.quotas == nil {
		f.quotas = map[string]vmi.Quota{}
	}
	old := f.quotas[q.Customer]
	if q.Version != old.Version {
		return old, fault.New(fault.Conflict, "the quota has version %d", old.Version)
	}
	n := vmi.Quota{Customer: q.Customer, Version: old.Version + 1, Limits: q.Limits, Used: vmi.Holdings{VEEs: 2, VCPUs: 2, Memory: 256 * vee.MiB}}
	f.quotas[q.Customer] = n
	return n, nil
}

func (f fakeVEEM) GetQuota(_ context.Context, c string) (vmi.Quota, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	q := f.quotas[c]
	q.Customer = c
	return q, nil
}

func (f fakeVEEM) ListQuotas(context.Context) ([]vmi.Quota, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Collect(maps.Values(f.quotas)), nil
}

func (f fakeVEEM) DeleteQuota(_ context.Context, c string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if _, ok := f.quotas[c]; !ok {
		return notThere("quota of", c)
	}
	delete(f.quotas, c)
	return nil
}

func (f fakeAdmin) Audit(_ context.Context, q audit.Filter) ([]audit.Entry, error) {
	at := f.ago(5 * time.Minute)
	list := []audit.Entry{
		{Seq: 1, At: at, By: "ci", Role: "provider", Customer: "acme", From: "10.0.0.9:1", Call: "POST /vmi/v1/state", Object: "PAUSE alpha.aaaaaaaaaa", Outcome: audit.OK, Status: 200},
		{Seq: 2, At: at, Role: "", From: "10.0.0.66:1", Call: "GET /smi/v1/services", Object: "smi/v1/services", Outcome: audit.Denied, Status: 401, Code: "token-invalid", More: 7},
	}
	return slices.DeleteFunc(list, func(e audit.Entry) bool {
		return e.At.Before(q.Since) || q.By != "" && e.By != q.By || q.Outcome != "" && e.Outcome != q.Outcome
	}), nil
}
