package site

import (
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/reservoir-cloud/reservoir/internal/identity"
	"github.com/reservoir-cloud/reservoir/vmi/peer"
)

// TestLimits: who calls too often is stopped before anything is decoded, and nobody else is.
func TestLimits(t *testing.T) {
	served := map[string]int{}
	caller := identity.Caller{}
	h := limited(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { served[caller.Site]++ }), func(*http.Request) (identity.Caller, error) { return caller, nil })
	call := func(site string, n int) (refused int) {
		caller = identity.Caller{Site: site}
		for range n {
			w := httptest.NewRecorder()
			h.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/", nil))
			if w.Code == http.StatusTooManyRequests {
				refused++
			}
		}
		return refused
	}
	if call("", 1000) == 0 || served[""] < strangerBurst {
		t.Errorf("strangers: %d were served", served[""])
	}
	if call("beta", 100_000) == 0 || served["beta"] < partnerBurst {
		t.Errorf("beta: %d were served", served["beta"])
	}
	if call("gamma", partnerBurst) != 0 {
		t.Error("gamma waits for beta")
	}
}

func TestFederationIsChecked(t *testing.T) {
	for name, f := range map[string]Federation{
		"country": {Location: peer.Location{Country: "Sweden", Latitude: 0, Longitude: 0}}, "latitude": {Location: peer.Location{Country: "SE", Latitude: 91, Longitude: 0}}, "longitude": {Location: peer.Location{Country: "SE", Latitude: 0, Longitude: -181}},
		"heat": {HeatWanted: 1.5}, "power": {Energy: peer.Energy{Condition: "fine", GramsKWh: 0}}, "co2": {Energy: peer.Energy{Condition: "", GramsKWh: -1}},
	} {
		if err := f.check(); err == nil {
			t.Errorf("%s: %+v is taken", name, f)
		}
	}
	if err := (Federation{Location: peer.Location{Country: "SE", Latitude: 59, Longitude: 18}, Energy: peer.Energy{Condition: "scarce", GramsKWh: 30}, HeatWanted: 1}).check(); err != nil {
		t.Error(err)
	}
}
