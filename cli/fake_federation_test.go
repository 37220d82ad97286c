package cli

import (
	"context"
	"errors"
	"time"

	"github.com/reservoir-cloud/reservoir/account/billing"
	"github.com/reservoir-cloud/reservoir/account/money"
	"github.com/reservoir-cloud/reservoir/internal/identity"
	"github.com/reservoir-cloud/reservoir/site/admin"
	"github.com/reservoir-cloud/reservoir/vee"
	"github.com/reservoir-cloud/reservoir/veem/federation/broker"
	"github.com/reservoir-cloud/reservoir/veem/federation/partners"
	"github.com/reservoir-cloud/reservoir/vmi/peer"
)

// fakeFederation has a partner that is reached and one that is lost.
type fakeFederation struct{ *fake }

const fakeFingerprint = "q1YzHXKqY3e3p5nJm0c9n3v6b7XH0nQ4Yk2m8u1tGdA"

func (f fakeFederation) partners() []partners.Shown {
	offer := f.offer("beta", "FI", 12)
	return []partners.Shown{
		{Name: "beta", State: "reached", Since: f.ago(48 * time.Hour), Seen: f.ago(330 * time.Second), Version: "v0.1", Capabilities: []peer.Capability{peer.CanPlace, peer.CanMove},
			Fingerprint: fakeFingerprint, Bundle: 2, Border: peer.Border{Relay: "192.0.2.2:8443", Tunnel: "192.0.2.2:8443", Key: "k"}, OffsetMS: -3.2, OffsetErrorMS: 1, Agreements: []string{"beta.k3v9q2m7xd"}, Offer: &offer, OfferAgeMS: 1500},
		{Name: "gamma", State: "lost", Why: "site gamma does not answer: connection refused", Since: f.ago(time.Hour), Seen: f.ago(10 * time.Minute), Version: "v0.1", Fingerprint: fakeFingerprint, Bundle: 1,
			Border: peer.Border{Relay: "192.0.2.3:8443"}, Agreements: []string{}},
	}
}

func (f fakeFederation) offer(site, country string, vcpus int64) peer.Attributes {
	return peer.Attributes{Site: site, GoodMS: 30_000, Characteristics: peer.Characteristics{Location: peer.Location{Country: country, Region: "north"}},
		State: peer.State{Hosts: 3, Load: 0.25, Free: vee.Resources{MilliCPU: 1000 * vcpus, Memory: 24 * vee.GiB, Disk: vee.TiB}}}
}

func (f fakeFederation) agreement() partners.Agreed {
	from := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	price, _ := money.Parse("0.02")
	return partners.Agreed{Partner: "beta", State: partners.InForce, Told: true, Agreement: peer.Agreement{
		Terms: peer.Terms{ID: "beta.k3v9q2m7xd", Lender: "beta", Borrower: "alpha", From: from, Until: from.AddDate(1, 0, 0), NoticeMS: 86_400_000,
			Ceiling: peer.Ceiling{VEEs: 20, VCPUs: 40, Memory: 64 * vee.GiB}, Types: []peer.InstanceType{{Name: "small", VCPUs: 1, Memory: vee.GiB, Disk: 10 * vee.GiB}},
			Currency: "EUR", Places: 2, Prices: map[billing.Meter]money.Amount{billing.VCPUs: price}, Locations: []peer.Location{{Country: "FI"}},
			SLA: peer.Promise{Availability: 0.999, CreditPercent: 10}, Movable: peer.Movable{Live: true, Cold: true}},
		Signatures: map[string]string{"alpha": "a..b", "beta": "c..d"}}}
}

func (f fakeFederation) InvitePartner(_ context.Context, r admin.NewPartnerInvite) (partners.Invitation, error) {
	return partners.Invitation{Token: "rsvf_TOKEN", Site: r.Site, Fingerprint: fakeFingerprint, Border: peer.Border{Relay: "192.0.2.1:8443"}}, nil
}
func (f fakeFederation) AcceptPartner(context.Context, admin.PartnerToken) (partners.Shown, error) {
	return f.partners()[0], nil
}
func (f fakeFederation) ListPartners(context.Context) ([]partners.Shown, error) {
	return f.partners(), nil
}
func (f fakeFederation) GetPartner(_ context.Context, name string) (partners.Shown, error) {
	for _, p := range f.partners() {
		if p.Name == name {
			return p, nil
		}
	}
	return partners.Shown{}, notThere("partner", name)
}
func (f fakeFederation) LeavePartner(ctx context.Context, name string, r admin.Leaving) error {
	_, err := f.GetPartner(ctx, name)
	return err
}
func (f fakeFederation) RevokePartner(ctx context.Context, name string, r admin.Reason) error {
	_, err := f.GetPartner(ctx, name)
	return err
}
func (f fakeFederation) RotateAuthority(context.Context, admin.Rotate) (partners.Rotation, error) {
	return partners.Rotation{Rotation: identity.Rotation{Sequence: 4, Current: "OLD", Next: "NEW", Announced: f.ago(time.Hour), Retiring: []string{"OLDER"}},
		Waiting: []string{"gamma"}, After: time.Date(2030, 1, 8, 0, 0, 0, 0, time.UTC)}, nil
}
func (f fakeFederation) Preflight(_ context.Context, r admin.Way) ([]partners.Check, error) {
	checks := []partners.Check{{Step: "this site's proxy, as it announces itself", Target: "tcp://192.0.2.1:8443", OK: true}}
	if r.Partner == "gamma" {
		return append(checks, partners.Check{Step: "reach site gamma through its proxy", Target: "tcp://192.0.2.3:8443", Detail: "connection refused", Next: "see whether it runs, and whether a firewall is between: tcp://192.0.2.3:8443"}), nil
	}
	return append(checks, partners.Check{Step: "reach site beta through its proxy", Target: "tcp://192.0.2.2:8443", OK: true}), nil
}
func (f fakeFederation) ProposeAgreement(_ context.Context, r admin.Proposal) (partners.Agreed, error) {
	a := f.agreement()
	a.Terms = r.Terms
	a.ID, a.State, a.Signatures = "alpha.k3v9q2m7xd", partners.Proposed, map[string]string{"alpha": "a..b"}
	return a, nil
}
func (f fakeFederation) SignAgreement(ctx context.Context, id string) (partners.Agreed, error) {
	return f.GetAgreement(ctx, id)
}
func (f fakeFederation) EndAgreement(ctx context.Context, id string, r admin.Reason) (partners.Agreed, error) {
	a, err := f.GetAgreement(ctx, id)
	a.End = &peer.End{By: "alpha", At: time.Date(2030, 2, 1, 0, 0, 0, 0, time.UTC), Reason: r.Reason}
	leave := a.Agreement.Leave()
	a.State, a.Leave = partners.Ending, &leave
	return a, err
}
func (f fakeFederation) ListAgreements(context.Context) ([]partners.Agreed, error) {
	return []partners.Agreed{f.agreement()}, nil
}
func (f fakeFederation) GetAgreement(_ context.Context, id string) (partners.Agreed, error) {
	if a := f.agreement(); a.ID == id {
		return a, nil
	}
	return partners.Agreed{}, notThere("agreement", id)
}

func (f fakeFederation) Published(context.Context) (admin.Published, error) {
	return admin.Published{Power: "normal", GramsKWh: 40, HeatWanted: 0.25}, nil
}
func (f fakeFederation) Publish(ctx context.Context, p admin.Publish) (admin.Published, error) {
	out, err := f.Published(ctx)
	if p.Power != nil {
		out.Power = *p.Power
	}
	return out, err
}

// FindSites asks the real broker about three sites.
func (f fakeFederation) FindSites(_ context.Context, r admin.Find) (broker.Answer, error) {
	b, err := broker.New(broker.Question{Requirement: r.Requirement, Order: broker.Order(r.Order), VEE: broker.Size{VCPUs: r.VCPUs, Memory: r.Memory}, Count: r.Count})
	if err != nil {
		return broker.Answer{}, err
	}
	a := f.agreement().Agreement
	return b.Answer([]broker.Candidate{
		{Attributes: f.offer("alpha", "SE", 2), Here: true},
		{Attributes: f.offer("beta", "FI", 12), Agreement: &a, Age: 1500 * time.Millisecond},
		{Attributes: peer.Attributes{Site: "gamma"}, Silent: errors.New("site gamma does not answer: connection refused")},
	}), nil
}
