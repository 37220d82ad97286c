package vmi_test

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"reflect"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/internal/httpapi"
	"github.com/reservoir-cloud/reservoir/internal/identity"
	"github.com/reservoir-cloud/reservoir/internal/receipt"
	"github.com/reservoir-cloud/reservoir/internal/store"
	"github.com/reservoir-cloud/reservoir/vee"
	"github.com/reservoir-cloud/reservoir/vhi/guest"
	"github.com/reservoir-cloud/reservoir/vmi"
)

// counting is a Service that counts what it is asked to change, and says so in its answers.
type counting struct {
	vmi.Service // nil: nothing is read
	n           int
}

func (c *counting) outcomes() ([]vmi.Outcome, error) {
	c.n++
	return []vmi.Outcome{{ID: id, OK: true, Detail: fmt.Sprint(c.n)}}, nil
}
func (c *counting) SubmitVEEs(context.Context, []vee.ID) ([]vmi.Outcome, error) { return c.outcomes() }
func (c *counting) UpdateVEEs(context.Context, []vmi.VEEUpdate) ([]vmi.Outcome, error) {
	return c.outcomes()
}
func (c *counting) Tell(context.Context, vee.ID, guest.Command) (guest.Reply, error) {
	c.n++
	return guest.Reply{Type: "reply", ID: fmt.Sprint(c.n)}, nil
}
func (c *counting) PutAccessPoint(_ context.Context, a vmi.AccessPoint) (vmi.AccessPoint, error) {
	c.n++
	a.Backends = c.n
	return a, nil
}
func (c *counting) DeleteAccessPoint(context.Context, string, string) error { c.n++; return nil }
func (c *counting) SetHostState(_ context.Context, name string, s vmi.HostState) (vmi.Host, error) {
	c.n++
	return vmi.Host{Name: name, State: s, VEEs: c.n}, nil
}
func (c *counting) RemoveHost(context.Context, string) error { c.n++; return nil }
func (c *counting) RegisterAccountingInformationListener(context.Context, vmi.AccountingRegistration) error {
	c.n++
	return nil
}
func (c *counting) DeregisterAccountingInformationListener(context.Context, []vee.ID) error {
	c.n++
	return nil
}
func (c *counting) SetQuota(_ context.Context, q vmi.SetQuota) (vmi.Quota, error) {
	c.n++
	return vmi.Quota{Customer: q.Customer, Version: uint64(c.n), Limits: q.Limits}, nil
}
func (c *counting) Reserve(_ context.Context, r vmi.Reserve) (vmi.Reservation, error) {
	c.n++
	return vmi.Reservation{Reserve: r, Used: c.n}, nil
}
func (c *counting) CommitReservation(_ context.Context, id string) (vmi.Reservation, error) {
	c.n++
	return vmi.Reservation{Reserve: vmi.Reserve{ID: id}, Used: c.n}, nil
}
func (c *counting) CancelReservation(ctx context.Context, id string) (vmi.Reservation, error) {
	return c.CommitReservation(ctx, id)
}
func (c *counting) DeleteQuota(context.Context, string) error { c.n++; return nil }
func (c *counting) Migrate(_ context.Context, r vmi.Migrate) (vmi.Migration, error) {
	c.n++
	return vmi.Migration{ID: fmt.Sprint(c.n), VEE: r.VEE}, nil
}
func (c *counting) CancelMigration(_ context.Context, id string) (vmi.Migration, error) {
	c.n++
	return vmi.Migration{ID: id, Name: fmt.Sprint(c.n)}, nil
}
func (c *counting) LimitMigration(_ context.Context, id string, b vee.Bytes) (vmi.Migration, error) {
	c.n++
	return vmi.Migration{ID: id, Name: fmt.Sprint(c.n), Bandwidth: b}, nil
}
func (c *counting) CreateSnapshot(_ context.Context, _ vee.ID, name string, memory bool) (vee.Snapshot, error) {
	c.n++
	return vee.Snapshot{Name: name, Memory: memory, Size: vee.Bytes(c.n)}, nil
}
func (c *counting) RestoreSnapshot(context.Context, vee.ID, string) error { c.n++; return nil }
func (c *counting) DeleteSnapshot(context.Context, vee.ID, string) error  { c.n++; return nil }

