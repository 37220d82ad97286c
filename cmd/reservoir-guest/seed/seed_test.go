package seed

import (
	"net"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"testing/fstest"
)

func medium(files map[string]string) fstest.MapFS {
	m := fstest.MapFS{}
	for name, text := range files {
		m[name] = &fstest.MapFile{Data: []byte(text)}
	}
	return m
}

const environment = `<?xml version="1.0" encoding="UTF-8"?>
<Environment xmlns="http://schemas.dmtf.org/ovf/environment/1" xmlns:oe="http://schemas.dmtf.org/ovf/environment/1" oe:id="web-1">
  <PropertySection>
    <Property oe:key="reservoir.ready-delay" oe:value="2"/>
    <Property oe:key="greeting" oe:value="a &lt; b"/>
  </PropertySection>
  <Entity oe:id="db-1"><PropertySection><Property oe:key="greeting" oe:value="not mine"/></PropertySection></Entity>
</Environment>`

func TestRead(t *testing.T) {
	mac := net.HardwareAddr{2, 0, 0, 0, 0, 1}
	for name, c := range map[string]struct {
		files map[string]string
		want  Seed
	}{
		"nothing": {nil, Seed{}},
		"all": {map[string]string{
			"meta-data":   "instance-id: site/7\nlocal-hostname: web-1\n",
			"user-data":   "#cloud-config\n{}\n",
			"ovf-env.xml": environment,
			"network-config": `version: 2
ethernets:
  eth10:
    match: {macaddress: "02:00:00:00:00:01"}
    set-name: eth10
    mtu: 1370
    addresses: [10.80.128.7/16, "fd00::7/64"]
    gateway4: 10.80.0.1
    nameservers: {addresses: [10.80.0.53], search: [shop.alpha.internal]}
  eth2:
    addresses: [192.0.2.5/24]
    routes: [{to: 198.51.100.0/24, via: 192.0.2.1}, {to: default, via: "fe80::1"}]
`,
		}, Seed{
			InstanceID: "site/7", Hostname: "web-1",
			Properties: map[string]string{"reservoir.ready-delay": "2", "greeting": "a < b"},
			Links: []Link{
				{ID: "eth2", Name: "eth2", Addresses: []netip.Prefix{netip.MustParsePrefix("192.0.2.5/24")},
					Routes: []Route{
						{netip.MustParsePrefix("198.51.100.0/24"), netip.MustParseAddr("192.0.2.1")},
						{netip.MustParsePrefix("::/0"), netip.MustParseAddr("fe80::1")},
					}},
				{ID: "eth10", MAC: mac, Name: "eth10", MTU: 1370,
					Addresses: []netip.Prefix{netip.MustParsePrefix("10.80.128.7/16"), netip.MustParsePrefix("fd00::7/64")},
					Routes:    []Route{{netip.MustParsePrefix("0.0.0.0/0"), netip.MustParseAddr("10.80.0.1")}},
					DNS:       []netip.Addr{netip.MustParseAddr("10.80.0.53")}, Search: []string{"shop.alpha.internal"}},
			},
		}},
		"with netplan's outer key": {map[string]string{
			"network-config": "network: {version: 2, ethernets: {a: {match: {name: eth0}}}}",
		}, Seed{Links: []Link{{ID: "a", Name: "eth0"}}}},
	} {
		got, err := Read(medium(c.files))
		if err != nil || !reflect.DeepEqual(got, c.want) {
			t.Errorf("%s:\n got %+v, %v\nwant %+v", name, got, err, c.want)
		}
	}
}

func TestReadSaysWhatIsWrong(t *testing.T) {
	for _, c := range []struct{ file, text, want string }{
		{"meta-data", "\t[", "meta-data"},
		{"network-config", "version: 1", "version 1: want 2"},
		{"network-config", "{version: 2, ethernets: {a: {match: {macaddress: xx}}}}", `ethernet "a"`},
		{"network-config", "{version: 2, ethernets: {a: {addresses: [10.0.0.1]}}}", "10.0.0.1"},
		{"network-config", "{version: 2, ethernets: {a: {gateway4: nowhere}}}", "gateway of the route to default"},
		{"network-config", "{version: 2, ethernets: {a: {routes: [{to: 10.0.0.0/8, via: 'fe80::1'}]}}}", "other IP version"},
		{"network-config", "{version: 2, ethernets: {a: {mtu: -1}}}", "mtu -1"},
		{"ovf-env.xml", "<Envelope/>", "ovf-env.xml"},
		{"ovf-env.xml", "<Environment", "ovf-env.xml"},
	} {
		s, err := Read(medium(map[string]string{c.file: c.text}))
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s %q: got %+v, %v; want an error with %q", c.file, c.text, s, err, c.want)
		}
	}
	s, err := Read(medium(map[string]string{"meta-data": "local-hostname: web-1", "ovf-env.xml": "<"}))
	if err == nil || s.Hostname != "web-1" {
		t.Errorf("one bad file of two: %+v, %v", s, err)
	}
}

func FuzzRead(f *testing.F) {
	f.Add("instance-id: a", "version: 2\nethernets: {a: {addresses: [10.0.0.1/8]}}", environment)
	f.Fuzz(func(t *testing.T, meta, network, env string) {
		_, _ = Read(medium(map[string]string{"meta-data": meta, "network-config": network, "ovf-env.xml": env}))
	})
}

func FuzzUserData(f *testing.F) {
	f.Add("#cloud-config\nwrite_files: [{path: /a, permissions: '0600', content: x}]")
	f.Add("#cloud-config-archive\n- content: '#!/bin/sh'")
	f.Fuzz(func(t *testing.T, text string) {
		s, _ := Read(medium(map[string]string{"user-data": text}))
		for _, file := range s.Files {
			if !strings.HasPrefix(file.Path, "/") || file.Mode&^0o777 != 0 {
				t.Fatalf("file %s with mode %o", file.Path, file.Mode)
			}
		}
	})
}
