// Package seed reads what a guest is told at boot: the files of the medium labelled
// "cidata" (cloud-init's NoCloud) and the OVF environment beside them, or in their place
// (DSP0027). It is pure: files in, a Seed out. What is done with it is the boot package's.
package seed

import (
	"encoding/base64"
	"encoding/xml"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"slices"

	"go.yaml.in/yaml/v4"
)

// Seed is what the appliance makes of the medium.
type Seed struct {
	InstanceID string
	Hostname   string
	Links      []Link
	Properties map[string]string // of the OVF environment's own PropertySection
	// Ask is set where nothing is said of the network: every NIC asks for its address.
	Ask   bool
	Files []File // to be written
	// Undone is what user-data asks for and the appliance cannot do, in words: it has no
	// package manager and no shell.
	Undone []string
}

// File that user-data asks for.
type File struct {
	Path    string
	Mode    fs.FileMode
	Content []byte
}

// Link is how one NIC is set up.
type Link struct {
	ID        string           // its key in network-config
	MAC       net.HardwareAddr // nil: matched by Name
	Name      string           // what it is called, or is to be called when MAC is there; may be empty
	MTU       int              // 0: leave it
	DHCP      bool             // ask for an IPv4 address
	Addresses []netip.Prefix   // address and length of its network
	Routes    []Route
	DNS       []netip.Addr
	Search    []string // domains of short names
}

// Route to a network by a gateway; 0.0.0.0/0 or ::/0 is the default route.
type Route struct {
	To  netip.Prefix
	Via netip.Addr
}

// Read takes all that it knows from the medium. A file that is absent says nothing; one
// that is malformed is an error, beside which the rest of the Seed still counts.
func Read(medium fs.FS) (Seed, error) {
	var s Seed
	var errs []error
	given := map[string]bool{}
	for _, f := range []struct {
		name  string
		parse func(*Seed, []byte) error
	}{
		{"meta-data", (*Seed).metaData},
		{"network-config", (*Seed).networkConfig},
		{"user-data", (*Seed).userData},
		{"ovf-env.xml", (*Seed).ovfEnv},
	} {
		text, err := fs.ReadFile(medium, f.name)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		given[f.name] = true
		if err == nil {
			err = f.parse(&s, text)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("reading %s of the seed medium: %w", f.name, err))
		}
	}
	s.Ask = given["ovf-env.xml"] && !given["network-config"]
	// An environment that comes alone says the rest by the properties that cloud-init knows.
	if !given["meta-data"] {
		s.InstanceID, s.Hostname = s.Properties["instance-id"], s.Properties["hostname"]
	}
	if text := s.Properties["user-data"]; text != "" && !given["user-data"] {
		plain, err := base64.StdEncoding.DecodeString(text)
		if err == nil {
			err = s.userData(plain)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("reading property user-data of the seed medium: %w", err))
		}
	}
	return s, errors.Join(errs...)
}

func (s *Seed) metaData(text []byte) error {
	var m struct {
		InstanceID    string `yaml:"instance-id"`
		Hostname      string `yaml:"hostname"`
		LocalHostname string `yaml:"local-hostname"`
	}
	if err := yaml.Unmarshal(text, &m); err != nil {
		return err
	}
	s.InstanceID, s.Hostname = m.InstanceID, m.LocalHostname
	if s.Hostname == "" {
		s.Hostname = m.Hostname
	}
	return nil
}

// ethernet is the part of netplan's version 2 that a site writes.
type ethernet struct {
	Match struct {
		MAC  string `yaml:"macaddress"`
		Name string `yaml:"name"`
	} `yaml:"match"`
	SetName   string   `yaml:"set-name"`
	MTU       int      `yaml:"mtu"`
	DHCP4     bool     `yaml:"dhcp4"`
	Addresses []string `yaml:"addresses"`
	Gateway4  string   `yaml:"gateway4"`
	Gateway6  string   `yaml:"gateway6"`
	Routes    []struct {
		To  string `yaml:"to"`
		Via string `yaml:"via"`
	} `yaml:"routes"`
	Nameservers struct {
		Addresses []string `yaml:"addresses"`
		Search    []string `yaml:"search"`
	} `yaml:"nameservers"`
}

