package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"

	"github.com/spf13/cobra"

	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/internal/httpapi"
	"github.com/reservoir-cloud/reservoir/vee"
)

func (a *app) veePortForward() *cobra.Command {
	cmd := &cobra.Command{Use: "port-forward VEE PORTS…", Short: "Reach ports of a guest from this machine",
		Long: `Reach ports of a guest from this machine, whatever networks it is on. PORTS is
[LOCAL:]REMOTE: connections to LOCAL here are made to REMOTE in the guest, by its host.
LOCAL is REMOTE where it is not given, and drawn where it is 0.`,
		Example:           "  reservoir vee port-forward web-1 8080:80\n  reservoir vee port-forward db-1 5432",
		ValidArgsFunction: a.names(veeNames)}
	address := cmd.Flags().String("address", "127.0.0.1", "`ADDRESS` of this machine to listen on")
	stdio := cmd.Flags().Bool("stdio", false, "join the one port REMOTE to this command's input and output")
	cmd.RunE = a.onSite(func(ctx context.Context, r *remote, args []string) error {
		if *stdio && len(args) != 2 {
			return fault.New(fault.Malformed, "--stdio joins one port, not %d", len(args)-1)
		}
		ids, err := r.findVEEs(ctx, args[:1])
		if err != nil {
			return err
		}
		var ports []portPair
		for _, text := range args[1:] {
			p, err := parsePorts(text)
			if err != nil {
				return err
			}
			ports = append(ports, p)
		}
		if *stdio {
			conn, err := r.vmi.Connect(ctx, ids[0], ports[0].remote)
			if err != nil {
				return err
			}
			stop := context.AfterFunc(ctx, func() { conn.Close() })
			defer stop()
			return join(conn, a.in, a.out)
		}
		return a.forwardPorts(ctx, r, ids[0], *address, ports)
	})
	return cmd
}

type portPair struct{ local, remote uint16 }

func parsePorts(text string) (portPair, error) {
	local, remote, two := strings.Cut(text, ":")
	if !two {
		remote = local
	}
	l, err := strconv.ParseUint(local, 10, 16)
	r, err2 := strconv.ParseUint(remote, 10, 16)
	if err != nil || err2 != nil || r == 0 {
		return portPair{}, fault.New(fault.Malformed, "%q: want [LOCAL:]REMOTE, such as 8080:80", text)
	}
	return portPair{uint16(l), uint16(r)}, nil
}

// forwardPorts until ctx is done.
func (a *app) forwardPorts(ctx context.Context, r *remote, id vee.ID, address string, ports []portPair) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	for _, p := range ports {
		ln, err := net.Listen("tcp", net.JoinHostPort(address, strconv.Itoa(int(p.local))))
		if err != nil {
			return fault.New(fault.Unavailable, "%w", err).Try("choose another port of this machine: reservoir vee port-forward %s 0:%d", id, p.remote)
		}
		fmt.Fprintf(a.out, "%s → %s port %d\n", ln.Addr(), id, p.remote)
		context.AfterFunc(ctx, func() { ln.Close() })
		wg.Go(func() {
			for {
				c, err := ln.Accept()
				if err != nil {
					return // closed
				}
				wg.Go(func() {
					defer c.Close()
					conn, err := r.vmi.Connect(ctx, id, p.remote)
					if err != nil {
						fmt.Fprintf(a.err, "error: %v\n", err)
						return
					}
					stop := context.AfterFunc(ctx, func() { conn.Close() })
					defer stop()
					httpapi.Join(c, conn)
				})
			}
		})
	}
	<-ctx.Done()
	return ctx.Err()
}

// join a connection to in and out until it ends. The end of in does not end it: an answer
// may be on its way.
func join(conn io.ReadWriteCloser, in io.Reader, out io.Writer) error {
	defer conn.Close()
	go func() { _, _ = io.Copy(conn, in) }() // ends with the process: a read of in cannot be woken
	if _, err := io.Copy(out, conn); err != nil && !errors.Is(err, net.ErrClosed) {
		return fault.New(fault.Unavailable, "the connection was lost: %w", err)
	}
	return nil
}

func (a *app) veeSSH() *cobra.Command {
	cmd := &cobra.Command{Use: "ssh VEE [COMMAND…]", Short: "Log in to a guest over SSH",
		Long: `Log in to a guest over SSH, whatever networks it is on. The manifest's sshKeys say who
may. The machine's own ssh runs, with its keys and its configuration.`,
		Example:           "  reservoir vee ssh web-1\n  reservoir vee ssh web-1 -- uptime",
		ValidArgsFunction: a.names(veeNames)}
	user := cmd.Flags().StringP("user", "l", "root", "`NAME` to log in as")
	port := cmd.Flags().Uint16("port", 22, "`PORT` of the guest's SSH server")
	cmd.RunE = a.onSite(func(ctx context.Context, r *remote, args []string) error {
		ids, err := r.findVEEs(ctx, args[:1])
		if err != nil {
			return err
		}
		self, err := os.Executable()
		if err != nil {
			return fmt.Errorf("find this program: %w", err)
		}
		ssh := exec.CommandContext(ctx, "ssh", sshArgs(self, a.context, ids[0], *user, *port, args[1:])...)
		ssh.Stdin, ssh.Stdout, ssh.Stderr = a.in, a.out, a.err
		err = ssh.Run()
		switch exit := new(exec.ExitError); {
		case errors.Is(err, exec.ErrNotFound):
			return fault.New(fault.Unsupported, "there is no ssh on this machine").Try("apt-get install openssh-client")
		case errors.As(err, &exit):
			return fault.New(fault.Unavailable, "ssh ended with status %d", exit.ExitCode()).Try("see whether the guest has an SSH server, and your key: reservoir vee console %s", ids[0])
		}
		return err
	})
	return cmd
}

// sshArgs has ssh speak through this program. A guest is known by its identifier: its
// address may be another's tomorrow.
func sshArgs(self, context string, id vee.ID, user string, port uint16, command []string) []string {
	proxy := quoted(self)
	if context != "" {
		proxy += " --context " + quoted(context)
	}
	proxy += fmt.Sprintf(" vee port-forward --stdio %s %d", id, port)
	// A percent sign begins a token of ssh.
	return append([]string{
		"-o", "ProxyCommand=" + strings.ReplaceAll(proxy, "%", "%%"),
		"-o", "HostKeyAlias=" + string(id), "-o", "StrictHostKeyChecking=accept-new",
		"-l", user, string(id),
	}, command...)
}

// quoted for the shell.
func quoted(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }
