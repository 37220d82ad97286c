package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os/exec"
	"slices"
	"time"

	"github.com/reservoir-cloud/reservoir/bench/figure"
	"github.com/reservoir-cloud/reservoir/bench/spaces"
	"github.com/reservoir-cloud/reservoir/van/balance"
	"github.com/reservoir-cloud/reservoir/van/plan"
)

// What an access point costs: a client, a site and a VEE, each a namespace, the first and the
// last in the bridge of the site, as they are in a federation on one machine. The client
// speaks to the VEE directly, and through the site's access point, in turns.
var accessSpaces = []string{"bvan-c", "bvan-s", "bvan-v"}

const (
	direct  = "10.96.0.3:80"
	siteIP  = "10.96.0.1"
	veeAddr = "10.96.0.3"
)

// times of questions and answers, by round: their 99th percentile.
type times struct{ held, anew []time.Duration }

// accessPoint prints the table and answers with the ratio of the 99th percentiles of
// questions on a connection that is held.
func accessPoint(ctx context.Context) (ratio float64, err error) {
	defer func() {
		for _, n := range accessSpaces {
			if derr := spaces.IP("netns del " + n); derr != nil && err == nil {
				err = derr
			}
		}
	}()
	if err := accessStage(); err != nil {
		return 0, err
	}
	var ln net.Listener
	if err := spaces.Inside("bvan-v", func() (err error) { ln, err = net.Listen("tcp", ":80"); return err }); err != nil {
		return 0, err
	}
	defer ln.Close()
	go answer(ln)
	b := balance.New(balance.Config{Address: netip.MustParseAddr(siteIP), First: 20000, Last: 20000, Log: slog.New(slog.DiscardHandler)})
	defer b.Close()
	var at string
	// The checks of a backend's health are made where this process is; here its guest vouches.
	if err := spaces.Inside("bvan-s", func() (err error) {
		at, err = b.Set(ctx, plan.Point{Key: "bench", Port: 80, Backends: []plan.Backend{{Address: netip.MustParseAddrPort(direct), Ready: true}}})
		return err
	}); err != nil {
		return 0, err
	}
	straight, through := &times{}, &times{}
	var ratios []float64
	for range *rounds {
		for to, t := range map[string]*times{direct: straight, at: through} {
			if err := t.measure(ctx, to); err != nil {
				return 0, fmt.Errorf("to %s: %w", to, err)
			}
		}
		last := len(straight.held) - 1
		ratios = append(ratios, float64(through.held[last])/float64(straight.held[last]))
	}
	fmt.Printf("\n%d questions and answers of 64 bytes over TCP; medians over %d rounds in turns of the 99th percentile:\n\n", *echoes, *rounds)
	fmt.Printf("%-14s %16s %16s\n", "path", "held connection", "a new one each")
	for _, row := range []struct {
		name string
		t    *times
	}{{"direct", straight}, {"access point", through}} {
		fmt.Printf("%-14s %16v %16v\n", row.name, figure.Median(row.t.held).Round(100*time.Nanosecond), figure.Median(row.t.anew).Round(100*time.Nanosecond))
	}
	fmt.Println()
	return median(ratios), nil
}

func accessStage() error {
	for _, n := range accessSpaces {
		_ = exec.CommandContext(context.Background(), "ip", "netns", "del", n).Run() // of a run that was killed
		if err := spaces.IP("netns add "+n, "-n "+n+" link set lo up"); err != nil {
			return err
		}
	}
	if err := spaces.IP("-n bvan-s link add rsv0 type bridge", "-n bvan-s link set rsv0 up", "-n bvan-s addr add "+siteIP+"/24 dev rsv0"); err != nil {
		return err
	}
	for name, address := range map[string]string{"c": "10.96.0.2", "v": veeAddr} {
		if err := spaces.IP("link add "+name+" netns bvan-s type veth peer name up0 netns bvan-"+name,
			"-n bvan-s link set "+name+" master rsv0", "-n bvan-s link set "+name+" up",
			"-n bvan-"+name+" addr add "+address+"/24 dev up0", "-n bvan-"+name+" link set up0 up"); err != nil {
			return err
		}
	}
	return nil
}

// answer what is asked with the same, until ln is closed.
func answer(ln net.Listener) {
	for {
		c, err := ln.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			_, _ = io.Copy(c, c)
		}()
	}
}

// measure one round: questions on one connection, and a fifth as many on one each.
func (t *times) measure(ctx context.Context, to string) error {
	var c net.Conn
	if err := spaces.Inside("bvan-c", func() (err error) {
		c, err = (&net.Dialer{Timeout: spaces.Patience}).DialContext(ctx, "tcp", to)
		return err
	}); err != nil {
		return err
	}
	defer c.Close()
	ask := func(c net.Conn) error {
		b := make([]byte, 64)
		_ = c.SetDeadline(time.Now().Add(spaces.Patience))
		_, err := c.Write(b)
		_, rerr := io.ReadFull(c, b)
		return errors.Join(err, rerr)
	}
	if err := ask(c); err != nil { // the way is known now
		return err
	}
	var held, anew []time.Duration
	for range *echoes {
		begun := time.Now()
		if err := ask(c); err != nil {
			return err
		}
		held = append(held, time.Since(begun))
	}
	if err := spaces.Inside("bvan-c", func() error { // as a whole: to get there takes as long as a question
		for range *echoes / 5 {
			begun := time.Now()
			c, err := (&net.Dialer{Timeout: spaces.Patience}).DialContext(ctx, "tcp", to)
			if err != nil {
				return err
			}
			err = ask(c)
			anew = append(anew, time.Since(begun))
			c.Close()
			if err != nil {
				return err
			}
		}
		return nil
	}); err != nil {
		return err
	}
	t.held, t.anew = append(t.held, percentile99(held)), append(t.anew, percentile99(anew))
	return nil
}

func percentile99(list []time.Duration) time.Duration {
	s := slices.Sorted(slices.Values(list))
	return s[len(s)*99/100]
}
