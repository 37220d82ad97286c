package peer

import (
	"context"
	"time"

	"github.com/reservoir-cloud/reservoir/account/billing"
	"github.com/reservoir-cloud/reservoir/account/money"
	"github.com/reservoir-cloud/reservoir/vee"
)

// Attributes are what a site publishes of itself: what it is (characteristics) and how it is
// now (state), of one moment. RVWS calls them that.
type Attributes struct {
	Site string    `json:"site"`
	At   time.Time `json:"at"` // by the site's clock
	// GoodMS bounds the age that they may be used at. Who publishes sends new ones in time.
	GoodMS          int64           `json:"goodMs"`
	Seq             uint64          `json:"seq"` // grows; restarts are seen by At
	Characteristics Characteristics `json:"characteristics"`
	State           State           `json:"state"`
}

// Characteristics of a site change seldom.
type Characteristics struct {
	Location    Location       `json:"location,omitzero"`
	Hypervisors []string       `json:"hypervisors,omitempty"`
	Types       []InstanceType `json:"types,omitempty"`
	Currency    string         `json:"currency,omitempty"`
	// Prices for an hour of each meter, of anybody; agreements may have others.
	Prices       map[billing.Meter]money.Amount `json:"prices,omitempty"`
	Availability float64                        `json:"availability,omitempty"` // promised, 0 to 1
	Software     string                         `json:"softwareVersion,omitempty"`
	// Images that are there already, by digest.
	Images []string `json:"images,omitempty"`
}

// State of a site is that of the moment.
type State struct {
	Free       vee.Resources  `json:"free"`
	FreeByType map[string]int `json:"freeByType,omitempty"` // VEEs of each type that would fit
	Hosts      int            `json:"hosts"`
	VEEs       int            `json:"vees"`
	Queue      int            `json:"queue"` // VEEs that wait for room
	Load       float64        `json:"load"`  // part of the vCPUs that is taken, 0 to 1
	Energy     Energy         `json:"energy,omitzero"`
	// HeatWanted is how much of its waste heat somebody wants there, 0 to 1 (seed 4).
	HeatWanted float64 `json:"heatWanted,omitempty"`
}

// Energy of a site.
type Energy struct {
	Condition string  `json:"condition,omitempty"` // normal, scarce, failing
	GramsKWh  float64 `json:"gramsPerKWh,omitempty"`
}

// Publisher tells what a site has to offer.
type Publisher interface {
	// Attributes of this moment.
	Attributes(ctx context.Context) (Attributes, error)
	// WatchAttributes sends them now, when they have changed enough for anybody to be told,
	// and before those sent last grow too old. When the channel closes, watch again.
	WatchAttributes(ctx context.Context) (<-chan Attributes, error)
}