type netplan struct {
	Version   int                 `yaml:"version"`
	Ethernets map[string]ethernet `yaml:"ethernets"`
}

func (s *Seed) networkConfig(text []byte) error {
	// cloud-init takes it with and without the outer key.
	var doc struct {
		netplan `yaml:",inline"`
		Network netplan `yaml:"network"`
	}
	if err := yaml.Unmarshal(text, &doc); err != nil {
		return err
	}
	plan := doc.netplan
	if doc.Network.Version != 0 {
		plan = doc.Network
	}
	if plan.Version != 2 {
		return fmt.Errorf("version %d: want 2", plan.Version)
	}
	var errs []error
	for id, e := range plan.Ethernets {
		l, err := e.link(id)
		if err != nil {
			errs = append(errs, fmt.Errorf("ethernet %q: %w", id, err))
			continue
		}
		s.Links = append(s.Links, l)
	}
	slices.SortFunc(s.Links, func(a, b Link) int { return compare(a.ID, b.ID) })
	return errors.Join(errs...)
}

func compare(a, b string) int {
	if len(a) != len(b) {
		return len(a) - len(b) // eth2 before eth10
	}
	return slices.Compare([]byte(a), []byte(b))
}

func (e ethernet) link(id string) (Link, error) {
	l := Link{ID: id, Name: e.SetName, MTU: e.MTU, DHCP: e.DHCP4, Search: e.Nameservers.Search}
	var err error
	switch {
	case e.Match.MAC != "":
		if l.MAC, err = net.ParseMAC(e.Match.MAC); err != nil {
			return l, err
		}
	case e.Match.Name != "":
		l.Name = e.Match.Name
	default:
		l.Name = id
	}
	if e.MTU < 0 {
		return l, fmt.Errorf("mtu %d: want no negative number", e.MTU)
	}
	for _, a := range e.Addresses {
		p, err := netip.ParsePrefix(a)
		if err != nil {
			return l, err
		}
		l.Addresses = append(l.Addresses, p)
	}
	for _, gateway := range []string{e.Gateway4, e.Gateway6} {
		if gateway == "" {
			continue
		}
		if err := l.route("default", gateway); err != nil {
			return l, err
		}
	}
	for _, r := range e.Routes {
		if err := l.route(r.To, r.Via); err != nil {
			return l, err
		}
	}
	for _, a := range e.Nameservers.Addresses {
		server, err := netip.ParseAddr(a)
		if err != nil {
			return l, fmt.Errorf("name server: %w", err)
		}
		l.DNS = append(l.DNS, server)
	}
	return l, nil
}

func (l *Link) route(to, via string) error {
	gateway, err := netip.ParseAddr(via)
	if err != nil {
		return fmt.Errorf("gateway of the route to %s: %w", to, err)
	}
	r := Route{Via: gateway}
	switch {
	case to != "default":
		if r.To, err = netip.ParsePrefix(to); err != nil {
			return fmt.Errorf("route: %w", err)
		}
	case gateway.Is4():
		r.To = netip.PrefixFrom(netip.IPv4Unspecified(), 0)
	default:
		r.To = netip.PrefixFrom(netip.IPv6Unspecified(), 0)
	}
	if r.To.Addr().Is4() != gateway.Is4() {
		return fmt.Errorf("route to %s: its gateway %s is of the other IP version", r.To, gateway)
	}
	l.Routes = append(l.Routes, r)
	return nil
}

// ovfEnv takes the guest's own properties. Those of its siblings are in Entity elements
// and are nothing to the appliance.
func (s *Seed) ovfEnv(text []byte) error {
	var env struct {
		XMLName    xml.Name `xml:"Environment"`
		Properties []struct {
			Key   string `xml:"key,attr"`
			Value string `xml:"value,attr"`
		} `xml:"PropertySection>Property"`
	}
	if err := xml.Unmarshal(text, &env); err != nil {
		return err
	}
	s.Properties = make(map[string]string, len(env.Properties))
	for _, p := range env.Properties {
		s.Properties[p.Key] = p.Value
	}
	return nil
}
