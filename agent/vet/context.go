package vet

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"

	"github.com/reservoir-cloud/reservoir/van/plan"
	"github.com/reservoir-cloud/reservoir/vee"
)

// seed is what the guest finds on its "cidata" medium: the descriptor's files, and what
// cloud-init's NoCloud source needs beside them, derived where it was not given.
// nameServers are those that this host has for a NIC whose network has none of its own.
func seed(id vee.ID, d vee.Descriptor, nameServers func(vee.NIC) []string) map[string]string {
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
		nics := slices.Clone(d.NICs)
		for i := range nics {
			if len(nics[i].DNS) == 0 && nameServers != nil {
				nics[i].DNS = nameServers(nics[i])
			}
		}
		give("network-config", networkConfig(nics))
	}
	return files
}

// ethernet is the part of version 2 of cloud-init's network configuration (netplan's) that
// is used here.
type ethernet struct {
	Match struct {
		MAC string `json:"macaddress"`
	} `json:"match"`
	Name        string       `json:"set-name"`
	MTU         int          `json:"mtu,omitempty"`
	DHCP4       bool         `json:"dhcp4"`
	DHCP6       bool         `json:"dhcp6"`
	AcceptRA    *bool        `json:"accept-ra,omitempty"`
	Addresses   []string     `json:"addresses,omitempty"`
	Routes      []route      `json:"routes,omitempty"`
	NameServers *nameServers `json:"nameservers,omitempty"`
}

type route struct {
	To  string `json:"to"`
	Via string `json:"via"`
}

type nameServers struct {
	Addresses []string `json:"addresses"`
	Search    []string `json:"search,omitempty"`
}

// networkConfig finds each NIC by its MAC and gives it the addresses that the VEE Manager
// chose; one without an address asks for it by DHCP. JSON is YAML.
func networkConfig(nics []vee.NIC) string {
	ethernets := map[string]ethernet{}
	for i, n := range nics {
		name := n.Target
		if name == "" {
			name = fmt.Sprintf("eth%d", i)
		}
		e := ethernet{Name: name, MTU: n.MTU}
		e.Match.MAC = n.MAC
		for _, a := range []string{n.Address, n.Address6} {
			if a != "" {
				e.Addresses = append(e.Addresses, a)
			}
		}
		if n.Address6 != "" { // what an advertisement would tell is here already
			e.AcceptRA = new(bool)
		}
		e.DHCP4 = len(e.Addresses) == 0
		for _, r := range []route{{"0.0.0.0/0", n.Gateway}, {"::/0", n.Gateway6}} {
			if r.Via != "" {
				e.Routes = append(e.Routes, r)
			}
		}
		if len(n.DNS) > 0 {
			e.NameServers = &nameServers{n.DNS, plan.Search(n.Domain)}
		}
		ethernets[name] = e
	}
	text, _ := json.MarshalIndent(map[string]any{"version": 2, "ethernets": ethernets}, "", "  ") // plain data always marshals
	return string(text) + "\n"
}
