package conformance

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/reservoir-cloud/reservoir/hypervisor"
	"github.com/reservoir-cloud/reservoir/vee"
)

// SectorImage is the guest of one sector as an image of this host, in dir.
func SectorImage(t testing.TB, dir string) hypervisor.LocalImage {
	t.Helper()
	image := make([]byte, vee.MiB)
	copy(image, sectorGuest)
	image[510], image[511] = 0x55, 0xaa
	path := filepath.Join(dir, "sector.raw")
	if err := os.WriteFile(path, image, 0o644); err != nil { //nolint:gosec // guests' users read it
		t.Fatal(err)
	}
	return hypervisor.LocalImage{Digest: "sha256:sector", Disk: path, Format: "raw"}
}

// SectorGuest boots from it.
func SectorGuest(i hypervisor.LocalImage) hypervisor.Guest {
	return hypervisor.Guest{
		ID: "alpha.aaaaaaaaaa", Epoch: vee.Epoch{Generation: 1},
		Descriptor: vee.Descriptor{
			Name: "sector-1", VCPUs: 1, Memory: 16 * vee.MiB,
			Disks:   []vee.Disk{{Name: "root", Image: i.Digest}},
			Context: map[string]string{"meta-data": "instance-id: x\n"},
		},
		Images: []hypervisor.LocalImage{i},
	}
}

