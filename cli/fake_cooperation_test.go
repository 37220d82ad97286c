package cli

import (
	"context"
	"time"

	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/site/admin"
	"github.com/reservoir-cloud/reservoir/vee"
	"github.com/reservoir-cloud/reservoir/veem/federation/standby"
	"github.com/reservoir-cloud/reservoir/vmi/peer"
)

// fakeCooperation has a service with two standbys, and is one for two services of others.
type fakeCooperation struct{ *fake }

func (f fakeCooperation) ListStandbys(context.Context) ([]standby.Shown, error) {
	promoted := &peer.Promotion{Service: "delta.s-k3v9q2m7xd", By: "alpha", At: f.ago(time.Hour), Customer: "delta-acme", Name: "wiki"}
	return []standby.Shown{
		{Service: "alpha.s-k3v9q2m7xd", Customer: "acme", Name: "web", Primary: "alpha", Standby: "beta", Shipment: 7, VEEs: 2, Size: 20 * vee.MiB,
			Standing: peer.Standing{Number: 7, At: f.ago(330 * time.Second)}},
		{Service: "alpha.s-k3v9q2m7xd", Customer: "acme", Name: "web", Primary: "alpha", Standby: "gamma", Shipment: 7, VEEs: 2, Size: 20 * vee.MiB,
			Standing: peer.Standing{Number: 5, At: f.ago(930 * time.Second), Coming: 7, Missing: 12 * vee.MiB, MissingImages: 1, Problem: "site gamma does not answer"}},
		{Service: "beta.s-k3v9q2m7xd", Customer: "acme", Name: "shop", Primary: "beta", Standby: "alpha", Shipment: 3, VEEs: 1, Size: vee.MiB, Standing: peer.Standing{Number: 3, At: f.ago(570 * time.Second)}},
		{Service: "delta.s-k3v9q2m7xd", Customer: "acme", Name: "wiki", Primary: "delta", Standby: "alpha", Shipment: 9, VEEs: 1, Done: true,
			Standing: peer.Standing{Number: 9, At: f.ago(150 * time.Minute), Promoted: promoted, Known: true}},
	}, nil
}

func (f fakeCooperation) Promote(_ context.Context, site string, p admin.Promotion) ([]standby.Shown, error) {
	if site == "gamma" && !p.Fenced {
		return nil, fault.New(fault.WrongState, "site gamma answered 10s ago: it may be back soon").Try("try again in 50s, or, when it is sure that nothing runs there: reservoir federation promote gamma --i-am-sure --fenced")
	}
	return []standby.Shown{{Service: site + ".s-k3v9q2m7xd", Customer: "acme", Name: "shop", Primary: site, Standby: "alpha", Shipment: 3, VEEs: 1, Size: vee.MiB,
		Standing: peer.Standing{Number: 3, At: f.ago(570 * time.Second), Promoted: &peer.Promotion{By: "alpha", Customer: site + "-acme", Name: "shop"}}}}, nil
}

func (f fakeCooperation) ImagesElsewhere(context.Context) (map[string][]string, error) {
	return map[string][]string{}, nil
}
