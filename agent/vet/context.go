package vet

import (
	"fmt"
	"maps"
	"strings"

	"github.com/reservoir-cloud/reservoir/vee"
)

// seed is what the guest finds on its "cidata" medium: the descriptor's files, and what
// cloud-init's NoCloud source needs beside them, derived where it was not given.
func seed(id vee.ID, d vee.Descriptor) map[string]string {
	files := maps.Clone(d.Context)
	if files == nil {
		files = map[string]string{}
	}
	give := func(name, content string) {
		if _, ok := files[name]; !ok {
			files[name] = content
		}
	}
	give("meta-data", fmt.Sprintf("instance-id: %s\nlocal-hostname: %s\n", id, d.Name))
	give("user-data", "#cloud-config\n{}\n")
	if len(d.NICs) > 0 {
		give("network-config", networkConfig(d.NICs))
	}
	return files
}

// networkConfig is version 2 of cloud-init's network configuration: each NIC found by its
// MAC and given the address that the VEE Manager chose.
func networkConfig(nics []vee.NIC) string {
	var b strings.Builder
	b.WriteString("version: 2\nethernets:\n")
	for i, n := range nics {
		name := n.Target
		if name == "" {
			name = fmt.Sprintf("eth%d", i)
		}
		fmt.Fprintf(&b, "  %s:\n    match:\n      macaddress: %q\n    set-name: %s\n", name, n.MAC, name)
		if n.Address != "" {
			fmt.Fprintf(&b, "    dhcp4: false\n    addresses:\n      - %q\n", n.Address)
		}
		if n.Gateway != "" {
			fmt.Fprintf(&b, "    routes:\n      - to: 0.0.0.0/0\n        via: %q\n", n.Gateway)
		}
	}
	return b.String()
}