// sectorGuest is a guest of one sector for drivers of real PCs: it boots in a fraction
// of a second under TCG, and is enough of a machine to show that its memory and its disk
// are kept, and to obey the power button. What it says on its console is described at
// conformance.Factory; "w" writes the second sector again and answers "Wnn" or "Enn".
//
// It is 16-bit code at 0000:7c00, assembled with GNU as; +0x7c00 is where it is loaded.
// COM1 is at 0x3f8. The ACPI registers of the pc machine are at 0x600, as SeaBIOS puts
// them: status, enable (bit 8: power button), control (SLP_EN with type 0: off).
var sectorGuest = []byte{
	// start:
	0x31, 0xc0, // xorw %ax,%ax
	0x8e, 0xd8, // movw %ax,%ds
	0x8e, 0xc0, // movw %ax,%es
	0x8e, 0xd0, // movw %ax,%ss
	0xbc, 0x00, 0x7c, // movw $0x7c00,%sp
	0xfb,                   // sti
	0x88, 0x16, 0xe7, 0x7c, // movb %dl,drive+0x7c00
	// COM1: 115200 8N1, FIFO on
	0xba, 0xfb, 0x03, // movw $0x3fb,%dx
	0xb0, 0x80, // movb $0x80,%al
	0xee,             // outb %al,%dx
	0xba, 0xf8, 0x03, // movw $0x3f8,%dx
	0xb0, 0x01, // movb $1,%al
	0xee,       // outb %al,%dx
	0x42,       // incw %dx
	0x30, 0xc0, // xorb %al,%al
	0xee,             // outb %al,%dx
	0xba, 0xfb, 0x03, // movw $0x3fb,%dx
	0xb0, 0x03, // movb $3,%al
	0xee, // outb %al,%dx
	// ACPI power button: enable its status bit
	0xba, 0x02, 0x06, // movw $0x602,%dx
	0xb8, 0x00, 0x01, // movw $0x100,%ax
	0xef, // outw %ax,%dx
	// boot count lives in the second sector
	0xb4, 0x02, // movb $2,%ah
	0xe8, 0x7a, 0x00, // call sector
	0x72, 0x5b, // jc   failed
	0xfe, 0x06, 0x00, 0x80, // incb 0x8000
	0xb4, 0x03, // movb $3,%ah
	0xe8, 0x6f, 0x00, // call sector
	0x72, 0x50, // jc   failed
	0xb0, 0x42, // movb $'B',%al
	0xe8, 0x92, 0x00, // call put
	0xa0, 0x00, 0x80, // movb 0x8000,%al
	0xe8, 0x73, 0x00, // call hex
	// idle:
	0xf4,             // hlt
	0xba, 0x00, 0x06, // movw $0x600,%dx
	0xed,             // inw  %dx,%ax
	0xf6, 0xc4, 0x01, // testb $1,%ah
	0x75, 0x45, // jnz  off
	0xba, 0xfd, 0x03, // movw $0x3fd,%dx
	0xec,       // inb  %dx,%al
	0xa8, 0x01, // testb $1,%al
	0x74, 0xee, // jz   idle
	0xba, 0xf8, 0x03, // movw $0x3f8,%dx
	0xec,       // inb  %dx,%al
	0x3c, 0x71, // cmpb $'q',%al
	0x74, 0x35, // je   off
	0x3c, 0x77, // cmpb $'w',%al
	0x74, 0x11, // je   write
	0xfe, 0x06, 0xe8, 0x7c, // incb count+0x7c00
	0xb0, 0x43, // movb $'C',%al
	0xe8, 0x65, 0x00, // call put
	0xa0, 0xe8, 0x7c, // movb count+0x7c00,%al
	0xe8, 0x46, 0x00, // call hex
	0xeb, 0xd1, // jmp  idle
	// write:
	0xb4, 0x03, // movb $3,%ah
	0xe8, 0x2e, 0x00, // call sector
	0xb0, 0x57, // movb $'W',%al
	0x73, 0x02, // jnc 1f
	0xb0, 0x45, // movb $'E',%al
	0xe8, 0x4f, 0x00, // 1:  call put
	0xa0, 0x00, 0x80, // movb 0x8000,%al
	0xe8, 0x30, 0x00, // call hex
	0xeb, 0xbb, // jmp idle
	// failed:
	0xb0, 0x45, // movb $'E',%al
	0xe8, 0x42, 0x00, // call put
	0x88, 0xe0, // movb %ah,%al
	0xe8, 0x24, 0x00, // call hex
	// off:
	0xb0, 0x51, // movb $'Q',%al
	0xe8, 0x38, 0x00, // call put
	0x30, 0xc0, // xorb %al,%al
	0xe8, 0x1a, 0x00, // call hex
	0xba, 0x04, 0x06, // movw $0x604,%dx
	0xb8, 0x00, 0x20, // movw $0x2000,%ax
	0xef,       // outw %ax,%dx
	0xeb, 0x9e, // jmp  idle
	// sector: ah = 2 read, 3 write; sector 2 at 0:8000
	// sector:
	0xb0, 0x01, // movb $1,%al
	0xb9, 0x02, 0x00, // movw $2,%cx
	0x30, 0xf6, // xorb %dh,%dh
	0x8a, 0x16, 0xe7, 0x7c, // movb drive+0x7c00,%dl
	0xbb, 0x00, 0x80, // movw $0x8000,%bx
	0xcd, 0x13, // int  $0x13
	0xc3, // ret
	// hex: al as two digits, then newline
	// hex:
	0x50,             // pushw %ax
	0xc0, 0xe8, 0x04, // shrb $4,%al
	0xe8, 0x0a, 0x00, // call digit
	0x58,       // popw %ax
	0x24, 0x0f, // andb $15,%al
	0xe8, 0x04, 0x00, // call digit
	0xb0, 0x0a, // movb $10,%al
	0xeb, 0x08, // jmp put
	// digit:
	0x04, 0x30, // addb $'0',%al
	0x3c, 0x39, // cmpb $'9',%al
	0x76, 0x02, // jbe  put
	0x04, 0x07, // addb $7,%al
	// put:
	0x52,             // pushw %dx
	0x50,             // pushw %ax
	0xba, 0xfd, 0x03, // movw $0x3fd,%dx
	0xec,       // 1:  inb  %dx,%al
	0xa8, 0x20, // testb $0x20,%al
	0x74, 0xfb, // jz   1b
	0x58,             // popw %ax
	0xba, 0xf8, 0x03, // movw $0x3f8,%dx
	0xee, // outb %al,%dx
	0x5a, // popw %dx
	0xc3, // ret
	0x00, // drive: .byte 0
	0x00, // count: .byte 0
}
