package image

import (
	"bytes"
	"encoding/binary"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/reservoir-cloud/reservoir/vee"
)

// The files under testdata/qcow2 are the first 1,024 bytes of what qemu-img 7.2 made.
func TestQCOW2OfQEMU(t *testing.T) {
	for _, tt := range []struct {
		file string
		size vee.Bytes
		err  string
	}{
		{"v3", 100 * vee.MiB, ""},
		{"v2", 100 * vee.MiB, ""},
		{"zstd", 64 * vee.MiB, ""},
		{"backing", 0, "backing file"},
		{"backing-v2", 0, "backing file"},
		{"external", 0, "another file"},
	} {
		data, err := os.ReadFile(filepath.Join("testdata/qcow2", tt.file+".head"))
		if err != nil {
			t.Fatal(err)
		}
		checkQCOW2(t, tt.file, data, tt.size, tt.err)
	}
}

func checkQCOW2(t *testing.T, name string, data []byte, size vee.Bytes, wantErr string) {
	t.Helper()
	got, err := qcow2Size(bytes.NewReader(data))
	switch {
	case wantErr == "" && (err != nil || got != size):
		t.Errorf("%s: %v, %v; want %v", name, got, err, size)
	case wantErr != "" && (err == nil || !strings.Contains(err.Error(), wantErr)):
		t.Errorf("%s: error %v; want one about %q", name, err, wantErr)
	}
}

// Each case changes one thing of a good header.
func TestQCOW2Hostile(t *testing.T) {
	put32 := func(at int, v uint32) func([]byte) []byte {
		return func(b []byte) []byte { binary.BigEndian.PutUint32(b[at:], v); return b }
	}
	put64 := func(at int, v uint64) func([]byte) []byte {
		return func(b []byte) []byte { binary.BigEndian.PutUint64(b[at:], v); return b }
	}
	for _, tt := range []struct {
		name   string
		change func([]byte) []byte
		err    string
	}{
		{"nothing", func(b []byte) []byte { return b }, ""},
		{"empty", func(b []byte) []byte { return nil }, "cut off"},
		{"half a header", func(b []byte) []byte { return b[:40] }, "cut off"},
		{"no version 3 part", func(b []byte) []byte { return b[:80] }, "cut off"},
		{"no extensions", func(b []byte) []byte { return b[:104] }, "no end"},
		{"other magic", put32(0, 0), "no qcow2"},
		{"version 4", put32(4, 4), "version 4"},
		{"backing offset", put64(8, 512), "backing file"},
		{"backing size", put32(16, 9), "backing file"},
		{"tiny clusters", put32(20, 8), "cluster size"},
		{"huge clusters", put32(20, 63), "cluster size"},
		{"no size", put64(24, 0), "virtual size"},
		{"size overflow", put64(24, 1<<63), "virtual size"},
		{"size 65 TiB", put64(24, 65<<40), "virtual size"},
		{"encrypted", put32(32, 1), "encrypted"},
		{"dirty", put64(72, 1), "cleanly"},
		{"corrupt", put64(72, 2), "cleanly"},
		{"external data", put64(72, 4), "another file"},
		{"unknown feature", put64(72, 1<<40), "0x10000000000"},
		{"short header length", put32(100, 96), "header length"},
		{"odd header length", put32(100, 105), "header length"},
		{"long header length", put32(100, 1<<31), "header length"},
		{"external data extension", put32(104, qcow2ExtExternalData), "another file"},
		{"backing format extension", put32(104, qcow2ExtBackingFormat), "another file"},
		{"endless extension", func(b []byte) []byte {
			binary.BigEndian.PutUint32(b[104:], 0xabcd)
			binary.BigEndian.PutUint32(b[108:], 0xffffffff)
			return b
		}, "cut off"},
	} {
		checkQCOW2(t, tt.name, tt.change(qcow2Head(vee.GiB)), vee.GiB, tt.err)
	}
}

// qcow2Head is a good version 3 header with no extension.
func qcow2Head(size vee.Bytes) []byte {
	var b bytes.Buffer
	for _, part := range []any{
		qcow2Header{
			Magic: [4]byte([]byte(qcow2Magic)), Version: 3, ClusterBits: 16, Size: uint64(size),
			L1Size: 1, L1TableOffset: 3 << 16, RefcountTableOffset: 1 << 16, RefcountTableClusters: 1,
		},
		qcow2HeaderV3{RefcountOrder: 4, HeaderLength: qcow2LengthV3},
		[8]byte{}, // end of extensions
	} {
		if err := binary.Write(&b, binary.BigEndian, part); err != nil {
			panic(err)
		}
	}
	return b.Bytes()
}

func TestRawDiskIsNoQCOW2(t *testing.T) {
	if _, err := diskSize(bytes.NewReader(qcow2Head(vee.GiB)), FormatRaw, 4096); err == nil {
		t.Error("a qcow2 file was taken for a raw disk")
	}
	if n, err := diskSize(strings.NewReader("x"), FormatRaw, 1); n != 1 || err != nil {
		t.Errorf("a raw disk of one byte: %v, %v", n, err)
	}
}

func FuzzQCOW2(f *testing.F) {
	f.Add(qcow2Head(vee.GiB))
	files, err := filepath.Glob("testdata/qcow2/*.head")
	if err != nil {
		f.Fatal(err)
	}
	for _, name := range files {
		data, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		size, err := qcow2Size(bytes.NewReader(data))
		if err != nil {
			return
		}
		if size <= 0 || size > maxVirtualSize {
			t.Fatalf("size %d", size)
		}
		if binary.BigEndian.Uint64(data[8:]) != 0 {
			t.Fatal("backing file passed")
		}
	})
}