func (c *counting) PutNetwork(_ context.Context, n vmi.Network) (vmi.Network, error) {
	c.n++
	n.NICs = c.n
	return n, nil
}
func (c *counting) DeleteNetwork(context.Context, string, string) error { c.n++; return nil }
func (c *counting) DrainHost(_ context.Context, name string, _ vmi.Drain) (vmi.Host, error) {
	c.n++
	return vmi.Host{Name: name, VEEs: c.n}, nil
}
func (c *counting) ArmHost(_ context.Context, name string, _ bool) (vmi.Host, error) {
	c.n++
	return vmi.Host{Name: name, VEEs: c.n}, nil
}
func (c *counting) ClaimVEE(_ context.Context, id vee.ID, _ vmi.Claim) (vmi.VEE, error) {
	c.n++
	return vmi.VEE{ID: id, Restarts: c.n}, nil
}
func (c *counting) PlanRebalance(_ context.Context, r vmi.Rebalance) (vmi.Reconfiguration, error) {
	c.n++
	return vmi.Reconfiguration{Policy: r.Policy, Attempt: c.n}, nil
}
func (c *counting) Evacuate(_ context.Context, e vmi.Evacuate) (vmi.Reconfiguration, error) {
	c.n++
	return vmi.Reconfiguration{ID: fmt.Sprint(c.n), Evacuation: &e}, nil
}
func (c *counting) Rebalance(_ context.Context, r vmi.Rebalance) (vmi.Reconfiguration, error) {
	c.n++
	return vmi.Reconfiguration{Policy: r.Policy, Attempt: c.n}, nil
}
func (c *counting) StopReconfiguration(context.Context) (vmi.Reconfiguration, error) {
	c.n++
	return vmi.Reconfiguration{Attempt: c.n}, nil
}

