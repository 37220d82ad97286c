package report

import (
	"bytes"
	"encoding/csv"
	"flag"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/reservoir-cloud/reservoir/account/money"
	"github.com/reservoir-cloud/reservoir/smi"
)

var update = flag.Bool("update", false, "rewrite the files in testdata")

func services() []smi.SLA {
	at := time.Date(2026, 5, 6, 7, 0, 0, 0, time.UTC)
	most := 200.0
	window := func(n int, broken int64) smi.Window {
		return smi.Window{Start: at.Add(time.Duration(n) * time.Hour), End: at.Add(time.Duration(n+1) * time.Hour), KeptMS: 3_600_000 - broken - 1500, BrokenMS: broken, UnknownMS: 1500,
			BudgetMS: 36_000, Kept: 99.5, Violated: broken > 36_000}
	}
	bad := window(0, 40_250)
	bad.Due, bad.Invoice = money.Of(5, 4), "alpha-acme-000001"
	now := window(1, 20_000)
	return []smi.SLA{{Customer: "acme", Service: "shop", ServiceID: "alpha.s-1", Contract: "alpha.o-1", Currency: "EUR", Since: at, Due: money.Of(9, 4), Objectives: []smi.Objective{
		{Promise: smi.Promise{Name: "availability", Kind: "availability", WindowMS: 3_600_000, Percent: 99, Penalty: "0.1 * price + 1 EUR", Protection: "migrate"}, Now: "kept", Window: &now, Past: []smi.Window{bad}},
		{Promise: smi.Promise{Name: "=quick", Kind: "kpi", KPI: "latency", Max: &most, WindowMS: 3_600_000, Percent: 95}, Now: "unknown"},
		{Promise: smi.Promise{Name: "web restart time", Kind: "restart", Component: "web", WithinMS: 120_000, Penalty: "1 EUR"}, Now: "kept",
			Late: []smi.Late{{Replica: "web-1", Lost: at.Add(time.Minute), Due: money.Of(1, 1)}}},
	}}, {Customer: "acme", Service: "<b>batch</b>", ServiceID: "alpha.s-2", Ended: true, Objectives: []smi.Objective{}}}
}

func TestReports(t *testing.T) {
	for name, write := range map[string]func(io.Writer) error{
		"report.csv": func(w io.Writer) error { return CSV(w, services()) },
		"report.html": func(w io.Writer) error {
			return HTML(w, "alpha", time.Date(2026, 5, 6, 8, 30, 0, 0, time.UTC), services())
		},
	} {
		var got bytes.Buffer
		if err := write(&got); err != nil {
			t.Fatal(err)
		}
		file := filepath.Join("testdata", name)
		if *update {
			if err := os.WriteFile(file, got.Bytes(), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(file)
		if err != nil || !bytes.Equal(want, got.Bytes()) {
			t.Errorf("%s differs (go test -update rewrites it), %v; now:\n%s", file, err, &got)
		}
		if strings.Contains(got.String(), "<b>batch") && name == "report.html" {
			t.Error("a name is taken for HTML")
		}
	}
}

func TestRowsAreWhole(t *testing.T) {
	var b bytes.Buffer
	if err := CSV(&b, services()); err != nil {
		t.Fatal(err)
	}
	rows, err := csv.NewReader(&b).ReadAll() // refuses rows of another length
	if err != nil || len(rows) != 4 {
		t.Errorf("%d rows, %v", len(rows), err)
	}
	if rows[3][4] == "=quick" {
		t.Error("a name is taken for a formula")
	}
}
