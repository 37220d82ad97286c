package conformance

import (
	"encoding/json"
	"maps"
	"os"
	"path/filepath"
	"sync"
	"testing"
)

// Results of the suite: what each of its parts came to, "yes", "not declared" or "FAILED".
type Results struct {
	mu      sync.Mutex
	outcome map[string]string
}

func (r *Results) note(part, outcome string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.outcome[part] = outcome
}

// File of a driver's results, in the testdata folder of its package.
func File(driver string) string { return filepath.Join("testdata", "conformance-"+driver+".json") }

// Check that they are the ones on file, or with update write them there: docs/drivers.md is
// made from the files. A run that failed, or was only a part of the suite, changes nothing.
func (r *Results) Check(t *testing.T, driver string, update bool) {
	t.Helper()
	r.mu.Lock()
	got := maps.Clone(r.outcome)
	r.mu.Unlock()
	if t.Failed() {
		return
	}
	if update {
		b, err := json.MarshalIndent(got, "", "\t")
		if err == nil {
			err = os.WriteFile(File(driver), append(b, '\n'), 0o644) //nolint:gosec // is part of the source
		}
		if err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := Read(File(driver))
	if err != nil {
		t.Fatal(err)
	}
	for part, outcome := range got {
		if want[part] != outcome {
			t.Errorf("%s: %q is on file as %q, and came to %q (go test -update, then make docs/drivers.md anew)", driver, part, want[part], outcome)
		}
	}
}

// Read results from a file.
func Read(path string) (map[string]string, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var results map[string]string
	return results, json.Unmarshal(b, &results)
}
