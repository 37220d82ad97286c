package vee

import "time"

// DiskInfo is one disk of a VEE as it is on its host.
type DiskInfo struct {
	Name       string `json:"name"`
	Size       Bytes  `json:"sizeBytes"`       // virtual
	Used       Bytes  `json:"usedBytes"`       // on the host, frozen layers too
	Format     string `json:"format"`          // of its file
	Image      string `json:"image,omitempty"` // manifest digest that it was made from
	Source     string `json:"source,omitempty"`
	Persistent bool   `json:"persistent,omitempty"`
	CDROM      bool   `json:"cdrom,omitempty"`
	Layers     int    `json:"layers,omitempty"` // frozen ones under it
}

// Checkpoint of a VEE: its part of a moment of its whole VE.
type Checkpoint struct {
	N      int       `json:"n"` // of the VE, from 1
	At     time.Time `json:"at"`
	Size   Bytes     `json:"sizeBytes"`
	Digest string    `json:"digest,omitempty"` // "sha256:…" of it, packed
}

// Seed is a packed checkpoint of a VEE with whose disks another begins its life: a blob in the
// site's registry.
type Seed struct {
	Digest string    `json:"digest"` // "sha256:…"
	Size   Bytes     `json:"sizeBytes"`
	Of     ID        `json:"of"`
	At     time.Time `json:"at"`
}

// Snapshot of a VEE: its disks as they were, and its memory where it ran and that was
// asked for.
type Snapshot struct {
	Name    string    `json:"name"`
	Memory  bool      `json:"memory"`
	Created time.Time `json:"created"` // host's clock
	Disks   []string  `json:"disks,omitempty"`
	Size    Bytes     `json:"sizeBytes"` // of the saved memory and of the layers that it froze
}
