package identity

import (
	"fmt"
	"testing"
	"time"

	"github.com/reservoir-cloud/reservoir/internal/fault"
)

func TestAnAuthorityIsExported(t *testing.T) {
	ca, err := NewCA("alpha", time.Now, nil)
	if err != nil {
		t.Fatal(err)
	}
	text, err := ca.Export()
	if err != nil || fmt.Sprint(text) != hidden {
		t.Fatalf("%v, %v", text, err)
	}
	back, err := ParseCA(text, "alpha", time.Now, nil)
	if err != nil || back.Fingerprint() != ca.Fingerprint() {
		t.Fatal(err)
	}
	k, err := OpenKeypair(t.TempDir(), time.Now)
	if err != nil {
		t.Fatal(err)
	}
	certify(t, k, back, "/site")
	other, err := NewCA("alpha", time.Now, nil)
	if err != nil {
		t.Fatal(err)
	}
	key, err := other.Export()
	if err != nil {
		t.Fatal(err)
	}
	mixed := Secret(key.Reveal()[:len(key.Reveal())-len(other.Bundle())] + string(ca.Bundle()))
	for what, x := range map[string]struct {
		text Secret
		site string
		want fault.Code
	}{
		"of another site": {text, "beta", fault.WrongState},
		"nothing":         {"", "alpha", fault.Malformed},
		"no key":          {Secret(ca.Bundle()), "alpha", fault.Malformed},
		"no certificate":  {text[:len(text.Reveal())-len(ca.Bundle())], "alpha", fault.Malformed},
		"another's key":   {mixed, "alpha", fault.WrongState},
	} {
		if _, err := ParseCA(x.text, x.site, time.Now, nil); !fault.Has(err, x.want) {
			t.Errorf("%s: %v", what, err)
		}
	}
}
