package guest

import (
	"bytes"
	"errors"
	"io"
	"reflect"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func TestReaderTakesWhatEncodeMakes(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		text := rapid.StringN(0, 20, 40)
		number := rapid.Float64Range(0, 1e9)
		kpi := rapid.StringMatching(`[a-z_][a-z0-9_.:-]{0,20}`)
		msg := rapid.OneOf(
			rapid.Custom(func(t *rapid.T) any {
				return &Hello{Type: "hello", Version: text.Draw(t, "version"), Hostname: text.Draw(t, "host")}
			}),
			rapid.Custom(func(t *rapid.T) any {
				return &Status{Type: "status", Ready: rapid.Bool().Draw(t, "ready"), Message: text.Draw(t, "message"),
					KPIs: rapid.MapOfN(kpi, number, 1, 5).Draw(t, "kpis")}
			}),
			rapid.Custom(func(t *rapid.T) any {
				return &Command{Type: "burn-cpu", ID: text.Draw(t, "id"), Amount: number.Draw(t, "amount"), Seconds: number.Draw(t, "s")}
			}),
			rapid.Custom(func(t *rapid.T) any { return &Reply{Type: "reply", ID: text.Draw(t, "id"), OK: true} }),
		)
		want := rapid.SliceOf(msg).Draw(t, "messages")
		var wire bytes.Buffer
		for _, m := range want {
			line, err := Encode(m)
			if err != nil {
				t.Fatal(err)
			}
			wire.Write(line)
		}
		r := NewReader(&wire)
		for i, m := range want {
			got, err := r.Next()
			if err != nil || !reflect.DeepEqual(got, m) {
				t.Fatalf("message %d: got %#v, %v; want %#v", i, got, err, m)
			}
		}
		if _, err := r.Next(); err != io.EOF {
			t.Fatalf("at the end: %v", err)
		}
	})
}

func TestReaderRefuses(t *testing.T) {
	long := strings.Repeat("x", MaxLine)
	kpis := make([]string, MaxKPIs+1)
	for i := range kpis {
		kpis[i] = `"k` + strings.Repeat("i", i%100) + string(rune('a'+i%26)) + string(rune('a'+i/26)) + `":1`
	}
	for name, c := range map[string]struct {
		wire string
		want error
	}{
		"half a line of an earlier connection": {`hello"}` + "\n", ErrMalformed},
		"no type":                              {"{}\n", ErrMalformed},
		"an array":                             {"[1]\n", ErrMalformed},
		"a number for a word":                  {`{"type":"status","ready":"yes"}` + "\n", ErrMalformed},
		"a hostile KPI name":                   {`{"type":"status","kpis":{"a\nb":1}}` + "\n", ErrMalformed},
		"too many KPIs":                        {`{"type":"status","kpis":{` + strings.Join(kpis, ",") + "}}\n", ErrMalformed},
		"negative seconds":                     {`{"type":"burn-cpu","seconds":-1}` + "\n", ErrMalformed},
		"a line without an end":                {long, ErrTooLong},
		"a connection cut in a line":           {`{"type":"hel`, io.EOF},
	} {
		if _, err := NewReader(strings.NewReader(c.wire)).Next(); !errors.Is(err, c.want) {
			t.Errorf("%s: got %v, want %v", name, err, c.want)
		}
	}
	if _, err := Encode(Status{Type: "status", Message: long}); !errors.Is(err, ErrTooLong) {
		t.Errorf("encoding a long message: %v", err)
	}
}

func TestReaderGoesOnAfterAMalformedLine(t *testing.T) {
	r := NewReader(strings.NewReader("\xff\xfe\n\n{\"type\":\"hello?\"}\n"))
	if _, err := r.Next(); !errors.Is(err, ErrMalformed) {
		t.Fatalf("first line: %v", err)
	}
	if m, err := r.Next(); err != nil || m.(*Command).Type != "hello?" {
		t.Fatalf("second line: %v, %v", m, err)
	}
}

// FuzzReader: whatever a guest sends, the host gets bounded messages or an error.
func FuzzReader(f *testing.F) {
	f.Add([]byte(`{"type":"hello","version":"1"}` + "\n"))
	f.Add([]byte(`{"type":"status","ready":true,"kpis":{"queue":3}}` + "\n{"))
	f.Add([]byte("\n\n\x00{\"type\":1e999}\n"))
	f.Fuzz(func(t *testing.T, wire []byte) {
		r := NewReader(bytes.NewReader(wire))
		for {
			m, err := r.Next()
			if errors.Is(err, ErrMalformed) {
				continue
			}
			if err != nil {
				return
			}
			if err := m.(interface{ check() error }).check(); err != nil {
				t.Fatalf("let through %#v: %v", m, err)
			}
		}
	})
}
