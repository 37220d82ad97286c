package hypervisor_test

import (
	"flag"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/reservoir-cloud/reservoir/hypervisor/conformance"
)

var update = flag.Bool("update", false, "write docs/drivers.md anew")

// drivers in the order of their columns, with the package whose test wrote their results.
var drivers = []struct{ head, name, pkg string }{
	{"qemu", "qemu", "qemu"},
	{"libvirt", "libvirt", "libvirt"},
	{"libvirt, mock", "libvirt-mock", "libvirt"},
	{"sim", "sim", "sim"},
}

// marks around the table in docs/drivers.md; the rest of the page is written by hand.
const (
	tableBegins = "<!-- the table is made by: go test ./hypervisor -update -->\n"
	tableEnds   = "<!-- end of the table -->\n"
)

// TestTheTableOfDrivers keeps the table in docs/drivers.md to the results that the drivers'
// own tests have on file, and that those fail on when they come to something else.
func TestTheTableOfDrivers(t *testing.T) {
	parts := map[string]bool{}
	results := make([]map[string]string, len(drivers))
	for i, d := range drivers {
		var err error
		if results[i], err = conformance.Read(filepath.Join(d.pkg, conformance.File(d.name))); err != nil {
			t.Fatal(err)
		}
		for part := range results[i] {
			parts[part] = true
		}
	}
	var table strings.Builder
	table.WriteString("| part of the suite |")
	for _, d := range drivers {
		fmt.Fprintf(&table, " %s |", d.head)
	}
	table.WriteString("\n|---|" + strings.Repeat("---|", len(drivers)) + "\n")
	for _, part := range slices.Sorted(maps.Keys(parts)) {
		fmt.Fprintf(&table, "| %s |", part)
		for _, r := range results {
			fmt.Fprintf(&table, " %s |", r[part])
			if r[part] != "yes" && r[part] != "not declared" {
				t.Errorf("%s: %q", part, r[part])
			}
		}
		table.WriteString("\n")
	}

	const page = "../docs/drivers.md"
	text, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, begins := strings.Cut(string(text), tableBegins)
	old, after, ends := strings.Cut(rest, tableEnds)
	switch {
	case !begins || !ends:
		t.Fatalf("%s has no marks for the table", page)
	case old == table.String():
	case *update:
		if err := os.WriteFile(page, []byte(before+tableBegins+table.String()+tableEnds+after), 0o644); err != nil {
			t.Fatal(err)
		}
	default:
		t.Errorf("the table in %s is not what the drivers came to (go test ./hypervisor -update)", page)
	}
}
