package seal

import (
	"bytes"
	"encoding/json"
	"testing"

	"github.com/reservoir-cloud/reservoir/internal/fault"
)

func TestOnlyThePassPhraseOpensABox(t *testing.T) {
	pass, secret := []byte("correct horse"), []byte("battery staple")
	box, err := Seal(pass, "the authority of alpha", secret)
	if err != nil {
		t.Fatal(err)
	}
	text, err := json.Marshal(box)
	if err != nil || bytes.Contains(text, secret) {
		t.Fatalf("%s, %v", text, err)
	}
	var back Box
	if err := json.Unmarshal(text, &back); err != nil {
		t.Fatal(err)
	}
	if got, err := back.Open(pass, "the authority of alpha"); err != nil || !bytes.Equal(got, secret) {
		t.Errorf("%q, %v", got, err)
	}
	again, err := Seal(pass, "the authority of alpha", secret)
	if err != nil || bytes.Equal(again.Sealed, box.Sealed) || bytes.Equal(again.Salt, box.Salt) {
		t.Errorf("two boxes are alike, %v", err)
	}
	flipped := func(change func(*Box)) Box {
		b := Box{box.Scheme, bytes.Clone(box.Salt), bytes.Clone(box.Sealed)}
		change(&b)
		return b
	}
	for what, x := range map[string]struct {
		box   Box
		pass  string
		about string
		want  fault.Code
	}{
		"another pass phrase": {box, "incorrect horse", "the authority of alpha", fault.Denied},
		"about another":       {box, string(pass), "the authority of beta", fault.Denied},
		"damaged":             {flipped(func(b *Box) { b.Sealed[len(b.Sealed)-1] ^= 1 }), string(pass), "the authority of alpha", fault.Denied},
		"another salt":        {flipped(func(b *Box) { b.Salt[0] ^= 1 }), string(pass), "the authority of alpha", fault.Denied},
		"cut off":             {flipped(func(b *Box) { b.Sealed = b.Sealed[:3] }), string(pass), "the authority of alpha", fault.Denied},
		"of the future":       {flipped(func(b *Box) { b.Scheme = "x" }), string(pass), "the authority of alpha", fault.Unsupported},
		"empty":               {Box{}, string(pass), "the authority of alpha", fault.Unsupported},
	} {
		if got, err := x.box.Open([]byte(x.pass), x.about); !fault.Has(err, x.want) || got != nil {
			t.Errorf("%s: %q, %v", what, got, err)
		}
	}
}
