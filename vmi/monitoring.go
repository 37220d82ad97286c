package vmi

import (
	"context"
	"net/http"
	"net/url"

	"github.com/reservoir-cloud/reservoir/internal/httpapi"
	"github.com/reservoir-cloud/reservoir/internal/identity"
	"github.com/reservoir-cloud/reservoir/vee"
)

// EventType of a monitoring event (seed 5, section 2.5.5).
type EventType string

// Where a measurement comes from: the VEE as its host sees it, a probe, or an agent in the
// guest.
const (
	VeeHw EventType = "VeeHw"
	Probe EventType = "Probe"
	Agent EventType = "Agent"
)

// MonitoringEvent is one measurement (seed 5, section 2.7.4.1): a header and a body, which
// is the name of what was measured and its value, a number or a word.
type MonitoringEvent struct {
	Type EventType `json:"type" enum:"VeeHw,Probe,Agent"`
	T0   int64     `json:"t0" doc:"when it happened, ms since 1970 UTC"`
	DT   int64     `json:"dt,omitempty" minimum:"0" doc:"length of the interval that an aggregate is about, ms"`
	FQN  string    `json:"fqn" minLength:"1" maxLength:"1024"`
	// Value of a measurement; Text instead where it is a word, such as a state.
	Value float64 `json:"value"`
	Text  string  `json:"text,omitempty" maxLength:"1024"`

	VEE      vee.ID `json:"vee,omitempty"`
	Customer string `json:"customer,omitempty"`
	GroupID  string `json:"groupID,omitempty"`
	// Lost counts the events that a reader of a watch was too slow for, just before this one.
	Lost uint64 `json:"lost,omitempty"`
}

// EventFilter of a watch of monitoring events; empty fields do not restrict.
type EventFilter struct {
	Customer string    `query:"customer"`
	GroupID  string    `query:"group"`
	VEE      vee.ID    `query:"vee"`
	Type     EventType `query:"type"`
	Prefix   string    `query:"prefix" doc:"of the FQN"`
}

// Monitoring is the producer's side of the VEE Monitoring Interface (seed 5, section 2.7.4).
type Monitoring interface {
	// WatchMonitoring sends each event as it is produced, and first the present state of
	// every VEE. A slow reader loses the oldest events, and is told how many. When the
	// channel closes, watch again.
	WatchMonitoring(ctx context.Context, f EventFilter) (<-chan MonitoringEvent, error)
}

// MonitoringReceiver is the receiver's side: the Service Manager, or the primary VEE Manager.
type MonitoringReceiver interface {
	PutMonitoringInformation(ctx context.Context, events []MonitoringEvent) error
}

const (
	eventsPath     = "/vmi/v1/events"
	monitoringPath = "/vmi/v1/monitoring"
)

type eventsBody struct {
	Events []MonitoringEvent `json:"events" minItems:"1" maxItems:"1000"`
}

func registerMonitoring(s *httpapi.Server, svc Monitoring) {
	httpapi.RegisterStream(s, httpapi.Op{Method: "GET", Path: eventsPath, Summary: "Monitoring events as they are produced", Roles: readers},
		func(ctx context.Context, in *struct{ EventFilter }) (<-chan MonitoringEvent, error) {
			return svc.WatchMonitoring(ctx, in.EventFilter)
		})
}

// RegisterMonitoringReceiver serves r to the VEE Managers of other sites.
func RegisterMonitoringReceiver(s *httpapi.Server, r MonitoringReceiver) {
	httpapi.RegisterNoBody(s, httpapi.Op{Method: "POST", Path: monitoringPath, Summary: "PutMonitoringInformation", Roles: []identity.Role{identity.SiteRole}},
		func(ctx context.Context, in *struct{ Body eventsBody }) error {
			return r.PutMonitoringInformation(ctx, in.Body.Events)
		})
}

func (c client) WatchMonitoring(ctx context.Context, f EventFilter) (<-chan MonitoringEvent, error) {
	q := url.Values{}
	for k, v := range map[string]string{"customer": f.Customer, "group": f.GroupID, "vee": string(f.VEE), "type": string(f.Type), "prefix": f.Prefix} {
		if v != "" {
			q.Set(k, v)
		}
	}
	return httpapi.Stream[MonitoringEvent](ctx, c.c, eventsPath, q)
}

type receiverClient struct{ c *httpapi.Client }

// NewMonitoringReceiver speaks to the receiver behind c.
func NewMonitoringReceiver(c *httpapi.Client) MonitoringReceiver { return receiverClient{c} }

func (r receiverClient) PutMonitoringInformation(ctx context.Context, events []MonitoringEvent) error {
	return r.c.Call(ctx, http.MethodPost, monitoringPath, nil, eventsBody{events}, nil)
}
