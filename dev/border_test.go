package dev

import (
	"net"
	"strconv"
	"testing"
	"time"
)

// sitesAreApart tries every address of each site from every namespace of the others: the
// proxies reach each other outside, and nobody anything else.
func sitesAreApart(t *testing.T, c Config) {
	t.Helper()
	nodes := c.layout().nodes
	for _, from := range nodes {
		for _, to := range nodes {
			if from.site == to.site {
				continue
			}
			port := hostPort
			if to.host == "" {
				port = sitePort
			}
			inside := map[string]bool{net.JoinHostPort(to.address, strconv.Itoa(port)): false}
			if to.proxy {
				inside[net.JoinHostPort(c.outside(siteIndex(to.site)), strconv.Itoa(outsidePort))] = from.proxy
			}
			for address, may := range inside {
				reach := func() error {
					return inNetns(from.netns, func() error {
						c, err := (&net.Dialer{Timeout: 5 * time.Second}).DialContext(t.Context(), "tcp", address)
						if err == nil {
							c.Close()
						}
						return err
					})
				}
				if may {
					waitFor(t, from.name()+" reaches "+to.name(), func() bool { return reach() == nil })
				} else if reach() == nil {
					t.Errorf("%s reaches %s at %s", from.name(), to.name(), address)
				}
			}
		}
	}
}
