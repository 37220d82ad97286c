package image

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"

	"github.com/reservoir-cloud/reservoir/vee"
)

// maxVirtualSize of a disk; QEMU's own bound for qcow2 with 64 KiB clusters is near it.
const maxVirtualSize = 64 * vee.TiB

// qcow2Magic starts every qcow2 file.
const qcow2Magic = "QFI\xfb"

// qcow2Header is the fixed part that versions 2 and 3 share (QEMU docs/interop/qcow2.rst,
// "Header"), big-endian.
type qcow2Header struct {
	Magic                 [4]byte
	Version               uint32
	BackingFileOffset     uint64
	BackingFileSize       uint32
	ClusterBits           uint32
	Size                  uint64
	CryptMethod           uint32
	L1Size                uint32
	L1TableOffset         uint64
	RefcountTableOffset   uint64
	RefcountTableClusters uint32
	NbSnapshots           uint32
	SnapshotsOffset       uint64
}

// qcow2HeaderV3 follows it in version 3.
type qcow2HeaderV3 struct {
	Incompatible  uint64
	Compatible    uint64
	Autoclear     uint64
	RefcountOrder uint32
	HeaderLength  uint32
}

// Lengths of the fixed header, bytes.
const (
	qcow2LengthV2 = 72
	qcow2LengthV3 = 104
)

// Incompatible features of version 3.
const (
	qcow2Dirty        = 1 << 0
	qcow2Corrupt      = 1 << 1
	qcow2ExternalData = 1 << 2
	qcow2Compression  = 1 << 3 // another compression than deflate
	qcow2ExtendedL2   = 1 << 4
)

// Header extensions that matter here.
const (
	qcow2ExtEnd           = 0
	qcow2ExtBackingFormat = 0xE2792ACA
	qcow2ExtExternalData  = 0x44415441
	qcow2ExtEncryption    = 0x0537BE77
)

// diskSize is the virtual size of a disk of the given format, of which r is the start and
// size the length in bytes. A qcow2 file can make QEMU open any other file of the host as
// its backing or data file, so one that names any is refused, and so is a raw disk that a
// careless reader would take for qcow2.
func diskSize(r io.Reader, format string, size int64) (vee.Bytes, error) {
	if format == FormatQCOW2 {
		return qcow2Size(r)
	}
	var magic [len(qcow2Magic)]byte
	if _, err := io.ReadFull(r, magic[:]); err == nil && string(magic[:]) == qcow2Magic {
		return 0, fmt.Errorf("raw disk starts with a qcow2 header: want it as %s", FormatQCOW2)
	}
	return vee.Bytes(size), nil
}

// qcow2Size reads the header of a qcow2 file and at most one cluster of extensions.
func qcow2Size(r io.Reader) (vee.Bytes, error) {
	var h qcow2Header
	if err := binary.Read(r, binary.BigEndian, &h); err != nil {
		return 0, fmt.Errorf("qcow2 header is cut off: %w", err)
	}
	if string(h.Magic[:]) != qcow2Magic {
		return 0, fmt.Errorf("no qcow2 disk: it starts with %q", h.Magic)
	}
	if h.Version != 2 && h.Version != 3 {
		return 0, fmt.Errorf("qcow2 version %d: want 2 or 3", h.Version)
	}
	if h.BackingFileOffset != 0 || h.BackingFileSize != 0 {
		return 0, fmt.Errorf("qcow2 disk has a backing file; flatten it: qemu-img convert -O qcow2 IN OUT")
	}
	if h.CryptMethod != 0 {
		return 0, fmt.Errorf("qcow2 disk is encrypted, which no driver here can open")
	}
	if h.ClusterBits < 9 || h.ClusterBits > 21 {
		return 0, fmt.Errorf("qcow2 cluster size of 2^%d bytes: want 2^9 to 2^21", h.ClusterBits)
	}
	if h.Size == 0 || h.Size > uint64(maxVirtualSize) {
		return 0, fmt.Errorf("qcow2 virtual size of %d bytes: want 1 byte to %s", h.Size, maxVirtualSize)
	}
	length := uint32(qcow2LengthV2)
	if h.Version == 3 {
		var v3 qcow2HeaderV3
		if err := binary.Read(r, binary.BigEndian, &v3); err != nil {
			return 0, fmt.Errorf("qcow2 header is cut off: %w", err)
		}
		if err := v3.check(h.ClusterBits); err != nil {
			return 0, err
		}
		if _, err := io.CopyN(io.Discard, r, int64(v3.HeaderLength-qcow2LengthV3)); err != nil {
			return 0, fmt.Errorf("qcow2 header is cut off: %w", err)
		}
		length = v3.HeaderLength
	}
	// All extensions lie in the first cluster ("Header extensions").
	if err := checkExtensions(io.LimitReader(r, 1<<h.ClusterBits-int64(length))); err != nil {
		return 0, err
	}
	return vee.Bytes(h.Size), nil
}

func (h qcow2HeaderV3) check(clusterBits uint32) error {
	switch {
	case h.Incompatible&qcow2ExternalData != 0:
		return fmt.Errorf("qcow2 disk keeps its data in another file; make it whole: qemu-img convert -O qcow2 IN OUT")
	case h.Incompatible&(qcow2Dirty|qcow2Corrupt) != 0:
		return fmt.Errorf("qcow2 disk was not closed cleanly or is damaged; repair it: qemu-img check -r all FILE")
	case h.Incompatible&^(qcow2Compression|qcow2ExtendedL2) != 0:
		return fmt.Errorf("qcow2 disk needs features %#x that are not known here", h.Incompatible&^(qcow2Compression|qcow2ExtendedL2))
	case h.HeaderLength < qcow2LengthV3 || h.HeaderLength%8 != 0 || int64(h.HeaderLength) > 1<<clusterBits:
		return fmt.Errorf("qcow2 header length %d: want a multiple of 8 from %d to the cluster size", h.HeaderLength, qcow2LengthV3)
	}
	return nil
}

// checkExtensions reads header extensions up to their end marker or the end of r.
func checkExtensions(r io.Reader) error {
	for {
		var ext struct{ Type, Length uint32 }
		if err := binary.Read(r, binary.BigEndian, &ext); err != nil {
			return fmt.Errorf("qcow2 header extensions have no end: %w", err)
		}
		switch ext.Type {
		case qcow2ExtEnd:
			return nil
		case qcow2ExtBackingFormat, qcow2ExtExternalData:
			return fmt.Errorf("qcow2 disk names another file; make it whole: qemu-img convert -O qcow2 IN OUT")
		case qcow2ExtEncryption:
			return fmt.Errorf("qcow2 disk is encrypted, which no driver here can open")
		}
		padded := (int64(ext.Length) + 7) &^ 7
		if _, err := io.CopyN(io.Discard, r, padded); err != nil {
			return fmt.Errorf("qcow2 header extension %#x of %d bytes is cut off: %w", ext.Type, ext.Length, err)
		}
	}
}

// formatOf the disk whose start is head.
func formatOf(head []byte) string {
	if bytes.HasPrefix(head, []byte(qcow2Magic)) {
		return FormatQCOW2
	}
	return FormatRaw
}
