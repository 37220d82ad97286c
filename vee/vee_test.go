package vee

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// Every state and action of the white paper (sections 2.4, 2.5.4), as a person would write
// the table down: the state that it leads to, or "-" where it is not possible.
func TestTransitions(t *testing.T) {
	want := map[State]string{
		//         ACTIVATE PAUSE  SUSPEND   SHUTDOWN DESTROY
		Initial:   "-       -      -         -        DESTROYED",
		Defined:   "ACTIVE  -      -         -        DESTROYED",
		Active:    "-       PAUSED SUSPENDED DEFINED  DESTROYED",
		Paused:    "ACTIVE  -      SUSPENDED DEFINED  DESTROYED",
		Suspended: "ACTIVE  -      -         DEFINED  DESTROYED",
		Destroyed: "-       -      -         -        DESTROYED",
	}
	for _, s := range States {
		row := strings.Fields(want[s])
		for i, a := range Actions {
			got, err := s.After(a)
			var refused *TransitionError
			switch {
			case row[i] == "-" && (!errors.As(err, &refused) || refused.State != s || refused.Action != a):
				t.Errorf("%s from %s: %s, %v; want a TransitionError", a, s, got, err)
			case row[i] != "-" && (err != nil || string(got) != row[i]):
				t.Errorf("%s from %s: %s, %v; want %s", a, s, got, err, row[i])
			}
		}
	}
	if _, err := Active.After("EXPLODE"); err == nil || !strings.Contains(err.Error(), "ACTIVATE") {
		t.Errorf("an unknown action: %v; want an error that names the known ones", err)
	}
}

func TestIDs(t *testing.T) {
	id, err := NewID("alpha", bytes.NewReader([]byte("12345678")))
	if err != nil || id.Site() != "alpha" || len(id.Short()) != 10 {
		t.Fatalf("%q, %v", id, err)
	}
	if again, err := ParseID(string(id)); err != nil || again != id {
		t.Errorf("read back: %q, %v", again, err)
	}
	for _, bad := range []string{"", "alpha", "alpha.", "alpha.short", "Alpha.aaaaaaaaaa", "alpha.aaaaaaaaa1", "alpha.aaaaaaaaaa/..", "../alpha.aaaaaaaaaa", "a.b.aaaaaaaaaa", "-a.aaaaaaaaaa"} {
		if _, err := ParseID(bad); err == nil {
			t.Errorf("%q was taken for an identifier", bad)
		}
	}
	if _, err := NewID("not a site", nil); err == nil {
		t.Error("a site of that name was accepted")
	}
	if _, err := NewID("alpha", bytes.NewReader(nil)); err == nil {
		t.Error("an identifier was drawn without randomness")
	}
}

func TestEpochsAreOrderedByGenerationTermHop(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		draw := func(name string) Epoch {
			return Epoch{rapid.Uint64Range(0, 2).Draw(t, name+"g"), rapid.Uint64Range(0, 2).Draw(t, name+"t"), rapid.Uint64Range(0, 2).Draw(t, name+"h")}
		}
		a, b, c := draw("a"), draw("b"), draw("c")
		if (a.Compare(b) == 0) != (a == b) || sign(a.Compare(b)) != -sign(b.Compare(a)) {
			t.Fatalf("%v and %v: %d and %d", a, b, a.Compare(b), b.Compare(a))
		}
		if a.Compare(b) <= 0 && b.Compare(c) <= 0 && a.Compare(c) > 0 {
			t.Fatalf("%v ≤ %v ≤ %v, but not %v ≤ %v", a, b, c, a, c)
		}
		if a.Generation > b.Generation && a.Compare(b) <= 0 {
			t.Fatalf("%v is of a later generation than %v", a, b)
		}
	})
}

func sign(n int) int {
	switch {
	case n < 0:
		return -1
	case n > 0:
		return 1
	}
	return 0
}

func TestParseBytes(t *testing.T) {
	for text, want := range map[string]Bytes{
		"0": 0, "42": 42, "512MiB": 512 * MiB, "512 MB": 512 * MiB, "1.5GB": GiB + 512*MiB, "10g": 10 * GiB, "2TiB": 2 * TiB, " 1 KB ": KiB, "7B": 7, "3 bytes": 3,
	} {
		if got, err := ParseBytes(text); err != nil || got != want {
			t.Errorf("%q: %d, %v; want %d", text, got, err, want)
		}
	}
	for _, bad := range []string{"", "MiB", "-1", "-1MiB", "12 parsecs", "9999999999GiB", "1e9", "1.2.3MB", "NaN", "16EiB", "9223372036854775808", "8388608TiB"} {
		if got, err := ParseBytes(bad); err == nil {
			t.Errorf("%q was read as %d", bad, got)
		}
	}
}

func TestBytesArePrintedSoThatTheyCanBeReadBack(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		b := Bytes(rapid.Int64Range(0, 1<<50).Draw(t, "bytes"))
		back, err := ParseBytes(b.String())
		if err != nil {
			t.Fatalf("%d is printed as %s: %v", b, b, err)
		}
		// Two decimals: half a percent at most is lost.
		if d := back - b; d > b/200 || -d > b/200 {
			t.Fatalf("%d is printed as %s and read back as %d", b, b, back)
		}
	})
	if got := (512 * MiB).String(); got != "512MiB" {
		t.Errorf("512 MiB is printed as %s", got)
	}
}

func FuzzParseBytes(f *testing.F) {
	for _, s := range []string{"512MiB", "1.5 GB", "-1", "999999999999999999999", "0x10"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if b, err := ParseBytes(s); err == nil && b < 0 {
			t.Errorf("%q was read as %d", s, b)
		}
	})
}

func TestMonitoringChannel(t *testing.T) {
	public := NIC{Public: true, DNS: []string{"10.80.0.11"}}
	named := Naming{Domain: "shop.alpha.internal"}
	for want, d := range map[string]Descriptor{
		"":                      {NICs: []NIC{public}},
		"http://10.9.0.1:4318":  {NICs: []NIC{public, {DNS: []string{"10.9.0.1", "fd00:9::1"}}}, Naming: named},
		"http://[fd00::1]:4318": {NICs: []NIC{{DNS: []string{"fd00::1"}}}},
		"http://monitoring-channel.shop.alpha.internal:4318": {NICs: []NIC{public, {}}, Naming: named},
	} {
		if got := d.MonitoringChannel(); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}
