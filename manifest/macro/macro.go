// Package macro replaces the macros of a manifest's properties, "@IP(net)", by what they
// stand for in one VEE. It is pure: who knows the addresses passes them in.
package macro

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/reservoir-cloud/reservoir/vee"
)

// Scope is what the macros of one VEE's properties may speak of.
type Scope struct {
	ServiceID string
	VEE       vee.ID
	Domain    string // of its names, "shop.alpha.internal"
	Number    int    // of the replica, from 1
	// Channel is the URL that its programs push measurements to.
	Channel string
	NICs    []NIC
	// Others are the NICs of the replica by which each component is reached.
	Others map[string][]NIC
}

// NIC as the manifest calls it. What is not known is empty.
type NIC struct {
	vee.NIC
	Name  string // of its network, in the manifest
	Alias string
}

// call is a macro as it stands in a value: the name and, in parentheses, the arguments.
var call = regexp.MustCompile(`@([A-Za-z]+)(?:\(([^()]*)\))?`)

// takes is the least and the most arguments of each macro.
var takes = map[string][2]int{
	"IP": {1, 2}, "Netmask": {1, 1}, "Gateway": {1, 1}, "DNSServer": {1, 1}, "PrecedentTierEntryPoint": {2, 2},
	"id": {0, 1}, "Domain": {0, 0}, "ServiceId": {0, 0}, "VmId": {0, 0}, "MonitoringChannel": {0, 0},
}

// In lists the macros of a value, and what looks like one and is none.
func In(value string) (known, unknown []string) {
	for _, m := range call.FindAllStringSubmatch(value, -1) {
		if _, is := takes[m[1]]; is {
			known = append(known, m[0])
		} else {
			unknown = append(unknown, m[0])
		}
	}
	return known, unknown
}

// Expand replaces every macro of a value. What looks like a macro and is none stays as it
// is written. The error names each macro that cannot be resolved, and why.
func (s Scope) Expand(value string) (string, error) {
	var errs []error
	text := call.ReplaceAllStringFunc(value, func(found string) string {
		m := call.FindStringSubmatch(found)
		name, args := m[1], []string(nil)
		if strings.TrimSpace(m[2]) != "" {
			for _, a := range strings.Split(m[2], ",") {
				args = append(args, strings.TrimSpace(a))
			}
		}
		bounds, known := takes[name]
		if !known {
			return found
		}
		if len(args) < bounds[0] || len(args) > bounds[1] {
			errs = append(errs, fmt.Errorf("%s: want %s", found, cmp.Or(usage[name], "@"+name)))
			return found
		}
		is, err := s.resolve(name, args)
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", found, err))
			return found
		}
		return is
	})
	return text, errors.Join(errs...)
}

// usage of the macros that take arguments.
var usage = map[string]string{
	"IP": "@IP(network) or @IP(network,alias)", "Netmask": "@Netmask(network)", "Gateway": "@Gateway(network)",
	"DNSServer": "@DNSServer(network)", "PrecedentTierEntryPoint": "@PrecedentTierEntryPoint(network,component)", "id": "@id or @id(offset)",
}

func (s Scope) resolve(name string, args []string) (string, error) {
	switch name {
	case "ServiceId":
		return known(s.ServiceID, "identifier of the service")
	case "VmId":
		return known(string(s.VEE), "identifier of the VEE")
	case "Domain":
		return known(s.Domain, "domain")
	case "MonitoringChannel":
		return known(s.Channel, "monitoring channel")
	case "id":
		return s.id(args)
	case "PrecedentTierEntryPoint":
		nics, is := s.Others[args[1]]
		if !is {
			return "", fmt.Errorf("component %s has no replica", args[1])
		}
		n, err := on(nics, args[0], "")
		if err != nil {
			return "", fmt.Errorf("component %s: %w", args[1], err)
		}
		return address(n)
	}
	n, err := s.nic(args)
	if err != nil {
		return "", err
	}
	switch name {
	case "IP":
		return address(n)
	case "Netmask":
		p, err := netip.ParsePrefix(n.Address)
		if err != nil {
			return "", fmt.Errorf("it has no IPv4 address on network %s", n.Name)
		}
		return net.IP(net.CIDRMask(p.Bits(), 32)).String(), nil
	case "Gateway":
		return known(cmp.Or(n.Gateway, n.Gateway6), "gateway: nothing is routed on network "+n.Name)
	}
	return known(cmp.Or(n.DNS...), "name server on network "+n.Name)
}

// id is the replica's number, moved by an offset.
func (s Scope) id(args []string) (string, error) {
	offset := 0
	if len(args) == 1 {
		var err error
		if offset, err = strconv.Atoi(args[0]); err != nil {
			return "", fmt.Errorf("offset %q: want a whole number", args[0])
		}
	}
	return strconv.Itoa(s.Number + offset), nil
}

// nic of a network, or of the alias that it has there: its own, or else that of the one
// component which has it.
func (s Scope) nic(args []string) (NIC, error) {
	if len(args) == 1 {
		return on(s.NICs, args[0], "")
	}
	for _, component := range append([]string{""}, slices.Sorted(maps.Keys(s.Others))...) {
		nics := s.Others[component]
		if component == "" {
			nics = s.NICs
		}
		if n, err := on(nics, args[0], args[1]); err == nil {
			return n, nil
		}
	}
	return NIC{}, fmt.Errorf("no NIC on network %s has the alias %s", args[0], args[1])
}

// on finds the NIC on a network: the one of the alias, or the first.
func on(nics []NIC, network, alias string) (NIC, error) {
	i := slices.IndexFunc(nics, func(n NIC) bool { return n.Name == network && (alias == "" || n.Alias == alias) })
	if i < 0 {
		return NIC{}, fmt.Errorf("it is not on network %s", network)
	}
	return nics[i], nil
}

// address of a NIC without its length, IPv4 where it has one.
func address(n NIC) (string, error) {
	p, err := netip.ParsePrefix(cmp.Or(n.Address, n.Address6))
	if err != nil {
		return "", fmt.Errorf("it has no address on network %s yet", n.Name)
	}
	return p.Addr().String(), nil
}

func known(text, what string) (string, error) {
	if text == "" {
		return "", fmt.Errorf("there is no %s", what)
	}
	return text, nil
}
