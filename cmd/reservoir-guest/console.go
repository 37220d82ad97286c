package main

import (
	"bufio"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/reservoir-cloud/reservoir/cmd/reservoir-guest/agent"
	"github.com/reservoir-cloud/reservoir/cmd/reservoir-guest/service"
)

// console is a few commands for whoever looks at the serial line. The line's own discipline
// does the echo and the editing.
type console struct {
	agent     *agent.Agent
	hostname  func() string
	addresses func() []string
	uptime    func() time.Duration
	shutdown  func()
}

const consoleHelp = `help              this
ip                the addresses of this machine
uptime            how long it has been running
kpi [NAME VALUE]  its measurements, or publish one
poweroff          shut it down
`

// serve lines until the stream ends or the machine is told to shut down.
func (c console) serve(tty io.ReadWriter) error {
	lines := bufio.NewScanner(tty)
	for {
		if _, err := fmt.Fprintf(tty, "%s> ", c.hostname()); err != nil {
			return err
		}
		if !lines.Scan() {
			return lines.Err()
		}
		words := strings.Fields(lines.Text())
		if len(words) == 0 {
			continue
		}
		if _, err := io.WriteString(tty, c.obey(words)); err != nil {
			return err
		}
		if words[0] == "poweroff" {
			return nil
		}
	}
}

func (c console) obey(words []string) string {
	switch words[0] {
	case "help":
		return consoleHelp
	case "ip":
		return strings.Join(c.addresses(), "\n") + "\n"
	case "uptime":
		return c.uptime().Round(time.Second).String() + "\n"
	case "poweroff":
		c.shutdown()
		return "shutting down\n"
	case "kpi":
		if len(words) != 3 {
			return service.Metrics(c.agent.Status())
		}
		v, err := strconv.ParseFloat(words[2], 64)
		if err != nil {
			return fmt.Sprintf("kpi %s: %q is not a number\n", words[1], words[2])
		}
		if err := c.agent.SetKPI(words[1], v); err != nil {
			return err.Error() + "\n"
		}
		return ""
	}
	return fmt.Sprintf("%s: not a command; try help\n", words[0])
}