// keyed is every call that changes something and whose answer the server remembers, by its
// operation. v makes it another call.
var keyed = map[string]func(ctx context.Context, s vmi.Service, v int) (any, error){
	"POST /vmi/v1/submit": func(ctx context.Context, s vmi.Service, v int) (any, error) {
		return s.SubmitVEEs(ctx, []vee.ID{id, id}[:v])
	},
	"POST /vmi/v1/update": func(ctx context.Context, s vmi.Service, v int) (any, error) {
		return s.UpdateVEEs(ctx, []vmi.VEEUpdate{{ID: id, VCPUs: &v}})
	},
	"POST /vmi/v1/vees/{id}/tell": func(ctx context.Context, s vmi.Service, v int) (any, error) {
		return s.Tell(ctx, id, guest.Command{Type: "ready", Amount: float64(v)})
	},
	"PUT /vmi/v1/groups/{group}/access-points/{name}": func(ctx context.Context, s vmi.Service, v int) (any, error) {
		return s.PutAccessPoint(ctx, vmi.AccessPoint{GroupID: "g", Name: "web", Port: v})
	},
	"DELETE /vmi/v1/groups/{group}/access-points/{name}": func(ctx context.Context, s vmi.Service, v int) (any, error) {
		return nil, s.DeleteAccessPoint(ctx, "g", fmt.Sprint(v))
	},
	"PUT /vmi/v1/groups/{group}/networks/{name}": func(ctx context.Context, s vmi.Service, v int) (any, error) {
		return s.PutNetwork(ctx, vmi.Network{GroupID: "g", Name: "back", Wish: vmi.NetworkWish{MTU: 1000 + v}})
	},
	"DELETE /vmi/v1/groups/{group}/networks/{name}": func(ctx context.Context, s vmi.Service, v int) (any, error) {
		return nil, s.DeleteNetwork(ctx, "g", fmt.Sprint(v))
	},
	"POST /vmi/v1/hosts/{name}/drain": func(ctx context.Context, s vmi.Service, v int) (any, error) {
		return s.DrainHost(ctx, fmt.Sprint("h", v), vmi.Drain{})
	},
	"PUT /vmi/v1/hosts/{name}/armed": func(ctx context.Context, s vmi.Service, v int) (any, error) {
		return s.ArmHost(ctx, fmt.Sprint("h", v), v == 1)
	},
	"POST /vmi/v1/vees/{id}/claim": func(ctx context.Context, s vmi.Service, v int) (any, error) {
		return s.ClaimVEE(ctx, id, vmi.Claim{Fenced: v == 1})
	},
	"POST /vmi/v1/evacuation": func(ctx context.Context, s vmi.Service, v int) (any, error) {
		return s.Evacuate(ctx, vmi.Evacuate{Host: []string{"", "h1", "h2"}[v]})
	},
	"POST /vmi/v1/reconfiguration": func(ctx context.Context, s vmi.Service, v int) (any, error) {
		return s.Rebalance(ctx, vmi.Rebalance{Policy: []string{"", "balance", "cost"}[v]})
	},
	"PUT /vmi/v1/hosts/{name}/state": func(ctx context.Context, s vmi.Service, v int) (any, error) {
		return s.SetHostState(ctx, fmt.Sprint("h", v), vmi.HostDraining)
	},
	"DELETE /vmi/v1/hosts/{name}": func(ctx context.Context, s vmi.Service, v int) (any, error) {
		return nil, s.RemoveHost(ctx, fmt.Sprint("h", v))
	},
	"POST /vmi/v1/accounting-listeners": func(ctx context.Context, s vmi.Service, v int) (any, error) {
		return nil, s.RegisterAccountingInformationListener(ctx, vmi.AccountingRegistration{IDs: []vee.ID{id}, IntervalMS: 1000 * int64(v)})
	},
	"POST /vmi/v1/accounting-listeners/deregister": func(ctx context.Context, s vmi.Service, v int) (any, error) {
		return nil, s.DeregisterAccountingInformationListener(ctx, []vee.ID{id, id}[:v])
	},
	"PUT /vmi/v1/quotas/{customer}": func(ctx context.Context, s vmi.Service, v int) (any, error) {
		return s.SetQuota(ctx, vmi.SetQuota{Customer: "acme", Limits: vmi.Limits{VEEs: &v}})
	},
	"DELETE /vmi/v1/quotas/{customer}": func(ctx context.Context, s vmi.Service, v int) (any, error) {
		return nil, s.DeleteQuota(ctx, fmt.Sprint("acme", v))
	},
	"POST /vmi/v1/reservations": func(ctx context.Context, s vmi.Service, v int) (any, error) {
		return s.Reserve(ctx, vmi.Reserve{VEEs: v, VCPUs: 1, Memory: vee.GiB})
	},
	"POST /vmi/v1/reservations/{id}/commit": func(ctx context.Context, s vmi.Service, v int) (any, error) {
		return s.CommitReservation(ctx, fmt.Sprint("alpha.r", v))
	},
	"POST /vmi/v1/reservations/{id}/cancel": func(ctx context.Context, s vmi.Service, v int) (any, error) {
		return s.CancelReservation(ctx, fmt.Sprint("alpha.r", v))
	},
	"POST /vmi/v1/migrations": func(ctx context.Context, s vmi.Service, v int) (any, error) {
		return s.Migrate(ctx, vmi.Migrate{VEE: id, To: fmt.Sprint("h", v)})
	},
	"POST /vmi/v1/migrations/{id}/cancel": func(ctx context.Context, s vmi.Service, v int) (any, error) {
		return s.CancelMigration(ctx, fmt.Sprint("m", v))
	},
	"PUT /vmi/v1/migrations/{id}/limit": func(ctx context.Context, s vmi.Service, v int) (any, error) {
		return s.LimitMigration(ctx, "m", vee.Bytes(v))
	},
	"PUT /vmi/v1/vees/{id}/snapshots/{name}": func(ctx context.Context, s vmi.Service, v int) (any, error) {
		return s.CreateSnapshot(ctx, id, "one", v == 1)
	},
	"POST /vmi/v1/vees/{id}/snapshots/{name}/restore": func(ctx context.Context, s vmi.Service, v int) (any, error) {
		return nil, s.RestoreSnapshot(ctx, id, fmt.Sprint(v))
	},
	"DELETE /vmi/v1/vees/{id}/snapshots/{name}": func(ctx context.Context, s vmi.Service, v int) (any, error) {
		return nil, s.DeleteSnapshot(ctx, id, fmt.Sprint(v))
	},
}

// TestEveryChangeOnce: a call that is repeated under its key is done once and answered alike,
// another one under that key is refused, and another caller's keys are its own. The two calls
// that are not in the table keep their receipts in the VEE Manager, which tests them.
func TestEveryChangeOnce(t *testing.T) {
	log := slog.New(slog.DiscardHandler)
	st, err := store.Open(t.Context(), store.Config{Dir: t.TempDir(), Logger: log})
	if err != nil {
		t.Fatal(err)
	}
	defer st.Close()
	book := receipt.NewBook(store.NewCollection[receipt.Receipt](st, "receipt"), time.Now, log)
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { book.Run(ctx) })
	defer wg.Wait()
	defer cancel()
	api := httpapi.NewServer("test", "1", log)
	api.Receipts(book)
	svc := &counting{}
	vmi.Register(api, svc)
	srv := httptest.NewServer(api.Handler(func(r *http.Request) (identity.Caller, error) {
		return identity.Caller{ID: r.Header.Get("Authorization"), Role: identity.Operator}, nil
	}))
	defer srv.Close()
	ann := vmi.NewClient(&httpapi.Client{Base: srv.URL, HTTP: srv.Client(), Token: "ann"})
	bob := vmi.NewClient(&httpapi.Client{Base: srv.URL, HTTP: srv.Client(), Token: "bob"})

	var changes []string
	for _, op := range api.Operations() {
		// To stop the plan under way has no parameter that could make it another call.
		if name := op.Method + " " + op.Path; op.Changes() && name != "POST /vmi/v1/vees" && name != "POST /vmi/v1/state" && name != "POST /vmi/v1/reconfiguration/stop" {
			changes = append(changes, name)
		}
	}
	slices.Sort(changes)
	if want := slices.Sorted(maps.Keys(keyed)); !slices.Equal(changes, want) {
		t.Errorf("operations that change something\n%q\nand those of the table\n%q", changes, want)
	}
	for op, call := range keyed {
		t.Run(op, func(t *testing.T) {
			before := svc.n
			ctx := httpapi.WithKey(t.Context(), "key of "+op)
			first, err := call(ctx, ann, 1)
			if err != nil {
				t.Fatal(err)
			}
			if again, err := call(ctx, ann, 1); err != nil || !reflect.DeepEqual(again, first) {
				t.Errorf("again: %+v, %v; the first time %+v", again, err, first)
			}
			if _, err := call(ctx, ann, 2); !fault.Has(err, fault.Conflict) {
				t.Errorf("another call under the key: %v, want %s", err, fault.Conflict)
			}
			if n := svc.n - before; n != 1 {
				t.Errorf("done %d times", n)
			}
			if _, err := call(ctx, bob, 2); err != nil || svc.n-before != 2 {
				t.Errorf("somebody else's key of that name: %v, done %d times", err, svc.n-before)
			}
			for range 2 {
				if _, err := call(t.Context(), ann, 1); err != nil {
					t.Error(err)
				}
			}
			if n := svc.n - before; n != 4 {
				t.Errorf("without a key: done %d times", n-2)
			}
		})
	}
}
