package site

import (
	"log/slog"
	"testing"

	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/site/admin"
)

// What an operator says of the site is what partners are told, and outlives the process.
func TestPublish(t *testing.T) {
	cfg := config(t)
	cfg.Log = slog.New(slog.DiscardHandler)
	cfg.Federation.Energy.GramsKWh = 40
	if err := cfg.check(); err != nil {
		t.Fatal(err)
	}
	s := opened(t, cfg)
	scarce, heat, much := "scarce", 0.5, 2.0
	if _, err := s.Publish(t.Context(), admin.Publish{HeatWanted: &much}); !fault.Has(err, fault.Malformed) {
		t.Errorf("more heat than there is: %v", err)
	}
	want := admin.Published{Power: "scarce", GramsKWh: 40, HeatWanted: 0.5}
	if got, err := s.Publish(t.Context(), admin.Publish{Power: &scarce, HeatWanted: &heat}); err != nil || got != want {
		t.Errorf("%+v, %v", got, err)
	}
	again := &site{cfg: s.cfg, store: s.store}
	if err := again.openPublished(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got, err := again.Published(t.Context()); err != nil || got != want {
		t.Errorf("after a restart: %+v, %v", got, err)
	}
}
