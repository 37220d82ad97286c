package qemu

import (
	"archive/tar"
	"bytes"
	"testing"
	"time"

	"github.com/reservoir-cloud/reservoir/vee"
)

// FuzzPackHead: whatever another host sends, its head is refused or is what was written.
func FuzzPackHead(f *testing.F) {
	var b bytes.Buffer
	if err := writePack(&b, snapshot{Snapshot: vee.Snapshot{Name: "one", Created: time.Unix(1, 0)}}, nil); err != nil {
		f.Fatal(err)
	}
	f.Add(b.Bytes())
	f.Add([]byte("this is no tar"))
	f.Add(b.Bytes()[:600])
	f.Fuzz(func(t *testing.T, data []byte) {
		head, err := readPackHead(tar.NewReader(bytes.NewReader(data)))
		if err != nil {
			return
		}
		var again bytes.Buffer
		if err := writePack(&again, head, nil); err != nil {
			t.Fatal(err)
		}
		if _, err := readPackHead(tar.NewReader(&again)); err != nil {
			t.Fatal(err)
		}
	})
}
